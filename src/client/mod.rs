//! The client library: a cluster as one ordered key-value store.
//!
//! In: keys, values and a directory with certificates. Out: results, or an [`Error`] that says what the
//! caller can do and, for a write, whether it may have happened. Always: each write is applied at most once
//! however often it had to be sent, and exactly once when it returns `Ok`; default reads see every write
//! acknowledged before they began; every operation ends by its deadline; every queue is bounded. Left out:
//! transactions and watches (later), and everything that a server needs.
//!
//! ```no_run
//! # async fn example() -> Result<(), quicraft::client::Error> {
//! use quicraft::client::{Client, Options};
//!
//! let client = Client::connect(Options::default()).await?;
//! client.put("greeting", "hello").await?;
//! let value = client.get("greeting").await?.expect("it was just written");
//! assert_eq!(&value.bytes[..], b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! How it works, from the outside in: `write` gives a write its session and number; `retry` sends a request
//! to one node after another until it is answered; `routes` knows the nodes and who leads; `connection`
//! carries any number of requests to one node; `watchdog` notices a dead node early; `transport` is the way
//! down to QUIC. A client is cheap to clone; all clones share its connections and its session.

mod backup;
mod connection;
mod error;
mod manage;
mod retry;
mod routes;
mod scan;
mod session;
#[cfg(all(test, feature = "server"))]
mod tests;
mod transport;
mod watchdog;
mod write;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OnceCell, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use self::retry::{Answer, Answered, Attempts, Request};
use self::routes::{Routes, To};
use self::session::Session;
use self::transport::{DialError, Transport};
use crate::proto::client::Get;
use crate::proto::command::key_is_valid;
use crate::proto::frame::FrameKind;

pub use self::backup::SnapshotStream;
pub use self::error::Error;
pub use self::scan::{Row, ScanEnd, ScanRequest, ScanStream, prefix_end};
pub use crate::proto::client::{
    CertificateStatus, Consistency, Door, Doors, Manage, MemberInfo, MemberKind, PeerStatus,
    RoleName, ScanMode, Status,
};

/// How to reach a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `host:port` of one or more nodes; one that answers is enough, it names the others.
    pub endpoints: Vec<String>,
    /// Directory with `ca.crt`, `NAME.crt` and `NAME.key`.
    pub certs: PathBuf,
    /// The name in the client's certificate.
    pub name: String,
    /// How long one operation may take, all its retries included.
    pub timeout: Duration,
}

impl Default for Options {
    /// A cluster on this machine, as `quicraft cluster` starts it.
    fn default() -> Options {
        Options {
            endpoints: vec!["127.0.0.1:7001".into()],
            certs: "certs".into(),
            name: "client".into(),
            timeout: Duration::from_secs(5),
        }
    }
}

/// The place of a write in the history of the whole cluster: later writes have higher ones.
pub type Revision = u64;

/// A value that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The revision that wrote it.
    pub revision: Revision,
    /// The value itself.
    pub bytes: Bytes,
}

/// What a delete found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// The revision of the delete.
    pub revision: Revision,
    /// Whether the key was there.
    pub existed: bool,
}

/// One member of the cluster and how it is, or why it did not say.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// The member.
    pub member: MemberInfo,
    /// What it said.
    pub status: Result<Status, Error>,
}

/// A connection to a cluster. Clones share it.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
    timeout: Duration,
}

#[derive(Debug)]
struct Inner {
    routes: Arc<Routes>,
    /// The session of all writes, opened by the first one; replaced when the cluster has forgotten it.
    session: Mutex<Arc<OnceCell<Arc<Session>>>>,
    scout: Semaphore,
}

impl Client {
    /// Reaches the first endpoint that answers. Every endpoint is tried once, all at the same time.
    ///
    /// # Errors
    /// [`Error::Credentials`] for certificates that cannot be used, [`Error::Rejected`] if a node or this client does not accept
    /// the other, [`Error::Unreachable`] if no endpoint answers.
    pub async fn connect(options: Options) -> Result<Client, Error> {
        let transport = Transport::new(&options.certs, &options.name)?;
        let routes = Routes::new(transport, options.endpoints);
        let client = Client {
            inner: Arc::new(Inner {
                routes,
                session: Mutex::new(Arc::default()),
                scout: Semaphore::new(1),
            }),
            timeout: options.timeout,
        };
        client.reach_any(Instant::now() + options.timeout).await?;
        Ok(client)
    }

