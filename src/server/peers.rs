//! Links between nodes. Each node dials every other and sends only on its own connection, so there is
//! no tie to break; what it accepts it only reads.
//!
//! Two streams per connection: `control` (votes, heartbeats, read rounds) goes first and never carries
//! entries; `append` carries entries and their answers. A message to a peer without a connection is
//! dropped, as a network would: the core asks again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::{Connection, Endpoint, RecvStream};
use tokio::time::{sleep, timeout};

use super::shared::Shared;
use super::snapshots::Frames;
use super::{Member, clients, forward, snapshots};
use crate::node::decode_message;
use crate::pki::{Credentials, Who};
use crate::proto::frame::{FrameKind, HEADER_BYTES, encode_frame, encode_header};
use crate::proto::limits::FRAME_BYTES_MAX;
use crate::proto::peer::encode_message;
use crate::quic::{self, FrameReader, FrameWriter, PortKind, PushError};
use crate::raft::{Body, Message, NodeId};
use crate::wal::Batch;

/// The sending side of all links.
pub(super) struct Links {
    links: BTreeMap<NodeId, Link>,
}

struct Link {
    name: String,
    up: Arc<Mutex<Option<Up>>>,
}

/// A link that is up.
#[derive(Clone)]
struct Up {
    connection: Connection,
    control: FrameWriter,
    append: FrameWriter,
}

impl Links {
    /// Starts dialling every member but `own`, for as long as the runtime lives.
    pub(super) fn start(
        endpoint: &Endpoint,
        credentials: &Arc<Credentials>,
        members: &[Member],
        own: NodeId,
        shared: &Arc<Shared>,
    ) -> Links {
        let mut links = BTreeMap::new();
        for member in members.iter().filter(|member| NodeId(member.id) != own) {
            let up = Arc::new(Mutex::new(None));
            let dialler = Dialler {
                endpoint: endpoint.clone(),
                credentials: Arc::clone(credentials),
                member: member.clone(),
                up: Arc::clone(&up),
                shared: Arc::clone(shared),
            };
            tokio::spawn(dialler.run());
            links.insert(NodeId(member.id), Link { name: member.name.clone(), up });
        }
        Links { links }
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

    /// The connection to a peer, if it is up.
    pub(super) fn connection(&self, peer: NodeId) -> Option<Connection> {
        self.links.get(&peer).and_then(Link::up).map(|up| up.connection)
    }

    /// A member's name for people.
    pub(super) fn name_of(&self, peer: NodeId) -> String {
        self.links.get(&peer).map_or_else(|| peer.to_string(), |link| link.name.clone())
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

impl Link {
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

/// Why a peer is not reached.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot find {address}: {source}")]
    Resolve { address: String, source: std::io::Error },
    #[error(transparent)]
    Transport(#[from] quic::Error),
}

/// Keeps one link up.
struct Dialler {
    endpoint: Endpoint,
    credentials: Arc<Credentials>,
    member: Member,
    up: Arc<Mutex<Option<Up>>>,
    shared: Arc<Shared>,
}

impl Dialler {
    async fn run(self) {
        let name = self.member.name.clone();
        let mut wait = BACKOFF_MIN;
        let mut reported = None;
        loop {
            match self.connect().await {
                Ok(up) => {
                    tracing::info!("connected to {name}");
                    (wait, reported) = (BACKOFF_MIN, None);
                    let connection = up.connection.clone();
                    self.set(Some(up));
                    let reason = connection.closed().await;
                    self.set(None);
                    tracing::info!("lost {name}: {reason}");
                    self.shared.tell(|input| input.unreachable.push(NodeId(self.member.id)));
                }
                Err(error) => {
                    // Once per reason: a peer that is down for a night fills no log.
                    let text = error.to_string();
                    if reported.as_ref() != Some(&text) {
                        tracing::info!("cannot reach {name}: {text}");
                        reported = Some(text);
                    }
                }
            }
            sleep(jittered(wait)).await;
            wait = (wait * 2).min(BACKOFF_MAX);
        }
    }

    fn set(&self, up: Option<Up>) {
        *self.up.lock().unwrap_or_else(PoisonError::into_inner) = up;
    }

    async fn connect(&self) -> Result<Up, Error> {
        let address = resolve(&self.member.peer_address).await?;
        let (node, kind) = (&self.member.name, PortKind::Peer);
        let connection = quic::dial(&self.endpoint, address, node, &self.credentials, kind).await?;
        let control = open(&connection, CONTROL_PRIORITY, CONTROL_BYTES_MAX).await?;
        let append = open(&connection, APPEND_PRIORITY, APPEND_BYTES_MAX).await?;
        Ok(Up { connection, control, append })
    }
}

async fn open(
    connection: &Connection,
    priority: i32,
    bytes_max: usize,
) -> Result<FrameWriter, quic::Error> {
    let addr = connection.remote_address();
    let opened = timeout(OPEN_PATIENCE, connection.open_uni()).await;
    let lost = |error| quic::Error::Lost(quic::explain(&error));
    let stream = opened.map_err(|_| quic::Error::TimedOut { addr })?.map_err(lost)?;
    // Fails only for a stream that was closed, which the first write reports.
    let _ = stream.set_priority(priority);
    let (writer, driver) = FrameWriter::new(bytes_max);
    // Its error is the connection's end, which the dialler sees as well.
    tokio::spawn(driver.drive(stream));
    Ok(writer)
}

async fn resolve(address: &str) -> Result<SocketAddr, Error> {
    let failed = |source| Error::Resolve { address: address.to_owned(), source };
    let mut found = tokio::net::lookup_host(address).await.map_err(failed)?;
    found.next().ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))
}

/// Half to all of a wait, so that nodes which lost each other at once do not dial in step.
fn jittered(wait: Duration) -> Duration {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| now.subsec_nanos());
    wait / 2 + wait.mul_f64(f64::from(nanos % 1000) / 2000.0)
}

/// Accepts connections of other members, for as long as the endpoint lives.
pub(super) async fn accept(
    endpoint: Endpoint,
    members: Arc<Vec<Member>>,
    receiver: Arc<snapshots::Receiver>,
    shared: Arc<Shared>,
) {
    while let Some(incoming) = endpoint.accept().await {
        let Some(incoming) = quic::admit(&endpoint, incoming, CONNECTIONS_MAX) else { continue };
        let (members, receiver) = (Arc::clone(&members), Arc::clone(&receiver));
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let identified = quic::accept(incoming).await;
            let (connection, identity) = match identified {
                Ok(accepted) => accepted,
                Err(error) => {
                    clients::report_refused("peer", &error);
                    return;
                }
            };
            let name = match identity.who {
                Who::Node { name } => name,
                Who::Client { .. } => return,
            };
            match members.iter().find(|member| member.name == name) {
                Some(member) => serve(connection, NodeId(member.id), &receiver, &shared).await,
                None => {
                    tracing::warn!("refused {name}: it is no member of this cluster");
                    connection.close(1_u32.into(), b"not a member");
                }
            }
        });
    }
}

