//! Links between nodes across cuts: a follower hears the leader soon after the network is whole again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::Cluster;
use quicraft::client::Client;

/// Within this the isolated node follows the leader again, and without load has all that was written meanwhile.
const HEARD_WITHIN: Duration = Duration::from_millis(500);
/// A machine that is busy with other tests may be late in some rounds.
const LATE_MAX: usize = 1;

/// How long a healed node takes to follow, and to apply what the others have unless there is too much of it.
async fn healed(cluster: &Cluster, client: &Client, node: usize, all: bool) -> Duration {
    let id = node as u64 + 1;
    let other = client.status(if node == 0 { 2 } else { 1 }).await.unwrap();
    let (term, target) = (other.term, if all { other.applied_index } else { 0 });
    cluster.relay.as_ref().unwrap().isolate(node, false);
    let begun = Instant::now();
    loop {
        let status = client.status(id).await.unwrap();
        if status.leader.is_some() && status.term >= term && status.applied_index >= target {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < harness::PATIENCE, "n{id} does not follow");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Cuts a follower off again and again, and gives how long it took each time to follow after the heal.
async fn rounds(cluster: &mut Cluster, client: &Client, cuts: &[u64], all: bool) -> Vec<Duration> {
    let node = (cluster.leader().await + 1) % 3;
    let mut took = Vec::new();
    for &cut_ms in cuts {
        cluster.relay.as_ref().unwrap().isolate(node, true);
        let end = Instant::now() + Duration::from_millis(cut_ms);
        while Instant::now() < end {
            client.put("key", vec![7; 20_000]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        took.push(healed(cluster, client, node, all).await);
        tokio::time::sleep(Duration::from_millis(1500)).await;
    }
    took
}

fn assert_soon(took: &[Duration]) {
    let late = took.iter().filter(|&&took| took > HEARD_WITHIN).count();
    println!("took {took:?}");
    assert!(late <= LATE_MAX, "{late} of {} heals were late: {took:?}", took.len());
}

#[tokio::test]
async fn a_follower_follows_soon_after_each_heal() {
    let mut cluster = Cluster::start_behind_relay(3, "", Duration::ZERO).await;
    let client = cluster.client().await;
    let took = rounds(&mut cluster, &client, &[2500, 2500, 2500, 1500, 3500, 2500], true).await;
    assert_soon(&took);
}

#[tokio::test]
async fn a_follower_follows_soon_after_a_heal_under_load() {
    let mut cluster = Cluster::start_behind_relay(3, "", Duration::ZERO).await;
    let client = cluster.client().await;
    let stop = Arc::new(AtomicBool::new(false));
    let load = {
        let (client, stop) = (client.clone(), Arc::clone(&stop));
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                client.put("load", vec![1; 100_000]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
    };
    let took = rounds(&mut cluster, &client, &[1000, 2500, 2000], false).await;
    stop.store(true, Ordering::Relaxed);
    load.await.unwrap();
    assert_soon(&took);
}
