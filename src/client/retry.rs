//! Sends one request until it has its answer: which node to ask next, when to wait, and what is known meanwhile.
//!
//! In: an encoded request. Out: its answer, or an error that no further try can mend. Always: a request is
//! sent again only with the same bytes of meaning (a write keeps its session and number, so the cluster
//! applies it once), and [`Attempts`] knows at each moment whether a sending has an unknown fate. While
//! nobody leads, one request at a time goes scouting and the others wait for what it finds: a thousand
//! waiting tasks must not hammer an election. Left out: the deadline (`Client::within`), new sessions
//! (`write`).

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::Error;
use super::connection::{Link, Lost};
use super::routes::{Routes, To};
use crate::proto::client::{Refusal, Reply, Row as WireRow, Status};
use crate::proto::command::Outcome;
use crate::proto::frame::{Frame, FrameKind};
use crate::proto::limits::LARGE_BYTES;
use crate::proto::{Malformed, decode};
use crate::quic::FrameReader;

const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// Redirects followed at once; two nodes that point at each other must not make a busy loop.
const REDIRECTS_MAX: u32 = 2;

/// A reply that owns what it holds; values and rows share the frame's buffer.
#[derive(Debug)]
pub(super) enum Answer {
    /// Of a write.
    Outcome(Outcome),
    /// Of a get.
    Value { revision: u64, bytes: Bytes },
    /// Of a get.
    NotFound,
    /// Of a scan: keys, values, revisions.
    Rows(Vec<super::Row>),
    /// Of a scan.
    ScanEnd(super::ScanEnd),
    /// Of a status request.
    Status(Box<Status>),
    /// Of anything.
    Refused(Refusal),
    /// Of a get: ask on a stream of its own.
    Large,
    /// Of a change of the cluster: the member.
    Managed(u64),
    /// Of a save: wait.
    Saving,
    /// Of a save.
    SnapshotBegins { index: u64, bytes: u64 },
    /// Of a save.
    SnapshotChunk(Bytes),
}

impl Answer {
    /// Decodes a reply.
    pub(super) fn from_frame(frame: &Frame) -> Result<Answer, Malformed> {
        if frame.kind != FrameKind::Reply {
            return Err(Malformed("reply frame"));
        }
        let body = &frame.body;
        Ok(match decode::<Reply<'_>>(body, "reply")? {
            Reply::Hello(_) => return Err(Malformed("reply: a second hello")),
            Reply::Outcome(outcome) => Answer::Outcome(outcome),
            Reply::Value { revision, value } => {
                Answer::Value { revision, bytes: body.slice_ref(value) }
            }
            Reply::NotFound => Answer::NotFound,
            Reply::Rows(rows) => {
                Answer::Rows(rows.iter().map(|row| owned_row(body, row)).collect())
            }
            Reply::ScanEnd { rows, revision, more } => {
                Answer::ScanEnd(super::ScanEnd { rows, revision, more })
            }
            Reply::Status(status) => Answer::Status(status),
            Reply::Refused(refusal) => Answer::Refused(refusal),
            Reply::Large => Answer::Large,
            Reply::Managed { id } => Answer::Managed(id),
            Reply::Saving => Answer::Saving,
            Reply::SnapshotBegins { index, bytes } => Answer::SnapshotBegins { index, bytes },
            Reply::SnapshotChunk(bytes) => Answer::SnapshotChunk(body.slice_ref(bytes)),
        })
    }
}

fn owned_row(body: &Bytes, row: &WireRow<'_>) -> super::Row {
    super::Row {
        key: body.slice_ref(row.key),
        value: body.slice_ref(row.value),
        revision: row.revision,
    }
}

/// What became of the sendings of one request so far.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    /// A sending is on its way now.
    in_flight: bool,
    /// An earlier sending has an unknown fate.
    pub(super) unresolved: bool,
    /// What stood in the way last.
    pub(super) last: Option<String>,
    backoff: Backoff,
    redirects: u32,
    /// The leader is known and cannot be reached: whoever can shall hand the write on.
    by_detour: bool,
}

impl Attempts {
    /// Whether the request may have been carried out, or may yet be.
    pub(super) fn may_have_happened(&self) -> bool {
        self.in_flight || self.unresolved
    }
}

