//! Endpoints: sockets, transport settings (measured, see the constants), dialling and accepting.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::{
    Connection, ConnectionError, Endpoint, EndpointConfig, IdleTimeout, Incoming,
    MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt,
};
use quinn_proto::HashedConnectionIdGenerator;
use rustls_pki_types::CertificateDer;
use tokio::time::timeout;

use super::{Error, tls};
use crate::pki::{Credentials, Identity, Who, dns_name};
use crate::proto::{CLIENT_ALPN, PEER_ALPN};

/// Which of a node's two ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// Between nodes.
    Peer,
    /// For clients.
    Client,
}

impl PortKind {
    fn alpn(self) -> &'static [u8] {
        match self {
            PortKind::Peer => PEER_ALPN,
            PortKind::Client => CLIENT_ALPN,
        }
    }

    fn transport(self) -> Arc<TransportConfig> {
        let mut transport = TransportConfig::default();
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(MTU_MAX);
        let idle_ms = match self {
            PortKind::Peer => PEER_IDLE_MS,
            PortKind::Client => CLIENT_IDLE_MS,
        };
        transport
            .initial_mtu(1200)
            .mtu_discovery_config(Some(discovery))
            .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
            .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle_ms))))
            .keep_alive_interval(Some(Duration::from_millis(u64::from(idle_ms) / 4)))
            .datagram_receive_buffer_size(None);
        match self {
            PortKind::Peer => transport
                .receive_window(VarInt::from_u32(PEER_WINDOW_BYTES))
                .send_window(u64::from(PEER_WINDOW_BYTES))
                .max_concurrent_uni_streams(VarInt::from_u32(16))
                .max_concurrent_bidi_streams(VarInt::from_u32(4))
                .initial_rtt(Duration::from_millis(10)),
            PortKind::Client => transport
                .receive_window(VarInt::from_u32(CLIENT_WINDOW_BYTES))
                .send_window(u64::from(CLIENT_WINDOW_BYTES))
                .max_concurrent_uni_streams(VarInt::from_u32(0))
                .max_concurrent_bidi_streams(VarInt::from_u32(32))
                .initial_rtt(Duration::from_millis(50)),
        };
        Arc::new(transport)
    }
}

/// Opens a port of a node; the same endpoint can dial. `secret` must be the same at every start: with
/// it, others notice a restart at once instead of by their idle timeout.
///
/// # Errors
/// [`Error::Bind`] names the address, for example one that is in use.
pub fn server_endpoint(
    kind: PortKind,
    address: SocketAddr,
    credentials: &Credentials,
    secret: Option<[u8; 32]>,
) -> Result<Endpoint, Error> {
    let crypto = tls::server_config(credentials, kind.alpn())?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(kind.transport())
        .migration(kind == PortKind::Client)
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES_TOTAL);
    endpoint(address, Some(config), secret)
}

/// Opens a socket that only dials.
///
/// # Errors
/// [`Error::Bind`] if the system gives none.
pub fn client_endpoint() -> Result<Endpoint, Error> {
    endpoint(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), None, None)
}

fn endpoint(
    address: SocketAddr,
    server: Option<ServerConfig>,
    secret: Option<[u8; 32]>,
) -> Result<Endpoint, Error> {
    let bind = |source| Error::Bind { address, source };
    let socket = UdpSocket::bind(address).map_err(bind)?;
    let sockref = socket2::SockRef::from(&socket);
    // Smaller buffers only cost speed; the system caps what it does not allow.
    let _ = sockref.set_recv_buffer_size(SOCKET_BYTES);
    let _ = sockref.set_send_buffer_size(SOCKET_BYTES);
    let mut config = match secret {
        Some(secret) => {
            let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &secret);
            EndpointConfig::new(Arc::new(key))
        }
        None => EndpointConfig::default(),
    };
    if let Some(secret) = secret {
        let seed = u64::from_le_bytes(*secret.first_chunk().expect("32 bytes hold 8"));
        config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(seed)));
    }
    config.max_udp_payload_size(MTU_MAX).map_err(|error| Error::Tls(error.to_string()))?;
    Endpoint::new(config, server, socket, Arc::new(quinn::TokioRuntime)).map_err(bind)
}

/// Dials a node and makes sure that it is one of our cluster, and the named one if `node` is given.
///
/// # Errors
/// See [`Error`]: nobody there, refused, or somebody else. TLS 1.3 judges our own certificate only
/// after this returns: a refusal of it shows at the first answer.
pub async fn dial(
    endpoint: &Endpoint,
    address: SocketAddr,
    node: Option<&str>,
    credentials: &Credentials,
    kind: PortKind,
) -> Result<Connection, Error> {
    let crypto = tls::client_config(credentials, kind.alpn(), node)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(kind.transport());
    let name = dns_name(node.unwrap_or("any"), &credentials.identity().cluster);
    let connecting = endpoint
        .connect_with(config, address, &name)
        .map_err(|error| Error::Tls(error.to_string()))?;
    match timeout(DIAL_PATIENCE, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(ConnectionError::TimedOut)) | Err(_) => Err(Error::NotListening(address)),
        Ok(Err(error)) => Err(explain(address, error)),
    }
}

