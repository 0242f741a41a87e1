//! Streams of clients, as answers see them: who waits for what, and how much of it nobody has taken.
//!
//! **Always:** a stream whose answers wait is not read. A read for whose answer there is no room is held as a question of a
//! few bytes, and asked again when the stream's client has taken what is there: so no value waits as a copy. A stream of
//! which nothing is taken for long ends, and so does one with a request that is not whole in time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use super::budget::Account;
use super::shared::{Ready, Shared, lock};
use crate::node::{ReplyTo, Request, RequestBody};
use crate::proto::client::{Refusal, Reply};
use crate::proto::frame::{FrameKind, encode_frame};
use crate::proto::{STREAM_HALF_FRAME, STREAM_NOT_TAKEN};
use crate::quic::{FrameWriter, Progress};
use crate::raft::Index;

/// A client's stream, as answers see it.
pub(super) struct Stream {
    writer: FrameWriter,
    account: Arc<Account>,
    /// Many requests share it: no long answer may stand before the others'.
    is_shared: bool,
    /// Questions without an answer yet.
    pending: usize,
    /// The client asks nothing more here.
    ending: bool,
    /// A scan has it to itself.
    scans: bool,
    /// Reads that wait for room for their answers, oldest first.
    held: VecDeque<(u64, RequestBody)>,
    /// Of these so many were asked again and are not answered yet.
    asked_again: usize,
    /// Rung when the one who reads the stream has to look at it.
    attention: Arc<Notify>,
    ended: Option<u32>,
    watch: Watch,
}

/// What was seen of a stream, and since when it is so.
struct Watch {
    progress: Arc<Progress>,
    half_frame: (Option<u64>, Instant),
    taken: (u64, Instant),
}

/// How a stream stands, for the one who reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// It may be read.
    Clear,
    /// Its answers wait for room.
    Crowded,
    /// What was held was asked again: its answers come.
    Asked,
    /// It ends, with this code.
    Ended(u32),
    /// It is not there any more, or takes no answers.
    Gone,
}

impl Stream {
    /// How many more questions may wait for their answers.
    pub(super) fn request_room(&self) -> usize {
        STREAM_REQUESTS_MAX.saturating_sub(self.pending).min(self.account.request_room())
    }

    /// So many more questions wait.
    pub(super) fn asked(&mut self, requests: usize) {
        self.pending += requests;
        self.account.asked(requests);
    }

    fn room_bytes(&self) -> usize {
        self.writer.room_bytes(STREAM_REPLY_BYTES).min(self.account.replies.room_bytes())
    }

    /// It is not in the table any more.
    fn leave(self) {
        self.writer.close();
        self.account.answered(self.pending);
        self.account.held.remove(self.held.iter().map(|(_, body)| held_bytes(body)).sum());
        self.attention.notify_one();
    }
}

impl Shared {
    /// Registers a stream under a new number.
    pub(super) fn open_stream(
        &self,
        writer: FrameWriter,
        is_shared: bool,
        account: Arc<Account>,
    ) -> u64 {
        let id = self.next_stream.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let watch = Watch { progress: Arc::default(), half_frame: (None, now), taken: (0, now) };
        let stream = Stream {
            writer,
            account,
            is_shared,
            pending: 0,
            ending: false,
            scans: false,
            held: VecDeque::new(),
            asked_again: 0,
            attention: Arc::default(),
            ended: None,
            watch,
        };
        lock(&self.streams).insert(id, stream);
        id
    }

    /// The stream is read by somebody whose progress this is; rung is what comes back when there is something to look at.
    pub(super) fn watch_stream(&self, id: u64, progress: Arc<Progress>) -> Arc<Notify> {
        let mut streams = lock(&self.streams);
        let Some(stream) = streams.get_mut(&id) else { return Arc::default() };
        stream.watch.progress = progress;
        Arc::clone(&stream.attention)
    }

