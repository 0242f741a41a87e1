//! The records in the arena: what lies where, and typed views of it.
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
//!
//! Version:
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 8 | revision |
//! | 8 | 4 | the version before it |
//! | 12 | 4 | value length (low 28 bits), bit 31 tombstone, bit 30 first (of this life of the key), bit 29 lease (not used yet), bit 28 jump |
//! | 16 | 4 | a version further back; only there with the bit jump, which all versions but the oldest have |
//! | 20 | 4 | how many versions lie before this one; only there with the bit jump |
//! | +0 | 8 | revision that created the key; not there if tombstone or first |
//! | +8 | 8 | number of this version, from 1; not there if tombstone or first |
//! | | | value |
//!
//! The jumps are those of Myers, *An applicative random-access stack* (1983): where a version's jump goes follows from
//! those of the version before it alone, and a walk that takes each jump which does not go too far finds any version of
//! a chain of n in some 2 log n steps.

use super::arena::{Arena, ArenaWriter, Offset};
use super::hash;
use crate::proto::limits::{KEY_BYTES_MAX, VALUE_BYTES_CEILING};

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

/// A version, seen in its arena.
#[derive(Clone, Copy)]
pub(super) struct Version<'a> {
    pub(super) arena: &'a Arena,
    pub(super) at: Offset,
}

/// What a new version says beside its value.
#[derive(Clone, Copy, Debug)]
pub(super) struct VersionHeader {
    pub(super) revision: u64,
    pub(super) create_revision: u64,
    pub(super) version: u64,
    pub(super) tombstone: bool,
}

impl<'a> Node<'a> {
    /// The node at `at`, unless that is nothing.
    #[inline]
    pub(super) fn at(arena: &'a Arena, at: Offset) -> Option<Node<'a>> {
        (!at.is_null()).then_some(Node { arena, at })
    }

    #[inline]
    pub(super) fn key(self) -> &'a [u8] {
        let meta = self.arena.half(self.at, NODE_META_HALF);
        let (len, height) = ((meta & 0xffff) as usize, (meta >> 16) as usize);
        // SAFETY: `new_node` allocated `NODE_WORDS + height` words and `len` bytes; offsets of nodes only come from
        // acquiring loads of links, or from the writer itself.
        unsafe { self.arena.payload(self.at, NODE_WORDS + height, len) }
    }

    /// Asks for the node, with the beginning of its key.
    #[inline]
    pub(super) fn prefetch(self) {
        self.arena.prefetch(self.at, 0);
        self.arena.prefetch(self.at, NODE_WORDS + 2);
    }

    pub(super) fn before(self) -> Option<Node<'a>> {
        Node::at(self.arena, Offset(self.arena.half(self.at, NODE_BEFORE_HALF)))
    }

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

    #[inline]
    pub(super) fn newest(self) -> Option<Version<'a>> {
        let at = self.newest_offset();
        (!at.is_null()).then_some(Version { arena: self.arena, at })
    }

    /// The newest version at `revision` or before it, tombstones included.
    #[inline]
    pub(super) fn version_at(self, revision: u64) -> Option<Version<'a>> {
        let mut version = self.newest()?;
        while version.revision() > revision {
            version = match version.jump() {
                Some(jump) if jump.revision() > revision => jump,
                Some(_) | None => version.before()?,
            };
        }
        Some(version)
    }

    /// The version that a reader at `revision` sees as the key's value.
    pub(super) fn live_at(self, revision: u64) -> Option<Version<'a>> {
        self.version_at(revision).filter(|version| !version.is_tombstone())
    }
}

impl<'a> Version<'a> {
    #[inline]
    pub(super) fn revision(self) -> u64 {
        self.arena.word(self.at, 0)
    }

