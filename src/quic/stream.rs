//! Frames over streams: a reader that hands over whatever is whole, and a writer that many may fill and
//! one task empties, everything queued in one write.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use tokio::sync::Notify;

use super::Error;
use crate::proto::frame::{Frame, FrameDecoder};

/// Reads frames off a stream.
pub struct FrameReader {
    stream: RecvStream,
    decoder: FrameDecoder,
    chunks: Vec<Bytes>,
}

impl FrameReader {
    /// A reader that refuses frames longer than `frame_bytes_max`.
    pub fn new(stream: RecvStream, frame_bytes_max: usize) -> FrameReader {
        let chunks = vec![Bytes::new(); CHUNKS];
        FrameReader { stream, decoder: FrameDecoder::new(frame_bytes_max), chunks }
    }

    /// Waits for bytes and appends every frame that is whole by then; false at the stream's clean end.
    ///
    /// # Errors
    /// [`Error::Malformed`] for bytes that are no frame, [`Error::Read`] if the stream breaks.
    pub async fn read_batch(&mut self, frames: &mut Vec<Frame>) -> Result<bool, Error> {
        let before = frames.len();
        loop {
            let Some(count) = self.stream.read_chunks(&mut self.chunks).await? else {
                if self.decoder.is_at_frame_boundary() {
                    return Ok(false);
                }
                return Err(crate::proto::Malformed("end of a frame").into());
            };
            for chunk in &mut self.chunks[..count] {
                self.decoder.push(&std::mem::take(chunk));
            }
            while let Some(frame) = self.decoder.next_frame()? {
                frames.push(frame);
            }
            if frames.len() > before {
                return Ok(true);
            }
        }
    }
}

/// A handle to a stream's queue; clones fill the same one.
#[derive(Clone)]
pub struct FrameWriter {
    queue: Arc<Queue>,
}

struct Queue {
    state: Mutex<State>,
    /// Rung when an empty queue is filled, or closed.
    filled: Notify,
    bytes_max: usize,
}

#[derive(Default)]
struct State {
    /// What is queued, in order; `open` goes after `sealed`.
    sealed: Vec<Bytes>,
    open: Vec<u8>,
    bytes: usize,
    closed: bool,
}

impl State {
    fn seal(&mut self) {
        if !self.open.is_empty() {
            self.sealed.push(Bytes::from(std::mem::take(&mut self.open)));
        }
    }
}

impl FrameWriter {
    /// An empty queue that takes `bytes_max` and no more.
    pub fn new(bytes_max: usize) -> FrameWriter {
        let state = Mutex::new(State::default());
        FrameWriter { queue: Arc::new(Queue { state, filled: Notify::new(), bytes_max }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.queue.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues what `encode` appends.
    ///
    /// # Errors
    /// [`Error::Full`] if too much waits already, [`Error::Closed`] after the end; nothing is queued then.
    pub fn push(&self, encode: impl FnOnce(&mut Vec<u8>)) -> Result<(), Error> {
        self.change(|state| {
            let before = state.open.len();
            encode(&mut state.open);
            state.bytes += state.open.len() - before;
        })
    }

    /// Queues chunks that together are whole frames, without a copy.
    ///
    /// # Errors
    /// As [`FrameWriter::push`].
    pub fn push_chunks(&self, chunks: Vec<Bytes>) -> Result<(), Error> {
        self.change(|state| {
            state.seal();
            state.bytes += chunks.iter().map(Bytes::len).sum::<usize>();
            state.sealed.extend(chunks);
        })
    }

    fn change(&self, change: impl FnOnce(&mut State)) -> Result<(), Error> {
        let mut state = self.lock();
        if state.closed {
            return Err(Error::Closed);
        }
        if state.bytes >= self.queue.bytes_max {
            return Err(Error::Full);
        }
        let was_empty = state.sealed.is_empty() && state.open.is_empty();
        change(&mut state);
        drop(state);
        if was_empty {
            self.queue.filled.notify_one();
        }
        Ok(())
    }

    /// Bytes that are queued or being written.
    pub fn queued_bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Whether nothing more is taken.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Takes nothing more; what is queued still goes out, then the stream ends.
    pub fn close(&self) {
        self.lock().closed = true;
        self.queue.filled.notify_one();
    }

    /// Writes what is queued for as long as the stream lives: the one task that owns it.
    pub async fn drive(self, mut stream: SendStream) {
        loop {
            let (mut chunks, closed) = {
                let mut state = self.lock();
                state.seal();
                (std::mem::take(&mut state.sealed), state.closed)
            };
            if chunks.is_empty() {
                if closed {
                    // Fails only for a stream that the other end has given up.
                    let _ = stream.finish();
                    return;
                }
                self.queue.filled.notified().await;
                continue;
            }
            let bytes: usize = chunks.iter().map(Bytes::len).sum();
            let written = stream.write_all_chunks(&mut chunks).await.is_ok();
            let mut state = self.lock();
            state.bytes -= bytes;
            if !written {
                *state = State { closed: true, ..State::default() };
                return;
            }
        }
    }
}

/// Chunks that are read at once.
const CHUNKS: usize = 256;
