//! What connections and the node's turns share: the input that is filling up, the bell, and the streams
//! that wait for answers. Locked only for moments, never across an await.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::{Notify, Semaphore, oneshot, watch};

use super::budget::Accounts;
use super::gate::Gate;
use super::streams::Stream;
use crate::node::{Book, Input, ReceivedSnapshot, ReplyTo, Request, Sent};
use crate::pki::Who;
use crate::proto::client::Doors;
use crate::proto::peer::{StateHash, Want};
use crate::quic::{self, IdMap, Keyring};
use crate::raft::{DataId, Index, Message, NodeId, Term};
use crate::store::Reader;
use crate::wal::Batch;

/// What a scan or a save has waited for.
pub(super) enum Ready {
    /// It may read with this reader at this revision.
    Scan(Reader, Index),
    /// There is a snapshot at this index.
    Snapshot(Index),
}

pub(super) struct Shared {
    pub(super) input: Mutex<Input>,
    /// Rung when there is input.
    pub(super) bell: Notify,
    /// Rung when a turn has taken the input.
    drained: Notify,
    /// Rung when another node leads, or none.
    pub(super) leader_changed: Notify,
    pub(super) streams: Mutex<IdMap<Stream>>,
    /// By stream: a scan or a save has one of its own.
    pub(super) scans: Mutex<IdMap<oneshot::Sender<Ready>>>,
    pub(super) next_stream: AtomicU64,
    /// What principals may hold.
    pub(super) accounts: Accounts,
    /// The places of the port for clients.
    pub(super) client_gate: Arc<Gate>,
    /// The places of the port for nodes.
    pub(super) peer_gate: Arc<Gate>,
    /// Reads that wait for room for their answers.
    pub(super) held_reads: AtomicU64,
    /// Streams that were ended because nothing was taken of their answers.
    pub(super) not_taken: AtomicU64,
    /// Streams that were ended because a request was not whole in time.
    pub(super) half_frames: AtomicU64,
    /// Requests that were refused because too much was waiting.
    busy: AtomicU64,
    /// Who may speak as which node.
    pub(super) book: watch::Sender<Arc<Book>>,
    /// Who leads, and in which term.
    leader: Mutex<Option<(NodeId, Term)>>,
    /// Why this node must end, if another one said so.
    ending: Mutex<Option<Ending>>,
    /// What nodes that repair their logs ask for.
    fetches: Mutex<Vec<Fetch>>,
    /// Writes on their way to the leader; more are refused as `Busy`.
    pub(super) forwards: Arc<Semaphore>,
    /// The certificates, of which `status` tells.
    pub(super) keyring: OnceLock<Keyring>,
}

impl Shared {
    /// For one node.
    pub(super) fn new(own: NodeId, data: DataId) -> Shared {
        Shared {
            book: watch::Sender::new(Arc::new(Book::blank(own, data))),
            leader: Mutex::default(),
            ending: Mutex::default(),
            input: Mutex::default(),
            bell: Notify::new(),
            drained: Notify::new(),
            leader_changed: Notify::new(),
            streams: Mutex::default(),
            scans: Mutex::default(),
            next_stream: AtomicU64::new(0),
            accounts: Accounts::new(),
            client_gate: Arc::new(Gate::new(CLIENTS_MAX, CLIENTS_PER_PRINCIPAL_MAX)),
            peer_gate: Arc::new(Gate::new(PEERS_MAX, PEERS_PER_MEMBER_MAX)),
            held_reads: AtomicU64::new(0),
            not_taken: AtomicU64::new(0),
            half_frames: AtomicU64::new(0),
            busy: AtomicU64::new(0),
            fetches: Mutex::default(),
            forwards: Arc::new(Semaphore::new(FORWARDS_MAX)),
            keyring: OnceLock::new(),
        }
    }

    /// Asks the next turn what its log has; dropped unanswered if too many ask.
    pub(super) fn fetch(&self, fetch: Fetch) {
        let mut fetches = lock(&self.fetches);
        if fetches.len() < FETCHES_MAX {
            fetches.push(fetch);
            self.bell.notify_one();
        }
    }

    /// Answers what was asked since the last call.
    pub(super) fn answer_fetches(&self, answer: impl Fn(&Want) -> Option<Batch>) {
        for Fetch { want, answered } in std::mem::take(&mut *lock(&self.fetches)) {
            // Who asked may be gone.
            let _ = answered.send(answer(&want));
        }
    }

    /// How the ports fare, and what waits behind them.
    pub(super) fn doors(&self) -> Doors {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Doors {
            client: self.client_gate.door(),
            peer: self.peer_gate.door(),
            reply_bytes: self.accounts.replies.bytes() as u64,
            half_frame_bytes: self.accounts.halves.bytes() as u64,
            held_reads: count(&self.held_reads),
            not_taken: count(&self.not_taken),
            half_frames: count(&self.half_frames),
            busy: count(&self.busy),
        }
    }

    /// Another node says that this one has no place. That another data directory acts for it is not believed if the log
    /// of this node says for certain that its own one does.
    pub(super) fn ends(&self, ending: Ending) {
        if matches!(ending, Ending::OtherData { .. }) && self.book.borrow().is_seated() {
            return;
        }
        *lock(&self.ending) = Some(ending);
        self.bell.notify_one();
    }

    /// Why this node must end.
    pub(super) fn ending(&self) -> Option<Ending> {
        lock(&self.ending).clone()
    }

