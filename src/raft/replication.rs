//! AppendEntries and heartbeats, both ends (Raft 5.3), and the rule of commitment (Raft 5.4.2).

use std::collections::BTreeSet;

use super::effects::{Refused, Write};
use super::progress::State;
use super::state::{Leader, Role};
use super::{Body, EntryMeta, Index, Message, NodeId, Payload, Raft, Term, WriteId};

/// The leader's end.
impl Raft {
    pub(super) fn on_propose(&mut self, bytes: &[u32]) {
        let term = self.hard.term;
        let limit = self.config.uncommitted_bytes_max;
        let result = match &mut self.role {
            Role::Leader(Leader { transfer: Some(transfer), .. }) => {
                Err(Refused::NotLeader(Some(transfer.to)))
            }
            Role::Leader(leader) if leader.uncommitted_bytes >= limit => Err(Refused::Busy),
            Role::Leader(leader) => {
                let first = self.log.last_index().next();
                for &bytes in bytes {
                    self.log.append(EntryMeta { term, bytes, payload: Payload::Command });
                }
                let last = self.log.last_index();
                let total = bytes.iter().map(|&bytes| u64::from(bytes)).sum();
                leader.uncommitted_bytes += total;
                leader.uncommitted.push_back((last, total));
                let id = self.durability.on_append(last);
                self.effects.writes.push((id, Write::Proposed { first, term }));
                Ok(first)
            }
            Role::Follower(follower) => Err(Refused::NotLeader(follower.leader)),
            Role::Candidate(_) => Err(Refused::NotLeader(None)),
        };
        let accepted = result.is_ok();
        self.effects.proposal = Some(result);
        if accepted {
            self.replicate_to_all();
        }
    }

    pub(super) fn replicate_to_all(&mut self) {
        for peer in self.peers() {
            self.replicate_to(peer);
        }
    }

    /// Sends what the follower lacks, as far as its window allows.
    pub(super) fn replicate_to(&mut self, to: NodeId) {
        loop {
            let Role::Leader(leader) = &mut self.role else { return };
            let Some(peer) = leader.peers.get_mut(&to) else { return };
            let has_news = matches!(peer.state, State::Probe { .. })
                || peer.next_index <= self.log.last_index();
            if !has_news || !peer.may_send(self.config.window_bytes_max) {
                return;
            }
            let prev_log_index = peer.next_index.previous();
            let Some(prev_log_term) = self.log.term_at(prev_log_index) else {
                peer.become_snapshot();
                self.effects.send_snapshots.push(to);
                return;
            };
            let (entries, bytes) = self.log.metas_after(
                prev_log_index,
                self.config.append_bytes_max,
                self.config.append_entries_max,
            );
            peer.on_sent(prev_log_index.plus(entries.len() as u64), bytes);
            let commit_index = self.hard.commit_index;
            let body = Body::AppendEntries { prev_log_index, prev_log_term, commit_index, entries };
            self.send(to, body);
        }
    }

    pub(super) fn on_appended(&mut self, from: NodeId, match_index: Index) {
        let last = self.log.last_index();
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(peer) = leader.peers.get_mut(&from) else { return };
        // Input from outside: an index that this term never sent is a lie or a fault.
        if match_index > last {
            return;
        }
        if peer.on_match(match_index) {
            self.maybe_commit();
            self.maybe_finish_transfer();
        }
        self.replicate_to(from);
    }

    pub(super) fn on_append_rejected(&mut self, from: NodeId, prev: Index, hint: (Index, Term)) {
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(peer) = leader.peers.get_mut(&from) else { return };
        let is_stale = match peer.state {
            State::Probe { .. } => prev != peer.next_index.previous(),
            State::Replicate => prev <= peer.match_index,
            State::Snapshot => true,
        };
        if is_stale {
            return;
        }
        match self.log.last_at_or_below(hint.0, hint.1) {
            Some(agreed) if hint.0 >= self.log.base() => peer.become_probe(agreed.next()),
            Some(_) | None => {
                peer.become_snapshot();
                self.effects.send_snapshots.push(from);
            }
        }
        self.replicate_to(from);
    }

