//! Scans: each reads the store at one revision, page by page, as fast as its client takes the pages.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::shared::{Ready, Shared};
use crate::node::ReplyTo;
use crate::proto;
use crate::proto::client::{Reply, Row, Scan, ScanMode};
use crate::proto::frame::{FrameKind, encode_frame};
use crate::proto::limits::{SCAN_PAGE_BYTES, SCAN_PAGE_ROWS_MAX};
use crate::quic::{FrameWriter, Meter, PushError};
use crate::raft::Index;
use crate::store::{Range, Reader};

/// What a scan returns, and to whom.
pub(super) struct Plan {
    reply_to: ReplyTo,
    from: Vec<u8>,
    to: Option<Vec<u8>>,
    limit: u64,
    reverse: bool,
    mode: ScanMode,
}

impl Plan {
    pub(super) fn new(scan: &Scan<'_>, reply_to: ReplyTo) -> Plan {
        Plan {
            reply_to,
            from: scan.from.to_vec(),
            to: scan.to.map(|to| to.to_vec()),
            limit: scan.limit,
            reverse: scan.reverse,
            mode: scan.mode,
        }
    }
}

/// Where a scan stands between two pages.
struct Place {
    /// The last key that was returned.
    after: Option<Vec<u8>>,
    rows: u64,
    is_over: bool,
    more: bool,
}

/// Answers a scan once it may read, and ends its stream; ends silently when the request was refused.
pub(super) async fn run(
    plan: Plan,
    ready: oneshot::Receiver<Ready>,
    sink: Sink,
    shared: Arc<Shared>,
) {
    let Ok(Ready::Scan(reader, at)) = ready.await else { return };
    answer(&plan, (reader, at), &sink, &shared).await;
    shared.drop_stream(plan.reply_to.stream);
}

/// Where pages go, and what counts those of the same principal.
pub(super) struct Sink {
    pub(super) writer: FrameWriter,
    pub(super) replies: Arc<Meter>,
}

