//! The copy that leaves behind what nobody can read any more.
//!
//! **For:** checkpoints. **In and out:** [`copy`], from an arena that may be written to meanwhile. **Always:** keys in
//! order; of each what a reader at one of the readable revisions sees, its versions side by side, the oldest first.
//! **Left out:** what is written after the newest readable revision.
//!
//! The versions of a key lie where the writer happened to be, so each step from one to the one before it is a miss of
//! every cache. Some keys are walked in turn, and none waits for the misses of another.

use std::ops::RangeInclusive;

use super::ahead::Ahead;
use super::arena::Arena;
use super::files::Pace;
use super::records::Node;
use super::tree::Tree;
use super::versions::Version;
use super::{Error, skiplist};

/// Copies into `tree`, which has no keys, what can be read at these revisions.
///
/// # Errors
/// [`Error::Cancelled`] by `pace`.
pub(super) fn copy(
    arena: &Arena,
    readable: &RangeInclusive<u64>,
    tree: &mut Tree,
    pace: &Pace,
) -> Result<(), Error> {
    let mut nodes = {
        let mut ahead = Ahead::new();
        let nodes = std::iter::successors(skiplist::first(arena), |node| node.next());
        nodes.inspect(move |&node| ahead.pass(node))
    };
    let mut lanes: [Lane<'_>; LANES] = std::array::from_fn(|_| Lane::default());
    let mut steps = 0_usize;
    loop {
        let mut used = 0;
        for (lane, node) in lanes.iter_mut().zip(nodes.by_ref()) {
            lane.begin(node);
            used += 1;
        }
        let lanes = &mut lanes[..used];
        if lanes.is_empty() {
            return Ok(());
        }
        let mut under_way = lanes.len();
        while under_way > 0 {
            under_way = lanes.iter_mut().filter_map(|lane| lane.step(readable)).count();
            steps += under_way + 1;
            if steps >= STEPS_PER_CHECK {
                steps = 0;
                pace.check()?;
            }
        }
        lanes.iter().for_each(|lane| tree.expect(lane.key));
        lanes.iter().for_each(|lane| lane.finish(tree));
    }
}

/// A key whose versions are looked for.
#[derive(Default)]
struct Lane<'a> {
    key: &'a [u8],
    next: Next<'a>,
    /// What can be read of it, newest first.
    kept: Vec<Version<'a>>,
}

/// What the next step looks at; it is on its way into the caches.
#[derive(Default)]
enum Next<'a> {
    /// The key's newest version.
    Newest(Node<'a>),
    /// One that may be read.
    Version(Version<'a>),
    #[default]
    Nothing,
}

impl<'a> Lane<'a> {
    fn begin(&mut self, node: Node<'a>) {
        node.arena.prefetch(node.newest_offset(), 0);
        self.key = node.key();
        self.next = Next::Newest(node);
        self.kept.clear();
    }

    /// Goes on by one version; `None` at the end.
    fn step(&mut self, readable: &RangeInclusive<u64>) -> Option<()> {
        let version = match std::mem::take(&mut self.next) {
            Next::Newest(node) => node.version_at(*readable.end())?,
            Next::Version(version) => version,
            Next::Nothing => return None,
        };
        let is_last = version.revision() <= *readable.start();
        // A tombstone before all that can be read says no more than no version at all.
        if !(is_last && version.is_tombstone()) {
            version.prefetch_value();
            self.kept.push(version);
        }
        let before = if is_last { None } else { version.before() }?;
        before.arena.prefetch(before.at, 0);
        self.next = Next::Version(before);
        Some(())
    }

    fn finish(&self, tree: &mut Tree) {
        if !self.kept.is_empty() {
            let versions = self.kept.iter().rev();
            tree.add_new(self.key, versions.map(|version| (version.header(), version.value())));
        }
    }
}

/// About as many misses as a processor has under way at once.
const LANES: usize = 16;
/// Versions between two looks at the cancel flag.
const STEPS_PER_CHECK: usize = 4096;
