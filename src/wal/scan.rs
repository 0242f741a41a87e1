//! The walk through all records: whether they are whole, and what may be cut.
//!
//! Every file is synced, dropped from the page cache and read with pread, never through a map: what counts is what the
//! device has. The records are walked in order. All segments but the last must be whole up to where the next begins.
//! In the last one, at the first place that holds no valid record with the expected ordinal `b`, with `D` the highest
//! ordinal that any valid record, the mark or a segment's header attests as durable:
//!
//! | what is seen | verdict |
//! |---|---|
//! | `b <= D` | damage below what was acknowledged: refused |
//! | only zeros up to the end | clean end |
//! | header never written (zero), or valid records after it | torn, or written out of order: cut from `b` |
//! | header valid, and a sector of the body never written | torn: cut from `b` |
//! | anything else | bytes are wrong where nothing should have torn: refused |
//!
//! What is cut is copied to `{seq}.torn` first and stays in its place, too: the next segment's header says where the
//! records of this one end.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::format::{BLOCK_BYTES, Codec, Head, Kind, SECTOR_BYTES};
use super::mark::{Mark, mark_path};
use super::replay::Replay;
use super::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, segment_path, torn_path};
use super::writer::Extent;
use super::{Error, Identity, Place, SegmentMap};
use crate::disk::{Access, Disk};
use crate::raft::Index;

/// Refuses what belongs to someone else.
pub(super) fn check_identity(
    path: &Path,
    expected: Identity,
    found: Identity,
) -> Result<(), Error> {
    if expected != found {
        return Err(Error::Foreign { path: path.to_owned(), expected, found });
    }
    Ok(())
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
    /// Ordinal and `body_crc` of the last good record.
    pub(super) ordinal: u64,
    pub(super) crc: u32,
    /// The highest ordinal that something attests as durable.
    durable: u64,
    pub(super) incarnation: u64,
    pub(super) torn: Option<String>,
    /// Where the last segment begins, when it holds only what every segment repeats.
    empty_last: Option<(u64, u32)>,
}

