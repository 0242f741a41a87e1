//! The keys as their one writer sees them: arena, skiplist and hash index together.
//!
//! **For:** changing keys at a revision, in the store and when a checkpoint builds its image.
//!
//! **In and out:** [`Tree::put`], [`Tree::delete`] and [`Tree::append`]; [`Tree::add`] for a version that is copied;
//! readers share the arena.
//!
//! **Always:** revisions of one key ascend. Nothing is seen by readers before [`Tree::publish`].
//!
//! **Left out:** limits and sessions, which are the store's.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Error;
use super::arena::{Arena, ArenaWriter, Offset};
use super::frozen::Frozen;
use super::index::{self, Found, NextSplit};
use super::records::{self, Key};
use super::skiplist::{self, Hint, Place, Tail};
use super::versions::{self, Version, VersionHeader};

/// See the module.
pub(super) struct Tree {
    writer: ArenaWriter,
    tail: Tail,
    next_split: NextSplit,
    /// Where keys belong that were new at the last [`Tree::warm_up`], in its order.
    places: VecDeque<Place>,
    counts: Counts,
    /// The changes since a checkpoint began, if one did, and its revision.
    journal: Option<(u64, Vec<Change>)>,
}

/// What a tree holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Keys that have a node, deleted ones included.
    pub(super) nodes: u64,
    /// Keys that exist.
    pub(super) keys: u64,
    /// Bytes of existing keys and their values.
    pub(super) live_bytes: u64,
}

/// A version and whose it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) node: Offset,
    pub(super) version: Offset,
}

/// What is there before a change.
enum Before {
    /// The key's node; create revision, version and length of the value, unless the key is deleted.
    Node { node: Offset, live: Option<(u64, u64, usize)> },
    /// No node.
    Nothing { belongs_last: bool },
}

impl Before {
    fn live(&self) -> Option<(u64, u64, usize)> {
        match *self {
            Before::Node { live, .. } => live,
            Before::Nothing { .. } => None,
        }
    }
}

impl Tree {
    /// A tree without keys.
    pub(super) fn new(arena_bytes: u64, hash_seed: u64) -> Result<Tree, Error> {
        Ok(Tree::in_arena(Arena::reserve(arena_bytes)?, hash_seed))
    }

    fn in_arena(mut writer: ArenaWriter, hash_seed: u64) -> Tree {
        records::new_root(&mut writer, hash_seed);
        index::init(&mut writer);
        Tree::of_image(writer, Counts::default())
    }

    /// A tree in an empty arena, which will have `keys` keys and take at most `bytes`; see [`Tree::complete`].
    pub(super) fn with_room(writer: ArenaWriter, hash_seed: u64, keys: u64, bytes: u64) -> Tree {
        let mut tree = Tree::in_arena(writer, hash_seed);
        tree.writer.expect_image(bytes);
        index::reserve(&mut tree.writer, keys);
        tree
    }

    /// What comes now comes on the writer's thread.
    pub(super) fn complete(&mut self) {
        self.writer.expect_image(self.arena().used_bytes());
    }

    /// The tree of an image.
    pub(super) fn of_image(writer: ArenaWriter, counts: Counts) -> Tree {
        let tail = Tail::find(writer.arena());
        let (next_split, places) = (NextSplit::default(), VecDeque::new());
        Tree { writer, tail, next_split, places, counts, journal: None }
    }

    pub(super) fn arena(&self) -> &Arc<Arena> {
        self.writer.arena()
    }

    #[cfg(test)]
    pub(super) fn image(&self) -> &[u8] {
        self.writer.image()
    }

