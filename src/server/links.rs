//! Links to other nodes: each node dials every other and sends only on its own connection, so there is
//! no tie to break; what it accepts (`peers`) it only reads.
//!
//! Two streams per connection: `control` (who speaks, then votes, heartbeats, read rounds) goes first and
//! never carries entries; `append` carries entries and their answers. A message to a peer without a
//! connection is dropped, as a network would: the core asks again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quinn::{Connection, ConnectionError, Endpoint};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::peers::{OTHER_DATA, REMOVED};
use super::shared::{Ending, Shared};
use super::silence::{Silence, hedged};
use crate::node::Peer;
use crate::proto;
use crate::proto::frame::{FrameKind, HEADER_BYTES, encode_frame, encode_header};
use crate::proto::limits::FRAME_BYTES_MAX;
use crate::proto::peer::{PeerHello, StateHash, encode_message};
use crate::quic::{self, FrameWriter, Keyring, PortKind, PushError};
use crate::raft::{Body, DataId, Message, NodeId};
use crate::wal::Batch;

/// The sending side of all links.
pub(super) struct Links {
    links: BTreeMap<NodeId, Link>,
    common: Arc<Common>,
}

/// What all links need.
pub(super) struct Common {
    pub(super) endpoint: Endpoint,
    pub(super) keyring: Keyring,
    /// This node.
    pub(super) own: NodeId,
    pub(super) data: DataId,
    /// Where it is reached.
    pub(super) peer_address: String,
    pub(super) client_address: String,
    pub(super) shared: Arc<Shared>,
}

impl Common {
    /// What this node says first to another one.
    pub(super) fn hello(&self, to: NodeId, to_data: Option<DataId>) -> PeerHello {
        PeerHello {
            from: self.own,
            data: self.data,
            to,
            to_data,
            founding: self.shared.book.borrow().founding().cloned(),
            peer_address: self.peer_address.clone(),
            client_address: self.client_address.clone(),
        }
    }
}

struct Link {
    name: String,
    data: Option<DataId>,
    /// Where it is dialled, the best guess first.
    addresses: Arc<Mutex<Vec<String>>>,
    up: Arc<Mutex<Option<Up>>>,
    task: JoinHandle<()>,
}

/// A link that is up.
#[derive(Clone)]
struct Up {
    connection: Connection,
    control: FrameWriter,
    append: FrameWriter,
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

/// Why a peer is not reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot find {address}: {source}")]
    Resolve { address: String, source: std::io::Error },
    #[error(transparent)]
    Transport(#[from] quic::Error),
    #[error("no address is known")]
    NoAddress,
}

/// Keeps one link up.
struct Dialler {
    common: Arc<Common>,
    to: NodeId,
    name: String,
    data: Option<DataId>,
    addresses: Arc<Mutex<Vec<String>>>,
    up: Arc<Mutex<Option<Up>>>,
}

impl Dialler {
    async fn run(self) {
        let name = &self.name;
        let mut wait = BACKOFF_MIN;
        let mut reported = Vec::new();
        let mut next = None;
        loop {
            let connected = match next.take() {
                Some(up) => Ok(up),
                None => hedged(|| self.connect(), HEDGES).await,
            };
            match connected {
                Ok(up) => {
                    report(&mut reported, format!("connected to {name}"));
                    let since = Instant::now();
                    let connection = up.connection.clone();
                    self.set(Some(up));
                    let reason = tokio::select! {
                        reason = connection.closed() => reason,
                        (up, why) = self.successor(&connection) => {
                            report(&mut reported, format!("connects anew to {name}: {why}"));
                            connection.close(0_u32.into(), b"replaced by another connection");
                            self.common.shared.tell(|input| input.unreachable.push(self.to));
                            next = Some(up);
                            continue;
                        }
                    };
                    self.set(None);
                    if let ConnectionError::ApplicationClosed(closed) = &reason {
                        let by = name.clone();
                        if closed.error_code == REMOVED.into() {
                            self.common.shared.ends(Ending::Removed { by });
                        } else if closed.error_code == OTHER_DATA.into() {
                            self.common.shared.ends(Ending::OtherData { by });
                        }
                    }
                    // Who ends connections at once is no news each time, nor worth a busy loop.
                    if since.elapsed() >= LASTING {
                        (wait, reported) = (BACKOFF_MIN, Vec::new());
                    }
                    report(&mut reported, format!("lost {name}: {reason}"));
                    self.common.shared.tell(|input| input.unreachable.push(self.to));
                }
                Err(error) => report(&mut reported, format!("cannot reach {name}: {error}")),
            }
            sleep(jittered(wait)).await;
            wait = (wait * 2).min(BACKOFF_MAX);
        }
    }

