//! A relay of UDP packets between the nodes of a cluster: the kernel's network, with distance and cuts.
//!
//! Each node is known to the others by an address of the relay. A node sends from its own peer port, by which the relay
//! knows who speaks; what comes back goes through a socket that stands for that pair.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::net::sockopt;

/// One way through the relay; ends with its owner.
pub struct Relay {
    state: Arc<State>,
    /// Where each node is reached.
    pub fronts: Vec<u16>,
    threads: Vec<JoinHandle<()>>,
}

struct State {
    /// Where each node listens.
    ports: Vec<u16>,
    /// `cuts[from][to]`
    cuts: Vec<Vec<AtomicBool>>,
    delay: Duration,
    ends: AtomicBool,
}

impl Relay {
    /// Between the nodes with these peer ports; each packet takes `delay` each way.
    pub fn start(ports: &[u16], delay: Duration) -> Relay {
        let n = ports.len();
        let cuts = (0..n).map(|_| (0..n).map(|_| AtomicBool::new(false)).collect()).collect();
        let ends = AtomicBool::new(false);
        let state = Arc::new(State { ports: ports.to_vec(), cuts, delay, ends });
        let (mut fronts, mut threads) = (Vec::new(), Vec::new());
        for to in 0..n {
            let front = Arc::new(socket());
            fronts.push(front.local_addr().unwrap().port());
            let backs: Vec<_> = (0..n).map(|_| Arc::new(socket())).collect();
            let mut there = Vec::new();
            for (from, back) in backs.iter().enumerate() {
                let (forth, thread) = line(&state, back, ports[to]);
                there.push(forth);
                threads.extend(thread);
                let (home, thread) = line(&state, &front, ports[from]);
                threads.extend(thread);
                let (state, back) = (Arc::clone(&state), Arc::clone(back));
                threads.push(thread::spawn(move || {
                    state.carry(&back, |_| Some((to, from, &home)));
                }));
            }
            let state = Arc::clone(&state);
            threads.push(thread::spawn(move || {
                state.carry(&front, |port| {
                    let from = state.ports.iter().position(|&known| known == port)?;
                    Some((from, to, &there[from]))
                });
            }));
        }
        Relay { state, fronts, threads }
    }

    /// Whether packets between `node` and all others are dropped.
    pub fn isolate(&self, node: usize, cut: bool) {
        for other in 0..self.state.ports.len() {
            self.state.cuts[node][other].store(cut, Ordering::Relaxed);
            self.state.cuts[other][node].store(cut, Ordering::Relaxed);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.state.ends.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl State {
    /// Reads packets until the end; `way` tells who sends to whom, and by which line.
    fn carry<'a>(&self, socket: &UdpSocket, way: impl Fn(u16) -> Option<(usize, usize, &'a Line)>) {
        let mut buffer = vec![0; 65_536];
        while !self.ends.load(Ordering::Relaxed) {
            // A timeout, or the word of the machine that nobody listens there.
            let Ok((len, source)) = socket.recv_from(&mut buffer) else { continue };
            let Some((from, to, line)) = way(source.port()) else { continue };
            if !self.cuts[from][to].load(Ordering::Relaxed) {
                line.send(&buffer[..len]);
            }
        }
    }
}

/// What waits to be sent, and from when on it may.
type Waiting = (Instant, Vec<u8>);

/// The way to one node.
struct Line {
    socket: Arc<UdpSocket>,
    to: SocketAddr,
    delay: Duration,
    queue: Option<SyncSender<Waiting>>,
}

impl Line {
    fn send(&self, packet: &[u8]) {
        match &self.queue {
            None => drop(self.socket.send_to(packet, self.to)),
            // What finds the queue full is lost, as in a router.
            Some(queue) => drop(queue.try_send((Instant::now() + self.delay, packet.to_vec()))),
        }
    }
}

fn line(state: &Arc<State>, socket: &Arc<UdpSocket>, port: u16) -> (Line, Option<JoinHandle<()>>) {
    let (socket, to, delay) = (Arc::clone(socket), local(port), state.delay);
    if delay.is_zero() {
        return (Line { socket, to, delay, queue: None }, None);
    }
    let (queue, waiting) = sync_channel(PACKETS_MAX);
    let out = Arc::clone(&socket);
    let thread = thread::spawn(move || delayed(&waiting, &out, to));
    (Line { socket, to, delay, queue: Some(queue) }, Some(thread))
}

fn delayed(waiting: &Receiver<Waiting>, socket: &UdpSocket, to: SocketAddr) {
    while let Ok((due, packet)) = waiting.recv() {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let _ = socket.send_to(&packet, to);
    }
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind(local(0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    // As much as the machine allows.
    sockopt::set_socket_recv_buffer_size(&socket, 8 << 20).unwrap();
    socket
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Packets on their way in one direction between two nodes.
const PACKETS_MAX: usize = 16_384;
