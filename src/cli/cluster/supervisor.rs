//! The supervisor's loop: one thread owns all nodes; signals, the nodes' lines and requests arrive as events.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};

use super::Error;
use super::child::{Places, Process};
use super::control::Control;
use super::files::{Plan, Planned};
use super::show::{Show, worth_showing};

/// Events that wait; lines beyond that are only in the nodes' logs, other events wait.
const EVENTS_MAX: usize = 1024;
/// After this a node that was asked to stop is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// What happens to a supervisor.
pub(super) enum Event {
    /// A node wrote a line; `missed` lines before it were not passed on.
    Line { place: usize, run: u64, text: String, missed: u64 },
    /// A node's standard error closed: it ended. `last` is its last line.
    Ended { place: usize, run: u64, last: String },
    /// A second terminal asks.
    Ask { verb: String, node: String, reply: SyncSender<Result<String, String>> },
    /// SIGINT, SIGTERM or SIGHUP.
    Stop,
}

/// Runs the nodes until a signal, or until none is left.
pub(super) fn run(plan: Plan, control: Control) -> Result<(), Error> {
    let (sender, events) = sync_channel(EVENTS_MAX);
    watch_signals(sender.clone())?;
    let mut supervisor = Supervisor { plan, nodes: Vec::new(), show: Show::new(), sender };
    supervisor.start_all()?;
    supervisor.show_help();
    control.serve(supervisor.sender.clone())?;
    let ended = supervisor.follow(&events);
    supervisor.stop(&events);
    ended
}

/// The state of one node, at the place of its plan.
#[derive(Default)]
struct Node {
    process: Option<Process>,
    /// How often it was started; events of earlier runs are ignored.
    run: u64,
    /// Whether its last end was asked for.
    end_asked: bool,
}

struct Supervisor {
    plan: Plan,
    nodes: Vec<Node>,
    show: Show,
    sender: SyncSender<Event>,
}

impl Supervisor {
    fn start_all(&mut self) -> Result<(), Error> {
        for place in 0..self.plan.nodes.len() {
            self.nodes.push(Node::default());
            self.start(place, false)?;
        }
        Ok(())
    }

    fn start(&mut self, place: usize, rejoins: bool) -> Result<(), Error> {
        let node = &mut self.nodes[place];
        node.run += 1;
        node.end_asked = false;
        let places = Places { data: &self.plan.data, certs: &self.plan.certs };
        let tag = (place, node.run);
        let how = (tag, rejoins);
        let process = Process::start(&self.plan.nodes[place], &places, how, self.sender.clone())?;
        node.process = Some(process);
        Ok(())
    }

    /// How to talk to the cluster, by commands that can be copied.
    fn show_help(&self) {
        let program = std::env::args().next().unwrap_or_else(|| "quicraft".to_owned());
        let flag = |name: &str, path: &Path| {
            if path == Path::new(name) {
                String::new()
            } else {
                format!(" --{name} {}", path.display())
            }
        };
        let data = flag("data", &self.plan.data);
        let certs = flag("certs", &self.plan.certs);
        let last = self.plan.nodes.last().map_or("n1", |node| node.name.as_str());
        let n = self.plan.nodes.len();
        let nodes = if n == 1 { "1 node".to_owned() } else { format!("{n} nodes") };
        self.show.line(&format!(
            "{nodes}, data and logs in {}. In a second terminal:\n  \
             {program}{certs} put greeting hello\n  {program}{certs} get greeting\n  {program}{certs} status\n  \
             {program} cluster{data} kill {last}\n  {program} cluster{data} start {last}\n\
             Ctrl-C stops all.",
            self.plan.data.display(),
        ));
    }

