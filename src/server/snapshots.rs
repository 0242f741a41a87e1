//! Snapshots between nodes, both ends: the file's bytes on a stream of their own, at the lowest
//! priority and a limited rate, so that nothing waits behind them.
//!
//! The sender names the file by its digest; the receiver answers from where on it wants it, for it keeps what came
//! before a connection broke. It verifies the whole before it says that it has it.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, RecvStream};
use tokio::time::{Instant, sleep_until};

use super::shared::Shared;
use crate::node::Sent;
use crate::proto::frame::{Frame, FrameKind, encode_frame};
use crate::proto::limits::FRAME_OVERHEAD_BYTES_MAX;
use crate::proto::peer::{SNAPSHOT_CHUNK_BYTES, SnapshotDone, SnapshotHeader, SnapshotWanted};
use crate::proto::{self, Malformed};
use crate::quic::{self, FrameReader};
use crate::raft::{Index, NodeId, Term};
use crate::store::{self, snapshot};

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
    #[error("a transfer is under way already")]
    Busy,
    #[error("bytes from {got} on came instead of those from {expected} on, of {bytes}")]
    Place { got: u64, expected: u64, bytes: u64 },
    #[error("the receiver did not take it")]
    Refused,
    #[error("what arrived is damaged: it is made anew")]
    Damaged,
    #[error("it came too slowly: at least {RATE_MIN} bytes a second are asked for")]
    Stalled,
    #[error("it is not the leader's of this term")]
    NotLeaders,
    #[error("{bytes} bytes are more than this node has room for: at most {max}")]
    TooLarge { bytes: u64, max: u64 },
}

/// A snapshot file that is read from an offset on. It stays readable when it is removed meanwhile.
pub(super) struct Sending {
    file: Option<File>,
    pub(super) index: Index,
    pub(super) bytes: u64,
    digest: [u8; 16],
}

impl Sending {
    pub(super) async fn open(dir: snapshot::Dir, index: Index) -> Result<Sending, Error> {
        blocking(move || {
            let (_, path) = dir.list()?.into_iter().find(|it| it.0 == index).ok_or(Error::None)?;
            let file = File::open(&path)?;
            let bytes = file.metadata()?.len();
            Ok(Sending { file: Some(file), index, bytes, digest: dir.digest(&path)? })
        })
        .await?
    }

    async fn seek(&mut self, offset: u64) -> Result<(), Error> {
        let mut file = self.take();
        let file =
            blocking(move || io::Seek::seek(&mut file, io::SeekFrom::Start(offset)).map(|_| file));
        self.file = Some(file.await??);
        Ok(())
    }

    /// The next bytes; none at the end.
    pub(super) async fn chunk(&mut self) -> Result<Vec<u8>, Error> {
        let mut file = self.take();
        let read = blocking(move || {
            let mut chunk = vec![0; SNAPSHOT_CHUNK_BYTES];
            let count = io::Read::read(&mut file, &mut chunk)?;
            chunk.truncate(count);
            Ok::<_, io::Error>((file, chunk))
        });
        let (file, chunk) = read.await??;
        self.file = Some(file);
        Ok(chunk)
    }

    fn take(&mut self) -> File {
        self.file.take().expect("after an error nobody reads on")
    }
}

/// Holds a transfer to a rate.
pub(super) struct Throttle {
    rate: u64,
    next: Instant,
}

impl Throttle {
    /// `rate` in bytes a second; 0 for no limit.
    pub(super) fn new(rate: u64) -> Throttle {
        Throttle { rate, next: Instant::now() }
    }

    /// Waits until `bytes` more may go.
    pub(super) async fn spend(&mut self, bytes: usize) {
        if let Some(nanos) = (bytes as u64 * 1_000_000_000).checked_div(self.rate) {
            // What was not used before is not made up for: a bound, not an aim.
            let begin = self.next.max(Instant::now());
            self.next = begin + Duration::from_nanos(nanos);
            sleep_until(begin).await;
        }
    }
}

/// What is sent, and to whom.
pub(super) struct Order {
    pub(super) to: NodeId,
    /// The sender's term.
    pub(super) term: Term,
    /// Which snapshot; the node says so, for among the files there may be a newer one, which was found damaged.
    pub(super) newest: Option<Index>,
    pub(super) dir: snapshot::Dir,
    /// Bytes a second; 0 for no limit.
    pub(super) rate: u64,
}

/// Sends the node's newest snapshot to a peer, in a task of its own, and reports the end.
pub(super) fn send(shared: Arc<Shared>, connection: Option<Connection>, order: Order) {
    tokio::spawn(async move {
        let to = order.to;
        let sent = match (connection, order.newest) {
            (Some(connection), Some(index)) => send_to(&connection, index, order).await,
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

async fn send_to(connection: &Connection, index: Index, order: Order) -> Result<Index, Error> {
    let Order { term, dir, rate, .. } = order;
    let mut file = Sending::open(dir, index).await?;
    let lost = |error| quic::Error::Lost(quic::explain(&error));
    let (mut stream, answer) = connection.open_bi().await.map_err(lost)?;
    // Fails only for a closed stream, which the first write reports.
    let _ = stream.set_priority(SNAPSHOT_PRIORITY);
    let mut answers = Frames::of(answer, FRAME_OVERHEAD_BYTES_MAX);
    let mut buffer = Vec::new();
    encode_frame(&mut buffer, FrameKind::Snapshot, 0, |body| {
        let header = SnapshotHeader { term, index, bytes: file.bytes, digest: file.digest };
        proto::encode(&header, body);
    });
    stream.write_all(&buffer).await?;
    let first = answers.next().await?;
    if first.kind == FrameKind::SnapshotDone {
        return done(&first, index);
    }
    let SnapshotWanted { offset } = proto::decode(&first.body, "snapshot answer")?;
    if offset > file.bytes {
        return Err(Malformed("snapshot answer").into());
    }
    file.seek(offset).await?;
    let (mut throttle, mut at) = (Throttle::new(rate), offset);
    loop {
        let chunk = file.chunk().await?;
        if chunk.is_empty() {
            break;
        }
        throttle.spend(chunk.len()).await;
        buffer.clear();
        encode_frame(&mut buffer, FrameKind::SnapshotChunk, 0, |body| {
            body.extend_from_slice(&at.to_le_bytes());
            body.extend_from_slice(&chunk);
        });
        at += chunk.len() as u64;
        stream.write_all(&buffer).await?;
    }
    // Fails only if the receiver gave up, which the missing answer says as well.
    let _ = stream.finish();
    done(&answers.next().await?, index)
}

/// What the receiver says in the end.
fn done(frame: &Frame, index: Index) -> Result<Index, Error> {
    let done: SnapshotDone = proto::decode(&frame.body, "snapshot answer")?;
    match done {
        SnapshotDone { installed: true, .. } => Ok(index),
        SnapshotDone { damaged: true, .. } => Err(Error::Damaged),
        SnapshotDone { .. } => Err(Error::Refused),
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
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, io::Error> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// A sender that is slower than this, in bytes a second over the whole transfer, gives way to others.
pub(super) const RATE_MIN: u64 = 16 << 10;
/// Nothing ever waits behind a snapshot.
const SNAPSHOT_PRIORITY: i32 = -10;
