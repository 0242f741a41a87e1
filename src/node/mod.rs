//! The node: core, log and store tied together in turns, deterministic, without threads.
//!
//! **What it is for.** A turn takes in everything that arrived ([`Input`]) and gives out everything
//! that follows ([`Output`], [`Replies`]), in this order: drain, step, append,
//! wake the sync thread, send ([`Node::step_in`]); then commit, apply, reply ([`Node::step_out`]).
//! Sends never wait for applying.
//!
//! **What always holds.** A write is answered only after the core called it committed and the store
//! applied it. A read is answered only after its index is applied. What leadership's loss leaves open is
//! answered `Unknown`, never guessed. Everything waiting is bounded by the requests that the driver
//! lets in.
//!
//! **What is left out.** Threads and clocks ([`run`] has those that are not tokio's), QUIC, TLS.
//!
//! [`open()`] brings a data directory to life; `requests` has the clients' side of a turn.

mod agreement;
mod apply;
mod book;
mod create;
mod io;
mod members;
mod open;
mod own;
mod reads;
mod repair;
mod requests;
pub mod run;
mod spare;
mod wire;

use std::collections::{BTreeMap, VecDeque};

pub use agreement::Divergence;
pub use book::{Book, Stranger};
pub use create::{init, init_learner, is_unseated, restore};
pub use io::{
    CheckpointJob, Forward, Input, Output, ReceivedSnapshot, Replies, ReplyTo, Request,
    RequestBody, Sent, SnapshotAt,
};
pub use members::{MembersVersion, Peer};
pub use open::{Error, OpenOptions, Opened, Opening, data_id, holds_data, open, snapshots_dir};
pub use repair::{Outcome, Repair};
pub use wire::{check_membership, decode_message};

use crate::proto::peer::{FETCH_BYTES_MAX, Want};
use crate::raft::{
    self, Contact, Effects, Event, Index, Message, NodeId, Raft, ReadId, RoleKind, Write, WriteId,
};
use crate::store::{Reader, Store};
use crate::wal::{self, Batch, BatchBuilder, Entry, Log, Ordinal, Room};
use agreement::Agreement;
use members::WaitingChange;
use own::LogTime;
use reads::{Reads, WaitingRead};
use requests::{Growth, Proposal};

/// What clients are told about this node and its cluster, and its limits.
#[derive(Clone, Debug)]
pub struct About {
    /// The node's name.
    pub name: String,
    /// The cluster's name.
    pub cluster: String,
    /// How nodes are reached as far as the configuration says, by name.
    pub configured: BTreeMap<String, Contact>,
    /// Longest value that clients may write.
    pub value_bytes_max: usize,
    /// Bytes of the store above which growth is refused.
    pub store_bytes_max: u64,
    /// Log bytes after which a checkpoint is made.
    pub snapshot_log_bytes: u64,
    /// What can be read beside the newest.
    pub retention: Retention,
}

/// How long older revisions can be read. Only the leader's counts: it tells the others through the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The newest so many revisions ...
    pub revisions: u64,
    /// ... of the last so many milliseconds.
    pub age_ms: u64,
}

/// One node: see the module.
pub struct Node {
    about: About,
    raft: Raft,
    log: Log,
    store: Store,
    /// Writes of the core on their way to the disk, with their place in the log.
    writes: VecDeque<(WriteId, Ordinal)>,
    /// The leader's proposals that are not yet applied, by index.
    proposals: VecDeque<Proposal>,
    /// What those may add to the store.
    growth: Growth,
    next_read: ReadId,
    /// Reads that wait for an index.
    reads: Reads,
    /// Reads that wait for the store to reach their index.
    ready: Vec<(Index, Vec<WaitingRead>)>,
    /// Changes of the membership that are not yet done.
    changes: Vec<WaitingChange>,
    /// Where members said on their own connections that they are reached.
    announced: BTreeMap<NodeId, Contact>,
    /// How often that changed.
    announcements: u64,
    snapshots: Snapshots,
    agreement: Agreement,
    log_time: LogTime,
    room: Room,
    /// The disk became full: leadership is for a node that has room.
    hands_on: bool,
}

