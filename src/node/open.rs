//! A data directory comes to life: identity, newest good snapshot, then the log after it.
//!
//! | path | what |
//! |---|---|
//! | `wal/` | the log, see [`crate::wal`] |
//! | `snapshots/` | the two newest snapshots, see [`crate::store::snapshot`] |
//!
//! A directory is made once, by [`init`](super::init), and [`open`] refuses an empty one: a node that lost its
//! directory has forgotten its vote and what it confirmed, and coming back under its old name could
//! undo what the cluster acknowledged.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::agreement::Agreement;
use super::repair::{self, Repair};
use super::{About, Growth, LogTime, Node, SnapshotAt, Snapshots, wire};
use crate::disk::Disk;
use crate::proto;
use crate::raft::{
    Config, DataId, EntryKind, EntryMeta, Index, Membership, MembershipAt, NodeId, Payload, Raft,
    ReadId, Restored, Term,
};
use crate::store::snapshot::{self, SnapshotMeta};
use crate::store::{self, Store};
use crate::wal::{self, Writer};

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log.
    #[error(transparent)]
    Log(#[from] wal::Error),
    /// A snapshot.
    #[error(transparent)]
    Snapshot(#[from] store::Error),
    /// The directory holds no node.
    #[error(
        "{0} holds no data: if this node has lost its data, start it with `quicraft node --rejoin`, so that a new member \
         takes its place, since it has forgotten what it voted for and confirmed; only for the first start of a new \
         cluster run `quicraft node --init`"
    )]
    Empty(PathBuf),
    /// The directory holds a node already.
    #[error("{0} holds the data of a node already; nothing was changed")]
    NotEmpty(PathBuf),
    /// A restore would make a second cluster under the first one's name.
    #[error(
        "the snapshot is of the cluster that these certificates are for, and two clusters must not be taken for each \
         other: make a new authority (`quicraft cert init`) in an empty directory, and certificates of it"
    )]
    SameCluster,
    /// The log is damaged, and nobody else has it.
    #[error(
        "{damage}. Nothing was changed, and there is no other node to mend it from. Check the disk; then restore {} \
         from a copy, or decide with `quicraft log salvage {}` to go on without what is lost", dir.display(), dir.display()
    )]
    Damaged {
        /// The first place that is damaged.
        damage: wal::Damage,
        /// The data directory.
        dir: PathBuf,
    },
    /// The log begins after what the snapshots cover.
    #[error(
        "the log in {dir} begins after index {log_base}, but the newest readable snapshot ends at \
         {snapshot}: {detail}. Nothing was changed. Check the disk; then restore {dir} from a copy"
    )]
    Gap {
        /// The data directory.
        dir: PathBuf,
        /// The last index that the log does not have.
        log_base: Index,
        /// The last index that a snapshot covers.
        snapshot: Index,
        /// What is wrong with the snapshots.
        detail: String,
    },
    /// Log, snapshot and membership contradict each other.
    #[error("{dir}: {reason}")]
    Contradiction {
        /// The data directory.
        dir: PathBuf,
        /// How.
        reason: String,
    },
}

/// What [`open`] and [`init`](super::init) are told.
pub struct OpenOptions {
    /// The data directory.
    pub dir: PathBuf,
    /// Where files are.
    pub disk: Arc<dyn Disk>,
    /// Whose data it is. The number of the data directory is that of a new one; a directory that is there has its own.
    pub identity: wal::Identity,
    /// How the log is kept.
    pub log: wal::Options,
    /// How the store is kept.
    pub store: store::Options,
    /// The core's settings.
    pub raft: Config,
    /// What clients are told, and limits.
    pub about: About,
    /// The first members by the ids that the configuration gives them, for a node that cannot read its own log.
    pub founders: BTreeMap<NodeId, String>,
    /// Whether there are other nodes, from which a damaged log can be mended.
    pub has_others: bool,
}

/// What a data directory turned out to hold.
pub enum Opening {
    /// A node that can run.
    Ready(Box<Opened>),
    /// A node that lacks what others have.
    Repair(Box<Repair>),
}

/// A node, and the half of its log that belongs to the sync thread.
pub struct Opened {
    /// The node.
    pub node: Node,
    /// For the sync thread.
    pub writer: Writer,
    /// What a person should know of the recovery.
    pub notes: Vec<String>,
}

/// Opens the data directory of a node and recovers what survived.
///
/// # Errors
/// [`Error`] says what is wrong and what to do; nothing is changed then.
pub fn open(mut options: OpenOptions) -> Result<Opening, Error> {
    if !holds_data(&*options.disk, &options.dir) {
        return Err(Error::Empty(options.dir));
    }
    options.identity = identity(&options)?;
    options.raft.data = options.identity.data;
    let snapshots = match snapshots_dir(&options.disk, &options.dir).list() {
        Err(store::Error::Disk(error)) if error.is_not_found() => Vec::new(),
        listed => listed?,
    };
    let covered = snapshots.first().map_or(Index(0), |(index, _)| *index);
    open_above(options, covered)
}

