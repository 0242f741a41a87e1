//! Counting: what a majority of the voters agrees on.

use std::collections::BTreeSet;

use super::{Index, Membership, NodeId};

impl Membership {
    /// The sets of voters that must each agree: one, or two during a change.
    fn halves(&self) -> impl Iterator<Item = &BTreeSet<NodeId>> {
        std::iter::once(&self.voters).chain(self.is_joint().then_some(&self.outgoing))
    }

    /// How many of these voters must agree: more than half, and all of them until the cluster is founded.
    fn quorum(&self, voters: &BTreeSet<NodeId>) -> usize {
        if self.is_founding() { voters.len() } else { voters.len() / 2 + 1 }
    }

    /// Whether these nodes hold a majority of the voters, of the old and of the new ones. Until the cluster is founded
    /// it takes all voters.
    pub fn has_quorum(&self, nodes: &BTreeSet<NodeId>) -> bool {
        let agreeing = |voters: &BTreeSet<NodeId>| voters.intersection(nodes).count();
        !self.voters.is_empty()
            && self.halves().all(|voters| agreeing(voters) >= self.quorum(voters))
    }

    /// Whether so many voters said no that those who did not can no longer be a majority.
    pub fn is_lost(&self, against: &BTreeSet<NodeId>) -> bool {
        let left = |voters: &BTreeSet<NodeId>| voters.difference(against).count();
        self.voters.is_empty() || self.halves().any(|voters| left(voters) < self.quorum(voters))
    }

    /// The highest index that a majority has reached, given each voter's.
    pub fn quorum_index(&self, index_of: impl Fn(NodeId) -> Index) -> Index {
        let reached =
            self.halves().map(|voters| quorum_index(voters, self.quorum(voters), &index_of));
        reached.min().expect("there is always one set of voters")
    }
}

/// The highest index that so many of the voters have reached.
fn quorum_index(
    voters: &BTreeSet<NodeId>,
    quorum: usize,
    index_of: &impl Fn(NodeId) -> Index,
) -> Index {
    let mut reached: Vec<Index> = voters.iter().map(|&voter| index_of(voter)).collect();
    reached.sort_unstable();
    // Of n voters the lowest of those that a quorum of q leaves at the top: 3 and 2 -> the second lowest.
    let place = reached.len().checked_sub(quorum);
    place.and_then(|place| reached.get(place)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().map(|&id| NodeId(id)).collect()
    }

    #[test]
    fn a_quorum_is_more_than_half_of_the_voters() {
        for voters in 1..=7_u64 {
            let membership = Membership::of((1..=voters).map(NodeId));
            for present in 0..=voters {
                let nodes = (1..=present).map(NodeId).chain([NodeId(99)]).collect();
                assert_eq!(
                    membership.has_quorum(&nodes),
                    present > voters / 2,
                    "{present}/{voters}"
                );
                assert_eq!(membership.is_lost(&nodes), voters - present <= voters / 2);
            }
        }
    }

    #[test]
    fn during_a_change_old_and_new_voters_must_each_agree() {
        let mut joint = Membership::of([1, 2, 4].map(NodeId));
        joint.outgoing = ids(&[1, 2, 3]);
        assert!(joint.has_quorum(&ids(&[1, 2])));
        assert!(joint.has_quorum(&ids(&[1, 3, 4])));
        assert!(!joint.has_quorum(&ids(&[1, 4])), "a majority of the new voters alone");
        assert!(!joint.has_quorum(&ids(&[1, 3])), "a majority of the old voters alone");
        assert!(joint.is_lost(&ids(&[1, 4])) && joint.is_lost(&ids(&[1, 3])));
        assert!(!joint.is_lost(&ids(&[3, 4])));
        let reached = |id: NodeId| Index([9, 5, 9, 0][id.0 as usize - 1]);
        assert_eq!(joint.quorum_index(reached), Index(5));
    }

    #[test]
    fn nobody_is_never_a_quorum() {
        assert!(!Membership::default().has_quorum(&ids(&[1])));
        assert_eq!(Membership::default().quorum_index(|_| Index(5)), Index(0));
    }

    #[test]
    fn the_quorum_index_is_held_by_a_majority_and_is_the_highest_such() {
        for voters in 1..=5_u64 {
            let membership = Membership::of((1..=voters).map(NodeId));
            for mut code in 0..3_u64.pow(voters as u32) {
                let mut reached = Vec::new();
                for _ in 0..voters {
                    reached.push(code % 3);
                    code /= 3;
                }
                let index = membership.quorum_index(|id| Index(reached[id.0 as usize - 1]));
                let holders = |at: u64| reached.iter().filter(|&&r| r >= at).count() as u64;
                assert!(2 * holders(index.0) > voters, "{reached:?} {index}");
                assert!(2 * holders(index.0 + 1) <= voters, "{reached:?} {index}");
            }
        }
    }
}