    /// How the stream stands; asks again what was held, if there is room for some answers.
    pub(super) fn look_at(&self, id: u64) -> Look {
        let mut input = lock(&self.input);
        let mut streams = lock(&self.streams);
        let Some(stream) = streams.get_mut(&id) else { return Look::Gone };
        if let Some(code) = stream.ended {
            return Look::Ended(code);
        }
        if stream.writer.is_closed() {
            return Look::Gone;
        }
        if stream.asked_again > 0 {
            return Look::Asked;
        }
        if stream.room_bytes() == 0 {
            return Look::Crowded;
        }
        if stream.held.is_empty() {
            return Look::Clear;
        }
        let lot = stream.held.len().min(ASK_AGAIN_MAX);
        let mut held_again = 0;
        for (request_id, body) in stream.held.drain(..lot) {
            held_again += held_bytes(&body);
            input.requests.push(Request { reply_to: ReplyTo { stream: id, request_id }, body });
        }
        stream.account.held.remove(held_again);
        self.held_reads.fetch_sub(lot as u64, Ordering::Relaxed);
        stream.asked_again = lot;
        drop((streams, input));
        self.bell.notify_one();
        Look::Asked
    }

    /// Waits until the stream may be read; gives the code with which it ends if it may not.
    pub(super) async fn until_clear(
        &self,
        id: u64,
        writer: &FrameWriter,
        account: &Account,
        attention: &Notify,
    ) -> Look {
        loop {
            match self.look_at(id) {
                Look::Crowded => {
                    tokio::select! {
                        () = attention.notified() => {}
                        () = async {
                            writer.room(STREAM_REPLY_BYTES / 2).await;
                            account.replies.room().await;
                        } => {}
                    }
                }
                Look::Asked => attention.notified().await,
                look @ (Look::Clear | Look::Ended(_) | Look::Gone) => return look,
            }
        }
    }

    /// Waits until a stream that is read to its end has all its answers.
    pub(super) async fn until_answered(
        &self,
        id: u64,
        writer: &FrameWriter,
        account: &Account,
        attention: &Notify,
    ) -> Look {
        loop {
            match self.until_clear(id, writer, account, attention).await {
                Look::Clear => attention.notified().await,
                look => return look,
            }
        }
    }

    /// Bytes of answers for which there is room now on a stream.
    pub(super) fn room_bytes(&self, id: u64) -> usize {
        // What is for a stream that is gone is not even encoded.
        lock(&self.streams).get(&id).map_or(0, Stream::room_bytes)
    }

    /// Keeps a read for whose answer there is no room, if its stream is there; gives it back if too much is kept already.
    pub(super) fn hold(&self, to: ReplyTo, body: RequestBody) -> Result<(), RequestBody> {
        let mut streams = lock(&self.streams);
        let Some(stream) = streams.get_mut(&to.stream) else { return Ok(()) };
        if stream.account.held.is_full() {
            return Err(body);
        }
        stream.account.held.add(held_bytes(&body));
        self.held_reads.fetch_add(1, Ordering::Relaxed);
        stream.held.push_back((to.request_id, body));
        stream.asked_again = stream.asked_again.saturating_sub(1);
        stream.attention.notify_one();
        Ok(())
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
        let answered = count.min(stream.pending);
        stream.pending -= answered;
        stream.account.answered(answered);
        if stream.asked_again > 0 {
            stream.asked_again = stream.asked_again.saturating_sub(count);
            if stream.asked_again == 0 {
                stream.attention.notify_one();
            }
        }
        let is_over = stream.ending && stream.pending == 0;
        // A client that does not read its answers loses the stream, not the node its memory.
        if (pushed.is_err() || is_over)
            && let Some(stream) = streams.remove(&id)
        {
            self.leave(stream);
        }
    }

    fn leave(&self, stream: Stream) {
        self.held_reads.fetch_sub(stream.held.len() as u64, Ordering::Relaxed);
        stream.leave();
    }

    /// The task of a stream's scan or save, if one waits for its turn.
    pub(super) fn take_scan(&self, stream: u64) -> Option<oneshot::Sender<Ready>> {
        lock(&self.scans).remove(&stream)
    }

