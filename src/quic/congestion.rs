//! How much a connection between nodes may have on its way: Cubic between a floor and a ceiling.
//!
//! **The floor.** After a cut Cubic falls to two datagrams. Heartbeats alone never fill a window, so Cubic never grows
//! again. The next cut would fill such a window with heartbeats, and then only probes at doubled intervals leave: the
//! link stays dead for as long again after the path has healed. Above the floor heartbeats go on, and the first one that
//! arrives is answered.
//!
//! **The start over.** Persistent congestion on a path between nodes is a cut. What Cubic knew of the path is then
//! dropped: the connection begins as a new one does.
//!
//! **Single losses.** A long path loses a packet now and then. Cubic would take a third off the window for each one and
//! need many seconds to make up for it. A loss is congestion only when more than one byte in [`LOSS_SHARE`] of the last
//! round trips is lost, and more than the few packets of a handshake: a bottleneck that overflows loses more at once.
//!
//! **The ceiling.** Cubic grows until a queue overflows, and a heartbeat would wait behind that queue. The ceiling is
//! what the shortest round trip carries at [`RATE_BYTES`]: little between neighbours, megabytes over a distance. The
//! shortest round trip has no queue in it, so a queue that grows does not raise the ceiling.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

/// Room for the heartbeats, votes and read rounds of many seconds.
pub(super) const FLOOR_BYTES: u64 = 128 << 10;
/// The ceiling of a short path.
const CEILING_BYTES_MIN: u64 = 256 << 10;
/// The ceiling of a long path; the receiver's window of one stream is the same.
pub(super) const CEILING_BYTES_MAX: u64 = 16 << 20;
/// What one connection can carry in a second, whatever the distance, up to 125 ms of it.
const RATE_BYTES: u64 = 128 << 20;

/// Losses up to this part of what was sent are no sign of congestion.
const LOSS_SHARE: u64 = 50;
/// So little says nothing: the floor may be on its way in any case.
const LOSS_BYTES_MIN: u64 = FLOOR_BYTES / 4;

const _: () = assert!(FLOOR_BYTES <= CEILING_BYTES_MIN && CEILING_BYTES_MIN <= CEILING_BYTES_MAX);

/// Makes the controllers of connections between nodes.
#[derive(Debug)]
pub(super) struct Bounded {
    cubic: Arc<CubicConfig>,
}

impl Bounded {
    pub(super) fn new() -> Bounded {
        let mut cubic = CubicConfig::default();
        cubic.initial_window(CEILING_BYTES_MIN);
        Bounded { cubic: Arc::new(cubic) }
    }
}

impl ControllerFactory for Bounded {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let inner = Arc::clone(&self.cubic).build(now, current_mtu);
        Box::new(BoundedCubic {
            factory: self,
            inner,
            mtu: current_mtu,
            ceiling: CEILING_BYTES_MIN,
            began: None,
            losses: Losses { ends: now, acked: [0; 2], lost: [0; 2] },
        })
    }
}

struct BoundedCubic {
    factory: Arc<Bounded>,
    inner: Box<dyn Controller>,
    mtu: u16,
    ceiling: u64,
    /// When Cubic last started over: what was sent before says nothing of it.
    began: Option<Instant>,
    losses: Losses,
}

/// What arrived and what was lost in this round trip and the one before.
#[derive(Clone, Copy)]
struct Losses {
    /// When this round trip ends.
    ends: Instant,
    acked: [u64; 2],
    lost: [u64; 2],
}

impl Losses {
    fn on_ack(&mut self, now: Instant, bytes: u64, round_trip: Duration) {
        if now >= self.ends {
            self.ends = now + round_trip;
            self.acked = [0, self.acked[0]];
            self.lost = [0, self.lost[0]];
        }
        self.acked[0] += bytes;
    }

    /// Whether so much is lost by now that the path must be full.
    fn on_lost(&mut self, bytes: u64) -> bool {
        self.lost[0] += bytes;
        let lost = self.lost[0] + self.lost[1];
        lost > LOSS_BYTES_MIN && lost * LOSS_SHARE > lost + self.acked[0] + self.acked[1]
    }
}

