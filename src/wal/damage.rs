//! Words for what is wrong in a log.

use std::fmt;
use std::path::{Path, PathBuf};

/// A place where the disk does not hold what was written to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The damaged file.
    pub path: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// What does not fit.
    pub reason: String,
}

impl Damage {
    pub(super) fn new(path: &Path, offset: usize, reason: impl Into<String>) -> Damage {
        Damage { path: path.to_owned(), offset: offset as u64, reason: reason.into() }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is damaged at offset {}: {}", self.path.display(), self.offset, self.reason)
    }
}
