//! One bucket of the hash index: a line of the processor's cache with a few bits of each node's hash beside its offset,
//! so that a look-up goes to no node but the one that it seeks.
//!
//! **For:** `index`, which knows the bucket of a hash.
//!
//! **In and out:** [`Bucket`] looks, from any thread. The writer adds one node with [`push`], and makes a bucket anew
//! with a [`Filling`].
//!
//! **Always:** what leads to a node is stored after it. The nodes that do not fit are a chain, from later to earlier
//! allocated ones, so it can have no circle whatever a reader sees.
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 11 | tags: bits 32 to 39 of the hash of each entry's node, but 1 instead of 0; 0 is no entry; used from the first on |
//! | 11 | 1 | unused |
//! | 12 | 4 | filter: for each node of the chain the bit whose number is bits 40 to 44 of its hash |
//! | 16 | 4 | first node of the chain |
//! | 20 | 11 x 4 | the entries' nodes |

use super::arena::{Arena, ArenaWriter, Offset};
use super::records::{self, Key, Node};

/// The length of a bucket in units of the arena. It lies on a multiple of that.
pub(super) const BUCKET_WORDS: usize = 8;

/// A bucket, seen in its arena.
#[derive(Clone, Copy)]
pub(super) struct Bucket<'a> {
    arena: &'a Arena,
    at: Offset,
}

impl<'a> Bucket<'a> {
    #[inline]
    pub(super) fn new(arena: &'a Arena, at: Offset) -> Bucket<'a> {
        Bucket { arena, at }
    }

    /// The node of `key`.
    #[inline]
    pub(super) fn find(self, key: Key<'_>) -> Option<Node<'a>> {
        self.candidates(key.hash).find(|node| node.key() == key.bytes)
    }

    /// The nodes that may have this hash: nearly always one if one has it, and none if none has it.
    #[inline]
    fn candidates(self, hash: u64) -> impl Iterator<Item = Node<'a>> {
        let tags = Tags::load(self.arena, self.at);
        let entries = tags.entries(hash).filter_map(move |entry| self.entry(entry));
        let chain = if tags.has_in_chain(hash) { self.chain() } else { None };
        entries.chain(std::iter::successors(chain, |node| node.next_in_bucket()))
    }

    /// All nodes: the entries, then the chain.
    fn nodes(self) -> impl Iterator<Item = Node<'a>> {
        self.entries().chain(std::iter::successors(self.chain(), |node| node.next_in_bucket()))
    }

    /// Asks for the first node that may have this hash, and looks at none.
    #[inline]
    pub(super) fn prefetch_candidate(self, hash: u64) {
        let tags = Tags::load(self.arena, self.at);
        let candidate = match tags.entries(hash).next() {
            Some(entry) => self.entry(entry),
            None if tags.has_in_chain(hash) => self.chain(),
            None => None,
        };
        candidate.into_iter().for_each(Node::prefetch);
    }

    /// Asks for the nodes of the entries, and the first of the chain.
    pub(super) fn prefetch_nodes(self) {
        self.entries().chain(self.chain()).for_each(Node::prefetch);
    }

    fn entries(self) -> impl Iterator<Item = Node<'a>> {
        (0..Tags::load(self.arena, self.at).len()).map_while(move |entry| self.entry(entry))
    }

    #[inline]
    fn entry(self, entry: usize) -> Option<Node<'a>> {
        Node::at(self.arena, Offset(self.arena.half(self.at, ENTRIES_HALF + entry)))
    }

    /// The first node of the chain.
    #[inline]
    pub(super) fn chain(self) -> Option<Node<'a>> {
        Node::at(self.arena, Offset(self.arena.half(self.at, CHAIN_HALF)))
    }
}

/// Adds a node that was allocated after all others of the bucket at `at`.
pub(super) fn push(writer: &mut ArenaWriter, at: Offset, node: Offset, hash: u64) {
    let mut tags = Tags::load(writer.arena(), at);
    let len = tags.len();
    if len < ENTRIES {
        writer.set_half(at, ENTRIES_HALF + len, node.0);
        tags.add(len, hash);
    } else {
        let first = Offset(writer.arena().half(at, CHAIN_HALF));
        records::set_next_in_bucket(writer, node, first);
        writer.set_half(at, CHAIN_HALF, node.0);
        tags.add_to_chain(hash);
    }
    tags.store(writer, at);
}

/// Shares the nodes of `from` out between it and the empty bucket `to`, into which those go whose hash `moves`.
pub(super) fn split(
    writer: &mut ArenaWriter,
    [from, to]: [Offset; 2],
    moves: impl Fn(u64) -> bool,
) {
    let arena = std::sync::Arc::clone(writer.arena());
    let mut fillings = [from, to].map(Filling::new);
    // What is read is never overwritten before: a filling has at most as many entries as nodes were read.
    for node in Bucket::new(&arena, from).nodes() {
        let hash = Key::new(&arena, node.key()).hash;
        fillings[usize::from(moves(hash))].add(writer, node.at, hash);
    }
    fillings.into_iter().for_each(|filling| filling.finish(writer));
}

