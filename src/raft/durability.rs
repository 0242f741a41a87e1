//! What of the core's own writes is durable, and what waits for it.
//!
//! Each write gets a number, and `Persisted` confirms numbers, not indexes: when entries are replaced
//! while older ones at the same indexes are still on their way to the disk, the late confirmation of
//! the old ones says nothing about the new ones (the ABA hazard of asynchronous appends).

use std::collections::VecDeque;

use super::{Index, Message, WriteId};

#[derive(Debug)]
pub(super) struct Durability {
    last_write: WriteId,
    last_hard: WriteId,
    durable_write: WriteId,
    durable_index: Index,
    /// Appends on their way: each with the last index of it that is still in the log.
    pending: VecDeque<(WriteId, Index)>,
    /// Ticks for which writes are on their way and none has arrived.
    stalled_ticks: u32,
    /// Messages that promise what is not durable yet.
    held: VecDeque<(WriteId, Message)>,
}

impl Durability {
    pub(super) fn new(durable_index: Index) -> Durability {
        Durability {
            last_write: WriteId(0),
            last_hard: WriteId(0),
            durable_write: WriteId(0),
            durable_index,
            pending: VecDeque::new(),
            stalled_ticks: 0,
            held: VecDeque::new(),
        }
    }

    /// The last index of the log that is durable.
    pub(super) fn index(&self) -> Index {
        self.durable_index
    }

    /// Whether term and vote are durable.
    pub(super) fn is_hard_state_durable(&self) -> bool {
        self.durable_write >= self.last_hard
    }

    /// Counts how long the disk has been silent.
    pub(super) fn on_tick(&mut self) {
        match self.last_write > self.durable_write {
            true => self.stalled_ticks = self.stalled_ticks.saturating_add(1),
            false => self.stalled_ticks = 0,
        }
    }

    /// Whether the disk has not finished anything for so long that it must be taken for hung.
    pub(super) fn is_hung(&self, patience: u32) -> bool {
        self.stalled_ticks >= patience
    }

    fn next(&mut self) -> WriteId {
        self.last_write = WriteId(self.last_write.0 + 1);
        self.last_write
    }

    pub(super) fn on_hard_state(&mut self) -> WriteId {
        self.last_hard = self.next();
        self.last_hard
    }

    pub(super) fn on_append(&mut self, last: Index) -> WriteId {
        let id = self.next();
        self.pending.push_back((id, last));
        id
    }

    pub(super) fn on_truncate(&mut self, from: Index) -> WriteId {
        self.cap(from.previous());
        self.next()
    }

    /// A snapshot replaced the log; what it covers is durable with it once this write is.
    pub(super) fn on_reset(&mut self, index: Index) -> WriteId {
        self.cap(Index(0));
        self.on_append(index)
    }

    /// A durable snapshot covers everything up to `index`.
    pub(super) fn on_snapshot(&mut self, index: Index) {
        self.durable_index = self.durable_index.max(index);
    }

    fn cap(&mut self, last: Index) {
        self.durable_index = self.durable_index.min(last);
        for (_, pending) in &mut self.pending {
            *pending = (*pending).min(last);
        }
    }

    /// Confirms all writes up to `id`; returns whether the durable index rose.
    pub(super) fn on_persisted(&mut self, id: WriteId) -> bool {
        assert!(
            id <= self.last_write,
            "{id:?} was never written, {:?} is the last",
            self.last_write
        );
        let before = self.durable_index;
        if id > self.durable_write {
            (self.durable_write, self.stalled_ticks) = (id, 0);
        }
        while self.pending.front().is_some_and(|&(write, _)| write <= id) {
            let (_, last) = self.pending.pop_front().expect("just seen");
            self.durable_index = self.durable_index.max(last);
        }
        self.durable_index > before
    }

    /// Keeps a message until term and vote, as they are now, are durable.
    pub(super) fn hold(&mut self, message: Message) {
        assert!(self.held.len() < HELD_MAX, "{} messages wait for one sync", self.held.len());
        self.held.push_back((self.last_hard, message));
    }

    /// Whether as many messages wait as may; more are dropped by the caller, as a network would.
    pub(super) fn is_full(&self) -> bool {
        self.held.len() >= HELD_MAX
    }

    /// Takes a message whose time has come.
    pub(super) fn release(&mut self) -> Option<Message> {
        let ready = self.held.front().is_some_and(|&(write, _)| write <= self.durable_write);
        if ready { self.held.pop_front().map(|(_, message)| message) } else { None }
    }
}

/// Messages that wait for one sync of term and vote; a sync that hangs must not eat the memory.
const HELD_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_confirmation_of_replaced_entries_says_nothing_of_the_new_ones() {
        let mut durability = Durability::new(Index(0));
        let old = durability.on_append(Index(5));
        durability.on_truncate(Index(3));
        let new = durability.on_append(Index(6));
        durability.on_persisted(old);
        assert_eq!(durability.index(), Index(2));
        durability.on_persisted(new);
        assert_eq!(durability.index(), Index(6));
    }

    #[test]
    fn truncation_takes_durability_back() {
        let mut durability = Durability::new(Index(9));
        durability.on_truncate(Index(4));
        assert_eq!(durability.index(), Index(3));
    }
}
