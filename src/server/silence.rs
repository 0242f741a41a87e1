//! When a link is dead before its connection knows: nothing comes back any more.
//!
//! A connection whose window is full sends probes only, at doubled intervals. After a cut it stays silent for about as
//! long again as the cut has lasted, and its idle timeout is longer still. So the dialler tries a new connection beside
//! a silent one, and takes whichever answers first.

use std::pin::Pin;
use std::time::{Duration, Instant};

use quinn::Connection;
use tokio::time::sleep;

/// What a connection has sent and received, as it was seen last.
pub(super) struct Silence {
    /// Frames that must be acknowledged.
    asked: u64,
    /// Datagrams.
    received: u64,
    /// When the first frame was seen to leave after which no datagram came.
    unanswered: Option<Instant>,
}

impl Silence {
    /// Nothing was seen yet.
    pub(super) fn new() -> Silence {
        Silence { asked: 0, received: 0, unanswered: None }
    }

    /// Returns once nothing was answered for [`SILENCE`].
    pub(super) async fn begins(&mut self, connection: &Connection) {
        while self.look(connection).is_none_or(|for_how_long| for_how_long < SILENCE) {
            sleep(LOOK_EVERY).await;
        }
    }

    /// Returns once something was answered.
    pub(super) async fn ends(&mut self, connection: &Connection) {
        while self.look(connection).is_some() {
            sleep(LOOK_EVERY).await;
        }
    }

    /// For how long nothing was answered, if anything waits for an answer.
    fn look(&mut self, connection: &Connection) -> Option<Duration> {
        let stats = connection.stats();
        // Acknowledgements are not answered, nor are probes of the greatest datagram if it is too great.
        let asked = stats.frame_tx.stream + stats.frame_tx.ping;
        let asked = asked.saturating_sub(stats.path.sent_plpmtud_probes);
        self.on_counts(asked, stats.udp_rx.datagrams, Instant::now())
    }

    fn on_counts(&mut self, asked: u64, received: u64, now: Instant) -> Option<Duration> {
        if received != self.received {
            (self.asked, self.received, self.unanswered) = (asked, received, None);
        } else if asked != self.asked {
            self.asked = asked;
            self.unanswered.get_or_insert(now);
        }
        self.unanswered.map(|since| now.saturating_duration_since(since))
    }
}

/// Runs `attempt` again and again while earlier runs of it go on; the first that ends is the result, and the others are
/// dropped. Retransmissions of one handshake are soon further apart than the beginnings of several.
pub(super) fn hedged<'a, T: Send + 'a, F: Future<Output = T> + Send + 'a>(
    attempt: impl Fn() -> F + Copy + Send + 'a,
    hedges: usize,
) -> Pin<Box<dyn Future<Output = T> + Send + 'a>> {
    Box::pin(async move {
        if hedges == 0 {
            return attempt().await;
        }
        let later = async move {
            sleep(HEDGE_AFTER).await;
            hedged(attempt, hedges - 1).await
        };
        tokio::select! {
            result = attempt() => result,
            result = later => result,
        }
    })
}

/// Longer than a follower takes to acknowledge a heartbeat over any distance, and than most pauses of a busy machine.
const SILENCE: Duration = Duration::from_millis(400);
/// A look takes a lock and costs nothing else.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Between the beginnings of attempts.
const HEDGE_AFTER: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_from_the_first_frame_without_an_answer() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let ms = Duration::from_millis;
        let mut silence = Silence::new();
        assert_eq!(silence.on_counts(5, 5, at(0)), None);
        assert_eq!(silence.on_counts(5, 5, at(5000)), None, "nothing was said");
        assert_eq!(silence.on_counts(6, 5, at(5100)), Some(ms(0)));
        assert_eq!(silence.on_counts(7, 5, at(5300)), Some(ms(200)));
        assert_eq!(silence.on_counts(8, 6, at(5400)), None, "that was an answer");
        assert_eq!(silence.on_counts(8, 6, at(9000)), None);
    }

    #[tokio::test]
    async fn a_later_attempt_wins_where_an_earlier_one_hangs() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let begun = AtomicUsize::new(0);
        let attempt = || {
            let number = begun.fetch_add(1, Ordering::Relaxed);
            async move {
                if number < 2 {
                    std::future::pending::<()>().await;
                }
                number
            }
        };
        assert_eq!(hedged(attempt, 2).await, 2);
        assert_eq!(begun.load(Ordering::Relaxed), 3);
    }
}
