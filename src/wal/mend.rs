//! A log of which something is lost, and how it becomes whole again.
//!
//! Nothing is mended in place. What is lacking comes from logs that have it ([`Damaged::wanted`], [`Damaged::supply`]),
//! then [`Damaged::mend`] writes the whole log anew beside the old one, in segments that are not yet the log, and one
//! write of the mark makes them the log. A crash before that leaves the damaged log as it was, one after it the whole
//! one. Damaged files are kept under another name for whoever wants to look into them.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ahead::Ahead;
use super::damage::Damage;
use super::mark::{Mark, MarkFile};
use super::replay::{Gap, Replay, Slot};
use super::scan::Scan;
use super::segment::{damaged_path, parse_name};
use super::terms::Terms;
use super::writer::{Extent, Room, Writer};
use super::{Batch, BatchBuilder, Error, Identity, Options, Ordinal, Record, SegmentMap};
use crate::disk::{Disk, Lock};
use crate::raft::{HardState, Index, Term};

/// A damaged log; the directory stays locked while it lives, and nothing in it changes before [`Damaged::mend`].
#[derive(Debug)]
pub struct Damaged {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    identity: Identity,
    options: Options,
    mark: Option<MarkFile>,
    hard: HardState,
    replay: Replay,
    segments: BTreeMap<u32, SegmentMap>,
    supplied: BTreeMap<Index, Batch>,
    damages: Vec<Damage>,
    incarnation: u64,
    last_ordinal: u64,
    last_seq: u32,
    lock: Box<dyn Lock>,
}

/// Why entries were not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("these entries are not those that are missing")]
pub struct NotWanted;

