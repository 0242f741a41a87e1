//! The log's time, seen from outside: it moves at the true rate while there are writes, whatever wall clocks show.

use std::collections::BTreeMap;

use quicraft::node::Node;
use quicraft::proto::command::{Command, decode_entry};
use quicraft::raft::{EntryKind, Index, RoleKind, Term};

use crate::coverage::Coverage;
use crate::truth::Broken;

#[derive(Default)]
pub(crate) struct LogClock {
    /// The true time.
    pub(crate) now_us: u64,
    /// When each clock entry was first seen in a leader's log.
    proposed: BTreeMap<(u64, Term), u64>,
    /// What the last committed one says, and when it was proposed.
    last: Option<(u64, u64)>,
}

/// What is remembered of one node between its turns.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SeenClock {
    last_index: u64,
    /// Since when this node could have proposed a clock entry and has not.
    waits_since_us: Option<u64>,
}

impl LogClock {
    /// Looks at what a leader has added in a turn: a clock entry, if the last one is old.
    pub(crate) fn look(
        &mut self,
        at: usize,
        node: &Node,
        seen: &mut SeenClock,
    ) -> Result<(), Broken> {
        let core = node.core();
        let (last, term) = (core.last_index().0, core.hard_state().term);
        let new = seen.last_index + 1..=last;
        seen.last_index = last;
        if core.role() != RoleKind::Leader {
            seen.waits_since_us = None;
            return Ok(());
        }
        let (mut has_clock, mut has_command) = (false, false);
        for index in new {
            let Ok(entry) = node.entry(Index(index)) else { continue };
            if entry.kind != EntryKind::Command {
                continue;
            }
            has_command = true;
            if let Ok((_, Command::Clock { .. })) = decode_entry(&entry.body) {
                has_clock = true;
                self.proposed.entry((index, entry.term)).or_insert(self.now_us);
            }
        }
        let waits_us = seen.waits_since_us.map_or(0, |since| self.now_us - since);
        if has_command && !has_clock && waits_us > EVERY_US + SLACK_US {
            return Err(format!("n{}: writes, and no clock entry for {waits_us} us", at + 1));
        }
        let is_able = core.term_at(node.applied().0) == Some(term);
        if has_clock || !is_able {
            seen.waits_since_us = None;
        }
        if is_able {
            seen.waits_since_us.get_or_insert(self.now_us);
        }
        Ok(())
    }

    /// A clock entry is committed.
    pub(crate) fn committed(
        &mut self,
        place: (u64, Term),
        now_ms: u64,
        coverage: &mut Coverage,
    ) -> Result<(), Broken> {
        let Some(&proposed) = self.proposed.get(&place) else {
            return Err(format!("nobody proposed the clock entry at {}", place.0));
        };
        if let Some((last_ms, last_proposed)) = self.last.replace((now_ms, proposed)) {
            coverage.count("clock: entry moved the log's time at the true rate");
            let passed_us = proposed.saturating_sub(last_proposed);
            let most_us = passed_us / 8 * 9 + SLACK_US;
            if now_ms <= last_ms || (now_ms - last_ms) * 1000 > most_us {
                return Err(format!(
                    "the log's time goes from {last_ms} to {now_ms} ms in {passed_us} us, by entry {}",
                    place.0
                ));
            }
        }
        Ok(())
    }
}

/// Clock entries are so far apart, at most, if there are writes.
const EVERY_US: u64 = 1_000_000;
/// Clocks count whole milliseconds.
const SLACK_US: u64 = 3000;
