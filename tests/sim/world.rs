//! The simulated world of one seed: time, events, and everything that they change.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use quicraft::node::{Output, Sent};
use quicraft::raft::{Index, NodeId, RoleKind};
use quicraft::wal;

use crate::cell::Cell;
use crate::clients::{Answer, Client};
use crate::coverage::Coverage;
use crate::event::{Due, Event};
use crate::history::{self, Record};
use crate::network::Network;
use crate::options::{JOINERS_MAX, Options};
use crate::rng::Rng;
use crate::talk::Answers;
use crate::truth::{Broken, Truth};

pub(crate) struct World {
    pub(crate) options: Options,
    pub(crate) rng: Rng,
    pub(crate) now: u64,
    queue: BinaryHeap<Reverse<Due>>,
    next_event: u64,
    pub(crate) cells: Vec<Cell>,
    pub(crate) network: Network,
    pub(crate) clients: Vec<Client>,
    pub(crate) keys: Vec<Vec<u8>>,
    pub(crate) records: Vec<Record>,
    pub(crate) next_request: u64,
    pub(crate) truth: Truth,
    pub(crate) coverage: Coverage,
    /// When the last answer to [`crate::wan::PROBE`] was given, and what it was.
    pub(crate) probed: Option<(u64, Answer)>,
    /// A hash of everything that happened.
    pub(crate) trace: u64,
    pub(crate) events: u64,
    /// No more faults: there must be progress.
    pub(crate) is_calm: bool,
}

impl World {
    pub(crate) fn new(options: Options) -> Result<World, Broken> {
        let mut rng = Rng::new(options.seed ^ 0x5157);
        let cells: Vec<_> = (0..options.nodes).map(|id| Cell::new(id, &options)).collect();
        let clients = (0..options.clients)
            .map(|_| Client::new(rng.below(options.nodes as u64) as usize))
            .collect();
        let mut world = World {
            network: Network::new(options.net.clone(), options.nodes + JOINERS_MAX),
            rng,
            now: 0,
            queue: BinaryHeap::new(),
            next_event: 0,
            cells,
            clients,
            keys: (0..options.keys).map(|key| format!("key{key}").into_bytes()).collect(),
            records: Vec::new(),
            next_request: 1,
            truth: Truth::default(),
            coverage: Coverage::default(),
            probed: None,
            trace: 0,
            events: 0,
            is_calm: false,
            options,
        };
        world.coverage.count(size_name(world.options.nodes));
        for node in 0..world.cells.len() {
            world.cells[node].init(&world.options)?;
            world.start(node)?;
        }
        for client in 0..world.clients.len() {
            world.schedule(1000, Event::Ask { client, request: 0 });
        }
        world.schedule(world.options.nemesis_us, Event::Nemesis);
        Ok(world)
    }

    pub(crate) fn schedule(&mut self, delay: u64, event: Event) {
        self.schedule_at(self.now + delay, event);
    }

    pub(crate) fn schedule_at(&mut self, at: u64, event: Event) {
        self.next_event += 1;
        self.queue.push(Reverse(Due { at, number: self.next_event, event }));
    }

    /// Goes on to the next event.
    pub(crate) fn step(&mut self) -> Result<(), Broken> {
        let Reverse(due) = self.queue.pop().expect("ticks never end");
        (self.now, self.truth.clock.now_us) = (due.at, due.at);
        self.events += 1;
        self.note(due.number ^ due.at << 20);
        match due.event {
            Event::Tick { node, life } => self.tick(node, life),
            Event::Turn { node, life } => self.turn(node, life)?,
            Event::Deliver { to, directory, hello, bytes } => {
                self.deliver((to, directory), &hello, &bytes)?;
            }
            Event::Synced { node, life } => self.synced(node, life)?,
            Event::Compacted { node, life } => self.compacted(node, life),
            Event::Checkpointed { node, life } => self.checkpointed(node, life),
            Event::SnapshotArrives { from, term, to, bytes, life } => {
                let sent = self.take_snapshot((from, term), to, &bytes);
                self.coverage.count(match sent {
                    Sent::Arrived(_) => "snapshot: installed",
                    Sent::Damaged => "snapshot: arrived damaged",
                    Sent::Lost => "snapshot: failed to arrive",
                });
                self.schedule(100, Event::SnapshotReported { node: from, to, sent, life });
            }
            Event::SnapshotReported { node, to, sent, life } => {
                if let Some(running) = self.cells[node].alive(life) {
                    running.input.snapshots_sent.push((NodeId(to as u64 + 1), sent));
                    self.wake(node, 10);
                }
            }
            Event::Hear { client, request, answer } => self.hear(client, request, &answer)?,
            Event::Ask { client, request } => self.ask(client, request),
            Event::Nemesis => {
                if !self.is_calm {
                    self.act()?;
                    let wait = self.rng.spread(self.options.nemesis_us);
                    self.schedule(wait, Event::Nemesis);
                }
            }
            Event::Start { node } => self.start(node)?,
            Event::Repair { node, life } => self.repair(node, life)?,
            Event::Free { node } => self.cells[node].disk.set_capacity(None),
        }
        Ok(())
    }

