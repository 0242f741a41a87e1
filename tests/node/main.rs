//! Whole nodes without threads, network or clock: the turns, the log's own format and recovery, the
//! store and its snapshots, on disks in memory that forget what was not synced.

mod answers;
mod cluster;
mod restore;
mod sessions;
mod snapshots;

use answers::Answer;
use cluster::Cluster;
use quicraft::proto::client::{Refusal, Status};
use quicraft::proto::command::{Command, Op, Outcome, SessionId};
use quicraft::proto::peer::Want;
use quicraft::raft::{Index, Term};
use snapshots::Lost;

fn put<'a>(session: SessionId, seq: u64, key: &'a str, value: &'a str) -> Command<'a> {
    let op = Op::Put { key: key.as_bytes(), value: value.as_bytes() };
    Command::Write { session, seq, answered_below: 0, op }
}

fn append<'a>(session: SessionId, seq: u64, key: &'a str, value: &'a str) -> Command<'a> {
    let op = Op::Append { key: key.as_bytes(), value: value.as_bytes() };
    Command::Write { session, seq, answered_below: 0, op }
}

#[test]
fn every_size_of_cluster_elects_and_answers() {
    for size in [1, 2, 3, 5, 7] {
        let mut cluster = Cluster::new(size);
        let leader = cluster.elect();
        let session = cluster.open_session(leader);
        let written = cluster.write(leader, &put(session, 1, "greeting", "hello"));
        assert!(matches!(written, Outcome::Written { existed: false, .. }), "{size}: {written:?}");
        assert_eq!(cluster.get(leader, "greeting"), Answer::Value(b"hello".to_vec()));
        assert_eq!(cluster.get(leader, "nothing"), Answer::NotFound);
    }
}

#[test]
fn a_follower_serves_linearizable_reads() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.elect();
    let session = cluster.open_session(leader);
    cluster.write(leader, &put(session, 1, "k", "v"));
    let follower = (leader + 1) % 3;
    assert_eq!(cluster.get(follower, "k"), Answer::Value(b"v".to_vec()));
}

/// An answer to a question of the process before may still be under way: its index is too old for a new question.
#[test]
fn a_restarted_follower_asks_for_reads_under_new_names() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.elect();
    let session = cluster.open_session(leader);
    let follower = (leader + 1) % 3;
    for seq in 1..=3 {
        cluster.write(leader, &put(session, seq, "k", "v"));
        for _ in 0..5 {
            cluster.get(follower, "k");
        }
        cluster.crash(follower);
        cluster.start(follower);
        cluster.run(5);
    }
    let asked = &mut cluster.reads_asked;
    let count = asked.len();
    asked.sort_unstable();
    asked.dedup();
    assert!(count >= 15 && asked.len() == count, "{count} questions, {} names", asked.len());
}

#[test]
fn a_retried_append_applies_once_also_at_another_leader() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.elect();
    let session = cluster.open_session(leader);
    let first = cluster.write(leader, &append(session, 1, "log", "x"));
    assert_eq!(cluster.write(leader, &append(session, 1, "log", "x")), first);
    cluster.crash(leader);
    let next = cluster.elect();
    assert_eq!(cluster.write(next, &append(session, 1, "log", "x")), first);
    assert_eq!(cluster.get(next, "log"), Answer::Value(b"x".to_vec()));
}

#[test]
fn acknowledged_writes_survive_the_power_cut_of_all_nodes() {
    for size in [1, 3] {
        let mut cluster = Cluster::new(size);
        let leader = cluster.elect();
        let session = cluster.open_session(leader);
        let keys: Vec<String> = (0..50).map(|number| format!("key{number:03}")).collect();
        for (seq, key) in (1..).zip(&keys) {
            cluster.write(leader, &put(session, seq, key, key));
        }
        for node in 0..size {
            cluster.crash(node);
        }
        for node in 0..size {
            cluster.start(node);
        }
        let leader = cluster.elect();
        for key in &keys {
            assert_eq!(cluster.get(leader, key), Answer::Value(key.as_bytes().to_vec()), "{key}");
        }
        cluster.expect_equal_states();
    }
}

