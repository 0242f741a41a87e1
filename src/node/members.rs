//! Who the members are and how they are reached, for clients and links; and changes that clients ask for.
//!
//! A member is dialled where this node's configuration says, then where the member said itself on its own connection, then
//! where the log says. The certificate decides who answers, and what a member said of itself is forgotten when it was
//! reached elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use super::reads::What;
use super::{Node, Output, Replies, ReplyTo};
use crate::proto::client::{Manage, MemberInfo, MemberKind, Refusal, Reply};
use crate::raft::{
    Change, ChangeRefused, Contact, DataId, Event, Index, Membership, NodeId, RoleKind,
};

/// A member as this node dials it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name, which its certificate must show.
    pub name: String,
    /// The data directory that acts for it; none while the cluster is being founded, and for one that has not joined.
    pub data: Option<DataId>,
    /// `host:port`, the best guess first.
    pub addresses: Vec<String>,
}

/// What [`Node::members_version`] gives: changes of the membership, where it is committed and vouched for, changes of
/// addresses.
pub type MembersVersion = ((u64, Index, Index), u64);

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
    pub fn members_version(&self) -> MembersVersion {
        (self.raft.membership_version(), self.announcements)
    }

    /// All other members, also those that a newer membership than this log's has, and how they are dialled.
    pub fn peers(&self) -> BTreeMap<NodeId, Peer> {
        let roster = self.raft.roster();
        let known = [Some(roster.latest), Some(roster.committed), roster.vouched];
        let ids: BTreeSet<NodeId> =
            known.into_iter().flatten().flat_map(Membership::members).collect();
        let others = ids.into_iter().filter(|&id| id != self.raft.id());
        others.filter_map(|id| Some((id, self.peer(id)?))).collect()
    }

    fn peer(&self, id: NodeId) -> Option<Peer> {
        let membership = self.raft.roster().membership_of(id)?;
        let name = membership.name_of(id)?;
        let configured = self.about.configured.get(name);
        let known = [configured, self.announced.get(&id), membership.contacts.get(&id)];
        let mut addresses = Vec::new();
        for contact in known.into_iter().flatten() {
            if !addresses.contains(&contact.peer_address) {
                addresses.push(contact.peer_address.clone());
            }
        }
        let data = membership.data.get(&id).copied();
        Some(Peer { name: name.to_owned(), data, addresses })
    }

    /// What clients and the log are told of how a member is reached.
    pub fn contact(&self, id: NodeId) -> Option<&Contact> {
        let membership = self.raft.roster().membership_of(id)?;
        let configured = || self.about.configured.get(membership.name_of(id)?);
        let announced = self.announced.get(&id);
        announced.or_else(configured).or_else(|| membership.contacts.get(&id))
    }

    /// A node's name for people.
    pub fn name_of(&self, id: NodeId) -> String {
        let membership = self.raft.roster().membership_of(id);
        let name = membership.and_then(|membership| membership.name_of(id));
        name.map_or_else(|| id.to_string(), str::to_owned)
    }

    /// Whom to ask for the members if this node hears no leader: those that the operator named, and the members that this
    /// log names, each at the addresses that are known of it.
    pub fn acquaintances(&self) -> BTreeMap<String, Vec<String>> {
        let mut known: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let configured = self.about.configured.iter();
        for (name, contact) in configured.filter(|(name, _)| **name != self.about.name) {
            known.entry(name.clone()).or_default().push(contact.peer_address.clone());
        }
        for Peer { name, addresses, .. } in self.peers().into_values() {
            let all = known.entry(name).or_default();
            let new = addresses.into_iter().filter(|address| !all.contains(address));
            let new: Vec<String> = new.collect();
            all.extend(new);
        }
        known
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
            let Contact { name, peer_address, client_address } = self.contact(id)?.clone();
            Some(MemberInfo { id: id.0, name, client_address, peer_address, kind: kind(id) })
        };
        membership.members().into_iter().filter_map(info).collect()
    }

    /// A member said where it is reached now.
    pub(super) fn on_announced(&mut self, id: NodeId, contact: Contact) {
        let roster = self.raft.roster();
        self.announced.retain(|&id, _| roster.membership_of(id).is_some());
        let is_member = roster.membership_of(id).is_some();
        if is_member && self.announced.get(&id) != Some(&contact) {
            self.announced.insert(id, contact);
            self.announcements += 1;
        }
    }

    /// A member was reached: at another address than it said, then what it said is not true.
    pub(super) fn on_reached(&mut self, id: NodeId, address: &str) {
        if self.announced.get(&id).is_some_and(|said| said.peer_address != address) {
            self.announced.remove(&id);
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
            Manage::Add { name, peer_address, client_address, data, stays, rejoins } => {
                let contact = Contact { name, peer_address, client_address };
                let data = DataId(data);
                (Change::Add { contact, data, stays, rejoins }, Goal::Member)
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
        let members = self.raft.membership().members().into_iter();
        let contacts = members.filter_map(|id| Some((id, self.contact(id)?.clone()))).collect();
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
        let name = |id: NodeId| self.name_of(id);
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
