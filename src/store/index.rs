//! The hash index from key to node: linear hashing with chains through the nodes.
//!
//! **For:** point reads and overwrites, which never search the skiplist.
//!
//! **In and out:** [`find`] from any thread; [`insert`] by the writer, for new keys only (nodes are never removed).
//!
//! **Always:** a chain goes from later to earlier allocated nodes, so it can have no circle whatever a reader sees. The
//! table grows by one bucket at a time: a split moves the nodes of one chain. A reader whose chain is split under its
//! feet could miss a node; it sees that by the split number, which is odd during a split and never the same after it,
//! and then asks the skiplist instead.
//!
//! **Left out:** shrinking; a compacted image has an index of its own size.
//!
//! Buckets are 4 bytes and lie in segments: the first has 64, each further as many as all before it together, and from
//! 2^20 on all have 2^20. Fresh pages are not touched before they are used, so a new segment costs nothing.

use std::sync::atomic::{Ordering, fence};

use super::arena::{Arena, ArenaWriter, Offset};
use super::records::{self, Node};

/// Makes the buckets of a new arena.
pub(super) fn init(writer: &mut ArenaWriter) {
    let words = FIRST_BUCKETS as usize / 2;
    let at = writer.alloc(words, &[]).expect("the smallest arena has room for the first segment");
    records::set_segment(writer, 0, at);
}

/// Makes room for `keys` at once, in an arena that holds none and that nobody reads yet: adding them then splits nothing.
pub(super) fn reserve(writer: &mut ArenaWriter, keys: u64) {
    let wanted = (keys * LOAD_BUCKETS).div_ceil(LOAD_KEYS).min(u64::from(BUCKETS_MAX)) as u32;
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
pub(super) fn find<'a>(arena: &'a Arena, key: &[u8]) -> Found<'a> {
    let sequence = records::split_sequence(arena);
    let bucket = bucket_of(records::key_hash(arena, key), buckets(sequence));
    let mut at = head(arena, bucket);
    while let Some(node) = Node::at(arena, at) {
        if node.key() == key {
            return Found::Node(node);
        }
        at = node.next_in_bucket();
    }
    // Orders the loads above before the next one; pairs with the fence in `split`.
    fence(Ordering::Acquire);
    let undisturbed = sequence.is_multiple_of(2) && records::split_sequence(arena) == sequence;
    if undisturbed { Found::Nothing } else { Found::Disturbed }
}

/// Touches what [`find`] will touch for these keys, and the newest versions. The loads of one key wait for each other,
/// those of different keys do not: a group costs little more than one key. If the keys are to be written, also what new ones need.
pub(super) fn warm_up<'k>(arena: &Arena, keys: impl Iterator<Item = &'k [u8]>, writes: bool) {
    let mut count = buckets(records::split_sequence(arena));
    let now = count;
    let mut keys = keys.map(|key| bucket_of(records::key_hash(arena, key), now));
    loop {
        let mut places = [0; WARM_UP_GROUP];
        let mut len = 0;
        for (place, bucket) in places.iter_mut().zip(&mut keys) {
            *place = bucket;
            len += 1;
        }
        let places = &mut places[..len];
        places.iter_mut().for_each(|place| *place = head(arena, *place).0);
        let (mut nexts, mut touched) = ([0; WARM_UP_GROUP], 0);
        // Where a bucket is empty a key is new, and new keys split buckets.
        if writes && places.contains(&0) {
            touched ^= touch_next_splits(arena, count, len);
            count += len as u32;
        }
        for (place, next) in places.iter_mut().zip(&mut nexts) {
            let Some(node) = Node::at(arena, Offset(*place)) else { continue };
            (*place, *next) = (node.newest_offset().0, node.next_in_bucket().0);
            // The key may reach into the next line of the cache.
            touched ^= node.key().last().copied().map_or(0, u32::from);
        }
        for (&version, &next) in places.iter().zip(&nexts) {
            let version = Offset(version);
            touched ^= arena.half(version, 0) ^ arena.half(version, VERSION_HALVES - 1);
            touched ^= Node::at(arena, Offset(next)).map_or(0, |node| node.newest_offset().0);
        }
        // The loads must not be left out, though nothing needs what they give.
        std::hint::black_box(touched);
        if len < WARM_UP_GROUP {
            return;
        }
    }
}

/// Touches the keys in the buckets that are split next.
fn touch_next_splits(arena: &Arena, count: u32, splits: usize) -> u32 {
    let mut touched = 0;
    let from = count - (1 << count.ilog2());
    for bucket in (from..count).take(splits) {
        if let Some(node) = Node::at(arena, head(arena, bucket)) {
            touched ^= node.next_in_bucket().0;
            touched ^= node.key().last().copied().map_or(0, u32::from);
        }
    }
    touched
}

