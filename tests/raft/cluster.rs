//! An in-memory cluster in which nothing moves unless a script says so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use quicraft::raft::{Config, DataId, Event, Founding, Index, Membership, Message, NodeId};

use crate::node::{Disk, Node};
use crate::trace;

/// The nodes, what is on the wires between them, and the trace since the last look.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) config: Config,
    pub(crate) voters: BTreeSet<NodeId>,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) crashed: BTreeMap<NodeId, Disk>,
    pub(crate) wires: VecDeque<Message>,
    pub(crate) cuts: BTreeSet<(NodeId, NodeId)>,
    starts: u64,
    out: String,
}

impl Cluster {
    pub(crate) fn new(config: Config, size: u64) -> Cluster {
        let mut cluster = Cluster::empty(config, size);
        for id in cluster.voters.clone() {
            cluster.start(id, Disk::new(&cluster.voters));
        }
        cluster
    }

    /// A cluster for whose voters nobody has acted yet.
    pub(crate) fn founding(config: Config, size: u64) -> Cluster {
        let mut cluster = Cluster::empty(config, size);
        for id in cluster.voters.clone() {
            cluster.found(id, DataId(id.0));
        }
        cluster
    }

    /// A founder starts in a new data directory.
    pub(crate) fn found(&mut self, id: NodeId, data: DataId) {
        self.starts += 1;
        let config = Config { id, data, seed: self.starts, ..self.config.clone() };
        let members = self.voters.iter().map(|&id| (id, id.to_string()));
        let membership = Membership::founded_with(Founding::of(members));
        let disk = Disk { membership, ..Disk::new(&self.voters) };
        self.nodes.insert(id, Node::new(config, disk));
    }

    fn empty(config: Config, size: u64) -> Cluster {
        let voters: BTreeSet<NodeId> = (1..=size).map(NodeId).collect();
        Cluster {
            config,
            voters,
            nodes: BTreeMap::new(),
            crashed: BTreeMap::new(),
            wires: VecDeque::new(),
            cuts: BTreeSet::new(),
            starts: 0,
            out: String::new(),
        }
    }

    pub(crate) fn take_trace(&mut self) -> String {
        std::mem::take(&mut self.out)
    }

    pub(crate) fn start(&mut self, id: NodeId, disk: Disk) {
        self.starts += 1;
        // The directory that acts for it, if somebody knows one.
        let known = self.nodes.values().filter_map(|node| node.raft.membership().data.get(&id));
        let data = known.copied().next().unwrap_or(DataId(id.0));
        let config = Config { id, data, seed: self.starts, ..self.config.clone() };
        self.nodes.insert(id, Node::new(config, disk));
    }

    /// Tells a node who the members are, as another one knows them.
    pub(crate) fn vouch(&mut self, id: NodeId) {
        let others = self.nodes.iter().filter(|(other, _)| **other != id);
        let known = others.map(|(_, node)| node.raft.membership_at(node.raft.last_index()).clone());
        let newest = known.max_by_key(|at| at.index).expect("somebody else is up");
        self.step(id, Event::Vouched(newest));
    }

    pub(crate) fn node(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).unwrap_or_else(|| panic!("{id} is down"))
    }

    /// One event at one node, and what its disk confirms at once.
    pub(crate) fn step(&mut self, id: NodeId, event: Event) {
        self.step_once(id, event);
        while !self.node(id).is_manual && self.node(id).has_pending() {
            self.persist(id, usize::MAX);
        }
    }

    pub(crate) fn persist(&mut self, id: NodeId, count: usize) {
        if let Some(event) = self.node(id).persist(count) {
            self.step_once(id, event);
        }
    }

    fn step_once(&mut self, id: NodeId, event: Event) {
        let node = self.nodes.get_mut(&id).unwrap_or_else(|| panic!("{id} is down"));
        let before = node.raft.hard_state().commit_index;
        let effects = node.step(event);
        let after = node.raft.hard_state().commit_index;
        trace::effects(&mut self.out, id, &effects);
        if after != before {
            trace::line(&mut self.out, id, &format!("commits {after}"));
        }
        for message in effects.messages {
            self.out.push_str(&trace::message(&message));
            let is_cut = self.cuts.contains(&(message.from, message.to));
            self.out.push_str(if is_cut { " (lost)\n" } else { "\n" });
            if !is_cut {
                self.wires.push_back(message);
            }
        }
    }

    /// Delivers the oldest message that is wanted; false if there is none.
    pub(crate) fn deliver_one(&mut self, wanted: impl Fn(&Message) -> bool) -> bool {
        let Some(at) = self.wires.iter().position(wanted) else { return false };
        let message = self.wires.remove(at).expect("just found");
        if self.nodes.contains_key(&message.to) {
            self.step(message.to, Event::Receive(message));
        }
        true
    }

    /// Delivers until nothing is on the wires.
    pub(crate) fn stabilize(&mut self) {
        for _ in 0..STABILIZE_MAX {
            if !self.deliver_one(|_| true) {
                return;
            }
        }
        panic!("the cluster does not come to rest:\n{}", self.out);
    }

    /// The `from` node's snapshot reaches `to` whole and durable.
    pub(crate) fn snapshot(&mut self, from: NodeId, to: NodeId, index: Option<Index>) {
        let sender = self.node(from);
        let term = sender.raft.hard_state().term;
        let (at, index_term) = sender.disk.snapshot;
        let index = index.unwrap_or(at);
        let index_term = if index == at {
            index_term
        } else {
            sender.raft.term_at(index).expect("the sender still knows the term")
        };
        let membership = sender.raft.membership().clone();
        let data = DataId(from.0);
        let event = Event::SnapshotReceived { from, data, term, index, index_term, membership };
        self.step(to, event);
        self.step(from, Event::SnapshotSent { to, index: Some(index) });
    }

    pub(crate) fn members(&mut self) {
        for (id, node) in &self.nodes {
            let text = trace::members(node.raft.membership());
            trace::line(&mut self.out, *id, &format!("goes by: {text}"));
        }
    }

    pub(crate) fn status(&mut self) {
        for (id, node) in &self.nodes {
            let raft = &node.raft;
            let hard = raft.hard_state();
            let terms: Vec<String> = (1..=raft.last_index().0)
                .map(|i| raft.term_at(Index(i)).map_or("_".to_owned(), |term| term.to_string()))
                .collect();
            let line = format!(
                "{:?} t{} commit={} durable={} log=[{}]",
                raft.role(),
                hard.term,
                hard.commit_index,
                raft.durable_index(),
                terms.join(",")
            );
            trace::line(&mut self.out, *id, &line);
        }
    }
}

/// More messages than any script needs; above it two nodes talk for ever.
const STABILIZE_MAX: usize = 10_000;
