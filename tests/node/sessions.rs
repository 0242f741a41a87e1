//! Whose sessions they are, what they take, and when they end: by the log's time, which no wall clock moves.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use quicraft::node::RequestBody;
use quicraft::proto;
use quicraft::proto::command::{Command, Op, Outcome, Principal, SessionId, decode_entry};
use quicraft::proto::limits::SESSION_IDLE_MS_MAX;
use quicraft::raft::{EntryKind, Index};

use crate::answers::Answer;
use crate::cluster::Cluster;

const DAY_MS: i64 = 24 * 3_600_000;

fn delete(session: SessionId, seq: u64) -> Command<'static> {
    Command::Write { session, seq, answered_below: seq, op: Op::Delete { key: b"k" } }
}

impl Cluster {
    pub(crate) fn ask_write_as(
        &mut self,
        node: usize,
        owner: Principal,
        command: &Command<'_>,
    ) -> u64 {
        let mut bytes = Vec::new();
        proto::encode(command, &mut bytes);
        self.ask(node, RequestBody::Write { owner, command: bytes.into() })
    }

    fn write_as(&mut self, node: usize, owner: Principal, command: &Command<'_>) -> Outcome {
        let request = self.ask_write_as(node, owner, command);
        match self.wait(node, request) {
            Answer::Outcome(outcome) => outcome,
            answer => panic!("{answer:?}"),
        }
    }

    /// The time that the newest clock entry of a node's log says.
    fn log_time_ms(&self, node: usize) -> u64 {
        let last = self.status(node).last_log_index;
        let (node, _) = self.cells[node].running.as_ref().unwrap();
        let mut entries = (1..=last).rev().map(|index| node.entry(Index(index)).unwrap());
        let time = entries.find_map(|entry| match decode_entry(&entry.body) {
            Ok((_, Command::Clock { now_ms })) if entry.kind == EntryKind::Command => Some(now_ms),
            _ => None,
        });
        time.expect("there is a clock entry")
    }

    /// Lets seconds go by with a write in each, under whoever leads.
    fn seconds(&mut self, node: usize, session: SessionId, count: u64, seq: &mut u64) {
        for _ in 0..count {
            self.now_ms += 1000;
            *seq += 1;
            let outcome = self.write(node, &delete(session, *seq));
            assert!(matches!(outcome, Outcome::Written { .. }), "{outcome:?}");
        }
    }
}

#[test]
fn another_client_neither_uses_nor_closes_a_session() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.elect();
    let session = cluster.open_session(leader);
    let thief = Principal(2);
    for seq in 1..=20 {
        let stolen = cluster.write_as(leader, thief, &delete(session, seq));
        assert_eq!(stolen, Outcome::SessionUnknown);
        let closed = cluster.write_as(leader, thief, &Command::CloseSession(session));
        assert_eq!(closed, Outcome::SessionUnknown);
        assert!(matches!(cluster.write(leader, &delete(session, seq)), Outcome::Written { .. }));
    }
    // Nor under the next leader.
    cluster.crash(leader);
    let leader = cluster.elect();
    assert_eq!(cluster.write_as(leader, thief, &delete(session, 21)), Outcome::SessionUnknown);
    assert!(matches!(cluster.write(leader, &delete(session, 21)), Outcome::Written { .. }));
}

#[test]
fn a_clock_that_is_days_ahead_ends_no_session_and_no_history() {
    let mut cluster = Cluster::new(3);
    let first = cluster.elect();
    let (session, mut seq) = (cluster.open_session(first), 0);
    cluster.seconds(first, session, 10, &mut seq);
    let before = cluster.log_time_ms(first);
    cluster.ahead_ms = vec![5 * DAY_MS; 3];
    cluster.seconds(first, session, 8, &mut seq);
    cluster.crash(first);
    let next = cluster.elect();
    cluster.seconds(next, session, 8, &mut seq);
    let moved = cluster.log_time_ms(next) - before;
    // By an eighth more than the time that went by, and not at all while there was no leader.
    assert!((15_000..=18_000).contains(&moved), "the log's time moved by {moved} ms in 16 s");
    assert!(cluster.status(next).oldest_revision <= 1);
}

#[test]
fn a_clock_that_went_back_days_does_not_stop_the_logs_time() {
    let mut cluster = Cluster::new(3);
    cluster.ahead_ms = vec![5 * DAY_MS; 3];
    let first = cluster.elect();
    let (session, mut seq) = (cluster.open_session(first), 0);
    cluster.seconds(first, session, 10, &mut seq);
    let before = cluster.log_time_ms(first);
    cluster.ahead_ms = vec![-5 * DAY_MS; 3];
    cluster.seconds(first, session, 8, &mut seq);
    cluster.crash(first);
    let next = cluster.elect();
    // A restarted node counts on as well.
    cluster.start(first);
    cluster.seconds(next, session, 8, &mut seq);
    cluster.crash(next);
    let last = cluster.elect();
    cluster.seconds(last, session, 8, &mut seq);
    let moved = cluster.log_time_ms(last) - before;
    assert!((18_000..=24_000).contains(&moved), "the log's time moved by {moved} ms in 24 s");
}

