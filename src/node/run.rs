//! The threads of a node that are not tokio's: one syncs the log, one writes checkpoints.
//!
//! Both take work from a slot and ring a bell when they have something to report; the driver looks into
//! [`Reports`] at its next turn. So a slow disk delays no heartbeat, read or tick.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::spare::{SPARE_KEPT, Spare};
use super::{CheckpointJob, SnapshotAt};
use crate::proto;
use crate::raft::Index;
use crate::store;
use crate::store::snapshot::{self, SnapshotMeta};
use crate::store::{CatchUp, Compacted, Image, Pace, Unread};
use crate::wal::{self, Ordinal, Persisted, Record, Writer};

/// Called when a thread has something to report; must not block.
pub type Bell = Arc<dyn Fn() + Send + Sync>;

/// What the threads have to say.
#[derive(Default)]
pub struct Reports {
    /// Finished syncs.
    pub persisted: Vec<Persisted>,
    /// Images of checkpoints, new or brought up to date; `None` for one that could not be made.
    pub images: Vec<Option<Compacted>>,
    /// Finished checkpoints; `None` for one that failed.
    pub checkpoints: Vec<Option<SnapshotAt>>,
    /// The log failed: nothing may be acknowledged any more.
    pub failure: Option<wal::Error>,
}

/// Work for the checkpoint thread.
enum Job {
    Checkpoint(CheckpointJob),
    CatchUp(CatchUp),
    Free(Vec<Unread>),
}

/// Work for one thread, and its end.
struct Slot<W> {
    work: Mutex<(Vec<W>, bool)>,
    ready: Condvar,
}

impl<W> Slot<W> {
    fn new() -> Arc<Slot<W>> {
        Arc::new(Slot { work: Mutex::new((Vec::new(), false)), ready: Condvar::new() })
    }

    fn put(&self, work: impl IntoIterator<Item = W>) {
        lock(&self.work).0.extend(work);
        self.ready.notify_one();
    }

    fn stop(&self) {
        lock(&self.work).1 = true;
        self.ready.notify_one();
    }

    /// What work there is now.
    fn waiting(&self) -> Vec<W> {
        std::mem::take(&mut lock(&self.work).0)
    }

    /// All work there is; empty after `patience`; `None` once there is none and never will be.
    fn take(&self, patience: Duration) -> Option<Vec<W>> {
        let guard = lock(&self.work);
        let (mut guard, _) = self
            .ready
            .wait_timeout_while(guard, patience, |(work, stopped)| work.is_empty() && !*stopped)
            .unwrap_or_else(PoisonError::into_inner);
        if guard.0.is_empty() && guard.1 {
            return None;
        }
        Some(std::mem::take(&mut guard.0))
    }
}

/// A panic elsewhere does not make a list of work invalid.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The running threads; dropped without [`Threads::stop`] they end by themselves, unwatched.
pub struct Threads {
    sync: Arc<Slot<(Ordinal, Record)>>,
    checkpoint: Arc<Slot<Job>>,
    reports: Arc<Mutex<Reports>>,
    cancel: Arc<AtomicBool>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Starts both threads.
    ///
    /// # Errors
    /// If the system gives no threads.
    pub fn start(
        writer: Writer,
        snapshots: snapshot::Dir,
        cluster: [u8; 16],
        bell: Bell,
    ) -> std::io::Result<Threads> {
        let (sync, checkpoint) = (Slot::new(), Slot::new());
        let reports = Arc::new(Mutex::new(Reports::default()));
        let cancel = Arc::new(AtomicBool::new(false));
        let mut handles = Vec::new();
        let (slot, report, ring) = (Arc::clone(&sync), Arc::clone(&reports), Arc::clone(&bell));
        handles.push(spawn("sync", move || run_sync(writer, &slot, &report, &ring))?);
        let slot = Arc::clone(&checkpoint);
        let mut checkpointer = Checkpointer {
            dir: snapshots,
            cluster,
            reports: Arc::clone(&reports),
            pace: Pace {
                bytes_per_second: Some(CHECKPOINT_RATE),
                cancel: Arc::clone(&cancel),
                is_short_lived: false,
            },
            bell,
            spare: Spare::default(),
        };
        handles.push(spawn("checkpoint", move || checkpointer.run(&slot))?);
        Ok(Threads { sync, checkpoint, reports, cancel, handles })
    }

    /// Gives work to the sync thread; the order is kept.
    pub fn sync(&self, work: Vec<(Ordinal, Record)>) {
        if !work.is_empty() {
            self.sync.put(work);
        }
    }

    /// Gives work to the checkpoint thread.
    pub fn checkpoint(&self, job: CheckpointJob) {
        self.checkpoint.put([Job::Checkpoint(job)]);
    }

    /// Lets the checkpoint thread bring an image up to date.
    pub fn catch_up(&self, image: CatchUp) {
        self.checkpoint.put([Job::CatchUp(image)]);
    }

    /// Lets the checkpoint thread free memory.
    pub fn free(&self, unread: Vec<Unread>) {
        if !unread.is_empty() {
            self.checkpoint.put([Job::Free(unread)]);
        }
    }

    /// What was reported since the last call.
    pub fn take_reports(&self) -> Reports {
        std::mem::take(&mut lock(&self.reports))
    }

