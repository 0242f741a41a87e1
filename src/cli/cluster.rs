//! `quicraft cluster`: real nodes on this machine, secured and durable, watched by one process.
//!
//! What is missing is made at the first start: certificates, one configuration and one data directory
//! per node. After that it is the same cluster with the same data. Nodes are processes of their own;
//! they end when this one does, because it holds their standard input open.

mod control;
mod setup;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};

use setup::Layout;

#[derive(Args)]
pub(super) struct ClusterArgs {
    #[command(subcommand)]
    command: Option<ClusterCommand>,
    /// Number of nodes, 1 to 7 [default: 3, or as many as there are]
    #[arg(short, long)]
    nodes: Option<usize>,
    /// Directory of configurations, data and node logs
    #[arg(long, env = "QUICRAFT_DATA", default_value = "data", global = true)]
    data: PathBuf,
    /// Directory of the certificates
    #[arg(long, env = "QUICRAFT_CERTS", default_value = "certs")]
    certs: PathBuf,
    /// Clients reach the first node at this port, the others at the next ones; peers 100 above
    #[arg(long, env = "QUICRAFT_BASE_PORT", default_value_t = 7001)]
    base_port: u16,
}

#[derive(Subcommand)]
enum ClusterCommand {
    /// Kill a node of the running cluster, as a crash would
    Kill { node: String },
    /// Start a node of the running cluster again
    Start { node: String },
}

/// What the supervisor reacts to.
enum Event {
    /// A node says something.
    Line(String, String),
    /// A node has closed its standard error: it is ending.
    Silent(String),
    /// Somebody asks for something, and waits for the answer.
    Control(control::Order, Sender<String>),
    /// Stop.
    Stop,
}

pub(super) fn run(args: ClusterArgs) -> ExitCode {
    let result = match &args.command {
        Some(ClusterCommand::Kill { node }) => control::ask(&args.data, "kill", node),
        Some(ClusterCommand::Start { node }) => control::ask(&args.data, "start", node),
        None => supervise(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("quicraft: {message}");
            ExitCode::FAILURE
        }
    }
}

fn supervise(args: &ClusterArgs) -> Result<(), String> {
    let layout = Layout::prepare(args)?;
    let (sender, events) = channel();
    // Before anything starts: only one supervisor may.
    let _control = control::listen(&args.data, sender.clone())?;
    catch_signals(sender.clone())?;
    let color = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut cluster = Cluster { layout, sender, running: BTreeMap::new(), color };
    for name in cluster.layout.names.clone() {
        cluster.start(&name)?;
    }
    cluster.greet(args);
    cluster.watch(&events);
    cluster.stop();
    Ok(())
}

/// Ctrl-C and SIGTERM become an event.
fn catch_signals(sender: Sender<Event>) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot catch signals: {error}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed)?;
    let thread = std::thread::Builder::new().name("signals".to_owned());
    let wait = async move {
        use tokio::signal::unix::{SignalKind, signal};
        let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
        if let (Ok(mut terminate), Ok(mut interrupt)) = signals {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
    };
    let body = move || {
        runtime.block_on(wait);
        // Nobody listens if the supervisor has ended already.
        let _ = sender.send(Event::Stop);
    };
    thread.spawn(body).map(|_| ()).map_err(failed)
}

struct Cluster {
    layout: Layout,
    sender: Sender<Event>,
    running: BTreeMap<String, Child>,
    color: bool,
}

