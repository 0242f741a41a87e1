//! A cluster of real node processes for tests, on free ports in a temporary directory.
//!
//! Tests wait for conditions with a deadline, never for a time. A test that fails shows the last lines of each node.

#![allow(dead_code, unreachable_pub, reason = "each test file uses another part")]

pub mod floods;
pub mod joiner;
pub mod relay;
pub mod workload;

use std::fs::{self, File};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use quicraft::client::{Client, Options, RoleName, Status};
use quicraft::pki::{Authority, Issue, Role};
use relay::Relay;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// The built binary.
pub const QUICRAFT: &str = env!("CARGO_BIN_EXE_quicraft");
/// Within this everything that must happen has happened, also on a slow and busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// Another process may take a free port before the node does.
pub const START_TRIES: usize = 3;

/// A cluster; all its processes end when it is dropped. Nodes count from 0 here; node 0 is called `n1` and has id 1.
pub struct Cluster {
    dir: TempDir,
    extra: String,
    ports: Vec<(u16, u16)>,
    children: Vec<Option<Child>>,
    monitor: Option<Client>,
    /// Between the nodes, if they do not reach each other without.
    pub relay: Option<Relay>,
}

impl Cluster {
    /// Starts `n` nodes with default settings and waits for a leader.
    pub async fn start(n: usize) -> Self {
        Self::start_with(n, "").await
    }

    /// Starts `n` nodes with `extra` keys in each configuration and waits for a leader.
    pub async fn start_with(n: usize, extra: &str) -> Self {
        for _ in 0..START_TRIES {
            let mut cluster = Self::prepare(n, extra);
            (0..n).for_each(|i| cluster.spawn(i));
            if cluster.leader_or_exit().await {
                return cluster;
            }
        }
        panic!("no cluster started in {START_TRIES} tries");
    }

    /// Starts `n` nodes whose packets to each other go through a relay, and waits for a leader.
    pub async fn start_behind_relay(n: usize, extra: &str, delay: Duration) -> Self {
        let mut cluster = Self::prepare_empty(n, extra);
        let peer_ports: Vec<_> = cluster.ports.iter().map(|&(_, peer)| peer).collect();
        cluster.relay = Some(Relay::start(&peer_ports, delay));
        cluster.write_configs();
        for i in 0..n {
            assert!(cluster.node_command(i).arg("--init").status().unwrap().success());
            cluster.spawn(i);
        }
        cluster.leader().await;
        cluster
    }

    /// Makes certificates, configurations and data directories, starts nothing.
    pub fn prepare(n: usize, extra: &str) -> Self {
        let cluster = Self::prepare_empty(n, extra);
        for i in 0..n {
            assert!(cluster.node_command(i).arg("--init").status().unwrap().success());
        }
        cluster
    }

    /// Makes certificates and configurations only.
    pub fn prepare_empty(n: usize, extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let certs = dir.path().join("certs");
        make_certs(&certs, n);
        let ports = free_ports(n);
        let children = (0..n).map(|_| None).collect();
        let cluster =
            Self { dir, extra: extra.to_owned(), ports, children, monitor: None, relay: None };
        cluster.write_configs();
        cluster
    }

    /// Writes each node's configuration, with the ports that it has now.
    pub fn write_configs(&self) {
        let mut members = String::new();
        for (i, (client, peer)) in self.ports.iter().enumerate() {
            let id = i + 1;
            let peer = self.relay.as_ref().map_or(*peer, |relay| relay.fronts[i]);
            members.push_str(&format!(
                "\n[[members]]\nid = {id}\nname = \"n{id}\"\npeer = \"127.0.0.1:{peer}\"\n\
                 client = \"127.0.0.1:{client}\"\n"
            ));
        }
        for (i, (client, peer)) in self.ports.iter().enumerate() {
            // Small files: preallocation of the default takes long on a slow disk.
            let segment =
                if self.extra.contains("segment =") { "" } else { "segment = \"4MiB\"\n" };
            let text = format!(
                "name = \"n{id}\"\ndata = \"data/n{id}\"\ncerts = \"certs\"\n\
                 client_listen = \"127.0.0.1:{client}\"\npeer_listen = \"127.0.0.1:{peer}\"\n\
                 {segment}{extra}\n{members}",
                id = i + 1,
                extra = self.extra,
            );
            fs::write(self.dir.path().join(format!("n{}.toml", i + 1)), text).unwrap();
        }
        let endpoints: Vec<_> =
            (0..self.ports.len()).map(|i| format!("{:?}", self.endpoint(i))).collect();
        let text = format!("endpoints = [{}]\n", endpoints.join(", "));
        fs::write(self.path("certs/client.toml"), text).unwrap();
        fs::create_dir_all(self.path("data")).unwrap();
    }

