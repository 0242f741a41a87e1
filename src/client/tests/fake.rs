//! A node that speaks the protocol and does what a test tells it to, without consensus or disk.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio::sync::Semaphore;

use crate::pki::{Authority, Credentials, Issue, Role};
use crate::proto::client::{
    Doors, Get, HelloReply, MemberInfo, Refusal, Reply, RoleName, Row, Scan, ScanMode, Status,
};
use crate::proto::command::{Command, Op, Outcome, SessionId};
use crate::proto::frame::{Frame, FrameKind, encode_frame};
use crate::proto::limits::{FRAME_BYTES_MAX, LARGE_BYTES};
use crate::proto::{decode, encode};
use crate::quic::{self, FrameReader, PortKind};

use super::super::{Client, Options};

/// What a node does with the next write or get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Refuses.
    Refuse(Refusal),
    /// Applies it, then closes the connection without a word.
    ApplyAndDrop,
    /// Closes the connection without applying it.
    Drop,
    /// Says nothing.
    Ignore,
    /// Gives this outcome.
    Say(Outcome),
}

/// What all nodes of a fake cluster share: the replicated state.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) store: BTreeMap<Vec<u8>, (Vec<u8>, u64)>,
    pub(super) answers: BTreeMap<(SessionId, u64), Outcome>,
    /// Each write as it came: node, session, number, answered_below.
    pub(super) writes: Vec<(u64, SessionId, u64, u64)>,
    pub(super) sessions: Vec<SessionId>,
    pub(super) revision: u64,
    pub(super) leader: u64,
    /// What nodes do with the next requests, per node.
    pub(super) acts: BTreeMap<u64, std::collections::VecDeque<Act>>,
    /// Nodes that answer nothing but `Hello`.
    pub(super) mute: Vec<u64>,
    /// Writes held back, to be answered in the opposite order once there are so many.
    pub(super) reverse_batch: usize,
    pub(super) held: Vec<(u64, Vec<u8>)>,
    /// How long large writes take.
    pub(super) large_takes: std::time::Duration,
    /// Streams besides the first are not read, but for how they end.
    pub(super) unread: bool,
    /// Those that were reset.
    pub(super) resets: usize,
    /// Streams opened besides the first of each connection.
    pub(super) own_streams: usize,
}

pub(super) struct Cluster {
    pub(super) shared: Arc<Mutex<Shared>>,
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) endpoints: Vec<quinn::Endpoint>,
    pub(super) dir: tempfile::TempDir,
}

impl Cluster {
    /// Starts `nodes` nodes; node 1 leads.
    pub(super) fn start(nodes: u64) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::create(dir.path(), "test").unwrap();
        ca.issue_client("client", Role::ReadWrite, Issue::default()).unwrap();
        let shared = Arc::new(Mutex::new(Shared { leader: 1, ..Shared::default() }));
        let mut endpoints = Vec::new();
        for id in 1..=nodes {
            let name = format!("n{id}");
            ca.issue_node(&name, &["127.0.0.1".into()], Issue::default()).unwrap();
            let credentials = Credentials::load(dir.path(), &name).unwrap();
            let any_port = "127.0.0.1:0".parse().unwrap();
            endpoints.push(
                quic::server_endpoint(
                    PortKind::Client,
                    any_port,
                    &credentials,
                    None,
                    &Default::default(),
                )
                .unwrap(),
            );
        }
        let addresses: Vec<_> =
            endpoints.iter().map(|endpoint| endpoint.local_addr().unwrap()).collect();
        let members: Vec<_> = (1..)
            .zip(&addresses)
            .map(|(id, address)| MemberInfo {
                id,
                name: format!("n{id}"),
                client_address: address.to_string(),
                peer_address: String::new(),
                kind: crate::proto::client::MemberKind::Voter,
            })
            .collect();
        for (id, endpoint) in (1..).zip(&endpoints) {
            let node = Node { id, shared: Arc::clone(&shared), members: members.clone() };
            tokio::spawn(node.serve(endpoint.clone()));
        }
        Cluster { shared, addresses, endpoints, dir }
    }

    pub(super) async fn client(&self) -> Client {
        Client::connect(self.options(1)).await.unwrap()
    }

    /// Options with one endpoint: this node.
    pub(super) fn options(&self, node: usize) -> Options {
        Options {
            endpoints: vec![self.addresses[node - 1].to_string()],
            certs: Path::to_path_buf(self.dir.path()),
            name: "client".into(),
            timeout: std::time::Duration::from_secs(5),
        }
    }

    pub(super) fn act(&self, node: u64, acts: impl IntoIterator<Item = Act>) {
        self.with(|shared| shared.acts.entry(node).or_default().extend(acts));
    }

    pub(super) fn with<T>(&self, f: impl FnOnce(&mut Shared) -> T) -> T {
        f(&mut self.shared.lock().unwrap())
    }
}

