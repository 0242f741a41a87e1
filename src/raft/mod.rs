//! The consensus core: Raft, complete and pure.
//!
//! **What it is for.** A set of nodes agrees on one log, so that all of them apply the same commands
//! in the same order, as long as a majority of them is up (Ongaro and Ousterhout, *In Search of an
//! Understandable Consensus Algorithm*, here "Raft"; Ongaro's dissertation, here "thesis").
//!
//! **In and out.** [`Raft::step`] takes one [`Event`] and never fails; what follows is collected in
//! [`Effects`] until the shell takes them. There is no clock ([`Event::Tick`]), no randomness but a
//! seed, no IO: the shell writes, sends and applies. Same seed and events, same effects, to the byte.
//!
//! **What always holds.**
//! - The core never sees a command's bytes: entries are (index, term, kind, length).
//! - Durability is an event. Writes are numbered; `Persisted` confirms numbers. The node counts
//!   itself towards a commit, confirms entries and gives votes only for what is durable, so syncs run
//!   beside replication (thesis 10.2.1) and a slow disk delays no heartbeat.
//! - A message leaves only once the term and vote that it speaks for are durable.
//! - Nothing that comes from a peer is asserted on; what the core itself does is asserted always
//!   ([`Raft`]'s `check_invariants`).
//!
//! **What is left out.** Bytes, files, clocks, addresses: the shell has them.
//!
//! **Where to read on.** One file per RPC with both ends side by side: `election`, `replication`,
//! `read`, `snapshot`; `membership` has who takes part, `seats` what each may do, `change` how that changes; below them `log` (terms by index), `progress` (what a leader knows of a
//! follower), `durability`, `quorum`; `state` has the roles and their invariants.

mod change;
mod durability;
mod effects;
mod election;
mod lease;
mod log;
mod membership;
mod message;
mod progress;
mod quorum;
mod read;
mod receive;
mod replication;
mod seats;
mod snapshot;
mod state;
mod types;

pub use effects::{Effects, MembershipAt, Refused, Write};
pub use membership::{
    Change, ChangeRefused, Contact, FENCED_MAX, Founding, Learner, MEMBERS_MAX, Membership,
};
pub use message::{Body, EntryMeta, Event, Message, Payload, ReadId, WriteId};
pub use seats::{PeerMessage, Roster, Standing};
pub use state::RoleKind;
pub use types::{DataId, EntryKind, HardState, Index, NodeId, Term};

use std::collections::BTreeSet;

use durability::Durability;
use log::Log;
use state::{Follower, Role};

/// What a core is told at its start. Times are in ticks.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub id: NodeId,
    /// Without a leader for this long to twice as long, a node runs.
    pub election_ticks: u32,
    /// A leader speaks at least this often.
    pub heartbeat_ticks: u32,
    /// Draws the election timeouts; should differ between nodes and starts.
    pub seed: u64,
    /// Bytes of entries in one message; one longer entry makes one longer message.
    pub append_bytes_max: u64,
    /// Entries in one message.
    pub append_entries_max: usize,
    /// Bytes in flight to one follower, above which it gets no more.
    pub window_bytes_max: u64,
    /// Bytes proposed and not committed, above which proposals are refused.
    pub uncommitted_bytes_max: u64,
    /// How long a leader may read without asking after a round of heartbeats left that a majority answered, in
    /// milliseconds; 0 for never. Shorter than the election timeout by more than clocks differ, and the same on all
    /// nodes: each keeps a promise for it.
    pub lease_ms: u64,
    /// This node's data directory.
    pub data: DataId,
}

/// What a core is given of what survived.
#[derive(Clone, Debug)]
pub struct Restored {
    /// Term, vote and commit index.
    pub hard_state: HardState,
    /// The index and term of the entry before the first of the log.
    pub base: (Index, Term),
    /// The membership in force at the base.
    pub membership: MembershipAt,
}

/// One node's share in the protocol.
#[derive(Debug)]
pub struct Raft {
    config: Config,
    hard: HardState,
    role: Role,
    log: Log,
    /// A newer membership than the log has, as far as another node vouched for one.
    vouched: Option<MembershipAt>,
    durability: Durability,
    /// The time, as far as it was told.
    now_ms: u64,
    /// Ticks since the start.
    age_ticks: u32,
    effects: Effects,
    election_elapsed: u32,
    election_timeout: u32,
    random_state: u64,
}

impl Raft {
    /// A follower with what survived the last run, and the log's entries, all durable. A log that alone is a majority may run
    /// at once.
    ///
    /// # Panics
    /// If the configuration makes no sense or what survived contradicts itself: the shell checks
    /// both, with an error for people, before.
    pub fn new(
        config: Config,
        restored: Restored,
        entries: impl IntoIterator<Item = EntryMeta>,
    ) -> Raft {
        assert!(config.heartbeat_ticks >= 1, "heartbeats need time");
        assert!(config.election_ticks > config.heartbeat_ticks, "elections outlast heartbeats");
        assert!(config.append_entries_max >= 1, "a message has room for an entry");
        let (base, base_term) = restored.base;
        let mut log = Log::new(base, base_term, restored.membership);
        for meta in entries {
            log.append(meta);
        }
        let mut hard = restored.hard_state;
        hard.commit_index = hard.commit_index.clamp(base, log.last_index());
        // A snapshot of a term may be durable before the term itself is. No vote of that term was:
        // it would have brought the term along.
        let is_behind = hard.term < log.last_term();
        if is_behind {
            (hard.term, hard.voted_for) = (log.last_term(), None);
        }
        let durability = Durability::new(log.last_index());
        let random_state = config.seed ^ config.id.0.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut raft = Raft {
            config,
            hard,
            role: Role::Follower(Follower::default()),
            log,
            vouched: None,
            durability,
            now_ms: 0,
            age_ticks: 0,
            effects: Effects::default(),
            election_elapsed: 0,
            election_timeout: 0,
            random_state,
        };
        if is_behind {
            raft.save_hard_state();
        }
        raft.reset_election_timer();
        let members = raft.log.membership();
        if members.voters == BTreeSet::from([raft.config.id]) && !members.is_joint() {
            // Nobody else could lead, so there is nobody to wait for.
            raft.election_timeout = 1;
        }
        raft.check_invariants();
        raft
    }

