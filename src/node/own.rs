//! What a leader writes into the log of its own accord: the time, and the end of history.
//!
//! **Always:** the log's time moves at the true rate, whatever wall clocks show. A clock entry adds what this node's
//! monotonic clock has counted since the entry before it, bent towards its wall clock by at most one part in
//! [`BEND`]. Only the first clock entry of a cluster takes the wall clock's time. So no wall clock ends a session or
//! history early, and none that went back stops them. Time in which no node ran does not count.

use super::Node;
use crate::proto::command::Command;
use crate::raft::Index;

/// The log's time, as this node counts it on.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogTime {
    /// What the last clock entry says that this node applied or proposed; 0 before the first of the cluster.
    entry_ms: u64,
    /// The monotonic time when this node did so; a restarted node counts from its first turn.
    known_at_ms: Option<u64>,
    /// The monotonic time now.
    now_ms: u64,
}

impl LogTime {
    /// The log's time of a store that was just opened.
    pub(super) fn opened(entry_ms: u64) -> LogTime {
        LogTime { entry_ms, known_at_ms: None, now_ms: 0 }
    }

    /// A turn begins.
    pub(super) fn count(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        self.known_at_ms.get_or_insert(self.now_ms);
    }

    /// The last clock entry is one that says `entry_ms`, from now on.
    pub(super) fn know(&mut self, entry_ms: u64) {
        self.entry_ms = entry_ms;
        self.known_at_ms = Some(self.now_ms);
    }

    /// What the next clock entry says, if one is due.
    fn next(&self, wall_ms: u64) -> Option<u64> {
        if self.entry_ms == 0 {
            return Some(wall_ms.max(1));
        }
        let elapsed = self.now_ms - self.known_at_ms?;
        let (on, bend) = (self.entry_ms.saturating_add(elapsed), elapsed / BEND);
        (elapsed >= CLOCK_EVERY_MS).then(|| wall_ms.clamp(on - bend, on.saturating_add(bend)))
    }
}

impl Node {
    /// A clock entry, if the last one is old, and an end of the history that was kept long enough: sessions and history
    /// end by the log's time.
    ///
    /// The last one is known for certain only when all entries of earlier terms are applied: until then there is none.
    pub(super) fn own_commands(&self, wall_ms: u64) -> Vec<Command<'static>> {
        let applied_term = self.raft.term_at(self.store.revision());
        if applied_term != Some(self.raft.hard_state().term) {
            return Vec::new();
        }
        let Some(now_ms) = self.log_time.next(wall_ms) else { return Vec::new() };
        let below = self.history_end(now_ms);
        let compact = (below > self.store.oldest()).then_some(Command::Compact { below: below.0 });
        std::iter::once(Command::Clock { now_ms }).chain(compact).collect()
    }

    /// The oldest revision that shall stay readable: by number, by age, and none but the newest when old ones take the
    /// room of new ones.
    fn history_end(&self, now_ms: u64) -> Index {
        let (applied, retention) = (self.store.revision(), self.about.retention);
        let max = self.arena_bytes_max();
        if self.store.bytes() > max / 2 && self.store.dead_bytes() > max / 16 {
            return applied;
        }
        let by_number = Index(applied.0.saturating_sub(retention.revisions));
        let by_age = self.store.revision_at(now_ms.saturating_sub(retention.age_ms));
        by_number.max(by_age)
    }

    /// What the store's arena may take: all that the store may, without its sessions, which lie beside the arena.
    pub(super) fn arena_bytes_max(&self) -> u64 {
        self.about.store_bytes_max.saturating_sub(self.store.session_bytes())
    }
}

/// The log's time is this fine; only the end of idle sessions and of history depends on it.
const CLOCK_EVERY_MS: u64 = 1000;
/// The log's time comes near the wall clock by this part of the time that goes by: an hour's difference in eight hours.
const BEND: u64 = 8;
