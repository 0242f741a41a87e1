//! From one segment to the next, and the mark that names them.

use super::ahead::{Ahead, Blank, Plan};
use super::format::{Codec, Kind, encode_vote, mix};
use super::scan::Tail;
use super::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, mending_path, segment_path};
use super::writer::{Active, BUFFER_BYTES_KEPT, Extent, Writer};
use super::{Error, Place, SegmentMap};
use crate::disk::{BLOCK_BYTES, Blocks};
use crate::raft::HardState;

impl Writer {
    pub(super) fn sync_mark(&mut self) -> Result<(), Error> {
        if self.is_mending {
            return Ok(());
        }
        self.write_mark()
    }

    pub(super) fn write_mark(&mut self) -> Result<(), Error> {
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

    /// Begins the next segment, with room for a record of `bytes_min`; false if the disk is full. It appears under its
    /// name with everything that it repeats: hard state, snapshot mark and position, all durable.
    pub(super) fn rotate(&mut self, bytes_min: usize) -> Result<bool, Error> {
        let needed =
            (SEGMENT_HEADER_BYTES + OPENING_BYTES + bytes_min).next_multiple_of(BLOCK_BYTES) as u64;
        let blank = match self.ahead.take().filter(|blank| blank.bytes >= needed) {
            Some(blank) => blank,
            None => match self.plan(needed.max(self.options.segment_bytes)).carry_out() {
                Ok(blank) => blank,
                Err(Error::NoSpace { .. }) => {
                    self.ahead = Ahead::Failed;
                    return Ok(false);
                }
                Err(error) => return Err(error),
            },
        };
        self.enter(blank, &[])?;
        self.sync_mark()?;
        self.prepare_next();
        Ok(true)
    }

    /// Begins the first segment of this process. The records of `tail` come into it before it appears: nothing attests
    /// that the device really has them where they were found. Gives their new places.
    ///
    /// # Errors
    /// [`Error::NoSpace`] and what else the disk says.
    pub(super) fn begin(&mut self, tail: &[Tail], hard: HardState) -> Result<Vec<Place>, Error> {
        let carried: usize = tail.iter().map(|record| record.head.record_bytes()).sum();
        let needed =
            (SEGMENT_HEADER_BYTES + OPENING_BYTES + carried).next_multiple_of(BLOCK_BYTES) as u64;
        // A short one: a node that starts does not wait for a long one to be made.
        let usual = self.options.segment_bytes.min(FIRST_SEGMENT_BYTES_MAX);
        let blank = self.plan(needed.max(usual)).carry_out()?;
        let places = self.enter(blank, tail)?;
        self.hard = hard;
        self.sync_mark()?;
        self.prepare_next();
        Ok(places)
    }

    fn enter(&mut self, blank: Blank, tail: &[Tail]) -> Result<Vec<Place>, Error> {
        let seq = self.next_seq;
        let salt = mix(self.options.salt_seed ^ mix(u64::from(seq)) ^ mix(!self.incarnation));
        let codec = Codec::new(salt);
        let hard = self.hard;
        let vote = encode_vote(hard);
        let mut opening = vec![(Kind::Hard, 0, (hard.commit_index, hard.term), &vote[..])];
        opening.extend(self.snapshot.map(|snapshot| (Kind::SnapMark, 0, snapshot, &[][..])));
        opening.push((Kind::Position, 0, self.terms.last(), &[][..]));
        let repeated = opening.len();
        opening.extend(tail.iter().map(|Tail { head, body, .. }| {
            (head.kind, head.flags, (head.index, head.term), &body[..])
        }));
        let header = SegmentHeader {
            prev_crc: self.last_crc,
            identity: self.identity,
            incarnation: self.incarnation,
            seq,
            first_ordinal: self.last_ordinal + 1,
            salt,
            bytes: blank.bytes,
            born_ordinal: self.last_ordinal + opening.len() as u64,
        };
        let mut buffer = header.encode();
        let mut places = Vec::new();
        for (kind, flags, at, body) in opening {
            let offset = buffer.len() as u64;
            self.last_crc = codec.encode(&mut buffer, offset, self.head(kind, flags, at), body);
            self.last_ordinal += 1;
            places.push(Place { segment: seq, offset: offset as u32 });
        }
        let mut blocks = Blocks::default();
        blocks.extend(&buffer);
        blank.file.write_durable(0, blocks.padded())?;
        blocks.keep_last(BUFFER_BYTES_KEPT);
        let path = match self.is_mending {
            true => mending_path(&self.dir, seq),
            false => segment_path(&self.dir, seq),
        };
        self.disk.rename(&blank.path, &path)?;
        self.disk.sync_dir(&self.dir)?;
        self.durable = self.last_ordinal;
        self.next_seq += 1;
        let map = blank.map.clone();
        self.opened.push(SegmentMap { seq, path: path.into(), codec: codec.clone(), map });
        let index_max = tail.iter().filter(|record| record.head.kind == Kind::Entry);
        let index_max = index_max.map(|record| record.head.index).max().unwrap_or_default();
        self.segments.push_back(Extent { seq, index_max });
        self.active = Some(Active {
            seq,
            bytes: blank.bytes,
            codec,
            file: blank.file,
            map: blank.map,
            end: buffer.len(),
            buffer: Vec::new(),
            blocks,
        });
        Ok(places.split_off(repeated))
    }

    pub(super) fn prepare_next(&mut self) {
        let plan = self.plan(self.options.segment_bytes);
        self.ahead = Ahead::start(plan, self.options.prepare_on_thread);
    }

    fn plan(&self, bytes: u64) -> Plan {
        let (seq, io) = (self.next_seq, self.options.io);
        let bytes = bytes.next_multiple_of(BLOCK_BYTES as u64);
        Plan { disk: self.disk.clone(), dir: self.dir.clone(), seq, bytes, io }
    }
}

/// The next segment is there before this one is full, also under load.
const FIRST_SEGMENT_BYTES_MAX: u64 = 8 << 20;
/// The records that open a segment: Hard with its body, SnapMark, Position.
pub(super) const OPENING_BYTES: usize = 4 * super::format::BLOCK_BYTES;
