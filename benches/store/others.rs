//! The store beside `crossbeam-skiplist` and `BTreeMap`, in turn, several rounds; the best of each. The others have no files,
//! so for them nothing changes with a restart.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_skiplist::SkipMap;
use quicraft::disk::OsDisk;
use quicraft::store::snapshot::Dir;
use quicraft::store::{Range, Store};

use super::load::{Loaded, VALUE_BYTES, key, options, resident_bytes, shuffled};
use super::restart;

const ROUNDS: usize = 3;
const WORK: [&str; 8] = [
    "sorted load",
    "random insert",
    "scan",
    "scan after random insert",
    "the same after a restart",
    "random get",
    "random overwrite",
    "bytes per key",
];

const NAMES: [&str; 3] = ["store", "skiplist", "tree"];
/// The first argument of a process that measures one of them.
pub(crate) const CHILD: &str = "--one-of-others";

type Times = [f64; WORK.len()];

pub(crate) fn run(keys: usize) {
    let mut best = [[f64::MAX; WORK.len()]; 3];
    for _ in 0..ROUNDS {
        for (best, name) in best.iter_mut().zip(NAMES) {
            for (best, time) in best.iter_mut().zip(in_child(name, keys)) {
                *best = best.min(time);
            }
        }
    }
    println!("{keys} keys of 16 B with values of {VALUE_BYTES} B, ns per key, best of {ROUNDS}");
    println!("| | store | crossbeam-skiplist | BTreeMap | crossbeam / store | BTreeMap / store |");
    println!("|---|---|---|---|---|---|");
    for (place, work) in WORK.iter().enumerate() {
        let [a, b, c] = [best[0][place], best[1][place], best[2][place]];
        println!("| {work} | {a:.0} | {b:.0} | {c:.0} | {:.1} | {:.1} |", b / a, c / a);
    }
}

/// Each in a process of its own: what an allocator has kept of the one before would be a present.
fn in_child(name: &str, keys: usize) -> Times {
    let command = std::env::current_exe().unwrap();
    let output = std::process::Command::new(command)
        .args([CHILD, name, &keys.to_string()])
        .stderr(std::process::Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "{name} failed");
    let text = String::from_utf8(output.stdout).unwrap();
    let times: Vec<f64> = text.split_whitespace().map(|time| time.parse().unwrap()).collect();
    times.try_into().unwrap()
}

/// Measures one of them, and prints its times.
pub(crate) fn child(name: &str, keys: usize) {
    let order: Vec<u64> = shuffled(keys).collect();
    let times = match name {
        "store" => ours(&order),
        "skiplist" => skiplist(&order),
        "tree" => tree(&order),
        other => panic!("{other} is nothing to measure"),
    };
    times.iter().for_each(|time| println!("{time}"));
}

/// Nanoseconds for each key.
fn time(keys: usize, work: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    work();
    begin.elapsed().as_nanos() as f64 / keys as f64
}

fn ours(order: &[u64]) -> Times {
    let keys = order.len();
    let value = [7; VALUE_BYTES];
    let before = resident_bytes();
    let mut sorted = Loaded::new();
    let load = time(keys, || sorted.put_all(0..keys as u64, &value));
    let bytes = (resident_bytes() - before) as f64 / keys as f64;
    let mut random = Loaded::new();
    let insert = time(keys, || random.put_all(order.iter().copied(), &value));
    let scan_all = |store: &Store| {
        let (reader, at) = (store.reader(), store.revision());
        time(keys, || {
            let sum: usize = reader.scan(Range::ALL, at).map(|row| row.value.len()).sum();
            assert_eq!(black_box(sum), keys * VALUE_BYTES);
        })
    };
    let random_scan = scan_all(&random.store);
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let dir = Dir::new(Arc::new(OsDisk), place.path().to_owned());
    let path = restart::write(&dir, &mut random);
    drop(random);
    let restarted = scan_all(&Store::load(&dir, &path, options()).unwrap().0);
    let scan = scan_all(&sorted.store);
    let reader = sorted.store.reader();
    let at = reader.latest();
    let get = time(keys, || {
        for &number in order {
            black_box(reader.get(&key(number), at).unwrap().value[0]);
        }
    });
    let overwrite = time(keys, || sorted.put_all(order.iter().copied(), &value));
    [load, insert, scan, random_scan, restarted, get, overwrite, bytes]
}

fn skiplist(order: &[u64]) -> Times {
    let keys = order.len();
    let value = [7_u8; VALUE_BYTES];
    let before = resident_bytes();
    let sorted = SkipMap::<Box<[u8]>, Box<[u8]>>::new();
    let put = |map: &SkipMap<Box<[u8]>, Box<[u8]>>, number: u64| {
        map.insert(Box::from(key(number)), Box::from(value));
    };
    let load = time(keys, || (0..keys as u64).for_each(|number| put(&sorted, number)));
    let bytes = resident_bytes().saturating_sub(before) as f64 / keys as f64;
    let random = SkipMap::new();
    let insert = time(keys, || order.iter().for_each(|&number| put(&random, number)));
    let scan_all = |map: &SkipMap<Box<[u8]>, Box<[u8]>>| {
        time(keys, || {
            let sum: usize = map.iter().map(|entry| entry.value().len()).sum();
            assert_eq!(black_box(sum), keys * VALUE_BYTES);
        })
    };
    let random_scan = scan_all(&random);
    drop(random);
    let scan = scan_all(&sorted);
    let get = time(keys, || {
        for &number in order {
            black_box(sorted.get(&key(number)[..]).unwrap().value()[0]);
        }
    });
    let overwrite = time(keys, || order.iter().for_each(|&number| put(&sorted, number)));
    [load, insert, scan, random_scan, random_scan, get, overwrite, bytes]
}

fn tree(order: &[u64]) -> Times {
    let keys = order.len();
    let value = [7_u8; VALUE_BYTES];
    let before = resident_bytes();
    let mut sorted = BTreeMap::<Box<[u8]>, Box<[u8]>>::new();
    let put = |map: &mut BTreeMap<Box<[u8]>, Box<[u8]>>, number: u64| {
        map.insert(Box::from(key(number)), Box::from(value));
    };
    let load = time(keys, || (0..keys as u64).for_each(|number| put(&mut sorted, number)));
    let bytes = resident_bytes().saturating_sub(before) as f64 / keys as f64;
    let mut random = BTreeMap::new();
    let insert = time(keys, || order.iter().for_each(|&number| put(&mut random, number)));
    let scan_all = |map: &BTreeMap<Box<[u8]>, Box<[u8]>>| {
        time(keys, || {
            let sum: usize = map.values().map(|value| value.len()).sum();
            assert_eq!(black_box(sum), keys * VALUE_BYTES);
        })
    };
    let random_scan = scan_all(&random);
    drop(random);
    let scan = scan_all(&sorted);
    let get = time(keys, || {
        for &number in order {
            black_box(sorted[&key(number)[..]][0]);
        }
    });
    let overwrite = time(keys, || order.iter().for_each(|&number| put(&mut sorted, number)));
    [load, insert, scan, random_scan, random_scan, get, overwrite, bytes]
}
