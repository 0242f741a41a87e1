//! The keys as their one writer sees them: arena, skiplist and hash index together.
//!
//! **For:** changing keys at a revision, in the store and when a checkpoint builds its image.
//!
//! **In and out:** [`Tree::put`], [`Tree::delete`] and [`Tree::append`]; readers share the arena.
//!
//! **Always:** revisions of one key ascend. Nothing is seen by readers before [`Tree::publish`].
//!
//! **Left out:** limits and sessions, which are the store's.

use std::sync::Arc;

use super::Error;
use super::arena::{Arena, ArenaWriter};
use super::index::{self, Found};
use super::records::{self, Node, VersionHeader};
use super::skiplist::{self, Tail};

/// See the module.
pub(super) struct Tree {
    writer: ArenaWriter,
    tail: Tail,
    /// Keys that have a node, deleted ones included.
    nodes: u64,
    keys: u64,
    live_bytes: u64,
}

/// What is there before a change.
struct Before {
    node: super::arena::Offset,
    /// Create revision, version and length of the value, unless the key is deleted.
    live: Option<(u64, u64, usize)>,
}

impl Tree {
    /// A tree without keys.
    pub(super) fn new(arena_bytes: u64, hash_seed: u64) -> Result<Tree, Error> {
        let mut writer = Arena::reserve(arena_bytes)?;
        records::new_root(&mut writer, hash_seed);
        index::init(&mut writer);
        let tail = Tail::find(writer.arena());
        Ok(Tree { writer, tail, nodes: 0, keys: 0, live_bytes: 0 })
    }

    /// The tree of an image, in which every node is alive.
    pub(super) fn of_image(writer: ArenaWriter, keys: u64, live_bytes: u64) -> Tree {
        let tail = Tail::find(writer.arena());
        Tree { writer, tail, nodes: keys, keys, live_bytes }
    }

    pub(super) fn arena(&self) -> &Arc<Arena> {
        self.writer.arena()
    }

    pub(super) fn image(&self) -> &[u8] {
        self.writer.image()
    }

    /// Keys that exist.
    pub(super) fn keys(&self) -> u64 {
        self.keys
    }

    /// Bytes of existing keys and their values.
    pub(super) fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// Lets readers see all changes up to `revision`.
    pub(super) fn publish(&mut self, revision: u64) {
        self.writer.publish(revision);
    }

    /// The value of `key` now has this length; 0 if it does not exist.
    pub(super) fn value_bytes(&self, key: &[u8]) -> usize {
        self.before(key).and_then(|before| before.live).map_or(0, |(_, _, len)| len)
    }

    /// Sets `key`; whether it existed.
    pub(super) fn put(&mut self, revision: u64, key: &[u8], value: &[u8]) -> bool {
        self.set(revision, key, [value, &[]])
    }

    /// Adds to the value of `key`; whether it existed.
    pub(super) fn append(&mut self, revision: u64, key: &[u8], value: &[u8]) -> bool {
        let arena = Arc::clone(self.arena());
        let old = match index::find(&arena, key) {
            Found::Node(node) => node.live_at(u64::MAX).map_or(&[][..], |version| version.value()),
            Found::Nothing | Found::Disturbed => &[],
        };
        self.set(revision, key, [old, value])
    }

    /// Removes `key`; whether it existed.
    pub(super) fn delete(&mut self, revision: u64, key: &[u8]) -> bool {
        let Some(Before { node, live: Some((_, _, len)) }) = self.before(key) else {
            return false;
        };
        let header = VersionHeader { revision, create_revision: 0, version: 0, tombstone: true };
        records::push_version(&mut self.writer, node, header, [&[], &[]])
            .unwrap_or_else(|| self.exhausted());
        self.keys -= 1;
        self.live_bytes -= (key.len() + len) as u64;
        true
    }

    /// Adds a version as it is, of a key that has none yet: for building an image.
    pub(super) fn copy(&mut self, key: &[u8], header: VersionHeader, value: &[u8]) {
        let node = self.insert(key);
        records::push_version(&mut self.writer, node, header, [value, &[]])
            .unwrap_or_else(|| self.exhausted());
        self.keys += 1;
        self.live_bytes += (key.len() + value.len()) as u64;
    }

    fn set(&mut self, revision: u64, key: &[u8], value: [&[u8]; 2]) -> bool {
        let before = self.before(key);
        let live = before.as_ref().and_then(|before| before.live);
        let node = before.map_or_else(|| self.insert(key), |before| before.node);
        let (create_revision, version) =
            live.map_or((revision, 1), |(created, version, _)| (created, version + 1));
        let header = VersionHeader { revision, create_revision, version, tombstone: false };
        records::push_version(&mut self.writer, node, header, value)
            .unwrap_or_else(|| self.exhausted());
        match live {
            Some((_, _, len)) => self.live_bytes -= len as u64,
            None => {
                self.keys += 1;
                self.live_bytes += key.len() as u64;
            }
        }
        self.live_bytes += (value[0].len() + value[1].len()) as u64;
        live.is_some()
    }

    fn before(&self, key: &[u8]) -> Option<Before> {
        let Found::Node(Node { at: node, arena }) = index::find(self.arena(), key) else {
            return None;
        };
        let live = Node { at: node, arena }
            .live_at(u64::MAX)
            .map(|version| (version.create_revision(), version.version(), version.value_bytes()));
        Some(Before { node, live })
    }

    fn insert(&mut self, key: &[u8]) -> super::arena::Offset {
        let node = skiplist::insert(&mut self.writer, &mut self.tail, key)
            .unwrap_or_else(|| self.exhausted());
        self.nodes += 1;
        index::insert(&mut self.writer, key, node, self.nodes);
        node
    }

    /// The leader refuses growth long before, so this is a bug or a reservation that differs between nodes.
    fn exhausted(&self) -> ! {
        let arena = self.writer.arena();
        panic!(
            "the arena is exhausted: {} of {} bytes used by {} keys",
            arena.used_bytes(),
            arena.capacity_bytes(),
            self.nodes
        )
    }
}
