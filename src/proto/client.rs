//! Requests and replies between clients and nodes.
//!
//! The first frame on a connection's first bidirectional stream is [`Hello`], answered by [`Reply::Hello`]. After that
//! the same stream carries any number of requests at once; replies come in any order and name their request. Requests
//! above [`super::limits::LARGE_BYTES`], scans and saves use one stream each, without a second `Hello`. A value above it is
//! answered there by [`Reply::Large`]: the client asks again on a stream of its own.

use serde::{Deserialize, Serialize};

use super::command::Outcome;

/// The first thing a client says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The highest protocol version that the client speaks.
    pub version: u16,
}

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Consistency {
    /// Sees every write acknowledged before the read began, on any node (strict serializability).
    #[default]
    Linearizable,
    /// Sees what the asked node has applied: may be old, answers also without a majority.
    Local,
}

/// Reads one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Get<'a> {
    /// 1 to `KEY_BYTES_MAX` bytes.
    #[serde(borrow, with = "serde_bytes")]
    pub key: &'a [u8],
    /// How fresh.
    pub consistency: Consistency,
    /// At this revision; `None` for the newest.
    pub revision: Option<u64>,
}

/// What a scan returns of each row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScanMode {
    /// Keys and values.
    #[default]
    Rows,
    /// Keys; values come back empty.
    Keys,
    /// Only the number of rows, in [`Reply::ScanEnd`].
    Count,
}

/// Reads a range in key order, all of it at one revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scan<'a> {
    /// First key of the range; empty means from the start.
    #[serde(borrow, with = "serde_bytes")]
    pub from: &'a [u8],
    /// First key after the range; `None` means to the end.
    #[serde(borrow)]
    pub to: Option<&'a serde_bytes::Bytes>,
    /// Rows at most; `u64::MAX` for all.
    pub limit: u64,
    /// From the last key of the range to the first.
    pub reverse: bool,
    /// What to return.
    pub mode: ScanMode,
    /// How fresh.
    pub consistency: Consistency,
    /// At this revision; `None` for the newest.
    pub revision: Option<u64>,
}

/// One key with its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row<'a> {
    /// The key.
    #[serde(borrow, with = "serde_bytes")]
    pub key: &'a [u8],
    /// The value; empty in a scan of keys.
    #[serde(borrow, with = "serde_bytes")]
    pub value: &'a [u8],
    /// The revision that wrote this value.
    pub revision: u64,
}

/// A member as clients see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// The node's id.
    pub id: u64,
    /// The node's name, which its certificate must show.
    pub name: String,
    /// `host:port` for clients.
    pub client_address: String,
    /// `host:port` for other nodes.
    pub peer_address: String,
    /// Its part in the cluster.
    pub kind: MemberKind,
}

/// A member's part in the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberKind {
    /// Counts in majorities.
    #[default]
    Voter,
    /// Gets the log and has no vote.
    Learner,
    /// Counts until the change that removes it is done.
    Leaving,
}

/// A change of the cluster itself; for administrators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Manage {
    /// A learner joins.
    Add {
        /// Its name, as in its certificate.
        name: String,
        /// `host:port` for other nodes.
        peer_address: String,
        /// `host:port` for clients.
        client_address: String,
        /// Drawn once by the joining node, so that it can ask again; 0 to announce a node that will join.
        ticket: u64,
        /// It is only promoted when somebody asks for it.
        stays: bool,
        /// It takes the place of the member of this name, which has lost its data.
        rejoins: bool,
    },
    /// A learner becomes a voter.
    Promote {
        /// The learner's id.
        id: u64,
    },
    /// A member goes, for ever.
    Remove {
        /// The member's id.
        id: u64,
    },
    /// Another voter shall lead.
    Transfer {
        /// The voter's id.
        to: u64,
    },
}

/// The answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloReply {
    /// The version that this connection speaks from here on.
    pub version: u16,
    /// The answering node.
    pub node_id: u64,
    /// Who leads, as far as this node knows.
    pub leader: Option<u64>,
    /// All members.
    pub members: Vec<MemberInfo>,
    /// Longest value that is accepted, in bytes.
    pub value_bytes_max: u64,
}

/// A node's role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RoleName {
    /// Follows a leader or waits for one.
    Follower,
    /// Asks whether it could win an election.
    PreCandidate,
    /// Runs for leader.
    Candidate,
    /// Leads.
    Leader,
    /// Its log is damaged: it fetches what it lacks from the others, and takes no part until it is whole.
    Repairing,
}

/// What a leader knows of another member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The member.
    pub id: u64,
    /// Highest index known to be durable there.
    pub match_index: u64,
    /// Whether it was heard within the last election timeout.
    pub alive: bool,
}

