//! Publication under the model checker: what a reader sees while keys and versions are added and buckets fill and split.
//! Run by `.ci/model`, with `--cfg model_check`.

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
fn a_key_is_found_in_a_bucket_that_fills() {
    // The next one becomes an entry of its bucket, and the one after it the beginning of its chain.
    for before in [ENTRIES - 1, ENTRIES] {
        let numbers: Vec<u64> = of_bucket(0).take(before + 1).collect();
        let (first, new) = (numbers[0], numbers[before]);
        explore(
            move |tree| put_all(tree, &numbers[..before]),
            move |tree| put(tree, new, &new.to_be_bytes()),
            move |reader| {
                let at = reader.latest();
                assert_eq!(value(reader, &first.to_be_bytes(), at), Some(first));
                let found = value(reader, &new.to_be_bytes(), at);
                assert_eq!(found, (at.0 == new).then_some(new));
            },
        );
    }
}

#[test]
fn no_key_is_missed_while_its_bucket_is_split() {
    // Bucket 0 has a chain; the first new key above this many splits it.
    const KEYS: usize = 80;
    let mut numbers: Vec<u64> = of_bucket(0).take(ENTRIES + 2).collect();
    let others = (1..8).flat_map(|bucket| of_bucket(bucket).take(10));
    numbers.extend(others.take(KEYS - numbers.len()));
    let moves = |number: &u64| hash(*number) & 8 != 0;
    let in_first = &numbers[..ENTRIES];
    let (stays, goes) = (in_first.iter().find(|n| !moves(n)), in_first.iter().find(|n| moves(n)));
    let looked_for = [*stays.unwrap(), *goes.unwrap(), numbers[ENTRIES]];
    numbers.sort_unstable();
    explore(
        move |tree| put_all(tree, &numbers),
        |tree| put(tree, u64::MAX, b"one more"),
        move |reader| {
            let at = reader.latest();
            for number in looked_for {
                assert_eq!(value(reader, &number.to_be_bytes(), at), Some(number));
            }
        },
    );
}

#[test]
fn an_image_is_read_as_it_was_while_it_is_written_to() {
    let frozen = |tree: &mut Tree| {
        let mut bytes = Vec::new();
        let read: Result<(), ()> = tree.freeze().read(4096, |block| {
            bytes.extend_from_slice(block);
            Ok(())
        });
        assert_eq!(read, Ok(()));
        bytes
    };
    let prepared = || {
        let mut tree = Tree::new(1 << 20, SEED).unwrap();
        put(&mut tree, 1, b"a");
        put(&mut tree, 2, b"c");
        tree
    };
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.max_branches = 100_000;
    model.max_duration = Some(std::time::Duration::from_secs(60));
    model.check(move || {
        let expected = frozen(&mut prepared());
        let mut tree = prepared();
        let image = tree.freeze();
        let reader = loom::thread::spawn(move || {
            let mut bytes = Vec::new();
            let read: Result<(), ()> = image.read(4096, |block| {
                bytes.extend_from_slice(block);
                Ok(())
            });
            assert_eq!(read, Ok(()));
            bytes
        });
        put(&mut tree, 3, b"a");
        put(&mut tree, 4, b"b");
        assert!(reader.join().unwrap() == expected);
    });
}

/// The entries of a bucket.
const ENTRIES: usize = 11;

fn put_all(tree: &mut Tree, numbers: &[u64]) {
    numbers.iter().for_each(|&number| put(tree, number, &number.to_be_bytes()));
}

fn hash(number: u64) -> u64 {
    crate::store::hash::hash64(SEED, &number.to_be_bytes())
}

/// Numbers whose keys belong to one of the first eight buckets, ascending.
fn of_bucket(bucket: u64) -> impl Iterator<Item = u64> {
    (1..).filter(move |&number| hash(number) % 8 == bucket)
}
