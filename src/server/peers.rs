//! What other nodes send: connections are accepted from who says who it is and takes part, and read.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, Endpoint};
use tokio::time::timeout;

use super::book::Stranger;
use super::shared::Shared;
use super::snapshots::Frames;
use super::{clients, fetch, forward, snapshots};
use crate::node::decode_message;
use crate::pki::Who;
use crate::proto::frame::{Frame, FrameKind};
use crate::proto::limits::{CONTACT_BYTES_MAX, FRAME_BYTES_MAX};
use crate::proto::peer::PeerHello;
use crate::proto::{self, Malformed};
use crate::quic::{self, FrameReader, Keyring};
use crate::raft::{Contact, Message, NodeId};
use crate::wal::Batch;

/// Accepts connections of other members, for as long as the endpoint lives; without a receiver no snapshots.
pub(super) async fn accept(
    endpoint: Endpoint,
    keyring: Keyring,
    receiver: Option<Arc<snapshots::Receiver>>,
    shared: Arc<Shared>,
) {
    while let Some(incoming) = endpoint.accept().await {
        let Some(incoming) = quic::admit(&endpoint, incoming, CONNECTIONS_MAX) else { continue };
        let (receiver, shared, keyring) = (receiver.clone(), Arc::clone(&shared), keyring.clone());
        tokio::spawn(async move {
            let identified = quic::accept(incoming).await;
            let (connection, identity) = match identified {
                Ok(accepted) => accepted,
                Err(error) => {
                    clients::report_refused("peer", &error);
                    return;
                }
            };
            match identity.who {
                Who::Node { name } => {
                    let served = greet(connection.clone(), name, &receiver, &shared);
                    quic::while_valid(&connection, &keyring, served).await;
                }
                Who::Client { .. } => {}
            }
        });
    }
}

/// Hears who speaks, and then everything else, for as long as it takes part.
async fn greet(
    connection: Connection,
    name: String,
    receiver: &Option<Arc<snapshots::Receiver>>,
    shared: &Arc<Shared>,
) {
    let heard = timeout(HELLO_PATIENCE, hear_hello(&connection)).await;
    let (hello, reader, frames) = match heard {
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
    let peer = hello.from;
    let mut book = shared.book.subscribe();
    let judged = book.borrow_and_update().judge(&hello, &name);
    if let Err(stranger) = judged {
        match stranger {
            // It goes by an old list, and tries again until it has a newer one.
            Stranger::Misdirected => tracing::debug!("refused {name} as {peer}: {stranger}"),
            Stranger::Unknown | Stranger::Removed => {
                tracing::info!("refused {name} as {peer}: {stranger}");
            }
        }
        connection.close(stranger.code(), stranger.to_string().as_bytes());
        return;
    }
    quic::widen(&connection);
    let PeerHello { peer_address, client_address, .. } = hello.clone();
    let contact = Contact { name: name.clone(), peer_address, client_address, ticket: 0 };
    shared.tell(|input| input.announced.push((peer, contact)));
    spawn_read(&connection, (reader, frames), peer, shared);
    let changed = async {
        loop {
            if book.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            if let Err(stranger) = book.borrow_and_update().judge(&hello, &name) {
                return stranger;
            }
        }
    };
    tokio::select! {
        () = serve(&connection, peer, receiver, shared) => {}
        stranger = changed => {
            tracing::info!("refused {name} as {peer}: {stranger}");
            connection.close(stranger.code(), stranger.to_string().as_bytes());
        }
    }
}

/// The first frame of the first stream, the stream, and what else came with it.
async fn hear_hello(
    connection: &Connection,
) -> Result<(PeerHello, FrameReader, Vec<Frame>), quic::Error> {
    let lost = |error| quic::Error::Lost(quic::explain(&error));
    let stream = connection.accept_uni().await.map_err(lost)?;
    let mut reader = FrameReader::new(stream, PEER_FRAME_BYTES_MAX);
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

/// Reads what one peer sends until its connection ends.
async fn serve(
    connection: &Connection,
    peer: NodeId,
    receiver: &Option<Arc<snapshots::Receiver>>,
    shared: &Arc<Shared>,
) {
    loop {
        tokio::select! {
            stream = connection.accept_uni() => {
                let Ok(stream) = stream else { return };
                let reader = FrameReader::new(stream, PEER_FRAME_BYTES_MAX);
                spawn_read(connection, (reader, Vec::new()), peer, shared);
            }
            stream = connection.accept_bi() => {
                let Ok((send, recv)) = stream else { return };
                let (receiver, shared) = (receiver.clone(), Arc::clone(shared));
                tokio::spawn(async move {
                    let mut frames = Frames::of(recv, PEER_FRAME_BYTES_MAX);
                    match frames.next().await {
                        Ok(first) if first.kind == FrameKind::Forward => {
                            forward::receive(&first, send, peer, &shared);
                        }
                        Ok(first) if first.kind == FrameKind::Fetch => {
                            fetch::receive(&first, send, peer, &shared).await;
                        }
                        Ok(first) => match receiver {
                            Some(receiver) => {
                                receiver.receive(first, frames, send, peer, &shared).await;
                            }
                            None => tracing::debug!("{peer} sends a snapshot to a node in repair"),
                        },
                        Err(error) => tracing::debug!("a stream of {peer} broke: {error}"),
                    }
                });
            }
        }
    }
}

/// Reads a stream to its end, beginning with the frames that are here already.
fn spawn_read(
    connection: &Connection,
    (reader, frames): (FrameReader, Vec<Frame>),
    peer: NodeId,
    shared: &Arc<Shared>,
) {
    let (connection, shared) = (connection.clone(), Arc::clone(shared));
    tokio::spawn(async move {
        // A stream that broke went with its connection, which the link reports.
        if let Err(quic::Error::Malformed(error)) = read(reader, frames, peer, &shared).await {
            tracing::warn!("{peer} is cut off: {error}");
            connection.close(2_u32.into(), b"malformed message");
        }
    });
}

async fn read(
    mut reader: FrameReader,
    mut frames: Vec<Frame>,
    peer: NodeId,
    shared: &Shared,
) -> Result<(), quic::Error> {
    let mut messages: Vec<(Message, Option<Batch>)> = Vec::new();
    loop {
        for frame in frames.drain(..) {
            if frame.kind == FrameKind::StateHash {
                let told = proto::decode(&frame.body, "state hash")?;
                shared.hear_state_hash(peer, told);
                continue;
            }
            let (message, batch) = decode_message(&frame.body)?;
            if frame.kind != FrameKind::Raft || message.from != peer {
                return Err(Malformed("message of another node").into());
            }
            messages.push((message, batch));
        }
        if !messages.is_empty() {
            shared.receive(&mut messages).await;
        }
        if !reader.read_batch(&mut frames).await? {
            return Ok(());
        }
    }
}

/// Connections with the other members both ways, twice over after a reconnection, and handshakes of strangers, who get
/// no further; more are refused.
const CONNECTIONS_MAX: usize = quic::CONNECTIONS_MAX_DEFAULT;
/// How long a new connection may take to say who speaks.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);
/// The greatest entry, and a message's worth of small ones before it.
const PEER_FRAME_BYTES_MAX: usize = FRAME_BYTES_MAX + (1 << 20);
