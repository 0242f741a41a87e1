//! The binary as a user runs it: a cluster of real processes, killed and started again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A running `quicraft cluster` in a directory of its own; stopped when dropped.
struct Cluster {
    dir: tempfile::TempDir,
    supervisor: Child,
}

/// A port below which and 100 above which nothing listens, as far as can be seen.
fn base_port() -> u16 {
    let is_free = |port: u16| std::net::UdpSocket::bind(("127.0.0.1", port)).is_ok();
    let start = 20_000 + (std::process::id() % 200) as u16 * 200;
    (0..100)
        .map(|step| 20_000 + (start - 20_000 + step * 210) % 40_000)
        .find(|&port| (0..3).all(|n| is_free(port + n) && is_free(port + n + 100)))
        .expect("some ports are free")
}

fn supervise(dir: &Path, port: Option<u16>) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_quicraft"))
        .arg("cluster")
        .env_remove("QUICRAFT_BASE_PORT")
        .envs(port.map(|port| ("QUICRAFT_BASE_PORT", port.to_string())))
        .current_dir(dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = child.stdout.take().unwrap();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            println!("{line}");
        }
    });
    child
}

impl Cluster {
    fn start() -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let supervisor = supervise(dir.path(), Some(base_port()));
        Cluster { dir, supervisor }
    }

    /// Runs a command until it succeeds; its standard output.
    fn expect(&self, args: &[&str]) -> String {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let output = self.run(args);
            if output.status.success() {
                return String::from_utf8(output.stdout).unwrap();
            }
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(Instant::now() < deadline, "{args:?}: {:?} {message}", output.status.code());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quicraft"));
        command.args(args).current_dir(self.dir.path()).output().unwrap()
    }

    fn leader(&self) -> String {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let text = self.expect(&["status", "-o", "json"]);
            let status: serde_json::Value = serde_json::from_str(&text).unwrap();
            let nodes = status["nodes"].as_array().unwrap();
            if let Some(leader) = nodes.iter().find(|node| node["role"] == "leader") {
                return leader["name"].as_str().unwrap().to_owned();
            }
            assert!(Instant::now() < deadline, "nobody leads");
        }
    }

    /// Stops all nodes gracefully and starts them again.
    fn restart(&mut self) {
        self.stop();
        self.supervisor = supervise(self.dir.path(), None);
    }

    fn stop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.supervisor);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.supervisor.wait().unwrap().success());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The nodes end with the supervisor that holds their standard input.
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
    }
}

#[test]
fn what_is_acknowledged_survives_the_leader_all_nodes_and_a_restart() {
    let mut cluster = Cluster::start();
    cluster.expect(&["put", "greeting", "hello"]);
    cluster.expect(&["append", "greeting", ", world"]);
    assert_eq!(cluster.expect(&["get", "greeting"]), "hello, world");

    let leader = cluster.leader();
    cluster.expect(&["cluster", "kill", &leader]);
    cluster.expect(&["put", "after", "the leader"]);
    assert_ne!(cluster.leader(), leader);
    cluster.expect(&["cluster", "start", &leader]);

    for node in ["n1", "n2", "n3"] {
        cluster.expect(&["cluster", "kill", node]);
    }
    for node in ["n1", "n2", "n3"] {
        cluster.expect(&["cluster", "start", node]);
    }
    assert_eq!(cluster.expect(&["get", "after"]), "the leader");

    cluster.restart();
    assert_eq!(cluster.expect(&["scan"]), "after\tthe leader\ngreeting\thello, world\n");
    assert_eq!(cluster.expect(&["scan", "--count", "--prefix", "g"]), "1\n");
    cluster.expect(&["del", "after"]);
    assert_eq!(cluster.run(&["get", "after"]).status.code(), Some(1));
    assert_eq!(cluster.run(&["put", "", "x"]).status.code(), Some(2));
    cluster.stop();
    let unreachable = cluster.run(&["get", "greeting"]);
    assert_eq!(unreachable.status.code(), Some(3));
    let message = String::from_utf8(unreachable.stderr).unwrap();
    assert!(message.contains("is the cluster running?"), "{message}");
}
