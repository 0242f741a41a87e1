//! Publication under the model checker: what a reader sees while keys and versions are added and buckets split. Run by
//! `.ci/model`, with `--cfg model_check`.

use std::sync::Arc;

use crate::raft::Index;
use crate::store::tree::Tree;
use crate::store::{Range, Reader};

const SEED: u64 = 7;

/// Tries orders of a writer that does `write` and a reader that does `read`, after `prepare`.
fn explore(
    prepare: impl Fn(&mut Tree) + Send + Sync + 'static,
    write: impl Fn(&mut Tree) + Send + Sync + 'static,
    read: impl Fn(&Reader) + Send + Sync + 'static,
) {
    let (prepare, write, read) = (Arc::new(prepare), Arc::new(write), Arc::new(read));
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.max_branches = 100_000;
    model.max_duration = Some(std::time::Duration::from_secs(60));
    model.check(move || {
        let mut tree = Tree::new(1 << 20, SEED).unwrap();
        prepare(&mut tree);
        let reader = Reader::new(Arc::clone(tree.arena()));
        let read = Arc::clone(&read);
        let other = loom::thread::spawn(move || read(&reader));
        write(&mut tree);
        other.join().unwrap();
    });
}

fn put(tree: &mut Tree, revision: u64, key: &[u8]) {
    tree.put(revision, key, &revision.to_le_bytes());
    tree.publish(revision);
}

fn value(reader: &Reader, key: &[u8], at: Index) -> Option<u64> {
    let found = reader.get(key, at)?;
    assert_eq!(found.value, found.revision.0.to_le_bytes());
    Some(found.revision.0)
}

#[test]
fn an_overwritten_key_has_the_value_of_the_revision_that_is_read() {
    explore(
        |tree| put(tree, 1, b"key"),
        |tree| {
            put(tree, 2, b"key");
            put(tree, 3, b"key");
        },
        |reader| {
            let at = reader.latest();
            assert_eq!(value(reader, b"key", at), Some(at.0));
            assert_eq!(value(reader, b"key", Index(1)), Some(1));
        },
    );
}

#[test]
fn a_new_key_is_there_in_both_directions_when_its_revision_is() {
    explore(
        |tree| {
            put(tree, 1, b"a");
            put(tree, 2, b"c");
        },
        |tree| put(tree, 3, b"b"),
        |reader| {
            let at = reader.latest();
            let expected: &[&[u8]] = if at.0 == 3 { &[b"a", b"b", b"c"] } else { &[b"a", b"c"] };
            let rows: Vec<_> = reader.scan(Range::ALL, at).map(|row| row.key).collect();
            assert_eq!(rows, expected);
            let reverse = Range { reverse: true, ..Range::ALL };
            let rows: Vec<_> = reader.scan(reverse, at).map(|row| row.key).collect();
            assert!(rows.iter().rev().eq(expected));
            assert_eq!(value(reader, b"b", at).is_some(), at.0 == 3);
        },
    );
}

#[test]
fn no_key_is_missed_while_its_bucket_is_split() {
    // The first new key above this many splits bucket 0.
    const KEYS: u64 = 96;
    explore(
        |tree| (1..=KEYS).for_each(|number| put(tree, number, &number.to_be_bytes())),
        |tree| put(tree, KEYS + 1, b"one more"),
        |reader| {
            let at = reader.latest();
            for number in in_first_bucket(KEYS) {
                assert_eq!(value(reader, &number.to_be_bytes(), at), Some(number));
            }
        },
    );
}

/// Two of the keys that the split moves or passes.
fn in_first_bucket(keys: u64) -> Vec<u64> {
    let hash = |number: &u64| super::super::hash::hash64(SEED, &number.to_be_bytes());
    (1..=keys).filter(|number| hash(number) & 63 == 0).take(2).collect()
}
