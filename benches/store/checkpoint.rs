//! What a checkpoint costs those who write and read meanwhile, and what becomes of memory.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use quicraft::disk::OsDisk;
use quicraft::raft::Term;
use quicraft::store::snapshot::{Dir, SnapshotMeta};
use quicraft::store::{Adoption, Pace, Reader};

use super::load::{Loaded, key, resident_bytes, shuffled};

/// Live data: this many keys with values of this length, about 1 GB.
const KEYS: usize = 2_800_000;
const VALUE_BYTES: usize = 256;
const PUTS_PER_SECOND: u64 = 50_000;
/// Long enough for the store to swap afterwards.
const WITHOUT: Duration = Duration::from_secs(5);

/// A writer that keeps its pace.
struct Writer {
    loaded: Loaded,
    keys: Box<dyn Iterator<Item = u64>>,
    value: Vec<u8>,
    latencies: Histogram<u64>,
    next: Instant,
    peak_bytes: u64,
    /// The least memory since it was set anew.
    least_bytes: u64,
    puts: u64,
}

impl Writer {
    fn put(&mut self) {
        let now = Instant::now();
        if now < self.next {
            std::thread::sleep(self.next - now);
        }
        // From when it was due: what waits behind a slow put is slow, too.
        for _ in 0..LOT {
            let number = self.keys.next().expect("the keys never end");
            self.loaded.put(&key(number), &self.value);
        }
        let took = self.next.elapsed().as_nanos() as u64;
        self.latencies.record_n(took.max(1), LOT).unwrap();
        self.next += Duration::from_nanos(LOT * 1_000_000_000 / PUTS_PER_SECOND);
        self.puts += LOT;
        if self.puts.is_multiple_of(100 * LOT) {
            let bytes = resident_bytes();
            self.peak_bytes = self.peak_bytes.max(bytes);
            self.least_bytes = self.least_bytes.min(bytes);
        }
    }

    fn take_latencies(&mut self) -> Histogram<u64> {
        self.next = Instant::now();
        std::mem::replace(&mut self.latencies, Histogram::new(3).unwrap())
    }
}

fn snapshots() -> (tempfile::TempDir, Dir) {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let dir = Dir::new(Arc::new(OsDisk), place.path().to_owned());
    (place, dir)
}

fn meta(index: quicraft::raft::Index) -> SnapshotMeta {
    SnapshotMeta { cluster: [1; 16], index, term: Term(1), membership: Vec::new() }
}

