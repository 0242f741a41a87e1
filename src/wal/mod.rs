//! The write-ahead log: what makes an acknowledged write survive.
//!
//! **What for.** Entries and the hard state of the consensus core become durable here, one sync for everything that
//! gathered since the last, and can be read again: fresh ones from memory, older ones out of the mapped files.
//!
//! **In and out.** [`open`] recovers a directory and gives two halves, one for each thread:
//!
//! ```text
//!  node thread                                        sync thread
//!  Log: append, truncate, read   --take_pending-->    Writer: write_and_sync, idle
//!       on_persisted             <----Persisted---
//! ```
//!
//! The owner carries records and reports between them; the halves share no lock. [`Log`] takes [`Batch`]es in the form
//! in which peers send them; [`Writer`] turns them into records in segments.
//!
//! **What always holds.**
//! - Records become durable in the order in which they were handed over: what was synced is a prefix.
//! - Every byte is covered by a CRC, seeded by the place where it belongs. Damage is an error, never an entry.
//! - A torn end (never acknowledged) is cut and kept aside; anything else that does not fit is damage, which [`open`]
//!   reports and never cuts. [`Damaged`] says what is lacking, and writes the log anew once it is there.
//! - A recovered segment is never appended to: each opening begins a new one, that repeats the hard state.
//! - A full disk is no failure: records wait in order until there is room.
//! - A segment under its final name has a durable header and the segments before it are complete and synced.
//! - The first failure of a [`Writer`] is final: it tells the same error for ever.
//! - Entries that are not durable yet are never dropped from memory.
//!
//! **Assumptions about the medium.** Sectors of 512 bytes are written whole or not at all; a sync that succeeded is
//! durable; bytes outside of a write do not change. The last acknowledged batch before a crash is attested only by the
//! next record or the mark: if exactly that is lost, it cannot be told from a torn one.
//!
//! **Left out.** Who has what a damaged log lacks, roles, snapshots, threads but one that prepares the next segment.
//!
//! **More.** Byte tables: `format.rs`, `segment.rs`, `mark.rs`. The recovery rules: `scan.rs`, `replay.rs`, `mend.rs`.

mod ahead;
mod batch;
mod damage;
mod format;
mod inspect;
mod loaded;
mod log;
mod mark;
mod mend;
mod purge;
mod recovery;
mod replay;
mod rotation;
mod scan;
mod segment;
mod skip;
mod terms;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use batch::{
    BODY_BYTES_MAX, Batch, BatchBuilder, ENTRY_HEADER_BYTES, Entry, EntryMeta, Malformed,
};
pub use damage::Damage;
pub use inspect::{Item, Report, What, dump, identity, verify};
pub use log::{Log, MEMORY_BYTES};
pub use mend::{Damaged, NotWanted};
pub use recovery::{Opening, open, open_above};
pub use replay::Gap;
pub use writer::{Persisted, Room, Writer};

use crate::disk;
use crate::raft::{DataId, EntryKind, HardState, Index, NodeId, Term};

/// Whose log it is; a directory of anyone else is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's id.
    pub cluster: [u8; 16],
    /// The node's id.
    pub node: NodeId,
    /// The data directory, by the number that was drawn when it was made.
    pub data: DataId,
}

impl Identity {
    /// Refuses what belongs to someone else.
    fn check(self, path: &Path, found: Identity) -> Result<(), Error> {
        if self != found {
            return Err(Error::Foreign { path: path.to_owned(), expected: self, found });
        }
        Ok(())
    }
}

/// How bytes get to the disk; both ways write the same bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogIo {
    /// pwrite and fdatasync.
    #[default]
    Write,
    /// Stores into the memory map and msync.
    Map,
}

/// What can be chosen about a log.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Length of a segment, from [`SEGMENT_BYTES_MIN`] to [`SEGMENT_BYTES_MAX`]; a longer entry gets a longer one.
    pub segment_bytes: u64,
    /// How bytes get to the disk.
    pub io: LogIo,
    /// Whether a thread prepares the next segment; otherwise the writer does it itself, which simulations want.
    pub prepare_on_thread: bool,
    /// Seed of the segments' salts: random in production, chosen in simulations.
    pub salt_seed: u64,
    /// Entries that are recovered at least although a snapshot covers them, for followers that lag behind it.
    pub entries_kept: u64,
}

impl Options {
    /// Segments of 64 MiB, prepared by a thread.
    pub fn new(io: LogIo) -> Options {
        let mut seed = [0; 8];
        // Without the system's randomness the salts still differ by incarnation and segment.
        let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut seed);
        let salt_seed = u64::from_le_bytes(seed);
        let (segment_bytes, prepare_on_thread) = (SEGMENT_BYTES, true);
        Options { segment_bytes, io, prepare_on_thread, salt_seed, entries_kept: ENTRIES_KEPT }
    }
}

/// As many as a follower may lack for a moment.
const ENTRIES_KEPT: u64 = 4096;
/// Length of a segment unless chosen otherwise.
pub const SEGMENT_BYTES: u64 = 64 << 20;
/// Shortest segment: header, opening records and a few small entries.
pub const SEGMENT_BYTES_MIN: u64 = 16 << 10;
/// Longest segment that can be chosen; recovery holds one in memory.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// The place of a [`Record`] in the order in which this process handed them to the log; the first has 1. (Records on
/// disk are numbered by themselves, entry by entry.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ordinal(pub u64);

