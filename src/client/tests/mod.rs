//! The client against nodes that misbehave on purpose.

#[allow(clippy::unwrap_used, reason = "test code, though not in a test function")]
mod fake;

use std::time::{Duration, Instant};

use self::fake::{Act, Cluster};
use super::{Client, Error, ScanMode, ScanRequest};
use crate::proto::client::Refusal;
use crate::proto::command::Outcome;

#[allow(clippy::unwrap_used, reason = "test code, though not in a test function")]
async fn all_rows(client: &Client, request: ScanRequest) -> Vec<String> {
    let mut stream = client.scan(request).await.unwrap();
    let mut rows = Vec::new();
    while let Some(row) = stream.next().await.unwrap() {
        rows.push(String::from_utf8(row.key.to_vec()).unwrap());
    }
    assert_eq!(stream.end().unwrap().rows as usize, rows.len());
    rows
}

#[tokio::test]
async fn everything_works_on_one_node() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    assert!(client.get("a").await.unwrap().is_none());
    let revision = client.put("a", "x").await.unwrap();
    client.append("a", "y").await.unwrap();
    let value = client.get("a").await.unwrap().unwrap();
    assert_eq!(&value.bytes[..], b"xy");
    assert!(value.revision > revision);
    assert!(client.delete("a").await.unwrap().existed);
    assert!(!client.delete("a").await.unwrap().existed);
    assert_eq!(client.status(1).await.unwrap().name, "n1");
    client.close().await;
    assert!(cluster.with(|shared| shared.sessions.is_empty()));
    assert_eq!(client.get("a").await, Err(Error::Closed));
}

#[tokio::test]
async fn a_follower_sends_the_client_to_the_leader() {
    let cluster = Cluster::start(3);
    let client = cluster.client().await;
    client.put("a", "1").await.unwrap();
    cluster.with(|shared| shared.leader = 3);
    client.put("a", "2").await.unwrap();
    let nodes: Vec<_> = cluster.with(|shared| shared.writes.iter().map(|w| w.0).collect());
    assert_eq!(nodes, [1, 3]);
    assert_eq!(client.leader(), Some(3));
}

#[tokio::test]
async fn a_write_whose_connection_broke_is_sent_again_with_the_same_number() {
    let cluster = Cluster::start(3);
    let client = cluster.client().await;
    client.put("a", "").await.unwrap();
    cluster.act(1, [Act::ApplyAndDrop]);
    client.append("a", "x").await.unwrap();
    let value = client.get("a").await.unwrap().unwrap();
    assert_eq!(&value.bytes[..], b"x", "applied once");
    cluster.with(|shared| {
        let [_, first, second] = shared.writes[..] else { panic!("{:?}", shared.writes) };
        assert_eq!((first.1, first.2), (second.1, second.2));
    });
}

#[tokio::test]
async fn a_write_lost_with_its_leader_is_sent_to_the_next_one() {
    let cluster = Cluster::start(3);
    let client = cluster.client().await;
    client.put("a", "").await.unwrap();
    cluster.act(1, [Act::ApplyAndDrop]);
    let endpoint = cluster.endpoints[0].clone();
    endpoint.set_server_config(None);
    cluster.with(|shared| shared.leader = 2);
    client.append("a", "x").await.unwrap();
    cluster.with(|shared| {
        let [_, first, second] = shared.writes[..] else { panic!("{:?}", shared.writes) };
        assert_eq!((first.0, second.0), (1, 2));
        assert_eq!((first.1, first.2), (second.1, second.2));
        assert_eq!(shared.store[&b"a"[..]].0, b"x");
    });
}

#[tokio::test]
async fn a_silent_leader_is_left_for_the_one_that_the_others_name() {
    let cluster = Cluster::start(3);
    let client = cluster.client().await;
    client.put("a", "1").await.unwrap();
    cluster.with(|shared| {
        shared.mute.push(1);
        shared.leader = 2;
    });
    let begin = Instant::now();
    client.put("a", "2").await.unwrap();
    assert_eq!(client.leader(), Some(2));
    // The deadline is 5 s, QUIC's idle timeout 15 s: it was neither that ended the wait.
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn busy_and_unknown_are_tried_again() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let busy = Act::Refuse(Refusal::Busy { retry_after_ms: 1 });
    cluster.act(1, [busy.clone(), busy.clone(), Act::Refuse(Refusal::Unknown)]);
    client.put("a", "1").await.unwrap();
    cluster.act(1, [busy]);
    assert!(client.get("a").await.unwrap().is_some());
}

