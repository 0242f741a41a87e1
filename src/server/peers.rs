//! What other nodes send: connections are accepted from who says who it is and takes part, and read.
//!
//! **Always:** what counts of a message is decided by the table of seats ([`crate::raft::PeerMessage`]): by the core for
//! its own messages, here for the others. A member has a few connections; the oldest ends when there are more.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt};
use tokio::time::timeout;

use super::intake::Receiver;
use super::refusals::Refusals;
use super::shared::Shared;
use super::snapshots::Frames;
use super::{clients, elders, fetch, forward};
use crate::node::{Stranger, decode_message};
use crate::pki::Who;
use crate::proto::frame::{Frame, FrameKind};
use crate::proto::limits::{CONTACT_BYTES_MAX, FRAME_BYTES_MAX};
use crate::proto::peer::PeerHello;
use crate::proto::{self, Malformed};
use crate::quic::{self, FrameReader, Keyring};
use crate::raft::{Contact, Message, NodeId, PeerMessage, Standing};
use crate::wal::Batch;

/// The port of nodes.
pub(super) struct Door {
    /// Takes snapshots in; a node in repair has none.
    receiver: Option<Receiver>,
    shared: Arc<Shared>,
    /// The newest connections of each member, oldest first.
    connections: Mutex<BTreeMap<NodeId, VecDeque<Connection>>>,
    refusals: Refusals,
    keyring: Keyring,
}

/// Who speaks on a connection.
pub(super) struct Speaker {
    pub(super) hello: PeerHello,
    /// The name in its certificate.
    pub(super) name: String,
}

impl Door {
    pub(super) fn new(receiver: Option<Receiver>, shared: Arc<Shared>, keyring: Keyring) -> Door {
        let (connections, refusals) = (Mutex::default(), Refusals::default());
        Door { receiver, shared, connections, refusals, keyring }
    }

