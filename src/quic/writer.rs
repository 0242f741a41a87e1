//! From frames of any number of callers to as few writes of a stream as possible.
//!
//! Callers append encoded frames to a queue under a short lock and never wait; one driver swaps out all that is queued
//! and hands it to QUIC in one call. So frames that are pushed together leave together, and the cost of a wake-up and
//! of a datagram is paid per batch. Invariants:
//!
//! - Bytes leave in the order of the pushes, and each push is whole: no frame of another caller is inside it.
//! - `queued_bytes` counts what QUIC has not taken yet, also what the driver holds. A push at or above the limit is
//!   refused with [`PushError::Full`] and changes nothing; one push may go over it, so that any frame fits somewhere.
//! - The driver ends when the queue is closed (or all handles are gone) and everything is sent and acknowledged, or
//!   when the stream or connection fails, or when it is dropped. From then on pushes give [`PushError::Closed`].

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use quinn::{SendStream, StoppedError, VarInt, WriteError};
use tokio::sync::Notify;

use super::meter::Meter;
use super::{Error, explain};

/// Longest piece given to QUIC: window space is freed only when a whole one is acknowledged.
const CHUNK_BYTES_MAX: usize = 64 << 10;
/// Shared bodies below this are copied: a piece of its own costs more.
const SHARED_BYTES_MIN: usize = 4 << 10;
/// First allocation of a batch.
const BATCH_BYTES_MIN: usize = 512;

/// Why a push was refused; nothing of it was queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The other side reads too slowly: try again later, or give up the connection.
    #[error("too much is waiting to be sent: the other side reads too slowly")]
    Full,
    /// Nothing more is sent on this stream.
    #[error("the stream is closed")]
    Closed,
}

/// A handle to push frames; clones push to the same stream.
#[derive(Clone, Debug)]
pub struct FrameWriter {
    handles: Arc<Handles>,
}

/// The one who writes; exactly one per stream.
#[derive(Debug)]
pub struct WriterDriver {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limit_bytes: usize,
    queue: Mutex<Queue>,
    /// Signalled when the queue was empty and is not, and when it is closed.
    wake: Notify,
    /// Signalled when the stream is to end at once.
    aborted: Notify,
    /// Signalled when less is queued than somebody waits for, and when it is closed.
    room: Notify,
    /// Counts what is queued.
    meter: Option<Arc<Meter>>,
}

#[derive(Debug, Default)]
struct Queue {
    chunks: VecDeque<Bytes>,
    /// Behind all chunks: what is still appended to.
    tail: Vec<u8>,
    /// How long the last batch's tail was: how much to allocate for the next.
    tail_bytes_hint: usize,
    queued_bytes: usize,
    /// Somebody waits until there is less than this.
    room_below: usize,
    /// Bytes that QUIC has taken, in all.
    taken_bytes: u64,
    is_closed: bool,
    /// The stream is reset with this code.
    abort: Option<u32>,
}

/// Closes the queue when the last handle goes.
#[derive(Debug)]
struct Handles {
    shared: Arc<Shared>,
}

impl FrameWriter {
    /// A queue with a limit, and the driver that empties it: spawn [`WriterDriver::drive`] and keep its handle.
    pub fn new(limit_bytes: usize) -> (FrameWriter, WriterDriver) {
        FrameWriter::with(limit_bytes, None)
    }

    /// The same, and what is queued is counted by `meter`.
    pub fn metered(limit_bytes: usize, meter: Arc<Meter>) -> (FrameWriter, WriterDriver) {
        FrameWriter::with(limit_bytes, Some(meter))
    }

    fn with(limit_bytes: usize, meter: Option<Arc<Meter>>) -> (FrameWriter, WriterDriver) {
        let [wake, aborted, room] = [(); 3].map(|()| Notify::new());
        let queue = Mutex::default();
        let shared = Arc::new(Shared { limit_bytes, queue, wake, aborted, room, meter });
        let handles = Arc::new(Handles { shared: shared.clone() });
        (FrameWriter { handles }, WriterDriver { shared })
    }

    /// Lets `encode` append frames to what is sent next. It runs under the lock: it only appends.
    ///
    /// # Errors
    /// [`PushError`]; `encode` is then not called.
    pub fn push(&self, encode: impl FnOnce(&mut Vec<u8>)) -> Result<(), PushError> {
        self.with_queue(|queue| {
            queue.append(encode);
        })
    }