/// What the writer is told to make durable.
#[derive(Clone, Debug)]
pub enum Record {
    /// Entries that follow the last one.
    Entries(Batch),
    /// Term, vote and the commit hint.
    Hard(HardState),
    /// Entries from here on are dropped.
    Truncate {
        /// The first that goes.
        from: Index,
    },
    /// A snapshot was installed: the log begins again after it.
    Reset {
        /// The last index that the snapshot covers.
        index: Index,
        /// Its term.
        term: Term,
    },
    /// A durable snapshot exists.
    SnapMark {
        /// The last index that it covers.
        index: Index,
        /// Its term.
        term: Term,
    },
    /// Segments wholly below may go, as far as a snapshot covers them.
    Purge {
        /// The first index that stays.
        below: Index,
    },
}

/// The log's two halves and what was found on disk.
#[derive(Debug)]
pub struct Opened {
    /// For the node's thread.
    pub log: Log,
    /// For the sync thread.
    pub writer: Writer,
    /// What the consensus core starts from.
    pub recovered: Recovered,
}

/// What was found on disk. All of it is durable.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Whether the directory was made just now.
    pub is_new: bool,
    /// Term, vote and the commit hint.
    pub hard_state: HardState,
    /// The log begins after this place.
    pub base: (Index, Term),
    /// The newest snapshot that was reported durable, if any.
    pub snapshot: Option<(Index, Term)>,
    /// All entries after the base.
    pub entries: Vec<EntryMeta>,
    /// What an operator should know of the recovery: what was cut off the end, what was set aside.
    pub notes: Vec<String>,
}

/// Why the log cannot go on. `Clone`, because the first failure of a writer is told again for ever.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The disk is full. From [`open`]: make room and start again. From the writer: final.
    #[error("no space left to {op} {}: free some space on this disk", path.display())]
    NoSpace {
        /// What was tried.
        op: &'static str,
        /// On which file.
        path: PathBuf,
    },
    /// Another process has the directory open.
    #[error("{} is locked: another process runs on this data directory; stop it first", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// Bytes that this node wrote and may have acknowledged are gone or changed.
    #[error("{0}. Nothing was changed")]
    Corrupt(Damage),
    /// A later version of this program wrote it.
    #[error(
        "{} was written in version {version} of the log's format, which this program does not know: use the one that \
         wrote it, or a later one", path.display()
    )]
    Version {
        /// The file that says so.
        path: PathBuf,
        /// The version that it names.
        version: u16,
    },
    /// The directory belongs to another node or cluster.
    #[error(
        "{} belongs to node {} of cluster {}, but this is node {} of cluster {}: check the data directory in the \
         configuration", path.display(), found.node, hex(&found.cluster), expected.node, hex(&expected.cluster)
    )]
    Foreign {
        /// The file that says so.
        path: PathBuf,
        /// Who is starting.
        expected: Identity,
        /// Whom the file names.
        found: Identity,
    },
    /// There is no log.
    #[error("there is no log in {}", .0.display())]
    Empty(PathBuf),
    /// The entry was purged; a snapshot holds it.
    #[error("entry {index} was purged, the log begins at {first}")]
    Purged {
        /// The entry asked for.
        index: Index,
        /// The first that can be read.
        first: Index,
    },
    /// The disk failed; what it holds is unknown until the next start.
    #[error(transparent)]
    Disk(disk::Error),
}

impl From<disk::Error> for Error {
    fn from(error: disk::Error) -> Error {
        match error {
            disk::Error::NoSpace { op, path } => Error::NoSpace { op, path },
            disk::Error::Locked { path } => Error::Locked { path },
            error @ disk::Error::Io { .. } => Error::Disk(error),
        }
    }
}

/// Where an entry lies on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    segment: u32,
    offset: u32,
}

/// A segment as the reading half sees it.
#[derive(Clone, Debug)]
struct SegmentMap {
    seq: u32,
    path: Arc<Path>,
    codec: format::Codec,
    map: Arc<dyn disk::Map>,
}

impl SegmentMap {
    /// The entry at `offset`, its body into `body`; `None` when it is longer than `limit` in the wire form.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the disk does not hold what was written.
    fn read_entry(
        &self,
        offset: u32,
        index: Index,
        limit: usize,
        body: &mut Vec<u8>,
    ) -> Result<Option<(Term, EntryKind)>, Error> {
        let place = offset as usize;
        let corrupt = |reason: &str| Error::Corrupt(Damage::new(&self.path, place, reason));
        let mut header = [0; format::BLOCK_BYTES];
        self.map.read_at(place, &mut header);
        let head = self.codec.head(offset.into(), &header);
        let head = head.ok_or_else(|| corrupt("the header of a record changed"))?;
        let body_bytes = head.body_bytes as usize;
        let is_expected = head.kind == format::Kind::Entry
            && head.index == index
            && place + head.record_bytes() <= self.map.bytes();
        let kind = EntryKind::from_u8(head.flags).filter(|_| is_expected);
        let kind =
            kind.ok_or_else(|| corrupt("another record than the one that was written here"))?;
        if body_bytes + ENTRY_HEADER_BYTES > limit {
            return Ok(None);
        }
        body.clear();
        body.resize(head.record_bytes() - format::BLOCK_BYTES, 0);
        self.map.read_at(place + format::BLOCK_BYTES, body);
        if !self.codec.body_is_valid(offset.into(), &head, body) {
            return Err(corrupt("the body of an entry changed"));
        }
        self.codec.mask(body);
        body.truncate(body_bytes);
        Ok(Some((head.term, kind)))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

// Offsets inside a segment are 32 bits, also in one that was made for the longest entry.
const _: () =
    assert!(SEGMENT_BYTES_MAX < u32::MAX as u64 && (BODY_BYTES_MAX as u64) < SEGMENT_BYTES_MAX);
const _: () = assert!(SEGMENT_BYTES_MIN <= SEGMENT_BYTES && SEGMENT_BYTES <= SEGMENT_BYTES_MAX);
