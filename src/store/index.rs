//! The hash index from key to node: linear hashing over buckets of one cache line each.
//!
//! **For:** point reads and overwrites, which never search the skiplist.
//!
//! **In and out:** [`find`] from any thread; [`insert`] by the writer, for new keys only (nodes are never removed).
//!
//! **Always:** the table grows by one bucket at a time: a split shares the nodes of one bucket out between two. A
//! reader whose bucket is split under its feet could miss a node; it sees that by the split number, which is odd during
//! a split and never the same after it, and then asks the skiplist instead.
//!
//! **Left out:** shrinking; a compacted image has an index of its own size.
//!
//! Buckets lie in segments: the first has 8, each further as many as all before it together, and from 2^16 on all have
//! 2^16. Fresh pages are not touched before they are used, so a new segment costs nothing there; memory that is used
//! again is cleared, but an image, for which it is kept, has all its buckets from the beginning.

use std::sync::atomic::Ordering;

use super::arena::{Arena, ArenaWriter, Offset, UNIT_BYTES, fence};
use super::bucket::{self, BUCKET_WORDS, Bucket};
use super::records::{self, Key, Node};
use super::versions::Version;

/// Makes the buckets of a new arena.
pub(super) fn init(writer: &mut ArenaWriter) {
    records::set_split_sequence(writer, 0);
    let first = new_segment(writer, FIRST_BUCKETS);
    records::set_segment(
        writer,
        0,
        first.expect("the smallest arena has room for the first segment"),
    );
}

/// Makes room for `keys` at once, in an index that holds none and that nobody reads yet: adding them then splits
/// nothing.
pub(super) fn reserve(writer: &mut ArenaWriter, keys: u64) {
    let wanted = keys.div_ceil(KEYS_PER_BUCKET).min(u64::from(BUCKETS_MAX)) as u32;
    let mut count = FIRST_BUCKETS;
    while count < wanted && grow(writer, count) {
        count += 1;
    }
    records::set_split_sequence(writer, 2 * (count - FIRST_BUCKETS));
}

/// What a look-up found out.
pub(super) enum Found<'a> {
    /// The key's node.
    Node(Node<'a>),
    /// The key has no node.
    Nothing,
    /// The writer was changing this part of the index; ask the skiplist.
    Disturbed,
}

/// Finds the node of `key`.
pub(super) fn find<'a>(arena: &'a Arena, key: Key<'_>) -> Found<'a> {
    let sequence = records::split_sequence(arena);
    let bucket = Bucket::new(arena, place(arena, bucket_of(key.hash, buckets(sequence))));
    if let Some(node) = bucket.find(key) {
        return Found::Node(node);
    }
    // Orders the loads above before the next one; pairs with the fence in `split`.
    fence(Ordering::Acquire);
    let undisturbed = sequence.is_multiple_of(2) && records::split_sequence(arena) == sequence;
    if undisturbed { Found::Nothing } else { Found::Disturbed }
}

