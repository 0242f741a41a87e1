//! Removing segments that nobody needs any more.

use super::Error;
use super::segment::{segment_path, torn_path};
use super::writer::Writer;
use crate::raft::Index;

impl Writer {
    /// Removes the oldest segments while all their entries lie below `below` and under a durable snapshot, or a reset
    /// made them void. The mark is raised first: a crash in between leaves files that the next opening removes.
    pub(super) fn purge(&mut self, below: Index) -> Result<(), Error> {
        let covered = self.snapshot.map_or(Index(0), |snapshot| snapshot.0.next());
        let below = below.min(covered);
        let mut removed = Vec::new();
        while self.segments.len() > 1
            && let Some(oldest) = self.segments.front()
            && (oldest.seq < self.dead_before || oldest.index_max < below)
        {
            removed.push(oldest.seq);
            self.segments.pop_front();
        }
        if removed.is_empty() {
            return Ok(());
        }
        self.sync_mark()?;
        for seq in removed {
            self.disk.remove(&segment_path(&self.dir, seq))?;
            match self.disk.remove(&torn_path(&self.dir, seq)) {
                Err(e) if !e.is_not_found() => return Err(e.into()),
                Ok(()) | Err(_) => {}
            }
        }
        self.disk.sync_dir(&self.dir)?;
        Ok(())
    }
}
