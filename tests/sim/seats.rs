//! Who has a place among the nodes and who has not: directories that are lost and made anew, nodes that are founded with
//! another list, strangers; and how nodes that were away hear of new members.

use quicraft::disk::MemDisk;
use quicraft::node::{Input, Output};
use quicraft::raft::{
    Body, DataId, Founding, Index, MembershipAt, Message, NodeId, ReadId, Standing, Term,
};

use crate::truth::Broken;
use crate::wire::place;
use crate::world::World;

impl World {
    /// Whether this node may lose its data: a majority of the founders' disks stays whole, and of those who decide now.
    fn may_lose(&self, node: usize) -> bool {
        let founders = self.options.nodes;
        let is_lost =
            |at: usize| at == node || self.cells[at].has_lost || self.cells[at].is_damaged;
        let lost = (0..founders).filter(|&at| is_lost(at)).count();
        node < founders && lost <= (founders - 1) / 2 && !self.options.changes_members
    }

    /// A node loses its data directory, and somebody makes it anew as if the cluster were new.
    pub(crate) fn wipe(&mut self, node: usize) -> Result<(), Broken> {
        if !self.may_lose(node) || self.cells[node].is_dead {
            return Ok(());
        }
        self.coverage.count(match self.truth.is_founded() {
            true => "seat: directory made anew",
            false => "seat: directory made anew before the cluster was founded",
        });
        self.begin_anew(node);
        self.cells[node].init(&self.options)?;
        self.restart_later(node);
        Ok(())
    }

    /// The same, with another list of founders.
    pub(crate) fn found_otherwise(&mut self, node: usize) -> Result<(), Broken> {
        if !self.may_lose(node) || self.cells[node].is_dead || !self.truth.is_founded() {
            return Ok(());
        }
        self.coverage.count("seat: founded with another list");
        self.begin_anew(node);
        let own = node as u64 + 1;
        let other = 1 + self.rng.below(self.options.nodes as u64);
        let ids = [own, other, own % self.options.nodes as u64 + 1];
        let founding = Founding::of(ids.map(|id| (NodeId(id), format!("n{id}"))));
        let cell = &mut self.cells[node];
        if founding.members.len() == self.options.nodes {
            // By chance it is the right one.
            cell.init(&self.options)?;
        } else {
            cell.init_as(&self.options, founding.clone())?;
            (cell.is_odd, cell.other_founding) = (true, Some(founding));
        }
        self.restart_later(node);
        Ok(())
    }

    fn begin_anew(&mut self, node: usize) {
        self.crash(node, false);
        let cell = &mut self.cells[node];
        cell.disk = MemDisk::new();
        cell.directory += 1;
        cell.other_founding = None;
        (cell.has_lost, cell.is_odd, cell.is_unseated) = (true, false, false);
        (cell.is_damaged, cell.has_bad_snapshot) = (false, false);
    }

    /// A node that was founded with another list gets nowhere: it finds nobody who votes with it.
    pub(crate) fn check_odd(&self, at: usize) -> Result<(), Broken> {
        let Some(running) = &self.cells[at].running else { return Ok(()) };
        let core = running.node.core();
        match (core.leader(), core.last_index()) {
            (None, Index(1)) => Ok(()),
            other => Err(format!("n{}: founded otherwise, and has come to {other:?}", at + 1)),
        }
    }

    /// A node whose log says that another directory acts for it ends.
    pub(crate) fn stop_unseated(&mut self, at: usize) {
        let running = self.cells[at].running.as_ref();
        if running.is_some_and(|running| running.node.core().is_unseated()) {
            self.unseat(at);
        }
    }

    /// A node that hears no leader asks the others who the members are.
    pub(crate) fn look_around(&mut self, node: usize) {
        let patience = self.options.protocol.election_ticks * 2;
        let Some(running) = &mut self.cells[node].running else { return };
        if running.node.leader().is_some() {
            running.lonely_ticks = 0;
        }
        if running.lonely_ticks < patience {
            return;
        }
        running.lonely_ticks = 0;
        let (id, data) = (running.node.core().id(), running.node.core().data());
        let told: Vec<MembershipAt> = (0..self.cells.len())
            .filter(|&other| other != node && !self.cells[other].is_odd && !self.cells[node].is_odd)
            .filter(|&other| !self.network.is_cut(node, other) && !self.network.is_cut(other, node))
            .filter(|&other| self.cells[other].paused_until <= self.now)
            .filter_map(|other| {
                let core = self.cells[other].running.as_ref()?.node.core();
                Some(core.membership_at(core.hard_state().commit_index).clone())
            })
            .collect();
        for members in told {
            self.coverage.count("seat: members asked for");
            if members.membership.data.get(&id).is_some_and(|acting| *acting != data) {
                return self.unseat(node);
            }
            if let Some(running) = &mut self.cells[node].running {
                running.input.vouched.push(members);
            }
        }
    }

