//! Nodes far from each other, and a node that is alone. Rates are measured by `cargo bench --bench distance`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::time::{Duration, Instant};

use harness::Cluster;
use tokio::task::JoinSet;

const FAR: &str = "heartbeat = \"150ms\"\nelection_timeout = \"1500ms\"";

#[tokio::test]
async fn more_bytes_than_a_window_holds_cross_a_distance_and_the_leader_stays() {
    let mut cluster = Cluster::start_behind_relay(2, FAR, Duration::from_millis(35)).await;
    let client = cluster.client().await;
    client.put("first", "0").await.unwrap();
    let term = cluster.converge().await.term;
    let mut puts = JoinSet::new();
    for number in 0..128_u8 {
        let client = client.clone();
        puts.spawn(async move {
            client.put(format!("key {number}"), vec![number; 256 << 10]).await.unwrap();
        });
    }
    puts.join_all().await;
    let status = cluster.converge().await;
    assert_eq!(status.keys, 129);
    // Heartbeats went before all these bytes.
    assert_eq!(status.term, term);
    for id in [1, 2] {
        let value = client.get_local("key 100", Some(id)).await.unwrap().unwrap();
        assert_eq!(value.bytes, vec![100; 256 << 10]);
    }
}

#[tokio::test]
async fn a_lone_node_does_not_wait_for_an_heir() {
    let mut cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let mut shortest = Duration::MAX;
    for round in 0..3 {
        client.put("key", format!("{round}")).await.unwrap();
        let begun = Instant::now();
        assert!(cluster.term(0).await.success());
        shortest = shortest.min(begun.elapsed());
        cluster.spawn(0);
        cluster.leader().await;
    }
    // It would wait a whole second, each time.
    assert!(shortest < Duration::from_millis(900), "{shortest:?}");
    assert_eq!(client.get("key").await.unwrap().unwrap().bytes, "2");
}
