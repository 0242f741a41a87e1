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
//! | 4 | 4 | next node in the same bucket of the index |
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
//! | 12 | 4 | value length (low 28 bits), bit 31 tombstone, bit 30 first (of this life of the key), bit 29 lease (not used yet) |
//! | 16 | 8 | revision that created the key; not there if tombstone or first |
//! | 24 | 8 | number of this version, from 1; not there if tombstone or first |
//! | 16 or 32 | | value |

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
    arena: &'a Arena,
    at: Offset,
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
    pub(super) fn at(arena: &'a Arena, at: Offset) -> Option<Node<'a>> {
        (!at.is_null()).then_some(Node { arena, at })
    }

    pub(super) fn key(self) -> &'a [u8] {
        let meta = self.arena.half(self.at, NODE_META_HALF);
        let (len, height) = ((meta & 0xffff) as usize, (meta >> 16) as usize);
        // SAFETY: `new_node` allocated `NODE_WORDS + height` words and `len` bytes; offsets of nodes only come from
        // acquiring loads of links, or from the writer itself.
        unsafe { self.arena.payload(self.at, NODE_WORDS + height, len) }
    }

    pub(super) fn before(self) -> Option<Node<'a>> {
        Node::at(self.arena, Offset(self.arena.half(self.at, NODE_BEFORE_HALF)))
    }

    pub(super) fn next(self) -> Option<Node<'a>> {
        Node::at(self.arena, Link::load(self.arena, self.at, 0).to)
    }

    pub(super) fn next_in_bucket(self) -> Offset {
        Offset(self.arena.half(self.at, NODE_BUCKET_HALF))
    }

    /// Where the newest version lies; [`Offset::NULL`] before the first.
    pub(super) fn newest_offset(self) -> Offset {
        Offset(self.arena.half(self.at, NODE_NEWEST_HALF))
    }

    pub(super) fn newest(self) -> Option<Version<'a>> {
        let at = self.newest_offset();
        (!at.is_null()).then_some(Version { arena: self.arena, at })
    }

    /// The newest version at `revision` or before it, tombstones included.
    pub(super) fn version_at(self, revision: u64) -> Option<Version<'a>> {
        let mut version = self.newest()?;
        while version.revision() > revision {
            version = version.before()?;
        }
        Some(version)
    }

    /// The version that a reader at `revision` sees as the key's value.
    pub(super) fn live_at(self, revision: u64) -> Option<Version<'a>> {
        self.version_at(revision).filter(|version| !version.is_tombstone())
    }
}

impl<'a> Version<'a> {
    pub(super) fn revision(self) -> u64 {
        self.arena.word(self.at, 0)
    }

    pub(super) fn before(self) -> Option<Version<'a>> {
        let at = Offset(self.arena.half(self.at, VERSION_BEFORE_HALF));
        (!at.is_null()).then_some(Version { arena: self.arena, at })
    }

    pub(super) fn is_tombstone(self) -> bool {
        self.meta() & TOMBSTONE != 0
    }

    pub(super) fn create_revision(self) -> u64 {
        if self.is_short() { self.revision() } else { self.arena.word(self.at, 2) }
    }

    pub(super) fn version(self) -> u64 {
        if self.is_short() { 1 } else { self.arena.word(self.at, 3) }
    }

    pub(super) fn value_bytes(self) -> usize {
        (self.meta() & LEN_MASK) as usize
    }

    pub(super) fn value(self) -> &'a [u8] {
        let words = if self.is_short() { VERSION_WORDS_SHORT } else { VERSION_WORDS };
        // SAFETY: `push_version` allocated these words and that many bytes; offsets of versions only come from
        // acquiring loads of links, or from the writer itself.
        unsafe { self.arena.payload(self.at, words, self.value_bytes()) }
    }

    fn is_short(self) -> bool {
        self.meta() & (TOMBSTONE | FIRST) != 0
    }

    fn meta(self) -> u32 {
        self.arena.half(self.at, VERSION_META_HALF)
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
    pub(super) fn load(arena: &Arena, at: Offset, level: usize) -> Link {
        let word = arena.word(at, NODE_WORDS + level);
        Link { to: Offset(word as u32), prefix: (word >> 32) as u32 }
    }

    /// Makes it the link of the node (or [`ROOT`]) at `at` on `level`.
    pub(super) fn store(self, writer: &mut ArenaWriter, at: Offset, level: usize) {
        let word = (u64::from(self.prefix) << 32) | u64::from(self.to.0);
        writer.set_word(at, NODE_WORDS + level, word);
    }
}

/// The first 4 bytes of a key as a number that compares like them.
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

/// The hash of `key` in this arena.
pub(super) fn key_hash(arena: &Arena, key: &[u8]) -> u64 {
    hash::hash64(seed(arena), key)
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

/// Sets the node after `at` in its bucket.
pub(super) fn set_next_in_bucket(writer: &mut ArenaWriter, at: Offset, next: Offset) {
    writer.set_half(at, NODE_BUCKET_HALF, next.0);
}

/// Hangs a new version on a node; its value is the two parts of `value` one after the other. `None` if the arena is
/// full, and then nothing happened.
pub(super) fn push_version(
    writer: &mut ArenaWriter,
    node: Offset,
    header: VersionHeader,
    value: [&[u8]; 2],
) -> Option<()> {
    let len = u32::try_from(value[0].len() + value[1].len()).expect("values are checked before");
    assert!(len as usize <= VALUE_BYTES_CEILING, "value of {len} bytes");
    let first = header.version == 1 && header.create_revision == header.revision;
    let short = header.tombstone || first;
    let at = writer.alloc(if short { VERSION_WORDS_SHORT } else { VERSION_WORDS }, &value)?;
    let flags = if header.tombstone { TOMBSTONE } else { 0 } | if first { FIRST } else { 0 };
    writer.set_word(at, 0, header.revision);
    let before = writer.arena().half(node, NODE_NEWEST_HALF);
    writer.set_half(at, VERSION_BEFORE_HALF, before);
    writer.set_half(at, VERSION_META_HALF, len | flags);
    if !short {
        writer.set_word(at, 2, header.create_revision);
        writer.set_word(at, 3, header.version);
    }
    writer.set_half(node, NODE_NEWEST_HALF, at.0);
    Some(())
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
const VERSION_WORDS_SHORT: usize = 2;
const VERSION_WORDS: usize = 4;
const VERSION_BEFORE_HALF: usize = 2;
const VERSION_META_HALF: usize = 3;
const TOMBSTONE: u32 = 1 << 31;
const FIRST: u32 = 1 << 30;
const LEN_MASK: u32 = (1 << 28) - 1;

const _: () = assert!(KEY_BYTES_MAX <= 0xffff);
const _: () = assert!(VALUE_BYTES_CEILING <= LEN_MASK as usize);
