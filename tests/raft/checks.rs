//! What Raft promises (Raft figure 3), checked after each step of a random run.

use std::collections::{BTreeMap, BTreeSet};

use quicraft::raft::{Effects, EntryMeta, Index, NodeId, ReadId, RoleKind, Term};

use crate::node::{Disk, Node};

/// What was seen so far, by somebody who sees everything.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    leaders: BTreeMap<Term, NodeId>,
    /// Each entry that ever was, by index and term, with the term before it.
    entries: BTreeMap<(Index, Term), (EntryMeta, Term)>,
    /// What is committed, from index 1 on.
    committed: Vec<EntryMeta>,
    commits: BTreeMap<NodeId, Index>,
    /// What was committed when each read was asked.
    reads: BTreeMap<ReadId, Index>,
    answered: u64,
}

type Nodes = BTreeMap<NodeId, Node>;
type Disks = BTreeMap<NodeId, Disk>;

impl Checks {
    pub(crate) fn committed(&self) -> u64 {
        self.committed.len() as u64
    }

    pub(crate) fn reads_answered(&self) -> u64 {
        self.answered
    }

    pub(crate) fn forget_answers(&mut self) {
        self.answered = 0;
    }

    pub(crate) fn on_read_asked(&mut self, id: ReadId) {
        self.reads.insert(id, Index(self.committed()));
    }

    pub(crate) fn on_crash(&mut self, id: NodeId) {
        self.commits.remove(&id);
    }

    pub(crate) fn after_step(&mut self, id: NodeId, up: &Nodes, down: &Disks, effects: &Effects) {
        let node = &up[&id];
        self.election_safety(id, node, effects);
        if !effects.writes.is_empty() {
            self.log_matching(node);
        }
        self.commitment(id, up, down);
        self.read_freshness(effects);
        assert!(effects.contradictions.is_empty(), "an honest peer contradicts what is committed");
        let (log, raft) = (&node.log, &node.raft);
        assert_eq!(log.last_index().max(log.snapshot.0), raft.last_index(), "two views of a log");
        assert_eq!(log.hard.term, raft.hard_state().term, "a term is written when it changes");
        assert_eq!(log.hard.voted_for, raft.hard_state().voted_for, "and so is a vote");
    }

    /// At most one leader per term (Raft 5.2), whose log holds all that is committed (Raft 5.4).
    fn election_safety(&mut self, id: NodeId, node: &Node, effects: &Effects) {
        for &(term, role) in &effects.roles {
            if role != RoleKind::Leader {
                continue;
            }
            let first = *self.leaders.entry(term).or_insert(id);
            assert_eq!(first, id, "two leaders in term {term}");
            for (offset, committed) in self.committed.iter().enumerate() {
                let index = Index(offset as u64 + 1);
                let held = node.log.entry(index);
                let is_there = held == Some(committed) || index <= node.log.base.0;
                assert!(is_there, "leader {id} of {term} has {held:?} at {index}: {committed:?}");
            }
        }
    }

    /// An entry's index and term decide what it is and what is before it (Raft 5.3).
    fn log_matching(&mut self, node: &Node) {
        let (mut index, mut before) = node.log.base;
        for entry in &node.log.entries {
            index = index.next();
            let this = (entry.clone(), before);
            let known = self.entries.entry((index, entry.term)).or_insert_with(|| this.clone());
            assert_eq!(*known, this, "two entries at {index} of term {}", entry.term);
            assert!(node.raft.term_at(index).is_none_or(|term| term == entry.term), "at {index}");
            before = entry.term;
        }
    }

    /// Commits never go back, never differ, and are durable on a majority when they first happen.
    fn commitment(&mut self, id: NodeId, up: &Nodes, down: &Disks) {
        let node = &up[&id];
        let now = node.raft.hard_state().commit_index;
        let before = self.commits.insert(id, now).unwrap_or_default();
        assert!(now >= before, "commit of {id} goes back from {before} to {now}");
        for index in (before.0 + 1..=now.0).map(Index) {
            let Some(entry) = node.log.entry(index) else {
                assert!(index.0 <= self.committed(), "a snapshot of what nobody committed");
                continue;
            };
            if let Some(committed) = self.committed.get(index.0 as usize - 1) {
                assert_eq!(committed, entry, "{id} commits something else at {index}");
                continue;
            }
            assert_eq!(self.committed() + 1, index.0, "commits come in order");
            assert_eq!(node.raft.role(), RoleKind::Leader, "{id} does not lead and commits");
            self.durable_on_majority(index, entry.term, up, down);
            self.committed.push(entry.clone());
        }
    }

    fn durable_on_majority(&self, index: Index, term: Term, up: &Nodes, down: &Disks) {
        let disks = up.iter().map(|(&id, node)| (id, &node.disk));
        let disks = disks.chain(down.iter().map(|(&id, disk)| (id, disk)));
        let holds = |disk: &Disk| disk.entry(index).is_some_and(|meta| meta.term == term);
        let holders: BTreeSet<NodeId> =
            disks.filter(|(_, disk)| holds(disk)).map(|(id, _)| id).collect();
        let voters = up.len() + down.len();
        assert!(2 * holders.len() > voters, "{index}@{term} commits on {holders:?} alone");
    }

    /// A read sees all that was committed when it was asked (thesis 6.4).
    fn read_freshness(&mut self, effects: &Effects) {
        for (id, index) in &effects.reads {
            let asked = self.reads.remove(id).expect("each read is answered once");
            assert!(*index >= asked, "read {id:?} at {index} misses {asked}");
            self.answered += 1;
        }
        for id in &effects.reads_refused {
            self.reads.remove(id).expect("each read is refused once, if it is not answered");
        }
    }
}
