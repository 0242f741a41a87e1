//! The clients, closed loop, and what the machine did meanwhile.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use crate::peer::{Connection, Work};

/// How many clients over how many connections do what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    pub work: Work,
    pub clients: usize,
    pub connections: usize,
}

/// What all runs share.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub keys: u64,
    pub value_bytes: usize,
    pub warmup: Duration,
    pub duration: Duration,
}

/// One run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measured {
    pub operations_per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Busy time of all processors, kernel included, per operation.
    pub busy_us: f64,
    pub idle_percent: f64,
    pub steal_percent: f64,
    pub errors: u64,
}

struct Tally {
    latencies: Mutex<Histogram<u64>>,
    errors: AtomicU64,
}

/// Runs one shape.
pub async fn run(connections: &[Connection], shape: Shape, settings: Settings) -> Result<Measured> {
    let latencies = Histogram::new_with_bounds(1, 60_000_000, 3)?;
    let tally = Arc::new(Tally { latencies: Mutex::new(latencies), errors: AtomicU64::new(0) });
    let from = Instant::now() + settings.warmup;
    let end = from + settings.duration;
    let mut tasks = JoinSet::new();
    for client in 0..shape.clients {
        let connection = connections[client % shape.connections].clone();
        tasks.spawn(client_loop(
            connection,
            shape.work,
            settings,
            client,
            (from, end),
            tally.clone(),
        ));
    }
    sleep_until(from.into()).await;
    let before = Machine::now()?;
    sleep_until(end.into()).await;
    let machine = Machine::now()?.since(before);
    while let Some(ended) = tasks.join_next().await {
        ended.context("a client failed")?;
    }
    let latencies = tally.latencies.lock().unwrap_or_else(PoisonError::into_inner);
    let total = (machine.busy + machine.idle + machine.steal).max(1) as f64;
    Ok(Measured {
        operations_per_second: latencies.len() as f64 / settings.duration.as_secs_f64(),
        p50_ms: latencies.value_at_quantile(0.5) as f64 / 1e3,
        p99_ms: latencies.value_at_quantile(0.99) as f64 / 1e3,
        busy_us: machine.busy as f64 * TICK_US / latencies.len().max(1) as f64,
        idle_percent: machine.idle as f64 * 100.0 / total,
        steal_percent: machine.steal as f64 * 100.0 / total,
        errors: tally.errors.load(Ordering::Relaxed),
    })
}

async fn client_loop(
    mut connection: Connection,
    work: Work,
    settings: Settings,
    client: usize,
    (from, end): (Instant, Instant),
    tally: Arc<Tally>,
) {
    let mut dice = Dice(client as u64);
    let mut value = vec![0; settings.value_bytes];
    loop {
        let begun = Instant::now();
        if begun >= end {
            return;
        }
        let key = key(dice.next() % settings.keys);
        let result = match work {
            Work::Put => {
                dice.fill(&mut value);
                connection.put(&key, &value).await
            }
            Work::Get | Work::LeaseGet => connection.get(&key).await,
            Work::Scan => connection.scan(&key).await,
        };
        let now = Instant::now();
        if result.is_err() {
            tally.errors.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(10)).await;
        } else if now >= from && now < end {
            let micros = (now - begun).as_micros().max(1) as u64;
            tally
                .latencies
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .saturating_record(micros);
        }
    }
}

/// Writes all keys.
pub async fn fill(connection: &Connection, settings: Settings) -> Result<()> {
    let mut tasks = JoinSet::new();
    for first in 0..FILL_TASKS {
        let mut connection = connection.clone();
        tasks.spawn(async move {
            let (mut dice, mut value) = (Dice(first), vec![0; settings.value_bytes]);
            for number in (first..settings.keys).step_by(FILL_TASKS as usize) {
                dice.fill(&mut value);
                connection.put(&key(number), &value).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// 16 hexadecimal digits, scattered over the whole range.
pub fn key(number: u64) -> String {
    format!("{:016x}", number.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// Random numbers (splitmix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn fill(&mut self, value: &mut [u8]) {
        for chunk in value.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

/// Ticks of all processors.
#[derive(Clone, Copy, Debug)]
struct Machine {
    busy: u64,
    idle: u64,
    steal: u64,
}

impl Machine {
    fn now() -> Result<Machine> {
        let text = fs::read_to_string("/proc/stat")?;
        let line = text.lines().next().and_then(|line| line.strip_prefix("cpu "));
        let fields: Vec<u64> =
            line.unwrap_or_default().split_whitespace().flat_map(str::parse).collect();
        let [user, nice, system, idle, iowait, irq, softirq, steal, ..] = fields[..] else {
            anyhow::bail!("/proc/stat has another form than on Linux");
        };
        Ok(Machine { busy: user + nice + system + irq + softirq, idle: idle + iowait, steal })
    }

    fn since(self, before: Machine) -> Machine {
        Machine {
            busy: self.busy - before.busy,
            idle: self.idle.saturating_sub(before.idle),
            steal: self.steal - before.steal,
        }
    }
}

const FILL_TASKS: u64 = 256;
/// The kernel counts processor time for programs in hundredths of a second on every architecture.
const TICK_US: f64 = 10_000.0;
