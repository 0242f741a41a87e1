//! Snapshot files: the store at one revision, checked to the last byte.
//!
//! **For:** restarting without the log's beginning, and bringing a follower up to date.
//!
//! **In and out:** [`Checkpoint::write`](super::Checkpoint::write) makes one in a [`Dir`]; [`Store::load`] and
//! [`Dir::load_newest`] read one; [`Dir::verify`], [`Dir::list`] and [`Dir::retain`] look after them.
//!
//! **Always:** a file named `{index:016x}.snap` was complete and synced, and was read back from the disk, before it got
//! its name. Any changed, missing or added byte makes it damaged; damaged files are never loaded and never removed by
//! [`Dir::load_newest`].
//!
//! **Left out:** transfer; the receiver writes the bytes to a file and calls [`Dir::verify`].
//!
//! Little-endian; `crc` is CRC-32 (IEEE).
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 8 | magic `QUICSNAP` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | membership length m |
//! | 16 | 16 | cluster id |
//! | 32 | 8 | index of the last entry included |
//! | 40 | 8 | its term |
//! | 48 | 8 | state hash |
//! | 56 | 8 | number of keys |
//! | 64 | 8 | bytes of keys and values |
//! | 72 | 8 | session section length s |
//! | 80 | 8 | image section length |
//! | 88 | m | membership |
//! | 88 + m | 4 | crc of all before |
//! | 92 + m | | session section: time and sessions in postcard, s bytes in blocks |
//! | | | image section: the arena from its first byte (format: `records.rs`), in blocks |
//! | | 16 | digest of all before: two 64-bit hashes, each over header, blocks and their crcs in turn |
//! | | 8 | magic `QUICSEND` |
//!
//! A section is cut in blocks of 1 MiB, the last one shorter. After each block follows the crc of its number in the
//! file (8 bytes, from 0) and its bytes.

use std::path::{Path, PathBuf};

use super::arena::Arena;
pub use super::files::Dir;
use super::files::{self, NewFile, Pace, Source};
use super::hash::{hash64, mix};
use super::session::Sessions;
use super::tree::Tree;
use super::{Error, Options, Store};
use crate::raft::{Index, Term};

/// What a snapshot says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The cluster whose state it is.
    pub cluster: [u8; 16],
    /// The last entry that is included.
    pub index: Index,
    /// The term of that entry.
    pub term: Term,
    /// The membership at that entry, as the log encodes it; at most [`MEMBERSHIP_BYTES_MAX`].
    pub membership: Vec<u8>,
}

/// A snapshot that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The file.
    pub path: PathBuf,
    /// The last entry that is included.
    pub index: Index,
    /// The term of that entry.
    pub term: Term,
    /// The file's length.
    pub bytes: u64,
}

/// What was found at a restart.
pub struct Recovery {
    /// The store of the newest undamaged snapshot, with what that says about itself; `None` if there is none.
    pub loaded: Option<(Store, SnapshotMeta)>,
    /// Why newer files were passed over, newest first.
    pub damaged: Vec<Error>,
}

/// Everything in the header.
pub(super) struct Header {
    pub(super) meta: SnapshotMeta,
    pub(super) state_hash: u64,
    pub(super) keys: u64,
    pub(super) live_bytes: u64,
    pub(super) session_bytes: u64,
    pub(super) image_bytes: u64,
}

