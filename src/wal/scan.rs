//! The walk through all records: whether they are whole, what may be cut, and what is damaged.
//!
//! Every file is synced, dropped from the page cache and read with pread, never through a map: what counts is what the
//! device has. The records are walked in order. All segments but the last must be whole up to where the next begins.
//! In the last one, at the first place that holds no valid record with the expected ordinal `b`, with `D` the highest
//! ordinal that any valid record, the mark or a segment's header attests as durable:
//!
//! | what is seen | verdict |
//! |---|---|
//! | `b <= D` | damage below what was acknowledged: noted, the walk goes on at the next valid record |
//! | only zeros up to the end | clean end |
//! | header never written (zero), or valid records after it | torn, or written out of order: cut from `b` |
//! | header valid, and a sector of the body never written | torn: cut from `b` |
//! | anything else | bytes are wrong where nothing should have torn: damage at the end |
//!
//! What is cut is copied to `{seq}.torn` first and stays in its place, too: the next segment's header says where the
//! records of this one end. The records after `D` are handed out as [`Scan::tail`]: they are written once more before
//! anybody speaks of them, since nothing but a second reading of the device says that they are there.

use std::collections::{BTreeMap, VecDeque};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::damage::Damage;
use super::format::{BLOCK_BYTES, Head, Kind};
use super::loaded::{Found, Segment, Unread};
use super::mark::Mark;
use super::replay::Replay;
use super::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, segment_path, torn_path};
use super::writer::Extent;
use super::{Error, Identity, Place, SegmentMap};
use crate::disk::Disk;
use crate::raft::Index;

/// A record that nothing attests.
pub(super) struct Tail {
    pub(super) head: Head,
    pub(super) place: Place,
    pub(super) body: Vec<u8>,
}

/// The walk through all segments.
pub(super) struct Scan {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    identity: Identity,
    mark: Mark,
    pub(super) replay: Replay,
    pub(super) segments: BTreeMap<u32, SegmentMap>,
    pub(super) extents: VecDeque<Extent>,
    /// Ordinal and `body_crc` of the last record in `replay`; the CRC is not known after a loss.
    pub(super) ordinal: u64,
    pub(super) crc: Option<u32>,
    /// The highest ordinal that something attests as durable.
    pub(super) durable: u64,
    pub(super) incarnation: u64,
    pub(super) torn: Option<String>,
    /// Only to look: what is torn is not copied aside.
    pub(super) is_read_only: bool,
    pub(super) damages: Vec<Damage>,
    /// Records that nothing attests, in order; they are not in `replay`.
    pub(super) tail: Vec<Tail>,
    /// What is wrong after them, if anything is.
    suspect: bool,
    /// Memory of the segment that was walked last, for the next one: fresh pages cost more than what is read into them.
    memory: Vec<u8>,
    /// Where the last segment begins, when it holds only what every segment repeats.
    empty_last: Option<(u64, Option<u32>)>,
}

impl Scan {
    pub(super) fn new(disk: Arc<dyn Disk>, dir: &Path, identity: Identity, mark: Mark) -> Scan {
        Scan {
            disk,
            dir: dir.to_owned(),
            identity,
            mark,
            replay: Replay::new(),
            segments: BTreeMap::new(),
            extents: VecDeque::new(),
            ordinal: 0,
            crc: Some(0),
            durable: mark.durable,
            incarnation: mark.incarnation,
            torn: None,
            is_read_only: false,
            damages: Vec::new(),
            tail: Vec::new(),
            suspect: false,
            memory: Vec::new(),
            empty_last: None,
        }
    }

