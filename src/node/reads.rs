//! Reads that wait: for their index, and then for room for their answer.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Node, Replies, ReplyTo, RequestBody};
use crate::proto::client::{Consistency, Refusal, Reply};
use crate::raft::{Index, NodeId, ReadId};
use crate::store::Reader;

/// A read that waits for its index.
#[derive(Debug)]
pub(super) struct WaitingRead {
    pub(super) reply_to: ReplyTo,
    pub(super) what: What,
}

/// All reads that wait for a round of heartbeats, and what they take.
#[derive(Debug, Default)]
pub(super) struct Reads {
    pub(super) rounds: BTreeMap<ReadId, Vec<WaitingRead>>,
    /// Bytes of the keys of gets, also of those whose round is over.
    pub(super) key_bytes: usize,
}

#[derive(Debug)]
pub(super) enum What {
    Get(Bytes, Option<u64>),
    Scan(Option<u64>),
    /// A snapshot of what is there now.
    Save,
    /// Nothing to read: the request is refused for this reason.
    Refuse(Refusal),
    Hello,
    Status,
    /// A change of this member is done.
    Managed(NodeId),
}

impl What {
    /// Bytes that it holds until it is answered.
    fn key_bytes(&self) -> usize {
        if let What::Get(key, _) = self { key.len() } else { 0 }
    }

    /// The request that leads to the same answer later; `None` for what is answered in a few bytes.
    fn again(&self) -> Option<RequestBody> {
        match self {
            What::Get(key, revision) => Some(RequestBody::Get {
                key: Bytes::copy_from_slice(key),
                consistency: Consistency::Local,
                revision: *revision,
            }),
            What::Hello => Some(RequestBody::Hello),
            What::Status => Some(RequestBody::Status),
            What::Scan(_) | What::Save | What::Refuse(_) | What::Managed(_) => None,
        }
    }
}

impl Node {
    /// The key of a get. While reads wait for long, since there is no majority, it does not share the buffer that it
    /// arrived in, of which it may be a small part.
    pub(super) fn own_key(&self, key: Bytes) -> Bytes {
        if self.reads.rounds.len() < READ_ROUNDS_USUAL { key } else { Bytes::copy_from_slice(&key) }
    }

    pub(super) fn refuse_read(&mut self, id: ReadId) {
        let leader = self.raft.leader().map(|NodeId(id)| id);
        for read in self.reads.rounds.remove(&id).unwrap_or_default() {
            self.reads.key_bytes -= read.what.key_bytes();
            self.answer_later(read.reply_to, What::Refuse(Refusal::NotLeader { leader }));
        }
    }

    /// Answers every read whose index the store has reached.
    pub(super) fn answer_reads(&mut self, replies: &mut dyn Replies) {
        let applied = self.store.revision();
        if self.ready.is_empty() {
            return;
        }
        let reader = self.store.reader();
        let (now, later) =
            std::mem::take(&mut self.ready).into_iter().partition(|&(index, _)| index <= applied);
        self.ready = later;
        let now: Vec<(Index, Vec<WaitingRead>)> = now;
        let reads = now.iter().flat_map(|(_, reads)| reads);
        reader.warm_up(reads.filter_map(|read| match &read.what {
            What::Get(key, _) => Some(&key[..]),
            What::Scan(_)
            | What::Save
            | What::Refuse(_)
            | What::Hello
            | What::Status
            | What::Managed(_) => None,
        }));
        let mut reads = now.iter().flat_map(|(_, reads)| reads);
        if reads.any(|read| matches!(read.what, What::Get(..) | What::Scan(_))) {
            self.snapshots.quiet_ticks = 0;
        }
        for WaitingRead { reply_to, what } in now.into_iter().flat_map(|(_, reads)| reads) {
            self.reads.key_bytes -= what.key_bytes();
            if !replies.has_room(reply_to)
                && let Some(body) = what.again()
            {
                replies.hold(reply_to, body);
                continue;
            }
            match what {
                What::Get(key, at) => {
                    let reply = match readable(&reader, applied, at) {
                        Ok(at) => match reader.get(&key, at) {
                            Some(found) => {
                                Reply::Value { revision: found.revision.0, value: found.value }
                            }
                            None => Reply::NotFound,
                        },
                        Err(refusal) => Reply::Refused(refusal),
                    };
                    replies.reply(reply_to, &reply);
                }
                What::Scan(at) => match readable(&reader, applied, at) {
                    Ok(at) => replies.scan(reply_to, reader.clone(), at),
                    Err(refusal) => replies.reply(reply_to, &Reply::Refused(refusal)),
                },
                What::Save => self.snapshots.wanted.push((reply_to, applied)),
                What::Refuse(refusal) => replies.reply(reply_to, &Reply::Refused(refusal)),
                What::Managed(NodeId(id)) => replies.reply(reply_to, &Reply::Managed { id }),
                What::Hello => replies.reply(reply_to, &Reply::Hello(self.hello())),
                What::Status => replies.reply(reply_to, &Reply::Status(Box::new(self.status()))),
            }
        }
    }
}

/// The revision at which a client that asked for `revision` reads.
fn readable(reader: &Reader, applied: Index, revision: Option<u64>) -> Result<Index, Refusal> {
    let Some(revision) = revision else { return Ok(applied) };
    let oldest = reader.oldest().0;
    if revision > applied.0 {
        let reason = format!("revision {revision} is yet to come: the newest is {applied}");
        return Err(Refusal::Invalid { reason });
    }
    if revision < oldest { Err(Refusal::Compacted { oldest }) } else { Ok(Index(revision)) }
}

/// Rounds of reads that are under way while there is a majority.
const READ_ROUNDS_USUAL: usize = 16;