    pub(super) fn before(self) -> Option<Version<'a>> {
        let at = Offset(self.arena.half(self.at, VERSION_BEFORE_HALF));
        (!at.is_null()).then_some(Version { arena: self.arena, at })
    }

    /// A version further back; `None` from the oldest.
    fn jump(self) -> Option<Version<'a>> {
        // Without a jump the value lies there, or the next record, which may just be written.
        let at = self.has_jump().then(|| self.arena.half(self.at, VERSION_JUMP_HALF))?;
        Some(Version { arena: self.arena, at: Offset(at) })
    }

    /// How many versions lie before this one.
    fn depth(self) -> u32 {
        if self.has_jump() { self.arena.half(self.at, VERSION_DEPTH_HALF) } else { 0 }
    }

    /// Where the jump of a version that follows this one goes. Two times in three that is known without a look at any
    /// other version, which would be a miss of every cache.
    fn jump_of_next(self) -> Version<'a> {
        if jump_length(self.depth() + 1) == 1 {
            return self;
        }
        let jump =
            self.jump().expect("only the first version has none, and the jump after it is short");
        jump.jump().unwrap_or(jump)
    }

    /// What it says beside its value.
    pub(super) fn header(self) -> VersionHeader {
        VersionHeader {
            revision: self.revision(),
            create_revision: self.create_revision(),
            version: self.version(),
            tombstone: self.is_tombstone(),
        }
    }

    pub(super) fn is_tombstone(self) -> bool {
        self.meta() & TOMBSTONE != 0
    }

    pub(super) fn create_revision(self) -> u64 {
        if self.is_short() { self.revision() } else { self.arena.word(self.at, self.head_words()) }
    }

    pub(super) fn version(self) -> u64 {
        if self.is_short() { 1 } else { self.arena.word(self.at, self.head_words() + 1) }
    }

    pub(super) fn value_bytes(self) -> usize {
        (self.meta() & LEN_MASK) as usize
    }

    pub(super) fn value(self) -> &'a [u8] {
        let words = self.head_words() + if self.is_short() { 0 } else { VERSION_WORDS_LONG };
        // SAFETY: `push_version` allocated these words and that many bytes; offsets of versions only come from
        // acquiring loads of links, or from the writer itself.
        unsafe { self.arena.payload(self.at, words, self.value_bytes()) }
    }

    fn is_short(self) -> bool {
        self.meta() & (TOMBSTONE | FIRST) != 0
    }

    fn has_jump(self) -> bool {
        self.meta() & JUMP != 0
    }

    /// Words before those that only long versions have.
    fn head_words(self) -> usize {
        VERSION_WORDS + usize::from(self.has_jump())
    }

    #[inline]
    fn meta(self) -> u32 {
        self.arena.half(self.at, VERSION_META_HALF)
    }
}

/// How far the version with so many before it jumps: the last weight of that number in the skew-binary system, whose
/// weights are 1, 3, 7, 15 and so on (Myers, "An applicative random-access stack", 1983). So any version is reached in a
/// logarithmic number of steps.
fn jump_length(depth: u32) -> u32 {
    let mut rest = depth;
    loop {
        let weight = u32::MAX >> (rest + 1).leading_zeros() >> 1;
        rest -= weight;
        if rest == 0 {
            return weight;
        }
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
        let word = (u64::from(self.prefix) << 32) | u64::from(self.to.0);
        writer.set_word(at, NODE_WORDS + level, word);
    }
}

/// The first 4 bytes of a key as a number that compares like them.
#[inline]
pub(super) fn prefix(key: &[u8]) -> u32 {
    let mut bytes = [0; 4];
    let len = key.len().min(4);
    bytes[..len].copy_from_slice(&key[..len]);
    u32::from_be_bytes(bytes)
}

