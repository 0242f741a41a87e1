//! Bytes that only somebody with a certificate of the cluster can send: frames of garbage behind a handshake that is
//! in order. Whoever sends them is cut off or refused; nobody else notices.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::time::Duration;

use harness::{Cluster, until};
use quicraft::pki::Credentials;
use quicraft::proto::client::{Consistency, Get, Refusal, Reply};
use quicraft::proto::frame::{Frame, FrameKind, encode_frame};
use quicraft::proto::peer::SnapshotDone;
use quicraft::proto::{decode, encode};
use quicraft::quic::{FrameReader, PortKind, client_endpoint, dial};
use quinn::Connection;
use tokio::time::timeout;

/// Numbers that are the same in each run.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % bound
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        (0..len).map(|_| self.below(256) as u8).collect()
    }
}

async fn connect(cluster: &Cluster, i: usize, kind: PortKind, who: &str) -> Connection {
    let credentials = Credentials::load(&cluster.path("certs"), who).unwrap();
    let address = match kind {
        PortKind::Client => cluster.endpoint(i),
        PortKind::Peer => cluster.peer_endpoint(i),
    };
    let (endpoint, name) = (client_endpoint().unwrap(), format!("n{}", i + 1));
    dial(&endpoint, address.parse().unwrap(), &name, &credentials, kind).await.unwrap()
}

/// Sends bytes on a new stream and gives the frames that come back until the stream or the connection ends.
async fn say(connection: &Connection, bytes: &[u8]) -> Vec<Frame> {
    let Ok((mut send, receive)) = connection.open_bi().await else { return Vec::new() };
    // Fails if the other side hangs up meanwhile, as it may.
    let _ = send.write_all(bytes).await;
    let _ = send.finish();
    let (mut reader, mut frames) = (FrameReader::new(receive, 1 << 24), Vec::new());
    let read = async { while let Ok(true) = reader.read_batch(&mut frames).await {} };
    timeout(Duration::from_secs(5), read).await.expect("the node answers or hangs up");
    frames
}

fn frame(kind: FrameKind, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_frame(&mut bytes, kind, 7, |buffer| buffer.extend_from_slice(body));
    bytes
}

async fn serves(cluster: &Cluster, key: &str) {
    let client = cluster.client().await;
    until("a write", async || client.put(key, "yes").await.ok()).await;
    assert_eq!(&client.get(key).await.unwrap().unwrap().bytes[..], b"yes");
}

