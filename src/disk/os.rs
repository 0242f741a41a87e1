//! The machine's disk: thin over the system calls, with the flags and modes that the log relies on.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{Advice, FallocateFlags, OFlags};

use super::map::OsMap;
use super::{Access, BLOCK_BYTES, Blocks, Disk, Error, File, Lock, Map, Result};

/// The disk of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsDisk;

impl Disk for OsDisk {
    fn create_dir(&self, path: &Path) -> Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|e| Error::from_io("create directory", path, e))
    }

    fn list(&self, path: &Path) -> Result<Vec<String>> {
        let fail = |e| Error::from_io("list", path, e);
        let mut names = Vec::new();
        for entry in fs::read_dir(path).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            if entry.file_type().map_err(fail)?.is_file() {
                names.extend(entry.file_name().into_string());
            }
        }
        names.sort();
        Ok(names)
    }

    fn open(&self, path: &Path) -> Result<Arc<dyn File>> {
        OsFile::open(path, "open", fs::OpenOptions::new().read(true).write(true))
    }

    fn create(&self, path: &Path) -> Result<Arc<dyn File>> {
        let mut options = fs::OpenOptions::new();
        OsFile::open(path, "create", options.read(true).write(true).create(true).truncate(true))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        fs::rename(from, to).map_err(|e| Error::from_io("rename", from, e))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        fs::remove_file(path).map_err(|e| Error::from_io("remove", path, e))
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        fs::File::open(path)
            .and_then(|dir| dir.sync_all())
            .map_err(|e| Error::from_io("sync directory", path, e))
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn Lock>> {
        let file =
            system_open(path, fs::OpenOptions::new().write(true).create(true).truncate(false))
                .map_err(|e| Error::from_io("open", path, e))?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(OsLock { _file: file })),
            Err(fs::TryLockError::WouldBlock) => Err(Error::Locked { path: path.to_owned() }),
            Err(fs::TryLockError::Error(e)) => Err(Error::from_io("lock", path, e)),
        }
    }

    fn free_bytes(&self, path: &Path) -> Result<u64> {
        let stat = rustix::fs::statvfs(path).map_err(|e| Error::from_io("stat", path, e.into()))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

/// The lock of a running node; the system releases it with the descriptor, also after a kill.
#[derive(Debug)]
struct OsLock {
    _file: fs::File,
}

impl Lock for OsLock {}

/// A file of this machine.
#[derive(Debug)]
struct OsFile {
    file: fs::File,
    path: PathBuf,
    /// The same file, past the system's cache (O_DIRECT, O_DSYNC); `None` if the file system cannot.
    direct: OnceLock<Option<fs::File>>,
}

impl OsFile {
    fn open(path: &Path, op: &'static str, options: &mut fs::OpenOptions) -> Result<Arc<dyn File>> {
        let file = system_open(path, options).map_err(|e| Error::from_io(op, path, e))?;
        Ok(Arc::new(OsFile { file, path: path.to_owned(), direct: OnceLock::new() }))
    }

    fn fail(&self, op: &'static str) -> impl Fn(io::Error) -> Error + '_ {
        move |source| Error::from_io(op, &self.path, source)
    }
}

impl File for OsFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(self.fail("read"))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(self.fail("write"))
    }

    fn sync(&self) -> Result<()> {
        // Also for want of space: what was written is gone then, and no later sync brings it back.
        let failed =
            |source| Error::Io { op: "sync", path: self.path.clone(), source: Arc::new(source) };
        self.file.sync_data().map_err(failed)
    }

    fn bytes(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(self.fail("stat"))?.len())
    }

    fn allocate(&self, bytes: u64, access: Access) -> Result<()> {
        assert!(bytes > 0, "allocating nothing");
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
            // Without fallocate the writes below find out about the space.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(e) => return Err(self.fail("allocate")(e.into())),
        }
        // Reserved blocks still count as unwritten: each is written, so that an append later changes no metadata.
        if access == Access::ReadWrite || !self.zero_directly(bytes)? {
            self.zero(bytes)?;
        }
        self.file.sync_all().map_err(self.fail("sync"))
    }

    fn write_durable(&self, offset: u64, blocks: &[u8]) -> Result<()> {
        let is_whole = |bytes: u64| bytes.is_multiple_of(BLOCK_BYTES as u64);
        assert!(is_whole(offset) && is_whole(blocks.len() as u64), "no whole blocks at {offset}");
        match self.direct.get() {
            Some(Some(direct)) if blocks.as_ptr().align_offset(BLOCK_BYTES) == 0 => {
                let failed = |source| Error::Io {
                    op: "write and sync",
                    path: self.path.clone(),
                    source: Arc::new(source),
                };
                direct.write_all_at(blocks, offset).map_err(failed)
            }
            Some(_) | None => {
                self.write_at(offset, blocks)?;
                self.sync()
            }
        }
    }

    fn forget_cache(&self) -> Result<()> {
        rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed)
            .map_err(|e| self.fail("drop the cache of")(e.into()))
    }

    fn map(&self, access: Access) -> Result<Arc<dyn Map>> {
        Ok(Arc::new(OsMap::new(&self.file, &self.path, access)?))
    }
}