    /// Accepts connections of other members, for as long as the endpoint lives.
    pub(super) async fn accept(self: Arc<Self>, endpoint: Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            let Some(admitted) = self.shared.peer_gate.admit(incoming) else { continue };
            let door = Arc::clone(&self);
            tokio::spawn(async move {
                let identified = admitted.accept().await;
                let (connection, identity, _place) = match identified {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        clients::report_refused("peer", &error);
                        return;
                    }
                };
                match identity.who {
                    Who::Node { name } => {
                        let served = door.greet(connection.clone(), name);
                        quic::while_valid(&connection, &door.keyring, served).await;
                    }
                    Who::Client { .. } => {}
                }
            });
        }
    }

    /// Hears who speaks, and then everything else, for as long as it takes part.
    async fn greet(self: &Arc<Self>, connection: Connection, name: String) {
        let heard = timeout(HELLO_PATIENCE, hear_hello(&connection)).await;
        let (hello, mut reader, frames) = match heard {
            Ok(Ok(heard)) => heard,
            // Gone again, and the next try is another connection.
            Ok(Err(quic::Error::Lost(_))) | Err(_) => {
                connection.close(2_u32.into(), b"no hello");
                return;
            }
            Ok(Err(error)) => {
                tracing::warn!("{name} is cut off: {error}");
                connection.close(2_u32.into(), b"malformed hello");
                return;
            }
        };
        let speaker = Arc::new(Speaker { hello, name });
        let mut book = self.shared.book.subscribe();
        let judged = book.borrow_and_update().judge(&speaker.hello, &speaker.name);
        match judged {
            Err(stranger) => return self.refuse(&connection, &speaker, &stranger),
            Ok(Standing::Unknown) => return self.answer_stranger(&connection).await,
            Ok(_) => self.welcome(&connection, &speaker),
        }
        reader.set_frame_bytes_max(PEER_FRAME_BYTES_MAX);
        self.spawn_read(&connection, (reader, frames), &speaker);
        let changed = async {
            loop {
                if book.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
                let judged = book.borrow_and_update().judge(&speaker.hello, &speaker.name);
                if let Err(stranger) = judged {
                    return stranger;
                }
            }
        };
        tokio::select! {
            () = self.serve(&connection, &speaker) => {}
            stranger = changed => self.refuse(&connection, &speaker, &stranger),
        }
        self.forget(&connection, speaker.hello.from);
    }

    /// A member speaks: this is its connection from now on, and what it says of its addresses is noted.
    fn welcome(&self, connection: &Connection, speaker: &Speaker) {
        let PeerHello { from, peer_address, client_address, .. } = speaker.hello.clone();
        quic::widen(connection);
        let mut connections = self.connections();
        let own = connections.entry(from).or_default();
        own.push_back(connection.clone());
        if own.len() > CONNECTIONS_PER_MEMBER_MAX
            && let Some(oldest) = own.pop_front()
        {
            oldest.close(REPLACED.into(), b"newer connections of this node");
        }
        drop(connections);
        let contact = Contact { name: speaker.name.clone(), peer_address, client_address };
        self.shared.tell(|input| input.announced.push((from, contact)));
    }

    fn forget(&self, connection: &Connection, from: NodeId) {
        let mut connections = self.connections();
        if let Some(own) = connections.get_mut(&from) {
            own.retain(|other| other.stable_id() != connection.stable_id());
            if own.is_empty() {
                connections.remove(&from);
            }
        }
    }

    fn connections(&self) -> MutexGuard<'_, BTreeMap<NodeId, VecDeque<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuse(&self, connection: &Connection, speaker: &Speaker, stranger: &Stranger) {
        let Speaker { hello: PeerHello { from, .. }, name } = speaker;
        let text = format!("refused node {name}, which says that its id is {}: {stranger}", from.0);
        match stranger {
            // It goes by an old list, and tries again until it has a newer one.
            Stranger::Misdirected => tracing::debug!("{text}"),
            Stranger::Unknown
            | Stranger::Removed
            | Stranger::OtherData
            | Stranger::FoundedDifferently { .. } => {
                if let Some(line) = self.refusals.line(text, Instant::now()) {
                    tracing::warn!("{line}");
                }
            }
        }
        connection.close(code(stranger), stranger.to_string().as_bytes());
    }

    /// Whoever is no member as far as this node knows may ask who the members are, once.
    async fn answer_stranger(&self, connection: &Connection) {
        let answered = timeout(HELLO_PATIENCE, async {
            let Ok((send, recv)) = connection.accept_bi().await else { return };
            let asked = Frames::of(recv, STRANGER_BYTES_MAX).next().await;
            if asked.is_ok_and(|frame| frame.kind == FrameKind::AskMembers) {
                let book = self.shared.book.borrow().clone();
                elders::receive(send, &book).await;
            }
        });
        // Who asks too slowly asks again.
        let _ = answered.await;
        connection.close(code(&Stranger::Unknown), b"answered");
    }

    /// Reads what one peer sends until its connection ends.
    async fn serve(self: &Arc<Self>, connection: &Connection, speaker: &Arc<Speaker>) {
        loop {
            tokio::select! {
                stream = connection.accept_uni() => {
                    let Ok(stream) = stream else { return };
                    let reader = FrameReader::new(stream, PEER_FRAME_BYTES_MAX);
                    self.spawn_read(connection, (reader, Vec::new()), speaker);
                }
                stream = connection.accept_bi() => {
                    let Ok((send, recv)) = stream else { return };
                    let (door, speaker) = (Arc::clone(self), Arc::clone(speaker));
                    tokio::spawn(async move { door.serve_question(send, recv, &speaker).await });
                }
            }
        }
    }

    /// One question or transfer, on a stream of its own.
    async fn serve_question(&self, send: SendStream, recv: RecvStream, speaker: &Speaker) {
        let from = &speaker.name;
        let mut frames = Frames::of(recv, PEER_FRAME_BYTES_MAX);
        let first = match frames.next().await {
            Ok(first) => first,
            Err(error) => return tracing::debug!("a stream of {from} broke: {error}"),
        };
        let kind = match first.kind {
            FrameKind::Forward => PeerMessage::Forward,
            FrameKind::Fetch => PeerMessage::Fetch,
            FrameKind::AskMembers => PeerMessage::AskMembers,
            _ => PeerMessage::Snapshot,
        };
        if !self.is_allowed(kind, speaker) {
            // Its stream ends without an answer.
            return tracing::debug!("{from} may not send this kind of message: {kind:?}");
        }
        match (kind, &self.receiver) {
            (PeerMessage::Forward, _) => forward::receive(&first, send, from, &self.shared),
            (PeerMessage::Fetch, _) => fetch::receive(&first, send, from, &self.shared).await,
            (PeerMessage::AskMembers, _) => {
                let book = self.shared.book.borrow().clone();
                elders::receive(send, &book).await;
            }
            (_, Some(receiver)) => {
                receiver.receive(first, frames, send, speaker, &self.shared).await;
            }
            (_, None) => tracing::debug!("{from} sends a snapshot to a node in repair"),
        }
    }

    /// Whether a message that is not the core's counts.
    fn is_allowed(&self, kind: PeerMessage, speaker: &Speaker) -> bool {
        let leader = self.shared.leader().map(|(leader, _)| leader);
        let leads = leader == Some(speaker.hello.from);
        self.shared.book.borrow().is_allowed(kind, &speaker.hello, leads)
    }

    /// Reads a stream to its end, beginning with the frames that are here already.
    fn spawn_read(
        self: &Arc<Self>,
        connection: &Connection,
        (reader, frames): (FrameReader, Vec<Frame>),
        speaker: &Arc<Speaker>,
    ) {
        let (connection, door) = (connection.clone(), Arc::clone(self));
        let speaker = Arc::clone(speaker);
        tokio::spawn(async move {
            // A stream that broke went with its connection, which the link reports.
            if let Err(quic::Error::Malformed(error)) = door.read(reader, frames, &speaker).await {
                tracing::warn!("{} is cut off: {error}", speaker.name);
                connection.close(2_u32.into(), b"malformed message");
            }
        });
    }

    async fn read(
        &self,
        mut reader: FrameReader,
        mut frames: Vec<Frame>,
        speaker: &Speaker,
    ) -> Result<(), quic::Error> {
        let (from, data) = (speaker.hello.from, speaker.hello.data);
        let mut messages: Vec<(Message, Option<Batch>)> = Vec::new();
        loop {
            for frame in frames.drain(..) {
                if frame.kind == FrameKind::StateHash {
                    let told = proto::decode(&frame.body, "state hash")?;
                    if self.is_allowed(PeerMessage::StateHash, speaker) {
                        self.shared.hear_state_hash(from, told);
                    }
                    continue;
                }
                let (message, batch) = decode_message(&frame.body)?;
                let is_its_own = message.from == from && message.data == data;
                if frame.kind != FrameKind::Raft || !is_its_own {
                    return Err(Malformed("message of another node").into());
                }
                messages.push((message, batch));
            }
            if !messages.is_empty() {
                self.shared.receive(&mut messages).await;
            }
            if !reader.read_batch(&mut frames).await? {
                return Ok(());
            }
        }
    }
}

