//! Who has a place in a cluster, with real processes: a node that lost its data, nodes that were founded with other lists,
//! certificates without a seat, removed members, and members that move.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::time::Duration;

use harness::joiner::Joiner;
use harness::{Cluster, free_ports, until};
use quicraft::client::{Client, Error, Manage, Options, RoleName};
use quicraft::pki::{Authority, Credentials, Issue};
use quicraft::proto::frame::{FrameKind, encode_frame};
use quicraft::proto::peer::{PeerHello, encode_message};
use quicraft::proto::{command::Command, encode, peer};
use quicraft::quic::{PortKind, client_endpoint, dial};
use quicraft::raft::{Body, DataId, Index, Message, NodeId, Term};
use quinn::Connection;

/// Removes a node's data directory and makes it anew as `quicraft node --init` does.
fn make_anew(cluster: &Cluster, i: usize) {
    fs::remove_dir_all(cluster.path(&format!("data/n{}", i + 1))).unwrap();
    assert!(cluster.node_command(i).arg("--init").status().unwrap().success());
}

/// Waits until a node's own store holds a key, as a new client sees it: one that is there knows the members of before.
async fn wait_for_key(cluster: &Cluster, id: u64, key: &str) -> Vec<u8> {
    let found = until("the key", async || {
        let endpoints = (0..cluster.len()).map(|i| cluster.endpoint(i)).collect();
        let client = cluster.client_of(endpoints, Duration::from_secs(5)).await;
        client.get_local(key, Some(id)).await.ok().flatten()
    });
    found.await.bytes.to_vec()
}

/// The finding that lost acknowledged writes: leader L and A acknowledge, B is down; A loses its data and is made anew.
#[tokio::test]
async fn a_node_that_lost_its_data_elects_nobody_and_comes_back_by_rejoin_only() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let (a, b) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.converge().await;
    cluster.kill9(b);
    let client = cluster.client().await;
    for key in 0..5 {
        client.put(format!("key{key}"), "acknowledged").await.unwrap();
    }
    cluster.kill9(a);
    cluster.kill9(leader);
    let empty = format!("data/n{}", a + 1);
    fs::remove_dir_all(cluster.path(&empty)).unwrap();
    let refused = cluster.node_command(a).output().unwrap();
    let message = String::from_utf8(refused.stderr).unwrap();
    let (rejoin, init) = (message.find("--rejoin"), message.find("--init"));
    assert!(rejoin.is_some() && rejoin < init, "--rejoin is named first: {message}");

    assert!(cluster.node_command(a).arg("--init").status().unwrap().success());
    cluster.spawn(a);
    cluster.spawn(b);
    assert_eq!(cluster.exit(a).await.code(), Some(1));
    assert!(cluster.log(a).contains("quicraft node --rejoin"), "{}", cluster.log(a));
    let log = cluster.log(b);
    assert!(log.contains("another data directory acts for it"), "{log}");
    cluster.spawn(leader);
    cluster.leader().await;
    for key in 0..5 {
        let found = client.get(format!("key{key}")).await.unwrap().expect("it was acknowledged");
        assert_eq!(&found.bytes[..], b"acknowledged");
    }
    // The directory that was made by mistake is set aside, and a new member takes the place.
    let mut command = cluster.node_command(a);
    let log = fs::File::create(cluster.path("rejoin.log")).unwrap();
    let mut rejoined = command.arg("--rejoin").stderr(log).spawn().unwrap();
    let found = wait_for_key(&cluster, 4, "key4").await;
    rejoined.kill().unwrap();
    rejoined.wait().unwrap();
    assert_eq!(found, b"acknowledged");
    assert!(cluster.path(&empty).join("lost-1/wal").exists());
}

#[tokio::test]
async fn a_node_that_lost_its_data_is_refused_while_the_leader_is_up() {
    let mut cluster = Cluster::start(3).await;
    let follower = (cluster.leader().await + 1) % 3;
    cluster.converge().await;
    cluster.kill9(follower);
    make_anew(&cluster, follower);
    cluster.spawn(follower);
    assert_eq!(cluster.exit(follower).await.code(), Some(1));
    assert!(cluster.log(follower).contains("--rejoin"), "{}", cluster.log(follower));
    let client = cluster.client().await;
    client.put("key", "value").await.unwrap();
}

