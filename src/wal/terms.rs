//! Which term each index has, as runs: terms change rarely, entries come by the million.

use std::collections::VecDeque;

use crate::raft::{Index, Term};

/// The terms of a contiguous log, and of the place just before it.
///
/// Invariants: there is always a base; runs begin after it and ascend in index.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    base: (Index, Term),
    last: Index,
    /// First index and term of each run.
    runs: VecDeque<(Index, Term)>,
}

impl Terms {
    /// An empty log after `base`.
    pub(super) fn new(base: (Index, Term)) -> Terms {
        Terms { base, last: base.0, runs: VecDeque::new() }
    }

    /// The place that the log begins after.
    pub(super) fn base(&self) -> (Index, Term) {
        self.base
    }

    /// The last place: index and term.
    pub(super) fn last(&self) -> (Index, Term) {
        (self.last, self.runs.back().map_or(self.base.1, |run| run.1))
    }

    /// The term at an index from the base to the last.
    pub(super) fn term(&self, index: Index) -> Option<Term> {
        if index == self.base.0 {
            return Some(self.base.1);
        }
        if index < self.base.0 || index > self.last {
            return None;
        }
        let run = self.runs.partition_point(|run| run.0 <= index);
        run.checked_sub(1).map(|run| self.runs[run].1)
    }

    /// Adds the entry after the last.
    pub(super) fn push(&mut self, term: Term) {
        self.last = self.last.next();
        if self.runs.back().is_none_or(|run| run.1 != term) {
            self.runs.push_back((self.last, term));
        }
    }

    /// Drops entries from `from` on; at or below the base, the base moves back to `(from - 1, term_before)`.
    pub(super) fn truncate(&mut self, from: Index, term_before: Term) {
        if from <= self.base.0 {
            *self = Terms::new((from.previous(), term_before));
            return;
        }
        self.last = self.last.min(from.previous());
        while self.runs.back().is_some_and(|run| run.0 >= from) {
            self.runs.pop_back();
        }
    }

    /// Moves the base forward to `index`, which is in the log.
    pub(super) fn forget(&mut self, index: Index) {
        let Some(term) = self.term(index) else { return };
        self.base = (index, term);
        while self.runs.get(1).is_some_and(|run| run.0 <= index.next()) {
            self.runs.pop_front();
        }
        if let Some(run) = self.runs.front_mut() {
            run.0 = run.0.max(index.next());
        }
        if self.last == index {
            self.runs.clear();
        }
    }
}
