//! Snapshots on their way to a follower that lags: a broken connection costs what was not sent yet, and a kill nothing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::time::Duration;

use harness::{Cluster, until};
use quicraft::client::Client;

/// A snapshot of 2 MB takes about four seconds.
const SLOW: &str = "segment = \"64KiB\"\nsnapshot_after = \"128KiB\"\ntransfer_rate = \"512KiB\"\nhistory_revisions = 1";
const KEYS: u64 = 500;
/// Some election timeouts.
const SILENCE: Duration = Duration::from_secs(2);

/// Three nodes, of which one lacks what is in the others' snapshots only; it runs again, and has got some of it.
async fn in_transfer() -> (Cluster, Client, usize) {
    let mut cluster = Cluster::start_with(3, SLOW).await;
    let client = cluster.client().await;
    let missing = cluster.converge().await.last_log_index;
    let behind = (cluster.leader().await + 1) % 3;
    cluster.kill9(behind);
    // The log stays for a follower that was heard lately, and then there is nothing to transfer.
    tokio::time::sleep(SILENCE).await;
    for number in 0..KEYS {
        client.put(format!("key {number}"), vec![number as u8; 4096]).await.unwrap();
    }
    until("snapshots at the others", async || {
        let all = cluster.statuses().await;
        let done = all.iter().filter(|status| status.snapshot_index > missing + KEYS / 2).count();
        (done == 2).then_some(())
    })
    .await;
    cluster.spawn(behind);
    some_arrived(&cluster, behind).await;
    (cluster, client, behind)
}

async fn some_arrived(cluster: &Cluster, behind: usize) {
    let path = cluster.path(&format!("data/n{}/snapshots/incoming.tmp", behind + 1));
    until("a part of the snapshot", async || {
        let bytes = fs::metadata(&path).map_or(0, |file| file.len());
        (bytes > 200_000).then_some(())
    })
    .await;
}

async fn assert_all_there(mut cluster: Cluster, client: &Client, behind: usize) {
    assert_eq!(cluster.converge().await.keys, KEYS);
    let id = behind as u64 + 1;
    for number in (0..KEYS).step_by(50) {
        let value = client.get_local(format!("key {number}"), Some(id)).await.unwrap().unwrap();
        assert_eq!(value.bytes, vec![number as u8; 4096]);
    }
}

#[tokio::test]
async fn a_transfer_goes_on_where_its_connection_broke() {
    let (cluster, client, behind) = in_transfer().await;
    let given_up = || -> usize {
        (0..3).map(|node| cluster.log(node).matches("did not arrive").count()).sum()
    };
    let before = given_up();
    cluster.halt(behind).await;
    until("the sender has given up", async || (given_up() > before).then_some(())).await;
    cluster.resume(behind);
    until("it goes on", async || {
        cluster.log(behind).contains("goes on with the snapshot").then_some(())
    })
    .await;
    assert_all_there(cluster, &client, behind).await;
}

#[tokio::test]
async fn a_kill_of_either_side_during_a_transfer_loses_nothing() {
    let (mut cluster, client, behind) = in_transfer().await;
    cluster.kill9(behind);
    cluster.spawn(behind);
    some_arrived(&cluster, behind).await;
    let leader = cluster.leader().await;
    cluster.kill9(leader);
    cluster.spawn(leader);
    assert_all_there(cluster, &client, behind).await;
}
