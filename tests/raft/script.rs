//! Runs the golden scripts.

use std::collections::BTreeSet;
use std::error::Error;

use quicraft::raft::{
    Change, Config, Contact, DataId, EntryMeta, Event, HardState, Index, Message, NodeId, Payload,
    ReadId, RoleKind, Term,
};

use crate::cluster::Cluster;
use crate::command::{Command, Id};
use crate::forge::forge;
use crate::node::Disk;

struct Script {
    cluster: Option<Cluster>,
}

impl goldenscript::Runner for Script {
    type Command = Command;

    fn run(
        &mut self,
        command: &Command,
        _: &goldenscript::Context,
    ) -> Result<String, Box<dyn Error>> {
        if let Command::Cluster { nodes, entries, window, uncommitted, lease, founding } = *command
        {
            let mut config = config();
            config.append_entries_max = entries.unwrap_or(config.append_entries_max);
            config.window_bytes_max = window.unwrap_or(config.window_bytes_max);
            config.uncommitted_bytes_max = uncommitted.unwrap_or(config.uncommitted_bytes_max);
            config.lease_ms = lease.unwrap_or(0);
            self.cluster = Some(match founding {
                true => Cluster::founding(config, nodes),
                false => Cluster::new(config, nodes),
            });
            return Ok(String::new());
        }
        let cluster = self.cluster.as_mut().ok_or("no cluster yet")?;
        let result = if on_world(cluster, command) { Ok(()) } else { on_node(cluster, command) };
        result.map(|()| cluster.take_trace())
    }
}

pub(crate) fn config() -> Config {
    Config {
        id: NodeId(0),
        data: DataId(0),
        election_ticks: 10,
        heartbeat_ticks: 3,
        seed: 0,
        append_bytes_max: 1 << 20,
        append_entries_max: 64,
        window_bytes_max: 1 << 20,
        uncommitted_bytes_max: 1 << 20,
        lease_ms: 0,
    }
}

/// What happens between nodes; false if the command is about one node.
fn on_world(cluster: &mut Cluster, command: &Command) -> bool {
    let is_between = |message: &Message, from: Option<Id>, to: Option<Id>| {
        from.is_none_or(|id| id.0 == message.from) && to.is_none_or(|id| id.0 == message.to)
    };
    match command {
        Command::Deliver { from, to, count } => {
            let there = cluster.wires.iter().filter(|m| is_between(m, *from, *to)).count();
            for _ in 0..count.unwrap_or(there).min(there) {
                cluster.deliver_one(|m| is_between(m, *from, *to));
            }
        }
        Command::Stabilize => cluster.stabilize(),
        Command::Drop { from, to } => cluster.wires.retain(|m| !is_between(m, *from, *to)),
        Command::Overtake { from, to } => {
            let newest = cluster.wires.iter().rposition(|m| m.from == from.0 && m.to == to.0);
            let message = newest.and_then(|at| cluster.wires.remove(at));
            cluster.wires.push_front(message.expect("there is a message"));
            cluster.deliver_one(|_| true);
        }
        Command::Double { from, to } => {
            let on_wire = |m: &&Message| m.from == from.0 && m.to == to.0;
            let copies: Vec<Message> = cluster.wires.iter().filter(on_wire).cloned().collect();
            cluster.wires.extend(copies);
        }
        Command::Partition { nodes } => {
            let inside: BTreeSet<NodeId> = nodes.iter().map(|id| id.0).collect();
            for &one in &inside {
                let everybody: BTreeSet<NodeId> = cluster.nodes.keys().copied().collect();
                for &other in everybody.difference(&inside) {
                    cluster.cuts.extend([(one, other), (other, one)]);
                }
            }
            let cuts = cluster.cuts.clone();
            cluster.wires.retain(|m| !cuts.contains(&(m.from, m.to)));
        }
        Command::Cut { from, to } => {
            cluster.cuts.insert((from.0, to.0));
            cluster.wires.retain(|m| (m.from, m.to) != (from.0, to.0));
        }
        Command::Heal => cluster.cuts.clear(),
        Command::Snapshot { from, to, index } => {
            cluster.snapshot(from.0, to.0, index.map(Index));
        }
        Command::Status => cluster.status(),
        Command::Members => cluster.members(),
        _ => return false,
    }
    true
}

