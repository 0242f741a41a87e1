//! A cluster in one thread. Disks are in memory, messages are delivered in
//! order within the same round, and one round is one tick for everybody.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::Arc;

use quicraft::disk::{Disk, MemDisk};
use quicraft::node::{
    self, About, Input, Node, OpenOptions, Opening, Output, ReplyTo, Request, RequestBody,
};
use quicraft::proto;
use quicraft::proto::client::{Consistency, Status};
use quicraft::proto::command::{Command, Outcome, Principal, SessionId};
use quicraft::proto::peer::Want;
use quicraft::raft::{Body, Config, DataId, Founding, Message, NodeId, ReadId, RoleKind};
use quicraft::store;
use quicraft::wal::{self, Batch, Writer};

use crate::answers::{Answer, Answers};
use crate::snapshots::{Lost, checkpoint};

pub(crate) struct Cell {
    pub(crate) disk: MemDisk,
    pub(crate) dir: PathBuf,
    pub(crate) running: Option<(Node, Writer)>,
    pub(crate) input: Input,
    pub(crate) answers: Answers,
}

pub(crate) struct Cluster {
    pub(crate) cells: Vec<Cell>,
    pub(crate) isolated: Option<usize>,
    /// Whose disk hangs.
    hung: Option<usize>,
    /// What all clocks show, also the monotonic ones; they stand still.
    pub(crate) now_ms: u64,
    /// How far each node's wall clock is ahead.
    pub(crate) ahead_ms: Vec<i64>,
    /// What becomes of checkpoints.
    pub(crate) lost: Lost,
    snapshot_log_bytes: u64,
    next_request: u64,
    starts: u64,
    pub(crate) snapshots_sent: usize,
    /// The names under which followers asked for a read index.
    pub(crate) reads_asked: Vec<ReadId>,
}

pub(crate) fn disk(disk: &MemDisk) -> Arc<dyn Disk> {
    Arc::new(disk.clone())
}

pub(crate) const CLUSTER: [u8; 16] = *b"cluster of tests";
pub(crate) const STORE: store::Options = store::Options { arena_bytes: 256 << 20, hash_seed: 7 };

/// What a cluster of so many nodes is founded with.
pub(crate) fn founding(size: usize) -> Founding {
    Founding::of((1..=size as u64).map(|id| (NodeId(id), format!("n{id}"))))
}

impl Cluster {
    pub(crate) fn new(size: usize) -> Cluster {
        Cluster::with_snapshots_every(size, u64::MAX)
    }

    pub(crate) fn with_snapshots_every(size: usize, snapshot_log_bytes: u64) -> Cluster {
        let cells = (0..size).map(|node| Cell {
            disk: MemDisk::new(),
            dir: PathBuf::from(format!("n{}", node + 1)),
            running: None,
            input: Input::default(),
            answers: Answers::default(),
        });
        let mut cluster = Cluster {
            cells: cells.collect(),
            isolated: None,
            hung: None,
            now_ms: 1_000_000,
            ahead_ms: vec![0; size],
            lost: Lost::Nothing,
            snapshot_log_bytes,
            next_request: 1,
            starts: 0,
            snapshots_sent: 0,
            reads_asked: Vec::new(),
        };
        for node in 0..size {
            let options = cluster.options(node);
            node::init(&options, founding(size)).unwrap();
            cluster.start(node);
        }
        cluster
    }

    pub(crate) fn options(&self, node: usize) -> OpenOptions {
        OpenOptions {
            dir: self.cells[node].dir.clone(),
            disk: Arc::new(self.cells[node].disk.clone()),
            // Another one at each start, as a process draws it: what was drawn first stays.
            identity: wal::Identity {
                cluster: CLUSTER,
                node: NodeId(node as u64 + 1),
                data: DataId(1000 * (node as u64 + 1) + self.starts),
            },
            log: wal::Options {
                segment_bytes: 64 << 10,
                io: wal::LogIo::Write,
                prepare_on_thread: false,
                salt_seed: self.starts,
                entries_kept: 8,
            },
            store: STORE,
            raft: Config {
                id: NodeId(node as u64 + 1),
                data: DataId(0),
                election_ticks: 10,
                heartbeat_ticks: 2,
                seed: self.starts,
                append_bytes_max: 16 << 10,
                append_entries_max: 64,
                window_bytes_max: 64 << 10,
                uncommitted_bytes_max: 8 << 20,
                lease_ms: 0,
            },
            about: About {
                name: format!("n{}", node + 1),
                cluster: "test".to_owned(),
                configured: std::collections::BTreeMap::new(),
                value_bytes_max: 1 << 20,
                store_bytes_max: 128 << 20,
                snapshot_log_bytes: self.snapshot_log_bytes,
                retention: node::Retention { revisions: 1000, age_ms: 3_600_000 },
            },
            founders: std::collections::BTreeMap::new(),
            has_others: false,
        }
    }

