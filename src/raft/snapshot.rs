//! Snapshots, both ends (Raft 7). The bytes travel outside the core; it decides who needs one, and
//! whether one that came may replace the log.

use super::effects::Write;
use super::progress::State;
use super::receive::INDEX_MAX;
use super::state::Role;
use super::{DataId, Index, Membership, MembershipAt, NodeId, PeerMessage, Raft, Term};

impl Raft {
    /// A snapshot is durable, so the log up to `index` may go.
    ///
    /// # Panics
    /// If something uncommitted would go.
    pub(super) fn on_compact(&mut self, index: Index) {
        assert!(index <= self.hard.commit_index, "{index} is not committed");
        self.log.compact(index);
        self.durability.on_snapshot(index);
        self.maybe_commit();
    }

    pub(super) fn on_snapshot_sent(&mut self, to: NodeId, index: Option<Index>) {
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(peer) = leader.peers.get_mut(&to) else { return };
        if peer.state != State::Snapshot {
            return;
        }
        match index {
            // Only the follower itself can say that it has it; until then this is a guess.
            Some(index) => peer.become_probe(index.next()),
            None => peer.become_probe(Index(0)),
        }
        // Asked again at the next heartbeat's reply, not at once: a peer that is gone would make
        // this a busy loop.
        if index.is_some() {
            self.replicate_to(to);
        }
    }

    pub(super) fn on_snapshot_received(
        &mut self,
        (from, data): (NodeId, DataId),
        term: Term,
        (index, index_term): (Index, Term),
        membership: Membership,
    ) {
        let is_allowed = self.is_allowed(PeerMessage::Snapshot, (from, data), term);
        let is_sane = is_allowed && index_term <= term && index.0 < INDEX_MAX;
        if !is_sane || !self.follow(term, from) {
            return;
        }
        if index <= self.hard.commit_index {
            // An old one does no harm: what it covers is here, and equal.
            let commit_index = self.hard.commit_index;
            self.on_verified(commit_index, commit_index);
            return;
        }
        let suffix_stays = self.log.term_at(index) == Some(index_term);
        if suffix_stays {
            self.hard.commit_index = index;
            self.log.compact(index);
            self.durability.on_snapshot(index);
        } else {
            self.log.reset(index, index_term, MembershipAt { index, membership });
            self.hard.commit_index = index;
            let id = self.durability.on_reset(index);
            self.effects.writes.push((id, Write::Reset { index, term: index_term }));
            if let Role::Follower(follower) = &mut self.role {
                follower.verified_index = index;
            }
        }
        self.effects.install_snapshot = true;
        self.on_verified(index, index);
    }
}