/// Gives the keys away in groups for [`warm_up`].
pub(super) fn for_groups<'k>(
    arena: &Arena,
    mut keys: impl Iterator<Item = &'k [u8]>,
    mut each: impl FnMut(&[Key<'k>]),
) {
    loop {
        let (mut group, mut len) = ([Key { bytes: &[], hash: 0 }; WARM_UP_GROUP], 0);
        for (place, key) in group.iter_mut().zip(&mut keys) {
            (*place, len) = (Key::new(arena, key), len + 1);
        }
        if len > 0 {
            each(&group[..len]);
        }
        if len < WARM_UP_GROUP {
            return;
        }
    }
}

/// Touches what [`find`] will touch for these keys, and the newest versions; tells which of them have no node, by the
/// bits of the result. The loads of one key wait for each other, those of different keys do not: a group costs little
/// more than one key. At the end `next` may ask for what it needs of the versions.
pub(super) fn warm_up<'a>(arena: &'a Arena, keys: &[Key<'_>], next: impl Fn(Version<'a>)) -> u32 {
    assert!(keys.len() <= WARM_UP_GROUP, "{} keys are no group", keys.len());
    let count = buckets(records::split_sequence(arena));
    let mut places = [Offset::NULL; WARM_UP_GROUP];
    let mut touched = 0;
    for (key, at) in keys.iter().zip(&mut places) {
        *at = place(arena, bucket_of(key.hash, count));
        touched ^= arena.word(*at, 0) as u32;
    }
    for (key, &at) in keys.iter().zip(&places) {
        Bucket::new(arena, at).prefetch_candidate(key.hash);
    }
    let mut absent = 0;
    for (i, (key, at)) in keys.iter().zip(&mut places).enumerate() {
        let found = Bucket::new(arena, *at).find(*key);
        *at = found.map_or(Offset::NULL, Node::newest_offset);
        absent |= u32::from(found.is_none()) << i;
    }
    let newest = places[..keys.len()].iter().filter(|at| !at.is_null());
    let newest = newest.map(|&at| Version { arena, at });
    touched ^= newest.clone().fold(0, |touched, version| touched ^ version.revision() as u32);
    newest.for_each(next);
    // The loads must not be left out, though nothing needs what they give.
    std::hint::black_box(touched);
    absent
}

/// Asks for the bucket of a new key.
pub(super) fn prefetch(arena: &Arena, key: Key<'_>) {
    let count = buckets(records::split_sequence(arena));
    arena.prefetch(place(arena, bucket_of(key.hash, count)), 0);
}

/// Adds the node of a new key, which has this hash; `keys` is the number of nodes with it.
pub(super) fn insert(
    writer: &mut ArenaWriter,
    next_split: &mut NextSplit,
    hash: u64,
    node: Offset,
    keys: u64,
) {
    let mut count = buckets(records::split_sequence(writer.arena()));
    if keys > u64::from(count) * KEYS_PER_BUCKET {
        split(writer, count);
        count = buckets(records::split_sequence(writer.arena()));
        *next_split = NextSplit::prepare(writer.arena(), count);
    }
    let at = place(writer.arena(), bucket_of(hash, count));
    bucket::push(writer, at, node, hash);
    next_split.step(writer.arena());
}

/// The writer's preparations for the next split: all nodes of the bucket must be read for their hashes. Those of its chain
/// are only found one after the other, so one of them is asked for with each new key until then.
#[derive(Default)]
pub(super) struct NextSplit {
    /// The node of the chain that was asked for last.
    chain: Option<Offset>,
}

impl NextSplit {
    /// Asks for what the split to one more than `count` buckets will touch, and for the bucket of the one after it.
    fn prepare(arena: &Arena, count: u32) -> NextSplit {
        let from = |count: u32| place(arena, count - (1 << count.ilog2()));
        let bucket = Bucket::new(arena, from(count));
        bucket.prefetch_nodes();
        arena.prefetch(from(count + 1), 0);
        NextSplit { chain: bucket.chain().map(|node| node.at) }
    }

    fn step(&mut self, arena: &Arena) {
        let next = self.chain.and_then(|at| Node { arena, at }.next_in_bucket());
        next.into_iter().for_each(Node::prefetch);
        self.chain = next.map(|node| node.at);
    }
}

/// Adds bucket number `count` and moves to it what belongs there. Does nothing if there is no room: the index gets
/// slower, and the leader refuses growth long before.
fn split(writer: &mut ArenaWriter, count: u32) {
    if count >= BUCKETS_MAX || !grow(writer, count) {
        return;
    }
    let sequence = records::split_sequence(writer.arena());
    records::set_split_sequence(writer, sequence + 1);
    // Orders the store above before those below; pairs with the fence in `find`.
    fence(Ordering::Release);
    let ends = [count - (1 << count.ilog2()), count].map(|end| place(writer.arena(), end));
    bucket::split(writer, ends, |hash| bucket_of(hash, count + 1) == count);
    records::set_split_sequence(writer, sequence + 2);
}

