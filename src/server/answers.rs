//! The answers of a turn, gathered per stream: those to one read of a stream follow each other, so they go into its
//! buffer in one push, which is written when the turn is over.

use super::certificates;
use super::shared::{Ready, Shared};
use crate::node::{Replies, ReplyTo};
use crate::proto;
use crate::proto::client::{Reply, Status};
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
}

impl Burst<'_> {
    pub(super) fn new(shared: &Shared) -> Burst<'_> {
        Burst { shared, stream: 0, answers: 0, encoded: Vec::new() }
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
        if to.stream != self.stream || self.encoded.len() >= BURST_BYTES {
            self.flush();
            self.stream = to.stream;
        }
        let status;
        let reply = match reply {
            Reply::Status(known) => {
                let certificates = self.shared.keyring.get().map(|keyring| keyring.current());
                let certificates = certificates.map(|now| certificates::status(&now));
                let certificates = certificates.unwrap_or_default();
                status = Reply::Status(Status { certificates, ..known.clone() });
                &status
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

    fn snapshot(&mut self, to: ReplyTo, at: Index) {
        if let Some(waiting) = self.shared.take_scan(to.stream) {
            let _ = waiting.send(Ready::Snapshot(at));
        }
    }
}

/// Answers to one stream are handed over at this length.
const BURST_BYTES: usize = 64 << 10;