impl Controller for BoundedCubic {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.losses.on_ack(now, bytes, rtt.get());
        self.ceiling = ceiling(rtt.min());
        // A window above the ceiling would be no use, and a long way down after a loss.
        let is_limited = app_limited || self.inner.window() >= self.ceiling;
        self.inner.on_ack(now, sent, bytes, is_limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        if is_persistent_congestion {
            self.inner = Arc::clone(&self.factory.cubic).build(now, self.mtu);
            self.began = Some(now);
            self.losses = Losses { ends: now, acked: [0; 2], lost: [0; 2] };
            return;
        }
        // Nothing lost: the network says itself that a queue grows.
        let is_full = self.losses.on_lost(lost_bytes) || lost_bytes == 0;
        if is_full && self.began.is_none_or(|began| sent > began) {
            self.inner.on_congestion_event(now, sent, false, lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu;
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window().clamp(FLOOR_BYTES, self.ceiling)
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.inner.metrics();
        metrics.congestion_window = self.window();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(BoundedCubic {
            factory: Arc::clone(&self.factory),
            inner: self.inner.clone_box(),
            ..*self
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// What may be on its way when the shortest round trip takes so long.
fn ceiling(round_trip: Duration) -> u64 {
    // Longer ones are none: the idle timeout is 3 s.
    let micros = u64::try_from(round_trip.min(Duration::from_secs(10)).as_micros()).unwrap_or(0);
    (RATE_BYTES * micros / 1_000_000).clamp(CEILING_BYTES_MIN, CEILING_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller(now: Instant) -> Box<dyn Controller> {
        Arc::new(Bounded::new()).build(now, 1200)
    }

    #[test]
    fn losses_never_take_the_window_below_the_floor() {
        let begun = Instant::now();
        let mut controller = controller(begun);
        for round in 1..100 {
            let now = begun + Duration::from_millis(round * 10);
            controller.on_congestion_event(now, now - Duration::from_millis(1), false, 100_000);
            assert!(controller.window() >= FLOOR_BYTES);
        }
        assert_eq!(controller.window(), FLOOR_BYTES);
    }

    #[test]
    fn a_cut_starts_the_connection_over_and_old_losses_do_not_count() {
        let begun = Instant::now();
        let mut controller = controller(begun);
        let at = |ms| begun + Duration::from_millis(ms);
        for ms in 1..50 {
            controller.on_congestion_event(at(10 * ms), at(10 * ms - 1), false, 100_000);
        }
        controller.on_congestion_event(at(1000), at(900), true, 100_000);
        assert_eq!(controller.window(), CEILING_BYTES_MIN);
        controller.on_congestion_event(at(1001), at(950), false, 100_000);
        assert_eq!(controller.window(), CEILING_BYTES_MIN, "sent before the start over");
        controller.on_congestion_event(at(1100), at(1050), false, 100_000);
        assert!(controller.window() < CEILING_BYTES_MIN);
    }

    #[test]
    fn a_loss_counts_when_it_is_more_than_one_now_and_then() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let mut losses = Losses { ends: begun, acked: [0; 2], lost: [0; 2] };
        assert!(!losses.on_lost(3600), "a few packets of a handshake");
        for ms in 0..140 {
            losses.on_ack(at(ms), 60_000, Duration::from_millis(70));
        }
        assert!(!losses.on_lost(100_000), "one of eighty");
        assert!(losses.on_lost(100_000), "one of forty");
        for ms in 140..400 {
            losses.on_ack(at(ms), 60_000, Duration::from_millis(70));
        }
        assert!(!losses.on_lost(100_000), "the others are long ago");
    }

    #[test]
    fn the_ceiling_follows_the_distance_between_its_bounds() {
        assert_eq!(ceiling(Duration::from_micros(200)), CEILING_BYTES_MIN);
        let far = ceiling(Duration::from_millis(70));
        assert!((9_000_000..CEILING_BYTES_MAX).contains(&far), "{far}");
        assert_eq!(ceiling(Duration::from_secs(1)), CEILING_BYTES_MAX);
        assert_eq!(ceiling(Duration::MAX), CEILING_BYTES_MAX);
    }
}