#[derive(Clone)]
struct Node {
    id: u64,
    shared: Arc<Mutex<Shared>>,
    members: Vec<MemberInfo>,
}

impl Node {
    async fn serve(self, endpoint: quinn::Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            let node = self.clone();
            tokio::spawn(async move {
                let Ok((connection, _)) = quic::accept(incoming).await else { return };
                let mut first = true;
                while let Ok((send, receive)) = connection.accept_bi().await {
                    if !std::mem::take(&mut first) {
                        node.shared.lock().unwrap().own_streams += 1;
                    }
                    tokio::spawn(node.clone().stream(connection.clone(), send, receive));
                }
            });
        }
    }

    async fn stream(
        self,
        connection: quinn::Connection,
        mut send: quinn::SendStream,
        mut receive: quinn::RecvStream,
    ) {
        if self.shared.lock().unwrap().unread {
            if let Ok(Some(_)) = receive.received_reset().await {
                self.shared.lock().unwrap().resets += 1;
            }
            return;
        }
        let mut reader = FrameReader::new(receive, FRAME_BYTES_MAX);
        let mut frames = Vec::new();
        let one_writer = Semaphore::new(1);
        while let Ok(true) = reader.read_batch(&mut frames).await {
            for frame in frames.drain(..) {
                if frame.body.len() > LARGE_BYTES {
                    let takes = self.shared.lock().unwrap().large_takes;
                    tokio::time::sleep(takes).await;
                }
                let Some(bytes) = self.answer(&frame) else {
                    connection.close(7u32.into(), b"told to");
                    return;
                };
                let _writing = one_writer.acquire().await.unwrap();
                if send.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        }
        let _ = send.finish();
    }

    /// The bytes to send back; `None` to drop the connection.
    fn answer(&self, frame: &Frame) -> Option<Vec<u8>> {
        let mut shared = self.shared.lock().unwrap();
        let mut out = Vec::new();
        let id = frame.request_id;
        if frame.kind == FrameKind::Hello {
            let leader = Some(shared.leader).filter(|&leader| leader > 0);
            reply(&mut out, id, &Reply::Hello(self.hello(leader)));
            return Some(out);
        }
        if shared.mute.contains(&self.id) {
            return Some(out);
        }
        if frame.kind == FrameKind::Status {
            reply(&mut out, id, &Reply::Status(Box::new(self.status(&shared))));
            return Some(out);
        }
        let opens = matches!(decode(&frame.body, "c"), Ok(Command::OpenSession));
        let ends = matches!(decode(&frame.body, "c"), Ok(Command::CloseSession(_)));
        let act = if frame.kind == FrameKind::Write && (opens || ends) {
            None
        } else {
            shared.acts.get_mut(&self.id).and_then(|acts| acts.pop_front())
        };
        match act {
            Some(Act::Refuse(refusal)) => reply(&mut out, id, &Reply::Refused(refusal)),
            Some(Act::Ignore) => self.note(&mut shared, frame),
            Some(Act::Drop) => {
                self.note(&mut shared, frame);
                return None;
            }
            Some(Act::ApplyAndDrop) => {
                self.serve_one(&mut shared, frame, &mut out);
                return None;
            }
            Some(Act::Say(outcome)) => {
                self.note(&mut shared, frame);
                reply(&mut out, id, &Reply::Outcome(outcome));
            }
            None if shared.leader != self.id && !is_local(frame) => {
                let leader = Some(shared.leader).filter(|&leader| leader > 0);
                reply(&mut out, id, &Reply::Refused(Refusal::NotLeader { leader }));
            }
            None => self.serve_one(&mut shared, frame, &mut out),
        }
        if shared.reverse_batch > 0 && frame.kind == FrameKind::Get {
            shared.held.push((id, std::mem::take(&mut out)));
            if shared.held.len() == shared.reverse_batch {
                out = shared.held.drain(..).rev().flat_map(|(_, bytes)| bytes).collect();
            }
        }
        Some(out)
    }

    fn note(&self, shared: &mut Shared, frame: &Frame) {
        if let Ok(Command::Write { session, seq, answered_below, .. }) = decode(&frame.body, "c") {
            shared.writes.push((self.id, session, seq, answered_below));
        }
    }

    fn serve_one(&self, shared: &mut Shared, frame: &Frame, out: &mut Vec<u8>) {
        self.note(shared, frame);
        let id = frame.request_id;
        match frame.kind {
            FrameKind::Write => {
                let command: Command<'_> = decode(&frame.body, "command").unwrap();
                let outcome = apply(shared, &command);
                reply(out, id, &Reply::Outcome(outcome));
            }
            FrameKind::Get => {
                let get: Get<'_> = decode(&frame.body, "get").unwrap();
                match shared.store.get(get.key) {
                    Some((value, revision)) => {
                        reply(out, id, &Reply::Value { revision: *revision, value });
                    }
                    None => reply(out, id, &Reply::NotFound),
                }
            }
            FrameKind::Scan => scan(shared, &decode(&frame.body, "scan").unwrap(), id, out),
            _ => panic!("a client sent {:?}", frame.kind),
        }
    }

    fn hello(&self, leader: Option<u64>) -> HelloReply {
        HelloReply {
            version: 1,
            node_id: self.id,
            leader,
            members: self.members.clone(),
            value_bytes_max: 4 << 20,
        }
    }

    fn status(&self, shared: &Shared) -> Status {
        let leads = shared.leader == self.id;
        Status {
            node_id: self.id,
            name: format!("n{}", self.id),
            cluster: "test".into(),
            version: "0".into(),
            role: if leads { RoleName::Leader } else { RoleName::Follower },
            term: shared.leader,
            leader: Some(shared.leader),
            commit_index: shared.revision,
            applied_index: shared.revision,
            last_log_index: shared.revision,
            durable_index: shared.revision,
            snapshot_index: 0,
            log_bytes: 0,
            keys: shared.store.len() as u64,
            store_bytes: 0,
            oldest_revision: 0,
            state_hash: 0,
            peers: Vec::new(),
            doors: Doors::default(),
            certificates: Vec::new(),
        }
    }
}