    pub(crate) fn note(&mut self, what: u64) {
        self.trace = (self.trace ^ what).wrapping_mul(0x0100_0000_01B3).rotate_left(23);
    }

    pub(crate) fn start(&mut self, node: usize) -> Result<(), Broken> {
        let cell = &mut self.cells[node];
        if cell.running.is_some() || cell.repair.is_some() || cell.is_dead || cell.is_unseated {
            return Ok(());
        }
        let has_started = cell.start(&self.options, &mut self.coverage)?;
        self.started(node, has_started);
        Ok(())
    }

    pub(crate) fn started(&mut self, node: usize, has_started: bool) {
        let cell = &self.cells[node];
        let life = cell.life;
        if cell.repair.is_some() {
            self.schedule(1000, Event::Repair { node, life });
        } else if has_started {
            self.schedule(0, Event::Tick { node, life });
        } else if !self.cells[node].is_dead {
            self.restart_later(node);
        }
    }

    fn tick(&mut self, node: usize, life: u64) {
        let wait = TICK_US * 1000 / self.options.clock_permille[node];
        let now = self.now;
        let cell = &mut self.cells[node];
        let paused_until = cell.paused_until;
        cell.wall_ms += TICK_US / 1000;
        let Some(running) = cell.alive(life) else { return };
        running.input.ticks += 1;
        running.lonely_ticks += 1;
        if running.writing.is_empty() && running.work.is_empty() && self.rng.permille(50) {
            // The sync thread has nothing to do.
            match running.writer.idle() {
                Ok(report) => running.input.persisted.extend(report),
                Err(_) => {
                    self.crash(node, false);
                    return self.restart_later(node);
                }
            }
        }
        self.look_around(node);
        self.wake(node, 0);
        // A paused process gets one tick when it goes on, as the driver's ticker does.
        self.schedule_at((now + wait).max(paused_until), Event::Tick { node, life });
    }

    pub(crate) fn wake(&mut self, node: usize, delay: u64) {
        let (life, paused_until) = (self.cells[node].life, self.cells[node].paused_until);
        let Some(running) = &mut self.cells[node].running else { return };
        if !running.turn_is_due {
            running.turn_is_due = true;
            let at = (self.now + delay).max(paused_until);
            self.schedule_at(at, Event::Turn { node, life });
        }
    }

    fn turn(&mut self, at: usize, life: u64) -> Result<(), Broken> {
        if self.cells[at].paused_until > self.now {
            let until = self.cells[at].paused_until;
            self.schedule_at(until, Event::Turn { node: at, life });
            return Ok(());
        }
        let (wall_ms, now_ms) = (self.cells[at].wall_ms, self.now / 1000);
        let Some(running) = self.cells[at].alive(life) else { return Ok(()) };
        running.turn_is_due = false;
        running.input.now_ms = wall_ms;
        running.input.clock_ms = now_ms;
        let mut output = Output::default();
        running.node.step_in(&mut running.input, &mut output);
        running.work.append(&mut output.log_work);
        let messages = std::mem::take(&mut output.messages);
        let send_snapshots = std::mem::take(&mut output.send_snapshots);
        let mut answers = Answers::default();
        running.node.step_out(&mut output, &mut answers);
        let checkpoint = output.checkpoint.take();
        let has_checkpoint = checkpoint.is_some();
        running.input.images.extend(output.catch_up.take().map(|image| Some(image.run())));
        running.spare = output.unread.pop().or(running.spare.take());
        if has_checkpoint {
            running.checkpoint = checkpoint;
        }
        if output.again {
            self.wake(at, 1);
        }
        if let Some(found) = output.divergences.first() {
            return Err(format!("n{}: {found:?}", at + 1));
        }
        if let Some(hash) = output.state_hash {
            self.tell_state_hash(at, hash);
        }
        if has_checkpoint {
            let wait = self.rng.spread(20_000);
            self.schedule(wait, Event::Compacted { node: at, life });
        }
        self.write(at);
        if let Some((peer, index)) = output.contradictions.first() {
            return Err(format!("n{}: {peer} contradicts what is committed at {index}", at + 1));
        }
        for (message, batches) in messages {
            self.send(&message, &batches);
        }
        for to in send_snapshots {
            if (to.0 as usize) <= self.cells.len() {
                self.send_snapshot(at, to.0 as usize - 1, life);
            }
        }
        self.check(at, &answers)?;
        for (to, answer) in answers.0 {
            self.answer(to, answer);
        }
        if output.failure.is_some() {
            // What is committed cannot be read back: damage, met while running.
            if !self.cells[at].is_damaged {
                return Err(format!("n{}: {:?}", at + 1, output.failure));
            }
            self.crash(at, false);
            self.restart_later(at);
        }
        Ok(())
    }

