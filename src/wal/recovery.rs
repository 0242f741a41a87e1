//! Opening a log: what is there, whether it is whole, and what may be cut.
//!
//! The lock is taken, the mark says which segments must exist, the walk through their records (`scan.rs`, with the table
//! of what is cut and what is damage) rebuilds the state. Then a new segment begins, which repeats the hard state and
//! those records at the end that nothing attests; an opened log never appends to an old one. A last segment that holds
//! nothing else is replaced by the new one, so that a node that starts over and over does not fill the disk.
//!
//! A log that is damaged is not opened: [`Damaged`] tells what it lacks, and mends it once that is there.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use super::ahead::Ahead;
use super::damage::Damage;
use super::format::Kind;
use super::loaded::{self, Unread};
use super::log::{Found, Log};
use super::mark::{Mark, MarkFile, mark_path};
use super::mend::Damaged;
use super::scan::Scan;
use super::segment::{mending_path, parse_mending_name, parse_name, segment_path, stray_path};
use super::skip::Skip;
use super::writer::{Room, Writer};
use super::{Error, Identity, Opened, Options, Recovered, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use crate::disk::{Disk, Lock};
use crate::raft::{HardState, Index};

/// What a directory turned out to hold.
#[derive(Debug)]
pub enum Opening {
    /// A log that is whole, or a new one.
    Whole(Box<Opened>),
    /// A log of which something is lost. Nothing was changed.
    Damaged(Box<Damaged>),
}

/// Opens the log in `dir`, which is made when missing, and recovers what is in it. Everything that is returned is durable,
/// and a fresh segment waits for more.
///
/// # Errors
/// [`Error::Locked`], [`Error::Foreign`], [`Error::Version`], [`Error::NoSpace`], [`Error::Disk`]: nothing that was
/// acknowledged is ever changed by an opening, also not by one that fails.
///
/// # Panics
/// When `options` are outside of their limits.
pub fn open(
    disk: Arc<dyn Disk>,
    dir: &Path,
    identity: Identity,
    options: Options,
) -> Result<Opening, Error> {
    open_above(disk, dir, identity, options, Index(0))
}

/// The same, but without the segments that a good snapshot at index `covered` makes superfluous, unless something is
/// damaged; see `skip.rs`.
///
/// # Errors
/// As [`open`].
///
/// # Panics
/// As [`open`].
pub fn open_above(
    disk: Arc<dyn Disk>,
    dir: &Path,
    identity: Identity,
    options: Options,
    covered: Index,
) -> Result<Opening, Error> {
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
    let known = mark.as_ref().map_or_else(|| Mark::of_all(identity, &names), |mark| *mark.mark());
    finish_mending(&*disk, dir, &known, &names)?;
    let (last_seq, stray) = last_segment(&*disk, dir, identity, &known)?;
    let covered = Index(covered.0.saturating_sub(options.entries_kept));
    let skip = Skip::find(&*disk, dir, identity, (&known, last_seq), &names, covered)?;
    let walk = |skip| walk(&disk, dir, identity, (known, last_seq), skip);
    let (mut scan, mut hard) = walk(skip)?;
    if !scan.damages.is_empty() {
        (scan, hard) = walk(Skip::nothing(&known))?;
    }
    if scan.damages.is_empty() {
        let opened = begin(disk, dir, identity, options, Begin { mark, scan, hard, lock, stray })?;
        return Ok(Opening::Whole(Box::new(opened)));
    }
    scan.apply_tail();
    let damaged = Damaged::new(disk, dir, identity, options, (mark, last_seq), scan, lock);
    Ok(Opening::Damaged(Box::new(damaged)))
}

/// Walks what is not passed over, and compares the hard state with the mark.
fn walk(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    identity: Identity,
    (mark, last_seq): (Mark, u32),
    skip: Skip,
) -> Result<(Scan, HardState), Error> {
    let first_seq = skip.first_seq;
    let mut scan = Scan::new(disk.clone(), dir, identity, Mark { first_seq, ..mark });
    scan.run(first_seq, last_seq)?;
    let hard = last_hard(&scan);
    let has_other_vote = mark.voted_for.is_some_and(|_| mark.voted_for != hard.voted_for);
    let is_behind = mark.term > hard.term || (mark.term == hard.term && has_other_vote);
    if is_behind && scan.damages.is_empty() {
        let reason = "the log lost a term or vote that the mark knows";
        scan.damages.push(Damage::new(&mark_path(dir), 0, reason));
        scan.replay.lose(1);
    }
    skip.extents.into_iter().rev().for_each(|extent| scan.extents.push_front(extent));
    Ok((scan, hard))
}

/// What [`begin`] goes on from.
struct Begin {
    mark: Option<MarkFile>,
    scan: Scan,
    hard: HardState,
    lock: Box<dyn Lock>,
    stray: Option<String>,
}

/// Begins to write to a log that is whole.
fn begin(
    disk: Arc<dyn Disk>,
    dir: &Path,
    identity: Identity,
    options: Options,
    from: Begin,
) -> Result<Opened, Error> {
    let Begin { mark, mut scan, hard, lock, stray } = from;
    let is_new = scan.segments.is_empty();
    let mut notes: Vec<String> = stray.into_iter().chain(scan.torn.take()).collect();
    let mark = match mark {
        Some(mark) => mark,
        None => {
            notes.push(format!(
                "{} was missing or damaged; it is written anew from the log, which is whole",
                mark_path(dir).display()
            ));
            MarkFile::create(&*disk, dir, Mark::of_log(identity, hard, &scan.extents))?
        }
    };
    scan.drop_empty_last();
    let Scan { mut replay, segments, extents, ordinal, crc, tail, incarnation, .. } = scan;
    let next_seq = extents.back().map_or(mark.mark().first_seq, |last| last.seq + 1);
    let mut writer = Writer {
        disk,
        dir: dir.to_owned(),
        identity,
        options,
        incarnation: incarnation + 1,
        mark,
        next_seq,
        is_mending: false,
        active: None,
        ahead: Ahead::Idle,
        segments: extents,
        dead_before: replay.dead_before,
        last_ordinal: ordinal,
        last_crc: crc.expect("a whole log has an end"),
        durable: ordinal,
        hard: replay.hard,
        snapshot: replay.snapshot,
        terms: replay.terms(),
        opened: Vec::new(),
        done: super::Ordinal(0),
        backlog: VecDeque::new(),
        partial: Vec::new(),
        reported: Room::Ample,
        failure: None,
        _lock: lock,
    };
    let places = writer.begin(&tail, hard)?;
    for (record, place) in tail.iter().zip(places) {
        let offset = record.place.offset as usize;
        let path = segment_path(dir, record.place.segment);
        let fits = replay.apply(&record.head, &record.body, place);
        fits.map_err(|reason| Error::Corrupt(Damage::new(&path, offset, reason)))?;
    }
    writer.terms = replay.terms();
    (writer.snapshot, writer.dead_before) = (replay.snapshot, replay.dead_before);
    let entries = replay.whole().map(|(meta, _)| meta).collect();
    let places = replay.whole().map(|(_, place)| place).collect();
    let snapshot = replay.snapshot.map_or(Index(0), |snapshot| snapshot.0);
    let mut log = Log::new(Found { terms: replay.terms(), snapshot, places, segments });
    log.on_persisted(writer.report(Vec::new()));
    let recovered = Recovered {
        is_new,
        hard_state: hard,
        base: log.base(),
        snapshot: replay.snapshot,
        entries,
        notes,
    };
    Ok(Opened { log, writer, recovered })
}

/// The hard state after everything that was found.
fn last_hard(scan: &Scan) -> HardState {
    let hards = scan.tail.iter().rev().filter(|record| record.head.kind == Kind::Hard);
    let mut decoded =
        hards.filter_map(|record| super::format::decode_hard(&record.head, &record.body));
    decoded.next().unwrap_or(scan.replay.hard)
}

/// The mark, made for a directory without a log; `None` if it is lost.
fn open_mark(
    disk: &dyn Disk,
    dir: &Path,
    identity: Identity,
    names: &[String],
) -> Result<Option<MarkFile>, Error> {
    if let Some(mark) = MarkFile::open(disk, dir)? {
        identity.check(&mark_path(dir), mark.mark().identity)?;
        return Ok(Some(mark));
    }
    let is_ours = |name: &String| parse_name(name).is_some() || parse_mending_name(name).is_some();
    if names.iter().any(is_ours) {
        return Ok(None);
    }
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        disk.sync_dir(parent)?;
    }
    MarkFile::create(disk, dir, Mark::new(identity)).map(Some)
}

