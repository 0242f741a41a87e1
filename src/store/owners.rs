//! What each principal has of the sessions: their number, their places by use, their unanswered outcomes.
//!
//! **For:** `session`, so that a limit meets the principal that has most and nobody else.
//!
//! **Always:** a principal is here as long as it has a session. Counters run along: nothing is ever counted anew. All of
//! it follows from the commands, and ties are decided by the principals' numbers.

use std::collections::{BTreeMap, BTreeSet};

use crate::proto::command::{Principal, SessionId};
use crate::proto::limits::{OUTCOMES_MAX, OUTCOMES_PER_PRINCIPAL_MAX};

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Owners {
    owners: BTreeMap<Principal, Owner>,
    /// How many sessions each has.
    by_sessions: BTreeSet<(usize, Principal)>,
    /// Outcomes of all.
    outcomes: usize,
}

#[derive(Clone, Debug, Default)]
struct Owner {
    /// Its sessions by the index of an earlier use or of the last, as `session` queues them.
    by_use: BTreeMap<u64, SessionId>,
    /// Outcomes in them.
    outcomes: usize,
}

/// The outcomes of one principal, to be counted up and down.
pub(super) struct Share<'a> {
    own: &'a mut usize,
    all: &'a mut usize,
    owners: usize,
}

impl Owners {
    /// Outcomes of all principals.
    pub(super) fn outcomes(&self) -> u64 {
        self.outcomes as u64
    }

    /// How many sessions a principal has.
    pub(super) fn sessions_of(&self, owner: Principal) -> usize {
        self.owners.get(&owner).map_or(0, |owner| owner.by_use.len())
    }

    /// The principal that has most sessions.
    pub(super) fn most(&self) -> Option<Principal> {
        self.by_sessions.last().map(|&(_, owner)| owner)
    }

    /// The session at the front of a principal's queue, with its place.
    pub(super) fn oldest(&self, owner: Principal) -> Option<(u64, SessionId)> {
        let (&place, &id) = self.owners.get(&owner)?.by_use.first_key_value()?;
        Some((place, id))
    }

    /// A session was opened.
    pub(super) fn add(&mut self, owner: Principal, place: u64, id: SessionId) {
        let queue = &mut self.owners.entry(owner).or_default().by_use;
        self.by_sessions.remove(&(queue.len(), owner));
        queue.insert(place, id);
        self.by_sessions.insert((queue.len(), owner));
    }

    /// A session has ended; its outcomes are counted down already.
    pub(super) fn remove(&mut self, owner: Principal, place: u64) {
        let Some(Owner { by_use, outcomes }) = self.owners.get_mut(&owner) else { return };
        self.by_sessions.remove(&(by_use.len(), owner));
        by_use.remove(&place);
        if by_use.is_empty() {
            assert_eq!(*outcomes, 0, "{owner:?} has outcomes and no session");
            self.owners.remove(&owner);
        } else {
            self.by_sessions.insert((by_use.len(), owner));
        }
    }

    /// A session goes back in at a later use.
    pub(super) fn requeue(&mut self, owner: Principal, from: u64, to: u64) {
        if let Some(Owner { by_use, .. }) = self.owners.get_mut(&owner)
            && let Some(id) = by_use.remove(&from)
        {
            by_use.insert(to, id);
        }
    }

    /// The outcomes of a principal that has a session.
    ///
    /// # Panics
    /// If it has none.
    pub(super) fn share(&mut self, owner: Principal) -> Share<'_> {
        let owners = self.owners.len();
        let own = self.owners.get_mut(&owner).expect("the owner of a session is counted");
        Share { own: &mut own.outcomes, all: &mut self.outcomes, owners }
    }
}

impl Share<'_> {
    /// So many outcomes more.
    pub(super) fn add(&mut self, count: usize) {
        *self.own += count;
        *self.all += count;
    }

    /// So many outcomes fewer.
    pub(super) fn remove(&mut self, count: usize) {
        *self.own -= count;
        *self.all -= count;
    }

    /// Whether one more is too much. When all principals have too many, those still go on that have less than their share.
    pub(super) fn is_full(&self) -> bool {
        let has_share = *self.own * self.owners >= OUTCOMES_MAX;
        *self.own >= OUTCOMES_PER_PRINCIPAL_MAX || (*self.all >= OUTCOMES_MAX && has_share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_most_is_known_after_sessions_came_and_went() {
        let mut owners = Owners::default();
        let mut all: Vec<(Principal, u64)> = Vec::new();
        for place in 0..500_u64 {
            let owner = Principal(place * place % 7);
            owners.add(owner, place, SessionId(place));
            all.push((owner, place));
            if place % 3 > 0 {
                let (owner, place) = all.swap_remove(place as usize * 31 % all.len());
                owners.remove(owner, place);
            }
            let mut counts = BTreeMap::new();
            for (owner, _) in &all {
                *counts.entry(*owner).or_insert(0) += 1;
            }
            let counted: BTreeSet<(usize, Principal)> =
                counts.iter().map(|(&owner, &sessions)| (sessions, owner)).collect();
            assert_eq!(owners.by_sessions, counted);
            assert_eq!(owners.most(), counted.last().map(|&(_, owner)| owner));
        }
    }
}