    /// Commits what a majority holds durably, if it is of this term (Raft 5.4.2, figure 8).
    pub(super) fn maybe_commit(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return };
        let own = self.config.id;
        let durable = self.durability.index();
        let quorum_index = self.log.membership().quorum_index(|voter| {
            if voter == own {
                durable
            } else {
                leader.peers.get(&voter).map(|peer| peer.match_index).unwrap_or_default()
            }
        });
        let is_own_term = self.log.term_at(quorum_index) == Some(self.hard.term);
        if quorum_index <= self.hard.commit_index || !is_own_term {
            return;
        }
        self.hard.commit_index = quorum_index;
        while leader.uncommitted.front().is_some_and(|&(last, _)| last <= quorum_index) {
            let (_, bytes) = leader.uncommitted.pop_front().expect("just seen");
            leader.uncommitted_bytes -= bytes;
        }
        self.maybe_start_round();
        self.advance_change();
    }

    pub(super) fn send_heartbeats(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return };
        leader.reads.round += 1;
        leader.heartbeat_elapsed = 0;
        let round = leader.reads.round;
        let commit_index = self.hard.commit_index;
        let beats: Vec<(NodeId, Body)> = leader
            .peers
            .iter()
            .map(|(&to, peer)| {
                let commit_index = commit_index.min(peer.match_index);
                (to, Body::Heartbeat { commit_index, round })
            })
            .collect();
        for (to, body) in beats {
            self.send(to, body);
        }
        self.on_round_sent(round);
    }

    pub(super) fn on_heartbeat_reply(&mut self, from: NodeId, round: u64) {
        let Role::Leader(leader) = &mut self.role else { return };
        let newest = leader.reads.round;
        let Some(peer) = leader.peers.get_mut(&from) else { return };
        if round > newest {
            return;
        }
        peer.round = peer.round.max(round);
        self.renew_lease();
        self.maybe_finish_round();
        self.replicate_to(from);
    }

    pub(super) fn on_leader_tick(&mut self) {
        let patience = self.config.election_ticks;
        let Role::Leader(leader) = &mut self.role else { return };
        if let Some(transfer) = &mut leader.transfer {
            transfer.elapsed += 1;
            if transfer.elapsed >= patience {
                leader.transfer = None;
            }
        }
        let mut lost = Vec::new();
        for (&id, peer) in &mut leader.peers {
            if peer.on_tick(patience) {
                peer.on_lost();
                lost.push(id);
            }
        }
        leader.heartbeat_elapsed += 1;
        if leader.heartbeat_elapsed >= self.config.heartbeat_ticks {
            self.send_heartbeats();
        }
        for id in lost {
            self.replicate_to(id);
        }
        if self.election_elapsed >= patience {
            self.check_quorum();
        }
        if self.is_held_up() {
            self.on_transfer(None);
        }
    }

    /// Whether this leader's own disk hangs while another's does not: all that it leads to is delay.
    fn is_held_up(&self) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        let heir = self.best_heir().and_then(|id| leader.peers.get(&id));
        self.durability.is_hung(self.config.election_ticks)
            && heir.is_some_and(|heir| heir.match_index > self.durability.index())
    }

    /// A leader that a majority did not answer for an election timeout steps down (thesis 6.2).
    fn check_quorum(&mut self) {
        self.election_elapsed = 0;
        let Role::Leader(leader) = &mut self.role else { return };
        let since = leader.window_round;
        let mut heard: BTreeSet<NodeId> =
            leader.peers.iter().filter(|(_, peer)| peer.round > since).map(|(&id, _)| id).collect();
        heard.insert(self.config.id);
        // Only answers to rounds that begin from now on count in the next window.
        leader.window_round = leader.reads.round;
        if !self.log.membership().has_quorum(&heard) {
            self.become_follower(self.hard.term, None);
            return;
        }
        self.maybe_promote();
        if let Role::Leader(leader) = &mut self.role {
            leader.window_index = self.log.last_index();
        }
    }

    pub(super) fn on_unreachable(&mut self, peer: NodeId) {
        let Role::Leader(leader) = &mut self.role else { return };
        if let Some(peer) = leader.peers.get_mut(&peer)
            && peer.state == State::Replicate
        {
            peer.become_probe(Index(0));
        }
    }
}

