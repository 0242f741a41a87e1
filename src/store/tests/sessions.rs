//! Sessions: exactly once, in any order, until they end.

use super::{Client, OPTIONS, OWNER, Random, apply, next, open, open_as, write};
use crate::proto::command::{Command, Op, Outcome, Principal, SessionId};
use crate::proto::limits::{
    OUTCOMES_MAX, OUTCOMES_PER_PRINCIPAL_MAX, SESSION_IDLE_MS_MAX, SESSION_IN_FLIGHT_MAX,
    SESSIONS_MAX, SESSIONS_PER_PRINCIPAL_MAX,
};
use crate::raft::Index;
use crate::store::Store;

const APPEND: Op<'static> = Op::Append { key: b"k", value: b"x" };

fn clock(store: &mut Store, now_ms: u64) {
    assert_eq!(apply(store, &Command::Clock { now_ms }), Outcome::Done);
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
    assert_eq!(apply(&mut store, &Command::CloseSession(session)), Outcome::Done);
    assert_eq!(apply(&mut store, &Command::CloseSession(session)), Outcome::Done);
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
fn another_principal_changes_nothing_of_a_session() {
    let Client { mut store, session, .. } = Client::new();
    let (thief, close) = (Principal(OWNER.0 + 1), Command::CloseSession(session));
    let first = write(&mut store, session, 1, 1, APPEND);
    clock(&mut store, 1000);
    let steal = |store: &mut Store, seq, answered_below| {
        let command = Command::Write { session, seq, answered_below, op: APPEND };
        store.apply(next(store), thief, &command)
    };
    // Neither the number, nor the floor, nor what was answered, nor that it is open.
    for (seq, answered_below) in [(1, 1), (2, 1), (2, 2), (u64::MAX, u64::MAX)] {
        assert_eq!(steal(&mut store, seq, answered_below), Outcome::SessionUnknown);
    }
    assert_eq!(store.apply(next(&store), thief, &close), Outcome::SessionUnknown);
    assert_eq!(write(&mut store, session, 1, 1, APPEND), first);
    assert!(matches!(write(&mut store, session, 2, 1, APPEND), Outcome::Written { .. }));
    assert_eq!(store.value_bytes(b"k"), 2);
    // Nor when it was used last.
    clock(&mut store, SESSION_IDLE_MS_MAX);
    steal(&mut store, 3, 3);
    clock(&mut store, 1000 + SESSION_IDLE_MS_MAX);
    assert_eq!(store.sessions(), 0);
}

#[test]
fn a_session_that_was_opened_before_the_first_clock_entry_lives_from_then_on() {
    let Client { mut store, session, .. } = Client::new();
    let begin_ms = 1_700_000_000_000;
    clock(&mut store, begin_ms);
    clock(&mut store, begin_ms + SESSION_IDLE_MS_MAX - 1);
    assert_eq!(store.sessions(), 1);
    assert!(matches!(write(&mut store, session, 1, 1, APPEND), Outcome::Written { .. }));
    let idle = open(&mut store);
    clock(&mut store, begin_ms + SESSION_IDLE_MS_MAX);
    assert_eq!(store.sessions(), 2);
    clock(&mut store, begin_ms + 3 * SESSION_IDLE_MS_MAX);
    assert_eq!(write(&mut store, idle, 1, 1, APPEND), Outcome::SessionUnknown);
}

#[test]
fn the_owner_counts_in_the_hash() {
    let run = |owner| {
        let mut store = Store::new(OPTIONS).unwrap();
        open_as(&mut store, owner);
        store.state_hash()
    };
    assert_ne!(run(OWNER), run(Principal(OWNER.0 + 1)));
}

#[test]
fn one_session_too_many_ends_the_principals_own_that_was_used_longest_ago() {
    let mut store = Store::new(OPTIONS).unwrap();
    let other = Principal(OWNER.0 + 1);
    let others = open_as(&mut store, other);
    let first: Vec<_> = (0..SESSIONS_PER_PRINCIPAL_MAX).map(|_| open(&mut store)).collect();
    write(&mut store, first[0], 1, 1, APPEND);
    write(&mut store, first[2], 1, 1, APPEND);
    open(&mut store);
    open(&mut store);
    assert_eq!(store.sessions(), SESSIONS_PER_PRINCIPAL_MAX + 1);
    for (place, ended) in [(0, false), (1, true), (2, false), (3, true), (4, false)] {
        let outcome = write(&mut store, first[place], 2, 1, APPEND);
        assert_eq!(outcome == Outcome::SessionUnknown, ended, "session {place}");
    }
    // Many more end no session of another, though none was used for so long.
    for _ in 0..SESSIONS_MAX {
        open(&mut store);
    }
    let command = Command::Write { session: others, seq: 1, answered_below: 1, op: APPEND };
    let outcome = store.apply(next(&store), other, &command);
    assert!(matches!(outcome, Outcome::Written { .. }), "{outcome:?}");
    assert_eq!(store.sessions(), SESSIONS_PER_PRINCIPAL_MAX + 1);
    // Those that end make room.
    let newest = open(&mut store);
    apply(&mut store, &Command::CloseSession(newest));
    open(&mut store);
    assert_eq!(store.sessions(), SESSIONS_PER_PRINCIPAL_MAX + 1);
}

#[test]
fn when_there_are_too_many_in_all_one_ends_of_the_principal_that_has_most() {
    let mut store = Store::new(OPTIONS).unwrap();
    let few = open_as(&mut store, Principal(1));
    let many = (SESSIONS_MAX / SESSIONS_PER_PRINCIPAL_MAX) as u64;
    for principal in 2..2 + many {
        for _ in 0..SESSIONS_PER_PRINCIPAL_MAX - usize::from(principal == 2) {
            open_as(&mut store, Principal(principal));
        }
    }
    assert_eq!(store.sessions(), SESSIONS_MAX);
    // Each of these takes the place of one that floods, also when the floods go on.
    let late: Vec<_> = (100..110).map(|owner| open_as(&mut store, Principal(owner))).collect();
    for principal in 2..2 + many {
        for _ in 0..100 {
            open_as(&mut store, Principal(principal));
        }
    }
    assert_eq!(store.sessions(), SESSIONS_MAX);
    for (owner, session) in (100..).zip(late).chain([(1, few)]) {
        let command = Command::Write { session, seq: 1, answered_below: 1, op: APPEND };
        let outcome = store.apply(next(&store), Principal(owner), &command);
        assert!(matches!(outcome, Outcome::Written { .. }), "{owner}: {outcome:?}");
    }
}

/// Fills sessions of `owner` with unanswered outcomes until that is refused; gives how many there are.
fn fill(store: &mut Store, owner: Principal) -> usize {
    let mut count = 0;
    for _ in 0..=OUTCOMES_PER_PRINCIPAL_MAX / SESSION_IN_FLIGHT_MAX {
        let session = open_as(store, owner);
        for seq in 1..=SESSION_IN_FLIGHT_MAX as u64 {
            let op = Op::Delete { key: b"k" };
            let command = Command::Write { session, seq, answered_below: 1, op };
            match store.apply(next(store), owner, &command) {
                Outcome::Written { .. } => count += 1,
                Outcome::SessionFull => return count,
                other => panic!("{other:?}"),
            }
        }
    }
    panic!("{count} unanswered outcomes and no end")
}

#[test]
fn unanswered_outcomes_are_bounded_for_each_principal_and_in_all() {
    let mut store = Store::new(OPTIONS).unwrap();
    assert_eq!(store.session_bytes(), 0);
    let principals = (OUTCOMES_MAX / OUTCOMES_PER_PRINCIPAL_MAX) as u64;
    for principal in 1..=principals {
        assert_eq!(fill(&mut store, Principal(principal)), OUTCOMES_PER_PRINCIPAL_MAX);
    }
    let bytes = store.session_bytes();
    assert!(bytes >= (OUTCOMES_MAX * size_of::<(u64, Outcome)>()) as u64, "{bytes} bytes");
    // Another one has its share all the same, and no more.
    let late = Principal(principals + 1);
    assert_eq!(fill(&mut store, late), OUTCOMES_MAX.div_ceil(principals as usize + 1));
    // What is answered or ended is counted no more.
    clock(&mut store, 1000);
    clock(&mut store, 1000 + SESSION_IDLE_MS_MAX);
    assert_eq!((store.sessions(), store.session_bytes()), (0, 0));
    assert_eq!(fill(&mut store, late), OUTCOMES_PER_PRINCIPAL_MAX);
}

#[test]
fn answered_outcomes_make_room_for_their_owner() {
    let mut store = Store::new(OPTIONS).unwrap();
    let first = open(&mut store);
    write(&mut store, first, 1, 1, APPEND);
    let empty = store.session_bytes();
    fill(&mut store, OWNER);
    assert_eq!(write(&mut store, first, 2, 1, APPEND), Outcome::SessionFull);
    assert!(matches!(write(&mut store, first, 2, 2, APPEND), Outcome::Written { .. }));
    assert!(store.session_bytes() > empty);
}

/// Counters that run along against counting anew, which a restart does.
#[test]
fn what_is_counted_is_what_is_there() {
    let (mut store, mut random) = (Store::new(OPTIONS).unwrap(), Random(9));
    let mut sessions = vec![SessionId(1)];
    for step in 0..20_000_u64 {
        let owner = Principal(1 + random.below(3));
        let session = sessions[random.below(sessions.len() as u64) as usize];
        let seq = random.below(40);
        let command = match random.below(30) {
            0 => Command::OpenSession,
            1 => Command::CloseSession(session),
            2 if step % 50 == 0 => Command::Clock { now_ms: step * SESSION_IDLE_MS_MAX / 5000 },
            _ => Command::Write { session, seq, answered_below: seq / 2, op: APPEND },
        };
        let outcome = store.apply(next(&store), owner, &command);
        if let Outcome::SessionOpened(session) = outcome {
            sessions.push(session);
            sessions.drain(..sessions.len().saturating_sub(20));
        }
        if step % 100 == 0 {
            let again = store.sessions_reloaded();
            assert_eq!(again, (store.sessions(), store.session_bytes()), "step {step}");
        }
    }
    assert!(store.sessions() > 3);
}

#[test]
#[should_panic(expected = "applying 1 at 1")]
fn an_index_is_applied_once() {
    let Client { mut store, .. } = Client::new();
    store.apply(Index(1), OWNER, &Command::OpenSession);
}
