//! Drives the node's turns on the runtime's thread, in this order: drain, step, append,
//! wake the sync thread, queue for peers, let the links send; then apply and reply. There is no timer
//! but the tick: a turn takes whatever arrived, so batches grow with load by themselves.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::answers::Burst;
use super::links::Links;
use super::shared::{Ending, Shared};
use super::{Error, elders, forward, save, snapshots};
use crate::node::run::Threads;
use crate::node::{Book, Divergence, Input, MembersVersion, Node, Output};
use crate::raft::{NodeId, RoleKind};

/// The unit of the core's time.
pub(super) const TICK: Duration = Duration::from_millis(10);

pub(super) struct Driver {
    pub(super) node: Node,
    pub(super) threads: Threads,
    pub(super) shared: Arc<Shared>,
    pub(super) links: Links,
    pub(super) snapshots: save::Source,
    pub(super) leader: Option<NodeId>,
    /// The version of the members that links and connections go by.
    pub(super) members: Option<MembersVersion>,
    pub(super) lonely: Lonely,
}

/// What a node does that hears no leader.
pub(super) struct Lonely {
    /// How long it waits before it asks others who the members are.
    patience: Duration,
    since: Instant,
    next_question: Instant,
    next_word: Instant,
}

impl Lonely {
    /// For a node that waits so long before it asks.
    pub(super) fn new(patience: Duration) -> Lonely {
        let now = Instant::now();
        Lonely { patience, since: now, next_question: now, next_word: now + FOUNDERS_PATIENCE }
    }
}

impl Driver {
    /// Runs turns until `shutdown`, then hands leadership on and stops cleanly.
    ///
    /// # Errors
    /// The log's failure: nothing can be acknowledged after it.
    pub(super) async fn run(mut self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let mut ticker = interval(TICK);
        // After a pause time goes on from now: a burst of ticks would make a paused follower run for
        // leader before it has read what arrived meanwhile.
        ticker.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let (mut input, mut output) = (Input::default(), Output::default());
        let mut shutdown = std::pin::pin!(shutdown);
        let mut give_up: Option<Instant> = None;
        loop {
            tokio::select! {
                () = self.shared.bell.notified() => {}
                _ = ticker.tick() => input.ticks += 1,
                () = &mut shutdown, if give_up.is_none() => {
                    tracing::info!("stopping");
                    give_up = Some(Instant::now() + STOP_PATIENCE);
                    input.transfer = true;
                }
            }
            // The readers that are ready too run before the turn, which then takes in what all of them brought.
            for _ in 0..YIELDS_BEFORE {
                tokio::task::yield_now().await;
            }
            if let Err(error) = self.turn(&mut input, &mut output).await {
                // The threads end before the directory can be opened again.
                self.threads.stop(false);
                return Err(error);
            }
            if let Some(deadline) = give_up
                && (!self.node.is_handing_over() || Instant::now() >= deadline)
            {
                break;
            }
        }
        self.links.flush().await;
        let waits = self.node.checkpoints_soon();
        if waits && let Some(last) = self.node.last_checkpoint() {
            self.threads.checkpoint(last);
        }
        match self.threads.stop(waits).failure {
            Some(error) => Err(Error::Log(error)),
            None => Ok(()),
        }
    }

