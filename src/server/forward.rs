//! Writes of clients that cannot reach the leader, both ends: a node that does not lead hands them on over its
//! connection with the leader, each on a stream of its own, and passes the answer back.
//!
//! This is the detour, not the road: a client that is told who leads goes there itself. The leader judges the
//! client's rights again, by the client's identity and not by that of the node in between. That identity owns the
//! session of the write as well.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, SendStream};
use tokio::time::timeout;

use super::authorise::authorise;
use super::clients::refuse;
use super::shared::Shared;
use super::snapshots::Frames;
use crate::node::{Forward, ReplyTo, Request, RequestBody};
use crate::pki::Identity;
use crate::proto::client::Refusal;
use crate::proto::command::Principal;
use crate::proto::frame::{Frame, FrameKind, encode_frame};
use crate::proto::limits::FRAME_OVERHEAD_BYTES_MAX;
use crate::proto::{self, peer};
use crate::quic::FrameWriter;

/// Hands a write to the leader, in a task of its own, and answers the client.
pub(super) fn send(shared: &Arc<Shared>, connection: Option<Connection>, forward: Forward) {
    let shared = Arc::clone(shared);
    let Some(connection) = connection else {
        shared.refuse(forward.reply_to, Refusal::NotLeader { leader: None });
        return;
    };
    let Ok(permit) = Arc::clone(&shared.forwards).try_acquire_owned() else {
        shared.refuse(forward.reply_to, Refusal::Busy { retry_after_ms: BUSY_RETRY_MS });
        return;
    };
    tokio::spawn(async move {
        let _permit = permit;
        let answer = tokio::select! {
            answer = timeout(PATIENCE, ask(&connection, &forward)) => answer.ok().flatten(),
            () = shared.leader_changed.notified() => None,
        };
        match answer {
            Some(answer) => shared.relay(forward.reply_to, &answer.body),
            // It may have left: only the client's session can tell.
            None => shared.refuse(forward.reply_to, Refusal::Unknown),
        }
    });
}

async fn ask(connection: &Connection, forward: &Forward) -> Option<Frame> {
    let (mut send, receive) = connection.open_bi().await.ok()?;
    let mut bytes = Vec::new();
    encode_frame(&mut bytes, FrameKind::Forward, 0, |body| {
        let (client, command) = (&*forward.client, &forward.command[..]);
        proto::encode(&peer::Forward { client, command }, body);
    });
    send.write_all(&bytes).await.ok()?;
    send.finish().ok()?;
    let answer = Frames::of(receive, FRAME_OVERHEAD_BYTES_MAX).next().await.ok()?;
    (answer.kind == FrameKind::Reply).then_some(answer)
}

/// Takes in a write that another node hands on; its answer goes back on the same stream.
pub(super) fn receive(frame: &Frame, send: SendStream, from: &str, shared: &Shared) {
    let account = shared.accounts.of(&format!("node {from}"));
    let replies = Arc::clone(&account.replies);
    let (writer, driver) = FrameWriter::metered(FRAME_OVERHEAD_BYTES_MAX, replies);
    // Its error is the stream's end: the node that asked is gone.
    tokio::spawn(driver.drive(send));
    let reply_to = ReplyTo { stream: 0, request_id: frame.request_id };
    let decoded = decode(frame);
    let (owner, command, stream) = match decoded {
        Ok((owner, command)) => {
            (owner, command, shared.open_stream(writer.clone(), false, account))
        }
        Err(refusal) => {
            tracing::warn!("{from} hands on what nobody may ask: {refusal:?}");
            refuse(&writer, reply_to, refusal);
            writer.close();
            return;
        }
    };
    let bytes = command.len();
    let body = RequestBody::Write { owner, command };
    let request = Request { reply_to: ReplyTo { stream, ..reply_to }, body };
    for busy in shared.request(stream, std::iter::once((request, bytes))) {
        refuse(&writer, busy, Refusal::Busy { retry_after_ms: BUSY_RETRY_MS });
    }
    shared.end_stream(stream);
}

fn decode(frame: &Frame) -> Result<(Principal, bytes::Bytes), Refusal> {
    let invalid = |reason: String| Refusal::Invalid { reason };
    let forward: peer::Forward<'_> = proto::decode(&frame.body, "forwarded write")
        .map_err(|error| invalid(error.to_string()))?;
    let identity: Identity = forward.client.parse().map_err(|_| invalid("no identity".into()))?;
    if identity.is_node() {
        return Err(invalid("a node hands on what clients ask, and asks nothing itself".into()));
    }
    authorise(&identity.who, FrameKind::Write)?;
    Ok((identity.principal(), frame.body.slice_ref(forward.command)))
}

/// How long the leader may take: then the client hears that nobody knows.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a refused client should wait.
const BUSY_RETRY_MS: u32 = 20;
