//! The client library: finds the leader, pipelines over one connection per node, retries safely.
//!
//! **What it is for.** A [`Client`] is cheap to clone and meant to be shared by all tasks of a process:
//! their requests travel together, which is what makes them fast.
//!
//! **What always holds.** A write is applied once, however often it had to be sent: it keeps its session
//! and number over all retries. If its answer never came, the error is [`Error::Unknown`], and no other
//! error hides a write that may have happened. Reads see every write acknowledged before they began.
//!
//! **What is left out.** Caching, and everything that a node does.
//!
//! ```no_run
//! # async fn example() -> Result<(), quicraft::client::Error> {
//! let client = quicraft::client::Client::connect(Default::default()).await?;
//! client.put(b"greeting", b"hello").await?;
//! assert_eq!(client.get(b"greeting").await?.unwrap().bytes, b"hello");
//! # Ok(()) }
//! ```

mod connection;
mod error;
mod route;
mod scan;
mod session;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

pub use error::Error;
pub use scan::{Row, ScanEnd, ScanRequest, ScanStream};

use crate::proto::client::{Consistency, Get, MemberInfo, Reply, Status};
use crate::proto::command::{Command, Op, Outcome, key_is_valid};
use crate::proto::frame::FrameKind;
use crate::proto::limits::SESSION_IN_FLIGHT_MAX;
use connection::decode;
use route::Router;
use session::{Session, Slot};

/// How to reach a cluster. The default is what `quicraft cluster` runs on this machine.
#[derive(Clone, Debug)]
pub struct Options {
    /// `host:port` of some nodes; the others are found through them.
    pub endpoints: Vec<String>,
    /// Directory with `ca.crt`, `NAME.crt` and `NAME.key`.
    pub certs: PathBuf,
    /// The client's name.
    pub name: String,
    /// How long one operation may take, retries included.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            endpoints: vec!["127.0.0.1:7001".to_owned()],
            certs: PathBuf::from("certs"),
            name: "client".to_owned(),
            timeout: Duration::from_secs(5),
        }
    }
}

/// A value and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The value.
    pub bytes: Vec<u8>,
    /// The revision that wrote it.
    pub revision: u64,
}

/// A write that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The revision that it made.
    pub revision: u64,
    /// Whether the key was there before.
    pub existed: bool,
}

/// A connection to a cluster; clones share it.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    router: Router,
    session: Mutex<Option<Session>>,
    /// Held by whoever opens a session.
    opening: tokio::sync::Mutex<()>,
    /// One for each write that the session may have under way.
    permits: Semaphore,
}

/// A write's number is given back however its caller ends.
struct Numbered<'a> {
    inner: &'a Inner,
    slot: Slot,
}

impl Drop for Numbered<'_> {
    fn drop(&mut self) {
        if let Some(session) = &mut *self.inner.session() {
            session.end(self.slot);
        }
    }
}

impl Inner {
    fn session(&self) -> MutexGuard<'_, Option<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// Connects to the first endpoint that answers.
    ///
    /// # Errors
    /// [`Error::Credentials`], or why no endpoint answers.
    pub async fn connect(options: Options) -> Result<Client, Error> {
        let inner = Inner {
            router: Router::connect(&options).await?,
            session: Mutex::new(None),
            opening: tokio::sync::Mutex::new(()),
            permits: Semaphore::new(SESSION_IN_FLIGHT_MAX),
        };
        Ok(Client { inner: Arc::new(inner) })
    }

    /// Sets a key.
    ///
    /// # Errors
    /// [`Error::Unknown`] if it may have happened; with any other it did not.
    pub async fn put(&self, key: &[u8], value: &[u8]) -> Result<Written, Error> {
        self.write(Op::Put { key, value }).await
    }

