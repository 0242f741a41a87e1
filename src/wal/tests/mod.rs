//! Tests of the log, on the disk in memory and on the machine's.

mod damage;
mod golden;
mod mending;
mod ordinary;
mod proof;
mod skipping;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::disk::{Disk, MemDisk};
use crate::raft::{DataId, EntryKind};

/// A log with both halves on one thread, and what it should hold.
struct Rig {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: Options,
    log: Log,
    writer: Writer,
    recovered: Recovered,
}

const OWNER: Identity = Identity { cluster: [7; 16], node: NodeId(3), data: DataId(11) };

fn options(io: LogIo) -> Options {
    let (segment_bytes, prepare_on_thread) = (SEGMENT_BYTES_MIN, false);
    Options { segment_bytes, io, prepare_on_thread, salt_seed: 42, entries_kept: 0 }
}

impl Rig {
    fn open(disk: Arc<dyn Disk>, dir: &Path, options: Options) -> Result<Rig, Error> {
        let opened = match open(disk.clone(), dir, OWNER, options)? {
            Opening::Whole(opened) => *opened,
            Opening::Damaged(damaged) => return Err(damaged.error()),
        };
        let Opened { log, writer, recovered } = opened;
        Ok(Rig { disk, dir: dir.to_owned(), options, log, writer, recovered })
    }

    fn memory(io: LogIo) -> (MemDisk, Rig) {
        let disk = MemDisk::new();
        let rig = Rig::open(Arc::new(disk.clone()), Path::new("/data/wal"), options(io)).unwrap();
        (disk, rig)
    }

    fn reopen(self) -> Rig {
        let Rig { disk, dir, options, log, writer, .. } = self;
        drop((log, writer));
        Rig::open(disk, &dir, options).unwrap()
    }

    /// Appends `count` entries of `term` with bodies of `bytes`, in one batch.
    fn append(&mut self, count: u64, term: u64, bytes: usize) -> Batch {
        let first = self.log.last_index().next();
        let mut builder = BatchBuilder::new(first);
        for i in 0..count {
            let body = vec![(first.0 + i) as u8 ^ term as u8; bytes];
            builder.push(Term(term), EntryKind::Command, &body);
        }
        let batch = builder.finish();
        self.log.append(batch.clone());
        batch
    }

    fn sync(&mut self) {
        self.try_sync().unwrap();
    }

    fn try_sync(&mut self) -> Result<(), Error> {
        let report = self.writer.write_and_sync(self.log.take_pending())?;
        self.log.on_persisted(report);
        Ok(())
    }

    /// Everything readable, through whatever way `read` takes.
    fn contents(&self) -> Vec<Entry> {
        if self.log.last_index() < self.log.first_index() {
            return Vec::new();
        }
        let mut entries = Vec::new();
        let mut next = self.log.first_index();
        while next <= self.log.last_index() {
            for batch in self.log.read(next, self.log.last_index(), 1000).unwrap() {
                assert_eq!(batch.first_index(), next);
                next = batch.last_index().next();
                entries.extend(batch.entries());
            }
        }
        entries
    }

    /// The files of the log with this ending.
    fn files(&self, ending: &str) -> Vec<String> {
        let mut names = self.disk.list(&self.dir).unwrap();
        names.retain(|name| name.ends_with(ending));
        names
    }
}

fn hard(term: u64, vote: u64, commit: u64) -> HardState {
    let voted_for = (vote != 0).then_some(NodeId(vote));
    HardState { term: Term(term), voted_for, commit_index: Index(commit) }
}

fn both(test: impl Fn(LogIo)) {
    test(LogIo::Write);
    test(LogIo::Map);
}