#[test]
fn a_follower_that_missed_the_log_catches_up_by_snapshot() {
    let mut cluster = Cluster::with_snapshots_every(3, 20_000);
    let leader = cluster.elect();
    let session = cluster.open_session(leader);
    let follower = (leader + 1) % 3;
    cluster.crash(follower);
    let value = "v".repeat(500);
    for seq in 1..=300 {
        cluster.write(leader, &put(session, seq, &format!("key{}", seq % 40), &value));
    }
    assert!(cluster.status(leader).snapshot_index > 0, "the log was never cut");
    cluster.start(follower);
    cluster.expect_equal_states();
    assert!(cluster.snapshots_sent > 0, "it caught up without a snapshot");
    // What it got is durable, and it goes on from there.
    cluster.crash(follower);
    cluster.start(follower);
    cluster.write(leader, &put(session, 301, "after", "x"));
    cluster.expect_equal_states();
}

#[test]
fn a_leader_without_a_majority_confirms_nothing_and_serves_no_read() {
    let mut cluster = Cluster::new(3);
    let old = cluster.elect();
    let session = cluster.open_session(old);
    cluster.write(old, &put(session, 1, "k", "old"));
    cluster.isolate(old);
    let write = cluster.ask_write(old, &put(session, 2, "k", "lost"));
    let read = cluster.ask_get(old, "k");
    let new = cluster.elect();
    assert_ne!(new, old);
    cluster.write(new, &put(session, 3, "k", "new"));
    cluster.run(200);
    assert_eq!(cluster.answer(old, write), Some(Answer::Refused(Refusal::Unknown)));
    let refused = Some(Answer::Refused(Refusal::NotLeader { leader: None }));
    assert_eq!(cluster.answer(old, read), refused);
    cluster.heal();
    cluster.expect_equal_states();
    assert_eq!(cluster.get(new, "k"), Answer::Value(b"new".to_vec()));
}

#[test]
fn a_node_without_its_data_does_not_come_back() {
    let mut cluster = Cluster::new(3);
    cluster.elect();
    cluster.crash(1);
    let error = cluster.start_wiped(1);
    assert!(error.contains("holds no data"), "{error}");
}

#[test]
fn a_node_that_was_half_made_can_be_made_again() {
    let mut cluster = Cluster::new(1);
    let broken = (1..).take_while(|&nth| cluster.start_after_broken_init(0, nth)).count();
    assert!(broken >= 4, "only {broken} syncs make a node");
}

/// Each append makes a new version of the whole value; hundreds of them in one turn must not take more memory than
/// there is, for what is committed must be applied.
#[test]
fn appends_to_a_long_value_are_held_back_by_the_room_for_their_versions() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.elect();
    let session = cluster.open_session(leader);
    cluster.write(leader, &put(session, 1, "long", &"v".repeat((1 << 20) - 1000)));
    let asked: Vec<u64> =
        (2..400).map(|seq| cluster.ask_write(leader, &append(session, seq, "long", "x"))).collect();
    cluster.run(20);
    let answers: Vec<_> = asked.iter().map(|&ask| cluster.answer(leader, ask)).collect();
    let is_done = |a: &&Option<Answer>| matches!(a, Some(Answer::Outcome(Outcome::Written { .. })));
    let is_busy = |a: &&Option<Answer>| matches!(a, Some(Answer::Refused(Refusal::Busy { .. })));
    let (done, busy) =
        (answers.iter().filter(is_done).count(), answers.iter().filter(is_busy).count());
    assert!(done > 100 && busy > 100 && done + busy == 398, "{done} applied, {busy} held back");
    let ask = cluster.ask_write(leader, &append(session, 1000, "long", "x"));
    cluster.run(20);
    assert_eq!(cluster.answer(leader, ask), Some(Answer::Refused(Refusal::NoSpace)));
}

/// The second time it is the snapshot that was made after the first damage.
#[test]
fn the_newest_snapshot_may_be_damaged_once_and_once_again() {
    // With the longer log a start leaves some of it out that the newest snapshot covers.
    for bytes in [20_000, 300_000] {
        damage_newest_snapshots(bytes);
    }
}

