//! The replicated state: ordered keys with versions, and the sessions of those who write them.
//!
//! **For:** applying committed commands ([`Store`], on one thread) and reading any revision ([`Reader`], on any).
//!
//! **In and out:** [`Store::apply`] takes entries in log order and gives the replicated [`Outcome`]. A [`Checkpoint`]
//! freezes a revision for the thread that writes it as a snapshot file; [`Store::load`] starts from one.
//!
//! **Always:** the same commands at the same indexes give the same outcomes and the same [`Store::state_hash`] on
//! every node, with or without a snapshot between: no clock, no randomness, no order of a hash table gets in. Applying
//! never fails. A revision is the log index of the entry that made it.
//!
//! **Left out:** rights and configured limits, checked before a command is proposed; leases.
//!
//! **Map:** `arena` (memory, the `unsafe` code) < `records`, `versions` (what lies in it) < `skiplist`, `index` with
//! its `bucket`s < `tree` (writes) and `reader` (reads); `ahead` (asks for memory early); `session` with its `owners`, `history`;
//! `checkpoint` with its `compaction`, and [`snapshot`] (files of what is `frozen`), over `format` and `files`.

mod ahead;
#[cfg(not(model_check))]
mod arena;
#[cfg(model_check)]
#[path = "arena_model.rs"]
mod arena;
mod bucket;
mod checkpoint;
mod compaction;
mod files;
mod format;
mod frozen;
mod hash;
mod history;
mod incoming;
mod index;
mod owners;
mod reader;
mod records;
mod session;
mod skiplist;
pub mod snapshot;
#[cfg(test)]
mod tests;
mod tree;
mod versions;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use self::arena::Arena;
pub use self::checkpoint::{Adoption, CatchUp, Checkpoint, Compacted, Image, Unread};
pub use self::files::Pace;
use self::history::History;
pub use self::incoming::Incoming;
pub use self::reader::{Range, Reader, Row, Scan, Versioned};
use self::session::{Numbered, Sessions};
use self::tree::Tree;
use crate::disk;
use crate::proto::command::{Command, Op, Outcome, Principal, key_is_valid};
use crate::proto::limits::VALUE_BYTES_CEILING;
use crate::raft::Index;

/// How a store is set up. Nothing of it is seen in outcomes, so it may differ between nodes.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Address space to reserve; the most that all versions may take. At most 32 GiB.
    pub arena_bytes: u64,
    /// Seed of the key hashes; a secret one keeps clients from choosing keys that collide. A loaded snapshot has its
    /// own.
    pub hash_seed: u64,
}

/// The state, and its one writer.
pub struct Store {
    tree: Tree,
    sessions: Sessions,
    history: History,
    revision: Index,
    state_hash: u64,
    /// Arenas that the store has left, until nobody reads them.
    retired: Vec<Arc<Arena>>,
}

/// What can go wrong with the store's memory and files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address space could not be reserved.
    #[error("cannot reserve {bytes} bytes of address space for the store: {source}")]
    Reserve {
        /// How much was asked for.
        bytes: u64,
        /// Why not.
        source: io::Error,
    },
    /// The snapshot needs a larger [`Options::arena_bytes`].
    #[error("the store's arena of {bytes} bytes is too small: the snapshot needs {needed}")]
    ArenaTooSmall {
        /// What is configured.
        bytes: u64,
        /// What the snapshot's image takes.
        needed: u64,
    },
    /// The disk refused an operation on a file.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// The file is damaged or no snapshot.
    #[error("{} is damaged at offset {offset}: {reason}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// The file is intact but of a format that this build does not know.
    #[error("{} has format version {version}, which this build does not read", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The caller's flag stopped it; nothing is left behind.
    #[error("the snapshot was cancelled")]
    Cancelled,
}

impl Store {
    /// An empty store at index 0.
    pub fn new(options: Options) -> Result<Store, Error> {
        let tree = Tree::new(options.arena_bytes, options.hash_seed)?;
        let (sessions, history) = (Sessions::default(), History::default());
        let (revision, state_hash, retired) = (Index(0), 0, Vec::new());
        Ok(Store { tree, sessions, history, revision, state_hash, retired })
    }

