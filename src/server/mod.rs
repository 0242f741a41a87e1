//! The node as a server: peer links, client connections, push-back, and the drive of the turns.
//!
//! **What it is for.** [`run`] is a whole node, from settings to graceful stop, on one current-thread
//! runtime. Tasks of this module read frames from connections and hand them to the node's next turn;
//! what a turn sends and answers goes into the buffers of the streams, each written at once.
//!
//! **What always holds.** Every queue has a bound and a rule: peers are held back, clients get `Busy`,
//! a client that does not read its answers loses its stream. Nobody gets here without a certificate of
//! the cluster's CA; `authorise` is the only place where rights are decided.
//!
//! A client that asks a node which does not lead is told who does; `forward` hands its write on if it cannot
//! go there itself.
//!
//! **What is left out.** Roles, terms and files: `node` has those.

mod answers;
mod authorise;
mod book;
mod clients;
mod driver;
mod forward;
mod joined;
mod links;
mod peers;
mod scan;
mod settings;
mod shared;
mod snapshots;

use std::future::Future;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

pub use settings::{LogIo, Member, Settings};

use crate::disk::OsDisk;
use crate::node::run::Threads;
use crate::node::{About, OpenOptions, Opened};
use crate::pki::{self, Credentials};
use crate::proto::client::Manage;
use crate::quic::{self, PortKind};
use crate::raft::{Config, Contact, Membership, NodeId};
use crate::{node, store, wal};
use clients::Clients;
use driver::{Driver, TICK};
use joined::Joined;
use links::{Common, Links};
use shared::Shared;

/// Why a node does not start, or stops.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Certificates and keys.
    #[error(transparent)]
    Credentials(#[from] pki::Error),
    /// Sockets.
    #[error(transparent)]
    Transport(#[from] quic::Error),
    /// The data directory.
    #[error(transparent)]
    Data(#[from] node::Error),
    /// The log failed while the node ran: it can acknowledge nothing any more.
    #[error("the log failed, the node stops: {0}")]
    Log(wal::Error),
    /// The certificate is another node's.
    #[error("the certificate of {certificate} cannot run the node {name}")]
    WrongCertificate {
        /// The name in the certificate.
        certificate: String,
        /// The name in the settings.
        name: String,
    },
    /// The node is not in its own list of members.
    #[error("{0} is not in the list of members")]
    NotAMember(String),
    /// The file of a node that joined.
    #[error(transparent)]
    Joined(#[from] joined::Error),
    /// The node asked to join and was never told its id.
    #[error("{0} is not yet a member: start it with --join HOST:PORT of a node of the cluster")]
    NotJoined(String),
    /// Somebody removed the node for ever.
    #[error(
        "{by} says that this node was removed from the cluster: it stops; its data directory is of no more use \
         to it"
    )]
    Removed {
        /// Who says so.
        by: String,
    },
    /// The system gives no threads.
    #[error("cannot start a thread: {0}")]
    Threads(std::io::Error),
}

/// Makes the data directory of a new cluster's node.
///
/// # Errors
/// If there is one already, or the disk says no.
pub fn init(settings: &Settings) -> Result<(), Error> {
    let credentials = load_credentials(settings)?;
    let members = settings.members.iter().map(|member| NodeId(member.id));
    node::init(&open_options(settings, &credentials)?, &Membership::of(members))?;
    Ok(())
}

/// What a node that wants to join must ask for: `None` if its data directory holds a member already. The question
/// is kept, so that it is the same after a crash.
///
/// # Errors
/// If the data directory cannot be written or read, or the certificate is not the node's.
pub fn ask_to_join(settings: &Settings, rejoins: bool) -> Result<Option<Manage>, Error> {
    load_credentials(settings)?;
    if node::holds_data(&OsDisk, &settings.data) {
        return Ok(None);
    }
    let joined = match Joined::read(&settings.data)? {
        Some(joined) => joined,
        None => {
            let joined = Joined { ticket: draw_ticket(), id: None };
            joined.write(&settings.data)?;
            joined
        }
    };
    let own = own_member(settings)?;
    Ok(Some(Manage::Add {
        name: own.name.clone(),
        peer_address: own.peer_address.clone(),
        client_address: own.client_address.clone(),
        ticket: joined.ticket,
        stays: false,
        rejoins,
    }))
}

/// Makes the data directory of a node that was given this id.
///
/// # Errors
/// If there is one already, or the disk says no.
pub fn init_joined(settings: &Settings, id: u64) -> Result<(), Error> {
    let credentials = load_credentials(settings)?;
    let joined = Joined::read(&settings.data)?;
    let ticket = joined.map_or(0, |joined| joined.ticket);
    Joined { ticket, id: Some(id) }.write(&settings.data)?;
    node::init_learner(&open_options(settings, &credentials)?)?;
    Ok(())
}

/// Hash seeds are drawn by the system for each process.
fn draw_ticket() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish().max(1)
}

fn own_member(settings: &Settings) -> Result<&Member, Error> {
    let own = settings.members.iter().find(|member| member.name == settings.name);
    own.ok_or_else(|| Error::NotAMember(settings.name.clone()))
}

