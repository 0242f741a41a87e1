//! The bytes of a snapshot file: the header, sections in checked blocks, the end.
//!
//! **For:** `snapshot`, which knows what is in them. **In and out:** [`Output`] writes, [`Input`] reads and checks.
//! **Always:** every byte of the file counts in a checksum and in the digest. **Left out:** what the sections mean.
//!
//! Little-endian; `crc` is CRC-32 (IEEE).
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 8 | magic `QUICSNAP` |
//! | 8 | 4 | format version, 4 |
//! | 12 | 4 | membership length m |
//! | 16 | 16 | cluster id |
//! | 32 | 8 | index of the last entry included |
//! | 40 | 8 | its term |
//! | 48 | 8 | state hash |
//! | 56 | 8 | number of keys |
//! | 64 | 8 | number of nodes in the image: keys, and deleted ones of which a reader may still see something |
//! | 72 | 8 | bytes of keys and values |
//! | 80 | 8 | oldest revision that can be read |
//! | 88 | 8 | state section length s |
//! | 96 | 8 | image section length |
//! | 104 | m | membership |
//! | 104 + m | 4 | crc of all before |
//! | 108 + m | | state section, s bytes in blocks: time, sessions, then oldest revision and clock marks, in postcard |
//! | | | image section: the arena from its first byte (format: `records.rs`, `versions.rs`, `bucket.rs`), in blocks |
//! | | 16 | digest of all before: two 64-bit hashes, each over header, blocks and their crcs in turn |
//! | | 8 | magic `QUICSEND` |
//!
//! A section is cut in blocks of 1 MiB, the last one shorter. After each block follows the crc of its number in the
//! file (8 bytes, from 0) and its bytes.

use std::path::Path;

use super::Error;
use super::files::{Dir, NewFile, Source};
use super::hash::{hash64, mix};
use super::snapshot::{MEMBERSHIP_BYTES_MAX, SnapshotMeta};
use super::tree::Counts;
use crate::raft::{Index, Term};

/// Everything in the header.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) meta: SnapshotMeta,
    pub(super) state_hash: u64,
    pub(super) counts: Counts,
    /// The oldest revision that can be read.
    pub(super) oldest: Index,
    /// Length of the state section.
    pub(super) replicated_bytes: u64,
    /// Length of the image section.
    pub(super) image_bytes: u64,
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let meta = &self.meta;
        assert!(
            meta.membership.len() <= MEMBERSHIP_BYTES_MAX,
            "membership of {} bytes",
            meta.membership.len()
        );
        let mut bytes = MAGIC.to_vec();
        bytes.extend(FORMAT_VERSION.to_le_bytes());
        bytes.extend((meta.membership.len() as u32).to_le_bytes());
        bytes.extend(meta.cluster);
        for number in [
            meta.index.0,
            meta.term.0,
            self.state_hash,
            self.counts.keys,
            self.counts.nodes,
            self.counts.live_bytes,
            self.oldest.0,
            self.replicated_bytes,
            self.image_bytes,
        ] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(&meta.membership);
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// The file's length; `None` if there is no such.
    fn file_bytes(&self) -> Option<u64> {
        let mut sum = (HEADER_BYTES + self.meta.membership.len() + 4) as u64;
        for section in [self.replicated_bytes, self.image_bytes] {
            let blocks = section.div_ceil(BLOCK_BYTES as u64);
            sum = sum.checked_add(section)?.checked_add(blocks * 4)?;
        }
        sum.checked_add((DIGEST_BYTES + END_MAGIC.len()) as u64)
    }
}

/// A snapshot on its way to the disk.
pub(super) struct Output {
    pub(super) file: NewFile,
    digest: Digest,
    block: u64,
    pub(super) bytes: u64,
}

impl Output {
    /// Begins with the header.
    pub(super) fn begin(file: NewFile, header: &Header) -> Result<Output, Error> {
        let mut output = Output { file, digest: Digest::default(), block: 0, bytes: 0 };
        output.put(&header.encode())?;
        Ok(output)
    }

    /// Adds the next block of a section.
    pub(super) fn block(&mut self, block: &[u8]) -> Result<(), Error> {
        let crc = block_crc(self.block, block);
        self.block += 1;
        self.put(block)?;
        self.put(&crc.to_le_bytes())
    }

