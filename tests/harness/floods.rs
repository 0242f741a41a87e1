//! Clients that take and do not give: they read no answers, finish no request, no handshake. Each has a certificate that
//! may only read, or none at all.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quicraft::pki::{Authority, Credentials, Issue, Role};
use quicraft::proto::client::{Consistency, Get, Scan, ScanMode};
use quicraft::proto::encode;
use quicraft::proto::frame::{FrameKind, encode_frame, encode_header};
use quicraft::quic::{PortKind, client_endpoint, dial};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::task::JoinHandle;

use super::Cluster;

/// Somebody with a certificate that may only read.
pub struct Hostile {
    credentials: Credentials,
    endpoint: Endpoint,
    address: SocketAddr,
    name: String,
}

/// A stream that somebody keeps open.
pub type Stream = (SendStream, RecvStream);

impl Hostile {
    /// A new principal, who attacks node `i`.
    pub fn new(cluster: &Cluster, principal: &str, i: usize) -> Hostile {
        let certs = cluster.path("certs");
        let authority = Authority::load(&certs).unwrap();
        authority.issue_client(principal, Role::ReadOnly, Issue::default()).unwrap();
        Hostile {
            credentials: Credentials::load(&certs, principal).unwrap(),
            endpoint: client_endpoint().unwrap(),
            address: cluster.endpoint(i).parse().unwrap(),
            name: format!("n{}", i + 1),
        }
    }

    /// One more connection.
    pub async fn connect(&self) -> Result<Connection, quicraft::quic::Error> {
        let (endpoint, credentials) = (&self.endpoint, &self.credentials);
        dial(endpoint, self.address, &self.name, credentials, PortKind::Client).await
    }

    /// Asks on so many streams of so many connections, and reads nothing. The first stream of a connection has requests
    /// of many: long values are for the others. A node that reads no more takes no more, so it returns at once.
    pub async fn ask(&self, connections: usize, streams: usize, questions: &[u8]) -> Flood {
        let (mut flood, questions) = (Flood::default(), Arc::<[u8]>::from(questions));
        for _ in 0..connections {
            let connection = self.connect().await.unwrap();
            for _ in 0..streams {
                let (mut send, receive) = connection.open_bi().await.unwrap();
                let questions = Arc::clone(&questions);
                flood.streams.push(tokio::spawn(async move {
                    // Fails when the flood is over.
                    let _ = send.write_all(&questions).await;
                    (send, receive)
                }));
            }
            flood.connections.push(connection);
        }
        flood
    }
}

/// What a flood keeps open; it ends when this is dropped.
#[derive(Default)]
pub struct Flood {
    pub connections: Vec<Connection>,
    pub streams: Vec<JoinHandle<Stream>>,
}

impl Drop for Flood {
    fn drop(&mut self) {
        for connection in &self.connections {
            connection.close(0_u32.into(), b"");
        }
    }
}

/// The same question so many times.
pub fn gets(key: &[u8], times: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for id in 0..times {
        encode_frame(&mut bytes, FrameKind::Get, id, |body| {
            encode(&Get { key, consistency: Consistency::Linearizable, revision: None }, body);
        });
    }
    bytes
}

/// A scan of everything.
pub fn scan() -> Vec<u8> {
    let scan = Scan {
        from: b"",
        to: None,
        limit: u64::MAX,
        reverse: false,
        mode: ScanMode::Rows,
        consistency: Consistency::Linearizable,
        revision: None,
    };
    let mut bytes = Vec::new();
    encode_frame(&mut bytes, FrameKind::Scan, 1, |body| encode(&scan, body));
    bytes
}

/// A frame of so many bytes without its last one.
pub fn half_frame(bytes: usize) -> Vec<u8> {
    let mut frame = encode_header(FrameKind::Get, 1, bytes).to_vec();
    frame.resize(frame.len() + bytes - 1, 1);
    frame
}

/// First packets of so many handshakes, each of another one.
pub async fn first_packets(hostile: &Hostile, count: usize) -> Vec<Vec<u8>> {
    let trap = UdpSocket::bind("127.0.0.1:0").unwrap();
    trap.set_nonblocking(true).unwrap();
    let trap = tokio::net::UdpSocket::from_std(trap).unwrap();
    let address = trap.local_addr().unwrap();
    let (mut packets, mut last) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let mut packet = vec![0; 2000];
        let dialled =
            dial(&hostile.endpoint, address, &hostile.name, &hostile.credentials, PortKind::Client);
        let received = async {
            loop {
                let received = trap.recv(&mut packet).await.unwrap();
                // Dialling also sends a byte that tells whether anybody listens, and the dial before says goodbye.
                if received >= 1200 && packet[CONNECTION_ID] != last[..] {
                    return received;
                }
            }
        };
        let received = tokio::select! {
            _ = dialled => panic!("nobody answers"),
            received = received => received,
        };
        packet.truncate(received);
        last = packet[CONNECTION_ID].to_vec();
        packets.push(packet);
    }
    packets
}

/// Sends these datagrams to a port, round and round, as fast as one thread can, until it is dropped.
pub struct Datagrams {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Datagrams {
    pub fn start(port: &str, datagrams: Vec<Vec<u8>>) -> Datagrams {
        let (stop, port) = (Arc::new(AtomicBool::new(false)), port.to_owned());
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                socket.connect(port).unwrap();
                let mut sent = 0;
                for datagram in datagrams.iter().cycle() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    // Fails when the node's socket is full, which is as good as a lost datagram.
                    sent += u64::from(socket.send(datagram).is_ok());
                }
                sent
            }
        });
        Datagrams { stop, thread: Some(thread) }
    }

    /// Ends it, and says how many left.
    pub fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Datagrams of noise, of which some look like first packets and some like those of a connection.
pub fn garbage(count: u64) -> Vec<Vec<u8>> {
    let mut state = 1_u64;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..count)
        .map(|number| {
            let mut datagram: Vec<u8> = (0..1200).map(|_| byte()).collect();
            match number % 3 {
                // A long header of version 1, a connection id of 8 bytes.
                0 => datagram[..6].copy_from_slice(&[0xC0, 0, 0, 0, 1, 8]),
                // A short header.
                1 => datagram[0] = 0x40 | datagram[0] & 0x3F,
                _ => {}
            }
            datagram
        })
        .collect()
}

/// Where a first packet has the connection id that the client drew for the node (RFC 9000, 17.2.2), as far as it has 8
/// bytes.
const CONNECTION_ID: std::ops::Range<usize> = 6..14;

/// Memory of a node that is its own, in bytes.
pub fn memory(cluster: &Cluster, i: usize) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", cluster.pid(i))).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}
