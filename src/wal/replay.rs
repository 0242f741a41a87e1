//! What the records of all segments add up to, also when some of them are lost.
//!
//! A lost record leaves open what it said. What comes after it narrows that down: an entry or a position names a place
//! (index and term), and a log that has this place has the same entries below it as ours had, by the Log Matching
//! property (paper, 5.3). So a loss becomes a [`Gap`]: the entries to be had from anybody who has its anchor. Were more
//! records lost than the entries that are missing, then there may have been a truncation among them, and nothing below
//! the anchor is sure.

use std::collections::VecDeque;

use super::format::{Head, Kind, decode_hard};
use super::terms::Terms;
use super::{EntryMeta, Place};
use crate::raft::{EntryKind, HardState, Index, Term};

/// The state after the records so far.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) hard: HardState,
    pub(super) snapshot: Option<(Index, Term)>,
    pub(super) base: (Index, Term),
    /// The entries after the base.
    pub(super) slots: VecDeque<Slot>,
    /// What is missing among them, ascending and apart from each other.
    pub(super) gaps: Vec<Gap>,
    /// Segments before this one hold nothing that a reset left alive.
    pub(super) dead_before: u32,
    /// Whether something was lost before the base: only a snapshot that covers it makes up for that.
    pub(super) is_baseless: bool,
    /// Whether a Position was seen: before that nothing is known about where the log begins.
    is_placed: bool,
    /// Records lost since the last place that is known.
    pending: u64,
}

/// What is known of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// Everything.
    Whole(EntryMeta, Place),
    /// Perhaps its term.
    Lost(Option<Term>),
}

/// Entries that are missing, or not surely ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The first of them.
    pub first: Index,
    /// The last of them.
    pub last: Index,
    /// A log that has this entry has them.
    pub anchor: (Index, Term),
}

impl Replay {
    pub(super) fn new() -> Replay {
        Replay {
            hard: HardState::default(),
            snapshot: None,
            base: (Index(0), Term(0)),
            slots: VecDeque::new(),
            gaps: Vec::new(),
            dead_before: 0,
            is_baseless: false,
            is_placed: false,
            pending: 0,
        }
    }

    /// The last index.
    pub(super) fn last_index(&self) -> Index {
        self.base.0.plus(self.slots.len() as u64)
    }

    /// Whether records were lost after the last place that is known.
    pub(super) fn has_lost_end(&self) -> bool {
        self.pending > 0
    }

