//! Mixed load for a long time, with checkpoints: `cargo bench --bench soak`. Memory must stay flat, latencies too.
//!
//! `SOAK_SECONDS` says how long (60), `SOAK_CLIENTS` how many clients (64), `SOAK_RATE` how many operations a second all of
//! them begin (0: each its next one when the last is answered). One line per tenth of the time: operations, latencies,
//! counted from when an operation was due, memory of each node, length of its log. With 4000 clients the same lines show
//! what overload does.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot be made fails by panicking")]

#[path = "../tests/harness/mod.rs"]
mod harness;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use harness::Cluster;
use hdrhistogram::Histogram;
use quicraft::client::Client;
use tokio::task::JoinSet;

const CONNECTIONS: usize = 8;
const KEYS: u64 = 100_000;
const LINES: u32 = 10;
/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_millis(250);
/// So that checkpoints come often, and history is at its limit soon.
const SETTINGS: &str =
    "segment = \"32MiB\"\nsnapshot_after = \"64MiB\"\nhistory_revisions = 100000\n";

/// What the clients saw since the last line.
struct Seen {
    latencies: Histogram<u64>,
    errors: Vec<String>,
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |value| value.parse().unwrap())
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let seconds = number("SOAK_SECONDS", 60);
    let clients = number("SOAK_CLIENTS", 64);
    let rate = number("SOAK_RATE", 0);
    let every = (rate > 0).then(|| Duration::from_secs_f64(clients as f64 / rate as f64));
    let mut cluster = Cluster::start_with(3, SETTINGS).await;
    let endpoints: Vec<_> = (0..cluster.len()).map(|i| cluster.endpoint(i)).collect();
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(cluster.client_of(endpoints.clone(), Duration::from_secs(10)).await);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let latencies = Histogram::new_with_bounds(1, 60_000_000, 3).unwrap();
    let seen = Arc::new(Mutex::new(Seen { latencies, errors: Vec::new() }));
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let connection = connections[client as usize % CONNECTIONS].clone();
        tasks.spawn(work(connection, (client, every), Arc::clone(&stop), Arc::clone(&seen)));
    }
    println!(
        "{:>5} {:>8} {:>8} {:>8} {:>8}  most memory of the nodes in MiB, log in MiB",
        "s", "op/s", "p50 ms", "p99 ms", "errors"
    );
    let begun = Instant::now();
    for line in 1..=LINES {
        let step = Duration::from_secs(seconds) / LINES;
        let memory = greatest_memory(&cluster, begun + step * line).await;
        let logs: Vec<_> =
            cluster.statuses().await.iter().map(|status| status.log_bytes >> 20).collect();
        let mut seen = seen.lock().unwrap();
        let ms = |quantile| seen.latencies.value_at_quantile(quantile) as f64 / 1000.0;
        println!(
            "{:>5.0} {:>8.0} {:>8.2} {:>8.2} {:>8}  {memory:?} {logs:?}",
            begun.elapsed().as_secs_f64(),
            seen.latencies.len() as f64 / step.as_secs_f64(),
            ms(0.5),
            ms(0.99),
            seen.errors.len(),
        );
        seen.errors.drain(..).take(3).for_each(|error| println!("  {error}"));
        seen.latencies.reset();
    }
    stop.store(true, Ordering::Relaxed);
    tasks.join_all().await;
    cluster.converge().await;
}

/// The most memory that each node had until then.
async fn greatest_memory(cluster: &Cluster, end: Instant) -> Vec<u64> {
    let mut greatest = vec![0; cluster.len()];
    while Instant::now() < end {
        tokio::time::sleep_until((Instant::now() + SAMPLE).min(end).into()).await;
        for (i, greatest) in greatest.iter_mut().enumerate() {
            *greatest = memory_mib(cluster.pid(i)).max(*greatest);
        }
    }
    greatest
}

/// One client: half reads, half writes.
async fn work(
    client: Client,
    (number, every): (u64, Option<Duration>),
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
) {
    let start = Instant::now();
    for turn in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let scattered = (turn ^ number << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let key = format!("{:016x}", (scattered >> 20) % KEYS);
        let begun = every.map_or_else(Instant::now, |every| start + every * turn as u32);
        tokio::time::sleep_until(begun.into()).await;
        let result = match turn % 2 {
            0 => client.put(&key, [number as u8; 256]).await.map(|_| ()),
            _ => client.get(&key).await.map(|_| ()),
        };
        let mut seen = seen.lock().unwrap();
        match result {
            Ok(()) => seen.latencies.saturating_record(begun.elapsed().as_micros() as u64),
            Err(error) => seen.errors.push(error.to_string()),
        }
    }
}

/// Memory of a process that is its own: what it shares with the page cache is not counted.
fn memory_mib(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
}