    /// Walks the segments that the mark names, and one more if it is there.
    ///
    /// # Errors
    /// What the disk says; [`Error::Foreign`], [`Error::Version`]. Damage is no error here.
    pub(super) fn run(&mut self, first_seq: u32, last_seq: u32) -> Result<(), Error> {
        let mut segment = match first_seq <= last_seq {
            true => self.open(first_seq)?.map(|first| first.read(Vec::new())).transpose()?,
            false => None,
        };
        for seq in first_seq..=last_seq {
            let next = if seq < last_seq { self.open(seq + 1)? } else { None };
            let end = next.as_ref().map(|next| next.header.first_ordinal - 1);
            let memory = std::mem::take(&mut self.memory);
            segment = match next {
                Some(next) if next.is_long() => {
                    // It is read while the one before it is walked.
                    Some(std::thread::scope(|scope| {
                        let reading = scope.spawn(|| next.read(memory));
                        self.visit(segment, end, false)?;
                        reading.join().unwrap_or_else(|panic| resume_unwind(panic))
                    })?)
                }
                next => {
                    self.visit(segment, end, seq == last_seq)?;
                    next.map(|next| next.read(memory)).transpose()?
                }
            };
        }
        if self.ordinal < self.durable {
            self.lose_up_to(self.durable);
            if self.damages.is_empty() {
                self.damages.push(Damage::new(&self.dir, 0, "acknowledged records are missing"));
            }
        }
        Ok(())
    }

    /// Walks a segment, unless it is gone; the record `end` is the last one before the next, if that is there.
    fn visit(
        &mut self,
        segment: Option<Segment>,
        end: Option<u64>,
        is_last: bool,
    ) -> Result<(), Error> {
        let Some(segment) = segment else {
            if is_last {
                // Nobody says how far it went: at least one record of it is lost.
                self.lose_up_to(self.durable.max(self.ordinal + 1));
            }
            return Ok(());
        };
        self.enter(&segment.header, &segment.path);
        match end {
            _ if is_last => self.walk_last(&segment)?,
            // With the next one gone, this one is good as far as it goes.
            end => self.walk(&segment, end.unwrap_or(u64::MAX)),
        }
        self.memory = segment.bytes;
        Ok(())
    }

    /// Leaves out a last segment that holds only what the next one repeats: that one takes its number, and replaces
    /// the file in one rename.
    pub(super) fn drop_empty_last(&mut self) {
        if let Some((ordinal, crc)) = self.empty_last.take()
            && let Some(last) = self.extents.pop_back()
        {
            self.segments.remove(&last.seq);
            (self.ordinal, self.crc) = (ordinal, crc);
        }
    }

    /// The segment, or `None` if it is gone, which is noted.
    fn open(&mut self, seq: u32) -> Result<Option<Unread>, Error> {
        let path = segment_path(&self.dir, seq);
        let lost = match Unread::open(&*self.disk, path.clone())? {
            Found::Segment(segment) if segment.header.seq != seq => {
                format!("the header is that of segment {:x}", segment.header.seq)
            }
            Found::Segment(segment) => {
                self.identity.check(&path, segment.header.identity)?;
                let shared = segment.shared()?;
                self.segments.insert(seq, shared);
                self.extents.push_back(Extent { seq, index_max: Index(0) });
                // A segment gets its name only when all before it are durable, and what it begins with.
                let header = &segment.header;
                self.durable = self.durable.max(header.first_ordinal - 1).max(header.born_ordinal);
                self.incarnation = self.incarnation.max(header.incarnation);
                return Ok(Some(segment));
            }
            Found::Missing => "the segment is missing".to_owned(),
            Found::Headless(reason) => reason.to_owned(),
        };
        self.damages.push(Damage::new(&path, 0, lost));
        Ok(None)
    }

    /// The records go on with this segment.
    fn enter(&mut self, header: &SegmentHeader, path: &Path) {
        let before = header.first_ordinal - 1;
        if self.extents.front().is_some_and(|first| first.seq == header.seq) {
            // The first segment: those before it were purged, unless the mark knows of them.
            if header.seq == self.mark.first_seq {
                (self.ordinal, self.crc) = (before, Some(header.prev_crc));
            } else {
                self.lose_up_to(before.max(self.ordinal + 1));
            }
        }
        if before > self.ordinal {
            self.lose_up_to(before);
        }
        if before < self.ordinal || self.crc.is_some_and(|crc| crc != header.prev_crc) {
            let reason = "the segment does not continue the one before it";
            self.damages.push(Damage::new(path, 0, reason));
            self.replay.lose(2);
        }
        (self.ordinal, self.crc) = (before, Some(header.prev_crc));
    }

