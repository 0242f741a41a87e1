//! Requests, scans and ticks on their way to a turn.

use super::*;
use crate::node::{Replies, RequestBody};
use crate::proto::client::{Consistency, Reply, Scan, ScanMode};
use crate::quic::FrameWriter;
use crate::server::answers::Burst;
use crate::server::scan;
use crate::server::streams::STREAM_REQUESTS_MAX;
use crate::store;

/// A scan whose client asks nothing more, before (`early`) or after it may read.
async fn scan(early: bool) {
    let shared = Arc::new(Shared::new(NodeId(1), DataId(1)));
    let (writer, _driver) = FrameWriter::new(1 << 20);
    let stream = shared.open_stream(writer.clone(), false, shared.accounts.of("a"));
    let to = ReplyTo { stream, request_id: 1 };
    let asked = Scan {
        from: b"",
        to: None,
        limit: u64::MAX,
        reverse: false,
        mode: ScanMode::Rows,
        consistency: Consistency::Local,
        revision: None,
    };
    let ready = shared.wait_for_scan(stream).expect("the stream is its own");
    assert!(shared.wait_for_scan(stream).is_none(), "two scans on one stream");
    let body = RequestBody::Scan { consistency: Consistency::Local, revision: None };
    assert!(shared.request(stream, [(Request { reply_to: to, body }, 1)].into_iter()).is_empty());
    if early {
        shared.end_stream(stream);
    }
    let options = store::Options { arena_bytes: 1 << 20, hash_seed: 1 };
    let store = store::Store::new(options).expect("there is room");
    Burst::new(&shared).scan(to, store.reader(), Index(0));
    if !early {
        shared.end_stream(stream);
    }
    assert_eq!(writer.push(|_| ()), Ok(()), "the stream ended before the scan");
    let plan = scan::Plan::new(&asked, to);
    let replies = Arc::clone(&shared.accounts.of("a").replies);
    let sink = scan::Sink { writer: writer.clone(), replies };
    scan::run(plan, ready, sink, Arc::clone(&shared)).await;
    assert!(writer.queued_bytes() > 0, "the scan's end was not sent");
    assert!(writer.push(|_| ()).is_err(), "the stream goes on after the scan");
    assert!(lock(&shared.streams).is_empty() && lock(&shared.scans).is_empty());
}

#[tokio::test]
async fn a_scan_is_answered_to_its_end_and_leaves_nothing_behind() {
    scan(true).await;
    scan(false).await;
}

#[tokio::test]
async fn a_scan_that_finds_no_room_leaves_nothing_behind() {
    let shared = Shared::new(NodeId(1), DataId(1));
    let (writer, _driver) = FrameWriter::new(1 << 20);
    let to = ReplyTo {
        stream: shared.open_stream(writer, false, shared.accounts.of("a")),
        request_id: 1,
    };
    let ready = shared.wait_for_scan(to.stream).expect("the stream is its own");
    let body = RequestBody::Scan { consistency: Consistency::Local, revision: None };
    let request = Request { reply_to: to, body };
    assert_eq!(shared.request(to.stream, [(request, REQUEST_BYTES_MAX + 1)].into_iter()), [to]);
    assert!(ready.await.is_err() && lock(&shared.scans).is_empty());
}

#[test]
fn a_stream_has_a_limited_number_of_questions_without_an_answer() {
    let shared = Shared::new(NodeId(1), DataId(1));
    let (writer, _driver) = FrameWriter::new(1 << 20);
    let stream = shared.open_stream(writer, true, shared.accounts.of("a"));
    let ask = |request_id| {
        let reply_to = ReplyTo { stream, request_id };
        shared
            .request(stream, std::iter::once((Request { reply_to, body: RequestBody::Status }, 1)))
    };
    for request_id in 0..STREAM_REQUESTS_MAX as u64 {
        assert!(ask(request_id).is_empty());
        // The node has taken it and does not answer.
        shared.take_input(&mut Input::default());
    }
    assert_eq!(ask(1 << 20).len(), 1);
    Burst::new(&shared).reply(ReplyTo { stream, request_id: 0 }, &Reply::NotFound);
    assert!(ask(1 << 20).is_empty());
}

#[test]
fn a_tick_and_a_transfer_arrive_once() {
    let shared = Shared::new(NodeId(1), DataId(1));
    let mut input = Input { ticks: 1, transfer: true, ..Input::default() };
    shared.take_input(&mut input);
    assert!(input.ticks == 1 && input.transfer);
    // The node's turn.
    (input.ticks, input.transfer) = (0, false);
    for turn in 0..3 {
        shared.take_input(&mut input);
        assert!(input.ticks == 0 && !input.transfer, "turn {turn}: {} ticks", input.ticks);
    }
}
