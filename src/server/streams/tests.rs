//! Streams whose answers wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::node::{Input, Replies};
use crate::proto::client::{Consistency, Scan, ScanMode};
use crate::proto::command::Principal;
use crate::quic::WriterDriver;
use crate::raft::{DataId, NodeId};
use crate::server::answers::Burst;
use crate::server::scan;
use crate::store::{Options, Store};

fn get(key: &'static [u8]) -> RequestBody {
    RequestBody::Get { key: key.into(), consistency: Consistency::Local, revision: Some(7) }
}

/// A stream of somebody, which nobody reads while the driver stands still.
fn stream(shared: &Shared, is_shared: bool) -> (u64, FrameWriter, WriterDriver) {
    let account = shared.accounts.of("a");
    let (writer, driver) = FrameWriter::metered(8 << 20, Arc::clone(&account.replies));
    (shared.open_stream(writer.clone(), is_shared, account), writer, driver)
}

fn fill(writer: &FrameWriter) {
    writer.push(|buffer| buffer.resize(STREAM_REPLY_BYTES, 0)).unwrap();
}

fn ask(shared: &Shared, stream: u64, count: u64) {
    let request =
        |request_id| (Request { reply_to: ReplyTo { stream, request_id }, body: get(b"k") }, 1);
    assert!(shared.request(stream, (0..count).map(request)).is_empty());
    shared.take_input(&mut Input::default());
}

const OWNER: Principal = Principal(7);

#[tokio::test]
async fn a_read_without_room_is_a_question_until_there_is_room() {
    let shared = Shared::new(NodeId(1), DataId(1));
    let (id, writer, _driver) = stream(&shared, true);
    let account = shared.accounts.of("a");
    ask(&shared, id, 2);
    // Other streams of the same principal wait.
    account.replies.add(16 << 20);
    assert_eq!(shared.look_at(id), Look::Crowded);
    {
        let mut burst = Burst::new(&shared);
        for request_id in 0..2 {
            let to = ReplyTo { stream: id, request_id };
            assert!(!burst.has_room(to));
            burst.hold(to, get(b"k"));
        }
    }
    assert_eq!(shared.doors().held_reads, 2);
    assert_eq!(writer.queued_bytes(), 0, "nothing was encoded");
    // They are taken.
    account.replies.remove(16 << 20);
    assert_eq!(shared.look_at(id), Look::Asked);
    let mut input = Input::default();
    shared.take_input(&mut input);
    let again: Vec<_> = input.requests.iter().map(|request| request.reply_to.request_id).collect();
    assert_eq!(again, [0, 1], "in their order");
    assert!(matches!(input.requests[0].body, RequestBody::Get { revision: Some(7), .. }));
    assert_eq!((shared.doors().held_reads, account.held.bytes()), (0, 0));
    assert_eq!(shared.look_at(id), Look::Asked, "their answers are awaited first");
}

#[tokio::test]
async fn nothing_is_encoded_for_a_stream_that_takes_nothing_any_more() {
    let shared = Shared::new(NodeId(1), DataId(1));
    let (id, writer, driver) = stream(&shared, true);
    fill(&writer);
    drop(driver);
    assert_eq!((writer.queued_bytes(), shared.accounts.replies.bytes()), (0, 0));
    assert_eq!((shared.room_bytes(id), shared.look_at(id)), (0, Look::Gone));
}

#[tokio::test]
async fn what_is_held_is_limited_and_goes_with_its_stream() {
    let shared = Shared::new(NodeId(1), DataId(1));
    let (id, _writer, _driver) = stream(&shared, true);
    let account = shared.accounts.of("a");
    account.held.add(8 << 20);
    let to = ReplyTo { stream: id, request_id: 1 };
    assert!(shared.hold(to, get(b"k")).is_err());
    account.held.remove(8 << 20);
    assert!(shared.hold(to, get(b"k")).is_ok());
    assert!(account.held.bytes() > 0);
    ask(&shared, id, 5);
    shared.drop_stream(id);
    assert_eq!((account.held.bytes(), shared.doors().held_reads), (0, 0));
    assert_eq!(
        account.request_room(),
        Shared::new(NodeId(1), DataId(1)).accounts.of("a").request_room()
    );
    assert_eq!(shared.room_bytes(id), 0, "nothing is encoded for it");
    assert!(shared.hold(to, get(b"k")).is_ok() && account.held.bytes() == 0);
}

