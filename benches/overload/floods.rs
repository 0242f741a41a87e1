//! What floods do to honest clients, to the leader's memory and to its heartbeats.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use quicraft::client::Client;
use tokio::task::JoinSet;

use super::harness::Cluster;
use super::harness::floods::{
    Datagrams, Flood, Hostile, first_packets, garbage, gets, half_frame, memory, scan,
};

/// Honest clients, half of which write.
const HONEST: usize = 32;
const LONG: usize = 1 << 20;
const LONG_KEYS: usize = 64;

/// What honest clients and the leader's memory saw.
struct Seen {
    rate: f64,
    latencies: Histogram<u64>,
    /// Of one client that reads, which takes a round of heartbeats.
    rounds: Histogram<u64>,
    errors: usize,
    /// The most that the leader took beside its store.
    memory: u64,
}

/// Runs every flood once.
pub(crate) async fn run(duration: Duration) {
    let mut cluster = Cluster::start_with(3, "segment = \"64MiB\"\n").await;
    let client = cluster.client().await;
    for number in 0..LONG_KEYS {
        client.put(&format!("long{number}"), &vec![number as u8; LONG]).await.unwrap();
    }
    let leader = cluster.leader().await;
    let hostile = Hostile::new(&cluster, "hostile", leader);
    let packets = first_packets(&hostile, 1000).await;
    let ask = async |connections, streams, questions: Vec<u8>| {
        hostile.ask(connections, streams, &questions).await
    };
    measure("nothing", &mut cluster, leader, duration, ()).await;
    for connections in [1, 3, 100] {
        let flood = ask(connections, 30, gets(b"long7", 150)).await;
        let what = format!("{connections} connections that read no answers");
        measure(&what, &mut cluster, leader, duration, flood).await;
    }
    let flood = ask(100, 30, scan()).await;
    measure("3000 scans that nobody reads", &mut cluster, leader, duration, flood).await;
    let flood = ask(30, 30, half_frame(4 << 20)).await;
    measure("900 requests without their end", &mut cluster, leader, duration, flood).await;
    let flood: Flood = ask(500, 1, gets(b"long7", 1)).await;
    measure("500 connections of one principal", &mut cluster, leader, duration, flood).await;
    // What it costs that a core is busy sending.
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let flood = Datagrams::start(&nobody.local_addr().unwrap().to_string(), garbage(999));
    let flood = measure("garbage to nobody", &mut cluster, leader, duration, flood).await;
    println!("  {:.0} datagrams a second", flood.end() as f64 / duration.as_secs_f64());
    for (port, address) in
        [("client", cluster.endpoint(leader)), ("peer", cluster.peer_endpoint(leader))]
    {
        for (what, datagrams) in [("garbage", garbage(999)), ("first packets", packets.clone())] {
            let flood = Datagrams::start(&address, datagrams);
            let what = format!("{what} on the {port} port");
            let flood = measure(&what, &mut cluster, leader, duration, flood).await;
            println!("  {:.0} datagrams a second", flood.end() as f64 / duration.as_secs_f64());
        }
    }
    measure("nothing", &mut cluster, leader, duration, ()).await;
    let doors = cluster.statuses().await.swap_remove(leader).doors;
    println!("  the leader's doors: {doors:?}");
}

/// Prints what honest clients get while `flood` lasts, and what is left of it afterwards.
async fn measure<F>(
    what: &str,
    cluster: &mut Cluster,
    leader: usize,
    duration: Duration,
    flood: F,
) -> F {
    let term = cluster.statuses().await.iter().map(|status| status.term).max();
    let seen = honest(cluster, leader, duration).await;
    let after = cluster.statuses().await.iter().map(|status| status.term).max();
    let ms = |of: &Histogram<u64>, quantile| of.value_at_quantile(quantile) as f64 / 1000.0;
    println!(
        "{what}: {:.0} operations a second, p50 {:.2} ms, p99 {:.2} ms, max {:.1} ms, {} errors; a lone read p50 {:.2} ms, \
         p99 {:.2} ms, max {:.1} ms; {} MiB beside the store; {} new terms",
        seen.rate,
        ms(&seen.latencies, 0.5),
        ms(&seen.latencies, 0.99),
        ms(&seen.latencies, 1.0),
        seen.errors,
        ms(&seen.rounds, 0.5),
        ms(&seen.rounds, 0.99),
        ms(&seen.rounds, 1.0),
        seen.memory >> 20,
        after.unwrap_or(0) - term.unwrap_or(0),
    );
    flood
}

/// Honest clients for so long.
async fn honest(cluster: &mut Cluster, leader: usize, duration: Duration) -> Seen {
    let stop = Arc::new(AtomicBool::new(false));
    let (client, lone) = (cluster.client().await, cluster.client().await);
    let (begun, id) = (Instant::now(), leader as u64 + 1);
    let mut tasks = JoinSet::new();
    for number in 0..HONEST {
        tasks.spawn(work(
            client.clone(),
            number % 2 == 0,
            format!("honest{number}"),
            Arc::clone(&stop),
        ));
    }
    let lone = tokio::spawn(work(lone, false, "honest0".to_owned(), Arc::clone(&stop)));
    let mut most = 0;
    while begun.elapsed() < duration {
        let store = cluster.statuses().await.into_iter().find(|status| status.node_id == id);
        let store = store.map_or(u64::MAX, |status| status.store_bytes);
        most = memory(cluster, leader).saturating_sub(store).max(most);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let (mut latencies, mut errors) = (super::histogram(), 0);
    for (of_one, wrong) in tasks.join_all().await {
        latencies.add(of_one).unwrap();
        errors += wrong;
    }
    let rate = latencies.len() as f64 / begun.elapsed().as_secs_f64();
    let (rounds, wrong) = lone.await.unwrap();
    Seen { rate, latencies, rounds, errors: errors + wrong, memory: most }
}

/// One honest client: what each operation took, in microseconds, and how many failed.
async fn work(
    client: Client,
    writes: bool,
    key: String,
    stop: Arc<AtomicBool>,
) -> (Histogram<u64>, usize) {
    let (mut latencies, mut errors) = (super::histogram(), 0);
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let done = match writes {
            true => client.put(&key, super::VALUE).await.map(|_| ()),
            false => client.get(&key).await.map(|_| ()),
        };
        errors += usize::from(done.is_err());
        latencies.saturating_record(begun.elapsed().as_micros() as u64);
    }
    (latencies, errors)
}
