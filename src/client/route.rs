//! Finding the node to ask: connections by address, the leader as far as it is known, and the loop that
//! retries until an answer or the deadline.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quinn::Endpoint;
use tokio::time::{Instant, sleep, timeout};

use super::connection::{Connection, ReplyStream, decode};
use super::{Error, Options};
use crate::pki::Credentials;
use crate::proto::client::{MemberInfo, Refusal, Reply};
use crate::proto::frame::FrameKind;

/// All that is known of the cluster, and the connections to it.
pub(super) struct Router {
    endpoint: Endpoint,
    credentials: Credentials,
    timeout: Duration,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// What the caller named; asked until a node has told who the members are.
    seeds: Vec<String>,
    members: Vec<MemberInfo>,
    leader: Option<u64>,
    /// Whom to ask next while nobody knows a leader.
    turn: usize,
    value_bytes_max: Option<u64>,
    nodes: BTreeMap<String, Arc<Node>>,
}

/// A node's connection; whoever dials holds the lock, and others who want this node wait.
#[derive(Default)]
struct Node(tokio::sync::Mutex<Option<Arc<Connection>>>);

/// Where to send a request.
#[derive(Clone, Debug)]
struct Target {
    address: String,
    name: Option<String>,
}

/// A request on its way through the retries.
struct Attempt<'a> {
    kind: FrameKind,
    body: &'a [u8],
    deadline: Instant,
    /// It may have reached a node without an answer.
    sent: bool,
    count: u32,
    last: String,
    wait: Duration,
}

/// An answer, and how often the request was sent to get it.
pub(super) struct Answered {
    pub(super) body: Bytes,
    pub(super) sent_before: bool,
}

impl Router {
    pub(super) async fn connect(options: &Options) -> Result<Router, Error> {
        let credentials = Credentials::load(&options.certs, &options.name)?;
        let router = Router {
            endpoint: crate::quic::client_endpoint()?,
            credentials,
            timeout: options.timeout,
            known: Mutex::new(Known { seeds: options.endpoints.clone(), ..Known::default() }),
        };
        if options.endpoints.is_empty() {
            return Err(Error::Address("no endpoint is given".to_owned()));
        }
        let mut dials = tokio::task::JoinSet::new();
        let router = Arc::new(router);
        for address in &options.endpoints {
            let (router, address) = (Arc::clone(&router), address.clone());
            dials.spawn(async move { router.connection(&Target { address, name: None }).await });
        }
        let mut first_error = None;
        while let Some(dialled) = dials.join_next().await {
            match dialled.map_err(|error| Error::Protocol(error.to_string()))? {
                Ok(_) => {
                    dials.shutdown().await;
                    let router = Arc::into_inner(router);
                    return router.ok_or_else(|| Error::Protocol("a dial lives on".to_owned()));
                }
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error.unwrap_or_else(|| Error::Address("no endpoint is given".to_owned())))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All members, or what the caller named until they are known.
    pub(super) fn members(&self) -> Vec<MemberInfo> {
        self.known().members.clone()
    }

    pub(super) fn value_bytes_max(&self) -> Option<u64> {
        self.known().value_bytes_max
    }

    /// The leader if it is known, otherwise everybody in turn.
    fn target(&self) -> Target {
        let known = self.known();
        let member = |member: &MemberInfo| Target {
            address: member.client_address.clone(),
            name: Some(member.name.clone()),
        };
        if let Some(leader) = known.members.iter().find(|m| Some(m.id) == known.leader) {
            return member(leader);
        }
        if known.members.is_empty() {
            let address = known.seeds[known.turn % known.seeds.len()].clone();
            return Target { address, name: None };
        }
        member(&known.members[known.turn % known.members.len()])
    }

    fn set_leader(&self, leader: Option<u64>) {
        let mut known = self.known();
        known.leader = leader;
        if leader.is_none() {
            known.turn = known.turn.wrapping_add(1);
        }
    }

    async fn connection(&self, target: &Target) -> Result<Arc<Connection>, Error> {
        let node = Arc::clone(self.known().nodes.entry(target.address.clone()).or_default());
        let mut slot = node.0.lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| !connection.is_over()) {
            return Ok(Arc::clone(connection));
        }
        let address = resolve(&target.address).await?;
        let name = target.name.as_deref();
        let opened = Connection::open(&self.endpoint, address, name, &self.credentials).await?;
        let connection = Arc::new(opened);
        let mut known = self.known();
        known.members.clone_from(&connection.hello.members);
        known.value_bytes_max = Some(connection.hello.value_bytes_max);
        known.leader = known.leader.or(connection.hello.leader);
        *slot = Some(Arc::clone(&connection));
        Ok(connection)
    }

    /// Asks one member, once.
    pub(super) async fn ask_member(
        &self,
        member: &MemberInfo,
        kind: FrameKind,
        body: &[u8],
    ) -> Result<Bytes, Error> {
        let target =
            Target { address: member.client_address.clone(), name: Some(member.name.clone()) };
        let asked = async { self.connection(&target).await?.ask(kind, body).await };
        let late = |_| Error::Unreachable(format!("{} does not answer", target.address));
        timeout(self.timeout.min(PATIENCE * 2), asked).await.map_err(late)?
    }

    /// Asks whoever leads until there is an answer, as the same bytes each time.
    pub(super) async fn ask(&self, kind: FrameKind, body: &[u8]) -> Result<Answered, Error> {
        let mut attempt = self.attempt(kind, body);
        loop {
            let target = self.target();
            let sent_before = attempt.sent;
            let patience = attempt.patience()?;
            let asked = async {
                let connection = self.connection(&target).await?;
                attempt.sent = true;
                connection.ask(kind, body).await
            };
            let reply = match timeout(patience, asked).await {
                Ok(Ok(reply)) => reply,
                Ok(Err(error)) => {
                    attempt.failed(error)?;
                    self.set_leader(None);
                    attempt.pause().await;
                    continue;
                }
                Err(_) => {
                    attempt.last = format!("{} does not answer", target.address);
                    self.set_leader(None);
                    continue;
                }
            };
            let refusal = match decode(&reply)? {
                Reply::Refused(refusal) => refusal,
                _ => return Ok(Answered { body: reply, sent_before }),
            };
            if let Some(error) = Error::of_refusal(&refusal) {
                return Err(error);
            }
            // All these but `Unknown` promise that nothing was done by this sending.
            attempt.sent = sent_before || refusal == Refusal::Unknown;
            self.on_retryable(&refusal, &mut attempt).await;
        }
    }

    /// Starts something with many answers at whoever leads; gives the first and the stream of the rest.
    pub(super) async fn open(
        &self,
        kind: FrameKind,
        body: &[u8],
    ) -> Result<(Bytes, ReplyStream), Error> {
        let mut attempt = self.attempt(kind, body);
        loop {
            let target = self.target();
            let asked = async {
                let connection = self.connection(&target).await?;
                let mut stream = connection.open_stream(kind, body).await?;
                let first = stream.next().await?;
                let first = first.ok_or(Error::Unreachable("the stream ended".to_owned()))?;
                Ok((first, stream))
            };
            let (first, stream) = match timeout(attempt.patience()?, asked).await {
                Ok(Ok(opened)) => opened,
                Ok(Err(error)) => {
                    attempt.failed(error)?;
                    self.set_leader(None);
                    attempt.pause().await;
                    continue;
                }
                Err(_) => {
                    attempt.last = format!("{} does not answer", target.address);
                    self.set_leader(None);
                    continue;
                }
            };
            match decode(&first)? {
                Reply::Refused(refusal) => {
                    if let Some(error) = Error::of_refusal(&refusal) {
                        return Err(error);
                    }
                    self.on_retryable(&refusal, &mut attempt).await;
                }
                _ => return Ok((first, stream)),
            }
        }
    }

    fn attempt<'a>(&self, kind: FrameKind, body: &'a [u8]) -> Attempt<'a> {
        Attempt {
            kind,
            body,
            deadline: Instant::now() + self.timeout,
            sent: false,
            count: 0,
            last: "no node was asked".to_owned(),
            wait: WAIT_MIN,
        }
    }

    async fn on_retryable(&self, refusal: &Refusal, attempt: &mut Attempt<'_>) {
        match refusal {
            Refusal::NotLeader { leader } => {
                attempt.last = "no node leads".to_owned();
                let is_news = leader.is_some() && *leader != self.known().leader;
                self.set_leader(*leader);
                if !is_news {
                    attempt.pause().await;
                }
            }
            Refusal::Busy { retry_after_ms } => {
                attempt.last = "the cluster is busy".to_owned();
                sleep(Duration::from_millis(u64::from(*retry_after_ms))).await;
            }
            Refusal::Unknown => attempt.last = "leadership changed".to_owned(),
            Refusal::TooLarge { .. }
            | Refusal::NoSpace
            | Refusal::Compacted { .. }
            | Refusal::Denied { .. }
            | Refusal::Invalid { .. } => {}
        }
    }

    pub(super) fn close(&self) {
        for node in self.known().nodes.values() {
            if let Ok(slot) = node.0.try_lock()
                && let Some(connection) = slot.as_ref()
            {
                connection.close();
            }
        }
    }

    /// Waits until the nodes know that we are gone.
    pub(super) async fn wait_closed(&self) {
        let _ = timeout(CLOSE_PATIENCE, self.endpoint.wait_idle()).await;
    }
}

