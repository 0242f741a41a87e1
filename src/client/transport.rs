//! The way down to QUIC: dial a node, say hello, read frames.
//!
//! In: an address, perhaps the name that the node there must have. Out: a connection on which the node has
//! answered our `Hello`, or a [`DialError`] in words for a human. Always: "connected" means that the node has
//! answered, since in TLS 1.3 the other side judges our certificate only after the handshake is over for us.
//! Left out: which node to dial (`routes`).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::Error;
use super::connection::Link;
use super::routes::To;
use crate::pki::{Credentials, Stamp};
use crate::proto::client::{Hello, HelloReply, Reply};
use crate::proto::frame::{Frame, FrameKind, encode_frame};
use crate::proto::limits::FRAME_BYTES_MAX;
use crate::proto::{PROTOCOL_VERSION, decode, encode};
use crate::quic::{
    self, Disconnect, FrameReader, FrameWriter, Keyring, PortKind, Rejection, WriterDriver,
};

/// From the first packet to the answered `Hello`, per address.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes that wait to be sent on one connection; callers are held back above it.
const QUEUE_BYTES_MAX: usize = 4 << 20;
/// How long a closed port may take to be reported as such.
const REFUSED_TIMEOUT: Duration = Duration::from_millis(20);
/// How long the word of a closed connection may take to leave; the other ends need not have it for us to end.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(5);

/// Why a node could not be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DialError {
    /// Where it should be.
    pub(super) address: String,
    /// Why not.
    pub(super) reason: String,
    /// Whether a certificate was refused: no other try at this node will do better.
    pub(super) rejected: bool,
    /// Whether the node refused our certificate, as every other will.
    pub(super) refused: bool,
    /// Whether nothing at all came back in time.
    pub(super) silent: bool,
    /// Who was asked and who answers, if that is another node.
    pub(super) other: Option<(String, String)>,
}

impl DialError {
    /// Nobody answers there.
    pub(super) fn unreachable(address: impl Into<String>, reason: impl Into<String>) -> DialError {
        let (address, reason) = (address.into(), reason.into());
        DialError { address, reason, rejected: false, refused: false, silent: false, other: None }
    }

    /// Nothing came back.
    pub(super) fn silent(address: &str) -> DialError {
        DialError { silent: true, ..DialError::unreachable(address, "no answer in time") }
    }

    /// Another node answers than the one that was asked.
    pub(super) fn other(address: &str, asked: String, found: String) -> DialError {
        let reason = format!("it is {found}, not {asked}");
        let other = Some((asked, found));
        DialError { other, ..DialError::unreachable(address, reason) }
    }

    /// Whether a request can go nowhere else. One node that is another by now, or whose certificate has expired, does
    /// not keep a request from the others.
    pub(super) fn is_final(&self, to: To) -> bool {
        match to {
            To::Node(_) => self.rejected || self.other.is_some(),
            To::Leader | To::Any => self.refused,
        }
    }

    /// What it means for a request to this node and no other.
    pub(super) fn into_error(self) -> Error {
        let DialError { address, reason, rejected, other, .. } = self;
        match other {
            Some((asked, found)) => Error::WrongNode { address, asked, found },
            None if rejected => Error::Rejected { address, reason },
            None => Error::Unreachable { tried: vec![(address, reason)] },
        }
    }

    fn from_quic(address: &str, error: &quic::Error) -> DialError {
        let (reason, rejected, refused) = match error {
            quic::Error::NothingListening { .. } => {
                ("nothing is listening".to_owned(), false, false)
            }
            quic::Error::TimedOut { .. } => return DialError::silent(address),
            quic::Error::Rejected {
                rejection: Rejection::WrongNode { expected, found }, ..
            } => {
                let (asked, found) = (format!("node {expected}"), format!("node {found}"));
                return DialError::other(address, asked, found);
            }
            quic::Error::Rejected { rejection, .. } => (rejection.to_string(), true, false),
            quic::Error::Disconnected { disconnect, .. } | quic::Error::Lost(disconnect) => {
                let is_final = is_final(disconnect);
                (disconnect.to_string(), is_final, is_final)
            }
            other => (other.to_string(), false, false),
        };
        DialError { rejected, refused, ..DialError::unreachable(address, reason) }
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.address, self.reason)
    }
}

