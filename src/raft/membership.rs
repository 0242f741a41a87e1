//! Who takes part, and how that changes: joint consensus (thesis 4.3) with learners (thesis 4.2.1).
//!
//! The membership in force is the latest in the log, committed or not; when entries are removed, the one
//! before them is in force again. A change is one entry, or two: the first makes old and new voters decide
//! together, the second lets the old ones go. Ids are given in order and never again. `change` has when
//! this happens.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{DataId, Index, NodeId};

/// Who takes part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The nodes whose majority decides.
    pub voters: BTreeSet<NodeId>,
    /// The voters before the change that is under way, whose majority is needed too; empty between changes.
    pub outgoing: BTreeSet<NodeId>,
    /// Nodes that get the log and have no vote.
    pub learners: BTreeMap<NodeId, Learner>,
    /// The highest id that was ever given.
    pub last_id: u64,
    /// How members are reached, as far as the log knows it: the first members are known from elsewhere until a
    /// change writes them down.
    pub contacts: BTreeMap<NodeId, Contact>,
    /// The data directory that acts for each member. Founders have none until the first leader, for which all of them
    /// voted, writes down who voted; a learner that was only announced has none until it joins.
    pub data: BTreeMap<NodeId, DataId>,
    /// What the cluster was founded with.
    pub founding: Founding,
    /// Names of members that were removed: none of them joins again without an operator's word.
    pub fenced: BTreeSet<String>,
}

/// What a cluster was founded with. Nodes that were founded differently are of different clusters, whatever authority
/// their certificates have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Founding {
    /// The first voters, by name.
    pub members: BTreeMap<NodeId, String>,
    /// What tells the snapshot that it began with from every other, and how many revisions were left out after it;
    /// zeros for a cluster that began empty.
    pub origin: [u8; 16],
}

impl Founding {
    /// A cluster of these members that begins empty.
    pub fn of(members: impl IntoIterator<Item = (NodeId, String)>) -> Founding {
        Founding { members: members.into_iter().collect(), origin: [0; 16] }
    }
}

impl fmt::Display for Founding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (id, name)) in self.members.iter().enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            write!(f, "{comma}{name} (id {})", id.0)?;
        }
        if self.origin != [0; 16] {
            write!(f, ", from the snapshot ")?;
            self.origin.iter().take(8).try_for_each(|byte| write!(f, "{byte:02x}"))?;
        }
        Ok(())
    }
}

/// What becomes of a learner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learner {
    /// The voter whose place it takes when it is promoted.
    pub replaces: Option<NodeId>,
    /// It is only promoted when somebody asks for it.
    pub stays: bool,
}

/// How a member is reached. Carried by the core, not used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// Its name, as in its certificate.
    pub name: String,
    /// `host:port` for other nodes.
    pub peer_address: String,
    /// `host:port` for clients.
    pub client_address: String,
}

/// A change of the membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A learner joins.
    Add {
        /// How it is reached.
        contact: Contact,
        /// Its data directory: who asks again with the same one is the same, with all that it ever confirmed. Zero if
        /// an operator announces it.
        data: DataId,
        /// It is only promoted when somebody asks for it.
        stays: bool,
        /// It takes the place of the member of this name, which has lost its data.
        rejoins: bool,
    },
    /// A learner becomes a voter.
    Promote(NodeId),
    /// A voter or learner goes, for ever.
    Remove(NodeId),
}

