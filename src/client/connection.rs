//! One connection to one node: requests out, replies in, each reply to whoever asked.
//!
//! In: a request from any task. Out: its reply frame, or [`Lost`] when the connection ended first. All small
//! requests of a process share one stream: a batch of them is one write, and replies are matched by request
//! id in any order (`proto::client`). Requests that are large and scans have a stream each. Always: a waiting
//! request is answered, or given up when the connection is, or forgotten when its caller is gone; at most
//! [`IN_FLIGHT_MAX`] wait, further callers are held back. Left out: where to connect to (`routes`), what to
//! do about a loss (`retry`), telling a slow node from a dead one (`watchdog`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::sleep;

use super::transport::{self, DialError};
use crate::proto::client::{HelloReply, MemberInfo};
use crate::proto::frame::{Frame, FrameKind, encode_frame, encode_header};
use crate::quic::{FrameReader, FrameWriter, IdMap, PushError};

/// Requests of one connection that may wait for a reply; the next caller is held back.
const IN_FLIGHT_MAX: usize = 8192;
/// How long to wait for room in a full send queue.
const FULL_WAIT: Duration = Duration::from_millis(1);

/// A request got no answer because its connection ended.
#[derive(Clone, Debug)]
pub(super) struct Lost {
    /// Why, for a human.
    pub(super) reason: String,
    /// Whether the request may have reached the node.
    pub(super) sent: bool,
}

/// A connection after its `Hello`.
#[derive(Debug)]
pub(super) struct Link {
    /// Where it leads, as it was dialled.
    pub(super) address: String,
    /// The name in the certificate of the node at the other end.
    pub(super) node_name: String,
    /// What the node said of itself.
    pub(super) hello: HelloReply,
    connection: quinn::Connection,
    writer: FrameWriter,
    is_open: AtomicBool,
    waiting: Mutex<Waiting>,
    room: Semaphore,
    someone_waits: Notify,
}

/// Who waits for a reply.
#[derive(Debug)]
struct Waiting {
    /// Why the connection is over, once it is.
    over: Option<String>,
    next_id: u64,
    replies: IdMap<oneshot::Sender<Frame>>,
    /// Requests that wait on streams of their own.
    alone: usize,
    heard_at: Instant,
    progress_at: Instant,
}

/// For how long nothing came while somebody waited.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quiet {
    /// Since any frame came, answers to the watchdog's own questions too.
    pub(super) heard: Duration,
    /// Since a caller's request was answered.
    pub(super) progress: Duration,
}

impl Link {
    /// Takes over a connection whose `Hello` was answered; the caller runs [`Link::read`] and the writer.
    pub(super) fn new(
        (address, node_name): (String, String),
        hello: HelloReply,
        connection: quinn::Connection,
        writer: FrameWriter,
    ) -> Arc<Link> {
        let now = Instant::now();
        let waiting = Waiting {
            over: None,
            next_id: 1,
            replies: IdMap::default(),
            alone: 0,
            heard_at: now,
            progress_at: now,
        };
        Arc::new(Link {
            address,
            node_name,
            hello,
            connection,
            writer,
            is_open: AtomicBool::new(true),
            waiting: Mutex::new(waiting),
            room: Semaphore::new(IN_FLIGHT_MAX),
            someone_waits: Notify::new(),
        })
    }

    /// The node at the other end.
    pub(super) fn node_id(&self) -> u64 {
        self.hello.node_id
    }

    /// Whether the node at the other end is this member: by its certificate and by its own word.
    pub(super) fn leads_to(&self, member: &MemberInfo) -> Result<(), DialError> {
        if (self.node_id(), &self.node_name) == (member.id, &member.name) {
            return Ok(());
        }
        let asked = format!("node {} ({})", member.id, member.name);
        let found = format!("node {} ({})", self.node_id(), self.node_name);
        Err(DialError::other(&self.address, asked, found))
    }