/// One request, ready to be sent any number of times.
pub(super) struct Request<'a> {
    /// What it is.
    pub(super) kind: FrameKind,
    /// Where it must go.
    pub(super) to: To,
    /// How long its encoding is, or a little less.
    pub(super) bytes: usize,
    /// Appends it; called for each sending, since `answered_below` moves on meanwhile.
    pub(super) encode: &'a (dyn Fn(&mut Vec<u8>) + Send + Sync),
}

/// The first frames of an answer, and where more come from (scans and saves only).
pub(super) struct Answered {
    /// What was answered first.
    pub(super) first: Answer,
    /// What came along with it.
    pub(super) more: Vec<Answer>,
    /// The rest of the stream, for a request that has a stream of its own.
    pub(super) rest: Option<FrameReader>,
    /// Who answered.
    pub(super) node_id: u64,
}

/// Asks until there is an answer that is no "try again".
pub(super) async fn ask(
    routes: &Arc<Routes>,
    scout: &Semaphore,
    request: &Request<'_>,
    attempts: &mut Attempts,
) -> Result<Answered, Error> {
    loop {
        let link = match routes.link(request.to).await {
            Ok(link) => link,
            Err(error) if error.is_final(request.to) => return Err(error.into_error()),
            Err(_) if routes.is_closed() => return Err(Error::Closed),
            Err(error) => {
                attempts.by_detour = true;
                attempts.last = Some(error.to_string());
                routes.turn();
                pause(routes, scout, request.to, attempts).await;
                continue;
            }
        };
        attempts.in_flight = true;
        let kind = match request.kind {
            FrameKind::Write if attempts.by_detour => FrameKind::WriteAnywhere,
            kind => kind,
        };
        let result = send(&link, kind, request).await;
        match result {
            Ok(answered) => {
                let Answer::Refused(refusal) = &answered.first else {
                    attempts.in_flight = false;
                    if request.to == To::Leader && routes.leader.borrow().is_none() {
                        routes.leader_is(link.node_id());
                    }
                    return Ok(answered);
                };
                on_refusal(routes, scout, request.to, &link, refusal, attempts).await?;
            }
            Err(Failure::Lost(lost)) => {
                attempts.unresolved |= lost.sent;
                attempts.in_flight = false;
                attempts.last = Some(format!("{}: {}", link.address, lost.reason));
                if !link.is_open() {
                    routes.leader_is_lost(link.node_id());
                }
                routes.turn();
                if *routes.leader.borrow() == Some(link.node_id()) || !link.is_open() {
                    pause(routes, scout, request.to, attempts).await;
                }
            }
            Err(Failure::Malformed(what)) => {
                attempts.in_flight = false;
                attempts.unresolved = true;
                return Err(Error::Protocol { node_id: link.node_id(), what: what.to_string() });
            }
        }
    }
}

enum Failure {
    Lost(Lost),
    Malformed(Malformed),
}

impl From<Lost> for Failure {
    fn from(lost: Lost) -> Failure {
        Failure::Lost(lost)
    }
}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Failure {
        Failure::Malformed(malformed)
    }
}

async fn send(
    link: &Arc<Link>,
    kind: FrameKind,
    request: &Request<'_>,
) -> Result<Answered, Failure> {
    let node_id = link.node_id();
    let is_long = matches!(kind, FrameKind::Scan | FrameKind::Save);
    if !is_long && request.bytes <= LARGE_BYTES {
        let frame = link.call(kind, request.encode).await?;
        match Answer::from_frame(&frame)? {
            Answer::Large => {}
            first => return Ok(Answered { first, more: Vec::new(), rest: None, node_id }),
        }
    }
    let mut body = Vec::with_capacity(request.bytes);
    (request.encode)(&mut body);
    let mut alone = link.open(kind, &body).await?;
    let mut frames = Vec::new().into_iter();
    let first = loop {
        match frames.next() {
            Some(frame) => break Answer::from_frame(&frame)?,
            None => frames = alone.read().await?.into_iter(),
        }
    };
    let more = frames.map(|frame| Answer::from_frame(&frame)).collect::<Result<_, _>>()?;
    let rest = is_long.then(|| alone.into_reader());
    Ok(Answered { first, more, rest, node_id })
}

