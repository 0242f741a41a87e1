//! Roles and what always holds of them.
//!
//! What only one role knows lives in that role's variant, so that nothing outlives the role it belongs
//! to (Raft figure 4).

use std::collections::{BTreeMap, BTreeSet};

use super::lease::Lease;
use super::progress::Progress;
use super::read::Reads;
use super::{DataId, Event, Index, NodeId, Raft, ReadId, Term};

#[derive(Debug)]
pub(super) enum Role {
    Follower(Follower),
    /// Running, or (`pre`) asking whether it could win (thesis 9.6).
    Candidate(Candidate),
    Leader(Leader),
}

#[derive(Debug, Default)]
pub(super) struct Follower {
    pub(super) leader: Option<NodeId>,
    /// Our log equals this leader's up to here, durable or not.
    pub(super) verified_index: Index,
    /// The last index that this leader was told.
    pub(super) told_index: Index,
    /// The leader asked about what was here already.
    pub(super) owes_answer: bool,
    /// Reads that wait for the leader's answer, with their age in ticks.
    pub(super) reads: BTreeMap<ReadId, u32>,
}

#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) pre: bool,
    /// Who voted for this node, with the data directory that voted.
    pub(super) granted: BTreeMap<NodeId, DataId>,
    pub(super) refused: BTreeSet<NodeId>,
}

#[derive(Debug)]
pub(super) struct Leader {
    pub(super) peers: BTreeMap<NodeId, Progress>,
    pub(super) reads: Reads,
    /// The empty entry of this term; reads wait until it is committed (thesis 6.4).
    pub(super) noop_index: Index,
    pub(super) heartbeat_elapsed: u32,
    /// The round with which the present check-quorum window began (thesis 6.2).
    pub(super) window_round: u64,
    /// The last index when that window began.
    pub(super) window_index: Index,
    pub(super) transfer: Option<Transfer>,
    pub(super) lease: Lease,
    pub(super) uncommitted_bytes: u64,
    /// Last index and bytes of each proposal that is not yet committed.
    pub(super) uncommitted: std::collections::VecDeque<(Index, u64)>,
}

#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) to: NodeId,
    pub(super) elapsed: u32,
}

/// A role by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleKind {
    /// Follows a leader or waits for one.
    Follower,
    /// Asks whether it could win.
    PreCandidate,
    /// Runs for leader.
    Candidate,
    /// Leads.
    Leader,
}

impl Role {
    pub(super) fn kind(&self) -> RoleKind {
        match self {
            Role::Follower(_) => RoleKind::Follower,
            Role::Candidate(Candidate { pre: true, .. }) => RoleKind::PreCandidate,
            Role::Candidate(Candidate { pre: false, .. }) => RoleKind::Candidate,
            Role::Leader(_) => RoleKind::Leader,
        }
    }
}

impl Raft {
    /// Becomes a follower in `term`, of `leader` if it is known.
    pub(super) fn become_follower(&mut self, term: Term, leader: Option<NodeId>) {
        assert!(term >= self.hard.term, "terms never go back: {term} < {}", self.hard.term);
        self.refuse_reads();
        if term > self.hard.term {
            self.hard.term = term;
            self.hard.voted_for = None;
            self.save_hard_state();
        }
        self.reset_election_timer();
        self.change_role(Role::Follower(Follower { leader, ..Follower::default() }));
    }

    pub(super) fn change_role(&mut self, role: Role) {
        let before = self.role.kind();
        self.role = role;
        if self.role.kind() != before {
            self.effects.roles.push((self.hard.term, self.role.kind()));
        }
        self.check_invariants();
    }

    /// What always holds between two events.
    pub(super) fn check_invariants(&self) {
        let last = self.log.last_index();
        assert!(self.hard.commit_index <= last, "{} > {last}", self.hard.commit_index);
        assert!(self.log.base() <= self.hard.commit_index, "the base is committed");
        assert!(self.durability.index() <= last, "{} > {last}", self.durability.index());
        assert!(self.log.last_term() <= self.hard.term, "an entry is of a later term than ours");
        match &self.role {
            Role::Follower(follower) => {
                assert!(follower.verified_index <= last, "{} > {last}", follower.verified_index);
                assert!(follower.leader != Some(self.config.id), "nobody follows itself");
            }
            Role::Candidate(candidate) => {
                let own_vote = self.hard.voted_for == Some(self.config.id);
                assert!(candidate.pre || own_vote, "a candidate votes for itself");
            }
            Role::Leader(leader) => {
                let own_term = self.log.term_at(leader.noop_index) == Some(self.hard.term)
                    || leader.noop_index < self.log.base();
                assert!(own_term, "a leader's term begins with its own entry");
                assert!(!leader.peers.contains_key(&self.config.id), "no leader follows itself");
            }
        }
    }

    /// One tick: elections, heartbeats, check-quorum, patience.
    pub(super) fn on_tick(&mut self) {
        self.election_elapsed = self.election_elapsed.saturating_add(1);
        self.age_ticks = self.age_ticks.saturating_add(1);
        self.durability.on_tick();
        match &mut self.role {
            Role::Follower(follower) => {
                follower.reads.values_mut().for_each(|age| *age += 1);
                self.refuse_old_reads();
                self.maybe_campaign();
            }
            Role::Candidate(_) => self.maybe_campaign(),
            Role::Leader(_) => self.on_leader_tick(),
        }
    }

    /// Dispatches one event; see [`Raft::step`].
    pub(super) fn dispatch(&mut self, event: Event) {
        match event {
            Event::Tick => self.on_tick(),
            Event::Receive(message) => self.receive(message),
            Event::Propose(bytes) => self.on_propose(&bytes),
            Event::Read(id) => self.on_read(id),
            Event::Persisted(id) => self.on_persisted(id),
            Event::Unreachable(peer) => self.on_unreachable(peer),
            Event::Compact(index) => self.on_compact(index),
            Event::SnapshotSent { to, index } => self.on_snapshot_sent(to, index),
            Event::SnapshotReceived { from, data, term, index, index_term, membership } => {
                self.on_snapshot_received((from, data), term, (index, index_term), membership);
            }
            Event::Transfer(to) => self.on_transfer(to),
            Event::Vouched(members) => self.on_vouched(members),
            Event::ChangeMembers { change, contacts } => self.on_change_members(&change, contacts),
        }
    }
}