impl Attempt<'_> {
    /// How long this sending may take; an error once the deadline has passed.
    fn patience(&mut self) -> Result<Duration, Error> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(self.gave_up());
        }
        self.count += 1;
        let transfer = Duration::from_millis(self.body.len() as u64 / BYTES_PER_MS);
        Ok(left.min(PATIENCE + transfer))
    }

    fn gave_up(&self) -> Error {
        let last = self.last.clone();
        match self.kind {
            FrameKind::Write if self.sent => Error::Unknown(last),
            _ => Error::Timeout(last),
        }
    }

    /// Takes note of a failure that another node may mend; gives back one that none can.
    fn failed(&mut self, error: Error) -> Result<(), Error> {
        match error {
            Error::Unreachable(reason) => {
                self.last = reason;
                Ok(())
            }
            error => Err(error),
        }
    }

    /// Waits a little, longer each time, and not as long as the others.
    async fn pause(&mut self) {
        let nanos = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |now| now.subsec_nanos());
        let wait = self.wait / 2 + self.wait.mul_f64(f64::from(nanos % 1000) / 2000.0);
        self.wait = (self.wait * 2).min(WAIT_MAX);
        sleep(wait).await;
    }
}

async fn resolve(address: &str) -> Result<SocketAddr, Error> {
    let wrong = |reason: String| Error::Address(format!("cannot find {address}: {reason}"));
    let mut found =
        tokio::net::lookup_host(address).await.map_err(|error| wrong(error.to_string()))?;
    found.next().ok_or_else(|| wrong("it has no address".to_owned()))
}

/// A node that says nothing for this long is taken for dead, and another is asked.
const PATIENCE: Duration = Duration::from_millis(750);
/// What a long request takes on top: 8 MB a second.
const BYTES_PER_MS: u64 = 8_000;
const WAIT_MIN: Duration = Duration::from_millis(20);
const WAIT_MAX: Duration = Duration::from_millis(250);
/// The word of our end is one datagram; nobody answers it.
const CLOSE_PATIENCE: Duration = Duration::from_millis(5);
