//! Client sessions: what makes a retried write apply once (Raft thesis 6.3).
//!
//! **For:** remembering the outcome of every write that its client may still send again.
//!
//! **In and out:** [`Sessions::begin`] tells a write that is to be applied from one that was; what came of it goes into
//! [`Pending::finish`]. [`Sessions::clock`] ends sessions by log time, [`Sessions::open`] by their number.
//!
//! **Always:** everything follows from the commands and their indexes alone, and what can be observed is the same
//! whether or not a snapshot was loaded between. Sequence numbers below a session's floor are forgotten, and the floor
//! never goes back. Numbers may arrive in any order.
//!
//! **Left out:** any limit on the sum over all sessions but [`SESSIONS_MAX`] times [`SESSION_IN_FLIGHT_MAX`] outcomes.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::proto::command::{Outcome, SessionId};
use crate::proto::limits::{SESSION_IDLE_MS_MAX, SESSION_IN_FLIGHT_MAX, SESSIONS_MAX};

/// All open sessions, and the store's time.
#[derive(Clone, Debug, Default)]
pub(super) struct Sessions {
    time_ms: u64,
    open: BTreeMap<SessionId, Session>,
    /// By [`Session::queued`]. A session's place is renewed only when it comes to the front, not at each use: then its
    /// real last use, which all others' places are below of theirs, decides.
    by_use: BTreeMap<u64, (SessionId, u64)>,
}

#[derive(Clone, Debug)]
struct Session {
    /// Numbers below are answered and forgotten.
    floor: u64,
    /// Index and time of the last command that named the session.
    used: (u64, u64),
    /// Its key in [`Sessions::by_use`]: the index of an earlier use, or of the last.
    queued: u64,
    /// Outcomes by sequence number, ascending; all at or above the floor.
    outcomes: VecDeque<(u64, Outcome)>,
}

/// A write that is to be applied now.
pub(super) struct Pending<'a> {
    outcomes: &'a mut VecDeque<(u64, Outcome)>,
    place: usize,
    seq: u64,
}

/// A session in a snapshot.
#[derive(Serialize, Deserialize)]
struct Saved {
    id: SessionId,
    floor: u64,
    used: (u64, u64),
    outcomes: VecDeque<(u64, Outcome)>,
}

impl Sessions {
    /// The store's time, in milliseconds since 1970; 0 before the first clock command.
    pub(super) fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// The number of open sessions.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Moves the time on and ends the sessions that were idle too long.
    pub(super) fn clock(&mut self, now_ms: u64) {
        self.time_ms = self.time_ms.max(now_ms);
        while let Some((&place, &(id, used_ms))) = self.by_use.first_key_value() {
            if self.time_ms - used_ms < SESSION_IDLE_MS_MAX {
                return;
            }
            if self.is_settled(place, id) {
                self.close(id);
            }
        }
    }

    /// Opens a session by the entry at `index`, at the cost of the one used longest ago if there are too many.
    pub(super) fn open(&mut self, index: u64) -> SessionId {
        while self.open.len() >= SESSIONS_MAX
            && let Some((&place, &(id, _))) = self.by_use.first_key_value()
        {
            if self.is_settled(place, id) {
                self.close(id);
            }
        }
        let id = SessionId(index);
        let used = (index, self.time_ms);
        let session = Session { floor: 1, used, queued: index, outcomes: VecDeque::new() };
        self.by_use.insert(index, (id, self.time_ms));
        let known = self.open.insert(id, session);
        assert!(known.is_none(), "session {index} opened twice");
        id
    }

    /// Ends a session; nothing happens if it is not open.
    pub(super) fn close(&mut self, id: SessionId) {
        if let Some(session) = self.open.remove(&id) {
            self.by_use.remove(&session.queued);
        }
    }

