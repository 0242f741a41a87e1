//! A frozen revision, and how it becomes a snapshot: the compacted image.
//!
//! **For:** the checkpoint thread, beside the writer.
//!
//! **In and out:** [`Store::checkpoint`] on the writer's thread, [`Checkpoint::write`] on any.
//!
//! **Always:** the image holds the newest version at the revision of each key that exists, in key order, with an index
//! of the right size; what else the arena holds is left behind.
//!
//! **Left out:** writing without a second arena in memory; the image takes about the live bytes until it is written.

use std::sync::Arc;

use super::arena::Arena;
use super::files::Pace;
use super::records::{self, VersionHeader};
use super::session::Sessions;
use super::snapshot::{self, Dir, Header, SnapshotInfo, SnapshotMeta};
use super::tree::Tree;
use super::{Error, Options, Store, skiplist};
use crate::raft::Index;

/// The store at one revision; it keeps the arena from being freed.
pub struct Checkpoint {
    arena: Arc<Arena>,
    options: Options,
    sessions: Sessions,
    revision: Index,
    state_hash: u64,
}

impl Store {
    /// Freezes the current revision. Costs a copy of the sessions; keys are shared.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            arena: Arc::clone(self.tree.arena()),
            options: self.options,
            sessions: self.sessions.clone(),
            revision: self.revision,
            state_hash: self.state_hash,
        }
    }
}

impl Checkpoint {
    /// The revision that was frozen.
    pub fn revision(&self) -> Index {
        self.revision
    }

    /// Writes the snapshot file `{index:016x}.snap` in `dir`, durably, and reads it back.
    ///
    /// # Panics
    /// If `meta.index` is not [`Checkpoint::revision`], or the membership is longer than
    /// [`snapshot::MEMBERSHIP_BYTES_MAX`].
    pub fn write(self, dir: &Dir, meta: &SnapshotMeta, pace: &Pace) -> Result<SnapshotInfo, Error> {
        assert_eq!(meta.index, self.revision, "a snapshot is named by what it holds");
        let image = self.compact(pace)?;
        let sessions = self.sessions.encode();
        let header = Header {
            meta: meta.clone(),
            state_hash: self.state_hash,
            keys: image.keys(),
            live_bytes: image.live_bytes(),
            session_bytes: sessions.len() as u64,
            image_bytes: image.image().len() as u64,
        };
        // Nothing of the old arena is needed any more: let it go if the store has gone on to another.
        drop(self);
        snapshot::write(dir, &header, &sessions, image.image(), pace)
    }

    /// A new arena with what is alive at the revision.
    fn compact(&self, pace: &Pace) -> Result<Tree, Error> {
        let seed = records::seed(&self.arena);
        let mut tree = Tree::new(self.options.arena_bytes, seed)?;
        let mut next = skiplist::first(&self.arena);
        let mut steps = 0_usize;
        while let Some(node) = next {
            if let Some(version) = node.live_at(self.revision.0) {
                let header = VersionHeader {
                    revision: version.revision(),
                    create_revision: version.create_revision(),
                    version: version.version(),
                    tombstone: false,
                };
                tree.copy(node.key(), header, version.value());
            }
            steps += 1;
            if steps.is_multiple_of(STEPS_PER_CHECK) {
                pace.check()?;
            }
            next = node.next();
        }
        Ok(tree)
    }
}

/// Nodes between two looks at the cancel flag.
const STEPS_PER_CHECK: usize = 4096;
