//! A node's socket, which drops packets that ask for a new connection beyond a rate, before QUIC looks at them.
//!
//! QUIC derives keys and decrypts for each such packet before anybody can say no: a flood of them takes a core, and all
//! connections of a port share the task that does so. Here one costs a look at its first bytes (RFC 9000, 17.2).
//!
//! **Always:** packets of connections that exist pass, also of their handshakes: they carry an id that this node gave out.
//! Whoever finds the rate used up sends again, as QUIC does after any loss.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use quinn_proto::{ConnectionId, ConnectionIdGenerator, HashedConnectionIdGenerator};

/// See the module.
pub(super) struct Sieve {
    socket: Arc<dyn AsyncUdpSocket>,
    ids: HashedConnectionIdGenerator,
    firsts: Mutex<Firsts>,
    /// Datagrams that were dropped.
    dropped: Arc<AtomicU64>,
}

/// First packets that may still pass.
struct Firsts {
    left: usize,
    since: Instant,
}

impl Sieve {
    /// Before a socket; `id_key` is that of the generator of the endpoint's connection ids; `dropped` counts.
    pub(super) fn new(
        socket: Arc<dyn AsyncUdpSocket>,
        id_key: u64,
        dropped: Arc<AtomicU64>,
    ) -> Sieve {
        let ids = HashedConnectionIdGenerator::from_key(id_key);
        let firsts = Mutex::new(Firsts { left: FIRSTS_MAX, since: Instant::now() });
        Sieve { socket, ids, firsts, dropped }
    }

    /// Moves those datagrams together that pass, of some that came from one sender at once, each `stride` bytes long but the
    /// last; gives the bytes of all that pass.
    fn sift(&self, datagrams: &mut [u8], stride: usize) -> usize {
        let mut kept = 0;
        for begin in (0..datagrams.len()).step_by(stride.max(1)) {
            let end = (begin + stride).min(datagrams.len());
            if self.is_first(&datagrams[begin..end]) && !self.pass(Instant::now()) {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            if kept < begin {
                datagrams.copy_within(begin..end, kept);
            }
            kept += end - begin;
        }
        kept
    }

    fn pass(&self, now: Instant) -> bool {
        self.firsts.lock().unwrap_or_else(PoisonError::into_inner).pass(now)
    }

    /// Whether these bytes ask for a connection that does not exist yet.
    fn is_first(&self, datagram: &[u8]) -> bool {
        // The form, the fixed bit and the type; the version; the length of the id, which is one of ours if it is as long.
        let [first, _, _, _, _, length, id @ ..] = datagram else { return false };
        let is_initial = first & 0xf0 == 0xc0;
        let own = || match id.get(..ID_BYTES) {
            Some(id) if usize::from(*length) == ID_BYTES => {
                self.ids.validate(&ConnectionId::new(id)).is_ok()
            }
            _ => false,
        };
        is_initial && !own()
    }
}

impl Firsts {
    /// Whether one more passes.
    fn pass(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= INTERVAL {
            (self.left, self.since) = (FIRSTS_MAX, now);
        }
        let passes = self.left > 0;
        self.left = self.left.saturating_sub(1);
        passes
    }
}

impl AsyncUdpSocket for Sieve {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.socket.poll_recv(context, buffers, metas))?;
        for (meta, buffer) in metas.iter_mut().zip(buffers).take(count) {
            meta.len = self.sift(&mut buffer[..meta.len], meta.stride);
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

impl fmt::Debug for Sieve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sieve").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// Bytes of an id of the generator.
const ID_BYTES: usize = 8;
/// First packets within an interval: eight thousand a second, which take three hundredths of a core.
const FIRSTS_MAX: usize = 2048;
const INTERVAL: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    fn sieve() -> Sieve {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = quinn::Runtime::wrap_udp_socket(&quinn::TokioRuntime, socket).unwrap();
        Sieve::new(socket, 7, Arc::default())
    }

    fn packet(first: u8, id: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first, 0, 0, 0, 1, id.len() as u8];
        bytes.extend_from_slice(id);
        bytes.resize(1200, id.len() as u8);
        bytes
    }

    #[tokio::test]
    async fn what_did_not_pass_takes_nothing_else_with_it() {
        let (sieve, mut generator) = (sieve(), HashedConnectionIdGenerator::from_key(7));
        let own = packet(0xc0, &generator.generate_cid());
        let (first, data) = (packet(0xc0, &[1; 20]), packet(0x40, &[2; 8]));
        let mut together = [&first[..], &data, &first, &own, &data[..700]].concat();
        let all = together.clone();
        assert_eq!(sieve.sift(&mut together, 1200), all.len(), "there is room");
        assert_eq!(together, all);
        // The interval does not end within the test.
        let since = Instant::now() + Duration::from_secs(3600);
        *sieve.firsts.lock().unwrap() = Firsts { left: 1, since };
        let left = sieve.sift(&mut together, 1200);
        assert_eq!(together[..left], [&first[..], &data, &own, &data[..700]].concat());
        assert_eq!(sieve.sift(&mut first.clone(), 1200), 0);
        assert_eq!(sieve.dropped.load(Ordering::Relaxed), 2);
        assert_eq!(sieve.sift(&mut [], 0), 0);
    }

    #[tokio::test]
    async fn only_what_begins_a_connection_is_first() {
        let (sieve, mut generator) = (sieve(), HashedConnectionIdGenerator::from_key(7));
        let own = generator.generate_cid();
        assert!(sieve.is_first(&packet(0xc3, &[1; 20])), "an id that the other side drew");
        assert!(sieve.is_first(&packet(0xc0, &[1; 8])), "as long as ours, but not ours");
        assert!(sieve.is_first(&packet(0xc0, &[])) && sieve.is_first(&[0xc0, 0, 0, 0, 1, 8, 1]));
        assert!(!sieve.is_first(&packet(0xc0, &own)), "of a handshake that is under way");
        assert!(!sieve.is_first(&packet(0xe0, &[1; 8])), "a later step of a handshake");
        assert!(!sieve.is_first(&packet(0x40, &[1; 8])) && !sieve.is_first(&[]));
    }

    #[test]
    fn first_packets_pass_up_to_a_rate() {
        let begun = Instant::now();
        let mut firsts = Firsts { left: FIRSTS_MAX, since: begun };
        let passed = (0..3 * FIRSTS_MAX).filter(|_| firsts.pass(begun)).count();
        assert_eq!(passed, FIRSTS_MAX);
        assert!(firsts.pass(begun + INTERVAL), "they pass again");
    }
}
