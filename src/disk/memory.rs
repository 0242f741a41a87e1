//! A disk for tests: it can forget what was not synced, tear it, fail a sync and be full.

mod faults;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

pub use self::faults::Fate;
use super::{Access, Disk, Error, File, Lock, Map, Result};

/// Files in memory, with what a crash would leave of them. Clones share the same files.
///
/// Invariant: `durable` names and bytes change only by syncs, allocations and crashes.
#[derive(Clone, Debug, Default)]
pub struct MemDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    names: BTreeMap<PathBuf, u64>,
    names_durable: BTreeMap<PathBuf, u64>,
    files: BTreeMap<u64, Content>,
    dirs: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
    capacity: Option<u64>,
    syncs: u64,
    fail_sync_at: Option<u64>,
    /// Changes until the power fails.
    power_left: Option<u64>,
}

#[derive(Clone, Debug, Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// What `now` was when a sync failed: the system takes it for clean and never writes it again.
    given_up: Option<Vec<u8>>,
}

impl MemDisk {
    /// An empty disk without a limit.
    pub fn new() -> MemDisk {
        MemDisk::default()
    }

    /// How many bytes all files together may have; `None` is no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock_state().capacity = bytes;
    }

    /// How many syncs of file contents there were.
    pub fn syncs(&self) -> u64 {
        self.lock_state().syncs
    }

    /// How many bytes all files have together.
    pub fn used_bytes(&self) -> u64 {
        self.lock_state().used_bytes()
    }

    /// The paths of all files, in order.
    pub fn files(&self) -> Vec<PathBuf> {
        self.lock_state().names.keys().cloned().collect()
    }

    /// The present bytes of a file, if it exists.
    pub fn dump(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.lock_state();
        state.names.get(path).map(|id| state.files[id].now.clone())
    }

    /// An independent copy of the disk as it is, without locks.
    pub fn fork(&self) -> MemDisk {
        let state = self.lock_state();
        let copy = State {
            names: state.names.clone(),
            names_durable: state.names_durable.clone(),
            files: state.files.clone(),
            dirs: state.dirs.clone(),
            capacity: state.capacity,
            ..State::default()
        };
        MemDisk { state: Arc::new(Mutex::new(copy)) }
    }

    fn lock_state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn used_bytes(&self) -> u64 {
        self.names.values().map(|id| self.files[id].now.len() as u64).sum()
    }

    /// Counts a change and says whether there is still power for it.
    fn change(&mut self, path: &Path) -> Result<()> {
        match &mut self.power_left {
            Some(0) => Err(fail("reach", path, io::ErrorKind::Other)),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Counts a sync of a file and says whether it is the one that fails.
    fn sync(&mut self, path: &Path, id: u64) -> Result<()> {
        self.change(path)?;
        self.syncs += 1;
        if self.fail_sync_at == Some(self.syncs) {
            let content = self.content(id);
            content.given_up = Some(content.now.clone());
            return Err(fail("sync", path, io::ErrorKind::Other));
        }
        Ok(())
    }

    fn grow(&mut self, path: &Path, id: u64, bytes: u64) -> Result<()> {
        let old = self.files[&id].now.len() as u64;
        let grown = bytes.saturating_sub(old);
        if grown > 0 && self.capacity.is_some_and(|max| self.used_bytes() + grown > max) {
            return Err(Error::NoSpace { op: "allocate", path: path.to_owned() });
        }
        self.content(id).now.resize(old.max(bytes) as usize, 0);
        Ok(())
    }

    fn content(&mut self, id: u64) -> &mut Content {
        self.files.get_mut(&id).expect("files are never removed while the disk lives")
    }
}

impl Content {
    /// Makes a range durable, but for what a failed sync gave up and nobody wrote again.
    fn persist(&mut self, range: Range<usize>) {
        let range = range.start..range.end.min(self.now.len());
        self.durable.resize(self.now.len(), 0);
        let Some(given_up) = &self.given_up else {
            self.durable[range.clone()].copy_from_slice(&self.now[range]);
            return;
        };
        for start in range.clone().step_by(SECTOR_BYTES) {
            let sector = start..(start + SECTOR_BYTES).min(range.end);
            if given_up.get(sector.clone()) != Some(&self.now[sector.clone()]) {
                self.durable[sector.clone()].copy_from_slice(&self.now[sector]);
            }
        }
    }
}

impl Disk for MemDisk {
    fn create_dir(&self, path: &Path) -> Result<()> {
        self.lock_state().dirs.extend(path.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn list(&self, path: &Path) -> Result<Vec<String>> {
        let state = self.lock_state();
        if !state.dirs.contains(path) {
            return Err(fail("list", path, io::ErrorKind::NotFound));
        }
        let inside = state.names.keys().filter(|name| name.parent() == Some(path));
        Ok(inside.filter_map(|name| Some(name.file_name()?.to_str()?.to_owned())).collect())
    }

    fn open(&self, path: &Path) -> Result<Arc<dyn File>> {
        let state = self.lock_state();
        let id =
            *state.names.get(path).ok_or_else(|| fail("open", path, io::ErrorKind::NotFound))?;
        Ok(Arc::new(MemFile { state: self.state.clone(), id, path: path.to_owned() }))
    }

    fn create(&self, path: &Path) -> Result<Arc<dyn File>> {
        let mut state = self.lock_state();
        state.change(path)?;
        let id = state.files.len() as u64;
        state.files.insert(id, Content::default());
        state.names.insert(path.to_owned(), id);
        Ok(Arc::new(MemFile { state: self.state.clone(), id, path: path.to_owned() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let mut state = self.lock_state();
        state.change(from)?;
        let id = state.names.remove(from);
        let id = id.ok_or_else(|| fail("rename", from, io::ErrorKind::NotFound))?;
        state.names.insert(to.to_owned(), id);
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<()> {
        let mut state = self.lock_state();
        state.change(path)?;
        let removed = state.names.remove(path);
        removed.map(|_| ()).ok_or_else(|| fail("remove", path, io::ErrorKind::NotFound))
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        let mut state = self.lock_state();
        state.change(path)?;
        let inside = |name: &PathBuf| name.parent() == Some(path);
        let fresh: Vec<_> = state.names.iter().map(|(name, id)| (name.clone(), *id)).collect();
        state.names_durable.retain(|name, _| !inside(name));
        state.names_durable.extend(fresh.into_iter().filter(|(name, _)| inside(name)));
        Ok(())
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn Lock>> {
        if !self.lock_state().locks.insert(path.to_owned()) {
            return Err(Error::Locked { path: path.to_owned() });
        }
        Ok(Box::new(MemLock { state: self.state.clone(), path: path.to_owned() }))
    }

    fn free_bytes(&self, _path: &Path) -> Result<u64> {
        let state = self.lock_state();
        Ok(state.capacity.map_or(u64::MAX, |max| max.saturating_sub(state.used_bytes())))
    }
}

#[derive(Debug)]
struct MemLock {
    state: Arc<Mutex<State>>,
    path: PathBuf,
}

impl Lock for MemLock {}

impl Drop for MemLock {
    fn drop(&mut self) {
        lock(&self.state).locks.remove(&self.path);
    }
}

#[derive(Clone, Debug)]
struct MemFile {
    state: Arc<Mutex<State>>,
    id: u64,
    path: PathBuf,
}

impl File for MemFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let mut state = lock(&self.state);
        let now = &state.content(self.id).now;
        let start = (offset as usize).min(now.len());
        let bytes = now.get(start..start + buffer.len());
        let bytes = bytes.ok_or_else(|| fail("read", &self.path, io::ErrorKind::UnexpectedEof))?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut state = lock(&self.state);
        state.change(&self.path)?;
        let end = offset as usize + bytes.len();
        state.grow(&self.path, self.id, end as u64)?;
        state.content(self.id).now[offset as usize..end].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        let mut state = lock(&self.state);
        state.sync(&self.path, self.id)?;
        state.content(self.id).persist(0..usize::MAX);
        Ok(())
    }

    fn bytes(&self) -> Result<u64> {
        Ok(lock(&self.state).content(self.id).now.len() as u64)
    }

    fn allocate(&self, bytes: u64, _access: Access) -> Result<()> {
        lock(&self.state).grow(&self.path, self.id, bytes)?;
        File::sync(self)
    }

    fn forget_cache(&self) -> Result<()> {
        let mut state = lock(&self.state);
        let content = state.content(self.id);
        if content.given_up.take().is_some() {
            content.now.clone_from(&content.durable);
        }
        Ok(())
    }

    fn map(&self, _access: Access) -> Result<Arc<dyn Map>> {
        Ok(Arc::new(self.clone()))
    }
}

impl Map for MemFile {
    fn bytes(&self) -> usize {
        lock(&self.state).content(self.id).now.len()
    }

    fn read_at(&self, offset: usize, buffer: &mut [u8]) {
        let mut state = lock(&self.state);
        buffer.copy_from_slice(&state.content(self.id).now[offset..offset + buffer.len()]);
    }

    fn write_at(&self, offset: usize, bytes: &[u8]) {
        let mut state = lock(&self.state);
        state.content(self.id).now[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn sync(&self, offset: usize, bytes: usize) -> Result<()> {
        let mut state = lock(&self.state);
        state.sync(&self.path, self.id)?;
        state.content(self.id).persist(offset..offset + bytes);
        Ok(())
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no method panics while it holds the lock, but by a broken test")
}

fn fail(op: &'static str, path: &Path, kind: io::ErrorKind) -> Error {
    Error::from_io(op, path, kind.into())
}

const SECTOR_BYTES: usize = 512;