pub(crate) fn beside_puts() {
    let mut loaded = Loaded::new();
    let value = vec![7; VALUE_BYTES];
    (0..KEYS as u64).for_each(|number| loaded.put(&key(number), &value));
    let keys: Vec<u64> = shuffled(KEYS).collect();
    let read_keys = keys.clone();
    let live = resident_bytes();
    let mut writer = Writer {
        loaded,
        keys: Box::new(keys.into_iter().cycle()),
        value,
        latencies: Histogram::new(3).unwrap(),
        next: Instant::now(),
        peak_bytes: 0,
        least_bytes: u64::MAX,
        puts: 0,
    };
    let (done, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    let reader = writer.loaded.store.reader();
    std::thread::scope(|scope| {
        scope.spawn(|| read(reader, &read_keys, &done, &reads));
        let end = Instant::now() + WITHOUT;
        while Instant::now() < end {
            writer.put();
        }
        let without = writer.take_latencies();
        let (begin, bytes) = (Instant::now(), checkpoint(&mut writer));
        let (took, with) = (begin.elapsed(), writer.take_latencies());
        done.store(true, Ordering::Relaxed);
        let us = |histogram: &Histogram<u64>, quantile| {
            histogram.value_at_quantile(quantile) as f64 / 1000.0
        };
        println!(
            "checkpoint of {} MB in {took:.1?} beside {PUTS_PER_SECOND} puts a second of {VALUE_BYTES} B, in lots of {LOT}:",
            bytes / 1_000_000
        );
        for (name, histogram) in [("without", &without), ("with", &with)] {
            println!(
                "  puts {name}: p50 {:.0} us, p99 {:.0} us, max {:.0} us",
                us(histogram, 0.5),
                us(histogram, 0.99),
                us(histogram, 1.0)
            );
        }
    });
    println!("  reads meanwhile, none failed: {}", reads.load(Ordering::Relaxed));
    let ratio = |bytes: u64| bytes as f64 / live as f64;
    println!(
        "  memory: {:.2} of the live data at most, {:.2} after the swap, {:.2} when the file is durable",
        ratio(writer.peak_bytes),
        ratio(writer.least_bytes),
        ratio(resident_bytes())
    );
}

/// Swaps to a checkpoint's image and writes its file, as a node does, while the writer goes on; gives the file's length.
fn checkpoint(writer: &mut Writer) -> u64 {
    let (_place, dir) = snapshots();
    writer.loaded.compact();
    let checkpoint = writer.loaded.store.checkpoint();
    let meta = meta(checkpoint.revision());
    let pace = Pace { bytes_per_second: Some(256 << 20), ..Pace::default() };
    let (mut compacted, image) = beside(writer, || checkpoint.compact(&meta, &pace).unwrap());
    loop {
        match writer.loaded.store.adopt(compacted) {
            Adoption::Adopted => break,
            Adoption::Behind(behind) => compacted = beside(writer, || behind.run()),
            Adoption::Declined => panic!("much of the arena is dead"),
        }
    }
    writer.least_bytes = u64::MAX;
    let unread = Mutex::new(Vec::new());
    let mut meanwhile = || {
        // Not under the lock: giving memory back takes long.
        let unread = std::mem::take(&mut *unread.lock().unwrap());
        drop(unread);
    };
    std::thread::scope(|scope| {
        let file = scope.spawn(|| {
            as_the_checkpoint_thread();
            image.write(&dir, &pace, &mut meanwhile).unwrap().bytes
        });
        while !file.is_finished() {
            writer.put();
            unread.lock().unwrap().extend(writer.loaded.store.take_unread());
        }
        file.join().unwrap()
    })
}

/// Does the work on another thread and puts meanwhile.
fn beside<T: Send>(writer: &mut Writer, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            as_the_checkpoint_thread();
            work()
        });
        while !work.is_finished() {
            writer.put();
        }
        work.join().unwrap()
    })
}

fn as_the_checkpoint_thread() {
    rustix::process::setpriority_process(None, 5).unwrap();
}

/// Reads keys, each of which is there, until it is done. Keeps the arena that it began with until well into the checkpoint.
fn read(reader: Reader, keys: &[u64], done: &AtomicBool, reads: &AtomicU64) {
    let end = Instant::now() + WITHOUT + Duration::from_secs(2);
    for &number in keys.iter().cycle() {
        if done.load(Ordering::Relaxed) || Instant::now() > end {
            return;
        }
        let found = reader.get(&key(number), reader.latest()).expect("every key is there");
        assert_eq!(found.value.len(), VALUE_BYTES);
        reads.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_micros(200));
    }
}

pub(crate) fn overwrites() {
    const PUTS: u64 = 10_000_000;
    let (_place, dir) = snapshots();
    let mut loaded = Loaded::new();
    let (mut peak, mut swaps) = (0, 0);
    let begin = Instant::now();
    for number in 0..PUTS {
        loaded.put(&key(number % 1000), &[number as u8; 256]);
        if loaded.store.bytes() > 64 << 20 {
            peak = peak.max(resident_bytes());
            loaded.compact();
            let checkpoint = loaded.store.checkpoint();
            let meta = meta(checkpoint.revision());
            let (_, image) = checkpoint.write(&dir, &meta, &Pace::default()).unwrap();
            assert!(matches!(loaded.store.adopt(image), Adoption::Adopted));
            drop(loaded.store.take_unread());
            dir.retain(1).unwrap();
            swaps += 1;
        }
    }
    println!(
        "{PUTS} overwrites of 1000 keys with 256 B in {:.1?}: {swaps} swaps, {} MB of memory at most",
        begin.elapsed(),
        peak / 1_000_000
    );
}

/// Puts that are applied together, as a turn of the node does.
const LOT: u64 = 50;