impl OsFile {
    /// Writes zeros through the cache. Page by page, since a longer write leaves a large folio in the cache, all of which
    /// an append would write again; and synced in steps, so that whoever syncs another file meanwhile waits for one step
    /// and not for all of it.
    fn zero(&self, bytes: u64) -> Result<()> {
        let zeros = [0; BLOCK_BYTES];
        let mut offset = 0;
        while offset < bytes {
            let part = (bytes - offset).min(BLOCK_BYTES as u64);
            self.write_at(offset, &zeros[..part as usize])?;
            offset += part;
            if offset.is_multiple_of(ALLOCATE_STEP_BYTES) {
                // Of these zeros nothing depends yet: a device that has no room for them is merely full.
                self.file.sync_data().map_err(self.fail("sync"))?;
            }
        }
        Ok(())
    }

    /// Writes zeros past the cache, which costs neither its pages nor a copy, and opens the way for later writes; false if
    /// the file system cannot.
    fn zero_directly(&self, bytes: u64) -> Result<bool> {
        let flags = (OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::DIRECT | OFlags::DSYNC).bits();
        let opened = fs::OpenOptions::new().write(true).custom_flags(flags as i32).open(&self.path);
        let direct = match opened {
            Ok(direct) if bytes.is_multiple_of(BLOCK_BYTES as u64) => direct,
            Ok(_) | Err(_) => {
                self.direct.get_or_init(|| None);
                return Ok(false);
            }
        };
        let mut zeros = Blocks::default();
        zeros.extend(&vec![0; bytes.min(ALLOCATE_STEP_BYTES) as usize]);
        let zeros = zeros.padded();
        let mut offset = 0;
        while offset < bytes {
            let part = (bytes - offset).min(zeros.len() as u64);
            match direct.write_all_at(&zeros[..part as usize], offset) {
                Ok(()) => offset += part,
                // The device may want larger blocks.
                Err(error) if offset == 0 && error.kind() == io::ErrorKind::InvalidInput => {
                    self.direct.get_or_init(|| None);
                    return Ok(false);
                }
                Err(error) => return Err(self.fail("write zeros to")(error)),
            }
        }
        self.direct.get_or_init(|| Some(direct));
        Ok(true)
    }
}

/// What is written between two syncs while a file is allocated.
const ALLOCATE_STEP_BYTES: u64 = 1 << 20;

fn system_open(path: &Path, options: &mut fs::OpenOptions) -> io::Result<fs::File> {
    let flags = (OFlags::CLOEXEC | OFlags::NOFOLLOW).bits() as i32;
    options.mode(0o600).custom_flags(flags).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each way of writing leaves, as every way of reading sees it.
    fn write_and_read(access: Access, is_aligned: bool) {
        let dir = tempfile::tempdir().expect("there is room");
        let path = dir.path().join("file");
        let file = OsDisk.create(&path).expect("there is room");
        let length = 64 * BLOCK_BYTES;
        file.allocate(length as u64, access).expect("there is room");
        assert_eq!(file.bytes().expect("it is open"), length as u64);
        let map = file.map(access).expect("it is open");
        let (mut mapped, mut read) = (vec![1; length], vec![1; length]);
        map.read_at(0, &mut mapped);
        assert!(mapped.iter().all(|&byte| byte == 0));
        let bytes: Vec<u8> = (0..5 * BLOCK_BYTES).map(|i| (i % 251) as u8).collect();
        let mut blocks = Blocks::default();
        blocks.extend(&bytes);
        let (start, unaligned) = (3 * BLOCK_BYTES, [&[0][..], &bytes].concat());
        let written = if is_aligned { blocks.padded() } else { &unaligned[1..] };
        file.write_durable(start as u64, written).expect("there is room");
        map.read_at(0, &mut mapped);
        file.read_at(0, &mut read).expect("it is open");
        assert!(read[start..start + bytes.len()] == bytes && mapped == read);
        assert!(read[..start].iter().chain(&read[start + bytes.len()..]).all(|&byte| byte == 0));
    }

    #[test]
    fn blocks_are_seen_by_maps_and_readers_whichever_way_they_went() {
        for access in [Access::Read, Access::ReadWrite] {
            write_and_read(access, true);
            write_and_read(access, false);
        }
    }
}
