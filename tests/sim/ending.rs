//! The end of a seed: faults stop, and a majority must get on; then everything is compared.

use quicraft::raft::Index;

use crate::event::Event;
use crate::truth::Broken;
use crate::world::World;

impl World {
    /// Heals everything and waits for progress: each client gets its answer, all nodes hold the same.
    pub(crate) fn calm_down(&mut self) -> Result<(), Broken> {
        self.is_calm = true;
        self.network.calm();
        for node in 0..self.cells.len() {
            let cell = &mut self.cells[node];
            cell.paused_until = 0;
            cell.sync_us = self.options.disk.sync_us;
            cell.disk.set_capacity(None);
            self.options.clock_permille[node] = 1000;
            self.schedule(0, Event::Start { node });
        }
        self.stay_away();
        self.dismiss_removed();
        let mut next_replacement = self.now;
        let deadline = self.now + LIVENESS_US;
        while !self.is_settled() {
            if self.now > deadline {
                return Err(format!("no progress after everything was healed: {}", self.picture()));
            }
            self.step()?;
            self.dismiss_removed();
            if self.now >= next_replacement {
                next_replacement = self.now + REPLACE_US;
                self.replace_lost();
            }
        }
        for cell in &self.cells {
            if let Some(running) = &cell.running {
                self.truth.check_content(cell.id, &running.node)?;
            }
        }
        Ok(())
    }

    /// Nodes that were removed are told so, and stop.
    fn dismiss_removed(&mut self) {
        for node in 0..self.cells.len() {
            if !self.cells[node].is_dead && self.is_removed(node) {
                self.coverage.count("member: removed");
                self.crash(node, false);
                self.cells[node].is_dead = true;
            }
        }
    }

    /// Some nodes that the others can do without do not come back.
    fn stay_away(&mut self) {
        if self.options.changes_members || !self.truth.is_founded() {
            return;
        }
        let dead = self.cells.iter().filter(|cell| cell.is_damaged || cell.has_lost).count();
        let spare = ((self.cells.len() - 1) / 2).saturating_sub(dead);
        for _ in 0..self.rng.below(spare as u64 + 1) {
            let node = self.rng.below(self.cells.len() as u64) as usize;
            self.crash(node, true);
            self.cells[node].is_dead = true;
        }
    }

    /// All clients have their answers, and all nodes hold all of it.
    fn is_settled(&self) -> bool {
        let committed = self.truth.committed();
        let answered = |client: &crate::clients::Client| client.is_idle() && client.has_asked_last;
        self.clients.iter().all(answered)
            && self.leader().is_some()
            && self.cells.iter().filter(|cell| !cell.is_dead && !cell.is_odd).all(|cell| {
                cell.running.as_ref().is_some_and(|running| {
                    let core = running.node.core();
                    let idle = running.writing.is_empty() && running.work.is_empty();
                    running.node.applied().0 == Index(committed)
                        && core.last_index() == Index(committed)
                        && core.durable_index() == Index(committed)
                        && idle
                })
            })
    }

    fn picture(&self) -> String {
        let cell = |cell: &crate::cell::Cell| match &cell.running {
            None => format!(
                "n{}: down, dead {} unseated {}",
                cell.id + 1,
                cell.is_dead,
                cell.is_unseated
            ),
            Some(running) => {
                let (core, applied) = (running.node.core(), running.node.applied().0);
                format!(
                    "n{}: {:?} {:?} applied {applied} last {} durable {} members {:?} {:?}",
                    cell.id + 1,
                    core.role(),
                    core.hard_state(),
                    core.last_index(),
                    core.durable_index(),
                    core.membership().voters,
                    core.membership().outgoing
                )
            }
        };
        let cells: Vec<_> = self.cells.iter().map(cell).collect();
        let busy = self.clients.iter().filter(|client| !client.is_idle()).count();
        format!("{}; committed {}, {busy} clients wait", cells.join("; "), self.truth.committed())
    }

    /// Kills every node and opens it again: what was in memory is on the disk.
    pub(crate) fn check_reopened(&mut self) -> Result<(), Broken> {
        for at in 0..self.cells.len() {
            let cell = &mut self.cells[at];
            let Some(running) = &cell.running else { continue };
            let picture = |node: &quicraft::node::Node| {
                let (core, applied) = (node.core(), node.applied());
                (core.hard_state(), core.last_index(), applied.0 <= core.last_index())
            };
            let before = picture(&running.node);
            cell.crash(true, false, &mut self.rng, &mut self.coverage);
            if !cell.start(&self.options, &mut self.coverage)? {
                continue;
            }
            // Damage that nobody had met yet.
            let Some(running) = &cell.running else { continue };
            let after = picture(&running.node);
            let same_log = before.1 == after.1 && after.2;
            let same_vote =
                before.0.term == after.0.term && before.0.voted_for == after.0.voted_for;
            if !same_log || !same_vote {
                return Err(format!("n{}: {before:?} became {after:?} on the disk", at + 1));
            }
            self.coverage.count("check: log reopened");
        }
        Ok(())
    }
}

/// How often an operator looks after members that have lost their data.
const REPLACE_US: u64 = 200_000;
/// Everything must be settled this long after the last fault.
const LIVENESS_US: u64 = 60_000_000;