/// Makes the root record, which must be the first of the arena.
pub(super) fn new_root(writer: &mut ArenaWriter, seed: u64) {
    let at = writer.alloc(ROOT_WORDS, &[]).expect("the smallest arena has room for the root");
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

/// Allocates a node that nothing links to yet.
pub(super) fn new_node(writer: &mut ArenaWriter, key: &[u8], height: usize) -> Option<Offset> {
    assert!((1..=HEIGHT_MAX).contains(&height), "height {height}");
    let len = u32::try_from(key.len()).expect("keys are checked before they come here");
    assert!(key.len() <= KEY_BYTES_MAX, "key of {len} bytes");
    let at = writer.alloc(NODE_WORDS + height, &[key])?;
    writer.set_half(at, NODE_META_HALF, len | (height as u32) << 16);
    Some(at)
}

/// Sets the node before `at` in key order.
pub(super) fn set_before(writer: &mut ArenaWriter, at: Offset, before: Offset) {
    writer.set_half(at, NODE_BEFORE_HALF, before.0);
}

/// Sets the node after `at` in the chain of its bucket.
pub(super) fn set_next_in_bucket(writer: &mut ArenaWriter, at: Offset, next: Offset) {
    writer.set_half(at, NODE_BUCKET_HALF, next.0);
}

/// Hangs a new version on a node and says where it lies; its value is the two parts of `value` one after the other.
/// `None` if the arena is full, and then nothing happened.
pub(super) fn push_version(
    writer: &mut ArenaWriter,
    node: Offset,
    header: VersionHeader,
    value: [&[u8]; 2],
) -> Option<Offset> {
    let len = u32::try_from(value[0].len() + value[1].len()).expect("values are checked before");
    assert!(len as usize <= VALUE_BYTES_CEILING, "value of {len} bytes");
    let first = header.version == 1 && header.create_revision == header.revision;
    let short = header.tombstone || first;
    let arena = writer.arena();
    let before = Offset(arena.half(node, NODE_NEWEST_HALF));
    let jump = (!before.is_null()).then(|| {
        let before = Version { arena, at: before };
        (before.jump_of_next().at, before.depth() + 1)
    });
    let head_words = VERSION_WORDS + usize::from(jump.is_some());
    let at = writer.alloc(head_words + if short { 0 } else { VERSION_WORDS_LONG }, &value)?;
    let flags = if header.tombstone { TOMBSTONE } else { 0 }
        | if first { FIRST } else { 0 }
        | if jump.is_some() { JUMP } else { 0 };
    writer.set_word(at, 0, header.revision);
    writer.set_half(at, VERSION_BEFORE_HALF, before.0);
    writer.set_half(at, VERSION_META_HALF, len | flags);
    if let Some((jump, depth)) = jump {
        writer.set_half(at, VERSION_JUMP_HALF, jump.0);
        writer.set_half(at, VERSION_DEPTH_HALF, depth);
    }
    if !short {
        writer.set_word(at, head_words, header.create_revision);
        writer.set_word(at, head_words + 1, header.version);
    }
    writer.set_half(node, NODE_NEWEST_HALF, at.0);
    Some(at)
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
const ROOT_SPLITS_HALF: usize = 2;
const ROOT_SEGMENTS_HALF: usize = (NODE_WORDS + HEIGHT_MAX) * 2;
const ROOT_WORDS: usize = NODE_WORDS + HEIGHT_MAX + SEGMENTS_MAX / 2;
const VERSION_WORDS: usize = 2;
/// Words that versions have on top which are neither first nor tombstones.
const VERSION_WORDS_LONG: usize = 2;
const VERSION_BEFORE_HALF: usize = 2;
const VERSION_META_HALF: usize = 3;
const VERSION_JUMP_HALF: usize = 4;
const VERSION_DEPTH_HALF: usize = 5;
const TOMBSTONE: u32 = 1 << 31;
const FIRST: u32 = 1 << 30;
const JUMP: u32 = 1 << 28;
const LEN_MASK: u32 = (1 << 28) - 1;

const _: () = assert!(KEY_BYTES_MAX <= 0xffff);
const _: () = assert!(VALUE_BYTES_CEILING <= LEN_MASK as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_are_those_of_the_stack_with_random_access() {
        // The rule by its definition: two jumps of one length behind each other become one over both.
        let mut jumps = vec![0_u32, 0];
        for depth in 2..100_000 {
            let before = depth - 1;
            let jump = jumps[before as usize];
            let second = jumps[jump as usize];
            jumps.push(if before - jump == jump - second { second } else { before });
        }
        for (depth, jump) in (0_u32..).zip(jumps).skip(1) {
            assert_eq!(depth - jump_length(depth), jump, "depth {depth}");
        }
    }
}
