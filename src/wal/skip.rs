//! Where recovery begins: what a snapshot covers need not be walked again at each start.
//!
//! **For:** `recovery`. **In and out:** [`Skip::find`] looks at the beginnings of segments, from the last one back.
//! **Always:** what is passed over is still there, and is walked if the snapshot turns out to be damaged, or anything
//! else is. **Left out:** whether the snapshot is good, which is the caller's to see.

use std::path::Path;

use super::loaded::{Found, Unread};
use super::mark::Mark;
use super::segment::{parse_name, segment_path};
use super::writer::Extent;
use super::{Error, Identity};
use crate::disk::Disk;
use crate::raft::Index;

/// The segments that are passed over.
pub(super) struct Skip {
    /// The first that is not.
    pub(super) first_seq: u32,
    /// Those before it.
    pub(super) extents: Vec<Extent>,
}

impl Skip {
    /// Passes nothing over.
    pub(super) fn nothing(mark: &Mark) -> Skip {
        Skip { first_seq: mark.first_seq, extents: Vec::new() }
    }

    /// Passes over the segments whose entries lie up to `covered`.
    ///
    /// # Errors
    /// What the disk says; [`Error::Version`].
    pub(super) fn find(
        disk: &dyn Disk,
        dir: &Path,
        identity: Identity,
        (mark, last_seq): (&Mark, u32),
        names: &[String],
        covered: Index,
    ) -> Result<Skip, Error> {
        if mark.is_guess() || covered == Index(0) {
            return Ok(Skip::nothing(mark));
        }
        for seq in (mark.first_seq.saturating_add(1)..=last_seq).rev() {
            let Found::Segment(segment) = Unread::open(disk, segment_path(dir, seq))? else {
                break;
            };
            if segment.header.seq != seq || segment.header.identity != identity {
                break;
            }
            match segment.position()? {
                Some(position) if position <= covered => {
                    let before = mark.first_seq..seq;
                    let is_there = |seq| names.iter().any(|name| parse_name(name) == Some(seq));
                    if !before.clone().all(is_there) {
                        break;
                    }
                    let extents = before.map(|seq| Extent { seq, index_max: position }).collect();
                    return Ok(Skip { first_seq: seq, extents });
                }
                Some(_) => {}
                None => break,
            }
        }
        Ok(Skip::nothing(mark))
    }
}