    /// All that it is made of, as it is now, for another thread.
    pub(super) fn freeze(&mut self) -> Frozen {
        self.writer.freeze()
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Lets readers see all changes up to `revision`.
    pub(super) fn publish(&mut self, revision: u64) {
        self.writer.publish(revision);
    }

    /// Tells readers how far back they may ask.
    pub(super) fn set_oldest(&mut self, revision: u64) {
        self.writer.set_oldest(revision);
    }

    /// Writes down all changes from now on, which is at `revision`.
    pub(super) fn begin_journal(&mut self, revision: u64) {
        self.journal = Some((revision, Vec::new()));
    }

    /// What was written down since the last call; nothing if [`Tree::journal_len`] is `None`.
    pub(super) fn take_journal(&mut self) -> Vec<Change> {
        self.journal.as_mut().map(|(_, changes)| std::mem::take(changes)).unwrap_or_default()
    }

    /// How much was written down of the changes since `revision`; `None` if that was not from the first on, or ended, or
    /// was too much.
    pub(super) fn journal_len(&self, revision: u64) -> Option<usize> {
        self.journal.as_ref().filter(|(since, _)| *since == revision).map(|(_, all)| all.len())
    }

    /// Writes down nothing more, if it was for the checkpoint at `revision`.
    pub(super) fn end_journal(&mut self, revision: u64) {
        self.journal.take_if(|(since, _)| *since == revision);
    }

    /// The value of `key` now has this length; 0 if it does not exist.
    pub(super) fn value_bytes(&self, key: &[u8]) -> usize {
        self.before(self.key(key)).live().map_or(0, |(_, _, len)| len)
    }

    /// Brings what writing these keys will touch into the processor's caches, and finds the places of new ones.
    pub(super) fn warm_up<'k>(&mut self, keys: impl Iterator<Item = &'k [u8]>) {
        self.places.clear();
        let arena = self.writer.arena();
        let known = keys.filter(|key| {
            let is_new = self.tail.is_below(arena, key);
            if is_new {
                index::prefetch(arena, Key::new(arena, key));
            }
            !is_new
        });
        index::for_groups(arena, known, |group| {
            let absent = index::warm_up(arena, group, Version::prefetch_head_and_jump);
            let is_absent = |&(i, _): &(usize, &Key<'k>)| absent >> i & 1 == 1;
            let new = group.iter().enumerate().filter(is_absent).map(|(_, key)| *key);
            skiplist::search(arena, &self.tail, new, &mut self.places);
        });
    }

    /// Sets `key`; whether it existed.
    pub(super) fn put(&mut self, revision: u64, key: &[u8], value: &[u8]) -> bool {
        self.set(revision, self.key(key), [value, &[]])
    }

    /// Adds to the value of `key`; whether it existed.
    pub(super) fn append(&mut self, revision: u64, key: &[u8], value: &[u8]) -> bool {
        let arena = Arc::clone(self.arena());
        let key = self.key(key);
        let old = match index::find(&arena, key) {
            Found::Node(node) => node.live_at(u64::MAX).map_or(&[][..], |version| version.value()),
            Found::Nothing | Found::Disturbed => &[],
        };
        self.set(revision, key, [old, value])
    }

    /// Removes `key`; whether it existed.
    pub(super) fn delete(&mut self, revision: u64, key: &[u8]) -> bool {
        let key = self.key(key);
        let before = self.before(key);
        if before.live().is_none() {
            return false;
        }
        let header = VersionHeader { revision, create_revision: 0, version: 0, tombstone: true };
        self.push(before, key, header, [&[], &[]]);
        true
    }

    /// Adds a version as it is.
    pub(super) fn add(&mut self, key: &[u8], header: VersionHeader, value: &[u8]) {
        let key = self.key(key);
        let before = self.before(key);
        self.push(before, key, header, [value, &[]]);
    }

    /// Adds the versions of a key that has none yet, from the oldest to the newest.
    pub(super) fn add_new<'a>(
        &mut self,
        key: &[u8],
        versions: impl Iterator<Item = (VersionHeader, &'a [u8])>,
    ) {
        let key = self.key(key);
        let belongs_last = self.tail.is_below(self.arena(), key.bytes);
        let node = self.insert(key, belongs_last);
        let mut live = None;
        for (header, value) in versions {
            self.push(Before::Node { node, live }, key, header, [value, &[]]);
            live = (!header.tombstone).then_some((0, 0, value.len()));
        }
    }

    /// Brings what [`Tree::add_new`] for this key will touch into the processor's caches.
    pub(super) fn expect(&self, key: &[u8]) {
        index::prefetch(self.arena(), self.key(key));
    }

    fn key<'k>(&self, bytes: &'k [u8]) -> Key<'k> {
        Key::new(self.arena(), bytes)
    }

    fn set(&mut self, revision: u64, key: Key<'_>, value: [&[u8]; 2]) -> bool {
        let before = self.before(key);
        let live = before.live();
        let (create_revision, version) =
            live.map_or((revision, 1), |(created, version, _)| (created, version + 1));
        let header = VersionHeader { revision, create_revision, version, tombstone: false };
        self.push(before, key, header, value);
        live.is_some()
    }

    /// Hangs a version on the key's node, makes that if there is none, and keeps count.
    fn push(&mut self, before: Before, key: Key<'_>, header: VersionHeader, value: [&[u8]; 2]) {
        let live = before.live();
        let node = match before {
            Before::Node { node, .. } => node,
            Before::Nothing { belongs_last } => self.insert(key, belongs_last),
        };
        let version = versions::push(&mut self.writer, node, header, value)
            .unwrap_or_else(|| self.exhausted());
        if let Some((_, _, len)) = live {
            self.counts.keys -= 1;
            self.counts.live_bytes -= (key.bytes.len() + len) as u64;
        }
        if !header.tombstone {
            self.counts.keys += 1;
            self.counts.live_bytes += (key.bytes.len() + value[0].len() + value[1].len()) as u64;
        }
        if let Some((_, changes)) = &mut self.journal {
            if changes.len() >= JOURNAL_MAX {
                self.journal = None;
            } else {
                changes.push(Change { node, version });
            }
        }
    }

    fn before(&self, key: Key<'_>) -> Before {
        if self.tail.is_below(self.arena(), key.bytes) {
            return Before::Nothing { belongs_last: true };
        }
        let Found::Node(node) = index::find(self.arena(), key) else {
            return Before::Nothing { belongs_last: false };
        };
        let live = node
            .live_at(u64::MAX)
            .map(|version| (version.create_revision(), version.version(), version.value_bytes()));
        Before::Node { node: node.at, live }
    }

    fn insert(&mut self, key: Key<'_>, belongs_last: bool) -> Offset {
        let hint = if belongs_last { Hint::Last } else { self.hint(key) };
        let node = skiplist::insert(&mut self.writer, &mut self.tail, key, hint)
            .unwrap_or_else(|| self.exhausted());
        self.counts.nodes += 1;
        index::insert(&mut self.writer, &mut self.next_split, key.hash, node, self.counts.nodes);
        node
    }

    /// Where a new key belongs, if that was looked for.
    fn hint(&mut self, key: Key<'_>) -> Hint {
        let skipped = self.places.iter().position(|place| place.is_of(key));
        let place = skipped.and_then(|skipped| self.places.drain(..=skipped).next_back());
        place.map_or(Hint::None, Hint::Place)
    }

    /// The leader refuses growth long before, so this is a bug or a reservation that differs between nodes.
    fn exhausted(&self) -> ! {
        let arena = self.writer.arena();
        panic!(
            "the arena is exhausted: {} of {} bytes used by {} keys",
            arena.used_bytes(),
            arena.capacity_bytes(),
            self.counts.nodes
        )
    }
}

/// Changes that are written down at most, 8 bytes each; with more the compacted image is not swapped in this time.
const JOURNAL_MAX: usize = 16 << 20;
