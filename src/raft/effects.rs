//! What follows from events: everything that the shell must do, in the order in which to do it.

use serde::{Deserialize, Serialize};

use super::{ChangeRefused, HardState, RoleKind};
use super::{Index, Membership, Message, NodeId, ReadId, Term, WriteId};

/// What follows from the events since the last look. The shell carries out `writes` before it sends
/// `messages`: not durably, only in order; what must be durable first is held back by the core.
#[derive(Debug, Default)]
pub struct Effects {
    /// To be written to the log, in this order.
    pub writes: Vec<(WriteId, Write)>,
    /// To be sent; may be lost, delayed, doubled and reordered.
    pub messages: Vec<Message>,
    /// What became of a [`super::Event::Propose`].
    pub proposal: Option<Result<Index, Refused>>,
    /// What became of a [`super::Event::ChangeMembers`]: begun, and for which member, or refused.
    pub change: Option<Result<NodeId, ChangeRefused>>,
    /// Reads that may be answered once everything up to the index is applied.
    pub reads: Vec<(ReadId, Index)>,
    /// Reads that must be asked again, because leadership is unclear.
    pub reads_refused: Vec<ReadId>,
    /// Peers that need a snapshot.
    pub send_snapshots: Vec<NodeId>,
    /// Whether the received snapshot replaces the store.
    pub install_snapshot: bool,
    /// Peers that sent entries which contradict what is committed here, and where: worth an alarm.
    pub contradictions: Vec<(NodeId, Index)>,
    /// Role changes, oldest first, with the term in which they happened.
    pub roles: Vec<(Term, RoleKind)>,
}

/// A change of the log or of the state beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Term, vote or commit index changed.
    Hard(HardState),
    /// The entries of a new leader's term begin with an empty one.
    Noop {
        /// Where it goes.
        index: Index,
        /// The leader's term.
        term: Term,
    },
    /// The commands of the event at hand.
    Proposed {
        /// Where the first goes.
        first: Index,
        /// The leader's term.
        term: Term,
    },
    /// Who takes part changes; the core itself encodes the entry.
    Membership {
        /// Where it goes.
        index: Index,
        /// The leader's term.
        term: Term,
        /// The entry's body.
        body: Vec<u8>,
    },
    /// The entries of the message at hand, without the first `skip`.
    Received {
        /// Where the first that is kept goes.
        first: Index,
        /// How many are here already.
        skip: usize,
    },
    /// Entries from here on conflict with the leader's and go.
    Truncate {
        /// The first that goes.
        from: Index,
    },
    /// A snapshot replaces the whole log.
    Reset {
        /// The last entry that it covers.
        index: Index,
        /// Its term.
        term: Term,
    },
}

/// Why a proposal was not taken; nothing of it is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Another node leads, if one is known.
    NotLeader(Option<NodeId>),
    /// Too many bytes wait to be committed.
    Busy,
}

/// The membership in force and where it came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipAt {
    /// The entry that set it.
    pub index: Index,
    /// Who takes part.
    pub membership: Membership,
}