    /// A write of the entry at `index`: to be applied now, or answered with the outcome given.
    pub(super) fn begin(
        &mut self,
        index: u64,
        id: SessionId,
        seq: u64,
        answered_below: u64,
    ) -> Result<Pending<'_>, Outcome> {
        let session = self.open.get_mut(&id).ok_or(Outcome::SessionUnknown)?;
        session.used = (index, self.time_ms);
        session.forget_below(answered_below);
        if seq < session.floor {
            return Err(Outcome::SequenceStale);
        }
        let outcomes = &mut session.outcomes;
        // Most writes come in order.
        let place = match outcomes.back() {
            Some(&(last, _)) if last >= seq => {
                match outcomes.binary_search_by_key(&seq, |&(seq, _)| seq) {
                    Ok(place) => return Err(outcomes[place].1),
                    Err(place) => place,
                }
            }
            Some(_) | None => outcomes.len(),
        };
        if outcomes.len() >= SESSION_IN_FLIGHT_MAX {
            return Err(Outcome::SessionFull);
        }
        Ok(Pending { outcomes, place, seq })
    }

    /// Bytes for a snapshot: the same on every node at the same index.
    pub(super) fn encode(&self) -> Vec<u8> {
        let saved: Vec<Saved> = self
            .open
            .iter()
            .map(|(&id, session)| Saved {
                id,
                floor: session.floor,
                used: session.used,
                outcomes: session.outcomes.clone(),
            })
            .collect();
        postcard::to_allocvec(&(self.time_ms, saved))
            .expect("writing to memory fails only for types that these are not")
    }

    /// What [`Sessions::encode`] wrote after the entry at `index`, and what follows it; `None` if these are no such bytes.
    pub(super) fn decode(bytes: &[u8], index: u64) -> Option<(Sessions, &[u8])> {
        let ((time_ms, saved), rest) =
            postcard::take_from_bytes::<(u64, Vec<Saved>)>(bytes).ok()?;
        let mut sessions = Sessions { time_ms, ..Sessions::default() };
        for Saved { id, floor, used, outcomes } in saved {
            let ascending = outcomes.iter().zip(outcomes.iter().skip(1)).all(|(a, b)| a.0 < b.0);
            let kept = outcomes.iter().all(|&(seq, _)| seq >= floor);
            let past = id.0 <= index && used.0 <= index && used.1 <= time_ms;
            if !ascending || !kept || !past || outcomes.len() > SESSION_IN_FLIGHT_MAX {
                return None;
            }
            let session = Session { floor, used, queued: used.0, outcomes };
            if sessions.by_use.insert(used.0, (id, used.1)).is_some()
                || sessions.open.insert(id, session).is_some()
            {
                return None;
            }
        }
        Some((sessions, rest))
    }

    /// Whether the session at the front of the queue was really used last when its place says; if not, it gets its
    /// real place.
    fn is_settled(&mut self, place: u64, id: SessionId) -> bool {
        let session = self.open.get_mut(&id).expect("closing removes a session from both maps");
        if session.used.0 == place {
            return true;
        }
        session.queued = session.used.0;
        self.by_use.remove(&place);
        self.by_use.insert(session.queued, (id, session.used.1));
        false
    }
}

impl Session {
    fn forget_below(&mut self, answered_below: u64) {
        if answered_below <= self.floor {
            return;
        }
        self.floor = answered_below;
        let forgotten = self.outcomes.partition_point(|&(seq, _)| seq < answered_below);
        self.outcomes.drain(..forgotten);
        if self.outcomes.capacity() > OUTCOMES_KEPT && self.outcomes.len() * 4 < OUTCOMES_KEPT {
            self.outcomes.shrink_to(OUTCOMES_KEPT / 2);
        }
    }
}

impl Pending<'_> {
    /// Remembers what came of it.
    pub(super) fn finish(self, outcome: Outcome) {
        if self.place == self.outcomes.len() {
            self.outcomes.push_back((self.seq, outcome));
        } else {
            self.outcomes.insert(self.place, (self.seq, outcome));
        }
    }
}

/// Room for outcomes above which a session that needs little of it gives some back.
const OUTCOMES_KEPT: usize = 128;
