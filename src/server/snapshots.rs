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

use quinn::{Connection, RecvStream, SendStream};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::peers::Speaker;
use super::shared::Shared;
use crate::node::{self, ReceivedSnapshot, Sent, SnapshotAt};
use crate::proto::frame::{Frame, FrameKind, encode_frame};
use crate::proto::limits::FRAME_OVERHEAD_BYTES_MAX;
use crate::proto::peer::{
    SNAPSHOT_CHUNK_BYTES, SnapshotDone, SnapshotHeader, SnapshotWanted, chunk_parts,
};
use crate::proto::{self, Malformed};
use crate::quic::{self, FrameReader};
use crate::raft::{Index, Membership, NodeId, Term};
use crate::store::{self, Incoming, Store, snapshot};

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

/// Takes in snapshots, one at a time.
pub(super) struct Receiver {
    dir: snapshot::Dir,
    cluster_id: [u8; 16],
    store: store::Options,
    /// Longer files are refused.
    bytes_max: u64,
    /// What came of a transfer that broke off. Locked while one is under way.
    unfinished: Arc<tokio::sync::Mutex<Option<Unfinished>>>,
}

/// The beginning of a file.
struct Unfinished {
    digest: [u8; 16],
    incoming: Incoming,
    /// When it broke off.
    since: Instant,
}

impl Receiver {
    pub(super) fn new(
        dir: snapshot::Dir,
        cluster_id: [u8; 16],
        (store, bytes_max): (store::Options, u64),
    ) -> Receiver {
        Receiver { dir, cluster_id, store, bytes_max, unfinished: Arc::default() }
    }

    /// Takes in the snapshot that `first` announces and answers whether it is here, whole and good.
    pub(super) async fn receive(
        &self,
        first: Frame,
        mut frames: Frames,
        mut send: SendStream,
        speaker: &Speaker,
        shared: &Shared,
    ) {
        let from = &speaker.name;
        let result = match self.unfinished.try_lock() {
            Ok(mut unfinished) => {
                let streams = (&mut frames, &mut send);
                self.take(&first, streams, speaker, shared, &mut unfinished).await
            }
            Err(_) => Err(Error::Busy),
        };
        self.forget_later();
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
        (frames, send): (&mut Frames, &mut SendStream),
        speaker: &Speaker,
        shared: &Shared,
        unfinished: &mut Option<Unfinished>,
    ) -> Result<ReceivedSnapshot, Error> {
        if first.kind != FrameKind::Snapshot {
            return Err(Malformed("snapshot").into());
        }
        let header: SnapshotHeader = proto::decode(&first.body, "snapshot header")?;
        self.check(&header, speaker, shared)?;
        let begun = unfinished.take().filter(|begun| {
            begun.digest == header.digest && begun.incoming.bytes() <= header.bytes
        });
        let mut incoming = match begun {
            Some(begun) => begun.incoming,
            None => {
                let dir = self.dir.clone();
                blocking(move || Incoming::create(&dir)).await??
            }
        };
        let offset = incoming.bytes();
        if offset > 0 {
            tracing::info!("goes on with the snapshot of {} at byte {offset}", speaker.name);
        }
        let mut buffer = Vec::new();
        encode_frame(&mut buffer, FrameKind::SnapshotWanted, 0, |body| {
            proto::encode(&SnapshotWanted { offset }, body);
        });
        send.write_all(&buffer).await?;
        let begin = Instant::now();
        while incoming.bytes() < header.bytes {
            let came = incoming.bytes() - offset;
            let at_least = begin + STALL_PATIENCE + Duration::from_millis(came * 1000 / RATE_MIN);
            let next = next_chunk(frames, incoming.bytes(), header.bytes, at_least).await;
            // Another one may lead by now.
            let chunk =
                match next.and_then(|chunk| self.check(&header, speaker, shared).map(|()| chunk)) {
                    Ok(chunk) => chunk,
                    Err(error) => {
                        let (digest, since) = (header.digest, Instant::now());
                        *unfinished = Some(Unfinished { digest, incoming, since });
                        return Err(error);
                    }
                };
            incoming = blocking(move || incoming.write(&chunk).map(|()| incoming)).await??;
        }
        self.install(header, incoming, speaker).await
    }

    /// Whether it is the leader's of this term and finds room here.
    fn check(&self, header: &SnapshotHeader, by: &Speaker, shared: &Shared) -> Result<(), Error> {
        if shared.leader() != Some((by.hello.from, header.term)) {
            return Err(Error::NotLeaders);
        }
        let (bytes, max) = (header.bytes, self.bytes_max);
        if bytes > max { Err(Error::TooLarge { bytes, max }) } else { Ok(()) }
    }

    /// Lets go of what a transfer has left behind that nobody goes on with.
    fn forget_later(&self) {
        let unfinished = Arc::clone(&self.unfinished);
        tokio::spawn(async move {
            tokio::time::sleep(UNFINISHED_KEPT).await;
            let mut unfinished = unfinished.lock().await;
            if unfinished.as_ref().is_some_and(|it| it.since.elapsed() >= UNFINISHED_KEPT) {
                *unfinished = None;
            }
        });
    }

    async fn install(
        &self,
        header: SnapshotHeader,
        incoming: Incoming,
        speaker: &Speaker,
    ) -> Result<ReceivedSnapshot, Error> {
        let (dir, cluster, options) = (self.dir.clone(), self.cluster_id, self.store);
        let (store, meta) = blocking(move || -> Result<(Store, snapshot::SnapshotMeta), Error> {
            let path = incoming.finish(&cluster)?;
            Ok(Store::load(&dir, &path, options)?)
        })
        .await??;
        let membership: Membership =
            proto::decode(&meta.membership, "membership").and_then(node::check_membership)?;
        let at = SnapshotAt { index: meta.index, term: meta.term };
        let (from, data) = (speaker.hello.from, speaker.hello.data);
        Ok(ReceivedSnapshot { from, data, term: header.term, at, membership, store })
    }
}

/// The longest file of a snapshot that a store with this limit has room for: a sender's limit may differ somewhat, and
/// the file holds sessions and history beside the image.
pub(super) fn file_bytes_max(store_bytes_max: u64) -> u64 {
    store_bytes_max.saturating_add(store_bytes_max / 8).saturating_add(256 << 20)
}

/// The bytes that come next in a file of `bytes`, of which `expected` are here, if they come in time.
async fn next_chunk(
    frames: &mut Frames,
    expected: u64,
    bytes: u64,
    deadline: Instant,
) -> Result<bytes::Bytes, Error> {
    let frame = timeout_at(deadline, frames.next()).await.map_err(|_| Error::Stalled)??;
    if frame.kind != FrameKind::SnapshotChunk {
        return Err(Malformed("piece of a snapshot").into());
    }
    let (got, chunk) = chunk_parts(&frame.body)?;
    let fits = got == expected && !chunk.is_empty() && got + chunk.len() as u64 <= bytes;
    if fits { Ok(frame.body.slice_ref(chunk)) } else { Err(Error::Place { got, expected, bytes }) }
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
/// A sender that is slower than this, in bytes a second over the whole transfer, gives way to others.
const RATE_MIN: u64 = 16 << 10;
/// What came of a transfer that broke off is kept for so long, for the next try.
const UNFINISHED_KEPT: Duration = Duration::from_secs(60);
/// Nothing ever waits behind a snapshot.
const SNAPSHOT_PRIORITY: i32 = -10;
