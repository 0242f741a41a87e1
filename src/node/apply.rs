//! The end of a turn: committed entries go into the store; checkpoints begin, end and arrive.

use super::{CheckpointJob, Node, Output, ReceivedSnapshot, Replies, SnapshotAt, Snapshots};
use crate::proto::client::{Refusal, Reply};
use crate::proto::command::{Command, Outcome, Principal, decode_entry};
use crate::proto::peer::StateHash;
use crate::raft::{EntryKind, Event, Index, RoleKind};
use crate::store::{Adoption, Compacted};
use crate::wal::{Batch, EntryMeta};

impl Node {
    /// Applies what is committed, in lots, so that heartbeats never wait long.
    pub(super) fn apply_committed(&mut self, output: &mut Output, replies: &mut dyn Replies) {
        let commit_index = self.raft.hard_state().commit_index;
        let applied = self.store.revision();
        if applied >= commit_index {
            return;
        }
        let last = commit_index.min(applied.plus(APPLY_ENTRIES_MAX));
        let batches = match self.log.read(applied.next(), last, APPLY_BYTES) {
            Ok(batches) => batches,
            Err(error) => {
                output.failure = Some(error);
                return;
            }
        };
        let entries = batches.iter().flat_map(Batch::lent);
        let mut entries = entries.take_while(|(entry, _)| entry.index <= last).peekable();
        let mut lot = Vec::with_capacity(LOT_ENTRIES);
        while entries.peek().is_some() {
            lot.extend(entries.by_ref().take(LOT_ENTRIES).map(|(meta, body)| command(meta, body)));
            let commands = lot.iter().filter_map(|(_, entry)| Some(&entry.as_ref()?.1));
            self.store.warm_up(commands);
            for (index, entry) in lot.drain(..) {
                let outcome = match entry {
                    Some((owner, command @ Command::Clock { .. })) => {
                        let outcome = self.store.apply(index, owner, &command);
                        self.on_clock(index);
                        let own = StateHash { index, hash: self.store.state_hash() };
                        let members = self.raft.membership();
                        let found = self.agreement.applied(own, self.raft.id(), members);
                        output.divergences.extend(found);
                        output.state_hash = Some(own);
                        outcome
                    }
                    Some((owner, command)) => self.store.apply(index, owner, &command),
                    None => {
                        self.store.advance(index);
                        Outcome::Done
                    }
                };
                self.answer_proposal(index, outcome, replies);
            }
        }
        output.again = self.store.revision() < commit_index;
    }

    /// The clock entry at `index` is applied. What this leader has proposed it knows already, or even a later one.
    fn on_clock(&mut self, index: Index) {
        let is_own_term = self.raft.term_at(index) == Some(self.raft.hard_state().term);
        if self.raft.role() != RoleKind::Leader || !is_own_term {
            self.log_time.know(self.store.time_ms());
        }
    }

    fn answer_proposal(&mut self, index: Index, outcome: Outcome, replies: &mut dyn Replies) {
        if let Some(proposal) = self.proposals.pop_front_if(|proposal| proposal.index == index) {
            self.growth.remove(proposal.growth);
            replies.reply(proposal.reply_to, &Reply::Outcome(outcome));
        }
    }

    /// Begins a checkpoint when the log has grown enough since the last, or the store, or when nothing else is to do;
    /// gives memory away that is not read any more.
    pub(super) fn maybe_checkpoint(&mut self, output: &mut Output) {
        output.unread.append(&mut self.store.take_unread());
        let is_long = self.snapshots.log_bytes >= self.snapshot_interval();
        let is_for_growth = is_long || self.should_compact();
        let is_wanted = !self.snapshots.wanted.is_empty();
        let is_quiet = self.snapshots.quiet_ticks >= QUIET_TICKS && self.would_start_faster();
        let is_suspect = self.snapshots.is_suspect;
        if is_for_growth || is_wanted || is_quiet || is_suspect {
            output.checkpoint = self.begin_checkpoint(is_for_growth);
        }
    }

    /// Whether a checkpoint takes a moment only, so that a node which is about to stop waits for it.
    pub fn checkpoints_soon(&self) -> bool {
        self.store.bytes() <= LAST_BYTES_MAX
    }

    /// The checkpoint of a node that is about to stop, if the next start would be faster by it.
    pub fn last_checkpoint(&mut self) -> Option<CheckpointJob> {
        self.would_start_faster().then(|| self.begin_checkpoint(false)).flatten()
    }

