//! Who may speak as which node: what a node judges connections by. The driver makes a new one whenever the members change,
//! and every connection is judged again by it.

use crate::node::Node;
use crate::proto::peer::PeerHello;
use crate::raft::{
    DataId, Founding, Index, Membership, MembershipAt, NodeId, PeerMessage, Roster, Standing,
};

/// See the module.
#[derive(Clone, Debug)]
pub struct Book {
    own: NodeId,
    data: DataId,
    latest: Membership,
    committed: MembershipAt,
    vouched: Option<Membership>,
}

/// Why a connection is not wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    /// No membership that is known here has given this id, or not to a node of this name.
    #[error("it is no member of this cluster, as far as this node knows")]
    Unknown,
    /// It will never take part again.
    #[error("it was removed from the cluster")]
    Removed,
    /// Another node, or this one in an earlier life, is meant.
    #[error("it looks for another node")]
    Misdirected,
    /// The member has lost its data, or somebody uses its certificate.
    #[error(
        "another data directory acts for it in this cluster: if the node has lost its data, start it with --rejoin; a \
         directory that was copied or made anew must not take its place"
    )]
    OtherData,
    /// The nodes are of different clusters.
    #[error("it was founded with {theirs}; this node was founded with {own}")]
    FoundedDifferently {
        /// What the other one says.
        theirs: String,
        /// What this node's log says.
        own: String,
    },
}

impl Book {
    /// A book that knows nobody yet.
    pub fn blank(own: NodeId, data: DataId) -> Book {
        Book {
            own,
            data,
            latest: Membership::default(),
            committed: MembershipAt::default(),
            vouched: None,
        }
    }

    /// What a node knows that cannot read its whole log.
    pub(super) fn of_members(own: NodeId, data: DataId, members: &Membership) -> Book {
        let membership = members.clone();
        Book {
            latest: members.clone(),
            committed: MembershipAt { index: Index(0), membership },
            ..Book::blank(own, data)
        }
    }

    /// What a node knows.
    pub fn of(node: &Node) -> Book {
        let core = node.core();
        let roster = core.roster();
        Book {
            own: core.id(),
            data: core.data(),
            latest: roster.latest.clone(),
            committed: core.membership_at(core.hard_state().commit_index).clone(),
            vouched: roster.vouched.cloned(),
        }
    }

    /// This node.
    pub fn own(&self) -> NodeId {
        self.own
    }

    /// Its data directory.
    pub fn data(&self) -> DataId {
        self.data
    }

    /// The committed members, for whoever asks.
    pub fn committed(&self) -> &MembershipAt {
        &self.committed
    }

    /// What this node was founded with, if its log says so.
    pub fn founding(&self) -> Option<&Founding> {
        Some(&self.latest.founding).filter(|founding| !founding.members.is_empty())
    }

    /// Whether the name is that of a removed member.
    pub fn is_fenced(&self, name: &str) -> bool {
        self.committed.membership.fenced.contains(name)
    }

    /// Whether this node's own place is bound to its data directory, for certain.
    pub fn is_seated(&self) -> bool {
        self.committed.membership.data.get(&self.own) == Some(&self.data)
    }

    /// What a node of this name may do as the one that it says it is. Who looks for anybody, and not for a certain node, may
    /// only ask for the members.
    ///
    /// # Errors
    /// Why it may do nothing.
    pub fn judge(&self, hello: &PeerHello, name: &str) -> Result<Standing, Stranger> {
        if self.is_fenced(name) {
            return Err(Stranger::Removed);
        }
        if let (Some(own), Some(theirs)) = (self.founding(), &hello.founding)
            && own != theirs
        {
            let (theirs, own) = (theirs.to_string(), own.to_string());
            return Err(Stranger::FoundedDifferently { theirs, own });
        }
        let standing = self.roster().standing(hello.from, hello.data);
        if hello.to == NodeId(0) {
            return Ok(Standing::Unknown);
        }
        let is_other_life = hello.to_data.is_some_and(|data| data != self.data);
        if hello.to != self.own || hello.from == self.own || is_other_life {
            return Err(Stranger::Misdirected);
        }
        match standing {
            Standing::Removed => Err(Stranger::Removed),
            Standing::Unknown => Err(Stranger::Unknown),
            Standing::OtherData => Err(Stranger::OtherData),
            Standing::Voter | Standing::Learner | Standing::Leaving | Standing::Founder => {
                let membership = self.roster().membership_of(hello.from);
                let known = membership.and_then(|membership| membership.name_of(hello.from));
                let is_named = known.is_none_or(|known| known == name);
                if is_named { Ok(standing) } else { Err(Stranger::Unknown) }
            }
        }
    }

