//! Linearizable reads without the log, both ends (thesis 6.4).
//!
//! A read is given the commit index at its arrival, once a round of heartbeats that began after its
//! arrival has shown that this node still led then. One round is in flight; all reads that come
//! meanwhile share the next. Followers ask the leader for such an index.

use std::collections::BTreeSet;

use super::state::Role;
use super::{Body, Index, NodeId, Raft, ReadId};

/// The leader's reads.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// The newest round of heartbeats of this term.
    pub(super) round: u64,
    waiting: Vec<Asker>,
    in_flight: Option<Round>,
}

#[derive(Debug)]
struct Round {
    round: u64,
    index: Index,
    askers: Vec<Asker>,
}

/// Who asked: this node itself, or a follower.
#[derive(Clone, Copy, Debug)]
struct Asker {
    from: NodeId,
    id: ReadId,
}

impl Raft {
    pub(super) fn on_read(&mut self, id: ReadId) {
        match &mut self.role {
            Role::Leader(_) => self.on_asked(Asker { from: self.config.id, id }),
            Role::Follower(follower) => match follower.leader {
                Some(leader) if follower.reads.len() < READS_MAX => {
                    follower.reads.insert(id, 0);
                    self.send(leader, Body::ReadIndex { id });
                }
                Some(_) | None => self.effects.reads_refused.push(id),
            },
            Role::Candidate(_) => self.effects.reads_refused.push(id),
        }
    }

    pub(super) fn on_read_index(&mut self, from: NodeId, id: ReadId) {
        if matches!(self.role, Role::Leader(_)) {
            self.on_asked(Asker { from, id });
        }
    }

    fn on_asked(&mut self, asker: Asker) {
        let Role::Leader(leader) = &mut self.role else { return };
        if leader.reads.waiting.len() >= READS_MAX {
            if asker.from == self.config.id {
                self.effects.reads_refused.push(asker.id);
            }
            return;
        }
        leader.reads.waiting.push(asker);
        if self.has_lease() {
            self.read_by_lease();
        }
        self.maybe_start_round();
    }

    /// Answers what waits at once, if this term has committed.
    fn read_by_lease(&mut self) {
        let index = self.hard.commit_index;
        let Role::Leader(leader) = &mut self.role else { return };
        if index >= leader.noop_index {
            let askers = std::mem::take(&mut leader.reads.waiting);
            self.answer_reads(askers, index);
        }
    }

    fn answer_reads(&mut self, askers: Vec<Asker>, index: Index) {
        for Asker { from, id } in askers {
            if from == self.config.id {
                self.effects.reads.push((id, index));
            } else {
                self.send(from, Body::ReadIndexReply { id, index });
            }
        }
    }

    /// Starts a round for all waiting reads if none is in flight and this term has committed.
    pub(super) fn maybe_start_round(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return };
        let has_committed = self.hard.commit_index >= leader.noop_index;
        let reads = &mut leader.reads;
        if reads.in_flight.is_some() || reads.waiting.is_empty() || !has_committed {
            return;
        }
        reads.in_flight = Some(Round {
            round: reads.round + 1,
            index: self.hard.commit_index,
            askers: std::mem::take(&mut reads.waiting),
        });
        self.send_heartbeats();
        self.maybe_finish_round();
    }

    /// Answers the reads in flight once a majority has answered their round or a later one.
    pub(super) fn maybe_finish_round(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(round) = &leader.reads.in_flight else { return };
        let mut heard: BTreeSet<NodeId> = leader
            .peers
            .iter()
            .filter(|(_, peer)| peer.round >= round.round)
            .map(|(&id, _)| id)
            .collect();
        heard.insert(self.config.id);
        if !self.log.membership().has_quorum(&heard) {
            return;
        }
        let Some(round) = leader.reads.in_flight.take() else { return };
        self.answer_reads(round.askers, round.index);
        self.maybe_start_round();
    }

    pub(super) fn on_read_index_reply(&mut self, from: NodeId, id: ReadId, index: Index) {
        if let Role::Follower(follower) = &mut self.role
            && follower.leader == Some(from)
            && follower.reads.remove(&id).is_some()
        {
            self.effects.reads.push((id, index));
        }
    }

    /// Leadership changes: what waited must be asked again.
    pub(super) fn refuse_reads(&mut self) {
        match &mut self.role {
            Role::Leader(leader) => {
                let round = leader.reads.in_flight.take();
                let in_flight = round.into_iter().flat_map(|round| round.askers);
                let askers = in_flight.chain(leader.reads.waiting.drain(..));
                let own = self.config.id;
                let refused = askers.filter(|asker| asker.from == own).map(|asker| asker.id);
                self.effects.reads_refused.extend(refused);
            }
            Role::Follower(follower) => {
                let reads = std::mem::take(&mut follower.reads);
                self.effects.reads_refused.extend(reads.into_keys());
            }
            Role::Candidate(_) => {}
        }
    }

    /// A follower gives up on answers that an election timeout did not bring.
    pub(super) fn refuse_old_reads(&mut self) {
        let patience = self.config.election_ticks;
        if let Role::Follower(follower) = &mut self.role {
            let old: Vec<ReadId> = follower
                .reads
                .iter()
                .filter(|&(_, &age)| age >= patience)
                .map(|(&id, _)| id)
                .collect();
            for id in old {
                follower.reads.remove(&id);
                self.effects.reads_refused.push(id);
            }
        }
    }
}

/// Batches of reads that wait at once, on either end; more are refused.
const READS_MAX: usize = 65_536;
