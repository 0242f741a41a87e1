//! The order of the keys: a skiplist in the arena.
//!
//! **For:** new keys, scans and seeks; everything else goes through the hash index.
//!
//! **In and out:** [`seek`] and [`seek_before`] from any thread; [`Tail`] and [`insert`] by the writer.
//!
//! **Always:** a node is complete before anything links to it, and is linked from the bottom up; it is never moved or
//! unlinked. Heights come from the key's hash, so the list's shape depends on its keys alone. The link back to the
//! node before may lag for nodes that no published revision knows yet.

use std::cmp::Ordering;
use std::collections::VecDeque;

use super::arena::{Arena, ArenaWriter, Offset};
use super::records::{self, HEIGHT_MAX, Key, Link, Node, ROOT};

/// The first node with a key not below `key` (or above it, if `after`).
pub(super) fn seek<'a>(arena: &'a Arena, key: &[u8], after: bool) -> Option<Node<'a>> {
    let last = Target::new(key, after).descend(arena, |_, _| ());
    Node::at(arena, Link::load(arena, last, 0).to)
}

/// The last node with a key below `key` (or not above it, if `or_at`).
pub(super) fn seek_before<'a>(arena: &'a Arena, key: &[u8], or_at: bool) -> Option<Node<'a>> {
    let last = Target::new(key, or_at).descend(arena, |_, _| ());
    Node::at(arena, last).filter(|node| node.at != ROOT)
}

/// The first node.
pub(super) fn first(arena: &Arena) -> Option<Node<'_>> {
    Node::at(arena, Link::load(arena, ROOT, 0).to)
}

/// The last node.
pub(super) fn last(arena: &Arena) -> Option<Node<'_>> {
    let tail = Tail::find(arena);
    Node::at(arena, tail.nodes[0]).filter(|node| node.at != ROOT)
}

/// The last node (or the root) on each level, so that keys that come in order need no search.
pub(super) struct Tail {
    nodes: [Offset; HEIGHT_MAX],
    /// The beginning of the last key, which nearly always tells how a key compares with it.
    prefix: u64,
}

impl Tail {
    /// Walks to the end.
    pub(super) fn find(arena: &Arena) -> Tail {
        let mut nodes = [ROOT; HEIGHT_MAX];
        let mut at = ROOT;
        for level in (0..HEIGHT_MAX).rev() {
            loop {
                let link = Link::load(arena, at, level);
                if link.to.is_null() {
                    break;
                }
                at = link.to;
            }
            nodes[level] = at;
        }
        let prefix = if at == ROOT { 0 } else { records::long_prefix(Node { arena, at }.key()) };
        Tail { nodes, prefix }
    }

    /// Whether all nodes lie before `key`.
    #[inline]
    pub(super) fn is_below(&self, arena: &Arena, key: &[u8]) -> bool {
        match self.prefix.cmp(&records::long_prefix(key)) {
            Ordering::Equal => {
                self.nodes[0] == ROOT || Node { arena, at: self.nodes[0] }.key() < key
            }
            order => order == Ordering::Less,
        }
    }
}

/// What is known of where a new key belongs.
pub(super) enum Hint {
    /// Behind all nodes: [`Tail::is_below`].
    Last,
    /// What a search for it found.
    Place(Place),
    /// Nothing.
    None,
}

/// Links a new node, whose key is not in the list. `None` if the arena is full, and then nothing happened.
pub(super) fn insert(
    writer: &mut ArenaWriter,
    tail: &mut Tail,
    key: Key<'_>,
    hint: Hint,
) -> Option<Offset> {
    let height = height(key.hash);
    let target = Target::new(key.bytes, false);
    let mut before = tail.nodes;
    let is_near = |place: &Place| height <= PLACE_LEVELS && place.is_below(writer.arena(), &target);
    match hint {
        Hint::Last => {}
        Hint::Place(place) if is_near(&place) => {
            for (level, &from) in place.before.iter().enumerate().take(height) {
                before[level] = target.walk(writer.arena(), from, level);
            }
        }
        Hint::Place(_) | Hint::None => {
            target.descend(writer.arena(), |level, at| before[level] = at);
        }
    }
    let before = &before[..height];
    let node = records::new_node(writer, key.bytes, before)?;
    link(writer, tail, &target, node, before);
    Some(node)
}

/// Links a node behind those that stand before it on each of its levels.
fn link(
    writer: &mut ArenaWriter,
    tail: &mut Tail,
    target: &Target<'_>,
    node: Offset,
    before: &[Offset],
) {
    for (level, &at) in before.iter().enumerate() {
        if tail.nodes[level] == at {
            tail.nodes[level] = node;
        }
        Link { to: node, prefix: target.prefix }.store(writer, at, level);
    }
    let next = Link::load(writer.arena(), node, 0).to;
    if next.is_null() {
        tail.prefix = records::long_prefix(target.key);
    } else {
        records::set_before(writer, next, node);
    }
}

