//! Counting: what a majority of the voters agrees on.

use std::collections::BTreeSet;

use super::{Index, Membership, NodeId};

impl Membership {
    /// A membership of these voters.
    pub fn of(voters: impl IntoIterator<Item = NodeId>) -> Membership {
        Membership { voters: voters.into_iter().collect() }
    }

    /// Whether these nodes hold a majority of the voters.
    pub fn has_quorum(&self, nodes: &BTreeSet<NodeId>) -> bool {
        2 * self.voters.intersection(nodes).count() > self.voters.len()
    }

    /// Whether so many voters said no that those who did not can no longer be a majority.
    pub fn is_lost(&self, against: &BTreeSet<NodeId>) -> bool {
        2 * self.voters.difference(against).count() <= self.voters.len()
    }

    /// The highest index that a majority has reached, given each voter's.
    pub fn quorum_index(&self, index_of: impl Fn(NodeId) -> Index) -> Index {
        let mut reached: Vec<Index> = self.voters.iter().map(|&voter| index_of(voter)).collect();
        reached.sort_unstable();
        // With n voters the majority's lowest is the one with n/2 voters above or equal, itself not
        // counted: 3 -> second lowest, 4 -> second lowest, 5 -> third lowest.
        reached.get(reached.len().saturating_sub(1) / 2).copied().unwrap_or_default()
    }
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
