//! What is replicated: the body of a log entry of kind `Command`, and exactly what a client's `Write` frame carries.

use serde::{Deserialize, Serialize};

use super::limits::KEY_BYTES_MAX;

/// A client's session: the log index of the entry that opened it, so never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId(pub u64);

/// One replicated command. Time enters the store only through [`Command::Clock`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command<'a> {
    /// The leader's clock, in milliseconds since 1970; the store's time never goes back. Clients may not send it.
    Clock {
        /// Milliseconds since 1970.
        now_ms: u64,
    },
    /// Opens a session; answered by [`Outcome::SessionOpened`].
    OpenSession,
    /// Ends a session.
    CloseSession(SessionId),
    /// One write of a session, applied exactly once however often it is sent.
    Write {
        /// Whose write.
        session: SessionId,
        /// The session's number of this write, from 1, each used for one write only.
        seq: u64,
        /// All numbers below this one were answered to the client and may be forgotten.
        answered_below: u64,
        /// What to do.
        #[serde(borrow)]
        op: Op<'a>,
    },
    /// Revisions below `below` can no longer be read; the leader's decision by its clock and the configured retention.
    /// Clients may not send it.
    Compact {
        /// The oldest revision that stays readable; the index of this entry if that is lower.
        below: u64,
    },
}

/// A change to one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op<'a> {
    /// Sets the key to a value.
    Put {
        /// 1 to [`KEY_BYTES_MAX`] bytes.
        #[serde(borrow, with = "serde_bytes")]
        key: &'a [u8],
        /// Any bytes up to the configured limit.
        #[serde(borrow, with = "serde_bytes")]
        value: &'a [u8],
    },
    /// Removes the key; no error if it was not there.
    Delete {
        /// 1 to [`KEY_BYTES_MAX`] bytes.
        #[serde(borrow, with = "serde_bytes")]
        key: &'a [u8],
    },
    /// Adds to the end of the key's value; a missing key is like an empty value.
    Append {
        /// 1 to [`KEY_BYTES_MAX`] bytes.
        #[serde(borrow, with = "serde_bytes")]
        key: &'a [u8],
        /// What to add.
        #[serde(borrow, with = "serde_bytes")]
        value: &'a [u8],
    },
}

impl<'a> Op<'a> {
    /// The key that is changed.
    pub fn key(&self) -> &'a [u8] {
        match self {
            Op::Put { key, .. } | Op::Delete { key } | Op::Append { key, .. } => key,
        }
    }

    /// Bytes of the value that is brought along.
    pub fn value_bytes(&self) -> usize {
        match self {
            Op::Put { value, .. } | Op::Append { value, .. } => value.len(),
            Op::Delete { .. } => 0,
        }
    }
}

/// Whether `key` has a length that keys may have.
pub fn key_is_valid(key: &[u8]) -> bool {
    (1..=KEY_BYTES_MAX).contains(&key.len())
}

/// The replicated result of a command: the same on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The write was applied as this revision, now or by an earlier sending of the same write.
    Written {
        /// The log index of the entry that applied it.
        revision: u64,
        /// Whether the key existed before.
        existed: bool,
    },
    /// A session was opened.
    SessionOpened(SessionId),
    /// Nothing to say: clock entries and closed sessions.
    Done,
    /// The session is not known, because it ended after idle time or under pressure; nothing was applied.
    SessionUnknown,
    /// The number was answered before and has been forgotten; nothing was applied now.
    SequenceStale,
    /// The session has too many unanswered writes; nothing was applied.
    SessionFull,
    /// The value would grow beyond the limit; nothing was applied.
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// The key's length is not allowed; nothing was applied.
    KeyInvalid,
}