/// Waits as the refusal asks for, or gives the error that it finally means.
async fn on_refusal(
    routes: &Arc<Routes>,
    scout: &Semaphore,
    to: To,
    link: &Link,
    refusal: &Refusal,
    attempts: &mut Attempts,
) -> Result<(), Error> {
    attempts.in_flight = false;
    attempts.last = Some(format!("{}: {}", link.address, refusal_text(refusal)));
    match refusal {
        Refusal::NotLeader { leader } => {
            let elsewhere = leader.filter(|&leader| leader != link.node_id());
            match elsewhere {
                Some(leader) if routes.leader_is(leader) && attempts.redirects < REDIRECTS_MAX => {
                    attempts.redirects += 1;
                }
                _ => {
                    // The leader is known and known to be out of reach: this node shall hand the write on.
                    // Otherwise another node may know better.
                    attempts.by_detour = elsewhere.is_some();
                    if elsewhere.is_none() {
                        routes.turn();
                    }
                    routes.leader_is_lost(link.node_id());
                    pause(routes, scout, to, attempts).await;
                }
            }
        }
        Refusal::Busy { retry_after_ms } => {
            let asked = Duration::from_millis(u64::from(*retry_after_ms));
            sleep(asked.min(BACKOFF_MAX) + attempts.backoff.next()).await;
        }
        Refusal::Unknown => {
            attempts.unresolved = true;
            pause(routes, scout, to, attempts).await;
        }
        Refusal::TooLarge { .. }
        | Refusal::NoSpace
        | Refusal::Compacted { .. }
        | Refusal::Denied { .. }
        | Refusal::Invalid { .. } => {
            return Err(Error::from_refusal(refusal).expect("these are the final refusals"));
        }
    }
    Ok(())
}

/// Waits a little before the next try: the scout its backoff, the others for a leader, or longer.
async fn pause(routes: &Routes, scout: &Semaphore, to: To, attempts: &mut Attempts) {
    attempts.redirects = 0;
    let wait = attempts.backoff.next();
    if to != To::Leader {
        sleep(wait).await;
        return;
    }
    let mut leader = routes.leader.subscribe();
    let known = *leader.borrow_and_update();
    match scout.try_acquire() {
        Ok(_scouting) => {
            // Nobody else looks for the leader now: short waits, so that an election is noticed soon.
            sleep(wait.min(BACKOFF_MIN * 4)).await;
        }
        Err(_) => {
            let news = leader.wait_for(|now| now.is_some() && *now != known);
            let _ = tokio::time::timeout(jitter(BACKOFF_MAX), news).await;
        }
    }
}

pub(super) fn refusal_text(refusal: &Refusal) -> String {
    match refusal {
        Refusal::NotLeader { leader: Some(leader) } => format!("not the leader, node {leader} is"),
        Refusal::NotLeader { leader: None } => "no leader at the moment".into(),
        Refusal::Busy { .. } => "too busy".into(),
        Refusal::Unknown => "leadership changed during the write".into(),
        other => Error::from_refusal(other).map(|error| error.to_string()).unwrap_or_default(),
    }
}

/// Doubles from [`BACKOFF_MIN`] to [`BACKOFF_MAX`], each with jitter.
#[derive(Debug, Default)]
struct Backoff {
    doublings: u32,
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let full = (BACKOFF_MIN * (1 << self.doublings)).min(BACKOFF_MAX);
        self.doublings = (self.doublings + 1).min(5);
        jitter(full)
    }
}

/// Between half of `full` and `full`. Hash seeds are random enough to part clients from each other.
fn jitter(full: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish() % 1024;
    full / 2 + full.mul_f64(random as f64 / 2048.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_from_its_minimum_to_its_maximum() {
        let mut backoff = Backoff::default();
        for full in [20, 40, 80, 160, 320, 500, 500].map(Duration::from_millis) {
            let wait = backoff.next();
            assert!(wait >= full / 2 && wait <= full, "{wait:?} of {full:?}");
        }
    }

    #[test]
    fn rows_and_values_share_the_frame() {
        let mut body = Vec::new();
        crate::proto::encode(&Reply::Value { revision: 3, value: b"v" }, &mut body);
        let frame = Frame { kind: FrameKind::Reply, request_id: 1, body: body.into() };
        let Answer::Value { revision: 3, bytes } = Answer::from_frame(&frame).unwrap() else {
            panic!("another answer");
        };
        assert_eq!(bytes.as_ptr(), frame.body[frame.body.len() - 1..].as_ptr());
    }
}
