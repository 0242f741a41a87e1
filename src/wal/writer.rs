//! The half of the log on the sync thread: encodes, writes, syncs, and moves on to the next segment.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use super::ahead::{Ahead, Blank, Plan};
use super::format::{Codec, Head, Kind, encode_vote, mix, record_bytes};
use super::mark::MarkFile;
use super::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, segment_path};
use super::terms::Terms;
use super::{Batch, Error, Identity, LogIo, Options, Ordinal, Place, Record, SegmentMap};
use crate::disk::{Disk, File, Lock};
use crate::raft::{HardState, Index, Term};

/// What the writer made durable; goes to [`super::Log::on_persisted`].
#[derive(Debug)]
pub struct Persisted {
    /// All records up to here are durable.
    pub durable: Ordinal,
    /// The next segment cannot be made: the disk is full. What is left of the present one is the reserve; refuse
    /// growth; [`Writer::idle`] tells when there is room again.
    pub no_space: bool,
    /// Where the entries of each batch lie.
    pub(super) located: Vec<(Ordinal, Vec<Place>)>,
    pub(super) opened: Vec<SegmentMap>,
    /// Segments before this one are gone.
    pub(super) first_segment: u32,
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
    /// `None` only until the first rotation, which [`super::open`] makes.
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
    /// What the last report said about room.
    pub(super) reported_no_space: bool,
    pub(super) failure: Option<Error>,
    pub(super) _lock: Box<dyn Lock>,
}

