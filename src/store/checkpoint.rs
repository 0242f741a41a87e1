//! A frozen revision, how it becomes a snapshot, and how the store goes on in the compacted image.
//!
//! **For:** the checkpoint thread, beside the writer.
//!
//! **In and out:** [`Store::checkpoint`] on the writer's thread, [`Checkpoint::write`] on any. What that gives back goes
//! to [`Store::adopt`], which takes the image in place of the arena if enough of that is dead. What was written in the
//! meantime is copied first: much of it on the checkpoint thread again ([`CatchUp::run`]), a little in `adopt`.
//!
//! **Always:** the image holds of each key what a read at the oldest readable revision or a later one sees, in key order,
//! with an index of the right size; what else the arena holds is left behind. Readers keep the arena that they have; it
//! is unmapped when the last of them is gone, by whoever [`Store::take_unread`] gives it to.
//!
//! **Left out:** writing without a second arena in memory; the image takes about the live bytes until it is written.

use std::sync::Arc;

use super::ahead::Ahead;
use super::arena::Arena;
use super::files::Pace;
use super::format::FORMAT_VERSION;
use super::history::History;
use super::records::{self, Node};
use super::session::Sessions;
use super::snapshot::{self, Dir, Header, SnapshotInfo, SnapshotMeta};
use super::tree::{Change, Tree};
use super::versions::Version;
use super::{Error, Options, Store, skiplist};
use crate::raft::Index;

/// The store at one revision; it keeps the arena from being freed.
pub struct Checkpoint {
    arena: Arc<Arena>,
    options: Options,
    sessions: Sessions,
    history: History,
    revision: Index,
    state_hash: u64,
    /// Bytes of the arena in use.
    used_bytes: u64,
    /// Keys that exist.
    keys: u64,
}

/// A compacted image that can take the place of the arena it was made from.
pub struct Compacted {
    tree: Tree,
    arena: Arc<Arena>,
    image_bytes: u64,
    /// Bytes that are not needed of the arena.
    dead_bytes: u64,
    rounds: u32,
}

/// Changes that a compacted image lacks.
pub struct CatchUp {
    compacted: Compacted,
    changes: Vec<Change>,
}

/// What became of a compacted image.
pub enum Adoption {
    /// The store goes on in it.
    Adopted,
    /// It lacks much of what was written meanwhile; to be offered again after [`CatchUp::run`].
    Behind(Box<CatchUp>),
    /// The store stays where it is: too little is dead, or it was replaced or writes too fast.
    Declined,
}

/// Memory that nobody reads any more. Dropping it takes long: the system frees page after page.
pub struct Unread {
    _arena: Arc<Arena>,
}

impl Store {
    /// Freezes the current revision. Costs a copy of the sessions; keys are shared.
    pub fn checkpoint(&mut self) -> Checkpoint {
        self.tree.begin_journal();
        Checkpoint {
            arena: Arc::clone(self.tree.arena()),
            options: self.options,
            sessions: self.sessions.clone(),
            history: self.history.clone(),
            revision: self.revision,
            state_hash: self.state_hash,
            used_bytes: self.bytes(),
            keys: self.keys(),
        }
    }

    /// Goes on in a compacted image, if that is worth it; see [`Adoption`].
    ///
    /// # Panics
    /// If the image does not hold what the store holds, which is a bug.
    pub fn adopt(&mut self, mut compacted: Compacted) -> Adoption {
        let is_ours = Arc::ptr_eq(&compacted.arena, self.tree.arena());
        let is_worth_it = compacted.dead_bytes >= DEAD_BYTES_MIN
            && compacted.dead_bytes >= compacted.arena.used_bytes() / DEAD_SHARE;
        let len = self.tree.journal_len().filter(|_| is_ours && is_worth_it);
        let changes_max = ADOPT_CHANGES_MIN << compacted.rounds.min(ADOPT_DOUBLINGS_MAX);
        match len {
            Some(len) if len > changes_max && compacted.rounds < ROUNDS_MAX => {
                let changes = self.tree.take_journal(false).expect("it has a length");
                Adoption::Behind(Box::new(CatchUp { compacted, changes }))
            }
            Some(len) if len <= changes_max => {
                let changes = self.tree.take_journal(true).expect("it has a length");
                compacted.add(&changes);
                let Compacted { mut tree, .. } = compacted;
                let (new, old) = (tree.counts(), self.tree.counts());
                assert_eq!(
                    (new.keys, new.live_bytes),
                    (old.keys, old.live_bytes),
                    "a compacted image holds what the store holds"
                );
                tree.set_oldest(self.history.oldest());
                tree.publish(self.revision.0);
                let old = std::mem::replace(&mut self.tree, tree);
                self.retired.push(Arc::clone(old.arena()));
                Adoption::Adopted
            }
            Some(_) | None => {
                if is_ours {
                    self.tree.take_journal(true);
                }
                self.retired.push(Arc::clone(compacted.tree.arena()));
                Adoption::Declined
            }
        }
    }