    /// The entries of a log without gaps, and where they lie.
    ///
    /// # Panics
    /// If entries are lost.
    pub(super) fn whole(&self) -> impl Iterator<Item = (EntryMeta, Place)> + '_ {
        self.slots.iter().map(|slot| match slot {
            Slot::Whole(meta, place) => (*meta, *place),
            Slot::Lost(_) => unreachable!("a log with gaps is not run"),
        })
    }

    /// The terms of the log.
    ///
    /// # Panics
    /// If entries are lost.
    pub(super) fn terms(&self) -> Terms {
        let mut terms = Terms::new(self.base);
        self.whole().for_each(|(meta, _)| terms.push(meta.term));
        terms
    }

    /// Takes note of this many records of which nothing is known.
    pub(super) fn lose(&mut self, records: u64) {
        self.pending += records;
    }

    /// Takes in the next record, whose checksums are right.
    ///
    /// # Errors
    /// What does not fit to the records before it.
    pub(super) fn apply(
        &mut self,
        head: &Head,
        body: &[u8],
        place: Place,
    ) -> Result<(), &'static str> {
        match head.kind {
            Kind::Entry => {
                self.land_before(head.index)?;
                let kind = EntryKind::from_u8(head.flags).ok_or("an entry of unknown kind")?;
                let (index, term) = (head.index, head.term);
                let meta = EntryMeta { index, term, kind, body_bytes: head.body_bytes };
                self.slots.push_back(Slot::Whole(meta, place));
                self.anchor((index, term));
            }
            Kind::Hard => {
                self.hard = decode_hard(head, body).ok_or("a hard state of wrong length")?;
            }
            Kind::Truncate => {
                let before = head.index.0.checked_sub(1).ok_or("a truncation at index 0")?;
                self.land_at((Index(before), head.term))?;
            }
            Kind::SnapMark => self.snapshot = self.snapshot.max(Some((head.index, head.term))),
            Kind::Reset => {
                let at = (head.index, head.term);
                self.restart(at, false);
                self.snapshot = self.snapshot.max(Some(at));
                self.dead_before = place.segment;
            }
            Kind::Position if self.is_placed => {
                let at = (head.index, head.term);
                if self.pending == 0 && self.last_place() != (at.0, Some(at.1)) {
                    return Err("a segment that does not continue the one before it");
                }
                self.land_at(at)?;
            }
            Kind::Position => {
                let is_baseless = self.pending > 0;
                self.restart((head.index, head.term), is_baseless);
            }
        }
        Ok(())
    }

    /// Takes in a record whose header is right and whose body is not.
    ///
    /// # Errors
    /// As [`Replay::apply`].
    pub(super) fn apply_bodiless(&mut self, head: &Head) -> Result<(), &'static str> {
        if head.kind != Kind::Entry {
            // A hard state; the mark knows better.
            self.lose(1);
            return Ok(());
        }
        self.land_before(head.index)?;
        self.slots.push_back(Slot::Lost(Some(head.term)));
        self.anchor((head.index, head.term));
        Ok(())
    }

    /// A snapshot covers everything up to here.
    pub(super) fn forget(&mut self, (index, term): (Index, Term)) {
        if index < self.base.0 {
            return;
        }
        let is_other = |slot: &Slot| matches!(slot, Slot::Whole(meta, _) if meta.term != term);
        let slot =
            index.0.checked_sub(self.base.0.0 + 1).and_then(|at| self.slots.get(at as usize));
        if index >= self.last_index() || slot.is_some_and(is_other) {
            // A loss at the end stays one: it may have been later than the snapshot.
            let pending = self.pending;
            self.restart((index, term), false);
            self.pending = pending;
            return;
        }
        self.slots.drain(..(index.0 - self.base.0.0) as usize);
        self.base = (index, term);
        self.is_baseless = false;
        self.gaps.retain_mut(|gap| {
            gap.first = gap.first.max(index.next());
            gap.first <= gap.last
        });
    }

    /// Drops everything from the first loss on.
    pub(super) fn give_up(&mut self) {
        if let Some(gap) = self.gaps.first() {
            self.slots.truncate((gap.first.0 - self.base.0.0 - 1) as usize);
        }
        self.gaps.clear();
        self.pending = 0;
    }

    /// Index and, if it is known, term of the last entry.
    fn last_place(&self) -> (Index, Option<Term>) {
        let term = match self.slots.back() {
            Some(Slot::Whole(meta, _)) => Some(meta.term),
            Some(Slot::Lost(term)) => *term,
            None => Some(self.base.1),
        };
        (self.last_index(), term)
    }

    /// Makes `index` the next one; after a loss that says what was lost.
    fn land_before(&mut self, index: Index) -> Result<(), &'static str> {
        let before = index.0.checked_sub(1).map(Index).ok_or("an entry with index 0")?;
        if self.pending == 0 {
            let follows = self.is_placed && before == self.last_index();
            return follows.then_some(()).ok_or("an entry that does not follow the one before it");
        }
        self.fill_up_to(before);
        Ok(())
    }

    /// The log's last place is this one, which is in the log or was named after a loss.
    fn land_at(&mut self, at: (Index, Term)) -> Result<(), &'static str> {
        let (index, term) = at;
        if self.pending == 0 {
            if index > self.last_index() {
                return Err("a truncation after the last entry");
            }
            self.truncate(at);
            return Ok(());
        }
        if self.is_placed && index <= self.last_index() {
            self.truncate(at);
            // The same place is in our own log, above any gap: nothing below it was lost since.
            let is_ours = self.last_place() == (index, Some(term));
            if is_ours && self.gaps.last().is_none_or(|gap| gap.anchor.0 <= index) {
                self.pending = 0;
                return Ok(());
            }
        }
        if matches!(self.slots.back(), Some(Slot::Whole(meta, _)) if meta.index == index) {
            // Another entry than ours is there: a truncation was lost, also if it seems to be too little for one.
            self.pending = self.pending.max(2);
        }
        self.fill_up_to(index);
        match self.slots.back_mut() {
            Some(last) => *last = Slot::Lost(Some(term)),
            None => self.base = at,
        }
        self.anchor(at);
        Ok(())
    }

    /// After a loss: the last index is this one now.
    fn fill_up_to(&mut self, index: Index) {
        let last = self.last_index();
        let missing = index.0.saturating_sub(last.0);
        if !self.is_placed || missing > self.pending {
            // The place where the log begins was lost, or a reset was.
            self.restart((index, Term(0)), true);
            return;
        }
        // A truncation is one more record, and makes each entry that it takes come twice.
        let is_sure = index >= last && self.pending <= missing + 1;
        let first = if is_sure { last.next() } else { self.base.0.next() };
        self.slots.resize((index.0 - self.base.0.0) as usize, Slot::Lost(None));
        self.gaps.retain(|gap| gap.first < first);
        if first <= index {
            // The anchor follows at once.
            self.gaps.push(Gap { first, last: index, anchor: (index, Term(0)) });
        }
    }

    /// The last entry is known now: what was lost right before it can be asked for.
    fn anchor(&mut self, at: (Index, Term)) {
        let is_lost = matches!(self.slots.back(), Some(Slot::Lost(_)));
        match self.gaps.last_mut() {
            Some(gap) if self.pending > 0 && gap.anchor.1 == Term(0) => {
                gap.anchor = at;
                gap.last = if is_lost { at.0 } else { at.0.previous() };
            }
            Some(gap) if gap.last >= at.0 => {}
            Some(_) | None if is_lost => {
                self.gaps.push(Gap { first: at.0, last: at.0, anchor: at });
            }
            Some(_) | None => {}
        }
        self.pending = 0;
    }

    /// Drops the entries after `at`; below the base, the base moves back.
    fn truncate(&mut self, at: (Index, Term)) {
        if at.0 < self.base.0 {
            self.base = at;
            self.slots.clear();
            self.gaps.clear();
            return;
        }
        self.slots.truncate((at.0.0 - self.base.0.0) as usize);
        self.gaps.retain(|gap| gap.first <= at.0);
        if let Some(gap) = self.gaps.last_mut()
            && gap.anchor.0 > at.0
        {
            (gap.anchor, gap.last) = (at, gap.last.min(at.0));
        }
    }

    fn restart(&mut self, base: (Index, Term), is_baseless: bool) {
        self.base = base;
        (self.is_placed, self.is_baseless) = (true, is_baseless);
        self.slots.clear();
        self.gaps.clear();
        self.pending = 0;
    }
}
