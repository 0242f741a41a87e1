//! Reads by the leader's lease, if the configuration allows them (thesis 6.4.1).
//!
//! A voter that hears a leader gives nobody else its vote for an election timeout. So from the moment at which a round
//! of heartbeats left that a majority has answered, nobody else can lead for that long, and the leader may read without
//! asking again. This is the one place where the core looks at a clock, and what it needs of clocks is that none runs
//! much faster than another ([`super::Config::lease_ms`] is shorter than the timeout for that). The clock counts on
//! while the machine sleeps or the process stands still.

use std::collections::{BTreeSet, VecDeque};

use super::state::Role;
use super::{NodeId, Raft};

/// The lease of one leadership.
#[derive(Debug, Default)]
pub(super) struct Lease {
    /// Rounds of heartbeats that no majority has answered yet, and when they left.
    rounds: VecDeque<(u64, u64)>,
    /// When the last round left that a majority has answered.
    from_ms: Option<u64>,
    /// A transfer was begun: the heir may run at any time from now on, also if it is given up.
    is_void: bool,
}

impl Lease {
    /// Gives the lease up for the rest of this leadership.
    pub(super) fn void(&mut self) {
        self.is_void = true;
    }
}

impl Raft {
    /// The time, in milliseconds of a clock that never goes back; to be told before what has arrived by then.
    pub fn set_now(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
    }

    /// Whether a node that may have answered a leader before its restart must still keep the promise of that answer.
    pub(super) fn keeps_old_promise(&self) -> bool {
        self.config.lease_ms > 0 && self.age_ticks < self.config.election_ticks
    }

    /// A round of heartbeats leaves.
    pub(super) fn on_round_sent(&mut self, round: u64) {
        let (now, is_on) = (self.now_ms, self.config.lease_ms > 0);
        if let Role::Leader(leader) = &mut self.role
            && is_on
        {
            leader.lease.rounds.push_back((round, now));
            if leader.lease.rounds.len() > ROUNDS_MAX {
                leader.lease.rounds.pop_front();
            }
        }
    }

    /// A peer has answered a round.
    pub(super) fn renew_lease(&mut self) {
        let own = self.config.id;
        let Role::Leader(leader) = &mut self.role else { return };
        while let Some(&(round, sent_ms)) = leader.lease.rounds.front() {
            let answered = leader.peers.iter().filter(|(_, peer)| peer.round >= round);
            let mut heard: BTreeSet<NodeId> = answered.map(|(&id, _)| id).collect();
            heard.insert(own);
            if !self.log.membership().has_quorum(&heard) {
                return;
            }
            leader.lease.rounds.pop_front();
            leader.lease.from_ms = Some(sent_ms);
        }
    }

    /// Whether nobody else can lead at this moment.
    pub(super) fn has_lease(&self) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        let Some(from_ms) = leader.lease.from_ms.filter(|_| !leader.lease.is_void) else {
            return false;
        };
        self.now_ms < from_ms + self.config.lease_ms
    }
}

/// Rounds that are remembered; a leader that nobody answers has no lease anyway.
const ROUNDS_MAX: usize = 64;