    /// Finishes what was given to the sync thread, gives up on checkpoints unless they shall be finished too, and waits
    /// for both threads.
    pub fn stop(self, finishes_checkpoints: bool) -> Reports {
        self.cancel.store(!finishes_checkpoints, Ordering::Relaxed);
        self.sync.stop();
        self.checkpoint.stop();
        for handle in self.handles {
            if handle.join().is_err() {
                tracing::error!("a thread ended in a panic");
            }
        }
        std::mem::take(&mut lock(&self.reports))
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body)
}

fn run_sync(
    mut writer: Writer,
    slot: &Slot<(Ordinal, Record)>,
    reports: &Mutex<Reports>,
    bell: &Bell,
) {
    while let Some(work) = slot.take(IDLE) {
        let result =
            if work.is_empty() { writer.idle() } else { writer.write_and_sync(work).map(Some) };
        match result {
            Ok(Some(persisted)) => lock(reports).persisted.push(persisted),
            Ok(None) => continue,
            Err(error) => {
                lock(reports).failure = Some(error);
                bell();
                return;
            }
        }
        bell();
    }
    if let Err(error) = writer.idle() {
        tracing::error!(%error, "the log could not be closed cleanly");
    }
}

struct Checkpointer {
    dir: snapshot::Dir,
    cluster: [u8; 16],
    reports: Arc<Mutex<Reports>>,
    pace: Pace,
    bell: Bell,
    spare: Spare,
}

impl Checkpointer {
    fn run(&mut self, slot: &Slot<Job>) {
        if let Err(error) = rustix::process::setpriority_process(None, CHECKPOINT_NICENESS) {
            tracing::debug!(%error, "checkpoints do not give way to other threads");
        }
        while let Some(jobs) = slot.take(SPARE_KEPT) {
            if jobs.is_empty() {
                self.spare.give_back();
            }
            jobs.into_iter().for_each(|job| self.work(job, slot));
        }
    }

    fn work(&mut self, job: Job, slot: &Slot<Job>) {
        match job {
            Job::Checkpoint(job) => self.checkpoint(job, slot),
            Job::CatchUp(image) => {
                let image = image.run();
                self.spare.on_caught_up(&image);
                self.report(|reports| reports.images.push(Some(image)));
            }
            Job::Free(unread) => self.spare.on_unread(unread),
        }
    }

    /// Makes the image and then writes the file. In between it goes on with what the node wants of the image, so that the
    /// old arena is given back long before the file is durable.
    fn checkpoint(&mut self, mut job: CheckpointJob, slot: &Slot<Job>) {
        self.spare.lend(&mut job);
        self.pace.is_short_lived = self.spare.is_wanted();
        let (compacted, image) = compact(job, self.cluster, &self.pace).unzip();
        self.spare.on_image(compacted.as_ref());
        self.report(|reports| reports.images.push(compacted));
        let (dir, pace) = (self.dir.clone(), self.pace.clone());
        let mut meanwhile = || slot.waiting().into_iter().for_each(|job| self.work(job, slot));
        let written = image.and_then(|image| write(image, &dir, &pace, &mut meanwhile));
        self.report(|reports| reports.checkpoints.push(written));
    }

    fn report(&self, add: impl FnOnce(&mut Reports)) {
        add(&mut lock(&self.reports));
        (self.bell)();
    }
}

/// Makes the image of a checkpoint: what the store can go on in, and what the file will hold. `None` if that failed or was
/// cancelled, with a word in the log. The checkpoint thread's work, without the thread.
pub fn compact(job: CheckpointJob, cluster: [u8; 16], pace: &Pace) -> Option<(Compacted, Image)> {
    let CheckpointJob { checkpoint, at, membership, .. } = job;
    let mut encoded = Vec::new();
    proto::encode(&membership, &mut encoded);
    let meta = SnapshotMeta { cluster, index: at.index, term: at.term, membership: encoded };
    let made = checkpoint.compact(&meta, pace);
    made.map_err(|error| report_failure(&error, at.index, pace)).ok()
}

/// Writes the file of a checkpoint and removes all but the two newest; `None` if it failed or was cancelled, with a word
/// in the log. The other half of the checkpoint thread's work.
pub fn write(
    image: Image,
    dir: &snapshot::Dir,
    pace: &Pace,
    meanwhile: &mut dyn FnMut(),
) -> Option<SnapshotAt> {
    let at = SnapshotAt { index: image.meta().index, term: image.meta().term };
    let written = image.write(dir, pace, meanwhile);
    let info = written.map_err(|error| report_failure(&error, at.index, pace)).ok()?;
    tracing::info!("snapshot at index {} written, {} bytes", at.index, info.bytes);
    if let Err(error) = dir.retain(SNAPSHOTS_KEPT) {
        tracing::warn!(%error, "an old snapshot could not be removed");
    }
    Some(at)
}

fn report_failure(error: &store::Error, index: Index, pace: &Pace) {
    if !pace.cancel.load(Ordering::Relaxed) {
        tracing::error!(%error, "the snapshot at index {index} failed");
    }
}

/// The log's mark is brought up to date when nothing was written for this long.
const IDLE: Duration = Duration::from_millis(100);
/// The newest may be damaged, so the one before it stays, with the log after it.
const SNAPSHOTS_KEPT: usize = 2;
/// Checkpoints give way to all other threads, but are not starved by them: memory is given back only when they end. On
/// Linux this is a thread's own.
const CHECKPOINT_NICENESS: i32 = 5;
/// Checkpoints leave the disk to the log: bytes a second at most.
const CHECKPOINT_RATE: u64 = 256 << 20;
