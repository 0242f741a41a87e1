//! What connections and the node's turns share: the input that is filling up, the bell, and the streams
//! that wait for answers. Locked only for moments, never across an await.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::{Notify, Semaphore, oneshot, watch};

use super::book::Book;
use crate::node::{Input, ReceivedSnapshot, ReplyTo, Request, Sent};
use crate::proto::client::{Refusal, Reply};
use crate::proto::frame::{FrameKind, encode_frame};
use crate::proto::peer::{StateHash, Want};
use crate::quic::{FrameWriter, IdMap, Keyring};
use crate::raft::{Index, Message, NodeId};
use crate::store::Reader;
use crate::wal::Batch;

/// What a scan or a save has waited for.
pub(super) enum Ready {
    /// It may read with this reader at this revision.
    Scan(Reader, Index),
    /// There is a snapshot at this index.
    Snapshot(Index),
}

pub(super) struct Shared {
    input: Mutex<Input>,
    /// Rung when there is input.
    pub(super) bell: Notify,
    /// Rung when a turn has taken the input.
    drained: Notify,
    /// Rung when another node leads, or none.
    pub(super) leader_changed: Notify,
    streams: Mutex<IdMap<Stream>>,
    /// By stream: a scan or a save has one of its own.
    scans: Mutex<IdMap<oneshot::Sender<Ready>>>,
    next_stream: AtomicU64,
    /// Who may speak as which node.
    pub(super) book: watch::Sender<Arc<Book>>,
    /// The node that said that this one was removed.
    removed_by: Mutex<Option<String>>,
    /// What nodes that repair their logs ask for.
    fetches: Mutex<Vec<Fetch>>,
    /// Writes on their way to the leader; more are refused as `Busy`.
    pub(super) forwards: Arc<Semaphore>,
    /// The certificates, of which `status` tells.
    pub(super) keyring: OnceLock<Keyring>,
}

impl Shared {
    /// For one node.
    pub(super) fn new(own: NodeId) -> Shared {
        Shared {
            book: watch::Sender::new(Arc::new(Book::blank(own))),
            removed_by: Mutex::default(),
            input: Mutex::default(),
            bell: Notify::new(),
            drained: Notify::new(),
            leader_changed: Notify::new(),
            streams: Mutex::default(),
            scans: Mutex::default(),
            next_stream: AtomicU64::new(0),
            fetches: Mutex::default(),
            forwards: Arc::new(Semaphore::new(FORWARDS_MAX)),
            keyring: OnceLock::new(),
        }
    }

    /// Asks the next turn what its log has; dropped unanswered if too many ask.
    pub(super) fn fetch(&self, fetch: Fetch) {
        let mut fetches = lock(&self.fetches);
        if fetches.len() < FETCHES_MAX {
            fetches.push(fetch);
            self.bell.notify_one();
        }
    }

    /// Answers what was asked since the last call.
    pub(super) fn answer_fetches(&self, answer: impl Fn(&Want) -> Option<Batch>) {
        for Fetch { want, answered } in std::mem::take(&mut *lock(&self.fetches)) {
            // Who asked may be gone.
            let _ = answered.send(answer(&want));
        }
    }

    /// Another node says that this one was removed.
    pub(super) fn removed(&self, by: &str) {
        *lock(&self.removed_by) = Some(by.to_owned());
        self.bell.notify_one();
    }

    /// Who said so, if anybody did.
    pub(super) fn removed_by(&self) -> Option<String> {
        lock(&self.removed_by).clone()
    }
}

/// What a node that repairs its log asks for.
pub(super) struct Fetch {
    pub(super) want: Want,
    pub(super) answered: oneshot::Sender<Option<Batch>>,
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

    /// Hands in what a peer said of its store; the newest counts if it says more than it should.
    pub(super) fn hear_state_hash(&self, from: NodeId, told: StateHash) {
        let mut input = lock(&self.input);
        if input.state_hashes.len() >= STATE_HASHES_MAX {
            input.state_hashes.remove(0);
        }
        input.state_hashes.push((from, told));
    }

    /// Hands in a snapshot that a leader sent.
    pub(super) fn receive_snapshot(&self, snapshot: ReceivedSnapshot) {
        self.tell(|input| input.snapshots_received.push(snapshot));
    }

