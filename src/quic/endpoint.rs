//! Endpoints: opening ports, taking connections, dialling.
//!
//! A dial ends in a connection whose other side is the node that was meant, or in an [`Error`] that says why not. QUIC
//! cannot tell a closed port from a silent machine (it ignores ICMP, which anyone can forge), so each dial also sends
//! one datagram of a byte from a connected socket, whose "connection refused" the kernel reports; a forger gains no
//! more from it than a failed dial.

use std::future::pending;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, ConnectionError, Endpoint, Incoming, Runtime, TokioRuntime};
use rustls::pki_types::CertificateDer;
use tokio::time::timeout;

use super::sieve::Sieve;
use super::{Disconnect, Error, PortKind, explain, tls, transport};
use crate::pki::{Certificate, Credentials, Identity, Problem, node_dns_name};

/// Connections of one endpoint unless configured otherwise.
pub const CONNECTIONS_MAX_DEFAULT: usize = 1024;
/// From the first packet of a connection to its certificate.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Peers dial again and again, and a node that is up answers at once.
const PEER_DIAL_TIMEOUT: Duration = Duration::from_secs(1);
/// Clients dial once, maybe far away.
const CLIENT_DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens a port. Must be called in the tokio runtime that is to drive it. `secret` is this node's own and survives its
/// restarts: it lets others notice a restart at once. With it, packets that ask for a connection are dropped beyond a rate,
/// and `ignored` counts them.
///
/// # Errors
/// [`Error::AddressInUse`], [`Error::Bind`], or [`Error::Tls`] for credentials that TLS does not take.
pub fn server_endpoint(
    kind: PortKind,
    addr: SocketAddr,
    credentials: &Credentials,
    secret: Option<[u8; 32]>,
    ignored: &Arc<AtomicU64>,
) -> Result<Endpoint, Error> {
    let server = server_config(kind, credentials)?;
    open(addr, Some(server), secret, ignored)
}

/// Opens a socket to dial from, on any free port, for IPv6 and IPv4 as far as the machine has them. Must be called in
/// the tokio runtime that is to drive it.
///
/// # Errors
/// [`Error::Bind`] if there is no socket to be had.
pub fn client_endpoint() -> Result<Endpoint, Error> {
    // What only dials has no sieve.
    let open = |ip: IpAddr| open(SocketAddr::from((ip, 0)), None, None, &Arc::default());
    open(Ipv6Addr::UNSPECIFIED.into()).or_else(|_| open(Ipv4Addr::UNSPECIFIED.into()))
}

/// New credentials for the handshakes to come; connections that are there stay.
///
/// # Errors
/// [`Error::Tls`]; the old ones are then still in use.
pub fn reload(endpoint: &Endpoint, kind: PortKind, credentials: &Credentials) -> Result<(), Error> {
    endpoint.set_server_config(Some(server_config(kind, credentials)?));
    Ok(())
}

/// Takes a connection: the handshake, with a time limit. The other side is then who the identity says, and may be on this
/// port.
///
/// # Errors
/// [`Error::Disconnected`] if the handshake fails, [`Error::TimedOut`] if it takes too long.
pub async fn accept(incoming: Incoming) -> Result<(Connection, Identity), Error> {
    let addr = incoming.remote_address();
    let lost = |error: ConnectionError| disconnected(addr, &error);
    let connecting = incoming.accept().map_err(lost)?;
    let connection = timeout(HANDSHAKE_TIMEOUT, connecting)
        .await
        .map_err(|_| Error::TimedOut { addr })?
        .map_err(lost)?;
    let identity = identity_of(&connection)?;
    Ok((connection, identity))
}

/// Dials a node by name: whoever answers must be node `node_name` of our cluster.
///
/// # Errors
/// [`Error::NothingListening`], [`Error::TimedOut`], [`Error::Rejected`] (we refuse the other side),
/// [`Error::Disconnected`] (it refuses us, though usually that comes only with the first read).
pub async fn dial(
    endpoint: &Endpoint,
    addr: SocketAddr,
    node_name: &str,
    credentials: &Credentials,
    kind: PortKind,
) -> Result<Connection, Error> {
    let server_name = node_dns_name(&credentials.identity().cluster, node_name);
    dial_as(endpoint, addr, &server_name, Some(node_name), credentials, kind).await
}

/// Dials the client port at an address whose node's name is not known: whoever answers must be some node of our
/// cluster.
///
/// # Errors
/// As [`dial`].
pub async fn dial_any(
    endpoint: &Endpoint,
    addr: SocketAddr,
    credentials: &Credentials,
) -> Result<Connection, Error> {
    // An address as the name: TLS then sends none.
    let server_name = addr.ip().to_string();
    dial_as(endpoint, addr, &server_name, None, credentials, PortKind::Client).await
}

