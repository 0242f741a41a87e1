//! Clients that ask for twice what the cluster can take: `cargo bench --bench overload`.
//!
//! First come floods, `FLOOD_SECONDS` (5) each: clients that read no answers, scans that nobody reads, requests without
//! their last byte, handshakes that nobody finishes, and noise. For each it prints what honest clients got meanwhile,
//! beside what they get without, the leader's memory beside its data, and how many terms began. `OVERLOAD_ROUNDS=0` ends
//! there.
//!
//! Then some closed loops, until the history is as long as it gets: from then on compactions are part of the work. Then,
//! in turn and `OVERLOAD_ROUNDS` (3) times, for `OVERLOAD_SECONDS` (8) each: as many closed loops as gave the best rate, and
//! twice as many writes a second as that, due whatever comes of them, up to 20,000 under way; what finds no place among
//! those is turned away before it is sent. At the end no key may be older than what was acknowledged of it.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot be made fails by panicking")]

#[path = "overload/floods.rs"]
mod floods;
#[path = "../tests/harness/mod.rs"]
mod harness;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use harness::Cluster;
use hdrhistogram::Histogram;
use quicraft::client::{Client, ScanRequest};
use tokio::task::JoinSet;

const CONNECTIONS: usize = 16;
/// Clients of the closed loops.
const LOOPS: [usize; 3] = [256, 1000, 4000];
/// Writes that are under way at once.
const IN_FLIGHT_MAX: usize = 20_000;
const FIRST: Duration = Duration::from_secs(6);
const VALUE: [u8; 256] = [7; 256];
const KEYS: u64 = 100_000;

/// What the clients saw.
#[derive(Default)]
struct Seen {
    next: AtomicU64,
    /// The newest acknowledged revision of each key.
    newest: Mutex<HashMap<String, u64>>,
    latencies: Mutex<Option<Histogram<u64>>>,
    errors: Mutex<Vec<String>>,
}

impl Seen {
    async fn put(&self, client: &Client) {
        let key = key(self.next.fetch_add(1, Ordering::Relaxed) % KEYS);
        let begun = Instant::now();
        match client.put(&key, VALUE).await {
            Ok(revision) => {
                let micros = begun.elapsed().as_micros() as u64;
                let mut newest = self.newest.lock().unwrap();
                let newest = newest.entry(key).or_default();
                *newest = revision.max(*newest);
                let mut latencies = self.latencies.lock().unwrap();
                latencies.get_or_insert_with(histogram).saturating_record(micros);
            }
            Err(error) => self.errors.lock().unwrap().push(error.to_string()),
        }
    }

    /// Prints what was seen in so long a time, and gives the rate.
    fn report(&self, what: &str, took: Duration, memory: &str) -> f64 {
        let latencies = self.latencies.lock().unwrap().take().unwrap_or_else(histogram);
        let errors = std::mem::take(&mut *self.errors.lock().unwrap());
        let rate = latencies.len() as f64 / took.as_secs_f64();
        let ms = |quantile| latencies.value_at_quantile(quantile) as f64 / 1000.0;
        println!(
            "{what}: {rate:.0} acknowledged a second, p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms, {} errors; MiB of the \
             nodes {memory}",
            ms(0.5),
            ms(0.99),
            ms(1.0),
            errors.len()
        );
        errors.iter().take(3).for_each(|error| println!("  {error}"));
        rate
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).unwrap()
}

