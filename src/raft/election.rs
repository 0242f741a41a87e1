//! Elections, both ends: pre-vote (thesis 9.6), votes (Raft 5.2, 5.4.1), transfer (thesis 3.10).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::effects::Write;
use super::lease::Lease;
use super::progress::Progress;
use super::read::Reads;
use super::state::{Candidate, Leader, Role, Transfer};
use super::{Body, DataId, EntryMeta, Index, Message, NodeId, Payload, Raft, Term};

impl Raft {
    /// Whether a leader was heard so lately that nobody should run (thesis 4.2.3, 6.2).
    fn hears_leader(&self) -> bool {
        match &self.role {
            Role::Follower(follower) => {
                follower.leader.is_some() && self.election_elapsed < self.config.election_ticks
            }
            Role::Candidate(_) => false,
            // Its own check-quorum is what makes a leader doubt.
            Role::Leader(_) => true,
        }
    }

    /// Draws a new timeout; all differ, so that votes are rarely split (Raft 5.2).
    pub(super) fn reset_election_timer(&mut self) {
        self.election_elapsed = 0;
        let spread = u64::from(self.config.election_ticks);
        let extra = self.random() % spread.max(1);
        self.election_timeout = self.config.election_ticks + extra as u32;
    }

    pub(super) fn maybe_campaign(&mut self) {
        // Who leaves may still be needed until that is committed: perhaps nobody else has so much of the log (thesis
        // 4.2.2).
        let committed = &self.log.membership_at(self.hard.commit_index).membership;
        let own = self.config.id;
        let may_run = self.log.membership().is_voter(own) || committed.is_voter(own);
        if self.election_elapsed < self.election_timeout {
            return;
        }
        if !may_run || self.is_unseated() {
            // A node that kept the leader it lost would never ask the others for the members of today.
            self.become_follower(self.hard.term, None);
            return;
        }
        if self.durability.is_hung(self.config.election_ticks) {
            // It could not even vote for itself.
            self.reset_election_timer();
            return;
        }
        self.campaign(true, false);
    }

    /// Runs, or (`pre`) asks first. `transfer`: the leader asked for it.
    pub(super) fn campaign(&mut self, pre: bool, transfer: bool) {
        self.refuse_reads();
        self.reset_election_timer();
        let own = self.config.id;
        if !pre {
            self.hard.term = self.hard.term.next();
            self.hard.voted_for = Some(own);
            self.save_hard_state();
        }
        let term = if pre { self.hard.term.next() } else { self.hard.term };
        self.change_role(Role::Candidate(Candidate {
            pre,
            granted: BTreeMap::new(),
            refused: BTreeSet::new(),
        }));
        let body = Body::RequestVote {
            pre,
            last_log_index: self.log.last_index(),
            last_log_term: self.log.last_term(),
            transfer,
        };
        for peer in self.peers() {
            self.send_with_term(peer, term, body.clone());
        }
        self.count_own_vote();
    }

    /// A candidate's own vote counts once it is durable, like anybody's.
    pub(super) fn count_own_vote(&mut self) {
        let durable = self.durability.is_hard_state_durable();
        if let Role::Candidate(candidate) = &self.role
            && (candidate.pre || durable)
        {
            self.on_vote(self.config.id, self.config.data, true);
        }
    }

    pub(super) fn on_request_vote(&mut self, message: &Message) {
        let Body::RequestVote { pre, last_log_index, last_log_term, .. } = message.body else {
            unreachable!("dispatched by kind");
        };
        let up_to_date = self.log.is_up_to_date(last_log_index, last_log_term);
        if pre {
            let granted = message.term > self.hard.term && up_to_date && !self.hears_leader();
            // A refusal carries our own term, so that one who is behind learns of it.
            let term = if granted { message.term } else { self.hard.term };
            self.send_with_term(message.from, term, Body::VoteReply { pre, granted });
            return;
        }
        // Until the cluster is founded a vote is given once: nobody can tell yet whether who asks again is the same, or
        // has lost its data since.
        let may_repeat = !self.log.membership().is_founding();
        let free = self.hard.voted_for.is_none_or(|voted| may_repeat && voted == message.from);
        let granted = message.term == self.hard.term && free && up_to_date;
        if granted && self.hard.voted_for.is_none() {
            self.hard.voted_for = Some(message.from);
            self.save_hard_state();
            self.reset_election_timer();
        }
        self.send(message.from, Body::VoteReply { pre, granted });
    }

