//! The golden snapshot: a file of format version 2 that every later version of this program must read.
//!
//! It is `tests/golden/snapshot-v2/000000000000001f.snap`, made once; `UPDATE_GOLDENFILES=1` makes it if it is missing, and
//! never changes it.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::{OPTIONS, next, open, write};
use crate::disk::OsDisk;
use crate::proto::command::{Command, Op};
use crate::raft::{Index, Term};
use crate::store::snapshot::{Dir, SnapshotMeta, name};
use crate::store::{Pace, Range, Store};

/// A store with something of everything: sessions, clocks, keys, history, deleted keys, compacted revisions.
fn store() -> Store {
    let mut store = Store::new(OPTIONS).unwrap();
    store.apply(Index(1), &Command::Clock { now_ms: 1_700_000_000_000 });
    let (first, second) = (open(&mut store), open(&mut store));
    store.advance(next(&store));
    for seq in 1..=8_u64 {
        let key = [b'a' + (seq % 3) as u8];
        write(&mut store, first, seq, 1, Op::Put { key: &key, value: &seq.to_le_bytes() });
        write(&mut store, second, seq, seq, Op::Append { key: b"log", value: b"line\n" });
    }
    store.apply(next(&store), &Command::Clock { now_ms: 1_700_000_001_000 });
    write(&mut store, first, 9, 1, Op::Delete { key: b"a" });
    write(&mut store, first, 10, 1, Op::Put { key: b"\xff\0", value: &[0; 100] });
    store.apply(next(&store), &Command::Compact { below: 12 });
    for seq in 11..=16 {
        write(&mut store, first, seq, 1, Op::Put { key: b"b", value: &[seq as u8] });
    }
    write(&mut store, first, 17, 1, Op::Put { key: b"a", value: b"again" });
    store
}

#[test]
fn the_golden_snapshot_is_written_and_read_as_ever() {
    let mut made = store();
    assert_eq!(made.revision(), Index(0x1f));
    let meta = SnapshotMeta {
        cluster: *b"0123456789abcdef",
        index: made.revision(),
        term: Term(3),
        membership: vec![1, 2, 3],
    };
    let place = tempfile::tempdir().unwrap();
    let dir = |path: &Path| Dir::new(Arc::new(OsDisk), path.to_owned());
    let (info, _) = made.checkpoint().write(&dir(place.path()), &meta, &Pace::default()).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/snapshot-v2");
    let path = golden.join(name(Index(0x1f)));
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() && !path.exists() {
        fs::create_dir_all(&golden).unwrap();
        fs::copy(&info.path, &path).unwrap();
    }
    assert!(
        fs::read(&path).unwrap() == fs::read(&info.path).unwrap(),
        "this version writes other bytes: raise the format version, and keep reading this one"
    );
    let (loaded, found) = Store::load(&dir(&golden), &path, OPTIONS).unwrap();
    assert_eq!(found, meta);
    assert_eq!((loaded.state_hash(), loaded.oldest()), (made.state_hash(), Index(12)));
    assert_eq!((loaded.sessions(), loaded.time_ms()), (2, 1_700_000_001_000));
    let (ours, theirs) = (made.reader(), loaded.reader());
    for at in 12..=0x1f {
        let rows = |reader: &crate::store::Reader| -> Vec<_> {
            let rows = reader.scan(Range::ALL, Index(at));
            rows.map(|row| (row.key.to_vec(), row.value.to_vec(), row.revision)).collect()
        };
        assert_eq!(rows(&theirs), rows(&ours), "at {at}");
    }
}
