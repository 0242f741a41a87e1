//! Snapshots: what comes back is what went in, or nothing.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::{Client, OPTIONS, OWNER, Random, apply, open, open_as, write};
use crate::disk::OsDisk;
use crate::proto::command::{Command, Op, Outcome, Principal, SessionId};
use crate::raft::{Index, Term};
use crate::store::snapshot::{Dir, SnapshotInfo, SnapshotMeta};
use crate::store::{Error, Options, Pace, Range, Store};

fn save(store: &mut Store, dir: &Path) -> SnapshotInfo {
    let meta = meta(store.revision());
    store.checkpoint().write(&at(dir), &meta, &Pace::default()).unwrap().0
}

fn at(dir: &Path) -> Dir {
    Dir::new(Arc::new(OsDisk), dir.to_owned())
}

fn load(path: &Path, options: Options) -> Result<(Store, SnapshotMeta), Error> {
    Store::load(&at(path.parent().unwrap()), path, options)
}

fn verify(path: &Path) -> Result<SnapshotMeta, Error> {
    at(path.parent().unwrap()).verify(path)
}

fn meta(index: Index) -> SnapshotMeta {
    SnapshotMeta { cluster: *b"0123456789abcdef", index, term: Term(3), membership: vec![1, 2, 3] }
}

/// Does the same random things to every store; asserts that they answer the same.
fn work(stores: &mut [&mut Store], sessions: &[SessionId], seed: u64) {
    let mut random = Random(seed);
    for _ in 0..2000 {
        let key = [random.below(3) as u8, random.below(200) as u8];
        let len = random.below(50);
        let value = random.bytes(len);
        let revision = stores[0].revision().0;
        let seq = revision + random.below(300);
        let op = match random.below(3) {
            0 => Op::Delete { key: &key },
            1 => Op::Append { key: &key, value: &value },
            _ => Op::Put { key: &key, value: &value },
        };
        let session = sessions[random.below(sessions.len() as u64) as usize];
        // Sessions that are opened on the way and not used end in the second round.
        let now_ms = revision * 1000 + random.below(50_000);
        let command = match random.below(50) {
            0 => Command::Clock { now_ms },
            1 => Command::OpenSession,
            _ => Command::Write { session, seq, answered_below: seq.saturating_sub(500), op },
        };
        let outcomes: Vec<Outcome> =
            stores.iter_mut().map(|store| apply(store, &command)).collect();
        assert!(outcomes.windows(2).all(|pair| pair[0] == pair[1]), "{outcomes:?}");
    }
}

fn assert_same(a: &Store, b: &Store) {
    assert_eq!(
        (a.revision(), a.state_hash(), a.keys(), a.live_bytes(), a.sessions(), a.time_ms()),
        (b.revision(), b.state_hash(), b.keys(), b.live_bytes(), b.sessions(), b.time_ms())
    );
    let (reader_a, reader_b) = (a.reader(), b.reader());
    let at = a.revision();
    assert!(reader_a.scan(Range::ALL, at).eq(reader_b.scan(Range::ALL, at)));
    let reverse = Range { reverse: true, ..Range::ALL };
    assert!(reader_a.scan(reverse, at).eq(reader_b.scan(reverse, at)));
    for row in reader_a.scan(Range::ALL, at) {
        assert_eq!(reader_a.get(row.key, at), reader_b.get(row.key, at));
    }
}

#[test]
fn a_loaded_store_goes_on_as_if_it_had_never_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let Client { mut store, session, .. } = Client::new();
    let sessions = [session, open(&mut store), open(&mut store)];
    work(&mut [&mut store], &sessions, 5);
    apply(&mut store, &Command::Compact { below: u64::MAX });
    let info = save(&mut store, dir.path());
    assert_eq!(info.bytes, fs::metadata(&info.path).unwrap().len());
    assert_eq!(verify(&info.path).unwrap(), meta(store.revision()));
    let (mut loaded, found) = load(&info.path, OPTIONS).unwrap();
    assert_eq!(found, meta(store.revision()));
    assert!(loaded.bytes() < store.bytes(), "dead versions are left behind");
    assert_same(&store, &loaded);
    work(&mut [&mut store, &mut loaded], &sessions, 6);
    assert_same(&store, &loaded);
    let info = save(&mut loaded, dir.path());
    assert_same(&load(&info.path, OPTIONS).unwrap().0, &store);
}

#[test]
fn a_checkpoint_is_not_moved_by_later_writes() {
    let dir = tempfile::tempdir().unwrap();
    let mut client = Client::new();
    client.put(b"kept", b"old");
    client.put(b"deleted later", b"old");
    let checkpoint = client.store.checkpoint();
    client.put(b"kept", b"new");
    client.put(b"added", b"new");
    client.write(Op::Delete { key: b"deleted later" });
    let meta = meta(checkpoint.revision());
    let (info, _) = checkpoint.write(&at(dir.path()), &meta, &Pace::default()).unwrap();
    let (loaded, _) = load(&info.path, OPTIONS).unwrap();
    let reader = loaded.reader();
    let rows: Vec<_> =
        reader.scan(Range::ALL, reader.latest()).map(|row| (row.key, row.value)).collect();
    assert_eq!(rows, [(&b"deleted later"[..], &b"old"[..]), (b"kept", b"old")]);
}

