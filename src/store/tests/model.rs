//! The store against a `BTreeMap`, also while others read.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Client, OPTIONS, Random};
use crate::proto::command::{Op, Outcome};
use crate::proto::limits::{KEY_BYTES_MAX, VALUE_BYTES_CEILING};
use crate::raft::Index;
use crate::store::{Options, Range, Reader, Row, Store};

/// Value, revision, create revision, version.
type Seen = (Vec<u8>, u64, u64, u64);
type Model = BTreeMap<Vec<u8>, Seen>;

fn random_key(random: &mut Random) -> Vec<u8> {
    // Short keys over a small alphabet with zeros: prefixes of each other and of the 4-byte prefix.
    let len = 1 + random.below(7);
    (0..len).map(|_| [0, 1, b'a', 0xff][random.below(4) as usize]).collect()
}

fn random_step(client: &mut Client, model: &mut Model, random: &mut Random) {
    let key = random_key(random);
    let len = random.below(40);
    let value = random.bytes(len);
    let revision = client.store.revision().0 + 1;
    let existed = model.contains_key(&key);
    let (op, new) = match random.below(4) {
        0 => (Op::Delete { key: &key }, None),
        1 => {
            let old = model.get(&key).map(|old| old.0.clone()).unwrap_or_default();
            (Op::Append { key: &key, value: &value }, Some([old, value.clone()].concat()))
        }
        _ => (Op::Put { key: &key, value: &value }, Some(value.clone())),
    };
    assert_eq!(client.write(op), Outcome::Written { revision, existed });
    match new {
        None => drop(model.remove(&key)),
        Some(value) => {
            let (created, version) = model.get(&key).map_or((revision, 0), |old| (old.2, old.3));
            model.insert(key, (value, revision, created, version + 1));
        }
    }
}

fn check(reader: &Reader, at: Index, model: &Model, random: &mut Random) {
    for _ in 0..20 {
        let key = random_key(random);
        let seen = reader.get(&key, at).map(|seen| {
            (seen.value.to_vec(), seen.revision.0, seen.create_revision.0, seen.version)
        });
        assert_eq!(seen.as_ref(), model.get(&key), "{key:?} at {at}");
    }
    for _ in 0..10 {
        let (low, high) = (random_key(random), random_key(random));
        let bound = |kind, key| match kind {
            0 => Bound::Included(key),
            1 => Bound::Excluded(key),
            _ => Bound::Unbounded,
        };
        let (from, to) = (bound(random.below(3), &low[..]), bound(random.below(3), &high[..]));
        let inside = |key: &[u8]| {
            (match from {
                Bound::Included(low) => low <= key,
                Bound::Excluded(low) => low < key,
                Bound::Unbounded => true,
            }) && (match to {
                Bound::Included(high) => key <= high,
                Bound::Excluded(high) => key < high,
                Bound::Unbounded => true,
            })
        };
        let mut expected: Vec<_> = model.iter().filter(|(key, _)| inside(key)).collect();
        let forward = Range { from, to, reverse: false };
        assert_rows(reader.scan(forward, at), &expected);
        expected.reverse();
        assert_rows(reader.scan(Range { reverse: true, ..forward }, at), &expected);
        let target = random_key(random);
        let mut scan = reader.scan(forward, at);
        scan.seek(&target);
        expected.reverse();
        expected.retain(|(key, _)| **key >= target);
        assert_rows(scan, &expected);
    }
}

fn assert_rows<'a>(rows: impl Iterator<Item = Row<'a>>, expected: &[(&Vec<u8>, &Seen)]) {
    let seen: Vec<_> = rows.map(|row| (row.key, row.value, row.revision.0)).collect();
    let expected: Vec<_> =
        expected.iter().map(|(key, value)| (&key[..], &value.0[..], value.1)).collect();
    assert_eq!(seen, expected);
}

