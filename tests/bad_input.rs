//! Bad input of every kind: one clear line or a counted refusal, and the cluster goes on serving.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs::{self, Permissions};
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use harness::{Cluster, QUICRAFT, free_ports, make_certs, until};
use quicraft::client::{Client, Error, Options};

/// Runs a node that must end by itself with exit code 1, and gives its last line.
fn refused_node(mut command: Command) -> String {
    let output = command.stderr(Stdio::piped()).output().unwrap();
    refusal(&output, 1)
}

/// The last line of a command that must have failed with this code and without a panic.
fn refusal(output: &Output, code: i32) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    let last = text.lines().last().unwrap_or_default().to_owned();
    assert!(last.starts_with("error: "), "{text}");
    last
}

#[test]
fn a_bad_configuration_is_refused_with_its_line() {
    let cluster = Cluster::prepare(1, "");
    for (text, parts) in [
        ("nam = \"n1\"", ["n1.toml:1: unknown key `nam`", "allowed are name, data"]),
        ("\nheartbeat = 5", ["n1.toml:2: heartbeat = \"5\"", "give a duration"]),
        ("\u{1}\u{2}", ["n1.toml:1: ", ""]),
        ("name = \"n7\"\n[[members]]", ["n1.toml:2: ", "missing"]),
    ] {
        fs::write(cluster.path("n1.toml"), text).unwrap();
        let line = refused_node(cluster.node_command(0));
        assert!(parts.iter().all(|part| line.contains(part)), "{line}");
    }
    fs::write(cluster.path("n1.toml"), [0xFF, 0xFE]).unwrap();
    assert!(refused_node(cluster.node_command(0)).contains("cannot read n1.toml"));
    fs::remove_file(cluster.path("n1.toml")).unwrap();
    assert!(refused_node(cluster.node_command(0)).contains("cannot read n1.toml"));
}

#[test]
fn wrong_and_missing_certificates_are_refused_by_name() {
    let cluster = Cluster::prepare(2, "");
    let key = cluster.path("certs/n1.key");
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    assert!(refused_node(cluster.node_command(0)).contains("n1.key"));
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();

    let of_n1 = fs::read(&key).unwrap();
    fs::write(&key, fs::read(cluster.path("certs/n2.key")).unwrap()).unwrap();
    assert!(refused_node(cluster.node_command(0)).contains("n1.key"));
    fs::write(&key, of_n1).unwrap();

    let certificate = cluster.path("certs/n1.crt");
    let of_n1 = fs::read(&certificate).unwrap();
    fs::write(&certificate, "garbage").unwrap();
    assert!(refused_node(cluster.node_command(0)).contains("n1.crt"));
    fs::remove_file(&certificate).unwrap();
    assert!(refused_node(cluster.node_command(0)).contains("n1.crt"));
    fs::write(&certificate, of_n1).unwrap();

    make_certs(&cluster.path("foreign"), 1);
    fs::copy(cluster.path("foreign/ca.crt"), cluster.path("certs/ca.crt")).unwrap();
    assert!(refused_node(cluster.node_command(0)).contains("ca.crt"));
}

#[tokio::test]
async fn a_directory_or_port_in_use_is_refused() {
    let cluster = Cluster::start(1).await;
    let second = |client: u16, peer: u16| {
        let mut command = cluster.node_command(0);
        command.args(["--client-listen", &format!("127.0.0.1:{client}")]);
        command.args(["--peer-listen", &format!("127.0.0.1:{peer}")]);
        refused_node(command)
    };
    let (client, peer) = free_ports(1)[0];
    let line = second(client, peer);
    assert!(line.contains("data/n1"), "{line}");
    let taken = cluster.endpoint(0);
    let line = second(taken.rsplit(':').next().unwrap().parse().unwrap(), peer);
    assert!(line.contains(&taken) && line.contains("in use"), "{line}");
}

