//! A session's numbers: which are in use, which are answered, and when the next one must wait.
//!
//! In: a call for a number by each write, and its return when the write is over. Out: numbers from 1, each
//! once, and `answered_below` for every sending. Always: a number is handed out only while it is less than
//! `SESSION_IN_FLIGHT_MAX` above the lowest unanswered one, because the cluster remembers an answer for each
//! number from there on; the window, not the count, is what is bounded. Left out: opening and losing sessions
//! (`retry`). Exactly-once by sessions: thesis 6.3.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::proto::command::SessionId;
use crate::proto::limits::SESSION_IN_FLIGHT_MAX;

/// One open session of this client.
#[derive(Debug)]
pub(super) struct Session {
    /// The id that the cluster gave.
    pub(super) id: SessionId,
    window: Mutex<Window>,
    moved: Notify,
}

impl Session {
    /// A session with no number used yet.
    pub(super) fn new(id: SessionId) -> Session {
        Session { id, window: Mutex::new(Window::default()), moved: Notify::new() }
    }

    /// The next number, waiting for room in the window. The number counts as unanswered until the result is
    /// dropped.
    pub(super) async fn take(self: &Arc<Self>) -> Seq {
        if let Some(number) = self.window().take() {
            return Seq { session: Arc::clone(self), number };
        }
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if let Some(number) = self.window().take() {
                return Seq { session: Arc::clone(self), number };
            }
            moved.await;
        }
    }

    fn window(&self) -> std::sync::MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One write's number. Dropping it says that the write is over: answered, or given up and never sent again.
#[derive(Debug)]
pub(super) struct Seq {
    /// The session it belongs to.
    pub(super) session: Arc<Session>,
    /// The number.
    pub(super) number: u64,
}

impl Seq {
    /// All numbers below are over; at most this number itself.
    pub(super) fn answered_below(&self) -> u64 {
        self.session.window().lowest()
    }
}

impl Drop for Seq {
    fn drop(&mut self) {
        if self.session.window().retire(self.number) {
            self.session.moved.notify_waiters();
        }
    }
}

/// The numbers from the lowest unanswered one to the last handed out.
///
/// # Invariants
/// - `over[i]` belongs to number `retired + 1 + i`.
/// - The front of `over`, if there is one, is `false`.
#[derive(Debug, Default)]
struct Window {
    retired: u64,
    over: VecDeque<bool>,
}

impl Window {
    fn lowest(&self) -> u64 {
        self.retired + 1
    }

    fn take(&mut self) -> Option<u64> {
        if self.over.len() >= SESSION_IN_FLIGHT_MAX {
            return None;
        }
        self.over.push_back(false);
        Some(self.retired + self.over.len() as u64)
    }

    /// Marks a number as over; true if the window moved.
    fn retire(&mut self, number: u64) -> bool {
        assert!(number > self.retired, "{number} was retired before, below {}", self.lowest());
        let at = (number - self.lowest()) as usize;
        assert!(at < self.over.len(), "{number} was never handed out");
        self.over[at] = true;
        let before = self.retired;
        while self.over.front() == Some(&true) {
            self.over.pop_front();
            self.retired += 1;
        }
        self.retired > before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answered_below_is_the_lowest_number_that_is_not_over() {
        let session = Arc::new(Session::new(SessionId(9)));
        let one = session.take().await;
        let two = session.take().await;
        let three = session.take().await;
        assert_eq!((one.number, two.number, three.number), (1, 2, 3));
        drop(two);
        assert_eq!(three.answered_below(), 1);
        drop(one);
        assert_eq!(three.answered_below(), 3);
    }

    #[tokio::test]
    async fn a_stuck_write_holds_the_window_though_others_are_answered() {
        let session = Arc::new(Session::new(SessionId(9)));
        let stuck = session.take().await;
        for _ in 1..SESSION_IN_FLIGHT_MAX {
            drop(session.take().await);
        }
        let waiting = tokio::spawn({
            let session = Arc::clone(&session);
            async move { session.take().await.number }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(stuck);
        assert_eq!(waiting.await.unwrap(), SESSION_IN_FLIGHT_MAX as u64 + 1);
    }
}
