//! What can happen to a disk in memory: power cuts that lose or tear what was not synced, kills, failing syncs, bytes
//! that change by themselves.

use std::path::Path;

use super::{Content, MemDisk, SECTOR_BYTES};

/// What a power cut does to a sector that was changed and not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The old bytes stay.
    Lost,
    /// The new bytes are there.
    Kept,
    /// So many bytes from the start are new, the rest is old.
    Torn(usize),
}

impl MemDisk {
    /// Power cut: everything that was not synced is gone, also names. Locks are released.
    pub fn crash(&self) {
        self.crash_keeping(|_, _| false);
    }

    /// Power cut in which the device kept some unsynced sectors: `keep(path, sector)` decides for each sector of 512
    /// bytes that differs. Names that were not synced are gone; a planned failure is called off.
    pub fn crash_keeping(&self, mut keep: impl FnMut(&Path, usize) -> bool) {
        self.crash_with(false, |path, sector| match keep(path, sector) {
            true => Fate::Kept,
            false => Fate::Lost,
        });
    }

    /// Power cut in which `fate` decides for each sector that differs, and `keep_names` for all names that were made,
    /// changed or removed since their directory was synced.
    pub fn crash_with(&self, keep_names: bool, mut fate: impl FnMut(&Path, usize) -> Fate) {
        let mut state = self.lock_state();
        let state = &mut *state;
        match keep_names {
            true => state.names_durable = state.names.clone(),
            false => state.names = state.names_durable.clone(),
        }
        state.locks.clear();
        (state.fail_sync_at, state.power_left) = (None, None);
        for (path, id) in &state.names {
            let content = state.files.get_mut(id).expect("names only point to files that exist");
            let Content { now, durable, given_up } = content;
            *given_up = None;
            for (sector, fresh) in now.chunks(SECTOR_BYTES).enumerate() {
                let start = sector * SECTOR_BYTES;
                let end = start + fresh.len();
                let is_same = durable.get(start..end).is_some_and(|old| old == fresh);
                let kept = match is_same {
                    true => 0,
                    false => match fate(path, sector) {
                        Fate::Lost => 0,
                        Fate::Kept => fresh.len(),
                        Fate::Torn(bytes) => bytes.min(fresh.len()),
                    },
                };
                if kept > 0 {
                    durable.resize(durable.len().max(end), 0);
                    durable[start..start + kept].copy_from_slice(&fresh[..kept]);
                }
            }
            *now = durable.clone();
        }
    }

    /// Kill of the process: nothing is lost but the locks.
    pub fn kill(&self) {
        self.lock_state().locks.clear();
    }

    /// After so many more changes (writes, syncs, names) everything fails, as it does when the power goes, until the
    /// crash.
    pub fn cut_power_after(&self, changes: u64) {
        self.lock_state().power_left = Some(changes);
    }

    /// Lets the `nth` sync of a file from now on fail once (1 is the next one).
    pub fn fail_sync(&self, nth: u64) {
        let mut state = self.lock_state();
        state.fail_sync_at = Some(state.syncs + nth);
    }

    /// Replaces the bytes of a file behind everyone's back, durably: a fault of the medium.
    pub fn tamper(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.lock_state();
        let id = state.names[path];
        let content = state.files.get_mut(&id).expect("names only point to files that exist");
        change(&mut content.now);
        content.durable = content.now.clone();
    }
}