#[tokio::test]
async fn final_refusals_end_at_once() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let role = "readonly".to_owned();
    for (refusal, error) in [
        (Refusal::NoSpace, Error::NoSpace),
        (Refusal::TooLarge { limit: 9 }, Error::TooLarge { limit: 9 }),
        (Refusal::Denied { role: role.clone() }, Error::Denied { role }),
    ] {
        cluster.act(1, [Act::Refuse(refusal)]);
        assert_eq!(client.put("a", "1").await, Err(error));
    }
    // After a sending of unknown fate, no refusal says that nothing was written.
    cluster.act(1, [Act::Refuse(Refusal::Unknown), Act::Refuse(Refusal::NoSpace)]);
    assert_eq!(client.put("a", "1").await, Err(Error::Unknown));
}

#[tokio::test]
async fn a_timeout_says_whether_the_write_may_have_happened() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    // Short, but long enough for a sending on a machine that runs all tests at once.
    let hasty = client.with_timeout(Duration::from_secs(1));
    client.put("a", "0").await.unwrap();
    cluster.act(1, [Act::Ignore, Act::Ignore]);
    let error = hasty.put("a", "1").await.unwrap_err();
    assert!(matches!(error, Error::Timeout { may_have_happened: true, .. }), "{error:?}");
    let error = hasty.get("a").await.unwrap_err();
    assert!(matches!(error, Error::Timeout { may_have_happened: false, .. }), "{error:?}");
    cluster.with(|shared| shared.leader = 0);
    // Unless the time ends just between a sending and its answer, which a busy machine may bring about.
    let mut errors = Vec::new();
    while !matches!(errors.last(), Some(Error::Timeout { may_have_happened: false, .. })) {
        assert!(errors.len() < 5, "{errors:?}");
        errors.push(hasty.put("a", "1").await.unwrap_err());
    }
    // The given-up number is released: the next write says that it is over.
    cluster.with(|shared| shared.leader = 1);
    client.put("a", "2").await.unwrap();
    let last = cluster.with(|shared| *shared.writes.last().unwrap());
    assert_eq!(last.2, last.3, "nothing below the last number is unanswered");
}

#[tokio::test]
async fn a_forgotten_session_is_replaced_only_if_nothing_can_have_been_applied() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    client.put("a", "1").await.unwrap();
    cluster.with(|shared| shared.sessions.clear());
    client.put("a", "2").await.unwrap();
    assert_eq!(cluster.with(|shared| shared.sessions.len()), 1);

    cluster.act(1, [Act::Drop, Act::Say(Outcome::SessionUnknown)]);
    assert_eq!(client.put("a", "3").await, Err(Error::Unknown));
    client.put("a", "4").await.unwrap();
}

#[tokio::test]
async fn replies_find_their_requests_in_any_order() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    for i in 0..20 {
        client.put(format!("k{i}"), format!("v{i}")).await.unwrap();
    }
    cluster.with(|shared| shared.reverse_batch = 20);
    let mut gets = tokio::task::JoinSet::new();
    for i in 0..20 {
        let client = client.clone();
        gets.spawn(async move { (i, client.get(format!("k{i}")).await.unwrap().unwrap()) });
    }
    for (i, value) in gets.join_all().await {
        assert_eq!(value.bytes, format!("v{i}"));
    }
}

#[tokio::test]
async fn a_thousand_writes_share_one_connection() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let mut writes = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let client = client.clone();
        writes.spawn(async move { client.append("a", "x").await.unwrap() });
    }
    writes.join_all().await;
    assert_eq!(client.get("a").await.unwrap().unwrap().bytes.len(), 1000);
    assert_eq!(cluster.endpoints[0].open_connections(), 1);
    assert_eq!(cluster.with(|shared| shared.own_streams), 0);
}

#[tokio::test]
async fn large_values_have_a_stream_of_their_own() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    let value = vec![7; 1 << 20];
    client.put("a", &value).await.unwrap();
    assert_eq!(cluster.with(|shared| shared.own_streams), 1);
    assert_eq!(client.get("a").await.unwrap().unwrap().bytes, value);
}

#[tokio::test]
async fn a_long_rest_before_a_large_value_is_not_taken_for_the_nodes_silence() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    client.put("a", "").await.unwrap();
    cluster.with(|shared| shared.large_takes = Duration::from_millis(400));
    tokio::time::sleep(Duration::from_secs(1)).await;
    client.put("a", vec![7; 1 << 20]).await.unwrap();
    // It went once, over the connection that was there.
    assert_eq!(cluster.with(|shared| (shared.writes.len(), shared.own_streams)), (2, 1));
    assert_eq!(cluster.endpoints[0].open_connections(), 1);
}