    /// Whether requests can still be sent.
    pub(super) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// Sends a request, whose body `encode` appends, on the shared stream and waits for its reply.
    pub(super) async fn call(
        &self,
        kind: FrameKind,
        encode: &(dyn Fn(&mut Vec<u8>) + Send + Sync),
    ) -> Result<Frame, Lost> {
        let _room = self.room.acquire().await.map_err(|_| self.lost(false))?;
        self.exchange(kind, encode, false).await
    }

    /// Asks how the node is, past all queues; the watchdog's question.
    pub(super) async fn ping(&self) -> Result<Frame, Lost> {
        self.exchange(FrameKind::Status, &|_| (), true).await
    }

    async fn exchange(
        &self,
        kind: FrameKind,
        encode: &(dyn Fn(&mut Vec<u8>) + Send + Sync),
        ping: bool,
    ) -> Result<Frame, Lost> {
        let (id, reply) = self.register(ping)?;
        let mut forget = Forget { link: self, id, is_answered: false };
        self.push(kind, id, encode).await?;
        let answer = reply.await;
        // Whoever answered, or gave up, took it from the map.
        forget.is_answered = true;
        answer.map_err(|_| self.lost(true))
    }

    /// Sends a request on a stream of its own and gives what can be read from it.
    pub(super) async fn open(&self, kind: FrameKind, body: &[u8]) -> Result<Alone<'_>, Lost> {
        let (send, receive) =
            self.connection.open_bi().await.map_err(|error| lost(false, &error))?;
        let mut whole = WholeOrReset { send, is_whole: false };
        let send = &mut whole.send;
        // Fails only for a stream that was closed, which the first write reports.
        let _ = send.set_priority(-1);
        self.register_alone();
        let alone = Alone { link: self, reader: Some(transport::reader(receive)) };
        let header = encode_header(kind, 1, body.len());
        send.write_all(&header).await.map_err(|error| lost(true, &error))?;
        send.write_all(body).await.map_err(|error| lost(true, &error))?;
        send.finish().map_err(|error| lost(true, &error))?;
        whole.is_whole = true;
        Ok(alone)
    }

    /// Hands out replies until the connection ends.
    pub(super) async fn read(&self, mut reader: FrameReader) {
        let reason = loop {
            match transport::read(&mut reader).await {
                Ok(Some(frames)) => self.hand_out(frames),
                Ok(None) => break "the node ended the connection".to_owned(),
                Err(reason) => break reason,
            }
        };
        self.close(&reason);
    }

    /// Ends the connection; all who wait get [`Lost`].
    pub(super) fn close(&self, reason: &str) {
        self.is_open.store(false, Ordering::Release);
        let abandoned = {
            let mut waiting = self.waiting();
            waiting.over.get_or_insert_with(|| reason.to_owned());
            std::mem::take(&mut waiting.replies)
        };
        drop(abandoned);
        self.connection.close(quinn::VarInt::from_u32(0), b"");
        self.room.close();
        self.someone_waits.notify_one();
    }

    /// Gives up all that wait on the shared stream and keeps the connection: another node is asked instead.
    pub(super) fn give_up_waiting(&self) {
        let abandoned = std::mem::take(&mut self.waiting().replies);
        drop(abandoned);
    }

    /// Returns when somebody waits for an answer; false when the connection is over.
    pub(super) async fn somebody_waits(&self) -> bool {
        loop {
            let noticed = self.someone_waits.notified();
            if !self.is_open() {
                return false;
            }
            if self.quiet().is_some() {
                return true;
            }
            noticed.await;
        }
    }

    /// How quiet it has been, if somebody waits.
    pub(super) fn quiet(&self) -> Option<Quiet> {
        let waiting = self.waiting();
        if waiting.replies.is_empty() && waiting.alone == 0 {
            return None;
        }
        Some(Quiet { heard: waiting.heard_at.elapsed(), progress: waiting.progress_at.elapsed() })
    }

    async fn push(
        &self,
        kind: FrameKind,
        id: u64,
        encode: &(dyn Fn(&mut Vec<u8>) + Send + Sync),
    ) -> Result<(), Lost> {
        loop {
            match self.writer.push(|buffer| encode_frame(buffer, kind, id, encode)) {
                Ok(()) => return Ok(()),
                Err(PushError::Full) => sleep(FULL_WAIT).await,
                Err(PushError::Closed) => return Err(self.lost(false)),
            }
        }
    }

    fn register(&self, ping: bool) -> Result<(u64, oneshot::Receiver<Frame>), Lost> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting();
        if waiting.over.is_some() {
            drop(waiting);
            return Err(self.lost(false));
        }
        // Ids of pings are even: their answers show life, not progress.
        let id = waiting.next_id * 2 + u64::from(!ping);
        waiting.next_id += 1;
        if !ping {
            self.begin_waiting(&mut waiting);
        }
        waiting.replies.insert(id, sender);
        Ok((id, receiver))
    }

    fn register_alone(&self) {
        let mut waiting = self.waiting();
        self.begin_waiting(&mut waiting);
        waiting.alone += 1;
    }

    /// The first who waits wakes the watchdog; nobody asked before, so nothing was to be heard.
    fn begin_waiting(&self, waiting: &mut Waiting) {
        if waiting.replies.is_empty() && waiting.alone == 0 {
            waiting.heard_at = Instant::now();
            waiting.progress_at = waiting.heard_at;
            self.someone_waits.notify_one();
        }
    }

    fn hand_out(&self, frames: Vec<Frame>) {
        let now = Instant::now();
        let mut waiting = self.waiting();
        waiting.heard_at = now;
        for frame in frames {
            if frame.kind != FrameKind::Reply {
                continue;
            }
            if frame.request_id % 2 == 1 {
                waiting.progress_at = now;
            }
            // An answer to one who has given up is no error.
            if let Some(sender) = waiting.replies.remove(&frame.request_id) {
                let _ = sender.send(frame);
            }
        }
    }

    fn lost(&self, sent: bool) -> Lost {
        let reason = self.waiting().over.clone();
        let reason = reason.or_else(|| self.connection.close_reason().map(|why| why.to_string()));
        Lost { reason: reason.unwrap_or_else(|| "another node was asked".into()), sent }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes a request whose caller is gone.
struct Forget<'a> {
    link: &'a Link,
    id: u64,
    is_answered: bool,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.link.waiting().replies.remove(&self.id);
        }
    }
}

