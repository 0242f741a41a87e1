//! A data directory is made: for a new cluster, out of a snapshot, or for a node that joins.
//!
//! **Always:** the log is written last. Until it is there the directory counts as empty, and making it can be tried again.

use std::collections::BTreeMap;
use std::path::Path;

use super::open::{Error, OpenOptions, Opening, identity, is_blank, open, open_log, snapshots_dir};
use crate::proto;
use crate::raft::{EntryKind, Founding, HardState, Index, Membership, NodeId, Standing, Term};
use crate::store::snapshot::{self, SnapshotMeta};
use crate::wal::{self, BatchBuilder};

/// Makes the data directory of a new cluster's node: its log begins with what the cluster is founded with.
///
/// # Errors
/// [`Error::NotEmpty`] if there is a node in it already; otherwise what the disk says.
pub fn init(options: &OpenOptions, founding: Founding) -> Result<(), Error> {
    let membership = Membership::founded_with(founding);
    let wal::Opened { mut log, mut writer, recovered } = open_fresh(options)?;
    // Also what an earlier try left behind that did not come to its end.
    if !is_blank(&recovered) {
        return Err(Error::NotEmpty(options.dir.clone()));
    }
    snapshots_dir(&options.disk, &options.dir).create()?;
    let mut body = Vec::new();
    proto::encode(&membership, &mut body);
    let mut builder = BatchBuilder::new(Index(1));
    builder.push(Term(1), EntryKind::Membership, &body);
    log.save_hard_state(HardState { term: Term(1), voted_for: None, commit_index: Index(1) });
    log.append(builder.finish());
    writer.write_and_sync(log.take_pending())?;
    Ok(())
}

/// Makes the data directory of a new cluster's node out of a snapshot of another one: the state is that of the snapshot,
/// the members are `members`, and the log begins after it, `skipped` revisions later. Gives where.
///
/// # Errors
/// [`Error::NotEmpty`] if there is a node in the directory already, [`Error::SameCluster`] if it would be of the
/// cluster that the snapshot is of; otherwise what the snapshot or the disk says. Until it is done the directory counts
/// as empty, and it can be done again.
pub fn restore(
    options: &OpenOptions,
    members: BTreeMap<NodeId, String>,
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
    let origin = origin(from.digest(file)?, skipped);
    let membership = Membership::founded_with(Founding { members, origin });
    let mut encoded = Vec::new();
    proto::encode(&membership, &mut encoded);
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

/// Nodes that begin with other snapshots, or leave out another number of revisions, are of other clusters.
fn origin(digest: [u8; 16], skipped: u64) -> [u8; 16] {
    let digest = u128::from_le_bytes(digest).wrapping_add(u128::from(skipped));
    // Zeros are for clusters that began empty.
    digest.max(1).to_le_bytes()
}

/// Whether the node of this directory has no place in its cluster and never had one that counts: it was made as a founder
/// that nobody voted with, another data directory acts for it, or it was removed.
///
/// # Errors
/// As [`open`].
pub fn is_unseated(options: OpenOptions) -> Result<bool, Error> {
    match open(options)? {
        Opening::Ready(opened) => {
            let core = opened.node.core();
            let standing = core.roster().standing(core.id(), core.data());
            Ok(matches!(standing, Standing::Founder | Standing::OtherData | Standing::Removed))
        }
        Opening::Repair(_) => Ok(false),
    }
}

/// The log of a directory where no node ran yet.
fn open_fresh(options: &OpenOptions) -> Result<wal::Opened, Error> {
    match open_log(options, identity(options)?, Index(0))? {
        wal::Opening::Whole(opened) => Ok(*opened),
        wal::Opening::Damaged(_) => Err(Error::NotEmpty(options.dir.clone())),
    }
}