#[test]
fn writes_that_were_announced_in_lots_are_like_those_that_were_not() {
    let (mut client, mut random) = (Client::new(), Random(12));
    let mut model = BTreeMap::new();
    for lot in 0..4000_u64 {
        let len = 1 + random.below(40);
        let mut keys: Vec<Vec<u8>> = (0..len).map(|_| random_key(&mut random)).collect();
        let commands: Vec<_> =
            keys.iter().map(|key| client.command(Op::Put { key, value: b"" })).collect();
        client.store.warm_up(commands.iter());
        // Some are refused, some come twice, and not always in that order.
        keys.retain(|_| random.below(8) > 0);
        if lot % 4 == 0 {
            keys.reverse();
        }
        for key in keys {
            let (revision, existed) = (client.store.revision().0 + 1, model.contains_key(&key));
            let outcome = client.put(&key, &revision.to_le_bytes());
            assert_eq!(outcome, Outcome::Written { revision, existed });
            model.insert(key, revision);
        }
        if lot % 100 == 0 {
            let reader = client.store.reader();
            let rows = reader.scan(Range::ALL, reader.latest());
            let rows = rows.map(|row| (row.key.to_vec(), row.revision.0));
            assert!(rows.eq(model.iter().map(|(key, revision)| (key.clone(), *revision))));
            let found = |key| reader.get(key, reader.latest()).map(|found| found.revision.0);
            assert!(model.iter().all(|(key, revision)| found(key) == Some(*revision)));
        }
    }
    let reverse = Range { reverse: true, ..Range::ALL };
    let reader = client.store.reader();
    let rows = reader.scan(reverse, reader.latest()).map(|row| row.revision.0);
    assert!(rows.eq(model.values().rev().copied()));
}

#[test]
fn every_revision_reads_like_a_sorted_map_of_its_time() {
    let (mut client, mut random) = (Client::new(), Random(11));
    let mut model = Model::new();
    let mut history = Vec::new();
    for step in 0..6000 {
        random_step(&mut client, &mut model, &mut random);
        if step % 100 == 0 {
            history.push((client.store.revision(), model.clone()));
        }
    }
    assert_eq!(client.store.keys(), model.len() as u64);
    let live: usize = model.iter().map(|(key, value)| key.len() + value.0.len()).sum();
    assert_eq!(client.store.live_bytes(), live as u64);
    let reader = client.store.reader();
    for (at, model) in &history {
        check(&reader, *at, model, &mut random);
    }
    check(&reader, Index(u64::MAX), &model, &mut random);
}

#[test]
fn every_one_of_many_keys_is_found() {
    let mut client = Client::new();
    let key = |i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    for i in 0..30_000_u64 {
        client.put(&key(i), &i.to_le_bytes());
    }
    let reader = client.store.reader();
    for i in 0..30_000_u64 {
        assert_eq!(reader.get(&key(i), reader.latest()).unwrap().value, i.to_le_bytes());
        assert_eq!(reader.get(&key(i + 30_000), reader.latest()), None);
    }
    assert_eq!(reader.scan(Range::ALL, reader.latest()).count(), 30_000);
}

#[test]
fn a_scan_goes_on_after_a_given_key() {
    let mut client = Client::new();
    for i in 0..100_u8 {
        client.put(&[i], &[i]);
    }
    let reader = client.store.reader();
    let (mut seen, mut last) = (Vec::<u8>::new(), None::<Vec<u8>>);
    loop {
        let to = last.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let range = Range { from: Bound::Included(&[3]), to, reverse: true };
        let page: Vec<u8> = reader.scan(range, Index(1000)).take(7).map(|row| row.key[0]).collect();
        seen.extend(&page);
        match page.last() {
            Some(&key) => last = Some(vec![key]),
            None => break,
        }
    }
    assert!(seen.into_iter().eq((3..100).rev()));
}

