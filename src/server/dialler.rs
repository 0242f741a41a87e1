//! Keeps one link to another node up: dials, dials again after a wait that grows, and replaces a connection that is
//! silent or has outlived its certificates before that one is given up.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quinn::{Connection, ConnectionError, Endpoint};
use tokio::time::{sleep, timeout};

use super::peers::{OTHER_DATA, REMOVED};
use super::shared::{Ending, Shared};
use super::silence::{Silence, hedged};
use crate::proto;
use crate::proto::frame::{FrameKind, encode_frame};
use crate::proto::limits::FRAME_BYTES_MAX;
use crate::proto::peer::PeerHello;
use crate::quic::{self, FrameWriter, Keyring, PortKind};
use crate::raft::{DataId, NodeId};

/// What all links need.
pub(super) struct Common {
    pub(super) endpoint: Endpoint,
    pub(super) keyring: Keyring,
    /// This node.
    pub(super) own: NodeId,
    pub(super) data: DataId,
    /// Where it is reached.
    pub(super) peer_address: String,
    pub(super) client_address: String,
    pub(super) shared: Arc<Shared>,
}

impl Common {
    /// What this node says first to another one.
    pub(super) fn hello(&self, to: NodeId, to_data: Option<DataId>) -> PeerHello {
        PeerHello {
            from: self.own,
            data: self.data,
            to,
            to_data,
            founding: self.shared.book.borrow().founding().cloned(),
            peer_address: self.peer_address.clone(),
            client_address: self.client_address.clone(),
        }
    }
}

/// A link that is up.
#[derive(Clone)]
pub(super) struct Up {
    pub(super) connection: Connection,
    pub(super) control: FrameWriter,
    pub(super) append: FrameWriter,
}

/// Why a peer is not reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot find {address}: {source}")]
    Resolve { address: String, source: std::io::Error },
    #[error(transparent)]
    Transport(#[from] quic::Error),
    #[error("no address is known")]
    NoAddress,
}

/// Keeps one link up.
pub(super) struct Dialler {
    pub(super) common: Arc<Common>,
    pub(super) to: NodeId,
    pub(super) name: String,
    pub(super) data: Option<DataId>,
    pub(super) addresses: Arc<Mutex<Vec<String>>>,
    pub(super) up: Arc<Mutex<Option<Up>>>,
}

impl Dialler {
    /// Dials until the link is not wanted any more.
    pub(super) async fn run(self) {
        let name = &self.name;
        let mut wait = BACKOFF_MIN;
        let mut reported = Vec::new();
        let mut next = None;
        loop {
            let connected = match next.take() {
                Some(up) => Ok(up),
                None => hedged(|| self.connect(), HEDGES).await,
            };
            match connected {
                Ok(up) => {
                    report(&mut reported, format!("connected to {name}"));
                    let since = Instant::now();
                    let connection = up.connection.clone();
                    self.set(Some(up));
                    let reason = tokio::select! {
                        reason = connection.closed() => reason,
                        (up, why) = self.successor(&connection) => {
                            report(&mut reported, format!("connects anew to {name}: {why}"));
                            connection.close(0_u32.into(), b"replaced by another connection");
                            self.common.shared.tell(|input| input.unreachable.push(self.to));
                            next = Some(up);
                            continue;
                        }
                    };
                    self.set(None);
                    if let ConnectionError::ApplicationClosed(closed) = &reason {
                        let by = name.clone();
                        if closed.error_code == REMOVED.into() {
                            self.common.shared.ends(Ending::Removed { by });
                        } else if closed.error_code == OTHER_DATA.into() {
                            self.common.shared.ends(Ending::OtherData { by });
                        }
                    }
                    // Who ends connections at once is no news each time, nor worth a busy loop.
                    if since.elapsed() >= LASTING {
                        (wait, reported) = (BACKOFF_MIN, Vec::new());
                    }
                    report(&mut reported, format!("lost {name}: {reason}"));
                    self.common.shared.tell(|input| input.unreachable.push(self.to));
                }
                Err(error) => report(&mut reported, format!("cannot reach {name}: {error}")),
            }
            sleep(jittered(wait)).await;
            wait = (wait * 2).min(BACKOFF_MAX);
        }
    }

