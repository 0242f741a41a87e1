//! Client connections: frames in, rights and limits checked, one hand-over to the node per read.

use std::sync::Arc;

use quinn::{Connection, Endpoint, RecvStream, SendStream};

use super::authorise::authorise;
use super::budget::{Account, Window};
use super::peers::REMOVED;
use super::shared::Shared;
use super::streams::{Look, STREAM_REPLY_BYTES};
use super::{save, scan};
use crate::node::{ReplyTo, Request, RequestBody};
use crate::pki::{self, Identity, Who};
use crate::proto::client::{Get, Hello, Manage, Refusal, Reply, Scan};
use crate::proto::command::{Principal, key_is_valid};
use crate::proto::frame::{Frame, FrameKind, encode_frame};
use crate::proto::limits::{CONTACT_BYTES_MAX, FRAME_OVERHEAD_BYTES_MAX, KEY_BYTES_MAX};
use crate::proto::{self, PROTOCOL_VERSION};
use crate::quic::{self, FrameReader, FrameWriter, Keyring};
use crate::raft::ChangeRefused;

/// Who asks.
struct Caller {
    identity: Identity,
    /// The identity as the certificate has it.
    uri: Arc<str>,
    /// Whose sessions are opened here.
    owner: Principal,
    account: Arc<Account>,
}

impl Caller {
    /// Where long answers go.
    fn sink(&self, writer: &FrameWriter) -> scan::Sink {
        scan::Sink { writer: writer.clone(), replies: Arc::clone(&self.account.replies) }
    }
}

/// What every connection needs.
pub(super) struct Clients {
    pub(super) shared: Arc<Shared>,
    pub(super) value_bytes_max: usize,
    /// Where backups come from.
    pub(super) snapshots: save::Source,
}

impl Clients {
    /// Accepts clients for as long as the endpoint lives.
    pub(super) async fn accept(self: Arc<Self>, endpoint: Endpoint, keyring: Keyring) {
        while let Some(incoming) = endpoint.accept().await {
            let Some(admitted) = self.shared.client_gate.admit(incoming) else { continue };
            let (clients, keyring) = (Arc::clone(&self), keyring.clone());
            tokio::spawn(async move {
                match admitted.accept().await {
                    Ok((connection, identity, _place)) => {
                        let served = clients.serve(connection.clone(), identity);
                        quic::while_valid(&connection, &keyring, served).await;
                    }
                    Err(error) => report_refused("client", &error),
                }
            });
        }
    }

    async fn serve(self: &Arc<Self>, connection: Connection, identity: Identity) {
        let (uri, owner): (Arc<str>, _) = (identity.to_string().into(), identity.principal());
        let account = self.shared.accounts.of(&uri);
        let mut window = Window::new(Arc::clone(&account));
        let caller = Arc::new(Caller { uri, owner, identity, account });
        widen(&mut window, &connection);
        // Requests share the first stream; those on others are large or scans, and go behind.
        let mut is_shared = true;
        let mut fenced = std::pin::pin!(self.shared.fenced(&caller.identity.who));
        loop {
            let accepted = tokio::select! {
                accepted = connection.accept_bi() => accepted,
                () = &mut fenced => {
                    return connection.close(REMOVED.into(), b"this node was removed from the cluster");
                }
            };
            let Ok((send, recv)) = accepted else { return };
            widen(&mut window, &connection);
            // Fails only for a stream that was closed, which the first write reports.
            let _ = send.set_priority(i32::from(is_shared));
            let (clients, caller) = (Arc::clone(self), Arc::clone(&caller));
            let connection = connection.clone();
            tokio::spawn(async move {
                let served = clients.serve_stream(send, recv, is_shared, &caller).await;
                match served {
                    Ok(()) => {}
                    // Its caller has given it up; the others go on.
                    Err(quic::Error::StreamEnded { .. }) => {}
                    Err(error) => {
                        tracing::debug!("a client is cut off: {error}");
                        connection.close(2_u32.into(), b"malformed frame");
                    }
                }
            });
            is_shared = false;
        }
    }