    /// Applies the command of `owner` in the entry at `index`.
    ///
    /// # Panics
    /// If `index` is not above [`Store::revision`], or the arena is exhausted (see [`Store::capacity`]).
    pub fn apply(&mut self, index: Index, owner: Principal, command: &Command<'_>) -> Outcome {
        assert!(index > self.revision, "applying {index} at {}", self.revision);
        let outcome = match *command {
            Command::Clock { now_ms } => {
                self.sessions.clock(now_ms);
                self.history.clock(index.0, now_ms);
                Outcome::Done
            }
            Command::Compact { below } => {
                self.history.compact(index.0, below);
                self.tree.set_oldest(self.history.oldest());
                Outcome::Done
            }
            Command::OpenSession => Outcome::SessionOpened(self.sessions.open(index.0, owner)),
            Command::CloseSession(id) => self.sessions.close(id, owner),
            Command::Write { session, seq, answered_below, ref op } => {
                let number = Numbered { owner, session, seq, answered_below };
                match self.sessions.begin(index.0, number) {
                    Ok(pending) => {
                        let outcome = write(&mut self.tree, index, op);
                        pending.finish(outcome);
                        outcome
                    }
                    Err(outcome) => outcome,
                }
            }
        };
        self.state_hash = state_hash(self.state_hash, index, (owner, command), outcome);
        self.revision = index;
        self.tree.publish(index.0);
        outcome
    }

    /// Brings what these commands will touch into the processor's caches, all of it at once: applied one after the
    /// other, each would wait for its own misses. Changes nothing that anyone sees.
    pub fn warm_up<'a>(&mut self, commands: impl Iterator<Item = &'a Command<'a>>) {
        let keys = commands.filter_map(|command| match command {
            Command::Write { op, .. } => Some(op.key()),
            Command::Clock { .. }
            | Command::Compact { .. }
            | Command::OpenSession
            | Command::CloseSession(_) => None,
        });
        self.tree.warm_up(keys);
    }

    /// Passes the entry at `index`, which has no command.
    ///
    /// # Panics
    /// If `index` is not above [`Store::revision`].
    pub fn advance(&mut self, index: Index) {
        assert!(index > self.revision, "advancing to {index} at {}", self.revision);
        self.state_hash = hash::mix(self.state_hash, index.0);
        self.revision = index;
        self.tree.publish(index.0);
    }

    /// The index of the last entry applied or passed.
    pub fn revision(&self) -> Index {
        self.revision
    }

    /// A hash over all entries so far and their outcomes: equal on all nodes at the same revision, or their states
    /// have diverged.
    pub fn state_hash(&self) -> u64 {
        self.state_hash
    }

    /// The store's time, in milliseconds since 1970; 0 before the first clock command.
    pub fn time_ms(&self) -> u64 {
        self.sessions.time_ms()
    }

    /// Keys that exist now.
    pub fn keys(&self) -> u64 {
        self.tree.counts().keys
    }

    /// The oldest revision that can be read.
    pub fn oldest(&self) -> Index {
        Index(self.history.oldest())
    }

    /// The newest revision that is known to be from `time_ms` (since 1970) or before; 0 if none is.
    pub fn revision_at(&self, time_ms: u64) -> Index {
        Index(self.history.at_time(time_ms))
    }

    /// About how many bytes of the arena only reads at older revisions need, or nobody.
    pub fn dead_bytes(&self) -> u64 {
        let counts = self.tree.counts();
        self.bytes().saturating_sub(counts.live_bytes + counts.keys * KEY_OVERHEAD_BYTES)
    }

    /// Open sessions.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// About how much memory sessions and unanswered outcomes take, at most. They lie outside of the arena.
    pub fn session_bytes(&self) -> u64 {
        self.sessions.bytes()
    }

    /// Number and bytes of the sessions as a restart would count them.
    #[cfg(test)]
    fn sessions_reloaded(&self) -> (usize, u64) {
        let bytes = self.sessions.encode();
        let (sessions, _) = Sessions::decode(&bytes, self.revision.0).expect("it was just written");
        (sessions.len(), sessions.bytes())
    }

    /// Bytes of the arena in use, dead versions included.
    pub fn bytes(&self) -> u64 {
        self.tree.arena().used_bytes()
    }

    /// Bytes of the keys that exist now and their values.
    pub fn live_bytes(&self) -> u64 {
        self.tree.counts().live_bytes
    }

    /// What [`Store::bytes`] can grow to. Growth must be refused before commands are proposed: applying cannot fail,
    /// so it panics.
    pub fn capacity(&self) -> u64 {
        self.tree.arena().capacity_bytes()
    }

    /// The length of the key's value now; 0 if it does not exist.
    pub fn value_bytes(&self, key: &[u8]) -> usize {
        self.tree.value_bytes(key)
    }

    /// A handle for reading from any thread.
    pub fn reader(&self) -> Reader {
        Reader::new(self.tree.arena().clone())
    }
}