    /// Whether the log after the newest snapshot is long beside the store.
    fn would_start_faster(&self) -> bool {
        self.snapshots.log_bytes >= QUIET_LOG_BYTES.max(self.store.bytes() / 4)
    }

    fn begin_checkpoint(&mut self, is_for_growth: bool) -> Option<CheckpointJob> {
        let applied = self.store.revision();
        let newest = self.snapshots.newest.as_ref().map_or(Index(0), |at| at.index);
        let is_due = applied > newest || self.snapshots.is_suspect;
        if self.snapshots.is_running() || !is_due {
            return None;
        }
        let term = self.raft.term_at(applied)?;
        self.snapshots.compacting = true;
        self.snapshots.writing = true;
        self.snapshots.is_suspect = false;
        self.snapshots.log_bytes = 0;
        self.snapshots.beyond = 0;
        self.snapshots.store_bytes = self.store.bytes();
        self.snapshots.oldest = self.store.oldest();
        Some(CheckpointJob {
            checkpoint: self.store.checkpoint(),
            at: SnapshotAt { index: applied, term },
            membership: self.raft.membership_at(applied).membership.clone(),
            is_for_growth,
        })
    }

    /// Whether a write that takes so many bytes must wait because so much was written since a checkpoint began, which
    /// has to catch up with it before memory is given back. Beyond what is ample ever more of them must, evenly spread,
    /// and from twice as much on all: so those who write are slowed down to what the checkpoint can do, and not stopped
    /// until it is done. That comes before the store is full, since it will have room again.
    pub(super) fn outruns_checkpoint(&mut self, own_bytes: u64) -> bool {
        let begun_with = self.snapshots.store_bytes;
        let room = self.arena_bytes_max().saturating_sub(begun_with);
        let ample = (begun_with / 2 + COMPACT_BYTES_MIN).min(room / 2);
        let bytes = self.store.bytes() + self.growth.store_bytes + own_bytes;
        let beyond = bytes.saturating_sub(begun_with + ample).min(ample);
        if !self.snapshots.is_running() || beyond == 0 {
            return false;
        }
        self.snapshots.beyond += beyond;
        let must_wait = self.snapshots.beyond >= ample;
        if must_wait {
            self.snapshots.beyond -= ample;
        }
        must_wait
    }

    /// Bytes of log that make a snapshot due. One costs what the store holds, so it waits for twice as much log, up to
    /// what a restart has time to read.
    fn snapshot_interval(&self) -> u64 {
        let (least, held) = (self.about.snapshot_log_bytes, self.snapshots.store_bytes);
        held.saturating_mul(2).clamp(least, least.saturating_mul(SNAPSHOT_LOG_MAX))
    }

    /// Tells those who wait for a snapshot that it is there.
    pub(super) fn answer_saves(&mut self, replies: &mut dyn Replies) {
        let newest = self.snapshots.newest.as_ref().map_or(Index(0), |at| at.index);
        let failed = std::mem::take(&mut self.snapshots.failed);
        for (to, at_least) in std::mem::take(&mut self.snapshots.wanted) {
            if newest >= at_least {
                replies.snapshot(to, newest);
            } else if failed {
                replies.reply(to, &Reply::Refused(Refusal::NoSpace));
            } else {
                self.snapshots.wanted.push((to, at_least));
            }
        }
    }

    /// Whether it is time to leave behind what is dead. Nothing is before some history was given up; then it is time if
    /// the store has doubled, or has taken half of the room that was left, or is large and much of it is dead.
    fn should_compact(&self) -> bool {
        if self.store.oldest() <= self.snapshots.oldest {
            return false;
        }
        let (bytes, max) = (self.store.bytes(), self.arena_bytes_max());
        let before = self.snapshots.store_bytes;
        let room = max.saturating_sub(before);
        let allowed = (before + COMPACT_BYTES_MIN).min((room / 2).max(max / 64));
        let is_pressed = bytes > max / 2 && self.store.dead_bytes() > max / 16;
        bytes.saturating_sub(before) >= allowed || is_pressed
    }