fn is_local(frame: &Frame) -> bool {
    use crate::proto::client::Consistency::Local;
    match frame.kind {
        FrameKind::Get => decode::<Get<'_>>(&frame.body, "get").unwrap().consistency == Local,
        FrameKind::Scan => decode::<Scan<'_>>(&frame.body, "scan").unwrap().consistency == Local,
        _ => false,
    }
}

fn apply(shared: &mut Shared, command: &Command<'_>) -> Outcome {
    shared.revision += 1;
    let revision = shared.revision;
    match command {
        Command::OpenSession => {
            shared.sessions.push(SessionId(revision));
            Outcome::SessionOpened(SessionId(revision))
        }
        Command::CloseSession(session) => {
            shared.sessions.retain(|open| open != session);
            Outcome::Done
        }
        Command::Write { session, seq, op, .. } => {
            if !shared.sessions.contains(session) {
                return Outcome::SessionUnknown;
            }
            if let Some(outcome) = shared.answers.get(&(*session, *seq)) {
                return *outcome;
            }
            let existed = shared.store.contains_key(op.key());
            match op {
                Op::Put { key, value } => {
                    shared.store.insert(key.to_vec(), (value.to_vec(), revision));
                }
                Op::Delete { key } => {
                    shared.store.remove(*key);
                }
                Op::Append { key, value } => {
                    let entry = shared.store.entry(key.to_vec()).or_default();
                    entry.0.extend_from_slice(value);
                    entry.1 = revision;
                }
            }
            let outcome = Outcome::Written { revision, existed };
            shared.answers.insert((*session, *seq), outcome);
            outcome
        }
        Command::Clock { .. } | Command::Compact { .. } => panic!("a client sent a clock"),
    }
}

fn scan(shared: &Shared, scan: &Scan<'_>, id: u64, out: &mut Vec<u8>) {
    let to = scan.to.map(|to| to.to_vec());
    let inside = |key: &[u8]| key >= scan.from && to.as_deref().is_none_or(|to| key < to);
    let mut rows: Vec<_> = shared.store.iter().filter(|(key, _)| inside(key)).collect();
    if scan.reverse {
        rows.reverse();
    }
    let more = rows.len() as u64 > scan.limit;
    rows.truncate(usize::try_from(scan.limit).unwrap_or(usize::MAX));
    for page in rows.chunks(10) {
        let rows = page.iter().map(|(key, (value, revision))| Row {
            key,
            value: if scan.mode == ScanMode::Keys { &[] } else { value },
            revision: *revision,
        });
        if scan.mode != ScanMode::Count {
            reply(out, id, &Reply::Rows(rows.collect()));
        }
    }
    let rows = rows.len() as u64;
    reply(out, id, &Reply::ScanEnd { rows, revision: shared.revision, more });
}

fn reply(out: &mut Vec<u8>, id: u64, reply: &Reply<'_>) {
    encode_frame(out, FrameKind::Reply, id, |body| encode(reply, body));
}
