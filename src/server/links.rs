//! Links to other nodes: each node dials every other and sends only on its own connection, so there is
//! no tie to break; what it accepts (`peers`) it only reads.
//!
//! Two streams per connection: `control` (who speaks, then votes, heartbeats, read rounds) goes first and
//! never carries entries; `append` carries entries and their answers. A message to a peer without a
//! connection is dropped, as a network would: the core asks again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::Connection;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::dialler::{Common, Dialler, Up};
use crate::node::Peer;
use crate::proto;
use crate::proto::frame::{FrameKind, HEADER_BYTES, encode_frame, encode_header};
use crate::proto::peer::{StateHash, encode_message};
use crate::quic::{FrameWriter, PushError};
use crate::raft::{Body, DataId, Message, NodeId};
use crate::wal::Batch;

/// The sending side of all links.
pub(super) struct Links {
    links: BTreeMap<NodeId, Link>,
    common: Arc<Common>,
}

struct Link {
    name: String,
    data: Option<DataId>,
    /// Where it is dialled, the best guess first.
    addresses: Arc<Mutex<Vec<String>>>,
    up: Arc<Mutex<Option<Up>>>,
    task: JoinHandle<()>,
}

impl Links {
    /// No links yet.
    pub(super) fn new(common: Common) -> Links {
        Links { links: BTreeMap::new(), common: Arc::new(common) }
    }

    /// Dials these from now on, where they are reached now, and nobody else.
    pub(super) fn follow(&mut self, peers: BTreeMap<NodeId, Peer>) {
        self.links.retain(|id, link| {
            peers.get(id).is_some_and(|peer| peer.name == link.name && link.means(peer.data))
        });
        for (id, Peer { name, data, addresses }) in peers {
            if let Some(link) = self.links.get_mut(&id) {
                // A connection that is up stays: it is tried elsewhere once it has ended.
                *link.addresses.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
                link.data = data;
                continue;
            }
            let (up, addresses) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(addresses)));
            let dialler = Dialler {
                common: Arc::clone(&self.common),
                to: id,
                name: name.clone(),
                data,
                addresses: Arc::clone(&addresses),
                up: Arc::clone(&up),
            };
            let task = tokio::spawn(dialler.run());
            self.links.insert(id, Link { name, data, addresses, up, task });
        }
    }

    /// What all links need.
    pub(super) fn common(&self) -> &Arc<Common> {
        &self.common
    }

    /// Names of the nodes to which no link is up.
    pub(super) fn missing(&self) -> Vec<&str> {
        let missing = self.links.values().filter(|link| link.up().is_none());
        missing.map(|link| link.name.as_str()).collect()
    }

    /// Queues messages; each goes out with whatever else is queued by then.
    pub(super) fn send(&self, messages: impl Iterator<Item = (Message, Vec<Batch>)>) {
        for (message, batches) in messages {
            let Some(up) = self.links.get(&message.to).and_then(Link::up) else { continue };
            let stream = match message.body {
                Body::AppendEntries { .. }
                | Body::Appended { .. }
                | Body::AppendRejected { .. } => &up.append,
                Body::RequestVote { .. }
                | Body::VoteReply { .. }
                | Body::Heartbeat { .. }
                | Body::HeartbeatReply { .. }
                | Body::TimeoutNow
                | Body::ReadIndex { .. }
                | Body::ReadIndexReply { .. } => &up.control,
            };
            if queue(stream, &message, &batches).is_err() {
                // A peer that reads this slowly is asked again by the core.
                tracing::debug!("the queue to {} is full", message.to);
            }
        }
    }

    /// Tells everybody what this node's store is like.
    pub(super) fn tell_state_hash(&self, hash: StateHash) {
        for up in self.links.values().filter_map(Link::up) {
            // Who does not hear it hears the next.
            let _ = up.control.push(|buffer| {
                encode_frame(buffer, FrameKind::StateHash, 0, |body| proto::encode(&hash, body));
            });
        }
    }

    /// The connection to a peer, if it is up.
    pub(super) fn connection(&self, peer: NodeId) -> Option<Connection> {
        self.links.get(&peer).and_then(Link::up).map(|up| up.connection)
    }

    /// Gives what is queued a moment to leave before the end.
    pub(super) async fn flush(&self) {
        for _ in 0..FLUSH_ROUNDS {
            let waits = |link: &Link| {
                link.up().is_some_and(|up| up.control.queued_bytes() + up.append.queued_bytes() > 0)
            };
            if !self.links.values().any(waits) {
                break;
            }
            sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(up) = self.up() {
            up.connection.close(0_u32.into(), b"not needed any more");
        }
    }
}

impl Link {
    /// Whether it goes to this data directory, as far as that was known when it was made.
    fn means(&self, data: Option<DataId>) -> bool {
        self.data.is_none() || self.data == data
    }

    fn up(&self) -> Option<Up> {
        self.up.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Queues one message with its entries, which are shared and not copied when they are one long batch, as
/// they are when a leader sends what it has just taken in.
fn queue(stream: &FrameWriter, message: &Message, batches: &[Batch]) -> Result<(), PushError> {
    if let [batch] = batches
        && batch.byte_len() >= SHARE_BYTES_MIN
    {
        let mut head = vec![0; HEADER_BYTES];
        encode_message(message, &mut head);
        let body_bytes = head.len() - HEADER_BYTES + batch.byte_len();
        head[..HEADER_BYTES].copy_from_slice(&encode_header(FrameKind::Raft, 0, body_bytes));
        return stream.push_shared(&head, batch.bytes());
    }
    stream.push(|buffer| {
        encode_frame(buffer, FrameKind::Raft, 0, |body| {
            encode_message(message, body);
            for batch in batches {
                body.extend_from_slice(&batch.bytes());
            }
        });
    })
}

const FLUSH_ROUNDS: usize = 50;
/// Entries shorter than this are copied behind their message: cheaper than two chunks.
const SHARE_BYTES_MIN: usize = 4 << 10;
