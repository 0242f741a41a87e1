//! An answer is believed only from the node that was asked: not from another one that is at its address by now.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};

use harness::{Cluster, QUICRAFT, until, without_variables};
use quicraft::client::{Client, Consistency, Error, ScanRequest};
use quicraft::pki::{Authority, Issue};

/// A process that ends with the test.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a node with the addresses of node 4, which joins under this name.
fn successor(cluster: &Cluster, name: &str, flags: &[&str]) -> Node {
    let config = fs::read_to_string(cluster.path("n4.toml")).unwrap();
    let own = config.split("[[members]]").next().unwrap();
    let text = own.replace("\"n4\"", &format!("\"{name}\"")).replace("data/n4", "data/successor");
    fs::write(cluster.path("successor.toml"), text).unwrap();
    let log = File::create(cluster.path("successor.log")).unwrap();
    let mut command = Command::new(QUICRAFT);
    without_variables(&mut command);
    command.args(["node", "--config", "successor.toml", "--join", &cluster.endpoint(0)]);
    command.args(flags).current_dir(cluster.path("")).stdin(Stdio::null());
    Node(command.stderr(log).spawn().unwrap())
}

/// What each request says that means node 4.
async fn answers(client: &Client) -> Vec<Error> {
    let scan =
        ScanRequest { node: Some(4), consistency: Consistency::Local, ..ScanRequest::default() };
    let Err(scanned) = client.scan(scan).await else { panic!("node 4 is gone") };
    let mut errors = vec![
        scanned,
        client.get_local("key", Some(4)).await.expect_err("node 4 is gone"),
        client.status(4).await.expect_err("node 4 is gone"),
    ];
    let all = client.status_all().await;
    errors.extend(
        all.into_iter().filter(|one| one.member.id == 4).filter_map(|one| one.status.err()),
    );
    errors
}

#[tokio::test]
async fn a_successor_of_another_name_does_not_answer_for_the_node() {
    let mut cluster = Cluster::start(4).await;
    let client = cluster.client().await;
    client.put("key", "value").await.unwrap();
    assert!(client.members().iter().any(|member| member.id == 4));
    cluster.kill9(3);
    assert!(cluster.cli(&["member", "remove", "n4"]).status.success());
    let authority = Authority::load(&cluster.path("certs")).unwrap();
    authority.issue_node("n5", &["127.0.0.1".to_owned()], Issue::default()).unwrap();
    let _n5 = successor(&cluster, "n5", &[]);
    let log = cluster.path("successor.log");
    until("n5 serves", async || {
        fs::read_to_string(&log).unwrap().contains("ready: ").then_some(())
    })
    .await;

    let errors = answers(&client).await;
    assert_eq!(errors.len(), 4, "{errors:?}");
    for error in errors {
        assert!(matches!(error, Error::WrongNode { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("node n5") && text.contains("node n4"), "{text}");
    }
    // Who asks nobody in particular goes on.
    client.put("key", "value").await.unwrap();
    client.get("key").await.unwrap().unwrap();
}

#[tokio::test]
async fn a_successor_of_the_same_name_does_not_answer_for_the_node() {
    let mut cluster = Cluster::start(4).await;
    let client = cluster.client().await;
    client.put("key", "value").await.unwrap();
    cluster.kill9(3);
    let _n4 = successor(&cluster, "n4", &["--rejoin"]);
    let log = cluster.path("successor.log");
    until("the successor serves", async || {
        fs::read_to_string(&log).unwrap().contains("ready: ").then_some(())
    })
    .await;

    // The first connection to the successor tells that node 4 is no member any more.
    let error = client.get_local("key", Some(4)).await.expect_err("node 4 is gone");
    assert!(matches!(error, Error::WrongNode { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("node 5 (n4)") && text.contains("node 4 (n4)"), "{text}");
    for error in answers(&client).await {
        let text = error.to_string();
        assert!(text.contains("node 5 (n4)") || text.contains("no node 4"), "{error:?}");
    }
}