/// Why a change was not begun; nothing of it is in the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeRefused {
    /// Another node leads, if one is known.
    #[error("another node leads")]
    NotLeader(Option<NodeId>),
    /// The leader is new, or about to go.
    #[error("leadership has just changed or is about to: try again")]
    NotReady,
    /// Another change is under way.
    #[error("another change of the members is under way: try again when it is done")]
    UnderWay,
    /// There is no such member.
    #[error("{0} is no member")]
    Unknown(NodeId),
    /// It votes already.
    #[error("{0} is a voter already")]
    IsVoter(NodeId),
    /// The name is another member's.
    #[error(
        "the name {name} is that of {id}: start the node with --rejoin if it is the same one and has lost its data, or \
         remove that member first"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Whose it is.
        id: NodeId,
    },
    /// The name is that of a member that was removed.
    #[error(
        "{name} was removed from this cluster: an operator lets it in again with `quicraft member add {name} --peer \
         HOST:PORT`"
    )]
    Fenced {
        /// The name.
        name: String,
    },
    /// As many names of removed members as are kept.
    #[error(
        "{FENCED_MAX} names of removed members are kept: let one in again before you remove another"
    )]
    FenceFull,
    /// The address is another member's.
    #[error("the address {address} is that of {id}")]
    AddressTaken {
        /// The address.
        address: String,
        /// Whose it is.
        id: NodeId,
    },
    /// As many members as may be.
    #[error("the cluster has {MEMBERS_MAX} members, and more are not allowed")]
    Full,
    /// Nobody could decide anything any more.
    #[error("{0} is the last voter: without it the cluster would be gone")]
    LastVoter(NodeId),
    /// The learner lacks too much, or was not heard lately.
    #[error("{id} is not caught up: it has index {match_index} of {last_index}")]
    Behind {
        /// The learner.
        id: NodeId,
        /// What it is known to have.
        match_index: Index,
        /// What there is.
        last_index: Index,
    },
    /// Too few of those who would decide are there.
    #[error(
        "only {heard} of the {voters} voters that would be left were heard lately: the cluster would stop"
    )]
    NoQuorum {
        /// Voters of the new membership that were heard within an election timeout.
        heard: usize,
        /// All of them.
        voters: usize,
    },
}

/// Nodes in one cluster.
pub const MEMBERS_MAX: usize = 64;
/// Names of removed members in one cluster: each membership carries them.
pub const FENCED_MAX: usize = 1024;

impl Membership {
    /// A membership of these voters, whose data directories have the numbers of their nodes.
    pub fn of(voters: impl IntoIterator<Item = NodeId>) -> Membership {
        let voters: BTreeSet<NodeId> = voters.into_iter().collect();
        let last_id = voters.last().map_or(0, |id| id.0);
        let data = voters.iter().map(|&id| (id, DataId(id.0))).collect();
        Membership { voters, last_id, data, ..Membership::default() }
    }

    /// The first membership of a new cluster: nobody has acted for its voters yet.
    pub fn founded_with(founding: Founding) -> Membership {
        let voters = founding.members.keys().copied();
        Membership { data: BTreeMap::new(), founding: founding.clone(), ..Membership::of(voters) }
    }

    /// Whether the cluster is yet to be founded: some voter has no data directory.
    pub fn is_founding(&self) -> bool {
        self.voters.iter().any(|id| !self.data.contains_key(id))
    }

    /// This membership once these directories have voted for its first leader.
    pub(super) fn seated(&self, data: BTreeMap<NodeId, DataId>) -> Membership {
        Membership { data, ..self.clone() }
    }

    /// The name of a member, as far as the log tells it.
    pub fn name_of(&self, id: NodeId) -> Option<&str> {
        let contact = self.contacts.get(&id).map(|contact| &contact.name);
        contact.or_else(|| self.founding.members.get(&id)).map(String::as_str)
    }

    /// Whether a node has a vote, now or until the change under way is done.
    pub fn is_voter(&self, id: NodeId) -> bool {
        self.voters.contains(&id) || self.outgoing.contains(&id)
    }

    /// Whether a node takes part at all.
    pub fn is_member(&self, id: NodeId) -> bool {
        self.is_voter(id) || self.learners.contains_key(&id)
    }

    /// Whether a node took part once and never will again.
    pub fn is_removed(&self, id: NodeId) -> bool {
        id.0 <= self.last_id && !self.is_member(id)
    }

    /// Everybody who takes part, in order.
    pub fn members(&self) -> BTreeSet<NodeId> {
        let learners = self.learners.keys().copied();
        self.voters.iter().chain(&self.outgoing).copied().chain(learners).collect()
    }

