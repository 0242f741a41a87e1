//! One segment in memory, as recovery and the offline tools look at it: straight from the device, never by a map.

use std::path::PathBuf;
use std::sync::Arc;

use super::format::{BLOCK_BYTES, Codec, Head, Kind, SECTOR_BYTES};
use super::rotation::OPENING_BYTES;
use super::segment::{Header, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::{Error, SegmentMap};
use crate::disk::{self, Access, Disk, File};
use crate::raft::Index;

/// A segment with a header that is right, of which nothing else was read.
pub(super) struct Unread {
    pub(super) path: PathBuf,
    pub(super) header: SegmentHeader,
    file: Arc<dyn File>,
    /// The file's length.
    length: usize,
}

/// A segment that was read.
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) header: SegmentHeader,
    pub(super) codec: Codec,
    pub(super) bytes: Vec<u8>,
    /// Whether the device refused to read a part, which `bytes` then has as [`UNREADABLE`].
    has_unreadable: bool,
}

/// What a file that should be a segment is.
pub(super) enum Found {
    /// A segment.
    Segment(Unread),
    /// There is no such file.
    Missing,
    /// The header says nothing: both copies are gone, or the file is none of ours.
    Headless(&'static str),
}

impl Unread {
    /// Opens a file of the log, after dropping what the system has cached of it, and reads its header.
    ///
    /// # Errors
    /// What the disk says, but for parts that it cannot read; [`Error::Version`].
    pub(super) fn open(disk: &dyn Disk, path: PathBuf) -> Result<Found, Error> {
        let file = match disk.open(&path) {
            Ok(file) => file,
            Err(error) if error.is_not_found() => return Ok(Found::Missing),
            Err(error) => return Err(error.into()),
        };
        // What an earlier process wrote and did not sync becomes durable here, or is not seen. A failure does not
        // matter: nothing is believed but what the device gives back.
        let _ = file.sync();
        file.forget_cache()?;
        let length = file.bytes()?;
        if length < SEGMENT_HEADER_BYTES as u64 {
            return Ok(Found::Headless("the file is shorter than the header of a segment"));
        }
        if length > u64::from(u32::MAX) {
            return Ok(Found::Headless("the file is longer than any segment"));
        }
        let (bytes, _) = read(&*file, SEGMENT_HEADER_BYTES, Vec::new())?;
        let header = match SegmentHeader::decode(&bytes) {
            Header::Good(header) => header,
            Header::Bad => return Ok(Found::Headless("both copies of the header are damaged")),
            Header::Version(version) => return Err(Error::Version { path, version }),
        };
        if header.bytes > u64::from(u32::MAX) {
            return Ok(Found::Headless("the header is not possible"));
        }
        Ok(Found::Segment(Unread { path, header, file, length: length as usize }))
    }

    /// The last index before it, which each segment repeats at its beginning; `None` if that cannot be read.
    ///
    /// # Errors
    /// What the disk says, but for parts that it cannot read.
    pub(super) fn position(&self) -> Result<Option<Index>, Error> {
        let length = self.length.min(SEGMENT_HEADER_BYTES + OPENING_BYTES);
        let (bytes, has_unreadable) = read(&*self.file, length, Vec::new())?;
        let (path, header) = (self.path.clone(), self.header);
        let codec = Codec::new(header.salt);
        let opening = Segment { path, header, codec, bytes, has_unreadable };
        let mut offset = SEGMENT_HEADER_BYTES;
        while let Some((head, _)) = opening.record(offset) {
            if head.kind == Kind::Position {
                return Ok(Some(head.index));
            }
            offset += head.record_bytes();
        }
        Ok(None)
    }

    /// Reads it into `memory`.
    ///
    /// # Errors
    /// What the disk says, but for parts that it cannot read.
    pub(super) fn read(self, memory: Vec<u8>) -> Result<Segment, Error> {
        let Unread { path, header, file, length } = self;
        let (mut bytes, has_unreadable) = read(&*file, length, memory)?;
        // A file that was cut short reads as never written from there on; what was durable there is missed anyway.
        bytes.resize(header.bytes as usize, 0);
        let codec = Codec::new(header.salt);
        Ok(Segment { path, header, codec, bytes, has_unreadable })
    }

