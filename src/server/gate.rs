//! The places of a port: for handshakes that have begun, and, apart from these, for connections whose other side has
//! shown a certificate.
//!
//! **Always:** what finds no place is ignored or refused, never queued. An ignored handshake is tried again by the other
//! side's QUIC, so a crowd of honest clients gets in one after the other. From a small number of handshakes on, one has to
//! show first that its address is its own (a Retry), which costs this node neither memory nor a signature.
//!
//! **Left out:** who may do what on a connection.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quinn::{Connection, Incoming};

use crate::pki::Identity;
use crate::proto::TOO_MANY_CONNECTIONS;
use crate::proto::client::Door;
use crate::quic::{self, Disconnect};

/// See the module.
pub(super) struct Gate {
    connections_max: usize,
    per_principal_max: usize,
    state: Mutex<State>,
    /// Handshakes that the port's socket ignored, which never came here.
    unseen: Arc<AtomicU64>,
}

#[derive(Default)]
struct State {
    half_open: Places,
    by_address: BTreeMap<IpAddr, Places>,
    /// When the second of the `begun` began.
    second: Option<Instant>,
    by_principal: BTreeMap<String, usize>,
    door: Door,
}

/// Handshakes of one address, or of all.
#[derive(Clone, Copy, Default)]
struct Places {
    /// That have not shown that their address is their own.
    unproven: usize,
    proven: usize,
    /// Begun within this second.
    begun: usize,
    /// Told within this second to show their address.
    retried: usize,
}

/// What becomes of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Admit,
    Retry,
    Ignore,
}

/// A handshake that has a place.
pub(super) struct Admitted {
    incoming: Incoming,
    half_open: HalfOpen,
}

/// The place of a handshake.
struct HalfOpen {
    gate: Arc<Gate>,
    address: IpAddr,
    is_proven: bool,
}

/// The place of a connection.
pub(super) struct Place {
    gate: Arc<Gate>,
    principal: String,
}

impl Gate {
    /// For so many connections in all and of each principal.
    pub(super) fn new(connections_max: usize, per_principal_max: usize) -> Gate {
        Gate { connections_max, per_principal_max, state: Mutex::default(), unseen: Arc::default() }
    }

    /// A place for a handshake, if there is one.
    pub(super) fn admit(self: &Arc<Gate>, incoming: Incoming) -> Option<Admitted> {
        let address = place_of(incoming.remote_address().ip());
        let is_proven = incoming.remote_address_validated();
        match self.lock().judge(address, is_proven, Instant::now()) {
            Verdict::Admit => {
                let gate = Arc::clone(self);
                Some(Admitted { incoming, half_open: HalfOpen { gate, address, is_proven } })
            }
            Verdict::Retry => {
                if let Err(error) = incoming.retry() {
                    error.into_incoming().ignore();
                }
                None
            }
            Verdict::Ignore => {
                incoming.ignore();
                None
            }
        }
    }

    /// Counts handshakes that are ignored before they come here.
    pub(super) fn unseen(&self) -> &Arc<AtomicU64> {
        &self.unseen
    }

    /// How the port fares.
    pub(super) fn door(&self) -> Door {
        let state = self.lock();
        let half_open = state.half_open.unproven + state.half_open.proven;
        let ignored = state.door.ignored + self.unseen.load(Ordering::Relaxed);
        Door { half_open: half_open as u64, ignored, ..state.door.clone() }
    }