/// Who is at the other end.
///
/// # Errors
/// [`Error::Identity`] for a connection that was not made by this module.
pub fn identity_of(connection: &Connection) -> Result<Identity, Error> {
    let addr = connection.remote_address();
    let bad = |problem| Error::Identity { addr, problem };
    Ok(certificate_of(connection)?.identity().map_err(bad)?.clone())
}

/// The certificate of the other end: to close connections whose certificate expires.
///
/// # Errors
/// [`Error::Identity`] for a connection that was not made by this module.
pub fn certificate_of(connection: &Connection) -> Result<Certificate, Error> {
    let addr = connection.remote_address();
    let bad = |problem| Error::Identity { addr, problem };
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    let der = chain.as_ref().and_then(|chain| chain.first());
    Certificate::parse(der.ok_or_else(|| bad(Problem::Encoding))?).map_err(bad)
}

fn server_config(kind: PortKind, credentials: &Credentials) -> Result<quinn::ServerConfig, Error> {
    let crypto = QuicServerConfig::try_from(tls::server(kind, credentials)?)
        .map_err(|error| Error::Tls(error.to_string()))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport::transport(kind, false));
    transport::limit_handshakes(&mut config);
    Ok(config)
}

fn open(
    addr: SocketAddr,
    server: Option<quinn::ServerConfig>,
    secret: Option<[u8; 32]>,
    ignored: &Arc<AtomicU64>,
) -> Result<Endpoint, Error> {
    let socket = transport::bind(addr, server.is_some())?;
    let config = transport::endpoint(secret.as_ref())?;
    let runtime = Arc::new(TokioRuntime);
    let failed = |source| Error::Bind { addr, source };
    let mut socket = runtime.wrap_udp_socket(socket).map_err(failed)?;
    if let Some(secret) = &secret {
        socket = Arc::new(Sieve::new(socket, transport::id_key(secret), Arc::clone(ignored)));
    }
    Endpoint::new_with_abstract_socket(config, server, socket, runtime).map_err(failed)
}

async fn dial_as(
    endpoint: &Endpoint,
    addr: SocketAddr,
    server_name: &str,
    node_name: Option<&str>,
    credentials: &Credentials,
    kind: PortKind,
) -> Result<Connection, Error> {
    let judge = Arc::new(tls::Judge::new(credentials, node_name));
    let crypto = QuicClientConfig::try_from(tls::client(kind, credentials, judge.clone())?)
        .map_err(|error| Error::Tls(error.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport::transport(kind, true));
    let connecting = endpoint
        .connect_with(config, addr, server_name)
        .map_err(|error| Error::Dial { addr, reason: error.to_string() })?;
    let limit = match kind {
        PortKind::Peer => PEER_DIAL_TIMEOUT,
        PortKind::Client => CLIENT_DIAL_TIMEOUT,
    };
    let outcome = tokio::select! {
        outcome = timeout(limit, connecting) => outcome,
        () = refused_by_kernel(addr) => return Err(Error::NothingListening { addr }),
    };
    match outcome {
        Ok(Ok(connection)) => Ok(connection),
        Err(_) | Ok(Err(ConnectionError::TimedOut)) => Err(Error::TimedOut { addr }),
        Ok(Err(error)) => Err(match judge.rejection() {
            Some(rejection) => Error::Rejected { addr, rejection },
            None => disconnected(addr, &error),
        }),
    }
}

/// Ends when the machine at `addr` says that no process has that port; otherwise never.
async fn refused_by_kernel(addr: SocketAddr) {
    let unspecified = match addr.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let connect = || -> io::Result<tokio::net::UdpSocket> {
        let socket = UdpSocket::bind((unspecified, 0))?;
        socket.set_nonblocking(true)?;
        socket.connect(addr)?;
        tokio::net::UdpSocket::from_std(socket)
    };
    if let Ok(socket) = connect() {
        // No QUIC packet is this short: an endpoint ignores it.
        let refused = match socket.send(&[0]).await {
            Ok(_) => socket.recv(&mut [0; 1]).await.err(),
            Err(error) => Some(error),
        };
        if refused.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            return;
        }
    }
    pending().await
}

fn disconnected(addr: SocketAddr, error: &ConnectionError) -> Error {
    let disconnect: Disconnect = explain(error);
    Error::Disconnected { addr, disconnect }
}
