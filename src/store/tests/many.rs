//! Millions of random operations, beside a `BTreeMap` and beside readers, with swaps on the way.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::{Client, Random, apply};
use crate::disk::MemDisk;
use crate::proto::command::{Command, Op, Outcome};
use crate::raft::{Index, Term};
use crate::store::snapshot::{Dir, SnapshotMeta};
use crate::store::{Adoption, Options, Pace, Range, Reader, Store};

/// Value and revision.
type Model = BTreeMap<Vec<u8>, (Vec<u8>, u64)>;

const OPERATIONS: u64 = 2_000_000;
const KEYS: u64 = 20_000;
/// Operations between two swaps.
const SWAP_EVERY: u64 = 150_000;

fn key(random: &mut Random) -> Vec<u8> {
    // Some keys are much hotter than others.
    let number = random.below(KEYS).min(random.below(KEYS));
    format!("{:x}", number.wrapping_mul(0x9e37_79b9)).into_bytes()
}

fn step(client: &mut Client, model: &mut Model, random: &mut Random) {
    let key = key(random);
    let revision = client.store.revision().0 + 1;
    let existed = model.contains_key(&key);
    let value = [&key[..], b" at ", &revision.to_le_bytes()].concat();
    let (op, new) = match random.below(8) {
        0 | 1 => (Op::Delete { key: &key }, None),
        _ => (Op::Put { key: &key, value: &value }, Some(value.clone())),
    };
    assert_eq!(client.write(op), Outcome::Written { revision, existed });
    match new {
        Some(value) => drop(model.insert(key, (value, revision))),
        None => drop(model.remove(&key)),
    }
}

/// Reads what no writer may ever show: a value of another key or revision, rows out of order, or a state that changes.
fn look(reader: &Reader, random: &mut Random) {
    let at = reader.latest();
    let fits = |key: &[u8], value: &[u8], revision: Index| {
        assert_eq!(value, [key, b" at ", &revision.0.to_le_bytes()].concat());
        assert!(revision <= at);
    };
    for _ in 0..100 {
        let key = key(random);
        if let Some(found) = reader.get(&key, at) {
            fits(&key, found.value, found.revision);
        }
    }
    let from = key(random);
    let range = Range { from: std::ops::Bound::Included(&from), ..Range::ALL };
    let rows: Vec<_> = reader.scan(range, at).take(200).collect();
    assert!(rows.windows(2).all(|pair| pair[0].key < pair[1].key));
    for row in &rows {
        fits(row.key, row.value, row.revision);
        let found = reader.get(row.key, at).expect("a scan has seen it");
        assert_eq!((found.value, found.revision), (row.value, row.revision));
    }
    assert!(reader.scan(range, at).take(200).eq(rows));
}

/// Tells the readers that it is over, also when it is because a check failed.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn swap(client: &mut Client, dir: &Dir) {
    let below = client.store.revision().0 - 1000;
    apply(&mut client.store, &Command::Compact { below });
    let mut checkpoint = client.store.checkpoint();
    client.store.take_unread().pop().into_iter().for_each(|spare| checkpoint.reuse(spare));
    let meta = SnapshotMeta {
        cluster: [7; 16],
        index: checkpoint.revision(),
        term: Term(1),
        membership: Vec::new(),
    };
    let (_, image) = checkpoint.write(dir, &meta, &Pace::default()).unwrap();
    assert!(matches!(client.store.adopt(image), Adoption::Adopted));
    dir.retain(1).unwrap();
}

#[test]
fn millions_of_random_operations_are_like_a_sorted_map_also_for_readers_beside() {
    let options = Options { arena_bytes: 128 << 20, hash_seed: 4 };
    let mut client = Client { store: Store::new(options).unwrap(), ..Client::new() };
    client.session = super::open(&mut client.store);
    let dir = Dir::new(Arc::new(MemDisk::new()), "/snapshots".into());
    dir.create().unwrap();
    let (mut model, mut random) = (Model::new(), Random(21));
    let (done, current) = (AtomicBool::new(false), Mutex::new(client.store.reader()));
    std::thread::scope(|scope| {
        for seed in [1, 2] {
            let (done, current) = (&done, &current);
            scope.spawn(move || {
                let mut random = Random(seed);
                while !done.load(Ordering::Relaxed) {
                    let reader = current.lock().unwrap().clone();
                    (0..20).for_each(|_| look(&reader, &mut random));
                }
            });
        }
        let _ends = Ends(&done);
        for count in 1..=OPERATIONS {
            step(&mut client, &mut model, &mut random);
            if count.is_multiple_of(SWAP_EVERY) {
                swap(&mut client, &dir);
                *current.lock().unwrap() = client.store.reader();
                let reader = client.store.reader();
                let rows = reader.scan(Range::ALL, reader.latest());
                let rows = rows.map(|row| (row.key, (row.value, row.revision.0)));
                assert!(rows.eq(model.iter().map(|(key, row)| (&key[..], (&row.0[..], row.1)))));
            }
        }
    });
    assert_eq!(client.store.keys(), model.len() as u64);
}