/// What is known of snapshots.
#[derive(Debug, Default)]
struct Snapshots {
    newest: Option<SnapshotAt>,
    /// A checkpoint's image is being made or brought up to date.
    compacting: bool,
    /// A checkpoint's file is not written yet.
    writing: bool,
    /// A peer found the newest damaged: it is written again from the store, which is good.
    is_suspect: bool,
    /// Bytes that were added to the log since the newest was begun.
    log_bytes: u64,
    /// Ticks since something was added to the log, or a client read.
    quiet_ticks: u32,
    /// What the last checkpoint's image took, if the store went on in it; else the store's bytes when it began.
    store_bytes: u64,
    /// What the writes since the last one that had to wait for a checkpoint count towards the next; see
    /// `outruns_checkpoint`.
    beyond: u64,
    /// The oldest readable revision at the last checkpoint.
    oldest: Index,
    /// Who waits for a snapshot, and of which index at least.
    wanted: Vec<(ReplyTo, Index)>,
    /// The last checkpoint failed, and those who wait are to hear of it.
    failed: bool,
}

impl Node {
    /// Takes in what arrived and says what is to be written and sent.
    pub fn step_in(&mut self, input: &mut Input, output: &mut Output) {
        self.raft.set_now(input.clock_ms);
        self.log_time.count(input.clock_ms);
        for persisted in input.persisted.drain(..) {
            self.on_persisted(persisted, output);
        }
        // Before messages: the sender probes as soon as it is told that its snapshot is here.
        for received in input.snapshots_received.drain(..) {
            self.on_snapshot_received(received, output);
        }
        for (message, batch) in input.messages.drain(..) {
            self.step(Event::Receive(message), batch, output);
        }
        for (from, told) in input.state_hashes.drain(..) {
            let members = self.raft.membership();
            let found = self.agreement.heard(from, told, self.raft.id(), members);
            output.divergences.extend(found);
        }
        for (id, contact) in input.announced.drain(..) {
            self.on_announced(id, contact);
        }
        for (id, address) in input.reached.drain(..) {
            self.on_reached(id, &address);
        }
        for members in input.vouched.drain(..) {
            self.step(Event::Vouched(members), None, output);
        }
        for peer in input.unreachable.drain(..) {
            self.step(Event::Unreachable(peer), None, output);
        }
        for (to, sent) in input.snapshots_sent.drain(..) {
            let index = match sent {
                Sent::Arrived(index) => Some(index),
                Sent::Lost | Sent::Damaged => None,
            };
            self.snapshots.is_suspect |= sent == Sent::Damaged;
            self.step(Event::SnapshotSent { to, index }, None, output);
        }
        for image in input.images.drain(..) {
            self.on_image(image, output);
        }
        for checkpoint in input.checkpoints.drain(..) {
            self.on_checkpoint(checkpoint, output);
        }
        self.snapshots.quiet_ticks = self.snapshots.quiet_ticks.saturating_add(input.ticks);
        for _ in 0..std::mem::take(&mut input.ticks) {
            self.step(Event::Tick, None, output);
        }
        if self.hands_on && self.raft.role() == RoleKind::Leader {
            self.hands_on = false;
            self.step(Event::Transfer(None), None, output);
        }
        if std::mem::take(&mut input.transfer) {
            self.step(Event::Transfer(None), None, output);
        }
        self.take_requests(input, output);
        output.log_work.extend(self.log.take_pending());
    }

    /// Applies what is committed and answers what that allows.
    pub fn step_out(&mut self, output: &mut Output, replies: &mut dyn Replies) {
        self.apply_committed(output, replies);
        self.answer_changes(replies);
        self.answer_reads(replies);
        self.answer_saves(replies);
        self.maybe_checkpoint(output);
    }

    /// Steps the core and carries out its writes; `batch` holds the entries of the event at hand.
    fn step(&mut self, event: Event, batch: Option<Batch>, output: &mut Output) -> Effects {
        self.raft.step(event);
        let mut effects = self.raft.take_effects();
        let mut batch = batch;
        for (id, write) in effects.writes.drain(..) {
            let ordinal = self.write(write, &mut batch);
            self.writes.push_back((id, ordinal));
        }
        for message in effects.messages.drain(..) {
            match self.entries_of(&message) {
                Ok(batches) => output.messages.push((message, batches)),
                // A leader that cannot read its log is none: another one takes over.
                Err(error) => output.failure = Some(error),
            }
        }
        output.send_snapshots.append(&mut effects.send_snapshots);
        output.contradictions.append(&mut effects.contradictions);
        for (id, index) in effects.reads.drain(..) {
            if let Some(waiting) = self.reads.rounds.remove(&id) {
                self.ready.push((index, waiting));
            }
        }
        for id in effects.reads_refused.drain(..) {
            self.refuse_read(id);
        }
        self.on_roles(&effects, output);
        output.roles.append(&mut effects.roles);
        effects
    }

