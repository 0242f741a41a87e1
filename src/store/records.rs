//! The records in the arena: what lies where, and typed views of it. Versions have a file of their own, `versions.rs`.
//!
//! Little-endian, offsets in units of 8 bytes, every record on a unit. This is also the format of a snapshot's image
//! (its version is the snapshot's).
//!
//! Root, at unit 1:
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 8 | seed of the key hashes |
//! | 8 | 4 | twice the number of bucket splits, odd during one |
//! | 12 | 4 | unused |
//! | 16 | 16 x 8 | tower of the head: as in a node |
//! | 144 | 1024 x 4 | offsets of the index's bucket segments |
//!
//! Node, one for each key that ever existed:
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 4 | newest version; 0 before the first |
//! | 4 | 4 | next node of the chain of its bucket, if it is in one (`bucket.rs`) |
//! | 8 | 4 | node before this one in key order; 0 for the first |
//! | 12 | 4 | key length (low 16 bits), height (next 8) |
//! | 16 | height x 8 | tower: the next node at each level (low 4 bytes) and the first 4 bytes of its key (high, big-endian) |
//! | 16 + 8 x height | | key |

use super::arena::{Arena, ArenaWriter, Offset, word_of};
use super::hash;
use crate::proto::limits::KEY_BYTES_MAX;

/// Where the root record lies.
pub(super) const ROOT: Offset = Offset(1);
/// Levels of the skiplist: with one node in four reaching the next level, enough for four thousand million keys.
pub(super) const HEIGHT_MAX: usize = 16;
/// Entries of the index's directory.
pub(super) const SEGMENTS_MAX: usize = 1024;

/// A node, seen in its arena.
#[derive(Clone, Copy)]
pub(super) struct Node<'a> {
    pub(super) arena: &'a Arena,
    pub(super) at: Offset,
}

impl<'a> Node<'a> {
    /// The node at `at`, unless that is nothing.
    #[inline]
    pub(super) fn at(arena: &'a Arena, at: Offset) -> Option<Node<'a>> {
        (!at.is_null()).then_some(Node { arena, at })
    }

    #[inline]
    pub(super) fn key(self) -> &'a [u8] {
        let (len, height) = ((self.meta() & 0xffff) as usize, self.height());
        // SAFETY: `new_node` allocated `NODE_WORDS + height` words and `len` bytes; offsets of nodes only come from
        // acquiring loads of links, or from the writer itself.
        unsafe { self.arena.payload(self.at, NODE_WORDS + height, len) }
    }

    /// The levels on which it has links.
    #[inline]
    pub(super) fn height(self) -> usize {
        (self.meta() >> 16) as usize
    }

    #[inline]
    fn meta(self) -> u32 {
        self.arena.half(self.at, NODE_META_HALF)
    }

    /// Asks for the node, with the beginning of its key.
    #[inline]
    pub(super) fn prefetch(self) {
        self.arena.prefetch(self.at, 0);
        self.arena.prefetch(self.at, NODE_WORDS + 2);
    }

    #[inline]
    pub(super) fn before(self) -> Option<Node<'a>> {
        Node::at(self.arena, Offset(self.arena.half(self.at, NODE_BEFORE_HALF)))
    }

    #[inline]
    pub(super) fn next(self) -> Option<Node<'a>> {
        Node::at(self.arena, Link::load(self.arena, self.at, 0).to)
    }

    #[inline]
    pub(super) fn next_in_bucket(self) -> Option<Node<'a>> {
        Node::at(self.arena, Offset(self.arena.half(self.at, NODE_BUCKET_HALF)))
    }

    /// Where the newest version lies; [`Offset::NULL`] before the first.
    #[inline]
    pub(super) fn newest_offset(self) -> Offset {
        Offset(self.arena.half(self.at, NODE_NEWEST_HALF))
    }
}

/// A link of a tower: the next node, and the beginning of its key, so that most steps of a search need not go there.
#[derive(Clone, Copy)]
pub(super) struct Link {
    pub(super) to: Offset,
    pub(super) prefix: u32,
}

impl Link {
    /// The link of the node (or [`ROOT`]) at `at` on `level`.
    #[inline]
    pub(super) fn load(arena: &Arena, at: Offset, level: usize) -> Link {
        let word = arena.word(at, NODE_WORDS + level);
        Link { to: Offset(word as u32), prefix: (word >> 32) as u32 }
    }

    /// Where the link of a level lies in a node, in words.
    pub(super) fn at_level(level: usize) -> usize {
        NODE_WORDS + level
    }

    /// Makes it the link of the node (or [`ROOT`]) at `at` on `level`.
    #[inline]
    pub(super) fn store(self, writer: &mut ArenaWriter, at: Offset, level: usize) {
        writer.set_word(at, NODE_WORDS + level, self.word());
    }

    #[inline]
    fn word(self) -> u64 {
        (u64::from(self.prefix) << 32) | u64::from(self.to.0)
    }
}

