//! What one principal, and all together, may hold of a node's memory and places: answers that wait, requests that are not
//! whole, reads that wait for room, questions without an answer, and the windows of connections.
//!
//! **Always:** an [`Account`] is one principal's, whatever its connections; it lives as long as one of them. What is
//! counted for it is counted for the node as well. Counting costs an addition for each batch, never one for each request.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::proto::limits::VALUE_BYTES_CEILING;
use crate::quic::Meter;

/// All accounts of a node.
pub(super) struct Accounts {
    /// Of the whole node.
    pub(super) replies: Arc<Meter>,
    pub(super) halves: Arc<Meter>,
    pub(super) held: Arc<Meter>,
    requests: Arc<AtomicUsize>,
    windows: Arc<Windows>,
    by_principal: Mutex<BTreeMap<String, Weak<Account>>>,
}

/// One principal's account.
pub(super) struct Account {
    /// Answers that QUIC has not taken.
    pub(super) replies: Arc<Meter>,
    /// Requests that are not whole.
    pub(super) halves: Arc<Meter>,
    /// Reads that wait for room for their answers.
    pub(super) held: Arc<Meter>,
    requests: AtomicUsize,
    all_requests: Arc<AtomicUsize>,
    windows: Arc<Windows>,
    /// Window bytes of its connections, beyond what each has anyway.
    window_bytes: AtomicUsize,
}

impl Accounts {
    /// With nobody in them.
    pub(super) fn new() -> Accounts {
        Accounts {
            replies: Meter::new(NODE_REPLY_BYTES_MAX),
            halves: Meter::new(NODE_HALF_BYTES_MAX),
            held: Meter::new(NODE_HELD_BYTES_MAX),
            requests: Arc::default(),
            windows: Arc::default(),
            by_principal: Mutex::default(),
        }
    }

    /// The account of a principal.
    pub(super) fn of(&self, principal: &str) -> Arc<Account> {
        let mut all = self.by_principal.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = all.get(principal).and_then(Weak::upgrade) {
            return account;
        }
        all.retain(|_, account| account.strong_count() > 0);
        let account = Arc::new(Account {
            replies: Meter::part_of(&self.replies, REPLY_BYTES_MAX),
            halves: Meter::part_of(&self.halves, HALF_BYTES_MAX),
            held: Meter::part_of(&self.held, HELD_BYTES_MAX),
            requests: AtomicUsize::new(0),
            all_requests: Arc::clone(&self.requests),
            windows: Arc::clone(&self.windows),
            window_bytes: AtomicUsize::new(0),
        });
        all.insert(principal.to_owned(), Arc::downgrade(&account));
        account
    }

    /// Lets everybody who waits for room look again.
    pub(super) fn ring(&self) {
        let all = self.by_principal.lock().unwrap_or_else(PoisonError::into_inner);
        for account in all.values().filter_map(Weak::upgrade) {
            for meter in [&account.replies, &account.halves, &account.held] {
                meter.ring();
            }
        }
        for meter in [&self.replies, &self.halves, &self.held] {
            meter.ring();
        }
    }

    /// Memory that all together may hold at this moment beside the store.
    pub(super) fn bytes(&self) -> usize {
        let windows = 2 * self.windows.granted.load(Ordering::Relaxed);
        self.replies.bytes() + self.halves.bytes() + self.held.bytes() + windows
    }
}

impl Account {
    /// How many more questions may wait for their answers.
    pub(super) fn request_room(&self) -> usize {
        let own = REQUESTS_MAX.saturating_sub(self.requests.load(Ordering::Relaxed));
        own.min(NODE_REQUESTS_MAX.saturating_sub(self.all_requests.load(Ordering::Relaxed)))
    }

    /// So many more questions wait.
    pub(super) fn asked(&self, requests: usize) {
        self.requests.fetch_add(requests, Ordering::Relaxed);
        self.all_requests.fetch_add(requests, Ordering::Relaxed);
    }

    /// So many questions wait no more.
    pub(super) fn answered(&self, requests: usize) {
        self.requests.fetch_sub(requests, Ordering::Relaxed);
        self.all_requests.fetch_sub(requests, Ordering::Relaxed);
    }
}

/// Window bytes of all connections, beyond what each has anyway.
#[derive(Default)]
struct Windows {
    granted: AtomicUsize,
}

/// The window of one connection in each direction: QUIC holds so much for it whatever else is limited. It is given back
/// when this is dropped.
pub(super) struct Window {
    account: Arc<Account>,
    extra: usize,
}

impl Window {
    /// The least that a connection has.
    pub(super) fn new(account: Arc<Account>) -> Window {
        Window { account, extra: 0 }
    }

