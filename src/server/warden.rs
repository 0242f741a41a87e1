//! What is looked at once a second: streams that are stuck, and memory that a flood has left behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

use super::shared::Shared;
use crate::disk::trim_heap;

/// Looks until it is dropped.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut ticker = interval(EVERY);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut highest = 0;
    loop {
        ticker.tick().await;
        shared.end_stuck_streams(Instant::now());
        shared.accounts.ring();
        let held = shared.accounts.bytes() + connection_bytes(&shared);
        highest = held.max(highest);
        if highest - held >= TRIM_BYTES {
            highest = held;
            // Beside the node's thread, which would stand still. Nobody waits for it.
            drop(tokio::task::spawn_blocking(trim_heap));
        }
    }
}

/// What connections take whatever they do, about.
fn connection_bytes(shared: &Shared) -> usize {
    let doors = shared.doors();
    let count = [doors.client, doors.peer].map(|door| door.connections + door.half_open);
    count.iter().sum::<u64>() as usize * CONNECTION_BYTES
}

const EVERY: Duration = Duration::from_secs(1);
/// Memory that is worth giving back to the system when so much less is held than was.
const TRIM_BYTES: usize = 8 << 20;
/// What a connection takes at least.
const CONNECTION_BYTES: usize = 30 << 10;