    /// The same connection and session, with another time for each operation, all its retries included.
    pub fn with_timeout(&self, timeout: Duration) -> Client {
        Client { inner: Arc::clone(&self.inner), timeout }
    }

    async fn reach_any(&self, deadline: Instant) -> Result<(), Error> {
        let mut dials = JoinSet::new();
        for endpoint in self.inner.routes.endpoints() {
            let routes = Arc::clone(&self.inner.routes);
            dials.spawn(async move { routes.link_to(endpoint, None).await });
        }
        let mut failures: Vec<DialError> = Vec::new();
        let reached = timeout_at(deadline, async {
            while let Some(result) = dials.join_next().await {
                match result {
                    Ok(Ok(_)) => return true,
                    Ok(Err(error)) => failures.push(error),
                    Err(_) => {}
                }
            }
            false
        });
        if reached.await == Ok(true) {
            return Ok(());
        }
        if let Some(failure) = failures.iter().find(|failure| failure.rejected) {
            let DialError { address, reason, .. } = failure.clone();
            return Err(Error::Rejected { address, reason });
        }
        let tried = failures.into_iter().map(|failure| (failure.address, failure.reason)).collect();
        Err(Error::Unreachable { tried })
    }

    /// Reads a key; sees every write that was acknowledged before, by whomever.
    ///
    /// # Errors
    /// [`Error`]; never one that speaks of a write.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Value>, Error> {
        self.read(key.as_ref(), To::Leader, None).await
    }

    /// Reads a key as one node has it, `node` or any: perhaps old, but without asking a majority.
    ///
    /// # Errors
    /// [`Error::WrongNode`] if another node answers at the address of that one; otherwise as [`Client::get`].
    pub async fn get_local(
        &self,
        key: impl AsRef<[u8]>,
        node: Option<u64>,
    ) -> Result<Option<Value>, Error> {
        self.read(key.as_ref(), node.map_or(To::Any, To::Node), None).await
    }

    /// Reads a key as it was at an older revision: just after the write that made it.
    ///
    /// # Errors
    /// [`Error::Compacted`] for a revision that is gone, [`Error::Invalid`] for one that is yet to come; otherwise as
    /// [`Client::get`].
    pub async fn get_at(
        &self,
        key: impl AsRef<[u8]>,
        revision: u64,
    ) -> Result<Option<Value>, Error> {
        self.read(key.as_ref(), To::Leader, Some(revision)).await
    }

    async fn read(
        &self,
        key: &[u8],
        to: To,
        revision: Option<u64>,
    ) -> Result<Option<Value>, Error> {
        check_key(key)?;
        self.check_members(to)?;
        let consistency =
            if to == To::Leader { Consistency::Linearizable } else { Consistency::Local };
        let encode = |body: &mut Vec<u8>| {
            crate::proto::encode(&Get { key, consistency, revision }, body);
        };
        let request = Request { kind: FrameKind::Get, to, bytes: key.len(), encode: &encode };
        let answered = self.ask_reading(&request).await?;
        match answered.first {
            Answer::Value { revision, bytes } => Ok(Some(Value { revision, bytes })),
            Answer::NotFound => Ok(None),
            _ => Err(unexpected(answered.node_id, "a get")),
        }
    }

    /// Reads a range of keys, in order, all at one revision.
    ///
    /// # Errors
    /// As [`Client::get`], for the first page; later ones as [`ScanStream::next`] says.
    pub async fn scan(&self, request: ScanRequest) -> Result<ScanStream, Error> {
        let to = request.destination();
        self.check_members(to)?;
        let encode = |body: &mut Vec<u8>| request.encode(body);
        let bytes = request.from.len() + request.to.as_ref().map_or(0, Vec::len);
        let request = Request { kind: FrameKind::Scan, to, bytes, encode: &encode };
        let answered = self.ask_reading(&request).await?;
        ScanStream::new(answered, self.timeout)
    }

    /// Takes a backup: a snapshot of all that is acknowledged by now.
    ///
    /// # Errors
    /// As [`Client::get`]; later ones as [`SnapshotStream::next`] says.
    pub async fn save_snapshot(&self) -> Result<SnapshotStream, Error> {
        let encode = |_: &mut Vec<u8>| ();
        let request = Request { kind: FrameKind::Save, to: To::Leader, bytes: 0, encode: &encode };
        let answered = self.ask_reading(&request).await?;
        SnapshotStream::new(answered, self.timeout)
    }

    /// How one node is; asks that node alone, once or again until the deadline.
    ///
    /// # Errors
    /// [`Error::NoSuchNode`], [`Error::WrongNode`] if another node answers at its address, or [`Error::Timeout`] if it
    /// does not answer.
    pub async fn status(&self, node_id: u64) -> Result<Status, Error> {
        self.check_members(To::Node(node_id))?;
        let (to, encode) = (To::Node(node_id), |_: &mut Vec<u8>| ());
        let request = Request { kind: FrameKind::Status, to, bytes: 0, encode: &encode };
        let answered = self.ask_reading(&request).await?;
        match answered.first {
            Answer::Status(status) if status.node_id == node_id => Ok(*status),
            _ => Err(unexpected(answered.node_id, "a status request")),
        }
    }

    /// How all nodes are, in the order of their ids. Each is asked once, and given a second at most.
    pub async fn status_all(&self) -> Vec<NodeStatus> {
        let deadline = Instant::now() + self.timeout.min(STATUS_TIMEOUT);
        let mut asked = JoinSet::new();
        for member in self.members() {
            let routes = Arc::clone(&self.inner.routes);
            asked.spawn(async move {
                let status = timeout_at(deadline, status_once(&routes, &member)).await;
                let late = Error::Timeout { may_have_happened: false, last: None };
                NodeStatus { member, status: status.unwrap_or(Err(late)) }
            });
        }
        let mut all = asked.join_all().await;
        all.sort_by_key(|one| one.member.id);
        all
    }

    /// The members of the cluster, as its nodes say.
    pub fn members(&self) -> Vec<MemberInfo> {
        self.inner.routes.members()
    }

    /// Who leads, as far as this client knows.
    pub fn leader(&self) -> Option<u64> {
        *self.inner.routes.leader.borrow()
    }

    /// Ends the session and the connections. Operations under way on other clones end with an error.
    pub async fn close(&self) {
        self.close_session().await;
        self.inner.routes.close().await;
    }

    /// Asks with the client's timeout; for requests that change nothing.
    async fn ask_reading(&self, request: &Request<'_>) -> Result<Answered, Error> {
        let deadline = Instant::now() + self.timeout;
        let mut attempts = Attempts::default();
        let inner = &self.inner;
        let asked = retry::ask(&inner.routes, &inner.scout, request, &mut attempts);
        match timeout_at(deadline, asked).await {
            Ok(result) => result,
            Err(_) => Err(Error::Timeout { may_have_happened: false, last: attempts.last }),
        }
    }

    fn check_members(&self, to: To) -> Result<(), Error> {
        match to {
            To::Node(node_id) if self.members().iter().all(|member| member.id != node_id) => {
                Err(Error::NoSuchNode { node_id })
            }
            To::Node(_) | To::Leader | To::Any => Ok(()),
        }
    }
}

const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

async fn status_once(routes: &Arc<Routes>, member: &MemberInfo) -> Result<Status, Error> {
    let unreachable =
        |cause: String| Error::Unreachable { tried: vec![(member.client_address.clone(), cause)] };
    let link = routes.link_to_member(member).await.map_err(DialError::into_error)?;
    let frame =
        link.call(FrameKind::Status, &|_| ()).await.map_err(|lost| unreachable(lost.reason))?;
    match Answer::from_frame(&frame) {
        Ok(Answer::Status(status)) if status.node_id == member.id => Ok(*status),
        Ok(Answer::Refused(refusal)) => {
            Err(Error::from_refusal(&refusal)
                .unwrap_or_else(|| unreachable("it is too busy".into())))
        }
        Ok(_) | Err(_) => Err(unexpected(member.id, "a status request")),
    }
}

fn check_key(key: &[u8]) -> Result<(), Error> {
    if key_is_valid(key) { Ok(()) } else { Err(Error::KeyInvalid { bytes: key.len() }) }
}

fn unexpected(node_id: u64, question: &str) -> Error {
    Error::Protocol { node_id, what: format!("no answer to {question}") }
}
