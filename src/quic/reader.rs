//! From the bytes of a stream to batches of frames.
//!
//! Everything that has arrived is taken at once, and every whole frame in it is returned at once, so that the next
//! stage is woken once per batch and not once per frame.

use bytes::Bytes;
use quinn::{ReadError, RecvStream};

use super::{Error, explain};
use crate::proto::frame::{Frame, FrameDecoder};

/// Pieces of the stream that one read takes: more than arrive in one turn of quinn.
const CHUNKS_MAX: usize = 256;

/// Reads frames from a stream.
#[derive(Debug)]
pub struct FrameReader {
    stream: RecvStream,
    decoder: FrameDecoder,
    chunks: Vec<Bytes>,
}

impl FrameReader {
    /// A reader that refuses frames longer than `frame_bytes_max` (header included).
    pub fn new(stream: RecvStream, frame_bytes_max: usize) -> FrameReader {
        let decoder = FrameDecoder::new(frame_bytes_max);
        FrameReader { stream, decoder, chunks: vec![Bytes::new(); CHUNKS_MAX] }
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
            let Some(count) =
                self.stream.read_chunks(&mut self.chunks).await.map_err(read_error)?
            else {
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
        }
        Ok(true)
    }

    /// Tells the other side that nothing more will be read.
    pub fn stop(mut self, code: u32) {
        // The error is that the stream has ended already.
        let _ = self.stream.stop(code.into());
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
