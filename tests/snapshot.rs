//! A follower that missed a log that is gone.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use harness::{Cluster, until};

const SMALL_LOG: &str = "segment = \"64KiB\"\nsnapshot_after = \"128KiB\"";

/// Any node that does not lead.
async fn follower(cluster: &mut Cluster) -> usize {
    (cluster.leader().await + 1) % cluster.len()
}

#[tokio::test]
async fn a_follower_that_was_down_while_the_log_was_cut_catches_up_by_snapshot() {
    let mut cluster = Cluster::start_with(3, SMALL_LOG).await;
    let client = cluster.client().await;
    client.put("before", "1").await.unwrap();
    let missing = cluster.converge().await.last_log_index;
    let down = follower(&mut cluster).await;
    cluster.kill9(down);
    let value = vec![b'v'; 4096];
    for k in 0..400 {
        client.put(format!("key/{k:04}"), &value).await.unwrap();
    }
    client.delete("before").await.unwrap();
    until("a snapshot at all running nodes", async || {
        let all = cluster.statuses().await;
        let done = all.len() == 2 && all.iter().all(|status| status.snapshot_index > missing);
        done.then_some(())
    })
    .await;
    cluster.spawn(down);
    let status = cluster.converge().await;
    assert_eq!(status.keys, 400);
    let id = down as u64 + 1;
    let there = client.get_local("key/0399", Some(id)).await.unwrap().unwrap();
    assert_eq!(&there.bytes[..], &value[..]);
    assert!(client.get_local("before", Some(id)).await.unwrap().is_none());
}

#[tokio::test]
async fn a_node_whose_directory_was_wiped_is_refused() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    client.put("a", "1").await.unwrap();
    cluster.converge().await;
    let wiped = follower(&mut cluster).await;
    cluster.kill9(wiped);
    std::fs::remove_dir_all(cluster.path(&format!("data/n{}", wiped + 1))).unwrap();
    cluster.spawn(wiped);
    let status = cluster.exit(wiped).await;
    assert_eq!(status.code(), Some(1), "{status}");
    let log = cluster.log(wiped);
    let last = log.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: "), "{log}");
    // The others go on, and the state is theirs.
    client.put("b", "2").await.unwrap();
    assert_eq!(&client.get("a").await.unwrap().unwrap().bytes[..], b"1");
}