    /// Whether a message that is not the core's counts; `leads`: the sender leads in this node's term.
    pub fn is_allowed(&self, kind: PeerMessage, hello: &PeerHello, leads: bool) -> bool {
        kind.is_allowed(self.roster().standing(hello.from, hello.data), leads)
    }

    fn roster(&self) -> Roster<'_> {
        Roster {
            latest: &self.latest,
            committed: &self.committed.membership,
            vouched: self.vouched.as_ref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(from: u64, to: u64) -> PeerHello {
        PeerHello {
            from: NodeId(from),
            data: DataId(from),
            to: NodeId(to),
            to_data: None,
            founding: None,
            peer_address: String::new(),
            client_address: String::new(),
        }
    }

    fn founding(names: &[&str]) -> Founding {
        let ids = (1..).map(NodeId);
        let members = ids.zip(names.iter().map(|name| (*name).to_owned())).collect();
        Founding { members, origin: [0; 16] }
    }

    fn book() -> Book {
        let mut membership = Membership {
            founding: founding(&["n1", "n2", "n3"]),
            last_id: 3,
            ..Membership::of([NodeId(1), NodeId(2)])
        };
        membership.fenced.insert("n3".to_owned());
        Book {
            latest: membership.clone(),
            committed: MembershipAt { index: Index(9), membership },
            ..Book::blank(NodeId(1), DataId(1))
        }
    }

    #[test]
    fn a_node_speaks_as_itself_to_whom_it_means_and_not_after_its_removal() {
        let book = book();
        assert_eq!(book.judge(&hello(2, 1), "n2"), Ok(Standing::Voter));
        assert_eq!(book.judge(&hello(2, 1), "n4"), Err(Stranger::Unknown), "another's name");
        assert_eq!(book.judge(&hello(2, 3), "n2"), Err(Stranger::Misdirected));
        assert_eq!(book.judge(&hello(1, 1), "n1"), Err(Stranger::Misdirected));
        assert_eq!(book.judge(&hello(3, 1), "n5"), Err(Stranger::Removed), "its id is gone");
        assert_eq!(book.judge(&hello(0, 1), "n0"), Err(Stranger::Removed), "zero is no node");
    }

    #[test]
    fn a_made_up_id_is_nobody_s_and_a_fenced_name_is_fenced_under_every_id() {
        let book = book();
        for id in [4, 99, u64::MAX] {
            assert_eq!(book.judge(&hello(id, 1), "n2"), Err(Stranger::Unknown), "{id}");
            assert_eq!(book.judge(&hello(id, 1), "n3"), Err(Stranger::Removed), "{id}");
        }
        assert_eq!(
            book.judge(&hello(99, 0), "n9"),
            Ok(Standing::Unknown),
            "it asks for the members"
        );
        assert_eq!(book.judge(&hello(99, 0), "n3"), Err(Stranger::Removed));
    }

    #[test]
    fn another_data_directory_is_another_node() {
        let book = book();
        let other = PeerHello { data: DataId(7), ..hello(2, 1) };
        assert_eq!(book.judge(&other, "n2"), Err(Stranger::OtherData));
        let earlier = PeerHello { to_data: Some(DataId(7)), ..hello(2, 1) };
        assert_eq!(book.judge(&earlier, "n2"), Err(Stranger::Misdirected));
        let now = PeerHello { to_data: Some(DataId(1)), ..hello(2, 1) };
        assert_eq!(book.judge(&now, "n2"), Ok(Standing::Voter));
    }

    #[test]
    fn nodes_that_were_founded_differently_do_not_talk() {
        let book = book();
        let said = |names: &[&str]| PeerHello { founding: Some(founding(names)), ..hello(2, 1) };
        assert_eq!(book.judge(&said(&["n1", "n2", "n3"]), "n2"), Ok(Standing::Voter));
        let error = book.judge(&said(&["n2"]), "n2").unwrap_err().to_string();
        assert!(error.contains("founded with n2 (id 1)") || error.contains("n2"), "{error}");
        assert!(
            error.contains("this node was founded with n1 (id 1), n2 (id 2), n3 (id 3)"),
            "{error}"
        );
        assert_eq!(book.judge(&hello(2, 1), "n2"), Ok(Standing::Voter), "it knows nothing yet");
    }
}
