//! The arena for the model checker: the same interface, on `loom`'s atomics, so that every order in which a reader may
//! see the writer's stores is tried. Payloads are cells that loom watches: a read that is not ordered after the write is
//! an error. Built with `--cfg model_check` only.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use loom::cell::UnsafeCell;
pub(super) use loom::sync::atomic::fence;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::Error;
use super::frozen::{Frozen, Kept};

/// A place in the arena in units of 8 bytes; 0 is "nothing".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Offset(pub(super) u32);

impl Offset {
    /// No record.
    pub(super) const NULL: Offset = Offset(0);

    pub(super) fn is_null(self) -> bool {
        self == Offset::NULL
    }
}

/// The word that holds these halves, in their order.
pub(super) fn word_of(halves: [u32; 2]) -> u64 {
    u64::from(halves[1]) << 32 | u64::from(halves[0])
}

/// The granularity of offsets.
pub(super) const UNIT_BYTES: usize = 8;

/// See the module.
pub(super) struct Arena {
    halves: Mutex<BTreeMap<usize, Arc<AtomicU32>>>,
    words: Mutex<BTreeMap<usize, Arc<AtomicU64>>>,
    payloads: Mutex<BTreeMap<usize, &'static Payload>>,
    used: AtomicU32,
    published: AtomicU64,
    oldest: AtomicU64,
}

struct Payload {
    bytes: Box<[u8]>,
    watched: UnsafeCell<()>,
}

// SAFETY: the model checker runs one thread at a time, and watches the cell for accesses that are not ordered.
unsafe impl Sync for Payload {}
// SAFETY: as above.
unsafe impl Send for Payload {}

/// The one handle that may allocate and store.
pub(super) struct ArenaWriter {
    arena: Arc<Arena>,
    kept: Option<Arc<Kept>>,
}

impl Arena {
    pub(super) fn reserve(_: u64) -> Result<ArenaWriter, Error> {
        let arena = Arena {
            halves: Mutex::default(),
            words: Mutex::default(),
            payloads: Mutex::default(),
            used: AtomicU32::new(1),
            published: AtomicU64::new(0),
            oldest: AtomicU64::new(0),
        };
        Ok(ArenaWriter { arena: Arc::new(arena), kept: None })
    }

    pub(super) fn recycle(_: Arc<Arena>) -> Option<ArenaWriter> {
        None
    }

    pub(super) fn shrink(_: &mut Arc<Arena>, _: u64) {}

    pub(super) fn used_bytes(&self) -> u64 {
        u64::from(self.used.load(Ordering::Relaxed)) * UNIT_BYTES as u64
    }

    pub(super) fn capacity_bytes(&self) -> u64 {
        u64::from(u32::MAX)
    }

    pub(super) fn published(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    pub(super) fn oldest(&self) -> u64 {
        self.oldest.load(Ordering::Acquire)
    }

    pub(super) fn half(&self, at: Offset, index: usize) -> u32 {
        self.half_at(at, index).load(Ordering::Acquire)
    }

    pub(super) fn word(&self, at: Offset, index: usize) -> u64 {
        self.word_at(at, index).load(Ordering::Acquire)
    }

    pub(super) fn prefetch(&self, _: Offset, _: usize) {}

    fn half_at(&self, at: Offset, index: usize) -> Arc<AtomicU32> {
        let halves = self.halves.lock().expect("nothing panics under it");
        Arc::clone(halves.get(&(at.0 as usize * 2 + index)).expect("it was allocated"))
    }

    fn word_at(&self, at: Offset, index: usize) -> Arc<AtomicU64> {
        let words = self.words.lock().expect("nothing panics under it");
        Arc::clone(words.get(&(at.0 as usize + index)).expect("it was allocated"))
    }

    /// What a unit holds, whether it is two halves or a word; 0 if it is a payload.
    fn unit(
        &self,
        unit: u32,
        load: impl Fn(&AtomicU64) -> u64,
        half: impl Fn(&AtomicU32) -> u32,
    ) -> u64 {
        let unit = unit as usize;
        let words = self.words.lock().expect("nothing panics under it");
        let halves = self.halves.lock().expect("nothing panics under it");
        let (word, pair) = (words.get(&unit), [2 * unit + 1, 2 * unit].map(|i| halves.get(&i)));
        let whole = word.map_or(0, |word| load(word));
        pair.into_iter().fold(0, |high, low| high << 32 | u64::from(low.map_or(0, |low| half(low))))
            | whole
    }

    /// # Safety
    /// None is needed here: what must hold is checked.
    pub(super) unsafe fn copy(&self, units: Range<u32>, to: &mut Vec<u8>) {
        for unit in units {
            // SAFETY: loom sees a store that is not ordered with these loads.
            let held =
                self.unit(unit, |it| unsafe { it.unsync_load() }, |it| unsafe { it.unsync_load() });
            to.extend(held.to_ne_bytes());
        }
    }

    /// Makes what words may be touched as. Here and not when they are: whoever touches them first must not have made
    /// them.
    fn make_words(&self, at: usize, count: usize) {
        let mut halves = self.halves.lock().expect("nothing panics under it");
        let mut words = self.words.lock().expect("nothing panics under it");
        for unit in at..at + count {
            words.insert(unit, Arc::new(AtomicU64::new(0)));
            halves.insert(2 * unit, Arc::new(AtomicU32::new(0)));
            halves.insert(2 * unit + 1, Arc::new(AtomicU32::new(0)));
        }
    }

    /// # Safety
    /// None is needed here: what must hold is checked.
    pub(super) unsafe fn payload(&self, at: Offset, words: usize, len: usize) -> &[u8] {
        let payload = self.payloads.lock().expect("nothing panics under it");
        let payload = *payload.get(&(at.0 as usize + words)).expect("a payload was written there");
        payload.watched.with(|_| ());
        &payload.bytes[..len]
    }
}

impl ArenaWriter {
    pub(super) fn expect_image(&mut self, _: u64) {}

