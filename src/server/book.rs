//! Who may speak as which node: made by the driver whenever the members change, read by every connection.

use std::collections::BTreeMap;

use quinn::VarInt;

use crate::node::Node;
use crate::proto::peer::PeerHello;
use crate::raft::{Membership, NodeId};

/// What connections are judged by.
#[derive(Debug)]
pub(super) struct Book {
    own: NodeId,
    /// The names of the members that are known.
    names: BTreeMap<NodeId, String>,
    /// Who was removed from it is gone for certain.
    committed: Membership,
}

/// Why a connection is not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Stranger {
    #[error("it is no member of this cluster")]
    Unknown,
    #[error("it was removed from the cluster")]
    Removed,
    #[error("it looks for another node")]
    Misdirected,
}

impl Stranger {
    /// The code that the connection is closed with.
    pub(super) fn code(self) -> VarInt {
        match self {
            Stranger::Unknown => 1_u32.into(),
            Stranger::Removed => REMOVED.into(),
            Stranger::Misdirected => 4_u32.into(),
        }
    }
}

impl Book {
    /// A book that knows nobody yet.
    pub(super) fn blank(own: NodeId) -> Book {
        Book { own, names: BTreeMap::new(), committed: Membership::default() }
    }

    /// What a node knows.
    pub(super) fn of(node: &Node) -> Book {
        let core = node.core();
        let committed = &core.membership_at(core.hard_state().commit_index).membership;
        let peers = node.peers().into_iter();
        Book {
            own: core.id(),
            names: peers.map(|(id, contact)| (id, contact.name)).collect(),
            committed: committed.clone(),
        }
    }

    /// Whether a node of this name may speak as the one it says it is. Members newer than this node's log are believed:
    /// they hold a certificate of the cluster, and without them a node that was away could not catch up.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn judge(&self, hello: &PeerHello, name: &str) -> Result<(), Stranger> {
        if hello.to != self.own || hello.from == self.own {
            return Err(Stranger::Misdirected);
        }
        if self.committed.is_removed(hello.from) {
            return Err(Stranger::Removed);
        }
        match self.names.get(&hello.from) {
            Some(known) if known != name => Err(Stranger::Unknown),
            Some(_) | None => Ok(()),
        }
    }
}

/// Tells a node that it was removed.
pub(super) const REMOVED: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_speaks_as_itself_to_whom_it_means_and_not_after_its_removal() {
        let book = Book {
            own: NodeId(1),
            names: [(NodeId(2), "n2".to_owned())].into(),
            committed: Membership { last_id: 3, ..Membership::of([NodeId(1), NodeId(2)]) },
        };
        let judge = |from, to, name| {
            let (from, to) = (NodeId(from), NodeId(to));
            let addresses = [String::new(), String::new()];
            let [peer_address, client_address] = addresses;
            book.judge(&PeerHello { from, to, peer_address, client_address }, name)
        };
        assert_eq!(judge(2, 1, "n2"), Ok(()));
        assert_eq!(judge(2, 1, "n4"), Err(Stranger::Unknown));
        assert_eq!(judge(2, 3, "n2"), Err(Stranger::Misdirected));
        assert_eq!(judge(1, 1, "n1"), Err(Stranger::Misdirected));
        assert_eq!(judge(3, 1, "n3"), Err(Stranger::Removed));
        assert_eq!(judge(4, 1, "n4"), Ok(()), "newer than the log");
        assert_eq!(judge(0, 1, "n0"), Err(Stranger::Removed), "zero is no node");
    }
}
