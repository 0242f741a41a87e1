//! The half of the log on the sync thread: encodes, writes, syncs, and moves on to the next segment.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use super::ahead::Ahead;
use super::format::{Codec, Head, Kind, encode_vote, record_bytes};
use super::mark::MarkFile;
use super::terms::Terms;
use super::{Batch, Error, Identity, LogIo, Options, Ordinal, Place, Record, SegmentMap};
use crate::disk::{BLOCK_BYTES, Blocks, Disk, File, Lock};
use crate::raft::{HardState, Index, Term};

/// What the writer made durable; goes to [`super::Log::on_persisted`].
#[derive(Debug)]
pub struct Persisted {
    /// All records up to here are durable.
    pub durable: Ordinal,
    /// Whether there is room for more.
    pub room: Room,
    /// Where the entries of each batch lie.
    pub(super) located: Vec<(Ordinal, Vec<Place>)>,
    pub(super) opened: Vec<SegmentMap>,
    /// Segments before this one are gone.
    pub(super) first_segment: u32,
}

/// How much more can be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Room {
    /// The next segment is there, or on its way.
    #[default]
    Ample,
    /// The next segment cannot be made: the disk is full. What is left of the present one is the reserve: refuse growth.
    Reserve,
    /// The reserve is used up, too: records wait for room, in order. [`Writer::idle`] goes on with them when there is
    /// some; nothing was lost and nothing failed.
    None,
}

/// Brings records to the disk. One owner, one thread; the directory stays locked while it lives.
///
/// Invariants: records are numbered without gaps; `durable` is what a sync covered; the first error is final.
#[derive(Debug)]
pub struct Writer {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) identity: Identity,
    pub(super) options: Options,
    pub(super) incarnation: u64,
    pub(super) mark: MarkFile,
    /// The number of the next segment.
    pub(super) next_seq: u32,
    /// Whether the segments are those of a log that is being mended: they are not yet the node's log, see
    /// [`super::Damaged::mend`].
    pub(super) is_mending: bool,
    /// `None` only until the first segment, which [`super::open`] begins.
    pub(super) active: Option<Active>,
    pub(super) ahead: Ahead,
    /// All segments, oldest first; the last is the active one.
    pub(super) segments: VecDeque<Extent>,
    /// Segments before this one hold nothing that a reset left alive.
    pub(super) dead_before: u32,
    /// Ordinal on disk and `body_crc` of the last record.
    pub(super) last_ordinal: u64,
    pub(super) last_crc: u32,
    /// The last ordinal on disk that a sync covered.
    pub(super) durable: u64,
    pub(super) hard: HardState,
    pub(super) snapshot: Option<(Index, Term)>,
    pub(super) terms: Terms,
    pub(super) opened: Vec<SegmentMap>,
    pub(super) done: Ordinal,
    /// Records that wait for room.
    pub(super) backlog: VecDeque<(Ordinal, Record)>,
    /// Where the entries of the first of them lie that are written already.
    pub(super) partial: Vec<Place>,
    /// What the last report said about room.
    pub(super) reported: Room,
    pub(super) failure: Option<Error>,
    pub(super) _lock: Box<dyn Lock>,
}

/// The segment that is being written.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) seq: u32,
    pub(super) bytes: u64,
    pub(super) codec: Codec,
    pub(super) file: Arc<dyn File>,
    pub(super) map: Arc<dyn crate::disk::Map>,
    /// Where the bytes of `buffer` will lie.
    pub(super) end: usize,
    pub(super) buffer: Vec<u8>,
    /// What is written already of the block in which `end` lies.
    pub(super) blocks: Blocks,
}

/// Which entries a segment holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub(super) seq: u32,
    pub(super) index_max: Index,
}

impl Writer {
    /// Writes the records and makes them durable with one sync (one more for each segment that fills, and one for the
    /// mark when term or vote change). Nothing may be acknowledged before this returns.
    ///
    /// # Errors
    /// The first failure is final: the state of the disk is unknown until the next start, and every later call
    /// returns the same error.
    pub fn write_and_sync(&mut self, records: Vec<(Ordinal, Record)>) -> Result<Persisted, Error> {
        self.latched(|writer| writer.write_all(records))
    }

