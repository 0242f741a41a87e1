//! What a caller can learn from a failure.

use crate::proto::client::Refusal;
use crate::proto::limits::KEY_BYTES_MAX;
use crate::{pki, quic};

/// Why an operation failed, and whether it may have happened all the same.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Certificates or keys cannot be used.
    #[error("{0}")]
    Credentials(String),
    /// An address cannot be used.
    #[error("{0}")]
    Address(String),
    /// No node could be reached; nothing was done.
    #[error("{0}")]
    Unreachable(String),
    /// Time ran out before anything was done: no node led, or all were busy.
    #[error("no answer in time: {0}; nothing was done")]
    Timeout(String),
    /// A write was sent and its answer never came: it may or may not have happened.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// A node refuses this connection.
    #[error("refused: {0}")]
    Refused(String),
    /// A key of no allowed length.
    #[error("a key has 1 to {KEY_BYTES_MAX} bytes, this one has {0}")]
    KeyLength(usize),
    /// A value that is longer than the cluster allows.
    #[error("the value is longer than the limit of {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// The cluster takes no more data.
    #[error("the cluster has no space for more data")]
    NoSpace,
    /// The certificate's role does not allow it.
    #[error("the role {role} does not allow this")]
    Denied {
        /// The role.
        role: String,
    },
    /// A node sent what makes no sense.
    #[error("a node answers with {0}")]
    Protocol(String),
}

impl From<pki::Error> for Error {
    fn from(error: pki::Error) -> Error {
        Error::Credentials(error.to_string())
    }
}

impl From<quic::Error> for Error {
    fn from(error: quic::Error) -> Error {
        match error {
            quic::Error::Refused { .. } => Error::Refused(error.to_string()),
            quic::Error::Bind { .. } | quic::Error::Resolve { .. } => {
                Error::Address(error.to_string())
            }
            quic::Error::Malformed(_) | quic::Error::Tls(_) => Error::Protocol(error.to_string()),
            quic::Error::NotListening(_) => {
                Error::Unreachable(format!("{error}: is the cluster running?"))
            }
            quic::Error::TimedOut
            | quic::Error::Lost(_)
            | quic::Error::Read(_)
            | quic::Error::Full
            | quic::Error::Closed => Error::Unreachable(error.to_string()),
        }
    }
}

impl Error {
    /// What a refusal that no retry mends means to the caller; `None` for one that a retry may mend.
    pub(super) fn of_refusal(refusal: &Refusal) -> Option<Error> {
        match refusal {
            Refusal::NotLeader { .. } | Refusal::Busy { .. } | Refusal::Unknown => None,
            Refusal::TooLarge { limit } => Some(Error::TooLarge { limit: *limit }),
            Refusal::NoSpace => Some(Error::NoSpace),
            Refusal::Denied { role } => Some(Error::Denied { role: role.clone() }),
            Refusal::Invalid { reason } => Some(Error::Refused(reason.clone())),
            Refusal::Compacted { oldest } => {
                Some(Error::Refused(format!("revisions before {oldest} are gone")))
            }
        }
    }
}
