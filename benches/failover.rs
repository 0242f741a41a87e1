//! How long nobody can write when the leader is killed or stopped: `cargo bench --bench failover`.
//!
//! Three nodes, clients that write all the time. The leader is killed with signal 9 (or stopped with signal 15); the
//! time counts until the first write is acknowledged to a client that keeps trying. Then the node is started again.
//! `FAILOVER_KILLS` and `FAILOVER_STOPS` change how often.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot be made fails by panicking")]

#[path = "../tests/harness/mod.rs"]
mod harness;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use harness::{Cluster, PATIENCE, until};
use hdrhistogram::Histogram;
use quicraft::client::Client;
use tokio::task::JoinSet;

/// Clients that write, each with a connection of its own.
const CLIENTS: usize = 8;
/// A client's operation may take this long in all.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Between two ends of leaders: what a follower needs to be up to date again.
const CALM: Duration = Duration::from_millis(700);

/// What the clients saw.
#[derive(Default)]
struct Seen {
    /// When each write was acknowledged, in order.
    acknowledged: Vec<Instant>,
    errors: Vec<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Kill,
    Stop,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut cluster = Cluster::start_with(3, "segment = \"64MiB\"\n").await;
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::new(Mutex::new(Seen::default()));
    let mut tasks = JoinSet::new();
    for number in 0..CLIENTS {
        let endpoints = (0..cluster.len()).map(|i| cluster.endpoint(i)).collect();
        let client = cluster.client_of(endpoints, TIMEOUT).await;
        tasks.spawn(write(client, number, Arc::clone(&stop), Arc::clone(&seen)));
    }
    for (end, times, variable) in
        [(End::Kill, 50, "FAILOVER_KILLS"), (End::Stop, 20, "FAILOVER_STOPS")]
    {
        let times = std::env::var(variable).map_or(times, |value| value.parse().unwrap());
        let mut pauses = Histogram::<u64>::new(3).unwrap();
        for _ in 0..times {
            pauses.record(once(&mut cluster, end, &seen).await.as_micros() as u64).unwrap();
        }
        let ms = |quantile| pauses.value_at_quantile(quantile) as f64 / 1000.0;
        println!(
            "{} the leader {times} times: writes resume after p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
            if end == End::Kill { "killed" } else { "stopped" },
            ms(0.5),
            ms(0.9),
            ms(0.99),
            ms(1.0)
        );
    }
    stop.store(true, Ordering::Relaxed);
    tasks.join_all().await;
    cluster.converge().await;
    let seen = seen.lock().unwrap();
    println!("{} writes acknowledged, {} errors", seen.acknowledged.len(), seen.errors.len());
    seen.errors.iter().take(5).for_each(|error| println!("  {error}"));
}

/// Ends the leader, and gives the longest pause between two acknowledgements around that.
async fn once(cluster: &mut Cluster, end: End, seen: &Mutex<Seen>) -> Duration {
    tokio::time::sleep(CALM).await;
    let leader = cluster.leader().await;
    let before = seen.lock().unwrap().acknowledged.len();
    let begun = Instant::now();
    match end {
        End::Kill => cluster.kill9(leader),
        End::Stop => assert!(cluster.term(leader).await.success()),
    }
    let over = Instant::now();
    // An acknowledgement from before the end may still have been on its way.
    until("writes after the end of the leader", async || {
        let last = seen.lock().unwrap().acknowledged.last().copied();
        last.filter(|&last| last > over + Duration::from_millis(50))
    })
    .await;
    let pause = {
        let acknowledged = &seen.lock().unwrap().acknowledged;
        let around = &acknowledged[before.saturating_sub(1)..];
        let pauses = around.windows(2).filter(|pair| pair[1] > begun);
        pauses.map(|pair| pair[1] - pair[0].max(begun)).max().unwrap_or_default()
    };
    cluster.spawn(leader);
    until("all nodes", async || {
        let all = cluster.statuses().await;
        let behind = all.iter().map(|status| status.applied_index).min()? + 10_000
            < all.iter().map(|status| status.commit_index).max()?;
        (all.len() == cluster.len() && !behind).then_some(())
    })
    .await;
    assert!(pause < PATIENCE, "a pause of {pause:?}");
    pause
}

async fn write(client: Client, number: usize, stop: Arc<AtomicBool>, seen: Arc<Mutex<Seen>>) {
    for turn in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let key = format!("{number}/{}", turn % 1000);
        let result = client.put(key, [b'v'; 256]).await;
        let now = Instant::now();
        let mut seen = seen.lock().unwrap();
        match result {
            Ok(_) => seen.acknowledged.push(now),
            Err(error) => seen.errors.push(error.to_string()),
        }
    }
}