    /// The store goes on in a compacted image, if that is worth it.
    pub(super) fn on_image(&mut self, image: Option<Compacted>, output: &mut Output) {
        self.snapshots.compacting = false;
        let Some(compacted) = image else { return };
        let image_bytes = compacted.image_bytes();
        match self.store.adopt(compacted) {
            Adoption::Adopted => self.snapshots.store_bytes = image_bytes,
            Adoption::Behind(catch_up) => {
                self.snapshots.compacting = true;
                output.catch_up = Some(*catch_up);
            }
            Adoption::Declined => {}
        }
    }

    /// A checkpoint is durable: the log is cut back to the one before it, so that two snapshots can
    /// each be completed by the log.
    pub(super) fn on_checkpoint(&mut self, done: Option<SnapshotAt>, output: &mut Output) {
        self.snapshots.writing = false;
        let Some(at) = done else {
            self.snapshots.failed = true;
            return;
        };
        if self.snapshots.newest.as_ref().is_some_and(|newest| newest.index >= at.index) {
            return;
        }
        self.log.snapshot_saved(at.index, at.term);
        if let Some(older) = self.snapshots.newest.replace(at) {
            let cut = older.index.min(self.needed_after());
            if cut > self.log.base().0 {
                self.step(Event::Compact(cut), None, output);
                self.log.purge(cut.next());
            }
        }
    }

    /// The log stays for followers that were heard lately and lag, as long as it is not too long: entries catch them
    /// up at less cost than a snapshot.
    fn needed_after(&self) -> Index {
        let is_long =
            self.raft.log_bytes() > self.snapshot_interval().saturating_mul(LAGGARDS_LOG_MAX);
        let followers =
            self.raft.followers().into_iter().filter(|&(_, _, alive)| alive && !is_long);
        followers.map(|(_, index, _)| index).min().unwrap_or(Index(u64::MAX))
    }

    /// A snapshot came from a leader; the core decides whether it replaces what is here.
    pub(super) fn on_snapshot_received(&mut self, received: ReceivedSnapshot, output: &mut Output) {
        let ReceivedSnapshot { from, data, term, at, membership, store } = received;
        let event = Event::SnapshotReceived {
            from,
            data,
            term,
            index: at.index,
            index_term: at.term,
            membership,
        };
        let effects = self.step(event, None, output);
        if effects.install_snapshot {
            self.store.replace(store);
            self.log_time.know(self.store.time_ms());
            self.agreement.forget();
            self.abandon_proposals();
            self.log.purge(at.index.next());
            let (compacting, writing) = (self.snapshots.compacting, self.snapshots.writing);
            let wanted = std::mem::take(&mut self.snapshots.wanted);
            let (store_bytes, oldest) = (self.store.bytes(), self.store.oldest());
            self.snapshots = Snapshots {
                newest: Some(at),
                compacting,
                writing,
                store_bytes,
                oldest,
                wanted,
                ..Snapshots::default()
            };
        }
    }
}

impl Snapshots {
    /// Whether there is no time yet for another checkpoint.
    fn is_running(&self) -> bool {
        self.compacting || self.writing
    }
}

/// Owner and command of an entry. Bytes that are no command are none on every node alike.
fn command(entry: EntryMeta, body: &[u8]) -> (Index, Option<(Principal, Command<'_>)>) {
    let command = match entry.kind {
        EntryKind::Command => decode_entry(body).ok(),
        EntryKind::Noop | EntryKind::Membership => None,
    };
    (entry.index, command)
}

/// Entries whose keys are brought into the processor's caches together.
const LOT_ENTRIES: usize = 64;
/// Entries that one turn applies at most.
const APPLY_ENTRIES_MAX: u64 = 8192;
/// Bytes that one turn applies, roughly.
const APPLY_BYTES: usize = 8 << 20;

/// A store that has grown by less is not worth a compaction.
const COMPACT_BYTES_MIN: u64 = 64 << 20;
/// Ticks without a new entry and without a read after which it is quiet: 3 seconds.
const QUIET_TICKS: u32 = 300;
/// Log that is read again at the next start in a moment.
const QUIET_LOG_BYTES: u64 = 16 << 20;
/// A larger store would hold up a node that is to stop.
const LAST_BYTES_MAX: u64 = 512 << 20;
/// How much log a large store waits for before it is written again, in units of what makes a small one's snapshot due.
const SNAPSHOT_LOG_MAX: u64 = 4;
/// How much log stays for followers that lag, in units of what makes a new snapshot due.
const LAGGARDS_LOG_MAX: u64 = 4;
