//! A data directory is made: for a new cluster, out of a snapshot, or for a node that joins.
//!
//! **Always:** the log is written last. Until it is there the directory counts as empty, and making it can be tried again.

use std::path::Path;

use super::open::{Error, OpenOptions, is_blank, open_log, snapshots_dir};
use crate::proto;
use crate::raft::{EntryKind, HardState, Index, Membership, Term};
use crate::store::snapshot::{self, SnapshotMeta};
use crate::wal::{self, BatchBuilder};

/// Makes the data directory of a new cluster's node: its log begins with the membership.
///
/// # Errors
/// [`Error::NotEmpty`] if there is a node in it already; otherwise what the disk says.
pub fn init(options: &OpenOptions, membership: &Membership) -> Result<(), Error> {
    let wal::Opened { mut log, mut writer, recovered } = open_fresh(options)?;
    // Also what an earlier try left behind that did not come to its end.
    if !is_blank(&recovered) {
        return Err(Error::NotEmpty(options.dir.clone()));
    }
    snapshots_dir(&options.disk, &options.dir).create()?;
    let mut body = Vec::new();
    proto::encode(membership, &mut body);
    let mut builder = BatchBuilder::new(Index(1));
    builder.push(Term(1), EntryKind::Membership, &body);
    log.save_hard_state(HardState { term: Term(1), voted_for: None, commit_index: Index(1) });
    log.append(builder.finish());
    writer.write_and_sync(log.take_pending())?;
    Ok(())
}

/// Makes the data directory of a new cluster's node out of a snapshot of another one: the state is that of the snapshot,
/// the membership is `membership`, and the log begins after it, `skipped` revisions later. Gives where.
///
/// # Errors
/// [`Error::NotEmpty`] if there is a node in the directory already, [`Error::SameCluster`] if it would be of the
/// cluster that the snapshot is of; otherwise what the snapshot or the disk says. Until it is done the directory counts
/// as empty, and it can be done again.
pub fn restore(
    options: &OpenOptions,
    membership: &Membership,
    (from, file): (&snapshot::Dir, &Path),
    skipped: u64,
) -> Result<Index, Error> {
    let cluster = options.identity.cluster;
    if from.verify(file)?.cluster == cluster {
        return Err(Error::SameCluster);
    }
    let wal::Opened { mut log, mut writer, recovered } = open_fresh(options)?;
    if !is_blank(&recovered) {
        return Err(Error::NotEmpty(options.dir.clone()));
    }
    let snapshots = snapshots_dir(&options.disk, &options.dir);
    snapshots.create()?;
    let mut encoded = Vec::new();
    proto::encode(membership, &mut encoded);
    let written = snapshots.adopt(from, file, |meta| SnapshotMeta {
        cluster,
        index: meta.index.plus(skipped),
        term: Term(1),
        membership: encoded,
    })?;
    let (index, term) = (written.index, written.term);
    // The log last: without it the directory is an empty one.
    log.reset(index, term);
    log.save_hard_state(HardState { term, voted_for: None, commit_index: index });
    writer.write_and_sync(log.take_pending())?;
    Ok(index)
}

/// Makes the data directory of a node that joins a cluster: its log is empty, and it waits for the leader.
///
/// # Errors
/// As [`init`].
pub fn init_learner(options: &OpenOptions) -> Result<(), Error> {
    let wal::Opened { mut log, mut writer, recovered } = open_fresh(options)?;
    if !is_blank(&recovered) {
        return Err(Error::NotEmpty(options.dir.clone()));
    }
    snapshots_dir(&options.disk, &options.dir).create()?;
    // Nobody runs in the term of the first membership, so no vote of it is forgotten here.
    let term = Term(1);
    log.save_hard_state(HardState { term, voted_for: None, commit_index: Index(0) });
    writer.write_and_sync(log.take_pending())?;
    Ok(())
}

/// The log of a directory where no node ran yet.
fn open_fresh(options: &OpenOptions) -> Result<wal::Opened, Error> {
    match open_log(options, Index(0))? {
        wal::Opening::Whole(opened) => Ok(*opened),
        wal::Opening::Damaged(_) => Err(Error::NotEmpty(options.dir.clone())),
    }
}
