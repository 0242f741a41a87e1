//! Records: what a segment consists of after its header.
//!
//! A record begins at a multiple of 64 bytes with a header of 64 bytes, little-endian:
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 2 | magic `0x5143` |
//! | 2 | 1 | kind of record |
//! | 3 | 1 | flags: for an entry its kind, else 0 |
//! | 4 | 4 | length of the body |
//! | 8 | 8 | ordinal: one more than the record's before, through all segments |
//! | 16 | 8 | durable: the highest ordinal known to be synced when this record was encoded |
//! | 24 | 8 | index |
//! | 32 | 8 | term |
//! | 40 | 4 | `body_crc` of the record before |
//! | 44 | 4 | `body_crc`: over the body as it lies on the disk, padding included |
//! | 48 | 4 | `head_crc`: over all other 60 bytes of this header |
//! | 52 | 12 | zero |
//!
//! The body follows, padded with zeros to a multiple of 64 bytes, all of it XORed with a pad of 64 non-zero bytes made
//! from the segment's salt: a value full of zeros never looks like a sector that was never written. Both CRCs start
//! from a value made of the salt and the file offset, so bytes of another segment or place never validate.
//!
//! | kind | name | index | term | body |
//! |---|---|---|---|---|
//! | 1 | Entry | its index | its term | the command or membership |
//! | 2 | Hard | commit index | current term | u64: voted for, 0 is nobody |
//! | 3 | Truncate | first index that is dropped | term of the entry before it | - |
//! | 4 | SnapMark | a durable snapshot holds all up to here | its term | - |
//! | 5 | Reset | the log starts again after this index | its term | - |
//! | 6 | Position | the last entry before this segment | its term | - |

use crate::raft::{HardState, Index, NodeId, Term};

/// Alignment of records, length of their headers and of the pad.
pub(super) const BLOCK_BYTES: usize = 64;
/// What the device writes as one piece.
pub(super) const SECTOR_BYTES: usize = 512;

const MAGIC: u16 = 0x5143;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Entry = 1,
    Hard = 2,
    Truncate = 3,
    SnapMark = 4,
    Reset = 5,
    Position = 6,
}

impl Kind {
    fn from_u8(kind: u8) -> Option<Kind> {
        use Kind::*;
        [Entry, Hard, Truncate, SnapMark, Reset, Position]
            .into_iter()
            .find(|known| *known as u8 == kind)
    }
}

/// A record's header, without the checksums that only the codec needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) kind: Kind,
    pub(super) flags: u8,
    pub(super) body_bytes: u32,
    pub(super) ordinal: u64,
    pub(super) durable: u64,
    pub(super) index: Index,
    pub(super) term: Term,
    pub(super) prev_crc: u32,
    pub(super) body_crc: u32,
}

impl Head {
    /// Bytes of the whole record on disk.
    pub(super) fn record_bytes(&self) -> usize {
        record_bytes(self.body_bytes as usize)
    }
}

/// Bytes on disk of a record with a body of this length.
pub(super) fn record_bytes(body_bytes: usize) -> usize {
    BLOCK_BYTES + body_bytes.next_multiple_of(BLOCK_BYTES)
}

/// What makes the records of one segment its own.
#[derive(Clone, Debug)]
pub(super) struct Codec {
    salt: u64,
    pad: [u8; BLOCK_BYTES],
}

impl Codec {
    /// The codec of the segment with this salt.
    pub(super) fn new(salt: u64) -> Codec {
        let mut pad = [0; BLOCK_BYTES];
        for (i, chunk) in pad.chunks_exact_mut(8).enumerate() {
            chunk.copy_from_slice(&mix(salt ^ (i as u64 + 1)).to_le_bytes());
        }
        pad.iter_mut().for_each(|byte| *byte = (*byte).max(1));
        Codec { salt, pad }
    }