    pub(crate) fn start(&mut self, node: usize) {
        self.starts += 1;
        let opened = match node::open(self.options(node)) {
            Ok(Opening::Ready(opened)) => *opened,
            Ok(Opening::Repair(repair)) => panic!("{:?}", repair.damages()),
            Err(error) => panic!("{error}"),
        };
        self.cells[node].running = Some((opened.node, opened.writer));
    }

    /// What a node has of what another one's damaged log lacks.
    pub(crate) fn fetch(&self, node: usize, want: &Want) -> Option<Batch> {
        let (node, _) = self.cells[node].running.as_ref().expect("it runs");
        node.fetch(want)
    }

    /// Power cut: what was not synced is gone.
    pub(crate) fn crash(&mut self, node: usize) {
        let cell = &mut self.cells[node];
        cell.running = None;
        cell.input = Input::default();
        cell.disk.crash();
    }

    /// Tries to start a node whose disk was replaced; gives the error.
    pub(crate) fn start_wiped(&mut self, node: usize) -> String {
        self.cells[node].disk = MemDisk::new();
        self.cells[node].dir = self.cells[node].dir.with_extension("wiped");
        match node::open(self.options(node)) {
            Ok(_) => panic!("a node without its data came back"),
            Err(error) => error.to_string(),
        }
    }

    /// Makes and starts a node on a new disk whose `nth` sync fails and whose power is cut then; gives whether the first
    /// try to make it failed.
    pub(crate) fn start_after_broken_init(&mut self, node: usize, nth: u64) -> bool {
        self.cells[node].running = None;
        self.cells[node].disk = MemDisk::new();
        self.cells[node].dir = self.cells[node].dir.with_extension(format!("broken{nth}"));
        let size = self.cells.len();
        self.cells[node].disk.fail_sync(nth);
        let broke = node::init(&self.options(node), founding(size)).is_err();
        self.starts += 1;
        self.cells[node].disk.crash();
        if broke {
            node::init(&self.options(node), founding(size))
                .unwrap_or_else(|e| panic!("{nth}: {e}"));
        }
        self.start(node);
        broke
    }

    pub(crate) fn hang_disk(&mut self, node: usize) {
        self.hung = Some(node);
    }

    pub(crate) fn isolate(&mut self, node: usize) {
        self.isolated = Some(node);
    }

    pub(crate) fn heal(&mut self) {
        self.isolated = None;
    }

    /// Runs until some node that is not cut off leads and has committed in its term.
    pub(crate) fn elect(&mut self) -> usize {
        for _ in 0..500 {
            self.run(1);
            let leader = (0..self.cells.len()).find(|&node| {
                let leads = self.cells[node].running.as_ref().is_some_and(|(node, _)| {
                    node.role() == RoleKind::Leader
                        && node.status().commit_index == node.status().last_log_index
                });
                leads && self.isolated != Some(node)
            });
            if let Some(leader) = leader {
                return leader;
            }
        }
        panic!("no leader");
    }

    /// So many rounds: everybody takes a turn, then a tick goes by.
    pub(crate) fn run(&mut self, rounds: usize) {
        for _ in 0..rounds {
            for node in 0..self.cells.len() {
                self.cells[node].input.ticks += 1;
            }
            self.turns();
        }
    }

    /// Everybody takes turns, and no time goes by.
    pub(crate) fn turns(&mut self) {
        for _ in 0..6 {
            for node in 0..self.cells.len() {
                self.turn(node);
            }
        }
    }

