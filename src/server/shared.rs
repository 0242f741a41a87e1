//! What connections and the node's turns share: the input that is filling up, the bell, and the streams
//! that wait for answers. Locked only for moments, never across an await.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

use crate::node::{Input, ReceivedSnapshot, Replies, ReplyTo, Request};
use crate::proto::client::Reply;
use crate::proto::frame::{FrameKind, encode_frame};
use crate::quic::{FrameWriter, IdMap};
use crate::raft::{Index, Message, NodeId};
use crate::store::Reader;
use crate::wal::Batch;

/// A scan may read with this reader at this revision.
pub(super) type ScanReady = (Reader, Index);

#[derive(Default)]
pub(super) struct Shared {
    input: Mutex<Input>,
    /// Rung when there is input.
    pub(super) bell: Notify,
    /// Rung when a turn has taken the input.
    drained: Notify,
    streams: Mutex<IdMap<Stream>>,
    /// By stream: a scan has one of its own.
    scans: Mutex<IdMap<oneshot::Sender<ScanReady>>>,
    next_stream: AtomicU64,
}

/// A client's stream, as answers see it.
struct Stream {
    writer: FrameWriter,
    /// Questions without an answer yet.
    pending: usize,
    /// The client asks nothing more here.
    ending: bool,
}

/// Nothing is left half done under these locks that a panic could break.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Moves everything that arrived into `input`, which must be empty.
    pub(super) fn take_input(&self, input: &mut Input) {
        std::mem::swap(&mut *lock(&self.input), input);
        self.drained.notify_waiters();
    }

    /// Changes the input and rings.
    pub(super) fn tell(&self, change: impl FnOnce(&mut Input)) {
        change(&mut lock(&self.input));
        self.bell.notify_one();
    }

    /// Hands in what a peer sent; waits while too much is waiting already, which holds the peer back.
    pub(super) async fn receive(&self, messages: &mut Vec<(Message, Option<Batch>)>) {
        loop {
            let drained = self.drained.notified();
            if lock(&self.input).messages.len() < PEER_MESSAGES_MAX {
                break;
            }
            drained.await;
        }
        self.tell(|input| input.messages.append(messages));
    }

    /// Hands in a snapshot that a leader sent.
    pub(super) fn receive_snapshot(&self, snapshot: ReceivedSnapshot) {
        self.tell(|input| input.snapshots_received.push(snapshot));
    }

    pub(super) fn snapshot_sent(&self, to: NodeId, index: Option<Index>) {
        self.tell(|input| input.snapshots_sent.push((to, index)));
    }

    /// Hands in the requests of one read of `stream`; gives back what does not fit.
    pub(super) fn request(
        &self,
        stream: u64,
        requests: impl Iterator<Item = (Request, usize)>,
    ) -> Vec<ReplyTo> {
        let (mut refused, mut accepted) = (Vec::new(), 0);
        {
            let mut input = lock(&self.input);
            for (request, bytes) in requests {
                let is_full = input.requests.len() >= REQUESTS_MAX
                    || input.request_bytes + bytes > REQUEST_BYTES_MAX;
                if is_full {
                    lock(&self.scans).remove(&stream);
                    refused.push(request.reply_to);
                } else {
                    accepted += 1;
                    input.request_bytes += bytes;
                    input.requests.push(request);
                }
            }
            if let Some(stream) = lock(&self.streams).get_mut(&stream) {
                stream.pending += accepted;
            }
        }
        if accepted > 0 {
            self.bell.notify_one();
        }
        refused
    }

    /// Registers a stream under a new number.
    pub(super) fn open_stream(&self, writer: FrameWriter) -> u64 {
        let id = self.next_stream.fetch_add(1, Ordering::Relaxed);
        lock(&self.streams).insert(id, Stream { writer, pending: 0, ending: false });
        id
    }

    /// The client asks nothing more on this stream; it ends with its last answer.
    pub(super) fn end_stream(&self, id: u64) {
        let mut streams = lock(&self.streams);
        if let Some(stream) = streams.get_mut(&id) {
            stream.ending = true;
            if stream.pending == 0 {
                stream.writer.close();
                streams.remove(&id);
            }
        }
    }

    /// The stream is broken: nobody reads its answers.
    pub(super) fn drop_stream(&self, id: u64) {
        if let Some(stream) = lock(&self.streams).remove(&id) {
            stream.writer.close();
        }
        lock(&self.scans).remove(&id);
    }

    /// Registers the scan of a stream, which waits for its turn to read.
    pub(super) fn wait_for_scan(&self, stream: u64) -> oneshot::Receiver<ScanReady> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.scans).insert(stream, sender);
        receiver
    }

    /// Takes a turn's answers.
    pub(super) fn burst(&self) -> Burst<'_> {
        Burst { shared: self, stream: 0, answers: 0, encoded: Vec::new() }
    }

    /// Queues answers to `count` questions of a stream.
    fn answer(&self, id: u64, count: usize, encoded: &[u8]) {
        let mut streams = lock(&self.streams);
        let Some(stream) = streams.get_mut(&id) else { return };
        let pushed = stream.writer.push(|buffer| buffer.extend_from_slice(encoded));
        stream.pending = stream.pending.saturating_sub(count);
        let is_over = stream.ending && stream.pending == 0;
        // A client that does not read its answers loses the stream, not the node its memory.
        if pushed.is_err() || is_over {
            stream.writer.close();
            streams.remove(&id);
        }
    }
}

/// The answers of a turn, gathered per stream: those of one read of a stream follow each other, so they go into its
/// buffer in one push.
pub(super) struct Burst<'a> {
    shared: &'a Shared,
    stream: u64,
    answers: usize,
    encoded: Vec<u8>,
}

impl Burst<'_> {
    fn flush(&mut self) {
        if self.answers > 0 {
            self.shared.answer(self.stream, std::mem::take(&mut self.answers), &self.encoded);
            self.encoded.clear();
        }
    }
}

impl Drop for Burst<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Replies for Burst<'_> {
    fn reply(&mut self, to: ReplyTo, reply: &Reply<'_>) {
        if to.stream != self.stream || self.encoded.len() >= BURST_BYTES {
            self.flush();
            self.stream = to.stream;
        }
        if let Reply::Refused(_) = reply {
            // It may be a scan that is refused: its task ends.
            lock(&self.shared.scans).remove(&to.stream);
        }
        encode_frame(&mut self.encoded, FrameKind::Reply, to.request_id, |body| {
            crate::proto::encode(reply, body);
        });
        self.answers += 1;
    }

    fn scan(&mut self, to: ReplyTo, reader: Reader, at: Index) {
        if let Some(waiting) = lock(&self.shared.scans).remove(&to.stream) {
            // The scan's task may have ended with its connection.
            let _ = waiting.send((reader, at));
        }
        if let Some(stream) = lock(&self.shared.streams).get_mut(&to.stream) {
            stream.pending = stream.pending.saturating_sub(1);
        }
    }
}

/// Answers to one stream are handed over at this length.
const BURST_BYTES: usize = 64 << 10;
/// Messages of peers that wait for a turn; their readers stop reading above it.
const PEER_MESSAGES_MAX: usize = 4096;
/// Requests that wait for a turn; more are refused as `Busy`.
const REQUESTS_MAX: usize = 65_536;
/// Bytes of requests that wait for a turn; more are refused as `Busy`.
const REQUEST_BYTES_MAX: usize = 256 << 20;