    /// Queues `header` and `body`, the body without a copy (unless it is small).
    ///
    /// # Errors
    /// [`PushError`]; nothing is then queued.
    pub fn push_shared(&self, header: &[u8], mut body: Bytes) -> Result<(), PushError> {
        if body.len() < SHARED_BYTES_MIN {
            return self.push(|buffer| {
                buffer.extend_from_slice(header);
                buffer.extend_from_slice(&body);
            });
        }
        self.with_queue(|queue| {
            queue.append(|buffer| buffer.extend_from_slice(header));
            queue.seal();
            queue.queued_bytes += body.len();
            while !body.is_empty() {
                queue.chunks.push_back(body.split_to(body.len().min(CHUNK_BYTES_MAX)));
            }
        })
    }

    /// Bytes that QUIC has not taken yet.
    pub fn queued_bytes(&self) -> usize {
        self.handles.shared.lock().map_or(0, |queue| queue.queued_bytes)
    }

    /// Bytes that may be queued until so many are; none when nothing more is sent on this stream.
    pub fn room_bytes(&self, limit_bytes: usize) -> usize {
        let queue = self.handles.shared.lock().filter(|queue| !queue.is_closed);
        queue.map_or(0, |queue| limit_bytes.saturating_sub(queue.queued_bytes))
    }

    /// Whether nothing more is sent on this stream.
    pub fn is_closed(&self) -> bool {
        self.handles.shared.is_closed()
    }

    /// Bytes that QUIC has taken since the beginning: a number that stays means that the other side reads nothing.
    pub fn taken_bytes(&self) -> u64 {
        self.handles.shared.lock().map_or(0, |queue| queue.taken_bytes)
    }

    /// Waits until less than `bytes` are queued, or nothing more is sent on this stream.
    pub async fn room(&self, bytes: usize) {
        let shared = &self.handles.shared;
        loop {
            let mut rung = std::pin::pin!(shared.room.notified());
            rung.as_mut().enable();
            match shared.lock() {
                Some(mut queue) if !queue.is_closed && queue.queued_bytes >= bytes => {
                    queue.room_below = queue.room_below.max(bytes);
                }
                Some(_) | None => return,
            }
            rung.await;
        }
    }

    /// Ends the stream at once: what is queued is dropped, and the other side hears the code.
    pub fn abort(&self, code: u32) {
        let shared = &self.handles.shared;
        if let Some(mut queue) = shared.lock() {
            queue.abort = Some(code);
        }
        shared.aborted.notify_one();
        shared.close();
    }

    /// Ends the stream after what is queued.
    pub fn close(&self) {
        self.handles.shared.close();
    }

    /// Runs `push` on an open queue with room and wakes the driver if it sleeps.
    fn with_queue(&self, push: impl FnOnce(&mut Queue)) -> Result<(), PushError> {
        let shared = &self.handles.shared;
        let Some(mut queue) = shared.lock() else {
            // Nobody told the driver: the caller that could have is the one that panicked.
            shared.wake.notify_one();
            return Err(PushError::Closed);
        };
        if queue.is_closed {
            return Err(PushError::Closed);
        }
        if queue.queued_bytes >= shared.limit_bytes {
            return Err(PushError::Full);
        }
        let (was_empty, before) = (queue.is_empty(), queue.queued_bytes);
        push(&mut queue);
        let must_wake = was_empty && !queue.is_empty();
        if let Some(meter) = &shared.meter {
            // Under the lock: what the driver removes was added before.
            meter.add(queue.queued_bytes - before);
        }
        drop(queue);
        if must_wake {
            shared.wake.notify_one();
        }
        Ok(())
    }
}

impl Drop for Handles {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl WriterDriver {
    /// Writes everything that is pushed to `stream`, until the queue is closed; then finishes the stream and waits until
    /// the other side has it all. To end it earlier, drop it: the stream is then reset.
    ///
    /// # Errors
    /// [`Error::Lost`] or [`Error::StreamEnded`] if the connection or the other side ended it.
    pub async fn drive(self, mut stream: SendStream) -> Result<(), Error> {
        let mut guard = ResetOnDrop { stream: &mut stream, is_armed: true, code: 0 };
        let mut batch = VecDeque::new();
        let mut stopped = Box::pin(guard.stream.stopped());
        loop {
            // Asked before taking: nothing is pushed after it is closed, so an empty queue is then the end.
            let is_closed = self.shared.is_closed();
            if let Some(code) = self.shared.abort_code() {
                guard.code = code;
                return Err(Error::StreamEnded { code: code.into() });
            }
            if self.shared.take(&mut batch) {
                while !batch.is_empty() {
                    let chunks = batch.make_contiguous();
                    let written = tokio::select! {
                        biased;
                        written = guard.stream.write_chunks(chunks) => written,
                        // The code is found at the top of the loop.
                        () = self.shared.aborted.notified() => break,
                    };
                    let written = written.map_err(write_error)?;
                    batch.drain(..written.chunks);
                    self.shared.on_written(written.bytes);
                }
            } else if is_closed {
                break;
            } else {
                tokio::select! {
                    () = self.shared.wake.notified() => (),
                    end = &mut stopped => return stop_outcome(end),
                }
            }
        }
        // The error is that the other side has stopped it, which `stopped` says too.
        let _ = guard.stream.finish();
        let outcome = stop_outcome(stopped.await);
        guard.is_armed = false;
        outcome
    }
}

/// Whatever ends the driver ends the queue: what is left in it is dropped.
impl Drop for WriterDriver {
    fn drop(&mut self) {
        if let Some(mut queue) = self.shared.lock() {
            if let Some(meter) = &self.shared.meter {
                meter.remove(queue.queued_bytes);
            }
            *queue = Queue { is_closed: true, ..Queue::default() };
        }
        self.shared.room.notify_waiters();
    }
}

/// A stream that is dropped counts as finished: one that was cut off must not look whole.
struct ResetOnDrop<'a> {
    stream: &'a mut SendStream,
    is_armed: bool,
    code: u32,
}