fn damage_newest_snapshots(snapshots_every: u64) {
    let mut cluster = Cluster::with_snapshots_every(1, snapshots_every);
    let value = "v".repeat(500);
    let mut written = 0;
    for snapshots in [2, 1, 1] {
        cluster.elect();
        let session = cluster.open_session(0);
        for _ in 0..snapshots {
            let newest = cluster.status(0).snapshot_index;
            while cluster.status(0).snapshot_index == newest {
                written += 1;
                cluster.write(0, &put(session, written, &format!("key{written}"), &value));
            }
        }
        cluster.crash(0);
        cluster.damage_newest_snapshot(0);
        cluster.start(0);
    }
    cluster.elect();
    for key in 1..=written {
        let found = cluster.get(0, &format!("key{key}"));
        assert!(found == Answer::Value(value.clone().into()), "key{key}: {found:?}");
    }
}

#[test]
fn a_snapshot_that_is_not_due_waits_until_nobody_reads_either() {
    let mut cluster = Cluster::new(1);
    cluster.elect();
    let session = cluster.open_session(0);
    let value = "v".repeat(1 << 20);
    for seq in 1..=20 {
        cluster.write(0, &put(session, seq, "key", &value));
    }
    for _ in 0..400 {
        cluster.run(1);
        assert!(matches!(cluster.get(0, "key"), Answer::Value(_)));
    }
    assert_eq!(cluster.status(0).snapshot_index, 0, "reads go first");
    cluster.run(400);
    assert!(cluster.status(0).snapshot_index > 0);
}

#[test]
fn a_leader_whose_disk_hangs_takes_no_more_than_it_can_hold() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.elect();
    let session = cluster.open_session(leader);
    cluster.hang_disk(leader);
    let value = "v".repeat(1 << 20);
    let mut asked = Vec::new();
    for seq in 1..=80 {
        asked.push(cluster.ask_write(leader, &put(session, seq, "k", &value)));
        cluster.turns();
    }
    cluster.turns();
    let answers: Vec<_> = asked.iter().map(|&ask| cluster.answer(leader, ask)).collect();
    // The others are a majority: what was taken in is acknowledged.
    let is_done = |a: &&Option<Answer>| matches!(a, Some(Answer::Outcome(Outcome::Written { .. })));
    let is_busy = |a: &&Option<Answer>| matches!(a, Some(Answer::Refused(Refusal::Busy { .. })));
    let (done, busy) =
        (answers.iter().filter(is_done).count(), answers.iter().filter(is_busy).count());
    assert!((60..70).contains(&done) && done + busy == 80, "{done} applied, {busy} held back");
    // After an election timeout another one leads.
    cluster.run(20);
    assert_ne!(cluster.elect(), leader);
}

/// Memory is given back only when a checkpoint ends: who writes faster than that has to wait.
#[test]
fn writes_wait_for_a_checkpoint_that_they_outrun() {
    let mut cluster = Cluster::with_snapshots_every(1, 4 << 20);
    cluster.elect();
    let session = cluster.open_session(0);
    cluster.lost = Lost::All;
    let value = "v".repeat(1 << 20);
    let mut taken = Vec::new();
    for seq in 1..=400 {
        let ask = cluster.ask_write(0, &put(session, seq, "k", &value));
        cluster.run(1);
        taken.push(match cluster.answer(0, ask) {
            Some(Answer::Outcome(Outcome::Written { .. })) => true,
            Some(Answer::Refused(Refusal::Busy { .. })) => false,
            other => panic!("{other:?}"),
        });
    }
    // Half of the room that there was when it began; then ever fewer, and none when the store would be full.
    let ample = taken.iter().position(|taken| !taken).unwrap();
    assert!((64..90).contains(&ample), "{ample} MiB were taken in at first");
    let in_each_fifty: Vec<_> = taken[ample..]
        .chunks_exact(50)
        .map(|asked| asked.iter().filter(|&&taken| taken).count())
        .collect();
    assert!(in_each_fifty.is_sorted_by(|a, b| a >= b), "{in_each_fifty:?}");
    assert!((20..50).contains(&in_each_fifty[0]), "{in_each_fifty:?}");
    let all = taken.iter().filter(|&&taken| taken).count();
    assert!((110..128).contains(&all), "{all} MiB were taken in");
    let delete = Op::Delete { key: b"k" };
    let delete = Command::Write { session, seq: 401, answered_below: 1, op: delete };
    assert!(matches!(cluster.write(0, &delete), Outcome::Written { existed: true, .. }));
}

