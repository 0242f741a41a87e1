//! Who the members are and how they are reached, for clients and links; and changes that clients ask for.
//!
//! A member is reached where it said itself on its own connection, else where this node's configuration
//! says, else where the log says.

use std::collections::BTreeMap;

use super::reads::What;
use super::{Node, Output, Replies, ReplyTo};
use crate::proto::client::{Manage, MemberInfo, MemberKind, Refusal, Reply};
use crate::raft::{
    Change, ChangeRefused, Contact, Event, Index, MEMBERS_MAX, Membership, NodeId, RoleKind,
};

/// A change that waits until it is done.
#[derive(Debug)]
pub(super) struct WaitingChange {
    reply_to: ReplyTo,
    id: NodeId,
    goal: Goal,
}

/// What a member shall be.
#[derive(Clone, Copy, Debug)]
enum Goal {
    Member,
    Voter,
    Gone,
}

impl Goal {
    fn is_reached(self, id: NodeId, membership: &Membership) -> bool {
        match self {
            Goal::Member => membership.is_member(id),
            Goal::Voter => membership.voters.contains(&id) && !membership.is_joint(),
            Goal::Gone => membership.is_removed(id),
        }
    }
}

impl Node {
    /// Counts up whenever [`Node::peers`] or what is committed of them changes.
    pub fn members_version(&self) -> (u64, Index, u64) {
        let (changes, committed) = self.raft.membership_version();
        (changes, committed, self.announcements)
    }

    /// Everybody who takes part or may do so as far as this log goes: who spoke to this node and is newer than its log
    /// is needed to bring it up to date.
    pub fn peers(&self) -> BTreeMap<NodeId, Contact> {
        let membership = self.raft.membership();
        let newer = self.about.contacts.keys().copied().filter(|id| id.0 > membership.last_id);
        let all = membership.members().into_iter().chain(newer);
        let others = all.filter(|&id| id != self.raft.id());
        others.filter_map(|id| Some((id, self.contact(id)?.clone()))).collect()
    }

    /// How a node is reached, as far as this one knows.
    pub fn contact(&self, id: NodeId) -> Option<&Contact> {
        self.about.contacts.get(&id).or_else(|| self.raft.membership().contacts.get(&id))
    }

    /// The members as clients see them.
    pub(super) fn member_infos(&self) -> Vec<MemberInfo> {
        let membership = self.raft.membership();
        let kind = |id: NodeId| {
            if membership.voters.contains(&id) {
                MemberKind::Voter
            } else if membership.learners.contains_key(&id) {
                MemberKind::Learner
            } else {
                MemberKind::Leaving
            }
        };
        let info = |id: NodeId| {
            let Contact { name, peer_address, client_address, .. } = self.contact(id)?.clone();
            Some(MemberInfo { id: id.0, name, client_address, peer_address, kind: kind(id) })
        };
        membership.members().into_iter().filter_map(info).collect()
    }

    /// A peer said where it is reached now.
    pub(super) fn on_announced(&mut self, id: NodeId, announced: Contact) {
        let ticket = self.contact(id).map_or(0, |known| known.ticket);
        let announced = Contact { ticket, ..announced };
        let contacts = &mut self.about.contacts;
        let membership = self.raft.membership();
        contacts.retain(|&id, _| !membership.is_removed(id));
        let is_news = contacts.get(&id) != Some(&announced);
        if is_news && !membership.is_removed(id) && contacts.len() < 2 * MEMBERS_MAX {
            contacts.insert(id, announced);
            self.announcements += 1;
        }
    }

