//! Seeded random runs: crashes, partitions, a network that loses, doubles and reorders, disks that
//! confirm late or never. After each step what Raft promises is checked (`checks.rs`); at the end
//! everything is mended and progress is demanded.

use std::collections::{BTreeMap, BTreeSet};

use quicraft::raft::{
    Config, DataId, Effects, Event, Index, Message, NodeId, ReadId, RoleKind, Term,
};

use crate::checks::Checks;
use crate::dice::{Act, Dice, weights};
use crate::node::{Disk, Node};

/// A snapshot on its way.
#[derive(Clone, Copy, Debug)]
struct Shipment {
    from: NodeId,
    to: NodeId,
    term: Term,
    last: (Index, Term),
}

struct World {
    dice: Dice,
    config: Config,
    voters: BTreeSet<NodeId>,
    up: BTreeMap<NodeId, Node>,
    down: BTreeMap<NodeId, Disk>,
    wires: Vec<Message>,
    shipments: Vec<Shipment>,
    cuts: BTreeSet<(NodeId, NodeId)>,
    /// A node whose clock stands still.
    asleep: Option<NodeId>,
    /// How often each kind of thing happens, drawn anew for each seed.
    weights: Vec<(Act, usize)>,
    checks: Checks,
    starts: u64,
    reads: u64,
    stamp: u32,
}

impl World {
    fn new(seed: u64) -> World {
        let mut dice = Dice(seed);
        let size = dice.pick(&[1, 2, 3, 3, 3, 4, 5, 5, 5]);
        let voters: BTreeSet<NodeId> = (1..=size).map(NodeId).collect();
        let config = Config {
            id: NodeId(0),
            data: DataId(0),
            election_ticks: dice.pick(&[3, 5, 10]),
            heartbeat_ticks: dice.pick(&[1, 2]),
            seed: 0,
            append_bytes_max: dice.pick(&[1, 5000, 1 << 40]),
            append_entries_max: dice.pick(&[1, 1, 3, 64]),
            window_bytes_max: dice.pick(&[1, 10_000, 1 << 40]),
            uncommitted_bytes_max: dice.pick(&[10_000, 1 << 40]),
            lease_ms: 0,
        };
        let weights = weights(&mut dice);
        let down = voters.iter().map(|&id| (id, Disk::new(&voters))).collect();
        let mut world = World {
            dice,
            config,
            voters: voters.clone(),
            up: BTreeMap::new(),
            down,
            wires: Vec::new(),
            shipments: Vec::new(),
            cuts: BTreeSet::new(),
            asleep: None,
            weights,
            checks: Checks::default(),
            starts: seed,
            reads: 0,
            stamp: 0,
        };
        for id in voters {
            world.restart(id);
        }
        world
    }

    fn act(&mut self) {
        let total = self.weights.iter().map(|&(_, weight)| weight).sum();
        let mut at = self.dice.below(total);
        let weights = self.weights.iter();
        let act = weights.copied().find_map(|(act, weight)| {
            let is_it = at < weight;
            at = at.wrapping_sub(weight);
            is_it.then_some(act)
        });
        let ids: Vec<NodeId> = self.voters.iter().copied().collect();
        let id = self.dice.pick(&ids);
        match act.expect("the weights add up") {
            Act::Deliver => self.deliver(true),
            Act::Double => self.deliver(false),
            Act::Drop => drop(self.take_message()),
            Act::Tick if self.asleep == Some(id) => {}
            Act::Tick => self.step(id, Event::Tick),
            Act::Persist => self.persist(id),
            Act::Propose => self.propose(id),
            Act::Read => self.read(id),
            Act::Ship => self.ship(),
            Act::LoseShipment => self.lose_shipment(),
            Act::Compact => self.compact(id),
            Act::Crash => self.crash(id),
            Act::CrashLeader => self.leaders().into_iter().for_each(|id| self.crash(id)),
            Act::Restart => self.restart(id),
            Act::Partition => self.partition(),
            Act::Isolate => self.isolate(),
            Act::Heal => {
                self.cuts.clear();
                self.asleep = None;
            }
            Act::Transfer => self.step(id, Event::Transfer(None)),
            Act::Unreachable => {
                let peer = self.dice.pick(&ids);
                self.step(id, Event::Unreachable(peer));
            }
        }
    }