    async fn turn(&mut self, input: &mut Input, output: &mut Output) -> Result<(), Error> {
        self.shared.take_input(input);
        let reports = self.threads.take_reports();
        if let Some(error) = reports.failure {
            return Err(Error::Log(error));
        }
        if let Some(ending) = self.shared.ending() {
            return Err(ending.into());
        }
        input.persisted = reports.persisted;
        input.images = reports.images;
        input.checkpoints = reports.checkpoints;
        input.now_ms =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64);
        input.clock_ms = boot_clock_ms();
        self.shared.answer_fetches(|want| self.node.fetch(want));
        self.node.step_in(input, output);
        self.threads.sync(std::mem::take(&mut output.log_work));
        self.follow_members();
        let sends = !output.messages.is_empty();
        self.links.send(output.messages.drain(..));
        for to in output.send_snapshots.drain(..) {
            let shared = Arc::clone(&self.shared);
            let (connection, source) = (self.links.connection(to), self.snapshots.clone());
            let newest = self.node.newest_snapshot().map(|at| at.index);
            let save::Source { dir, rate } = source;
            let order = snapshots::Order { to, term: self.node.term(), newest, dir, rate };
            snapshots::send(shared, connection, order);
        }
        for forward in output.forwards.drain(..) {
            forward::send(&self.shared, self.links.connection(forward.to), forward);
        }
        if sends {
            // The links' tasks run before the store does: replication never waits for applying.
            for _ in 0..YIELDS {
                tokio::task::yield_now().await;
            }
        }
        self.node.step_out(output, &mut Burst::new(&self.shared));
        // Before the next image takes memory of its own.
        self.threads.free(std::mem::take(&mut output.unread));
        if let Some(job) = output.checkpoint.take() {
            self.threads.checkpoint(job);
        }
        if let Some(image) = output.catch_up.take() {
            self.threads.catch_up(image);
        }
        if let Some(hash) = output.state_hash.take() {
            self.links.tell_state_hash(hash);
        }
        self.report(output);
        self.look_around();
        self.judge(output)?;
        if std::mem::take(&mut output.again) {
            self.shared.bell.notify_one();
            // A bell that rings already does not let the other tasks run, nor the clock: a long backlog would silence
            // the node until it is applied.
            tokio::task::yield_now().await;
        }
        match output.failure.take() {
            Some(error) => Err(Error::Log(error)),
            None => Ok(()),
        }
    }

    /// Links and connections go by the members that the node has now.
    fn follow_members(&mut self) {
        let version = self.node.members_version();
        if self.members != Some(version) {
            self.members = Some(version);
            self.links.follow(self.node.peers());
            self.shared.book.send_replace(Arc::new(Book::of(&self.node)));
            if self.node.core().is_unseated() {
                let by = "the log that the others sent".to_owned();
                self.shared.ends(Ending::OtherData { by });
            }
        }
    }

    /// A node that hears no leader asks who the members are, since its log may not know the leader, and says for whom a
    /// new cluster waits.
    fn look_around(&mut self) {
        let (now, lonely) = (Instant::now(), &mut self.lonely);
        if self.node.leader().is_some() {
            lonely.since = now;
            return;
        }
        let membership = self.node.core().membership();
        let (is_blank, is_founding) = (membership.members().is_empty(), membership.is_founding());
        let is_time = is_blank || now >= lonely.since + lonely.patience;
        if is_time && now >= lonely.next_question {
            lonely.next_question = now + QUESTION_EVERY;
            for (name, addresses) in self.node.acquaintances() {
                tokio::spawn(elders::ask(Arc::clone(self.links.common()), name, addresses));
            }
        }
        if is_founding && now >= lonely.next_word {
            lonely.next_word = now + WORD_EVERY;
            let missing = self.links.missing().join(", ");
            if !missing.is_empty() {
                tracing::warn!(
                    "a new cluster begins once all its founders have met: {missing} cannot be reached yet"
                );
            }
        }
    }

    /// A node's name for people.
    fn name_of(&self, id: NodeId) -> String {
        self.node.name_of(id)
    }

    /// Stops the node if its log or its store is not what those of the others are, or if it has no place among them.
    fn judge(&self, output: &mut Output) -> Result<(), Error> {
        if let Some((peer, index)) = output.contradictions.drain(..).next() {
            return Err(Error::Contradicted { by: self.name_of(peer), index });
        }

        for Divergence { index, own, others, stops } in output.divergences.drain(..) {
            let others: Vec<String> = others
                .iter()
                .map(|(&id, hash)| format!("{} has {hash:016x}", self.name_of(id)))
                .collect();
            let others = others.join(", ");
            if stops {
                return Err(Error::Diverged { index, own, others });
            }
            tracing::error!(
                "the stores differ after entry {index}: this one has {own:016x}, {others}; whoever has no majority \
                 with it stops"
            );
        }
        Ok(())
    }

    /// Tells people what changed.
    fn report(&mut self, output: &mut Output) {
        for (term, role) in output.roles.drain(..) {
            match role {
                RoleKind::Leader => tracing::info!("leads in term {term}"),
                RoleKind::Candidate => tracing::info!("runs for leader in term {term}"),
                RoleKind::Follower | RoleKind::PreCandidate => {
                    tracing::debug!("{role:?} in term {term}");
                }
            }
        }
        self.shared.set_leader(self.node.leader().map(|leader| (leader, self.node.term())));
        if self.node.leader() != self.leader {
            self.leader = self.node.leader();
            self.shared.leader_changed.notify_waiters();
            let own = self.node.role() == RoleKind::Leader;
            match self.leader {
                Some(leader) if !own => {
                    let name = self.name_of(leader);
                    tracing::info!("follows {name} in term {}", self.node.term());
                }
                Some(_) => {}
                None => tracing::info!("has no leader"),
            }
        }
    }
}

/// The time since the machine was started, also while it slept. Leases are counted by it.
fn boot_clock_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// How long a stopping leader waits for another to take over.
const STOP_PATIENCE: Duration = Duration::from_secs(1);
/// How often a node that hears no leader asks who the members are.
const QUESTION_EVERY: Duration = Duration::from_secs(1);
/// A new cluster is founded sooner than that if all founders are there.
const FOUNDERS_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is said for whom a new cluster waits.
const WORD_EVERY: Duration = Duration::from_secs(30);
/// Rounds of other tasks before a turn.
const YIELDS_BEFORE: usize = 2;
/// Rounds of other tasks between sending and applying.
const YIELDS: usize = 4;