/// The first 4 bytes of a key as a number that compares like them.
#[inline]
pub(super) fn prefix(key: &[u8]) -> u32 {
    u32::from_be_bytes(first_bytes(key))
}

/// The first 8 bytes, likewise.
#[inline]
pub(super) fn long_prefix(key: &[u8]) -> u64 {
    u64::from_be_bytes(first_bytes(key))
}

/// The first bytes, with zeros behind a shorter key.
#[inline]
fn first_bytes<const N: usize>(key: &[u8]) -> [u8; N] {
    key.first_chunk().copied().unwrap_or_else(|| {
        let mut bytes = [0; N];
        bytes[..key.len()].copy_from_slice(key);
        bytes
    })
}

/// Makes the root record, which must be the first of the arena.
pub(super) fn new_root(writer: &mut ArenaWriter, seed: u64) {
    let at = writer.alloc_zeros(ROOT_WORDS).expect("the smallest arena has room for the root");
    assert_eq!(at, ROOT, "the root comes first");
    writer.set_word(ROOT, 0, seed);
}

/// The seed of the key hashes of this arena.
pub(super) fn seed(arena: &Arena) -> u64 {
    arena.word(ROOT, 0)
}

/// A key and its hash in an arena, so that this is worked out once.
#[derive(Clone, Copy)]
pub(super) struct Key<'k> {
    pub(super) bytes: &'k [u8],
    pub(super) hash: u64,
}

impl<'k> Key<'k> {
    #[inline]
    pub(super) fn new(arena: &Arena, bytes: &'k [u8]) -> Key<'k> {
        Key { bytes, hash: hash::hash64(seed(arena), bytes) }
    }
}

/// Allocates a node that nothing links to yet, to stand behind the nodes (or the root) that are the last `before` it on
/// each of its levels. `None` if the arena is full.
pub(super) fn new_node(writer: &mut ArenaWriter, key: &[u8], before: &[Offset]) -> Option<Offset> {
    let (height, len) = (before.len(), key.len());
    assert!((1..=HEIGHT_MAX).contains(&height), "height {height}");
    assert!(len <= KEY_BYTES_MAX, "key of {len} bytes");
    let back = if before[0] == ROOT { Offset::NULL } else { before[0] };
    let mut words = [0; NODE_WORDS + HEIGHT_MAX];
    words[1] = word_of([back.0, len as u32 | (height as u32) << 16]);
    for (level, (word, &at)) in words[NODE_WORDS..].iter_mut().zip(before).enumerate() {
        *word = Link::load(writer.arena(), at, level).word();
    }
    writer.alloc(&words[..NODE_WORDS + height], [key, &[]])
}

/// Sets the newest version of the node at `at`.
pub(super) fn set_newest(writer: &mut ArenaWriter, at: Offset, version: Offset) {
    writer.set_half(at, NODE_NEWEST_HALF, version.0);
}

/// Sets the node before `at` in key order.
pub(super) fn set_before(writer: &mut ArenaWriter, at: Offset, before: Offset) {
    writer.set_half(at, NODE_BEFORE_HALF, before.0);
}

/// Sets the node after `at` in the chain of its bucket.
pub(super) fn set_next_in_bucket(writer: &mut ArenaWriter, at: Offset, next: Offset) {
    writer.set_half(at, NODE_BUCKET_HALF, next.0);
}

/// The number of splits so far, doubled; odd during one.
pub(super) fn split_sequence(arena: &Arena) -> u32 {
    arena.half(ROOT, ROOT_SPLITS_HALF)
}

/// Sets what [`split_sequence`] gives.
pub(super) fn set_split_sequence(writer: &mut ArenaWriter, sequence: u32) {
    writer.set_half(ROOT, ROOT_SPLITS_HALF, sequence);
}

/// The offset of a segment of buckets.
pub(super) fn segment(arena: &Arena, segment: usize) -> Offset {
    Offset(arena.half(ROOT, ROOT_SEGMENTS_HALF + segment))
}

/// Sets what [`segment`] gives.
pub(super) fn set_segment(writer: &mut ArenaWriter, segment: usize, at: Offset) {
    assert!(segment < SEGMENTS_MAX, "segment {segment}");
    writer.set_half(ROOT, ROOT_SEGMENTS_HALF + segment, at.0);
}

/// Words of a root or node before its tower. The same for both, so that a search need not tell them apart.
const NODE_WORDS: usize = 2;
const NODE_NEWEST_HALF: usize = 0;
const NODE_BUCKET_HALF: usize = 1;
const NODE_BEFORE_HALF: usize = 2;
const NODE_META_HALF: usize = 3;
const _: () =
    assert!(NODE_BEFORE_HALF == 2 && NODE_META_HALF == 3, "the halves of the second word");
const ROOT_SPLITS_HALF: usize = 2;
const ROOT_SEGMENTS_HALF: usize = (NODE_WORDS + HEIGHT_MAX) * 2;
const ROOT_WORDS: usize = NODE_WORDS + HEIGHT_MAX + SEGMENTS_MAX / 2;
const _: () = assert!(KEY_BYTES_MAX <= 0xffff);