/// How one of a node's ports fares. Numbers count from the node's start; `connections` and `half_open` are of now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Door {
    /// Connections whose other side has shown a certificate.
    pub connections: u64,
    /// Handshakes that have begun.
    pub half_open: u64,
    /// Handshakes that had to show first that their address is their own.
    pub retried: u64,
    /// Handshakes that found no place, and were ignored.
    pub ignored: u64,
    /// Connections that were closed because their principal, or all together, have too many.
    pub refused: u64,
    /// Handshakes that failed.
    pub failed: u64,
    /// Handshakes that were not over in time.
    pub timed_out: u64,
}

/// How a node's ports fare, and what waits behind them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doors {
    /// The port for clients.
    pub client: Door,
    /// The port for nodes.
    pub peer: Door,
    /// Bytes of answers that wait for their clients now.
    pub reply_bytes: u64,
    /// Bytes of requests that are not whole now.
    pub half_frame_bytes: u64,
    /// Reads that wait now for room for their answers.
    pub held_reads: u64,
    /// Streams that were ended because nothing of their answers was taken.
    pub not_taken: u64,
    /// Streams that were ended because a request was not whole in time.
    pub half_frames: u64,
    /// Requests that were refused because too much was waiting.
    pub busy: u64,
}

/// How a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The node's id.
    pub node_id: u64,
    /// The node's name.
    pub name: String,
    /// The cluster's name, as in the certificates.
    pub cluster: String,
    /// The version of the program.
    pub version: String,
    /// Its role now.
    pub role: RoleName,
    /// Its term.
    pub term: u64,
    /// Who leads, as far as it knows.
    pub leader: Option<u64>,
    /// Highest committed index that it knows.
    pub commit_index: u64,
    /// Highest index in its store.
    pub applied_index: u64,
    /// Last index of its log.
    pub last_log_index: u64,
    /// Highest index that is durable in its own log.
    pub durable_index: u64,
    /// Index of its newest snapshot, 0 without one.
    pub snapshot_index: u64,
    /// Bytes of its log files.
    pub log_bytes: u64,
    /// Keys in its store.
    pub keys: u64,
    /// Bytes of its store.
    pub store_bytes: u64,
    /// The oldest revision that can be read.
    pub oldest_revision: u64,
    /// A hash over everything applied up to `applied_index`: equal at equal index on all nodes.
    pub state_hash: u64,
    /// What the leader knows of the others; empty on the others.
    pub peers: Vec<PeerStatus>,
    /// How its ports fare.
    pub doors: Box<Doors>,
}

/// Why a request was refused; each variant says what the client can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// Ask the leader; nothing was done.
    NotLeader {
        /// Who leads, as far as the node knows.
        leader: Option<u64>,
    },
    /// Too much is waiting; try again later, nothing was done.
    Busy {
        /// When to try again.
        retry_after_ms: u32,
    },
    /// The request names something longer than allowed; nothing was done.
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// No room on disk or in memory for more data; nothing was done.
    NoSpace,
    /// Leadership was lost after the write was logged: it may or may not happen. Sending the same sequence number again
    /// is safe.
    Unknown,
    /// The asked revision is gone.
    Compacted {
        /// The oldest that is there.
        oldest: u64,
    },
    /// The certificate's role does not allow it; nothing was done.
    Denied {
        /// The role of the certificate.
        role: String,
    },
    /// The request makes no sense; nothing was done.
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
}

/// The answer to any request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply<'a> {
    /// To [`Hello`].
    Hello(HelloReply),
    /// To a write: what the replicated store said.
    Outcome(Outcome),
    /// To [`Get`]: the key is there.
    Value {
        /// The revision that wrote this value.
        revision: u64,
        /// The value.
        #[serde(borrow, with = "serde_bytes")]
        value: &'a [u8],
    },
    /// To [`Get`]: the key is not there.
    NotFound,
    /// To [`Scan`]: the next rows; more frames follow.
    #[serde(borrow)]
    Rows(Vec<Row<'a>>),
    /// To [`Scan`]: the end.
    ScanEnd {
        /// Rows in all.
        rows: u64,
        /// The revision at which all rows were read.
        revision: u64,
        /// Whether the limit cut the range off.
        more: bool,
    },
    /// To a status request.
    Status(Status),
    /// To any request.
    Refused(Refusal),
    /// To [`Get`] on the shared stream: the value is long and would delay others, ask on a stream of its own.
    Large,
    /// To [`Manage`]: done; to a transfer: begun.
    Managed {
        /// The member that it was about.
        id: u64,
    },
    /// To a save: a snapshot is being made; more frames follow.
    Saving,
    /// To a save: the snapshot is there, and its bytes follow.
    SnapshotBegins {
        /// The revision that it holds.
        index: u64,
        /// The length of the file.
        bytes: u64,
    },
    /// To a save: the next bytes.
    #[serde(borrow)]
    SnapshotChunk(&'a serde_bytes::Bytes),
}