    /// Walks a segment that is followed by another: to the record `end`.
    fn walk(&mut self, segment: &Segment, end: u64) {
        let mut offset = SEGMENT_HEADER_BYTES;
        while self.ordinal < end {
            offset = match self.step(segment, offset) {
                Some(next) => next,
                // Of a segment whose successor is gone nobody knows how far it goes.
                None if end == u64::MAX && segment.is_blank_from(offset) => return,
                None => match self.pass(segment, offset, end) {
                    Some(next) => next,
                    None => return,
                },
            }
        }
    }

    /// Walks the last segment, as far as there are records, and decides about its end.
    fn walk_last(&mut self, segment: &Segment) -> Result<(), Error> {
        let heads = segment.heads_after(SEGMENT_HEADER_BYTES, self.ordinal);
        let attested = heads.map(|(_, head)| head.durable).max().unwrap_or(0);
        self.durable = self.durable.max(attested);
        let (start, damages) = ((self.ordinal, self.crc), self.damages.len());
        let mut offset = SEGMENT_HEADER_BYTES;
        let mut is_opening = true;
        while self.ordinal < self.durable {
            let next = self.step(segment, offset);
            is_opening &= segment.head(offset).is_none_or(|head| is_repeated(head.kind));
            let next = next.or_else(|| self.pass(segment, offset, self.durable));
            let Some(next) = next else { return Ok(()) };
            offset = next;
        }
        offset = self.take_tail(segment, offset);
        self.judge_end(segment, offset)?;
        // With more records than the next segment will repeat, its ordinals would fall behind the mark.
        let is_whole = self.torn.is_none() && self.damages.len() == damages;
        let repeated = 2 + u64::from(self.replay.snapshot.is_some());
        let is_empty = self.tail.is_empty() && is_opening && self.ordinal - start.0 <= repeated;
        self.empty_last = (is_whole && is_empty).then_some(start);
        Ok(())
    }

    /// Takes the valid records that nothing attests, and gives the place after them.
    fn take_tail(&mut self, segment: &Segment, mut offset: usize) -> usize {
        let (mut ordinal, mut crc) = (self.ordinal, self.crc);
        while let Some((head, masked)) = segment.record(offset)
            && head.ordinal == ordinal + 1
            && crc.is_none_or(|crc| crc == head.prev_crc)
        {
            let mut body = masked.to_vec();
            segment.codec.mask(&mut body);
            body.truncate(head.body_bytes as usize);
            let place = Place { segment: segment.header.seq, offset: offset as u32 };
            self.tail.push(Tail { head, place, body });
            (ordinal, crc) = (head.ordinal, Some(head.body_crc));
            offset += head.record_bytes();
        }
        offset
    }

    /// Takes in the tail as it lies; for a log that is not gone on with.
    pub(super) fn apply_tail(&mut self) {
        for Tail { head, place, body } in std::mem::take(&mut self.tail) {
            if let Err(reason) = self.replay.apply(&head, &body, place) {
                let path = segment_path(&self.dir, place.segment);
                self.damages.push(Damage::new(&path, place.offset as usize, reason));
                self.replay.lose(2);
            }
            self.ordinal = head.ordinal;
        }
        if std::mem::take(&mut self.suspect) {
            self.replay.lose(1);
        }
    }

