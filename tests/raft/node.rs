//! A core with the shell that a test needs: a disk that loses what it did not confirm, and a state
//! machine that only notes what it applied.

use std::collections::{BTreeSet, VecDeque};

use quicraft::raft::{
    Config, Effects, EntryMeta, Event, HardState, Index, Membership, MembershipAt, NodeId, Payload,
    Raft, Restored, Term, Write, WriteId,
};

/// What survives a crash.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) hard: HardState,
    pub(crate) base: (Index, Term),
    pub(crate) entries: Vec<EntryMeta>,
    pub(crate) snapshot: (Index, Term),
    pub(crate) membership: Membership,
}

/// One write of the core with the bytes, here metas, that the shell puts beside it.
#[derive(Clone, Debug)]
enum Stored {
    Hard(HardState),
    Append { first: Index, entries: Vec<EntryMeta> },
    Truncate(Index),
    Reset(Index, Term),
}

/// One node: the core, its disk, and what is on its way to it.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) raft: Raft,
    pub(crate) disk: Disk,
    /// What the disk will hold once it has carried out everything.
    pub(crate) log: Disk,
    pub(crate) is_manual: bool,
    pending: VecDeque<(WriteId, Stored)>,
}

impl Disk {
    pub(crate) fn new(voters: &BTreeSet<NodeId>) -> Disk {
        Disk {
            hard: HardState::default(),
            base: (Index(0), Term(0)),
            entries: Vec::new(),
            snapshot: (Index(0), Term(0)),
            membership: Membership::of(voters.iter().copied()),
        }
    }

    /// The entry at an index, if it is not covered by the base.
    pub(crate) fn entry(&self, index: Index) -> Option<&EntryMeta> {
        let offset = index.0.checked_sub(self.base.0.0 + 1)?;
        self.entries.get(offset as usize)
    }

    pub(crate) fn last_index(&self) -> Index {
        self.base.0.plus(self.entries.len() as u64)
    }

    fn apply(&mut self, stored: Stored) {
        match stored {
            Stored::Hard(hard) => self.hard = hard,
            Stored::Append { first, entries } => {
                assert_eq!(first, self.last_index().next(), "the core's writes leave no gap");
                self.entries.extend(entries);
            }
            Stored::Truncate(from) => {
                assert!(from > self.base.0 && from <= self.last_index(), "{from} is not there");
                self.entries.truncate((from.0 - self.base.0.0 - 1) as usize);
            }
            Stored::Reset(index, term) => {
                self.entries.clear();
                self.base = (index, term);
            }
        }
    }

    /// What a start finds: the snapshot, and of the log what follows it, if it is the same history.
    pub(crate) fn restore(&mut self) -> Restored {
        let (index, term) = self.snapshot;
        if index > self.base.0 {
            let offset = (index.0 - self.base.0.0) as usize;
            let agrees = self.entries.get(offset - 1).is_some_and(|meta| meta.term == term);
            self.entries = if agrees { self.entries.split_off(offset) } else { Vec::new() };
            self.base = self.snapshot;
        }
        Restored {
            hard_state: self.hard,
            base: self.base,
            membership: MembershipAt { index: Index(0), membership: self.membership.clone() },
        }
    }
}

impl Node {
    pub(crate) fn new(config: Config, mut disk: Disk) -> Node {
        let restored = disk.restore();
        let raft = Raft::new(config, restored, disk.entries.iter().cloned());
        let log = disk.clone();
        Node { raft, disk, log, is_manual: false, pending: VecDeque::new() }
    }

    /// Steps the core and queues what it writes; the caller carries out the rest.
    pub(crate) fn step(&mut self, event: Event) -> Effects {
        let proposed = if let Event::Propose(bytes) = &event { bytes.clone() } else { Vec::new() };
        let received = match &event {
            Event::Receive(message) => entries_of(message),
            _ => Vec::new(),
        };
        if let Event::SnapshotReceived { index, index_term, .. } = event
            && index > self.disk.snapshot.0
        {
            // The shell has made it durable before it tells the core.
            self.disk.snapshot = (index, index_term);
        }
        self.raft.step(event);
        let effects = self.raft.take_effects();
        for (id, write) in &effects.writes {
            let stored = with_entries(write, &proposed, &received);
            self.log.apply(stored.clone());
            self.pending.push_back((*id, stored));
        }
        effects
    }

    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The disk carries out the next `count` writes; the event that confirms them.
    pub(crate) fn persist(&mut self, count: usize) -> Option<Event> {
        let mut last = None;
        for (id, stored) in self.pending.drain(..count.min(self.pending.len())) {
            self.disk.apply(stored);
            last = Some(Event::Persisted(id));
        }
        last
    }

    /// A snapshot of what is committed becomes durable, and the log is cut. Returns the event.
    pub(crate) fn compact(&mut self, index: Index) -> Option<Event> {
        let term = self.raft.term_at(index)?;
        if index > self.disk.snapshot.0 {
            self.disk.snapshot = (index, term);
        }
        Some(Event::Compact(index))
    }

    /// Loses all but the disk.
    pub(crate) fn crash(self) -> Disk {
        self.disk
    }
}

fn entries_of(message: &quicraft::raft::Message) -> Vec<EntryMeta> {
    match &message.body {
        quicraft::raft::Body::AppendEntries { entries, .. } => entries.clone(),
        _ => Vec::new(),
    }
}

fn with_entries(write: &Write, proposed: &[u32], received: &[EntryMeta]) -> Stored {
    match *write {
        Write::Hard(hard) => Stored::Hard(hard),
        Write::Noop { index, term } => Stored::Append {
            first: index,
            entries: vec![EntryMeta { term, bytes: 0, payload: Payload::Noop }],
        },
        Write::Membership { index, term, ref body } => {
            let membership = postcard::from_bytes(body).expect("the core encodes it");
            let bytes = body.len() as u32;
            let payload = Payload::Membership(membership);
            Stored::Append { first: index, entries: vec![EntryMeta { term, bytes, payload }] }
        }
        Write::Proposed { first, term } => {
            let command = |&bytes| EntryMeta { term, bytes, payload: Payload::Command };
            Stored::Append { first, entries: proposed.iter().map(command).collect() }
        }
        Write::Received { first, skip } => {
            Stored::Append { first, entries: received[skip..].to_vec() }
        }
        Write::Truncate { from } => Stored::Truncate(from),
        Write::Reset { index, term } => Stored::Reset(index, term),
    }
}
