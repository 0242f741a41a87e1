//! What goes into a turn and what comes out of it: plain buffers that the driver swaps.

use std::sync::Arc;

use bytes::Bytes;

use super::agreement::Divergence;
use crate::proto::client::{Consistency, Manage, Reply};
use crate::proto::command::Principal;
use crate::proto::peer::StateHash;
use crate::raft::{
    Contact, DataId, Index, Membership, MembershipAt, Message, NodeId, RoleKind, Term,
};
use crate::store::{CatchUp, Checkpoint, Compacted, Reader, Store, Unread};
use crate::wal::{Batch, Ordinal, Persisted, Record};

/// Everything that arrived since the last turn.
#[derive(Default)]
pub struct Input {
    /// Units of time that went by.
    pub ticks: u32,
    /// Milliseconds since 1970, for the leader's clock entries.
    pub now_ms: u64,
    /// Milliseconds of a clock that never goes back and counts on while the machine sleeps; read after everything else
    /// here has arrived.
    pub clock_ms: u64,
    /// Messages of peers, each with the entries that came beside it.
    pub messages: Vec<(Message, Option<Batch>)>,
    /// Requests of clients.
    pub requests: Vec<Request>,
    /// Bytes in `requests`, for push-back.
    pub request_bytes: usize,
    /// What the sync thread finished.
    pub persisted: Vec<Persisted>,
    /// What peers said of their stores.
    pub state_hashes: Vec<(NodeId, StateHash)>,
    /// Peers that said how they are reached.
    pub announced: Vec<(NodeId, Contact)>,
    /// Peers that were reached, and at which address.
    pub reached: Vec<(NodeId, String)>,
    /// Newer members than this log may have, as nodes say that were asked for them.
    pub vouched: Vec<MembershipAt>,
    /// Peers whose connection broke.
    pub unreachable: Vec<NodeId>,
    /// Images that checkpoints made, or brought up to date, for the store to go on in; `None` if one could not be made.
    pub images: Vec<Option<Compacted>>,
    /// Checkpoints that are durable now; `None` if one failed.
    pub checkpoints: Vec<Option<SnapshotAt>>,
    /// What became of snapshots on their way to peers.
    pub snapshots_sent: Vec<(NodeId, Sent)>,
    /// Snapshots that came from a leader.
    pub snapshots_received: Vec<ReceivedSnapshot>,
    /// Leadership should go to another node, for this one is about to stop.
    pub transfer: bool,
}

/// What became of a snapshot on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The receiver has it, or something newer: the index.
    Arrived(Index),
    /// It did not get there, or the receiver had no time for it.
    Lost,
    /// It got there, and every byte was not as it was written: this node's file may be damaged.
    Damaged,
}

/// Where an answer goes; only the driver knows what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplyTo {
    /// The stream of a connection.
    pub stream: u64,
    /// The request on it.
    pub request_id: u64,
}

/// A client's request, decoded as far as the node needs.
#[derive(Debug)]
pub struct Request {
    /// Where the answer goes.
    pub reply_to: ReplyTo,
    /// What is asked.
    pub body: RequestBody,
}

/// What is asked.
#[derive(Debug)]
pub enum RequestBody {
    /// Replicate a command.
    Write {
        /// Whose it is, by the certificate.
        owner: Principal,
        /// The encoded command.
        command: Bytes,
    },
    /// The same, by way of the leader if this node does not lead.
    WriteAnywhere {
        /// Whose it is, by the certificate.
        owner: Principal,
        /// The encoded command.
        command: Bytes,
        /// The client's identity, for the leader.
        client: Arc<str>,
    },
    /// Read a key.
    Get {
        /// The key.
        key: Bytes,
        /// How fresh.
        consistency: Consistency,
        /// At this revision; `None` for the newest.
        revision: Option<u64>,
    },
    /// Say when and at which revision a scan may read.
    Scan {
        /// How fresh.
        consistency: Consistency,
        /// At this revision; `None` for the newest.
        revision: Option<u64>,
    },
    /// Say when there is a snapshot of what is acknowledged by now.
    Save,
    /// Change the cluster itself.
    Manage(Manage),
    /// Greet the client.
    Hello,
    /// How is the node?
    Status,
}

/// A snapshot file and what it covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotAt {
    /// The last entry that it covers.
    pub index: Index,
    /// The term of that entry.
    pub term: Term,
}

/// A verified, durable snapshot from a leader, already loaded.
pub struct ReceivedSnapshot {
    /// Who sent it.
    pub from: NodeId,
    /// The sender's data directory.
    pub data: DataId,
    /// The sender's term.
    pub term: Term,
    /// What it covers.
    pub at: SnapshotAt,
    /// The membership in it.
    pub membership: Membership,
    /// The store that it holds.
    pub store: Store,
}

/// A write for the leader.
#[derive(Debug)]
pub struct Forward {
    /// The leader.
    pub to: NodeId,
    /// Where its answer goes.
    pub reply_to: ReplyTo,
    /// The client's identity.
    pub client: Arc<str>,
    /// The encoded command.
    pub command: Bytes,
}

/// Everything that a turn wants done.
#[derive(Default)]
pub struct Output {
    /// For the sync thread, in this order.
    pub log_work: Vec<(Ordinal, Record)>,
    /// For the peers, each with the entries that go beside it.
    pub messages: Vec<(Message, Vec<Batch>)>,
    /// Peers that need a snapshot.
    pub send_snapshots: Vec<NodeId>,
    /// Clients' writes for the leader.
    pub forwards: Vec<Forward>,
    /// For the checkpoint thread.
    pub checkpoint: Option<CheckpointJob>,
    /// For the checkpoint thread: a compacted image that lags behind.
    pub catch_up: Option<CatchUp>,
    /// For any thread that may take its time to drop it.
    pub unread: Vec<Unread>,
    /// Role changes, for the log and the supervisor's eyes.
    pub roles: Vec<(Term, RoleKind)>,
    /// For all peers: what this node's store is like.
    pub state_hash: Option<StateHash>,
    /// Stores that should be the same as this one and are not.
    pub divergences: Vec<Divergence>,
    /// Peers that contradicted what is committed, and where.
    pub contradictions: Vec<(NodeId, Index)>,
    /// There is more to apply: another turn is wanted at once.
    pub again: bool,
    /// What is committed cannot be read back: nothing may be served any more.
    pub failure: Option<crate::wal::Error>,
}

/// A checkpoint to be written.
pub struct CheckpointJob {
    /// The store as it was.
    pub checkpoint: Checkpoint,
    /// What it covers.
    pub at: SnapshotAt,
    /// The membership then.
    pub membership: Membership,
    /// It is due because so much was written: if that goes on, another one follows.
    pub is_for_growth: bool,
}

/// Takes the answers of a turn.
pub trait Replies {
    /// Answers a request.
    fn reply(&mut self, to: ReplyTo, reply: &Reply<'_>);
    /// A scan may read with this reader at this revision.
    fn scan(&mut self, to: ReplyTo, reader: Reader, at: Index);
    /// The snapshot at this index can be sent.
    fn snapshot(&mut self, to: ReplyTo, at: Index);
    /// Whether there is room for the answer to a read. An answer to a write always finds some: it is short.
    fn has_room(&mut self, _: ReplyTo) -> bool {
        true
    }
    /// Takes back a read for whose answer there is no room: it comes again, as a local one, when there is. What is read
    /// then is newer, so it is as fresh as what was asked for, and no answer waits in the meantime.
    fn hold(&mut self, to: ReplyTo, _: RequestBody) {
        unreachable!("the request {to:?} has room for its answer");
    }
}