    /// Resolves when the name of a node is that of a removed member; never for a client.
    pub(super) async fn fenced(&self, who: &Who) {
        let mut book = self.book.subscribe();
        let Who::Node { name } = who else { return std::future::pending().await };
        if book.borrow_and_update().is_fenced(name) {
            // Time to ask one thing, and to hear why it is refused.
            return tokio::time::sleep(FENCED_PATIENCE).await;
        }
        while !book.borrow_and_update().is_fenced(name) {
            if book.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// The node leads in this term, as far as this one knows.
    pub(super) fn set_leader(&self, leader: Option<(NodeId, Term)>) {
        *lock(&self.leader) = leader;
    }

    /// What was set last.
    pub(super) fn leader(&self) -> Option<(NodeId, Term)> {
        *lock(&self.leader)
    }
}

/// Why a node must end, as another one says.
#[derive(Clone, Debug)]
pub(super) enum Ending {
    /// It was removed.
    Removed { by: String },
    /// Another data directory acts for it.
    OtherData { by: String },
}

/// What a node that repairs its log asks for.
pub(super) struct Fetch {
    pub(super) want: Want,
    pub(super) answered: oneshot::Sender<Option<Batch>>,
}

/// Nothing is left half done under these locks that a panic could break.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Adds everything that arrived to `input`, which has no more than ticks and a transfer yet.
    pub(super) fn take_input(&self, input: &mut Input) {
        // Taken, for what stays in the buffer that is given back would arrive once more.
        let (ticks, transfer) =
            (std::mem::take(&mut input.ticks), std::mem::take(&mut input.transfer));
        std::mem::swap(&mut *lock(&self.input), input);
        input.ticks += ticks;
        input.transfer |= transfer;
        self.drained.notify_waiters();
    }

    /// Changes the input and rings.
    pub(super) fn tell(&self, change: impl FnOnce(&mut Input)) {
        change(&mut lock(&self.input));
        self.bell.notify_one();
    }

    /// Hands in what a peer sent; waits while too much is waiting already, which holds the peer back.
    pub(super) async fn receive(&self, messages: &mut Vec<(Message, Option<Batch>)>) {
        loop {
            let drained = self.drained.notified();
            if lock(&self.input).messages.len() < PEER_MESSAGES_MAX {
                break;
            }
            drained.await;
        }
        self.tell(|input| input.messages.append(messages));
    }

    /// Hands in what a peer said of its store; the newest counts if it says more than it should.
    pub(super) fn hear_state_hash(&self, from: NodeId, told: StateHash) {
        let mut input = lock(&self.input);
        if input.state_hashes.len() >= STATE_HASHES_MAX {
            input.state_hashes.remove(0);
        }
        input.state_hashes.push((from, told));
    }

    /// Hands in a snapshot that a leader sent.
    pub(super) fn receive_snapshot(&self, snapshot: ReceivedSnapshot) {
        self.tell(|input| input.snapshots_received.push(snapshot));
    }

    pub(super) fn snapshot_sent(&self, to: NodeId, sent: Sent) {
        self.tell(|input| input.snapshots_sent.push((to, sent)));
    }

    /// Hands in the requests of one read of `stream`; gives back what does not fit.
    pub(super) fn request(
        &self,
        stream: u64,
        requests: impl Iterator<Item = (Request, usize)>,
    ) -> Vec<ReplyTo> {
        let (mut refused, mut accepted) = (Vec::new(), 0);
        {
            let mut input = lock(&self.input);
            let mut streams = lock(&self.streams);
            let mut asker = streams.get_mut(&stream);
            let room = asker.as_ref().map_or(0, |asker| asker.request_room());
            for (request, bytes) in requests {
                let is_full = input.requests.len() >= REQUESTS_MAX
                    || input.request_bytes + bytes > REQUEST_BYTES_MAX
                    || accepted >= room;
                if is_full {
                    // A scan's task ends without its sender.
                    lock(&self.scans).remove(&stream);
                    refused.push(request.reply_to);
                } else {
                    accepted += 1;
                    input.request_bytes += bytes;
                    input.requests.push(request);
                }
            }
            if let Some(asker) = &mut asker {
                asker.asked(accepted);
            }
        }
        if !refused.is_empty() {
            self.busy.fetch_add(refused.len() as u64, Ordering::Relaxed);
        }
        if accepted > 0 {
            self.bell.notify_one();
        }
        refused
    }
}

/// How long a new connection of a removed node lasts.
const FENCED_PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);
/// Messages of peers that wait for a turn; their readers stop reading above it.
const PEER_MESSAGES_MAX: usize = 4096;
/// State hashes that wait for a turn; each node sends one a second.
const STATE_HASHES_MAX: usize = 1024;
/// Requests that wait for a turn; more are refused as `Busy`.
const REQUESTS_MAX: usize = 65_536;
/// Questions of nodes that repair their logs, which each ask one at a time.
const FETCHES_MAX: usize = 16;
/// Writes that wait for another node's answer.
const FORWARDS_MAX: usize = 1024;
/// Bytes of requests that wait for a turn; more are refused as `Busy`.
const REQUEST_BYTES_MAX: usize = 128 << 20;
/// Connections of clients; more are refused. Each takes some 30 kB before anything is asked.
const CLIENTS_MAX: usize = 4096;
/// Connections of one principal: an eighth, so that nobody takes them all.
const CLIENTS_PER_PRINCIPAL_MAX: usize = 512;
/// Connections with the other members both ways, twice over after a reconnection, and with nodes that are strangers and
/// get no further.
const PEERS_MAX: usize = quic::CONNECTIONS_MAX_DEFAULT;
/// Connections of one member: it needs one, and those that it lost before may not have timed out yet.
const PEERS_PER_MEMBER_MAX: usize = 16;

#[cfg(test)]
mod tests;
