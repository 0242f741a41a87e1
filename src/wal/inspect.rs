//! Looking at a log offline, without changing anything in it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::damage::Damage;
use super::format::{BLOCK_BYTES, Kind};
use super::loaded::{Found, Segment, Unread};
use super::mark::{Mark, MarkFile};
use super::scan::Scan;
use super::segment::{SEGMENT_HEADER_BYTES, parse_name, segment_path};
use super::{Error, Gap, Identity};
use crate::disk::Disk;
use crate::raft::{EntryKind, HardState, Index, Term};

/// One thing that lies in a segment.
#[derive(Clone, Debug)]
pub enum Item {
    /// A file and what its header says.
    Segment {
        /// The file.
        path: PathBuf,
        /// Its number.
        seq: u32,
        /// Which opening of the log made it.
        incarnation: u64,
        /// The ordinal of its first record.
        first_ordinal: u64,
    },
    /// A record whose checksums are right.
    Record {
        /// Where it begins in the file.
        offset: u64,
        /// Its place among all records.
        ordinal: u64,
        /// All records up to here were durable when it was written.
        durable: u64,
        /// What it says.
        what: What,
    },
    /// Bytes that are no record, before others that are one, or a file without a header.
    Damage(Damage),
}

/// What a record says.
#[derive(Clone, Debug)]
pub enum What {
    /// An entry of the log.
    Entry {
        /// Its index.
        index: Index,
        /// Its term.
        term: Term,
        /// What it is for.
        kind: EntryKind,
        /// The command or membership.
        body: Vec<u8>,
    },
    /// Term, vote and commit hint.
    Hard(HardState),
    /// Anything else: its name and the place that it names.
    Other(&'static str, Index, Term),
}

/// What a log adds up to.
#[derive(Debug)]
pub struct Report {
    /// Whose log it is.
    pub identity: Identity,
    /// The log begins after this place.
    pub base: (Index, Term),
    /// The last index.
    pub last: Index,
    /// Term, vote and commit hint.
    pub hard_state: HardState,
    /// What a crash tore at the end before it was acknowledged.
    pub torn: Option<String>,
    /// What is wrong.
    pub damages: Vec<Damage>,
    /// Which entries are missing.
    pub gaps: Vec<Gap>,
    /// Whether more was lost than can be named.
    pub has_unnamed_loss: bool,
}

/// Reads all records in order, good or bad.
///
/// # Errors
/// What the disk says, but for parts that it cannot read; [`Error::Version`].
pub fn dump(disk: &dyn Disk, dir: &Path, visit: &mut dyn FnMut(Item)) -> Result<(), Error> {
    let names = disk.list(dir)?;
    let mut seqs: Vec<u32> = names.iter().filter_map(|name| parse_name(name)).collect();
    seqs.sort_unstable();
    for seq in seqs {
        let path = segment_path(dir, seq);
        match Unread::open(disk, path.clone())? {
            Found::Segment(segment) => dump_segment(&segment.read(Vec::new())?, visit),
            Found::Headless(reason) => visit(Item::Damage(Damage::new(&path, 0, reason))),
            Found::Missing => {}
        }
    }
    Ok(())
}

fn dump_segment(segment: &Segment, visit: &mut dyn FnMut(Item)) {
    let header = &segment.header;
    visit(Item::Segment {
        path: segment.path.clone(),
        seq: header.seq,
        incarnation: header.incarnation,
        first_ordinal: header.first_ordinal,
    });
    let mut offset = SEGMENT_HEADER_BYTES;
    while offset < segment.bytes.len() && !segment.is_blank_from(offset) {
        let Some((head, masked)) = segment.record(offset) else {
            let next = segment.heads_after(offset + BLOCK_BYTES, 0).next();
            let end = next.map_or(segment.bytes.len(), |(next, _)| next);
            let reason = format!("no valid record up to offset {end}");
            visit(Item::Damage(Damage::new(&segment.path, offset, reason)));
            offset = end;
            continue;
        };
        let mut body = masked.to_vec();
        segment.codec.mask(&mut body);
        body.truncate(head.body_bytes as usize);
        let (index, term) = (head.index, head.term);
        let what = match (head.kind, EntryKind::from_u8(head.flags)) {
            (Kind::Entry, Some(kind)) => What::Entry { index, term, kind, body },
            (Kind::Entry, None) => What::Other("entry of unknown kind", index, term),
            (Kind::Hard, _) => match super::format::decode_hard(&head, &body) {
                Some(hard) => What::Hard(hard),
                None => What::Other("hard state of wrong length", index, term),
            },
            (Kind::Truncate, _) => What::Other("truncate from", index, term),
            (Kind::SnapMark, _) => What::Other("snapshot at", index, term),
            (Kind::Reset, _) => What::Other("reset to", index, term),
            (Kind::Position, _) => What::Other("position", index, term),
        };
        let (ordinal, durable) = (head.ordinal, head.durable);
        visit(Item::Record { offset: offset as u64, ordinal, durable, what });
        offset += head.record_bytes();
    }
}

/// Walks a log as an opening would, and says what it found. Nothing is changed; the log must not be in use.
///
/// # Errors
/// [`Error::Locked`], [`Error::Foreign`] for a segment of another node than the mark, [`Error::Version`],
/// [`Error::Empty`] if there is no log, and what the disk says.
pub fn verify(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Report, Error> {
    let _lock = disk.lock(&dir.join("LOCK"))?;
    let names = disk.list(dir)?;
    let identity = identity(&**disk, dir)?;
    let mark = MarkFile::open(&**disk, dir)?;
    let known = mark.as_ref().map_or_else(|| Mark::of_all(identity, &names), |mark| *mark.mark());
    let present = names.iter().filter_map(|name| parse_name(name)).max().unwrap_or(0);
    let last_seq = if present == known.last_seq + 1 { present } else { known.last_seq };
    let mut scan = Scan::new(Arc::clone(disk), dir, identity, known);
    scan.is_read_only = true;
    scan.run(known.first_seq, last_seq)?;
    scan.apply_tail();
    let Scan { replay, damages, torn, .. } = scan;
    let is_damaged = !damages.is_empty();
    Ok(Report {
        identity,
        base: replay.base,
        last: replay.last_index(),
        hard_state: replay.hard,
        torn,
        damages,
        has_unnamed_loss: is_damaged
            && (mark.is_none() || replay.has_lost_end() || replay.is_baseless),
        gaps: replay.gaps,
    })
}

/// Whose log it is, by its mark or else by any segment.
///
/// # Errors
/// [`Error::Empty`] if nothing says so; what the disk says.
pub fn identity(disk: &dyn Disk, dir: &Path) -> Result<Identity, Error> {
    if let Some(mark) = MarkFile::open(disk, dir)? {
        return Ok(mark.mark().identity);
    }
    for seq in disk.list(dir)?.iter().filter_map(|name| parse_name(name)) {
        if let Found::Segment(segment) = Unread::open(disk, segment_path(dir, seq))? {
            return Ok(segment.header.identity);
        }
    }
    Err(Error::Empty(dir.to_owned()))
}