/// What a search looks for: the last node below a key, or not above it if `or_at`.
struct Target<'k> {
    key: &'k [u8],
    prefix: u32,
    or_at: bool,
}

impl<'k> Target<'k> {
    fn new(key: &'k [u8], or_at: bool) -> Target<'k> {
        Target { key, prefix: records::prefix(key), or_at }
    }

    /// Goes to it from the root; tells `visit` where it left each level. The root if there is none.
    fn descend(&self, arena: &Arena, mut visit: impl FnMut(usize, Offset)) -> Offset {
        let mut at = ROOT;
        for level in (0..HEIGHT_MAX).rev() {
            at = self.walk(arena, at, level);
            visit(level, at);
        }
        at
    }

    /// The last node on this level that does not lie behind it, from one such on.
    fn walk(&self, arena: &Arena, mut at: Offset, level: usize) -> Offset {
        loop {
            let link = Link::load(arena, at, level);
            let goes_on = !link.to.is_null()
                && match link.prefix.cmp(&self.prefix) {
                    Ordering::Equal => self.is_at_or_behind(arena, link.to),
                    order => order == Ordering::Less,
                };
            if !goes_on {
                return at;
            }
            at = link.to;
        }
    }

    /// Whether it is this node or one behind it.
    fn is_at_or_behind(&self, arena: &Arena, node: Offset) -> bool {
        let order = Node { arena, at: node }.key().cmp(self.key);
        order == Ordering::Less || (order == Ordering::Equal && self.or_at)
    }
}

/// Searches for the places of new keys, in turns: none waits for the misses of another. Leaves out what belongs behind
/// all nodes.
pub(super) fn search<'k>(
    arena: &Arena,
    tail: &Tail,
    keys: impl Iterator<Item = Key<'k>>,
    found: &mut VecDeque<Place>,
) {
    let Some(top) = (0..HEIGHT_MAX).rev().find(|&level| tail.nodes[level] != ROOT) else { return };
    let keys = keys.filter(|key| !tail.is_below(arena, key.bytes));
    let mut searches: Vec<Search<'k>> = keys.map(|key| Search::new(key, top)).collect();
    let mut under_way = searches.len();
    while under_way > 0 {
        under_way = searches.iter_mut().filter_map(|search| search.step(arena)).count();
    }
    found.extend(searches.into_iter().map(|search| search.place));
}

/// Where a new key belongs.
#[derive(Clone, Copy)]
pub(super) struct Place {
    hash: u64,
    /// The last nodes below it (or the root) on the lowest levels, when it was looked for.
    before: [Offset; PLACE_LEVELS],
}

impl Place {
    /// Whether it is that of a key with this hash.
    pub(super) fn is_of(&self, key: Key<'_>) -> bool {
        self.hash == key.hash
    }

    /// Whether the target can be reached from it: always, unless two keys have one hash.
    fn is_below(&self, arena: &Arena, target: &Target<'_>) -> bool {
        self.before.iter().all(|&at| at == ROOT || target.is_at_or_behind(arena, at))
    }
}

/// A search under way.
struct Search<'k> {
    target: Target<'k>,
    place: Place,
    at: Offset,
    /// One above the level on which it is; 0 at the end.
    levels: usize,
    /// Whether the next node's whole key must be compared, and is on its way into the caches.
    waits_for_key: bool,
}

impl<'k> Search<'k> {
    fn new(key: Key<'k>, top: usize) -> Search<'k> {
        let place = Place { hash: key.hash, before: [ROOT; PLACE_LEVELS] };
        let target = Target::new(key.bytes, false);
        Search { target, place, at: ROOT, levels: top + 1, waits_for_key: false }
    }

    /// Goes on until it needs what may not be in the caches; `None` at the end.
    fn step(&mut self, arena: &Arena) -> Option<()> {
        while let Some(level) = self.levels.checked_sub(1) {
            let link = Link::load(arena, self.at, level);
            let order = match (link.to.is_null(), link.prefix.cmp(&self.target.prefix)) {
                (false, Ordering::Equal) if !self.waits_for_key => {
                    self.waits_for_key = true;
                    Node { arena, at: link.to }.prefetch();
                    return Some(());
                }
                (false, Ordering::Equal) => self.target.is_at_or_behind(arena, link.to),
                (is_last, order) => !is_last && order == Ordering::Less,
            };
            self.waits_for_key = false;
            if order {
                self.at = link.to;
                arena.prefetch(link.to, Link::at_level(level));
                return Some(());
            }
            if let Some(before) = self.place.before.get_mut(level) {
                *before = self.at;
            }
            self.levels = level;
        }
        None
    }
}

/// One node in four reaches each further level.
fn height(hash: u64) -> usize {
    // The low bits choose the bucket; these are the high ones.
    let zeros = hash.leading_zeros() as usize;
    (1 + zeros / 2).min(HEIGHT_MAX)
}

/// Levels on which a place is known: few nodes have more.
const PLACE_LEVELS: usize = 4;