    /// A place for a connection of this principal, if there is one.
    fn enter(self: &Arc<Gate>, principal: String) -> Option<Place> {
        let mut state = self.lock();
        let held = state.by_principal.get(&principal).copied().unwrap_or(0);
        let is_full = state.door.connections >= self.connections_max as u64;
        if is_full || held >= self.per_principal_max {
            state.door.refused += 1;
            return None;
        }
        state.door.connections += 1;
        state.by_principal.insert(principal.clone(), held + 1);
        Some(Place { gate: Arc::clone(self), principal })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Judges a handshake, and takes its place if it is admitted.
    fn judge(&mut self, address: IpAddr, is_proven: bool, now: Instant) -> Verdict {
        if self.second.is_none_or(|begun| now.duration_since(begun) >= Duration::from_secs(1)) {
            self.second = Some(now);
            (self.half_open.begun, self.half_open.retried) = (0, 0);
            self.by_address.retain(|_, places| {
                (places.begun, places.retried) = (0, 0);
                places.unproven + places.proven > 0
            });
        }
        let all = self.half_open;
        let own = self.by_address.get(&address).copied().unwrap_or_default();
        let is_crowded = all.begun >= BEGUN_MAX || own.begun >= BEGUN_PER_ADDRESS_MAX;
        let verdict = if is_proven {
            let is_full = all.proven >= PROVEN_MAX || own.proven >= PROVEN_PER_ADDRESS_MAX;
            if is_full || is_crowded { Verdict::Ignore } else { Verdict::Admit }
        } else {
            let is_full = all.unproven >= UNPROVEN_MAX || own.unproven >= UNPROVEN_PER_ADDRESS_MAX;
            let is_flood = all.retried >= RETRIED_MAX || own.retried >= RETRIED_PER_ADDRESS_MAX;
            match (is_full || is_crowded, is_flood) {
                (false, _) => Verdict::Admit,
                (true, false) => Verdict::Retry,
                (true, true) => Verdict::Ignore,
            }
        };
        match verdict {
            Verdict::Admit => {
                for places in [&mut self.half_open, self.by_address.entry(address).or_default()] {
                    places.begun += 1;
                    *places.of(is_proven) += 1;
                }
            }
            Verdict::Retry => {
                for places in [&mut self.half_open, self.by_address.entry(address).or_default()] {
                    places.retried += 1;
                }
                self.door.retried += 1;
            }
            Verdict::Ignore => self.door.ignored += 1,
        }
        verdict
    }
}

impl Places {
    fn of(&mut self, is_proven: bool) -> &mut usize {
        if is_proven { &mut self.proven } else { &mut self.unproven }
    }
}

impl Admitted {
    /// Does the handshake, and gives a connection that has a place.
    ///
    /// # Errors
    /// Those of [`quic::accept`]; [`Disconnect::Busy`] if there is no place for the connection, which is closed then.
    pub(super) async fn accept(self) -> Result<(Connection, Identity, Place), quic::Error> {
        let Admitted { incoming, half_open } = self;
        let accepted = quic::accept(incoming).await;
        let gate = Arc::clone(&half_open.gate);
        drop(half_open);
        let (connection, identity) = accepted.inspect_err(|error| {
            let door = &mut gate.lock().door;
            match error {
                quic::Error::TimedOut { .. } => door.timed_out += 1,
                _ => door.failed += 1,
            }
        })?;
        match gate.enter(identity.to_string()) {
            Some(place) => Ok((connection, identity, place)),
            None => {
                let reason = format!("{identity} has too many connections, or all together have");
                connection.close(TOO_MANY_CONNECTIONS.into(), reason.as_bytes());
                Err(quic::Error::Lost(Disconnect::Busy))
            }
        }
    }
}

impl Drop for HalfOpen {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        *state.half_open.of(self.is_proven) -= 1;
        if let Some(places) = state.by_address.get_mut(&self.address) {
            *places.of(self.is_proven) -= 1;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.door.connections -= 1;
        if let Some(held) = state.by_principal.get_mut(&self.principal) {
            *held -= 1;
            if *held == 0 {
                state.by_principal.remove(&self.principal);
            }
        }
    }
}

/// Whose places an address takes: who has one IPv6 address has a whole network of them.
fn place_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let mut octets = address.octets();
            octets[8..].fill(0);
            octets.into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

/// Handshakes of addresses that may be forged: each takes some 20 kB and half a millisecond of a processor. Above it an
/// address must be shown to be its own.
const UNPROVEN_MAX: usize = 16;
/// The same of one address; a client or a node dials once.
const UNPROVEN_PER_ADDRESS_MAX: usize = 4;
/// Handshakes of addresses that are their own: some 5 MB.
const PROVEN_MAX: usize = 256;
/// The same of one address, which may have a crowd of clients behind it.
const PROVEN_PER_ADDRESS_MAX: usize = 64;
/// Handshakes that may begin in one second: a sixth of a processor.
const BEGUN_MAX: usize = 400;
/// The same of one address.
const BEGUN_PER_ADDRESS_MAX: usize = 200;
/// Handshakes that are told in one second to show their address, a twelfth of a processor: that costs no memory, but a
/// datagram and its encryption each.
const RETRIED_MAX: usize = 8000;
/// The same of one address.
const RETRIED_PER_ADDRESS_MAX: usize = 2000;

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u8) -> IpAddr {
        [192, 0, 2, number].into()
    }

    #[test]
    fn a_handshake_must_prove_its_address_when_a_few_have_begun() {
        let (mut state, now) = (State::default(), Instant::now());
        for _ in 0..UNPROVEN_PER_ADDRESS_MAX {
            assert_eq!(state.judge(address(1), false, now), Verdict::Admit);
        }
        assert_eq!(state.judge(address(1), false, now), Verdict::Retry);
        assert_eq!(state.judge(address(1), true, now), Verdict::Admit);
        for number in 2.. {
            if state.half_open.unproven == UNPROVEN_MAX {
                break;
            }
            assert_eq!(state.judge(address(number), false, now), Verdict::Admit);
        }
        assert_eq!(state.judge(address(200), false, now), Verdict::Retry);
        assert_eq!((state.door.retried, state.door.ignored), (2, 0));
    }

    #[test]
    fn a_flood_of_first_packets_is_answered_only_so_often() {
        let (mut state, now) = (State::default(), Instant::now());
        for _ in 0..10_000 {
            state.judge(address(1), false, now);
        }
        assert_eq!(state.door.retried, RETRIED_PER_ADDRESS_MAX as u64);
        state.half_open.unproven = UNPROVEN_MAX;
        assert_eq!(state.judge(address(2), false, now), Verdict::Retry, "another address");
        let later = now + Duration::from_secs(1);
        assert_eq!(state.judge(address(1), false, later), Verdict::Retry);
    }

    #[test]
    fn one_address_takes_its_places_and_no_others() {
        let gate = Arc::new(Gate::new(1, 1));
        let now = Instant::now();
        let judge = |number, now| gate.lock().judge(address(number), true, now);
        for _ in 0..PROVEN_PER_ADDRESS_MAX {
            assert_eq!(judge(1, now), Verdict::Admit);
        }
        assert_eq!(judge(1, now), Verdict::Ignore);
        assert_eq!(judge(2, now), Verdict::Admit);
        assert_eq!(gate.door().half_open, PROVEN_PER_ADDRESS_MAX as u64 + 1);
        drop(HalfOpen { gate: Arc::clone(&gate), address: address(1), is_proven: true });
        assert_eq!(judge(1, now), Verdict::Admit);
    }

    #[test]
    fn handshakes_that_end_at_once_are_limited_in_number_as_well() {
        let gate = Arc::new(Gate::new(1, 1));
        let now = Instant::now();
        let begin = |number, now| {
            let verdict = gate.lock().judge(address(number), true, now);
            if verdict == Verdict::Admit {
                drop(HalfOpen {
                    gate: Arc::clone(&gate),
                    address: address(number),
                    is_proven: true,
                });
            }
            verdict
        };
        let admitted = (0..1000).filter(|_| begin(1, now) == Verdict::Admit).count();
        assert_eq!(admitted, BEGUN_PER_ADDRESS_MAX);
        assert_eq!(begin(2, now), Verdict::Admit);
        let later = now + Duration::from_secs(1);
        assert_eq!(begin(1, later), Verdict::Admit);
        assert_eq!(gate.lock().by_address.len(), 1, "who has no place is forgotten");
    }

    #[test]
    fn a_principal_has_its_places_and_gives_them_back() {
        let gate = Arc::new(Gate::new(3, 2));
        let enter = |principal: &str| gate.enter(principal.to_owned());
        let first = enter("a");
        let _second = enter("a");
        assert!(first.is_some() && enter("a").is_none());
        let _third = enter("b");
        assert!(_third.is_some() && enter("c").is_none(), "all together have their number");
        drop(first);
        assert!(enter("c").is_some() && gate.door().connections == 2);
        assert_eq!(gate.door().refused, 2);
    }

    #[test]
    fn a_network_of_addresses_is_one_place() {
        let v6 = |text: &str| place_of(text.parse().unwrap());
        assert_eq!(v6("2001:db8::1"), v6("2001:db8::ffff:1"));
        assert_ne!(v6("2001:db8::1"), v6("2001:db8:0:1::1"));
        assert_eq!(v6("::ffff:192.0.2.1"), address(1));
    }
}
