//! The answers of a turn, gathered per stream: those to one read of a stream follow each other, so they go into its
//! buffer in one push, which is written when the turn is over.

use super::shared::{Ready, Shared};
use crate::node::{Replies, ReplyTo, RequestBody};
use crate::proto;
use crate::proto::client::{Refusal, Reply, Status};
use crate::proto::frame::{FrameKind, encode_frame};
use crate::proto::limits::LARGE_BYTES;
use crate::raft::Index;
use crate::store::Reader;

/// See the module. What is left goes out when it is dropped.
pub(super) struct Burst<'a> {
    shared: &'a Shared,
    stream: u64,
    answers: usize,
    encoded: Vec<u8>,
    /// Bytes for which the stream had room when it had its turn.
    room_bytes: usize,
}

impl Burst<'_> {
    pub(super) fn new(shared: &Shared) -> Burst<'_> {
        Burst { shared, stream: u64::MAX, answers: 0, encoded: Vec::new(), room_bytes: 0 }
    }

    /// Gathers for this stream from now on.
    fn turn_to(&mut self, stream: u64) {
        if stream != self.stream || self.encoded.len() >= BURST_BYTES {
            self.flush();
            self.stream = stream;
            self.room_bytes = self.shared.room_bytes(stream);
        }
    }

    fn flush(&mut self) {
        if self.answers > 0 {
            let (count, encoded) = (std::mem::take(&mut self.answers), &self.encoded);
            self.shared.answer(self.stream, count, |buffer| buffer.extend_from_slice(encoded));
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
        self.turn_to(to.stream);
        let with_doors;
        let reply = match reply {
            Reply::Status(status) => {
                let doors = Box::new(self.shared.doors());
                with_doors = Reply::Status(Status { doors, ..status.clone() });
                &with_doors
            }
            Reply::Value { value, .. }
                if value.len() > LARGE_BYTES && self.shared.is_shared(to.stream) =>
            {
                &Reply::Large
            }
            Reply::Refused(_) => {
                // It may be a scan that is refused: its task ends without its sender.
                drop(self.shared.take_scan(to.stream));
                reply
            }
            reply => reply,
        };
        encode_frame(&mut self.encoded, FrameKind::Reply, to.request_id, |body| {
            proto::encode(reply, body);
        });
        self.answers += 1;
    }

    fn scan(&mut self, to: ReplyTo, reader: Reader, at: Index) {
        // It counts as pending until its task ends, or the end of the questions would be the end of the answer.
        if let Some(waiting) = self.shared.take_scan(to.stream) {
            // The scan's task may have ended with its connection.
            let _ = waiting.send(Ready::Scan(reader, at));
        }
    }

    fn has_room(&mut self, to: ReplyTo) -> bool {
        self.turn_to(to.stream);
        self.encoded.len() < self.room_bytes
    }

    fn hold(&mut self, to: ReplyTo, body: RequestBody) {
        if self.shared.hold(to, body).is_err() {
            self.reply(to, &Reply::Refused(Refusal::Busy { retry_after_ms: BUSY_RETRY_MS }));
        }
    }

    fn snapshot(&mut self, to: ReplyTo, at: Index) {
        if let Some(waiting) = self.shared.take_scan(to.stream) {
            let _ = waiting.send(Ready::Snapshot(at));
        }
    }
}

/// How long a refused client should wait.
const BUSY_RETRY_MS: u32 = 20;
/// Answers to one stream are handed over at this length.
const BURST_BYTES: usize = 64 << 10;
