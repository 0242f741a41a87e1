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

use super::arena::{Arena, ArenaWriter, Offset};
use super::records::{self, HEIGHT_MAX, Link, Node, ROOT};

/// The first node with a key not below `key` (or above it, if `after`).
pub(super) fn seek<'a>(arena: &'a Arena, key: &[u8], after: bool) -> Option<Node<'a>> {
    let last = descend(arena, key, after, |_, _| ());
    Node::at(arena, Link::load(arena, last, 0).to)
}

/// The last node with a key below `key` (or not above it, if `or_at`).
pub(super) fn seek_before<'a>(arena: &'a Arena, key: &[u8], or_at: bool) -> Option<Node<'a>> {
    let last = descend(arena, key, or_at, |_, _| ());
    Node::at(arena, last).filter(|node| node.at != ROOT)
}

/// The first node.
pub(super) fn first(arena: &Arena) -> Option<Node<'_>> {
    Node::at(arena, Link::load(arena, ROOT, 0).to)
}

/// The last node.
pub(super) fn last(arena: &Arena) -> Option<Node<'_>> {
    let tail = Tail::find(arena);
    Node::at(arena, tail.0[0]).filter(|node| node.at != ROOT)
}

/// The last node (or the root) on each level, so that keys that come in order need no search.
pub(super) struct Tail([Offset; HEIGHT_MAX]);

impl Tail {
    /// Walks to the end.
    pub(super) fn find(arena: &Arena) -> Tail {
        let mut tail = [ROOT; HEIGHT_MAX];
        let mut at = ROOT;
        for level in (0..HEIGHT_MAX).rev() {
            loop {
                let link = Link::load(arena, at, level);
                if link.to.is_null() {
                    break;
                }
                at = link.to;
            }
            tail[level] = at;
        }
        Tail(tail)
    }

    fn is_below(&self, arena: &Arena, key: &[u8]) -> bool {
        self.0[0] == ROOT || Node { arena, at: self.0[0] }.key() < key
    }
}

/// Links a new node, whose key is not in the list. `None` if the arena is full, and then nothing happened.
pub(super) fn insert(writer: &mut ArenaWriter, tail: &mut Tail, key: &[u8]) -> Option<Offset> {
    let height = height(records::key_hash(writer.arena(), key));
    let node = records::new_node(writer, key, height)?;
    let mut before = tail.0;
    if !tail.is_below(writer.arena(), key) {
        descend(writer.arena(), key, false, |level, at| before[level] = at);
    }
    let prefix = records::prefix(key);
    let back = if before[0] == ROOT { Offset::NULL } else { before[0] };
    records::set_before(writer, node, back);
    for (level, &at) in before.iter().enumerate().take(height) {
        let next = Link::load(writer.arena(), at, level);
        next.store(writer, node, level);
        if next.to.is_null() {
            tail.0[level] = node;
        }
    }
    for (level, &at) in before.iter().enumerate().take(height) {
        Link { to: node, prefix }.store(writer, at, level);
    }
    let next = Link::load(writer.arena(), node, 0).to;
    if !next.is_null() {
        records::set_before(writer, next, node);
    }
    Some(node)
}

/// Goes to the last node below `key` (or not above it, if `or_at`), or the root; tells `visit` where it left each
/// level.
fn descend(arena: &Arena, key: &[u8], or_at: bool, mut visit: impl FnMut(usize, Offset)) -> Offset {
    let prefix = records::prefix(key);
    let mut at = ROOT;
    for level in (0..HEIGHT_MAX).rev() {
        loop {
            let link = Link::load(arena, at, level);
            if link.to.is_null() {
                break;
            }
            let order =
                link.prefix.cmp(&prefix).then_with(|| Node { arena, at: link.to }.key().cmp(key));
            if order == Ordering::Greater || (order == Ordering::Equal && !or_at) {
                break;
            }
            at = link.to;
        }
        visit(level, at);
    }
    at
}

/// One node in four reaches each further level.
fn height(hash: u64) -> usize {
    // The low bits choose the bucket; these are the high ones.
    let zeros = hash.leading_zeros() as usize;
    (1 + zeros / 2).min(HEIGHT_MAX)
}