    /// Adds to the end of a key's value; a missing key is like an empty value.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn append(&self, key: &[u8], value: &[u8]) -> Result<Written, Error> {
        self.write(Op::Append { key, value }).await
    }

    /// Removes a key; [`Written::existed`] says whether it was there.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn delete(&self, key: &[u8]) -> Result<Written, Error> {
        self.write(Op::Delete { key }).await
    }

    /// Reads a key; `None` if it is not there.
    ///
    /// # Errors
    /// [`Error`] says why there is no answer.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Value>, Error> {
        self.get_with(key, Consistency::Linearizable).await
    }

    /// Reads a key as freshly as asked.
    ///
    /// # Errors
    /// [`Error`] says why there is no answer.
    pub async fn get_with(
        &self,
        key: &[u8],
        consistency: Consistency,
    ) -> Result<Option<Value>, Error> {
        check_key(key)?;
        let mut body = Vec::with_capacity(key.len() + 8);
        crate::proto::encode(&Get { key, consistency }, &mut body);
        let reply = self.inner.router.ask(FrameKind::Get, &body).await?.body;
        match decode(&reply)? {
            Reply::Value { revision, value } => Ok(Some(Value { bytes: value.to_vec(), revision })),
            Reply::NotFound => Ok(None),
            reply => Err(Error::Protocol(format!("{reply:.80?} to a get"))),
        }
    }

    /// Reads a range in key order, all of it at one revision.
    ///
    /// # Errors
    /// [`Error`] says why it does not begin.
    pub async fn scan(&self, request: &ScanRequest) -> Result<ScanStream, Error> {
        let (first, stream) = self.inner.router.open(FrameKind::Scan, &request.encode()).await?;
        ScanStream::new(&first, stream)
    }

    /// The members of the cluster.
    pub fn members(&self) -> Vec<MemberInfo> {
        self.inner.router.members()
    }

    /// How one member is, by its own word.
    ///
    /// # Errors
    /// Why it does not answer.
    pub async fn status(&self, member: &MemberInfo) -> Result<Status, Error> {
        let reply = self.inner.router.ask_member(member, FrameKind::Status, &[]).await?;
        match decode(&reply)? {
            Reply::Status(status) => Ok(status),
            reply => Err(Error::Protocol(format!("{reply:.80?} to a status request"))),
        }
    }

    /// Ends the session and the connections; what is under way ends with an error.
    pub async fn close(self) {
        let session = self.inner.session().take();
        if let Some(session) = session {
            let mut body = Vec::new();
            crate::proto::encode(&Command::CloseSession(session.id()), &mut body);
            // The cluster ends an idle session by itself if it does not hear this.
            let ask = self.inner.router.ask(FrameKind::Write, &body);
            let _ = tokio::time::timeout(CLOSE_PATIENCE, ask).await;
        }
        self.inner.router.close();
        self.inner.router.wait_closed().await;
    }

    async fn write(&self, op: Op<'_>) -> Result<Written, Error> {
        check_key(op.key())?;
        let limit = self.inner.router.value_bytes_max();
        if let Some(limit) = limit.filter(|&limit| op.value_bytes() as u64 > limit) {
            return Err(Error::TooLarge { limit });
        }
        let closed = |_| Error::Protocol("the client is closed".to_owned());
        let _permit = self.inner.permits.acquire().await.map_err(closed)?;
        loop {
            let numbered = self.number().await?;
            let Slot { session, seq, answered_below } = numbered.slot;
            let command = Command::Write { session, seq, answered_below, op: op.clone() };
            let mut body = Vec::with_capacity(op.key().len() + op.value_bytes() + 48);
            crate::proto::encode(&command, &mut body);
            let answered = self.inner.router.ask(FrameKind::Write, &body).await?;
            let outcome = match decode(&answered.body)? {
                Reply::Outcome(outcome) => outcome,
                reply => return Err(Error::Protocol(format!("{reply:.80?} to a write"))),
            };
            match outcome {
                Outcome::Written { revision, existed } => return Ok(Written { revision, existed }),
                Outcome::TooLarge { limit } => return Err(Error::TooLarge { limit }),
                Outcome::KeyInvalid => return Err(Error::KeyLength(op.key().len())),
                Outcome::SessionUnknown if !answered.sent_before => self.forget(session),
                Outcome::SessionFull if !answered.sent_before => {
                    tokio::time::sleep(FULL_PATIENCE).await;
                }
                Outcome::SessionUnknown | Outcome::SequenceStale | Outcome::SessionFull => {
                    let reason = "the session ended while the write was being retried";
                    return Err(Error::Unknown(reason.to_owned()));
                }
                Outcome::SessionOpened(_) | Outcome::Done => {
                    return Err(Error::Protocol(format!("{outcome:?} to a write")));
                }
            }
        }
    }

    /// A number for a write, in a session that is opened first if there is none.
    async fn number(&self) -> Result<Numbered<'_>, Error> {
        loop {
            if let Some(slot) = self.inner.session().as_mut().map(Session::begin) {
                return Ok(Numbered { inner: &self.inner, slot });
            }
            let _opening = self.inner.opening.lock().await;
            if self.inner.session().is_some() {
                continue;
            }
            let mut body = Vec::new();
            crate::proto::encode(&Command::OpenSession, &mut body);
            let reply = match self.inner.router.ask(FrameKind::Write, &body).await {
                Ok(answered) => answered.body,
                // A session more or less: the write itself was not sent.
                Err(Error::Unknown(reason)) => return Err(Error::Timeout(reason)),
                Err(error) => return Err(error),
            };
            match decode(&reply)? {
                Reply::Outcome(Outcome::SessionOpened(id)) => {
                    *self.inner.session() = Some(Session::new(id));
                }
                reply => return Err(Error::Protocol(format!("{reply:.80?} to a new session"))),
            }
        }
    }

    /// The cluster does not know this session any more.
    fn forget(&self, id: crate::proto::command::SessionId) {
        let mut session = self.inner.session();
        if session.as_ref().is_some_and(|session| session.id() == id) {
            *session = None;
        }
    }
}

fn check_key(key: &[u8]) -> Result<(), Error> {
    if key_is_valid(key) { Ok(()) } else { Err(Error::KeyLength(key.len())) }
}

/// How long a closing client waits for the end of its session.
const CLOSE_PATIENCE: Duration = Duration::from_millis(200);
/// How long a write waits when its session is full.
const FULL_PATIENCE: Duration = Duration::from_millis(5);