    fn turn(&mut self, at: usize) {
        let cell = &mut self.cells[at];
        let Some((node, writer)) = &mut cell.running else { return };
        let mut input = std::mem::take(&mut cell.input);
        input.now_ms = self.now_ms.saturating_add_signed(self.ahead_ms[at]);
        input.clock_ms = self.now_ms;
        let mut output = Output::default();
        node.step_in(&mut input, &mut output);
        let work = std::mem::take(&mut output.log_work);
        // What is written to a disk that hangs is never heard of again.
        if !work.is_empty() && self.hung != Some(at) {
            cell.input.persisted.push(writer.write_and_sync(work).unwrap());
        }
        node.step_out(&mut output, &mut cell.answers);
        assert!(output.failure.is_none() && output.contradictions.is_empty());
        if let Some(image) = output.catch_up.take() {
            cell.input.images.push(Some(image.run()));
        }
        let term = node.term();
        if let Some(job) = output.checkpoint.take() {
            checkpoint(cell, job, self.lost);
        }
        for to in std::mem::take(&mut output.send_snapshots) {
            self.send_snapshot(at, to, term);
        }
        for (message, batches) in output.messages {
            self.deliver(message, batches);
        }
    }

    fn deliver(&mut self, message: Message, batches: Vec<Batch>) {
        let (from, to) = (message.from.0 as usize - 1, message.to.0 as usize - 1);
        let is_cut = self.isolated == Some(from) || self.isolated == Some(to);
        if is_cut || self.cells[to].running.is_none() {
            return;
        }
        if let Body::ReadIndex { id } = message.body {
            self.reads_asked.push(id);
        }
        // Through the wire's own encoding, as between processes.
        let mut bytes = Vec::new();
        proto::peer::encode_message(&message, &mut bytes);
        for batch in batches {
            bytes.extend_from_slice(&batch.bytes());
        }
        let decoded = node::decode_message(&bytes.into()).unwrap();
        self.cells[to].input.messages.push(decoded);
    }

    pub(crate) fn ask(&mut self, node: usize, body: RequestBody) -> u64 {
        let request_id = self.next_request;
        self.next_request += 1;
        let reply_to = ReplyTo { stream: 0, request_id };
        self.cells[node].input.requests.push(Request { reply_to, body });
        request_id
    }

    pub(crate) fn ask_write(&mut self, node: usize, command: &Command<'_>) -> u64 {
        self.ask_write_as(node, Principal(1), command)
    }

    pub(crate) fn ask_get(&mut self, node: usize, key: &str) -> u64 {
        let key = key.as_bytes().to_vec().into();
        self.ask(
            node,
            RequestBody::Get { key, consistency: Consistency::Linearizable, revision: None },
        )
    }

    pub(crate) fn answer(&self, node: usize, request: u64) -> Option<Answer> {
        self.cells[node].answers.given.get(&request).cloned()
    }

    pub(crate) fn wait(&mut self, node: usize, request: u64) -> Answer {
        for _ in 0..200 {
            if let Some(answer) = self.answer(node, request) {
                return answer;
            }
            self.run(1);
        }
        panic!("request {request} at node {node} is never answered");
    }

    pub(crate) fn write(&mut self, node: usize, command: &Command<'_>) -> Outcome {
        let request = self.ask_write(node, command);
        match self.wait(node, request) {
            Answer::Outcome(outcome) => outcome,
            answer => panic!("{answer:?}"),
        }
    }

    pub(crate) fn get(&mut self, node: usize, key: &str) -> Answer {
        let request = self.ask_get(node, key);
        self.wait(node, request)
    }

    pub(crate) fn open_session(&mut self, node: usize) -> SessionId {
        match self.write(node, &Command::OpenSession) {
            Outcome::SessionOpened(session) => session,
            outcome => panic!("{outcome:?}"),
        }
    }

    pub(crate) fn status(&self, node: usize) -> Status {
        self.cells[node].running.as_ref().unwrap().0.status()
    }

    /// Runs until all running nodes are at the same index, and compares their states.
    pub(crate) fn expect_equal_states(&mut self) {
        for _ in 0..500 {
            self.run(1);
            let running = (0..self.cells.len()).filter(|&n| self.cells[n].running.is_some());
            let states: Vec<(u64, u64, u64)> = running
                .map(|node| self.status(node))
                .map(|status| (status.applied_index, status.state_hash, status.last_log_index))
                .collect();
            if states.iter().all(|state| state.0 == states[0].0 && state.0 == state.2) {
                assert!(states.iter().all(|state| *state == states[0]), "{states:?}");
                return;
            }
        }
        let statuses: Vec<Status> = (0..self.cells.len()).map(|node| self.status(node)).collect();
        panic!("the nodes never agree: {statuses:#?}");
    }
}
