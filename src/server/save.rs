//! Backups for clients: the snapshot file of a moment after the question, on the question's own stream, at the lowest
//! priority and a limited rate.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::interval;

use super::scan::Sink;
use super::shared::{Ready, Shared};
use super::snapshots::{Sending, Throttle};
use crate::node::ReplyTo;
use crate::proto;
use crate::proto::client::{Refusal, Reply};
use crate::proto::frame::{FrameKind, encode_frame};
use crate::quic::PushError;
use crate::raft::Index;
use crate::store::snapshot;

/// Where snapshots are, and how fast they may leave.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) dir: snapshot::Dir,
    /// Bytes a second; 0 for no limit.
    pub(super) rate: u64,
}

/// Answers with the snapshot once the node has one that is new enough; ends silently when the request was refused.
pub(super) async fn run(
    reply_to: ReplyTo,
    ready: oneshot::Receiver<Ready>,
    sink: Sink,
    shared: Arc<Shared>,
    source: Source,
) {
    let answer = Answer { reply_to, sink };
    if let Some(index) = answer.wait(ready).await {
        match Sending::open(source.dir, index).await {
            Ok(file) => answer.send(file, source.rate).await,
            Err(error) => {
                tracing::warn!(
                    "the snapshot at index {index} cannot be read for a client: {error}"
                );
                // The client asks again, and gets another.
                let refusal = Refusal::Busy { retry_after_ms: RETRY_MS };
                let _ = answer.push(&Reply::Refused(refusal));
            }
        }
    }
    shared.drop_stream(reply_to.stream);
}

struct Answer {
    reply_to: ReplyTo,
    sink: Sink,
}

impl Answer {
    fn push(&self, reply: &Reply<'_>) -> Result<(), PushError> {
        self.sink.writer.push(|buffer| {
            encode_frame(buffer, FrameKind::Reply, self.reply_to.request_id, |body| {
                proto::encode(reply, body);
            });
        })
    }

    /// Tells the client that it is not forgotten, until there is a snapshot.
    async fn wait(&self, mut ready: oneshot::Receiver<Ready>) -> Option<Index> {
        let mut signs_of_life = interval(SIGN_OF_LIFE);
        loop {
            tokio::select! {
                ready = &mut ready => match ready {
                    Ok(Ready::Snapshot(index)) => return Some(index),
                    Ok(Ready::Scan(..)) | Err(_) => return None,
                },
                _ = signs_of_life.tick() => self.push(&Reply::Saving).ok()?,
            }
        }
    }

    /// Ends early when the client is gone, or the file cannot be read on: the client sees that it is too short.
    async fn send(&self, mut file: Sending, rate: u64) {
        let begins = Reply::SnapshotBegins { index: file.index.0, bytes: file.bytes };
        if self.push(&begins).is_err() {
            return;
        }
        let mut throttle = Throttle::new(rate);
        loop {
            if self.sink.room().await.is_err() {
                return;
            }
            let chunk = match file.chunk().await {
                Ok(chunk) if chunk.is_empty() => return,
                Ok(chunk) => chunk,
                Err(error) => {
                    tracing::warn!("a snapshot for a client broke off: {error}");
                    return;
                }
            };
            throttle.spend(chunk.len()).await;
            if self.push(&Reply::SnapshotChunk(serde_bytes::Bytes::new(&chunk))).is_err() {
                return;
            }
        }
    }
}

/// How often a client that waits hears something.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
const RETRY_MS: u32 = 100;
