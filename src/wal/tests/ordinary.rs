//! What the log does when nothing breaks but power.

use bytes::Bytes;

use super::*;
use crate::disk::OsDisk;

#[test]
fn everything_synced_is_there_after_a_reopening() {
    both(|io| {
        let dir = tempfile::tempdir().unwrap();
        let wal = dir.path().join("wal");
        let mut rig = Rig::open(Arc::new(OsDisk), &wal, options(io)).unwrap();
        assert!(rig.recovered.is_new);
        for round in 0..40 {
            rig.append(1 + round % 3, 1 + round / 10, 700);
            rig.log.save_hard_state(hard(1 + round / 10, 1 + round / 10, round));
            rig.sync();
        }
        let before = rig.contents();
        assert!(rig.files(".wal").len() > 3, "the log rotated");
        let rig = rig.reopen();
        assert!(!rig.recovered.is_new);
        assert!(rig.recovered.notes.is_empty());
        assert_eq!(rig.recovered.hard_state, hard(4, 4, 39));
        assert_eq!(rig.recovered.base, (Index(0), Term(0)));
        assert_eq!(rig.recovered.entries.len(), before.len());
        assert_eq!(rig.contents(), before);
        assert_eq!(rig.log.entry(Index(5)).unwrap(), before[4]);
    });
}

#[test]
fn an_unsynced_append_is_readable_and_gone_after_a_power_cut() {
    both(|io| {
        let (disk, mut rig) = Rig::memory(io);
        rig.append(3, 1, 100);
        rig.sync();
        let durable = rig.contents();
        rig.append(2, 1, 100);
        assert_eq!(rig.contents().len(), 5);
        assert_eq!(rig.log.persisted_index(), Index(3));
        assert!(rig.log.unpersisted_bytes() > 200);
        disk.crash();
        assert_eq!(rig.reopen().contents(), durable);
    });
}

#[test]
fn an_overwritten_tail_stays_overwritten() {
    both(|io| {
        let (disk, mut rig) = Rig::memory(io);
        rig.append(10, 1, 500);
        rig.sync();
        // The second batch is cut in the middle before it is even written.
        rig.append(10, 2, 500);
        rig.log.truncate(Index(15));
        rig.append(4, 3, 500);
        rig.log.truncate(Index(8));
        rig.append(30, 4, 500);
        rig.sync();
        let before = rig.contents();
        assert_eq!(before.len(), 37);
        assert_eq!(before[6].term, Term(1));
        assert_eq!(before[7].term, Term(4));
        disk.crash();
        let rig = rig.reopen();
        assert_eq!(rig.contents(), before);
        assert_eq!(rig.log.term(Index(7)), Some(Term(1)));
        assert_eq!(rig.log.term(Index(8)), Some(Term(4)));
    });
}

#[test]
fn a_report_about_entries_truncated_meanwhile_is_harmless() {
    let (_disk, mut rig) = Rig::memory(LogIo::Write);
    rig.append(4, 1, 100);
    let records = rig.log.take_pending();
    rig.log.truncate(Index(3));
    rig.append(2, 2, 100);
    let report = rig.writer.write_and_sync(records).unwrap();
    rig.log.on_persisted(report);
    assert_eq!(rig.log.persisted_index(), Index(2));
    rig.sync();
    assert_eq!(rig.log.persisted_index(), Index(4));
    let before = rig.contents();
    assert_eq!(rig.reopen().contents(), before);
}

#[test]
fn a_reset_starts_the_log_after_the_snapshot() {
    both(|io| {
        let (disk, mut rig) = Rig::memory(io);
        rig.append(60, 1, 700);
        rig.sync();
        assert!(rig.files(".wal").len() > 2);
        rig.log.reset(Index(1000), Term(5));
        rig.append(2, 6, 100);
        rig.sync();
        assert_eq!(rig.files(".wal").len(), 1, "nothing before the reset is needed");
        disk.crash();
        let rig = rig.reopen();
        assert_eq!(rig.recovered.base, (Index(1000), Term(5)));
        assert_eq!(rig.recovered.snapshot, Some((Index(1000), Term(5))));
        assert_eq!(rig.contents()[0].index, Index(1001));
        assert_eq!(rig.contents().len(), 2);
    });
}

#[test]
fn a_purge_removes_only_what_a_snapshot_covers() {
    both(|io| {
        let (disk, mut rig) = Rig::memory(io);
        for _ in 0..10 {
            rig.append(10, 1, 700);
            rig.log.save_hard_state(hard(2, 1, 50));
            rig.sync();
        }
        let before = rig.contents();
        let segments = rig.files(".wal").len();
        rig.log.purge(Index(90));
        rig.sync();
        assert_eq!(rig.files(".wal").len(), segments, "there is no snapshot");
        rig.log.snapshot_saved(Index(60), Term(1));
        rig.log.purge(Index(90));
        rig.sync();
        assert_eq!(rig.log.first_index(), Index(61));
        assert!(matches!(rig.log.read(Index(60), Index(70), 10), Err(Error::Purged { .. })));
        assert!(rig.files(".wal").len() < segments);
        assert_eq!(rig.contents(), before[60..]);
        disk.crash();
        let rig = rig.reopen();
        assert_eq!(rig.recovered.hard_state, hard(2, 1, 50));
        assert_eq!(rig.recovered.snapshot, Some((Index(60), Term(1))));
        let first = rig.log.first_index();
        assert!(first > Index(1) && first <= Index(61), "{first}");
        assert_eq!(rig.recovered.base.1, Term(1));
        assert_eq!(rig.contents(), before[first.0 as usize - 1..]);
    });
}