/// A stream that is dropped counts as finished, and half a frame as garbage, which costs the connection with all who use
/// it: a request whose caller gives up half-way takes its stream back.
struct WholeOrReset {
    send: quinn::SendStream,
    is_whole: bool,
}

impl Drop for WholeOrReset {
    fn drop(&mut self) {
        if !self.is_whole {
            // The error is that it has ended already.
            let _ = self.send.reset(quinn::VarInt::from_u32(0));
        }
    }
}

/// A request on its own stream.
pub(super) struct Alone<'a> {
    link: &'a Link,
    reader: Option<FrameReader>,
}

impl Alone<'_> {
    /// The next frames; an error at the end of the stream too, since the last reply says that it is the last.
    pub(super) async fn read(&mut self) -> Result<Vec<Frame>, Lost> {
        let reader =
            self.reader.as_mut().expect("it is taken only by `into_reader`, which ends self");
        let frames = transport::read(reader).await;
        self.link.waiting().heard_at = Instant::now();
        match frames {
            Ok(Some(frames)) => Ok(frames),
            Ok(None) => Err(Lost { reason: "the answer is cut off".into(), sent: true }),
            Err(reason) => Err(Lost { reason, sent: true }),
        }
    }

    /// The stream itself, for reading on at the caller's pace.
    pub(super) fn into_reader(mut self) -> FrameReader {
        self.reader.take().expect("it is taken only here")
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.link.waiting().alone -= 1;
    }
}

fn lost(sent: bool, error: &dyn std::fmt::Display) -> Lost {
    Lost { reason: error.to_string(), sent }
}