    /// Whether the cluster has a leader (true), or a node ended at its start because a port was gone (false).
    pub async fn leader_or_exit(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.leader_now().await.is_some() {
                return true;
            }
            for i in 0..self.len() {
                let child = self.children[i].as_mut().unwrap();
                if child.try_wait().unwrap().is_some() {
                    let log = self.log(i);
                    assert!(log.contains("in use"), "n{} ended at its start: {log}", i + 1);
                    return false;
                }
            }
            tokio::time::sleep(POLL).await;
        }
        panic!("no leader within {PATIENCE:?}");
    }

    pub fn len(&self) -> usize {
        self.children.len()
    }

    /// A path in the cluster's directory, which is the current directory of all its processes.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where clients reach node `i`.
    pub fn endpoint(&self, i: usize) -> String {
        format!("127.0.0.1:{}", self.ports[i].0)
    }

    /// Where nodes reach node `i`.
    pub fn peer_endpoint(&self, i: usize) -> String {
        format!("127.0.0.1:{}", self.ports[i].1)
    }

    /// The command that runs node `i`.
    pub fn node_command(&self, i: usize) -> Command {
        let mut command = Command::new(QUICRAFT);
        command.arg("node").arg("--config").arg(format!("n{}.toml", i + 1));
        command.current_dir(self.dir.path()).stdin(Stdio::null()).stdout(Stdio::null());
        without_variables(&mut command);
        command
    }

    /// The process of node `i`, which runs.
    pub fn pid(&self, i: usize) -> u32 {
        self.children[i].as_ref().expect("the node runs").id()
    }

    /// Whether node `i` was started and has not ended.
    pub fn is_running(&mut self, i: usize) -> bool {
        let ended =
            self.children[i].as_mut().is_none_or(|child| child.try_wait().unwrap().is_some());
        if ended {
            self.children[i] = None;
        }
        !ended
    }

    /// Starts node `i`, which must not run.
    pub fn spawn(&mut self, i: usize) {
        assert!(self.children[i].is_none(), "n{} runs already", i + 1);
        let log = self.path(&format!("n{}.log", i + 1));
        let log = File::options().create(true).append(true).open(log).unwrap();
        self.children[i] = Some(self.node_command(i).stderr(log).spawn().unwrap());
    }

    /// Ends node `i` with signal 9.
    pub fn kill9(&mut self, i: usize) {
        let mut child = self.children[i].take().expect("the node runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Stops node `i` gracefully.
    pub async fn term(&mut self, i: usize) -> ExitStatus {
        self.signal(i, Signal::TERM);
        self.exit(i).await
    }

    /// Waits until node `i` ends by itself.
    pub async fn exit(&mut self, i: usize) -> ExitStatus {
        let mut child = self.children[i].take().expect("the node runs");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > deadline {
                self.children[i] = Some(child);
                panic!("n{} did not end within {PATIENCE:?}", i + 1);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    pub fn signal(&self, i: usize, signal: Signal) {
        let child = self.children[i].as_ref().expect("the node runs");
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// Halts node `i`; it does nothing any more when this returns.
    pub async fn halt(&self, i: usize) {
        self.signal(i, Signal::STOP);
        let stat = format!("/proc/{}/stat", self.children[i].as_ref().unwrap().id());
        let halted = || fs::read_to_string(&stat).map_or(true, |text| text.contains(") T "));
        until("a halted process", async || halted().then_some(())).await;
    }

    /// Lets a halted node go on.
    pub fn resume(&self, i: usize) {
        self.signal(i, Signal::CONT);
    }

    /// Everything that node `i` wrote to its standard error.
    pub fn log(&self, i: usize) -> String {
        fs::read_to_string(self.path(&format!("n{}.log", i + 1))).unwrap_or_default()
    }

    /// A client of the whole cluster.
    pub async fn client(&self) -> Client {
        let endpoints = (0..self.len()).map(|i| self.endpoint(i)).collect();
        self.client_of(endpoints, PATIENCE).await
    }

    /// A client that begins at `endpoints`.
    pub async fn client_of(&self, endpoints: Vec<String>, timeout: Duration) -> Client {
        let options =
            Options { endpoints, certs: self.path("certs"), name: "client".into(), timeout };
        Client::connect(options).await.unwrap()
    }

    /// What each node that answers says of itself.
    pub async fn statuses(&mut self) -> Vec<Status> {
        if self.monitor.is_none() {
            let options = Options {
                endpoints: (0..self.len()).map(|i| self.endpoint(i)).collect(),
                certs: self.path("certs"),
                name: "client".into(),
                timeout: Duration::from_secs(2),
            };
            self.monitor = Client::connect(options).await.ok();
        }
        let Some(monitor) = &self.monitor else { return Vec::new() };
        let all = monitor.status_all().await;
        // The members may be others by now, which a new connection tells.
        if all.iter().any(|node| node.status.is_err()) {
            self.monitor = None;
        }
        let mut statuses: Vec<_> = all.into_iter().filter_map(|node| node.status.ok()).collect();
        statuses.sort_by_key(|status| status.node_id);
        statuses.dedup_by_key(|status| status.node_id);
        statuses
    }

    /// The leader that a majority follows, if there is one.
    pub async fn leader_now(&mut self) -> Option<usize> {
        let all = self.statuses().await;
        let leader = all.iter().filter(|s| s.role == RoleName::Leader).max_by_key(|s| s.term)?;
        let same = |s: &&Status| s.term == leader.term && s.leader == Some(leader.node_id);
        let followed = all.iter().filter(same).count();
        (followed > self.len() / 2).then(|| leader.node_id as usize - 1)
    }

    /// Waits for a leader and returns it.
    pub async fn leader(&mut self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(leader) = self.leader_now().await {
                return leader;
            }
            assert!(Instant::now() < deadline, "no leader within {PATIENCE:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until all nodes have applied the same, and checks that it gave all the same state.
    pub async fn converge(&mut self) -> Status {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let all = self.statuses().await;
            for a in &all {
                for b in all.iter().filter(|b| b.applied_index == a.applied_index) {
                    assert_eq!(a.state_hash, b.state_hash, "states differ: {a:?} {b:?}");
                }
            }
            let index = all.first().map(|status| status.applied_index);
            if all.len() == self.len() && all.iter().all(|s| Some(s.applied_index) == index) {
                return all.into_iter().next().unwrap();
            }
            assert!(Instant::now() < deadline, "no common index within {PATIENCE:?}: {all:#?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Runs the command line as a user in the cluster's directory does.
    pub fn cli(&self, args: &[&str]) -> Output {
        let mut command = Command::new(QUICRAFT);
        without_variables(&mut command);
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null()).output().unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for i in 0..self.len() {
                let log = self.log(i);
                let lines: Vec<_> = log.lines().collect();
                let last = lines[lines.len().saturating_sub(30)..].join("\n");
                eprintln!("--- last lines of n{}\n{last}", i + 1);
            }
        }
    }
}

/// Certificates for `n` nodes and a client, of a new authority.
pub fn make_certs(certs: &Path, n: usize) {
    let authority = Authority::create(certs, "test").unwrap();
    for i in 1..=n {
        let hosts = ["127.0.0.1".to_owned()];
        authority.issue_node(&format!("n{i}"), &hosts, Issue::default()).unwrap();
    }
    authority.issue_client("client", Role::Admin, Issue::default()).unwrap();
}

/// For each of `n` nodes a client and a peer port that were free a moment ago.
pub fn free_ports(n: usize) -> Vec<(u16, u16)> {
    let sockets: Vec<_> = (0..2 * n).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let port = |socket: &UdpSocket| socket.local_addr().unwrap().port();
    sockets.chunks(2).map(|pair| (port(&pair[0]), port(&pair[1]))).collect()
}

/// Polls until `probe` gives something.
pub async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(POLL).await;
    }
}

/// What the tester's own environment says must not reach the processes.
pub fn without_variables(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("QUICRAFT_") {
            command.env_remove(name);
        }
    }
}