#[test]
fn many_blocks_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut client = Client::new();
    for i in 0..40_u8 {
        client.put(&[i], &vec![i; 100_000]);
    }
    let info = save(&mut client.store, dir.path());
    assert_same(&load(&info.path, OPTIONS).unwrap().0, &client.store);
    let small = Options { arena_bytes: 1 << 20, ..OPTIONS };
    let error = load(&info.path, small).err().unwrap();
    assert!(matches!(error, Error::ArenaTooSmall { .. }), "{error}");
}

#[test]
fn no_changed_shortened_or_lengthened_file_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let mut client = Client::new();
    client.put(b"key", b"value");
    let info = save(&mut client.store, dir.path());
    let good = fs::read(&info.path).unwrap();
    let path = dir.path().join("changed");
    let refused = |bytes: &[u8], what: &str, place: usize| {
        fs::write(&path, bytes).unwrap();
        assert!(verify(&path).is_err(), "{what} {place} verified");
        assert!(load(&path, OPTIONS).is_err(), "{what} {place} loaded");
    };
    for place in 0..good.len() {
        let mut bytes = good.clone();
        bytes[place] ^= 1 << (place % 8);
        refused(&bytes, "flip at", place);
        refused(&good[..place], "prefix of", place);
    }
    refused(&[&good[..], &[0]].concat(), "longer than", good.len());
}

#[test]
fn a_damaged_newest_snapshot_is_passed_over_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut client = Client::new();
    client.put(b"key", b"one");
    save(&mut client.store, dir.path());
    let hash = client.store.state_hash();
    client.put(b"key", b"two");
    let newest = save(&mut client.store, dir.path());
    let mut bytes = fs::read(&newest.path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&newest.path, bytes).unwrap();
    let temporary = dir.path().join("00000000000000ff.snap.tmp");
    fs::write(&temporary, b"half").unwrap();
    let recovery = at(dir.path()).load_newest(OPTIONS).unwrap();
    assert_eq!(recovery.loaded.unwrap().0.state_hash(), hash);
    let [Error::Corrupt { path, .. }] = &recovery.damaged[..] else {
        panic!("{:?}", recovery.damaged)
    };
    assert_eq!(*path, newest.path);
    assert!(!temporary.exists() && newest.path.exists());
}

#[test]
fn old_snapshots_are_removed_and_other_files_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut client = Client::new();
    for _ in 0..4 {
        client.put(b"key", b"value");
        save(&mut client.store, dir.path());
    }
    fs::write(dir.path().join("1.snap"), b"not ours").unwrap();
    assert_eq!(at(dir.path()).retain(2).unwrap(), [Index(5), Index(4)]);
    assert_eq!(at(dir.path()).list().unwrap().len(), 2);
    assert!(dir.path().join("1.snap").exists());
}

#[test]
fn a_cancelled_snapshot_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut client = Client::new();
    let pace = Pace::default();
    pace.cancel.store(true, std::sync::atomic::Ordering::Relaxed);
    let meta = meta(client.store.revision());
    let error = client.store.checkpoint().write(&at(dir.path()), &meta, &pace).err().unwrap();
    assert!(matches!(error, Error::Cancelled));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_snapshot_is_readable_by_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let info = save(&mut Client::new().store, dir.path());
    assert_eq!(fs::metadata(info.path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_retry_after_a_restart_still_applies_once() {
    let dir = tempfile::tempdir().unwrap();
    let Client { mut store, session, .. } = Client::new();
    let append = Op::Append { key: b"k", value: b"x" };
    let first = write(&mut store, session, 4, 1, append.clone());
    let info = save(&mut store, dir.path());
    let (mut loaded, _) = load(&info.path, OPTIONS).unwrap();
    assert_eq!(write(&mut loaded, session, 4, 1, append), first);
    assert_eq!(loaded.value_bytes(b"k"), 1);
}

#[test]
fn a_session_has_its_owner_after_a_restart_too() {
    let dir = tempfile::tempdir().unwrap();
    let Client { mut store, session, .. } = Client::new();
    let foreign = open_as(&mut store, Principal(OWNER.0 + 1));
    write(&mut store, session, 1, 1, Op::Put { key: b"k", value: b"x" });
    let info = save(&mut store, dir.path());
    let (mut loaded, _) = load(&info.path, OPTIONS).unwrap();
    assert_eq!(loaded.session_bytes(), store.session_bytes());
    for store in [&mut store, &mut loaded] {
        let append = Op::Append { key: b"k", value: b"x" };
        assert_eq!(write(store, foreign, 1, 1, append.clone()), Outcome::SessionUnknown);
        assert!(matches!(write(store, session, 2, 2, append), Outcome::Written { .. }));
    }
    assert_same(&store, &loaded);
}