    /// Takes as much more as there is for it: a part of what is left, so that there is always some for the next.
    /// Whether it is more than before.
    pub(super) fn widen(&mut self) -> bool {
        let (own, all) = (&self.account.window_bytes, &self.account.windows.granted);
        let left = NODE_WINDOW_BYTES_MAX.saturating_sub(all.load(Ordering::Relaxed));
        // Nobody takes more than is left for others.
        let own_left = WINDOW_BYTES_MAX.min(left).saturating_sub(own.load(Ordering::Relaxed));
        let may = (own_left / 8).min(left / 8);
        let most = CONNECTION_WINDOW_BYTES_MAX - CONNECTION_WINDOW_BYTES_MIN;
        let more = most.saturating_sub(self.extra).min(may);
        if more < CONNECTION_WINDOW_BYTES_MIN {
            return false;
        }
        self.extra += more;
        own.fetch_add(more, Ordering::Relaxed);
        all.fetch_add(more, Ordering::Relaxed);
        true
    }

    /// Its bytes.
    pub(super) fn bytes(&self) -> u32 {
        u32::try_from(CONNECTION_WINDOW_BYTES_MIN + self.extra).expect("at most 2 MiB")
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.account.window_bytes.fetch_sub(self.extra, Ordering::Relaxed);
        self.account.windows.granted.fetch_sub(self.extra, Ordering::Relaxed);
    }
}

/// Answers of one principal that QUIC has not taken: far more than a fast reader leaves. What goes over it is one answer.
const REPLY_BYTES_MAX: usize = 16 << 20;
/// Of all principals: a quarter of what the floods of all together may take.
const NODE_REPLY_BYTES_MAX: usize = 64 << 20;
/// Requests of one principal that are not whole; one stream at a time may go over it, so that they get whole.
const HALF_BYTES_MAX: usize = 16 << 20;
/// Of all principals.
const NODE_HALF_BYTES_MAX: usize = 32 << 20;
/// Reads of one principal that wait for room for their answers; more are refused as `Busy`.
const HELD_BYTES_MAX: usize = 8 << 20;
/// Of all principals.
const NODE_HELD_BYTES_MAX: usize = 32 << 20;
/// Questions of one principal without an answer, eight full streams of them; more are refused as `Busy`.
const REQUESTS_MAX: usize = 131_072;
/// Of all principals. Each takes some hundred bytes.
const NODE_REQUESTS_MAX: usize = 262_144;
/// The window of a connection while nobody else has any.
const CONNECTION_WINDOW_BYTES_MAX: usize = 2 << 20;
/// What each connection has anyway, and before its other side has shown a certificate: a few large datagrams.
const CONNECTION_WINDOW_BYTES_MIN: usize = crate::quic::CLIENT_WINDOW_BYTES_MIN as usize;
/// Windows of one principal beyond that: 16 connections have 256 kB each, with less of which QUIC announces every few
/// batches that it may be sent more. It may hold two and a half times as much of what comes out of order.
const WINDOW_BYTES_MAX: usize = 16 << 20;
/// Of all principals.
const NODE_WINDOW_BYTES_MAX: usize = 32 << 20;

// One value more than the limit is on its way at most, and one request.
const _: () = assert!(VALUE_BYTES_CEILING <= 64 << 20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_shrink_as_they_are_taken_and_never_pass_their_sum() {
        let accounts = Accounts::new();
        let mut windows = Vec::new();
        for principal in ["a", "b", "c", "d", "e"] {
            for _ in 0..300 {
                let mut window = Window::new(accounts.of(principal));
                window.widen();
                windows.push(window);
            }
        }
        assert_eq!(windows[0].bytes(), 2 << 20, "the first has all that a connection may have");
        assert!(windows[1].bytes() > 1 << 20);
        let granted = accounts.windows.granted.load(Ordering::Relaxed);
        assert!(granted <= NODE_WINDOW_BYTES_MAX, "{granted}");
        let of_one: usize = windows[..300].iter().map(|window| window.extra).sum();
        assert!(of_one <= WINDOW_BYTES_MAX, "{of_one}");
        let mut modest = Window::new(accounts.of("modest"));
        assert!(modest.widen(), "something is left for another principal");
        windows.clear();
        drop(modest);
        assert_eq!(accounts.windows.granted.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn an_account_is_one_principals_and_goes_with_its_last_connection() {
        let accounts = Accounts::new();
        let (first, second) = (accounts.of("a"), accounts.of("a"));
        first.asked(REQUESTS_MAX - 1);
        assert_eq!(second.request_room(), 1);
        assert_eq!(accounts.of("b").request_room(), REQUESTS_MAX);
        first.answered(REQUESTS_MAX - 1);
        drop((first, second));
        accounts.of("c");
        assert_eq!(accounts.by_principal.lock().unwrap().len(), 1);
    }
}
