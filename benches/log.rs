//! What the log costs: `cargo bench --bench log`.
//!
//! - One append of 1 KiB and its sync, by pwrite and by map, beside a bare pwrite and fdatasync, in turn: latencies, and
//!   what the device was told to write for each appended byte.
//! - A cluster of three nodes under puts, by pwrite and by map, in turn.
//! - Recovery of 1 GiB of log beside a plain reading of the same files.
//!
//! Everything lies under `target/tmp`. `LOG_BENCH_APPENDS`, `LOG_BENCH_MIB` and `LOG_BENCH_SECONDS` change how much.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot be made fails by panicking")]

#[path = "../tests/harness/mod.rs"]
mod harness;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use harness::Cluster;
use hdrhistogram::Histogram;
use quicraft::disk::OsDisk;
use quicraft::raft::{DataId, EntryKind, Index, NodeId, Term};
use quicraft::wal::{self, BatchBuilder, Identity, LogIo, Opened, Opening, Options};

const OWNER: Identity = Identity { cluster: [1; 16], node: NodeId(1), data: DataId(1) };
const BODY_BYTES: usize = 1024;
/// Appends between two changes of the way.
const LOT: usize = 100;
const ROUNDS: usize = 5;
const WAYS: [(&str, LogIo); 2] = [("write", LogIo::Write), ("map", LogIo::Map)];

fn main() {
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let setting = |name: &str, usual: usize| {
        std::env::var(name).map_or(usual, |value| value.parse().unwrap())
    };
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    appends(dir.path(), setting("LOG_BENCH_APPENDS", 5000));
    recovery(dir.path(), setting("LOG_BENCH_MIB", 1024));
    cluster(setting("LOG_BENCH_SECONDS", 4));
}

fn open(dir: &Path, io: LogIo) -> Opened {
    let opening = wal::open(Arc::new(OsDisk), dir, OWNER, Options::new(io)).unwrap();
    let Opening::Whole(opened) = opening else { panic!("the log is damaged") };
    *opened
}

/// Appends `count` entries of `bytes` in one batch, and syncs.
fn append(log: &mut Opened, count: usize, bytes: usize) {
    let mut builder = BatchBuilder::new(log.log.last_index().next());
    let body = vec![0x5a; bytes];
    (0..count).for_each(|_| {
        builder.push(Term(1), EntryKind::Command, &body);
    });
    log.log.append(builder.finish());
    let persisted = log.writer.write_and_sync(log.log.take_pending()).unwrap();
    log.log.on_persisted(persisted);
}

/// What the device of `dir` was told to write so far, in bytes.
fn device_bytes(dir: &Path) -> Option<u64> {
    let device = fs::metadata(dir).ok()?.dev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    let stat = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    Some(stat.split_whitespace().nth(6)?.parse::<u64>().ok()? * 512)
}

/// One way to append, and what came of it.
struct Subject<'a> {
    name: &'static str,
    append: Box<dyn FnMut() + 'a>,
    micros: Histogram<u64>,
    device_bytes: Option<u64>,
}

fn appends(dir: &Path, count: usize) {
    println!("{count} appends of {BODY_BYTES} B, each with its sync, in turn");
    let bare = fs::File::create(dir.join("bare")).unwrap();
    for page in 0..16 << 10 {
        bare.write_all_at(&[0; 4096], page * 4096).unwrap();
    }
    bare.sync_all().unwrap();
    let mut logs = WAYS.map(|(name, io)| (name, open(&dir.join(name), io)));
    let mut offset = 0;
    let bare_append = || {
        bare.write_all_at(&[0x5a; BODY_BYTES + 64], offset).unwrap();
        bare.sync_data().unwrap();
        offset += BODY_BYTES as u64 + 64;
    };
    let mut subjects = vec![subject("bare", Box::new(bare_append))];
    for (name, log) in &mut logs {
        subjects.push(subject(name, Box::new(|| append(log, 1, BODY_BYTES))));
    }
    // The segments that are made ahead are not part of an append.
    std::thread::sleep(Duration::from_secs(3));
    for _ in 0..count.div_ceil(LOT) {
        for subject in &mut subjects {
            let before = device_bytes(dir);
            for _ in 0..LOT {
                let begin = Instant::now();
                (subject.append)();
                subject.micros.record(begin.elapsed().as_micros() as u64).unwrap();
            }
            let grown = device_bytes(dir).zip(before).map(|(after, before)| after - before);
            subject.device_bytes = subject.device_bytes.zip(grown).map(|(all, more)| all + more);
        }
    }
    let bare_p50 = subjects[0].micros.value_at_quantile(0.5) as f64;
    for Subject { name, micros, device_bytes, .. } in &subjects {
        let (p50, p99) = (micros.value_at_quantile(0.5), micros.value_at_quantile(0.99));
        let appended = (micros.len() * BODY_BYTES as u64) as f64;
        let written = device_bytes.map_or_else(
            || "unknown".to_owned(),
            |bytes| format!("{:.1}", bytes as f64 / appended),
        );
        println!(
            "  {name:<6} p50 {p50:>5} us, p99 {p99:>6} us, {:.2} times the bare p50; the device wrote {written} bytes per byte",
            p50 as f64 / bare_p50
        );
    }
}