    /// A stranger speaks to every node.
    pub(crate) fn forge_everywhere(&mut self) -> Result<(), Broken> {
        (0..self.cells.len()).try_for_each(|node| self.forge(node))
    }

    /// A message of somebody without a seat reaches a node past all judgement of connections: nothing may come of it.
    fn forge(&mut self, node: usize) -> Result<(), Broken> {
        let Some((id, data, term)) = self.draw_stranger(node) else { return Ok(()) };
        let body = self.draw_body();
        let (wall_ms, now_ms) = (self.cells[node].wall_ms, self.now / 1000);
        let Some(running) = &mut self.cells[node].running else { return Ok(()) };
        let to = running.node.core().id();
        let message = Message { from: id, data, to, term, body };
        let mut output = Output::default();
        // What the node would do anyway comes first.
        let idle = || Input { now_ms: wall_ms, clock_ms: now_ms, ..Input::default() };
        running.node.step_in(&mut idle(), &mut output);
        running.work.append(&mut output.log_work);
        let picture = |node: &quicraft::node::Node| {
            let core = node.core();
            let place = (core.hard_state(), core.role(), core.leader(), core.last_index());
            (place, node.members_version(), core.heir())
        };
        let before = picture(&running.node);
        let mut forged = Output::default();
        let mut input = Input { messages: vec![(message.clone(), None)], ..idle() };
        running.node.step_in(&mut input, &mut forged);
        let after = picture(&running.node);
        let is_silent = forged.messages.is_empty()
            && forged.log_work.is_empty()
            && forged.contradictions.is_empty()
            && forged.send_snapshots.is_empty();
        if before != after || !is_silent {
            return Err(format!("n{}: {message:?} turned {before:?} into {after:?}", node + 1));
        }
        for (message, batches) in output.messages {
            self.send(&message, &batches);
        }
        self.write(node);
        Ok(())
    }

    /// An id and a data directory that have no seat at this node, and a term that would tempt it.
    fn draw_stranger(&mut self, node: usize) -> Option<(NodeId, DataId, Term)> {
        let cells = self.cells.len() as u64;
        let id = NodeId(match self.rng.below(4) {
            0 => 1 + self.rng.below(cells),
            1 => cells + 1 + self.rng.below(5),
            2 => u64::MAX - self.rng.below(3),
            _ => self.rng.below(2) * 99,
        });
        let data = DataId(match self.rng.coin() {
            true => self.rng.next(),
            // Perhaps that of a member, under another id.
            false => 1001 + self.rng.below(cells),
        });
        let jump = *self.rng.pick(&[0, 1, 1, 3]);
        let core = self.cells[node].running.as_ref()?.node.core();
        let term = Term(core.hard_state().term.0 + jump);
        let standing = core.roster().standing(id, data);
        if core.membership().is_founding() || id == core.id() {
            return None;
        }
        match standing {
            Standing::Unknown => self.coverage.count("stranger: unknown"),
            Standing::Removed => self.coverage.count("stranger: removed"),
            Standing::OtherData => self.coverage.count("stranger: a member's clone"),
            Standing::Voter | Standing::Learner | Standing::Leaving | Standing::Founder => {
                return None;
            }
        }
        Some((id, data, term))
    }

    fn draw_body(&mut self) -> Body {
        let (index, term) = (Index(self.rng.below(50)), Term(self.rng.below(10)));
        match self.rng.below(11) {
            0 | 1 => Body::RequestVote {
                pre: self.rng.coin(),
                last_log_index: Index(1 << 40),
                last_log_term: Term(1 << 19),
                transfer: self.rng.coin(),
            },
            2 => Body::VoteReply { pre: self.rng.coin(), granted: self.rng.coin() },
            3 => Body::AppendEntries {
                prev_log_index: index,
                prev_log_term: term,
                commit_index: Index(1 << 40),
                entries: Vec::new(),
            },
            4 => Body::Appended { match_index: index },
            5 => Body::AppendRejected { prev_log_index: index, hint_index: index, hint_term: term },
            6 => Body::Heartbeat { commit_index: Index(1 << 40), round: self.rng.below(9) },
            7 => Body::HeartbeatReply { round: self.rng.below(99) },
            8 => Body::TimeoutNow,
            9 => Body::ReadIndex { id: ReadId(self.rng.next()) },
            _ => Body::ReadIndexReply { id: ReadId(self.rng.next()), index },
        }
    }

    /// Members that have lost their data are replaced once the faults are over: an operator lets new ones in.
    pub(crate) fn replace_lost(&mut self) {
        let Some(membership) = self.truth.membership().cloned() else { return };
        let stopped = |&id: &NodeId| {
            self.cells.get(place(id)).is_some_and(|cell| cell.is_unseated || cell.is_odd)
        };
        let replaced: Vec<NodeId> =
            membership.learners.values().filter_map(|learner| learner.replaces).collect();
        let next = membership.voters.iter().find(|id| stopped(id) && !replaced.contains(id));
        if let Some(&id) = next {
            self.ask_to_replace(id);
        }
    }
}