    /// Whether long answers must not stand on this stream before others.
    pub(super) fn is_shared(&self, stream: u64) -> bool {
        lock(&self.streams).get(&stream).is_some_and(|stream| stream.is_shared)
    }

    /// The client asks nothing more on this stream; it ends with its last answer.
    pub(super) fn end_stream(&self, id: u64) {
        let mut streams = lock(&self.streams);
        let Some(stream) = streams.get_mut(&id) else { return };
        stream.ending = true;
        if stream.pending == 0
            && let Some(stream) = streams.remove(&id)
        {
            self.leave(stream);
        }
    }

    /// The stream is broken: nobody reads its answers.
    pub(super) fn drop_stream(&self, id: u64) {
        if let Some(stream) = lock(&self.streams).remove(&id) {
            self.leave(stream);
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

    /// Asks for a reader once more, in the name of a scan that let its own go: at the revision that it began with.
    pub(super) fn scan_again(&self, to: ReplyTo, at: Index) -> oneshot::Receiver<Ready> {
        let (sender, receiver) = oneshot::channel();
        if lock(&self.streams).contains_key(&to.stream) {
            lock(&self.scans).insert(to.stream, sender);
            let consistency = crate::proto::client::Consistency::Local;
            let body = RequestBody::Scan { consistency, revision: Some(at.0) };
            self.tell(|input| input.requests.push(Request { reply_to: to, body }));
        }
        receiver
    }

    /// Ends the streams of which nothing was taken for long though answers wait, and those with a request that is not
    /// whole after as long. Called now and then.
    pub(super) fn end_stuck_streams(&self, now: Instant) {
        for stream in lock(&self.streams).values_mut().filter(|stream| stream.ended.is_none()) {
            let Some(code) = stream.stuck(now) else { continue };
            let count = if code == STREAM_NOT_TAKEN { &self.not_taken } else { &self.half_frames };
            count.fetch_add(1, Ordering::Relaxed);
            stream.ended = Some(code);
            stream.writer.abort(code);
            stream.attention.notify_one();
        }
    }
}

impl Stream {
    /// The code with which it ends, if it has been stuck for too long.
    fn stuck(&mut self, now: Instant) -> Option<u32> {
        let queued = self.writer.queued_bytes() > 0 || !self.held.is_empty();
        let taken = self.writer.taken_bytes();
        if !queued || taken != self.watch.taken.0 {
            self.watch.taken = (taken, now);
        }
        let half_frame = self.watch.progress.half_frame();
        // A stream that is not read because its answers wait cannot get its request whole.
        if half_frame.is_none() || half_frame != self.watch.half_frame.0 || self.room_bytes() == 0 {
            self.watch.half_frame = (half_frame, now);
        }
        let is_long = |since: Instant| now.duration_since(since) >= STUCK_PATIENCE;
        if is_long(self.watch.taken.1) {
            return Some(STREAM_NOT_TAKEN);
        }
        is_long(self.watch.half_frame.1).then_some(STREAM_HALF_FRAME)
    }
}

/// What a held read takes, about.
fn held_bytes(body: &RequestBody) -> usize {
    let key = if let RequestBody::Get { key, .. } = body { key.len() } else { 0 };
    key + size_of::<(u64, RequestBody)>() + HELD_OVERHEAD_BYTES
}

/// Answers that wait for one stream's client; what goes over it is one answer.
pub(super) const STREAM_REPLY_BYTES: usize = 1 << 20;
/// Requests of one stream that wait for their answers, which may take as long as there is no majority; more are refused
/// as `Busy`. Our own client stops at half of it.
pub(super) const STREAM_REQUESTS_MAX: usize = 16_384;
/// Held reads that are asked again at once: more answers than have room.
const ASK_AGAIN_MAX: usize = 64;
/// What an allocation of its own costs a key.
const HELD_OVERHEAD_BYTES: usize = 32;
/// How long a client may take nothing of answers that wait, and how long a request may take to be whole.
const STUCK_PATIENCE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests;