#[tokio::test]
async fn member_lists_that_differ_found_no_cluster_together() {
    let mut cluster = Cluster::prepare_empty(3, "");
    let others = fs::read_to_string(cluster.path("n1.toml")).unwrap();
    let own = &others[..others.find("\n[[members]]\nid = 2").unwrap()];
    fs::write(cluster.path("n1.toml"), own).unwrap();
    for i in 0..3 {
        assert!(cluster.node_command(i).arg("--init").status().unwrap().success());
        cluster.spawn(i);
    }
    for i in [1, 2] {
        until("both lists in the log", async || {
            let log = cluster.log(i);
            let lists = ["n1 (id 1), n2 (id 2), n3 (id 3)", "founded with n1 (id 1)"];
            lists.iter().all(|list| log.contains(list)).then_some(())
        })
        .await;
    }
    let lone = cluster.client_of(vec![cluster.endpoint(0)], Duration::from_secs(20)).await;
    lone.put("key", "of a cluster of one").await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    for status in cluster.statuses().await {
        let leads = status.role == RoleName::Leader;
        assert_eq!(leads, status.node_id == 1, "{status:?}");
    }
    for i in 0..3 {
        let log = cluster.log(i);
        let said = log.lines().filter(|line| line.contains("it was founded with")).count();
        assert!(said <= 4, "it is said once for each other node, not again and again: {log}");
        assert!(cluster.is_running(i));
    }
}

#[tokio::test]
async fn a_cluster_is_founded_when_all_its_founders_have_met() {
    let mut cluster = Cluster::prepare(3, "");
    cluster.spawn(0);
    cluster.spawn(1);
    until("who is waited for", async || {
        cluster.log(0).contains("n3 cannot be reached yet").then_some(())
    })
    .await;
    assert!(cluster.statuses().await.iter().all(|status| status.leader.is_none()));
    cluster.spawn(2);
    cluster.leader().await;
}

/// A connection of a node that says it is `from`, and its two streams' first bytes.
async fn pretend(cluster: &Cluster, i: usize, name: &str, (from, data): (u64, u64)) -> Connection {
    let credentials = Credentials::load(&cluster.path("certs"), name).unwrap();
    let (endpoint, to) = (client_endpoint().unwrap(), format!("n{}", i + 1));
    let address = cluster.peer_endpoint(i).parse().unwrap();
    let connection = dial(&endpoint, address, &to, &credentials, PortKind::Peer).await.unwrap();
    let hello = PeerHello {
        from: NodeId(from),
        data: DataId(data),
        to: NodeId(i as u64 + 1),
        to_data: None,
        founding: None,
        peer_address: "203.0.113.1:1".to_owned(),
        client_address: "203.0.113.1:2".to_owned(),
    };
    let mut bytes = Vec::new();
    encode_frame(&mut bytes, FrameKind::PeerHello, 0, |body| encode(&hello, body));
    for (kind, term) in [(false, 1 << 19), (true, 1 << 18)] {
        let body = Body::RequestVote {
            pre: kind,
            last_log_index: Index(1 << 40),
            last_log_term: Term(term - 1),
            transfer: true,
        };
        let (from, data, to) = (hello.from, hello.data, hello.to);
        let message = Message { from, data, to, term: Term(term), body };
        encode_frame(&mut bytes, FrameKind::Raft, 0, |body| encode_message(&message, body));
    }
    let mut stream = connection.open_uni().await.unwrap();
    // Fails if the other side hangs up meanwhile, as it should.
    let _ = stream.write_all(&bytes).await;
    let forward = {
        let (mut command, mut bytes) = (Vec::new(), Vec::new());
        encode(&Command::OpenSession, &mut command);
        let cluster = credentials.identity().cluster.clone();
        let client = format!("quicraft://{cluster}/client/client?role=admin");
        let forward = peer::Forward { client: &client, command: &command };
        encode_frame(&mut bytes, FrameKind::Forward, 1, |body| encode(&forward, body));
        bytes
    };
    if let Ok((mut send, _)) = connection.open_bi().await {
        let _ = send.write_all(&forward).await;
    }
    connection
}

#[tokio::test]
async fn a_certificate_without_a_seat_changes_nothing() {
    let mut cluster = Cluster::start(3).await;
    cluster.converge().await;
    let client = cluster.client().await;
    client.put("before", "1").await.unwrap();
    let authority = Authority::load(&cluster.path("certs")).unwrap();
    for name in ["n4", "n9"] {
        authority.issue_node(name, &["127.0.0.1".to_owned()], Issue::default()).unwrap();
    }
    let before = cluster.converge().await;
    // Names that never joined, made-up ids, clones of members under other ids and other data directories.
    let guises = [("n4", 4, 4), ("n4", 99, 1), ("n9", u64::MAX, 0), ("n2", 77, 5), ("n2", 2, 5)];
    for round in 0..8 {
        for (name, id, data) in guises {
            for i in 0..3 {
                if name != format!("n{}", i + 1) {
                    let connection = pretend(&cluster, i, name, (id, data)).await;
                    let closed = tokio::time::timeout(Duration::from_secs(5), connection.closed());
                    closed.await.unwrap_or_else(|_| panic!("{name} as {id} is not refused"));
                }
            }
        }
        client.put(format!("round{round}"), "1").await.unwrap();
    }
    let after = cluster.converge().await;
    assert_eq!(after.term, before.term, "an election was held");
    let members = cluster.cli(&["member", "list"]);
    let members = String::from_utf8(members.stdout).unwrap();
    assert!(!members.contains("203.0.113.1") && members.lines().count() <= 4, "{members}");
    for i in 0..3 {
        let log = cluster.log(i);
        let refused = log.lines().filter(|line| line.contains("refused node")).count();
        assert!((1..=12).contains(&refused), "each is told once a minute: {log}");
        assert!(!log.contains("203.0.113.1"), "its address is dialled: {log}");
    }
}