#[tokio::test]
async fn what_is_no_frame_costs_a_client_its_connection() {
    let cluster = Cluster::start(1).await;
    let valid = frame(FrameKind::Status, b"");
    let mut wrong_kind = valid.clone();
    wrong_kind[4] = 200;
    let mut flagged = valid.clone();
    flagged[5] = 1;
    let mut endless = valid.clone();
    endless[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut empty = valid.clone();
    empty[..4].copy_from_slice(&0_u32.to_le_bytes());
    let cases = [wrong_kind, flagged, endless, empty, valid[..valid.len() - 1].to_vec()];
    for bytes in &cases {
        let connection = connect(&cluster, 0, PortKind::Client, "client").await;
        assert_eq!(say(&connection, bytes).await.len(), 0, "{bytes:?}");
        timeout(Duration::from_secs(5), connection.closed()).await.expect("it is cut off");
    }
    serves(&cluster, "frames").await;
}

#[tokio::test]
async fn a_request_that_is_taken_back_half_way_costs_no_other_one() {
    let cluster = Cluster::start(1).await;
    let connection = connect(&cluster, 0, PortKind::Client, "client").await;
    for _ in 0..3 {
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        let put = frame(FrameKind::Write, &[0; 1000]);
        send.write_all(&put[..500]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        send.reset(0_u32.into()).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let frames = say(&connection, &frame(FrameKind::Status, b"")).await;
        assert_eq!(frames.len(), 1, "the connection is gone");
    }
}

#[tokio::test]
async fn what_is_no_request_is_refused_with_a_reason() {
    let cluster = Cluster::start(1).await;
    let connection = connect(&cluster, 0, PortKind::Client, "client").await;
    let mut rng = Rng(1);
    let mut long_key = Vec::new();
    encode(
        &Get { key: &[1; 5000], consistency: Consistency::Local, revision: None },
        &mut long_key,
    );
    let mut trailing = Vec::new();
    encode(&Get { key: b"k", consistency: Consistency::Local, revision: None }, &mut trailing);
    trailing.push(0);
    let mut cases = vec![
        (FrameKind::Get, long_key),
        (FrameKind::Get, trailing),
        (FrameKind::Reply, b"\0".to_vec()),
        (FrameKind::Raft, rng.bytes(50)),
        (FrameKind::Snapshot, rng.bytes(20)),
        (FrameKind::Hello, Vec::new()),
    ];
    for kind in [FrameKind::Write, FrameKind::Scan, FrameKind::Get] {
        // The first byte is far beyond every variant and length: none of these decodes.
        cases.extend((0..50).map(|i| (kind, [vec![0xFF; 11], rng.bytes(i * 20)].concat())));
    }
    for (kind, body) in cases {
        let frames = say(&connection, &frame(kind, &body)).await;
        let reply: Reply<'_> = decode(&frames[0].body, "reply").unwrap();
        let is_refusal = matches!(
            reply,
            Reply::Refused(Refusal::Invalid { .. } | Refusal::TooLarge { limit: 4096 })
        );
        assert!(is_refusal && frames.len() == 1, "{kind:?} {body:?}: {reply:?}");
    }
    serves(&cluster, "requests").await;
}

#[tokio::test]
async fn a_peer_that_sends_garbage_is_cut_off_and_the_others_go_on() {
    let mut cluster = Cluster::start(3).await;
    serves(&cluster, "before").await;
    cluster.kill9(2);
    let mut rng = Rng(2);
    for round in 0..60 {
        let to = round % 2;
        let connection = connect(&cluster, to, PortKind::Peer, "n3").await;
        let len = rng.below(400);
        let garbage = rng.bytes(len);
        let bytes = match round % 3 {
            0 => garbage,
            1 => frame(FrameKind::Raft, &garbage),
            _ => frame(FrameKind::SnapshotChunk, &garbage),
        };
        let mut stream = connection.open_uni().await.unwrap();
        let _ = stream.write_all(&bytes).await;
        let _ = stream.finish();
        let snapshot = frame(FrameKind::Snapshot, &bytes);
        for answer in say(&connection, &snapshot).await {
            let done: SnapshotDone = decode(&answer.body, "done").unwrap();
            assert!(!done.installed, "garbage is no snapshot");
        }
        connection.close(0_u32.into(), b"");
    }
    serves(&cluster, "after").await;
    cluster.spawn(2);
    cluster.converge().await;
}

#[tokio::test]
async fn a_long_value_does_not_stand_before_short_ones() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    let long = vec![9; 3 << 20];
    client.put("long", &long).await.unwrap();
    client.put("short", "s").await.unwrap();
    assert_eq!(client.get("long").await.unwrap().unwrap().bytes, long);

    // As the first stream of a connection, which all requests share, has it.
    let connection = connect(&cluster, 0, PortKind::Client, "client").await;
    let get = |key: &[u8]| {
        let mut body = Vec::new();
        encode(&Get { key, consistency: Consistency::Linearizable, revision: None }, &mut body);
        frame(FrameKind::Get, &body)
    };
    let both = [get(b"long"), get(b"short")].concat();
    let frames = say(&connection, &both).await;
    let replies = frames.iter().map(|frame| decode::<Reply<'_>>(&frame.body, "reply").unwrap());
    let replies: Vec<_> = replies.collect();
    assert!(matches!(replies[..], [Reply::Large, Reply::Value { value: b"s", .. }]));
}
