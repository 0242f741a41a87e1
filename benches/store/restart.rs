//! From a snapshot to the first served read: in the store, in a node process, and in Redis from its RDB file.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quicraft::client::{Client, Options};
use quicraft::disk::OsDisk;
use quicraft::proto;
use quicraft::raft::{Membership, NodeId, Term};
use quicraft::store::snapshot::{Dir, SnapshotMeta};
use quicraft::store::{Pace, Store};

use super::load::{Loaded, VALUE_BYTES, key, options};
use crate::harness::Cluster;

const ROUNDS: usize = 5;

pub(crate) fn run(keys: usize) {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let dir = Dir::new(Arc::new(OsDisk), place.path().to_owned());
    let mut loaded = Loaded::new();
    loaded.put_all(0..keys as u64, &[7; VALUE_BYTES]);
    let path = write(&dir, &mut loaded);
    drop(loaded);
    let bytes = fs::metadata(&path).unwrap().len();
    let load = best(|| {
        let begin = Instant::now();
        let (store, _) = Store::load(&dir, &path, options()).unwrap();
        assert!(store.reader().get(&key(keys as u64 / 2), store.revision()).is_some());
        begin.elapsed()
    });
    let node = node(&path, keys);
    println!("restart with {keys} keys ({} MB of snapshot), best of {ROUNDS}:", bytes / 1_000_000);
    println!("  store loaded, every checksum verified, and read: {load:.3} s");
    println!("  node process to the first served read: {node:.3} s");
    match redis(place.path(), keys) {
        Some(redis) => println!(
            "  Redis from its RDB to the first served read: {redis:.3} s, {:.1} of ours",
            redis / node
        ),
        None => println!("  no redis-server here"),
    }
}

fn best(mut round: impl FnMut() -> Duration) -> f64 {
    (0..ROUNDS).map(|_| round().as_secs_f64()).fold(f64::MAX, f64::min)
}

/// Writes a snapshot without history.
pub(crate) fn write(dir: &Dir, loaded: &mut Loaded) -> std::path::PathBuf {
    loaded.compact();
    let mut membership = Vec::new();
    proto::encode(&Membership::of([NodeId(1)]), &mut membership);
    let index = loaded.store.revision();
    let meta = SnapshotMeta { cluster: [1; 16], index, term: Term(1), membership };
    let (info, _) = loaded.store.checkpoint().write(dir, &meta, &Pace::default()).unwrap();
    info.path
}

/// A process of one node, restored from the file, started again and again.
fn node(path: &Path, keys: usize) -> f64 {
    let mut cluster =
        Cluster::prepare_empty(1, "heartbeat = \"10ms\"\nelection_timeout = \"50ms\"");
    let path = path.to_str().unwrap();
    let restored = cluster.cli(&["snapshot", "restore", path, "--config", "n1.toml"]);
    assert!(restored.status.success(), "{restored:?}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut best = f64::MAX;
        for _ in 0..ROUNDS {
            let begin = Instant::now();
            cluster.spawn(0);
            let client = loop {
                let options = Options {
                    endpoints: vec![cluster.endpoint(0)],
                    certs: cluster.path("certs"),
                    name: "client".into(),
                    timeout: Duration::from_secs(60),
                };
                match Client::connect(options).await {
                    Ok(client) => break client,
                    Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            };
            assert!(client.get_local(key(keys as u64 / 2), None).await.unwrap().is_some());
            best = best.min(begin.elapsed().as_secs_f64());
            client.close().await;
            assert!(cluster.term(0).await.success());
        }
        best
    })
}

/// The same keys in Redis: written, saved, and loaded by a process that starts.
fn redis(dir: &Path, keys: usize) -> Option<f64> {
    let port = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
    let start = || {
        Command::new("redis-server")
            .args(["--port", &port.to_string(), "--save", "", "--dbfilename", "bench.rdb", "--dir"])
            .arg(dir)
            .stdout(Stdio::null())
            .spawn()
            .ok()
    };
    let mut server = start()?;
    let mut link = connect(port);
    let value = [b'v'; VALUE_BYTES];
    for lot in 0..keys.div_ceil(LOT) {
        let mut text = Vec::new();
        let numbers = lot * LOT..keys.min((lot + 1) * LOT);
        let count = numbers.len();
        for number in numbers {
            text.extend(b"*3\r\n$3\r\nSET\r\n$16\r\n");
            text.extend(key(number as u64));
            text.extend(format!("\r\n${VALUE_BYTES}\r\n").as_bytes());
            text.extend(value);
            text.extend(b"\r\n");
        }
        link.get_mut().write_all(&text).unwrap();
        (0..count).for_each(|_| assert_eq!(line(&mut link), "+OK"));
    }
    link.get_mut().write_all(b"SAVE\r\n").unwrap();
    assert_eq!(line(&mut link), "+OK");
    end(&mut server, link);
    let best = best(|| {
        let begin = Instant::now();
        let mut server = start().unwrap();
        let mut link = connect(port);
        loop {
            link.get_mut().write_all(b"EXISTS ").unwrap();
            link.get_mut().write_all(b"missing\r\n").unwrap();
            if !line(&mut link).starts_with("-LOADING") {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let took = begin.elapsed();
        end(&mut server, link);
        took
    });
    Some(best)
}

fn connect(port: u16) -> BufReader<TcpStream> {
    loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(link) => return BufReader::new(link),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn line(link: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    link.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

fn end(server: &mut Child, mut link: BufReader<TcpStream>) {
    link.get_mut().write_all(b"SHUTDOWN NOSAVE\r\n").unwrap();
    server.wait().unwrap();
}

const LOT: usize = 1000;