/// Segments of a mended log get their names once the mark names them; those that it does not name are of a try that
/// did not come to its end. Segments before those that it names are left over from a purge.
fn finish_mending(disk: &dyn Disk, dir: &Path, mark: &Mark, names: &[String]) -> Result<(), Error> {
    let mut is_changed = false;
    for seq in names.iter().filter_map(|name| parse_mending_name(name)) {
        let path = mending_path(dir, seq);
        if mark.is_guess() {
            // The mark is lost: nobody knows whether these are the log.
            continue;
        }
        match (mark.first_seq..=mark.last_seq).contains(&seq) {
            true => disk.rename(&path, &segment_path(dir, seq))?,
            false => disk.remove(&path)?,
        }
        is_changed = true;
    }
    for seq in names.iter().filter_map(|name| parse_name(name)) {
        if seq < mark.first_seq {
            disk.remove(&segment_path(dir, seq))?;
            is_changed = true;
        }
    }
    if is_changed {
        disk.sync_dir(dir)?;
    }
    Ok(())
}

/// The last segment. One more than the mark names may exist, which holds nothing that was acknowledged: if it is not
/// sound it is set aside, with a word.
fn last_segment(
    disk: &dyn Disk,
    dir: &Path,
    identity: Identity,
    mark: &Mark,
) -> Result<(u32, Option<String>), Error> {
    let seqs: Vec<u32> = disk.list(dir)?.iter().filter_map(|name| parse_name(name)).collect();
    let mut stray = None;
    let mut last = mark.last_seq;
    for seq in seqs.into_iter().filter(|seq| *seq > mark.last_seq) {
        let path = segment_path(dir, seq);
        let is_sound = seq == mark.last_seq.saturating_add(1)
            && matches!(Unread::open(disk, path.clone())?, loaded::Found::Segment(segment)
                if segment.header.seq == seq && segment.header.identity == identity);
        if is_sound {
            last = seq;
            continue;
        }
        let aside = stray_path(dir, seq);
        disk.rename(&path, &aside)?;
        disk.sync_dir(dir)?;
        stray = Some(format!(
            "{} is no part of this log and was moved to {}",
            path.display(),
            aside.display()
        ));
    }
    Ok((last, stray))
}