    pub(super) fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Where a word will be touched as two halves it is these that count, and the word never changes.
    pub(super) fn alloc(&mut self, words: &[u64], payload: [&[u8]; 2]) -> Option<Offset> {
        let bytes: Vec<u8> = payload.concat();
        let Offset(at) = self.take(words.len(), bytes.len().div_ceil(UNIT_BYTES));
        for (place, &word) in (at as usize..).zip(words) {
            // Not its first value, which everybody could see: a store like any other.
            let at = Offset(place as u32);
            self.arena.word_at(at, 0).store(word, Ordering::Relaxed);
            self.arena.half_at(at, 0).store(word as u32, Ordering::Relaxed);
            self.arena.half_at(at, 1).store((word >> 32) as u32, Ordering::Relaxed);
        }
        let words = words.len();
        let payload = Payload { bytes: bytes.into(), watched: UnsafeCell::new(()) };
        payload.watched.with_mut(|_| ());
        // Leaked: a test has few, and each execution its own.
        let payload: &'static Payload = Box::leak(Box::new(payload));
        let mut payloads = self.arena.payloads.lock().expect("nothing panics under it");
        payloads.insert(at as usize + words, payload);
        Some(Offset(at))
    }

    pub(super) fn alloc_zeros(&mut self, words: usize) -> Option<Offset> {
        Some(self.take(words, 0))
    }

    fn take(&mut self, words: usize, payload_units: usize) -> Offset {
        let at = self.arena.used.load(Ordering::Relaxed);
        self.arena.used.store(at + (words + payload_units) as u32, Ordering::Relaxed);
        self.arena.make_words(at as usize, words);
        Offset(at)
    }

    pub(super) fn set_half(&mut self, at: Offset, index: usize, value: u32) {
        self.keep(at.0 + index as u32 / 2);
        self.arena.half_at(at, index).store(value, Ordering::Release);
    }

    pub(super) fn set_word(&mut self, at: Offset, index: usize, value: u64) {
        self.keep(at.0 + index as u32);
        self.arena.word_at(at, index).store(value, Ordering::Release);
    }

    pub(super) fn publish(&mut self, revision: u64) {
        self.arena.published.store(revision, Ordering::Release);
    }

    pub(super) fn set_oldest(&mut self, revision: u64) {
        self.arena.oldest.store(revision, Ordering::Release);
    }

    fn keep(&self, unit: u32) {
        let relaxed = Ordering::Relaxed;
        let held = || self.arena.unit(unit, |it| it.load(relaxed), |it| it.load(relaxed));
        self.kept.iter().for_each(|kept| kept.before_store(unit, held));
    }

    pub(super) fn freeze(&mut self) -> Frozen {
        let units = self.arena.used.load(Ordering::Relaxed);
        let (frozen, kept) = Frozen::new(Arc::clone(&self.arena), units);
        self.kept = Some(kept);
        frozen
    }

    #[cfg(test)]
    pub(super) fn image(&self) -> &[u8] {
        unreachable!("the model has no image")
    }

    pub(super) fn restore(&mut self, _: u64) -> Result<&mut [u8], Error> {
        unreachable!("the model has no image")
    }
}
