//! What happens in the simulated world, in the order of time.

use std::sync::Arc;

use bytes::Bytes;
use quicraft::node::Sent;
use quicraft::proto::peer::PeerHello;
use quicraft::raft::{Body, Term};

use crate::clients::Answer;

/// An event and when it happens; of two at one time the one that was planned first comes first.
pub(crate) struct Due {
    pub(crate) at: u64,
    pub(crate) number: u64,
    pub(crate) event: Event,
}

pub(crate) enum Event {
    Tick {
        node: usize,
        life: u64,
    },
    Turn {
        node: usize,
        life: u64,
    },
    Deliver {
        to: usize,
        /// The receiver's data directory when the message left.
        directory: u64,
        hello: Arc<PeerHello>,
        bytes: Bytes,
    },
    Synced {
        node: usize,
        life: u64,
    },
    Compacted {
        node: usize,
        life: u64,
    },
    Checkpointed {
        node: usize,
        life: u64,
    },
    SnapshotArrives {
        from: usize,
        term: Term,
        to: usize,
        bytes: Vec<u8>,
        life: u64,
    },
    SnapshotReported {
        node: usize,
        to: usize,
        sent: Sent,
        life: u64,
    },
    Hear {
        client: usize,
        request: u64,
        answer: Answer,
    },
    Ask {
        client: usize,
        request: u64,
    },
    Nemesis,
    Start {
        node: usize,
    },
    /// A node in repair asks, or is done.
    Repair {
        node: usize,
        life: u64,
    },
    /// A full disk has room again.
    Free {
        node: usize,
    },
}

impl PartialEq for Due {
    fn eq(&self, other: &Due) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Due) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Due) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// Under which a message is counted.
pub(crate) fn message_name(body: &Body) -> &'static str {
    match body {
        Body::RequestVote { .. } => "message: RequestVote",
        Body::VoteReply { .. } => "message: VoteReply",
        Body::AppendEntries { .. } => "message: AppendEntries",
        Body::Appended { .. } => "message: Appended",
        Body::AppendRejected { .. } => "message: AppendRejected",
        Body::Heartbeat { .. } => "message: Heartbeat",
        Body::HeartbeatReply { .. } => "message: HeartbeatReply",
        Body::TimeoutNow => "message: TimeoutNow",
        Body::ReadIndex { .. } => "message: ReadIndex",
        Body::ReadIndexReply { .. } => "message: ReadIndexReply",
    }
}
