//! The half of the log on the node's thread: order, memory and reading.

use std::collections::{BTreeMap, VecDeque};

use super::terms::Terms;
use super::{Batch, BatchBuilder, Entry, Error, Ordinal, Persisted, Place, Record, SegmentMap};
use crate::raft::{HardState, Index, Term};

/// How many bytes of durable entries stay in memory for followers that are nearly up to date.
pub const MEMORY_BYTES: usize = 16 << 20;

/// The log as the node sees it: appends are visible at once, durable when [`Persisted`] says so.
///
/// Invariants:
/// - entries are contiguous from [`Log::first_index`] to [`Log::last_index`];
/// - `places` covers the durable ones from the first on, `resident` the last ones up to the end, and they meet;
/// - a batch leaves memory only when it is durable.
#[derive(Debug)]
pub struct Log {
    terms: Terms,
    snapshot: Index,
    /// Where the entries from `first_index` on lie on disk.
    places: VecDeque<Place>,
    segments: BTreeMap<u32, SegmentMap>,
    resident: VecDeque<Resident>,
    resident_bytes: usize,
    pending: Vec<(Ordinal, Record)>,
    ordinal: Ordinal,
    persisted: Ordinal,
}

/// A batch in memory.
#[derive(Debug)]
struct Resident {
    ordinal: Ordinal,
    batch: Batch,
    is_persisted: bool,
}

/// What recovery knows of a log.
pub(super) struct Found {
    pub(super) terms: Terms,
    pub(super) snapshot: Index,
    pub(super) places: VecDeque<Place>,
    pub(super) segments: BTreeMap<u32, SegmentMap>,
}

impl Log {
    pub(super) fn new(found: Found) -> Log {
        let Found { terms, snapshot, places, segments } = found;
        Log {
            terms,
            snapshot,
            places,
            segments,
            resident: VecDeque::new(),
            resident_bytes: 0,
            pending: Vec::new(),
            ordinal: Ordinal(0),
            persisted: Ordinal(0),
        }
    }

    /// Adds entries after the last one.
    ///
    /// # Panics
    /// When they do not follow it.
    pub fn append(&mut self, batch: Batch) -> Ordinal {
        assert_eq!(
            batch.first_index(),
            self.last_index().next(),
            "entries must follow the last one"
        );
        batch.metas().for_each(|meta| self.terms.push(meta.term));
        self.resident_bytes += batch.byte_len();
        let ordinal = self.push(Record::Entries(batch.clone()));
        self.resident.push_back(Resident { ordinal, batch, is_persisted: false });
        ordinal
    }

    /// Saves term, vote and commit hint.
    pub fn save_hard_state(&mut self, hard: HardState) -> Ordinal {
        self.push(Record::Hard(hard))
    }

    /// Drops the entries from `from` on.
    ///
    /// # Panics
    /// When `from` is not after the base, or beyond the entry that comes next.
    pub fn truncate(&mut self, from: Index) -> Ordinal {
        assert!(
            from > self.base().0,
            "truncating at {from}, the log begins after {}",
            self.base().0
        );
        assert!(
            from <= self.last_index().next(),
            "truncating at {from} after {}",
            self.last_index()
        );
        let keep = (from.0 - self.first_index().0) as usize;
        self.places.truncate(keep);
        while let Some(last) = self.resident.pop_back_if(|last| last.batch.last_index() >= from) {
            self.resident_bytes -= last.batch.byte_len();
            if last.batch.first_index() < from {
                let batch = last.batch.slice(last.batch.first_index(), from.previous());
                self.resident_bytes += batch.byte_len();
                self.resident.push_back(Resident { batch, ..last });
            }
        }
        self.terms.truncate(from, Term(0));
        self.push(Record::Truncate { from })
    }

    /// Forgets all entries: the log begins again after `index`, which an installed, durable snapshot covers.
    pub fn reset(&mut self, index: Index, term: Term) -> Ordinal {
        self.terms = Terms::new((index, term));
        self.snapshot = self.snapshot.max(index);
        self.places.clear();
        self.resident.clear();
        self.resident_bytes = 0;
        self.push(Record::Reset { index, term })
    }

    /// Notes that a durable snapshot covers everything up to `index`; only then may it be purged.
    pub fn snapshot_saved(&mut self, index: Index, term: Term) -> Ordinal {
        self.snapshot = self.snapshot.max(index);
        self.push(Record::SnapMark { index, term })
    }

    /// Lets go of the entries below `below`, as far as they are durable and a snapshot covers them. After a restart
    /// more may be there again: whole segments go.
    pub fn purge(&mut self, below: Index) {
        let durable = self.first_index().plus(self.places.len() as u64);
        let below = below.min(self.snapshot.next()).min(durable);
        if below <= self.first_index() {
            return;
        }
        self.places.drain(..(below.0 - self.first_index().0) as usize);
        self.terms.forget(below.previous());
        while self.resident.front().is_some_and(|front| front.batch.last_index() < below) {
            self.drop_front();
        }
        self.push(Record::Purge { below });
    }

    /// What the writer has to do next, in order.
    pub fn take_pending(&mut self) -> Vec<(Ordinal, Record)> {
        std::mem::take(&mut self.pending)
    }

