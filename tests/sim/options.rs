//! Everything that a seed decides beforehand; printed when the seed fails.

use quicraft::wal::LogIo;

use crate::rng::Rng;

/// Times are in microseconds, chances in a thousand.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    pub(crate) clients: usize,
    pub(crate) keys: u64,
    /// Between an answer and the next request of a client.
    pub(crate) think_us: u64,
    pub(crate) net: Net,
    pub(crate) disk: Disk,
    pub(crate) protocol: Protocol,
    /// Rate of each node's clock, 1000 is right.
    pub(crate) clock_permille: Vec<u64>,
    /// Between two deeds of the nemesis.
    pub(crate) nemesis_us: u64,
    /// How likely the nemesis aims at the leader.
    pub(crate) at_leader: u32,
    /// What the nemesis may do, by the order of `nemesis::Deed`.
    pub(crate) deeds: u32,
    /// How often somebody goes for a client's session when that asks something.
    pub(crate) hostile: u32,
    /// Nodes join and are removed; nothing that no recovery can mend is done to disks then.
    pub(crate) changes_members: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Net {
    pub(crate) delay_us: u64,
    pub(crate) loss: u32,
    pub(crate) double: u32,
    pub(crate) replay: u32,
    /// How long a message takes from each to each; with none it is up to chance.
    pub(crate) distances: Vec<Vec<u64>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) sync_us: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) io: LogIo,
}

#[derive(Clone, Debug)]
pub(crate) struct Protocol {
    pub(crate) heartbeat_ticks: u32,
    pub(crate) election_ticks: u32,
    pub(crate) append_bytes_max: u64,
    pub(crate) append_entries_max: usize,
    pub(crate) window_bytes_max: u64,
    pub(crate) uncommitted_bytes_max: u64,
    pub(crate) snapshot_log_bytes: u64,
    /// Leaders read by their lease; clocks differ by less than it allows for then.
    pub(crate) lease_ms: u64,
}

impl Options {
    pub(crate) fn draw(seed: u64) -> Options {
        let mut rng = Rng::new(seed);
        let nodes = *rng.pick(&[1, 2, 3, 3, 3, 3, 4, 5, 5, 7]);
        let rough = rng.coin();
        let net = Net {
            delay_us: *rng.pick(&[100, 500, 2000, 10_000, 30_000]),
            loss: if rough { rng.below(300) as u32 } else { 0 },
            double: if rough { rng.below(100) as u32 } else { 0 },
            replay: if rough { rng.below(50) as u32 } else { 0 },
            distances: Vec::new(),
        };
        let disk = Disk {
            sync_us: *rng.pick(&[100, 500, 2000, 10_000]),
            segment_bytes: *rng.pick(&[16 << 10, 16 << 10, 64 << 10]),
            io: *rng.pick(&[LogIo::Write, LogIo::Map]),
        };
        let heartbeat_ticks = rng.between(1, 4) as u32;
        let election_ticks = heartbeat_ticks * 3 + rng.between(5, 20) as u32;
        let has_leases = rng.permille(300);
        let lease_ms = u64::from(election_ticks) * crate::world::TICK_US / 1000 * 2 / 3;
        let protocol = Protocol {
            heartbeat_ticks,
            election_ticks,
            append_bytes_max: *rng.pick(&[200, 4 << 10, 64 << 10]),
            append_entries_max: *rng.pick(&[1, 1, 2, 64]),
            window_bytes_max: *rng.pick(&[500, 8 << 10, 1 << 20]),
            uncommitted_bytes_max: *rng.pick(&[300, 64 << 10, 1 << 20]),
            snapshot_log_bytes: *rng.pick(&[500, 2000, 2000, 8000, u64::MAX]),
            lease_ms: if has_leases { lease_ms } else { 0 },
        };
        let drifts = rng.coin();
        let (slowest, fastest) = if has_leases { (800, 1250) } else { (500, 2000) };
        let clock_permille =
            (0..nodes).map(|_| if drifts { rng.between(slowest, fastest) } else { 1000 }).collect();
        Options {
            seed,
            nodes,
            clients: rng.between(1, 6) as usize,
            keys: rng.between(1, 4),
            think_us: *rng.pick(&[100, 3000, 30_000]),
            net,
            disk,
            protocol,
            clock_permille,
            nemesis_us: *rng.pick(&[50_000, 200_000, 800_000]),
            at_leader: if rng.coin() { 800 } else { 0 },
            deeds: rng.next() as u32 | rng.next() as u32,
            changes_members: rng.permille(300),
            hostile: if rng.coin() { rng.between(20, 400) as u32 } else { 0 },
        }
    }
}

/// How many nodes there ever are beyond the first ones.
pub(crate) const JOINERS_MAX: usize = 4;