    /// Another connection beside one on which nothing comes back any more, or that was made with certificates whose time
    /// is over on either side; and why.
    async fn successor(&self, connection: &Connection) -> (Up, &'static str) {
        let (keyring, mut silence) = (&self.common.keyring, Silence::new());
        let with = keyring.current();
        loop {
            let (why, pause) = tokio::select! {
                () = silence.begins(connection) => (SILENT, BACKOFF_MAX),
                () = keyring.changed(&with) => ("new certificates are in use", LASTING),
                _ = quic::outlives(connection, keyring) => ("its certificate is over", LASTING),
            };
            let recovers = async {
                match why {
                    SILENT => silence.ends(connection).await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                () = recovers => {}
                connected = hedged(|| self.connect(), HEDGES) => match connected {
                    Ok(up) => return (up, why),
                    Err(_) => sleep(jittered(pause)).await,
                }
            }
            if let Some(outlived) = quic::outlived(connection, &keyring.current()) {
                outlived.close(connection);
            }
        }
    }

    fn set(&self, up: Option<Up>) {
        *self.up.lock().unwrap_or_else(PoisonError::into_inner) = up;
    }

    /// Tries one address after the other.
    async fn connect(&self) -> Result<Up, Error> {
        let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut failed = Error::NoAddress;
        for address in addresses {
            match self.connect_to(&address).await {
                Ok(up) => {
                    self.common.shared.tell(|input| input.reached.push((self.to, address)));
                    return Ok(up);
                }
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn connect_to(&self, address: &str) -> Result<Up, Error> {
        let Common { endpoint, keyring, .. } = &*self.common;
        let (credentials, kind) = (keyring.current(), PortKind::Peer);
        let address = resolve(address).await?;
        let connection = quic::dial(endpoint, address, &self.name, &credentials, kind).await?;
        let control = open(&connection, CONTROL_PRIORITY, CONTROL_BYTES_MAX).await?;
        let hello = self.common.hello(self.to, self.data);
        let said = control.push(|buffer| {
            encode_frame(buffer, FrameKind::PeerHello, 0, |body| proto::encode(&hello, body));
        });
        said.map_err(|_| quic::Error::Truncated)?;
        let append = open(&connection, APPEND_PRIORITY, APPEND_BYTES_MAX).await?;
        Ok(Up { connection, control, append })
    }
}

/// Each once, until a connection lasts: a peer that is down for a night, or that ends each connection at once because it
/// is another node by now, fills no log.
fn report(reported: &mut Vec<String>, text: String) {
    if !reported.contains(&text) {
        tracing::info!("{text}");
        reported.push(text);
        if reported.len() > REPORTED_MAX {
            reported.remove(0);
        }
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

pub(super) async fn resolve(address: &str) -> Result<SocketAddr, Error> {
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

const SILENT: &str = "it does not answer there";
/// Reasons that are remembered.
const REPORTED_MAX: usize = 8;
const BACKOFF_MIN: Duration = Duration::from_millis(20);
/// A node that comes back hears the others within an election timeout.
const BACKOFF_MAX: Duration = Duration::from_millis(250);
/// A connection that lasted so long was a good one.
const LASTING: Duration = Duration::from_secs(1);
/// Attempts to connect that begin while the first is under way.
const HEDGES: usize = 3;
const OPEN_PATIENCE: Duration = Duration::from_secs(1);
const FLUSH_ROUNDS: usize = 50;
/// Heartbeats and votes go before entries.
const CONTROL_PRIORITY: i32 = 20;
const APPEND_PRIORITY: i32 = 10;
/// Small messages only; more than this waiting means that the peer is gone.
const CONTROL_BYTES_MAX: usize = 1 << 20;
/// The core's window, and one entry of the greatest length on top.
const APPEND_BYTES_MAX: usize = FRAME_BYTES_MAX + (16 << 20);
/// Entries shorter than this are copied behind their message: cheaper than two chunks.
const SHARE_BYTES_MIN: usize = 4 << 10;
