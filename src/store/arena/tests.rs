//! Memory that is used again.

use super::*;

#[test]
fn recycled_memory_is_the_same_and_what_is_allocated_in_it_is_as_in_fresh_memory() {
    let bytes = ARENA_BYTES_MIN;
    let dirty = || {
        let mut old = Arena::reserve(bytes).unwrap();
        while old.alloc(&[0; 3], [&[0xff; 100], &[]]).is_some_and(|at| {
            (0..3).for_each(|word| old.set_word(at, word, u64::MAX));
            true
        }) {}
        old.publish(9);
        old.set_oldest(9);
        old
    };
    for keep in [None, Some(0), Some(5000), Some(bytes)] {
        let old = dirty();
        let place = old.arena().map.as_ptr();
        let mut old = old.arena;
        if let Some(keep) = keep {
            Arena::shrink(&mut old, keep);
        }
        let mut new = Arena::recycle(old).expect("nobody else has it");
        assert_eq!(new.arena().map.as_ptr(), place);
        let arena = new.arena();
        assert_eq!((arena.used_bytes(), arena.published(), arena.oldest()), (8, 0, 0));
        let mut fresh = Arena::reserve(bytes).unwrap();
        for len in (0..1000).chain([9999]) {
            let value = vec![7; len];
            let words = &[9; 4][..len % 4];
            assert_eq!(new.alloc(words, [&value, &[]]), fresh.alloc(words, [&value, &[]]));
            assert_eq!(new.alloc_zeros(len % 5), fresh.alloc_zeros(len % 5));
        }
        assert!(new.image() == fresh.image(), "keeping {keep:?}");
    }
}

#[test]
fn an_arena_that_somebody_reads_is_neither_recycled_nor_shrunk() {
    let mut writer = Arena::reserve(ARENA_BYTES_MIN).unwrap();
    let at = writer.alloc(&[], [&[1; 9000], &[]]).unwrap();
    let reader = Arc::clone(writer.arena());
    let mut old = Arc::clone(writer.arena());
    Arena::shrink(&mut old, 0);
    assert!(Arena::recycle(old).is_none());
    // SAFETY: the record was allocated with this payload.
    assert_eq!(unsafe { reader.payload(at, 0, 9000) }, [1; 9000]);
}
