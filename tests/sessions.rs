//! Whose session: a client that guesses another's session, at the leader and through a follower, neither uses nor closes
//! it, and one that opens sessions without end ends its own only.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::time::Duration;

use harness::Cluster;
use quicraft::client::{Client, Options};
use quicraft::pki::{Authority, Credentials, Issue, Role};
use quicraft::proto::client::{Refusal, Reply};
use quicraft::proto::command::{Command, Op, Outcome, SessionId};
use quicraft::proto::frame::{Frame, FrameKind, encode_frame};
use quicraft::proto::{decode, encode};
use quicraft::quic::{FrameReader, PortKind, client_endpoint, dial};
use quinn::Connection;
use tokio::time::timeout;

/// Of the one whose sessions are at stake, and of the one who is after them.
const VICTIM: &str = "victim";
const THIEF: &str = "thief";
const FLOOD: usize = 70_000;
/// Requests that are sent before their answers are read.
const BURST: usize = 1000;

async fn cluster() -> Cluster {
    let cluster = Cluster::start(3).await;
    let authority = Authority::load(&cluster.path("certs")).unwrap();
    for name in [VICTIM, THIEF] {
        authority.issue_client(name, Role::ReadWrite, Issue::default()).unwrap();
    }
    cluster
}

async fn victim(cluster: &Cluster) -> Client {
    let options = Options {
        endpoints: (0..cluster.len()).map(|i| cluster.endpoint(i)).collect(),
        certs: cluster.path("certs"),
        name: VICTIM.into(),
        timeout: Duration::from_secs(20),
    };
    Client::connect(options).await.unwrap()
}

async fn thief(cluster: &Cluster, i: usize) -> Connection {
    let credentials = Credentials::load(&cluster.path("certs"), THIEF).unwrap();
    let (endpoint, name) = (client_endpoint().unwrap(), format!("n{}", i + 1));
    let address = cluster.endpoint(i).parse().unwrap();
    dial(&endpoint, address, &name, &credentials, PortKind::Client).await.unwrap()
}

/// Sends commands and gives their outcomes, in any order.
async fn ask(connection: &Connection, kind: FrameKind, commands: &[Command<'_>]) -> Vec<Outcome> {
    let (mut send, receive) = connection.open_bi().await.unwrap();
    let mut bytes = Vec::new();
    for (number, command) in (1..).zip(commands) {
        encode_frame(&mut bytes, kind, number, |body| encode(command, body));
    }
    send.write_all(&bytes).await.unwrap();
    send.finish().unwrap();
    let (mut reader, mut frames) = (FrameReader::new(receive, 1 << 20), Vec::new());
    let read = async { while let Ok(true) = reader.read_batch(&mut frames).await {} };
    timeout(Duration::from_secs(30), read).await.expect("the node answers");
    assert_eq!(frames.len(), commands.len());
    frames.iter().filter_map(outcome).collect()
}

/// The outcome, or none if the request was refused for now.
fn outcome(frame: &Frame) -> Option<Outcome> {
    match decode(&frame.body, "reply").unwrap() {
        Reply::Outcome(outcome) => Some(outcome),
        Reply::Refused(Refusal::Busy { .. } | Refusal::Unknown | Refusal::NotLeader { .. }) => None,
        other => panic!("{other:?}"),
    }
}

/// What uses up and closes the sessions opened by the entries `ids`.
fn theft(ids: impl Iterator<Item = u64>, round: u64) -> Vec<Command<'static>> {
    let of_one = |id: u64| {
        let (session, op) = (SessionId(id), Op::Put { key: b"stolen", value: b"x" });
        let writes = (1 + round * 4..6 + round * 4).map(move |seq| Command::Write {
            session,
            seq,
            answered_below: if seq % 2 == 0 { seq } else { u64::MAX },
            op: op.clone(),
        });
        writes.chain([Command::CloseSession(session)])
    };
    ids.flat_map(of_one).collect()
}

#[tokio::test]
async fn who_guesses_a_session_neither_uses_nor_closes_it() {
    let mut cluster = cluster().await;
    let leader = cluster.leader().await;
    let client = victim(&cluster).await;
    client.append("log", "0;").await.unwrap();
    let session = client.session().unwrap();
    let direct = (thief(&cluster, leader).await, FrameKind::Write);
    let forwarded = (thief(&cluster, (leader + 1) % 3).await, FrameKind::WriteAnywhere);
    let mut expected = b"0;".to_vec();
    let mut denied = 0;
    for round in 0..50_u64 {
        // The id is known from any answer around it: all that come into question, or just this one.
        let first = session.0.saturating_sub(if round < 5 { 3 } else { 0 }).max(1);
        let commands = theft(first..=session.0, round);
        let (connection, kind) = if round % 2 == 0 { &direct } else { &forwarded };
        let line = format!("{};", round + 1);
        let (outcomes, written) =
            tokio::join!(ask(connection, *kind, &commands), client.append("log", &line));
        written.unwrap();
        expected.extend_from_slice(line.as_bytes());
        for outcome in outcomes {
            // Closing what is not open is nothing.
            assert!(matches!(outcome, Outcome::SessionUnknown | Outcome::Done), "{outcome:?}");
            denied += usize::from(outcome == Outcome::SessionUnknown);
        }
    }
    assert!(denied > 100, "{denied} denied");
    assert_eq!(client.session(), Some(session), "the session lives");
    assert_eq!(client.get("log").await.unwrap().unwrap().bytes, expected);
    assert!(client.get("stolen").await.unwrap().is_none());
    cluster.converge().await;
}

#[tokio::test]
async fn sessions_without_end_end_none_of_another() {
    let mut cluster = cluster().await;
    let leader = cluster.leader().await;
    let client = victim(&cluster).await;
    client.append("log", "0;").await.unwrap();
    let session = client.session().unwrap();
    let connection = thief(&cluster, leader).await;
    let (mut opened, mut oldest) = (0, None);
    let burst = vec![Command::OpenSession; BURST];
    while opened < FLOOD {
        for outcome in ask(&connection, FrameKind::Write, &burst).await {
            let Outcome::SessionOpened(id) = outcome else { panic!("{outcome:?}") };
            oldest = Some(oldest.map_or(id, |oldest: SessionId| oldest.min(id)));
            opened += 1;
        }
    }
    client.append("log", "1;").await.unwrap();
    assert_eq!(client.session(), Some(session), "the session lives");
    assert_eq!(&client.get("log").await.unwrap().unwrap().bytes[..], b"0;1;");
    // Its own oldest is gone.
    let op = Op::Put { key: b"k", value: b"v" };
    let write = Command::Write { session: oldest.unwrap(), seq: 1, answered_below: 1, op };
    let outcomes = ask(&connection, FrameKind::Write, &[write]).await;
    assert_eq!(outcomes, [Outcome::SessionUnknown]);
    cluster.converge().await;
}
