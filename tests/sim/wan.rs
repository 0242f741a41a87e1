//! What distance costs: a calm cluster in one region and in three, timed by the simulated clock. Disks take a tenth of a
//! millisecond, and who asks stands beside the leader, so what is measured is the protocol's round trips, and each must be
//! what the theory says: one to the nearest follower for a write and for a read, none for a read by lease.
//!
//! `cargo test --release --test sim -- --wan` shows the table; every run of the simulator checks it.

use quicraft::node::{ReplyTo, Request, RequestBody};
use quicraft::proto;
use quicraft::proto::client::{Consistency, Reply};
use quicraft::proto::command::{Command, Op, Outcome, Principal, SessionId};

use crate::clients::Answer;
use crate::options::{Disk, Net, Options, Protocol};
use crate::truth::Broken;
use crate::world::{TICK_US, World};

/// Where the nodes are.
struct Layout {
    name: &'static str,
    /// Microseconds one way, from each to each.
    distances: [[u64; 3]; 3],
    heartbeat_ticks: u32,
    election_ticks: u32,
}

const LAYOUTS: [Layout; 2] = [
    Layout {
        name: "one region",
        distances: [[0, 250, 250], [250, 0, 250], [250, 250, 0]],
        heartbeat_ticks: 5,
        election_ticks: 30,
    },
    Layout {
        name: "three regions",
        distances: [[0, 35_000, 40_000], [35_000, 0, 70_000], [40_000, 70_000, 0]],
        heartbeat_ticks: 15,
        election_ticks: 150,
    },
];
const SEEDS: u64 = 12;
const ASKED: u64 = 40;
/// Puts that are asked for at once, and their bytes.
const POURED: u64 = 2048;
const POURED_BYTES: u64 = 8 << 20;
/// On the way to one follower.
const WINDOW_BYTES: u64 = 1 << 20;
/// What turns, syncs and hand-overs may add.
const SLACK_US: u64 = 3000;
/// Answers to this stream are for [`probe`].
pub(crate) const PROBE: u64 = u64::MAX - 1;

/// One measured kind of work: latencies in microseconds, each beside the least and the most that theory allows.
struct Row {
    work: &'static str,
    seen: Vec<(u64, u64, u64)>,
}

/// Measures everything; gives the table, or what took less or more time than it can.
pub(crate) fn check() -> Result<String, Broken> {
    let mut table = format!("{:14} {:26} {:>9} {:>9} {:>9}\n", "", "ms", "p50", "p99", "at most");
    for layout in &LAYOUTS {
        let mut rows =
            ["put", "get", "get by lease", "a put after a kill", "8 MiB by a window of 1"]
                .map(|work| Row { work, seen: Vec::new() });
        for seed in 0..SEEDS {
            measure(layout, seed, &mut rows)?;
        }
        for row in &mut rows {
            row.seen.sort_unstable();
            let at = |share: usize| row.seen[(row.seen.len() - 1) * share / 100].0 as f64 / 1000.0;
            let most = row.seen.iter().map(|one| one.2).max().unwrap_or(0) as f64 / 1000.0;
            let (name, work, p50, p99) = (layout.name, row.work, at(50), at(99));
            table.push_str(&format!("{name:14} {work:26} {p50:9.2} {p99:9.2} {most:9.2}\n"));
            if let Some((us, least, most)) =
                row.seen.iter().find(|(us, least, most)| us < least || us > most)
            {
                return Err(format!(
                    "{name}: {work} took {us} us, and can take {least} to {most}\n{table}"
                ));
            }
        }
    }
    Ok(table)
}

fn measure(layout: &Layout, seed: u64, rows: &mut [Row; 5]) -> Result<(), Broken> {
    for leases in [false, true] {
        let mut world = World::new(options(layout, seed, leases))?;
        world.is_calm = true;
        let leader = next_leader(&mut world)?;
        let (_, opened) = probe(&mut world, leader, write(&Command::OpenSession))?;
        let Some(Outcome::SessionOpened(session)) = outcome(&opened) else {
            return Err("no session".to_owned());
        };
        let trip = 2
            * (0..3)
                .filter(|&to| to != leader)
                .map(|to| layout.distances[leader][to])
                .min()
                .unwrap_or(0);
        for seq in 1..=ASKED {
            let (us, _) = probe(&mut world, leader, put(session, seq))?;
            rows[0].seen.push((us, trip, trip + SLACK_US));
            let key = b"key".to_vec().into();
            let get =
                RequestBody::Get { key, consistency: Consistency::Linearizable, revision: None };
            let (us, _) = probe(&mut world, leader, get)?;
            let (row, trip) = if leases { (2, 0) } else { (1, trip) };
            rows[row].seen.push((us, trip, trip + SLACK_US));
        }
        let us = pour(&mut world, leader, session)?;
        // One window goes out at once, and each other when one is answered; the entries are longer than the values.
        let windows = POURED_BYTES / WINDOW_BYTES;
        rows[4].seen.push((us, (windows - 1) * trip, (windows + 1) * (trip + SLACK_US)));
        world.crash(leader, false);
        let killed = world.now;
        loop {
            let leader = next_leader(&mut world)?;
            let (_, answer) = probe(&mut world, leader, put(session, ASKED + POURED + 1))?;
            match outcome(&answer) {
                Some(Outcome::Written { .. }) => break,
                Some(other) => return Err(format!("the next leader says {other:?}")),
                None => {}
            }
        }
        let timeout = u64::from(layout.election_ticks) * TICK_US;
        let trips = 8 * layout.distances.as_flattened().iter().max().copied().unwrap_or(0);
        // Whoever hears nothing waits up to twice the timeout, and two that run at once wait once more.
        let (least, most) = (timeout / 2, 4 * timeout + trips + SLACK_US);
        rows[3].seen.push((world.now - killed, least, most));
    }
    Ok(())
}

