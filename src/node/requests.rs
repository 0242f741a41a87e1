//! The clients' side of a turn: writes become one proposal, reads one read round.

use bytes::Bytes;

use super::reads::{WaitingRead, What};
use super::{Forward, Input, Node, Output, ReplyTo, Request, RequestBody};
use crate::proto;
use crate::proto::client::{Consistency, Doors, HelloReply, PeerStatus, Refusal, RoleName, Status};
use crate::proto::command::{Command, Op, Principal, key_is_valid};
use crate::proto::limits::KEY_BYTES_MAX;
use crate::raft::{EntryKind, Event, Index, NodeId, ReadId, Refused, RoleKind};
use crate::wal::{BatchBuilder, ENTRY_HEADER_BYTES, Room};

/// A write of a client that is in the log and not yet applied.
#[derive(Debug)]
pub(super) struct Proposal {
    pub(super) index: Index,
    pub(super) reply_to: ReplyTo,
    pub(super) growth: Growth,
}

/// What writes may add to the store, at most. Applying cannot fail, so there must be room for all that is proposed: a
/// short append to a long value is a new long value.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Growth {
    /// Bytes of values that they bring.
    value_bytes: u64,
    /// Bytes of the store's memory that they take.
    pub(super) store_bytes: u64,
}

impl Growth {
    fn add(&mut self, other: Growth) {
        self.value_bytes += other.value_bytes;
        self.store_bytes += other.store_bytes;
    }

    pub(super) fn remove(&mut self, other: Growth) {
        self.value_bytes -= other.value_bytes;
        self.store_bytes -= other.store_bytes;
    }
}

/// A write on its way to a proposal.
struct Asked {
    reply_to: ReplyTo,
    owner: Principal,
    command: Bytes,
    growth: Growth,
}

impl Node {
    /// Turns the requests of a turn into one proposal and one round of reads.
    pub(super) fn take_requests(&mut self, input: &mut Input, output: &mut Output) {
        input.request_bytes = 0;
        let mut writes = Vec::new();
        let mut reads = Vec::new();
        for Request { reply_to, body } in input.requests.drain(..) {
            let (consistency, what) = match body {
                RequestBody::WriteAnywhere { command, client, .. }
                    if self.elsewhere().is_some() =>
                {
                    let to = self.elsewhere().expect("it was just there");
                    output.forwards.push(Forward { to, reply_to, client, command });
                    continue;
                }
                RequestBody::Write { owner, command }
                | RequestBody::WriteAnywhere { owner, command, .. } => {
                    match self.check_command(&command) {
                        Ok(growth) => {
                            self.growth.add(growth);
                            writes.push(Asked { reply_to, owner, command, growth });
                        }
                        Err(refusal) => self.answer_later(reply_to, What::Refuse(refusal)),
                    }
                    continue;
                }
                RequestBody::Manage(manage) => {
                    self.manage(reply_to, manage, output);
                    continue;
                }
                RequestBody::Get { key, consistency, revision } => {
                    let key = self.own_key(key);
                    if self.reads.key_bytes + key.len() > WAITING_KEY_BYTES_MAX {
                        let busy = Refusal::Busy { retry_after_ms: BUSY_RETRY_MS };
                        self.answer_later(reply_to, What::Refuse(busy));
                        continue;
                    }
                    self.reads.key_bytes += key.len();
                    (consistency, What::Get(key, revision))
                }
                RequestBody::Scan { consistency, revision } => (consistency, What::Scan(revision)),
                RequestBody::Save => (Consistency::Linearizable, What::Save),
                RequestBody::Hello => (Consistency::Local, What::Hello),
                RequestBody::Status => (Consistency::Local, What::Status),
            };
            match consistency {
                Consistency::Linearizable => reads.push(WaitingRead { reply_to, what }),
                Consistency::Local => self.answer_later(reply_to, what),
            }
        }
        if !writes.is_empty() {
            self.propose(writes, input.now_ms, output);
        }
        if !reads.is_empty() {
            let id = self.next_read;
            self.next_read = ReadId(id.0 + 1);
            self.reads.rounds.insert(id, reads);
            self.step(Event::Read(id), None, output);
        }
    }

    /// The leader, if it is another node.
    fn elsewhere(&self) -> Option<NodeId> {
        self.raft.leader().filter(|&leader| leader != self.raft.id())
    }