    /// To be called about 100 ms after the last write: brings the mark up to date, so that a loss of the log's end is
    /// noticed. Also tries again to prepare the next segment if that failed; call it now and then until the disk has
    /// room. A report comes when that has changed since the last.
    ///
    /// # Errors
    /// As [`Writer::write_and_sync`].
    pub fn idle(&mut self) -> Result<Option<Persisted>, Error> {
        self.latched(|writer| {
            writer.sync_mark()?;
            writer.ahead.poll();
            if writer.ahead.has_failed() {
                writer.prepare_next();
            }
            if !writer.backlog.is_empty() {
                let report = writer.write_all(Vec::new())?;
                return Ok(
                    (!report.located.is_empty() || report.room != Room::None).then_some(report)
                );
            }
            let is_news = writer.room() != writer.reported;
            Ok(is_news.then(|| writer.report(Vec::new())))
        })
    }

    /// Whether there is room for more.
    pub(super) fn room(&mut self) -> Room {
        self.ahead.poll();
        match self.ahead.has_failed() {
            _ if !self.backlog.is_empty() => Room::None,
            true => Room::Reserve,
            false => Room::Ample,
        }
    }

    /// The first failure, if there was one.
    pub fn failure(&self) -> Option<&Error> {
        self.failure.as_ref()
    }

    fn latched<T>(
        &mut self,
        work: impl FnOnce(&mut Writer) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        work(self).inspect_err(|failure| self.failure = Some(failure.clone()))
    }

    pub(super) fn write_all(
        &mut self,
        records: Vec<(Ordinal, Record)>,
    ) -> Result<Persisted, Error> {
        self.backlog.extend(records);
        let mut located = Vec::new();
        let mut purge = None;
        while let Some((ordinal, record)) = self.backlog.pop_front() {
            assert!(ordinal > self.done, "record {ordinal:?} after {:?}", self.done);
            let is_written = match &record {
                Record::Entries(batch) => self.write_entries(batch)?,
                Record::Purge { below } => {
                    purge = purge.max(Some(*below));
                    true
                }
                small => self.write_small(small)?,
            };
            if !is_written {
                self.backlog.push_front((ordinal, record));
                purge = purge.max(self.overtake());
                break;
            }
            match record {
                Record::Entries(_) => located.push((ordinal, std::mem::take(&mut self.partial))),
                Record::Reset { .. } => purge = purge.max(Some(Index(0))),
                _ => {}
            }
            self.done = ordinal;
        }
        self.sync()?;
        let mark = self.mark.mark();
        if (mark.term, mark.voted_for) != (self.hard.term, self.hard.voted_for) {
            self.sync_mark()?;
        }
        if let Some(below) = purge {
            self.purge(below)?;
        }
        Ok(self.report(located))
    }

    /// What makes room does not wait for room: the snapshots and purges in the backlog are known at once.
    fn overtake(&mut self) -> Option<Index> {
        let mut purge = None;
        for (_, record) in &self.backlog {
            match *record {
                Record::SnapMark { index, term } => {
                    self.snapshot = self.snapshot.max(Some((index, term)));
                }
                Record::Purge { below } => purge = purge.max(Some(below)),
                Record::Entries(_)
                | Record::Hard(_)
                | Record::Truncate { .. }
                | Record::Reset { .. } => {}
            }
        }
        purge
    }

    pub(super) fn report(&mut self, located: Vec<(Ordinal, Vec<Place>)>) -> Persisted {
        let room = self.room();
        if room != self.reported {
            match room {
                Room::Ample => tracing::info!("there is room for the log again"),
                Room::Reserve => tracing::warn!(
                    "the disk of {} is full: growth is refused until some space is free",
                    self.dir.display()
                ),
                Room::None => tracing::warn!(
                    "the disk of {} is full: the log waits for some space",
                    self.dir.display()
                ),
            }
            self.reported = room;
        }
        Persisted {
            durable: self.done,
            room,
            located,
            opened: std::mem::take(&mut self.opened),
            first_segment: self.segments.front().map_or(0, |segment| segment.seq),
        }
    }