/// Nothing goes wrong, and nothing is slow but the way.
fn options(layout: &Layout, seed: u64, leases: bool) -> Options {
    let drawn = Options::draw(seed + 1);
    let distances = layout.distances.iter().map(|row| row.to_vec()).collect();
    let lease_ms = u64::from(layout.election_ticks) * TICK_US / 1000 * 2 / 3;
    Options {
        nodes: 3,
        clients: 0,
        net: Net { delay_us: 0, loss: 0, double: 0, replay: 0, distances },
        disk: Disk { sync_us: 100, ..drawn.disk },
        protocol: Protocol {
            heartbeat_ticks: layout.heartbeat_ticks,
            election_ticks: layout.election_ticks,
            append_bytes_max: 64 << 10,
            append_entries_max: 64,
            window_bytes_max: WINDOW_BYTES,
            uncommitted_bytes_max: 2 * POURED_BYTES,
            snapshot_log_bytes: u64::MAX,
            lease_ms: if leases { lease_ms } else { 0 },
        },
        clock_permille: vec![1000; 3],
        deeds: 0,
        changes_members: false,
        hostile: 0,
        ..drawn
    }
}

/// Goes on until somebody leads, and knows that it does.
fn next_leader(world: &mut World) -> Result<usize, Broken> {
    let begun = world.now;
    loop {
        world.step()?;
        if let Some(leader) = world.leader() {
            return Ok(leader);
        }
        if world.now > begun + PATIENCE_US {
            return Err("nobody leads".to_owned());
        }
    }
}

/// Asks one node, and gives how long the answer took.
fn probe(world: &mut World, node: usize, body: RequestBody) -> Result<(u64, Answer), Broken> {
    let begun = world.now;
    world.next_request += 1;
    let reply_to = ReplyTo { stream: PROBE, request_id: world.next_request };
    let running = world.cells[node].running.as_mut().ok_or("the leader does not run")?;
    running.input.requests.push(Request { reply_to, body });
    world.probed = None;
    world.wake(node, 0);
    while world.now < begun + PATIENCE_US {
        world.step()?;
        if let Some((at, answer)) = world.probed.take() {
            return Ok((at - begun, answer));
        }
    }
    Err("a calm cluster does not answer".to_owned())
}

/// Asks for many puts at once, and gives how long it took until the last was committed.
fn pour(world: &mut World, node: usize, session: SessionId) -> Result<u64, Broken> {
    let begun = world.now;
    let running = world.cells[node].running.as_mut().ok_or("the leader does not run")?;
    let target = running.node.status().last_log_index + POURED;
    let value = vec![7; (POURED_BYTES / POURED) as usize];
    for seq in ASKED + 1..=ASKED + POURED {
        let op = Op::Put { key: b"key", value: &value };
        let body = write(&Command::Write { session, seq, answered_below: ASKED + 1, op });
        let reply_to = ReplyTo { stream: PROBE, request_id: 0 };
        running.input.requests.push(Request { reply_to, body });
    }
    world.wake(node, 0);
    while world.now < begun + PATIENCE_US {
        world.step()?;
        let running = world.cells[node].running.as_ref().ok_or("the leader does not run")?;
        if running.node.core().hard_state().commit_index.0 >= target {
            return Ok(world.now - begun);
        }
    }
    Err("a calm cluster does not commit".to_owned())
}

fn write(command: &Command<'_>) -> RequestBody {
    let mut bytes = Vec::new();
    proto::encode(command, &mut bytes);
    RequestBody::Write { owner: Principal(1), command: bytes.into() }
}

fn put(session: SessionId, seq: u64) -> RequestBody {
    let op = Op::Put { key: b"key", value: b"value" };
    write(&Command::Write { session, seq, answered_below: seq, op })
}

fn outcome(answer: &Answer) -> Option<Outcome> {
    let Answer::Bytes(bytes) = answer else { return None };
    match proto::decode::<Reply<'_>>(bytes, "reply") {
        Ok(Reply::Outcome(outcome)) => Some(outcome),
        Ok(_) | Err(_) => None,
    }
}

const PATIENCE_US: u64 = 60_000_000;
