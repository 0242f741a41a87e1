//! Answers of a node, and reads for whose answers there is no room.

use std::collections::BTreeMap;

use quicraft::node::{Replies, ReplyTo, Request, RequestBody};
use quicraft::proto::client::{Refusal, Reply};
use quicraft::proto::command::Outcome;
use quicraft::raft::Index;
use quicraft::store::Reader;

use crate::cluster::Cluster;
use crate::put;

/// An answer, owned.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    Outcome(Outcome),
    Value(Vec<u8>),
    NotFound,
    Refused(Refusal),
    Scan(Index),
    Other,
}

/// What a node answered.
#[derive(Default)]
pub(crate) struct Answers {
    pub(crate) given: BTreeMap<u64, Answer>,
    /// There is no room for answers to reads.
    pub(crate) crowded: bool,
    pub(crate) held: Vec<Request>,
}

impl Replies for Answers {
    fn reply(&mut self, to: ReplyTo, reply: &Reply<'_>) {
        let answer = match reply {
            Reply::Outcome(outcome) => Answer::Outcome(*outcome),
            Reply::Value { value, .. } => Answer::Value(value.to_vec()),
            Reply::NotFound => Answer::NotFound,
            Reply::Refused(refusal) => Answer::Refused(refusal.clone()),
            Reply::Hello(_)
            | Reply::Rows(_)
            | Reply::ScanEnd { .. }
            | Reply::Status(_)
            | Reply::Large
            | Reply::Saving
            | Reply::SnapshotBegins { .. }
            | Reply::SnapshotChunk(_)
            | Reply::Managed { .. } => Answer::Other,
        };
        let doubled = self.given.insert(to.request_id, answer);
        assert_eq!(doubled, None, "request {} is answered twice", to.request_id);
    }

    fn scan(&mut self, to: ReplyTo, _: Reader, at: Index) {
        self.given.insert(to.request_id, Answer::Scan(at));
    }

    fn snapshot(&mut self, to: ReplyTo, _: Index) {
        self.given.insert(to.request_id, Answer::Other);
    }
    fn has_room(&mut self, _: ReplyTo) -> bool {
        !self.crowded
    }

    fn hold(&mut self, reply_to: ReplyTo, body: RequestBody) {
        self.held.push(Request { reply_to, body });
    }
}

#[test]
fn a_read_without_room_comes_again_and_reads_what_is_newest_then() {
    let mut cluster = Cluster::new(3);
    let leader = cluster.elect();
    let session = cluster.open_session(leader);
    cluster.write(leader, &put(session, 1, "key", "old"));
    cluster.cells[leader].answers.crowded = true;
    let get = cluster.ask_get(leader, "key");
    cluster.run(20);
    assert_eq!(cluster.answer(leader, get), None, "it was read though there is no room");
    // A write finds room: its answer is short.
    assert!(matches!(
        cluster.write(leader, &put(session, 2, "key", "new")),
        Outcome::Written { .. }
    ));
    cluster.run(20);
    let cell = &mut cluster.cells[leader];
    assert_eq!(cell.answers.held.len(), 1);
    cell.answers.crowded = false;
    cell.input.requests.append(&mut cell.answers.held);
    // No majority is asked once more.
    for node in (0..3).filter(|&node| node != leader) {
        cluster.crash(node);
    }
    cluster.run(3);
    assert_eq!(cluster.answer(leader, get), Some(Answer::Value(b"new".to_vec())));
}