impl Damaged {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        dir: &Path,
        identity: Identity,
        options: Options,
        (mark, last_seq): (Option<MarkFile>, u32),
        scan: Scan,
        lock: Box<dyn Lock>,
    ) -> Damaged {
        let Scan { replay, segments, damages, incarnation, ordinal, durable, .. } = scan;
        let known = mark.as_ref().map(|mark| *mark.mark());
        let mut hard = replay.hard;
        // The mark is written at each change of term or vote, before anybody hears of it.
        if let Some(mark) = known.filter(|mark| mark.term >= hard.term) {
            let voted_for = match mark.term > hard.term {
                true => mark.voted_for,
                false => mark.voted_for.or(hard.voted_for),
            };
            hard = HardState { term: mark.term, voted_for, ..hard };
        }
        let last_ordinal = ordinal.max(durable);
        Damaged {
            disk,
            dir: dir.to_owned(),
            identity,
            options,
            mark,
            hard,
            replay,
            segments,
            supplied: BTreeMap::new(),
            damages,
            incarnation,
            last_ordinal,
            last_seq,
            lock,
        }
    }

    /// What is wrong, in the order of the log; at least one.
    pub fn damages(&self) -> &[Damage] {
        &self.damages
    }

    /// The first damage as an error.
    pub fn error(&self) -> Error {
        let first = self.damages.first().cloned();
        Error::Corrupt(first.unwrap_or_else(|| Damage::new(&self.dir, 0, "damaged")))
    }

    /// A good snapshot covers everything up to here: nothing below it is needed.
    pub fn forget(&mut self, at: (Index, Term)) {
        self.replay.forget(at);
    }

    /// Whether it is known what is lost. If not, nobody can say what this node has confirmed or voted for.
    pub fn is_mendable(&self) -> bool {
        self.mark.is_some() && !self.replay.has_lost_end() && !self.replay.is_baseless
    }

    /// Entries that are lacking, the lowest first; none when the log can be mended with what is there.
    pub fn wanted(&self) -> &[Gap] {
        &self.replay.gaps
    }

    /// Gives up everything from the first loss on, for good: an operator's decision, when nobody else has what is lost.
    /// The last index that stays, or `None` if nothing does: then not even where the log begins is known.
    ///
    /// # Errors
    /// What the disk says.
    pub fn give_up(&mut self) -> Result<Option<Index>, Error> {
        if self.replay.is_baseless {
            return Ok(None);
        }
        if self.mark.is_none() {
            let extents = self.segments.keys().map(|seq| Extent { seq: *seq, index_max: Index(0) });
            let mark = Mark::of_log(self.identity, self.hard, &extents.collect());
            self.mark = Some(MarkFile::create(&*self.disk, &self.dir, mark)?);
        }
        self.replay.give_up();
        Ok(Some(self.replay.last_index()))
    }

    /// Takes entries that were wanted, from the first of a gap on: from a log that has the gap's anchor.
    ///
    /// # Errors
    /// [`NotWanted`] if they are others.
    pub fn supply(&mut self, batch: Batch) -> Result<(), NotWanted> {
        let (first, last) = (batch.first_index(), batch.last_index());
        let place = self.replay.gaps.iter().position(|gap| gap.first == first).ok_or(NotWanted)?;
        let gap = &mut self.replay.gaps[place];
        if last > gap.last {
            return Err(NotWanted);
        }
        let anchor = gap.anchor;
        if batch.metas().any(|meta| meta.index == anchor.0 && meta.term != anchor.1) {
            return Err(NotWanted);
        }
        gap.first = last.next();
        if gap.first > gap.last {
            self.replay.gaps.remove(place);
        }
        self.supplied.insert(first, batch);
        Ok(())
    }

    /// What this log has of `first..=last`, for one that has the entry `anchor` in common with it: at most `bytes_max`
    /// bytes, but at least one entry. `None` if it does not have the anchor, or not the first entry.
    pub fn read(
        &self,
        anchor: (Index, Term),
        (first, last): (Index, Index),
        bytes_max: usize,
    ) -> Option<Batch> {
        let term = match self.slot(anchor.0)? {
            Slot::Whole(meta, _) => Some(meta.term),
            Slot::Lost(term) => term,
        };
        let is_sure =
            |index| !self.replay.gaps.iter().any(|gap| gap.first <= index && index <= gap.last);
        let is_ours = term == Some(anchor.1)
            && (is_sure(anchor.0) || self.replay.gaps.iter().any(|gap| gap.anchor == anchor));
        if !is_ours || !is_sure(first) {
            return None;
        }
        let mut builder = BatchBuilder::new(first);
        let mut index = first;
        while index <= last
            && is_sure(index)
            && (builder.is_empty() || builder.byte_len() < bytes_max)
        {
            let Ok(()) = self.copy(index, &mut builder) else { break };
            index = index.next();
        }
        (!builder.is_empty()).then(|| builder.finish())
    }

    /// Writes the log anew and makes it the node's log. To be opened again afterwards.
    ///
    /// # Errors
    /// [`Error::NoSpace`] and what else the disk says, among it further damage; the damaged log is as it was then.
    ///
    /// # Panics
    /// If entries are wanted, or it is not known what is lost.
    pub fn mend(mut self) -> Result<(), Error> {
        assert!(self.replay.gaps.is_empty() && self.is_mendable(), "{:?}", self.replay.gaps);
        let mark = self.mark.take().expect("a log without mark is not mendable");
        let mut writer = self.writer(mark);
        writer.begin(&[], self.hard)?;
        let (mut index, last) = (self.replay.base.0.next(), self.replay.last_index());
        let mut ordinal = Ordinal(0);
        while index <= last {
            let mut builder = BatchBuilder::new(index);
            while index <= last && builder.byte_len() < COPY_BYTES {
                self.copy(index, &mut builder)?;
                index = index.next();
            }
            ordinal.0 += 1;
            let persisted = writer.write_all(vec![(ordinal, Record::Entries(builder.finish()))])?;
            if persisted.room == Room::None {
                return Err(Error::NoSpace { op: "mend", path: self.dir });
            }
        }
        writer.write_mark()?;
        self.keep_damaged()
    }

    /// One that writes segments beside the log.
    fn writer(&mut self, mark: MarkFile) -> Writer {
        let lock = std::mem::replace(&mut self.lock, Box::new(Held));
        Writer {
            disk: Arc::clone(&self.disk),
            dir: self.dir.clone(),
            identity: self.identity,
            options: Options { prepare_on_thread: false, ..self.options },
            incarnation: self.incarnation + 1,
            mark,
            next_seq: self.last_seq + 1,
            is_mending: true,
            active: None,
            ahead: Ahead::Idle,
            segments: VecDeque::new(),
            dead_before: 0,
            last_ordinal: self.last_ordinal,
            last_crc: 0,
            durable: self.last_ordinal,
            hard: self.hard,
            snapshot: self.replay.snapshot,
            terms: Terms::new(self.replay.base),
            opened: Vec::new(),
            done: Ordinal(0),
            backlog: VecDeque::new(),
            partial: Vec::new(),
            reported: Room::Ample,
            failure: None,
            _lock: lock,
        }
    }

    /// Gives the damaged segments other names; those of an earlier mending make room for them.
    fn keep_damaged(&self) -> Result<(), Error> {
        for name in self.disk.list(&self.dir)?.iter().filter(|name| name.ends_with(".damaged")) {
            self.disk.remove(&self.dir.join(name))?;
        }
        let mut paths: Vec<&PathBuf> = self.damages.iter().map(|damage| &damage.path).collect();
        paths.dedup();
        for path in paths {
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(seq) = name.and_then(parse_name) else { continue };
            match self.disk.rename(path, &damaged_path(&self.dir, seq)) {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(self.disk.sync_dir(&self.dir)?)
    }

    fn slot(&self, index: Index) -> Option<Slot> {
        let place = index.0.checked_sub(self.replay.base.0.0 + 1)?;
        self.replay.slots.get(place as usize).copied()
    }

    /// Adds an entry to a batch.
    fn copy(&self, index: Index, builder: &mut BatchBuilder) -> Result<(), Error> {
        let supplied = self.supplied.range(..=index).next_back();
        if let Some((first, batch)) = supplied
            && index <= batch.last_index()
        {
            let (meta, body) = batch.lent().nth((index.0 - first.0) as usize).expect("inside");
            builder.push(meta.term, meta.kind, body);
            return Ok(());
        }
        let Some(Slot::Whole(_, place)) = self.slot(index) else { return Err(self.error()) };
        let Some(segment) = self.segments.get(&place.segment) else { return Err(self.error()) };
        let mut body = Vec::new();
        let read = segment.read_entry(place.offset, index, usize::MAX, &mut body)?;
        let (term, kind) = read.expect("any length is allowed");
        builder.push(term, kind, &body);
        Ok(())
    }
}

/// The directory is locked by the writer meanwhile.
#[derive(Debug)]
struct Held;

impl Lock for Held {}

/// Entries are copied in batches of about this many bytes.
const COPY_BYTES: usize = 1 << 20;
