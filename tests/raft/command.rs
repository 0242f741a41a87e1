//! The commands of the golden scripts.

use std::str::FromStr;

use quicraft::raft::NodeId;

/// A node by name, as `n1`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Id(pub(crate) NodeId);

impl FromStr for Id {
    type Err = String;

    fn from_str(name: &str) -> Result<Id, String> {
        let number = name.strip_prefix('n').and_then(|n| n.parse().ok());
        number.map(|n| Id(NodeId(n))).ok_or_else(|| format!("{name} is no node"))
    }
}

/// What a script may say.
#[derive(goldenscript::Command)]
pub(crate) enum Command {
    /// A new cluster; times in ticks, sizes in bytes, `entries` per message.
    Cluster {
        #[arg(key)]
        nodes: u64,
        #[arg(key)]
        entries: Option<usize>,
        #[arg(key)]
        window: Option<u64>,
        #[arg(key)]
        uncommitted: Option<u64>,
        #[arg(key)]
        lease: Option<u64>,
        /// Nobody has acted for the voters yet.
        #[arg(key, optional)]
        founding: bool,
    },
    /// The terms of a node's log, as if it had been restarted with it.
    Log {
        node: Id,
        #[arg(optional)]
        terms: Vec<u64>,
        #[arg(key)]
        term: Option<u64>,
        #[arg(key)]
        commit: Option<u64>,
    },
    /// Lets time pass at one node.
    Tick { node: Id, count: u32 },
    /// Lets time pass at one node until it runs.
    Campaign { node: Id },
    /// Runs and lets it win: ticks until it runs, then delivers everything.
    Elect { node: Id },
    /// Proposes commands of `bytes` each.
    Propose {
        node: Id,
        #[arg(key)]
        count: Option<usize>,
        #[arg(key)]
        bytes: Option<u32>,
    },
    /// Asks for an index to read at.
    Read {
        node: Id,
        #[arg(key)]
        id: u64,
    },
    /// `manual`: this node's disk confirms only what `persist` tells it to; `auto`: at once.
    Disk { node: Id, mode: String },
    /// The disk confirms all writes, or the oldest `count`.
    Persist {
        node: Id,
        #[arg(key)]
        count: Option<usize>,
    },
    /// Delivers what is on the wires, from one node and to another if named, and not what follows.
    Deliver {
        from: Option<Id>,
        to: Option<Id>,
        #[arg(key)]
        count: Option<usize>,
    },
    /// Delivers until nothing moves.
    Stabilize,
    /// Loses what is on the wires, from one node and to another if named.
    Drop { from: Option<Id>, to: Option<Id> },
    /// Delivers the newest message between two nodes first.
    Overtake { from: Id, to: Id },
    /// Doubles what is on the wire between two nodes.
    Double { from: Id, to: Id },
    /// Cuts these nodes off from all others.
    Partition { nodes: Vec<Id> },
    /// Cuts one direction of one link.
    Cut { from: Id, to: Id },
    /// The clock of a node, in milliseconds; only leases look at it.
    Clock { node: Id, ms: u64 },
    /// Mends all cuts.
    Heal,
    /// Takes all from a node that its disk does not hold.
    Crash { node: Id },
    /// Starts it again.
    Restart { node: Id },
    /// A node loses its disk, and starts with what a founder begins with, in a new data directory.
    Wipe { node: Id, data: u64 },
    /// Makes a snapshot durable and cuts the log.
    Compact { node: Id, index: u64 },
    /// A node's snapshot, or an older one at `index`, reaches another.
    Snapshot {
        from: Id,
        to: Id,
        #[arg(key)]
        index: Option<u64>,
    },
    /// Sending a snapshot failed.
    SnapshotFailed { from: Id, to: Id },
    /// A forged snapshot.
    ForgeSnapshot {
        from: Id,
        to: Id,
        #[arg(key)]
        term: u64,
        #[arg(key)]
        index: u64,
    },
    /// A forged message: `append`, `heartbeat`, `alive`, `vote`, `appended`, `rejected` or `run`.
    Forge {
        from: Id,
        to: Id,
        kind: String,
        #[arg(key)]
        term: u64,
        #[arg(key, optional)]
        index: u64,
        #[arg(key, optional)]
        index_term: u64,
        #[arg(key, optional)]
        entry_term: u64,
        /// What the sender says is committed: one more than `index` unless it is given.
        #[arg(key)]
        commit: Option<u64>,
        /// The sender's data directory, by default its own.
        #[arg(key)]
        data: Option<u64>,
    },
    /// Hands leadership away.
    Transfer { node: Id },
    /// The leader is asked for a new learner; `stays`: it is not promoted by itself.
    Add {
        node: Id,
        name: String,
        #[arg(key, optional)]
        stays: bool,
        #[arg(key, optional)]
        rejoins: bool,
        /// The data directory of the new member: by default the number in its name, 0 to announce it.
        #[arg(key)]
        data: Option<u64>,
    },
    /// The leader is asked to make a learner a voter.
    Promote { node: Id, member: Id },
    /// The leader is asked to remove a member.
    Remove { node: Id, member: Id },
    /// A node without a log starts, to join.
    Join { node: Id },
    /// A node is told who the members are.
    Vouch { node: Id },
    /// The membership that each node goes by.
    Members,
    /// A connection broke.
    Unreachable { node: Id, peer: Id },
    /// All nodes.
    Status,
}