    /// Queues an answer that needs nothing but the store as it is.
    pub(super) fn answer_later(&mut self, reply_to: ReplyTo, what: What) {
        self.ready.push((Index(0), vec![WaitingRead { reply_to, what }]));
    }

    /// What a client may not propose is refused before it is logged.
    fn check_command(&mut self, bytes: &[u8]) -> Result<Growth, Refusal> {
        let invalid = |reason: &str| Refusal::Invalid { reason: reason.to_owned() };
        let command: Command<'_> =
            proto::decode(bytes, "command").map_err(|error| invalid(&error.to_string()))?;
        let op = match command {
            Command::Clock { .. } => return Err(invalid("clients do not set the clock")),
            Command::Compact { .. } => return Err(invalid("clients do not compact")),
            Command::OpenSession | Command::CloseSession(_) => return Ok(Growth::default()),
            Command::Write { op, .. } => op,
        };
        if op.key().is_empty() {
            return Err(invalid("the key is empty"));
        }
        if !key_is_valid(op.key()) {
            return Err(Refusal::TooLarge { limit: KEY_BYTES_MAX as u64 });
        }
        let before = match op {
            Op::Append { key, .. } => self.store.value_bytes(key),
            Op::Put { .. } | Op::Delete { .. } => 0,
        };
        if before + op.value_bytes() > self.about.value_bytes_max {
            return Err(Refusal::TooLarge { limit: self.about.value_bytes_max as u64 });
        }
        // While leadership moves to a node that has room, and from then on, the client is sent there.
        let leads_on = self.raft.role() == RoleKind::Leader && self.raft.heir().is_none();
        let is_full = self.room != Room::Ample && leads_on;
        if is_full && self.room == Room::None {
            return Err(Refusal::NoSpace);
        }
        if matches!(op, Op::Delete { .. }) {
            return Ok(Growth { value_bytes: 0, store_bytes: WRITE_OVERHEAD_BYTES });
        }
        if is_full || self.store.bytes() > self.arena_bytes_max() {
            return Err(Refusal::NoSpace);
        }
        self.find_room(op)
    }

    /// What the write may add to the store, if there is room for it and for all that is proposed already.
    fn find_room(&mut self, op: Op<'_>) -> Result<Growth, Refusal> {
        let value_bytes = op.value_bytes() as u64;
        // Each proposed write may be one of the same key.
        let before = match op {
            Op::Append { key, .. } => self.store.value_bytes(key) as u64 + self.growth.value_bytes,
            Op::Put { .. } | Op::Delete { .. } => 0,
        };
        let store_bytes = before + value_bytes + op.key().len() as u64 + WRITE_OVERHEAD_BYTES;
        let capacity = self.store.capacity() / 16 * 15;
        if self.store.bytes() + store_bytes > capacity {
            return Err(Refusal::NoSpace);
        }
        let is_crowded = self.store.bytes() + self.growth.store_bytes + store_bytes > capacity;
        if is_crowded || self.outruns_checkpoint(store_bytes) {
            return Err(Refusal::Busy { retry_after_ms: BUSY_RETRY_MS });
        }
        Ok(Growth { value_bytes, store_bytes })
    }