    /// Whether reading it takes so long that a thread is worth it.
    pub(super) fn is_long(&self) -> bool {
        self.length >= LONG_BYTES
    }

    /// The same for those who read entries later, by way of a map.
    pub(super) fn shared(&self) -> Result<SegmentMap, Error> {
        let map = self.file.map(Access::Read)?;
        let (seq, path) = (self.header.seq, self.path.as_path().into());
        Ok(SegmentMap { seq, path, codec: Codec::new(self.header.salt), map })
    }
}

impl Segment {
    /// The record at `offset`: header and body on disk, if all of it is valid.
    pub(super) fn record(&self, offset: usize) -> Option<(Head, &[u8])> {
        let head = self.head(offset)?;
        let masked = self.body(offset, &head)?;
        Some((head, masked))
    }

    /// The body on disk of the record at `offset`, which has this header, if it is valid.
    pub(super) fn body(&self, offset: usize, head: &Head) -> Option<&[u8]> {
        let masked = self.bytes.get(offset + BLOCK_BYTES..offset + head.record_bytes())?;
        self.codec.body_is_valid(offset as u64, head, masked).then_some(masked)
    }

    /// The header of the record at `offset`, whatever its body is.
    pub(super) fn head(&self, offset: usize) -> Option<Head> {
        let header = self.bytes.get(offset..offset + BLOCK_BYTES)?;
        self.codec.head(offset as u64, header.try_into().expect("the range has 64 bytes"))
    }

    /// The valid headers from `offset` on whose ordinals are above `ordinal`, with their places.
    pub(super) fn heads_after(
        &self,
        offset: usize,
        ordinal: u64,
    ) -> impl Iterator<Item = (usize, Head)> + '_ {
        let offsets = (offset..self.bytes.len()).step_by(BLOCK_BYTES);
        let heads = offsets.filter_map(|offset| Some((offset, self.head(offset)?)));
        heads.filter(move |(_, head)| head.ordinal > ordinal)
    }

    /// Whether nothing was ever written from `offset` on.
    pub(super) fn is_blank_from(&self, offset: usize) -> bool {
        self.bytes[offset..].iter().all(|byte| *byte == 0)
    }

    /// Whether the bad record at `offset` has a part that was never written: its header, or a sector of its body.
    /// Written bytes are never all zero (see `format.rs`).
    pub(super) fn is_torn(&self, offset: usize) -> bool {
        if self.has_unreadable {
            return false;
        }
        let is_zero = |range: std::ops::Range<usize>| self.bytes[range].iter().all(|b| *b == 0);
        // The first word is what a store through a map writes last. A flipped bit in it is no header either.
        if is_zero(offset..offset + 8) || is_zero(offset + 8..offset + BLOCK_BYTES) {
            return true;
        }
        let Some(head) = self.head(offset) else { return false };
        let end = (offset + head.record_bytes()).min(self.bytes.len());
        let mut start = offset;
        while start < end {
            let next = ((start / SECTOR_BYTES + 1) * SECTOR_BYTES).min(end);
            if is_zero(start..next) {
                return true;
            }
            start = next;
        }
        false
    }
}

/// All of a file, page by page where the device cannot read it at once.
fn read(file: &dyn File, length: usize, mut bytes: Vec<u8>) -> Result<(Vec<u8>, bool), Error> {
    if bytes.capacity() < length {
        // Zeros from the system, which it makes when they are touched.
        bytes = vec![0; length];
    }
    bytes.resize(length, 0);
    let mut has_unreadable = false;
    for (place, step) in bytes.chunks_mut(STEP_BYTES).enumerate() {
        if file.read_at((place * STEP_BYTES) as u64, step).is_ok() {
            continue;
        }
        for (page, part) in step.chunks_mut(PAGE_BYTES).enumerate() {
            let offset = place * STEP_BYTES + page * PAGE_BYTES;
            match file.read_at(offset as u64, part) {
                Ok(()) => {}
                Err(disk::Error::Io { .. }) => {
                    part.fill(UNREADABLE);
                    has_unreadable = true;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok((bytes, has_unreadable))
}

/// Neither a header nor a blank.
const UNREADABLE: u8 = 0xEE;
const STEP_BYTES: usize = 1 << 20;
const LONG_BYTES: usize = 1 << 20;
const PAGE_BYTES: usize = 4096;