impl Sink {
    /// Waits until there is room for more; the error is that the client is gone.
    pub(super) async fn room(&self) -> Result<(), PushError> {
        while !self.has_room() {
            self.writer.room(QUEUED_BYTES_MAX).await;
            self.writer.push(|_| ())?;
            tokio::select! {
                () = self.replies.room() => {}
                // The other half of what to wait for is that the client is gone.
                () = self.writer.room(0) => return Err(PushError::Closed),
            }
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.writer.queued_bytes() < QUEUED_BYTES_MAX && !self.replies.is_full()
    }
}

/// Sends page after page; ends early when the client is gone.
async fn answer(plan: &Plan, (reader, at): (Reader, Index), sink: &Sink, shared: &Shared) {
    let mut place = Place { after: None, rows: 0, is_over: false, more: false };
    let mut reader = Some(reader);
    while !place.is_over {
        // A page a turn of the runtime: heartbeats pass between them.
        tokio::task::yield_now().await;
        let has_room = timeout(READER_PATIENCE, sink.room()).await;
        let has_room = match has_room {
            Ok(has_room) => has_room,
            Err(_) => {
                // The store may go on in another image: a scan that nobody takes must not keep this one.
                reader = None;
                sink.room().await
            }
        };
        if has_room.is_err() {
            return;
        }
        let ready = match reader.take() {
            Some(reader) => (reader, at),
            // It was told why, if there is none any more.
            None => match shared.scan_again(plan.reply_to, at).await {
                Ok(Ready::Scan(reader, at)) => (reader, at),
                Ok(Ready::Snapshot(_)) | Err(_) => return,
            },
        };
        // Asked again, since others may have taken the room; so what goes over a limit is one page.
        if sink.has_room() {
            let page = sink.writer.push(|buffer| page(plan, &ready, &mut place, buffer));
            if page.is_err() {
                return;
            }
        }
        reader = Some(ready.0);
    }
    let end = Reply::ScanEnd { rows: place.rows, revision: at.0, more: place.more };
    // The error is that the client is gone.
    let _ = sink.writer.push(|buffer| {
        encode_frame(buffer, FrameKind::Reply, plan.reply_to.request_id, |body| {
            proto::encode(&end, body);
        });
    });
}

/// Appends the next page to `buffer`, if it has rows.
fn page(plan: &Plan, (reader, at): &(Reader, Index), place: &mut Place, buffer: &mut Vec<u8>) {
    let after = place.after.take();
    let mut range = Range {
        from: Bound::Included(&plan.from[..]),
        to: plan.to.as_deref().map_or(Bound::Unbounded, Bound::Excluded),
        reverse: plan.reverse,
    };
    match after.as_deref() {
        Some(after) if plan.reverse => range.to = Bound::Excluded(after),
        Some(after) => range.from = Bound::Excluded(after),
        None => {}
    }
    let (mut rows, mut bytes, mut scanned) = (Vec::new(), 0, 0);
    let (mut scan, mut steps) = (reader.scan(range, *at), PAGE_STEPS_MAX);
    place.is_over = true;
    loop {
        let row = match scan.next_within(&mut steps) {
            Ok(Some(row)) => row,
            Ok(None) => break,
            Err(seen) => {
                (place.after, place.is_over) = (Some(seen.to_vec()), false);
                break;
            }
        };
        if place.rows >= plan.limit {
            place.more = true;
            break;
        }
        if scanned >= SCAN_PAGE_ROWS_MAX || bytes >= SCAN_PAGE_BYTES {
            place.is_over = false;
            break;
        }
        place.rows += 1;
        scanned += 1;
        place.after = Some(row.key.to_vec());
        let value = if plan.mode == ScanMode::Rows { row.value } else { &[] };
        if plan.mode != ScanMode::Count {
            bytes += row.key.len() + value.len() + 16;
            rows.push(Row { key: row.key, value, revision: row.revision.0 });
        }
    }
    if !rows.is_empty() {
        encode_frame(buffer, FrameKind::Reply, plan.reply_to.request_id, |body| {
            proto::encode(&Reply::Rows(rows), body);
        });
    }
}

/// Keys that one page looks at, deleted ones too: a long row of those must not hold up the node.
const PAGE_STEPS_MAX: usize = 4 * SCAN_PAGE_ROWS_MAX;
/// Pages that wait for a slow client; the scan waits with it.
const QUEUED_BYTES_MAX: usize = 256 << 10;
/// How long a scan that waits keeps its reader.
const READER_PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::client::Consistency;
    use crate::proto::command::{Command, Op, Outcome, Principal};
    use crate::store::{Options, Store};

    #[test]
    fn a_long_row_of_deleted_keys_is_passed_in_steps() {
        let options = Options { arena_bytes: 64 << 20, hash_seed: 1 };
        let mut store = Store::new(options).expect("there is room");
        let session = match store.apply(Index(1), Principal(1), &Command::OpenSession) {
            Outcome::SessionOpened(session) => session,
            other => panic!("{other:?}"),
        };
        let mut seq = 0;
        let mut write = |op: Op<'_>| {
            seq += 1;
            let command = Command::Write { session, seq, answered_below: seq, op };
            let index = store.revision().next();
            store.apply(index, Principal(1), &command);
        };
        let keys: Vec<String> = (0..20_000).map(|number| format!("{number:05}")).collect();
        for key in &keys {
            write(Op::Put { key: key.as_bytes(), value: b"v" });
            if key != "10000" {
                write(Op::Delete { key: key.as_bytes() });
            }
        }
        for reverse in [false, true] {
            let scan = Scan {
                from: b"",
                to: None,
                limit: u64::MAX,
                reverse,
                mode: ScanMode::Count,
                consistency: Consistency::Local,
                revision: None,
            };
            let plan = Plan::new(&scan, ReplyTo { stream: 1, request_id: 1 });
            let ready = (store.reader(), store.revision());
            let mut place = Place { after: None, rows: 0, is_over: false, more: false };
            let mut pages = 0;
            while !place.is_over {
                page(&plan, &ready, &mut place, &mut Vec::new());
                pages += 1;
            }
            assert_eq!((place.rows, place.more), (1, false));
            assert!((5..10).contains(&pages), "{pages} pages");
        }
    }
}