    /// Whether [`Log::take_pending`] would give something.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Takes in what the writer reports; reports come in the order in which the writer made them.
    pub fn on_persisted(&mut self, report: Persisted) {
        assert!(report.durable >= self.persisted, "reports out of order: {:?}", report.durable);
        self.persisted = report.durable;
        self.segments.extend(report.opened.into_iter().map(|segment| (segment.seq, segment)));
        self.segments.retain(|seq, _| *seq >= report.first_segment);
        for located in report.located {
            // A batch that was truncated or reset away meanwhile is not found: its places are of no use.
            let Ok(at) = self.resident.binary_search_by_key(&located.0, |found| found.ordinal)
            else {
                continue;
            };
            let found = &mut self.resident[at];
            found.is_persisted = true;
            // A purge never passes what is durable, so places always continue at the batch's first entry.
            self.places.extend(located.1.into_iter().take(found.batch.len()));
            let end = self.terms.base().0.plus(self.places.len() as u64);
            assert_eq!(end, found.batch.last_index(), "places and entries must meet");
        }
        while self.resident_bytes > MEMORY_BYTES
            && self.resident.front().is_some_and(|front| front.is_persisted)
        {
            self.drop_front();
        }
    }

    /// The highest ordinal that is durable.
    pub fn persisted(&self) -> Ordinal {
        self.persisted
    }

    /// The last index that is durable.
    pub fn persisted_index(&self) -> Index {
        self.base().0.plus(self.places.len() as u64)
    }

    /// The place that the log begins after.
    pub fn base(&self) -> (Index, Term) {
        self.terms.base()
    }

    /// The first entry that can be read (or that comes next, when there is none).
    pub fn first_index(&self) -> Index {
        self.base().0.next()
    }

    /// The last entry (or the base, when there is none).
    pub fn last_index(&self) -> Index {
        self.terms.last().0
    }

    /// The term of an entry or of the base; `None` outside of the log.
    pub fn term(&self, index: Index) -> Option<Term> {
        self.terms.term(index)
    }

    /// Bytes of entries in memory.
    pub fn memory_bytes(&self) -> usize {
        self.resident_bytes
    }

    /// Bytes of entries that wait for the disk.
    pub fn unpersisted_bytes(&self) -> usize {
        let waiting = self.resident.iter().rev().take_while(|found| !found.is_persisted);
        waiting.map(|found| found.batch.byte_len()).sum()
    }

    /// Entries from `first` to at most `last`, in order: as many as `bytes_max` allows, but at least one. Fresh ones
    /// are shared with memory, older ones are read from disk and checked.
    ///
    /// # Errors
    /// [`Error::Purged`] below the first index, [`Error::Corrupt`] when the disk does not hold what was written.
    ///
    /// # Panics
    /// When `first..=last` is empty or ends after the last index.
    pub fn read(&self, first: Index, last: Index, bytes_max: usize) -> Result<Vec<Batch>, Error> {
        assert!(first <= last, "reading {first}..={last}");
        assert!(
            last <= self.last_index(),
            "reading up to {last}, the last is {}",
            self.last_index()
        );
        if first < self.first_index() {
            return Err(Error::Purged { index: first, first: self.first_index() });
        }
        let memory_first = self
            .resident
            .front()
            .map_or(self.last_index().next(), |front| front.batch.first_index());
        let mut batches = Vec::new();
        let mut left = bytes_max;
        if first < memory_first {
            let stop = last.min(memory_first.previous());
            let batch = self.read_disk(first, stop, bytes_max)?;
            left = left.saturating_sub(batch.byte_len());
            let is_cut = batch.last_index() < stop;
            batches.push(batch);
            if is_cut {
                return Ok(batches);
            }
        }
        let skip = self.resident.partition_point(|found| found.batch.last_index() < first);
        for found in self.resident.iter().skip(skip) {
            if found.batch.first_index() > last {
                break;
            }
            let from = first.max(found.batch.first_index());
            let wanted = found.batch.slice(from, last.min(found.batch.last_index()));
            let part = wanted.take_bytes(left);
            if part.byte_len() > left && !batches.is_empty() {
                break;
            }
            left = left.saturating_sub(part.byte_len());
            let is_cut = part.len() < wanted.len();
            batches.push(part);
            if is_cut {
                break;
            }
        }
        Ok(batches)
    }

    /// One entry.
    ///
    /// # Errors
    /// As [`Log::read`].
    ///
    /// # Panics
    /// After the last index.
    pub fn entry(&self, index: Index) -> Result<Entry, Error> {
        let batches = self.read(index, index, 0)?;
        let entry = batches.first().and_then(|batch| batch.entries().next());
        Ok(entry.expect("a read gives at least one entry"))
    }

    fn read_disk(&self, first: Index, last: Index, bytes_max: usize) -> Result<Batch, Error> {
        let mut builder = BatchBuilder::new(first);
        let mut body = Vec::new();
        let mut next = first;
        while next <= last {
            let place = self.places[(next.0 - self.first_index().0) as usize];
            let bytes_left = bytes_max.saturating_sub(builder.byte_len());
            let limit = if builder.is_empty() { usize::MAX } else { bytes_left };
            let segment =
                self.segments.get(&place.segment).expect("a segment outlives the places in it");
            let read = segment.read_entry(place.offset, next, limit, &mut body)?;
            let Some((term, kind)) = read else { break };
            builder.push(term, kind, &body);
            next = next.next();
        }
        Ok(builder.finish())
    }

    fn drop_front(&mut self) {
        if let Some(front) = self.resident.pop_front() {
            self.resident_bytes -= front.batch.byte_len();
        }
    }

    fn push(&mut self, record: Record) -> Ordinal {
        self.ordinal.0 += 1;
        self.pending.push((self.ordinal, record));
        self.ordinal
    }
}