#[test]
fn entries_longer_than_a_segment_get_a_longer_one() {
    both(|io| {
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::open(Arc::new(OsDisk), dir.path(), options(io)).unwrap();
        let mut builder = BatchBuilder::new(Index(1));
        let zeros = vec![0; 4 << 20];
        builder.push(Term(1), EntryKind::Command, b"");
        builder.push_parts(Term(1), EntryKind::Command, &[&zeros, b"end"]);
        builder.push(Term(1), EntryKind::Noop, &zeros[..1000]);
        rig.log.append(builder.finish());
        rig.sync();
        let before = rig.contents();
        assert_eq!(before[1].body.len(), (4 << 20) + 3);
        assert_eq!(rig.reopen().contents(), before);
    });
}

#[test]
fn old_entries_leave_memory_and_are_read_from_disk() {
    let (_disk, mut rig) = Rig::memory(LogIo::Write);
    rig.append(1, 1, MEMORY_BYTES / 2);
    rig.append(1, 1, MEMORY_BYTES / 2);
    rig.append(5, 1, 50);
    assert!(rig.log.memory_bytes() > MEMORY_BYTES, "what is not durable stays");
    let before = rig.contents();
    rig.sync();
    assert!(rig.log.memory_bytes() < MEMORY_BYTES);
    assert_eq!(rig.contents(), before);
    let across = rig.log.read(Index(1), Index(7), usize::MAX).unwrap();
    assert_eq!(across.iter().map(Batch::len).sum::<usize>(), 7);
}

#[test]
fn a_second_process_and_a_stranger_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(OsDisk);
    let rig = Rig::open(disk.clone(), dir.path(), options(LogIo::Write)).unwrap();
    let second =
        Rig::open(disk.clone(), dir.path(), options(LogIo::Write)).map(|_| ()).unwrap_err();
    assert!(matches!(second, Error::Locked { .. }), "{second}");
    drop(rig);
    for stranger in [
        Identity { node: NodeId(4), ..OWNER },
        Identity { cluster: [8; 16], ..OWNER },
        Identity { data: DataId(12), ..OWNER },
    ] {
        let error = open(disk.clone(), dir.path(), stranger, options(LogIo::Write))
            .map(|_| ())
            .unwrap_err();
        assert!(matches!(error, Error::Foreign { .. }), "{error}");
    }
    Rig::open(disk, dir.path(), options(LogIo::Write)).unwrap();
}

#[test]
fn many_openings_lose_nothing_and_a_thread_may_prepare() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { prepare_on_thread: true, ..options(LogIo::Write) };
    let mut rig = Rig::open(Arc::new(OsDisk), dir.path(), options).unwrap();
    for round in 1..=10 {
        rig.append(20, round, 300);
        rig.sync();
        rig.writer.idle().unwrap();
        let before = rig.contents();
        rig = rig.reopen();
        assert_eq!(rig.contents(), before);
    }
}

#[test]
fn opening_over_and_over_does_not_fill_the_disk() {
    let (_disk, mut rig) = Rig::memory(LogIo::Write);
    rig.append(5, 1, 100);
    rig.log.save_hard_state(hard(2, 1, 3));
    rig.log.snapshot_saved(Index(2), Term(1));
    rig.sync();
    let before = rig.contents();
    for _ in 0..10 {
        rig = rig.reopen();
        assert_eq!(rig.contents(), before);
        assert_eq!(rig.recovered.hard_state, hard(2, 1, 3));
        assert_eq!(rig.recovered.snapshot, Some((Index(2), Term(1))));
        assert_eq!(rig.files(".wal").len(), 2);
    }
}

#[test]
fn a_batch_is_what_peers_send() {
    let mut builder = BatchBuilder::new(Index(5));
    builder.push(Term(1), EntryKind::Noop, b"");
    builder.push(Term(2), EntryKind::Command, b"abc");
    builder.push_parts(Term(2), EntryKind::Membership, &[b"d", b"ef"]);
    let batch = builder.finish();
    let again = Batch::decode(Index(5), batch.bytes()).unwrap();
    assert!(again.same_as(&batch));
    assert_eq!(again.entries().last().unwrap().body, Bytes::from_static(b"def"));
    let tail = again.slice_from(Index(6));
    assert_eq!((tail.first_index(), tail.last_index(), tail.len()), (Index(6), Index(7), 2));
    assert!(Batch::decode(Index(6), tail.bytes()).unwrap().same_as(&tail));
    assert_eq!(tail.take_bytes(0).len(), 1);
    assert_eq!(tail.take_bytes(31).len(), 1);
    assert_eq!(tail.take_bytes(32).len(), 2);
    assert_eq!(tail.metas().next().unwrap().body_bytes, 3);
    for length in 0..batch.bytes().len() {
        if let Ok(cut) = Batch::decode(Index(5), batch.bytes().slice(..length)) {
            assert!(cut.len() < batch.len());
        }
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_give_a_batch_or_an_error(first: u64, bytes: Vec<u8>) {
        if let Ok(batch) = Batch::decode(Index(first), bytes.clone().into()) {
            assert_eq!(batch.bytes(), bytes);
            assert_eq!(batch.entries().count(), batch.len());
        }
    }
}
