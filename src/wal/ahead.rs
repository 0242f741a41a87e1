//! The next segment, made while the present one fills: zeroing 64 MiB takes far longer than a sync may.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::segment::temporary_path;
use super::{Error, LogIo};
use crate::disk::{Access, Disk, File, Map};

/// A zeroed, synced file under a temporary name.
#[derive(Debug)]
pub(super) struct Blank {
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn File>,
    pub(super) map: Arc<dyn Map>,
    pub(super) bytes: u64,
}

/// What to prepare.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) seq: u32,
    pub(super) bytes: u64,
    pub(super) io: LogIo,
}

impl Plan {
    /// Makes the file. Nothing is left behind on failure.
    pub(super) fn carry_out(&self) -> Result<Blank, Error> {
        let path = temporary_path(&self.dir, self.seq);
        self.make(&path).inspect_err(|_| {
            // Best effort: the next opening removes temporary files too.
            let _ = self.disk.remove(&path);
        })
    }

    fn make(&self, path: &Path) -> Result<Blank, Error> {
        let file = self.disk.create(path)?;
        let access = match self.io {
            LogIo::Write => Access::Read,
            LogIo::Map => Access::ReadWrite,
        };
        file.allocate(self.bytes, access)?;
        let map = file.map(access)?;
        Ok(Blank { path: path.to_owned(), file, map, bytes: self.bytes })
    }
}

/// The preparation of one segment.
#[derive(Debug)]
pub(super) enum Ahead {
    /// Nothing was begun, or it was taken.
    Idle,
    /// A thread is at it.
    Working(Worker),
    /// It is there.
    Ready(Blank),
    /// It failed; another try may succeed.
    Failed,
}

impl Ahead {
    /// Begins, on a thread of its own if asked for.
    pub(super) fn start(plan: Plan, on_thread: bool) -> Ahead {
        if on_thread {
            let thread = std::thread::Builder::new().name("wal-ahead".into());
            let copy = plan.clone();
            if let Ok(handle) = thread.spawn(move || copy.carry_out()) {
                return Ahead::Working(Worker(Some(handle)));
            }
        }
        Ahead::done(plan.carry_out())
    }

    /// Takes note of a thread that has finished.
    pub(super) fn poll(&mut self) {
        if matches!(self, Ahead::Working(Worker(Some(handle))) if handle.is_finished()) {
            self.wait();
        }
    }

    /// Whether the last try failed.
    pub(super) fn has_failed(&self) -> bool {
        matches!(self, Ahead::Failed)
    }

    /// The segment if it could be made, waiting for the thread; the next state is `Idle`.
    pub(super) fn take(&mut self) -> Option<Blank> {
        self.wait();
        match std::mem::replace(self, Ahead::Idle) {
            Ahead::Ready(blank) => Some(blank),
            Ahead::Idle | Ahead::Working(_) | Ahead::Failed => None,
        }
    }

    fn wait(&mut self) {
        let Ahead::Working(Worker(handle)) = self else { return };
        let Some(handle) = handle.take() else { return };
        match handle.join() {
            Ok(done) => *self = Ahead::done(done),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// A failure here costs nothing yet: the rotation tries once more, and tells its own error.
    fn done(outcome: Result<Blank, Error>) -> Ahead {
        outcome.map_or_else(
            |error| {
                tracing::debug!(%error, "cannot prepare the next segment of the log");
                Ahead::Failed
            },
            Ahead::Ready,
        )
    }
}

/// The thread of a preparation; dropping it waits for its end.
#[derive(Debug)]
pub(super) struct Worker(Option<JoinHandle<Result<Blank, Error>>>);

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(handle) = self.0.take() {
            // The owner is going away: there is nobody to tell a failure to.
            let _ = handle.join();
        }
    }
}
