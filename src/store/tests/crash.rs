//! Power cuts and kills at every change of a file: an old state or the new one, never another, and never none.

use std::path::Path;
use std::sync::Arc;

use super::{Client, OPTIONS};
use crate::disk::{Fate, MemDisk};
use crate::raft::{Index, Term};
use crate::store::snapshot::{Dir, SnapshotMeta};
use crate::store::{Error, Incoming, Pace, Store};

const CLUSTER: [u8; 16] = [7; 16];

fn dir(disk: &MemDisk) -> Dir {
    Dir::new(Arc::new(disk.clone()), "/snapshots".into())
}

fn meta(index: Index) -> SnapshotMeta {
    SnapshotMeta { cluster: CLUSTER, index, term: Term(1), membership: vec![1] }
}

fn save(store: &mut Store, dir: &Dir) -> Result<(), Error> {
    let meta = meta(store.revision());
    store.checkpoint().write(dir, &meta, &Pace::default()).map(drop)
}

/// A disk with a snapshot, and a store that has gone on since.
fn begin() -> (MemDisk, Client, u64) {
    let (disk, mut client) = (MemDisk::new(), Client::new());
    dir(&disk).create().unwrap();
    client.put(b"key", b"old");
    save(&mut client.store, &dir(&disk)).unwrap();
    let old = client.store.state_hash();
    client.put(b"key", &vec![b'n'; 3 << 20]);
    (disk, client, old)
}

/// Decides what becomes of a sector.
type Choice = fn(&Path, usize) -> Fate;

/// What the disk may have done with sectors that were not synced, and whether names that were not survive.
const FATES: [(bool, Choice); 4] = [
    (false, |_, _| Fate::Lost),
    (true, |_, _| Fate::Lost),
    (true, |_, sector| if sector.is_multiple_of(3) { Fate::Lost } else { Fate::Kept }),
    (false, |_, sector| if sector.is_multiple_of(2) { Fate::Torn(100) } else { Fate::Kept }),
];

/// Cuts the power at each change that `work` makes, until it gets through; what was there before, or what should come,
/// must be there each time.
fn cut_everywhere(work: impl Fn(&Dir, &mut Client) -> Result<(), Error>) {
    for (keep_names, fate) in FATES {
        for changes in 0.. {
            let (disk, mut client, old) = begin();
            let new = client.store.state_hash();
            disk.cut_power_after(changes);
            let done = work(&dir(&disk), &mut client).is_ok();
            disk.crash_with(keep_names, fate);
            let recovery = dir(&disk).load_newest(OPTIONS).unwrap();
            assert!(recovery.damaged.is_empty(), "after {changes}: {:?}", recovery.damaged);
            let found = recovery.loaded.expect("there always is one").0.state_hash();
            assert!(found == new || found == old && !done, "after {changes} changes");
            if done {
                break;
            }
            assert!(changes < 1000, "it never gets through");
        }
    }
}

#[test]
fn a_checkpoint_that_is_cut_off_anywhere_leaves_the_old_snapshot_or_the_new_one() {
    cut_everywhere(|dir, client| save(&mut client.store, dir));
}

#[test]
fn a_transfer_that_is_cut_off_anywhere_leaves_the_old_snapshot_or_the_new_one() {
    let disk = MemDisk::new();
    dir(&disk).create().unwrap();
    cut_everywhere(|to, client| {
        save(&mut client.store, &dir(&disk)).unwrap();
        let sent = disk.dump(&dir(&disk).list().unwrap()[0].1).unwrap();
        let mut incoming = Incoming::create(to)?;
        for chunk in sent.chunks(300_000) {
            incoming.write(chunk)?;
        }
        incoming.finish(&CLUSTER).map(drop)
    });
}

#[test]
fn a_snapshot_that_does_not_fit_leaves_nothing_behind_and_fits_later() {
    let (disk, mut client, _) = begin();
    disk.set_capacity(Some(1 << 20));
    assert!(matches!(save(&mut client.store, &dir(&disk)), Err(Error::Disk(_))));
    disk.set_capacity(None);
    assert_eq!(dir(&disk).list().unwrap().len(), 1);
    save(&mut client.store, &dir(&disk)).unwrap();
    assert_eq!(dir(&disk).list().unwrap().len(), 2);
}

#[test]
fn every_sync_that_fails_fails_the_snapshot() {
    for nth in 1.. {
        let (disk, mut client, old) = begin();
        disk.fail_sync(nth);
        if save(&mut client.store, &dir(&disk)).is_ok() {
            assert!(nth > 1);
            break;
        }
        disk.crash();
        let loaded = dir(&disk).load_newest(OPTIONS).unwrap().loaded;
        assert_eq!(loaded.unwrap().0.state_hash(), old);
    }
}
