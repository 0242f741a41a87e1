//! What connections and the node's turns share: the input that is filling up, the bell, and the streams
//! that wait for answers. Locked only for moments, never across an await.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, Semaphore, oneshot};

use crate::node::{Input, ReceivedSnapshot, Replies, ReplyTo, Request, Sent};
use crate::proto::client::{Refusal, Reply};
use crate::proto::frame::{FrameKind, encode_frame};
use crate::proto::limits::LARGE_BYTES;
use crate::quic::FrameWriter;
use crate::raft::{Index, Message, NodeId};
use crate::store::Reader;
use crate::wal::Batch;

/// A scan may read with this reader at this revision.
pub(super) type ScanReady = (Reader, Index);

pub(super) struct Shared {
    input: Mutex<Input>,
    /// Rung when there is input.
    pub(super) bell: Notify,
    /// Rung when a turn has taken the input.
    drained: Notify,
    /// Rung when another node leads, or none.
    pub(super) leader_changed: Notify,
    streams: Mutex<HashMap<u64, Stream>>,
    scans: Mutex<HashMap<ReplyTo, oneshot::Sender<ScanReady>>>,
    next_stream: AtomicU64,
    /// Writes on their way to the leader; more are refused as `Busy`.
    pub(super) forwards: Arc<Semaphore>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            input: Mutex::default(),
            bell: Notify::new(),
            drained: Notify::new(),
            leader_changed: Notify::new(),
            streams: Mutex::default(),
            scans: Mutex::default(),
            next_stream: AtomicU64::new(0),
            forwards: Arc::new(Semaphore::new(FORWARDS_MAX)),
        }
    }
}

/// A client's stream, as answers see it.
struct Stream {
    writer: FrameWriter,
    /// Many requests share it: no long answer may stand before the others'.
    is_shared: bool,
    /// Questions without an answer yet.
    pending: usize,
    /// The client asks nothing more here.
    ending: bool,
    /// A scan has it to itself.
    scans: bool,
}

