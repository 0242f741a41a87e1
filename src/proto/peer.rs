//! What nodes send each other.
//!
//! - The first frame of a connection's first stream is a `PeerHello` with a [`PeerHello`].
//! - A `Raft` frame is the postcard encoding of a [`Message`], followed, in an `AppendEntries`, by the
//!   entries in the form in which the log shares them (see `wal`): encoded once, sent to all.
//! - A snapshot goes on a bidirectional stream of its own: one `Snapshot` frame with a
//!   [`SnapshotHeader`], answered by a `SnapshotWanted` frame with a [`SnapshotWanted`]; then
//!   `SnapshotChunk` frames with the file's bytes in order, answered by one `SnapshotDone` frame with a
//!   [`SnapshotDone`], which may also be the first answer.
//! - A `StateHash` frame with a [`StateHash`] goes to every other node now and then.
//! - A write that a client gave to a node which does not lead goes to the leader on a bidirectional stream of
//!   its own: one `Forward` frame with a [`Forward`], answered by the `Reply` frame that the client gets.
//! - A node that hears no leader asks for the members, whom its log may not know, on a bidirectional stream of its own: one
//!   empty `AskMembers` frame, answered by one `Members` frame with a [`crate::raft::MembershipAt`], which is committed.
//! - A node whose log is damaged asks for what it lacks on a bidirectional stream of its own: one `Fetch` frame with a
//!   [`Want`], answered by one `Fetched` frame with a [`Fetched`].

use serde::{Deserialize, Serialize};

use super::Malformed;
use crate::raft::{DataId, Founding, Index, Message, NodeId, Term};

/// Who speaks on a connection between nodes, and to whom; the name is in the certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerHello {
    /// The node that speaks.
    pub from: NodeId,
    /// Its data directory.
    pub data: DataId,
    /// The node that it wants to speak to; 0 for any node of the certificate's name, to ask it for the members.
    pub to: NodeId,
    /// The data directory of that node, if it is known.
    pub to_data: Option<DataId>,
    /// What the cluster was founded with, if the speaker's log says so.
    pub founding: Option<Founding>,
    /// `host:port` where other nodes reach it.
    pub peer_address: String,
    /// `host:port` where clients reach it.
    pub client_address: String,
}

/// What is coming on a snapshot stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotHeader {
    /// The sender's term.
    pub term: Term,
    /// The last entry that the snapshot covers.
    pub index: Index,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// What tells the file from every other.
    pub digest: [u8; 16],
}

/// What the receiver wants of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotWanted {
    /// The bytes from here on; it has those before from a transfer that broke off.
    pub offset: u64,
}

/// What a node's store is like after an entry: the same on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateHash {
    /// The entry.
    pub index: Index,
    /// A hash over all that was applied up to it, and what came of that.
    pub hash: u64,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotDone {
    /// Whether the receiver has it now, or something newer.
    pub installed: bool,
    /// Whether the bytes that came are no snapshot of this cluster.
    pub damaged: bool,
}

/// A client's write on its way to the leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward<'a> {
    /// The identity in the client's certificate: the leader judges its rights again.
    pub client: &'a str,
    /// An encoded [`super::command::Command`].
    #[serde(borrow, with = "serde_bytes")]
    pub command: &'a [u8],
}

/// Entries that a damaged log lacks. Any log that has the anchor has them, too (Log Matching; paper, 5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// The first of them.
    pub first: Index,
    /// The last of them.
    pub last: Index,
    /// An entry at or after the last that the damaged log has, or had.
    pub anchor: (Index, Term),
}

/// The answer to a [`Want`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fetched<'a> {
    /// Entries from the first wanted on, as many as fit, in the form in which the log shares them (see `wal`).
    Have {
        /// The encoded entries; never empty.
        #[serde(borrow, with = "serde_bytes")]
        entries: &'a [u8],
    },
    /// Not here: this log does not have the anchor, or not these entries any more.
    Lack,
}

/// Bytes of a `Members` frame: far more than all members and all names of removed ones take.
pub const MEMBERS_BYTES_MAX: usize = 1 << 20;

/// Bytes of entries in a [`Fetched`], but for one longer entry.
pub const FETCH_BYTES_MAX: usize = 1 << 20;

/// Bytes of a snapshot file in one frame.
pub const SNAPSHOT_CHUNK_BYTES: usize = 64 << 10;

/// Offset and bytes of a piece of a snapshot.
///
/// # Errors
/// [`Malformed`] if it is too short to have an offset.
pub fn chunk_parts(body: &[u8]) -> Result<(u64, &[u8]), Malformed> {
    let (offset, bytes) = body.split_first_chunk().ok_or(Malformed("piece of a snapshot"))?;
    Ok((u64::from_le_bytes(*offset), bytes))
}

/// Appends the encoding of a message, without its entries, to `buffer`.
pub fn encode_message(message: &Message, buffer: &mut Vec<u8>) {
    super::encode(message, buffer);
}

/// Decodes a message; what follows it, the entries, is the rest.
///
/// # Errors
/// [`Malformed`] if the bytes do not begin with a message.
pub fn decode_message(bytes: &[u8]) -> Result<(Message, &[u8]), Malformed> {
    postcard::take_from_bytes(bytes).map_err(|_| Malformed("message between nodes"))
}
