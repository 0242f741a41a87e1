//! What both ends of a connection share: endpoints, TLS, identities, framing, and coalescing writers.
//!
//! *What for.* A node has two UDP ports, one [`PortKind`] each. This module opens them, dials them, and says who is at
//! the other end and why a connection failed, in words for an operator.
//!
//! *In and out.* [`server_endpoint`], [`accept`] and [`identity_of`] on one side, [`client_endpoint`], [`dial`] and
//! [`dial_any`] on the other; on each stream a [`FrameReader`] (bytes to batches of frames) or a [`FrameWriter`] (frames
//! from any number of callers to as few writes as possible).
//!
//! *What always holds.* TLS 1.3, both ends with a certificate of the same cluster, checked in the handshake against the
//! port: nodes only between nodes. No resumption and no early data, so every connection is judged anew. Every buffer has
//! a limit. Nothing received can panic.
//!
//! *What is left out.* What frames mean, who leads, reconnecting. Revocation lists. A dialler is told "connected" when
//! *it* is satisfied: in TLS 1.3 the other side judges our certificate later, so a connection is good only when the
//! first answer on it has come; a refusal shows as the error of that read, see [`explain()`].

mod congestion;
mod endpoint;
mod explain;
mod ids;
mod keyring;
mod meter;
mod reader;
mod sieve;
#[cfg(test)]
#[cfg(feature = "server")]
mod tests;
mod tls;
mod transport;
mod writer;

use std::io;
use std::net::SocketAddr;

pub use endpoint::{
    CONNECTIONS_MAX_DEFAULT, accept, certificate_of, client_endpoint, dial, dial_any, identity_of,
    reload, server_endpoint,
};
pub use explain::{Disconnect, explain};
pub use ids::IdMap;
pub use keyring::{Keyring, Outlived, outlived, outlives, while_valid};
pub use meter::{Exceeding, Meter};
pub use reader::{FrameReader, Progress};
pub use tls::Rejection;
pub use transport::{CLIENT_WINDOW_BYTES_MIN, widen};
pub use writer::{FrameWriter, PushError, WriterDriver};

use crate::pki::Problem;
use crate::proto::{CLIENT_ALPN, Malformed, PEER_ALPN, STREAM_HALF_FRAME, STREAM_NOT_TAKEN};

/// The two ports of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// Between nodes; nobody else.
    Peer,
    /// For clients; nodes may use it too.
    Client,
}

impl PortKind {
    /// The protocol name in the handshake.
    pub fn alpn(self) -> &'static [u8] {
        match self {
            PortKind::Peer => PEER_ALPN,
            PortKind::Client => CLIENT_ALPN,
        }
    }
}

/// What went wrong on the way to another process. Each message is one line for an operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody has the port.
    #[error("UDP address {addr} is in use: stop the other process or choose another address")]
    AddressInUse {
        /// The address.
        addr: SocketAddr,
    },
    /// The operating system gives no socket.
    #[error("cannot open UDP address {addr}: {source}")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// TLS cannot be set up with these credentials.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// No address to dial.
    #[error("cannot dial {addr}: {reason}")]
    Dial {
        /// The address.
        addr: SocketAddr,
        /// Why not.
        reason: String,
    },
    /// The machine answers that no process has this port.
    #[error("nothing listens at {addr}: is the node running, and is this its address?")]
    NothingListening {
        /// The address.
        addr: SocketAddr,
    },
    /// No answer.
    #[error(
        "no answer from {addr} in time: the machine is down, or a firewall stops UDP on the way"
    )]
    TimedOut {
        /// The address.
        addr: SocketAddr,
    },
    /// We do not accept the certificate of the other side.
    #[error("not connected to {addr}: {rejection}")]
    Rejected {
        /// The address.
        addr: SocketAddr,
        /// What is wrong with its certificate.
        rejection: Rejection,
    },
    /// The connection did not come about for another reason, or ended.
    #[error("connection with {addr}: {disconnect}")]
    Disconnected {
        /// The other side.
        addr: SocketAddr,
        /// Why.
        disconnect: Disconnect,
    },
    /// The connection ended under a stream.
    #[error("the connection ended: {0}")]
    Lost(Disconnect),
    /// The other side gave up this stream.
    #[error("the other side gave up the stream with code {code}{}", stream_code_words(*.code))]
    StreamEnded {
        /// Its reason, as agreed between the two programs.
        code: u64,
    },
    /// The stream ended in the middle of a frame.
    #[error("the stream ended in the middle of a frame")]
    Truncated,
    /// Something that is no frame; the connection is of no further use.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The connection has no certificate that says who it is.
    #[error("the certificate of {addr} {problem}")]
    Identity {
        /// The other side.
        addr: SocketAddr,
        /// What is wrong.
        problem: Problem,
    },
}

/// What the codes mean with which a node ends a stream.
fn stream_code_words(code: u64) -> &'static str {
    match u32::try_from(code) {
        Ok(STREAM_NOT_TAKEN) => ": its answers waited too long and nothing of them was taken",
        Ok(STREAM_HALF_FRAME) => ": a request was not whole in time",
        _ => "",
    }
}