    /// Adds what stands after the sections.
    pub(super) fn end(&mut self) -> Result<(), Error> {
        let digest = self.digest.bytes();
        self.put(&digest)?;
        self.put(END_MAGIC)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.digest.add(bytes);
        self.bytes += bytes.len() as u64;
        self.file.write(bytes)
    }
}

/// A snapshot that is read and checked from its beginning to its end.
pub(super) struct Input {
    pub(super) source: Source,
    digest: Digest,
    block: u64,
}

impl From<Source> for Input {
    fn from(source: Source) -> Input {
        Input { source, digest: Digest::default(), block: 0 }
    }
}

impl Input {
    pub(super) fn open(dir: &Dir, path: &Path) -> Result<Input, Error> {
        Ok(Input::from(Source::open(dir, path)?))
    }

    pub(super) fn header(&mut self) -> Result<Header, Error> {
        let mut bytes = vec![0; HEADER_BYTES];
        self.source.read(&mut bytes)?;
        if !bytes.starts_with(MAGIC) {
            return Err(self.source.corrupt(0, "no snapshot begins like this"));
        }
        let membership_len = number(&bytes, 12, 4) as usize;
        if membership_len > MEMBERSHIP_BYTES_MAX {
            return Err(self.source.corrupt(12, "the membership is too long"));
        }
        bytes.resize(HEADER_BYTES + membership_len + 4, 0);
        self.source.read(&mut bytes[HEADER_BYTES..])?;
        self.digest.add(&bytes);
        let (content, crc) = bytes.split_at(HEADER_BYTES + membership_len);
        if u64::from(crc32fast::hash(content)) != number(crc, 0, 4) {
            return Err(self.source.corrupt(0, "the header's checksum is wrong"));
        }
        let version = number(content, 8, 4) as u32;
        if version != FORMAT_VERSION {
            return Err(Error::Version { path: self.source.path.clone(), version });
        }
        let mut cluster = [0; 16];
        cluster.copy_from_slice(&content[16..32]);
        let header = Header {
            meta: SnapshotMeta {
                cluster,
                index: Index(number(content, 32, 8)),
                term: Term(number(content, 40, 8)),
                membership: content[HEADER_BYTES..].to_vec(),
            },
            state_hash: number(content, 48, 8),
            counts: Counts {
                keys: number(content, 56, 8),
                nodes: number(content, 64, 8),
                live_bytes: number(content, 72, 8),
            },
            oldest: Index(number(content, 80, 8)),
            replicated_bytes: number(content, 88, 8),
            image_bytes: number(content, 96, 8),
        };
        // Also what makes it safe to allocate by the lengths.
        if header.file_bytes() != Some(self.source.len) {
            return Err(self.source.corrupt(self.source.len, "the file has the wrong length"));
        }
        let whole = header.image_bytes.is_multiple_of(super::arena::UNIT_BYTES as u64);
        if !whole {
            return Err(self.source.corrupt(LENGTHS_AT, "the image has an impossible length"));
        }
        Ok(header)
    }

    /// Fills `block`, which has the length of the next block.
    fn block(&mut self, block: &mut [u8]) -> Result<(), Error> {
        let crc = self.checked_block(block)?;
        self.digest.add(block);
        self.digest.add(&crc);
        Ok(())
    }

    fn checked_block(&mut self, block: &mut [u8]) -> Result<[u8; 4], Error> {
        let at = self.source.offset;
        self.source.read(block)?;
        let mut crc = [0; 4];
        self.source.read(&mut crc)?;
        if block_crc(self.block, block) != u32::from_le_bytes(crc) {
            return Err(self.source.corrupt(at, "a block's checksum is wrong"));
        }
        self.block += 1;
        Ok(crc)
    }