/// A bucket whose content is made.
struct Filling {
    at: Offset,
    tags: Tags,
    /// Entries in use.
    len: usize,
    /// The last node of the chain.
    last: Option<Offset>,
}

impl Filling {
    fn new(at: Offset) -> Filling {
        Filling { at, tags: Tags(0), len: 0, last: None }
    }

    fn add(&mut self, writer: &mut ArenaWriter, node: Offset, hash: u64) {
        if self.len < ENTRIES {
            writer.set_half(self.at, ENTRIES_HALF + self.len, node.0);
            self.tags.add(self.len, hash);
            self.len += 1;
            return;
        }
        self.end_chain_with(writer, node);
        self.last = Some(node);
        self.tags.add_to_chain(hash);
    }

    fn end_chain_with(&self, writer: &mut ArenaWriter, node: Offset) {
        match self.last {
            None => writer.set_half(self.at, CHAIN_HALF, node.0),
            Some(last) => {
                assert!(node < last, "chains go from later to earlier nodes");
                records::set_next_in_bucket(writer, last, node);
            }
        }
    }

    fn finish(self, writer: &mut ArenaWriter) {
        self.end_chain_with(writer, Offset::NULL);
        self.tags.store(writer, self.at);
    }
}

/// The tags and the filter of a bucket, as one number.
#[derive(Clone, Copy)]
struct Tags(u128);

impl Tags {
    #[inline]
    fn load(arena: &Arena, at: Offset) -> Tags {
        Tags(u128::from(arena.word(at, 0)) | u128::from(arena.word(at, 1)) << 64)
    }

    fn store(self, writer: &mut ArenaWriter, at: Offset) {
        writer.set_word(at, 0, self.0 as u64);
        writer.set_word(at, 1, (self.0 >> 64) as u64);
    }

    /// How many entries are in use.
    #[inline]
    fn len(self) -> usize {
        let bits = u128::BITS - (self.0 & IN_USE).leading_zeros();
        bits.div_ceil(8) as usize
    }

    /// The entries with the tag of `hash`.
    #[inline]
    fn entries(self, hash: u64) -> impl Iterator<Item = usize> {
        // A byte of `differ` is zero where the tag is equal; then, and only then, none of the three sets its high bit.
        let differ = self.0 ^ (ONES * tag(hash));
        let mut equal = !(((differ & LOW_BITS) + LOW_BITS) | differ | LOW_BITS) & IN_USE;
        std::iter::from_fn(move || {
            let entry = (equal != 0).then(|| equal.trailing_zeros() as usize / 8);
            equal &= equal.wrapping_sub(1);
            entry
        })
    }

    #[inline]
    fn has_in_chain(self, hash: u64) -> bool {
        self.0 & filter_bit(hash) != 0
    }

    /// Adds an entry behind the `len` that are in use.
    fn add(&mut self, len: usize, hash: u64) {
        self.0 |= tag(hash) << (8 * len);
    }

    fn add_to_chain(&mut self, hash: u64) {
        self.0 |= filter_bit(hash);
    }
}

#[inline]
fn tag(hash: u64) -> u128 {
    u128::from((hash >> 32) as u8).max(1)
}

#[inline]
fn filter_bit(hash: u64) -> u128 {
    1 << (FILTER_SHIFT + (hash >> 40) % 32)
}

/// As many as fit.
const ENTRIES: usize = 11;
/// The bits of all tags.
const IN_USE: u128 = (1 << (8 * ENTRIES)) - 1;
const FILTER_SHIFT: u64 = 96;
const CHAIN_HALF: usize = 4;
const ENTRIES_HALF: usize = 5;
const ONES: u128 = u128::MAX / 255;
const LOW_BITS: u128 = ONES * 127;

const _: () = assert!(ENTRIES_HALF + ENTRIES == 2 * BUCKET_WORDS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_found_by_its_tag_and_by_no_other() {
        let hashes: Vec<u64> = (0..11).map(|i| (i * 77 % 256) << 32).collect();
        let mut tags = Tags(0);
        for (entry, &hash) in hashes.iter().enumerate() {
            assert_eq!(tags.len(), entry);
            tags.add(entry, hash);
        }
        assert_eq!(tags.len(), ENTRIES);
        for byte in 0..256_u64 {
            let hash = byte << 32;
            let expected = hashes.iter().position(|&other| tag(other) == tag(hash));
            assert_eq!(tags.entries(hash).collect::<Vec<_>>(), Vec::from_iter(expected));
        }
        let of_chain = 31 << 40;
        tags.add_to_chain(of_chain);
        assert_eq!(tags.len(), ENTRIES);
        assert!(tags.has_in_chain(of_chain) && !tags.has_in_chain(30 << 40));
        assert_eq!(tags.entries(0).count(), 1);
    }
}
