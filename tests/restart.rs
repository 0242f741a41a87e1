//! All nodes are killed at once while clients write, and started again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::time::Duration;

use harness::Cluster;
use harness::workload::{Workload, check};

const KEYS_WITHOUT_END: u64 = 1_000_000;

async fn kill_all_under_load(n: usize, extra: &str) {
    let mut cluster = Cluster::start_with(n, extra).await;
    let mut records = Vec::new();
    let load = Workload::start(&cluster, 4, KEYS_WITHOUT_END, Duration::from_secs(3)).await;
    load.reach(1000).await;
    (0..n).for_each(|i| cluster.kill9(i));
    load.stop();
    records.extend(load.finish().await);
    (0..n).for_each(|i| cluster.spawn(i));
    cluster.leader().await;
    assert!(check(&mut cluster, &records).await >= 1000);
}

#[tokio::test]
async fn no_acknowledged_write_is_lost_when_all_three_nodes_are_killed_at_once() {
    kill_all_under_load(3, "").await;
}

#[tokio::test]
async fn no_acknowledged_write_is_lost_when_the_only_node_is_killed() {
    kill_all_under_load(1, "").await;
}

#[tokio::test]
async fn the_memory_mapped_log_loses_nothing_either() {
    kill_all_under_load(1, "log_io = \"map\"").await;
}

#[tokio::test]
async fn a_restart_from_snapshots_and_log_gives_the_same_state() {
    kill_all_under_load(3, "segment = \"64KiB\"\nsnapshot_after = \"128KiB\"").await;
}
