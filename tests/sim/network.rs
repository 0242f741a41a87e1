//! Which messages arrive, when, and how often.

use crate::coverage::Coverage;
use crate::options::Net;
use crate::rng::Rng;

pub(crate) struct Network {
    net: Net,
    /// `cut[from][to]`
    cut: Vec<Vec<bool>>,
    /// Nothing arrives on this link before this time.
    clogged_until: Vec<Vec<u64>>,
}

impl Network {
    pub(crate) fn new(net: Net, nodes: usize) -> Network {
        let (cut, clogged_until) = (vec![vec![false; nodes]; nodes], vec![vec![0; nodes]; nodes]);
        Network { net, cut, clogged_until }
    }

    /// When copies of a message arrive: none, one or several times.
    pub(crate) fn arrivals(
        &self,
        (from, to): (usize, usize),
        now: u64,
        rng: &mut Rng,
        coverage: &mut Coverage,
    ) -> Vec<u64> {
        if self.cut[from][to] {
            coverage.count("network: stopped at a cut");
            return Vec::new();
        }
        if rng.permille(self.net.loss) {
            coverage.count("network: lost");
            return Vec::new();
        }
        let earliest = now.max(self.clogged_until[from][to]);
        let delay = match self.net.distances.get(from).and_then(|row| row.get(to)) {
            Some(&distance) => distance,
            None => rng.spread(self.net.delay_us),
        };
        let mut arrivals = vec![earliest + delay];
        if rng.permille(self.net.double) {
            coverage.count("network: doubled");
            arrivals.push(earliest + rng.spread(self.net.delay_us * 3));
        }
        if rng.permille(self.net.replay) {
            coverage.count("network: replayed");
            arrivals.push(earliest + rng.between(100_000, 2_000_000));
        }
        arrivals
    }

    pub(crate) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cut[from][to]
    }

    pub(crate) fn heal(&mut self) {
        self.cut.iter_mut().flatten().for_each(|cut| *cut = false);
        self.clogged_until.iter_mut().flatten().for_each(|until| *until = 0);
    }

    /// No more loss, doubles and replays.
    pub(crate) fn calm(&mut self) {
        self.heal();
        (self.net.loss, self.net.double, self.net.replay) = (0, 0, 0);
        self.net.delay_us = self.net.delay_us.min(2000);
    }

    /// Messages pass inside the groups only.
    pub(crate) fn split(&mut self, side: &[bool]) {
        for (from, row) in self.cut.iter_mut().enumerate() {
            for (to, cut) in row.iter_mut().enumerate() {
                // Nodes that have not joined yet are on no side.
                *cut = side.get(from) != side.get(to) && from.max(to) < side.len();
            }
        }
    }

    pub(crate) fn cut(&mut self, from: usize, to: usize) {
        self.cut[from][to] = true;
    }

    pub(crate) fn clog(&mut self, from: usize, to: usize, until: u64) {
        self.clogged_until[from][to] = until;
    }
}