#[tokio::test]
async fn a_principal_that_holds_its_share_waits_on_all_its_streams() {
    let shared = Shared::new(NodeId(1), DataId(1));
    let streams: Vec<_> = (0..16).map(|_| stream(&shared, true)).collect();
    for (id, writer, _) in &streams {
        assert_eq!(shared.look_at(*id), Look::Clear);
        fill(writer);
    }
    let (last, _writer, _driver) = stream(&shared, true);
    assert_eq!(shared.look_at(last), Look::Crowded);
    let other = shared.accounts.of("b");
    let (writer, _driver) = FrameWriter::metered(8 << 20, Arc::clone(&other.replies));
    let other = shared.open_stream(writer, true, other);
    assert_eq!(shared.look_at(other), Look::Clear, "another principal goes on");
}

#[tokio::test]
async fn a_stream_of_which_nothing_is_taken_ends_with_its_code() {
    let shared = Shared::new(NodeId(1), DataId(1));
    let (stuck, writer, _driver) = stream(&shared, true);
    let (idle, _writer, _other) = stream(&shared, true);
    fill(&writer);
    let now = Instant::now();
    shared.end_stuck_streams(now);
    shared.end_stuck_streams(now + STUCK_PATIENCE - Duration::from_secs(1));
    assert_eq!(shared.look_at(stuck), Look::Crowded);
    shared.end_stuck_streams(now + STUCK_PATIENCE);
    assert_eq!(shared.look_at(stuck), Look::Ended(STREAM_NOT_TAKEN));
    assert_eq!(shared.look_at(idle), Look::Clear);
    assert!(writer.push(|_| ()).is_err());
    assert_eq!(shared.doors().not_taken, 1);
}

#[tokio::test]
async fn a_request_that_is_not_whole_in_time_ends_its_stream() {
    let shared = Shared::new(NodeId(1), DataId(1));
    let (id, _writer, _driver) = stream(&shared, true);
    let progress = Arc::<Progress>::default();
    shared.watch_stream(id, Arc::clone(&progress));
    let now = Instant::now();
    progress.set(3, true);
    shared.end_stuck_streams(now);
    // Another one has begun meanwhile.
    progress.set(4, true);
    shared.end_stuck_streams(now + STUCK_PATIENCE);
    assert_eq!(shared.look_at(id), Look::Clear);
    shared.end_stuck_streams(now + 2 * STUCK_PATIENCE);
    assert_eq!(shared.look_at(id), Look::Ended(STREAM_HALF_FRAME));
    assert_eq!(shared.doors().half_frames, 1);
}

/// Rows of a store that are longer than what one scan may leave unread.
fn store_with_rows() -> Store {
    use crate::proto::command::{Command, Op, Outcome};
    let mut store = Store::new(Options { arena_bytes: 64 << 20, hash_seed: 1 }).unwrap();
    let Outcome::SessionOpened(session) = store.apply(Index(1), OWNER, &Command::OpenSession)
    else {
        panic!("no session")
    };
    for seq in 1..=8 {
        let key = [seq as u8];
        let op = Op::Put { key: &key, value: &[1; 100_000] };
        let command = Command::Write { session, seq, answered_below: seq, op };
        store.apply(store.revision().next(), OWNER, &command);
    }
    store
}

#[tokio::test]
async fn a_scan_that_nobody_takes_lets_its_reader_go_and_goes_on_with_another() {
    let shared = Arc::new(Shared::new(NodeId(1), DataId(1)));
    let (id, writer, driver) = stream(&shared, false);
    let to = ReplyTo { stream: id, request_id: 1 };
    let ready = shared.wait_for_scan(id).unwrap();
    let scan = Scan {
        from: b"",
        to: None,
        limit: u64::MAX,
        reverse: false,
        mode: ScanMode::Rows,
        consistency: Consistency::Local,
        revision: None,
    };
    let replies = Arc::clone(&shared.accounts.of("a").replies);
    let sink = scan::Sink { writer: writer.clone(), replies };
    let plan = scan::Plan::new(&scan, to);
    let task = tokio::spawn(scan::run(plan, ready, sink, Arc::clone(&shared)));
    let mut store = store_with_rows();
    let at = store.revision();
    Burst::new(&shared).scan(to, store.reader(), at);
    while writer.queued_bytes() < 256 << 10 {
        tokio::task::yield_now().await;
    }
    // The store goes on elsewhere.
    store.replace(store_with_rows());
    assert!(store.take_unread().is_empty(), "the scan reads it");
    let begun = Instant::now();
    while store.take_unread().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(10), "the scan keeps its reader");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Its stream ends, and with it the scan, which waits for nothing else.
    drop(driver);
    task.await.unwrap();
    assert_eq!(shared.look_at(id), Look::Gone);
}