#[tokio::test]
async fn a_removed_node_is_fenced_on_both_ports_until_an_operator_lets_it_in() {
    let cluster = Cluster::start(3).await;
    let via = cluster.endpoint(0);
    let mut n4 = Joiner::prepare(&cluster, "n4");
    n4.spawn(&["--join", &via]);
    let client = cluster.client().await;
    client.put("key", "1").await.unwrap();
    until("n4 is a voter", async || {
        let list = cluster.cli(&["member", "list", "-o", "json"]);
        let list: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
        let members = list["members"].as_array().unwrap().clone();
        members.iter().any(|m| m["name"] == "n4" && m["kind"] == "voter").then_some(())
    })
    .await;
    // A connection that n4's certificate has on the clients' port lives.
    let credentials = Credentials::load(&cluster.path("certs"), "n4").unwrap();
    let dial_client = async || {
        let (endpoint, address) = (client_endpoint().unwrap(), cluster.endpoint(0));
        dial(&endpoint, address.parse().unwrap(), "n1", &credentials, PortKind::Client).await
    };
    let live = dial_client().await.unwrap();
    assert!(cluster.cli(&["member", "remove", "n4"]).status.success());
    let (code, log) = n4.end().await;
    assert_eq!(code, Some(1), "{log}");
    let closed = tokio::time::timeout(Duration::from_secs(10), live.closed()).await;
    assert!(closed.expect("the live connection ends").to_string().contains("removed"));
    if let Ok(connection) = dial_client().await {
        let closed = tokio::time::timeout(Duration::from_secs(10), connection.closed()).await;
        assert!(closed.expect("a new one ends too").to_string().contains("removed"));
    }
    // Its name does not come back by itself, with new data or as its own successor.
    fs::remove_dir_all(cluster.path("data/n4")).unwrap();
    for flags in [&["--join", &via][..], &["--join", &via, "--rejoin"]] {
        let refused = n4.command(flags).output().unwrap();
        let message = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && message.contains("removed"), "{message}");
    }
    let peer = format!("127.0.0.1:{}", n4.ports.1);
    let added = cluster.cli(&["member", "add", "n4", "--peer", &peer]);
    assert!(added.status.success(), "{added:?}");
    n4.spawn(&["--join", &via]);
    wait_for_key(&cluster, 5, "key").await;
}

#[tokio::test]
async fn a_node_s_certificate_reads_and_writes_nothing_on_the_clients_port() {
    let cluster = Cluster::start(1).await;
    let options = Options {
        endpoints: vec![cluster.endpoint(0)],
        certs: cluster.path("certs"),
        name: "n1".to_owned(),
        timeout: Duration::from_secs(10),
    };
    let node = Client::connect(options).await.unwrap();
    assert!(matches!(node.get("key").await, Err(Error::Denied { .. })));
    assert!(matches!(node.put("key", "1").await, Err(Error::Denied { .. })));
    assert!(matches!(node.manage(&Manage::Remove { id: 1 }).await, Err(Error::Invalid { .. })));
    assert!(node.status_all().await[0].status.is_ok());
}

/// A member that was replaced moves: what the configuration says of its address counts, whatever the log says.
#[tokio::test]
async fn a_replaced_member_moves_to_a_new_address() {
    let cluster = Cluster::start(3).await;
    let via = cluster.endpoint(0);
    let mut n4 = Joiner::prepare(&cluster, "n4");
    n4.spawn(&["--join", &via]);
    let client = cluster.client().await;
    client.put("first", "1").await.unwrap();
    wait_for_key(&cluster, 4, "first").await;
    n4.kill9();
    fs::remove_dir_all(cluster.path("data/n4")).unwrap();
    n4.spawn(&["--join", &via, "--rejoin"]);
    wait_for_key(&cluster, 5, "first").await;
    n4.kill9();
    // It is somewhere else now, and knows the others only by its log.
    n4.configure(free_ports(1)[0]);
    client.put("second", "2").await.unwrap();
    n4.spawn(&[]);
    wait_for_key(&cluster, 5, "second").await;
}