/// Finishes a handshake and says who is there: a node on the peer port, a node or client on the client
/// port, always of our cluster.
///
/// # Errors
/// [`Error::Refused`] and the handshake's own failures; the connection is closed then.
pub async fn accept(
    incoming: Incoming,
    kind: PortKind,
    cluster: &str,
) -> Result<(Connection, Identity), Error> {
    let address = incoming.remote_address();
    let connecting = incoming.accept().map_err(|error| explain(address, error))?;
    let connection = timeout(HANDSHAKE_PATIENCE, connecting)
        .await
        .map_err(|_| Error::TimedOut)?
        .map_err(|error| explain(address, error))?;
    let identity = match identity_of(&connection) {
        Ok(identity) => identity,
        Err(reason) => return Err(refuse(&connection, address, reason)),
    };
    if identity.cluster != cluster {
        let reason = format!("{identity} is not of this cluster");
        return Err(refuse(&connection, address, reason));
    }
    if kind == PortKind::Peer && !matches!(identity.who, Who::Node { .. }) {
        let reason = format!("{identity} is no node");
        return Err(refuse(&connection, address, reason));
    }
    Ok((connection, identity))
}

fn refuse(connection: &Connection, address: SocketAddr, reason: String) -> Error {
    connection.close(REFUSED.into(), reason.as_bytes());
    Error::Refused { address, reason }
}

/// The identity in the certificate that the other end has shown.
fn identity_of(connection: &Connection) -> Result<Identity, String> {
    let shown = connection.peer_identity().ok_or("no certificate was shown")?;
    let chain = shown
        .downcast::<Vec<CertificateDer<'static>>>()
        .map_err(|_| "the certificate cannot be read")?;
    Identity::of_certificate(chain.first().ok_or("no certificate was shown")?)
}

/// A connection's end in words that help.
pub fn explain(address: SocketAddr, error: ConnectionError) -> Error {
    let reason = match &error {
        ConnectionError::TransportError(transport) => match tls_alert(transport.code) {
            Some(alert) => alert.to_owned(),
            None => transport.reason.clone(),
        },
        ConnectionError::ConnectionClosed(close) => match tls_alert(close.error_code) {
            Some(alert) => alert.to_owned(),
            None => error.to_string(),
        },
        ConnectionError::ApplicationClosed(close) if close.error_code == REFUSED.into() => {
            String::from_utf8_lossy(&close.reason).escape_debug().take(200).collect()
        }
        ConnectionError::VersionMismatch
        | ConnectionError::ApplicationClosed(_)
        | ConnectionError::Reset
        | ConnectionError::TimedOut
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => return Error::Lost(error),
    };
    Error::Refused { address, reason }
}

/// TLS alerts (RFC 8446 6.2) that QUIC carries as 0x100 + alert (RFC 9001 4.8).
fn tls_alert(code: quinn::TransportErrorCode) -> Option<&'static str> {
    let code = u64::from(code);
    Some(match code.checked_sub(0x100)? {
        42 | 43 | 46 => "the certificate is not accepted",
        44 => "the certificate is revoked",
        45 => "the certificate has expired",
        48 => "the certificate is from another CA: is it for this cluster?",
        51 => "the certificate's signature is wrong",
        116 => "a certificate is required",
        120 => "the other end speaks another protocol: is it the right port?",
        _ => return None,
    })
}

/// Above 6550 quinn asks the kernel for bursts longer than it takes, and every one is lost.
const MTU_MAX: u16 = 6500;
/// Small on purpose: what is in flight on a stream delays everything behind it, heartbeats included.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const PEER_WINDOW_BYTES: u32 = 4 << 20;
const CLIENT_WINDOW_BYTES: u32 = 2 << 20;
const PEER_IDLE_MS: u32 = 3000;
const CLIENT_IDLE_MS: u32 = 15_000;
const SOCKET_BYTES: usize = 4 << 20;
const INCOMING_MAX: usize = 256;
const INCOMING_BYTES: u64 = 64 << 10;
const INCOMING_BYTES_TOTAL: u64 = 4 << 20;
const DIAL_PATIENCE: Duration = Duration::from_secs(1);
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(5);
/// The application's code for "your identity is not welcome here".
const REFUSED: u32 = 0x11;