/// The segment that is being written.
#[derive(Debug)]
pub(super) struct Active {
    seq: u32,
    bytes: u64,
    codec: Codec,
    file: Arc<dyn File>,
    map: Arc<dyn crate::disk::Map>,
    /// Where the bytes of `buffer` will lie.
    end: usize,
    buffer: Vec<u8>,
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
            let is_news = writer.has_room() == writer.reported_no_space;
            Ok(is_news.then(|| writer.report(Vec::new())))
        })
    }

    /// Whether the next segment is there or on its way.
    pub(super) fn has_room(&mut self) -> bool {
        self.ahead.poll();
        !self.ahead.has_failed()
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

    fn write_all(&mut self, records: Vec<(Ordinal, Record)>) -> Result<Persisted, Error> {
        let mut located = Vec::new();
        let mut purge = None;
        for (ordinal, record) in records {
            assert!(ordinal > self.done, "record {ordinal:?} after {:?}", self.done);
            self.done = ordinal;
            match record {
                Record::Entries(batch) => located.push((ordinal, self.write_entries(&batch)?)),
                Record::Purge { below } => purge = Some(below),
                Record::Reset { index, term } => {
                    self.write_small(Record::Reset { index, term })?;
                    purge = purge.max(Some(Index(0)));
                }
                small => self.write_small(small)?,
            }
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

    pub(super) fn report(&mut self, located: Vec<(Ordinal, Vec<Place>)>) -> Persisted {
        self.reported_no_space = !self.has_room();
        Persisted {
            durable: self.done,
            no_space: self.reported_no_space,
            located,
            opened: std::mem::take(&mut self.opened),
            first_segment: self.segments.front().map_or(0, |segment| segment.seq),
        }
    }

    fn write_entries(&mut self, batch: &Batch) -> Result<Vec<Place>, Error> {
        let mut places = Vec::with_capacity(batch.len());
        for (entry, body) in batch.lent() {
            let place =
                self.write(Kind::Entry, entry.kind as u8, (entry.index, entry.term), body)?;
            assert_eq!(entry.index, self.terms.last().0.next(), "entries must follow the last one");
            self.terms.push(entry.term);
            let extent = self.segments.back_mut().expect("the active segment is the last one");
            extent.index_max = extent.index_max.max(entry.index);
            places.push(place);
        }
        Ok(places)
    }

    fn write_small(&mut self, record: Record) -> Result<(), Error> {
        match record {
            Record::Hard(hard) => {
                self.write(Kind::Hard, 0, (hard.commit_index, hard.term), &encode_vote(hard))?;
                self.hard = hard;
            }
            Record::Truncate { from } => {
                let term_before = self.terms.term(from.previous()).unwrap_or_default();
                self.write(Kind::Truncate, 0, (from, term_before), &[])?;
                self.terms.truncate(from, term_before);
            }
            Record::SnapMark { index, term } => {
                self.write(Kind::SnapMark, 0, (index, term), &[])?;
                self.snapshot = self.snapshot.max(Some((index, term)));
            }
            Record::Reset { index, term } => {
                let place = self.write(Kind::Reset, 0, (index, term), &[])?;
                self.snapshot = self.snapshot.max(Some((index, term)));
                self.terms = Terms::new((index, term));
                self.dead_before = place.segment;
            }
            Record::Entries(_) | Record::Purge { .. } => unreachable!("handled by the caller"),
        }
        Ok(())
    }

    /// Encodes one record into the active segment, or into the next when it does not fit.
    fn write(
        &mut self,
        kind: Kind,
        flags: u8,
        at: (Index, Term),
        body: &[u8],
    ) -> Result<Place, Error> {
        let bytes = record_bytes(body.len());
        if self.active.as_ref().is_none_or(|active| !active.has_room(bytes)) {
            self.sync()?;
            self.rotate(bytes)?;
        }
        let head = self.head(kind, flags, at);
        let active = self.active.as_mut().expect("there is a segment after a rotation");
        let offset = active.end + active.buffer.len();
        self.last_crc = active.codec.encode(&mut active.buffer, offset as u64, head, body);
        self.last_ordinal += 1;
        Ok(Place { segment: active.seq, offset: offset as u32 })
    }

    fn head(&self, kind: Kind, flags: u8, (index, term): (Index, Term)) -> Head {
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

    pub(super) fn sync_mark(&mut self) -> Result<(), Error> {
        let (durable, hard, incarnation) = (self.durable, self.hard, self.incarnation);
        let first = self.segments.front().map_or(1, |segment| segment.seq);
        let last = self.segments.back().map_or(0, |segment| segment.seq);
        self.mark.update(|mark| {
            mark.incarnation = incarnation;
            mark.durable = durable;
            (mark.first_seq, mark.last_seq) = (first, last);
            (mark.term, mark.voted_for) = (hard.term, hard.voted_for);
        })
    }

    /// Begins the next segment, with room for a record of `bytes_min`. It appears under its name with everything that
    /// it repeats: hard state, snapshot mark and position, all durable.
    pub(super) fn rotate(&mut self, bytes_min: usize) -> Result<(), Error> {
        let seq = self.segments.back().map_or(1, |segment| segment.seq + 1);
        let needed =
            (SEGMENT_HEADER_BYTES + OPENING_BYTES + bytes_min).next_multiple_of(4096) as u64;
        let blank = match self.ahead.take().filter(|blank| blank.bytes >= needed) {
            Some(blank) => blank,
            None => self.plan(seq, needed.max(self.options.segment_bytes)).carry_out()?,
        };
        self.enter(seq, blank)?;
        self.sync_mark()?;
        self.prepare_next();
        Ok(())
    }

    fn enter(&mut self, seq: u32, blank: Blank) -> Result<(), Error> {
        let salt = mix(self.options.salt_seed ^ mix(u64::from(seq)) ^ mix(!self.incarnation));
        let header = SegmentHeader {
            prev_crc: self.last_crc,
            identity: self.identity,
            incarnation: self.incarnation,
            seq,
            first_ordinal: self.last_ordinal + 1,
            salt,
            bytes: blank.bytes,
        };
        let codec = Codec::new(salt);
        let mut buffer = header.encode();
        let hard = self.hard;
        let mut opening =
            vec![(Kind::Hard, (hard.commit_index, hard.term), encode_vote(hard).to_vec())];
        opening.extend(self.snapshot.map(|snapshot| (Kind::SnapMark, snapshot, Vec::new())));
        opening.push((Kind::Position, self.terms.last(), Vec::new()));
        for (kind, at, body) in opening {
            let offset = buffer.len() as u64;
            self.last_crc = codec.encode(&mut buffer, offset, self.head(kind, 0, at), &body);
            self.last_ordinal += 1;
        }
        blank.file.write_at(0, &buffer)?;
        blank.file.sync()?;
        let path = segment_path(&self.dir, seq);
        self.disk.rename(&blank.path, &path)?;
        self.disk.sync_dir(&self.dir)?;
        self.durable = self.last_ordinal;
        let map = blank.map.clone();
        self.opened.push(SegmentMap { seq, path: path.into(), codec: codec.clone(), map });
        self.segments.push_back(Extent { seq, index_max: Index(0) });
        self.active = Some(Active {
            seq,
            bytes: blank.bytes,
            codec,
            file: blank.file,
            map: blank.map,
            end: buffer.len(),
            buffer: Vec::new(),
        });
        Ok(())
    }

    fn prepare_next(&mut self) {
        let seq = self.segments.back().map_or(1, |segment| segment.seq + 1);
        let plan = self.plan(seq, self.options.segment_bytes);
        self.ahead = Ahead::start(plan, self.options.prepare_on_thread);
    }

    fn plan(&self, seq: u32, bytes: u64) -> Plan {
        Plan { disk: self.disk.clone(), dir: self.dir.clone(), seq, bytes, io: self.options.io }
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
                self.file.write_at(self.end as u64, &self.buffer)?;
                self.file.sync()?;
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

/// The records that open a segment: Hard with its body, SnapMark, Position.
const OPENING_BYTES: usize = 4 * super::format::BLOCK_BYTES;
/// The encoding buffer shrinks to this after a large batch.
const BUFFER_BYTES_KEPT: usize = 4 << 20;