fn is_final(disconnect: &Disconnect) -> bool {
    match disconnect {
        Disconnect::CertificateMissing
        | Disconnect::CertificateForeign
        | Disconnect::CertificateExpired
        | Disconnect::CertificateNotAllowed
        | Disconnect::CertificateBad { .. }
        | Disconnect::WrongPort => true,
        Disconnect::TimedOut
        | Disconnect::Restarted
        | Disconnect::Busy
        | Disconnect::Closed { .. }
        | Disconnect::ClosedHere
        | Disconnect::Protocol(_) => false,
    }
}

/// The socket and the certificates that all connections of a client share.
#[derive(Debug)]
pub(super) struct Transport {
    endpoint: quinn::Endpoint,
    keyring: Keyring,
    certs: PathBuf,
    name: String,
    /// How the files were when they were read last.
    seen: Mutex<Stamp>,
}

impl Transport {
    /// Loads the certificates and opens a socket; must be called inside a tokio runtime.
    pub(super) fn new(certs: &Path, name: &str) -> Result<Transport, Error> {
        let seen = Mutex::new(Stamp::of(certs, name));
        let credentials = Credentials::load(certs, name)
            .map_err(|error| Error::Credentials(error.to_string()))?;
        let endpoint = quic::client_endpoint().map_err(|error| Error::Local(error.to_string()))?;
        let (keyring, certs, name) = (Keyring::new(credentials), certs.to_owned(), name.to_owned());
        Ok(Transport { endpoint, keyring, certs, name, seen })
    }

    /// The certificates, read again if their files have changed: a client may live longer than they do. What cannot be
    /// used changes nothing.
    fn credentials(&self) -> Arc<Credentials> {
        let found = Stamp::of(&self.certs, &self.name);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen != found {
            // Files that are half written yet will have changed again when they are whole.
            *seen = found;
            match Credentials::load(&self.certs, &self.name) {
                Ok(credentials) => self.keyring.replace(credentials),
                Err(error) => tracing::warn!("the certificates are not reloaded: {error}"),
            }
        }
        self.keyring.current()
    }

    /// Connects to `address`, where node `name` must be, or any node of the cluster.
    pub(super) async fn dial(&self, address: &str, name: Option<&str>) -> Result<Ready, DialError> {
        match timeout(DIAL_TIMEOUT, self.dial_any_address(address, name)).await {
            Ok(result) => result,
            Err(_) => Err(DialError::silent(address)),
        }
    }