/// One segment in memory.
struct Segment {
    path: PathBuf,
    header: SegmentHeader,
    codec: Codec,
    bytes: Vec<u8>,
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
            crc: 0,
            durable: mark.durable,
            incarnation: mark.incarnation,
            torn: None,
            empty_last: None,
        }
    }

    /// Walks the segments in order.
    pub(super) fn run(&mut self, seqs: &[u32]) -> Result<(), Error> {
        let mut following = seqs.first().map(|seq| self.load(*seq)).transpose()?;
        if let Some(first) = &following {
            (self.ordinal, self.crc) =
                (first.header.first_ordinal.saturating_sub(1), first.header.prev_crc);
        }
        for place in 0..seqs.len() {
            let segment = following.take().expect("loaded in the round before");
            following = seqs.get(place + 1).map(|seq| self.load(*seq)).transpose()?;
            self.check_header(&segment)?;
            let end = following.as_ref().map(|next| next.header.first_ordinal.saturating_sub(1));
            self.walk(&segment, end)?;
        }
        if self.ordinal < self.durable {
            // Only reached without any segment: with one, the walk has told where.
            return Err(Error::corrupt(&self.dir, 0, "acknowledged records are missing"));
        }
        let (hard, mark) = (self.replay.hard, self.mark);
        let vote_is_lost =
            mark.term == hard.term && mark.voted_for.is_some() && mark.voted_for != hard.voted_for;
        if mark.term > hard.term || vote_is_lost {
            return Err(Error::corrupt(
                &mark_path(&self.dir),
                0,
                "the log lost a term or vote that the mark knows",
            ));
        }
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

    fn load(&mut self, seq: u32) -> Result<Segment, Error> {
        let path = segment_path(&self.dir, seq);
        let file = self.disk.open(&path)?;
        file.sync()?;
        file.forget_cache()?;
        let length = file.bytes()?;
        if length < SEGMENT_HEADER_BYTES as u64 || length > u64::from(u32::MAX) {
            return Err(Error::corrupt(&path, 0, format!("a segment of {length} bytes")));
        }
        let mut bytes = vec![0; length as usize];
        file.read_at(0, &mut bytes)?;
        let header = SegmentHeader::decode(&path, &bytes[..SEGMENT_HEADER_BYTES])?;
        check_identity(&path, self.identity, header.identity)?;
        if header.seq != seq || header.first_ordinal == 0 {
            return Err(Error::corrupt(
                &path,
                0,
                format!("the header is that of segment {:x}", header.seq),
            ));
        }
        if header.bytes != length {
            let reason = format!("the file has {length} bytes instead of {}", header.bytes);
            return Err(Error::corrupt(&path, length.min(header.bytes), reason));
        }
        let codec = Codec::new(header.salt);
        let map = file.map(Access::Read)?;
        let shared = SegmentMap { seq, path: path.as_path().into(), codec: codec.clone(), map };
        self.segments.insert(seq, shared);
        self.extents.push_back(Extent { seq, index_max: Index(0) });
        // A segment gets its name only when all before it are durable.
        self.durable = self.durable.max(header.first_ordinal - 1);
        self.incarnation = self.incarnation.max(header.incarnation);
        Ok(Segment { path, header, codec, bytes })
    }

    fn check_header(&self, segment: &Segment) -> Result<(), Error> {
        let header = &segment.header;
        if header.first_ordinal != self.ordinal + 1 || header.prev_crc != self.crc {
            return Err(Error::corrupt(
                &segment.path,
                0,
                "the segment does not continue the one before it",
            ));
        }
        Ok(())
    }

    /// Walks one segment: to the record `end`, or in the last segment (`None`) as far as there are records.
    fn walk(&mut self, segment: &Segment, end: Option<u64>) -> Result<(), Error> {
        let mut offset = SEGMENT_HEADER_BYTES;
        let start = (self.ordinal, self.crc);
        let mut is_opening = true;
        while end.is_none_or(|end| self.ordinal < end) {
            let Some((head, masked)) = segment.record(offset) else { break };
            if head.ordinal != self.ordinal + 1 || head.prev_crc != self.crc {
                return Err(
                    segment.corrupt(offset, "a record that does not follow the one before it")
                );
            }
            // Only hard states are looked into: the bodies of entries stay on the disk.
            let wanted = if head.kind == Kind::Hard { head.body_bytes as usize } else { 0 };
            let mut body = masked[..wanted].to_vec();
            segment.codec.mask(&mut body);
            let place = Place { segment: segment.header.seq, offset: offset as u32 };
            self.replay
                .apply(&head, &body, place)
                .map_err(|reason| segment.corrupt(offset, reason))?;
            self.note(&head, segment.header.seq);
            is_opening &= matches!(head.kind, Kind::Hard | Kind::SnapMark | Kind::Position);
            (self.ordinal, self.crc) = (head.ordinal, head.body_crc);
            offset += head.record_bytes();
        }
        match end {
            None => {
                self.judge_end(segment, offset)?;
                // With more records than the next segment will repeat, its ordinals would fall behind the mark.
                let repeated = 2 + u64::from(self.replay.snapshot.is_some());
                let is_empty =
                    is_opening && self.torn.is_none() && self.ordinal - start.0 <= repeated;
                self.empty_last = is_empty.then_some(start);
                Ok(())
            }
            Some(end) if self.ordinal == end => Ok(()),
            Some(end) => {
                let reason = format!(
                    "record {} is damaged; {end} and more were acknowledged",
                    self.ordinal + 1
                );
                Err(segment.corrupt(offset, reason))
            }
        }
    }

    fn note(&mut self, head: &Head, seq: u32) {
        self.durable = self.durable.max(head.durable);
        let extent = self.extents.iter_mut().rev().find(|extent| extent.seq == seq);
        let extent = extent.expect("every loaded segment has an extent");
        if head.kind == Kind::Entry {
            extent.index_max = extent.index_max.max(head.index);
        }
    }

    /// Decides about the end of the last segment, see the table above.
    fn judge_end(&mut self, segment: &Segment, offset: usize) -> Result<(), Error> {
        let expected = self.ordinal + 1;
        let later = segment.later_records(offset, expected);
        let attested = later.iter().map(|head| head.durable).max().unwrap_or(0).max(self.durable);
        if expected <= attested {
            let reason = format!(
                "record {expected} is missing or damaged, but all up to {attested} were durable"
            );
            return Err(segment.corrupt(offset, reason));
        }
        let rest = &segment.bytes[offset..];
        if rest.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        if later.is_empty() && !segment.is_torn(offset) {
            let reason = format!(
                "record {expected} is wrong in a way that no crash explains; it may have been acknowledged"
            );
            return Err(segment.corrupt(offset, reason));
        }
        self.cut(segment, offset)
    }

    /// Copies aside what is cut.
    fn cut(&mut self, segment: &Segment, offset: usize) -> Result<(), Error> {
        let rest = &segment.bytes[offset..];
        let length = rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let copy = torn_path(&self.dir, segment.header.seq);
        let file = self.disk.create(&copy)?;
        file.write_at(0, &rest[..length])?;
        file.sync()?;
        self.torn = Some(format!(
            "{} ended in {length} bytes at offset {offset} that a crash tore before they were acknowledged; they are \
             left out, and kept in {}",
            segment.path.display(),
            copy.display()
        ));
        Ok(())
    }
}

impl Segment {
    /// The record at `offset`: header and body on disk, if all of it is valid.
    fn record(&self, offset: usize) -> Option<(Head, &[u8])> {
        let head = self.head(offset)?;
        let masked = self.bytes.get(offset + BLOCK_BYTES..offset + head.record_bytes())?;
        self.codec.body_is_valid(offset as u64, &head, masked).then_some((head, masked))
    }

    fn head(&self, offset: usize) -> Option<Head> {
        let header = self.bytes.get(offset..offset + BLOCK_BYTES)?;
        self.codec.head(offset as u64, header.try_into().expect("the range has 64 bytes"))
    }

    /// Valid headers behind a bad record, that come after it in order.
    fn later_records(&self, offset: usize, expected: u64) -> Vec<Head> {
        let offsets = (offset..self.bytes.len()).step_by(BLOCK_BYTES);
        offsets
            .filter_map(|offset| self.head(offset))
            .filter(|head| head.ordinal > expected)
            .collect()
    }

    /// Whether the bad record at `offset` has a part that was never written: its header, or a sector of its body.
    /// Written bytes are never all zero (see `format.rs`).
    fn is_torn(&self, offset: usize) -> bool {
        // The first word is what a store through a map writes last.
        if self.bytes[offset..offset + 8].iter().all(|byte| *byte == 0) {
            return true;
        }
        let Some(head) = self.head(offset) else { return false };
        let end = (offset + head.record_bytes()).min(self.bytes.len());
        let mut start = offset;
        while start < end {
            let next = ((start / SECTOR_BYTES + 1) * SECTOR_BYTES).min(end);
            if self.bytes[start..next].iter().all(|byte| *byte == 0) {
                return true;
            }
            start = next;
        }
        false
    }

    fn corrupt(&self, offset: usize, reason: impl Into<String>) -> Error {
        Error::corrupt(&self.path, offset as u64, reason)
    }
}
