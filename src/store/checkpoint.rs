//! A frozen revision, how it becomes a snapshot, and how the store goes on in the compacted image.
//!
//! **For:** the checkpoint thread, beside the writer.
//!
//! **In and out:** [`Store::checkpoint`] on the writer's thread, [`Checkpoint::compact`] on any. One half of what that
//! gives is a snapshot file's content, for [`Image::write`]; the other goes to [`Store::adopt`], which takes the image in
//! place of the arena if enough of that is dead, whether the file is written yet or not. What was written in the
//! meantime is copied first: much of it on the checkpoint thread again ([`CatchUp::run`]), a little in `adopt`.
//!
//! **Always:** the image holds of each key what a read at the oldest readable revision or a later one sees, in key
//! order, with an index of the right size; what else the arena holds is left behind. Readers keep the arena that they
//! have; when the last of them is gone, whoever [`Store::take_unread`] gives it to unmaps it or lends its memory to the
//! next image ([`Checkpoint::reuse`]).
//!
//! **Left out:** doing without a second arena in memory; the image takes about the live bytes beside the old arena until
//! the store goes on in it.

use std::sync::Arc;

use super::arena::Arena;
use super::compaction;
use super::files::Pace;
use super::frozen::Frozen;
use super::history::History;
use super::records::{self, Node};
use super::session::Sessions;
use super::snapshot::{self, Dir, Header, SnapshotInfo, SnapshotMeta};
use super::tree::{Change, Tree};
use super::versions::Version;
use super::{Error, Store};
use crate::raft::Index;

/// The store at one revision; it keeps the arena from being freed.
pub struct Checkpoint {
    arena: Arc<Arena>,
    sessions: Sessions,
    history: History,
    revision: Index,
    state_hash: u64,
    /// Bytes of the arena in use.
    used_bytes: u64,
    /// Keys that exist.
    keys: u64,
    /// Where the image shall lie.
    spare: Option<Unread>,
}

/// A compacted image that can take the place of the arena it was made from.
pub struct Compacted {
    tree: Tree,
    arena: Arc<Arena>,
    /// What it was made at.
    revision: Index,
    image_bytes: u64,
    /// Bytes that are not needed of the arena.
    dead_bytes: u64,
    rounds: u32,
}

/// What a snapshot file shall hold: a compacted image as it was when it was complete, whatever is done with it since.
pub struct Image {
    header: Header,
    replicated: Vec<u8>,
    frozen: Frozen,
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
    arena: Arc<Arena>,
}

