//! Replication over a distance: `cargo bench --bench distance`.
//!
//! Nodes whose packets to each other go through a relay that holds each back for half of `DISTANCE_MS` (70). For
//! `DISTANCE_SECONDS` (10) many tasks put values of 256 KiB; before and meanwhile one task reads linearizably, which takes
//! a round of heartbeats. Printed are the bytes a second that were acknowledged, so that are durable on a majority, and how
//! long heartbeat rounds took without the load and with it. `DISTANCE_NODES` is 2, so that each byte crosses the distance.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot be made fails by panicking")]

#[path = "../tests/harness/mod.rs"]
mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::Cluster;
use hdrhistogram::Histogram;
use quicraft::client::Client;

/// Puts under way: more bytes than the distance holds.
const TASKS: usize = 96;
const VALUE_BYTES: usize = 256 << 10;
const WARM_UP: Duration = Duration::from_secs(2);
/// For elections at this distance; no history, for memory.
const CONFIG: &str = "heartbeat = \"150ms\"\nelection_timeout = \"1500ms\"\nhistory_revisions = 1\n\
                      segment = \"64MiB\"\nsnapshot_after = \"1GiB\"";

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Times of reads for as long as `stop` is not set.
async fn rounds(client: Client, stop: Arc<AtomicBool>) -> Histogram<u64> {
    let mut seen = Histogram::new(3).unwrap();
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        client.get("small").await.unwrap();
        seen.record(begun.elapsed().as_micros() as u64).unwrap();
    }
    seen
}

async fn timed(client: &Client, how_long: Duration) -> Histogram<u64> {
    let stop = Arc::new(AtomicBool::new(false));
    let rounds = tokio::spawn(rounds(client.clone(), Arc::clone(&stop)));
    tokio::time::sleep(how_long).await;
    stop.store(true, Ordering::Relaxed);
    rounds.await.unwrap()
}

fn show(what: &str, seen: &Histogram<u64>) {
    let ms = |quantile| seen.value_at_quantile(quantile) as f64 / 1000.0;
    println!("{what}: p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms", ms(0.5), ms(0.99), ms(1.0));
}

fn main() {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(measure());
}

async fn measure() {
    let ms = number("DISTANCE_MS", 70);
    let seconds = Duration::from_secs(number("DISTANCE_SECONDS", 10));
    let nodes = number("DISTANCE_NODES", 2) as usize;
    let delay = Duration::from_micros(ms * 1000 / 2);
    let mut cluster = Cluster::start_behind_relay(nodes, CONFIG, delay).await;
    let (client, reader) = (cluster.client().await, cluster.client().await);
    client.put("small", "value").await.unwrap();
    println!("{nodes} nodes, {ms} ms apart, there and back");
    show("heartbeat rounds, idle", &timed(&reader, seconds / 2).await);

    let (stop, bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let loads: Vec<_> = (0..TASKS)
        .map(|task| {
            let (client, stop, bytes) = (client.clone(), Arc::clone(&stop), Arc::clone(&bytes));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    client.put(format!("key {task}"), vec![7; VALUE_BYTES]).await.unwrap();
                    bytes.fetch_add(VALUE_BYTES as u64, Ordering::Relaxed);
                }
            })
        })
        .collect();
    tokio::time::sleep(WARM_UP).await;
    let (begun, before) = (Instant::now(), bytes.load(Ordering::Relaxed));
    let under_load = timed(&reader, seconds).await;
    let done = bytes.load(Ordering::Relaxed) - before;
    println!("put: {:.1} MB/s", done as f64 / begun.elapsed().as_secs_f64() / 1e6);
    show("heartbeat rounds, under load", &under_load);
    stop.store(true, Ordering::Relaxed);
    for load in loads {
        load.await.unwrap();
    }
    cluster.converge().await;
}