    fn propose(&mut self, writes: Vec<Asked>, wall_ms: u64, output: &mut Output) {
        if self.raft.role() != RoleKind::Leader {
            let leader = self.raft.leader().map(|NodeId(id)| id);
            self.refuse_writes(writes, &Refusal::NotLeader { leader });
            return;
        }
        if self.log.unpersisted_bytes() >= UNSYNCED_BYTES_MAX {
            self.refuse_writes(writes, &Refusal::Busy { retry_after_ms: BUSY_RETRY_MS });
            return;
        }
        let term = self.raft.hard_state().term;
        let own = self.own_commands(wall_ms);
        let entry_bytes =
            |write: &Asked| ENTRY_HEADER_BYTES + Principal::BYTES + write.command.len();
        let bytes = writes.iter().map(entry_bytes).sum();
        let mut builder =
            BatchBuilder::with_capacity(self.raft.last_index().next(), writes.len(), bytes);
        let mut sizes = Vec::with_capacity(writes.len() + own.len());
        let mut push = |owner: Principal, command: &[u8]| {
            let body = [&owner.to_bytes()[..], command];
            builder.push_parts(term, EntryKind::Command, &body);
            let bytes = Principal::BYTES + command.len();
            sizes.push(u32::try_from(bytes).expect("frames are shorter than 4 GiB"));
        };
        for command in &own {
            let mut encoded = Vec::new();
            proto::encode(command, &mut encoded);
            push(Principal::CLUSTER, &encoded);
        }
        writes.iter().for_each(|write| push(write.owner, &write.command));
        let effects = self.step(Event::Propose(sizes), Some(builder.finish()), output);
        match effects.proposal.expect("a proposal is answered in its own step") {
            Ok(first) => {
                if let Some(&Command::Clock { now_ms }) = own.first() {
                    self.log_time.know(now_ms);
                }
                let first = first.plus(own.len() as u64);
                let indexes = (0..).map(|count| first.plus(count));
                self.proposals.extend(indexes.zip(writes).map(|(index, asked)| {
                    let Asked { reply_to, growth, .. } = asked;
                    Proposal { index, reply_to, growth }
                }));
            }
            Err(refused) => {
                let refusal = match refused {
                    Refused::NotLeader(leader) => {
                        Refusal::NotLeader { leader: leader.map(|NodeId(id)| id) }
                    }
                    Refused::Busy => Refusal::Busy { retry_after_ms: BUSY_RETRY_MS },
                };
                self.refuse_writes(writes, &refusal);
            }
        }
    }

    fn refuse_writes(&mut self, writes: Vec<Asked>, refusal: &Refusal) {
        for Asked { reply_to, growth, .. } in writes {
            self.growth.remove(growth);
            self.answer_later(reply_to, What::Refuse(refusal.clone()));
        }
    }

    /// Leadership is gone: what was proposed may or may not happen.
    pub(super) fn abandon_proposals(&mut self) {
        for Proposal { reply_to, growth, .. } in std::mem::take(&mut self.proposals) {
            self.growth.remove(growth);
            self.answer_later(reply_to, What::Refuse(Refusal::Unknown));
        }
    }

    pub(super) fn hello(&self) -> HelloReply {
        HelloReply {
            version: proto::PROTOCOL_VERSION,
            node_id: self.raft.id().0,
            leader: self.raft.leader().map(|NodeId(id)| id),
            members: self.member_infos(),
            value_bytes_max: self.about.value_bytes_max as u64,
        }
    }

    /// How this node is.
    pub fn status(&self) -> Status {
        let hard = self.raft.hard_state();
        let role = match self.raft.role() {
            RoleKind::Follower => RoleName::Follower,
            RoleKind::PreCandidate => RoleName::PreCandidate,
            RoleKind::Candidate => RoleName::Candidate,
            RoleKind::Leader => RoleName::Leader,
        };
        let peers = self.raft.followers().into_iter().map(|(id, match_index, alive)| PeerStatus {
            id: id.0,
            match_index: match_index.0,
            alive,
        });
        Status {
            node_id: self.raft.id().0,
            name: self.about.name.clone(),
            cluster: self.about.cluster.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            role,
            term: hard.term.0,
            leader: self.raft.leader().map(|NodeId(id)| id),
            commit_index: hard.commit_index.0,
            applied_index: self.store.revision().0,
            last_log_index: self.raft.last_index().0,
            durable_index: self.raft.durable_index().0,
            snapshot_index: self.snapshots.newest.as_ref().map_or(0, |at| at.index.0),
            log_bytes: self.raft.log_bytes(),
            keys: self.store.keys(),
            store_bytes: self.store.bytes() + self.store.session_bytes(),
            oldest_revision: self.store.oldest().0,
            state_hash: self.store.state_hash(),
            peers: peers.collect(),
            doors: Doors::default(),
            // The server knows them.
            certificates: Vec::new(),
        }
    }
}

/// Bytes that wait for this node's own disk; above it clients get `Busy`. The others may commit without this disk, so
/// the core's limit on what is not committed does not hold them.
const UNSYNCED_BYTES_MAX: usize = 64 << 20;
/// Keys of gets that wait, which is for long only while there is no majority; more are refused as `Busy`.
const WAITING_KEY_BYTES_MAX: usize = 32 << 20;
/// How long a refused client should wait.
const BUSY_RETRY_MS: u32 = 20;
/// What a write takes of the store's memory beside key and value: node, tower, version, its place in the index.
const WRITE_OVERHEAD_BYTES: u64 = 256;