impl Store {
    /// Freezes the current revision. Costs a copy of the sessions; keys are shared.
    pub fn checkpoint(&mut self) -> Checkpoint {
        self.tree.begin_journal(self.revision.0);
        Checkpoint {
            arena: Arc::clone(self.tree.arena()),
            sessions: self.sessions.clone(),
            history: self.history.clone(),
            revision: self.revision,
            state_hash: self.state_hash,
            used_bytes: self.bytes(),
            keys: self.keys(),
            spare: None,
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
        let len = self.tree.journal_len(compacted.revision.0);
        let len = len.filter(|_| is_ours && is_worth_it);
        let changes_max = ADOPT_CHANGES_MIN << compacted.rounds.min(ADOPT_DOUBLINGS_MAX);
        match len {
            Some(len) if len > changes_max && compacted.rounds < ROUNDS_MAX => {
                let changes = self.tree.take_journal();
                Adoption::Behind(Box::new(CatchUp { compacted, changes }))
            }
            Some(len) if len <= changes_max => {
                compacted.add(&self.tree.take_journal());
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
                    self.tree.end_journal(compacted.revision.0);
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
        unread.map(|arena| Unread { arena }).collect()
    }
}

impl Unread {
    /// Gives back all but so many bytes.
    pub fn shrink(&mut self, keep: u64) {
        Arena::shrink(&mut self.arena, keep);
    }
}

impl Checkpoint {
    /// The revision that was frozen.
    pub fn revision(&self) -> Index {
        self.revision
    }

    /// Lets the image lie in this memory, if it was an arena of the same size: fresh memory costs much of a checkpoint.
    pub fn reuse(&mut self, spare: Unread) {
        self.spare = Some(spare);
    }

    /// [`Checkpoint::compact`], and then [`Image::write`].
    ///
    /// # Errors
    /// As those have.
    ///
    /// # Panics
    /// As the first does.
    pub fn write(
        self,
        dir: &Dir,
        meta: &SnapshotMeta,
        pace: &Pace,
    ) -> Result<(SnapshotInfo, Compacted), Error> {
        let (compacted, image) = self.compact(meta, pace)?;
        Ok((image.write(dir, pace, &mut || ())?, compacted))
    }

    /// Makes an image of what can be read: for the store to go on in, and for a snapshot file with this meta data.
    ///
    /// # Errors
    /// [`Error::Reserve`], or [`Error::Cancelled`] by `pace`.
    ///
    /// # Panics
    /// If `meta.index` is not [`Checkpoint::revision`].
    pub fn compact(
        mut self,
        meta: &SnapshotMeta,
        pace: &Pace,
    ) -> Result<(Compacted, Image), Error> {
        assert_eq!(meta.index, self.revision, "a snapshot is named by what it holds");
        let mut tree = self.copy(pace)?;
        let replicated = snapshot::encode_replicated(&self.sessions, &self.history);
        let image_bytes = tree.arena().used_bytes();
        let header = Header {
            meta: meta.clone(),
            state_hash: self.state_hash,
            counts: tree.counts(),
            oldest: Index(self.history.oldest()),
            replicated_bytes: replicated.len() as u64,
            image_bytes,
        };
        let image = Image { header, replicated, frozen: tree.freeze() };
        let dead_bytes = self.used_bytes.saturating_sub(image_bytes);
        let (arena, revision) = (self.arena, self.revision);
        Ok((Compacted { tree, arena, revision, image_bytes, dead_bytes, rounds: 0 }, image))
    }

    /// A tree in an arena of its own, with what is readable at the revision.
    fn copy(&mut self, pace: &Pace) -> Result<Tree, Error> {
        let bytes = self.arena.capacity_bytes();
        let spare = self.spare.take().filter(|spare| spare.arena.capacity_bytes() == bytes);
        let room = match spare.and_then(|Unread { arena }| Arena::recycle(arena)) {
            Some(room) => room,
            None => Arena::reserve(bytes)?,
        };
        let seed = records::seed(&self.arena);
        let mut tree = Tree::with_room(room, seed, self.keys, self.used_bytes);
        let readable = self.history.oldest()..=self.revision.0;
        compaction::copy(&self.arena, &readable, &mut tree, pace)?;
        tree.complete();
        Ok(tree)
    }
}

impl Image {
    /// What the file will say about itself.
    pub fn meta(&self) -> &SnapshotMeta {
        &self.header.meta
    }

    /// Writes the snapshot file `{index:016x}.snap` in `dir`, durably, and reads it back. This takes long: now and then
    /// it does something else `meanwhile`.
    ///
    /// # Errors
    /// [`Error::Disk`], or [`Error::Cancelled`] by `pace`; nothing is left behind.
    ///
    /// # Panics
    /// If the membership is longer than [`snapshot::MEMBERSHIP_BYTES_MAX`].
    pub fn write(
        self,
        dir: &Dir,
        pace: &Pace,
        meanwhile: &mut dyn FnMut(),
    ) -> Result<SnapshotInfo, Error> {
        let Image { header, replicated, frozen } = self;
        snapshot::write(dir, &header, &replicated, frozen, pace, meanwhile)
    }
}

impl Compacted {
    /// What the image took at the checkpoint's revision: nothing of it is dead.
    pub fn image_bytes(&self) -> u64 {
        self.image_bytes
    }

    /// What the image takes by now.
    pub fn bytes(&self) -> u64 {
        self.tree.arena().used_bytes()
    }

    fn add(&mut self, changes: &[Change]) {
        let arena = &self.arena;
        for group in changes.chunks(CHANGES_PER_GROUP) {
            let nodes = group.iter().map(|change| Node { arena, at: change.node });
            nodes.clone().for_each(Node::prefetch);
            self.tree.warm_up(nodes.clone().map(Node::key));
            for (node, change) in nodes.zip(group) {
                let version = Version { arena, at: change.version };
                self.tree.add(node.key(), version.header(), version.value());
            }
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

/// Changes whose memory is asked for together.
const CHANGES_PER_GROUP: usize = 64;
/// The store swaps if one part in so many of what the arena holds is dead: few, for the image is made anyway ...
const DEAD_SHARE: u64 = 16;
/// ... and at least this much.
const DEAD_BYTES_MIN: u64 = 64 << 10;
/// Changes that are copied on the writer's thread: less than a millisecond's work ...
const ADOPT_CHANGES_MIN: usize = 1024;
/// ... but twice as many after each round on the other: while the store is written to at its limit, as many come with
/// each turn, and a compaction that never ends would cost all memory.
const ADOPT_DOUBLINGS_MAX: u32 = 7;
/// Each round copies faster than the store is written to; more than a few mean that it is not so.
const ROUNDS_MAX: u32 = 16;
