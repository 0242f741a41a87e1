//! Clients that take and do not give, at a small scale: whatever they do, a node stays within its memory and serves the
//! others, and when they are gone their memory is too. `cargo bench --bench overload` has the same at a large scale.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::floods::{Flood, Hostile, first_packets, gets, half_frame, memory, scan};
use harness::{Cluster, until};
use quicraft::client::{Client, Doors};
use quicraft::proto::client::Reply;
use quicraft::proto::decode;
use quicraft::quic::{FrameReader, explain};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// What a flood may cost a node beside its data.
const FLOOD_BYTES_MAX: u64 = 256 << 20;
/// How long a flood lasts.
const FLOOD: Duration = Duration::from_secs(3);
const LONG: usize = 1 << 20;

/// An honest client that writes and reads as long as the flood lasts.
struct Honest {
    rounds: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Honest {
    async fn start(cluster: &Cluster) -> Honest {
        let client = cluster.client().await;
        let (rounds, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let task = tokio::spawn({
            let (rounds, stop) = (Arc::clone(&rounds), Arc::clone(&stop));
            async move {
                while !stop.load(Ordering::Relaxed) {
                    let value = rounds.load(Ordering::Relaxed).to_string();
                    client.put("honest", &value).await.unwrap();
                    let read = client.get("honest").await.unwrap().unwrap();
                    assert_eq!(&read.bytes[..], value.as_bytes());
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Honest { rounds, stop, task }
    }

    /// Checks that it got on during the flood, and ends it.
    async fn end(self) {
        let before = self.rounds.load(Ordering::Relaxed);
        until("an honest request", async || {
            (self.rounds.load(Ordering::Relaxed) > before + 1).then_some(())
        })
        .await;
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

/// A node with long values, and what it takes.
async fn node_with_data() -> (Cluster, Client, u64) {
    let cluster = Cluster::start(1).await;
    let client = cluster.client().await;
    for number in 0..48 {
        client.put(&format!("long{number}"), &vec![number; LONG]).await.unwrap();
    }
    let data = memory(&cluster, 0);
    (cluster, client, data)
}

/// Watches the memory of a node while a flood lasts, and gives the most that it took beside its data.
async fn watch(cluster: &Cluster, data: u64) -> u64 {
    let begun = Instant::now();
    let mut most = 0;
    while begun.elapsed() < FLOOD {
        most = memory(cluster, 0).saturating_sub(data).max(most);
        sleep(Duration::from_millis(50)).await;
    }
    println!("it took {} MiB beside {} MiB of data", most >> 20, data >> 20);
    assert!(most < FLOOD_BYTES_MAX, "{} MiB beside the data", most >> 20);
    most
}

async fn doors(client: &Client) -> Doors {
    // A build without optimisation needs a while for long values.
    until("an answer", async || {
        let node = client.status_all().await.into_iter().next()?;
        Some(node.status.ok()?.doors)
    })
    .await
}

/// Memory goes back when a flood is over.
async fn falls(cluster: &Cluster, data: u64, most: u64) {
    let may = data + (most / 2).max(48 << 20);
    until("memory that goes back", async || (memory(cluster, 0) < may).then_some(())).await;
}

async fn flood_of_questions(connections: usize, streams: usize, questions: &[u8]) -> Doors {
    let (cluster, client, data) = node_with_data().await;
    let honest = Honest::start(&cluster).await;
    let hostile = Hostile::new(&cluster, "hostile", 0);
    let flood: Flood = hostile.ask(connections, streams, questions).await;
    let most = watch(&cluster, data).await;
    honest.end().await;
    let seen = doors(&client).await;
    drop(flood);
    falls(&cluster, data, most).await;
    let is_empty = |doors: &Doors| {
        doors.reply_bytes < 1 << 16 && doors.held_reads == 0 && doors.half_frame_bytes == 0
    };
    until("queues that are empty again", async || Some(doors(&client).await).filter(is_empty))
        .await;
    seen
}

#[tokio::test]
async fn a_client_that_reads_no_answers_costs_a_bounded_part_of_a_nodes_memory() {
    let doors = flood_of_questions(3, 30, &gets(b"long7", 200)).await;
    assert!(doors.held_reads > 100, "{doors:?}");
    assert!(doors.reply_bytes < 32 << 20, "{doors:?}");
}

#[tokio::test]
async fn many_connections_that_read_no_answers_cost_no_more() {
    let doors = flood_of_questions(100, 4, &gets(b"long7", 100)).await;
    assert!(doors.held_reads > 100 && doors.client.connections >= 100, "{doors:?}");
}

#[tokio::test]
async fn scans_that_nobody_reads_cost_a_bounded_part_of_a_nodes_memory() {
    let doors = flood_of_questions(20, 30, &scan()).await;
    assert!(doors.reply_bytes < 32 << 20, "{doors:?}");
}

#[tokio::test]
async fn requests_without_their_last_byte_cost_a_bounded_part_of_a_nodes_memory() {
    let doors = flood_of_questions(20, 30, &half_frame(4 << 20)).await;
    assert!(doors.half_frame_bytes >= 1 << 20 && doors.half_frame_bytes < 64 << 20, "{doors:?}");
}

#[tokio::test]
async fn a_client_that_reads_late_gets_every_answer() {
    let (cluster, client, _) = node_with_data().await;
    let hostile = Hostile::new(&cluster, "late", 0);
    let mut flood = hostile.ask(1, 2, &gets(b"long7", 100)).await;
    let held = async || Some(doors(&client).await.held_reads).filter(|&held| held > 50);
    until("reads that wait for room", held).await;
    // The second stream, since the first has no long answers.
    let (mut send, receive) = flood.streams.remove(1).await.unwrap();
    send.finish().unwrap();
    let mut reader = FrameReader::new(receive, 8 << 20);
    let (mut frames, mut answered) = (Vec::new(), vec![0; 100]);
    while timeout(harness::PATIENCE, reader.read_batch(&mut frames)).await.unwrap().unwrap() {
        for frame in frames.drain(..) {
            match decode(&frame.body, "reply").unwrap() {
                Reply::Value { value, .. } => assert!(value.len() == LONG && value[0] == 7),
                other => panic!("{other:?}"),
            }
            answered[frame.request_id as usize] += 1;
        }
    }
    assert_eq!(answered, vec![1; 100]);
    assert_eq!(doors(&client).await.held_reads, 0);
}

#[tokio::test]
async fn handshakes_that_are_not_finished_take_few_places_and_keep_nobody_out() {
    let (cluster, client, data) = node_with_data().await;
    let hostile = Hostile::new(&cluster, "hostile", 0);
    let packets = first_packets(&hostile, 500).await;
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let honest = Honest::start(&cluster).await;
    let ports = [cluster.endpoint(0), cluster.peer_endpoint(0)];
    let mut most = 0;
    for (number, packet) in packets.iter().enumerate() {
        for port in &ports {
            socket.send_to(packet, port).await.unwrap();
        }
        if number % 50 == 0 {
            most = doors(&client).await.client.half_open.max(most);
            // Somebody new gets in meanwhile.
            cluster.client().await.get("honest").await.unwrap();
        }
    }
    honest.end().await;
    let doors = doors(&client).await;
    assert!((1..=5).contains(&most), "{most} half-open: {doors:?}");
    // Handshakes in another protocol fail at once on the peers' port, which gives their places back.
    let answered_by_peers = doors.peer.retried + doors.peer.failed;
    assert!(doors.client.retried > 400 && answered_by_peers > 400, "{doors:?}");
    assert!(doors.peer.half_open <= 5, "{doors:?}");
    let took = memory(&cluster, 0).saturating_sub(data);
    assert!(took < 64 << 20, "{} MiB", took >> 20);
}

#[tokio::test]
async fn one_principal_does_not_take_all_connections() {
    let (cluster, client, _) = node_with_data().await;
    let hostile = Arc::new(Hostile::new(&cluster, "hostile", 0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let hostile = Arc::clone(&hostile);
        tasks.spawn(async move {
            let mut open = Vec::new();
            for _ in 0..28 {
                open.extend(hostile.connect().await);
            }
            open
        });
    }
    let open: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    let refused = async || Some(doors(&client).await.client).filter(|door| door.refused > 0);
    let door = until("connections that are refused", refused).await;
    // And those of the honest client.
    assert!((512..520).contains(&door.connections), "{door:?}");
    let reason = open.iter().find_map(|connection| connection.close_reason()).unwrap();
    let reason = explain(&reason).to_string();
    assert!(reason.contains("hostile?role=readonly has too many connections"), "{reason}");
    cluster.client().await.get("long1").await.unwrap();
}