impl Dir {
    /// The snapshots, newest first, by name only.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn list(&self) -> Result<Vec<(Index, PathBuf)>, Error> {
        let names = self.names()?;
        let path = |name: &String| Some((index_of(name)?, self.path.join(name)));
        Ok(names.iter().rev().filter_map(path).collect())
    }

    /// Index and term of the newest snapshot that is not damaged.
    ///
    /// # Errors
    /// [`Error::Disk`], [`Error::Version`].
    pub fn newest_sound(&self) -> Result<Option<(Index, Term)>, Error> {
        for (_, path) in self.list()? {
            match self.verify(&path) {
                Ok(meta) => return Ok(Some((meta.index, meta.term))),
                Err(Error::Corrupt { .. } | Error::Disk(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Reads a whole file and checks every byte.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Version`], [`Error::Disk`].
    pub fn verify(&self, path: &Path) -> Result<SnapshotMeta, Error> {
        let mut input = Input::open(self, path)?;
        let header = input.header()?;
        let mut scratch = Vec::new();
        for section in [header.session_bytes, header.image_bytes] {
            let mut left = section;
            while left > 0 {
                let len = left.min(BLOCK_BYTES as u64);
                scratch.resize(len as usize, 0);
                input.block(&mut scratch)?;
                left -= len;
            }
        }
        input.end()?;
        Ok(header.meta)
    }

    /// Loads the newest snapshot that is not damaged, and removes what unfinished ones left behind.
    ///
    /// # Errors
    /// If the directory cannot be read, if memory is short, or if a snapshot is of another format version: an older
    /// state must not pass for the newest then.
    pub fn load_newest(&self, options: Options) -> Result<Recovery, Error> {
        for name in self.names()? {
            if name.ends_with(files::TEMPORARY) {
                self.remove(&self.path.join(name))?;
            }
        }
        let mut damaged = Vec::new();
        for (_, path) in self.list()? {
            match Store::load(self, &path, options) {
                Ok(loaded) => return Ok(Recovery { loaded: Some(loaded), damaged }),
                Err(error @ (Error::Corrupt { .. } | Error::Disk(_))) => damaged.push(error),
                Err(error) => return Err(error),
            }
        }
        Ok(Recovery { loaded: None, damaged })
    }

    /// Gives the damaged files that [`Dir::load_newest`] found another name, under which they are no snapshots any more.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn set_aside(&self, damaged: &[Error]) -> Result<(), Error> {
        for error in damaged {
            // Of what could not be read it is not known what it is.
            if let Error::Corrupt { path, .. } = error {
                self.rename(path, &path.with_extension(DAMAGED))?;
            }
        }
        Ok(())
    }

    /// Removes all but the `count` newest snapshots; gives the indexes that are left, newest first.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn retain(&self, count: usize) -> Result<Vec<Index>, Error> {
        let all = self.list()?;
        for (_, path) in all.iter().skip(count) {
            self.remove(path)?;
        }
        Ok(all.into_iter().take(count).map(|(index, _)| index).collect())
    }
}

/// The file name of the snapshot at `index`.
pub fn name(index: Index) -> String {
    format!("{:016x}{SUFFIX}", index.0)
}

impl Store {
    /// The store that a snapshot holds; every byte of the file is checked on the way.
    pub fn load(dir: &Dir, path: &Path, options: Options) -> Result<(Store, SnapshotMeta), Error> {
        let mut input = Input::open(dir, path)?;
        let header = input.header()?;
        let sessions_at = input.source.offset;
        let sessions_len = usize::try_from(header.session_bytes)
            .map_err(|_| input.source.corrupt(LENGTHS_AT, "impossible length"))?;
        let mut session_bytes = vec![0; sessions_len];
        for block in session_bytes.chunks_mut(BLOCK_BYTES) {
            input.block(block)?;
        }
        let sessions = Sessions::decode(&session_bytes, header.meta.index.0)
            .ok_or_else(|| input.source.corrupt(sessions_at, "the sessions make no sense"))?;
        let mut writer = Arena::reserve(options.arena_bytes)?;
        for block in writer.restore(header.image_bytes)?.chunks_mut(BLOCK_BYTES) {
            input.block(block)?;
        }
        input.end()?;
        let mut tree = Tree::of_image(writer, header.keys, header.live_bytes);
        let revision = header.meta.index;
        tree.publish(revision.0);
        let store = Store { options, tree, sessions, revision, state_hash: header.state_hash };
        Ok((store, header.meta))
    }
}

/// Writes a snapshot file, reads it back and gives it its name.
pub(super) fn write(
    dir: &Dir,
    header: &Header,
    sessions: &[u8],
    image: &[u8],
    pace: &Pace,
) -> Result<SnapshotInfo, Error> {
    let file = NewFile::create(dir, &name(header.meta.index), pace.clone())?;
    let mut output = Output { file, digest: Digest::default(), block: 0, bytes: 0 };
    output.put(&header.encode())?;
    for block in sessions.chunks(BLOCK_BYTES).chain(image.chunks(BLOCK_BYTES)) {
        let crc = block_crc(output.block, block);
        output.block += 1;
        output.put(block)?;
        output.put(&crc.to_le_bytes())?;
    }
    let digest = output.digest.bytes();
    output.put(&digest)?;
    output.put(END_MAGIC)?;
    let back = dir.verify(output.file.sync()?)?;
    assert_eq!(back, header.meta, "a snapshot says what was written");
    pace.check()?;
    let bytes = output.bytes;
    let path = output.file.publish_as(&name(back.index))?;
    Ok(SnapshotInfo { path, index: back.index, term: back.term, bytes })
}

impl Header {
    fn encode(&self) -> Vec<u8> {
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
            self.keys,
            self.live_bytes,
            self.session_bytes,
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
        for section in [self.session_bytes, self.image_bytes] {
            let blocks = section.div_ceil(BLOCK_BYTES as u64);
            sum = sum.checked_add(section)?.checked_add(blocks * 4)?;
        }
        sum.checked_add((DIGEST_BYTES + END_MAGIC.len()) as u64)
    }
}

/// A snapshot on its way to the disk.
struct Output {
    file: NewFile,
    digest: Digest,
    block: u64,
    bytes: u64,
}

impl Output {
    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.digest.add(bytes);
        self.bytes += bytes.len() as u64;
        self.file.write(bytes)
    }
}

/// A snapshot that is read and checked from its beginning to its end.
struct Input {
    source: Source,
    digest: Digest,
    block: u64,
}

impl Input {
    fn open(dir: &Dir, path: &Path) -> Result<Input, Error> {
        Ok(Input { source: Source::open(dir, path)?, digest: Digest::default(), block: 0 })
    }

    fn header(&mut self) -> Result<Header, Error> {
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
            keys: number(content, 56, 8),
            live_bytes: number(content, 64, 8),
            session_bytes: number(content, 72, 8),
            image_bytes: number(content, 80, 8),
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
        let at = self.source.offset;
        self.source.read(block)?;
        let mut crc = [0; 4];
        self.source.read(&mut crc)?;
        if block_crc(self.block, block) != u32::from_le_bytes(crc) {
            return Err(self.source.corrupt(at, "a block's checksum is wrong"));
        }
        self.digest.add(block);
        self.digest.add(&crc);
        self.block += 1;
        Ok(())
    }

    fn end(&mut self) -> Result<(), Error> {
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
    fn add(&mut self, bytes: &[u8]) {
        for (state, seed) in self.0.iter_mut().zip(DIGEST_SEEDS) {
            *state = mix(*state, hash64(seed, bytes));
        }
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

fn index_of(name: &str) -> Option<Index> {
    let digits = name.strip_suffix(SUFFIX)?;
    let plain = digits.len() == 16 && !digits.starts_with('+');
    let index = u64::from_str_radix(digits, 16).ok().filter(|_| plain)?;
    (self::name(Index(index)) == name).then_some(Index(index))
}

/// Longest membership in a snapshot: far more than the most members need.
pub const MEMBERSHIP_BYTES_MAX: usize = 64 << 10;
const SUFFIX: &str = ".snap";
/// What the name of a damaged one ends in.
const DAMAGED: &str = "damaged";
const MAGIC: &[u8; 8] = b"QUICSNAP";
const END_MAGIC: &[u8; 8] = b"QUICSEND";
const FORMAT_VERSION: u32 = 1;
const HEADER_BYTES: usize = 88;
/// Where the lengths of the sections stand.
const LENGTHS_AT: u64 = 72;
const BLOCK_BYTES: usize = 1 << 20;
const DIGEST_BYTES: usize = 16;
const DIGEST_SEEDS: [u64; 2] = [0x5155_4943_534e_4150, 0xc2b2_ae3d_27d4_eb4f];