    fn write(&mut self, write: Write, batch: &mut Option<Batch>) -> Ordinal {
        match write {
            Write::Hard(hard_state) => self.log.save_hard_state(hard_state),
            Write::Noop { index, term } => {
                let mut builder = BatchBuilder::new(index);
                builder.push(term, raft::EntryKind::Noop, &[]);
                self.append(builder.finish())
            }
            Write::Membership { index, term, body } => {
                let mut builder = BatchBuilder::new(index);
                builder.push(term, raft::EntryKind::Membership, &body);
                self.append(builder.finish())
            }
            Write::Proposed { first, .. } => {
                let batch = batch.take().expect("a proposal brings its entries");
                assert_eq!(batch.first_index(), first, "entries are encoded for their place");
                self.append(batch)
            }
            Write::Received { first, .. } => {
                let batch = batch.take().expect("a message with entries brings them");
                self.append(batch.slice_from(first))
            }
            Write::Truncate { from } => self.log.truncate(from),
            Write::Reset { index, term } => self.log.reset(index, term),
        }
    }

    fn append(&mut self, batch: Batch) -> Ordinal {
        self.snapshots.log_bytes += batch.byte_len() as u64;
        self.snapshots.quiet_ticks = 0;
        self.log.append(batch)
    }

    /// The bytes of the entries that a message names.
    fn entries_of(&self, message: &Message) -> Result<Vec<Batch>, wal::Error> {
        let raft::Body::AppendEntries { prev_log_index, ref entries, .. } = message.body else {
            return Ok(Vec::new());
        };
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let (first, last) = (prev_log_index.next(), prev_log_index.plus(entries.len() as u64));
        self.log.read(first, last, usize::MAX)
    }

    fn on_persisted(&mut self, persisted: crate::wal::Persisted, output: &mut Output) {
        // Once per full disk: of two full nodes neither shall drive the other in circles.
        self.hands_on |= self.room == Room::Ample && persisted.room != Room::Ample;
        self.room = persisted.room;
        self.hands_on &= self.room != Room::Ample;
        self.log.on_persisted(persisted);
        let ordinal = self.log.persisted();
        let mut durable = None;
        while self.writes.front().is_some_and(|&(_, write)| write <= ordinal) {
            durable = self.writes.pop_front().map(|(id, _)| id);
        }
        if let Some(id) = durable {
            self.step(Event::Persisted(id), None, output);
        }
    }

    fn on_roles(&mut self, effects: &Effects, _output: &mut Output) {
        let lost_leadership = effects.roles.iter().any(|&(_, role)| role != RoleKind::Leader)
            && self.raft.role() != RoleKind::Leader;
        if lost_leadership {
            self.abandon_proposals();
            self.abandon_changes();
        }
    }

    /// The consensus core, to look at.
    pub fn core(&self) -> &Raft {
        &self.raft
    }

    /// The last index that the store has applied, and the hash of everything up to there.
    pub fn applied(&self) -> (Index, u64) {
        (self.store.revision(), self.store.state_hash())
    }

    /// Reads the store.
    pub fn reader(&self) -> Reader {
        self.store.reader()
    }

    /// An entry of the log, from memory or disk.
    ///
    /// # Errors
    /// If the log does not hold it any more, or it is damaged.
    pub fn entry(&self, index: Index) -> Result<Entry, wal::Error> {
        self.log.entry(index)
    }

    /// What this node's log has of what a damaged one lacks.
    pub fn fetch(&self, want: &Want) -> Option<Batch> {
        let (Want { first, last, anchor }, log) = (*want, &self.log);
        let is_here = log.term(anchor.0) == Some(anchor.1) && first >= log.first_index();
        if !is_here || first > last || last > anchor.0 {
            return None;
        }
        // What cannot be read here may be read elsewhere.
        let batches = log.read(first, last, FETCH_BYTES_MAX).ok()?;
        let mut whole = BatchBuilder::new(first);
        for (meta, body) in batches.iter().flat_map(Batch::lent) {
            whole.push(meta.term, meta.kind, body);
        }
        Some(whole.finish())
    }

    /// The core's last word on who leads.
    pub fn leader(&self) -> Option<raft::NodeId> {
        self.raft.leader()
    }

    /// The core's role.
    pub fn role(&self) -> RoleKind {
        self.raft.role()
    }

    /// Whether this node leads and another voter is about to take over.
    pub fn is_handing_over(&self) -> bool {
        self.raft.role() == RoleKind::Leader && self.raft.heir().is_some()
    }

    /// The newest snapshot.
    pub fn newest_snapshot(&self) -> Option<&SnapshotAt> {
        self.snapshots.newest.as_ref()
    }

    /// The core's term.
    pub fn term(&self) -> raft::Term {
        self.raft.hard_state().term
    }
}
