//! `wal.mark`: a second opinion on what was durable, so that a lost end of the log is not taken for a torn one.
//!
//! Two slots of 4 KiB, at 0 and 4096, written in turn; the valid one with the higher generation counts:
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 8 | magic `QCWALMRK` |
//! | 8 | 2 | version, 2 |
//! | 10 | 6 | zero |
//! | 16 | 16 | cluster |
//! | 32 | 8 | node |
//! | 40 | 8 | generation: counts the writes of the mark |
//! | 48 | 8 | incarnation: counts the openings of the log |
//! | 56 | 8 | durable: highest ordinal known to be synced |
//! | 64 | 8 | first segment that must exist |
//! | 72 | 8 | last segment that must exist, 0 for none; one more may exist |
//! | 80 | 8 | term |
//! | 88 | 8 | voted for, 0 is nobody |
//! | 96 | 8 | data directory |
//! | 104 | 3988 | zero |
//! | 4092 | 4 | CRC-32 of the 4092 bytes before |

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::format::{crc, u32_at, u64_at};
use super::segment::parse_name;
use super::writer::Extent;
use super::{Error, Identity};
use crate::disk::{Access, Disk, File};
use crate::raft::{DataId, HardState, NodeId, Term};

const MAGIC: &[u8; 8] = b"QCWALMRK";
const VERSION: u16 = 2;
const SLOT_BYTES: usize = 4096;
const CRC_OFFSET: usize = SLOT_BYTES - 4;

/// What the mark says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) identity: Identity,
    pub(super) generation: u64,
    pub(super) incarnation: u64,
    pub(super) durable: u64,
    pub(super) first_seq: u32,
    pub(super) last_seq: u32,
    pub(super) term: Term,
    pub(super) voted_for: Option<NodeId>,
}

impl Mark {
    /// The mark of a log that has nothing yet.
    pub(super) fn new(identity: Identity) -> Mark {
        Mark {
            identity,
            generation: 0,
            incarnation: 0,
            durable: 0,
            first_seq: 1,
            last_seq: 0,
            term: Term(0),
            voted_for: None,
        }
    }

    /// What stands in for a mark that is lost: all segments that there are must exist.
    pub(super) fn of_all(identity: Identity, names: &[String]) -> Mark {
        let seqs: Vec<u32> = names.iter().filter_map(|name| parse_name(name)).collect();
        Mark {
            first_seq: seqs.iter().min().copied().unwrap_or(1),
            last_seq: seqs.iter().max().copied().unwrap_or(0),
            ..Mark::new(identity)
        }
    }

    /// Whether this is [`Mark::of_all`], or the mark of a log that has nothing yet.
    pub(super) fn is_guess(&self) -> bool {
        self.incarnation == 0
    }

    /// A new mark for a whole log that lost its own.
    pub(super) fn of_log(identity: Identity, hard: HardState, extents: &VecDeque<Extent>) -> Mark {
        Mark {
            first_seq: extents.front().map_or(1, |first| first.seq),
            last_seq: extents.back().map_or(0, |last| last.seq),
            term: hard.term,
            voted_for: hard.voted_for,
            ..Mark::new(identity)
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut slot = vec![0; SLOT_BYTES];
        slot[0..8].copy_from_slice(MAGIC);
        slot[8..10].copy_from_slice(&VERSION.to_le_bytes());
        slot[16..32].copy_from_slice(&self.identity.cluster);
        let numbers = [
            self.identity.node.0,
            self.generation,
            self.incarnation,
            self.durable,
            self.first_seq.into(),
            self.last_seq.into(),
            self.term.0,
            self.voted_for.map_or(0, |node| node.0),
            self.identity.data.0,
        ];
        for (chunk, number) in slot[32..].chunks_exact_mut(8).zip(numbers) {
            chunk.copy_from_slice(&number.to_le_bytes());
        }
        let sum = crc(0, &[&slot[..CRC_OFFSET]]);
        slot[CRC_OFFSET..].copy_from_slice(&sum.to_le_bytes());
        slot
    }

    fn decode(slot: &[u8]) -> Option<Mark> {
        let is_ours = slot[0..8] == *MAGIC && slot[8..10] == VERSION.to_le_bytes();
        if !is_ours || crc(0, &[&slot[..CRC_OFFSET]]) != u32_at(slot, CRC_OFFSET) {
            return None;
        }
        let mut cluster = [0; 16];
        cluster.copy_from_slice(&slot[16..32]);
        let vote = u64_at(slot, 88);
        Some(Mark {
            identity: Identity {
                cluster,
                node: NodeId(u64_at(slot, 32)),
                data: DataId(u64_at(slot, 96)),
            },
            generation: u64_at(slot, 40),
            incarnation: u64_at(slot, 48),
            durable: u64_at(slot, 56),
            first_seq: u32::try_from(u64_at(slot, 64)).ok()?,
            last_seq: u32::try_from(u64_at(slot, 72)).ok()?,
            term: Term(u64_at(slot, 80)),
            voted_for: (vote != 0).then_some(NodeId(vote)),
        })
    }
}

/// The open mark file and what it says.
#[derive(Debug)]
pub(super) struct MarkFile {
    file: Arc<dyn File>,
    mark: Mark,
}

impl MarkFile {
    /// Opens the mark; `None` when there is none, or neither slot is valid.
    ///
    /// # Errors
    /// What the disk says, but for a slot that it cannot read.
    pub(super) fn open(disk: &dyn Disk, dir: &Path) -> Result<Option<MarkFile>, Error> {
        let file = match disk.open(&mark_path(dir)) {
            Ok(file) => file,
            Err(e) if e.is_not_found() => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        // As for segments: what counts is what the device gives back.
        let _ = file.sync();
        file.forget_cache()?;
        let mut marks = Vec::new();
        for slot in 0..2 {
            let mut bytes = vec![0; SLOT_BYTES];
            if file.read_at(slot * SLOT_BYTES as u64, &mut bytes).is_ok() {
                marks.extend(Mark::decode(&bytes));
            }
        }
        let newest = marks.into_iter().max_by_key(|mark| mark.generation);
        Ok(newest.map(|mark| MarkFile { file, mark }))
    }

    /// Makes the mark of a new log, or a new mark for a log that has lost its own.
    pub(super) fn create(disk: &dyn Disk, dir: &Path, mark: Mark) -> Result<MarkFile, Error> {
        let temporary = dir.join("wal.mark.tmp");
        let file = disk.create(&temporary)?;
        file.allocate(2 * SLOT_BYTES as u64, Access::ReadWrite)?;
        file.write_at(0, &mark.encode())?;
        file.sync()?;
        disk.rename(&temporary, &mark_path(dir))?;
        disk.sync_dir(dir)?;
        Ok(MarkFile { file, mark })
    }

    /// What it says now.
    pub(super) fn mark(&self) -> &Mark {
        &self.mark
    }

    /// Changes and syncs the mark, in the slot that holds the older one; does nothing when nothing changes.
    pub(super) fn update(&mut self, change: impl FnOnce(&mut Mark)) -> Result<(), Error> {
        let mut mark = self.mark;
        change(&mut mark);
        if mark == self.mark {
            return Ok(());
        }
        mark.generation += 1;
        let slot = mark.generation % 2;
        self.file.write_at(slot * SLOT_BYTES as u64, &mark.encode())?;
        self.file.sync()?;
        self.mark = mark;
        Ok(())
    }
}

/// Where the mark lies.
pub(super) fn mark_path(dir: &Path) -> PathBuf {
    dir.join("wal.mark")
}