impl Drop for ResetOnDrop<'_> {
    fn drop(&mut self) {
        if self.is_armed {
            // The error is that it has ended already.
            let _ = self.stream.reset(VarInt::from_u32(self.code));
        }
    }
}

impl Shared {
    /// `None` after a panic in some `encode`: half a frame may be queued, so nothing more may leave.
    fn lock(&self) -> Option<MutexGuard<'_, Queue>> {
        self.queue.lock().ok()
    }

    fn close(&self) {
        if let Some(mut queue) = self.lock() {
            queue.is_closed = true;
        }
        self.wake.notify_one();
        self.room.notify_waiters();
    }

    fn abort_code(&self) -> Option<u32> {
        self.lock().and_then(|queue| queue.abort)
    }

    fn is_closed(&self) -> bool {
        self.lock().is_none_or(|queue| queue.is_closed)
    }

    /// Moves all that is queued to `batch`, which is empty. `false` if there is nothing.
    fn take(&self, batch: &mut VecDeque<Bytes>) -> bool {
        let Some(mut queue) = self.lock() else { return false };
        queue.seal();
        std::mem::swap(&mut queue.chunks, batch);
        !batch.is_empty()
    }

    fn on_written(&self, bytes: usize) {
        let Some(mut queue) = self.lock() else { return };
        queue.queued_bytes -= bytes;
        queue.taken_bytes += bytes as u64;
        let has_room = queue.queued_bytes < queue.room_below;
        if has_room {
            queue.room_below = 0;
        }
        drop(queue);
        if has_room {
            self.room.notify_waiters();
        }
        if let Some(meter) = &self.meter {
            meter.remove(bytes);
        }
    }
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.tail.is_empty()
    }

    fn append(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let before = self.tail.len();
        if self.tail.capacity() == 0 {
            self.tail.reserve(self.tail_bytes_hint.clamp(BATCH_BYTES_MIN, CHUNK_BYTES_MAX));
        }
        encode(&mut self.tail);
        self.queued_bytes += self.tail.len().saturating_sub(before);
        if self.tail.len() >= CHUNK_BYTES_MAX {
            self.seal();
        }
    }

    /// Makes chunks of the tail.
    fn seal(&mut self) {
        if self.tail.is_empty() {
            return;
        }
        self.tail_bytes_hint = self.tail.len().next_power_of_two();
        let mut bytes = Bytes::from(std::mem::take(&mut self.tail));
        while !bytes.is_empty() {
            self.chunks.push_back(bytes.split_to(bytes.len().min(CHUNK_BYTES_MAX)));
        }
    }
}

fn stop_outcome(end: Result<Option<VarInt>, StoppedError>) -> Result<(), Error> {
    match end {
        Ok(None) => Ok(()),
        Ok(Some(code)) => Err(Error::StreamEnded { code: code.into_inner() }),
        Err(StoppedError::ConnectionLost(lost)) => Err(Error::Lost(explain(&lost))),
        Err(StoppedError::ZeroRttRejected) => Err(Error::Truncated),
    }
}

fn write_error(error: WriteError) -> Error {
    match error {
        WriteError::ConnectionLost(lost) => Error::Lost(explain(&lost)),
        WriteError::Stopped(code) => Error::StreamEnded { code: code.into_inner() },
        // Neither can come of a stream of our own without early data.
        WriteError::ClosedStream | WriteError::ZeroRttRejected => Error::Truncated,
    }
}
