//! The memory that a scan comes to next, asked for early.
//!
//! **For:** forward scans over keys that came in no order: their nodes lie anywhere, and a walk from one to the next waits
//! for each of them. **In and out:** [`Ahead::pass`] sees each node. **Always:** changes nothing but the caches.
//! **Left out:** nodes that lie in the order of their keys, as in the image of a checkpoint: the processor sees that.
//!
//! The links of a higher level name nodes some way ahead. From each of them on the nodes are asked for in turn, so that
//! none waits for the others.

use super::arena::Offset;
use super::records::{Link, Node};

/// How far a scan has looked ahead.
pub(super) struct Ahead {
    next: Look,
    lanes: usize,
}

/// When to look again.
enum Look {
    /// After so many nodes.
    After(u32),
    /// At this node.
    At(Offset),
}

impl Ahead {
    pub(super) fn new() -> Ahead {
        Ahead { next: Look::After(PATIENCE), lanes: 2 }
    }

    /// The scan has come to this node.
    #[inline]
    pub(super) fn pass(&mut self, node: Node<'_>) {
        match &mut self.next {
            Look::After(0) => self.look(node),
            Look::After(left) => *left -= 1,
            Look::At(next) if *next != node.at => {}
            Look::At(_) => self.look(node),
        }
    }

    #[cold]
    fn look(&mut self, node: Node<'_>) {
        if lies_in_order(node) {
            self.next = Look::After(IN_ORDER);
            return;
        }
        self.next = Look::At(look(node, self.lanes));
        self.lanes = (2 * self.lanes).min(LANES_MAX);
    }
}

/// Whether the next nodes follow closely in memory.
fn lies_in_order(node: Node<'_>) -> bool {
    let nodes = std::iter::successors(Some(node), |node| node.next());
    let next = nodes.clone().skip(1).take(2);
    nodes.zip(next).all(|(node, next)| next.at.0.wrapping_sub(node.at.0) < NEAR_UNITS)
}

/// Asks for what lies ahead, in so many lanes; gives the node behind it.
fn look(from: Node<'_>, lanes: usize) -> Offset {
    let arena = from.arena;
    let mut starts = [Offset::NULL; LANES_MAX + 1];
    let mut last = Some(from);
    for start in &mut starts[..=lanes] {
        *start = last.map_or(Offset::NULL, |node| node.at);
        last = last.and_then(next_start);
    }
    let end = starts[lanes];
    let (mut at, ends) = (starts, &starts[1..]);
    let mut under_way = true;
    while under_way {
        under_way = false;
        for (at, &end) in at.iter_mut().zip(ends).take(lanes) {
            let Some(node) = Node::at(arena, *at) else { continue };
            arena.prefetch(node.newest_offset(), 0);
            *at = node.next().map_or(Offset::NULL, |next| next.at);
            if *at == end {
                *at = Offset::NULL;
            } else if let Some(next) = Node::at(arena, *at) {
                next.prefetch();
                under_way = true;
            }
        }
    }
    end
}

/// The next node that reaches the level of lanes.
fn next_start(mut node: Node<'_>) -> Option<Node<'_>> {
    loop {
        let level = LEVEL.min(node.height() - 1);
        node = Node::at(node.arena, Link::load(node.arena, node.at, level).to)?;
        if node.height() > LEVEL {
            return Some(node);
        }
    }
}

/// Rows of a scan that is too short to look ahead.
const PATIENCE: u32 = 4;
/// Lanes begin at nodes of this level: one in sixteen.
const LEVEL: usize = 2;
const LANES_MAX: usize = 8;
/// A KiB: what a key and its versions usually take.
const NEAR_UNITS: u32 = 1024 / 8;
/// Nodes until the next look when they lie in order.
const IN_ORDER: u32 = 64;