/// Makes the segment of `bucket` if it is the first in it; whether there was room.
fn grow(writer: &mut ArenaWriter, bucket: u32) -> bool {
    let (segment, place) = place_of(bucket);
    if place > 0 {
        return true;
    }
    match new_segment(writer, bucket.min(SEGMENT_BUCKETS_MAX)) {
        Some(at) => records::set_segment(writer, segment, at),
        None => return false,
    }
    true
}

/// Allocates a segment, at the beginning of a cache line.
fn new_segment(writer: &mut ArenaWriter, buckets: u32) -> Option<Offset> {
    let next = (writer.arena().used_bytes() / UNIT_BYTES as u64) as usize;
    let skip = next.next_multiple_of(BUCKET_WORDS) - next;
    let at = writer.alloc_zeros(skip + buckets as usize * BUCKET_WORDS)?;
    Some(Offset(at.0 + skip as u32))
}

/// The number of buckets after this many splits.
#[inline]
fn buckets(split_sequence: u32) -> u32 {
    FIRST_BUCKETS + split_sequence / 2
}

/// The bucket of a hash among `count`.
#[inline]
fn bucket_of(hash: u64, count: u32) -> u32 {
    let low = hash as u32;
    let level = count.ilog2();
    let wide = low & ((2 << level) - 1);
    if wide < count { wide } else { low & ((1 << level) - 1) }
}

/// The segment of a bucket, and the bucket's place in it.
#[inline]
fn place_of(bucket: u32) -> (usize, usize) {
    if bucket < FIRST_BUCKETS {
        return (0, bucket as usize);
    }
    let level = bucket.ilog2();
    if level < SEGMENT_BUCKETS_MAX.ilog2() {
        let segment = level - FIRST_BUCKETS.ilog2() + 1;
        return (segment as usize, (bucket - (1 << level)) as usize);
    }
    let segment = SEGMENTS_GROWING + bucket / SEGMENT_BUCKETS_MAX - 1;
    (segment as usize, (bucket % SEGMENT_BUCKETS_MAX) as usize)
}

/// Where a bucket lies.
#[inline]
fn place(arena: &Arena, bucket: u32) -> Offset {
    let (segment, place) = place_of(bucket);
    Offset(records::segment(arena, segment).0 + (place * BUCKET_WORDS) as u32)
}

/// As many keys as a processor can have misses under way, and a few more.
const WARM_UP_GROUP: usize = 16;
const FIRST_BUCKETS: u32 = 8;
const SEGMENT_BUCKETS_MAX: u32 = 1 << 16;
/// Segments before those of the largest size.
const SEGMENTS_GROWING: u32 = SEGMENT_BUCKETS_MAX.ilog2() - FIRST_BUCKETS.ilog2() + 1;
/// As many as the segments have.
const BUCKETS_MAX: u32 =
    (records::SEGMENTS_MAX as u32 - SEGMENTS_GROWING + 1) * SEGMENT_BUCKETS_MAX;
/// Of the 11 that fit: fewer take more memory, more make longer chains.
const KEYS_PER_BUCKET: u64 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_through_the_segments() {
        let mut expected = (0, 0);
        for bucket in 0..BUCKETS_MAX {
            let (segment, place) = place_of(bucket);
            assert!(
                (segment, place) == expected || (segment, place) == (expected.0 + 1, 0),
                "bucket {bucket} at {segment}, {place}"
            );
            expected = (segment, place + 1);
        }
    }

    #[test]
    fn a_split_moves_keys_of_one_bucket_only() {
        for count in [8_u32, 9, 64, 65, 100, 127, 128, 200] {
            for hash in (0..5000_u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 7) {
                let (old, new) = (bucket_of(hash, count), bucket_of(hash, count + 1));
                assert!(old < count);
                assert!(new == old || (new == count && old == count - (1 << count.ilog2())));
            }
        }
    }
}