    /// Puts `store`, which came from elsewhere, in the place of this one.
    pub fn replace(&mut self, store: Store) {
        let old = std::mem::replace(self, store);
        self.retired.extend(old.retired.iter().cloned());
        self.retired.push(Arc::clone(old.tree.arena()));
    }

    /// Memory that nobody reads any more, of arenas that the store has left.
    pub fn take_unread(&mut self) -> Vec<Unread> {
        let unread = self.retired.extract_if(.., |arena| Arc::strong_count(arena) == 1);
        unread.map(|arena| Unread { _arena: arena }).collect()
    }
}

impl Checkpoint {
    /// The revision that was frozen.
    pub fn revision(&self) -> Index {
        self.revision
    }

    /// Writes the snapshot file `{index:016x}.snap` in `dir`, durably, and reads it back.
    ///
    /// # Errors
    /// [`Error::Disk`], or [`Error::Cancelled`] by `pace`; nothing is left behind.
    ///
    /// # Panics
    /// If `meta.index` is not [`Checkpoint::revision`], or the membership is longer than
    /// [`snapshot::MEMBERSHIP_BYTES_MAX`].
    pub fn write(
        self,
        dir: &Dir,
        meta: &SnapshotMeta,
        pace: &Pace,
    ) -> Result<(SnapshotInfo, Compacted), Error> {
        assert_eq!(meta.index, self.revision, "a snapshot is named by what it holds");
        let tree = self.compact(pace)?;
        let replicated = snapshot::encode_replicated(&self.sessions, &self.history);
        let image_bytes = tree.image().len() as u64;
        let header = Header {
            version: FORMAT_VERSION,
            meta: meta.clone(),
            state_hash: self.state_hash,
            counts: tree.counts(),
            oldest: Index(self.history.oldest()),
            replicated_bytes: replicated.len() as u64,
            image_bytes,
        };
        let info = snapshot::write(dir, &header, &replicated, tree.image(), pace)?;
        let dead_bytes = self.used_bytes.saturating_sub(image_bytes);
        Ok((info, Compacted { tree, arena: self.arena, image_bytes, dead_bytes, rounds: 0 }))
    }

    /// A new arena with what is readable at the revision.
    fn compact(&self, pace: &Pace) -> Result<Tree, Error> {
        let seed = records::seed(&self.arena);
        let mut tree = Tree::with_room(self.options.arena_bytes, seed, self.keys, self.used_bytes)?;
        let mut next = skiplist::first(&self.arena);
        let (mut steps, mut ahead) = (0_usize, Ahead::new());
        let mut kept = Vec::new();
        while let Some(node) = next {
            steps += self.readable(node, &mut kept);
            if !kept.is_empty() {
                let versions = kept.iter().rev().map(|version| (version.header(), version.value()));
                tree.add_new(node.key(), versions);
            }
            if steps >= STEPS_PER_CHECK {
                steps = 0;
                pace.check()?;
            }
            ahead.pass(node);
            next = node.next();
        }
        tree.complete();
        Ok(tree)
    }

    /// The versions of a key that a reader can still see, newest first; gives how many were looked at.
    fn readable<'a>(&self, node: Node<'a>, kept: &mut Vec<Version<'a>>) -> usize {
        kept.clear();
        let oldest = self.history.oldest();
        let mut next = node.version_at(self.revision.0);
        while let Some(version) = next {
            let is_last = version.revision() <= oldest;
            // A tombstone before all that can be read says no more than no version at all.
            if !(is_last && version.is_tombstone()) {
                kept.push(version);
            }
            next = if is_last { None } else { version.before() };
        }
        kept.len() + 1
    }
}

impl Compacted {
    /// What the image took at the checkpoint's revision: nothing of it is dead.
    pub fn image_bytes(&self) -> u64 {
        self.image_bytes
    }

    fn add(&mut self, changes: &[Change]) {
        for &Change { node, version } in changes {
            let node = Node { arena: &self.arena, at: node };
            let version = Version { arena: &self.arena, at: version };
            self.tree.add(node.key(), version.header(), version.value());
        }
    }
}

impl CatchUp {
    /// Copies what is lacking; on any thread.
    pub fn run(mut self) -> Compacted {
        self.compacted.add(&self.changes);
        self.compacted.rounds += 1;
        self.compacted
    }
}

/// Versions between two looks at the cancel flag.
const STEPS_PER_CHECK: usize = 4096;
/// The store swaps if one part in so many of what the arena holds is dead ...
const DEAD_SHARE: u64 = 8;
/// ... and at least this much.
const DEAD_BYTES_MIN: u64 = 64 << 10;
/// Changes that are copied on the writer's thread: less than a millisecond's work ...
const ADOPT_CHANGES_MIN: usize = 1024;
/// ... but twice as many after each round on the other: while the store is written to at its limit, as many come with each
/// turn, and a compaction that never ends would cost all memory.
const ADOPT_DOUBLINGS_MAX: u32 = 7;
/// Each round copies faster than the store is written to; more than a few mean that it is not so.
const ROUNDS_MAX: u32 = 16;