    /// Takes in one event.
    pub fn step(&mut self, event: Event) {
        self.dispatch(event);
        self.check_invariants();
    }

    /// What is to be done since the last call.
    pub fn take_effects(&mut self) -> Effects {
        std::mem::take(&mut self.effects)
    }

    /// This node.
    pub fn id(&self) -> NodeId {
        self.config.id
    }

    /// Its data directory.
    pub fn data(&self) -> DataId {
        self.config.data
    }

    /// Its role.
    pub fn role(&self) -> RoleKind {
        self.role.kind()
    }

    /// Term, vote and commit index, durable or not.
    pub fn hard_state(&self) -> HardState {
        self.hard
    }

    /// Who leads, as far as this node knows.
    pub fn leader(&self) -> Option<NodeId> {
        match &self.role {
            Role::Follower(follower) => follower.leader,
            Role::Candidate(_) => None,
            Role::Leader(_) => Some(self.config.id),
        }
    }

    /// The last index of the log.
    pub fn last_index(&self) -> Index {
        self.log.last_index()
    }

    /// Bytes of the entries in the log.
    pub fn log_bytes(&self) -> u64 {
        self.log.bytes()
    }

    /// The last index of the log that is durable here.
    pub fn durable_index(&self) -> Index {
        self.durability.index()
    }

    /// The term of an entry, if the log still has it.
    pub fn term_at(&self, index: Index) -> Option<Term> {
        self.log.term_at(index)
    }

    /// The membership in force.
    pub fn membership(&self) -> &Membership {
        self.log.membership()
    }

    /// Another value whenever another membership is in force, is committed, or is vouched for.
    pub fn membership_version(&self) -> (u64, Index, Index) {
        let vouched = self.vouched.as_ref().map_or(Index(0), |at| at.index);
        let committed = self.membership_at(self.hard.commit_index).index;
        (self.log.membership_changes(), committed, vouched)
    }

    /// Who is who, as far as this node knows.
    pub fn roster(&self) -> Roster<'_> {
        let latest = self.log.latest_membership();
        let vouched = self.vouched.as_ref().filter(|at| at.index > latest.index);
        Roster {
            latest: &latest.membership,
            committed: &self.membership_at(self.hard.commit_index).membership,
            vouched: vouched.map(|at| &at.membership),
        }
    }

    /// Whether this node's place is bound to another data directory than its own: it must not act.
    pub fn is_unseated(&self) -> bool {
        self.roster().standing(self.config.id, self.config.data) == Standing::OtherData
    }

    /// Takes in a newer membership; an older one says nothing new.
    fn on_vouched(&mut self, members: MembershipAt) {
        let newest = self.vouched.as_ref().map_or(Index(0), |at| at.index);
        let is_news = members.index > newest.max(self.log.latest_membership().index);
        if is_news && members.membership.is_sane() && members.index.0 < receive::INDEX_MAX {
            self.vouched = Some(members);
        }
    }

    /// The membership in force at an index.
    pub fn membership_at(&self, index: Index) -> &MembershipAt {
        self.log.membership_at(index)
    }

    /// What a leader knows of its followers: id, match index, and whether it was heard lately.
    pub fn followers(&self) -> Vec<(NodeId, Index, bool)> {
        let Role::Leader(leader) = &self.role else { return Vec::new() };
        let patience = self.config.election_ticks;
        let peers = leader.peers.iter();
        peers.map(|(&id, p)| (id, p.match_index, p.silent_ticks < patience)).collect()
    }

    /// Bytes that this leader has proposed and not committed; bounded by [`Config::uncommitted_bytes_max`] and the last
    /// proposal.
    pub fn uncommitted_bytes(&self) -> u64 {
        let Role::Leader(leader) = &self.role else { return 0 };
        leader.uncommitted_bytes
    }

    /// To whom this leader is handing leadership.
    pub fn heir(&self) -> Option<NodeId> {
        let Role::Leader(leader) = &self.role else { return None };
        leader.transfer.as_ref().map(|transfer| transfer.to)
    }

    /// All members but this node.
    fn peers(&self) -> BTreeSet<NodeId> {
        let mut members = self.log.membership().members();
        members.remove(&self.config.id);
        members
    }

    fn send(&mut self, to: NodeId, body: Body) {
        self.send_with_term(to, self.hard.term, body);
    }

    fn send_with_term(&mut self, to: NodeId, term: Term, body: Body) {
        let message = Message { from: self.config.id, data: self.config.data, to, term, body };
        if self.durability.is_hard_state_durable() {
            self.effects.messages.push(message);
        } else if !self.durability.is_full() {
            self.durability.hold(message);
        }
    }

    fn save_hard_state(&mut self) {
        let id = self.durability.on_hard_state();
        self.effects.writes.push((id, Write::Hard(self.hard)));
    }

    /// The next number of a sequence that only the seed decides (splitmix64).
    fn random(&mut self) -> u64 {
        self.random_state = self.random_state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random_state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}