    pub(super) fn snapshot_sent(&self, to: NodeId, sent: Sent) {
        self.tell(|input| input.snapshots_sent.push((to, sent)));
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
            let mut streams = lock(&self.streams);
            let mut asker = streams.get_mut(&stream);
            for (request, bytes) in requests {
                let is_full = input.requests.len() >= REQUESTS_MAX
                    || input.request_bytes + bytes > REQUEST_BYTES_MAX
                    || asker.as_ref().is_some_and(|it| it.pending >= STREAM_REQUESTS_MAX);
                if is_full {
                    // A scan's task ends without its sender.
                    lock(&self.scans).remove(&stream);
                    refused.push(request.reply_to);
                } else {
                    accepted += 1;
                    if let Some(asker) = &mut asker {
                        asker.pending += 1;
                    }
                    input.request_bytes += bytes;
                    input.requests.push(request);
                }
            }
        }
        if accepted > 0 {
            self.bell.notify_one();
        }
        refused
    }

    /// Answers a request that waits with a refusal.
    pub(super) fn refuse(&self, to: ReplyTo, refusal: Refusal) {
        self.relay_with(to, |body| crate::proto::encode(&Reply::Refused(refusal), body));
    }

    /// Answers a request with the body of another node's answer.
    pub(super) fn relay(&self, to: ReplyTo, body: &[u8]) {
        self.relay_with(to, |buffer| buffer.extend_from_slice(body));
    }

    fn relay_with(&self, to: ReplyTo, encode: impl FnOnce(&mut Vec<u8>)) {
        self.answer(to.stream, 1, |buffer| {
            encode_frame(buffer, FrameKind::Reply, to.request_id, encode);
        });
    }

    /// Queues what `encode` appends, the answers to `count` questions of a stream.
    pub(super) fn answer(&self, id: u64, count: usize, encode: impl FnOnce(&mut Vec<u8>)) {
        let mut streams = lock(&self.streams);
        let Some(stream) = streams.get_mut(&id) else { return };
        let pushed = stream.writer.push(encode);
        stream.pending = stream.pending.saturating_sub(count);
        let is_over = stream.ending && stream.pending == 0;
        // A client that does not read its answers loses the stream, not the node its memory.
        if pushed.is_err() || is_over {
            stream.writer.close();
            streams.remove(&id);
        }
    }

    /// The task of a stream's scan or save, if one waits for its turn.
    pub(super) fn take_scan(&self, stream: u64) -> Option<oneshot::Sender<Ready>> {
        lock(&self.scans).remove(&stream)
    }

    /// Whether long answers must not stand on this stream before others.
    pub(super) fn is_shared(&self, stream: u64) -> bool {
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
        lock(&self.scans).remove(&id);
    }

    /// Registers a scan or a save that waits for its turn. `None` on a stream where it would not be alone: so there are
    /// no more scans than streams, and the end of one ends nothing else.
    pub(super) fn wait_for_scan(&self, id: u64) -> Option<oneshot::Receiver<Ready>> {
        let mut streams = lock(&self.streams);
        let stream = streams.get_mut(&id)?;
        if stream.is_shared || std::mem::replace(&mut stream.scans, true) {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        lock(&self.scans).insert(id, sender);
        Some(receiver)
    }
}

/// Messages of peers that wait for a turn; their readers stop reading above it.
const PEER_MESSAGES_MAX: usize = 4096;
/// State hashes that wait for a turn; each node sends one a second.
const STATE_HASHES_MAX: usize = 1024;
/// Requests of one stream that wait for their answers, which may take as long as there is no majority; more are refused
/// as `Busy`. Our own client stops at half of it.
const STREAM_REQUESTS_MAX: usize = 16_384;
/// Requests that wait for a turn; more are refused as `Busy`.
const REQUESTS_MAX: usize = 65_536;
/// Questions of nodes that repair their logs, which each ask one at a time.
const FETCHES_MAX: usize = 16;
/// Writes that wait for another node's answer.
const FORWARDS_MAX: usize = 1024;
/// Bytes of requests that wait for a turn; more are refused as `Busy`.
const REQUEST_BYTES_MAX: usize = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{Replies, RequestBody};
    use crate::proto::client::{Consistency, Scan, ScanMode};
    use crate::server::answers::Burst;
    use crate::server::scan;
    use crate::store;

    /// A scan whose client asks nothing more, before (`early`) or after it may read.
    async fn scan(early: bool) {
        let shared = Arc::new(Shared::new(NodeId(1)));
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
            revision: None,
        };
        let ready = shared.wait_for_scan(stream).expect("the stream is its own");
        assert!(shared.wait_for_scan(stream).is_none(), "two scans on one stream");
        let body = RequestBody::Scan { consistency: Consistency::Local, revision: None };
        assert!(
            shared.request(stream, [(Request { reply_to: to, body }, 1)].into_iter()).is_empty()
        );
        if early {
            shared.end_stream(stream);
        }
        let options = store::Options { arena_bytes: 1 << 20, hash_seed: 1 };
        let store = store::Store::new(options).expect("there is room");
        Burst::new(&shared).scan(to, store.reader(), Index(0));
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
        let shared = Shared::new(NodeId(1));
        let (writer, _driver) = FrameWriter::new(1 << 20);
        let to = ReplyTo { stream: shared.open_stream(writer, false), request_id: 1 };
        let ready = shared.wait_for_scan(to.stream).expect("the stream is its own");
        let body = RequestBody::Scan { consistency: Consistency::Local, revision: None };
        let request = Request { reply_to: to, body };
        assert_eq!(shared.request(to.stream, [(request, REQUEST_BYTES_MAX + 1)].into_iter()), [to]);
        assert!(ready.await.is_err() && lock(&shared.scans).is_empty());
    }

    #[test]
    fn a_stream_has_a_limited_number_of_questions_without_an_answer() {
        let shared = Shared::new(NodeId(1));
        let (writer, _driver) = FrameWriter::new(1 << 20);
        let stream = shared.open_stream(writer, true);
        let ask = |request_id| {
            let reply_to = ReplyTo { stream, request_id };
            shared.request(
                stream,
                std::iter::once((Request { reply_to, body: RequestBody::Status }, 1)),
            )
        };
        for request_id in 0..STREAM_REQUESTS_MAX as u64 {
            assert!(ask(request_id).is_empty());
            // The node has taken it and does not answer.
            shared.take_input(&mut Input::default());
        }
        assert_eq!(ask(1 << 20).len(), 1);
        Burst::new(&shared).reply(ReplyTo { stream, request_id: 0 }, &Reply::NotFound);
        assert!(ask(1 << 20).is_empty());
    }

    #[test]
    fn a_tick_and_a_transfer_arrive_once() {
        let shared = Shared::new(NodeId(1));
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
