//! What a node is told at start; made by the configuration, read by the server.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use crate::wal::LogIo;

/// One member of the cluster, as every node's configuration lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id, 1 or more; unique, never reused.
    pub id: u64,
    /// Its name, as in its certificate.
    pub name: String,
    /// `host:port` for other nodes.
    pub peer_address: String,
    /// `host:port` for clients.
    pub client_address: String,
}

/// Everything that a node needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// This node's name: one of `members`, and the name in its certificate.
    pub name: String,
    /// Directory of the log and the snapshots.
    pub data: PathBuf,
    /// Directory with `ca.crt`, `NAME.crt` and `NAME.key`.
    pub certs: PathBuf,
    /// Where other nodes reach this one.
    pub peer_listen: SocketAddr,
    /// Where clients reach this one.
    pub client_listen: SocketAddr,
    /// All members of the cluster, this one included.
    pub members: Vec<Member>,
    /// How often a leader shows that it is alive.
    pub heartbeat: Duration,
    /// The shortest time without a leader after which an election begins.
    pub election_timeout: Duration,
    /// Longest value that clients may write.
    pub value_bytes_max: usize,
    /// Size of one log segment.
    pub segment_bytes: u64,
    /// Log bytes after which a snapshot is made and the log is cut.
    pub snapshot_log_bytes: u64,
    /// The newest so many revisions can be read ...
    pub history_revisions: u64,
    /// ... if they are not older than this.
    pub history_age: Duration,
    /// Bytes a second of a snapshot on its way to another node or to a client; 0 for no limit.
    pub transfer_rate: u64,
    /// Bytes of the store above which growth is refused.
    pub store_bytes_max: u64,
    /// How the log is written.
    pub log_io: LogIo,
    /// Whether a leader may read by its lease.
    pub lease_reads: bool,
}