    async fn dial_any_address(
        &self,
        address: &str,
        name: Option<&str>,
    ) -> Result<Ready, DialError> {
        let resolved = tokio::net::lookup_host(address).await;
        let resolved =
            resolved.map_err(|error| DialError::unreachable(address, error.to_string()))?;
        let mut last = DialError::unreachable(address, "the name has no address");
        for addr in resolved {
            match self.dial_one(address, addr, name).await {
                Ok(ready) => return Ok(ready),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn dial_one(
        &self,
        address: &str,
        addr: SocketAddr,
        name: Option<&str>,
    ) -> Result<Ready, DialError> {
        let failed = |error: &quic::Error| DialError::from_quic(address, error);
        let (endpoint, credentials) = (&self.endpoint, self.credentials());
        let connection = match name {
            Some(name) => quic::dial(endpoint, addr, name, &credentials, PortKind::Client).await,
            None => quic::dial_any(endpoint, addr, &credentials).await,
        };
        let connection = connection.map_err(|error| failed(&error))?;
        let mut unfinished = Unfinished(Some(connection.clone()));
        let lost = |error| failed(&quic::Error::Lost(quic::explain(&error)));
        let (send, receive) = connection.open_bi().await.map_err(lost)?;
        let (writer, driver) = FrameWriter::new(QUEUE_BYTES_MAX);
        let hello = writer.push(|buffer| {
            encode_frame(buffer, FrameKind::Hello, 0, |body| {
                encode(&Hello { version: PROTOCOL_VERSION }, body);
            });
        });
        hello.expect("the queue is new, empty and open");
        let mut reader = reader(receive);
        tokio::spawn(drive(driver, send));
        let mut frames = Vec::new();
        reader.read_batch(&mut frames).await.map_err(|error| failed(&error))?;
        let reply = frames.first().map(hello_reply);
        let hello = match reply {
            Some(Ok(hello)) => hello,
            Some(Err(reason)) => return Err(DialError::unreachable(address, reason)),
            None => return Err(DialError::unreachable(address, "it closed the connection")),
        };
        let node_name = quic::identity_of(&connection).map_err(|error| failed(&error))?;
        let node_name = node_name.name().to_owned();
        unfinished.0 = None;
        let (address, keyring) = (address.into(), self.keyring.clone());
        Ok(Ready { address, node_name, hello, connection, writer, reader, keyring })
    }

    /// Waits a moment so that the word of the closed connections leaves.
    pub(super) async fn drain(&self) {
        let _ = timeout(DRAIN_TIMEOUT, self.endpoint.wait_idle()).await;
    }
}

/// Closes a connection whose `Hello` comes to nothing: its writer would keep it until the idle timeout.
struct Unfinished(Option<quinn::Connection>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(connection) = &self.0 {
            connection.close(quinn::VarInt::from_u32(0), b"");
        }
    }
}

/// A connection whose `Hello` was answered, not yet read from.
pub(super) struct Ready {
    address: String,
    node_name: String,
    hello: HelloReply,
    connection: quinn::Connection,
    writer: FrameWriter,
    reader: FrameReader,
    keyring: Keyring,
}

impl Ready {
    /// Begins to hand out replies.
    pub(super) fn start(self) -> Arc<Link> {
        let Ready { address, node_name, hello, connection, writer, reader, keyring } = self;
        let link = Link::new((address, node_name), hello, connection.clone(), writer);
        tokio::spawn({
            let link = Arc::clone(&link);
            async move {
                tokio::select! {
                    () = link.read(reader) => {}
                    outlived = quic::outlives(&connection, &keyring) => link.close(&outlived.to_string()),
                }
            }
        });
        link
    }
}

/// Reads a node's replies from a stream.
pub(super) fn reader(stream: quinn::RecvStream) -> FrameReader {
    FrameReader::new(stream, FRAME_BYTES_MAX)
}

/// The next frames, `None` at the end of the stream; the error is for a human.
pub(super) async fn read(reader: &mut FrameReader) -> Result<Option<Vec<Frame>>, String> {
    let mut frames = Vec::new();
    match reader.read_batch(&mut frames).await {
        Ok(true) => Ok(Some(frames)),
        Ok(false) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether the machine at `address` says that no process has that port. QUIC ignores such answers, since anyone can
/// forge them; here a forger gains a reconnection and no more.
pub(super) async fn is_refused(address: &str) -> bool {
    let probe = async {
        let addr = tokio::net::lookup_host(address).await.ok()?.next()?;
        let local: IpAddr = match addr.ip() {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((local, 0)).await.ok()?;
        socket.connect(addr).await.ok()?;
        // No QUIC packet is this short: an endpoint ignores it.
        socket.send(&[0]).await.ok()?;
        socket.recv(&mut [0; 1]).await.err()
    };
    match timeout(REFUSED_TIMEOUT, probe).await {
        Ok(Some(error)) => error.kind() == std::io::ErrorKind::ConnectionRefused,
        Ok(None) | Err(_) => false,
    }
}

/// Sends what is queued until the connection ends; the reader notices an end by force, and tells.
async fn drive(driver: WriterDriver, send: quinn::SendStream) {
    if let Err(error) = driver.drive(send).await {
        tracing::debug!(%error, "the request stream ended");
    }
}

fn hello_reply(frame: &Frame) -> Result<HelloReply, String> {
    if frame.kind != FrameKind::Reply {
        return Err("it answers no hello: is this a client port of Quicraft?".into());
    }
    match decode::<Reply<'_>>(&frame.body, "hello reply") {
        Ok(Reply::Hello(hello)) if hello.version == PROTOCOL_VERSION => Ok(hello),
        Ok(Reply::Hello(hello)) => Err(format!(
            "it speaks version {} of the protocol, this program speaks {PROTOCOL_VERSION}",
            hello.version
        )),
        Ok(Reply::Refused(refusal)) => Err(super::retry::refusal_text(&refusal)),
        Ok(_) | Err(_) => Err("it answers no hello: is this a client port of Quicraft?".into()),
    }
}
