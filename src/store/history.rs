//! How far back the store can be read, and which revision was the newest at which time.
//!
//! **For:** reads at older revisions, until they are compacted away.
//!
//! **In and out:** `Compact` commands move [`History::oldest`]; `Clock` commands tell the time. [`History::at_time`]
//! answers the leader, who decides how long history is kept.
//!
//! **Always:** all of it follows from the log, so that every node refuses the same revisions.
//!
//! **Left out:** removing what cannot be read any more: checkpoints leave it behind.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct History {
    oldest: u64,
    /// Times in milliseconds since 1970, and the revision then; both ascend. Not before `oldest`, but for one.
    marks: VecDeque<(u64, u64)>,
    /// Milliseconds between marks, at least: more when there would be too many.
    spacing_ms: u64,
}

impl History {
    /// The oldest revision that can be read.
    pub(super) fn oldest(&self) -> u64 {
        self.oldest
    }

    /// Makes revisions below `below` unreadable, by the entry at `index`.
    pub(super) fn compact(&mut self, index: u64, below: u64) {
        self.oldest = self.oldest.max(below.min(index));
        while self.marks.get(1).is_some_and(|mark| mark.1 <= self.oldest) {
            self.marks.pop_front();
        }
    }

    /// The time is `now_ms`, by the entry at `index`.
    pub(super) fn clock(&mut self, index: u64, now_ms: u64) {
        if self.marks.back().is_some_and(|mark| mark.0.saturating_add(self.spacing_ms) >= now_ms) {
            return;
        }
        if self.marks.len() < MARKS_MAX / 4 {
            self.spacing_ms /= 2;
        }
        if self.marks.len() >= MARKS_MAX {
            self.spacing_ms = (self.spacing_ms * 2).max(SPACING_MS_MIN);
            let mut number = 0_usize;
            self.marks.retain(|_| {
                number += 1;
                number.is_multiple_of(2)
            });
        }
        self.marks.push_back((now_ms, index));
    }

    /// The newest revision that is known to be from `time_ms` or before; 0 if none is.
    pub(super) fn at_time(&self, time_ms: u64) -> u64 {
        let after = self.marks.partition_point(|mark| mark.0 <= time_ms);
        after.checked_sub(1).map_or(0, |place| self.marks[place].1)
    }

    /// Whether it can be what a snapshot at `index` says.
    pub(super) fn is_sound(&self, index: u64) -> bool {
        let pairs = self.marks.iter().zip(self.marks.iter().skip(1));
        let ascending = pairs.into_iter().all(|(a, b)| a.0 < b.0 && a.1 < b.1);
        let past = self.oldest <= index && self.marks.back().is_none_or(|mark| mark.1 <= index);
        ascending && past && self.marks.len() <= MARKS_MAX
    }
}

/// Clock commands that are remembered; one comes each second.
const MARKS_MAX: usize = 8192;
/// Twice the time between two of them.
const SPACING_MS_MIN: u64 = 2000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_gives_the_newest_revision_from_before_it() {
        let mut history = History::default();
        for second in 1..=100 {
            history.clock(second * 10, second * 1000);
        }
        assert_eq!(history.at_time(999), 0);
        assert_eq!(history.at_time(1000), 10);
        assert_eq!(history.at_time(50_999), 500);
        history.compact(2000, 500);
        assert_eq!((history.at_time(50_999), history.at_time(49_999)), (500, 0));
        history.compact(2000, 3000);
        assert_eq!(history.oldest(), 2000);
        history.compact(2001, 1);
        assert_eq!(history.oldest(), 2000);
    }

    #[test]
    fn marks_are_bounded_and_reach_back() {
        let mut history = History::default();
        for second in 1..=1_000_000 {
            history.clock(second, second * 1000);
        }
        assert!(history.marks.len() <= MARKS_MAX && history.is_sound(1_000_000));
        assert!(history.at_time(100_000_000).abs_diff(100_000) < 1000);
        assert!(!history.is_sound(900_000));
    }
}
