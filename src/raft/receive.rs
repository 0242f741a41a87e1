//! What comes before a message's own meaning: whether it can be believed, and the rule of terms.

use super::state::{Follower, Role};
use super::{Body, DataId, Message, NodeId, PeerMessage, Raft, Term};

impl Raft {
    /// The rule of terms (Raft 5.1), then the message itself.
    pub(super) fn receive(&mut self, message: Message) {
        if !self.is_sane(&message) || self.ignores_vote_request(&message) {
            return;
        }
        if message.term < self.hard.term {
            self.on_old_term(&message);
            return;
        }
        let is_pre_vote = matches!(
            message.body,
            Body::RequestVote { pre: true, .. } | Body::VoteReply { pre: true, granted: true }
        );
        if message.term > self.hard.term && !is_pre_vote {
            self.become_follower(message.term, None);
        }
        if let Role::Leader(leader) = &mut self.role
            && let Some(peer) = leader.peers.get_mut(&message.from)
        {
            peer.silent_ticks = 0;
        }
        let (from, term) = (message.from, message.term);
        match message.body {
            Body::RequestVote { .. } => self.on_request_vote(&message),
            Body::VoteReply { pre, granted } => self.on_vote_reply(&message, pre, granted),
            Body::AppendEntries { .. } => {
                if self.follow(term, from) {
                    self.on_append_entries(message);
                }
            }
            Body::Heartbeat { commit_index, round } => {
                if self.follow(term, from) {
                    self.on_heartbeat(from, commit_index, round);
                }
            }
            Body::Appended { match_index } => self.on_appended(from, match_index),
            Body::AppendRejected { prev_log_index, hint_index, hint_term } => {
                self.on_append_rejected(from, prev_log_index, (hint_index, hint_term));
            }
            Body::HeartbeatReply { round } => self.on_heartbeat_reply(from, round),
            Body::TimeoutNow => self.on_timeout_now(term),
            Body::ReadIndex { id } => self.on_read_index(from, id),
            Body::ReadIndexReply { id, index } => self.on_read_index_reply(from, id, index),
        }
    }

    /// One who is behind learns of our term: a leader steps down, a candidate stops asking.
    fn on_old_term(&mut self, message: &Message) {
        match message.body {
            Body::RequestVote { pre, .. } => {
                self.send(message.from, Body::VoteReply { pre, granted: false });
            }
            Body::AppendEntries { .. } | Body::Heartbeat { .. } => {
                self.send(message.from, Body::HeartbeatReply { round: 0 });
            }
            Body::VoteReply { .. }
            | Body::Appended { .. }
            | Body::AppendRejected { .. }
            | Body::HeartbeatReply { .. }
            | Body::TimeoutNow
            | Body::ReadIndex { .. }
            | Body::ReadIndexReply { .. } => {}
        }
    }

    /// A leader of our term speaks: follow it. False if that is impossible, two leaders of one term
    /// or ourselves, which only a faulty or lying peer can cause.
    pub(super) fn follow(&mut self, term: Term, leader: NodeId) -> bool {
        match &mut self.role {
            Role::Follower(Follower { leader: known @ None, .. }) if term == self.hard.term => {
                *known = Some(leader);
            }
            Role::Follower(follower) if term == self.hard.term => {
                if follower.leader != Some(leader) {
                    return false;
                }
            }
            Role::Leader(_) if term == self.hard.term => return false,
            Role::Follower(_) | Role::Candidate(_) | Role::Leader(_) => {
                self.become_follower(term, Some(leader));
            }
        }
        self.election_elapsed = 0;
        true
    }

    /// Whether a message can come from an honest node: bounds that keep absurd numbers out.
    fn is_sane(&self, message: &Message) -> bool {
        let addressed = message.to == self.config.id;
        let body_fits = match &message.body {
            Body::AppendEntries { prev_log_index, prev_log_term, entries, .. } => {
                let mut term = *prev_log_term;
                let rises = entries.iter().all(|meta| {
                    let rises = meta.term >= term;
                    term = meta.term;
                    rises
                });
                rises && term <= message.term && prev_log_index.0 < INDEX_MAX
            }
            Body::AppendRejected { hint_index, .. } => hint_index.0 < INDEX_MAX,
            Body::RequestVote { .. }
            | Body::VoteReply { .. }
            | Body::Appended { .. }
            | Body::Heartbeat { .. }
            | Body::HeartbeatReply { .. }
            | Body::TimeoutNow
            | Body::ReadIndex { .. }
            | Body::ReadIndexReply { .. } => true,
        };
        let kind = message.body.kind();
        self.is_allowed(kind, (message.from, message.data), message.term) && addressed && body_fits
    }

    /// Whether this is another member that may send such a message, with a term that can be believed.
    pub(super) fn is_allowed(
        &self,
        kind: PeerMessage,
        (from, data): (NodeId, DataId),
        term: Term,
    ) -> bool {
        let leads = term == self.hard.term && self.leader() == Some(from);
        let standing = self.roster().standing(from, data);
        let is_credible = term.0 <= self.hard.term.0.saturating_add(TERM_JUMP_MAX);
        from != self.config.id && kind.is_allowed(standing, leads) && is_credible
    }
}

impl Body {
    /// What of the table of seats holds for it.
    fn kind(&self) -> PeerMessage {
        match self {
            Body::RequestVote { .. } => PeerMessage::RequestVote,
            Body::VoteReply { .. } => PeerMessage::VoteReply,
            Body::AppendEntries { .. } | Body::Heartbeat { .. } => PeerMessage::AppendEntries,
            Body::Appended { .. } | Body::AppendRejected { .. } | Body::HeartbeatReply { .. } => {
                PeerMessage::Appended
            }
            Body::TimeoutNow => PeerMessage::TimeoutNow,
            Body::ReadIndex { .. } => PeerMessage::ReadIndex,
            Body::ReadIndexReply { .. } => PeerMessage::ReadIndexReply,
        }
    }
}

/// A peer's term may be this far ahead of ours; more is not believed, or one faulty message could use
/// up all terms there are.
const TERM_JUMP_MAX: u64 = 1 << 20;
/// Indexes stay below this, so that sums of them never overflow.
pub(super) const INDEX_MAX: u64 = 1 << 60;
