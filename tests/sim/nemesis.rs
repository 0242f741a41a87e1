//! What goes wrong, and when. Damage that no recovery can mend is done to fewer than half of the nodes, and only to what
//! later records attest: what exactly the last write before a crash lost cannot be told from a torn one (README).

use crate::cell::START_MS;
use crate::truth::Broken;
use crate::world::World;

/// One bit each in `Options::deeds`.
#[derive(Clone, Copy, Debug)]
enum Deed {
    CrashOne,
    CrashLeader,
    CrashAll,
    Pause,
    Split,
    CutLeaderOff,
    CutOneWay,
    Clog,
    Heal,
    JumpClock,
    SlowDisk,
    FullDisk,
    FailSync,
    Rot,
    Misdirect,
    Transfer,
    Add,
    Remove,
    Wipe,
    FoundOtherwise,
    Forge,
}

const DEEDS: [Deed; 21] = [
    Deed::CrashOne,
    Deed::CrashLeader,
    Deed::CrashAll,
    Deed::Pause,
    Deed::Split,
    Deed::CutLeaderOff,
    Deed::CutOneWay,
    Deed::Clog,
    Deed::Heal,
    Deed::JumpClock,
    Deed::SlowDisk,
    Deed::FullDisk,
    Deed::FailSync,
    Deed::Rot,
    Deed::Misdirect,
    Deed::Transfer,
    Deed::Add,
    Deed::Remove,
    Deed::Wipe,
    Deed::FoundOtherwise,
    Deed::Forge,
];

const DAY_MS: u64 = 24 * 3_600_000;

impl World {
    /// Does one thing that the seed allows.
    pub(crate) fn act(&mut self) -> Result<(), Broken> {
        let deed = self.rng.below(DEEDS.len() as u64) as usize;
        // Healing is always allowed, or nothing would ever get done.
        if self.options.deeds & 1 << deed == 0 && !matches!(DEEDS[deed], Deed::Heal) {
            return Ok(());
        }
        let anyone = self.rng.below(self.cells.len() as u64) as usize;
        let aims = self.rng.permille(self.options.at_leader);
        let target = self.leader().filter(|_| aims).unwrap_or(anyone);
        match DEEDS[deed] {
            Deed::CrashOne => self.crash_one(target, "crash: one node"),
            Deed::CrashLeader => {
                if let Some(leader) = self.leader() {
                    self.crash_one(leader, "crash: leader");
                }
            }
            Deed::CrashAll => {
                self.coverage.count("crash: all nodes");
                for node in 0..self.cells.len() {
                    self.crash(node, true);
                    self.restart_later(node);
                }
            }
            Deed::Pause => {
                self.coverage.count("clock: paused");
                self.cells[target].paused_until = self.now + self.rng.between(50_000, 1_500_000);
            }
            Deed::Split | Deed::CutLeaderOff | Deed::CutOneWay | Deed::Clog | Deed::Heal => {
                self.change_network(DEEDS[deed], target);
            }
            Deed::JumpClock => {
                // Sessions end after an hour of the log's time, which clients here do not expect.
                let days = self.rng.between(0, 14);
                self.coverage.count(if days < 7 {
                    "clock: days back"
                } else {
                    "clock: days ahead"
                });
                self.cells[target].wall_ms = START_MS - 7 * DAY_MS + days * DAY_MS;
            }
            Deed::SlowDisk => {
                self.coverage.count("disk: slow");
                let usual = self.options.disk.sync_us;
                let cell = &mut self.cells[target];
                cell.sync_us = if cell.sync_us > usual { usual } else { 300_000 };
            }
            Deed::FullDisk => {
                self.coverage.count("disk: filled");
                let room = self.rng.below(40_000);
                let disk = &self.cells[target].disk;
                disk.set_capacity(Some(disk.used_bytes() + room));
                let (node, until) = (target, self.rng.between(100_000, 1_000_000));
                self.schedule(until, crate::event::Event::Free { node });
            }
            Deed::FailSync => self.cells[target].disk.fail_sync(1 + self.rng.below(3)),
            Deed::Rot | Deed::Misdirect => self.damage(DEEDS[deed], anyone),
            Deed::Transfer => {
                if let Some(leader) = self.leader() {
                    self.coverage.count("transfer: asked for");
                    let running = self.cells[leader].running.as_mut().expect("it leads");
                    running.input.transfer = true;
                }
            }
            Deed::Add => self.ask_for_another(),
            Deed::Remove => self.ask_to_remove(anyone),
            Deed::Wipe => self.wipe(target)?,
            Deed::FoundOtherwise => self.found_otherwise(anyone)?,
            Deed::Forge => self.forge_everywhere()?,
        }
        Ok(())
    }

