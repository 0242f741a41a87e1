//! The README's quick start and failover, run word for word against the built binary.
//!
//! A `console` block is a transcript: after `$ ` a command, below it the whole output. A revision may be another number
//! than the README's (elections and sessions take log indexes too); a command without output in the README may print.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::{PATIENCE, QUICRAFT};

const README: &str = include_str!("../README.md");
const START: &str = "cargo run --release -- cluster";
const NODES: u16 = 3;

/// The contents of all fenced blocks of a language.
fn blocks(language: &str) -> Vec<Vec<&'static str>> {
    let mut blocks = Vec::new();
    let mut lines = README.lines();
    let fence = format!("```{language}");
    while lines.by_ref().any(|line| line == fence) {
        blocks.push(lines.by_ref().take_while(|line| *line != "```").collect());
    }
    blocks
}

/// A supervisor that stops gracefully when the test ends, however it ends.
struct Supervisor(Child);

impl Supervisor {
    /// Starts the cluster for the first time, on free ports.
    fn start(dir: &Path) -> Self {
        Self::spawn(dir, Some(base_port()))
    }

    /// Starts it with what its directory says.
    fn start_again(dir: &Path) -> Self {
        Self::spawn(dir, None)
    }

    fn spawn(dir: &Path, base_port: Option<u16>) -> Self {
        let words: Vec<_> = START.split(' ').skip_while(|word| *word != "--").skip(1).collect();
        let mut command = Command::new(QUICRAFT);
        harness::without_variables(&mut command);
        command.args(words);
        if let Some(port) = base_port {
            command.env("QUICRAFT_BASE_PORT", port.to_string());
        }
        let out = fs::File::create(dir.join("cluster.out")).unwrap();
        let err = out.try_clone().unwrap();
        Self(command.current_dir(dir).stdin(Stdio::null()).stdout(out).stderr(err).spawn().unwrap())
    }

    fn stop(&mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        self.0.wait().unwrap().code()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            self.stop();
        }
    }
}

/// A port with all others free that a cluster takes with it.
fn base_port() -> u16 {
    for base in (20_000 + (std::process::id() as u16 % 100) * 300..60_000).step_by(300) {
        let ports = (0..NODES).flat_map(|i| [base + i, base + 100 + i]);
        let taken: Result<Vec<_>, _> =
            ports.map(|port| UdpSocket::bind(("127.0.0.1", port))).collect();
        if taken.is_ok() {
            return base;
        }
    }
    panic!("no free ports");
}

/// Runs a line of the README in a shell and gives its output.
fn run(dir: &Path, line: &str) -> (bool, String) {
    let bin = Path::new(QUICRAFT).parent().unwrap().display();
    let path = format!("{bin}:{}", std::env::var("PATH").unwrap());
    let mut command = Command::new("sh");
    harness::without_variables(&mut command);
    command.args(["-c", line]).current_dir(dir).env("PATH", path).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success(), text + &String::from_utf8_lossy(&output.stderr))
}

fn is_same(shown: &str, is: &str) -> bool {
    let revision = |text: &str| text.parse::<u64>().is_ok();
    shown == is || (revision(shown) && revision(is))
}

/// Runs one transcript.
fn follow(dir: &Path, transcript: &[&str]) {
    let mut lines = transcript.iter().peekable();
    while let Some(line) = lines.next() {
        let command = line.strip_prefix("$ ").expect("a transcript begins with a command");
        let mut shown = Vec::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with("$ ")) {
            shown.push(*line);
        }
        let (done, output) = run(dir, command);
        assert!(done, "{command}: {output}");
        if !shown.is_empty() {
            let is: Vec<_> = output.lines().collect();
            let same = shown.len() == is.len() && shown.iter().zip(&is).all(|(a, b)| is_same(a, b));
            assert!(same, "{command}: the README shows {shown:?}, but it is {is:?}");
        }
    }
}

#[test]
fn the_readme_tells_the_truth() {
    assert_eq!(blocks("sh")[0], [START, "cargo test --release"]);
    let transcripts = blocks("console");
    assert_eq!(transcripts.len(), 2, "quick start and failover");

    let dir = tempfile::tempdir().unwrap();
    let mut supervisor = Supervisor::start(dir.path());
    let deadline = Instant::now() + PATIENCE;
    while !run(dir.path(), "quicraft put ready yes").0 {
        let out = fs::read_to_string(dir.path().join("cluster.out")).unwrap();
        assert_eq!(supervisor.0.try_wait().unwrap(), None, "the cluster ended: {out}");
        assert!(Instant::now() < deadline, "not ready within {PATIENCE:?}: {out}");
        std::thread::sleep(Duration::from_millis(50));
    }
    for transcript in transcripts {
        follow(dir.path(), &transcript);
    }
    let events = fs::read_to_string(dir.path().join("cluster.out")).unwrap();
    for event in ["n1 lost (killed by signal 9)", "n1 back"] {
        assert!(events.contains(event), "{event} is not in {events}");
    }
    assert_eq!(supervisor.stop(), Some(0));

    // Started again it is the same cluster with the same data.
    let mut supervisor = Supervisor::start_again(dir.path());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (done, output) = run(dir.path(), "quicraft get color");
        if done {
            assert_eq!(output.trim_end(), "green");
            break;
        }
        assert!(Instant::now() < deadline, "not there again within {PATIENCE:?}: {output}");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(supervisor.stop(), Some(0));
}
