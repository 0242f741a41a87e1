//! Scans as a stream of rows, all of one revision.

use std::collections::VecDeque;

use super::Error;
use super::connection::{ReplyStream, decode};
use crate::proto::client::{Consistency, Reply, Scan, ScanMode};

/// What to scan. The default is everything, in order, as of now.
#[derive(Clone, Debug)]
pub struct ScanRequest {
    /// First key of the range; empty for the start.
    pub from: Vec<u8>,
    /// First key after the range; `None` for the end.
    pub to: Option<Vec<u8>>,
    /// Rows at most.
    pub limit: u64,
    /// From the last key of the range to the first.
    pub reverse: bool,
    /// Rows, keys or only their number.
    pub mode: ScanMode,
    /// How fresh.
    pub consistency: Consistency,
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
        }
    }
}

impl ScanRequest {
    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: &[u8]) -> ScanRequest {
        let mut end = prefix.to_vec();
        // The first key after the prefix: one more in the last byte that has room for it.
        while end.last() == Some(&u8::MAX) {
            end.pop();
        }
        let to = end.pop().map(|last| {
            end.push(last + 1);
            end
        });
        ScanRequest { from: prefix.to_vec(), to, ..ScanRequest::default() }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let scan = Scan {
            from: &self.from,
            to: self.to.as_deref().map(serde_bytes::Bytes::new),
            limit: self.limit,
            reverse: self.reverse,
            mode: self.mode,
            consistency: self.consistency,
        };
        let mut body = Vec::new();
        crate::proto::encode(&scan, &mut body);
        body
    }
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The key.
    pub key: Vec<u8>,
    /// The value; empty in a scan of keys.
    pub value: Vec<u8>,
    /// The revision that wrote the value.
    pub revision: u64,
}

/// How a scan ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanEnd {
    /// Rows in all.
    pub rows: u64,
    /// The revision at which all were read.
    pub revision: u64,
    /// Whether the limit cut the range off.
    pub more: bool,
}

/// A running scan.
pub struct ScanStream {
    stream: ReplyStream,
    rows: VecDeque<Row>,
    end: Option<ScanEnd>,
}

impl ScanStream {
    pub(super) fn new(first: &[u8], stream: ReplyStream) -> Result<ScanStream, Error> {
        let mut scan = ScanStream { stream, rows: VecDeque::new(), end: None };
        scan.take(first)?;
        Ok(scan)
    }

    /// The next row; `None` after the last.
    ///
    /// # Errors
    /// If the connection ends before the scan does; rows that came stay good.
    pub async fn next(&mut self) -> Result<Option<Row>, Error> {
        loop {
            if let Some(row) = self.rows.pop_front() {
                return Ok(Some(row));
            }
            if self.end.is_some() {
                return Ok(None);
            }
            let page = self.stream.next().await?;
            let ended = || Error::Unreachable("the scan broke off".to_owned());
            self.take(&page.ok_or_else(ended)?)?;
        }
    }

    /// How the scan ended, once [`ScanStream::next`] has given `None`.
    pub fn end(&self) -> Option<ScanEnd> {
        self.end
    }

    fn take(&mut self, reply: &[u8]) -> Result<(), Error> {
        match decode(reply)? {
            Reply::Rows(rows) => self.rows.extend(rows.into_iter().map(|row| Row {
                key: row.key.to_vec(),
                value: row.value.to_vec(),
                revision: row.revision,
            })),
            Reply::ScanEnd { rows, revision, more } => {
                self.end = Some(ScanEnd { rows, revision, more });
            }
            reply => return Err(Error::Protocol(format!("{reply:.80?} to a scan"))),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_first_key_that_does_not_have_it() {
        let to = |prefix: &[u8]| ScanRequest::prefix(prefix).to;
        assert_eq!(to(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(to(b"a\xFF"), Some(b"b".to_vec()));
        assert_eq!(to(b"\xFF\xFF"), None);
        assert_eq!(to(b""), None);
    }
}
