//! Client sessions: what makes a retried write apply once (Raft thesis 6.3).
//!
//! **For:** remembering the outcome of every write that its client may still send again.
//!
//! **In and out:** [`Sessions::begin`] tells a write that is to be applied from one that was; what came of it goes into
//! [`Pending::finish`]. [`Sessions::clock`] ends sessions by log time, [`Sessions::open`] by their number.
//!
//! **Always:** everything follows from the commands, their owners and their indexes alone, and what can be observed is
//! the same whether or not a snapshot was loaded between. A session is its owner's: what another principal asks of it
//! changes nothing. Sequence numbers below a session's floor are forgotten, and the floor never goes back. Numbers may
//! arrive in any order. Sessions and outcomes are bounded for each principal and in all (`proto::limits`); what one
//! principal does ends no session of another that has fewer.
//!
//! **More:** `owners` counts what each principal has.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::owners::{Owners, Share};
use crate::proto::command::{Outcome, Principal, SessionId};
use crate::proto::limits::{
    SESSION_IDLE_MS_MAX, SESSION_IN_FLIGHT_MAX, SESSIONS_MAX, SESSIONS_PER_PRINCIPAL_MAX,
};

/// All open sessions, and the store's time.
#[derive(Clone, Debug, Default)]
pub(super) struct Sessions {
    time_ms: u64,
    open: BTreeMap<SessionId, Session>,
    /// By [`Session::queued`], with the time of that use. A session's place is renewed only when it comes to the front,
    /// not at each use. A session that was used since goes back in at its last use, so the front is always the longest
    /// idle.
    by_use: BTreeMap<u64, (SessionId, u64)>,
    /// The same places for each owner, and what else each has.
    owners: Owners,
}

#[derive(Clone, Debug)]
struct Session {
    owner: Principal,
    /// Numbers below are answered and forgotten.
    floor: u64,
    /// Index and time of the last command of the owner that named the session.
    used: (u64, u64),
    /// Its key in [`Sessions::by_use`]: the index of an earlier use, or of the last.
    queued: u64,
    /// Outcomes by sequence number, ascending; all at or above the floor.
    outcomes: Outcomes,
}

type Outcomes = VecDeque<(u64, Outcome)>;

/// The number of a write, and whose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbered {
    pub(super) owner: Principal,
    pub(super) session: SessionId,
    pub(super) seq: u64,
    pub(super) answered_below: u64,
}

/// A write that is to be applied now.
pub(super) struct Pending<'a> {
    outcomes: &'a mut Outcomes,
    share: Share<'a>,
    place: usize,
    seq: u64,
}

/// A session in a snapshot.
#[derive(Serialize)]
struct Saved<'a> {
    id: SessionId,
    owner: Principal,
    floor: u64,
    used: (u64, u64),
    outcomes: &'a Outcomes,
}

/// The same, as it is read.
#[derive(Deserialize)]
struct Loaded {
    id: SessionId,
    owner: Principal,
    floor: u64,
    used: (u64, u64),
    outcomes: Outcomes,
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

    /// About how much memory sessions and outcomes take, at most.
    pub(super) fn bytes(&self) -> u64 {
        self.open.len() as u64 * SESSION_BYTES + self.owners.outcomes() * OUTCOME_BYTES
    }

    /// Moves the time on and ends the sessions that were idle too long.
    pub(super) fn clock(&mut self, now_ms: u64) {
        if self.time_ms == 0 {
            self.begin_time(now_ms);
        }
        self.time_ms = self.time_ms.max(now_ms);
        while let Some((&place, &(id, used_ms))) = self.by_use.first_key_value() {
            if self.time_ms - used_ms < SESSION_IDLE_MS_MAX {
                return;
            }
            if self.is_settled(place, id) {
                self.end(id);
            }
        }
    }

    /// Opens a session by the entry at `index`, at the cost of one used longest ago if there are too many: of the same
    /// owner if this one has too many, else of the owner that has most.
    pub(super) fn open(&mut self, index: u64, owner: Principal) -> SessionId {
        if self.owners.sessions_of(owner) >= SESSIONS_PER_PRINCIPAL_MAX {
            self.end_oldest_of(owner);
        } else if self.open.len() >= SESSIONS_MAX
            && let Some(most) = self.owners.most()
        {
            self.end_oldest_of(most);
        }
        let id = SessionId(index);
        let used = (index, self.time_ms);
        self.insert(
            id,
            Session { owner, floor: 1, used, queued: index, outcomes: VecDeque::new() },
        );
        id
    }

    /// The first clock entry: sessions that were used before it were used now, and not in 1970.
    fn begin_time(&mut self, now_ms: u64) {
        self.open.values_mut().for_each(|session| session.used.1 = now_ms);
        self.by_use.values_mut().for_each(|(_, used_ms)| *used_ms = now_ms);
    }

    /// Ends a session for its owner; nothing happens if it is not open.
    pub(super) fn close(&mut self, id: SessionId, owner: Principal) -> Outcome {
        if self.open.get(&id).is_some_and(|session| session.owner != owner) {
            return Outcome::SessionUnknown;
        }
        self.end(id);
        Outcome::Done
    }

