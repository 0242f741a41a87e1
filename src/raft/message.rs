//! What nodes say to each other, and what the core is told by its own shell.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Change, Contact, DataId, EntryKind, Index, Membership, MembershipAt, NodeId, Term};

/// One message of the protocol. `from` is set by the sender's core and verified by the receiver's
/// transport against the certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The sender.
    pub from: NodeId,
    /// The sender's data directory.
    pub data: DataId,
    /// The receiver.
    pub to: NodeId,
    /// The sender's term; for a pre-vote the term that it would run in.
    pub term: Term,
    /// What it says.
    pub body: Body,
}

/// The messages of Raft (figures 2 and 13, thesis 3.10, 6.4, 9.6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// Asks for a vote (Raft 5.2), or whether one would be given (`pre`, thesis 9.6).
    RequestVote {
        /// Only asking: nothing is promised and no term changes.
        pre: bool,
        /// Index of the candidate's last entry.
        last_log_index: Index,
        /// Term of the candidate's last entry.
        last_log_term: Term,
        /// The leader itself asked for this election (thesis 3.10), so its followers may vote.
        transfer: bool,
    },
    /// Answers [`Body::RequestVote`].
    VoteReply {
        /// As asked.
        pre: bool,
        /// Whether the vote is given.
        granted: bool,
    },
    /// Replicates entries (Raft 5.3).
    AppendEntries {
        /// The entry before the first one.
        prev_log_index: Index,
        /// Its term.
        prev_log_term: Term,
        /// How far the leader has committed.
        commit_index: Index,
        /// What follows; the bytes travel beside the message.
        #[serde(skip)]
        entries: Vec<EntryMeta>,
    },
    /// The log agrees with the leader's, durably, up to here.
    Appended {
        /// The last index that is both equal to the leader's log and durable.
        match_index: Index,
    },
    /// The log does not hold the entry before the sent ones (Raft 5.3, fast backtracking).
    AppendRejected {
        /// `prev_log_index` of the refused message.
        prev_log_index: Index,
        /// The highest index at which the logs may still agree.
        hint_index: Index,
        /// The receiver's term there; all that the leader has of higher terms cannot agree.
        hint_term: Term,
    },
    /// The leader is alive (Raft 5.2); `round` confirms its leadership to itself (thesis 6.4).
    Heartbeat {
        /// Committed, as far as the receiver's log is known to agree.
        commit_index: Index,
        /// Counts up with each round of heartbeats of this term.
        round: u64,
    },
    /// Answers [`Body::Heartbeat`].
    HeartbeatReply {
        /// The round that is answered.
        round: u64,
    },
    /// Start an election now (thesis 3.10).
    TimeoutNow,
    /// A follower asks for an index at which it may read (thesis 6.4).
    ReadIndex {
        /// The asker's name for it.
        id: ReadId,
    },
    /// Answers [`Body::ReadIndex`]: apply up to `index`, then read.
    ReadIndexReply {
        /// As asked.
        id: ReadId,
        /// The commit index that was confirmed after the question arrived.
        index: Index,
    },
}

/// A batch of reads of one node; unique over its restarts too, since answers may come late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ReadId(pub u64);

/// What the core knows of an entry: all but the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryMeta {
    /// The term of the leader that made it.
    pub term: Term,
    /// Length of its body.
    pub bytes: u32,
    /// What it is for.
    pub payload: Payload,
}

/// What an entry is for; membership is the one kind that the core reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// The empty entry of a new leader.
    Noop,
    /// A command for the store.
    Command,
    /// Who takes part from here on.
    Membership(Membership),
}

impl Payload {
    /// The kind without the content.
    pub fn kind(&self) -> EntryKind {
        match self {
            Payload::Noop => EntryKind::Noop,
            Payload::Command => EntryKind::Command,
            Payload::Membership(_) => EntryKind::Membership,
        }
    }
}

/// Names one write of the core to the log; they are persisted in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct WriteId(pub u64);

/// What happens to a core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// One unit of time went by.
    Tick,
    /// A peer says something.
    Receive(Message),
    /// Clients want these commands logged, given by the length of each body.
    Propose(Vec<u32>),
    /// Reads wait for an index; answered in [`super::Effects::reads`].
    Read(ReadId),
    /// All writes up to this one are durable.
    Persisted(WriteId),
    /// The connection to a peer broke: what was in flight may be lost.
    Unreachable(NodeId),
    /// A snapshot is durable; the log may forget entries up to here.
    Compact(Index),
    /// A snapshot was sent to the peer, or failed to be.
    SnapshotSent {
        /// The peer.
        to: NodeId,
        /// The last index that the snapshot covers; `None` if it failed.
        index: Option<Index>,
    },
    /// A whole, verified and durable snapshot came from the leader of `term`.
    SnapshotReceived {
        /// Who sent it.
        from: NodeId,
        /// The sender's data directory.
        data: DataId,
        /// The sender's term.
        term: Term,
        /// The last entry that it covers.
        index: Index,
        /// The term of that entry.
        index_term: Term,
        /// The membership at that entry.
        membership: Membership,
    },
    /// Hand leadership to this voter, or to the one that is furthest along.
    Transfer(Option<NodeId>),
    /// A node that the operator names, asked at the address that the operator gave, says that this membership is
    /// committed. It tells who is newer than this log, until the log tells it itself.
    Vouched(MembershipAt),
    /// Somebody wants other members; `contacts` tells how those are reached that the log does not know.
    ChangeMembers {
        /// What is to change.
        change: Change,
        /// Written down with the change.
        contacts: BTreeMap<NodeId, Contact>,
    },
}
