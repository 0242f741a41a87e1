//! Runs of entries, encoded once in the form that peers send each other.
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 8 | term, little-endian |
//! | 8 | 1 | kind ([`EntryKind`]) |
//! | 9 | 4 | length of the body, little-endian |
//! | 13 | length | body |
//!
//! Indexes are not encoded: the first one is known from the message around it, the others follow.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::raft::{EntryKind, Index, Term};

/// Bytes before the body of each entry in a batch.
pub const ENTRY_HEADER_BYTES: usize = 13;
/// Longest body of one entry: the longest frame a client can send, and room for what the leader adds.
pub const BODY_BYTES_MAX: usize = 65 << 20;

/// One entry of the log; cloning shares the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its position.
    pub index: Index,
    /// The term whose leader made it.
    pub term: Term,
    /// What it is for.
    pub kind: EntryKind,
    /// The plain bytes of the command or membership.
    pub body: Bytes,
}

/// An entry without its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryMeta {
    /// Its position.
    pub index: Index,
    /// The term whose leader made it.
    pub term: Term,
    /// What it is for.
    pub kind: EntryKind,
    /// How long the body is.
    pub body_bytes: u32,
}

/// Bytes from a peer that are not a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed batch at byte {offset}: {reason}")]
pub struct Malformed {
    /// Where in the batch.
    pub offset: usize,
    /// What is wrong.
    pub reason: &'static str,
}

/// One or more consecutive entries of any terms, shared by everyone who reads or sends them. Cloning and cutting is
/// cheap and keeps the whole underlying buffer alive.
///
/// Invariants: never empty; every entry was validated when the batch was made.
#[derive(Clone, Debug)]
pub struct Batch {
    first: Index,
    buffer: Bytes,
    /// Where each entry of `buffer` ends.
    ends: Arc<[u32]>,
    /// The entries of `buffer` that belong to this batch.
    range: Range<usize>,
}

impl Batch {
    /// Checks bytes from outside and makes a batch of them. Total: any bytes give a batch or an error.
    pub fn decode(first: Index, bytes: Bytes) -> Result<Batch, Malformed> {
        let fail = |offset, reason| Err(Malformed { offset, reason });
        if bytes.is_empty() || bytes.len() > u32::MAX as usize {
            return fail(0, "empty, or 4 GiB and more");
        }
        if first.0 == 0 {
            return fail(0, "an entry with index 0");
        }
        let mut ends = Vec::new();
        let mut offset = 0;
        while offset < bytes.len() {
            let Some((_, kind, body)) = split_header(&bytes[offset..]) else {
                return fail(offset, "the header of an entry is cut");
            };
            if EntryKind::from_u8(kind).is_none() {
                return fail(offset, "unknown kind of entry");
            }
            if body > BODY_BYTES_MAX {
                return fail(offset, "the body of an entry is too long");
            }
            let end = offset + ENTRY_HEADER_BYTES + body;
            if end > bytes.len() {
                return fail(offset, "the body of an entry is cut");
            }
            ends.push(end as u32);
            offset = end;
        }
        if first.0.checked_add(ends.len() as u64).is_none() {
            return fail(0, "index overflow");
        }
        let range = 0..ends.len();
        Ok(Batch { first, buffer: bytes, ends: ends.into(), range })
    }

    /// The index of the first entry.
    pub fn first_index(&self) -> Index {
        self.first
    }

    /// The index of the last entry.
    pub fn last_index(&self) -> Index {
        self.first.plus(self.range.len() as u64 - 1)
    }

    /// How many entries there are; at least one.
    #[expect(clippy::len_without_is_empty, reason = "a batch is never empty")]
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// The encoded entries, as they go to a peer.
    pub fn bytes(&self) -> Bytes {
        self.buffer.slice(self.start(self.range.start)..self.start(self.range.end))
    }