/// Adds the node of a new key; `keys` is the number of nodes with it.
pub(super) fn insert(writer: &mut ArenaWriter, key: &[u8], node: Offset, keys: u64) {
    let count = buckets(records::split_sequence(writer.arena()));
    if keys * LOAD_BUCKETS > u64::from(count) * LOAD_KEYS {
        split(writer, count);
    }
    let count = buckets(records::split_sequence(writer.arena()));
    let bucket = bucket_of(records::key_hash(writer.arena(), key), count);
    let first = head(writer.arena(), bucket);
    records::set_next_in_bucket(writer, node, first);
    set_head(writer, bucket, node);
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
    let level = count.ilog2();
    let from = count - (1 << level);
    let mut ends = [(from, None), (count, None)];
    let mut at = head(writer.arena(), from);
    while let Some(node) = Node::at(writer.arena(), at) {
        let (next, hash) = (node.next_in_bucket(), records::key_hash(writer.arena(), node.key()));
        assert!(next < at, "chains go from later to earlier nodes");
        let moves = bucket_of(hash, count + 1) == count;
        append(writer, &mut ends[usize::from(moves)], at);
        at = next;
    }
    for end in &mut ends {
        append(writer, end, Offset::NULL);
    }
    records::set_split_sequence(writer, sequence + 2);
}

/// Adds a node to a bucket's chain that is being made, after its last node if it has one.
fn append(writer: &mut ArenaWriter, (bucket, last): &mut (u32, Option<Offset>), node: Offset) {
    match *last {
        None => set_head(writer, *bucket, node),
        Some(last) => records::set_next_in_bucket(writer, last, node),
    }
    *last = Some(node);
}

/// Makes the segment of `bucket` if it is the first in it; whether there was room.
fn grow(writer: &mut ArenaWriter, bucket: u32) -> bool {
    let (segment, place) = place_of(bucket);
    if place > 0 {
        return true;
    }
    let size = if segment == 0 { FIRST_BUCKETS } else { bucket.min(SEGMENT_BUCKETS_MAX) };
    match writer.alloc(size as usize / 2, &[]) {
        Some(at) => records::set_segment(writer, segment, at),
        None => return false,
    }
    true
}

/// The number of buckets after this many splits.
fn buckets(split_sequence: u32) -> u32 {
    FIRST_BUCKETS + split_sequence / 2
}

/// The bucket of a hash among `count`.
fn bucket_of(hash: u64, count: u32) -> u32 {
    let low = hash as u32;
    let level = count.ilog2();
    let wide = low & ((2 << level) - 1);
    if wide < count { wide } else { low & ((1 << level) - 1) }
}

/// The segment of a bucket, and the bucket's place in it.
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

fn head(arena: &Arena, bucket: u32) -> Offset {
    let (segment, place) = place_of(bucket);
    Offset(arena.half(records::segment(arena, segment), place))
}

fn set_head(writer: &mut ArenaWriter, bucket: u32, node: Offset) {
    let (segment, place) = place_of(bucket);
    let at = records::segment(writer.arena(), segment);
    writer.set_half(at, place, node.0);
}

/// As many keys as a processor can have misses under way, and a few more.
const WARM_UP_GROUP: usize = 16;
/// The longest head of a version, in halves.
const VERSION_HALVES: usize = 10;
const FIRST_BUCKETS: u32 = 64;
const SEGMENT_BUCKETS_MAX: u32 = 1 << 20;
/// Segments before those of the largest size.
const SEGMENTS_GROWING: u32 = SEGMENT_BUCKETS_MAX.ilog2() - FIRST_BUCKETS.ilog2() + 1;
/// More keys than 32 GiB can hold.
const BUCKETS_MAX: u32 = 1 << 29;
/// At most 3 keys for 2 buckets: fewer cost a split for nearly every new key, more a step for every second look-up.
const LOAD_KEYS: u64 = 3;
const LOAD_BUCKETS: u64 = 2;

const _: () = assert!(
    SEGMENTS_GROWING + BUCKETS_MAX / SEGMENT_BUCKETS_MAX - 1 <= records::SEGMENTS_MAX as u32
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_through_the_segments() {
        let mut expected = (0, 0);
        for bucket in 0..5 << 20 {
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
        for count in [64_u32, 65, 100, 127, 128, 200] {
            for hash in (0..5000_u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 7) {
                let (old, new) = (bucket_of(hash, count), bucket_of(hash, count + 1));
                assert!(old < count);
                assert!(new == old || (new == count && old == count - (1 << count.ilog2())));
            }
        }
    }
}
