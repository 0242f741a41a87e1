//! Where the nodes are, who leads, and one connection to each node that is needed.
//!
//! In: hints from replies (`Hello`, `NotLeader`). Out: a [`Link`] to the leader, to one node or to any.
//! Always: at most one dial per address at a time, which all who need it share; an address that just failed
//! is not tried again for [`DOWN_FOR`], so that a thousand waiting requests make no thousand dials. Left out:
//! what to do while there is no leader (`retry`).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;

use super::connection::Link;
use super::transport::{DialError, Transport};
use super::watchdog;
use crate::proto::client::{HelloReply, MemberInfo};

/// How long an address that failed is left alone.
const DOWN_FOR: Duration = Duration::from_millis(50);
/// How long one who may lead may take to answer a dial before others are asked.
const LEADER_PATIENCE: Duration = Duration::from_millis(300);
/// How long one that did not even answer is: each try costs a timeout, and the others hand writes on.
const SILENT_FOR: Duration = Duration::from_secs(1);

/// Which node a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    /// The leader, or any that may know it.
    Leader,
    /// Any node.
    Any,
    /// This node and no other.
    Node(u64),
}

/// The client's picture of the cluster.
#[derive(Debug)]
pub(super) struct Routes {
    transport: Transport,
    /// Who leads, as far as known; those who wait for a leader watch it.
    pub(super) leader: watch::Sender<Option<u64>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    endpoints: Vec<String>,
    members: BTreeMap<u64, MemberInfo>,
    slots: HashMap<String, Slot>,
    /// The connection that led to the leader last: what nearly every request takes.
    leader_link: Option<Arc<Link>>,
    value_bytes_max: Option<u64>,
    next: usize,
    closed: bool,
}

impl State {
    /// Whether this address failed a moment ago.
    fn is_down(&self, address: &str) -> bool {
        let slot = self.slots.get(address);
        matches!(slot, Some(Slot::Down { until, .. }) if Instant::now() < *until)
    }
}

type Dialled = Option<Result<Arc<Link>, DialError>>;

#[derive(Debug)]
enum Slot {
    Dialling(watch::Receiver<Dialled>),
    Up(Arc<Link>),
    Down { until: Instant, error: DialError },
}

impl Routes {
    /// Knows only addresses so far.
    pub(super) fn new(transport: Transport, endpoints: Vec<String>) -> Arc<Routes> {
        let state = State {
            endpoints,
            members: BTreeMap::new(),
            slots: HashMap::new(),
            leader_link: None,
            value_bytes_max: None,
            next: 0,
            closed: false,
        };
        let leader = watch::Sender::new(None);
        Arc::new(Routes { transport, leader, state: Mutex::new(state) })
    }

    /// A connection that leads where the request must go.
    pub(super) async fn link(self: &Arc<Self>, to: To) -> Result<Arc<Link>, DialError> {
        if let To::Node(node) = to {
            let member = self.state().members.get(&node).cloned();
            return match member {
                Some(member) => self.link_to_member(&member).await,
                None => {
                    let node = format!("node {node}");
                    Err(DialError::unreachable(node, "no member of the cluster"))
                }
            };
        }
        let leader = match to {
            To::Leader => *self.leader.borrow(),
            To::Any | To::Node(_) => None,
        };
        if let Some(link) = leader.and_then(|leader| self.known_link(leader)) {
            return Ok(link);
        }
        let (address, name) = self.address(leader)?;
        let dialled = self.link_to(address.clone(), name);
        let result = match to {
            // A leader that hangs has a successor soon; the dial goes on meanwhile, for the next who asks.
            To::Leader => timeout(LEADER_PATIENCE, dialled)
                .await
                .unwrap_or_else(|_| Err(DialError::silent(&address))),
            To::Any | To::Node(_) => dialled.await,
        };
        if let (Ok(link), Some(leader)) = (&result, leader)
            && link.node_id() == leader
        {
            let mut state = self.state();
            state.leader_link = (!state.closed).then(|| Arc::clone(link));
        }
        if let (Err(_), Some(leader)) = (&result, leader) {
            self.leader_is_lost(leader);
        }
        result
    }

    fn known_link(&self, leader: u64) -> Option<Arc<Link>> {
        let state = self.state();
        state.leader_link.clone().filter(|link| link.node_id() == leader && link.is_open())
    }

    /// A connection to this member: an error if another node answers at its address.
    pub(super) async fn link_to_member(
        self: &Arc<Self>,
        member: &MemberInfo,
    ) -> Result<Arc<Link>, DialError> {
        let (address, name) = (member.client_address.clone(), Some(member.name.clone()));
        let link = self.link_to(address, name).await?;
        link.leads_to(member).map(|()| link)
    }

