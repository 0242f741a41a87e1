//! One server of each peer with many small keys: its memory, and how soon it serves again after a stop. And three servers
//! that nobody asks for anything: what they cost.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::time::sleep;

use crate::load::{self, Settings};
use crate::peer::{Connection, Peer};
use crate::servers::{Binaries, Running, Setup};

/// What one peer showed.
struct Seen {
    peer: Peer,
    restart: f64,
    resident_mb: f64,
    idle_percent: f64,
    idle_mb: f64,
}

/// Measures all of them, one after the other, and gives the table.
pub async fn compare(
    peers: &[Peer],
    keys: u64,
    binaries: &Binaries,
    work: &Path,
    port: u16,
) -> Result<String> {
    let (work, mut all) = (work.join("rest"), Vec::new());
    for &peer in peers {
        let seen = measure(peer, keys, binaries, &work, port);
        all.push(seen.await.with_context(|| format!("{} at rest", peer.name()))?);
    }
    let mut text = format!(
        "| with {keys} keys of 16 B, values of {VALUE_BYTES} B | restart to first read, s | memory, MB | an idle node of \
         three: % of a core | MB | Quicraft restarts |\n|---|---|---|---|---|---|\n"
    );
    let ours = all.iter().find(|seen| seen.peer == Peer::Quicraft).map(|seen| seen.restart);
    for seen in &all {
        let ratio = match ours {
            Some(ours) if seen.peer != Peer::Quicraft => {
                format!("{:.1} times as fast", seen.restart / ours)
            }
            _ => String::new(),
        };
        let _ = writeln!(
            text,
            "| {} | {:.3} | {:.0} | {:.2} | {:.0} | {ratio} |",
            seen.peer.name(),
            seen.restart,
            seen.resident_mb,
            seen.idle_percent,
            seen.idle_mb
        );
    }
    Ok(text)
}

async fn measure(
    peer: Peer,
    keys: u64,
    binaries: &Binaries,
    work: &Path,
    port: u16,
) -> Result<Seen> {
    let one = Setup { nodes: 1, leases: false, rdb: true };
    let start = || Running::spawn_all((peer, one), binaries, work, port);
    let mut running = Running::start((peer, one), binaries, work, port).await?;
    let connection = Connection::open(&running).await?;
    let (warmup, duration) = (Duration::ZERO, Duration::ZERO);
    let settings = Settings { keys, value_bytes: VALUE_BYTES, warmup, duration };
    load::fill(&connection, settings).await?;
    // What was begun in the background comes to its end.
    sleep(CALM).await;
    let resident_mb = resident_mb(&running);
    close(connection).await;
    let mut restart = f64::MAX;
    for _ in 0..RESTARTS {
        running.stop();
        let begun = Instant::now();
        running = start()?;
        first_read(&running, &load::key(keys / 2), begun).await?;
        restart = restart.min(begun.elapsed().as_secs_f64());
    }
    running.stop();
    let idle = work.join("idle");
    let three = Setup { nodes: 3, ..one };
    let running = Running::start((peer, three), binaries, &idle, port).await?;
    sleep(CALM).await;
    let pids = running.pids();
    let before = cpu_ticks(&pids);
    sleep(IDLE).await;
    let ticks = cpu_ticks(&pids) - before;
    let nodes = pids.len().max(1) as f64;
    Ok(Seen {
        peer,
        restart,
        resident_mb,
        idle_percent: ticks as f64 / TICKS_PER_SECOND / IDLE.as_secs_f64() * 100.0 / nodes,
        idle_mb: self::resident_mb(&running) / nodes,
    })
}

/// Tries until a key of the data is read.
async fn first_read(running: &Running, key: &str, begun: Instant) -> Result<()> {
    while begun.elapsed() < PATIENCE {
        if let Ok(mut connection) = Connection::open(running).await {
            let read = connection.get(key).await;
            close(connection).await;
            if read.is_ok() {
                return Ok(());
            }
        }
        sleep(Duration::from_millis(2)).await;
    }
    bail!("{} does not serve again; see {}", running.peer.name(), running.dir.display())
}

async fn close(connection: Connection) {
    if let Connection::Quicraft(client) = connection {
        client.close().await;
    }
}

/// Memory of the servers, as the system counts it.
fn resident_mb(running: &Running) -> f64 {
    let of = |pid: u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0)
    };
    running.pids().into_iter().map(of).sum::<f64>() * 1024.0 / 1e6
}

/// Processor time of processes so far.
fn cpu_ticks(pids: &[u32]) -> u64 {
    let of = |pid: &u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Behind the name, which may have spaces in it.
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let tick = |place: usize| fields.get(place).and_then(|text| text.parse::<u64>().ok());
        tick(11).unwrap_or(0) + tick(12).unwrap_or(0)
    };
    pids.iter().map(of).sum()
}

const VALUE_BYTES: usize = 64;
const RESTARTS: usize = 3;
const CALM: Duration = Duration::from_secs(8);
const IDLE: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(120);
/// The kernel counts processor time for programs in hundredths of a second on every architecture.
const TICKS_PER_SECOND: f64 = 100.0;
