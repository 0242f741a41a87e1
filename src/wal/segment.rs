//! Segment files: their names and headers.
//!
//! `{seq:016x}.wal` begins with a block of 4 KiB that holds two copies of the header, at 0 and at 2048:
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 8 | magic `QCWALSEG` |
//! | 8 | 2 | version, 2 |
//! | 10 | 2 | zero |
//! | 12 | 4 | `body_crc` of the record before this segment, 0 for the first |
//! | 16 | 16 | cluster |
//! | 32 | 8 | node |
//! | 40 | 8 | incarnation: counts the openings of the log |
//! | 48 | 8 | seq, as in the name |
//! | 56 | 8 | ordinal of the first record |
//! | 64 | 8 | salt, random |
//! | 72 | 8 | length of the file |
//! | 80 | 8 | ordinal of the last record that was in it when it got its name |
//! | 88 | 8 | data directory |
//! | 96 | 1948 | zero |
//! | 2044 | 4 | CRC-32 of the 2044 bytes before |

use std::path::{Path, PathBuf};

use super::Identity;
use super::format::{crc, u32_at, u64_at};
use crate::raft::{DataId, NodeId};

/// Where the records begin.
pub(super) const SEGMENT_HEADER_BYTES: usize = 4096;

const MAGIC: &[u8; 8] = b"QCWALSEG";
const VERSION: u16 = 2;
const COPY_BYTES: usize = 2048;
const CRC_OFFSET: usize = COPY_BYTES - 4;

/// What a segment says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) prev_crc: u32,
    pub(super) identity: Identity,
    pub(super) incarnation: u64,
    pub(super) seq: u32,
    pub(super) first_ordinal: u64,
    pub(super) salt: u64,
    pub(super) bytes: u64,
    /// A segment gets its name when everything up to here is durable.
    pub(super) born_ordinal: u64,
}

/// What the first 4 KiB of a file are.
pub(super) enum Header {
    Good(SegmentHeader),
    /// No header, or two damaged copies.
    Bad,
    /// A sound header of a version that is not known here.
    Version(u16),
}

impl SegmentHeader {
    /// Both copies, as they begin the file.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut copy = vec![0; COPY_BYTES];
        copy[0..8].copy_from_slice(MAGIC);
        copy[8..10].copy_from_slice(&VERSION.to_le_bytes());
        copy[12..16].copy_from_slice(&self.prev_crc.to_le_bytes());
        copy[16..32].copy_from_slice(&self.identity.cluster);
        copy[32..40].copy_from_slice(&self.identity.node.0.to_le_bytes());
        copy[40..48].copy_from_slice(&self.incarnation.to_le_bytes());
        copy[48..56].copy_from_slice(&u64::from(self.seq).to_le_bytes());
        copy[56..64].copy_from_slice(&self.first_ordinal.to_le_bytes());
        copy[64..72].copy_from_slice(&self.salt.to_le_bytes());
        copy[72..80].copy_from_slice(&self.bytes.to_le_bytes());
        copy[80..88].copy_from_slice(&self.born_ordinal.to_le_bytes());
        copy[88..96].copy_from_slice(&self.identity.data.0.to_le_bytes());
        let sum = crc(0, &[&copy[..CRC_OFFSET]]);
        copy[CRC_OFFSET..].copy_from_slice(&sum.to_le_bytes());
        copy.repeat(SEGMENT_HEADER_BYTES / COPY_BYTES)
    }

    /// Looks at the first 4 KiB of a file; one good copy is enough.
    pub(super) fn decode(block: &[u8]) -> Header {
        let is_valid = |copy: &&[u8]| {
            copy[0..8] == *MAGIC && crc(0, &[&copy[..CRC_OFFSET]]) == u32_at(copy, CRC_OFFSET)
        };
        let Some(copy) = block.chunks_exact(COPY_BYTES).find(is_valid) else { return Header::Bad };
        let version = u16::from_le_bytes([copy[8], copy[9]]);
        if version != VERSION {
            return Header::Version(version);
        }
        let mut cluster = [0; 16];
        cluster.copy_from_slice(&copy[16..32]);
        let Ok(seq) = u32::try_from(u64_at(copy, 48)) else { return Header::Bad };
        let header = SegmentHeader {
            prev_crc: u32_at(copy, 12),
            identity: Identity {
                cluster,
                node: NodeId(u64_at(copy, 32)),
                data: DataId(u64_at(copy, 88)),
            },
            incarnation: u64_at(copy, 40),
            seq,
            first_ordinal: u64_at(copy, 56),
            salt: u64_at(copy, 64),
            bytes: u64_at(copy, 72),
            born_ordinal: u64_at(copy, 80),
        };
        let is_possible = header.bytes > SEGMENT_HEADER_BYTES as u64 && header.first_ordinal > 0;
        if is_possible { Header::Good(header) } else { Header::Bad }
    }
}

/// The path of a segment.
pub(super) fn segment_path(dir: &Path, seq: u32) -> PathBuf {
    dir.join(format!("{seq:016x}.wal"))
}

/// The path of a segment that is being made.
pub(super) fn temporary_path(dir: &Path, seq: u32) -> PathBuf {
    dir.join(format!("{seq:016x}.tmp"))
}

/// The path of a segment of a mended log that is not yet the node's log.
pub(super) fn mending_path(dir: &Path, seq: u32) -> PathBuf {
    dir.join(format!("{seq:016x}.mend"))
}

/// The number in the name of a segment of a mended log.
pub(super) fn parse_mending_name(name: &str) -> Option<u32> {
    parse(name.strip_suffix(".mend")?)
}

/// Where a file is kept that has the name of a segment and is none of this log.
pub(super) fn stray_path(dir: &Path, seq: u32) -> PathBuf {
    dir.join(format!("{seq:016x}.stray"))
}

/// Where a damaged segment is kept for whoever wants to look into it.
pub(super) fn damaged_path(dir: &Path, seq: u32) -> PathBuf {
    dir.join(format!("{seq:016x}.damaged"))
}

/// The path of the tail that was cut off a segment.
pub(super) fn torn_path(dir: &Path, seq: u32) -> PathBuf {
    dir.join(format!("{seq:016x}.torn"))
}

/// The number in a segment's name, if it is one.
pub(super) fn parse_name(name: &str) -> Option<u32> {
    parse(name.strip_suffix(".wal")?)
}

fn parse(digits: &str) -> Option<u32> {
    (digits.len() == 16).then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}
