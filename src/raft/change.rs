//! How a leader changes who takes part (thesis 4): what speaks against a change, its two entries, the
//! promotion of learners, and the end of a leader that removed itself.
//!
//! One change is under way at a time, and none begins before the leader has committed an entry of its own
//! term (Ongaro's correction of 2015). The second entry of a change is added once the first is committed, by
//! whoever leads then.

use std::collections::{BTreeMap, BTreeSet};

use super::effects::Write;
use super::progress::Progress;
use super::state::Role;
use super::{
    Body, Change, ChangeRefused, Contact, EntryMeta, Index, Membership, NodeId, Payload, Raft,
};

impl Raft {
    /// Begins a change, if nothing speaks against it.
    pub(super) fn on_change_members(
        &mut self,
        change: &Change,
        contacts: BTreeMap<NodeId, Contact>,
    ) {
        let begun = self.begin_change(change, contacts);
        self.effects.change = Some(begun);
    }

    fn begin_change(
        &mut self,
        change: &Change,
        contacts: BTreeMap<NodeId, Contact>,
    ) -> Result<NodeId, ChangeRefused> {
        let leader = match &self.role {
            Role::Leader(leader) => leader,
            Role::Follower(follower) => return Err(ChangeRefused::NotLeader(follower.leader)),
            Role::Candidate(_) => return Err(ChangeRefused::NotLeader(None)),
        };
        if leader.transfer.is_some() || self.hard.commit_index < leader.noop_index {
            return Err(ChangeRefused::NotReady);
        }
        if self.is_changing() {
            return Err(ChangeRefused::UnderWay);
        }
        let mut now = self.log.membership().clone();
        for id in now.members() {
            if let (false, Some(contact)) = (now.contacts.contains_key(&id), contacts.get(&id)) {
                now.contacts.insert(id, contact.clone());
            }
        }
        let (id, next) = now.after(change)?;
        if let Change::Promote(id) = *change {
            self.check_caught_up(id)?;
        }
        if next.is_joint() {
            self.check_reach(&next)?;
        }
        if next != now {
            self.append_membership(next);
        }
        Ok(id)
    }

    /// Whether the latest membership is still on its way: not committed, or the first of two entries.
    fn is_changing(&self) -> bool {
        let latest = self.log.latest_membership();
        latest.index > self.hard.commit_index || latest.membership.is_joint()
    }

    /// A learner is caught up when it has, durably, all that was there when the present window began: it is at most
    /// one election timeout behind (thesis 4.2.1), so that the cluster does not wait long for it.
    fn check_caught_up(&self, id: NodeId) -> Result<(), ChangeRefused> {
        let Role::Leader(leader) = &self.role else { return Err(ChangeRefused::NotReady) };
        let peer = leader.peers.get(&id).ok_or(ChangeRefused::Unknown(id))?;
        let is_here = peer.silent_ticks < self.config.election_ticks;
        if is_here && peer.match_index >= leader.window_index {
            return Ok(());
        }
        let last_index = self.log.last_index();
        Err(ChangeRefused::Behind { id, match_index: peer.match_index, last_index })
    }

    /// Refuses a membership that could not decide anything with those who were heard lately.
    fn check_reach(&self, next: &Membership) -> Result<(), ChangeRefused> {
        let Role::Leader(leader) = &self.role else { return Err(ChangeRefused::NotReady) };
        let patience = self.config.election_ticks;
        let here = leader.peers.iter().filter(|(_, peer)| peer.silent_ticks < patience);
        let mut heard: BTreeSet<NodeId> = here.map(|(&id, _)| id).collect();
        heard.insert(self.config.id);
        if next.has_quorum(&heard) {
            return Ok(());
        }
        let (heard, voters) = (next.voters.intersection(&heard).count(), next.voters.len());
        Err(ChangeRefused::NoQuorum { heard, voters })
    }

    fn append_membership(&mut self, membership: Membership) {
        self.append_membership_entry(membership);
        self.follow_membership();
        self.replicate_to_all();
    }

    /// The entry alone.
    pub(super) fn append_membership_entry(&mut self, membership: Membership) -> Index {
        assert!(membership.is_sane(), "{membership:?}");
        let (term, body) = (self.hard.term, membership.encode());
        let bytes = u32::try_from(body.len()).expect("a few dozen members fit into 4 GiB");
        let meta = EntryMeta { term, bytes, payload: Payload::Membership(membership) };
        let index = self.log.append(meta);
        let id = self.durability.on_append(index);
        self.effects.writes.push((id, Write::Membership { index, term, body }));
        index
    }

    /// The leader sends to exactly those who take part.
    fn follow_membership(&mut self) {
        let members = self.peers();
        let next = self.log.last_index().next();
        let Role::Leader(leader) = &mut self.role else { return };
        leader.peers.retain(|id, _| members.contains(id));
        for id in members {
            leader.peers.entry(id).or_insert_with(|| Progress::new(next));
        }
        leader.transfer.take_if(|transfer| !leader.peers.contains_key(&transfer.to));
        // With fewer voters a round may have its majority already; alone, nobody else would ever say so.
        self.maybe_finish_round();
    }

    /// The leader's next step in a change, once the last one is committed.
    pub(super) fn advance_change(&mut self) {
        let latest = self.log.latest_membership();
        if latest.index > self.hard.commit_index {
            return;
        }
        if latest.membership.is_joint() {
            self.append_membership(latest.membership.settled());
        } else if !latest.membership.voters.contains(&self.config.id) {
            self.leave();
        }
    }

    /// A leader that is no voter any more hands over to the best of those who are (thesis 4.2.2).
    fn leave(&mut self) {
        // First this: once it knows that we left, it listens no more.
        if let Some(heir) = self.best_heir() {
            self.send(heir, Body::TimeoutNow);
        }
        self.send_heartbeats();
        self.become_follower(self.hard.term, None);
    }

    /// Promotes the first learner that is caught up and wants to be.
    pub(super) fn maybe_promote(&mut self) {
        let learners = self.log.membership().learners.iter();
        let wants: Vec<NodeId> =
            learners.filter(|(_, learner)| !learner.stays).map(|(&id, _)| id).collect();
        for id in wants {
            // Refused for now, for a reason that passes or that `member promote` tells.
            if self.begin_change(&Change::Promote(id), BTreeMap::new()).is_ok() {
                return;
            }
        }
    }
}
