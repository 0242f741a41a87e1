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
mod budget;
mod certificates;
mod clients;
mod dialler;
mod driver;
mod elders;
mod fetch;
mod forward;
mod gate;
mod intake;
mod joined;
mod joining;
mod links;
mod peers;
mod refusals;
mod repair;
mod save;
mod scan;
mod settings;
mod setup;
mod shared;
mod silence;
mod snapshots;
mod streams;
mod warden;

use std::future::Future;
use std::sync::Arc;

use quinn::Endpoint;

pub use joined::Known;
pub use joining::{Admitted, Ask, Asked, ask_to_join, init, init_joined, restore};
pub use settings::{LogIo, Member, Settings};

use crate::node;
use crate::node::run::Threads;
use crate::node::{Book, Opened, Opening};
use crate::pki::{self, Credentials};
use crate::quic::{self, PortKind};
use crate::raft::Index;
use crate::wal;
use clients::Clients;
use dialler::Common;
use driver::{Driver, Lonely};
use gate::Gate;
use intake::Receiver;
use links::Links;
use setup::{open_options, own_member};
use shared::{Ending, Shared};

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
    /// Another data directory acts for the node.
    #[error(
        "{by} says that another data directory acts for this node: start the node with `quicraft node --rejoin`, so that \
         a new member takes its place, since this directory has forgotten what the node voted for and confirmed"
    )]
    OtherData {
        /// Who says so.
        by: String,
    },
    /// Another member's log and this node's contradict each other where both are committed.
    #[error(
        "{by} contradicts what is committed here at index {index}: one of the two has lost data. This node stops, so that \
         its copy is not overwritten. Keep a copy of its data directory, and find out which of the two is right"
    )]
    Contradicted {
        /// The other member.
        by: String,
        /// The entry.
        index: Index,
    },
    /// The system has no randomness.
    #[error("the system gives no random numbers, so no data directory can be made")]
    NoRandomness,
    /// The node lost what it knew, and the cluster does not take a new one in its place.
    #[error("cannot become a new member in the place of this one: {0}")]
    NoSuccessor(String),
    /// The system gives no threads.
    #[error("cannot start a thread: {0}")]
    Threads(std::io::Error),
}

impl From<Ending> for Error {
    fn from(ending: Ending) -> Error {
        match ending {
            Ending::Removed { by } => Error::Removed { by },
            Ending::OtherData { by } => Error::OtherData { by },
        }
    }
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
    let (keyring, seen) = certificates::load(settings)?;
    let credentials = keyring.current();
    joining::finish_replacing(settings, &credentials)?;
    let options = open_options(settings, &credentials)?;
    let (own, data, cluster) =
        (options.raft.id, node::data_id(&options)?, options.identity.cluster);
    let (has_others, store_options) = (options.has_others, options.store);
    let snapshots = node::snapshots_dir(&options.disk, &settings.data);
    let shared = Arc::new(Shared::new(own, data));
    // Ports first: one that is taken should not cost a recovery.
    let ports = Ports::bind(settings, &credentials, &shared)?;
    let opening = node::open(options)?;

    // It is set nowhere else.
    let _ = shared.keyring.set(keyring.clone());
    shared.book.send_replace(Arc::new(book_of(&opening)));
    let _watch = certificates::Watch::start(settings, keyring.clone(), seen, ports.by_kind());
    let advertised = own_member(settings)?;
    let links = Links::new(Common {
        endpoint: ports.peer.clone(),
        keyring: keyring.clone(),
        own,
        data,
        peer_address: advertised.peer_address.clone(),
        client_address: advertised.client_address.clone(),
        shared: Arc::clone(&shared),
    });
    let limit = intake::file_bytes_max(settings.store_bytes_max);
    let receiver = matches!(opening, Opening::Ready(_))
        .then(|| Receiver::new(snapshots.clone(), cluster, (store_options, limit)));
    let source = save::Source { dir: snapshots, rate: settings.transfer_rate };
    let door = peers::Door::new(receiver, Arc::clone(&shared), keyring.clone());
    tokio::spawn(Arc::new(door).accept(ports.peer.clone()));
    let clients = Arc::new(Clients {
        shared: Arc::clone(&shared),
        value_bytes_max: settings.value_bytes_max,
        snapshots: source.clone(),
    });
    tokio::spawn(clients.accept(ports.client.clone(), keyring));
    let warden = tokio::spawn(warden::run(Arc::clone(&shared)));
    let result = match opening {
        Opening::Ready(opened) => {
            let driver = driver(*opened, settings, shared, links, (source, cluster))?;
            after_run(driver.run(shutdown).await, has_others)
        }
        Opening::Repair(repair) => {
            let ended = repair::run(repair, settings, links, shared, shutdown, ask).await;
            ended.and_then(|ended| after_repair(ended, settings, &credentials))
        }
    };
    warden.abort();
    ports.close().await;
    result
}

/// The node's two ports.
struct Ports {
    client: Endpoint,
    peer: Endpoint,
}

impl Ports {
    fn bind(
        settings: &Settings,
        credentials: &Credentials,
        shared: &Shared,
    ) -> Result<Ports, Error> {
        let secret = credentials.derive_secret(b"quicraft stateless reset");
        let bind = |kind, address, gate: &Gate| {
            quic::server_endpoint(kind, address, credentials, Some(secret), gate.unseen())
        };
        let client = bind(PortKind::Client, settings.client_listen, &shared.client_gate)?;
        let peer = bind(PortKind::Peer, settings.peer_listen, &shared.peer_gate)?;
        Ok(Ports { client, peer })
    }

    fn by_kind(&self) -> [(PortKind, Endpoint); 2] {
        [(PortKind::Client, self.client.clone()), (PortKind::Peer, self.peer.clone())]
    }

    async fn close(&self) {
        for endpoint in [&self.peer, &self.client] {
            endpoint.close(0_u32.into(), b"stopping");
        }
        let _ = tokio::time::timeout(CLOSE_PATIENCE, async {
            self.peer.wait_idle().await;
            self.client.wait_idle().await;
        })
        .await;
    }
}

/// A log that is damaged while the node runs is mended by a node that starts again.
fn after_run(ended: Result<(), Error>, has_others: bool) -> Result<Ended, Error> {
    match ended {
        Ok(()) => Ok(Ended::Stopped),
        Err(Error::Log(error @ wal::Error::Corrupt(_))) if has_others => {
            tracing::error!("{error}: the node starts again, in repair");
            Ok(Ended::Again)
        }
        Err(error) => Err(error),
    }
}

/// What connections are judged by until the first turn.
fn book_of(opening: &Opening) -> Book {
    match opening {
        Opening::Ready(opened) => Book::of(&opened.node),
        Opening::Repair(repair) => repair.book(),
    }
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
    let patience = settings.election_timeout * 2;
    Ok(Driver {
        node,
        threads,
        shared,
        links,
        snapshots,
        leader: None,
        members: None,
        lonely: Lonely::new(patience),
    })
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
        repair::Ended::Replaced(joined) => {
            let id = joined.id.unwrap_or_default();
            joining::replace(settings, credentials, joined)?;
            tracing::warn!("starts again as the new member {id}");
            Ok(Ended::Again)
        }
    }
}

/// How long a stopping node waits for its connections to end.
const CLOSE_PATIENCE: std::time::Duration = std::time::Duration::from_millis(200);