    /// Another connection beside one on which nothing comes back any more, or that was made with certificates whose time
    /// is over on either side; and why.
    async fn successor(&self, connection: &Connection) -> (Up, &'static str) {
        let (keyring, mut silence) = (&self.common.keyring, Silence::new());
        let with = keyring.current();
        loop {
            let (why, pause) = tokio::select! {
                () = silence.begins(connection) => (SILENT, BACKOFF_MAX),
                () = keyring.changed(&with) => ("new certificates are in use", LASTING),
                _ = quic::outlives(connection, keyring) => ("its certificate is over", LASTING),
            };
            let recovers = async {
                match why {
                    SILENT => silence.ends(connection).await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                () = recovers => {}
                connected = hedged(|| self.connect(), HEDGES) => match connected {
                    Ok(up) => return (up, why),
                    Err(_) => sleep(jittered(pause)).await,
                }
            }
            if let Some(outlived) = quic::outlived(connection, &keyring.current()) {
                outlived.close(connection);
            }
        }
    }

    fn set(&self, up: Option<Up>) {
        *self.up.lock().unwrap_or_else(PoisonError::into_inner) = up;
    }

    /// Tries one address after the other.
    async fn connect(&self) -> Result<Up, Error> {
        let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut failed = Error::NoAddress;
        for address in addresses {
            match self.connect_to(&address).await {
                Ok(up) => {
                    self.common.shared.tell(|input| input.reached.push((self.to, address)));
                    return Ok(up);
                }
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn connect_to(&self, address: &str) -> Result<Up, Error> {
        let Common { endpoint, keyring, .. } = &*self.common;
        let (credentials, kind) = (keyring.current(), PortKind::Peer);
        let address = resolve(address).await?;
        let connection = quic::dial(endpoint, address, &self.name, &credentials, kind).await?;
        let control = open(&connection, CONTROL_PRIORITY, CONTROL_BYTES_MAX).await?;
        let hello = self.common.hello(self.to, self.data);
        let said = control.push(|buffer| {
            encode_frame(buffer, FrameKind::PeerHello, 0, |body| proto::encode(&hello, body));
        });
        said.map_err(|_| quic::Error::Truncated)?;
        let append = open(&connection, APPEND_PRIORITY, APPEND_BYTES_MAX).await?;
        Ok(Up { connection, control, append })
    }
}

/// Each once, until a connection lasts: a peer that is down for a night, or that ends each connection at once because it
/// is another node by now, fills no log.
fn report(reported: &mut Vec<String>, text: String) {
    if !reported.contains(&text) {
        tracing::info!("{text}");
        reported.push(text);
        if reported.len() > REPORTED_MAX {
            reported.remove(0);
        }
    }
}

async fn open(
    connection: &Connection,
    priority: i32,
    bytes_max: usize,
) -> Result<FrameWriter, quic::Error> {
    let addr = connection.remote_address();
    let opened = timeout(OPEN_PATIENCE, connection.open_uni()).await;
    let lost = |error| quic::Error::Lost(quic::explain(&error));
    let stream = opened.map_err(|_| quic::Error::TimedOut { addr })?.map_err(lost)?;
    // Fails only for a stream that was closed, which the first write reports.
    let _ = stream.set_priority(priority);
    let (writer, driver) = FrameWriter::new(bytes_max);
    // Its error is the connection's end, which the dialler sees as well.
    tokio::spawn(driver.drive(stream));
    Ok(writer)
}

pub(super) async fn resolve(address: &str) -> Result<SocketAddr, Error> {
    let failed = |source| Error::Resolve { address: address.to_owned(), source };
    let mut found = tokio::net::lookup_host(address).await.map_err(failed)?;
    found.next().ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))
}

/// Half to all of a wait, so that nodes which lost each other at once do not dial in step.
fn jittered(wait: Duration) -> Duration {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| now.subsec_nanos());
    wait / 2 + wait.mul_f64(f64::from(nanos % 1000) / 2000.0)
}

const SILENT: &str = "it does not answer there";
/// Reasons that are remembered.
const REPORTED_MAX: usize = 8;
const BACKOFF_MIN: Duration = Duration::from_millis(20);
/// A node that comes back hears the others within an election timeout.
const BACKOFF_MAX: Duration = Duration::from_millis(250);
/// A connection that lasted so long was a good one.
const LASTING: Duration = Duration::from_secs(1);
/// Attempts to connect that begin while the first is under way.
const HEDGES: usize = 3;
const OPEN_PATIENCE: Duration = Duration::from_secs(1);
/// Heartbeats and votes go before entries.
const CONTROL_PRIORITY: i32 = 20;
const APPEND_PRIORITY: i32 = 10;
/// Small messages only; more than this waiting means that the peer is gone.
const CONTROL_BYTES_MAX: usize = 1 << 20;
/// The core's window, and one entry of the greatest length on top.
const APPEND_BYTES_MAX: usize = FRAME_BYTES_MAX + (16 << 20);