    /// Takes in the record at `offset` if it is the next one, and gives the place of the one after it.
    fn step(&mut self, segment: &Segment, offset: usize) -> Option<usize> {
        let head = segment.head(offset)?;
        let follows = self.crc.is_none_or(|crc| crc == head.prev_crc);
        if head.ordinal != self.ordinal + 1 || !follows {
            return None;
        }
        let place = Place { segment: segment.header.seq, offset: offset as u32 };
        let applied = match segment.body(offset, &head) {
            Some(masked) => {
                // Only hard states are looked into: the bodies of entries stay on the disk.
                let wanted = if head.kind == Kind::Hard { head.body_bytes as usize } else { 0 };
                let mut body = masked[..wanted].to_vec();
                segment.codec.mask(&mut body);
                self.replay.apply(&head, &body, place)
            }
            None => {
                let reason = format!("the body of record {} changed", head.ordinal);
                self.damages.push(Damage::new(&segment.path, offset, reason));
                self.replay.apply_bodiless(&head)
            }
        };
        if let Err(reason) = applied {
            self.damages.push(Damage::new(&segment.path, offset, reason));
            // Something is wrong that no loss explains.
            self.replay.lose(2);
        }
        self.durable = self.durable.max(head.durable);
        if head.kind == Kind::Entry
            && let Some(extent) = self.extents.iter_mut().rev().find(|e| e.seq == place.segment)
        {
            extent.index_max = extent.index_max.max(head.index);
        }
        (self.ordinal, self.crc) = (head.ordinal, Some(head.body_crc));
        Some(offset + head.record_bytes())
    }

    /// Passes damage at `offset`: gives the place of the next record, at most number `end`, if there is one.
    fn pass(&mut self, segment: &Segment, offset: usize, end: u64) -> Option<usize> {
        let next = segment
            .heads_after(offset + BLOCK_BYTES, self.ordinal + 1)
            .find(|(_, head)| head.ordinal <= end);
        let last = next.map_or(end, |(_, head)| head.ordinal - 1);
        let (first, end_is_known) = (self.ordinal + 1, last < u64::MAX);
        let last = if end_is_known { last } else { first };
        let reason = match first == last {
            true => format!("record {first} is missing or damaged"),
            false => format!("records {first} to {last} are missing or damaged"),
        };
        self.damages.push(Damage::new(&segment.path, offset, reason));
        self.lose_up_to(last);
        next.map(|(place, _)| place)
    }

    fn lose_up_to(&mut self, last: u64) {
        if last > self.ordinal {
            self.replay.lose(last - self.ordinal);
            (self.ordinal, self.crc) = (last, None);
        }
    }

    /// Decides about the end of the last segment, see the table above: all that is attested lies before it.
    fn judge_end(&mut self, segment: &Segment, offset: usize) -> Result<(), Error> {
        let expected = self.tail.last().map_or(self.ordinal, |last| last.head.ordinal) + 1;
        if offset >= segment.bytes.len() || segment.is_blank_from(offset) {
            return Ok(());
        }
        let is_out_of_order = segment.heads_after(offset, expected).next().is_some();
        if !is_out_of_order && !segment.is_torn(offset) {
            let reason = format!(
                "record {expected} is wrong in a way that no crash explains; it may have been acknowledged"
            );
            self.damages.push(Damage::new(&segment.path, offset, reason));
            self.suspect = true;
            return Ok(());
        }
        self.cut(segment, offset)
    }

    /// Copies aside what is cut.
    fn cut(&mut self, segment: &Segment, offset: usize) -> Result<(), Error> {
        let rest = &segment.bytes[offset..];
        let length = rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let copy = torn_path(&self.dir, segment.header.seq);
        let mut torn = format!(
            "{} ended in {length} bytes at offset {offset} that a crash tore before they were acknowledged; they are left out",
            segment.path.display(),
        );
        if !self.is_read_only {
            let file = self.disk.create(&copy)?;
            file.write_at(0, &rest[..length])?;
            file.sync()?;
            torn += &format!(", and kept in {}", copy.display());
        }
        self.torn = Some(torn);
        Ok(())
    }
}

/// Whether every segment begins with such a record.
fn is_repeated(kind: Kind) -> bool {
    matches!(kind, Kind::Hard | Kind::SnapMark | Kind::Position)
}