/// The first frame of the first stream, the stream, and what else came with it.
async fn hear_hello(
    connection: &Connection,
) -> Result<(PeerHello, FrameReader, Vec<Frame>), quic::Error> {
    let lost = |error| quic::Error::Lost(quic::explain(&error));
    let stream = connection.accept_uni().await.map_err(lost)?;
    let mut reader = FrameReader::new(stream, HELLO_BYTES_MAX);
    let mut frames = Vec::new();
    while frames.is_empty() {
        if !reader.read_batch(&mut frames).await? {
            return Err(quic::Error::Truncated);
        }
    }
    let first = frames.remove(0);
    if first.kind != FrameKind::PeerHello {
        return Err(Malformed("hello of a node").into());
    }
    let hello: PeerHello = proto::decode(&first.body, "hello of a node")?;
    let lengths = [&hello.peer_address, &hello.client_address].map(String::len);
    if lengths.into_iter().any(|length| length > CONTACT_BYTES_MAX) {
        return Err(Malformed("address of a node").into());
    }
    Ok((hello, reader, frames))
}

/// The code that a connection of a stranger is closed with.
fn code(stranger: &Stranger) -> VarInt {
    match stranger {
        Stranger::Unknown => 1_u32.into(),
        Stranger::Removed => REMOVED.into(),
        Stranger::Misdirected => 4_u32.into(),
        Stranger::OtherData => OTHER_DATA.into(),
        Stranger::FoundedDifferently { .. } => 6_u32.into(),
    }
}

/// Tells a node that it was removed.
pub(super) const REMOVED: u32 = 3;
/// Tells a node that another data directory acts for it.
pub(super) const OTHER_DATA: u32 = 5;
/// Tells a node that a newer connection took the place of this one.
const REPLACED: u32 = 7;
/// Connections of one member: that of its link, the one that takes its place, and tries to connect that are given up. The
/// oldest ends when there are more.
const CONNECTIONS_PER_MEMBER_MAX: usize = 8;
/// How long a new connection may take to say who speaks.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);
/// The greatest entry, and a message's worth of small ones before it.
const PEER_FRAME_BYTES_MAX: usize = FRAME_BYTES_MAX + (1 << 20);
/// A hello lists all founders; whoever sends it may be nobody.
const HELLO_BYTES_MAX: usize = 64 << 10;
/// A question for the members has no body.
const STRANGER_BYTES_MAX: usize = 64;