    async fn serve_stream(
        &self,
        send: SendStream,
        recv: RecvStream,
        is_shared: bool,
        caller: &Caller,
    ) -> Result<(), quic::Error> {
        let (shared, account) = (&self.shared, &caller.account);
        let limit_bytes = REPLY_BYTES_MAX + self.value_bytes_max;
        let (writer, driver) = FrameWriter::metered(limit_bytes, Arc::clone(&account.replies));
        // Its error is the stream's end, which the reader sees as well.
        tokio::spawn(driver.drive(send));
        let stream = shared.open_stream(writer.clone(), is_shared, Arc::clone(account));
        let frame_bytes_max = self.value_bytes_max + FRAME_OVERHEAD_BYTES_MAX;
        let mut reader = FrameReader::metered(recv, frame_bytes_max, Arc::clone(&account.halves));
        let attention = shared.watch_stream(stream, reader.progress());
        let (mut frames, mut requests) = (Vec::new(), Vec::new());
        let mut must_look = false;
        loop {
            if must_look || writer.queued_bytes() >= STREAM_REPLY_BYTES || account.replies.is_full()
            {
                let look = shared.until_clear(stream, &writer, account, &attention).await;
                if let Look::Ended(code) = look {
                    reader.stop(code);
                    shared.drop_stream(stream);
                    return Ok(());
                }
                must_look = false;
            }
            let read = tokio::select! {
                biased;
                read = reader.read_batch(&mut frames) => read,
                () = attention.notified() => {
                    must_look = true;
                    continue;
                }
            };
            requests.extend(
                frames
                    .drain(..)
                    .filter_map(|frame| self.take_frame(frame, stream, caller, &writer)),
            );
            for busy in self.shared.request(stream, requests.drain(..)) {
                refuse(&writer, busy, Refusal::Busy { retry_after_ms: BUSY_RETRY_MS });
            }
            match read {
                Ok(true) => {}
                Ok(false) => {
                    shared.end_stream(stream);
                    shared.until_answered(stream, &writer, account, &attention).await;
                    shared.drop_stream(stream);
                    return Ok(());
                }
                Err(error) => {
                    self.shared.drop_stream(stream);
                    return Err(error);
                }
            }
        }
    }

    /// Turns a frame into a request and its weight, or answers it here.
    fn take_frame(
        &self,
        frame: Frame,
        stream: u64,
        caller: &Caller,
        writer: &FrameWriter,
    ) -> Option<(Request, usize)> {
        let reply_to = ReplyTo { stream, request_id: frame.request_id };
        let bytes = frame.body.len() + REQUEST_OVERHEAD_BYTES;
        let decoded = self
            .check_fence(&caller.identity.who)
            .and_then(|()| authorise(&caller.identity.who, frame.kind))
            .and_then(|()| self.decode(frame, reply_to, caller, writer));
        match decoded {
            Ok(body) => Some((Request { reply_to, body }, bytes)),
            Err(refusal) => {
                refuse(writer, reply_to, refusal);
                None
            }
        }
    }

    /// A removed node hears why it gets nothing, before its connection ends.
    fn check_fence(&self, who: &Who) -> Result<(), Refusal> {
        match who {
            Who::Node { name } if self.shared.book.borrow().is_fenced(name) => {
                let refused = ChangeRefused::Fenced { name: name.clone() };
                Err(Refusal::Invalid { reason: refused.to_string() })
            }
            Who::Node { .. } | Who::Client { .. } => Ok(()),
        }
    }

