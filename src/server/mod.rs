//! The node as a server: peer links, client connections, push-back, and the drive of the turns.
//!
//! **What it is for.** [`run`] is a whole node, from settings to graceful stop, on one current-thread
//! runtime. Tasks of this module read frames from connections and hand them to the node's next turn;
//! what a turn sends and answers goes into the buffers of the streams, each written at once.
//!
//! **What always holds.** Every queue has a bound and a rule: peers are held back, clients get `Busy`,
//! a client that does not read its answers is not read either, and loses its stream after a while (`streams`).
//! `budget` has what one principal may hold, `gate` the places of a port. Nobody gets here without a certificate of
//! the cluster's CA; `authorise` is the only place where rights are decided.
//!
//! A client that asks a node which does not lead is told who does; `forward` hands its write on if it cannot
//! go there itself.
//!
//! **What is left out.** Roles, terms and files: `node` has those.

mod answers;
mod authorise;
mod book;
mod budget;
mod clients;
mod driver;
mod fetch;
mod forward;
mod gate;
mod joined;
mod joining;
mod links;
mod peers;
mod repair;
mod save;
mod scan;
mod settings;
mod setup;
mod shared;
mod snapshots;
mod streams;
mod warden;

use std::future::Future;
use std::sync::Arc;

pub use joining::{Ask, Asked, ask_to_join, init, init_joined, restore};
pub use settings::{LogIo, Member, Settings};

use crate::node;
use crate::node::run::Threads;
use crate::node::{Opened, Opening};
use crate::pki::{self, Credentials};
use crate::quic::{self, PortKind};
use crate::raft::Index;
use crate::wal;
use clients::Clients;
use driver::Driver;
use links::{Common, Links};
use setup::{load_credentials, open_options, own_member};
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
    /// The store is not what those of the others are.
    #[error(
        "this node's state is not that of the others after entry {index}: it has {own:016x}, {others}. It stops, so that \
         nobody reads what is wrong. Keep a copy of its data directory for the authors of this program, then remove it and \
         start the node with --rejoin"
    )]
    Diverged {
        /// The entry.
        index: Index,
        /// This node's state hash.
        own: u64,
        /// What the others have.
        others: String,
    },
    /// Somebody removed the node for ever.
    #[error(
        "{by} says that this node was removed from the cluster: it stops; its data directory is of no more use \
         to it"
    )]
    Removed {
        /// Who says so.
        by: String,
    },
    /// The node lost what it knew, and the cluster does not take a new one in its place.
    #[error("cannot become a new member in the place of this one: {0}")]
    NoSuccessor(String),
    /// The system gives no threads.
    #[error("cannot start a thread: {0}")]
    Threads(std::io::Error),
}

impl Error {
    /// Whether somebody has one of the node's ports; after a life that ended just now it may have been itself.
    pub fn is_port_taken(&self) -> bool {
        matches!(self, Error::Transport(quic::Error::AddressInUse { .. }))
    }
}

/// How a run of a node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop.
    Stopped,
    /// It is to be run again at once: its data directory was mended or made anew, or damage was met on the way.
    Again,
}