    /// Whether a vote is asked for that must not even raise our term: a leader is alive.
    pub(super) fn ignores_vote_request(&self, message: &Message) -> bool {
        matches!(message.body, Body::RequestVote { pre: false, transfer: false, .. })
            && message.term > self.hard.term
            && (self.hears_leader() || self.keeps_old_promise())
    }

    pub(super) fn on_vote_reply(&mut self, message: &Message, pre: bool, granted: bool) {
        let Role::Candidate(candidate) = &self.role else { return };
        let asked = if candidate.pre { self.hard.term.next() } else { self.hard.term };
        let is_answer = candidate.pre == pre && (message.term == asked || !granted);
        if is_answer {
            self.on_vote(message.from, message.data, granted);
        }
    }

    fn on_vote(&mut self, from: NodeId, data: DataId, granted: bool) {
        let Role::Candidate(candidate) = &mut self.role else { return };
        let pre = candidate.pre;
        if granted {
            candidate.granted.insert(from, data);
        } else {
            candidate.refused.insert(from);
        }
        let membership = self.log.membership();
        if membership.has_quorum(&candidate.granted.keys().copied().collect()) {
            if pre { self.campaign(false, false) } else { self.become_leader() }
        } else if membership.is_lost(&candidate.refused) {
            self.become_follower(self.hard.term, None);
        }
    }

    fn become_leader(&mut self) {
        let next = self.log.last_index().next();
        let peers: BTreeMap<NodeId, Progress> =
            self.peers().into_iter().map(|peer| (peer, Progress::new(next))).collect();
        let noop_index = self.append_first_entry();
        self.change_role(Role::Leader(Leader {
            peers,
            reads: Reads::default(),
            noop_index,
            heartbeat_elapsed: 0,
            window_round: 0,
            window_index: noop_index,
            transfer: None,
            lease: Lease::default(),
            uncommitted_bytes: 0,
            uncommitted: VecDeque::new(),
        }));
        self.election_elapsed = 0;
        self.send_heartbeats();
        self.replicate_to_all();
    }

    /// The first entry of a term is empty (thesis 6.4). The one with which a cluster is founded binds each founder to the
    /// data directory that voted. All of them voted, so no two such entries are of the same term; and a node that does
    /// not have the entry cannot lead before all founders vote once more, which those that have it refuse.
    fn append_first_entry(&mut self) -> Index {
        let term = self.hard.term;
        let membership = self.log.membership();
        if let Role::Candidate(candidate) = &self.role
            && membership.is_founding()
        {
            let membership = membership.seated(candidate.granted.clone());
            return self.append_membership_entry(membership);
        }
        let index = self.log.append(EntryMeta { term, bytes: 0, payload: Payload::Noop });
        let id = self.durability.on_append(index);
        self.effects.writes.push((id, Write::Noop { index, term }));
        index
    }

    /// Hands leadership to this voter, or to the one that is furthest along and alive (thesis 3.10).
    pub(super) fn on_transfer(&mut self, to: Option<NodeId>) {
        let heir = to.or_else(|| self.best_heir());
        let voters = &self.log.membership().voters;
        let heir = heir.filter(|id| *id != self.config.id && voters.contains(id));
        let Role::Leader(leader) = &mut self.role else { return };
        if let (None, Some(to)) = (&leader.transfer, heir) {
            leader.transfer = Some(Transfer { to, elapsed: 0 });
            leader.lease.void();
            self.maybe_finish_transfer();
        }
    }

    /// The voter that is furthest along among those that were heard lately.
    pub(super) fn best_heir(&self) -> Option<NodeId> {
        let patience = self.config.election_ticks;
        let Role::Leader(leader) = &self.role else { return None };
        let voters = &self.log.membership().voters;
        let alive = leader.peers.iter().filter(|(_, peer)| peer.silent_ticks < patience);
        let heirs = alive.filter(|(id, _)| voters.contains(id));
        heirs.max_by_key(|(_, peer)| peer.match_index).map(|(&id, _)| id)
    }

    /// Once the chosen peer has everything, it is told to run at once.
    pub(super) fn maybe_finish_transfer(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let Some(Transfer { to, .. }) = leader.transfer else { return };
        let caught_up =
            leader.peers.get(&to).is_some_and(|peer| peer.match_index == self.log.last_index());
        if caught_up {
            self.send(to, Body::TimeoutNow);
        }
    }

    pub(super) fn on_timeout_now(&mut self, term: Term) {
        let is_voter = self.log.membership().is_voter(self.config.id) && !self.is_unseated();
        if matches!(self.role, Role::Follower(_)) && term == self.hard.term && is_voter {
            self.campaign(false, true);
        }
    }
}
