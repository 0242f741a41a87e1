//! What is replicated: the body of a log entry of kind `Command` is an owner and a [`Command`].
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 8 | owner ([`Principal`]), little-endian |
//! | 8 | | command, in postcard: exactly what the client's `Write` frame carries |
//!
//! The leader writes the owner. It takes the owner from the certificate of the client's connection, or from the client's
//! identity in a forwarded write, never from the command.

use serde::{Deserialize, Serialize};

use super::limits::KEY_BYTES_MAX;
use super::{Malformed, decode};

/// Whose command an entry is: a client or node by its name, whatever its role; or the cluster itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Principal(pub u64);

impl Principal {
    /// The cluster itself, in whose name only a leader writes.
    pub const CLUSTER: Principal = Principal(0);
    /// Bytes before the command in the body of an entry.
    pub const BYTES: usize = 8;

    /// What stands before the command in the body of an entry.
    pub fn to_bytes(self) -> [u8; Principal::BYTES] {
        self.0.to_le_bytes()
    }
}

/// Owner and command of an entry's body. Every reader of the log comes here.
///
/// # Errors
/// [`Malformed`] if the bytes are no owner with a command, or the command is the cluster's and the owner somebody else.
pub fn decode_entry(body: &[u8]) -> Result<(Principal, Command<'_>), Malformed> {
    let (owner, command) =
        body.split_first_chunk::<{ Principal::BYTES }>().ok_or(Malformed("owner"))?;
    let owner = Principal(u64::from_le_bytes(*owner));
    let command: Command<'_> = decode(command, "command")?;
    let is_own = matches!(command, Command::Clock { .. } | Command::Compact { .. });
    if is_own && owner != Principal::CLUSTER {
        return Err(Malformed("owner of a command"));
    }
    Ok((owner, command))
}

/// A client's session: the log index of the entry that opened it, so never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId(pub u64);

/// One replicated command. Time enters the store only through [`Command::Clock`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command<'a> {
    /// The log's time, in milliseconds since 1970; the store's time never goes back. Only the cluster's own.
    Clock {
        /// Milliseconds since 1970.
        now_ms: u64,
    },
    /// Opens a session of the entry's owner; answered by [`Outcome::SessionOpened`].
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
    /// Revisions below `below` can no longer be read; the leader's decision by the log's time and the configured
    /// retention. Only the cluster's own.
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
    /// The client has no such session: it ended after idle time or under pressure, or another's client opened it. Nothing
    /// was applied.
    SessionUnknown,
    /// The number was answered before and has been forgotten; nothing was applied now.
    SequenceStale,
    /// The session or its owner has too many unanswered writes; nothing was applied.
    SessionFull,
    /// The value would grow beyond the limit; nothing was applied.
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// The key's length is not allowed; nothing was applied.
    KeyInvalid,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::encode;

    fn entry(owner: Principal, command: &Command<'_>) -> Vec<u8> {
        let mut command_bytes = Vec::new();
        encode(command, &mut command_bytes);
        [&owner.to_bytes()[..], &command_bytes].concat()
    }

    #[test]
    fn an_entry_says_whose_command_it_is() {
        let op = Op::Put { key: b"key", value: b"value" };
        let command = Command::Write { session: SessionId(7), seq: 1, answered_below: 1, op };
        let body = entry(Principal(0x0102_0304_0506_0708), &command);
        assert_eq!(body[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(decode_entry(&body), Ok((Principal(0x0102_0304_0506_0708), command)));
        for cut in 0..body.len() {
            assert!(decode_entry(&body[..cut]).is_err(), "{cut} bytes");
        }
    }

    #[test]
    fn commands_of_the_cluster_are_nobody_elses() {
        for command in [Command::Clock { now_ms: 1 }, Command::Compact { below: 1 }] {
            assert!(decode_entry(&entry(Principal::CLUSTER, &command)).is_ok());
            assert!(decode_entry(&entry(Principal(1), &command)).is_err(), "{command:?}");
        }
    }
}
