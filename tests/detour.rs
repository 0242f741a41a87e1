//! A client that reaches one node only, because the others are known by addresses that lead nowhere from where it
//! is: every node takes its writes and reads all the same.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::time::Duration;

use harness::{Cluster, until};
use quicraft::client::{Client, Options};

const NODES: usize = 3;

#[tokio::test]
async fn any_node_takes_any_request() {
    let mut cluster = Cluster::prepare(NODES, "");
    for i in 0..NODES {
        let path = cluster.path(&format!("n{}.toml", i + 1));
        let mut text = fs::read_to_string(&path).unwrap();
        for j in 0..NODES {
            let (here, nowhere) = (cluster.endpoint(j), format!("127.0.0.1:{}", j + 1));
            text =
                text.replace(&format!("\nclient = {here:?}"), &format!("\nclient = {nowhere:?}"));
        }
        fs::write(&path, text).unwrap();
        cluster.spawn(i);
    }
    let mut clients = Vec::new();
    for i in 0..NODES {
        let options = Options {
            endpoints: vec![cluster.endpoint(i)],
            certs: cluster.path("certs"),
            name: "client".into(),
            timeout: Duration::from_secs(10),
        };
        clients.push(until("a node", async || Client::connect(options.clone()).await.ok()).await);
    }
    for client in &clients {
        client.append("each", "x").await.unwrap();
        client.put("long", vec![1; 200_000]).await.unwrap();
    }
    for client in &clients {
        assert_eq!(&client.get("each").await.unwrap().unwrap().bytes[..], b"xxx");
        assert_eq!(client.get("long").await.unwrap().unwrap().bytes.len(), 200_000);
        assert!(client.delete("each").await.unwrap().existed);
        client.put("each", "xxx").await.unwrap();
    }
    // Refusals of the leader come back as they are.
    let too_long = clients.iter().map(|client| client.put("k", vec![0; (4 << 20) + 1]));
    for refused in too_long {
        assert!(matches!(refused.await, Err(quicraft::client::Error::TooLarge { .. })));
    }
}