/// The same, when the newest snapshot says that it covers this index: if it is damaged, all of the log is needed.
fn open_above(options: OpenOptions, covered: Index) -> Result<Opening, Error> {
    let snapshots = snapshots_dir(&options.disk, &options.dir);
    match open_log(&options, options.identity, covered)? {
        wal::Opening::Damaged(damaged) => repair::begin(*damaged, options, Vec::new()),
        wal::Opening::Whole(opened) if is_blank(&opened.recovered) => {
            Err(Error::Empty(options.dir))
        }
        wal::Opening::Whole(opened) => {
            let found = snapshots.load_newest(options.store)?;
            if covered > Index(0) && self::covered(&found).0 < covered {
                drop(opened);
                return open_above(options, Index(0));
            }
            match covers(&options, &found, opened.recovered.base.0) {
                Err(gap) if options.has_others => Repair::of_lost(options, gap.to_string()),
                Err(gap) => Err(gap),
                Ok(()) => {
                    ready(options, *opened, found).map(|opened| Opening::Ready(Box::new(opened)))
                }
            }
        }
    }
}

/// The last index that the newest good snapshot covers, and its term.
pub(super) fn covered(found: &snapshot::Recovery) -> (Index, Term) {
    found.loaded.as_ref().map_or((Index(0), Term(0)), |(_, meta)| (meta.index, meta.term))
}

/// Whether the snapshots reach to where the log begins.
fn covers(options: &OpenOptions, found: &snapshot::Recovery, log_base: Index) -> Result<(), Error> {
    let (snapshot, _) = covered(found);
    if snapshot >= log_base {
        return Ok(());
    }
    let damaged: Vec<String> = found.damaged.iter().map(ToString::to_string).collect();
    let detail = if damaged.is_empty() { "none is there".to_owned() } else { damaged.join("; ") };
    Err(Error::Gap { dir: options.dir.clone(), log_base, snapshot, detail })
}

/// A node from a log that is whole and the snapshots below it.
fn ready(
    options: OpenOptions,
    opened: wal::Opened,
    found: snapshot::Recovery,
) -> Result<Opened, Error> {
    let wal::Opened { mut log, mut writer, mut recovered } = opened;
    let snapshots = snapshots_dir(&options.disk, &options.dir);
    let mut notes = std::mem::take(&mut recovered.notes);
    notes.extend(found.damaged.iter().map(ToString::to_string));
    let (store, newest, snapshot_membership) = match found.loaded {
        Some((store, meta)) => {
            let membership = snapshot_membership(&options, &meta)?;
            (store, Some(SnapshotAt { index: meta.index, term: meta.term }), membership)
        }
        None => (Store::new(options.store)?, None, Membership::default()),
    };
    let covered = newest.as_ref().map_or(Index(0), |at| at.index);
    let (log_base, base_term) = recovered.base;
    let mut memberships = memberships(&options.dir, &log, &recovered)?;
    let mut entries = recovered.entries;
    let after = entries.iter().skip((covered.0 - log_base.0) as usize);
    let log_bytes = after.map(|meta| u64::from(meta.body_bytes)).sum();
    let mut base = (log_base, base_term);
    let term_at = |index: Index| match index.0 - log_base.0 {
        0 => Some(base_term),
        place => entries.get(place as usize - 1).map(|meta| meta.term),
    };
    if let Some(at) = &newest
        && term_at(at.index) != Some(at.term)
    {
        // The snapshot was installed, but the log's word of it was lost with the power.
        log.reset(at.index, at.term);
        writer.write_and_sync(log.take_pending()).map(|persisted| log.on_persisted(persisted))?;
        entries.clear();
        base = (at.index, at.term);
    }
    // Now that there is one to go on from: a damaged one must not take the place of a good one among those that are
    // kept, nor be sent to anybody.
    snapshots.set_aside(&found.damaged)?;
    let mut hard_state = recovered.hard_state;
    hard_state.commit_index = hard_state.commit_index.max(covered);
    check_terms(&options.dir, hard_state.term, &entries)?;
    let next_read = first_read(options.raft.seed);
    let membership = MembershipAt { index: base.0, membership: snapshot_membership };
    let entries = entries.into_iter().map(|meta| EntryMeta {
        term: meta.term,
        bytes: meta.body_bytes,
        payload: match meta.kind {
            EntryKind::Noop => Payload::Noop,
            EntryKind::Command => Payload::Command,
            EntryKind::Membership => {
                memberships.remove(&meta.index).expect("all memberships were read")
            }
        },
    });
    let raft = Raft::new(options.raft, Restored { hard_state, base, membership }, entries);
    let (store_bytes, oldest) = (store.bytes(), store.oldest());
    let snapshots = Snapshots { newest, log_bytes, store_bytes, oldest, ..Snapshots::default() };
    let node = assemble(options.about, raft, (log, store), snapshots, next_read);
    Ok(Opened { node, writer, notes })
}