fn subject<'a>(name: &'static str, append: Box<dyn FnMut() + 'a>) -> Subject<'a> {
    Subject { name, append, micros: Histogram::new(3).unwrap(), device_bytes: Some(0) }
}

fn recovery(dir: &Path, mebibytes: usize) {
    let path = dir.join("long");
    let mut log = open(&path, LogIo::Write);
    let lot = (1 << 20) / (BODY_BYTES + 64);
    for _ in 0..mebibytes {
        append(&mut log, lot, BODY_BYTES);
    }
    let last = log.log.last_index();
    log.writer.idle().unwrap();
    drop(log);
    println!("recovery of {mebibytes} MiB of log, {last} entries, in turn");
    let (mut best_read, mut best_open) = (f64::MAX, f64::MAX);
    let mut bytes = 0;
    for _ in 0..3 {
        (bytes, best_read) = read_all(&path, best_read);
        let begin = Instant::now();
        let log = open(&path, LogIo::Write);
        best_open = best_open.min(begin.elapsed().as_secs_f64());
        assert_eq!(log.log.last_index(), last);
        assert_eq!(log.log.first_index(), Index(1));
    }
    let rate = |seconds: f64| bytes as f64 / seconds / 1e9;
    println!(
        "  opened in {best_open:.2} s, {:.2} GB/s; a plain reading of the same files from the device {:.2} GB/s",
        rate(best_open),
        rate(best_read)
    );
}

/// Reads all files from the device, and gives their length and the shortest time.
fn read_all(path: &Path, best: f64) -> (u64, f64) {
    let mut bytes = 0;
    let begin = Instant::now();
    let mut buffer = vec![0; 1 << 20];
    for entry in fs::read_dir(path).unwrap() {
        let file = fs::File::open(entry.unwrap().path()).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let length = file.metadata().unwrap().len();
        let mut offset = 0;
        while offset < length {
            let part = (length - offset).min(buffer.len() as u64) as usize;
            file.read_exact_at(&mut buffer[..part], offset).unwrap();
            offset += part as u64;
        }
        bytes += length;
    }
    (bytes, best.min(begin.elapsed().as_secs_f64()))
}

fn cluster(seconds: usize) {
    println!(
        "puts of 256 B by 64 clients on 8 connections, three nodes, {seconds} s each, in turn"
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut rates = [const { Vec::new() }; 2];
    for _ in 0..ROUNDS {
        for (way, (name, _)) in WAYS.iter().enumerate() {
            let settings = format!("segment = \"64MiB\"\nlog_io = \"{name}\"\n");
            let cluster = runtime.block_on(Cluster::start_with(3, &settings));
            let duration = format!("{seconds}s");
            let output = cluster.cli(&["bench", "put", "--duration", &duration, "-o", "json"]);
            assert!(output.status.success(), "{output:?}");
            let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            rates[way].push(json["operations_per_second"].as_f64().expect("a rate"));
        }
    }
    for ((name, _), rates) in WAYS.iter().zip(&mut rates) {
        rates.sort_by(f64::total_cmp);
        println!(
            "  {name:<6} {:>7.0} puts/s, median of {ROUNDS}; best {:.0}",
            rates[ROUNDS / 2],
            rates[ROUNDS - 1]
        );
    }
    println!("  write by map {:.2}", rates[0][ROUNDS / 2] / rates[1][ROUNDS / 2]);
}
