//! One connection to one node: a long-lived stream on which many requests are under way at once.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quinn::{Endpoint, RecvStream};
use tokio::sync::oneshot;

use super::Error;
use crate::pki::Credentials;
use crate::proto::client::{Hello, HelloReply, Reply};
use crate::proto::frame::{Frame, FrameKind, encode_frame};
use crate::proto::limits::{FRAME_BYTES_MAX, LARGE_BYTES};
use crate::proto::{self, PROTOCOL_VERSION};
use crate::quic::{self, FrameReader, FrameWriter, PortKind};

/// A node that answered our greeting.
pub(super) struct Connection {
    quic: quinn::Connection,
    address: SocketAddr,
    writer: FrameWriter,
    waiting: Arc<Waiting>,
    next_id: AtomicU64,
    /// What the node said of itself and its cluster.
    pub(super) hello: HelloReply,
}

/// Questions without an answer yet; `None` once the connection is over.
#[derive(Default)]
struct Waiting(Mutex<Option<HashMap<u64, oneshot::Sender<Bytes>>>>);

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Bytes>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// Dials a node of the cluster and greets it.
    pub(super) async fn open(
        endpoint: &Endpoint,
        address: SocketAddr,
        node: Option<&str>,
        credentials: &Credentials,
    ) -> Result<Connection, Error> {
        let quic = quic::dial(endpoint, address, node, credentials, PortKind::Client).await?;
        let explained = |error| Error::from(quic::explain(address, error));
        let (send, recv) = quic.open_bi().await.map_err(explained)?;
        let writer = FrameWriter::new(QUEUE_BYTES_MAX);
        tokio::spawn(writer.clone().drive(send));
        let waiting = Arc::new(Waiting(Mutex::new(Some(HashMap::new()))));
        tokio::spawn(read_replies(recv, Arc::clone(&waiting), writer.clone()));
        let hello = HelloReply {
            version: 0,
            node_id: 0,
            leader: None,
            members: Vec::new(),
            value_bytes_max: 0,
        };
        let next_id = AtomicU64::new(1);
        let mut connection = Connection { quic, address, writer, waiting, next_id, hello };
        let mut body = Vec::new();
        proto::encode(&Hello { version: PROTOCOL_VERSION }, &mut body);
        let reply = connection.ask(FrameKind::Hello, &body).await?;
        connection.hello = match decode(&reply)? {
            Reply::Hello(hello) => hello,
            Reply::Refused(refusal) => return Err(Error::Refused(format!("{refusal:?}"))),
            _ => return Err(Error::Protocol("no greeting".to_owned())),
        };
        Ok(connection)
    }

    /// Whether no answer can come any more.
    pub(super) fn is_over(&self) -> bool {
        self.waiting.lock().is_none() || self.quic.close_reason().is_some()
    }

    /// Sends a request and waits for its answer, however long that takes. Long ones go on a stream of
    /// their own, so that nothing waits behind them.
    pub(super) async fn ask(&self, kind: FrameKind, body: &[u8]) -> Result<Bytes, Error> {
        if body.len() > LARGE_BYTES {
            let mut frames = self.open_stream(kind, body).await?;
            return frames.next().await?.ok_or_else(|| self.why_over());
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        match &mut *self.waiting.lock() {
            Some(waiting) => waiting.insert(id, sender),
            None => return Err(self.why_over()),
        };
        let _forget = Forget { waiting: &self.waiting, id };
        self.writer
            .push(|buffer| encode_frame(buffer, kind, id, |out| out.extend_from_slice(body)))?;
        receiver.await.map_err(|_| self.why_over())
    }

    /// Sends a request on a stream of its own, which brings any number of answers.
    pub(super) async fn open_stream(
        &self,
        kind: FrameKind,
        body: &[u8],
    ) -> Result<ReplyStream, Error> {
        let explained = |error| Error::from(quic::explain(self.address, error));
        let (mut send, recv) = self.quic.open_bi().await.map_err(explained)?;
        let mut frame = Vec::with_capacity(body.len() + 16);
        encode_frame(&mut frame, kind, 1, |out| out.extend_from_slice(body));
        let broken = |_| Error::Unreachable("the connection ended".to_owned());
        send.write_chunk(Bytes::from(frame)).await.map_err(broken)?;
        // Fails only for a stream that the node gave up, which the missing answer says.
        let _ = send.finish();
        let reader = FrameReader::new(recv, FRAME_BYTES_MAX);
        Ok(ReplyStream { reader, frames: Vec::new().into_iter() })
    }

    fn why_over(&self) -> Error {
        match self.quic.close_reason() {
            Some(reason) => quic::explain(self.address, reason).into(),
            None => Error::Unreachable("the connection ended".to_owned()),
        }
    }

    /// Ends the connection.
    pub(super) fn close(&self) {
        self.quic.close(0_u32.into(), b"done");
    }
}

/// A caller that gives up leaves nothing behind.
struct Forget<'a> {
    waiting: &'a Waiting,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = &mut *self.waiting.lock() {
            waiting.remove(&self.id);
        }
    }
}

/// The answers on a stream of its own.
pub(super) struct ReplyStream {
    reader: FrameReader,
    frames: std::vec::IntoIter<Frame>,
}

impl ReplyStream {
    /// The next answer; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(frame) = self.frames.next() {
                return Ok(Some(frame.body));
            }
            let mut frames = Vec::new();
            if !self.reader.read_batch(&mut frames).await? {
                return Ok(None);
            }
            self.frames = frames.into_iter();
        }
    }
}

/// Hands each answer to whoever asked; ends with the stream, and with it everybody's waiting.
async fn read_replies(recv: RecvStream, waiting: Arc<Waiting>, writer: FrameWriter) {
    let mut reader = FrameReader::new(recv, FRAME_BYTES_MAX);
    let mut frames = Vec::new();
    while let Ok(true) = reader.read_batch(&mut frames).await {
        if let Some(waiting) = &mut *waiting.lock() {
            for frame in frames.drain(..) {
                if let Some(asker) = waiting.remove(&frame.request_id) {
                    // Fails if the asker has given up meanwhile.
                    let _ = asker.send(frame.body);
                }
            }
        }
    }
    waiting.lock().take();
    writer.close();
}

/// Decodes an answer.
pub(super) fn decode(body: &[u8]) -> Result<Reply<'_>, Error> {
    proto::decode(body, "reply").map_err(|error| Error::Protocol(error.to_string()))
}

/// Requests that wait to be written on one connection.
const QUEUE_BYTES_MAX: usize = 64 << 20;
