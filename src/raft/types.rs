//! The words of the protocol: newtypes that never meet each other by accident.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A member of the cluster; unique for ever, never reused. Zero is not a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u64);

/// The identity of a data directory, drawn when the directory is made. The membership binds each member to one, so that
/// a node which lost its data is never taken for the one that voted and confirmed. Zero is no directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DataId(pub u64);

/// A term of leadership (Raft 5.1); at most one leader per term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Term(pub u64);

/// A position in the replicated log; the first entry has index 1, index 0 means "before the log". The index of the
/// entry that made a change is also the *revision* of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Index(pub u64);

impl Term {
    /// The term after this one.
    ///
    /// # Panics
    /// At `u64::MAX`, which no honest cluster reaches; terms from outside are bounded before they get here.
    pub fn next(self) -> Term {
        Term(self.0.checked_add(1).expect("terms from outside are bounded before they are adopted"))
    }
}

impl Index {
    /// The index after this one.
    ///
    /// # Panics
    /// At `u64::MAX`; indexes from outside are bounded before they get here.
    pub fn next(self) -> Index {
        self.plus(1)
    }

    /// The index `count` places further on.
    ///
    /// # Panics
    /// On overflow, see [`Index::next`].
    pub fn plus(self, count: u64) -> Index {
        Index(
            self.0
                .checked_add(count)
                .expect("indexes from outside are bounded before they are adopted"),
        )
    }

    /// The index before this one; 0 stays 0.
    pub fn previous(self) -> Index {
        Index(self.0.saturating_sub(1))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

impl fmt::Display for DataId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What must survive a crash besides the entries (Raft figure 2); `commit_index` is kept as a hint that makes restarts
/// apply at once what was known to be committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HardState {
    /// The latest term this node has seen.
    pub term: Term,
    /// Who got this node's vote in `term`.
    pub voted_for: Option<NodeId>,
    /// The highest index known to be committed.
    pub commit_index: Index,
}

/// What an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum EntryKind {
    /// The empty entry of a new leader (thesis 6.4).
    Noop = 0,
    /// A command for the store; its bytes are never seen by the core.
    Command = 1,
    /// A membership; its body is the postcard encoding of [`super::Membership`].
    Membership = 2,
}

impl EntryKind {
    /// The kind with this number on disk and on the wire, if there is one.
    pub fn from_u8(kind: u8) -> Option<EntryKind> {
        match kind {
            0 => Some(EntryKind::Noop),
            1 => Some(EntryKind::Command),
            2 => Some(EntryKind::Membership),
            3..=u8::MAX => None,
        }
    }
}
