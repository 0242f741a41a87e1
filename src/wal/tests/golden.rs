//! The golden log: files of format version 2 that every later version of this program must read.
//!
//! They lie in `tests/golden/log-v2`, made once; `UPDATE_GOLDENFILES=1` makes files that are missing, and never changes
//! those that are there.

use std::fs;

use super::*;
use crate::disk::OsDisk;

/// One record of each kind, in two segments.
fn write(rig: &mut Rig) {
    rig.log.save_hard_state(hard(1, 3, 0));
    rig.append(3, 1, 100);
    rig.sync();
    rig.append(2, 1, 700);
    rig.log.truncate(Index(4));
    rig.log.save_hard_state(hard(2, 0, 2));
    rig.append(4, 2, 0);
    rig.sync();
    rig.log.snapshot_saved(Index(3), Term(1));
    rig.sync();
    rig.log.reset(Index(20), Term(3));
    rig.log.save_hard_state(hard(4, 1, 20));
    let mut builder = BatchBuilder::new(Index(21));
    builder.push(Term(4), EntryKind::Noop, &[]);
    builder.push(Term(4), EntryKind::Membership, b"members");
    builder.push(Term(4), EntryKind::Command, &[0; 9000]);
    builder.push(Term(4), EntryKind::Command, b"the last one");
    rig.log.append(builder.finish());
    rig.sync();
    rig.append(5, 5, 1000);
    rig.sync();
    rig.writer.idle().unwrap();
}

#[test]
fn the_golden_log_is_written_and_read_as_ever() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/log-v2");
    let (disk, mut rig) = Rig::memory(LogIo::Write);
    write(&mut rig);
    let names: Vec<String> = rig.files(".wal").into_iter().chain(["wal.mark".to_owned()]).collect();
    assert!(names.len() >= 3, "{names:?}");
    for name in &names {
        let (path, bytes) = (golden.join(name), disk.dump(&rig.dir.join(name)).unwrap());
        if std::env::var_os("UPDATE_GOLDENFILES").is_some() && !path.exists() {
            fs::create_dir_all(&golden).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        assert!(fs::read(&path).unwrap() == bytes, "{name} is written in another way than ever");
    }

    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(&golden).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let again = Rig::open(Arc::new(OsDisk), dir.path(), options(LogIo::Write)).unwrap();
    assert_eq!(again.contents(), rig.contents());
    assert_eq!(again.recovered.hard_state, hard(4, 1, 20));
    assert_eq!(again.recovered.base, (Index(20), Term(3)));
    assert_eq!(again.recovered.snapshot, Some((Index(20), Term(3))));
    assert!(again.recovered.notes.is_empty(), "{:?}", again.recovered.notes);
    assert_eq!(again.log.entry(Index(24)).unwrap().body, &b"the last one"[..]);
}
