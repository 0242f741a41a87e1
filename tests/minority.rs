//! A leader without a majority serves no read and acknowledges no write.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::time::Duration;

use harness::Cluster;

const SHORT: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_leader_alone_serves_no_read_and_acknowledges_no_write() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    client.put("key", "old").await.unwrap();
    let leader = cluster.leader().await;
    let alone = cluster.client_of(vec![cluster.endpoint(leader)], SHORT).await;
    assert!(alone.get("key").await.unwrap().is_some());
    let others: Vec<_> = (0..3).filter(|i| *i != leader).collect();
    for i in &others {
        cluster.halt(*i).await;
    }
    let (read, written) = tokio::join!(alone.get("key"), alone.put("key", "new"));
    assert!(read.is_err(), "a read was served: {read:?}");
    assert!(written.is_err(), "a write was acknowledged: {written:?}");
    // It still shows what it has to whoever asks for no more than that.
    let local = alone.get_local("key", Some(leader as u64 + 1)).await.unwrap().unwrap();
    assert_eq!(&local.bytes[..], b"old");
    for i in &others {
        cluster.resume(*i);
    }
    // The write's outcome was unknown: it may be there now, but nothing else may.
    let now = client.get("key").await.unwrap().unwrap();
    assert!([&b"old"[..], b"new"].contains(&&now.bytes[..]));
    client.put("key", "last").await.unwrap();
    assert_eq!(&client.get("key").await.unwrap().unwrap().bytes[..], b"last");
    cluster.converge().await;
}

#[tokio::test]
async fn a_leader_that_was_replaced_while_it_was_halted_serves_no_old_value() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    client.put("key", "old").await.unwrap();
    let old = cluster.leader().await;
    let at_old = cluster.client_of(vec![cluster.endpoint(old)], SHORT).await;
    cluster.halt(old).await;
    assert_ne!(cluster.leader().await, old);
    client.put("key", "new").await.unwrap();
    // Its first read after the pause arrives before it can know that it is no leader any more.
    let read = tokio::spawn({
        let at_old = at_old.clone();
        async move { at_old.get("key").await }
    });
    tokio::task::yield_now().await;
    cluster.resume(old);
    if let Ok(value) = read.await.unwrap() {
        assert_eq!(&value.unwrap().bytes[..], b"new");
    }
    cluster.converge().await;
}
