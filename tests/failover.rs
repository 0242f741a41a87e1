//! The leader is killed again and again while clients write.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::time::Duration;

use harness::Cluster;
use harness::workload::{Workload, check};

const CLIENTS: u64 = 8;
const KEYS: u64 = 20_000;
const KILLS: u64 = 3;

#[tokio::test]
async fn no_acknowledged_write_is_lost_when_the_leader_is_killed_under_load() {
    let mut cluster = Cluster::start(3).await;
    let load = Workload::start(&cluster, CLIENTS, KEYS / CLIENTS, Duration::from_secs(60)).await;
    for kill in 1..=KILLS {
        load.reach(KEYS * kill / (KILLS + 1)).await;
        let leader = cluster.leader().await;
        cluster.kill9(leader);
        let next = cluster.leader().await;
        assert_ne!(leader, next);
        cluster.spawn(leader);
        harness::until("the killed node back", async || {
            (cluster.statuses().await.len() == 3).then_some(())
        })
        .await;
    }
    let records = load.finish().await;
    let acknowledged = check(&mut cluster, &records).await;
    // A client outlives any leader: with its deadline of a minute nothing fails.
    assert_eq!(acknowledged as u64, KEYS);
}

#[tokio::test]
async fn a_graceful_stop_of_the_leader_loses_nothing_and_exits_with_0() {
    let mut cluster = Cluster::start(3).await;
    let load = Workload::start(&cluster, 2, 500, Duration::from_secs(60)).await;
    load.reach(200).await;
    let leader = cluster.leader().await;
    let status = cluster.term(leader).await;
    assert_eq!(status.code(), Some(0), "{status}");
    assert_ne!(cluster.leader().await, leader);
    cluster.spawn(leader);
    let records = load.finish().await;
    assert_eq!(check(&mut cluster, &records).await, 1000);
}
