//! One reserved region of memory in which everything of the store lies, and the only `unsafe` code of it (beside the
//! two payload views in `records.rs` and `versions.rs`, and the copy of an image in `frozen.rs`).
//!
//! **For:** records that link to each other by 32-bit offsets, written by one thread and read by any number of threads
//! without a lock; and an image of them that is a file without any translation.
//!
//! **In and out:** [`Arena::reserve`] gives the shared half (loads) and the one [`ArenaWriter`] (allocation and
//! stores). A record is some 8-byte *words* and after them *payload* bytes. Both are written before anyone knows the
//! record's offset; after that words are only ever touched as atomics, and the payload is never written again.
//!
//! **Always:** what is allocated is never moved or freed while the arena lives; every access is bounds-checked, so that
//! a damaged image can panic but not read foreign memory.
//!
//! **Left out:** freeing. Dead versions go when the store swaps to a compacted image; the memory of the arena that it
//! left can take the next one ([`Arena::recycle`]).

use std::ops::Range;
use std::sync::Arc;
pub(super) use std::sync::atomic::fence;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use memmap2::{Advice, MmapOptions, MmapRaw, UncheckedAdvice};

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

    fn bytes(self) -> usize {
        self.0 as usize * UNIT_BYTES
    }
}

/// The word that holds these halves, in their order.
#[inline]
pub(super) fn word_of(halves: [u32; 2]) -> u64 {
    let [low, high] = if cfg!(target_endian = "little") { halves } else { [halves[1], halves[0]] };
    u64::from(high) << 32 | u64::from(low)
}

/// The granularity of offsets.
pub(super) const UNIT_BYTES: usize = 8;
/// The most that 32-bit offsets reach.
pub(super) const ARENA_BYTES_MAX: u64 = (u32::MAX as u64) * UNIT_BYTES as u64;

/// The region: loads only, from any thread.
pub(super) struct Arena {
    /// Keeps the region mapped. Its bytes are reached through raw pointers only.
    map: MmapRaw,
    /// Units handed out; the next record starts here.
    used: AtomicU32,
    /// The newest revision that readers may see.
    published: AtomicU64,
    /// The oldest revision that readers may ask for.
    oldest: AtomicU64,
    /// Bytes from the beginning that may hold what an earlier arena in this memory left there.
    stale: usize,
}

/// The one handle that may allocate and store. Not `Clone`: that there is one is what makes the arena sound.
pub(super) struct ArenaWriter {
    arena: Arc<Arena>,
    /// What is kept for the reader of the image that this arena was, if it was frozen.
    kept: Option<Arc<Kept>>,
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.give_back(0);
    }
}

impl Arena {
    /// Reserves address space; pages take memory when they are first written.
    pub(super) fn reserve(bytes: u64) -> Result<ArenaWriter, Error> {
        let bytes = bytes.clamp(ARENA_BYTES_MIN, ARENA_BYTES_MAX) & !(UNIT_BYTES as u64 - 1);
        let fail = |source| Error::Reserve { bytes, source };
        let len =
            usize::try_from(bytes).map_err(|_| fail(std::io::ErrorKind::OutOfMemory.into()))?;
        let map = MmapOptions::new().len(len).no_reserve_swap().map_anon().map_err(fail)?;
        let map = MmapRaw::from(map);
        // Huge pages doubled the tail latency of puts (`speed.md` 3). A kernel without them refuses: that is as good.
        let _ = map.advise(Advice::NoHugePage);
        let arena = Arena {
            map,
            used: AtomicU32::new(1),
            published: AtomicU64::new(0),
            oldest: AtomicU64::new(0),
            stale: 0,
        };
        Ok(ArenaWriter { arena: Arc::new(arena), kept: None })
    }

    /// An empty arena in the memory of one that nobody else has; `None` if somebody has. Memory that is there already
    /// costs a tenth of fresh memory, which the system must clear.
    pub(super) fn recycle(mut old: Arc<Arena>) -> Option<ArenaWriter> {
        let arena = Arc::get_mut(&mut old)?;
        arena.stale = arena.written();
        arena.used = AtomicU32::new(1);
        arena.published = AtomicU64::new(0);
        arena.oldest = AtomicU64::new(0);
        Some(ArenaWriter { arena: old, kept: None })
    }

