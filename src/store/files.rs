//! The file operations of snapshots, on any [`Disk`], and nothing else.
//!
//! **Always:** a file appears under its name only when it is complete and synced, with the directory synced after; it
//! is readable by its owner only. What fails names the file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Error;
use crate::disk::{Disk, File};

/// How a snapshot is written beside the work of the node.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// At most this many bytes a second; no limit if `None` or 0.
    pub bytes_per_second: Option<u64>,
    /// Set to stop.
    pub cancel: Arc<AtomicBool>,
    /// The next snapshot will soon take the place of this one: the system's cache is not filled with it. Fresh pages
    /// are what costs most of a file that is written and read once.
    pub is_short_lived: bool,
}

impl Pace {
    /// Fails if the caller wants to stop.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Waits until `bytes` more may be written, of which `next` says when the last ones were used up.
    fn spend(&self, bytes: usize, next: &mut Option<Instant>) -> Result<(), Error> {
        self.check()?;
        if let Some(rate) = self.bytes_per_second.filter(|&rate| rate > 0) {
            let now = Instant::now();
            // What was not used before is not made up for: a bound, not an aim.
            let begin = next.map_or(now, |next| next.max(now));
            let nanos = (bytes as u64).saturating_mul(1_000_000_000) / rate;
            *next = Some(begin + Duration::from_nanos(nanos));
            std::thread::sleep(begin - now);
        }
        Ok(())
    }
}

/// A directory with snapshots, on some disk. Clones are the same directory.
#[derive(Clone, Debug)]
pub struct Dir {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) path: PathBuf,
}

impl Dir {
    /// The directory at `path`; nothing is read or made.
    pub fn new(disk: Arc<dyn Disk>, path: PathBuf) -> Dir {
        Dir { disk, path }
    }

    /// Makes the directory, durably, if it is missing.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn create(&self) -> Result<(), Error> {
        self.disk.create_dir(&self.path)?;
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        Ok(self.disk.sync_dir(parent.unwrap_or(Path::new(".")))?)
    }

    /// The names of the files, in order.
    pub(super) fn names(&self) -> Result<Vec<String>, Error> {
        Ok(self.disk.list(&self.path)?)
    }

    /// Gives a file another name, durably.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> Result<(), Error> {
        self.disk.rename(from, to)?;
        Ok(self.disk.sync_dir(&self.path)?)
    }

    /// Removes a file, durably.
    pub(super) fn remove(&self, path: &Path) -> Result<(), Error> {
        self.disk.remove(path)?;
        Ok(self.disk.sync_dir(&self.path)?)
    }
}

/// A file that is being written under a temporary name; removed if it is dropped before it is published.
pub(super) struct NewFile {
    dir: Dir,
    file: Arc<dyn File>,
    temporary: PathBuf,
    pace: Pace,
    next: Option<Instant>,
    offset: u64,
    unsynced: usize,
    published: bool,
}

impl NewFile {
    /// Creates `name` with [`TEMPORARY`] added.
    pub(super) fn create(dir: &Dir, name: &str, pace: Pace) -> Result<NewFile, Error> {
        let temporary = dir.path.join(format!("{name}{TEMPORARY}"));
        let file = dir.disk.create(&temporary)?;
        let dir = dir.clone();
        Ok(NewFile {
            dir,
            file,
            temporary,
            pace,
            next: None,
            offset: 0,
            unsynced: 0,
            published: false,
        })
    }

    /// Adds to the end.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.pace.spend(bytes.len(), &mut self.next)?;
        self.file.write_at(self.offset, bytes)?;
        self.offset += bytes.len() as u64;
        self.unsynced += bytes.len();
        if self.unsynced >= SYNC_BYTES {
            self.unsynced = 0;
            self.file.sync()?;
            if self.pace.is_short_lived {
                self.file.forget_cache()?;
            }
        }
        Ok(())
    }

    /// Syncs, and gives what is on the disk for reading it back.
    pub(super) fn sync(&mut self) -> Result<Source, Error> {
        self.file.sync()?;
        self.file.forget_cache()?;
        let mut source = Source::open(&self.dir, &self.temporary)?;
        source.forgets = self.pace.is_short_lived;
        Ok(source)
    }

    /// Gives the file its name, durably.
    pub(super) fn publish_as(mut self, name: &str) -> Result<PathBuf, Error> {
        let path = self.dir.path.join(name);
        self.dir.disk.rename(&self.temporary, &path)?;
        self.published = true;
        self.dir.disk.sync_dir(&self.dir.path)?;
        Ok(path)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.published {
            // What stays is removed when the directory is opened next.
            let _ = self.dir.disk.remove(&self.temporary);
        }
    }
}

/// A file that is read from its beginning to its end.
pub(super) struct Source {
    file: Arc<dyn File>,
    pub(super) path: PathBuf,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// What was read does not stay in the system's cache.
    forgets: bool,
}

impl Source {
    pub(super) fn open(dir: &Dir, path: &Path) -> Result<Source, Error> {
        let file = dir.disk.open(path)?;
        let len = file.bytes()?;
        Ok(Source { file, path: path.to_owned(), offset: 0, len, forgets: false })
    }

    /// Fills `bytes` with what comes next.
    pub(super) fn read(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        let end = self.offset + bytes.len() as u64;
        if end > self.len {
            return Err(self.corrupt(self.len, "the file ends too early"));
        }
        self.file.read_at(self.offset, bytes)?;
        let is_step = self.offset / SYNC_BYTES as u64 != end / SYNC_BYTES as u64;
        if self.forgets && (is_step || end == self.len) {
            self.file.forget_cache()?;
        }
        self.offset = end;
        Ok(())
    }

    /// The next `bytes`, to be read by somebody else; goes on after them.
    pub(super) fn part(&mut self, bytes: u64) -> Result<Source, Error> {
        let end = self.offset + bytes;
        if end > self.len {
            return Err(self.corrupt(self.len, "the file ends too early"));
        }
        let (file, path) = (Arc::clone(&self.file), self.path.clone());
        let (offset, forgets) = (self.offset, self.forgets);
        let part = Source { file, path, offset, len: end, forgets };
        self.offset = end;
        Ok(part)
    }

    pub(super) fn corrupt(&self, offset: u64, reason: &'static str) -> Error {
        Error::Corrupt { path: self.path.clone(), offset, reason }
    }
}

/// What the name of an unfinished file ends in.
pub(super) const TEMPORARY: &str = ".tmp";
/// Synced in between this often, so that the last sync is not one long one in the way of the log's. A file
/// that stays out of the system's cache is forgotten by as many.
const SYNC_BYTES: usize = 8 << 20;