/// The follower's end.
impl Raft {
    pub(super) fn on_append_entries(&mut self, message: Message) {
        let Body::AppendEntries { prev_log_index, prev_log_term, commit_index, entries } =
            message.body
        else {
            unreachable!("dispatched by kind");
        };
        let last_sent = prev_log_index.plus(entries.len() as u64);
        // What a snapshot covers is committed and therefore equal.
        let is_below_base = prev_log_index < self.log.base();
        if !is_below_base && self.log.term_at(prev_log_index) != Some(prev_log_term) {
            self.reject_append(message.from, prev_log_index, prev_log_term);
            return;
        }
        if self.accept_entries(message.from, prev_log_index, entries) {
            self.on_verified(last_sent, commit_index);
        }
    }

    fn reject_append(&mut self, leader: NodeId, prev_log_index: Index, prev_log_term: Term) {
        let agreed = self.log.last_at_or_below(prev_log_index, prev_log_term);
        let hint_index = agreed.unwrap_or(self.log.base());
        let hint_term = self.log.term_at(hint_index).unwrap_or_default();
        self.send(leader, Body::AppendRejected { prev_log_index, hint_index, hint_term });
    }

    /// Keeps what is here already, removes what conflicts, adds the rest. False if the entries
    /// contradict what is committed here, which only a faulty peer can cause.
    fn accept_entries(&mut self, from: NodeId, prev: Index, entries: Vec<EntryMeta>) -> bool {
        let mut index = prev;
        for meta in &entries {
            let next = index.next();
            if next > self.log.base() && self.log.term_at(next) != Some(meta.term) {
                break;
            }
            index = next;
        }
        let skip = (index.0 - prev.0) as usize;
        let Some(first_new) = entries.get(skip) else { return true };
        let first = index.next();
        let rises = self.log.term_at(index).is_some_and(|term| term <= first_new.term);
        if first <= self.hard.commit_index {
            self.effects.contradictions.push((from, first));
            return false;
        }
        if !rises {
            return false;
        }
        if first <= self.log.last_index() {
            self.log.truncate(first);
            if let Role::Follower(follower) = &mut self.role {
                follower.verified_index = follower.verified_index.min(index);
            }
            let id = self.durability.on_truncate(first);
            self.effects.writes.push((id, Write::Truncate { from: first }));
        }
        for meta in entries.into_iter().skip(skip) {
            self.log.append(meta);
        }
        let id = self.durability.on_append(self.log.last_index());
        self.effects.writes.push((id, Write::Received { first, skip }));
        true
    }

    /// The log equals the leader's up to `verified`. Answered at once if it is durable already, since
    /// the leader may be probing; otherwise when the disk says so.
    pub(super) fn on_verified(&mut self, verified: Index, commit_index: Index) {
        let durable = self.durability.index();
        let Role::Follower(follower) = &mut self.role else { return };
        follower.verified_index = follower.verified_index.max(verified);
        let agreed = follower.verified_index;
        if verified <= durable {
            follower.owes_answer = true;
        }
        self.commit_up_to(commit_index.min(agreed));
        self.maybe_confirm();
    }

    fn commit_up_to(&mut self, index: Index) {
        self.hard.commit_index = self.hard.commit_index.max(index.min(self.log.last_index()));
    }

    /// Tells the leader how far the log is both equal and durable, if that is news.
    fn maybe_confirm(&mut self) {
        let durable = self.durability.index();
        let Role::Follower(follower) = &mut self.role else { return };
        let Some(leader) = follower.leader else { return };
        let match_index = follower.verified_index.min(durable);
        if match_index > follower.told_index || follower.owes_answer {
            follower.told_index = match_index;
            follower.owes_answer = false;
            self.send(leader, Body::Appended { match_index });
        }
    }

    pub(super) fn on_heartbeat(&mut self, from: NodeId, commit_index: Index, round: u64) {
        // The leader names no more than this node has confirmed to it in this term, durably, perhaps
        // before a restart: a quiet leader would never verify it again.
        let has_it = commit_index <= self.durability.index();
        if let Role::Follower(follower) = &mut self.role {
            if has_it {
                follower.verified_index = follower.verified_index.max(commit_index);
            }
            let agreed = follower.verified_index;
            self.commit_up_to(commit_index.min(agreed));
        }
        self.send(from, Body::HeartbeatReply { round });
    }

    /// The disk confirms writes: they count for commitment, answers and votes from now on.
    pub(super) fn on_persisted(&mut self, id: WriteId) {
        let rose = self.durability.on_persisted(id);
        while let Some(message) = self.durability.release() {
            self.effects.messages.push(message);
        }
        self.count_own_vote();
        if rose {
            self.maybe_commit();
            self.maybe_confirm();
        }
    }
}