#[test]
fn readers_see_frozen_states_while_keys_and_index_grow() {
    // Every write moves one unit from one account to another, new accounts begin at 0: the sum never changes, but
    // halves of a transfer are revisions of their own, so that readers look at even ones only.
    let mut client = Client::new();
    let base = client.store.revision().0;
    let done = AtomicBool::new(false);
    let readers: Vec<Reader> = (0..2).map(|_| client.store.reader()).collect();
    std::thread::scope(|scope| {
        for reader in readers {
            let done = &done;
            scope.spawn(move || {
                let mut rounds = 0_u64;
                while !done.load(Ordering::Relaxed) || rounds == 0 {
                    let pairs = (reader.latest().0 - base) / 2;
                    let at = Index(base + 2 * pairs);
                    let rows: Vec<_> = reader.scan(Range::ALL, at).collect();
                    assert_eq!(rows.len() as u64, 2 * pairs, "at {at}");
                    let range = Range { reverse: true, ..Range::ALL };
                    assert!(reader.scan(range, at).eq(rows.iter().rev().copied()));
                    for row in rows.iter().step_by(17) {
                        let seen = reader.get(row.key, at).expect("a scan has just seen it");
                        assert_eq!((seen.value, seen.revision), (row.value, row.revision));
                    }
                    assert_eq!(reader.get(b"never", at), None);
                    rounds += 1;
                }
            });
        }
        for i in 0..10_000_u64 {
            let hash = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            client.put(&hash.to_be_bytes(), &i.to_le_bytes());
            client.put(&[&b"x"[..], &hash.to_le_bytes()].concat(), &i.to_le_bytes());
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_key_that_comes_back_begins_a_new_life() {
    let mut client = Client::new();
    client.put(b"k", b"one");
    client.put(b"k", b"two");
    client.write(Op::Delete { key: b"k" });
    assert!(matches!(
        client.write(Op::Delete { key: b"k" }),
        Outcome::Written { existed: false, .. }
    ));
    client.write(Op::Append { key: b"k", value: b"new" });
    let reader = client.store.reader();
    let seen = reader.get(b"k", reader.latest()).unwrap();
    assert_eq!((seen.value, seen.version, seen.create_revision), (&b"new"[..], 1, seen.revision));
    assert_eq!(reader.get(b"k", Index(3)).unwrap().version, 2);
    assert_eq!(reader.get(b"k", Index(4)), None);
}

#[test]
fn keys_and_values_outside_the_limits_are_refused() {
    let options = Options { arena_bytes: 256 << 20, ..OPTIONS };
    let mut client = Client { store: Store::new(options).unwrap(), ..Client::new() };
    client.session = super::open(&mut client.store);
    assert_eq!(client.put(b"", b""), Outcome::KeyInvalid);
    assert_eq!(client.put(&[0; KEY_BYTES_MAX + 1], b""), Outcome::KeyInvalid);
    assert!(matches!(client.put(&[0; KEY_BYTES_MAX], b""), Outcome::Written { .. }));
    let whole = vec![1; VALUE_BYTES_CEILING];
    assert!(matches!(client.put(b"k", &whole), Outcome::Written { .. }));
    let too_large = Outcome::TooLarge { limit: VALUE_BYTES_CEILING as u64 };
    assert_eq!(client.write(Op::Append { key: b"k", value: b"1" }), too_large);
    assert_eq!(client.put(b"k", &[&whole[..], b"1"].concat()), too_large);
    assert_eq!(client.store.value_bytes(b"k"), VALUE_BYTES_CEILING);
}

#[test]
fn equal_commands_give_equal_hashes_whatever_the_options_and_unequal_ones_do_not() {
    let run = |options, value: &[u8]| {
        let mut client = Client { store: Store::new(options).unwrap(), ..Client::new() };
        client.session = super::open(&mut client.store);
        client.put(b"a", value);
        client.write(Op::Delete { key: b"b" });
        client.store.state_hash()
    };
    let other = Options { arena_bytes: 1 << 20, hash_seed: 99 };
    assert_eq!(run(OPTIONS, b"v"), run(other, b"v"));
    assert_ne!(run(OPTIONS, b"v"), run(OPTIONS, b"w"));
}

#[test]
#[should_panic(expected = "the arena is exhausted")]
fn an_exhausted_arena_is_loud() {
    let options = Options { arena_bytes: 1 << 17, ..OPTIONS };
    let mut client = Client { store: Store::new(options).unwrap(), ..Client::new() };
    client.session = super::open(&mut client.store);
    for i in 0..10_000_u32 {
        client.put(&i.to_be_bytes(), &[0; 100]);
    }
}