#[tokio::test]
async fn a_large_write_that_is_given_up_half_way_is_taken_back() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    client.put("a", "").await.unwrap();
    // Nobody reads it, so it stays half sent.
    cluster.with(|shared| shared.unread = true);
    let put = tokio::time::timeout(Duration::from_millis(200), client.put("a", vec![7; 2 << 20]));
    assert!(put.await.is_err());
    let ended = async {
        while cluster.with(|shared| shared.resets) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), ended).await.expect("the node hears of it");
}

#[tokio::test]
async fn limits_are_checked_before_anything_is_sent() {
    let cluster = Cluster::start(1);
    let client = cluster.client().await;
    assert_eq!(client.get("").await, Err(Error::KeyInvalid { bytes: 0 }));
    assert_eq!(client.put(vec![1; 4097], "").await, Err(Error::KeyInvalid { bytes: 4097 }));
    let too_long = vec![0; (4 << 20) + 1];
    assert_eq!(client.put("a", too_long).await, Err(Error::TooLarge { limit: 4 << 20 }));
    assert!(cluster.with(|shared| shared.writes.is_empty()));
}

#[tokio::test]
async fn scans_stream_pages_in_order() {
    let cluster = Cluster::start(2);
    let client = cluster.client().await;
    for i in 0..95 {
        client.put(format!("k{i:02}"), "v").await.unwrap();
    }
    client.put("other", "v").await.unwrap();
    let keys: Vec<_> = (0..95).map(|i| format!("k{i:02}")).collect();
    assert_eq!(all_rows(&client, ScanRequest::prefix("k")).await, keys);
    assert_eq!(all_rows(&client, ScanRequest::range("k10", "k13")).await, ["k10", "k11", "k12"]);
    let last = ScanRequest { reverse: true, limit: 2, ..ScanRequest::default() };
    assert_eq!(all_rows(&client, last).await, ["other", "k94"]);
    let count = ScanRequest { mode: ScanMode::Count, ..ScanRequest::prefix("k") };
    assert_eq!(client.scan(count).await.unwrap().finish().await.unwrap().rows, 95);
    cluster.with(|shared| shared.leader = 2);
    assert_eq!(all_rows(&client, ScanRequest::prefix("o")).await, ["other"]);
}

#[tokio::test]
async fn local_reads_stay_on_the_asked_node() {
    let cluster = Cluster::start(3);
    let client = cluster.client().await;
    client.put("a", "1").await.unwrap();
    cluster.with(|shared| shared.leader = 0);
    assert!(client.get_local("a", Some(3)).await.unwrap().is_some());
    assert!(client.get_local("a", None).await.unwrap().is_some());
    assert_eq!(client.get_local("a", Some(9)).await, Err(Error::NoSuchNode { node_id: 9 }));
}

#[tokio::test]
async fn status_of_all_shows_the_unreachable_too() {
    let cluster = Cluster::start(3);
    let client = cluster.client().await;
    cluster.with(|shared| shared.mute.push(2));
    let all = client.status_all().await;
    let answered: Vec<_> = all.iter().map(|one| (one.member.id, one.status.is_ok())).collect();
    assert_eq!(answered, [(1, true), (2, false), (3, true)]);
}

#[tokio::test]
async fn an_address_where_nothing_listens_is_named() {
    let cluster = Cluster::start(1);
    let mut options = cluster.options(1);
    let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    options.endpoints = vec![free.clone()];
    let error = Client::connect(options.clone()).await.unwrap_err();
    let tried = vec![(free.clone(), "nothing is listening".to_owned())];
    assert_eq!(error, Error::Unreachable { tried });
    // One that answers is enough.
    options.endpoints = vec![free, cluster.addresses[0].to_string()];
    Client::connect(options).await.unwrap();
}

#[tokio::test]
async fn a_foreign_certificate_is_rejected_and_a_missing_one_is_named() {
    let cluster = Cluster::start(1);
    let foreign = Cluster::start(1);
    let mut options = cluster.options(1);
    options.certs = foreign.dir.path().to_owned();
    let error = Client::connect(options.clone()).await.unwrap_err();
    assert!(matches!(error, Error::Rejected { .. }), "{error:?}");
    options.name = "nobody".into();
    let error = Client::connect(options).await.unwrap_err();
    assert!(matches!(error, Error::Credentials(_)), "{error:?}");
}
