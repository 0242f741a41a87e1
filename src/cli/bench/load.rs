//! The clients: each has one operation under way, all of one thread share its connections.
//!
//! In: a [`Plan`]. Out: a [`Tally`]. In a closed loop a client begins its next operation when the last is
//! answered. At a rate, operations have their times in advance: a client that is late begins at once, and
//! its latency counts from the time in the plan, so a cluster that stalls is not excused from what would
//! have been asked meanwhile.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use super::Work;
use super::keys::{Dice, Keys, PREFIX, Pick};
use super::tally::Tally;
use crate::client::{Client, Error, ScanMode, ScanRequest};

/// What all clients do, and when.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) work: Work,
    pub(super) keys: Keys,
    pub(super) pick: Pick,
    pub(super) value_bytes: usize,
    pub(super) rows: u64,
    pub(super) read_ratio: f64,
    pub(super) clients: u32,
    /// Operations a second of all clients together.
    pub(super) rate: Option<f64>,
    pub(super) start: Instant,
    pub(super) measured_from: Instant,
    pub(super) end: Instant,
}

/// The clients of one thread: `first`, `first + step` and so on, `clients` in all.
pub(super) struct Share {
    pub(super) connections: Vec<Client>,
    pub(super) first: u32,
    pub(super) step: u32,
    pub(super) clients: u32,
}

/// Runs the clients of one thread to the end of the plan.
pub(super) async fn run(share: Share, plan: Arc<Plan>) -> Tally {
    let tally = Arc::new(Mutex::new(Tally::default()));
    let mut tasks = JoinSet::new();
    for i in 0..share.clients {
        let number = share.first + i * share.step;
        let one = One {
            client: share.connections[i as usize % share.connections.len()].clone(),
            plan: Arc::clone(&plan),
            dice: Dice::new(u64::from(number) << 32),
            value: vec![0; plan.value_bytes],
            number,
        };
        tasks.spawn(one.run(Arc::clone(&tally)));
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended
            && let Ok(panic) = error.try_into_panic()
        {
            std::panic::resume_unwind(panic);
        }
    }
    for client in &share.connections {
        client.close().await;
    }
    let tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    tally.clone()
}

/// One client.
struct One {
    client: Client,
    plan: Arc<Plan>,
    dice: Dice,
    value: Vec<u8>,
    number: u32,
}

impl One {
    async fn run(mut self, tally: Arc<Mutex<Tally>>) {
        sleep_until(self.plan.start.into()).await;
        for turn in 0.. {
            let begun = match self.plan.rate {
                Some(rate) => self.begin_at_rate(rate, turn).await,
                None => Instant::now(),
            };
            if begun >= self.plan.end {
                return;
            }
            let result = self.operate().await;
            let now = Instant::now();
            if now >= self.plan.measured_from && now < self.plan.end {
                let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
                match &result {
                    Ok(()) => tally.success(now - begun),
                    Err(error) => tally.error(&error.to_string()),
                }
            }
            if result.is_err() {
                sleep(ERROR_PAUSE).await;
            }
        }
    }

    /// Waits for the time of this client's next operation; gives the time from which it counts.
    async fn begin_at_rate(&self, rate: f64, turn: u64) -> Instant {
        let place = turn as f64 * f64::from(self.plan.clients) + f64::from(self.number);
        let due = self.plan.start + Duration::from_secs_f64(place / rate);
        if due <= Instant::now() {
            return due;
        }
        sleep_until(due.into()).await;
        // The timer is coarse: what it is late is not the cluster's doing.
        Instant::now().min(due + TIMER_SLACK)
    }

    async fn operate(&mut self) -> Result<(), Error> {
        let key = self.plan.keys.key(self.plan.pick.next(&mut self.dice));
        let work = match self.plan.work {
            Work::Mixed if self.dice.fraction() < self.plan.read_ratio => Work::Get,
            Work::Mixed => Work::Put,
            work => work,
        };
        match work {
            Work::Get => self.client.get(&key).await.map(|_| ()),
            Work::Scan => {
                let request = ScanRequest {
                    from: key.into_bytes(),
                    limit: self.plan.rows,
                    ..ScanRequest::default()
                };
                self.client.scan(request).await?.finish().await.map(|_| ())
            }
            Work::Put | Work::Mixed => {
                self.dice.fill(&mut self.value);
                self.client.put(&key, &self.value).await.map(|_| ())
            }
            Work::Append => {
                self.dice.fill(&mut self.value);
                self.client.append(&key, &self.value).await.map(|_| ())
            }
        }
    }
}

/// Writes all keys, unless they are there.
///
/// # Errors
/// The first write that fails.
pub(super) async fn fill(client: &Client, plan: &Plan, bar: &ProgressBar) -> Result<(), Error> {
    let there = ScanRequest { mode: ScanMode::Count, ..ScanRequest::prefix(PREFIX) };
    if client.scan(there).await?.finish().await?.rows == plan.keys.count() {
        return Ok(());
    }
    let mut tasks = JoinSet::new();
    for first in 0..FILL_TASKS {
        let (client, keys, bytes) = (client.clone(), plan.keys, plan.value_bytes);
        let bar = bar.clone();
        tasks.spawn(async move {
            let (mut dice, mut value) = (Dice::new(first), vec![0; bytes]);
            for number in (first..keys.count()).step_by(FILL_TASKS as usize) {
                dice.fill(&mut value);
                client.put(keys.key(number), &value).await?;
                bar.inc(1);
            }
            Ok::<_, Error>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        match done {
            Ok(result) => result?,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
    Ok(())
}

/// A client that was refused does not ask again at once.
const ERROR_PAUSE: Duration = Duration::from_millis(10);
/// How late a timer may be.
const TIMER_SLACK: Duration = Duration::from_millis(2);
/// Clients that write the keys.
const FILL_TASKS: u64 = 256;