/// Applies `op` as revision `index`.
fn write(tree: &mut Tree, index: Index, op: &Op<'_>) -> Outcome {
    let key = op.key();
    if !key_is_valid(key) {
        return Outcome::KeyInvalid;
    }
    let grown_bytes = match op {
        Op::Put { value, .. } => value.len(),
        Op::Delete { .. } => 0,
        Op::Append { value, .. } => tree.value_bytes(key).saturating_add(value.len()),
    };
    if grown_bytes > VALUE_BYTES_CEILING {
        return Outcome::TooLarge { limit: VALUE_BYTES_CEILING as u64 };
    }
    let existed = match op {
        Op::Put { value, .. } => tree.put(index.0, key, value),
        Op::Delete { .. } => tree.delete(index.0, key),
        Op::Append { value, .. } => tree.append(index.0, key, value),
    };
    Outcome::Written { revision: index.0, existed }
}

/// What a key takes beside itself and its value, at most: node, tower, version, its place in the index.
const KEY_OVERHEAD_BYTES: u64 = 96;

/// The state hash after one more command. From the fields, not from bytes on the wire, so that it does not depend on
/// how they were encoded.
fn state_hash(
    state: u64,
    index: Index,
    (owner, command): (Principal, &Command<'_>),
    outcome: Outcome,
) -> u64 {
    let [kind, a, b, c] = match *command {
        Command::Clock { now_ms } => [1, now_ms, 0, 0],
        Command::OpenSession => [2, 0, 0, 0],
        Command::CloseSession(id) => [3, id.0, 0, 0],
        Command::Compact { below } => [7, below, 0, 0],
        Command::Write { session, seq, answered_below, ref op } => {
            let (tag, value): (u64, &[u8]) = match *op {
                Op::Put { value, .. } => (4, value),
                Op::Delete { .. } => (5, &[]),
                Op::Append { value, .. } => (6, value),
            };
            let content = hash::hash64(hash::hash64(tag, op.key()), value);
            [tag, hash::mix(session.0, seq), answered_below, content]
        }
    };
    let [result, detail, flag] = match outcome {
        Outcome::Written { revision, existed } => [1, revision, u64::from(existed)],
        Outcome::SessionOpened(id) => [2, id.0, 0],
        Outcome::Done => [3, 0, 0],
        Outcome::SessionUnknown => [4, 0, 0],
        Outcome::SequenceStale => [5, 0, 0],
        Outcome::SessionFull => [6, 0, 0],
        Outcome::TooLarge { limit } => [7, limit, 0],
        Outcome::KeyInvalid => [8, 0, 0],
    };
    let outcome = hash::mix(result << 1 | flag, detail);
    [kind, owner.0, a, b, c, outcome].into_iter().fold(hash::mix(state, index.0), hash::mix)
}
