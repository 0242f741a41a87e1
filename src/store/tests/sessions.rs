//! Sessions: exactly once, in any order, until they end.

use super::{Client, OPTIONS, next, open, write};
use crate::proto::command::{Command, Op, Outcome, SessionId};
use crate::proto::limits::{SESSION_IDLE_MS_MAX, SESSION_IN_FLIGHT_MAX, SESSIONS_MAX};
use crate::raft::Index;
use crate::store::Store;

const APPEND: Op<'static> = Op::Append { key: b"k", value: b"x" };

fn clock(store: &mut Store, now_ms: u64) {
    assert_eq!(store.apply(next(store), &Command::Clock { now_ms }), Outcome::Done);
}

#[test]
fn a_retried_append_applies_once() {
    let Client { mut store, session, .. } = Client::new();
    let first = write(&mut store, session, 1, 1, APPEND);
    assert_eq!(first, Outcome::Written { revision: 2, existed: false });
    assert_eq!(write(&mut store, session, 1, 1, APPEND), first);
    assert_eq!(store.value_bytes(b"k"), 1);
}

#[test]
fn numbers_may_come_in_any_order_and_refusals_are_remembered() {
    let Client { mut store, session, .. } = Client::new();
    let invalid = Op::Delete { key: b"" };
    let outcomes = [5, 2, 9, 1, 7].map(|seq| (seq, write(&mut store, session, seq, 1, APPEND)));
    assert_eq!(write(&mut store, session, 3, 1, invalid.clone()), Outcome::KeyInvalid);
    for (seq, outcome) in outcomes {
        assert_eq!(write(&mut store, session, seq, 1, invalid.clone()), outcome);
    }
    assert_eq!(write(&mut store, session, 3, 1, APPEND), Outcome::KeyInvalid);
    assert_eq!(store.value_bytes(b"k"), 5);
}

#[test]
fn answered_numbers_are_stale_and_the_floor_never_goes_back() {
    let Client { mut store, session, .. } = Client::new();
    let third = write(&mut store, session, 3, 1, APPEND);
    write(&mut store, session, 1, 1, APPEND);
    assert_eq!(write(&mut store, session, 0, 0, APPEND), Outcome::SequenceStale);
    write(&mut store, session, 4, 3, APPEND);
    assert_eq!(write(&mut store, session, 1, 1, APPEND), Outcome::SequenceStale);
    assert_eq!(write(&mut store, session, 2, 0, APPEND), Outcome::SequenceStale);
    assert_eq!(write(&mut store, session, 3, 1, APPEND), third);
    assert_eq!(write(&mut store, session, 9, u64::MAX, APPEND), Outcome::SequenceStale);
    assert_eq!(store.value_bytes(b"k"), 3);
}

#[test]
fn a_session_with_too_much_in_flight_is_full_until_answers_are_known() {
    let Client { mut store, session, .. } = Client::new();
    let max = SESSION_IN_FLIGHT_MAX as u64;
    for seq in 1..=max {
        write(&mut store, session, seq, 1, APPEND);
    }
    assert_eq!(write(&mut store, session, max + 1, 1, APPEND), Outcome::SessionFull);
    assert!(matches!(write(&mut store, session, max, 1, APPEND), Outcome::Written { .. }));
    assert!(matches!(write(&mut store, session, max + 1, 2, APPEND), Outcome::Written { .. }));
    assert_eq!(store.value_bytes(b"k") as u64, max + 1);
}

#[test]
fn unknown_and_closed_sessions_change_nothing() {
    let Client { mut store, session, .. } = Client::new();
    assert_eq!(write(&mut store, SessionId(77), 1, 1, APPEND), Outcome::SessionUnknown);
    assert_eq!(store.apply(next(&store), &Command::CloseSession(session)), Outcome::Done);
    assert_eq!(store.apply(next(&store), &Command::CloseSession(session)), Outcome::Done);
    assert_eq!(write(&mut store, session, 1, 1, APPEND), Outcome::SessionUnknown);
    assert_eq!((store.keys(), store.sessions()), (0, 0));
}

#[test]
fn idle_sessions_end_by_log_time_and_used_ones_do_not() {
    let mut store = Store::new(OPTIONS).unwrap();
    clock(&mut store, 1000);
    let (idle, used) = (open(&mut store), open(&mut store));
    clock(&mut store, 1000 + SESSION_IDLE_MS_MAX - 1);
    clock(&mut store, 5);
    assert_eq!(store.time_ms(), 1000 + SESSION_IDLE_MS_MAX - 1);
    write(&mut store, used, 1, 1, APPEND);
    assert_eq!(store.sessions(), 2);
    clock(&mut store, 1000 + SESSION_IDLE_MS_MAX);
    assert_eq!(write(&mut store, idle, 1, 1, APPEND), Outcome::SessionUnknown);
    assert!(matches!(write(&mut store, used, 2, 1, APPEND), Outcome::Written { .. }));
    clock(&mut store, u64::MAX);
    assert_eq!(store.sessions(), 0);
}

#[test]
fn one_session_too_many_ends_the_one_used_longest_ago() {
    let mut store = Store::new(OPTIONS).unwrap();
    let first: Vec<_> = (0..SESSIONS_MAX).map(|_| open(&mut store)).collect();
    write(&mut store, first[0], 1, 1, APPEND);
    write(&mut store, first[2], 1, 1, APPEND);
    open(&mut store);
    open(&mut store);
    assert_eq!(store.sessions(), SESSIONS_MAX);
    for (place, ended) in [(0, false), (1, true), (2, false), (3, true), (4, false)] {
        let outcome = write(&mut store, first[place], 2, 1, APPEND);
        assert_eq!(outcome == Outcome::SessionUnknown, ended, "session {place}");
    }
}

#[test]
#[should_panic(expected = "applying 1 at 1")]
fn an_index_is_applied_once() {
    let Client { mut store, .. } = Client::new();
    store.apply(Index(1), &Command::OpenSession);
}