    /// Fills `section` with the whole of the next one; a long one on all processors.
    pub(super) fn section(&mut self, section: &mut [u8]) -> Result<(), Error> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let blocks = section.len().div_ceil(BLOCK_BYTES);
        let per_thread = blocks.div_ceil(threads).max(BLOCKS_PER_THREAD_MIN);
        let mut pieces = Vec::new();
        for piece in section.chunks_mut(per_thread * BLOCK_BYTES) {
            let source = self.source.part(self.block_end(piece.len()))?;
            let block = self.block;
            self.block += piece.len().div_ceil(BLOCK_BYTES) as u64;
            pieces.push((Input { source, digest: Digest::default(), block }, piece));
        }
        let last = pieces.pop();
        let checked = std::thread::scope(|scope| {
            let run = |(mut input, piece): (Input, &mut [u8])| input.piece(piece);
            let others: Vec<_> =
                pieces.into_iter().map(|work| scope.spawn(move || run(work))).collect();
            let last = last.map(run);
            let others = others.into_iter().map(|other| match other.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            others.chain(last).collect::<Vec<_>>()
        });
        for hashes in checked {
            hashes?.into_iter().for_each(|hash| self.digest.add_hash(hash));
        }
        Ok(())
    }

    /// Fills `piece`, which is whole blocks, and gives the hashes of blocks and checksums in turn.
    fn piece(&mut self, piece: &mut [u8]) -> Result<Vec<[u64; 2]>, Error> {
        let mut hashes = Vec::with_capacity(2 * piece.len().div_ceil(BLOCK_BYTES));
        for block in piece.chunks_mut(BLOCK_BYTES) {
            let crc = self.checked_block(block)?;
            hashes.extend([Digest::hash(block), Digest::hash(&crc)]);
        }
        Ok(hashes)
    }

    /// The length in the file of a piece of a section that begins with a block.
    fn block_end(&self, bytes: usize) -> u64 {
        (bytes + 4 * bytes.div_ceil(BLOCK_BYTES)) as u64
    }

    /// Reads and checks a section, and lets `each` have its blocks.
    pub(super) fn pass(
        &mut self,
        bytes: u64,
        mut each: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (mut scratch, mut left) = (Vec::new(), bytes);
        while left > 0 {
            let len = left.min(BLOCK_BYTES as u64);
            scratch.resize(len as usize, 0);
            self.block(&mut scratch)?;
            each(&scratch)?;
            left -= len;
        }
        Ok(())
    }

    pub(super) fn end(&mut self) -> Result<(), Error> {
        let at = self.source.offset;
        let mut footer = [0; DIGEST_BYTES + END_MAGIC.len()];
        self.source.read(&mut footer)?;
        let (digest, magic) = footer.split_at(DIGEST_BYTES);
        if digest != self.digest.bytes() {
            return Err(self.source.corrupt(at, "the digest is wrong"));
        }
        if magic != END_MAGIC {
            return Err(self.source.corrupt(at, "no snapshot ends like this"));
        }
        Ok(())
    }
}

/// Two independent hashes over the same pieces.
#[derive(Default)]
struct Digest([u64; 2]);

impl Digest {
    fn hash(bytes: &[u8]) -> [u64; 2] {
        DIGEST_SEEDS.map(|seed| hash64(seed, bytes))
    }

    fn add_hash(&mut self, hash: [u64; 2]) {
        for (state, hash) in self.0.iter_mut().zip(hash) {
            *state = mix(*state, hash);
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.add_hash(Digest::hash(bytes));
    }

    fn bytes(&self) -> [u8; DIGEST_BYTES] {
        let [a, b] = self.0.map(u128::from);
        (a | b << 64).to_le_bytes()
    }
}

fn block_crc(block: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&block.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

/// The little-endian number of `len` bytes, at most 8, at `at`.
fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

const MAGIC: &[u8; 8] = b"QUICSNAP";
const END_MAGIC: &[u8; 8] = b"QUICSEND";
/// The version that is written and read.
pub(super) const FORMAT_VERSION: u32 = 4;
const HEADER_BYTES: usize = 104;
/// Where the lengths of the sections stand.
pub(super) const LENGTHS_AT: u64 = 88;
pub(super) const BLOCK_BYTES: usize = 1 << 20;
/// Fewer blocks are not worth a thread.
const BLOCKS_PER_THREAD_MIN: usize = 4;
/// The digest stands this far from the end.
pub(super) const END_BYTES: u64 = (DIGEST_BYTES + END_MAGIC.len()) as u64;
pub(super) const DIGEST_BYTES: usize = 16;
const DIGEST_SEEDS: [u64; 2] = [0x5155_4943_534e_4150, 0xc2b2_ae3d_27d4_eb4f];