#[test]
fn the_first_clock_entry_is_the_wall_clocks() {
    let mut cluster = Cluster::new(1);
    cluster.ahead_ms = vec![DAY_MS];
    cluster.elect();
    cluster.open_session(0);
    assert_eq!(cluster.log_time_ms(0), cluster.now_ms + DAY_MS as u64);
    // A wall clock that shows nothing is no reason not to count.
    let mut cluster = Cluster::new(1);
    cluster.ahead_ms = vec![i64::MIN];
    cluster.elect();
    let (session, mut seq) = (cluster.open_session(0), 0);
    assert_eq!(cluster.log_time_ms(0), 1);
    cluster.seconds(0, session, 8, &mut seq);
    assert_eq!(cluster.log_time_ms(0), 1 + 7000);
}

#[test]
fn the_logs_time_comes_near_the_wall_clock() {
    let mut cluster = Cluster::new(1);
    cluster.elect();
    let (session, mut seq) = (cluster.open_session(0), 0);
    cluster.ahead_ms = vec![2000];
    cluster.seconds(0, session, 15, &mut seq);
    assert_eq!(cluster.log_time_ms(0), cluster.now_ms + 15 * 125);
    cluster.seconds(0, session, 2, &mut seq);
    assert_eq!(cluster.log_time_ms(0), cluster.now_ms + 2000);
}

#[test]
fn idle_sessions_end_while_the_wall_clock_stands_still() {
    let mut cluster = Cluster::new(1);
    cluster.elect();
    let idle = cluster.open_session(0);
    let (session, mut seq) = (cluster.open_session(0), 0);
    for _ in 0..10 {
        cluster.now_ms += SESSION_IDLE_MS_MAX / 8;
        cluster.ahead_ms[0] -= (SESSION_IDLE_MS_MAX / 8) as i64;
        cluster.seconds(0, session, 1, &mut seq);
    }
    assert_eq!(cluster.write(0, &delete(idle, 1)), Outcome::SessionUnknown);
    // Time that went by at once counts too, and ends no session that was used since.
    cluster.now_ms += SESSION_IDLE_MS_MAX / 2;
    cluster.seconds(0, session, 1, &mut seq);
}

/// A follower that lies behind when it is elected has clock entries in its log that it has not applied.
#[test]
fn a_leader_counts_on_from_the_newest_clock_entry() {
    let mut cluster = Cluster::new(3);
    let first = cluster.elect();
    let (session, mut seq) = (cluster.open_session(first), 0);
    cluster.seconds(first, session, 5, &mut seq);
    let late = (first + 1) % 3;
    cluster.crash(late);
    cluster.seconds(first, session, 20, &mut seq);
    let before = (cluster.log_time_ms(first), cluster.now_ms);
    cluster.start(late);
    cluster.expect_equal_states();
    cluster.crash(first);
    let next = cluster.elect();
    cluster.seconds(next, session, 4, &mut seq);
    let (moved, passed) = (cluster.log_time_ms(next) - before.0, cluster.now_ms - before.1);
    assert!(moved <= passed && moved >= passed / 8 * 6, "{moved} of {passed} ms");
}

/// The clock entries that it missed are in the snapshot only, also after another start.
#[test]
fn a_leader_counts_on_from_the_snapshot_that_it_got() {
    for restarts in [false, true] {
        let mut cluster = Cluster::with_snapshots_every(3, 20_000);
        let first = cluster.elect();
        let (late, third) = ((first + 1) % 3, (first + 2) % 3);
        let (session, mut seq) = (cluster.open_session(first), 0);
        cluster.seconds(first, session, 5, &mut seq);
        cluster.crash(late);
        cluster.now_ms += 100_000;
        cluster.seconds(first, session, 1, &mut seq);
        let before = cluster.log_time_ms(first);
        let value = vec![0; 500];
        for _ in 0..300 {
            seq += 1;
            let op = Op::Put { key: b"k", value: &value };
            cluster.write(first, &Command::Write { session, seq, answered_below: seq, op });
        }
        cluster.start(late);
        cluster.expect_equal_states();
        assert!(cluster.snapshots_sent > 0, "it caught up without a snapshot");
        if restarts {
            cluster.crash(late);
            cluster.start(late);
            cluster.expect_equal_states();
        }
        cluster.ahead_ms = vec![DAY_MS; 3];
        // Only the late one is left to take over.
        cluster.crash(third);
        cluster.cells[first].input.transfer = true;
        cluster.run(50);
        assert_eq!(cluster.elect(), late);
        cluster.seconds(late, session, 2, &mut seq);
        let moved = cluster.log_time_ms(late) - before;
        assert!((1750..=2250).contains(&moved), "the log's time moved by {moved} ms in 2 s");
    }
}

#[test]
fn unanswered_outcomes_take_room_of_the_store() {
    let mut cluster = Cluster::new(1);
    cluster.elect();
    let before = cluster.status(0).store_bytes;
    let session = cluster.open_session(0);
    let opened = cluster.status(0).store_bytes;
    assert!(opened > before);
    // None of a key that is there: they take nothing but what is remembered of them.
    for seq in 1..=200 {
        let op = Op::Delete { key: b"k" };
        cluster.write(0, &Command::Write { session, seq, answered_below: 1, op });
    }
    let full = cluster.status(0).store_bytes;
    assert!(full >= opened + 200 * 24, "{opened} and then {full} bytes");
    cluster.write(0, &delete(session, 201));
    assert!(cluster.status(0).store_bytes < full - 199 * 24);
}
