//! A new cluster's data directory out of a snapshot: whole, or as if nothing had been done.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::Arc;

use quicraft::disk::MemDisk;
use quicraft::node::{self, Error, OpenOptions, Opening};
use quicraft::proto::command::{Command, Op, Principal, SessionId};
use quicraft::raft::{Index, Term};
use quicraft::store::snapshot::{Dir, SnapshotMeta};
use quicraft::store::{Options, Pace, Store};

use crate::cluster::{Cluster, founding};

const SKIPPED: u64 = 1000;

/// A snapshot of another cluster.
fn snapshot() -> (Dir, PathBuf, Index) {
    let dir = Dir::new(Arc::new(MemDisk::new()), "/backup".into());
    dir.create().unwrap();
    let mut store = Store::new(Options { arena_bytes: 1 << 20, hash_seed: 1 }).unwrap();
    store.apply(Index(1), Principal(1), &Command::OpenSession);
    let op = Op::Put { key: b"key", value: b"value" };
    let command = Command::Write { session: SessionId(1), seq: 1, answered_below: 1, op };
    store.apply(Index(2), Principal(1), &command);
    let (cluster, index) = ([9; 16], store.revision());
    let meta = SnapshotMeta { cluster, index, term: Term(5), membership: vec![0] };
    let (info, _) = store.checkpoint().write(&dir, &meta, &Pace::default()).unwrap();
    (dir, info.path, index)
}

fn options(disk: &MemDisk) -> OpenOptions {
    OpenOptions { disk: Arc::new(disk.clone()), ..Cluster::new(1).options(0) }
}

fn assert_restored(disk: &MemDisk, index: Index) {
    let Ok(Opening::Ready(opened)) = node::open(options(disk)) else { panic!("it does not open") };
    assert_eq!(opened.node.applied().0, Index(index.0 + SKIPPED));
    let reader = opened.node.reader();
    let found = reader.get(b"key", reader.latest()).expect("the key is in the snapshot");
    assert_eq!((found.value, found.revision), (&b"value"[..], index));
}

#[test]
fn a_restore_that_is_cut_off_anywhere_is_done_or_can_be_done_again() {
    let (from, path, index) = snapshot();
    let members = || founding(1).members;
    let restore =
        |disk: &MemDisk| node::restore(&options(disk), members(), (&from, &path), SKIPPED);
    for changes in 0.. {
        let disk = MemDisk::new();
        disk.cut_power_after(changes);
        let done = restore(&disk).is_ok();
        disk.crash();
        match node::open(options(&disk)) {
            Ok(Opening::Ready(_)) => disk.kill(),
            Err(Error::Empty(_)) => {
                assert!(!done, "after {changes} changes a restore that was done is gone");
                disk.kill();
                restore(&disk).unwrap();
            }
            Ok(Opening::Repair(_)) => panic!("after {changes} changes it wants repair"),
            Err(error) => panic!("after {changes} changes: {error}"),
        }
        assert_restored(&disk, index);
        if done {
            break;
        }
        assert!(changes < 1000, "it never gets through");
    }
}

#[test]
fn a_directory_with_data_is_not_restored_into() {
    let (from, path, _) = snapshot();
    let disk = MemDisk::new();
    node::init(&options(&disk), founding(1)).unwrap();
    let members = founding(1).members;
    let error = node::restore(&options(&disk), members, (&from, &path), SKIPPED).unwrap_err();
    assert!(matches!(error, Error::NotEmpty(_)), "{error}");
}
