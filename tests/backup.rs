//! Backups with real processes: saved while the cluster is written to, inspected, restored into another cluster; JSON
//! lines out and in; and older revisions.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Output;

use harness::{Cluster, START_TRIES, until};
use quicraft::client::{Client, ScanRequest};

fn text(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {error}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

async fn rows(client: &Client) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut stream = client.scan(ScanRequest::default()).await.unwrap();
    let mut rows = BTreeMap::new();
    while let Some(row) = stream.next().await.unwrap() {
        rows.insert(row.key.to_vec(), row.value.to_vec());
    }
    rows
}

fn inspected(cluster: &Cluster, file: &str) -> serde_json::Value {
    serde_json::from_str(&text(&cluster.cli(&["snapshot", "inspect", file, "-o", "json"]))).unwrap()
}

/// A new cluster of three from the other one's backup.
async fn restored(other: &Cluster) -> Cluster {
    for _ in 0..START_TRIES {
        let mut cluster = Cluster::prepare_empty(3, "");
        fs::copy(other.path("backup.snap"), cluster.path("backup.snap")).unwrap();
        for node in 1..=3 {
            let config = format!("n{node}.toml");
            let args = ["snapshot", "restore", "backup.snap", "--config", &config];
            text(&cluster.cli(&args));
            let again = cluster.cli(&args);
            assert_eq!(again.status.code(), Some(4), "a directory in use is not restored into");
        }
        (0..3).for_each(|node| cluster.spawn(node));
        // Another process may take a free port before the node does.
        if cluster.leader_or_exit().await {
            return cluster;
        }
    }
    panic!("no cluster started in {START_TRIES} tries");
}

#[tokio::test]
async fn a_backup_is_of_what_was_acknowledged_and_a_new_cluster_goes_on_from_it() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    for number in 0..500_u32 {
        client.put(format!("key {number:04}"), number.to_le_bytes().repeat(50)).await.unwrap();
    }
    client.delete("key 0007").await.unwrap();
    let writer = client.clone();
    let load = tokio::spawn(async move {
        let mut number = 0_u32;
        loop {
            writer.put("busy", number.to_string()).await.unwrap();
            number += 1;
        }
    });
    let before = client.put("last", "before the backup").await.unwrap();
    let saved = text(&cluster.cli(&["snapshot", "save", "backup.snap"]));
    load.abort();
    assert!(saved.contains("backup.snap: whole"), "{saved}");
    let about = inspected(&cluster, "backup.snap");
    let revision = about["revision"].as_u64().unwrap();
    assert!(revision >= before, "{about}");
    let mut expected = rows(&client).await;
    assert_eq!(about["keys"].as_u64().unwrap(), expected.len() as u64);

    let mut second = restored(&cluster).await;
    let client = second.client().await;
    let mut found = rows(&client).await;
    expected.remove(&b"busy"[..]);
    assert!(found.remove(&b"busy"[..]).is_some());
    assert_eq!(found, expected);
    let after = client.put("first of the second", "").await.unwrap();
    assert!(after > revision + 1_000_000_000, "{after} after {revision}");
    second.converge().await;
    second.kill9(0);
    second.spawn(0);
    second.converge().await;
}

#[tokio::test]
async fn damaged_files_and_files_of_the_same_cluster_are_not_restored() {
    let cluster = Cluster::start(1).await;
    cluster.client().await.put("key", "value").await.unwrap();
    text(&cluster.cli(&["snapshot", "save", "backup.snap"]));
    let fresh = ["snapshot", "restore", "backup.snap", "--config", "n1.toml", "--data", "data/new"];
    let same = cluster.cli(&fresh);
    assert_eq!(same.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&same.stderr).contains("new authority"), "{same:?}");
    let path = cluster.path("backup.snap");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&path, bytes).unwrap();
    for args in [&fresh[..], &["snapshot", "inspect", "backup.snap"]] {
        let refused = cluster.cli(args);
        assert_eq!(refused.status.code(), Some(4));
        assert!(String::from_utf8_lossy(&refused.stderr).contains("damaged at offset"));
    }
    assert!(!Path::new(&cluster.path("data/new/wal")).exists());
    let unreachable = cluster.cli(&[
        "snapshot",
        "save",
        "other.snap",
        "--timeout",
        "300ms",
        "--endpoints",
        "127.0.0.1:1",
    ]);
    assert_eq!(unreachable.status.code(), Some(3));
    assert!(!cluster.path("other.snap").exists() && !cluster.path("other.snap.tmp").exists());
}

#[tokio::test]
async fn json_lines_carry_every_key_and_value_from_one_cluster_to_another() {
    let first = Cluster::start(1).await;
    let client = first.client().await;
    for number in 0..300_u32 {
        let key = [&b"k\xff\n"[..], &number.to_be_bytes()].concat();
        client.put(key, format!("wert ü {number}")).await.unwrap();
    }
    client.put("text", [0xfe, 0, b'"']).await.unwrap();
    text(&first.cli(&["export", "all.json"]));
    let lines = fs::read_to_string(first.path("all.json")).unwrap();
    assert_eq!(lines.lines().count(), 301);
    let second = Cluster::start(1).await;
    // The later line of a key counts.
    let earlier = "{\"key\": \"text\", \"value\": \"overwritten\"}\n";
    fs::write(second.path("all.json"), format!("{earlier}{lines}")).unwrap();
    text(&second.cli(&["import", "all.json"]));
    assert_eq!(rows(&second.client().await).await, rows(&client).await);
    fs::write(second.path("bad.json"), "{\"key\": \"a\", \"value\": \"1\"}\n{\"key\": 3}\n")
        .unwrap();
    let bad = second.cli(&["import", "bad.json"]);
    assert_eq!(bad.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("bad.json line 2"), "{bad:?}");
}

#[tokio::test]
async fn older_revisions_are_read_until_they_are_compacted() {
    let extra = "history_revisions = 100\nsnapshot_after = \"64KiB\"\nsegment = \"64KiB\"";
    let mut cluster = Cluster::start_with(3, extra).await;
    let client = cluster.client().await;
    let first = client.put("key", "first").await.unwrap();
    let second = client.put("key", "second").await.unwrap();
    client.delete("key").await.unwrap();
    let at = |revision: u64| revision.to_string();
    let read = |revision: &str| cluster.cli(&["get", "key", "--rev", revision]);
    assert_eq!(text(&read(&at(first))), "first");
    assert_eq!(text(&read(&at(second))), "second");
    assert_eq!(read(&at(second + 1)).status.code(), Some(1));
    let listed = text(&cluster.cli(&["scan", "--rev", &at(first)]));
    assert_eq!(listed, "key\tfirst\n");
    let future = read("999999999");
    assert_eq!(future.status.code(), Some(4));
    let writes = async |count: u32| {
        for number in 0..count {
            client.put("other", vec![number as u8; 1000]).await.unwrap();
        }
    };
    let refused = until("the revision is compacted", async || {
        writes(60).await;
        let output = read(&at(first));
        (!output.status.success()).then_some(output)
    });
    let refused = refused.await;
    assert_eq!(refused.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("the oldest is"), "{refused:?}");
    let status = cluster.converge().await;
    assert!(status.oldest_revision > first);
    let oldest = status.oldest_revision;
    assert!(client.get_at("other", oldest).await.is_ok());
    assert!(client.get_at("other", oldest - 1).await.is_err());
}
