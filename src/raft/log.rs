//! What the core knows of its log: terms, lengths and memberships by index, never the bytes.
//!
//! Terms come in long runs, so the log is a short list of runs beside one length per entry. What is
//! below `base` is covered by a snapshot and forgotten but for its last term and membership.

use std::collections::VecDeque;

use super::{EntryKind, EntryMeta, Index, Membership, MembershipAt, Payload, Term};

#[derive(Debug)]
pub(super) struct Log {
    base: Index,
    base_term: Term,
    /// First index of each term's run, above `base`; terms strictly rise.
    runs: VecDeque<(Index, Term)>,
    entries: VecDeque<EntryShape>,
    /// The sum of all lengths in `entries`.
    bytes: u64,
    /// All memberships that are set above the base, after the one in force at the base.
    memberships: Vec<MembershipAt>,
    /// How often another membership came into force.
    membership_changes: u64,
}

#[derive(Clone, Copy, Debug)]
struct EntryShape {
    bytes: u32,
    kind: EntryKind,
}

impl Log {
    /// A log that begins after a snapshot, or after nothing with index and term 0.
    pub(super) fn new(base: Index, base_term: Term, membership: MembershipAt) -> Log {
        assert!(membership.index <= base, "the base membership is set at {}", membership.index);
        Log {
            base,
            base_term,
            runs: VecDeque::new(),
            entries: VecDeque::new(),
            bytes: 0,
            memberships: vec![membership],
            membership_changes: 0,
        }
    }

    /// The bytes of all entries.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The index before the first entry.
    pub(super) fn base(&self) -> Index {
        self.base
    }

    pub(super) fn last_index(&self) -> Index {
        self.base.plus(self.entries.len() as u64)
    }

    pub(super) fn last_term(&self) -> Term {
        self.runs.back().map_or(self.base_term, |&(_, term)| term)
    }

    /// The membership in force: the latest in the log, committed or not (thesis 4.1).
    pub(super) fn membership(&self) -> &Membership {
        &self.latest_membership().membership
    }

    /// Counts up whenever another membership comes into force.
    pub(super) fn membership_changes(&self) -> u64 {
        self.membership_changes
    }

    /// Forgets everything: a snapshot takes the log's place.
    pub(super) fn reset(&mut self, base: Index, base_term: Term, membership: MembershipAt) {
        let membership_changes = self.membership_changes + 1;
        *self = Log { membership_changes, ..Log::new(base, base_term, membership) };
    }

    /// The same, with the entry that set it.
    pub(super) fn latest_membership(&self) -> &MembershipAt {
        self.memberships.last().expect("the base membership is never removed")
    }

    /// The membership in force at an index.
    pub(super) fn membership_at(&self, index: Index) -> &MembershipAt {
        let after = self.memberships.partition_point(|at| at.index <= index);
        &self.memberships[after.saturating_sub(1)]
    }