    fn leaders(&self) -> Vec<NodeId> {
        let leads = |node: &Node| node.raft.role() == RoleKind::Leader;
        self.up.iter().filter(|(_, node)| leads(node)).map(|(&id, _)| id).collect()
    }

    fn step(&mut self, id: NodeId, event: Event) {
        let Some(node) = self.up.get_mut(&id) else { return };
        let effects = node.step(event);
        self.on_effects(id, effects);
    }

    fn on_effects(&mut self, id: NodeId, effects: Effects) {
        self.checks.after_step(id, &self.up, &self.down, &effects);
        for message in effects.messages {
            if !self.cuts.contains(&(message.from, message.to)) {
                self.wires.push(message);
            }
        }
        for to in effects.send_snapshots {
            let node = &self.up[&id];
            let term = node.raft.hard_state().term;
            self.shipments.push(Shipment { from: id, to, term, last: node.disk.snapshot });
        }
    }

    fn take_message(&mut self) -> Option<Message> {
        if self.wires.is_empty() {
            return None;
        }
        // Mostly in order, so that pipelining is seen, and sometimes not at all.
        let reach = self.dice.pick(&[1, 1, 4, self.wires.len()]).min(self.wires.len());
        let at = self.dice.below(reach);
        Some(self.wires.remove(at))
    }

    fn deliver(&mut self, takes: bool) {
        let Some(message) = self.take_message() else { return };
        if !takes {
            self.wires.push(message.clone());
        }
        if !self.cuts.contains(&(message.from, message.to)) {
            self.step(message.to, Event::Receive(message));
        }
    }

    fn persist(&mut self, id: NodeId) {
        let count = self.dice.pick(&[1, 2, usize::MAX]);
        let event = self.up.get_mut(&id).and_then(|node| node.persist(count));
        if let Some(event) = event {
            self.step(id, event);
        }
    }

    fn propose(&mut self, id: NodeId) {
        let count = self.dice.pick(&[1, 1, 5]);
        let leaders = self.leaders();
        let id = leaders.first().copied().filter(|_| self.dice.below(4) > 0).unwrap_or(id);
        let commands = (1..=count).map(|offset| self.stamp + offset).collect();
        self.stamp += count;
        self.step(id, Event::Propose(commands));
    }

    fn read(&mut self, id: NodeId) {
        let leaders = self.leaders();
        let id = if leaders.is_empty() || self.dice.below(2) == 0 {
            id
        } else {
            self.dice.pick(&leaders)
        };
        if self.up.contains_key(&id) {
            self.reads += 1;
            let read = ReadId(self.reads);
            self.checks.on_read_asked(read);
            self.step(id, Event::Read(read));
        }
    }

    fn ship(&mut self) {
        if self.shipments.is_empty() {
            return;
        }
        let at = self.dice.below(self.shipments.len());
        let again = self.dice.below(4) == 0;
        let shipment = if again { self.shipments[at] } else { self.shipments.swap_remove(at) };
        let Shipment { from, to, term, last: (index, index_term) } = shipment;
        let is_there = self.up.contains_key(&to) && !self.cuts.contains(&(from, to));
        if is_there {
            let membership = quicraft::raft::Membership::of(self.voters.iter().copied());
            let data = DataId(from.0);
            let event = Event::SnapshotReceived { from, data, term, index, index_term, membership };
            self.step(to, event);
        }
        if !again {
            let index = is_there.then_some(index);
            self.step(from, Event::SnapshotSent { to, index });
        }
    }

    fn lose_shipment(&mut self) {
        if let Some(Shipment { from, to, .. }) = self.shipments.pop() {
            self.step(from, Event::SnapshotSent { to, index: None });
        }
    }

    fn compact(&mut self, id: NodeId) {
        let Some(node) = self.up.get_mut(&id) else { return };
        let commit = node.raft.hard_state().commit_index.0;
        let index = Index(commit.saturating_sub(self.dice.pick(&[0, 0, 3])));
        if let Some(event) = node.compact(index) {
            self.step(id, event);
        }
    }

