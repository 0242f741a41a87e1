//! What a leader writes into the log of its own accord: the time, and the end of history.

use super::Node;
use crate::proto;
use crate::proto::command::Command;
use crate::raft::Index;

impl Node {
    /// A clock entry, if the last one is old, and an end of the history that was kept long enough: sessions and history
    /// end by the log's time.
    pub(super) fn own_commands(&self, now_ms: u64) -> Vec<Vec<u8>> {
        if now_ms < self.clock_proposed_ms + CLOCK_EVERY_MS {
            return Vec::new();
        }
        let below = self.history_end(now_ms);
        let compact = (below > self.store.oldest()).then_some(Command::Compact { below: below.0 });
        let encode = |command| {
            let mut bytes = Vec::new();
            proto::encode(&command, &mut bytes);
            bytes
        };
        std::iter::once(Command::Clock { now_ms }).chain(compact).map(encode).collect()
    }

    /// The oldest revision that shall stay readable: by number, by age, and none but the newest when old ones take the
    /// room of new ones.
    fn history_end(&self, now_ms: u64) -> Index {
        let (applied, retention) = (self.store.revision(), self.about.retention);
        let max = self.about.store_bytes_max;
        if self.store.bytes() > max / 2 && self.store.dead_bytes() > max / 16 {
            return applied;
        }
        let by_number = Index(applied.0.saturating_sub(retention.revisions));
        let by_age = self.store.revision_at(now_ms.saturating_sub(retention.age_ms));
        by_number.max(by_age)
    }
}

/// The log's time is this fine; only the end of idle sessions and of history depends on it.
const CLOCK_EVERY_MS: u64 = 1000;
