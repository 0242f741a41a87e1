//! Files, as the log and the snapshots need them, behind two small traits.
//!
//! **What for.** Everything durable goes through [`Disk`] and [`File`], so that tests replace the machine's disk by
//! one that forgets, fails or fills up ([`MemDisk`]) and run the code that production runs ([`OsDisk`]).
//!
//! **In and out.** Paths and bytes go in; errors come out with the operation, the path and the cause.
//!
//! **What always holds.**
//! - Reads and writes name their offset: there is no cursor that two threads could fight over.
//! - A name is durable only after [`Disk::sync_dir`] of its directory, bytes only after [`File::sync`] (or
//!   [`Map::sync`] of their range). Nothing here syncs on its own but [`File::allocate`] and [`File::write_durable`].
//! - Files are 0600, directories 0700, and a symbolic link in the last place of a path is never followed.
//! - A failed sync is not retried here, and no caller may retry it: after one failure the kernel may report success for
//!   pages that it dropped.
//! - [`File::allocate`] backs every byte with a real block, so that a full disk is an error there and not a signal at a
//!   later store into a map.
//!
//! **Left out.** Formats, who owns a file, retries. Reads are not O_DIRECT: [`File::forget_cache`] after a sync makes
//! the next read come from the device.
//!
//! **More.** The log's assumptions about the medium: [`crate::wal`].

mod blocks;
mod bus;
mod heap;
mod map;
mod memory;
mod os;

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use blocks::Blocks;
pub use bus::{EXIT_BUS, explain_bus_errors};
pub use heap::trim_heap;
pub use memory::{Fate, MemDisk};
pub use os::OsDisk;

/// What came of an operation on the disk.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation on the disk failed. `Clone`, because the first failure is final and is told again to all who ask.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The disk, or the quota, is full. Reads still work.
    #[error("no space left to {op} {}: free some space, the node goes on by itself", path.display())]
    NoSpace {
        /// What was tried, as a verb.
        op: &'static str,
        /// On which file or directory.
        path: PathBuf,
    },
    /// Another process holds the lock.
    #[error("{} is in use by another process: only one node may run on a data directory", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// Anything else; for a write or sync it means that the device cannot be trusted any more.
    #[error("cannot {op} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        op: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The system's reason.
        source: Arc<io::Error>,
    },
}

impl Error {
    /// The error for a failed system call; a full disk gets its own variant.
    pub fn from_io(op: &'static str, path: &Path, source: io::Error) -> Error {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Error::NoSpace { op, path },
            _ => Error::Io { op, path, source: Arc::new(source) },
        }
    }

    /// Whether the path did not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// A place where files live: the machine's, or one that a test made.
pub trait Disk: Debug + Send + Sync {
    /// Makes a directory (mode 0700) with the missing ones above it; one that exists is left as it is.
    fn create_dir(&self, path: &Path) -> Result<()>;
    /// The names of the files in a directory, sorted; directories and names that are not UTF-8 are left out.
    fn list(&self, path: &Path) -> Result<Vec<String>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> Result<Arc<dyn File>>;
    /// Makes an empty file (mode 0600) and opens it; a file that was there is emptied.
    fn create(&self, path: &Path) -> Result<Arc<dyn File>>;
    /// Renames a file, replacing what was at `to`. Durable after [`Disk::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    /// Removes a file. Durable after [`Disk::sync_dir`].
    fn remove(&self, path: &Path) -> Result<()>;
    /// Makes creations, renames and removals in a directory durable.
    fn sync_dir(&self, path: &Path) -> Result<()>;
    /// Takes an exclusive lock on a file, which is made when missing, for as long as the guard lives.
    ///
    /// # Errors
    /// [`Error::Locked`] when another holder exists; it never waits.
    fn lock(&self, path: &Path) -> Result<Box<dyn Lock>>;
    /// Bytes that can still be allocated on the file system of `path`.
    fn free_bytes(&self, path: &Path) -> Result<u64>;
}

/// An open file. All methods may be called from several threads.
pub trait File: Debug + Send + Sync {
    /// Fills `buffer` from `offset`; the end of the file before that is an error.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;
    /// Writes all of `bytes` at `offset`, growing the file where needed.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()>;
    /// Makes all that was written durable (fdatasync). A failure is final.
    fn sync(&self) -> Result<()>;
    /// The length in bytes.
    fn bytes(&self) -> Result<u64>;
    /// Grows an empty file to `bytes` zeros on real blocks and syncs them. `access` says what its map will be for: what
    /// is stored through it should be in the system's cache, what is written with [`File::write_durable`] need not.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when they do not fit; the caller removes the file.
    fn allocate(&self, bytes: u64, access: Access) -> Result<()>;
    /// Writes `blocks`, whose place and length are multiples of [`BLOCK_BYTES`], and makes them durable: past the
    /// system's cache for a file that was allocated so and bytes that lie as in [`Blocks`]. A failure is final.
    fn write_durable(&self, offset: u64, blocks: &[u8]) -> Result<()> {
        self.write_at(offset, blocks)?;
        self.sync()
    }
    /// Drops what the system caches of this file, as far as it is synced, so that reads come from the device.
    fn forget_cache(&self) -> Result<()>;
    /// The file's present extent as shared memory; it shows every later write.
    fn map(&self, access: Access) -> Result<Arc<dyn Map>>;
}

/// What is written at a time past the system's cache.
pub const BLOCK_BYTES: usize = 4096;

/// What a map may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading only.
    Read,
    /// Reading and storing.
    ReadWrite,
}

/// Shared memory over a file. The copying interface is on purpose: the bytes may change while they are looked at, so
/// no reference to them is ever handed out.
pub trait Map: Debug + Send + Sync {
    /// How many bytes are mapped.
    fn bytes(&self) -> usize;
    /// Copies out from `offset`.
    ///
    /// # Panics
    /// When the range is not inside the map.
    fn read_at(&self, offset: usize, buffer: &mut [u8]);
    /// Copies in at `offset`, from the last word to the first: whoever sees the first 8 bytes sees all of them, even
    /// if this process is killed half-way. `offset` and the length are multiples of 8.
    ///
    /// # Panics
    /// When the range is not inside the map, not aligned, or the map is for reading only.
    fn write_at(&self, offset: usize, bytes: &[u8]);
    /// Makes a range durable (msync). A failure is final.
    fn sync(&self, offset: usize, bytes: usize) -> Result<()>;
}

/// Holds a lock until it is dropped.
pub trait Lock: Debug + Send + Sync {}