    /// A write of the entry at `index`: to be applied now, or answered with the outcome given.
    pub(super) fn begin(
        &mut self,
        index: u64,
        Numbered { owner, session, seq, answered_below }: Numbered,
    ) -> Result<Pending<'_>, Outcome> {
        let session = self.open.get_mut(&session).filter(|session| session.owner == owner);
        let session = session.ok_or(Outcome::SessionUnknown)?;
        session.used = (index, self.time_ms);
        let mut share = self.owners.share(owner);
        share.remove(session.forget_below(answered_below));
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
        if outcomes.len() >= SESSION_IN_FLIGHT_MAX || share.is_full() {
            return Err(Outcome::SessionFull);
        }
        Ok(Pending { outcomes, share, place, seq })
    }

    /// Bytes for a snapshot: the same on every node at the same index.
    pub(super) fn encode(&self) -> Vec<u8> {
        let saved: Vec<Saved<'_>> = self
            .open
            .iter()
            .map(|(&id, session)| Saved {
                id,
                owner: session.owner,
                floor: session.floor,
                used: session.used,
                outcomes: &session.outcomes,
            })
            .collect();
        postcard::to_allocvec(&(self.time_ms, saved))
            .expect("writing to memory fails only for types that these are not")
    }

    /// What [`Sessions::encode`] wrote after the entry at `index`, and what follows it; `None` if these are no such bytes.
    pub(super) fn decode(bytes: &[u8], index: u64) -> Option<(Sessions, &[u8])> {
        let ((time_ms, loaded), rest) =
            postcard::take_from_bytes::<(u64, Vec<Loaded>)>(bytes).ok()?;
        let mut sessions = Sessions { time_ms, ..Sessions::default() };
        for Loaded { id, owner, floor, used, outcomes } in loaded {
            let ascending = outcomes.iter().zip(outcomes.iter().skip(1)).all(|(a, b)| a.0 < b.0);
            let kept = outcomes.iter().all(|&(seq, _)| seq >= floor);
            let past = id.0 <= index && used.0 <= index && used.1 <= time_ms;
            let is_new = !sessions.by_use.contains_key(&used.0) && !sessions.open.contains_key(&id);
            if !ascending || !kept || !past || !is_new || outcomes.len() > SESSION_IN_FLIGHT_MAX {
                return None;
            }
            sessions.insert(id, Session { owner, floor, used, queued: used.0, outcomes });
        }
        Some((sessions, rest))
    }

    /// Puts in a session that is queued at its last use.
    fn insert(&mut self, id: SessionId, session: Session) {
        assert_eq!(session.queued, session.used.0, "session {} is queued elsewhere", id.0);
        self.by_use.insert(session.queued, (id, session.used.1));
        self.owners.add(session.owner, session.queued, id);
        self.owners.share(session.owner).add(session.outcomes.len());
        let known = self.open.insert(id, session);
        assert!(known.is_none(), "session {} opened twice", id.0);
    }

    fn end(&mut self, id: SessionId) {
        if let Some(session) = self.open.remove(&id) {
            self.by_use.remove(&session.queued);
            self.owners.share(session.owner).remove(session.outcomes.len());
            self.owners.remove(session.owner, session.queued);
        }
    }

    /// Ends the session of `owner` that was used longest ago.
    fn end_oldest_of(&mut self, owner: Principal) {
        while let Some((place, id)) = self.owners.oldest(owner) {
            if self.is_settled(place, id) {
                return self.end(id);
            }
        }
    }

    /// Whether a session at the front of a queue was really used last when its place says; if not, it gets its real
    /// place.
    fn is_settled(&mut self, place: u64, id: SessionId) -> bool {
        let session = self.open.get_mut(&id).expect("the end of a session removes it everywhere");
        if session.used.0 == place {
            return true;
        }
        session.queued = session.used.0;
        self.by_use.remove(&place);
        self.by_use.insert(session.queued, (id, session.used.1));
        self.owners.requeue(session.owner, place, session.queued);
        false
    }
}

impl Session {
    /// Forgets outcomes below `answered_below`; gives how many.
    fn forget_below(&mut self, answered_below: u64) -> usize {
        if answered_below <= self.floor {
            return 0;
        }
        self.floor = answered_below;
        let forgotten = self.outcomes.partition_point(|&(seq, _)| seq < answered_below);
        self.outcomes.drain(..forgotten);
        let (len, room) = (self.outcomes.len(), self.outcomes.capacity());
        if room > OUTCOMES_KEPT && len < room / ROOM_PER_OUTCOME {
            self.outcomes.shrink_to(OUTCOMES_KEPT.max(len * 2));
        }
        forgotten
    }
}

impl Pending<'_> {
    /// Remembers what came of it.
    pub(super) fn finish(mut self, outcome: Outcome) {
        self.share.add(1);
        if self.place == self.outcomes.len() {
            self.outcomes.push_back((self.seq, outcome));
        } else {
            self.outcomes.insert(self.place, (self.seq, outcome));
        }
    }
}

/// A session keeps room for so many outcomes.
const OUTCOMES_KEPT: usize = 16;
/// Of more room, a session gives some back that uses less than one part in so many.
const ROOM_PER_OUTCOME: usize = 4;
const BYTES_PER_OUTCOME: usize = size_of::<(u64, Outcome)>();
/// What an outcome takes at most.
const OUTCOME_BYTES: u64 = (ROOM_PER_OUTCOME * BYTES_PER_OUTCOME) as u64;
/// What a session takes at most beside them: itself, its places in four trees, whose room may be half unused, and the
/// room that it keeps.
const SESSION_BYTES: u64 = (256 + OUTCOMES_KEPT * BYTES_PER_OUTCOME) as u64;
