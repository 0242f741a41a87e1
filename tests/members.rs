//! Members come and go while the cluster runs: a node joins, is promoted by itself, loses its data and joins again, is
//! removed and fenced; leadership is handed over by name.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::process::Output;

use harness::joiner::Joiner;
use harness::{Cluster, until};
use serde_json::Value;

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap().trim().to_owned()
}

/// The members as a user sees them: name, id, part.
fn members(cluster: &Cluster) -> Vec<(String, u64, String)> {
    let json: Value =
        serde_json::from_str(&text(&cluster.cli(&["member", "list", "-o", "json"]))).unwrap();
    let member = |json: &Value| {
        let word = |key: &str| json[key].as_str().unwrap().to_owned();
        (word("name"), json["id"].as_u64().unwrap(), word("kind"))
    };
    json["members"].as_array().unwrap().iter().map(member).collect()
}

async fn wait_for(cluster: &Cluster, name: &str, id: u64, kind: &str) {
    let wanted = (name.to_owned(), id, kind.to_owned());
    until(&format!("{wanted:?}"), async || members(cluster).contains(&wanted).then_some(())).await;
}

/// Waits until a node's own store holds a key.
async fn wait_for_key(cluster: &Cluster, id: u64, key: &str) {
    let client = cluster.client().await;
    until("the key", async || client.get_local(key, Some(id)).await.ok().flatten()).await;
}

#[tokio::test]
async fn a_node_joins_loses_its_data_joins_again_and_is_removed() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    client.put("before", "1").await.unwrap();
    let via = cluster.endpoint(0);
    let mut n4 = Joiner::prepare(&cluster, "n4");
    n4.spawn(&["--join", &via]);
    wait_for(&cluster, "n4", 4, "voter").await;
    wait_for_key(&cluster, 4, "before").await;

    // A crash: it is the same member, with or without the flag.
    n4.kill9();
    client.put("meanwhile", "2").await.unwrap();
    n4.spawn(&["--join", &via]);
    wait_for_key(&cluster, 4, "meanwhile").await;

    // Its data is gone: it is told what to do, and takes its own place as a new member.
    n4.kill9();
    fs::remove_dir_all(cluster.path("data/n4")).unwrap();
    let refused = n4.command(&["--join", &via]).output().unwrap();
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && message.contains("--rejoin"), "{message}");
    n4.spawn(&["--join", &via, "--rejoin"]);
    wait_for(&cluster, "n4", 5, "voter").await;
    wait_for_key(&cluster, 5, "meanwhile").await;
    assert_eq!(members(&cluster).len(), 4, "{:?}", members(&cluster));

    // Removed, it is fenced out and says why it ends, now and whenever it is started again.
    assert_eq!(text(&cluster.cli(&["member", "remove", "n4"])), "n4 is removed (id 5)");
    for _ in 0..2 {
        let (code, log) = n4.end().await;
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains("was removed from the cluster"), "{log}");
        n4.spawn(&[]);
    }
    client.put("after", "3").await.unwrap();
    assert_eq!(members(&cluster).len(), 3);
}

#[tokio::test]
async fn leaders_are_chosen_and_removed_by_name() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client().await;
    client.put("k", "1").await.unwrap();
    for name in ["n2", "n3", "n3", "n1"] {
        assert_eq!(text(&cluster.cli(&["transfer", name])), format!("{name} leads"));
    }
    let none = cluster.cli(&["transfer", "n9"]);
    assert_eq!(none.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&none.stderr).contains("they are n1, n2, n3"), "{none:?}");

    // With one of three gone, nobody could decide without the second.
    cluster.kill9(2);
    until("the leader misses n3", async || {
        let statuses = cluster.statuses().await;
        let mut peers = statuses.iter().flat_map(|status| &status.peers);
        peers.any(|peer| peer.id == 3 && !peer.alive).then_some(())
    })
    .await;
    let refused = cluster.cli(&["member", "remove", "n2"]);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(4), "{message}");
    assert!(message.contains("the cluster would stop"), "{message}");
    cluster.spawn(2);
    client.put("k", "2").await.unwrap();
    cluster.converge().await;

    // The leader itself goes; the others go on, and it ends.
    assert_eq!(text(&cluster.cli(&["member", "remove", "n1"])), "n1 is removed (id 1)");
    assert!(!cluster.exit(0).await.success());
    assert!(cluster.log(0).contains("was removed from the cluster"), "{}", cluster.log(0));
    client.put("k", "3").await.unwrap();
}