    /// The term of an entry; `None` below the base and above the end.
    pub(super) fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.base {
            return Some(self.base_term);
        }
        if index < self.base || index > self.last_index() {
            return None;
        }
        let after = self.runs.partition_point(|&(first, _)| first <= index);
        Some(self.runs[after - 1].1)
    }

    /// Whether a candidate's log is at least as up to date as this one (Raft 5.4.1).
    pub(super) fn is_up_to_date(&self, last_index: Index, last_term: Term) -> bool {
        (last_term, last_index) >= (self.last_term(), self.last_index())
    }

    /// Adds one entry at the end.
    pub(super) fn append(&mut self, meta: EntryMeta) -> Index {
        let index = self.last_index().next();
        let last_term = self.last_term();
        assert!(meta.term >= last_term, "term {} after {last_term} at {index}", meta.term);
        if meta.term > last_term || self.runs.is_empty() {
            self.runs.push_back((index, meta.term));
        }
        self.bytes += u64::from(meta.bytes);
        self.entries.push_back(EntryShape { bytes: meta.bytes, kind: meta.payload.kind() });
        if let Payload::Membership(membership) = meta.payload {
            self.memberships.push(MembershipAt { index, membership });
            self.membership_changes += 1;
        }
        index
    }

    /// Removes everything from `from` on.
    pub(super) fn truncate(&mut self, from: Index) {
        assert!(from > self.base, "truncation at {from} reaches below the base {}", self.base);
        let gone = self.entries.drain((from.0 - self.base.0 - 1) as usize..);
        self.bytes -= gone.map(|entry| u64::from(entry.bytes)).sum::<u64>();
        while self.runs.back().is_some_and(|&(first, _)| first >= from) {
            self.runs.pop_back();
        }
        let before = self.memberships.len();
        self.memberships.retain(|at| at.index < from);
        self.membership_changes += u64::from(self.memberships.len() < before);
    }

    /// Forgets everything up to `index`, which a snapshot covers.
    pub(super) fn compact(&mut self, index: Index) {
        if index <= self.base {
            return;
        }
        let term = self.term_at(index).expect("only what is in the log is compacted");
        let gone = self.memberships.partition_point(|at| at.index <= index).saturating_sub(1);
        self.memberships.drain(..gone);
        let gone = self.entries.drain(..(index.0 - self.base.0) as usize);
        self.bytes -= gone.map(|entry| u64::from(entry.bytes)).sum::<u64>();
        while self.runs.get(1).is_some_and(|&(first, _)| first <= index.next()) {
            self.runs.pop_front();
        }
        if let Some(run) = self.runs.front_mut() {
            run.0 = run.0.max(index.next());
        }
        if self.entries.is_empty() {
            self.runs.clear();
        }
        (self.base, self.base_term) = (index, term);
    }

    /// The entries after `prev`, as many as fit into `bytes_max` but at least one, and their bytes.
    pub(super) fn metas_after(
        &self,
        prev: Index,
        bytes_max: u64,
        entries_max: usize,
    ) -> (Vec<EntryMeta>, u64) {
        assert!(prev >= self.base && prev <= self.last_index(), "{prev} is not in the log");
        let start = (prev.0 - self.base.0) as usize;
        let mut run = self.runs.partition_point(|&(first, _)| first <= prev.next());
        let (mut metas, mut bytes) = (Vec::new(), 0);
        let mut index = prev;
        for shape in self.entries.range(start..) {
            index = index.next();
            bytes += u64::from(shape.bytes) + ENTRY_OVERHEAD_BYTES;
            if !metas.is_empty() && (bytes > bytes_max || metas.len() >= entries_max) {
                bytes -= u64::from(shape.bytes) + ENTRY_OVERHEAD_BYTES;
                break;
            }
            while self.runs.get(run).is_some_and(|&(first, _)| first <= index) {
                run += 1;
            }
            metas.push(EntryMeta {
                term: self.runs[run - 1].1,
                bytes: shape.bytes,
                payload: self.payload_at(index, shape.kind),
            });
        }
        (metas, bytes)
    }

    fn payload_at(&self, index: Index, kind: EntryKind) -> Payload {
        match kind {
            EntryKind::Noop => Payload::Noop,
            EntryKind::Command => Payload::Command,
            EntryKind::Membership => {
                Payload::Membership(self.membership_at(index).membership.clone())
            }
        }
    }

    /// The highest index at or below `index` whose term is at most `term`: where two logs may still
    /// agree when one holds `term` at `index` and the other does not (Raft 5.3). `None` if that lies
    /// below the base.
    pub(super) fn last_at_or_below(&self, index: Index, term: Term) -> Option<Index> {
        let mut index = index.min(self.last_index());
        for &(first, run_term) in self.runs.iter().rev() {
            if first > index {
                continue;
            }
            if run_term <= term {
                return Some(index);
            }
            index = first.previous();
        }
        (index >= self.base && self.base_term <= term).then_some(self.base)
    }
}

/// What an entry costs beside its body, on the wire and in the log.
const ENTRY_OVERHEAD_BYTES: u64 = 13;