    fn crash_one(&mut self, node: usize, name: &'static str) {
        self.coverage.count(name);
        let power = self.rng.coin();
        self.crash(node, power);
        self.restart_later(node);
    }

    fn change_network(&mut self, deed: Deed, target: usize) {
        let nodes = self.cells.len();
        match deed {
            Deed::Split => {
                self.coverage.count("network: split in two");
                let side: Vec<_> = (0..nodes).map(|_| self.rng.coin()).collect();
                self.network.split(&side);
            }
            Deed::CutLeaderOff => {
                self.coverage.count("network: leader cut off");
                let leader = self.leader().unwrap_or(target);
                // Perhaps with one companion.
                let companion = self.rng.below(nodes as u64) as usize;
                let has_company = self.rng.coin();
                let side = (0..nodes).map(|n| n == leader || has_company && n == companion);
                self.network.split(&side.collect::<Vec<_>>());
            }
            Deed::CutOneWay => {
                self.coverage.count("network: cut in one direction");
                for _ in 0..self.rng.between(1, 3) {
                    let other = self.rng.below(nodes as u64) as usize;
                    let (from, to) =
                        if self.rng.coin() { (target, other) } else { (other, target) };
                    self.network.cut(from, to);
                }
            }
            Deed::Clog => {
                self.coverage.count("network: clogged");
                let other = self.rng.below(nodes as u64) as usize;
                let until = self.now + self.rng.below(2_000_000);
                self.network.clog(target, other, until);
            }
            _ => {
                self.coverage.count("network: healed");
                self.network.heal();
            }
        }
    }

    /// Whether the others could do without this node for ever.
    pub(crate) fn may_damage(&self, node: usize) -> bool {
        if self.options.changes_members {
            return false;
        }
        // Until the cluster is founded it needs everybody.
        let lost = self.cells.iter().filter(|cell| cell.is_damaged || cell.has_lost).count();
        let is_spare = self.cells[node].is_damaged || lost < (self.options.nodes - 1) / 2;
        self.truth.is_founded() && is_spare
    }

    /// Changes bytes on a disk behind the node's back.
    fn damage(&mut self, deed: Deed, node: usize) {
        if !self.may_damage(node) {
            return;
        }
        let cell = &self.cells[node];
        let files = cell.disk.files();
        // Not the newest log file: its end may be in flight.
        let mut logs: Vec<_> =
            files.iter().filter(|path| path.extension().is_some_and(|e| e == "wal")).collect();
        logs.pop();
        let snapshots = files.iter().filter(|path| path.extension().is_some_and(|e| e == "snap"));
        let choices: Vec<_> = logs.into_iter().chain(snapshots).collect();
        if choices.is_empty() {
            return;
        }
        let path = (*self.rng.pick(&choices)).clone();
        let is_snapshot = path.extension().is_some_and(|e| e == "snap");
        let rng = &mut self.rng;
        let is_rot = matches!(deed, Deed::Rot);
        cell.disk.tamper(&path, |bytes| {
            let place = rng.below(bytes.len() as u64) as usize;
            if is_rot {
                bytes[place] ^= 1 << rng.below(8);
                return;
            }
            let sectors = bytes.len() as u64 / 512;
            if sectors > 1 {
                let (from, to) = (rng.below(sectors) as usize, rng.below(sectors) as usize);
                bytes.copy_within(from * 512..from * 512 + 512, to * 512);
            }
        });
        self.coverage.count(if is_rot { "disk: byte rotted" } else { "disk: write went astray" });
        self.cells[node].is_damaged = true;
        self.cells[node].has_bad_snapshot |= is_snapshot;
    }
}