    /// Gives back the memory behind the first `keep` bytes of an arena that nobody else has, and that will be recycled.
    pub(super) fn shrink(old: &mut Arc<Arena>, keep: u64) {
        let Some(arena) = Arc::get_mut(old) else { return };
        let keep = arena.written().min(keep as usize);
        if arena.give_back(keep) {
            // The rest reads as zeros now.
            arena.used = AtomicU32::new(1);
            arena.stale = keep;
        }
    }

    /// Gives back the memory behind the first `keep` bytes, piece by piece: all at once would hold up every thread that
    /// touches a new page. Whether the system took all of it; the rest it takes at the end of the map.
    fn give_back(&mut self, keep: usize) -> bool {
        let end = self.written();
        (keep..end).step_by(FREE_BYTES).fold(true, |all, from| {
            let len = FREE_BYTES.min(end - from);
            // SAFETY: the range lies in the map, and nobody reads its bytes any more: `&mut self`, and all references
            // to them borrow the arena.
            let given =
                unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, from, len) };
            given.is_ok() && all
        })
    }

    /// Bytes from the beginning that may have memory.
    fn written(&self) -> usize {
        let used = Offset(self.used.load(Ordering::Relaxed)).bytes();
        used.max(self.stale).min(self.map.len())
    }

    /// Bytes handed out, with the reserved first unit.
    pub(super) fn used_bytes(&self) -> u64 {
        u64::from(self.used.load(Ordering::Relaxed)) * UNIT_BYTES as u64
    }

    /// Bytes that can be handed out at all.
    pub(super) fn capacity_bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// The newest revision that readers may see; all that happened up to it is visible to the caller.
    pub(super) fn published(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    /// The oldest revision that readers may ask for.
    pub(super) fn oldest(&self) -> u64 {
        self.oldest.load(Ordering::Acquire)
    }

    /// Loads the `index`th 4 bytes of the record at `at`, and with it all that was stored before it.
    #[inline]
    pub(super) fn half(&self, at: Offset, index: usize) -> u32 {
        self.half_ref(at, index).load(Ordering::Acquire)
    }

    /// Loads the `index`th 8 bytes of the record at `at`, and with it all that was stored before it.
    #[inline]
    pub(super) fn word(&self, at: Offset, index: usize) -> u64 {
        self.word_ref(at, index).load(Ordering::Acquire)
    }

    #[inline]
    fn half_ref(&self, at: Offset, index: usize) -> &AtomicU32 {
        let pointer = self.pointer(at, index * 4, 4).cast::<AtomicU32>();
        // SAFETY: in bounds (`pointer` checked it), aligned (the map is page-aligned, offsets are multiples of 8,
        // `index * 4` of 4), initialised (anonymous memory is zero, and stays so or is written), and words are only
        // touched as atomics of this size once they can be known to another thread (module docs; the records, versions
        // and buckets hold to it).
        unsafe { &*pointer }
    }

    #[inline]
    fn word_ref(&self, at: Offset, index: usize) -> &AtomicU64 {
        let pointer = self.pointer(at, index * 8, 8).cast::<AtomicU64>();
        // SAFETY: as in `half_ref`, with a size and alignment of 8.
        unsafe { &*pointer }
    }

    /// Asks the processor to bring the `index`th 8 bytes of the record at `at` into its caches, and does not wait for
    /// them.
    #[inline]
    pub(super) fn prefetch(&self, at: Offset, index: usize) {
        let pointer = self.pointer(at, index * 8, 8);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: changes nothing that a program can see; and the address is in bounds (`pointer` checked it).
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(pointer.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = pointer;
    }

    /// The payload of a record that has `words` words.
    ///
    /// # Safety
    /// The record at `at` was allocated with `words` words and at least `len` payload bytes, and the caller learnt of
    /// it through an acquiring load (or is the writer), so that the payload is complete and never written again.
    #[inline]
    pub(super) unsafe fn payload(&self, at: Offset, words: usize, len: usize) -> &[u8] {
        let pointer = self.pointer(at, words * 8, len);
        // SAFETY: in bounds (`pointer` checked it), initialised, and immutable from before publication on.
        unsafe { std::slice::from_raw_parts(pointer, len) }
    }

    /// Adds the bytes of these units to `to`.
    ///
    /// # Safety
    /// They were allocated, and nobody stores to them meanwhile.
    pub(super) unsafe fn copy(&self, units: Range<u32>, to: &mut Vec<u8>) {
        let len = units.len() * UNIT_BYTES;
        let pointer = self.pointer(Offset(units.start), 0, len);
        // SAFETY: in bounds (`pointer` checked it), initialised, and not written to as long as the slice lives.
        to.extend_from_slice(unsafe { std::slice::from_raw_parts(pointer, len) });
    }

    #[cold]
    fn out_of_bounds(&self, start: usize, len: usize) -> ! {
        panic!("arena access at {start} of {len} bytes beyond {}", self.map.len());
    }

    /// A pointer to `len` bytes, `skip` bytes after `at`.
    #[inline]
    fn pointer(&self, at: Offset, skip: usize, len: usize) -> *mut u8 {
        let start = at.bytes() + skip;
        if start + len > self.map.len() {
            self.out_of_bounds(start, len);
        }
        // SAFETY: `start + len` was just checked to lie in the map.
        unsafe { self.map.as_mut_ptr().add(start) }
    }
}

impl ArenaWriter {
    /// Huge pages for the first `len` bytes, and for no more than that: an image is made off the writer's thread, where
    /// the time that such a page takes disturbs nobody, and then a miss of the translation cache is rarer.
    pub(super) fn expect_image(&mut self, len: u64) {
        let map = &self.arena.map;
        let len = (len as usize).min(map.len()) / HUGE_BYTES * HUGE_BYTES;
        let rest = map.len() - len;
        // A kernel without them refuses: that is as good.
        let _ = map.advise_range(Advice::HugePage, 0, len);
        let _ = map.advise_range(Advice::NoHugePage, len, rest);
    }

    /// The shared half.
    pub(super) fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// A new record of these words and the payload after them, in two parts; `None` if the arena is full.
    #[inline]
    pub(super) fn alloc(&mut self, words: &[u64], payload: [&[u8]; 2]) -> Option<Offset> {
        let words_bytes = size_of_val(words);
        let bytes = words_bytes + payload[0].len() + payload[1].len();
        let units = bytes.div_ceil(UNIT_BYTES);
        let (at, record) = self.take(units)?;
        // SAFETY: `record` has room for the units, and so for words and parts; it lies above what was handed out, so
        // no record, and therefore no reference and no part, overlaps it; `&mut self` keeps any other allocation away.
        unsafe {
            if bytes < units * UNIT_BYTES {
                record.add((units - 1) * UNIT_BYTES).write_bytes(0, UNIT_BYTES);
            }
            std::ptr::copy_nonoverlapping(words.as_ptr().cast(), record, words_bytes);
            let mut to = record.add(words_bytes);
            for part in payload {
                std::ptr::copy_nonoverlapping(part.as_ptr(), to, part.len());
                to = to.add(part.len());
            }
        }
        Some(at)
    }

    /// A new record of so many words, all zero, whose pages take no memory before they are used; `None` if the arena is
    /// full.
    pub(super) fn alloc_zeros(&mut self, words: usize) -> Option<Offset> {
        let (at, record) = self.take(words)?;
        if at.bytes() < self.arena.stale {
            // SAFETY: as in `alloc`.
            unsafe { record.write_bytes(0, words * UNIT_BYTES) };
        }
        Some(at)
    }

    /// Hands out the next units, and where they are.
    #[inline]
    fn take(&mut self, units: usize) -> Option<(Offset, *mut u8)> {
        let used = self.arena.used.load(Ordering::Relaxed);
        let end = used.checked_add(u32::try_from(units).ok()?)?;
        if Offset(end).bytes() > self.arena.map.len() {
            return None;
        }
        self.arena.used.store(end, Ordering::Relaxed);
        Some((Offset(used), self.arena.pointer(Offset(used), 0, units * UNIT_BYTES)))
    }

    /// Stores the `index`th 4 bytes of the record at `at`, publishing all that was stored before.
    #[inline]
    pub(super) fn set_half(&mut self, at: Offset, index: usize, value: u32) {
        if self.kept.is_some() {
            self.keep(at, index / 2);
        }
        self.arena.half_ref(at, index).store(value, Ordering::Release);
    }

    /// Stores the `index`th 8 bytes of the record at `at`, publishing all that was stored before.
    #[inline]
    pub(super) fn set_word(&mut self, at: Offset, index: usize, value: u64) {
        if self.kept.is_some() {
            self.keep(at, index);
        }
        self.arena.word_ref(at, index).store(value, Ordering::Release);
    }

    /// Lets readers see everything up to `revision`.
    pub(super) fn publish(&mut self, revision: u64) {
        self.arena.published.store(revision, Ordering::Release);
    }

    /// Tells readers how far back they may ask.
    pub(super) fn set_oldest(&mut self, revision: u64) {
        self.arena.oldest.store(revision, Ordering::Release);
    }

    /// What the `index`th 8 bytes of the record hold stays there for the reader of the frozen image.
    fn keep(&self, at: Offset, index: usize) {
        if let Some(kept) = &self.kept {
            let unit = Offset(at.0 + index as u32);
            kept.before_store(unit.0, || self.arena.word(unit, 0));
        }
    }

    /// All that was handed out, as it is now, for another thread that reads it while this writer goes on.
    ///
    /// # Panics
    /// If it was done before.
    pub(super) fn freeze(&mut self) -> Frozen {
        assert!(self.kept.is_none(), "an arena is frozen once");
        let units = self.arena.used.load(Ordering::Relaxed);
        let (frozen, kept) = Frozen::new(Arc::clone(&self.arena), units);
        self.kept = Some(kept);
        frozen
    }

    /// All that was handed out.
    #[cfg(test)]
    pub(super) fn image(&self) -> &[u8] {
        let len = Offset(self.arena.used.load(Ordering::Relaxed)).bytes();
        let pointer = self.arena.pointer(Offset::NULL, 0, len);
        // SAFETY: in bounds and initialised. Only the one writer stores, and it is borrowed as long as the slice.
        unsafe { std::slice::from_raw_parts(pointer, len) }
    }

    /// Makes the first `len` bytes an image that `fill` brings in. Only for an arena that nobody reads yet.
    pub(super) fn restore(&mut self, len: u64) -> Result<&mut [u8], Error> {
        let capacity = self.arena.capacity_bytes();
        if len > capacity {
            return Err(Error::ArenaTooSmall { bytes: capacity, needed: len });
        }
        assert_eq!(len % UNIT_BYTES as u64, 0, "an image is whole units");
        self.expect_image(len);
        let arena =
            Arc::get_mut(&mut self.arena).expect("an arena is restored before it is shared");
        let units = u32::try_from(len / UNIT_BYTES as u64).expect("at most the capacity");
        arena.used = AtomicU32::new(units.max(1));
        // SAFETY: `len` bytes are in bounds, and `get_mut` proved that no other reference to the arena exists.
        Ok(unsafe { std::slice::from_raw_parts_mut(arena.map.as_mut_ptr(), len as usize) })
    }
}

/// Memory that is given back in one go: less than a millisecond's work.
const FREE_BYTES: usize = 4 << 20;
/// A huge page of most processors.
const HUGE_BYTES: usize = 2 << 20;
/// Room for the root record and a few keys.
const ARENA_BYTES_MIN: u64 = 64 << 10;

const _: () = assert!(usize::BITS >= 64, "the arena is larger than 32-bit address spaces");

#[cfg(test)]
mod tests;