    /// Writes the entries of a batch that are not written yet; false if there is no room for all.
    fn write_entries(&mut self, batch: &Batch) -> Result<bool, Error> {
        self.partial.reserve(batch.len() - self.partial.len());
        for (entry, body) in batch.lent().skip(self.partial.len()) {
            assert_eq!(entry.index, self.terms.last().0.next(), "entries must follow the last one");
            let at = (entry.index, entry.term);
            let Some(place) = self.write(Kind::Entry, entry.kind as u8, at, body)? else {
                return Ok(false);
            };
            self.terms.push(entry.term);
            let extent = self.segments.back_mut().expect("the active segment is the last one");
            extent.index_max = extent.index_max.max(entry.index);
            self.partial.push(place);
        }
        Ok(true)
    }

    /// Writes any other record; false if there is no room for it.
    fn write_small(&mut self, record: &Record) -> Result<bool, Error> {
        let (kind, at, body) = match *record {
            Record::Hard(hard) => {
                (Kind::Hard, (hard.commit_index, hard.term), Some(encode_vote(hard)))
            }
            Record::Truncate { from } => {
                let term_before = self.terms.term(from.previous()).unwrap_or_default();
                (Kind::Truncate, (from, term_before), None)
            }
            Record::SnapMark { index, term } => (Kind::SnapMark, (index, term), None),
            Record::Reset { index, term } => (Kind::Reset, (index, term), None),
            Record::Entries(_) | Record::Purge { .. } => unreachable!("handled by the caller"),
        };
        let body = body.as_ref().map_or(&[][..], |body| &body[..]);
        let Some(place) = self.write(kind, 0, at, body)? else { return Ok(false) };
        match *record {
            Record::Hard(hard) => self.hard = hard,
            Record::Truncate { from } => self.terms.truncate(from, at.1),
            Record::SnapMark { .. } => self.snapshot = self.snapshot.max(Some(at)),
            Record::Reset { .. } => {
                self.snapshot = self.snapshot.max(Some(at));
                self.terms = Terms::new(at);
                self.dead_before = place.segment;
            }
            Record::Entries(_) | Record::Purge { .. } => unreachable!("handled by the caller"),
        }
        Ok(true)
    }

    /// Encodes one record into the active segment, or into the next when it does not fit; `None` if there is no room
    /// for that.
    fn write(
        &mut self,
        kind: Kind,
        flags: u8,
        at: (Index, Term),
        body: &[u8],
    ) -> Result<Option<Place>, Error> {
        let bytes = record_bytes(body.len());
        if self.active.as_ref().is_none_or(|active| !active.has_room(bytes)) {
            self.sync()?;
            if !self.rotate(bytes)? {
                return Ok(None);
            }
        }
        let head = self.head(kind, flags, at);
        let active = self.active.as_mut().expect("there is a segment after a rotation");
        let offset = active.end + active.buffer.len();
        self.last_crc = active.codec.encode(&mut active.buffer, offset as u64, head, body);
        self.last_ordinal += 1;
        Ok(Some(Place { segment: active.seq, offset: offset as u32 }))
    }

    pub(super) fn head(&self, kind: Kind, flags: u8, (index, term): (Index, Term)) -> Head {
        Head {
            kind,
            flags,
            body_bytes: 0,
            ordinal: self.last_ordinal + 1,
            durable: self.durable,
            index,
            term,
            prev_crc: self.last_crc,
            body_crc: 0,
        }
    }

    /// Writes and syncs what was encoded.
    fn sync(&mut self) -> Result<(), Error> {
        if let Some(active) = &mut self.active {
            active.sync(self.options.io)?;
        }
        self.durable = self.last_ordinal;
        Ok(())
    }
}

impl Active {
    fn has_room(&self, bytes: usize) -> bool {
        (self.end + self.buffer.len() + bytes) as u64 <= self.bytes
    }

    fn sync(&mut self, io: LogIo) -> Result<(), Error> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        match io {
            LogIo::Write => {
                self.blocks.extend(&self.buffer);
                let first = self.end / BLOCK_BYTES * BLOCK_BYTES;
                // Behind the end the file is zeros already.
                self.file.write_durable(first as u64, self.blocks.padded())?;
                self.blocks.keep_last(BUFFER_BYTES_KEPT);
            }
            LogIo::Map => {
                self.map.write_at(self.end, &self.buffer);
                self.map.sync(self.end, self.buffer.len())?;
            }
        }
        self.end += self.buffer.len();
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_BYTES_KEPT);
        Ok(())
    }
}

/// The encoding buffer shrinks to this after a large batch.
pub(super) const BUFFER_BYTES_KEPT: usize = 4 << 20;
