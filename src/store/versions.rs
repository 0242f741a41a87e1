//! The versions of a key in the arena, from the newest back, and their typed view.
//!
//! Version:
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 8 | revision |
//! | 8 | 4 | the version before it |
//! | 12 | 4 | value length (low 28 bits), bit 31 tombstone, bit 30 first (of this life of the key), bit 29 lease (not used yet), bit 28 jump |
//! | 16 | 4 | a version further back; only there with the bit jump, which all versions but the oldest have |
//! | 20 | 4 | how many versions lie before this one; only there with the bit jump |
//! | +0 | 8 | revision that created the key; not there if tombstone or first |
//! | +8 | 8 | number of this version, from 1; not there if tombstone or first |
//! | | | value |
//!
//! The jumps are those of Myers, *An applicative random-access stack* (1983): where a version's jump goes follows from
//! those of the version before it alone, and a walk that takes each jump which does not go too far finds any version of
//! a chain of n in some 2 log n steps.

use super::arena::{Arena, ArenaWriter, Offset, UNIT_BYTES, word_of};
use super::records::{self, Node};
use crate::proto::limits::VALUE_BYTES_CEILING;

/// A version, seen in its arena.
#[derive(Clone, Copy)]
pub(super) struct Version<'a> {
    pub(super) arena: &'a Arena,
    pub(super) at: Offset,
}

/// What a new version says beside its value.
#[derive(Clone, Copy, Debug)]
pub(super) struct VersionHeader {
    pub(super) revision: u64,
    pub(super) create_revision: u64,
    pub(super) version: u64,
    pub(super) tombstone: bool,
}

impl<'a> Node<'a> {
    #[inline]
    pub(super) fn newest(self) -> Option<Version<'a>> {
        let at = self.newest_offset();
        (!at.is_null()).then_some(Version { arena: self.arena, at })
    }

    /// The newest version at `revision` or before it, tombstones included.
    #[inline]
    pub(super) fn version_at(self, revision: u64) -> Option<Version<'a>> {
        let mut version = self.newest()?;
        while version.revision() > revision {
            version = match version.jump() {
                Some(jump) if jump.revision() > revision => jump,
                Some(_) | None => version.before()?,
            };
        }
        Some(version)
    }

    /// The version that a reader at `revision` sees as the key's value.
    #[inline]
    pub(super) fn live_at(self, revision: u64) -> Option<Version<'a>> {
        self.version_at(revision).filter(|version| !version.is_tombstone())
    }
}

impl<'a> Version<'a> {
    #[inline]
    pub(super) fn revision(self) -> u64 {
        self.arena.word(self.at, 0)
    }

    #[inline]
    pub(super) fn before(self) -> Option<Version<'a>> {
        let at = Offset(self.arena.half(self.at, VERSION_BEFORE_HALF));
        (!at.is_null()).then_some(Version { arena: self.arena, at })
    }

    /// A version further back; `None` from the oldest.
    #[inline]
    fn jump(self) -> Option<Version<'a>> {
        // Without a jump the value lies there, or the next record, which may just be written.
        let at = self.has_jump().then(|| self.arena.half(self.at, VERSION_JUMP_HALF))?;
        Some(Version { arena: self.arena, at: Offset(at) })
    }

    /// How many versions lie before this one.
    #[inline]
    fn depth(self) -> u32 {
        if self.has_jump() { self.arena.half(self.at, VERSION_DEPTH_HALF) } else { 0 }
    }

    /// Where the jump of a version that follows this one goes. Two times in three that is known without a look at any
    /// other version, which would be a miss of every cache.
    fn jump_of_next(self) -> Version<'a> {
        if jump_length(self.depth() + 1) == 1 {
            return self;
        }
        let jump =
            self.jump().expect("only the first version has none, and the jump after it is short");
        jump.jump().unwrap_or(jump)
    }

    /// Asks for what hanging another version before this one will look at: its head, and what [`Version::jump_of_next`]
    /// does.
    pub(super) fn prefetch_head_and_jump(self) {
        let long = if self.is_short() { 0 } else { VERSION_WORDS_LONG };
        self.arena.prefetch(self.at, self.head_words() + long - 1);
        if jump_length(self.depth() + 1) != 1
            && let Some(jump) = self.jump()
        {
            self.arena.prefetch(jump.at, 0);
            self.arena.prefetch(jump.at, VERSION_WORDS);
        }
    }

    /// What it says beside its value.
    pub(super) fn header(self) -> VersionHeader {
        VersionHeader {
            revision: self.revision(),
            create_revision: self.create_revision(),
            version: self.version(),
            tombstone: self.is_tombstone(),
        }
    }

    #[inline]
    pub(super) fn is_tombstone(self) -> bool {
        self.meta() & TOMBSTONE != 0
    }

    pub(super) fn create_revision(self) -> u64 {
        if self.is_short() { self.revision() } else { self.arena.word(self.at, self.head_words()) }
    }

    pub(super) fn version(self) -> u64 {
        if self.is_short() { 1 } else { self.arena.word(self.at, self.head_words() + 1) }
    }

    #[inline]
    pub(super) fn value_bytes(self) -> usize {
        (self.meta() & LEN_MASK) as usize
    }

    #[inline]
    pub(super) fn value(self) -> &'a [u8] {
        let words = self.head_words() + if self.is_short() { 0 } else { VERSION_WORDS_LONG };
        // SAFETY: `push` allocated these words and that many bytes; offsets of versions only come from
        // acquiring loads of links, or from the writer itself.
        unsafe { self.arena.payload(self.at, words, self.value_bytes()) }
    }

    /// Asks for the value, up to a length from which on the processor sees by itself where it goes.
    pub(super) fn prefetch_value(self) {
        let words = self.head_words() + self.value_bytes().div_ceil(UNIT_BYTES);
        for line in (LINE_WORDS..words.min(PREFETCH_WORDS)).step_by(LINE_WORDS) {
            self.arena.prefetch(self.at, line);
        }
    }

    #[inline]
    fn is_short(self) -> bool {
        self.meta() & (TOMBSTONE | FIRST) != 0
    }

    #[inline]
    fn has_jump(self) -> bool {
        self.meta() & JUMP != 0
    }

    /// Words before those that only long versions have.
    #[inline]
    fn head_words(self) -> usize {
        VERSION_WORDS + usize::from(self.has_jump())
    }

    #[inline]
    fn meta(self) -> u32 {
        self.arena.half(self.at, VERSION_META_HALF)
    }
}

