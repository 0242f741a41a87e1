//! A peer's frame to a message with its entries, and back.

use bytes::Bytes;

use crate::proto::{self, Malformed, peer};
use crate::raft::{Body, EntryKind, EntryMeta, Membership, Message, Payload};
use crate::wal::Batch;

/// Decodes the body of a `Raft` frame.
///
/// # Errors
/// [`Malformed`] for bytes that are no message, entries of no known form, or a membership that is none.
pub fn decode_message(bytes: &Bytes) -> Result<(Message, Option<Batch>), Malformed> {
    let (mut message, rest) = peer::decode_message(bytes)?;
    let rest = bytes.slice_ref(rest);
    let Body::AppendEntries { prev_log_index, entries, .. } = &mut message.body else {
        return if rest.is_empty() { Ok((message, None)) } else { Err(Malformed("message")) };
    };
    if rest.is_empty() {
        return Ok((message, None));
    }
    if prev_log_index.0 >= 1 << 60 {
        return Err(Malformed("index"));
    }
    let batch = Batch::decode(prev_log_index.next(), rest).map_err(|_| Malformed("log entries"))?;
    *entries = metas(&batch)?;
    Ok((message, Some(batch)))
}

/// What the core needs to know of a batch's entries.
///
/// # Errors
/// [`Malformed`] if a membership entry does not hold a membership.
pub(super) fn metas(batch: &Batch) -> Result<Vec<EntryMeta>, Malformed> {
    let mut metas = Vec::with_capacity(batch.len());
    for (entry, body) in batch.lent() {
        let payload = payload(entry.kind, body)?;
        metas.push(EntryMeta { term: entry.term, bytes: entry.body_bytes, payload });
    }
    Ok(metas)
}

/// The core's view of an entry's body.
///
/// # Errors
/// [`Malformed`] if a membership entry does not hold a membership.
pub(super) fn payload(kind: EntryKind, body: &[u8]) -> Result<Payload, Malformed> {
    Ok(match kind {
        EntryKind::Noop => Payload::Noop,
        EntryKind::Command => Payload::Command,
        EntryKind::Membership => {
            let membership: Membership = proto::decode(body, "membership")?;
            Payload::Membership(check_membership(membership)?)
        }
    })
}

/// A membership from outside, if it can be one.
///
/// # Errors
/// [`Malformed`] otherwise.
pub fn check_membership(membership: Membership) -> Result<Membership, Malformed> {
    if membership.is_sane() { Ok(membership) } else { Err(Malformed("membership")) }
}