    /// All checks after a turn.
    fn check(&mut self, at: usize, answers: &Answers) -> Result<(), Broken> {
        let is_damaged = self.cells[at].is_damaged;
        if self.cells[at].is_odd {
            return self.check_odd(at);
        }
        let Some(running) = &mut self.cells[at].running else { return Ok(()) };
        let (node, seen) = (&running.node, &mut running.seen);
        let durable = node.core().durable_index().0;
        let news = self.truth.committed() + 1..=node.core().hard_state().commit_index.0;
        if is_damaged && news.into_iter().any(|index| node.entry(Index(index)).is_err()) {
            // What is committed cannot be read back here: damage, met while running.
            self.crash(at, false);
            self.restart_later(at);
            return Ok(());
        }
        // The last proposal may pass the limit: what all clients ask at once is little.
        let limit = self.options.protocol.uncommitted_bytes_max + 10_000;
        let uncommitted = node.core().uncommitted_bytes();
        if uncommitted > limit {
            return Err(format!("n{}: {uncommitted} bytes are not committed", at + 1));
        }
        self.truth.check(at, node, seen, &mut self.coverage)?;
        self.cells[at].durable = self.cells[at].durable.max(durable);
        for revision in answers.1.iter().copied() {
            let holding = self.cells.iter().filter(|cell| cell.durable >= revision);
            let holders = holding.map(|cell| NodeId(cell.id as u64 + 1)).collect();
            self.coverage.count("check: write acknowledged by a majority of disks");
            // The members that the leader goes by may not be committed yet.
            let own = self.cells[at].running.as_ref().map(|it| it.node.core().membership());
            let is_held = own.is_some_and(|members| members.has_quorum(&holders));
            if !is_held && !self.truth.has_quorum(revision, &holders) {
                return Err(format!(
                    "n{}: revision {revision} is acknowledged and durable on {holders:?} only",
                    at + 1
                ));
            }
        }
        self.take_in_joiners();
        self.stop_unseated(at);
        Ok(())
    }

    /// Gives the writer what waits, if it has nothing.
    pub(crate) fn write(&mut self, node: usize) {
        let cell = &mut self.cells[node];
        let (sync_us, life) = (cell.sync_us, cell.life);
        let Some(running) = &mut cell.running else { return };
        if running.writing.is_empty() && !running.work.is_empty() {
            running.writing = std::mem::take(&mut running.work);
            let wait = self.rng.spread(sync_us);
            self.schedule(wait, Event::Synced { node, life });
        }
    }

    fn synced(&mut self, node: usize, life: u64) -> Result<(), Broken> {
        let Some(running) = self.cells[node].alive(life) else { return Ok(()) };
        let work = std::mem::take(&mut running.writing);
        match running.writer.write_and_sync(work) {
            Ok(persisted) => {
                running.input.persisted.push(persisted);
                self.wake(node, 5);
                self.write(node);
            }
            Err(error) => {
                let is_full = matches!(error, wal::Error::NoSpace { .. });
                self.coverage.count(if is_full {
                    "disk: full in mid-write"
                } else {
                    "disk: sync failed"
                });
                let power = self.rng.coin();
                self.crash(node, power);
                self.restart_later(node);
            }
        }
        Ok(())
    }

    pub(crate) fn crash(&mut self, node: usize, power: bool) {
        let may_tear = self.may_damage(node);
        self.cells[node].crash(power, may_tear, &mut self.rng, &mut self.coverage);
    }

    pub(crate) fn restart_later(&mut self, node: usize) {
        let wait = self.rng.between(1000, 500_000);
        self.schedule(wait, Event::Start { node });
    }

    /// The node that leads in the highest term.
    pub(crate) fn leader(&self) -> Option<usize> {
        let leads = |cell: &&Cell| {
            cell.running.as_ref().is_some_and(|running| running.node.role() == RoleKind::Leader)
        };
        let term = |cell: &&Cell| cell.running.as_ref().map(|running| running.node.term());
        self.cells.iter().filter(leads).max_by_key(term).map(|cell| cell.id)
    }

    /// All that clients heard, against what was decided.
    pub(crate) fn check_history(&self) -> Result<(), Broken> {
        history::check(&self.records, &self.keys, &self.truth.model)
    }
}

fn size_name(nodes: usize) -> &'static str {
    ["size: 1", "size: 2", "size: 3", "size: 4", "size: 5", "size: 6", "size: 7"][nodes - 1]
}

/// The unit of the core's time.
pub(crate) const TICK_US: u64 = 10_000;
