//! What nodes that repair their logs ask each other, both ends: one question and one answer on a stream of its own.

use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, SendStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::shared::{Fetch, Shared};
use super::snapshots::Frames;
use crate::proto::frame::{Frame, FrameKind, encode_frame};
use crate::proto::limits::FRAME_BYTES_MAX;
use crate::proto::peer::{Fetched, Want};
use crate::proto::{self, Malformed};
use crate::wal::Batch;

/// Asks a node; `None` if it does not answer.
pub(super) async fn ask(connection: &Connection, want: Want) -> Option<Option<Batch>> {
    let asked = timeout(PATIENCE, async {
        let (mut send, receive) = connection.open_bi().await.ok()?;
        let mut bytes = Vec::new();
        encode_frame(&mut bytes, FrameKind::Fetch, 0, |body| proto::encode(&want, body));
        send.write_all(&bytes).await.ok()?;
        send.finish().ok()?;
        let answer = Frames::of(receive, FRAME_BYTES_MAX).next().await.ok()?;
        match decode(&answer, want) {
            Ok(batch) => Some(batch),
            Err(error) => {
                tracing::warn!("a node answers with a {error}");
                None
            }
        }
    });
    asked.await.ok().flatten()
}

fn decode(answer: &Frame, want: Want) -> Result<Option<Batch>, Malformed> {
    if answer.kind != FrameKind::Fetched {
        return Err(Malformed("answer to a fetch"));
    }
    match proto::decode(&answer.body, "answer to a fetch")? {
        Fetched::Lack => Ok(None),
        Fetched::Have { entries } => {
            let entries: Bytes = answer.body.slice_ref(entries);
            let batch = Batch::decode(want.first, entries).map_err(|_| Malformed("log entries"))?;
            Ok(Some(batch))
        }
    }
}

/// Answers a node with what the next turn finds in the log.
pub(super) async fn receive(frame: &Frame, mut send: SendStream, from: &str, shared: &Shared) {
    let want: Want = match proto::decode(&frame.body, "fetch") {
        Ok(want) => want,
        Err(error) => {
            tracing::warn!("{from} sends a {error}");
            return;
        }
    };
    let (answered, answer) = oneshot::channel();
    shared.fetch(Fetch { want, answered });
    let Ok(answer) = answer.await else { return };
    let bytes = answer.map(|batch| batch.bytes());
    let answer = match &bytes {
        Some(entries) => Fetched::Have { entries },
        None => Fetched::Lack,
    };
    let mut encoded = Vec::new();
    encode_frame(&mut encoded, FrameKind::Fetched, 0, |body| proto::encode(&answer, body));
    // Who asked asks again if this does not arrive.
    if send.write_all(&encoded).await.is_ok() {
        let _ = send.finish();
    }
}

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
