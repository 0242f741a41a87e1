//! Numbers of the QUIC transport, per port.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{Connection, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use ring::hmac::{HMAC_SHA256, Key, sign};
use socket2::{Domain, Protocol, Socket, Type};

use super::congestion::{Bounded, CEILING_BYTES_MAX};
use super::{Error, PortKind};

/// Every path carries this (RFC 9000, 14.1).
const MTU_BYTES_MIN: u16 = 1200;
/// Discovery ends here. quinn asks the kernel for ten segments at once, and ten times more than 6550 do not fit into
/// one call: all of them would be lost.
const MTU_BYTES_MAX: u16 = 6500;
/// What the kernel may hold for the socket of an endpoint; cubic loses packets at the stock 212 kB.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// One stream of a client: a scan that is read slowly costs a node no more.
const CLIENT_STREAM_WINDOW_BYTES: u32 = 256 << 10;
/// One stream between nodes: what a long path holds. What is on its way at once, `congestion` bounds by the distance.
const PEER_STREAM_WINDOW_BYTES: u32 = CEILING_BYTES_MAX as u32;
/// What a connection to the peer port may send before its other end has said who it is, and proved to be a member.
const STRANGER_WINDOW_BYTES: u32 = 1 << 20;
/// A peer connection never loses memory to more than this in each direction: entries and a snapshot each fill their
/// stream's window, and there must be room for a heartbeat then.
const PEER_WINDOW_BYTES: u32 = 2 * PEER_STREAM_WINDOW_BYTES + (4 << 20);
/// What a client gives the connection to a node.
const CLIENT_WINDOW_BYTES: u32 = 2 << 20;
/// What a node gives the connection of a client, of which there are many, before it knows who that is; the server widens
/// it as far as there is memory for it. A few of the largest datagrams.
pub const CLIENT_WINDOW_BYTES_MIN: u32 = 16 << 10;
/// quinn keeps a slot for each stream that is permitted, so few are.
const CLIENT_STREAMS_MAX: u32 = 32;
/// Snapshots and forwarded writes.
const PEER_BIDI_STREAMS_MAX: u32 = 32;
const PEER_UNI_STREAMS_MAX: u32 = 16;

const _: () = assert!(MTU_BYTES_MAX <= 6550);

/// The transport of one connection to or from a port of this kind.
pub(super) fn transport(kind: PortKind, is_dialler: bool) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(MTU_BYTES_MAX);
    config
        .initial_mtu(MTU_BYTES_MIN)
        .mtu_discovery_config(Some(discovery))
        .datagram_receive_buffer_size(None);
    match kind {
        PortKind::Peer => {
            let window = if is_dialler { PEER_WINDOW_BYTES } else { STRANGER_WINDOW_BYTES };
            config
                .congestion_controller_factory(Arc::new(Bounded::new()))
                .stream_receive_window(VarInt::from_u32(PEER_STREAM_WINDOW_BYTES))
                .receive_window(VarInt::from_u32(window))
                .send_window(PEER_WINDOW_BYTES.into())
                .max_concurrent_bidi_streams(VarInt::from_u32(PEER_BIDI_STREAMS_MAX))
                .max_concurrent_uni_streams(VarInt::from_u32(PEER_UNI_STREAMS_MAX))
                .initial_rtt(Duration::from_millis(10))
                .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(3000))))
                .keep_alive_interval(Some(Duration::from_millis(500)));
        }
        PortKind::Client => {
            // A server opens no streams towards a client.
            let streams_max = if is_dialler { 0 } else { CLIENT_STREAMS_MAX };
            let window = if is_dialler { CLIENT_WINDOW_BYTES } else { CLIENT_WINDOW_BYTES_MIN };
            config
                .congestion_controller_factory(Arc::new(CubicConfig::default()))
                .stream_receive_window(VarInt::from_u32(CLIENT_STREAM_WINDOW_BYTES))
                .receive_window(VarInt::from_u32(window))
                .send_window(window.into())
                .max_concurrent_bidi_streams(VarInt::from_u32(streams_max))
                .max_concurrent_uni_streams(VarInt::from_u32(0))
                .initial_rtt(Duration::from_millis(50))
                .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(15_000))))
                .keep_alive_interval(is_dialler.then_some(Duration::from_secs(4)));
        }
    }
    Arc::new(config)
}

/// The other end of a connection to the peer port is a member: it may send as much as one.
pub fn widen(connection: &Connection) {
    connection.set_receive_window(VarInt::from_u32(PEER_WINDOW_BYTES));
}

/// Handshake limits of a port.
pub(super) fn limit_handshakes(config: &mut quinn::ServerConfig) {
    config
        .max_incoming(256)
        .incoming_buffer_size(64 << 10)
        .incoming_buffer_size_total(4 << 20)
        .migration(false);
}

/// Settings of an endpoint. With a `secret` that survives a restart, what the process before it left behind is told
/// "reset" at once; without, it waits for its idle timeout.
pub(super) fn endpoint(secret: Option<&[u8; 32]>) -> Result<EndpointConfig, Error> {
    let mut config = EndpointConfig::default();
    config
        .max_udp_payload_size(MTU_BYTES_MAX)
        .map_err(|error| Error::Tls(format!("datagram size: {error}")))?;
    if let Some(secret) = secret {
        let reset = sign(&Key::new(HMAC_SHA256, secret), b"quicraft stateless reset");
        config.reset_key(Arc::new(Key::new(HMAC_SHA256, reset.as_ref())));
        let id_key = id_key(secret);
        config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(id_key)));
    }
    Ok(config)
}

/// The key by which an endpoint with this secret knows connection ids that it gave out.
pub(super) fn id_key(secret: &[u8; 32]) -> u64 {
    let mut key = [0; 8];
    let signed = sign(&Key::new(HMAC_SHA256, secret), b"quicraft connection id");
    key.copy_from_slice(&signed.as_ref()[..8]);
    u64::from_le_bytes(key)
}

/// A UDP socket with big buffers; one on `[::]` takes IPv4 too.
pub(super) fn bind(addr: SocketAddr, is_server: bool) -> Result<UdpSocket, Error> {
    let bind = || -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        // The kernel cuts this to net.core.rmem_max without saying so: see the check below.
        socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
        socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
        let granted = socket.recv_buffer_size()?;
        if is_server && granted < SOCKET_BUFFER_BYTES {
            tracing::warn!(
                granted,
                wanted = SOCKET_BUFFER_BYTES,
                "small UDP buffer: raise net.core.rmem_max and net.core.wmem_max"
            );
        }
        socket.bind(&addr.into())?;
        Ok(socket.into())
    };
    bind().map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => Error::AddressInUse { addr },
        _ => Error::Bind { addr, source },
    })
}