    /// The entries in order; bodies share the batch's buffer.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = Entry> + '_ {
        self.range.clone().map(|place| {
            let meta = self.meta(place);
            let end = self.start(place + 1);
            let body = self.buffer.slice(end - meta.body_bytes as usize..end);
            Entry { index: meta.index, term: meta.term, kind: meta.kind, body }
        })
    }

    /// The entries in order with their bodies lent: no count of the buffer's users is touched.
    pub fn lent(&self) -> impl ExactSizeIterator<Item = (EntryMeta, &[u8])> + '_ {
        self.range.clone().map(|place| {
            let meta = self.meta(place);
            let end = self.start(place + 1);
            (meta, &self.buffer[end - meta.body_bytes as usize..end])
        })
    }

    /// The entries without their bodies.
    pub fn metas(&self) -> impl ExactSizeIterator<Item = EntryMeta> + '_ {
        self.range.clone().map(|place| self.meta(place))
    }

    /// The entries from `index` on.
    ///
    /// # Panics
    /// When `index` is not in the batch.
    pub fn slice_from(&self, index: Index) -> Batch {
        self.slice(index, self.last_index())
    }

    /// The entries from `first` to `last`, both included.
    ///
    /// # Panics
    /// When that is empty or not inside the batch.
    pub fn slice(&self, first: Index, last: Index) -> Batch {
        assert!(first >= self.first, "{first} is before the batch's {}", self.first);
        assert!(first <= last, "an empty slice {first}..={last}");
        assert!(last <= self.last_index(), "{last} is after the batch's {}", self.last_index());
        let start = self.range.start + (first.0 - self.first.0) as usize;
        let end = start + (last.0 - first.0) as usize + 1;
        Batch { first, range: start..end, ..self.clone() }
    }

    /// The longest run from the front that has at most `bytes_max` bytes, but at least one entry.
    pub fn take_bytes(&self, bytes_max: usize) -> Batch {
        let limit = self.start(self.range.start).saturating_add(bytes_max);
        let ends = &self.ends[self.range.clone()];
        let count = ends.partition_point(|end| *end as usize <= limit).max(1);
        self.slice(self.first, self.first.plus(count as u64 - 1))
    }

    /// The length of the encoded entries.
    pub fn byte_len(&self) -> usize {
        self.start(self.range.end) - self.start(self.range.start)
    }

    /// Whether two batches hold the same entries at the same place.
    pub fn same_as(&self, other: &Batch) -> bool {
        self.first == other.first && self.bytes() == other.bytes()
    }

    fn start(&self, place: usize) -> usize {
        if place == 0 { 0 } else { self.ends[place - 1] as usize }
    }

    fn meta(&self, place: usize) -> EntryMeta {
        let (term, kind, body) = split_header(&self.buffer[self.start(place)..])
            .expect("validated when the batch was made");
        EntryMeta {
            index: self.first.plus((place - self.range.start) as u64),
            term: Term(term),
            kind: EntryKind::from_u8(kind).expect("validated when the batch was made"),
            body_bytes: body as u32,
        }
    }
}

/// Term, kind and length of body of the entry at the front.
fn split_header(bytes: &[u8]) -> Option<(u64, u8, usize)> {
    let (term, rest) = bytes.split_first_chunk::<8>()?;
    let (kind, rest) = rest.split_first()?;
    let (body, _) = rest.split_first_chunk::<4>()?;
    Some((u64::from_le_bytes(*term), *kind, u32::from_le_bytes(*body) as usize))
}

/// Collects entries into a [`Batch`].
#[derive(Debug)]
pub struct BatchBuilder {
    first: Index,
    buffer: Vec<u8>,
    ends: Vec<u32>,
}

impl BatchBuilder {
    /// A builder whose first entry will have this index (1 or more).
    ///
    /// # Panics
    /// At index 0, which is before the log.
    pub fn new(first: Index) -> BatchBuilder {
        BatchBuilder::with_capacity(first, 0, 0)
    }

    /// The same, with room for `entries` of `bytes` in all, headers included.
    ///
    /// # Panics
    /// As [`BatchBuilder::new`].
    pub fn with_capacity(first: Index, entries: usize, bytes: usize) -> BatchBuilder {
        assert!(first.0 > 0, "index 0 is before the log");
        let (buffer, ends) = (Vec::with_capacity(bytes), Vec::with_capacity(entries));
        BatchBuilder { first, buffer, ends }
    }

    /// Adds one entry and returns its index.
    ///
    /// # Panics
    /// As [`BatchBuilder::push_parts`].
    pub fn push(&mut self, term: Term, kind: EntryKind, body: &[u8]) -> Index {
        self.push_parts(term, kind, &[body])
    }

    /// Adds one entry whose body is the concatenation of `parts`, and returns its index.
    ///
    /// # Panics
    /// When the body is longer than [`BODY_BYTES_MAX`] (checked where it enters), or the batch passes 4 GiB.
    pub fn push_parts(&mut self, term: Term, kind: EntryKind, parts: &[&[u8]]) -> Index {
        let body: usize = parts.iter().map(|part| part.len()).sum();
        assert!(body <= BODY_BYTES_MAX, "the body has {body} bytes");
        self.buffer.extend_from_slice(&term.0.to_le_bytes());
        self.buffer.push(kind as u8);
        self.buffer.extend_from_slice(&(body as u32).to_le_bytes());
        parts.iter().for_each(|part| self.buffer.extend_from_slice(part));
        let end = u32::try_from(self.buffer.len());
        assert!(end.is_ok(), "a batch of {} bytes", self.buffer.len());
        self.ends.extend(end);
        self.first.plus(self.ends.len() as u64 - 1)
    }

    /// How many entries were added.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Encoded bytes so far.
    pub fn byte_len(&self) -> usize {
        self.buffer.len()
    }

    /// The batch.
    ///
    /// # Panics
    /// When nothing was added.
    pub fn finish(self) -> Batch {
        assert!(!self.ends.is_empty(), "a batch without entries");
        let range = 0..self.ends.len();
        Batch { first: self.first, buffer: self.buffer.into(), ends: self.ends.into(), range }
    }
}
