//! Every set of cut directed links between three nodes, with each of them leading before: wherever two nodes reach each
//! other both ways, one of them soon leads for good and commits (Cloudflare's outage of 2020 is one of these sets).

use quicraft::raft::{Event, NodeId, RoleKind};

use crate::cluster::Cluster;
use crate::script::config;

const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

/// All directed links.
fn links() -> Vec<(NodeId, NodeId)> {
    let pairs = NODES.into_iter().flat_map(|from| NODES.into_iter().map(move |to| (from, to)));
    pairs.filter(|(from, to)| from != to).collect()
}

fn tick_all(cluster: &mut Cluster, ticks: u32) {
    for _ in 0..ticks {
        for node in NODES {
            cluster.step(node, Event::Tick);
        }
        while cluster.deliver_one(|_| true) {}
    }
}

fn leader(cluster: &Cluster) -> Option<NodeId> {
    let leads = |id: &NodeId| cluster.nodes[id].raft.role() == RoleKind::Leader;
    NODES.into_iter().filter(leads).max_by_key(|id| cluster.nodes[id].raft.hard_state().term)
}

#[test]
fn a_connected_majority_gets_a_stable_leader_whatever_else_is_cut() {
    let (mut connected, mut lonely) = (0, 0);
    for first in NODES {
        for set in 0..1_u32 << links().len() {
            let mut cluster = Cluster::new(config(), 3);
            for _ in 0..40 {
                cluster.step(first, Event::Tick);
                while cluster.deliver_one(|_| true) {}
            }
            assert_eq!(leader(&cluster), Some(first));
            let cut = links().into_iter().enumerate().filter(|(bit, _)| set & (1 << bit) != 0);
            cluster.cuts = cut.map(|(_, link)| link).collect();
            let is_open = |a, b| !cluster.cuts.contains(&(a, b)) && !cluster.cuts.contains(&(b, a));
            let has_majority = is_open(NODES[0], NODES[1])
                || is_open(NODES[1], NODES[2])
                || is_open(NODES[0], NODES[2]);
            // Ten election timeouts at most.
            tick_all(&mut cluster, 10 * 20);
            let Some(before) = leader(&cluster).filter(|_| has_majority) else {
                assert!(!has_majority, "nobody leads: {first} led, {:?} are cut", cluster.cuts);
                lonely += 1;
                continue;
            };
            connected += 1;
            let term = cluster.nodes[&before].raft.hard_state().term;
            let commit = cluster.nodes[&before].raft.hard_state().commit_index;
            cluster.step(before, Event::Propose(vec![1]));
            tick_all(&mut cluster, 10 * 20);
            let raft = &cluster.nodes[&before].raft;
            let now = (leader(&cluster), raft.hard_state().term);
            assert_eq!(now, (Some(before), term), "{first} led, {:?} are cut", cluster.cuts);
            assert!(raft.hard_state().commit_index > commit, "{:?} are cut", cluster.cuts);
        }
    }
    assert_eq!((connected, lonely), (3 * 37, 3 * 27));
}
