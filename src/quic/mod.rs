//! What both ends of a connection share: endpoints, TLS and identity, frames over streams.
//!
//! **What it is for.** One QUIC endpoint per port, mutual TLS 1.3 on every connection, and long-lived
//! streams of frames: a stream per request costs six to eighteen times the CPU.
//!
//! **What always holds.** Nobody is connected whose certificate was not checked against the cluster's
//! CA, for its identity and its key usages. Every queue has a bound. No 0-RTT, no resumption.
//!
//! **What is left out.** What the frames mean ([`crate::proto`]) and who needs them.

mod endpoint;
mod stream;
mod tls;

pub use endpoint::{PortKind, accept, client_endpoint, dial, explain, server_endpoint};
pub use stream::{FrameReader, FrameWriter};

use std::net::SocketAddr;

/// Why a connection or stream does not work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be used.
    #[error("cannot listen at {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A name that leads nowhere.
    #[error("cannot find {address}: {source}")]
    Resolve {
        /// The name.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Nobody answers.
    #[error("nothing is listening at {0}")]
    NotListening(SocketAddr),
    /// No answer in time.
    #[error("no answer in time")]
    TimedOut,
    /// One end does not accept the other.
    #[error("{address}: {reason}")]
    Refused {
        /// The other end.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// The connection ended.
    #[error("the connection ended: {0}")]
    Lost(#[from] quinn::ConnectionError),
    /// The stream broke while it was read.
    #[error("the stream broke: {0}")]
    Read(#[from] quinn::ReadError),
    /// Bytes that make no sense.
    #[error(transparent)]
    Malformed(#[from] crate::proto::Malformed),
    /// Too much waits to be written.
    #[error("too much waits to be written")]
    Full,
    /// The stream has ended.
    #[error("the stream has ended")]
    Closed,
    /// The TLS library refuses its configuration.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}
