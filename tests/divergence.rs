//! A node whose state is not that of the others stops by itself, and the others go on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::sync::Arc;
use std::time::Duration;

use harness::Cluster;
use quicraft::disk::OsDisk;
use quicraft::proto::command::{Command, Op, Principal, SessionId};
use quicraft::store::snapshot::Dir;
use quicraft::store::{Options, Pace, Store};

/// Puts a whole and well-formed snapshot of another state in the place of each of the node's.
fn falsify(cluster: &Cluster, node: usize) {
    let dir = cluster.path(&format!("data/n{}/snapshots", node + 1));
    let dir = Dir::new(Arc::new(OsDisk), dir);
    let all = dir.list().unwrap();
    assert!(!all.is_empty(), "there is a snapshot to be replaced");
    for (index, path) in all {
        let meta = dir.verify(&path).unwrap();
        let mut store = Store::new(Options { arena_bytes: 256 << 20, hash_seed: 1 }).unwrap();
        while store.revision() < index {
            let op = Op::Put { key: b"key", value: b"false" };
            let next = store.revision().next();
            let command = match next.0 {
                1 => Command::OpenSession,
                seq => Command::Write { session: SessionId(1), seq, answered_below: seq, op },
            };
            store.apply(next, Principal(1), &command);
        }
        store.checkpoint().write(&dir, &meta, &Pace::default()).unwrap();
    }
}

#[tokio::test]
async fn the_odd_one_stops_with_a_message_and_the_others_go_on() {
    let mut cluster =
        Cluster::start_with(3, "snapshot_after = \"64KiB\"\nsegment = \"64KiB\"").await;
    let client = cluster.client().await;
    let write = async || client.put("key", vec![7; 1000]).await.unwrap();
    for _ in 0..300 {
        write().await;
    }
    let odd = (cluster.leader().await + 1) % 3;
    cluster.term(odd).await;
    falsify(&cluster, odd);
    let writer = client.clone();
    let load = tokio::spawn(async move {
        while writer.put("key", vec![7; 1000]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    // Started again it applies its log again, hears the others at the next write, and stops again.
    for _ in 0..2 {
        cluster.spawn(odd);
        assert_eq!(cluster.exit(odd).await.code(), Some(76));
        let log = cluster.log(odd);
        assert!(log.contains("state is not that of the others"), "{log}");
    }
    load.abort();
    assert_eq!(client.get("key").await.unwrap().unwrap().bytes, vec![7; 1000]);
    for other in (0..3).filter(|&node| node != odd) {
        assert!(cluster.is_running(other), "n{} goes on", other + 1);
    }
}