/// How far the version with so many before it jumps: the last weight of that number in the skew-binary system, whose
/// weights are 1, 3, 7, 15 and so on (Myers, "An applicative random-access stack", 1983). So any version is reached in
/// a logarithmic number of steps.
fn jump_length(depth: u32) -> u32 {
    let mut rest = depth;
    loop {
        let weight = u32::MAX >> (rest + 1).leading_zeros() >> 1;
        rest -= weight;
        if rest == 0 {
            return weight;
        }
    }
}

/// Hangs a new version on a node and says where it lies; its value is the two parts of `value` one after the other.
/// `None` if the arena is full, and then nothing happened.
pub(super) fn push(
    writer: &mut ArenaWriter,
    node: Offset,
    header: VersionHeader,
    value: [&[u8]; 2],
) -> Option<Offset> {
    let len = u32::try_from(value[0].len() + value[1].len()).expect("values are checked before");
    assert!(len as usize <= VALUE_BYTES_CEILING, "value of {len} bytes");
    let first = header.version == 1 && header.create_revision == header.revision;
    let short = header.tombstone || first;
    let arena = writer.arena();
    let before = Node { arena, at: node }.newest_offset();
    let jump = (!before.is_null()).then(|| {
        let before = Version { arena, at: before };
        (before.jump_of_next().at, before.depth() + 1)
    });
    let flags = if header.tombstone { TOMBSTONE } else { 0 }
        | if first { FIRST } else { 0 }
        | if jump.is_some() { JUMP } else { 0 };
    let mut words = [0; VERSION_WORDS + 1 + VERSION_WORDS_LONG];
    words[..VERSION_WORDS].copy_from_slice(&[header.revision, word_of([before.0, len | flags])]);
    let mut count = VERSION_WORDS;
    if let Some((jump, depth)) = jump {
        words[count] = word_of([jump.0, depth]);
        count += 1;
    }
    if !short {
        words[count..count + VERSION_WORDS_LONG]
            .copy_from_slice(&[header.create_revision, header.version]);
        count += VERSION_WORDS_LONG;
    }
    let at = writer.alloc(&words[..count], value)?;
    records::set_newest(writer, node, at);
    Some(at)
}

/// A line of most processors' caches.
const LINE_WORDS: usize = 8;
/// As much as is asked for early.
const PREFETCH_WORDS: usize = 8 * LINE_WORDS;
const VERSION_WORDS: usize = 2;
/// Words that versions have on top which are neither first nor tombstones.
const VERSION_WORDS_LONG: usize = 2;
const VERSION_BEFORE_HALF: usize = 2;
const VERSION_META_HALF: usize = 3;
const VERSION_JUMP_HALF: usize = 4;
const VERSION_DEPTH_HALF: usize = 5;
const TOMBSTONE: u32 = 1 << 31;
const FIRST: u32 = 1 << 30;
const JUMP: u32 = 1 << 28;
const LEN_MASK: u32 = (1 << 28) - 1;

const _: () = assert!(VALUE_BYTES_CEILING <= LEN_MASK as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_are_those_of_the_stack_with_random_access() {
        // The rule by its definition: two jumps of one length behind each other become one over both.
        let mut jumps = vec![0_u32, 0];
        for depth in 2..100_000 {
            let before = depth - 1;
            let jump = jumps[before as usize];
            let second = jumps[jump as usize];
            jumps.push(if before - jump == jump - second { second } else { before });
        }
        for (depth, jump) in (0_u32..).zip(jumps).skip(1) {
            assert_eq!(depth - jump_length(depth), jump, "depth {depth}");
        }
    }
}
