//! Credentials that are replaced while they are in use, and the end of a connection with its certificate.
//!
//! A handshake judges a certificate once. A connection may last longer than the certificate of its other end, or than
//! the trust in the authority that issued it: [`while_valid`] ends it then, with a reason that the other end shows.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quinn::{Connection, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::time::sleep;

use super::endpoint::certificate_of;
use crate::pki::{Credentials, Subject};

/// Credentials that all who dial and accept share; clones share them too.
#[derive(Clone, Debug)]
pub struct Keyring(Arc<watch::Sender<Arc<Credentials>>>);

impl Keyring {
    /// With these to begin with.
    pub fn new(credentials: Credentials) -> Keyring {
        Keyring(Arc::new(watch::Sender::new(Arc::new(credentials))))
    }

    /// What is in use now.
    pub fn current(&self) -> Arc<Credentials> {
        Arc::clone(&self.0.borrow())
    }

    /// From now on these.
    pub fn replace(&self, credentials: Credentials) {
        self.0.send_replace(Arc::new(credentials));
    }

    /// Returns once others are in use than `seen`.
    pub async fn changed(&self, seen: &Arc<Credentials>) {
        let mut watched = self.0.subscribe();
        // The sender lives as long as self.
        let _ = watched.wait_for(|now| !Arc::ptr_eq(now, seen)).await;
    }
}

/// Why a connection must end though nothing is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outlived {
    /// The certificate of the other end has expired.
    Expired {
        /// Whose certificate.
        name: String,
    },
    /// No authority that is trusted now issued the certificate of the other end.
    Untrusted {
        /// Whose certificate.
        name: String,
    },
}

impl fmt::Display for Outlived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outlived::Expired { name } => {
                write!(f, "the certificate of {name} has expired: quicraft cert renew {name}")
            }
            Outlived::Untrusted { name } => {
                write!(f, "the authority of the certificate of {name} is not trusted any more")
            }
        }
    }
}

impl Outlived {
    /// Ends the connection and tells the other end why.
    pub fn close(&self, connection: &Connection) {
        connection.close(OUTLIVED, self.to_string().as_bytes());
    }
}

/// Whether the connection must end now, judged by these credentials.
pub fn outlived(connection: &Connection, credentials: &Credentials) -> Option<Outlived> {
    let certificate = certificate_of(connection).ok()?;
    let name = match &certificate.subject {
        Subject::Leaf(identity) => identity.name().to_owned(),
        Subject::Authority { cluster } => cluster.clone(),
    };
    if SystemTime::now() >= certificate.not_after + LAST_SECOND {
        return Some(Outlived::Expired { name });
    }
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    credentials.vouch_for(&chain).is_err().then_some(Outlived::Untrusted { name })
}

/// Returns when the connection must end.
pub async fn outlives(connection: &Connection, keyring: &Keyring) -> Outlived {
    let Ok(certificate) = certificate_of(connection) else { return std::future::pending().await };
    let end = certificate.not_after + LAST_SECOND;
    let mut judged = keyring.current();
    loop {
        let left = end.duration_since(SystemTime::now()).unwrap_or_default();
        tokio::select! {
            // Not in one sleep: the machine may sleep too, or its clock be set.
            () = sleep(left.min(LOOK_EVERY) + Duration::from_millis(1)) => {
                if SystemTime::now() < end {
                    continue;
                }
            }
            () = keyring.changed(&judged) => judged = keyring.current(),
        }
        if let Some(outlived) = outlived(connection, &judged) {
            return outlived;
        }
    }
}

/// Runs `work` on a connection, no longer than the certificate of the other end is good; ends the connection then.
pub async fn while_valid(
    connection: &Connection,
    keyring: &Keyring,
    work: impl Future<Output = ()>,
) {
    tokio::select! {
        () = work => {}
        outlived = outlives(connection, keyring) => {
            tracing::info!("a connection ends: {outlived}");
            outlived.close(connection);
        }
    }
}

/// A certificate is good through the second that it names, and so a handshake takes it.
const LAST_SECOND: Duration = Duration::from_secs(1);
/// The code of such an end.
const OUTLIVED: VarInt = VarInt::from_u32(9);
/// How long a clock may be wrong before it is asked again.
const LOOK_EVERY: Duration = Duration::from_secs(600);
