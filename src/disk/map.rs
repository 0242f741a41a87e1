//! Shared memory over a file of the operating system: the one place with raw pointers into the log.
//!
//! Other parts of the program, and the kernel, may write the same pages at any time, so no Rust reference to them
//! exists: bytes go in and out by copies. A file that is truncated by somebody else while it is mapped kills the
//! process with SIGBUS; the directory's lock and mode 0600 are what keeps others away.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{Advice, MmapOptions, MmapRaw};

use super::{Access, Error, Map, Result};

/// A mapping, alive until the last user drops it, also after the file was removed.
#[derive(Debug)]
pub(super) struct OsMap {
    memory: MmapRaw,
    writable: bool,
    path: PathBuf,
}

impl OsMap {
    /// Maps the file's present extent.
    pub(super) fn new(file: &fs::File, path: &Path, access: Access) -> Result<OsMap> {
        let memory = match access {
            Access::Read => MmapOptions::new().map_raw_read_only(file),
            Access::ReadWrite => MmapOptions::new().map_raw(file),
        }
        .map_err(|e| Error::from_io("map", path, e))?;
        Ok(OsMap { memory, writable: access == Access::ReadWrite, path: path.to_owned() })
    }

    /// Panics unless the range lies inside the map.
    fn check(&self, offset: usize, bytes: usize) {
        let end = offset.checked_add(bytes);
        assert!(
            end.is_some_and(|end| end <= self.memory.len()),
            "{offset}+{bytes} is outside of a map of {} bytes",
            self.memory.len()
        );
    }
}

impl Map for OsMap {
    fn bytes(&self) -> usize {
        self.memory.len()
    }

    fn read_at(&self, offset: usize, buffer: &mut [u8]) {
        self.check(offset, buffer.len());
        // SAFETY: the source range lies in the mapping (checked), which lives as long as `self`; the target is an
        // exclusive slice of ours, so they do not overlap. Other writers only ever touch bytes that no record covers
        // yet, and whatever is read is accepted only if its checksum fits.
        unsafe {
            let source = self.memory.as_ptr().add(offset);
            std::ptr::copy_nonoverlapping(source, buffer.as_mut_ptr(), buffer.len());
        }
    }

    fn write_at(&self, offset: usize, bytes: &[u8]) {
        assert!(self.writable, "storing into a read-only map of {}", self.path.display());
        self.check(offset, bytes.len());
        assert!(offset.is_multiple_of(8) && bytes.len().is_multiple_of(8), "unaligned {offset}");
        // One fault-in for the whole range instead of one per page. It may be refused (old kernel, full disk under a
        // sparse file); then the stores below fault by themselves.
        let page = offset / PAGE_BYTES * PAGE_BYTES;
        let _ = self.memory.advise_range(Advice::PopulateWrite, page, offset + bytes.len() - page);
        for (word, chunk) in bytes.chunks_exact(8).enumerate().rev() {
            let value = u64::from_ne_bytes(chunk.try_into().expect("chunks_exact gives 8 bytes"));
            // SAFETY: offset + 8 * word + 8 <= len (checked); the mapping is page-aligned and offset a multiple of 8
            // (asserted), so the word is aligned; it is writable (asserted). Stores are atomic, readers copy.
            let target =
                unsafe { &*self.memory.as_mut_ptr().add(offset + 8 * word).cast::<AtomicU64>() };
            target.store(value, Ordering::Release);
        }
    }

    fn sync(&self, offset: usize, bytes: usize) -> Result<()> {
        self.check(offset, bytes);
        let failed =
            |source| Error::Io { op: "sync", path: self.path.clone(), source: Arc::new(source) };
        self.memory.flush_range(offset, bytes).map_err(failed)
    }
}

/// The smallest page of the machines this runs on; with larger ones some work is done twice.
const PAGE_BYTES: usize = 4096;