    fn crash(&mut self, id: NodeId) {
        let Some(mut node) = self.up.remove(&id) else { return };
        // What the disk did but had not yet said.
        let done = self.dice.pick(&[0, 0, 1, 3]);
        let _unsaid = node.persist(done);
        self.checks.on_crash(id);
        self.down.insert(id, node.crash());
    }

    fn restart(&mut self, id: NodeId) {
        let Some(disk) = self.down.remove(&id) else { return };
        self.starts += 1;
        let config = Config { id, data: DataId(id.0), seed: self.starts, ..self.config.clone() };
        self.up.insert(id, Node::new(config, disk));
        self.on_effects(id, Effects::default());
    }

    fn partition(&mut self) {
        let side: BTreeSet<NodeId> =
            self.voters.clone().into_iter().filter(|_| self.dice.below(2) == 0).collect();
        let one_way = self.dice.below(4) == 0;
        for &one in &side {
            for &other in self.voters.difference(&side) {
                self.cuts.insert((one, other));
                if !one_way {
                    self.cuts.insert((other, one));
                }
            }
        }
    }

    /// A leader, and maybe one more, is cut off and its clock stops: it does not know that it is
    /// deposed, and what it began is finished by others or not at all.
    fn isolate(&mut self) {
        let leaders = self.leaders();
        let Some(&leader) = leaders.last() else { return };
        let ids: Vec<NodeId> = self.voters.iter().copied().collect();
        let company = [leader, self.dice.pick(&ids)];
        let cut = |one: &NodeId, other: &NodeId| company.contains(one) != company.contains(other);
        for &one in &ids {
            let others = ids.iter().filter(|other| cut(&one, other));
            self.cuts.extend(others.map(|&other| (one, other)));
        }
        self.asleep = Some(leader);
    }

    /// All is well from here on; a proposal must commit everywhere and reads must be answered.
    fn demand_progress(&mut self) {
        self.cuts.clear();
        self.asleep = None;
        for id in self.voters.clone() {
            self.restart(id);
        }
        self.checks.forget_answers();
        let goal = Index(self.checks.committed() + 1);
        for round in 0..ROUNDS_MAX {
            self.calm_round(round);
            let all = self.up.values().all(|node| node.raft.hard_state().commit_index >= goal);
            if all && self.checks.reads_answered() >= READS_DEMANDED {
                return;
            }
        }
        panic!("no progress: {:#?}", self.up.values().map(|node| &node.raft).collect::<Vec<_>>());
    }

    fn calm_round(&mut self, round: usize) {
        for id in self.voters.clone() {
            self.step(id, Event::Tick);
            if round.is_multiple_of(8) {
                self.read(id);
            }
        }
        if round.is_multiple_of(4)
            && let Some(&leader) = self.leaders().last()
        {
            self.stamp += 1;
            self.step(leader, Event::Propose(vec![self.stamp]));
        }
        for _ in 0..4 {
            for id in self.voters.clone() {
                let event = self.up.get_mut(&id).and_then(|node| node.persist(usize::MAX));
                event.into_iter().for_each(|event| self.step(id, event));
            }
            for message in std::mem::take(&mut self.wires) {
                self.step(message.to, Event::Receive(message));
            }
        }
        while !self.shipments.is_empty() {
            self.ship();
        }
    }
}

/// Says how to run the same again if a run fails.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("again: QUICRAFT_RAFT_SEED={} cargo test --test raft random", self.0);
        }
    }
}

fn run(seed: u64) {
    let _replay = Replay(seed);
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.act();
    }
    world.demand_progress();
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("the variable is a number"))
}

/// `QUICRAFT_RAFT_SEED` runs one seed, `QUICRAFT_RAFT_SEEDS` that many.
#[test]
fn random_runs_keep_every_promise() {
    if let Some(seed) = number("QUICRAFT_RAFT_SEED") {
        return run(seed);
    }
    for seed in 0..number("QUICRAFT_RAFT_SEEDS").unwrap_or(SEEDS) {
        run(seed);
    }
}

/// Runs and steps that take a few seconds without optimisation.
const SEEDS: u64 = 300;
const STEPS: usize = 4000;
/// Ticks within which a mended cluster must work.
const ROUNDS_MAX: usize = 600;
const READS_DEMANDED: u64 = 5;
