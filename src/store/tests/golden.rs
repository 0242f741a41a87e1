//! The golden snapshot: a file of the format version, which is written as ever and can be read.
//!
//! It is `tests/golden/snapshot-v{version}/000000000000001f.snap`, made once; `UPDATE_GOLDENFILES=1` makes the one of
//! the present version if it is missing, and never changes it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{OPTIONS, apply, next, open, open_as, write};
use crate::disk::OsDisk;
use crate::proto::command::{Command, Op, Principal};
use crate::raft::{Index, Term};
use crate::store::format::FORMAT_VERSION;
use crate::store::snapshot::{Dir, SnapshotMeta, name};
use crate::store::{Pace, Range, Store};

/// A store with something of everything: sessions, clocks, keys, history, deleted keys, compacted revisions.
fn store() -> Store {
    let mut store = Store::new(OPTIONS).unwrap();
    apply(&mut store, &Command::Clock { now_ms: 1_700_000_000_000 });
    let other = Principal(0x0123_4567_89ab_cdef);
    let (first, second) = (open(&mut store), open_as(&mut store, other));
    store.advance(next(&store));
    for seq in 1..=8_u64 {
        let key = [b'a' + (seq % 3) as u8];
        write(&mut store, first, seq, 1, Op::Put { key: &key, value: &seq.to_le_bytes() });
        let op = Op::Append { key: b"log", value: b"line\n" };
        let command = Command::Write { session: second, seq, answered_below: seq, op };
        store.apply(next(&store), other, &command);
    }
    apply(&mut store, &Command::Clock { now_ms: 1_700_000_001_000 });
    write(&mut store, first, 9, 1, Op::Delete { key: b"a" });
    write(&mut store, first, 10, 1, Op::Put { key: b"\xff\0", value: &[0; 100] });
    apply(&mut store, &Command::Compact { below: 12 });
    for seq in 11..=16 {
        write(&mut store, first, seq, 1, Op::Put { key: b"b", value: &[seq as u8] });
    }
    write(&mut store, first, 17, 1, Op::Put { key: b"a", value: b"again" });
    store
}

fn meta() -> SnapshotMeta {
    SnapshotMeta {
        cluster: *b"0123456789abcdef",
        index: Index(0x1f),
        term: Term(3),
        membership: vec![1, 2, 3],
    }
}

fn dir(path: &Path) -> Dir {
    Dir::new(Arc::new(OsDisk), path.to_owned())
}

fn golden(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/snapshot-v{version}"))
}

#[test]
fn a_snapshot_is_written_as_ever() {
    let place = tempfile::tempdir().unwrap();
    let checkpoint = store().checkpoint();
    let (info, _) = checkpoint.write(&dir(place.path()), &meta(), &Pace::default()).unwrap();
    let path = golden(FORMAT_VERSION).join(name(Index(0x1f)));
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() && !path.exists() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::copy(&info.path, &path).unwrap();
    }
    assert!(
        fs::read(&path).unwrap() == fs::read(&info.path).unwrap(),
        "this version writes other bytes: raise the format version"
    );
}

#[test]
fn the_snapshot_is_read_and_written_to() {
    let mut made = store();
    let path = golden(FORMAT_VERSION).join(name(Index(0x1f)));
    let (mut loaded, found) = Store::load(&dir(&golden(FORMAT_VERSION)), &path, OPTIONS).unwrap();
    assert_eq!(found, meta());
    assert_eq!((loaded.state_hash(), loaded.oldest()), (made.state_hash(), Index(12)));
    assert_eq!((loaded.sessions(), loaded.time_ms()), (2, 1_700_000_001_000));
    for store in [&mut made, &mut loaded] {
        let session = open(store);
        for seq in 1..=1000_u64 {
            let key = (seq % 700).to_be_bytes();
            write(store, session, seq, seq, Op::Put { key: &key, value: &key });
        }
    }
    let (ours, theirs) = (made.reader(), loaded.reader());
    for at in (12..=0x1f).chain([900, made.revision().0]) {
        let rows = |reader: &crate::store::Reader| -> Vec<_> {
            let rows = reader.scan(Range::ALL, Index(at));
            rows.map(|row| (row.key.to_vec(), row.value.to_vec(), row.revision)).collect()
        };
        let expected = rows(&ours);
        assert_eq!(rows(&theirs), expected, "at {at}");
        for (key, value, revision) in expected {
            let found = theirs.get(&key, Index(at)).unwrap();
            assert_eq!((found.value, found.revision), (&value[..], revision));
        }
    }
}

#[test]
fn a_restored_snapshot_is_the_same_bytes() {
    let place = tempfile::tempdir().unwrap();
    let path = golden(FORMAT_VERSION).join(name(Index(0x1f)));
    let to = dir(place.path());
    let info = to.adopt(&dir(&golden(FORMAT_VERSION)), &path, Clone::clone).unwrap();
    assert_eq!(fs::read(&info.path).unwrap(), fs::read(&path).unwrap());
}
