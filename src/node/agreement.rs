//! Whether the replicas are the same: each tells the others its state hash at the same entries, and the one that differs
//! from a majority stops before anybody reads more of it.
//!
//! **In and out:** [`Agreement::applied`] and [`Agreement::heard`] take hashes in, and say so when this node must stop.
//!
//! **Always:** nodes are compared at the entries that set the clock, one a second while there are writes; all have the
//! same. A node stops when a majority of the voters has another state than it has, all of them the same; or when all
//! voters differ so much that nobody can say who is right. A single voice stops nobody.
//!
//! **Left out:** what is in memory beside what the hash counts in: commands and their outcomes.

use std::collections::BTreeMap;

use crate::proto::peer::StateHash;
use crate::raft::{Index, Membership, NodeId};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Agreement {
    /// This node's, the newest ones.
    own: BTreeMap<Index, u64>,
    /// What others said, by entry.
    others: BTreeMap<Index, BTreeMap<NodeId, u64>>,
    /// The newest entry about which a difference was told.
    told: Index,
}

/// Two nodes that applied the same entries and differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// The entry after which they differ.
    pub index: Index,
    /// This node's hash.
    pub own: u64,
    /// Those of others that differ from it.
    pub others: BTreeMap<NodeId, u64>,
    /// Whether this node must stop: it is the odd one, or nobody can tell.
    pub stops: bool,
}

impl Agreement {
    /// This node has applied an entry.
    pub(super) fn applied(
        &mut self,
        own: StateHash,
        id: NodeId,
        members: &Membership,
    ) -> Option<Divergence> {
        self.own.insert(own.index, own.hash);
        if self.own.len() > ENTRIES_MAX {
            self.own.pop_first();
        }
        self.compare(own.index, id, members)
    }

    /// Another node has.
    pub(super) fn heard(
        &mut self,
        from: NodeId,
        told: StateHash,
        id: NodeId,
        members: &Membership,
    ) -> Option<Divergence> {
        self.others.entry(told.index).or_default().insert(from, told.hash);
        if self.others.len() > ENTRIES_MAX {
            self.others.pop_first();
        }
        self.compare(told.index, id, members)
    }

    /// Another store was installed: what was applied before says nothing about it.
    pub(super) fn forget(&mut self) {
        self.own.clear();
    }

    fn compare(&mut self, index: Index, id: NodeId, members: &Membership) -> Option<Divergence> {
        let (&own, others) = (self.own.get(&index)?, self.others.get(&index)?);
        if others.values().all(|&hash| hash == own) {
            return None;
        }
        let voters = &members.voters;
        let mut counts = BTreeMap::<u64, usize>::new();
        let voices = others.iter().map(|(&from, &hash)| (from, hash)).chain([(id, own)]);
        for (_, hash) in voices.filter(|(from, _)| voters.contains(from)) {
            *counts.entry(hash).or_default() += 1;
        }
        let majority = voters.len() / 2 + 1;
        let winner = counts.iter().find(|&(_, &count)| count >= majority).map(|(&hash, _)| hash);
        let all_spoke = counts.values().sum::<usize>() == voters.len();
        let stops = match winner {
            Some(hash) => hash != own,
            None => all_spoke,
        };
        let is_news = index > self.told;
        self.told = self.told.max(index);
        let differing = others.iter().filter(|&(_, &hash)| hash != own);
        let others = differing.map(|(&from, &hash)| (from, hash)).collect();
        (stops || is_news).then_some(Divergence { index, own, others, stops })
    }
}

/// Entries that are remembered: nodes that lag by more are compared later.
const ENTRIES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = NodeId(1);

    fn members(count: u64) -> Membership {
        Membership::of((1..=count).map(NodeId))
    }

    fn at(index: u64, hash: u64) -> StateHash {
        StateHash { index: Index(index), hash }
    }

    #[test]
    fn nodes_that_agree_say_nothing() {
        let (mut agreement, members) = (Agreement::default(), members(3));
        assert_eq!(agreement.heard(NodeId(2), at(5, 7), ME, &members), None);
        assert_eq!(agreement.applied(at(5, 7), ME, &members), None);
        assert_eq!(agreement.heard(NodeId(3), at(5, 7), ME, &members), None);
    }

    #[test]
    fn the_odd_one_stops_and_the_others_do_not() {
        let (mut agreement, members) = (Agreement::default(), members(3));
        agreement.applied(at(5, 666), ME, &members);
        let first = agreement.heard(NodeId(2), at(5, 7), ME, &members);
        assert!(!first.expect("a difference is told").stops);
        let second = agreement.heard(NodeId(3), at(5, 7), ME, &members).expect("a majority");
        assert!(second.stops && second.others.len() == 2);
        let mut right = Agreement::default();
        right.applied(at(5, 7), ME, &members);
        assert!(!right.heard(NodeId(2), at(5, 666), ME, &members).expect("told").stops);
        assert!(right.heard(NodeId(3), at(5, 7), ME, &members).is_none());
    }

    #[test]
    fn of_two_that_differ_both_stop() {
        let (mut agreement, members) = (Agreement::default(), members(2));
        agreement.applied(at(5, 1), ME, &members);
        assert!(agreement.heard(NodeId(2), at(5, 2), ME, &members).expect("told").stops);
    }

    #[test]
    fn strangers_and_learners_decide_nothing() {
        let (mut agreement, members) = (Agreement::default(), members(3));
        agreement.applied(at(5, 1), ME, &members);
        for stranger in 4..9 {
            let told = agreement.heard(NodeId(stranger), at(5, 2), ME, &members);
            assert!(told.is_none_or(|told| !told.stops));
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut agreement, members) = (Agreement::default(), members(3));
        for index in 0..10_000 {
            agreement.applied(at(index, 1), ME, &members);
            agreement.heard(NodeId(2), at(index + 100_000, 1), ME, &members);
        }
        assert!(agreement.own.len() <= ENTRIES_MAX && agreement.others.len() <= ENTRIES_MAX);
    }
}