    /// Appends a record that will lie at `offset` of the file; returns its `body_crc`. The lengths and checksums of
    /// `head` are filled in here.
    pub(super) fn encode(
        &self,
        out: &mut Vec<u8>,
        offset: u64,
        mut head: Head,
        body: &[u8],
    ) -> u32 {
        assert!(offset.is_multiple_of(BLOCK_BYTES as u64), "record at {offset}");
        let start = out.len();
        out.resize(start + record_bytes(body.len()), 0);
        let (header, masked) = out[start..].split_at_mut(BLOCK_BYTES);
        masked[..body.len()].copy_from_slice(body);
        self.mask(masked);
        head.body_bytes = body.len() as u32;
        head.body_crc = crc(self.seed(offset + BLOCK_BYTES as u64), &[masked]);
        header[0..2].copy_from_slice(&MAGIC.to_le_bytes());
        header[2] = head.kind as u8;
        header[3] = head.flags;
        header[4..8].copy_from_slice(&head.body_bytes.to_le_bytes());
        header[8..16].copy_from_slice(&head.ordinal.to_le_bytes());
        header[16..24].copy_from_slice(&head.durable.to_le_bytes());
        header[24..32].copy_from_slice(&head.index.0.to_le_bytes());
        header[32..40].copy_from_slice(&head.term.0.to_le_bytes());
        header[40..44].copy_from_slice(&head.prev_crc.to_le_bytes());
        header[44..48].copy_from_slice(&head.body_crc.to_le_bytes());
        let head_crc = crc(self.seed(offset), &[&header[..48], &header[52..]]);
        header[48..52].copy_from_slice(&head_crc.to_le_bytes());
        head.body_crc
    }

    /// The header at `offset` of the file, if these 64 bytes are one.
    pub(super) fn head(&self, offset: u64, header: &[u8; BLOCK_BYTES]) -> Option<Head> {
        if header[0..2] != MAGIC.to_le_bytes() {
            return None;
        }
        if crc(self.seed(offset), &[&header[..48], &header[52..]]) != u32_at(header, 48) {
            return None;
        }
        Some(Head {
            kind: Kind::from_u8(header[2])?,
            flags: header[3],
            body_bytes: u32_at(header, 4),
            ordinal: u64_at(header, 8),
            durable: u64_at(header, 16),
            index: Index(u64_at(header, 24)),
            term: Term(u64_at(header, 32)),
            prev_crc: u32_at(header, 40),
            body_crc: u32_at(header, 44),
        })
    }

    /// Whether the padded body on disk, of the record at `offset`, is what its header promises.
    pub(super) fn body_is_valid(&self, offset: u64, head: &Head, masked: &[u8]) -> bool {
        crc(self.seed(offset + BLOCK_BYTES as u64), &[masked]) == head.body_crc
    }

    /// Puts the pad on a body, or takes it off.
    pub(super) fn mask(&self, body: &mut [u8]) {
        for chunk in body.chunks_mut(BLOCK_BYTES) {
            chunk.iter_mut().zip(&self.pad).for_each(|(byte, pad)| *byte ^= pad);
        }
    }

    fn seed(&self, offset: u64) -> u32 {
        mix(self.salt ^ mix(offset)) as u32
    }
}

/// The body of a Hard record.
pub(super) fn encode_vote(hard: HardState) -> [u8; 8] {
    hard.voted_for.map_or(0, |node| node.0).to_le_bytes()
}

/// The hard state of a Hard record, if its body has the right length.
pub(super) fn decode_hard(head: &Head, body: &[u8]) -> Option<HardState> {
    let vote = u64::from_le_bytes(body.try_into().ok()?);
    let voted_for = (vote != 0).then_some(NodeId(vote));
    Some(HardState { term: head.term, voted_for, commit_index: head.index })
}

/// CRC-32 over parts, started from a seed.
pub(super) fn crc(seed: u32, parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

/// The little-endian number at `offset`; all callers name constant places inside fixed blocks.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("the range has 4 bytes"))
}

/// The little-endian number at `offset`; all callers name constant places inside fixed blocks.
pub(super) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("the range has 8 bytes"))
}

/// The finaliser of SplitMix64: spreads every input bit over the output.
pub(super) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