    /// Whether a change is under way that takes a second entry.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// The encoding that stands in the log.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("postcard encodes every value of these types")
    }

    /// Whether the numbers in it can be: what comes from outside is not trusted.
    pub fn is_sane(&self) -> bool {
        let members = self.members();
        members.len() <= MEMBERS_MAX
            && self.contacts.keys().chain(self.data.keys()).all(|id| members.contains(id))
            && self.fenced.len() <= FENCED_MAX
            && self.founding.members.len() <= MEMBERS_MAX
            && members.last().is_none_or(|id| id.0 <= self.last_id)
            && self.learners.keys().all(|&id| !self.is_voter(id))
    }

    /// The second entry of a change: the old voters go.
    pub(super) fn settled(&self) -> Membership {
        let mut next = Membership { outgoing: BTreeSet::new(), ..self.clone() };
        next.forget_the_gone();
        next
    }

    /// Whoever is no member any more has no contact and no data directory, and its name is fenced, unless it is another
    /// member's by now.
    fn forget_the_gone(&mut self) {
        let members = self.members();
        let known = self.contacts.keys().chain(self.data.keys()).copied().collect::<BTreeSet<_>>();
        let gone = known.difference(&members).filter_map(|&id| self.name_of(id));
        let gone: Vec<String> = gone.map(str::to_owned).collect();
        self.contacts.retain(|id, _| members.contains(id));
        self.data.retain(|id, _| members.contains(id));
        let is_free = |name: &String| members.iter().all(|&id| self.name_of(id) != Some(name));
        let fenced: Vec<String> = gone.into_iter().filter(is_free).collect();
        self.fenced.extend(fenced);
    }

    /// The membership once the first entry of a change is in the log, and whom the change is about.
    pub(super) fn after(&self, change: &Change) -> Result<(NodeId, Membership), ChangeRefused> {
        match change {
            Change::Add { contact, data, stays, rejoins } => {
                let learner = Learner { replaces: None, stays: *stays };
                self.with_learner(contact, *data, learner, *rejoins)
            }
            &Change::Promote(id) => {
                if self.voters.contains(&id) {
                    return Err(ChangeRefused::IsVoter(id));
                }
                let mut next = self.clone();
                let learner = next.learners.remove(&id).ok_or(ChangeRefused::Unknown(id))?;
                next.outgoing = self.voters.clone();
                next.voters.insert(id);
                if let Some(old) = learner.replaces {
                    next.voters.remove(&old);
                }
                Ok((id, next))
            }
            &Change::Remove(id) => {
                let mut next = self.clone();
                if self.fenced.len() >= FENCED_MAX {
                    return Err(ChangeRefused::FenceFull);
                }
                if next.learners.remove(&id).is_some() {
                    next.forget_the_gone();
                    return Ok((id, next));
                }
                if !next.voters.remove(&id) {
                    return Err(ChangeRefused::Unknown(id));
                }
                if next.voters.is_empty() {
                    return Err(ChangeRefused::LastVoter(id));
                }
                next.outgoing = self.voters.clone();
                Ok((id, next))
            }
        }
    }

    fn with_learner(
        &self,
        contact: &Contact,
        data: DataId,
        mut learner: Learner,
        rejoins: bool,
    ) -> Result<(NodeId, Membership), ChangeRefused> {
        let mut next = self.clone();
        let is_announced = data == DataId(0);
        if !is_announced && self.fenced.contains(&contact.name) {
            return Err(ChangeRefused::Fenced { name: contact.name.clone() });
        }
        next.fenced.remove(&contact.name);
        for (&id, known) in &self.contacts {
            let acting = self.data.get(&id);
            if known.name != contact.name {
                check_addresses(id, known, contact)?;
            } else if acting.is_none_or(|acting| *acting == data) {
                // Announced before, or asked before.
                next.contacts.insert(id, contact.clone());
                next.seat(id, data);
                return Ok((id, next));
            } else if !rejoins {
                return Err(ChangeRefused::NameTaken { name: known.name.clone(), id });
            } else if next.learners.remove(&id).is_none() {
                learner.replaces = Some(id);
            }
        }
        if next.members().len() >= MEMBERS_MAX {
            return Err(ChangeRefused::Full);
        }
        let id = NodeId(self.last_id + 1);
        next.last_id = id.0;
        next.learners.insert(id, learner);
        next.contacts.insert(id, contact.clone());
        next.seat(id, data);
        next.forget_the_gone();
        Ok((id, next))
    }

    fn seat(&mut self, id: NodeId, data: DataId) {
        if data != DataId(0) {
            self.data.insert(id, data);
        }
    }
}

/// An address may serve one purpose of one member.
fn check_addresses(id: NodeId, known: &Contact, new: &Contact) -> Result<(), ChangeRefused> {
    let taken = [&known.peer_address, &known.client_address];
    match [&new.peer_address, &new.client_address].into_iter().find(|new| taken.contains(new)) {
        Some(address) => Err(ChangeRefused::AddressTaken { address: address.clone(), id }),
        None => Ok(()),
    }
}