    /// Handles events until it is time to stop.
    fn follow(&mut self, events: &Receiver<Event>) -> Result<(), Error> {
        while let Ok(event) = events.recv() {
            if let Event::Stop = event {
                return Ok(());
            }
            self.on_event(event);
            if self.nodes.iter().all(|node| node.process.is_none() && !node.end_asked) {
                return Err(Error::AllEnded);
            }
        }
        Ok(())
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Line { place, run, text, missed } => {
                if missed > 0 {
                    let text = format!("{missed} lines are only in its log");
                    self.event(place, &text);
                }
                if run == self.nodes[place].run
                    && let Some(text) = worth_showing(&text)
                {
                    self.event(place, &text);
                }
            }
            Event::Ended { place, run, last } => self.on_ended(place, run, &last),
            Event::Ask { verb, node, reply } => {
                // Who asked may have gone.
                let _ = reply.try_send(self.on_ask(&verb, &node));
            }
            Event::Stop => {}
        }
    }

    fn on_ended(&mut self, place: usize, run: u64, last: &str) {
        let node = &mut self.nodes[place];
        if node.run != run {
            return;
        }
        let Some(process) = node.process.take() else { return };
        let asked = node.end_asked;
        let status = process.end();
        if asked {
            self.event(place, &format!("stopped ({status})"));
        } else {
            let last = worth_showing(last).unwrap_or_default();
            self.event(place, &format!("lost ({status}); its last line: {last}"));
        }
    }

    fn on_ask(&mut self, verb: &str, name: &str) -> Result<String, String> {
        let Some(place) = self.plan.nodes.iter().position(|node| node.name == name) else {
            let names: Vec<_> = self.plan.nodes.iter().map(|node| node.name.as_str()).collect();
            return Err(format!("there is no node {name}; they are {}", names.join(", ")));
        };
        match (verb, self.nodes[place].process.take()) {
            ("kill", Some(process)) => {
                self.nodes[place].end_asked = true;
                let status = process.kill();
                self.event(place, &format!("lost ({status})"));
                Ok(format!("{name} killed"))
            }
            ("kill", None) => Err(format!("{name} is not running")),
            ("start", None) if !self.holds_data(name) => Err(format!(
                "{name} has no data any more, so it has forgotten what it voted for and confirmed: let a new member take \
                 its place with `quicraft cluster start {name} --rejoin`"
            )),
            ("start" | "rejoin", None) => {
                self.start(place, verb == "rejoin").map_err(|error| error.to_string())?;
                let pid = self.nodes[place].process.as_ref().map_or(0, Process::pid);
                self.event(place, &format!("back (process {pid})"));
                Ok(format!("{name} started"))
            }
            (verb, process) => {
                self.nodes[place].process = process;
                match verb {
                    "start" | "rejoin" => Err(format!("{name} is running")),
                    _ => Err(format!("unknown request {verb}; they are kill, start and rejoin")),
                }
            }
        }
    }

    /// Whether a node's data directory has a log.
    fn holds_data(&self, name: &str) -> bool {
        crate::node::holds_data(&crate::disk::OsDisk, &self.plan.data.join(name))
    }

    /// Stops all gracefully; what still runs after a while, or after a second signal, is killed.
    fn stop(mut self, events: &Receiver<Event>) {
        if self.nodes.iter().all(|node| node.process.is_none()) {
            return;
        }
        self.show.line("stopping all nodes");
        for node in &mut self.nodes {
            node.end_asked = true;
            if let Some(process) = &node.process {
                process.terminate();
            }
        }
        let deadline = Instant::now() + STOP_PATIENCE;
        while self.nodes.iter().any(|node| node.process.is_some()) {
            match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Event::Stop)
                | Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                Ok(Event::Ask { reply, .. }) => {
                    let _ = reply.try_send(Err("the cluster is stopping".to_owned()));
                }
                Ok(event) => self.on_event(event),
            }
        }
        for place in 0..self.nodes.len() {
            if let Some(process) = self.nodes[place].process.take() {
                let status = process.kill();
                self.event(place, &format!("did not stop in time ({status})"));
            }
        }
    }

    fn event(&self, place: usize, text: &str) {
        let Planned { name, .. } = &self.plan.nodes[place];
        self.show.event(place, name, text);
    }
}

/// A thread that turns signals into events.
fn watch_signals(events: SyncSender<Event>) -> Result<(), Error> {
    let io = Error::io("handle", Path::new("signals"));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(&io)?;
    let (mut interrupt, mut terminate, mut hangup) = {
        let _guard = runtime.enter();
        let on = |kind| signal(kind).map_err(&io);
        (on(SignalKind::interrupt())?, on(SignalKind::terminate())?, on(SignalKind::hangup())?)
    };
    thread::spawn(move || {
        loop {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
            });
            if events.send(Event::Stop).is_err() {
                return;
            }
        }
    });
    Ok(())
}