/// Runs a node until `shutdown` resolves; must be called on a current-thread tokio runtime.
///
/// # Errors
/// See [`Error`]; nothing was acknowledged that could be lost by it.
pub async fn run(settings: Settings, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let credentials = Arc::new(load_credentials(&settings)?);
    let options = open_options(&settings, &credentials)?;
    let (own, cluster_id) = (options.raft.id, options.identity.cluster);
    let store_options = options.store;
    let snapshots = node::snapshots_dir(&options.disk, &settings.data);
    // Ports first: one that is taken should not cost a recovery.
    let secret = credentials.derive_secret(b"quicraft stateless reset");
    let bind = |kind, address| quic::server_endpoint(kind, address, &credentials, Some(secret));
    let client_endpoint = bind(PortKind::Client, settings.client_listen)?;
    let peer_endpoint = bind(PortKind::Peer, settings.peer_listen)?;

    let Opened { node, writer, notes } = node::open(options)?;
    for note in notes {
        tracing::warn!("{note}");
    }
    let shared = Arc::new(Shared::new(own));
    let bell = {
        let shared = Arc::clone(&shared);
        Arc::new(move || shared.bell.notify_one())
    };
    let threads =
        Threads::start(writer, snapshots.clone(), cluster_id, bell).map_err(Error::Threads)?;
    let advertised = own_member(&settings)?;
    let links = Links::new(Common {
        endpoint: peer_endpoint.clone(),
        credentials: Arc::clone(&credentials),
        own,
        peer_address: advertised.peer_address.clone(),
        client_address: advertised.client_address.clone(),
        shared: Arc::clone(&shared),
    });
    let receiver = snapshots::Receiver::new(snapshots.clone(), cluster_id, store_options);
    tokio::spawn(peers::accept(peer_endpoint.clone(), Arc::new(receiver), Arc::clone(&shared)));
    let clients = Arc::new(Clients {
        shared: Arc::clone(&shared),
        value_bytes_max: settings.value_bytes_max,
    });
    tokio::spawn(clients.accept(client_endpoint.clone()));
    tracing::info!(
        "ready: applied index {}, clients at {}, peers at {}",
        node.status().applied_index,
        settings.client_listen,
        settings.peer_listen
    );
    let driver = Driver { node, threads, shared, links, snapshots, leader: None, members: None };
    let result = driver.run(shutdown).await;
    for endpoint in [&peer_endpoint, &client_endpoint] {
        endpoint.close(0_u32.into(), b"stopping");
    }
    let _ = tokio::time::timeout(CLOSE_PATIENCE, async {
        peer_endpoint.wait_idle().await;
        client_endpoint.wait_idle().await;
    })
    .await;
    result
}

fn load_credentials(settings: &Settings) -> Result<Credentials, Error> {
    let credentials = Credentials::load(&settings.certs, &settings.name)?;
    let certificate = credentials.identity().to_string();
    match &credentials.identity().who {
        pki::Who::Node { name } if *name == settings.name => Ok(credentials),
        pki::Who::Node { .. } | pki::Who::Client { .. } => {
            Err(Error::WrongCertificate { certificate, name: settings.name.clone() })
        }
    }
}

fn open_options(settings: &Settings, credentials: &Credentials) -> Result<OpenOptions, Error> {
    let joined = Joined::read(&settings.data)?;
    let id = match joined {
        Some(joined) => joined.id.ok_or_else(|| Error::NotJoined(settings.name.clone()))?,
        None => own_member(settings)?.id,
    };
    let id = NodeId(id);
    let ticks = |time: std::time::Duration| {
        u32::try_from(time.as_millis() / TICK.as_millis()).unwrap_or(u32::MAX).max(1)
    };
    let heartbeat_ticks = ticks(settings.heartbeat);
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
    let cluster = &credentials.identity().cluster;
    let secret = credentials.derive_secret(b"quicraft store hash");
    // Who joined knows the others from the log, which no configuration can contradict.
    let first_members = settings.members.iter().filter(|_| joined.is_none());
    let contacts = first_members.map(|member| {
        let Member { id, name, peer_address, client_address } = member.clone();
        (NodeId(id), Contact { name, peer_address, client_address, ticket: 0 })
    });
    Ok(OpenOptions {
        dir: settings.data.clone(),
        disk: Arc::new(OsDisk),
        identity: wal::Identity { cluster: pki::cluster_id(cluster), node: id },
        log: wal::Options {
            segment_bytes: settings.segment_bytes,
            ..wal::Options::new(settings.log_io)
        },
        store: store::Options {
            arena_bytes: ARENA_BYTES,
            hash_seed: u64::from_le_bytes(*secret.first_chunk().expect("32 bytes hold 8")),
        },
        raft: Config {
            id,
            heartbeat_ticks,
            election_ticks: ticks(settings.election_timeout).max(heartbeat_ticks + 1),
            seed,
            append_bytes_max: APPEND_BYTES_MAX,
            append_entries_max: APPEND_ENTRIES_MAX,
            window_bytes_max: WINDOW_BYTES_MAX,
            uncommitted_bytes_max: UNCOMMITTED_BYTES_MAX,
        },
        about: About {
            name: settings.name.clone(),
            cluster: cluster.clone(),
            contacts: contacts.collect(),
            value_bytes_max: settings.value_bytes_max,
            store_bytes_max: settings.store_bytes_max,
            snapshot_log_bytes: settings.snapshot_log_bytes,
        },
    })
}

/// Address space for the store: what its 32-bit offsets reach.
const ARENA_BYTES: u64 = 32 << 30;
/// How long a stopping node waits for its connections to end.
const CLOSE_PATIENCE: std::time::Duration = std::time::Duration::from_millis(200);
/// Bytes of entries in one message between nodes.
const APPEND_BYTES_MAX: u64 = 256 << 10;
/// Entries in one message between nodes.
const APPEND_ENTRIES_MAX: usize = 4096;
/// Bytes on their way to one follower.
const WINDOW_BYTES_MAX: u64 = 4 << 20;
/// Bytes proposed and not committed; above it clients get `Busy`.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;
