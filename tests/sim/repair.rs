//! Nodes whose logs are damaged ask the others, over the same network.

use quicraft::node::Outcome;

use crate::event::Event;
use crate::truth::Broken;
use crate::world::World;

impl World {
    /// One step of a repair: a question and its answer, or the end.
    pub(crate) fn repair(&mut self, at: usize, life: u64) -> Result<(), Broken> {
        let is_alive = self.cells[at].life == life;
        let Some(repair) = self.cells[at].repair.as_mut().filter(|_| is_alive) else {
            return Ok(());
        };
        match repair.outcome() {
            Outcome::Wanting => {
                if let Some((to, want)) = repair.ask() {
                    let other = to.0 as usize - 1;
                    let is_cut = self.network.is_cut(at, other) || self.network.is_cut(other, at);
                    let answer = match (&self.cells[other].running, &self.cells[other].repair) {
                        _ if is_cut || self.cells[other].paused_until > self.now => None,
                        _ if self.cells[other].is_odd => None,
                        (Some(running), _) => Some(running.node.fetch(&want)),
                        (None, Some(repair)) => Some(repair.fetch(&want)),
                        (None, None) => None,
                    };
                    if let Some(answer) = answer {
                        self.coverage.count(match answer {
                            Some(_) => "repair: entries fetched",
                            None => "repair: another node lacks them too",
                        });
                        let repair = self.cells[at].repair.as_mut().expect("it was just there");
                        repair.answered(to, want, answer);
                    }
                }
                let wait = self.rng.spread(2000);
                self.schedule(wait, Event::Repair { node: at, life });
            }
            Outcome::Mendable => {
                let repair = self.cells[at].repair.take().expect("it was just there");
                let opening = repair.mend();
                if opening.is_ok() {
                    self.coverage.count("repair: log mended");
                    self.cells[at].is_damaged = self.cells[at].has_bad_snapshot;
                }
                let has_started = self.cells[at].go_on(opening, &mut self.coverage)?;
                self.started(at, has_started);
            }
            Outcome::Lost(_) => {
                // A new member would take its place.
                self.coverage.count("repair: nobody can say what was lost");
                self.cells[at].is_dead = true;
                self.cells[at].repair = None;
                self.cells[at].disk.kill();
            }
        }
        Ok(())
    }
}