/// Memory is given back as soon as the image is there; the log is not, before the file is.
#[test]
fn a_store_goes_on_in_an_image_whose_file_is_never_written_and_nothing_is_lost() {
    let mut cluster = Cluster::with_snapshots_every(1, 100_000);
    cluster.elect();
    let session = cluster.open_session(0);
    let value_of = |seq: u64| format!("{seq:0500}");
    let mut seq = 0;
    // Whether the store has become smaller.
    let mut write = |cluster: &mut Cluster| {
        seq += 1;
        // History is given up once in a while.
        cluster.now_ms += 20;
        let before = cluster.status(0).store_bytes;
        let (key, value) = (format!("key{}", seq % 100), value_of(seq));
        let op = Op::Put { key: key.as_bytes(), value: value.as_bytes() };
        let command = Command::Write { session, seq, answered_below: seq, op };
        assert!(matches!(cluster.write(0, &command), Outcome::Written { .. }));
        cluster.status(0).store_bytes < before
    };
    assert!((0..5000).any(|_| write(&mut cluster)));
    cluster.lost = Lost::Files;
    let newest = cluster.status(0).snapshot_index;
    assert!(newest > 0);
    assert!((0..5000).any(|_| write(&mut cluster)));
    // No other checkpoint begins before this one has ended.
    for _ in 0..3000 {
        assert!(!write(&mut cluster));
    }
    let Status { snapshot_index, keys, .. } = cluster.status(0);
    assert_eq!((snapshot_index, keys), (newest, 100));
    cluster.crash(0);
    cluster.lost = Lost::Nothing;
    cluster.start(0);
    cluster.elect();
    for last in seq - 99..=seq {
        let found = cluster.get(0, &format!("key{}", last % 100));
        assert!(found == Answer::Value(value_of(last).into()), "write {last} of {seq}");
    }
    let session = cluster.open_session(0);
    for seq in 1..=1000 {
        cluster.write(0, &put(session, seq, "key", &value_of(seq)));
    }
    assert!(cluster.status(0).snapshot_index > newest);
}

#[test]
fn commands_that_clients_may_not_send_are_refused() {
    let mut cluster = Cluster::new(1);
    let leader = cluster.elect();
    let session = cluster.open_session(leader);
    let long = "k".repeat(5000);
    for command in [
        Command::Clock { now_ms: u64::MAX },
        put(session, 1, "", "empty key"),
        put(session, 1, &long, "long key"),
        put(session, 1, "large", &"v".repeat(2 << 20)),
    ] {
        let ask = cluster.ask_write(leader, &command);
        cluster.run(20);
        let answer = cluster.answer(leader, ask);
        assert!(matches!(answer, Some(Answer::Refused(_))), "{answer:?}");
    }
    let unknown = cluster.write(leader, &put(SessionId(77), 1, "k", "v"));
    assert_eq!(unknown, Outcome::SessionUnknown);
}

#[test]
fn entries_are_fetched_by_an_anchor_that_both_logs_have() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.elect();
    let session = cluster.open_session(leader);
    for seq in 1..=5 {
        cluster.write(leader, &put(session, seq, "k", "v"));
    }
    let last = cluster.status(leader).last_log_index;
    let term = cluster.status(leader).term;
    let want = |first, end, at: (u64, u64)| Want {
        first: Index(first),
        last: Index(end),
        anchor: (Index(at.0), Term(at.1)),
    };
    let fetch = |want: Want| cluster.fetch(leader, &want);
    let found = fetch(want(last - 3, last - 1, (last, term))).unwrap();
    assert_eq!((found.first_index(), found.last_index()), (Index(last - 3), Index(last - 1)));
    for bad in [
        want(last - 3, last - 1, (last, term + 1)),
        want(last - 3, last - 1, (last + 1, term)),
        want(last - 3, last, (last - 1, term)),
        want(last, last - 1, (last, term)),
        want(0, 0, (last, term)),
    ] {
        assert!(fetch(bad).is_none(), "{bad:?}");
    }
}