/// Runs a node until `shutdown` resolves; must be called on a current-thread tokio runtime. A node whose log is damaged
/// fetches what it lacks from the others, or becomes a new member in its own place, for which `ask` asks the cluster.
///
/// # Errors
/// See [`Error`]; nothing was acknowledged that could be lost by it.
pub async fn run(
    settings: &Settings,
    shutdown: &mut (impl Future<Output = ()> + Unpin),
    ask: &Ask<'_>,
) -> Result<Ended, Error> {
    let credentials = Arc::new(load_credentials(settings)?);
    joining::finish_replacing(settings, &credentials)?;
    let options = open_options(settings, &credentials)?;
    let (own, cluster_id) = (options.raft.id, options.identity.cluster);
    let has_others = options.has_others;
    let store_options = options.store;
    let snapshots = node::snapshots_dir(&options.disk, &settings.data);
    // Ports first: one that is taken should not cost a recovery.
    let secret = credentials.derive_secret(b"quicraft stateless reset");
    let bind = |kind, address| quic::server_endpoint(kind, address, &credentials, Some(secret));
    let client_endpoint = bind(PortKind::Client, settings.client_listen)?;
    let peer_endpoint = bind(PortKind::Peer, settings.peer_listen)?;
    let opening = node::open(options)?;

    let shared = Arc::new(Shared::new(own));
    let advertised = own_member(settings)?;
    let links = Links::new(Common {
        endpoint: peer_endpoint.clone(),
        credentials: Arc::clone(&credentials),
        own,
        peer_address: advertised.peer_address.clone(),
        client_address: advertised.client_address.clone(),
        shared: Arc::clone(&shared),
    });
    let receiver = snapshots::Receiver::new(snapshots.clone(), cluster_id, store_options);
    let receiver = matches!(opening, Opening::Ready(_)).then(|| Arc::new(receiver));
    tokio::spawn(peers::accept(peer_endpoint.clone(), receiver, Arc::clone(&shared)));
    let clients = Arc::new(Clients {
        shared: Arc::clone(&shared),
        value_bytes_max: settings.value_bytes_max,
        snapshots: save::Source { dir: snapshots.clone(), rate: settings.transfer_rate },
    });
    tokio::spawn(clients.accept(client_endpoint.clone()));
    let warden = tokio::spawn(warden::run(Arc::clone(&shared)));
    let result = match opening {
        Opening::Ready(opened) => {
            let source = save::Source { dir: snapshots, rate: settings.transfer_rate };
            let driver = driver(*opened, settings, shared, links, (source, cluster_id))?;
            match driver.run(shutdown).await {
                Ok(()) => Ok(Ended::Stopped),
                Err(Error::Log(error @ wal::Error::Corrupt(_))) if has_others => {
                    tracing::error!("{error}: the node starts again, in repair");
                    Ok(Ended::Again)
                }
                Err(error) => Err(error),
            }
        }
        Opening::Repair(repair) => {
            let ended = repair::run(repair, settings, links, shared, shutdown, ask).await;
            ended.and_then(|ended| after_repair(ended, settings, &credentials))
        }
    };
    warden.abort();
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

/// A node that is ready to run.
fn driver(
    opened: Opened,
    settings: &Settings,
    shared: Arc<Shared>,
    links: Links,
    (snapshots, cluster): (save::Source, [u8; 16]),
) -> Result<Driver, Error> {
    let Opened { node, writer, notes } = opened;
    for note in notes {
        tracing::warn!("{note}");
    }
    let bell = {
        let shared = Arc::clone(&shared);
        Arc::new(move || shared.bell.notify_one())
    };
    let threads =
        Threads::start(writer, snapshots.dir.clone(), cluster, bell).map_err(Error::Threads)?;
    tracing::info!(
        "ready: applied index {}, clients at {}, peers at {}",
        node.status().applied_index,
        settings.client_listen,
        settings.peer_listen
    );
    Ok(Driver { node, threads, shared, links, snapshots, leader: None, members: None })
}

fn after_repair(
    ended: repair::Ended,
    settings: &Settings,
    credentials: &Credentials,
) -> Result<Ended, Error> {
    match ended {
        repair::Ended::Stopped => Ok(Ended::Stopped),
        repair::Ended::Mendable(repair) => {
            // Opened once more by the next run, which tells what was found.
            repair.mend()?;
            tracing::warn!("the log is mended, the node starts again");
            Ok(Ended::Again)
        }
        repair::Ended::Replaced(id) => {
            joining::replace(settings, credentials, id)?;
            tracing::warn!("starts again as the new member {id}");
            Ok(Ended::Again)
        }
    }
}

/// How long a stopping node waits for its connections to end.
const CLOSE_PATIENCE: std::time::Duration = std::time::Duration::from_millis(200);
