//! Reads: from any thread, without a lock, of one frozen revision each.
//!
//! **For:** gets, scans and whatever else looks at keys while the writer goes on.
//!
//! **In and out:** a [`Reader`] is cheap to clone; [`Reader::get`] and [`Reader::scan`] lend keys and values right out
//! of the arena.
//!
//! **Always:** what is seen is the state just after the entry with index `at`, whatever is written meanwhile; an `at`
//! beyond [`Reader::latest`] means the latest. Revisions before [`Reader::oldest`] show only what has survived.
//!
//! **Left out:** skipping over many deleted keys: they are walked one by one.

use std::ops::Bound;
use std::sync::Arc;

use super::ahead::Ahead;
use super::arena::Arena;
use super::index::{self, Found};
use super::records::{Key, Node};
use super::skiplist;
use super::versions::Version;
use crate::raft::Index;

/// A handle to read the store with; it keeps the arena that it was made for.
#[derive(Clone)]
pub struct Reader {
    arena: Arc<Arena>,
}

/// What a reader sees of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versioned<'a> {
    /// The value.
    pub value: &'a [u8],
    /// The log index of the entry that wrote it.
    pub revision: Index,
    /// The log index of the entry that made the key, since it last did not exist.
    pub create_revision: Index,
    /// How many times the key was written since then; 1 for a new key.
    pub version: u64,
}

/// One key of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
    /// The log index of the entry that wrote the value.
    pub revision: Index,
}

/// Which keys a scan gives, and in which order. To go on after a row, exclude its key: in `from`, or in `to` when in
/// reverse.
#[derive(Clone, Copy, Debug)]
pub struct Range<'a> {
    /// The lower end.
    pub from: Bound<&'a [u8]>,
    /// The upper end.
    pub to: Bound<&'a [u8]>,
    /// From the upper end down.
    pub reverse: bool,
}

/// A running scan.
pub struct Scan<'a> {
    arena: &'a Arena,
    at: u64,
    range: Range<'a>,
    next: Option<Node<'a>>,
    ahead: Ahead,
}

impl Reader {
    pub(super) fn new(arena: Arc<Arena>) -> Reader {
        Reader { arena }
    }

    /// The newest revision that can be read.
    pub fn latest(&self) -> Index {
        Index(self.arena.published())
    }

    /// The oldest revision that can be read.
    pub fn oldest(&self) -> Index {
        Index(self.arena.oldest())
    }

    /// The value of `key` at revision `at`.
    pub fn get(&self, key: &[u8], at: Index) -> Option<Versioned<'_>> {
        let at = at.0.min(self.arena.published());
        let node = match index::find(&self.arena, Key::new(&self.arena, key)) {
            Found::Node(node) => node,
            Found::Nothing => return None,
            Found::Disturbed => {
                skiplist::seek(&self.arena, key, false).filter(|node| node.key() == key)?
            }
        };
        node.live_at(at).map(Versioned::of)
    }

    /// Brings what [`Reader::get`] will touch for these keys into the processor's caches, all of it at once.
    pub fn warm_up<'k>(&self, keys: impl Iterator<Item = &'k [u8]>) {
        index::for_groups(&self.arena, keys, |group| {
            index::warm_up(&self.arena, group, Version::prefetch_value);
        });
    }

    /// The keys of `range` at revision `at`, in order. The cost of the first row is a search, of each further one a
    /// step.
    pub fn scan<'a>(&'a self, range: Range<'a>, at: Index) -> Scan<'a> {
        let at = at.0.min(self.arena.published());
        let mut scan = Scan { arena: &self.arena, at, range, next: None, ahead: Ahead::new() };
        scan.next = scan.start(if range.reverse { range.to } else { range.from });
        scan
    }
}

impl Range<'_> {
    /// Every key.
    pub const ALL: Range<'static> =
        Range { from: Bound::Unbounded, to: Bound::Unbounded, reverse: false };

    fn is_above_from(&self, key: &[u8]) -> bool {
        match self.from {
            Bound::Included(from) => from <= key,
            Bound::Excluded(from) => from < key,
            Bound::Unbounded => true,
        }
    }

    fn is_below_to(&self, key: &[u8]) -> bool {
        match self.to {
            Bound::Included(to) => key <= to,
            Bound::Excluded(to) => key < to,
            Bound::Unbounded => true,
        }
    }
}

impl<'a> Scan<'a> {
    /// Goes on with `key` or, if it is not there, with the one after it (before it when in reverse); never leaves the
    /// range.
    pub fn seek(&mut self, key: &[u8]) {
        let inside = if self.range.reverse {
            self.range.is_below_to(key)
        } else {
            self.range.is_above_from(key)
        };
        self.ahead = Ahead::new();
        self.next = match (inside, self.range.reverse) {
            (true, _) => self.start(Bound::Included(key)),
            (false, false) => self.start(self.range.from),
            (false, true) => self.start(self.range.to),
        };
    }

    fn start(&self, end: Bound<&[u8]>) -> Option<Node<'a>> {
        match (end, self.range.reverse) {
            (Bound::Included(key), false) => skiplist::seek(self.arena, key, false),
            (Bound::Excluded(key), false) => skiplist::seek(self.arena, key, true),
            (Bound::Unbounded, false) => skiplist::first(self.arena),
            (Bound::Included(key), true) => skiplist::seek_before(self.arena, key, true),
            (Bound::Excluded(key), true) => skiplist::seek_before(self.arena, key, false),
            (Bound::Unbounded, true) => skiplist::last(self.arena),
        }
    }

    /// The next row, but after at most `steps` keys, of which each one that is deleted costs one, too: then the error
    /// is the key that was seen last, after which a new scan can go on.
    ///
    /// # Errors
    /// The last key, see above.
    pub fn next_within(&mut self, steps: &mut usize) -> Result<Option<Row<'a>>, &'a [u8]> {
        while let Some(node) = self.step() {
            *steps = steps.saturating_sub(1);
            if let Some(version) = node.live_at(self.at) {
                return Ok(Some(Row::of(node, version)));
            }
            if *steps == 0 {
                return Err(node.key());
            }
        }
        Ok(None)
    }

    /// The node that it stands at, if that is in the range, whether its key exists or not; stands at the one behind it
    /// then.
    #[inline]
    fn step(&mut self) -> Option<Node<'a>> {
        let node = self.next.take()?;
        if self.range.reverse {
            if self.range.is_above_from(node.key()) {
                self.next = node.before();
                return Some(node);
            }
        } else if self.range.is_below_to(node.key()) {
            self.ahead.pass(node);
            self.next = node.next();
            return Some(node);
        }
        None
    }
}

impl<'a> Iterator for Scan<'a> {
    type Item = Row<'a>;

    #[inline]
    fn next(&mut self) -> Option<Row<'a>> {
        loop {
            let node = self.step()?;
            if let Some(version) = node.live_at(self.at) {
                return Some(Row::of(node, version));
            }
        }
    }
}

impl<'a> Row<'a> {
    #[inline]
    fn of(node: Node<'a>, version: Version<'a>) -> Row<'a> {
        let (value, revision) = (version.value(), Index(version.revision()));
        Row { key: node.key(), value, revision }
    }
}

impl<'a> Versioned<'a> {
    fn of(version: Version<'a>) -> Versioned<'a> {
        Versioned {
            value: version.value(),
            revision: Index(version.revision()),
            create_revision: Index(version.create_revision()),
            version: version.version(),
        }
    }
}