fn on_node(cluster: &mut Cluster, command: &Command) -> Result<(), Box<dyn Error>> {
    match command {
        Command::Log { node, terms, term, commit } => {
            let disk = disk(cluster, terms, *term, *commit);
            cluster.start(node.0, disk);
        }
        Command::Campaign { node } => campaign(cluster, node.0),
        Command::Elect { node } => {
            campaign(cluster, node.0);
            cluster.stabilize();
        }
        Command::Disk { node, mode } => {
            cluster.node(node.0).is_manual = match mode.as_str() {
                "manual" => true,
                "auto" => false,
                other => return Err(format!("no disk is {other}").into()),
            };
            if mode == "auto" {
                cluster.persist(node.0, usize::MAX);
            }
        }
        Command::Persist { node, count } => cluster.persist(node.0, count.unwrap_or(usize::MAX)),
        Command::Crash { node } => {
            let node_before = cluster.nodes.remove(&node.0).ok_or("it is down already")?;
            cluster.crashed.insert(node.0, node_before.crash());
            cluster.wires.retain(|m| m.from != node.0 && m.to != node.0);
        }
        Command::Restart { node } => {
            let disk = cluster.crashed.remove(&node.0).ok_or("it is up already")?;
            cluster.start(node.0, disk);
        }
        Command::Wipe { node, data } => {
            cluster.nodes.remove(&node.0);
            cluster.crashed.remove(&node.0);
            cluster.wires.retain(|m| m.from != node.0 && m.to != node.0);
            cluster.found(node.0, DataId(*data));
        }
        Command::Clock { node, ms } => cluster.node(node.0).raft.set_now(*ms),
        Command::Join { node } => {
            cluster.start(node.0, Disk::new(&BTreeSet::new()));
            cluster.vouch(node.0);
        }
        Command::Vouch { node } => cluster.vouch(node.0),
        Command::Compact { node, index } => {
            let event = cluster.node(node.0).compact(Index(*index)).ok_or("not in the log")?;
            cluster.step(node.0, event);
        }
        other => on_event(cluster, other),
    }
    Ok(())
}

fn on_event(cluster: &mut Cluster, command: &Command) {
    match command {
        Command::Tick { node, count } => {
            for _ in 0..*count {
                cluster.step(node.0, Event::Tick);
            }
        }
        Command::Propose { node, count, bytes } => {
            let commands = vec![bytes.unwrap_or(10); count.unwrap_or(1)];
            cluster.step(node.0, Event::Propose(commands));
        }
        Command::Read { node, id } => cluster.step(node.0, Event::Read(ReadId(*id))),
        Command::SnapshotFailed { from, to } => {
            cluster.step(from.0, Event::SnapshotSent { to: to.0, index: None });
        }
        Command::ForgeSnapshot { from, to, term, index } => {
            let membership = cluster.node(to.0).raft.membership().clone();
            let (term, index) = (Term(*term), Index(*index));
            let from = from.0;
            let (data, index_term) = (DataId(from.0), term);
            let event = Event::SnapshotReceived { from, data, term, index, index_term, membership };
            cluster.step(to.0, event);
        }
        Command::Forge { .. } => forge(cluster, command),
        Command::Transfer { node } => cluster.step(node.0, Event::Transfer(None)),
        Command::Add { node, name, stays, rejoins, data } => {
            let number = || name.trim_start_matches('n').parse().expect("names are n and a number");
            let data = DataId(data.unwrap_or_else(number));
            let contact = Contact {
                name: name.clone(),
                peer_address: format!("{name}.{}:1", data.0),
                client_address: format!("{name}.{}:2", data.0),
            };
            let (stays, rejoins) = (*stays, *rejoins);
            change(cluster, *node, Change::Add { contact, data, stays, rejoins });
        }
        Command::Promote { node, member } => change(cluster, *node, Change::Promote(member.0)),
        Command::Remove { node, member } => change(cluster, *node, Change::Remove(member.0)),
        Command::Unreachable { node, peer } => cluster.step(node.0, Event::Unreachable(peer.0)),
        _ => unreachable!("all others are taken above"),
    }
}

/// Asks for a change; the first members are known by the names of their ids.
fn change(cluster: &mut Cluster, node: Id, change: Change) {
    let contact = |id: NodeId| Contact {
        name: id.to_string(),
        peer_address: format!("{id}:1"),
        client_address: format!("{id}:2"),
    };
    let contacts = cluster.voters.iter().map(|&id| (id, contact(id))).collect();
    cluster.step(node.0, Event::ChangeMembers { change, contacts });
}

fn campaign(cluster: &mut Cluster, id: NodeId) {
    for _ in 0..=cluster.config.election_ticks * 2 {
        cluster.step(id, Event::Tick);
        if cluster.node(id).raft.role() != RoleKind::Follower {
            return;
        }
    }
    panic!("{id} does not run");
}

fn disk(cluster: &Cluster, terms: &[u64], term: Option<u64>, commit: Option<u64>) -> Disk {
    let entry = |&term: &u64| EntryMeta { term: Term(term), bytes: 10, payload: Payload::Command };
    let mut disk = Disk::new(&cluster.voters);
    disk.entries = terms.iter().map(entry).collect();
    disk.hard = HardState {
        term: Term(term.or(terms.last().copied()).unwrap_or(0)),
        voted_for: None,
        commit_index: Index(commit.unwrap_or(0)),
    };
    disk
}

macro_rules! scripts {
    ($($name:ident),* $(,)?) => {$(
        #[test]
        fn $name() -> std::io::Result<()> {
            let path = concat!("tests/raft/scripts/", stringify!($name));
            goldenscript::run(&mut Script { cluster: None }, path)
        }
    )*};
}

scripts! {
    elections,
    figure_7,
    figure_8,
    replication,
    durability,
    snapshots,
    reads,
    transfer,
    check_quorum,
    sizes,
    membership,
    membership_bugs,
    strangers,
    leases,
    published,
    founding,
}

/// A script without a test would be believed and never run.
#[test]
fn every_script_has_its_test() {
    let source = include_str!("script.rs");
    for entry in std::fs::read_dir("tests/raft/scripts").expect("scripts are here") {
        let name = entry.expect("readable").file_name().into_string().expect("a plain name");
        assert!(source.contains(&format!("    {name},\n")), "{name} is not run");
    }
}