fn key(number: u64) -> String {
    // Scattered, and of one length.
    format!("{:016x}", number.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let setting =
        |name: &str, usual: u64| std::env::var(name).map_or(usual, |value| value.parse().unwrap());
    let rounds = setting("OVERLOAD_ROUNDS", 3);
    let duration = Duration::from_secs(setting("OVERLOAD_SECONDS", 8));
    floods::run(Duration::from_secs(setting("FLOOD_SECONDS", 5))).await;
    if rounds == 0 {
        return;
    }
    let mut cluster = Cluster::start_with(3, "segment = \"64MiB\"\n").await;
    let endpoints: Vec<_> = (0..cluster.len()).map(|i| cluster.endpoint(i)).collect();
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(cluster.client_of(endpoints.clone(), Duration::from_secs(20)).await);
    }
    let seen = Arc::new(Seen::default());
    let mut best = (0.0, 0);
    for clients in LOOPS {
        let took = closed(clients, FIRST, &connections, &seen).await;
        let rate = seen.report(&format!("{clients} closed loops"), took, &memory(&cluster));
        best = if rate > best.0 { (rate, clients) } else { best };
    }
    let (rate, clients) = (2.0 * best.0, best.1);
    let mut rates = Vec::new();
    for _ in 0..rounds {
        let took = closed(clients, duration, &connections, &seen).await;
        let best = seen.report(&format!("{clients} closed loops"), took, &memory(&cluster));
        let (turned_away, took) = open(rate, duration, &connections, &seen).await;
        let kept = seen.report(&format!("{rate:.0} a second begun"), took, &memory(&cluster));
        println!("  {:.2} of the closed loops; {turned_away} turned away unsent", kept / best);
        rates.push((best, kept));
    }
    let sum = |of: fn(&(f64, f64)) -> f64| rates.iter().map(of).sum::<f64>();
    println!("in all {:.2} of the closed loops", sum(|rates| rates.1) / sum(|rates| rates.0));
    cluster.converge().await;
    let there = revisions(&connections[0]).await;
    let newest = std::mem::take(&mut *seen.newest.lock().unwrap());
    let is_lost = |(key, revision): &(&String, &u64)| there.get(*key) < Some(*revision);
    let lost = newest.iter().filter(is_lost).count();
    println!("{} keys, {lost} older than what was acknowledged", newest.len());
    assert_eq!(lost, 0, "acknowledged writes are lost");
}

/// So many clients, each of which begins its next write when the last is answered.
async fn closed(
    clients: usize,
    duration: Duration,
    connections: &[Client],
    seen: &Arc<Seen>,
) -> Duration {
    let (begun, stop) = (Instant::now(), Arc::new(AtomicBool::new(false)));
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let client = connections[client % CONNECTIONS].clone();
        let (seen, stop) = (Arc::clone(seen), Arc::clone(&stop));
        tasks.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                seen.put(&client).await;
            }
        });
    }
    tokio::time::sleep(duration).await;
    stop.store(true, Ordering::Relaxed);
    tasks.join_all().await;
    begun.elapsed()
}

/// Writes become due at a rate, and each is begun by one of so many tasks if one is free, else turned away; gives how many
/// were, and how long it took until all were answered.
async fn open(
    rate: f64,
    duration: Duration,
    connections: &[Client],
    seen: &Arc<Seen>,
) -> (u64, Duration) {
    let (begun, next) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let mut tasks = JoinSet::new();
    for task in 0..IN_FLIGHT_MAX {
        let client = connections[task % CONNECTIONS].clone();
        let (seen, next) = (Arc::clone(seen), Arc::clone(&next));
        tasks.spawn(async move {
            let mut turned_away = 0;
            loop {
                // Whatever else was due up to now found no task that was free.
                let due = (begun.elapsed().as_secs_f64() * rate) as u64;
                let mine = next.fetch_max(due, Ordering::Relaxed);
                turned_away += due.saturating_sub(mine);
                let mine = next.fetch_add(1, Ordering::Relaxed);
                let at = Duration::from_secs_f64(mine as f64 / rate);
                if at >= duration {
                    return turned_away;
                }
                tokio::time::sleep_until((begun + at).into()).await;
                seen.put(&client).await;
            }
        });
    }
    let turned_away = tasks.join_all().await.iter().sum();
    (turned_away, begun.elapsed())
}

/// Which revision each key has.
async fn revisions(client: &Client) -> HashMap<String, u64> {
    let mut scan = client.scan(ScanRequest::default()).await.unwrap();
    let mut revisions = HashMap::new();
    while let Some(row) = scan.next().await.unwrap() {
        revisions.insert(String::from_utf8_lossy(&row.key).into_owned(), row.revision);
    }
    revisions
}

/// Memory of the nodes that is their own.
fn memory(cluster: &Cluster) -> String {
    let of = |i| {
        let text = std::fs::read_to_string(format!("/proc/{}/status", cluster.pid(i))).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
    };
    let all: Vec<u64> = (0..cluster.len()).map(of).collect();
    format!("{all:?}")
}