impl Cluster {
    fn start(&mut self, name: &str) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("cannot start {name}: {error}");
        let program = std::env::current_exe().map_err(failed)?;
        let mut child = Command::new(program)
            .args(["node", "--stop-on-stdin-eof", "--config"])
            .arg(self.layout.config(name))
            // The configuration alone says who the node is, whatever the supervisor's own variables say.
            .env_remove("QUICRAFT_DATA")
            .env_remove("QUICRAFT_CERTS")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C is for the supervisor, which stops the nodes gracefully.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let log = self.layout.log(name);
        let file = File::options().create(true).append(true).open(&log).map_err(failed)?;
        let stderr = child.stderr.take().ok_or("a node without standard error")?;
        let (sender, relayed) = (self.sender.clone(), name.to_owned());
        let thread = std::thread::Builder::new().name(format!("relay-{name}"));
        thread.spawn(move || relay(&relayed, stderr, file, &sender)).map_err(failed)?;
        self.running.insert(name.to_owned(), child);
        Ok(())
    }

    fn say(&self, name: &str, line: &str) {
        let place = self.layout.names.iter().position(|known| known == name).unwrap_or(0);
        if self.color {
            println!("\x1b[{}m{name}\x1b[0m  {line}", COLORS[place % COLORS.len()]);
        } else {
            println!("{name}  {line}");
        }
    }

    fn greet(&self, args: &ClusterArgs) {
        println!("{} nodes are starting; in a second terminal:", self.layout.names.len());
        let mut extra = String::new();
        if args.certs != Path::new("certs") {
            extra = format!(" --certs {}", args.certs.display());
        }
        println!("  quicraft put greeting hello{extra}");
        println!("  quicraft get greeting{extra}");
        println!("  quicraft status{extra}");
        println!("  quicraft cluster kill {}", self.layout.names[0]);
        println!("Ctrl-C stops all of them.");
    }

    fn watch(&mut self, events: &Receiver<Event>) {
        while let Ok(event) = events.recv() {
            match event {
                Event::Line(name, line) => self.say(&name, &line),
                Event::Silent(name) => self.reap(&name),
                Event::Control(order, answer) => {
                    let text = self.obey(&order).unwrap_or_else(|error| error);
                    // Who asked may be gone.
                    let _ = answer.send(text);
                }
                Event::Stop => return,
            }
        }
    }

    fn obey(&mut self, order: &control::Order) -> Result<String, String> {
        let name = &order.node;
        if !self.layout.names.contains(name) {
            return Err(format!("there is no node {name}: {}", self.layout.names.join(", ")));
        }
        match (order.verb.as_str(), self.running.get_mut(name)) {
            ("kill", Some(child)) => {
                child.kill().map_err(|error| format!("cannot kill {name}: {error}"))?;
                Ok(format!("ok {name} is killed"))
            }
            ("kill", None) => Err(format!("{name} is not running")),
            ("start", None) => {
                self.start(name)?;
                self.say(name, "back");
                Ok(format!("ok {name} is started"))
            }
            ("start", Some(_)) => Err(format!("{name} is running")),
            (verb, _) => Err(format!("what is {verb:?}?")),
        }
    }

    /// A node has ended, or is about to.
    fn reap(&mut self, name: &str) {
        let Some(mut child) = self.running.remove(name) else { return };
        let how = match child.wait() {
            Ok(status) => match (status.signal(), status.code()) {
                (Some(signal), _) => format!("killed by signal {signal}"),
                (None, Some(code)) => format!("exit code {code}"),
                (None, None) => "for no known reason".to_owned(),
            },
            Err(error) => error.to_string(),
        };
        self.say(name, &format!("lost ({how}); `quicraft cluster start {name}` starts it again"));
    }

    /// SIGTERM to all, in the order that moves leadership least often: all at once.
    fn stop(&mut self) {
        println!("stopping");
        for child in self.running.values() {
            let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                // Fails if the node has ended by itself.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
        let deadline = Instant::now() + STOP_PATIENCE;
        for (name, child) in &mut self.running {
            while matches!(child.try_wait(), Ok(None)) {
                if Instant::now() >= deadline {
                    eprintln!("quicraft: {name} does not stop, it is killed");
                    let _ = child.kill();
                    let _ = child.wait();
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Copies a node's messages into its log file, and hands them on without their time.
fn relay(name: &str, stderr: ChildStderr, mut log: File, sender: &Sender<Event>) {
    for line in BufReader::new(stderr).split(b'\n') {
        let Ok(line) = line else { break };
        let line = String::from_utf8_lossy(&line).into_owned();
        // A log that cannot be written is no reason to lose the node.
        let _ = writeln!(log, "{line}");
        let event = Event::Line(name.to_owned(), without_time(&line).to_owned());
        if sender.send(event).is_err() {
            return;
        }
    }
    let _ = sender.send(Event::Silent(name.to_owned()));
}

/// `2026-01-01T00:00:00.000000Z  INFO text` without its first word.
fn without_time(line: &str) -> &str {
    match line.split_once("  ").or_else(|| line.split_once(' ')) {
        Some((time, rest)) if time.ends_with('Z') => rest.trim_start(),
        _ => line,
    }
}

/// ANSI colours that can be told apart on dark and light.
const COLORS: [u8; 7] = [36, 33, 35, 32, 34, 31, 96];
const STOP_PATIENCE: Duration = Duration::from_secs(10);
