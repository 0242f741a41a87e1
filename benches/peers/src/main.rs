//! The same work against Quicraft, etcd and Redis on this machine, in one run.
//!
//! Rounds alternate: each peer's servers are started, all shapes are run, the servers are stopped, and the next peer has
//! its turn, so that a machine that is slower for a while is slower for all. Quicraft runs with mutual TLS and three
//! nodes, etcd without TLS and three nodes, Redis without TLS, one server, `appendfsync always`. Every write is synced
//! before it is answered by all of them.

mod load;
mod peer;
mod report;
mod rest;
mod servers;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;

use load::{Settings, Shape};
use peer::{Connection, Peer, Work};
use report::Results;
use servers::{Binaries, Running, Setup};

#[derive(Parser)]
struct Args {
    /// The quicraft program
    #[arg(long, default_value = "../../target/release/quicraft")]
    quicraft: PathBuf,
    /// The etcd program, 3.5
    #[arg(long, default_value = "etcd")]
    etcd: PathBuf,
    /// The Redis server
    #[arg(long, default_value = "redis-server")]
    redis: PathBuf,
    /// Where servers keep their data: on the disk that is to be measured; emptied first
    #[arg(long, default_value = "target/peers-data")]
    work: PathBuf,
    /// Where the results go
    #[arg(long, default_value = "results")]
    results: PathBuf,
    /// Times that each peer has its turn
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Milliseconds that one shape is measured
    #[arg(long, default_value_t = 2500)]
    duration_ms: u64,
    /// Keys
    #[arg(long, default_value_t = 100_000)]
    keys: u64,
    /// Bytes of a value
    #[arg(long, default_value_t = 256)]
    value_size: usize,
    /// Keys of the servers that are restarted; 0 leaves that part out
    #[arg(long, default_value_t = 1_000_000)]
    rest_keys: u64,
    /// The first of 400 ports
    #[arg(long, default_value_t = 21_000)]
    port: u16,
}

fn main() -> Result<()> {
    let mut args = Args::parse();
    // Servers run in directories of their own.
    if args.quicraft.components().count() > 1 {
        args.quicraft = fs::canonicalize(&args.quicraft).unwrap_or(args.quicraft);
    }
    if args.work.exists() {
        fs::remove_dir_all(&args.work)?;
    }
    fs::create_dir_all(&args.work)?;
    fs::create_dir_all(&args.results)?;
    args.work = fs::canonicalize(&args.work)?;
    let binaries = Binaries {
        quicraft: args.quicraft.clone(),
        etcd: args.etcd.clone(),
        redis: args.redis.clone(),
    };
    let (mut peers, mut about) = (Vec::new(), machine(&args)?);
    for peer in Peer::ALL {
        match binaries.version(peer) {
            Ok(version) => {
                about.push_str(&format!("{}: {version}\n", peer.name()));
                peers.push(peer);
            }
            Err(missing) => {
                eprintln!("{missing:#}");
                about.push_str(&format!("{}: left out, it is missing\n", peer.name()));
            }
        }
    }
    if peers.is_empty() {
        bail!("nothing to compare");
    }
    println!("{about}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut results = Results::default();
    for round in 1..=args.rounds {
        for &peer in &peers {
            runtime
                .block_on(turn(&args, &binaries, peer, round, &mut results))
                .with_context(|| format!("round {round} of {}", peer.name()))?;
        }
    }
    let mut table = results.table();
    if args.rest_keys > 0 {
        let rest = rest::compare(&peers, args.rest_keys, &binaries, &args.work, args.port);
        table.push_str(&format!("\n{}", runtime.block_on(rest)?));
    }
    println!("\n{table}");
    fs::write(args.results.join("peers.md"), format!("{}\n{table}", about.replace('\n', "\n\n")))?;
    fs::write(args.results.join("peers.csv"), results.csv())?;
    fs::write(args.results.join("peers.svg"), results.plot())?;
    Ok(())
}

/// One peer's turn of one round.
async fn turn(
    args: &Args,
    binaries: &Binaries,
    peer: Peer,
    round: usize,
    results: &mut Results,
) -> Result<()> {
    let settings = Settings {
        keys: args.keys,
        value_bytes: args.value_size,
        warmup: Duration::from_millis(500),
        duration: Duration::from_millis(args.duration_ms),
    };
    let mut setup = Setup::CLUSTER;
    let mut running = Running::start((peer, setup), binaries, &args.work, args.port).await?;
    if round == 1 {
        load::fill(&Connection::open(&running).await?, settings).await?;
    }
    for shape in SHAPES.into_iter().filter(|shape| peer.can(shape.work)) {
        let leases = shape.work == Work::LeaseGet;
        if leases != setup.leases {
            setup.leases = leases;
            running.stop();
            running = Running::start((peer, setup), binaries, &args.work, args.port).await?;
        }
        let mut connections = Vec::with_capacity(shape.connections);
        for _ in 0..shape.connections {
            connections.push(Connection::open(&running).await?);
        }
        let measured = load::run(&connections, shape, settings).await?;
        for connection in connections {
            if let Connection::Quicraft(client) = connection {
                client.close().await;
            }
        }
        eprintln!("round {round} {:8} {shape:?}: {measured:.1?}", peer.name());
        results.add(shape, peer, measured);
    }
    Ok(())
}

/// What the figures hold for.
fn machine(args: &Args) -> Result<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism()?;
    Ok(format!(
        "machine: {cores} processors {}, Linux {}\nsync of 4 KiB: {:.0} us (median of {SYNCS})\n\
         {} keys of 16 B, values of {} B; Quicraft with TLS on, etcd and Redis with TLS off\n",
        model.trim_start_matches([' ', '\t', ':']),
        kernel.trim(),
        sync_us(&args.work)?,
        args.keys,
        args.value_size
    ))
}

/// How long the disk takes for one block, in place.
fn sync_us(dir: &Path) -> Result<f64> {
    let path = dir.join("sync");
    let file = File::create(&path)?;
    let mut times = Vec::with_capacity(SYNCS);
    for i in 0..=SYNCS {
        let begun = Instant::now();
        file.write_all_at(&[i as u8; 4096], 0)?;
        file.sync_data()?;
        times.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    fs::remove_file(path)?;
    // The first allocates the block.
    times.remove(0);
    times.sort_by(f64::total_cmp);
    Ok(times[SYNCS / 2])
}

const SYNCS: usize = 200;

const SHAPES: [Shape; 8] = [
    Shape { work: Work::Put, clients: 1, connections: 1 },
    Shape { work: Work::Put, clients: 64, connections: 8 },
    Shape { work: Work::Put, clients: 256, connections: 16 },
    Shape { work: Work::Put, clients: 1000, connections: 100 },
    Shape { work: Work::Get, clients: 1, connections: 1 },
    Shape { work: Work::Get, clients: 256, connections: 16 },
    Shape { work: Work::Scan, clients: 64, connections: 8 },
    Shape { work: Work::LeaseGet, clients: 1, connections: 1 },
];
