//! Opening a log: what is there, whether it is whole, and what may be cut.
//!
//! The lock is taken, the mark says which segments must exist, the walk through their records (`scan.rs`, with the table
//! of what is cut and what refused) rebuilds the state. Then a new segment begins, which repeats the hard state; an
//! opened log never appends to an old one. A last segment that holds nothing else is replaced by the new one, so that a
//! node that starts over and over does not fill the disk.

use std::path::Path;
use std::sync::Arc;

use super::ahead::Ahead;
use super::log::{Found, Log};
use super::mark::{Mark, MarkFile, mark_path};
use super::scan::{Scan, check_identity};
use super::segment::{parse_name, segment_path};
use super::writer::Writer;
use super::{Error, Identity, Opened, Options, Recovered, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use crate::disk::Disk;
use crate::raft::Index;

/// Opens the log in `dir`, which is made when missing, and recovers what is in it. Everything that is returned is
/// durable, and a fresh segment waits for more.
///
/// # Errors
/// [`Error::Locked`], [`Error::Foreign`], [`Error::Corrupt`], [`Error::NoSpace`], [`Error::Disk`]: nothing that was
/// acknowledged is ever changed by an opening, also not by one that fails.
///
/// # Panics
/// When `options` are outside of their limits.
pub fn open(
    disk: Arc<dyn Disk>,
    dir: &Path,
    identity: Identity,
    options: Options,
) -> Result<Opened, Error> {
    let segment_bytes = options.segment_bytes;
    assert!((SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&segment_bytes), "{segment_bytes}");
    assert!(segment_bytes.is_multiple_of(4096), "{segment_bytes}");
    disk.create_dir(dir)?;
    let lock = disk.lock(&dir.join("LOCK"))?;
    let names = disk.list(dir)?;
    for name in names.iter().filter(|name| name.ends_with(".tmp")) {
        disk.remove(&dir.join(name))?;
    }
    let mark = open_mark(&*disk, dir, identity, &names)?;
    let seqs = present(&*disk, dir, &names, mark.mark())?;
    let is_new = seqs.is_empty();
    let mut scan = Scan::new(disk.clone(), dir, identity, *mark.mark());
    scan.run(&seqs)?;
    scan.drop_empty_last();
    let Scan { replay, segments, extents, ordinal, crc, torn, incarnation, .. } = scan;
    let found = Found {
        terms: replay.terms.clone(),
        snapshot: replay.snapshot.map_or(Index(0), |snapshot| snapshot.0),
        places: replay.places,
        segments,
    };
    let mut writer = Writer {
        disk,
        dir: dir.to_owned(),
        identity,
        options,
        incarnation: incarnation + 1,
        mark,
        active: None,
        ahead: Ahead::Idle,
        segments: extents,
        dead_before: replay.dead_before,
        last_ordinal: ordinal,
        last_crc: crc,
        durable: ordinal,
        hard: replay.hard,
        snapshot: replay.snapshot,
        terms: replay.terms,
        opened: Vec::new(),
        done: super::Ordinal(0),
        reported_no_space: false,
        failure: None,
        _lock: lock,
    };
    writer.rotate(0)?;
    let mut log = Log::new(found);
    log.on_persisted(writer.report(Vec::new()));
    let recovered = Recovered {
        is_new,
        hard_state: replay.hard,
        base: log.base(),
        snapshot: replay.snapshot,
        entries: replay.entries.into(),
        torn,
    };
    Ok(Opened { log, writer, recovered })
}

/// The mark, made for a directory without a log.
fn open_mark(
    disk: &dyn Disk,
    dir: &Path,
    identity: Identity,
    names: &[String],
) -> Result<MarkFile, Error> {
    let path = mark_path(dir);
    if let Some(mark) = MarkFile::open(disk, dir)? {
        check_identity(&path, identity, mark.mark().identity)?;
        return Ok(mark);
    }
    if names.iter().any(|name| parse_name(name).is_some()) {
        return Err(Error::corrupt(&path, 0, "the log has segments, but its mark is missing"));
    }
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        disk.sync_dir(parent)?;
    }
    MarkFile::create(disk, dir, identity)
}

/// The numbers of the segments, which must be those that the mark names, and perhaps one more.
fn present(disk: &dyn Disk, dir: &Path, names: &[String], mark: &Mark) -> Result<Vec<u32>, Error> {
    let mut seqs: Vec<u32> = names.iter().filter_map(|name| parse_name(name)).collect();
    seqs.sort_unstable();
    // Left over from a purge that a crash cut short.
    for seq in seqs.iter().filter(|seq| **seq < mark.first_seq) {
        disk.remove(&segment_path(dir, *seq))?;
    }
    seqs.retain(|seq| *seq >= mark.first_seq);
    let last = seqs.last().copied().unwrap_or(0).max(mark.last_seq);
    for seq in mark.first_seq..=last {
        if seqs.binary_search(&seq).is_err() {
            return Err(Error::corrupt(&segment_path(dir, seq), 0, "the segment is missing"));
        }
    }
    if last > mark.last_seq.saturating_add(1) {
        return Err(Error::corrupt(&mark_path(dir), 0, "the mark is older than the segments"));
    }
    Ok(seqs)
}