    fn decode(
        &self,
        frame: Frame,
        reply_to: ReplyTo,
        caller: &Caller,
        writer: &FrameWriter,
    ) -> Result<RequestBody, Refusal> {
        let invalid = |reason: String| Refusal::Invalid { reason };
        let malformed = |error: proto::Malformed| Refusal::Invalid { reason: error.to_string() };
        match frame.kind {
            FrameKind::Hello => {
                let hello: Hello = proto::decode(&frame.body, "hello").map_err(malformed)?;
                if hello.version < PROTOCOL_VERSION {
                    let version = hello.version;
                    return Err(invalid(format!("version {version} of the protocol is too old")));
                }
                Ok(RequestBody::Hello)
            }
            FrameKind::Write => Ok(RequestBody::Write { owner: caller.owner, command: frame.body }),
            FrameKind::WriteAnywhere => {
                let (owner, client) = (caller.owner, Arc::clone(&caller.uri));
                Ok(RequestBody::WriteAnywhere { owner, command: frame.body, client })
            }
            FrameKind::Get => {
                let get: Get<'_> = proto::decode(&frame.body, "get").map_err(malformed)?;
                if get.key.is_empty() {
                    return Err(invalid("the key is empty".to_owned()));
                }
                if !key_is_valid(get.key) {
                    return Err(Refusal::TooLarge { limit: KEY_BYTES_MAX as u64 });
                }
                // Held for a read round only, so it may share the frame's buffer.
                let key = frame.body.slice_ref(get.key);
                let (consistency, revision) = (get.consistency, get.revision);
                Ok(RequestBody::Get { key, consistency, revision })
            }
            FrameKind::Scan => {
                let scan: Scan<'_> = proto::decode(&frame.body, "scan").map_err(malformed)?;
                let (consistency, revision) = (scan.consistency, scan.revision);
                let plan = scan::Plan::new(&scan, reply_to);
                let Some(ready) = self.shared.wait_for_scan(reply_to.stream) else {
                    return Err(invalid("a scan needs a stream of its own".to_owned()));
                };
                let sink = caller.sink(writer);
                tokio::spawn(scan::run(plan, ready, sink, Arc::clone(&self.shared)));
                Ok(RequestBody::Scan { consistency, revision })
            }
            FrameKind::Save => {
                let Some(ready) = self.shared.wait_for_scan(reply_to.stream) else {
                    return Err(invalid("a save needs a stream of its own".to_owned()));
                };
                let (shared, source) = (Arc::clone(&self.shared), self.snapshots.clone());
                let sink = caller.sink(writer);
                tokio::spawn(save::run(reply_to, ready, sink, shared, source));
                Ok(RequestBody::Save)
            }
            FrameKind::Status => Ok(RequestBody::Status),
            FrameKind::Manage => {
                let manage =
                    proto::decode(&frame.body, "change of the cluster").map_err(malformed)?;
                check_manage(&manage, &caller.identity.who).map_err(invalid)?;
                Ok(RequestBody::Manage(manage))
            }
            // All others were refused before: they are no requests.
            _ => Err(invalid("not a request".to_owned())),
        }
    }
}

/// Gives a connection as much of a window as there is for it.
fn widen(window: &mut Window, connection: &Connection) {
    if window.widen() {
        connection.set_receive_window(window.bytes().into());
        connection.set_send_window(window.bytes().into());
    }
}

/// A node's certificate lets it join, under its own name, and nothing else.
fn check_manage(manage: &Manage, who: &Who) -> Result<(), String> {
    let Manage::Add { name, peer_address, client_address, .. } = manage else {
        return match who {
            Who::Node { .. } => Err("a node may only join".to_owned()),
            Who::Client { .. } => Ok(()),
        };
    };
    pki::check_name(name).map_err(|error| error.to_string())?;
    if let Who::Node { name: own } = who
        && own != name
    {
        return Err(format!("{own} cannot join as {name}"));
    }
    for address in [peer_address, client_address] {
        let has_port = address.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && port.parse().is_ok_and(|port: u16| port != 0)
        });
        if !has_port || address.len() > CONTACT_BYTES_MAX {
            return Err(format!("{address:?} is no address: it must be HOST:PORT"));
        }
    }
    Ok(())
}

/// Tells people of somebody whose certificate is not welcome; who only went away is no news.
pub(super) fn report_refused(port: &str, error: &quic::Error) {
    if matches!(error, quic::Error::Rejected { .. } | quic::Error::Identity { .. }) {
        tracing::warn!("refused a connection to the {port} port: {error}");
    } else {
        tracing::debug!("a connection to the {port} port did not come about: {error}");
    }
}

/// Answers a request that the node never sees.
pub(super) fn refuse(writer: &FrameWriter, to: ReplyTo, refusal: Refusal) {
    let pushed = writer.push(|buffer| {
        encode_frame(buffer, FrameKind::Reply, to.request_id, |body| {
            proto::encode(&Reply::Refused(refusal), body);
        });
    });
    if pushed.is_err() {
        // Full or gone: a client that does not read its answers loses them.
        writer.close();
    }
}

/// Answers that wait to be read by one stream's client, besides one value of the greatest length.
const REPLY_BYTES_MAX: usize = 16 << 20;
/// What a waiting request costs beside its bytes.
const REQUEST_OVERHEAD_BYTES: usize = 128;
/// How long a refused client should wait.
const BUSY_RETRY_MS: u32 = 20;