    /// Does what an administrator asks for, or begins it.
    pub(super) fn manage(&mut self, reply_to: ReplyTo, manage: Manage, output: &mut Output) {
        if self.raft.role() != RoleKind::Leader {
            let leader = self.raft.leader().map(|NodeId(id)| id);
            self.answer_later(reply_to, What::Refuse(Refusal::NotLeader { leader }));
            return;
        }
        let (change, goal) = match manage {
            Manage::Add { name, peer_address, client_address, ticket, stays, rejoins } => {
                let contact = Contact { name, peer_address, client_address, ticket };
                (Change::Add { contact, stays, rejoins }, Goal::Member)
            }
            Manage::Promote { id } => (Change::Promote(NodeId(id)), Goal::Voter),
            Manage::Remove { id } => (Change::Remove(NodeId(id)), Goal::Gone),
            Manage::Transfer { to } => {
                self.transfer(reply_to, NodeId(to), output);
                return;
            }
        };
        if let Change::Promote(id) | Change::Remove(id) = change
            && goal.is_reached(id, self.committed_membership())
        {
            // Asked again, because an answer was lost.
            self.answer_later(reply_to, What::Managed(id));
            return;
        }
        let contacts: BTreeMap<NodeId, Contact> = self.about.contacts.clone();
        let effects = self.step(Event::ChangeMembers { change, contacts }, None, output);
        match effects.change.expect("a change is answered in its own step") {
            Ok(id) => self.changes.push(WaitingChange { reply_to, id, goal }),
            Err(refused) => {
                let refusal = match refused {
                    ChangeRefused::NotLeader(leader) => {
                        Refusal::NotLeader { leader: leader.map(|NodeId(id)| id) }
                    }
                    ChangeRefused::NotReady | ChangeRefused::UnderWay => {
                        Refusal::Busy { retry_after_ms: CHANGE_RETRY_MS }
                    }
                    refused => Refusal::Invalid { reason: self.explain(&refused) },
                };
                self.answer_later(reply_to, What::Refuse(refusal));
            }
        }
    }

    /// The reason, with the names that people know.
    fn explain(&self, refused: &ChangeRefused) -> String {
        let name = |id: NodeId| {
            self.contact(id).map_or_else(|| id.to_string(), |contact| contact.name.clone())
        };
        let about = match *refused {
            ChangeRefused::IsVoter(id) | ChangeRefused::LastVoter(id) => Some(id),
            ChangeRefused::Behind { id, .. } | ChangeRefused::AddressTaken { id, .. } => Some(id),
            _ => None,
        };
        match about.filter(|&id| name(id) != id.to_string()) {
            Some(id) => format!("{refused} ({id} is {})", name(id)),
            None => refused.to_string(),
        }
    }

    fn transfer(&mut self, reply_to: ReplyTo, to: NodeId, output: &mut Output) {
        let is_voter = self.raft.membership().voters.contains(&to);
        let alive = self.raft.followers().iter().any(|&(id, _, alive)| id == to && alive);
        let answer = if to == self.raft.id() {
            What::Managed(to)
        } else if !is_voter {
            What::Refuse(Refusal::Invalid { reason: format!("{to} is no voter: it cannot lead") })
        } else if !alive {
            What::Refuse(Refusal::Invalid { reason: format!("{to} was not heard lately") })
        } else {
            self.step(Event::Transfer(Some(to)), None, output);
            What::Managed(to)
        };
        self.answer_later(reply_to, answer);
    }

    fn committed_membership(&self) -> &Membership {
        &self.raft.membership_at(self.raft.hard_state().commit_index).membership
    }

    /// Answers every change that is done.
    pub(super) fn answer_changes(&mut self, replies: &mut dyn Replies) {
        if self.changes.is_empty() {
            return;
        }
        let membership = self.committed_membership().clone();
        self.changes.retain(|&WaitingChange { reply_to, id, goal }| {
            let is_done = goal.is_reached(id, &membership);
            if is_done {
                replies.reply(reply_to, &Reply::Managed { id: id.0 });
            }
            !is_done
        });
    }

    /// Leadership is gone: what was begun may or may not happen, unless it is done already.
    pub(super) fn abandon_changes(&mut self) {
        let membership = self.committed_membership().clone();
        for WaitingChange { reply_to, id, goal } in std::mem::take(&mut self.changes) {
            let answer = if goal.is_reached(id, &membership) {
                What::Managed(id)
            } else {
                What::Refuse(Refusal::Unknown)
            };
            self.answer_later(reply_to, answer);
        }
    }
}

/// When to ask again while another change is under way.
const CHANGE_RETRY_MS: u32 = 50;
