//! Who is who: the certificate authority of a cluster, the certificates it issues, and what they say.
//!
//! *What for.* Nobody speaks to a node without a certificate of its cluster's authority, and a client's certificate
//! never makes a node. This module makes such certificates, loads them, and reads identities out of them.
//!
//! *In and out.* A directory of PEM files: `ca.crt`, `ca.key` (never on a node), and `NAME.crt` with `NAME.key` for
//! each node and client. Out of it come [`Credentials`], everything that one end of a connection needs. An identity is
//! the one URI among a certificate's subject alternative names:
//!
//! | certificate | URI | extended key usage |
//! |---|---|---|
//! | authority | `quicraft://CLUSTER/ca` | none |
//! | node | `quicraft://CLUSTER/node/NAME` | server and client |
//! | client | `quicraft://CLUSTER/client/NAME?role=ROLE` | client |
//!
//! `CLUSTER` is the chosen name and eight random hex digits, drawn once by `cert init`, so that no two clusters share
//! it. A node's certificate also has the DNS name of [`node_dns_name`], by which it is dialled whatever its address.
//!
//! *What always holds.* Private keys are created with mode 0600, synced, and never overwritten unless asked; a key that
//! others may read is refused. The parser of identities is total and strict: one spelling per identity.
//!
//! *What is left out.* Revocation lists, and the check of the key file's owner.

#[cfg(feature = "server")]
mod authority;
mod certificate;
mod credentials;
mod identity;
#[cfg(feature = "server")]
mod renewal;
mod stamp;
#[cfg(test)]
#[cfg(feature = "server")]
mod tests;

use std::io;
use std::path::PathBuf;

#[cfg(feature = "server")]
pub use authority::{AUTHORITY_DAYS, Authority, Issue, LEAF_DAYS_DEFAULT};
pub use certificate::{Certificate, Subject};
pub use credentials::Credentials;
pub use identity::{Identity, Role, Who, check_name, cluster_id, node_dns_name};
pub use stamp::Stamp;

/// What is wrong with a name or with the content of a certificate, wherever it came from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The name of a cluster, node or client.
    #[error("{0:?} is no valid name: use 1 to 32 of a-z, 0-9 and '-', with no '-' at either end")]
    Name(String),
    /// A role that does not exist.
    #[error("{0:?} is no role: use readwrite, readonly or admin")]
    Role(String),
    /// The URI is no identity.
    #[error("{0:?} is no identity of a Quicraft cluster")]
    Uri(String),
    /// Not exactly one URI among the subject alternative names.
    #[error("has {0} identities (URI names) instead of one: it was not made by `quicraft cert`")]
    Uris(usize),
    /// The DER encoding is damaged.
    #[error("is no certificate that can be read")]
    Encoding,
    /// The extended key usage does not fit the identity.
    #[error("lacks the extended key usage for {0}: make a new one with `quicraft cert`")]
    Usage(&'static str),
    /// An authority's certificate where a node's or a client's should be, or the other way round.
    #[error("is {found}, not {expected}")]
    Kind {
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
}

/// Why certificates could not be made or loaded. Each message is one line for an operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name, role or identity that the caller gave.
    #[error(transparent)]
    Input(#[from] Problem),
    /// A host that is neither an IP address nor a DNS name.
    #[error("{0:?} is neither an IP address nor a host name (give it without a port)")]
    Host(String),
    /// A lifetime of no days, or beyond what a certificate can say.
    #[error("a certificate cannot be valid for {0} days: use 1 to 3650")]
    Days(u32),
    /// Something is there already.
    #[error("{path} exists already and is not overwritten{hint}")]
    Exists {
        /// The file.
        path: PathBuf,
        /// What to do instead; starts with a separator or is empty.
        hint: &'static str,
    },
    /// A file that should be there is not.
    #[error("{path} does not exist: {hint}")]
    Missing {
        /// The file.
        path: PathBuf,
        /// What to do.
        hint: String,
    },
    /// The operating system refused.
    #[error("cannot {op} {path}: {source}")]
    Io {
        /// What was tried.
        op: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Other users may read a private key.
    #[error("{path} can be read by others (mode {mode:04o}): run `chmod 600 {path}`")]
    Exposed {
        /// The key.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file that is no PEM, or not of the kind it should be.
    #[error("{path} holds no {what} in PEM form: it is damaged or another file")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// A certificate whose content is wrong.
    #[error("the certificate {path} {problem}")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: Problem,
    },
    /// A key that belongs to another certificate.
    #[error("{key} is not the private key of {certificate}: copy both from the same place")]
    KeyMismatch {
        /// The certificate.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// A certificate after its time.
    #[error("the certificate {path} expired on {not_after}: renew it with `quicraft cert renew`")]
    Expired {
        /// The certificate.
        path: PathBuf,
        /// Its last moment.
        not_after: String,
    },
    /// A certificate before its time.
    #[error(
        "the certificate {path} is valid only from {not_before}: is this machine's clock right?"
    )]
    NotYetValid {
        /// The certificate.
        path: PathBuf,
        /// Its first moment.
        not_before: String,
    },
    /// A certificate that the authority beside it did not issue.
    #[error("{path} was not issued by the authority in {authority}: they are of two clusters")]
    Foreign {
        /// The certificate.
        path: PathBuf,
        /// The authority's certificate.
        authority: PathBuf,
    },
    /// The library that makes certificates failed, or the system has no randomness.
    #[error("cannot make the certificate: {0}")]
    Make(String),
}