/// A node in whose life nothing has happened yet.
fn assemble(
    about: About,
    raft: Raft,
    (log, store): (wal::Log, Store),
    snapshots: Snapshots,
    next_read: ReadId,
) -> Node {
    Node {
        about,
        raft,
        log,
        log_time: LogTime::opened(store.time_ms()),
        store,
        writes: VecDeque::new(),
        proposals: VecDeque::new(),
        growth: Growth::default(),
        next_read,
        reads: super::reads::Reads::default(),
        ready: Vec::new(),
        changes: Vec::new(),
        announced: BTreeMap::new(),
        announcements: 0,
        snapshots,
        agreement: Agreement::default(),
        room: wal::Room::Ample,
        hands_on: false,
    }
}

/// A snapshot may be durable before its term is, and the core takes that term then. Entries may not.
fn check_terms(dir: &Path, term: Term, entries: &[wal::EntryMeta]) -> Result<(), Error> {
    match entries.last() {
        Some(last) if last.term > term => {
            let reason = format!("the log ends in term {}, after the node's own", last.term);
            Err(Error::Contradiction { dir: dir.to_owned(), reason })
        }
        Some(_) | None => Ok(()),
    }
}

/// The number of the data directory, which it got when it was made.
///
/// # Errors
/// What the disk says.
pub fn data_id(options: &OpenOptions) -> Result<DataId, Error> {
    Ok(identity(options)?.data)
}

/// Where the snapshots of a data directory are.
pub fn snapshots_dir(disk: &Arc<dyn Disk>, data: &Path) -> snapshot::Dir {
    snapshot::Dir::new(Arc::clone(disk), data.join("snapshots"))
}

/// Where the names of reads begin: elsewhere at each start, or a leader's answer to a read of the process before this
/// one would answer another read of ours, with an index from before it was asked.
fn first_read(seed: u64) -> ReadId {
    let spread = (seed ^ seed >> 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    // Half of all numbers, so that there are as many to count on.
    ReadId(spread >> 1)
}

/// Whether there is a log in a data directory, good or not.
pub fn holds_data(disk: &dyn Disk, data: &Path) -> bool {
    let names = disk.list(&data.join("wal"));
    names.is_ok_and(|names| names.iter().any(|name| name.ends_with(".wal")))
}

/// Whether nothing was ever logged: no node ran here, so none has voted or confirmed anything.
pub(super) fn is_blank(recovered: &wal::Recovered) -> bool {
    let has_term = recovered.hard_state.term > Term(0);
    recovered.entries.is_empty() && recovered.base.0 == Index(0) && !has_term
}

pub(super) fn open_log(
    options: &OpenOptions,
    identity: wal::Identity,
    covered: Index,
) -> Result<wal::Opening, Error> {
    let dir = options.dir.join("wal");
    Ok(wal::open_above(Arc::clone(&options.disk), &dir, identity, options.log, covered)?)
}

/// Whose data it is, with the number that was drawn when the directory was made; a new directory gets the one that is
/// offered.
pub(super) fn identity(options: &OpenOptions) -> Result<wal::Identity, Error> {
    let found = match wal::identity(&*options.disk, &options.dir.join("wal")) {
        Err(wal::Error::Empty(_)) => None,
        Err(wal::Error::Disk(error)) if error.is_not_found() => None,
        found => Some(found?),
    };
    // What else the directory says of its owner is checked when the log is opened.
    let data = found.map_or(options.identity.data, |found| found.data);
    Ok(wal::Identity { data, ..options.identity })
}

pub(super) fn snapshot_membership(
    options: &OpenOptions,
    meta: &SnapshotMeta,
) -> Result<Membership, Error> {
    let contradiction = |reason| Error::Contradiction { dir: options.dir.clone(), reason };
    if meta.cluster != options.identity.cluster {
        return Err(contradiction(format!("the snapshot at {} is of another cluster", meta.index)));
    }
    proto::decode(&meta.membership, "membership")
        .and_then(wire::check_membership)
        .map_err(|error| contradiction(format!("the snapshot at {} holds a {error}", meta.index)))
}

/// The memberships in the log.
fn memberships(
    dir: &Path,
    log: &wal::Log,
    recovered: &wal::Recovered,
) -> Result<BTreeMap<Index, Payload>, Error> {
    let entries = recovered.entries.iter().filter(|entry| entry.kind == EntryKind::Membership);
    let payload = |entry: &wal::EntryMeta| {
        let body = log.entry(entry.index)?.body;
        let payload = wire::payload(entry.kind, &body).map_err(|error| Error::Contradiction {
            dir: dir.to_owned(),
            reason: format!("the log holds a {error} at index {}", entry.index),
        })?;
        Ok((entry.index, payload))
    };
    entries.map(payload).collect()
}