#[tokio::test]
async fn the_data_of_another_node_or_cluster_is_refused() {
    let mut cluster = Cluster::start(2).await;
    for i in 0..2 {
        assert_eq!(cluster.term(i).await.code(), Some(0));
    }
    let mut command = cluster.node_command(0);
    command.args(["--data", "data/n2"]);
    assert!(refused_node(command).contains("data/n2"));
    make_certs(&cluster.path("foreign"), 2);
    let mut command = cluster.node_command(0);
    command.args(["--certs", "foreign"]);
    assert!(refused_node(command).contains("data/n1"));
    // Neither attempt changed anything.
    (0..2).for_each(|i| cluster.spawn(i));
    cluster.leader().await;
}

#[test]
fn a_full_disk_at_the_start_is_one_clear_line() {
    let cluster = Cluster::prepare(1, "");
    // A limit on the length of files stands for the end of the disk: preallocation of the log meets it.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" node --config n1.toml", QUICRAFT]);
    command.current_dir(cluster.path("")).stdin(Stdio::null()).stdout(Stdio::null());
    assert!(refused_node(command).contains("data/n1"));
}

#[tokio::test]
async fn foreign_clients_and_clients_at_the_peer_port_are_refused() {
    let cluster = Cluster::start(1).await;
    make_certs(&cluster.path("foreign"), 1);
    let connect = |endpoint: String, certs: &str| {
        Client::connect(Options {
            endpoints: vec![endpoint],
            certs: cluster.path(certs),
            name: "client".into(),
            timeout: Duration::from_secs(3),
        })
    };
    assert!(connect(cluster.endpoint(0), "foreign").await.is_err());
    assert!(connect(cluster.peer_endpoint(0), "certs").await.is_err());
    assert!(connect(cluster.endpoint(0), "nowhere").await.is_err());
    serves(&cluster).await;
}

#[tokio::test]
async fn bad_keys_and_values_are_refused_with_the_limit() {
    let cluster = Cluster::start_with(1, "value_max = \"1KiB\"").await;
    let client = cluster.client().await;
    assert!(matches!(client.put("", "v").await, Err(Error::KeyInvalid { bytes: 0 })));
    assert!(matches!(client.put([b'k'; 4097], "v").await, Err(Error::KeyInvalid { bytes: 4097 })));
    assert!(matches!(client.put("k", [b'v'; 1025]).await, Err(Error::TooLarge { limit: 1024 })));
    client.put([b'k'; 4096], [b'v'; 1024]).await.unwrap();
    client.put("k", "").await.unwrap();
    for (args, code, part) in [
        (&["put", "", "v"][..], 2, "key"),
        (&["get", "nothing here"][..], 1, ""),
        (&["put", "k", &"v".repeat(1025)][..], 4, "1024"),
        (&["put", "k", "@no such file"][..], 2, "no such file"),
    ] {
        let output = cluster.cli(args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        assert!(text.contains(part) && text.lines().count() <= 2, "{args:?}: {text}");
    }
    serves(&cluster).await;
}

#[tokio::test]
async fn garbage_at_both_ports_changes_nothing() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut state = 1_u64;
    for i in 0..2000 {
        let mut datagram = vec![0_u8; 1 + i * 7 % 1400];
        for byte in &mut datagram {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (state >> 56) as u8;
        }
        if i % 3 == 0 {
            datagram[0] |= 0xC0; // a long header: looks like the start of a connection
        }
        for endpoint in [cluster.endpoint(leader), cluster.peer_endpoint(leader)] {
            // A full socket buffer is as good as a lost datagram.
            let _ = socket.send_to(&datagram, endpoint);
        }
    }
    serves(&cluster).await;
    cluster.converge().await;
}

#[test]
fn a_command_without_a_cluster_says_so() {
    let cluster = Cluster::prepare(1, "");
    let output = cluster.cli(&["get", "key"]);
    let line = refusal(&output, 3);
    assert!(line.contains("is the cluster running?"), "{line}");
}

async fn serves(cluster: &Cluster) {
    let client = cluster.client().await;
    until("a write", async || client.put("serves", "yes").await.ok()).await;
    assert_eq!(&client.get("serves").await.unwrap().unwrap().bytes[..], b"yes");
}
