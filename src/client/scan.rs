//! Reads a range of keys, page by page, at the caller's pace.
//!
//! In: a [`ScanRequest`]. Out: rows in key order, all of one revision, then the end. Always: rows not yet
//! asked for wait in the stream's flow-control window, not in memory: one page at a time is held. A scan that
//! has begun is not moved to another node, whose revision would be another one; it breaks off with
//! [`Error::ScanBroken`].

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::Error;
use super::retry::{Answer, Answered};
use super::routes::To;
use crate::proto::client::{Consistency, Scan, ScanMode};
use crate::quic::FrameReader;

/// Which rows to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanRequest {
    /// First key of the range; empty means from the start.
    pub from: Vec<u8>,
    /// First key after the range; `None` means to the end.
    pub to: Option<Vec<u8>>,
    /// Rows at most.
    pub limit: u64,
    /// From the last key of the range to the first.
    pub reverse: bool,
    /// Whole rows, keys, or only how many.
    pub mode: ScanMode,
    /// How fresh.
    pub consistency: Consistency,
    /// Which node answers a [`Consistency::Local`] scan; `None` for any.
    pub node: Option<u64>,
    /// At this revision; `None` for the newest.
    pub revision: Option<u64>,
}

impl Default for ScanRequest {
    fn default() -> ScanRequest {
        ScanRequest {
            from: Vec::new(),
            to: None,
            limit: u64::MAX,
            reverse: false,
            mode: ScanMode::Rows,
            consistency: Consistency::Linearizable,
            node: None,
            revision: None,
        }
    }
}

impl ScanRequest {
    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Vec<u8>>) -> ScanRequest {
        let from = prefix.into();
        ScanRequest { to: prefix_end(&from), from, ..ScanRequest::default() }
    }

    /// All keys from `from` up to, without, `to`.
    pub fn range(from: impl Into<Vec<u8>>, to: impl Into<Vec<u8>>) -> ScanRequest {
        ScanRequest { from: from.into(), to: Some(to.into()), ..ScanRequest::default() }
    }

    pub(super) fn encode(&self, body: &mut Vec<u8>) {
        let scan = Scan {
            from: &self.from,
            to: self.to.as_deref().map(serde_bytes::Bytes::new),
            limit: self.limit,
            reverse: self.reverse,
            mode: self.mode,
            consistency: self.consistency,
            revision: self.revision,
        };
        crate::proto::encode(&scan, body);
    }

    pub(super) fn destination(&self) -> To {
        match (self.consistency, self.node) {
            (Consistency::Linearizable, _) => To::Leader,
            (Consistency::Local, Some(node)) => To::Node(node),
            (Consistency::Local, None) => To::Any,
        }
    }
}

/// The first key after all keys that begin with `prefix`; `None` if there is none.
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != 0xFF)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// One row of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The key.
    pub key: Bytes,
    /// The value; empty in a scan of keys.
    pub value: Bytes,
    /// The revision that wrote this value.
    pub revision: u64,
}

/// How a scan ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanEnd {
    /// Rows in all.
    pub rows: u64,
    /// The revision at which all of them were read.
    pub revision: u64,
    /// Whether the limit cut the range off.
    pub more: bool,
}

/// The rows of a scan, as they come. Dropping it stops the scan.
#[derive(Debug)]
pub struct ScanStream {
    reader: Option<FrameReader>,
    rows: VecDeque<Row>,
    end: Option<ScanEnd>,
    page_timeout: Duration,
    node_id: u64,
}

impl ScanStream {
    pub(super) fn new(answered: Answered, page_timeout: Duration) -> Result<ScanStream, Error> {
        let mut stream = ScanStream {
            reader: answered.rest,
            rows: VecDeque::new(),
            end: None,
            page_timeout,
            node_id: answered.node_id,
        };
        for answer in std::iter::once(answered.first).chain(answered.more) {
            stream.take_in(answer)?;
        }
        Ok(stream)
    }

    /// The next row, or `None` at the end.
    ///
    /// # Errors
    /// [`Error::ScanBroken`] if the node is lost on the way or sends nothing for the client's timeout.
    pub async fn next(&mut self) -> Result<Option<Row>, Error> {
        loop {
            if let Some(row) = self.rows.pop_front() {
                return Ok(Some(row));
            }
            if self.end.is_some() {
                return Ok(None);
            }
            let Some(reader) = &mut self.reader else {
                return Err(broken("it failed before"));
            };
            let frames = match timeout(self.page_timeout, super::transport::read(reader)).await {
                Ok(Ok(Some(frames))) => frames,
                Ok(Ok(None)) => return Err(self.fail("the answer is cut off")),
                Ok(Err(reason)) => return Err(self.fail(&reason)),
                Err(_) => return Err(self.fail("no more rows came in time")),
            };
            for frame in frames {
                let answer =
                    Answer::from_frame(&frame).map_err(|what| self.fail(&what.to_string()));
                self.take_in(answer?)?;
            }
        }
    }

    /// Reads to the end; all rows not yet taken are skipped.
    ///
    /// # Errors
    /// As [`ScanStream::next`].
    pub async fn finish(&mut self) -> Result<ScanEnd, Error> {
        while self.next().await?.is_some() {}
        self.end.ok_or_else(|| broken("it has no end"))
    }

    /// How it ended, once [`ScanStream::next`] gave `None`.
    pub fn end(&self) -> Option<ScanEnd> {
        self.end
    }

    fn take_in(&mut self, answer: Answer) -> Result<(), Error> {
        match answer {
            Answer::Rows(rows) => self.rows.extend(rows),
            Answer::ScanEnd(end) => self.end = Some(end),
            Answer::Refused(refusal) => {
                return Err(Error::from_refusal(&refusal)
                    .unwrap_or_else(|| self.fail("the node gave it up under load")));
            }
            Answer::Outcome(_)
            | Answer::Value { .. }
            | Answer::NotFound
            | Answer::Status(_)
            | Answer::Large
            | Answer::Managed(_)
            | Answer::Saving
            | Answer::SnapshotBegins { .. }
            | Answer::SnapshotChunk(_) => {
                self.reader = None;
                let what = "not rows in answer to a scan".into();
                return Err(Error::Protocol { node_id: self.node_id, what });
            }
        }
        Ok(())
    }

    fn fail(&mut self, reason: &str) -> Error {
        self.reader = None;
        broken(reason)
    }
}

pub(super) fn broken(reason: &str) -> Error {
    Error::ScanBroken { reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_key_that_has_it_not() {
        assert_eq!(prefix_end(b"a"), Some(b"b".to_vec()));
        assert_eq!(prefix_end(b"a\xff"), Some(b"b".to_vec()));
        assert_eq!(prefix_end(b"\xff\xff"), None);
        assert_eq!(prefix_end(b""), None);
        assert_eq!(prefix_end(b"ab\x00"), Some(b"ab\x01".to_vec()));
    }
}
