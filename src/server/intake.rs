//! Snapshots that come from the leader: checked against who may send them, written piece by piece, verified whole.
//!
//! **Always:** a snapshot is the leader's of the present term, no longer than there is room for, and comes at a least rate.
//! What a transfer leaves behind that broke off is kept for a minute, for the next try.

use std::sync::Arc;
use std::time::Duration;

use quinn::SendStream;
use tokio::time::{Instant, timeout_at};

use super::peers::Speaker;
use super::shared::Shared;
use super::snapshots::{Error, Frames, RATE_MIN, blocking};
use crate::node::{self, ReceivedSnapshot, SnapshotAt};
use crate::proto::frame::{Frame, FrameKind, encode_frame};
use crate::proto::peer::{SnapshotDone, SnapshotHeader, SnapshotWanted, chunk_parts};
use crate::proto::{self, Malformed};
use crate::raft::Membership;
use crate::store::{self, Incoming, Store, snapshot};

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

/// A sender that is silent for so long gives way to others.
const STALL_PATIENCE: Duration = Duration::from_secs(10);
/// What came of a transfer that broke off is kept for so long, for the next try.
const UNFINISHED_KEPT: Duration = Duration::from_secs(60);