    /// A connection to this address, shared, made if there is none.
    pub(super) async fn link_to(
        self: &Arc<Self>,
        address: String,
        name: Option<String>,
    ) -> Result<Arc<Link>, DialError> {
        let mut dialled = {
            let mut state = self.state();
            if state.closed {
                return Err(DialError::unreachable(address, "the client was closed"));
            }
            match state.slots.get(&address) {
                Some(Slot::Up(link)) if link.is_open() => return Ok(Arc::clone(link)),
                Some(Slot::Dialling(dialled)) => dialled.clone(),
                Some(Slot::Down { until, error }) if Instant::now() < *until => {
                    return Err(error.clone());
                }
                Some(Slot::Up(_) | Slot::Down { .. }) | None => {
                    let (sender, dialled) = watch::channel(None);
                    state.slots.insert(address.clone(), Slot::Dialling(dialled.clone()));
                    tokio::spawn(Arc::clone(self).dial(address.clone(), name, sender));
                    dialled
                }
            }
        };
        let result = match dialled.wait_for(Option::is_some).await {
            Ok(result) => result.clone(),
            Err(_) => None,
        };
        result.unwrap_or_else(|| Err(DialError::unreachable(address, "dialling was given up")))
    }

    /// Dials in a task of its own, so that a caller who gives up does not undo it for the others.
    async fn dial(
        self: Arc<Self>,
        address: String,
        name: Option<String>,
        done: watch::Sender<Dialled>,
    ) {
        let result = self.transport.dial(&address, name.as_deref()).await;
        let mut state = self.state();
        if state.closed {
            return;
        }
        let result = match result {
            Ok(ready) => {
                let link = ready.start();
                tokio::spawn(watchdog::watch(Arc::downgrade(&self), Arc::clone(&link)));
                learn(&mut state, &link.hello);
                state.slots.insert(address, Slot::Up(Arc::clone(&link)));
                Ok(link)
            }
            Err(error) => {
                let down_for = if error.silent { SILENT_FOR } else { DOWN_FOR };
                let until = Instant::now() + down_for;
                state.slots.insert(address, Slot::Down { until, error: error.clone() });
                Err(error)
            }
        };
        drop(state);
        if let Ok(link) = &result
            && let Some(leader) = link.hello.leader
            && self.leader.borrow().is_none()
        {
            self.leader_is(leader);
        }
        done.send_replace(Some(result));
    }

    /// Takes over who leads. False if that node is known to be down, or no member: no news then.
    pub(super) fn leader_is(&self, leader: u64) -> bool {
        {
            let state = self.state();
            let Some(member) = state.members.get(&leader) else { return false };
            if state.is_down(&member.client_address) {
                return false;
            }
        }
        self.leader.send_if_modified(|known| known.replace(leader) != Some(leader));
        true
    }

    /// Forgets the leader if it is still this one.
    pub(super) fn leader_is_lost(&self, leader: u64) {
        self.leader.send_if_modified(|known| {
            let lost = *known == Some(leader);
            if lost {
                *known = None;
            }
            lost
        });
    }

    /// All members, as the nodes say.
    pub(super) fn members(&self) -> Vec<MemberInfo> {
        self.state().members.values().cloned().collect()
    }

    /// The addresses that the user gave.
    pub(super) fn endpoints(&self) -> Vec<String> {
        self.state().endpoints.clone()
    }

    /// Longest value that the cluster takes.
    pub(super) fn value_bytes_max(&self) -> Option<u64> {
        self.state().value_bytes_max
    }

    /// Whether no request can be sent any more.
    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Ends all connections and makes no more.
    pub(super) async fn close(&self) {
        self.close_links();
        self.transport.drain().await;
    }

    fn close_links(&self) {
        let slots = {
            let mut state = self.state();
            state.closed = true;
            state.leader_link = None;
            std::mem::take(&mut state.slots)
        };
        for slot in slots.into_values() {
            if let Slot::Up(link) = slot {
                link.close("the client was closed");
            }
        }
    }

    fn address(&self, leader: Option<u64>) -> Result<(String, Option<String>), DialError> {
        let state = self.state();
        if let Some(member) = leader.and_then(|leader| state.members.get(&leader)) {
            return Ok((member.client_address.clone(), Some(member.name.clone())));
        }
        // By turns; the endpoints too, since members may be known by addresses that lead nowhere from here.
        let mut choices: Vec<(String, Option<String>)> = Vec::new();
        let members = state.members.values();
        choices.extend(
            members.map(|member| (member.client_address.clone(), Some(member.name.clone()))),
        );
        for endpoint in &state.endpoints {
            if choices.iter().all(|(address, _)| address != endpoint) {
                choices.push((endpoint.clone(), None));
            }
        }
        if choices.is_empty() {
            return Err(DialError::unreachable(String::new(), "no endpoint is known"));
        }
        if choices.iter().any(|(address, _)| !state.is_down(address)) {
            choices.retain(|(address, _)| !state.is_down(address));
        }
        // All stay with one that serves; `retry` moves on after a failure.
        Ok(choices.swap_remove(state.next % choices.len()))
    }

    /// The next request without a better hint goes to another node.
    pub(super) fn turn(&self) {
        let mut state = self.state();
        state.next = state.next.wrapping_add(1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        self.close_links();
    }
}

fn learn(state: &mut State, hello: &HelloReply) {
    if !hello.members.is_empty() {
        state.members = hello.members.iter().map(|member| (member.id, member.clone())).collect();
    }
    state.value_bytes_max = Some(hello.value_bytes_max);
}