/// Reads what one peer sends until its connection ends.
async fn serve(
    connection: Connection,
    peer: NodeId,
    receiver: &Arc<snapshots::Receiver>,
    shared: &Arc<Shared>,
) {
    loop {
        tokio::select! {
            stream = connection.accept_uni() => {
                let Ok(stream) = stream else { return };
                let (connection, shared) = (connection.clone(), Arc::clone(shared));
                tokio::spawn(async move {
                    // A stream that broke went with its connection, which the link reports.
                    if let Err(quic::Error::Malformed(error)) = read(stream, peer, &shared).await {
                        tracing::warn!("{peer} is cut off: {error}");
                        connection.close(2_u32.into(), b"malformed message");
                    }
                });
            }
            stream = connection.accept_bi() => {
                let Ok((send, recv)) = stream else { return };
                let (receiver, shared) = (Arc::clone(receiver), Arc::clone(shared));
                tokio::spawn(async move {
                    let mut frames = Frames::of(recv, PEER_FRAME_BYTES_MAX);
                    match frames.next().await {
                        Ok(first) if first.kind == FrameKind::Forward => {
                            forward::receive(&first, send, peer, &shared);
                        }
                        Ok(first) => receiver.receive(first, frames, send, peer, &shared).await,
                        Err(error) => tracing::debug!("a stream of {peer} broke: {error}"),
                    }
                });
            }
        }
    }
}

async fn read(stream: RecvStream, peer: NodeId, shared: &Shared) -> Result<(), quic::Error> {
    let mut reader = FrameReader::new(stream, PEER_FRAME_BYTES_MAX);
    let (mut frames, mut messages) = (Vec::new(), Vec::new());
    while reader.read_batch(&mut frames).await? {
        for frame in frames.drain(..) {
            let (message, batch) = decode_message(&frame.body)?;
            if frame.kind != FrameKind::Raft || message.from != peer {
                return Err(crate::proto::Malformed("message of another node").into());
            }
            messages.push((message, batch));
        }
        shared.receive(&mut messages).await;
    }
    Ok(())
}

/// Connections with the other members both ways, twice over after a reconnection, and handshakes of strangers, who get
/// no further; more are refused.
const CONNECTIONS_MAX: usize = quic::CONNECTIONS_MAX_DEFAULT;
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
const OPEN_PATIENCE: Duration = Duration::from_secs(1);
const FLUSH_ROUNDS: usize = 50;
/// Heartbeats and votes go before entries.
const CONTROL_PRIORITY: i32 = 20;
const APPEND_PRIORITY: i32 = 10;
/// Small messages only; more than this waiting means that the peer is gone.
const CONTROL_BYTES_MAX: usize = 1 << 20;
/// The core's window, and one entry of the greatest length on top.
const APPEND_BYTES_MAX: usize = FRAME_BYTES_MAX + (16 << 20);
/// The greatest entry, and a message's worth of small ones before it.
const PEER_FRAME_BYTES_MAX: usize = FRAME_BYTES_MAX + (1 << 20);
/// Entries shorter than this are copied behind their message: cheaper than two chunks.
const SHARE_BYTES_MIN: usize = 4 << 10;
