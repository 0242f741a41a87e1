//! Certificates: the cluster's CA, identities, and what a process shows and trusts.
//!
//! **What it is for.** [`authority`] makes a cluster's CA and certificates for nodes and clients;
//! [`Credentials`] loads them; [`Identity`] is who a certificate speaks for.
//!
//! **What always holds.** One CA per cluster, whose name is part of every identity. Keys are written
//! once, 0600, and refused when others can read them. Nodes serve and call, clients only call, and the
//! certificate's key usages must say so.
//!
//! **What is left out.** The network ([`crate::quic`]), revocation and rotation.

#[cfg(feature = "server")]
pub mod authority;
mod credentials;
mod identity;

pub use credentials::{Credentials, provider};
pub use identity::{Identity, Role, Who, cluster_id, dns_name, is_name};

use std::path::PathBuf;

/// Why certificates and keys cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is not there.
    #[error("{0} does not exist: `quicraft cert` makes certificates and keys")]
    Missing(PathBuf),
    /// A file is there already and is never overwritten.
    #[error("{0} exists already and stays as it is")]
    Exists(PathBuf),
    /// A key can be read by others.
    #[error("{path} can be read by others (mode {mode:o}): `chmod 600` it")]
    Exposed {
        /// The key's file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A file does not hold what it should.
    #[error("{path} cannot be used: {reason}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A name that cannot be in a certificate.
    #[error("{0:?} cannot be a name: 1 to 48 of a-z, 0-9 and inner dashes")]
    Name(String),
    /// A host that is neither a DNS name nor an address.
    #[error("{0:?} is neither a host name nor an address")]
    Host(String),
    /// The certificate could not be made.
    #[error("cannot make the certificate: {0}")]
    Issue(String),
    /// The system said no.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
}
