//! From the bytes of a stream to batches of frames.
//!
//! Everything that has arrived is taken at once, and every whole frame in it is returned at once, so that the next
//! stage is woken once per batch and not once per frame.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use bytes::Bytes;
use quinn::{ReadError, RecvStream};

use super::meter::{Exceeding, Meter};
use super::{Error, explain};
use crate::proto::frame::{Frame, FrameDecoder};

/// Pieces of the stream that one read takes: more than arrive in one turn of quinn.
const CHUNKS_MAX: usize = 256;
/// Less than this of a frame that is not whole is not counted.
const COUNTED_BYTES_MIN: usize = 1 << 10;

/// Reads frames from a stream.
#[derive(Debug)]
pub struct FrameReader {
    stream: RecvStream,
    decoder: FrameDecoder,
    chunks: Vec<Bytes>,
    halves: Option<Halves>,
}

/// What a reader holds of a frame that is not whole, as others see it.
#[derive(Debug)]
struct Halves {
    meter: Arc<Meter>,
    /// Bytes that are counted there.
    counted: usize,
    progress: Arc<Progress>,
    exceeding: Option<Exceeding>,
}

/// How far a reader has come, for somebody who looks now and then.
#[derive(Debug, Default)]
pub struct Progress {
    /// Twice the whole frames, and one more if another one has begun.
    frames: AtomicU64,
}

impl Progress {
    /// The number of the frame that has begun and is not whole; `None` between two frames.
    pub fn half_frame(&self) -> Option<u64> {
        let frames = self.frames.load(Ordering::Relaxed);
        (frames % 2 == 1).then_some(frames / 2)
    }

    /// So many frames are whole, and another one has begun or not.
    pub(crate) fn set(&self, whole: u64, has_begun: bool) {
        self.frames.store(2 * whole + u64::from(has_begun), Ordering::Relaxed);
    }
}

impl FrameReader {
    /// A reader that refuses frames longer than `frame_bytes_max` (header included).
    pub fn new(stream: RecvStream, frame_bytes_max: usize) -> FrameReader {
        let decoder = FrameDecoder::new(frame_bytes_max);
        FrameReader { stream, decoder, chunks: vec![Bytes::new(); CHUNKS_MAX], halves: None }
    }

    /// The same, and frames that are not whole are counted by `meter`: while it is full nothing more is read.
    pub fn metered(stream: RecvStream, frame_bytes_max: usize, meter: Arc<Meter>) -> FrameReader {
        let halves = Halves { meter, counted: 0, progress: Arc::default(), exceeding: None };
        FrameReader { halves: Some(halves), ..FrameReader::new(stream, frame_bytes_max) }
    }

    /// How far it has come; without a meter this stays where it is.
    pub fn progress(&self) -> Arc<Progress> {
        self.halves.as_ref().map(|halves| Arc::clone(&halves.progress)).unwrap_or_default()
    }

    /// From now on frames up to this length are taken, header included.
    pub fn set_frame_bytes_max(&mut self, frame_bytes_max: usize) {
        self.decoder.set_frame_bytes_max(frame_bytes_max);
    }

    /// Waits until at least one frame is whole and appends all that are to `frames`. `false` means that the stream has
    /// ended between two frames and nothing was appended.
    ///
    /// Cancel safe: what was read before is kept for the next call.
    ///
    /// # Errors
    /// [`Error::Malformed`] or [`Error::Truncated`] for a stream that is no sequence of frames (frames before that
    /// are appended), [`Error::Lost`] or [`Error::StreamEnded`] if it ended by force. The reader is then of no use.
    pub async fn read_batch(&mut self, frames: &mut Vec<Frame>) -> Result<bool, Error> {
        let before = frames.len();
        while frames.len() == before {
            let Some(count) = self.read_chunks().await.map_err(read_error)? else {
                return match self.decoder.is_at_frame_boundary() {
                    true => Ok(false),
                    false => Err(Error::Truncated),
                };
            };
            for chunk in &mut self.chunks[..count] {
                // Taken, since a chunk that stays here would pin its receive buffer.
                self.decoder.push(&std::mem::take(chunk));
            }
            while let Some(frame) = self.decoder.next_frame()? {
                frames.push(frame);
            }
            if let Some(halves) = &mut self.halves {
                halves.count(frames.len() - before, self.decoder.half_bytes());
            }
        }
        Ok(true)
    }

    /// Everything that has arrived, once there is room for it. Room is looked for in the same moment as the bytes are
    /// taken, so that many streams on which bytes arrive at once do not all pass the limit.
    async fn read_chunks(&mut self) -> Result<Option<usize>, ReadError> {
        let FrameReader { stream, decoder, chunks, halves } = self;
        let mut read = pin!(stream.read_chunks(chunks));
        loop {
            let polled = poll_fn(|context| {
                if halves.as_mut().is_some_and(|halves| !halves.may_read(decoder.half_bytes())) {
                    return Poll::Ready(None);
                }
                let polled = read.as_mut().poll(context);
                if polled.is_pending() {
                    decoder.compact();
                }
                polled.map(Some)
            });
            match (polled.await, &halves) {
                (Some(read), _) => return read,
                (None, Some(halves)) => halves.meter.room().await,
                (None, None) => {}
            }
        }
    }

    /// Tells the other side that nothing more will be read.
    pub fn stop(mut self, code: u32) {
        // The error is that the stream has ended already.
        let _ = self.stream.stop(code.into());
    }
}

impl Halves {
    /// Whether a reader that holds so many bytes of a frame may read on.
    fn may_read(&mut self, half_bytes: usize) -> bool {
        if self.exceeding.is_some() || !self.meter.is_full() {
            return true;
        }
        if half_bytes > 0 {
            self.exceeding = self.meter.exceed();
        }
        self.exceeding.is_some()
    }

    /// So many more frames are whole, and so many bytes are held of another.
    fn count(&mut self, whole: usize, half_bytes: usize) {
        // A few bytes are not worth the work; the number of streams bounds them.
        let held = if half_bytes < COUNTED_BYTES_MIN { 0 } else { half_bytes };
        if held > self.counted {
            self.meter.add(held - self.counted);
        } else if held < self.counted {
            self.meter.remove(self.counted - held);
        }
        self.counted = held;
        if whole > 0 {
            self.exceeding = None;
        }
        let frames = self.progress.frames.load(Ordering::Relaxed) / 2 + whole as u64;
        self.progress.set(frames, half_bytes > 0);
    }
}

impl Drop for Halves {
    fn drop(&mut self) {
        self.meter.remove(self.counted);
    }
}

fn read_error(error: ReadError) -> Error {
    match error {
        ReadError::ConnectionLost(lost) => Error::Lost(explain(&lost)),
        ReadError::Reset(code) => Error::StreamEnded { code: code.into_inner() },
        // None of these can come of ordered reads without early data.
        ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
            Error::Truncated
        }
    }
}
