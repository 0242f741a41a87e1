//! The file operations of snapshots, and nothing else: the one place to put another disk under them.
//!
//! **Always:** a file appears under its name only when it is complete and synced, with the directory synced after; it
//! is readable by its owner only. What fails names the file.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Error;

/// How a snapshot is written beside the work of the node.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// At most this many bytes a second; no limit if `None` or 0.
    pub bytes_per_second: Option<u64>,
    /// Set to stop.
    pub cancel: Arc<AtomicBool>,
}

impl Pace {
    /// Fails if the caller wants to stop.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Waits as long as `bytes` may take. The time that writing took comes on top: it is a bound, not an aim.
    fn spend(&self, bytes: usize) -> Result<(), Error> {
        self.check()?;
        if let Some(rate) = self.bytes_per_second.filter(|&rate| rate > 0) {
            let nanos = (bytes as u64).saturating_mul(1_000_000_000) / rate;
            std::thread::sleep(Duration::from_nanos(nanos));
        }
        Ok(())
    }
}

/// A file that is being written under a temporary name; removed if it is dropped before it is published.
pub(super) struct NewFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    pace: Pace,
    unsynced: usize,
    published: bool,
}

impl NewFile {
    /// Creates `name` with [`TEMPORARY`] added, in `dir`.
    pub(super) fn create(dir: &Path, name: &str, pace: Pace) -> Result<NewFile, Error> {
        let temporary = dir.join(format!("{name}{TEMPORARY}"));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(at("create", &temporary))?;
        let path = dir.join(name);
        Ok(NewFile { file, temporary, path, pace, unsynced: 0, published: false })
    }

    /// Adds to the end.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.pace.spend(bytes.len())?;
        self.file.write_all(bytes).map_err(at("write", &self.temporary))?;
        self.unsynced += bytes.len();
        if self.unsynced >= SYNC_BYTES {
            self.unsynced = 0;
            self.file.sync_data().map_err(at("sync", &self.temporary))?;
        }
        Ok(())
    }

    /// Syncs, and gives the temporary path for reading back from the disk.
    pub(super) fn sync(&mut self) -> Result<&Path, Error> {
        self.file.sync_all().map_err(at("sync", &self.temporary))?;
        // So that reading back reads the disk. Advice only: without it less is proved, but nothing is wrong.
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
        Ok(&self.temporary)
    }

    /// Gives the file another name than planned, durably.
    pub(super) fn publish_as(mut self, name: &str) -> Result<PathBuf, Error> {
        self.path.set_file_name(name);
        self.publish()
    }

    /// Gives the file its name, durably.
    pub(super) fn publish(mut self) -> Result<PathBuf, Error> {
        fs::rename(&self.temporary, &self.path).map_err(at("rename", &self.temporary))?;
        self.published = true;
        sync_parent(&self.path)?;
        Ok(std::mem::take(&mut self.path))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.published {
            // What stays is removed when the directory is opened next.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Makes a directory that only its owner can enter, durably, if it is missing.
pub(super) fn create_dir(dir: &Path) -> Result<(), Error> {
    if dir.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at("create", dir))?;
    sync_parent(dir)
}

/// A file that is read from its beginning to its end.
pub(super) struct Source {
    file: File,
    pub(super) path: PathBuf,
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Source, Error> {
        let file = File::open(path).map_err(at("open", path))?;
        let len = file.metadata().map_err(at("measure", path))?.len();
        Ok(Source { file, path: path.to_owned(), offset: 0, len })
    }

    /// Fills `bytes` with what comes next.
    pub(super) fn read(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        match self.file.read_exact(bytes) {
            Ok(()) => {
                self.offset += bytes.len() as u64;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.corrupt(self.len, "the file ends too early"))
            }
            Err(error) => Err(at("read", &self.path)(error)),
        }
    }

    pub(super) fn corrupt(&self, offset: u64, reason: &'static str) -> Error {
        Error::Corrupt { path: self.path.clone(), offset, reason }
    }
}

/// The names of the files in `dir`, in order.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(at("list", dir))? {
        // A name that is not UTF-8 is none of ours.
        if let Ok(name) = entry.map_err(at("list", dir))?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Removes a file, durably.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    fs::remove_file(path).map_err(at("remove", path))?;
    sync_parent(path)
}

fn sync_parent(path: &Path) -> Result<(), Error> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(at("sync", dir))
}

fn at(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { op, path: path.to_owned(), source }
}

/// What the name of an unfinished file ends in.
pub(super) const TEMPORARY: &str = ".tmp";
/// Synced in between this often, so that the last sync is not one long one in the way of the log's.
const SYNC_BYTES: usize = 8 << 20;
