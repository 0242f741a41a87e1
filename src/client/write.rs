//! Writes: a session, a number for each write, and what the outcome means.
//!
//! In: an operation on one key. Out: the revision that applied it. Always: one number is used for one
//! operation; a write goes again under a new session only when it is certain that the old one did not apply
//! it (it was refused as of an unknown session, and no other sending of it has an unknown fate); otherwise
//! the caller gets [`Error::Unknown`]. Exactly-once: thesis 6.3.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::retry::{self, Answer, Attempts, Request};
use super::routes::To;
use super::session::{Seq, Session};
use super::{Client, Deleted, Error, Revision, check_key, unexpected};
use crate::proto::command::{Command, Op, Outcome, SessionId};
use crate::proto::frame::FrameKind;
use crate::proto::limits::VALUE_BYTES_CEILING;

const SESSION_FULL_WAIT: Duration = Duration::from_millis(20);
const CLOSE_SESSION_TIMEOUT: Duration = Duration::from_millis(200);

impl Client {
    /// Sets a key to a value.
    ///
    /// # Errors
    /// [`Error`]; [`Error::may_have_happened`] says whether it may have been applied nevertheless.
    pub async fn put(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<Revision, Error> {
        let written = self.write(Op::Put { key: key.as_ref(), value: value.as_ref() }).await?;
        Ok(written.revision)
    }

    /// Adds to the end of a key's value; a key that is not there is like an empty one.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn append(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<Revision, Error> {
        let written = self.write(Op::Append { key: key.as_ref(), value: value.as_ref() }).await?;
        Ok(written.revision)
    }

    /// Removes a key.
    ///
    /// # Errors
    /// As [`Client::put`]; a key that is not there is no error.
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<Deleted, Error> {
        self.write(Op::Delete { key: key.as_ref() }).await
    }

    async fn write(&self, op: Op<'_>) -> Result<Deleted, Error> {
        check_key(op.key())?;
        let limit = self.inner.routes.value_bytes_max().unwrap_or(VALUE_BYTES_CEILING as u64);
        if op.value_bytes() as u64 > limit {
            return Err(Error::TooLarge { limit });
        }
        let deadline = Instant::now() + self.timeout;
        let mut attempts = Attempts::default();
        match timeout_at(deadline, self.write_once(&op, &mut attempts)).await {
            Ok(Err(_)) if attempts.unresolved => Err(Error::Unknown),
            Ok(result) => result,
            Err(_) => Err(Error::Timeout {
                may_have_happened: attempts.may_have_happened(),
                last: attempts.last,
            }),
        }
    }

    async fn write_once(&self, op: &Op<'_>, attempts: &mut Attempts) -> Result<Deleted, Error> {
        loop {
            let cell = self.session_cell();
            let session = self.open_session(&cell, attempts).await?;
            let seq = session.take().await;
            match self.write_as(op, &seq, attempts).await? {
                Outcome::Written { revision, existed } => return Ok(Deleted { revision, existed }),
                Outcome::SessionUnknown if !attempts.unresolved => self.renew_session(&cell),
                Outcome::SessionUnknown => {
                    self.renew_session(&cell);
                    return Err(Error::Unknown);
                }
                Outcome::SequenceStale => {
                    // We number no two writes alike: only an earlier sending can have used it.
                    attempts.unresolved = true;
                    return Err(Error::Unknown);
                }
                Outcome::TooLarge { limit } => {
                    attempts.unresolved = false;
                    return Err(Error::TooLarge { limit });
                }
                Outcome::KeyInvalid => {
                    attempts.unresolved = false;
                    return Err(Error::KeyInvalid { bytes: op.key().len() });
                }
                Outcome::SessionFull => unreachable!("write_as asks again"),
                Outcome::SessionOpened(_) | Outcome::Done => {
                    attempts.unresolved = true;
                    return Err(unexpected(self.leader().unwrap_or(0), "a write"));
                }
            }
        }
    }

    /// Sends one write under one number until it has an outcome.
    async fn write_as(
        &self,
        op: &Op<'_>,
        seq: &Seq,
        attempts: &mut Attempts,
    ) -> Result<Outcome, Error> {
        let encode = |body: &mut Vec<u8>| {
            let command = Command::Write {
                session: seq.session.id,
                seq: seq.number,
                answered_below: seq.answered_below(),
                op: op.clone(),
            };
            crate::proto::encode(&command, body);
        };
        let bytes = op.key().len() + op.value_bytes();
        loop {
            match self.ask_command(bytes, &encode, attempts).await? {
                Outcome::SessionFull => sleep(SESSION_FULL_WAIT).await,
                outcome => return Ok(outcome),
            }
        }
    }

    async fn ask_command(
        &self,
        bytes: usize,
        encode: &(dyn Fn(&mut Vec<u8>) + Send + Sync),
        attempts: &mut Attempts,
    ) -> Result<Outcome, Error> {
        let request = Request { kind: FrameKind::Write, to: To::Leader, bytes, encode };
        let inner = &self.inner;
        let answered = retry::ask(&inner.routes, &inner.scout, &request, attempts).await?;
        match answered.first {
            Answer::Outcome(outcome) => Ok(outcome),
            _ => {
                attempts.unresolved = true;
                Err(unexpected(answered.node_id, "a write"))
            }
        }
    }

    /// The session of `cell`, opened by the first who needs it. A second opening by a retry leaves an idle
    /// session behind, no harm.
    async fn open_session(
        &self,
        cell: &OnceCell<Arc<Session>>,
        attempts: &mut Attempts,
    ) -> Result<Arc<Session>, Error> {
        if let Some(session) = cell.get() {
            return Ok(Arc::clone(session));
        }
        let open = || async {
            // What becomes of an opening says nothing about the write.
            let mut opening = Attempts::default();
            let encode = |body: &mut Vec<u8>| crate::proto::encode(&Command::OpenSession, body);
            match self.ask_command(0, &encode, &mut opening).await? {
                Outcome::SessionOpened(id) => Ok(Arc::new(Session::new(id))),
                _ => Err(unexpected(self.leader().unwrap_or(0), "the opening of a session")),
            }
        };
        attempts.last.get_or_insert_with(|| "no leader has opened a session".into());
        let session = cell.get_or_try_init(open).await?;
        attempts.last = None;
        Ok(Arc::clone(session))
    }

    fn session_cell(&self) -> Arc<OnceCell<Arc<Session>>> {
        Arc::clone(&self.session_lock())
    }

    /// The next write opens a new session, unless another one has seen to that already.
    fn renew_session(&self, old: &Arc<OnceCell<Arc<Session>>>) {
        let mut cell = self.session_lock();
        if Arc::ptr_eq(&cell, old) {
            *cell = Arc::default();
        }
    }

    /// Tells the cluster that the session is over, if that is quickly done; it would end by itself after an
    /// idle hour.
    pub(super) async fn close_session(&self) {
        let cell = std::mem::take(&mut *self.session_lock());
        let Some(id) = cell.get().map(|session| session.id) else { return };
        let encode =
            move |body: &mut Vec<u8>| crate::proto::encode(&Command::CloseSession(id), body);
        let mut attempts = Attempts::default();
        let _ = timeout(CLOSE_SESSION_TIMEOUT, self.ask_command(0, &encode, &mut attempts)).await;
    }

    fn session_lock(&self) -> MutexGuard<'_, Arc<OnceCell<Arc<Session>>>> {
        self.inner.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session of this client's writes, once one is open.
    pub fn session(&self) -> Option<SessionId> {
        self.session_lock().get().map(|session| session.id)
    }
}
