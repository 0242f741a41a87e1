//! An image as it was when it was complete, while the store already goes on in it.
//!
//! **For:** the checkpoint thread, which takes its time to write the file: the store need not wait for that before it
//! leaves its old arena.
//!
//! **In and out:** [`ArenaWriter::freeze`](super::arena::ArenaWriter::freeze) gives a [`Frozen`] for another thread;
//! [`Frozen::read`] gives its bytes, once, from the first to the last.
//!
//! **Always:** the bytes are those of the moment of freezing. The writer changes nothing in an image but words (links,
//! newest versions, buckets); before it changes one that was not read yet, it keeps what that held. So a kept word is
//! never read from the arena, and one that is not kept is not stored to while the lock is held.
//!
//! **Left out:** what is allocated later; it lies behind the image.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

#[cfg(model_check)]
use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU32, Ordering},
};
#[cfg(not(model_check))]
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU32, Ordering},
};

use super::arena::Arena;

/// The reader's half.
pub(super) struct Frozen {
    arena: Arc<Arena>,
    kept: Arc<Kept>,
}

/// The writer's half.
pub(super) struct Kept {
    /// The image's length in units of the arena.
    units: u32,
    /// Units from the beginning that were read.
    read: AtomicU32,
    /// What words held that were stored to before they were read.
    words: Mutex<BTreeMap<u32, u64>>,
}

impl Frozen {
    /// Both halves of the arena's first units as they are now.
    pub(super) fn new(arena: Arc<Arena>, units: u32) -> (Frozen, Arc<Kept>) {
        let kept = Kept { units, read: AtomicU32::new(0), words: Mutex::new(BTreeMap::new()) };
        let kept = Arc::new(kept);
        (Frozen { arena, kept: Arc::clone(&kept) }, kept)
    }

    /// Gives all of it in blocks of this many bytes, which are whole pieces; the last is shorter.
    ///
    /// # Errors
    /// The first of `each`, which ends it.
    pub(super) fn read<E>(
        self,
        block_bytes: usize,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut block = Vec::with_capacity(block_bytes);
        let units = self.kept.units;
        for from in (0..units).step_by(PIECE_UNITS as usize) {
            let to = units.min(from.saturating_add(PIECE_UNITS));
            self.copy(from..to, &mut block);
            if block.len() >= block_bytes || to == units {
                each(&block)?;
                block.clear();
            }
        }
        Ok(())
    }

    /// Adds the next units to `to`.
    fn copy(&self, units: Range<u32>, to: &mut Vec<u8>) {
        let mut words = self.kept.lock();
        let mut from = units.start;
        for (&unit, held) in words.range(units.clone()) {
            // SAFETY: the image was allocated; a store to one of its units that is not kept waits for the lock, in
            // `before_store`, as long as this has not been read.
            unsafe { self.arena.copy(from..unit, to) };
            to.extend(held.to_ne_bytes());
            from = unit + 1;
        }
        // SAFETY: as above.
        unsafe { self.arena.copy(from..units.end, to) };
        // One by one: to split the map would be to count what stays.
        while words.first_key_value().is_some_and(|(&unit, _)| unit < units.end) {
            words.pop_first();
        }
        self.kept.read.store(units.end, Ordering::Release);
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.kept.read.store(self.kept.units, Ordering::Release);
        self.kept.lock().clear();
    }
}

impl Kept {
    /// The writer is about to store to this unit, which still `holds` what it did.
    #[inline]
    pub(super) fn before_store(&self, unit: u32, holds: impl FnOnce() -> u64) {
        if unit < self.units && unit >= self.read.load(Ordering::Acquire) {
            self.lock().entry(unit).or_insert_with(holds);
        }
    }

    /// Nothing is left undone under it if somebody panics.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, u64>> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Copied at once: the writer waits for less than a microsecond.
const PIECE_UNITS: u32 = 512;

#[cfg(all(test, not(model_check)))]
mod tests {
    use super::*;
    use crate::store::arena::{ArenaWriter, Offset};

    #[test]
    fn what_is_read_is_what_was_frozen() {
        const RECORDS: u32 = 2000;
        let mut state = 1_u32;
        let mut random = move |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % below
        };
        for pieces in [1, 3] {
            let mut writer = Arena::reserve(1 << 20).unwrap();
            let records: Vec<Offset> =
                (0..RECORDS).map(|_| writer.alloc(&[0; 2], [&[7; 20], &[]]).unwrap()).collect();
            for (number, &at) in (0..).zip(&records) {
                writer.set_word(at, 0, number);
            }
            let expected = writer.image().to_vec();
            let mut disturb = |writer: &mut ArenaWriter| {
                for _ in 0..random(400) {
                    let at = records[random(RECORDS) as usize];
                    match random(4) {
                        0 => writer.set_word(at, 0, u64::MAX),
                        1 => writer.set_half(at, 2, 1),
                        2 => writer.set_half(at, 3, 2),
                        _ => _ = writer.alloc(&[0], [&[9; 3], &[]]),
                    }
                }
            };
            let frozen = writer.freeze();
            disturb(&mut writer);
            let (mut read, mut blocks) = (Vec::new(), 0);
            let each = |block: &[u8]| {
                read.extend_from_slice(block);
                blocks += 1;
                disturb(&mut writer);
                Ok::<(), ()>(())
            };
            frozen.read(pieces * 4096, each).unwrap();
            assert!(blocks > 4 && read == expected, "blocks of {pieces}");
            assert_ne!(writer.image()[..expected.len()], expected);
        }
    }
}