/// Nothing is left half done under these locks that a panic could break.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Adds everything that arrived to `input`, which has no more than ticks and a transfer yet.
    pub(super) fn take_input(&self, input: &mut Input) {
        // Taken, for what stays in the buffer that is given back would arrive once more.
        let (ticks, transfer) =
            (std::mem::take(&mut input.ticks), std::mem::take(&mut input.transfer));
        std::mem::swap(&mut *lock(&self.input), input);
        input.ticks += ticks;
        input.transfer |= transfer;
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

    pub(super) fn snapshot_sent(&self, to: NodeId, sent: Sent) {
        self.tell(|input| input.snapshots_sent.push((to, sent)));
    }

    /// Hands in the requests of one read of a stream; gives back what does not fit.
    pub(super) fn request(&self, requests: Vec<(Request, usize)>) -> Vec<ReplyTo> {
        let mut refused = Vec::new();
        {
            let mut input = lock(&self.input);
            let mut streams = lock(&self.streams);
            for (request, bytes) in requests {
                let stream = streams.get_mut(&request.reply_to.stream);
                let is_full = input.requests.len() >= REQUESTS_MAX
                    || input.request_bytes + bytes > REQUEST_BYTES_MAX
                    || stream.as_ref().is_some_and(|it| it.pending >= STREAM_REQUESTS_MAX);
                if is_full {
                    // A scan's task ends without its sender.
                    lock(&self.scans).remove(&request.reply_to);
                    refused.push(request.reply_to);
                } else {
                    if let Some(stream) = stream {
                        stream.pending += 1;
                    }
                    input.request_bytes += bytes;
                    input.requests.push(request);
                }
            }
        }
        self.bell.notify_one();
        refused
    }

    /// Answers a request that waits with a refusal.
    pub(super) fn refuse(&self, to: ReplyTo, refusal: Refusal) {
        self.answer(to, |body| crate::proto::encode(&Reply::Refused(refusal), body));
    }

    /// Answers a request with the body of another node's answer.
    pub(super) fn relay(&self, to: ReplyTo, body: &[u8]) {
        self.answer(to, |buffer| buffer.extend_from_slice(body));
    }

    fn answer(&self, to: ReplyTo, encode: impl FnOnce(&mut Vec<u8>)) {
        let mut streams = lock(&self.streams);
        let Some(stream) = streams.get_mut(&to.stream) else { return };
        let pushed = stream
            .writer
            .push(|buffer| encode_frame(buffer, FrameKind::Reply, to.request_id, encode));
        stream.pending = stream.pending.saturating_sub(1);
        let is_over = stream.ending && stream.pending == 0;
        // A client that does not read its answers loses the stream, not the node its memory.
        if pushed.is_err() || is_over {
            stream.writer.close();
            streams.remove(&to.stream);
        }
    }

    /// Whether long answers must not stand on this stream before others.
    fn is_shared(&self, stream: u64) -> bool {
        lock(&self.streams).get(&stream).is_some_and(|stream| stream.is_shared)
    }

    /// Registers a stream under a new number.
    pub(super) fn open_stream(&self, writer: FrameWriter, is_shared: bool) -> u64 {
        let id = self.next_stream.fetch_add(1, Ordering::Relaxed);
        lock(&self.streams)
            .insert(id, Stream { writer, is_shared, pending: 0, ending: false, scans: false });
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
        lock(&self.scans).retain(|reply_to, _| reply_to.stream != id);
    }

    /// Registers a scan that waits for its turn to read. `None` on a stream where it would not be alone: so there are
    /// no more scans than streams, and the end of one ends nothing else.
    pub(super) fn wait_for_scan(&self, reply_to: ReplyTo) -> Option<oneshot::Receiver<ScanReady>> {
        let mut streams = lock(&self.streams);
        let stream = streams.get_mut(&reply_to.stream)?;
        if stream.is_shared || std::mem::replace(&mut stream.scans, true) {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        lock(&self.scans).insert(reply_to, sender);
        Some(receiver)
    }
}

/// Answers go into the buffers of their streams, which are written when the turn is over.
impl Replies for &Shared {
    fn reply(&mut self, to: ReplyTo, reply: &Reply<'_>) {
        lock(&self.scans).remove(&to);
        let reply = match reply {
            Reply::Value { value, .. }
                if value.len() > LARGE_BYTES && self.is_shared(to.stream) =>
            {
                &Reply::Large
            }
            reply => reply,
        };
        self.answer(to, |body| crate::proto::encode(reply, body));
    }

    fn scan(&mut self, to: ReplyTo, reader: Reader, at: Index) {
        // It counts as pending until its task ends, or the end of the questions would be the end of the answer.
        if let Some(waiting) = lock(&self.scans).remove(&to) {
            // The scan's task may have ended with its connection.
            let _ = waiting.send((reader, at));
        }
    }
}

/// Messages of peers that wait for a turn; their readers stop reading above it.
const PEER_MESSAGES_MAX: usize = 4096;
/// Requests of one stream that wait for their answers, which may take as long as there is no majority; more are refused
/// as `Busy`. Our own client stops at half of it.
const STREAM_REQUESTS_MAX: usize = 16_384;
/// Requests that wait for a turn; more are refused as `Busy`.
const REQUESTS_MAX: usize = 65_536;
/// Writes that wait for another node's answer.
const FORWARDS_MAX: usize = 1024;
/// Bytes of requests that wait for a turn; more are refused as `Busy`.
const REQUEST_BYTES_MAX: usize = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::RequestBody;
    use crate::proto::client::{Consistency, Scan, ScanMode};
    use crate::server::scan;
    use crate::store;

    /// A scan whose client asks nothing more, before (`early`) or after it may read.
    async fn scan(early: bool) {
        let shared = Arc::new(Shared::default());
        let (writer, _driver) = FrameWriter::new(1 << 20);
        let stream = shared.open_stream(writer.clone(), false);
        let to = ReplyTo { stream, request_id: 1 };
        let asked = Scan {
            from: b"",
            to: None,
            limit: u64::MAX,
            reverse: false,
            mode: ScanMode::Rows,
            consistency: Consistency::Local,
        };
        let ready = shared.wait_for_scan(to).expect("the stream is its own");
        assert!(shared.wait_for_scan(to).is_none(), "two scans on one stream");
        let body = RequestBody::Scan { consistency: Consistency::Local };
        assert!(shared.request(vec![(Request { reply_to: to, body }, 1)]).is_empty());
        if early {
            shared.end_stream(stream);
        }
        let options = store::Options { arena_bytes: 1 << 20, hash_seed: 1 };
        let store = store::Store::new(options).expect("there is room");
        (&mut &*shared).scan(to, store.reader(), Index(0));
        if !early {
            shared.end_stream(stream);
        }
        assert_eq!(writer.push(|_| ()), Ok(()), "the stream ended before the scan");
        let plan = scan::Plan::new(&asked, to);
        scan::run(plan, ready, writer.clone(), Arc::clone(&shared)).await;
        assert!(writer.queued_bytes() > 0, "the scan's end was not sent");
        assert!(writer.push(|_| ()).is_err(), "the stream goes on after the scan");
        assert!(lock(&shared.streams).is_empty() && lock(&shared.scans).is_empty());
    }

    #[tokio::test]
    async fn a_scan_is_answered_to_its_end_and_leaves_nothing_behind() {
        scan(true).await;
        scan(false).await;
    }

    #[tokio::test]
    async fn a_scan_that_finds_no_room_leaves_nothing_behind() {
        let shared = Shared::default();
        let (writer, _driver) = FrameWriter::new(1 << 20);
        let to = ReplyTo { stream: shared.open_stream(writer, false), request_id: 1 };
        let ready = shared.wait_for_scan(to).expect("the stream is its own");
        let body = RequestBody::Scan { consistency: Consistency::Local };
        let request = Request { reply_to: to, body };
        assert_eq!(shared.request(vec![(request, REQUEST_BYTES_MAX + 1)]), [to]);
        assert!(ready.await.is_err() && lock(&shared.scans).is_empty());
    }

    #[test]
    fn a_stream_has_a_limited_number_of_questions_without_an_answer() {
        let shared = Shared::default();
        let (writer, _driver) = FrameWriter::new(1 << 20);
        let stream = shared.open_stream(writer, true);
        let ask = |request_id| {
            let reply_to = ReplyTo { stream, request_id };
            shared.request(vec![(Request { reply_to, body: RequestBody::Status }, 1)])
        };
        for request_id in 0..STREAM_REQUESTS_MAX as u64 {
            assert!(ask(request_id).is_empty());
            // The node has taken it and does not answer.
            shared.take_input(&mut Input::default());
        }
        assert_eq!(ask(1 << 20).len(), 1);
        (&mut &shared).reply(ReplyTo { stream, request_id: 0 }, &Reply::NotFound);
        assert!(ask(1 << 20).is_empty());
    }

    #[test]
    fn a_tick_and_a_transfer_arrive_once() {
        let shared = Shared::default();
        let mut input = Input { ticks: 1, transfer: true, ..Input::default() };
        shared.take_input(&mut input);
        assert!(input.ticks == 1 && input.transfer);
        // The node's turn.
        (input.ticks, input.transfer) = (0, false);
        for turn in 0..3 {
            shared.take_input(&mut input);
            assert!(input.ticks == 0 && !input.transfer, "turn {turn}: {} ticks", input.ticks);
        }
    }
}
