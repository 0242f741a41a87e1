//! Snapshots between nodes, both ends: the file's bytes on a stream of their own, at the lowest
//! priority, so that nothing waits behind them. The receiver verifies before it says that it has them.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};
use tokio::time::timeout;

use super::shared::Shared;
use crate::node::{self, ReceivedSnapshot, Sent, SnapshotAt};
use crate::proto::frame::{Frame, FrameKind, encode_frame};
use crate::proto::limits::FRAME_OVERHEAD_BYTES_MAX;
use crate::proto::peer::{SNAPSHOT_CHUNK_BYTES, SnapshotDone, SnapshotHeader};
use crate::proto::{self, Malformed};
use crate::quic::{self, FrameReader};
use crate::raft::{Index, Membership, NodeId, Term};
use crate::store::{self, Store, snapshot};

/// Why a snapshot did not arrive.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("there is no connection")]
    NotConnected,
    #[error("there is no snapshot to send")]
    None,
    #[error(transparent)]
    Transport(#[from] quic::Error),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the stream broke: {0}")]
    Write(#[from] quinn::WriteError),
    #[error("a transfer from another node is under way")]
    Busy,
    #[error("the transfer has {got} bytes instead of {expected}")]
    Length { got: u64, expected: u64 },
    #[error("the receiver did not take it")]
    Refused,
    #[error("what arrived is damaged: it is made anew")]
    Damaged,
    #[error("nothing came for {} s", STALL_PATIENCE.as_secs())]
    Stalled,
}

/// Sends the node's newest snapshot to a peer, in a task of its own, and reports the end. Which one that is the node
/// says: among the files there may be a newer one, which was found damaged at the start.
pub(super) fn send(
    shared: Arc<Shared>,
    connection: Option<Connection>,
    to: NodeId,
    term: Term,
    newest: Option<Index>,
    dir: snapshot::Dir,
) {
    tokio::spawn(async move {
        let sent = match (connection, newest) {
            (Some(connection), Some(index)) => send_to(&connection, term, index, dir).await,
            (None, _) => Err(Error::NotConnected),
            (_, None) => Err(Error::None),
        };
        match &sent {
            Ok(index) => tracing::info!("sent the snapshot at index {index} to {to}"),
            Err(Error::NotConnected) => {}
            Err(error) => tracing::warn!("the snapshot for {to} did not arrive: {error}"),
        }
        let sent = match sent {
            Ok(index) => Sent::Arrived(index),
            Err(Error::Damaged) => Sent::Damaged,
            Err(_) => Sent::Lost,
        };
        shared.snapshot_sent(to, sent);
    });
}

async fn send_to(
    connection: &Connection,
    term: Term,
    index: Index,
    dir: snapshot::Dir,
) -> Result<Index, Error> {
    let opened = blocking(move || {
        let (_, path) = dir.list()?.into_iter().find(|it| it.0 == index).ok_or(Error::None)?;
        let file = std::fs::File::open(path)?;
        let bytes = file.metadata()?.len();
        Ok::<_, Error>((file, bytes))
    });
    let (mut file, bytes) = opened.await??;
    let lost = |error| quic::Error::Lost(quic::explain(&error));
    let (mut stream, answer) = connection.open_bi().await.map_err(lost)?;
    // Fails only for a closed stream, which the first write reports.
    let _ = stream.set_priority(SNAPSHOT_PRIORITY);
    let mut buffer = Vec::new();
    encode_frame(&mut buffer, FrameKind::Snapshot, 0, |body| {
        proto::encode(&SnapshotHeader { term, index, bytes }, body);
    });
    stream.write_all(&buffer).await?;
    loop {
        let read = blocking(move || {
            let mut chunk = vec![0; SNAPSHOT_CHUNK_BYTES];
            let count = io::Read::read(&mut file, &mut chunk)?;
            chunk.truncate(count);
            Ok::<_, io::Error>((file, chunk))
        });
        let (returned, chunk) = read.await??;
        file = returned;
        if chunk.is_empty() {
            break;
        }
        buffer.clear();
        encode_frame(&mut buffer, FrameKind::SnapshotChunk, 0, |body| {
            body.extend_from_slice(&chunk);
        });
        stream.write_all(&buffer).await?;
    }
    // Fails only if the receiver gave up, which the missing answer says as well.
    let _ = stream.finish();
    let frame = Frames::of(answer, FRAME_OVERHEAD_BYTES_MAX).next().await?;
    let done: SnapshotDone = proto::decode(&frame.body, "snapshot answer")?;
    match done {
        SnapshotDone { installed: true, .. } => Ok(index),
        SnapshotDone { damaged: true, .. } => Err(Error::Damaged),
        SnapshotDone { .. } => Err(Error::Refused),
    }
}

/// Takes in snapshots, one at a time.
pub(super) struct Receiver {
    dir: snapshot::Dir,
    cluster_id: [u8; 16],
    store: store::Options,
    busy: tokio::sync::Mutex<()>,
}

impl Receiver {
    pub(super) fn new(dir: snapshot::Dir, cluster_id: [u8; 16], store: store::Options) -> Receiver {
        Receiver { dir, cluster_id, store, busy: tokio::sync::Mutex::new(()) }
    }

    /// Takes in the snapshot that `first` announces and answers whether it is here, whole and good.
    pub(super) async fn receive(
        &self,
        first: Frame,
        frames: Frames,
        mut send: SendStream,
        from: NodeId,
        shared: &Shared,
    ) {
        let result = match self.busy.try_lock() {
            Ok(_guard) => self.take(&first, frames, from).await,
            Err(_) => Err(Error::Busy),
        };
        let done = match result {
            Ok(snapshot) => {
                tracing::info!("received the snapshot at index {} from {from}", snapshot.at.index);
                shared.receive_snapshot(snapshot);
                SnapshotDone { installed: true, damaged: false }
            }
            Err(error) => {
                tracing::warn!("no snapshot from {from}: {error}");
                let damaged = matches!(error, Error::Store(store::Error::Corrupt { .. }));
                SnapshotDone { installed: false, damaged }
            }
        };
        let mut buffer = Vec::new();
        encode_frame(&mut buffer, FrameKind::SnapshotDone, 0, |body| {
            proto::encode(&done, body);
        });
        // A sender that is gone asks again.
        if send.write_all(&buffer).await.is_ok() && send.finish().is_ok() {
            let _ = send.stopped().await;
        }
    }

    async fn take(
        &self,
        first: &Frame,
        mut frames: Frames,
        from: NodeId,
    ) -> Result<ReceivedSnapshot, Error> {
        if first.kind != FrameKind::Snapshot {
            return Err(Malformed("snapshot").into());
        }
        let header: SnapshotHeader = proto::decode(&first.body, "snapshot header")?;
        let dir = self.dir.clone();
        let mut incoming = blocking(move || store::Incoming::create(&dir)).await??;
        let mut got = 0_u64;
        while got < header.bytes {
            let chunk = frames.next();
            let chunk = timeout(STALL_PATIENCE, chunk).await.map_err(|_| Error::Stalled)??;
            got += chunk.body.len() as u64;
            if chunk.kind != FrameKind::SnapshotChunk || chunk.body.is_empty() || got > header.bytes
            {
                return Err(Error::Length { got, expected: header.bytes });
            }
            incoming = blocking(move || incoming.write(&chunk.body).map(|()| incoming)).await??;
        }
        let (dir, cluster, options) = (self.dir.clone(), self.cluster_id, self.store);
        let (store, meta) = blocking(move || -> Result<(Store, snapshot::SnapshotMeta), Error> {
            let path = incoming.finish(&cluster)?;
            Ok(Store::load(&dir, &path, options)?)
        })
        .await??;
        let membership: Membership =
            proto::decode(&meta.membership, "membership").and_then(node::check_membership)?;
        let at = SnapshotAt { index: meta.index, term: meta.term };
        Ok(ReceivedSnapshot { from, term: header.term, at, membership, store })
    }
}

/// The frames of a stream, one by one.
pub(super) struct Frames {
    reader: FrameReader,
    batch: VecDeque<Frame>,
}

impl Frames {
    pub(super) fn of(stream: RecvStream, frame_bytes_max: usize) -> Frames {
        let reader = FrameReader::new(stream, frame_bytes_max);
        Frames { reader, batch: VecDeque::new() }
    }

    /// The next frame.
    ///
    /// # Errors
    /// Those of the stream, and [`quic::Error::Truncated`] at its end.
    pub(super) async fn next(&mut self) -> Result<Frame, quic::Error> {
        let mut frames = Vec::new();
        loop {
            if let Some(frame) = self.batch.pop_front() {
                return Ok(frame);
            }
            if !self.reader.read_batch(&mut frames).await? {
                return Err(quic::Error::Truncated);
            }
            self.batch.extend(frames.drain(..));
        }
    }
}

/// Runs file work beside the node's turns.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, io::Error> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// A sender that is silent for so long gives way to others.
const STALL_PATIENCE: Duration = Duration::from_secs(10);
/// Nothing ever waits behind a snapshot.
const SNAPSHOT_PRIORITY: i32 = -10;
