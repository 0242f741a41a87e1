//! What the log does when the disk lies, tears, fails or fills up.

use super::*;

/// A log of 50 synced records, in one segment or a few.
fn fifty() -> (MemDisk, Rig, Vec<Entry>) {
    let (disk, mut rig) = Rig::memory(LogIo::Write);
    for round in 0..25 {
        rig.append(1, 1, 150 + round);
        rig.log.save_hard_state(hard(1, 2, round as u64));
        rig.sync();
    }
    rig.writer.idle().unwrap();
    let before = rig.contents();
    (disk, rig, before)
}

fn reopen_copy(disk: &MemDisk) -> Result<Rig, Error> {
    Rig::open(Arc::new(disk.fork()), Path::new("/data/wal"), options(LogIo::Write))
}

#[test]
fn a_flipped_byte_is_harmless_or_refused() {
    let (disk, rig, before) = fifty();
    let mut refused = 0;
    for name in rig.disk.list(&rig.dir).unwrap().iter().filter(|name| *name != "LOCK") {
        let path = rig.dir.join(name);
        let length = disk.dump(&path).unwrap().len();
        for at in (0..length).step_by(7) {
            let copy = disk.fork();
            copy.tamper(&path, |bytes| bytes[at] ^= 1 << (at % 8));
            match reopen_copy(&copy) {
                Ok(rig) => {
                    assert_eq!(rig.contents(), before, "{name} at {at}");
                    assert_eq!(rig.recovered.hard_state, hard(1, 2, 24), "{name} at {at}");
                }
                Err(error) => {
                    assert!(matches!(error, Error::Corrupt(_)), "{name} at {at}: {error}");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 1000, "only {refused} flips were noticed");
}

#[test]
fn a_record_torn_at_any_sector_is_cut() {
    let (disk, mut rig, before) = fifty();
    let last = rig.dir.join(rig.files(".wal").last().unwrap());
    let old = disk.dump(&last).unwrap();
    rig.append(1, 1, 2000);
    rig.sync();
    let new = disk.dump(&last).unwrap();
    assert_ne!(old, new, "the record lies in the same segment");
    let changed: Vec<_> = (0..old.len()).filter(|at| old[*at] != new[*at]).collect();
    let (first, end) = (changed[0], changed[changed.len() - 1] + 1);
    let sectors: Vec<_> = (first.div_ceil(512)..=end / 512).map(|sector| sector * 512).collect();
    assert!(sectors.len() >= 4);
    for cut in std::iter::once(first).chain(sectors) {
        let copy = disk.fork();
        copy.tamper(&last, |bytes| bytes[cut..].fill(0));
        let rig = reopen_copy(&copy).unwrap();
        assert_eq!(rig.contents(), before, "cut at {cut}");
        assert_eq!(!rig.recovered.notes.is_empty(), cut > first, "cut at {cut}");
        assert_eq!(rig.files(".torn").len(), usize::from(cut > first));
        let mut rig = rig.reopen();
        assert!(rig.recovered.notes.is_empty(), "told once");
        rig.append(1, 2, 10);
        rig.sync();
        let after = rig.contents();
        assert_eq!(rig.reopen().contents(), after);
    }
}

#[test]
fn a_power_cut_that_keeps_any_sectors_loses_nothing_synced() {
    for seed in 0..300_u64 {
        let io = if seed % 2 == 0 { LogIo::Write } else { LogIo::Map };
        let (disk, mut rig) = Rig::memory(io);
        rig.append(1 + seed % 20, 1, 400);
        rig.log.save_hard_state(hard(3, 1, 0));
        rig.sync();
        let durable = rig.contents();
        // Written, not synced.
        rig.append(1 + seed % 7, 2, 100 + 37 * (seed as usize % 50));
        disk.fail_sync(1);
        let failed = rig.try_sync().unwrap_err();
        assert!(matches!(failed, Error::Disk(_)), "{failed}");
        let wanted = rig.contents();
        let mut random = seed;
        disk.crash_keeping(|_, _| {
            random = format::mix(random);
            random % 2 == 0
        });
        let rig = rig.reopen();
        let found = rig.contents();
        assert!(found.len() >= durable.len(), "seed {seed}");
        assert_eq!(found, wanted[..found.len()], "seed {seed}");
        assert_eq!(rig.recovered.hard_state.term, Term(3));
    }
}

#[test]
fn loss_of_what_the_mark_attests_is_refused() {
    let (disk, rig, _) = fifty();
    let last = rig.dir.join(rig.files(".wal").last().unwrap());
    let bytes = disk.dump(&last).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    let copy = disk.fork();
    copy.tamper(&last, |bytes| bytes[end - 63..].fill(0));
    let error = reopen_copy(&copy).map(|_| ()).unwrap_err();
    let Error::Corrupt(Damage { path, offset, .. }) = &error else { panic!("{error}") };
    assert_eq!(*path, last);
    assert!(*offset > 4096 && error.to_string().contains(last.to_str().unwrap()), "{error}");
    assert_eq!(copy.dump(&last).unwrap().len(), bytes.len(), "nothing was changed");
}

#[test]
fn a_missing_segment_is_refused_and_a_missing_mark_made_anew() {
    let (disk, rig, before) = fifty();
    let rig = rig.reopen();
    let segments = rig.files(".wal");
    assert!(segments.len() > 1);
    for name in &segments {
        let copy = disk.fork();
        copy.remove(&rig.dir.join(name)).unwrap();
        let error = reopen_copy(&copy).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Corrupt(_)), "{name}: {error}");
    }
    let copy = disk.fork();
    copy.tamper(&rig.dir.join(&segments[0]), |bytes| bytes.truncate(9000));
    assert!(matches!(reopen_copy(&copy), Err(Error::Corrupt(_))));
    let copy = disk.fork();
    copy.remove(&rig.dir.join("wal.mark")).unwrap();
    let rig = reopen_copy(&copy).unwrap();
    assert!(rig.recovered.notes[0].contains("written anew"), "{:?}", rig.recovered.notes);
    assert_eq!((rig.contents(), rig.recovered.hard_state), (before, hard(1, 2, 24)));
    assert!(rig.reopen().recovered.notes.is_empty());
}

#[test]
fn damage_under_a_running_node_is_an_error_not_an_entry() {
    let (disk, rig, _) = fifty();
    let rig = rig.reopen();
    let first = rig.dir.join(&rig.files(".wal")[0]);
    disk.tamper(&first, |bytes| bytes[4096 + 400] ^= 1);
    let results: Vec<_> = (1..=25).map(|index| rig.log.entry(Index(index))).collect();
    let corrupt = |result: &&Result<Entry, Error>| matches!(result, Err(Error::Corrupt(_)));
    assert_eq!(results.iter().filter(corrupt).count(), 1);
}

#[test]
fn the_first_failure_is_final() {
    let (disk, mut rig) = Rig::memory(LogIo::Write);
    rig.append(1, 1, 10);
    disk.fail_sync(1);
    let first = rig.try_sync().unwrap_err().to_string();
    rig.append(1, 1, 10);
    assert_eq!(rig.try_sync().unwrap_err().to_string(), first);
    assert_eq!(rig.writer.idle().unwrap_err().to_string(), first);
    assert!(rig.writer.failure().is_some());
}

#[test]
fn a_full_disk_is_told_before_the_reserve_is_gone() {
    let (disk, mut rig) = Rig::memory(LogIo::Write);
    disk.set_capacity(Some(3 * SEGMENT_BYTES_MIN));
    let mut appended = 0;
    while rig.writer.room() == Room::Ample {
        rig.append(1, 1, 1000);
        rig.sync();
        appended += 1;
    }
    rig.append(3, 1, 1000);
    rig.sync();
    assert_eq!(rig.log.persisted_index(), Index(appended + 3), "there is a reserve");
    let full = reopen_copy(&disk).map(|_| ()).unwrap_err();
    assert!(matches!(full, Error::NoSpace { .. }), "{full}");
    disk.set_capacity(None);
    let report = rig.writer.idle().unwrap().expect("room is news");
    assert_eq!((report.room, rig.writer.room()), (Room::Ample, Room::Ample));
    assert!(rig.writer.idle().unwrap().is_none(), "told once");
    rig.append(30, 1, 1000);
    rig.sync();
    let before = rig.contents();
    assert_eq!(rig.reopen().contents(), before);
}

#[test]
fn a_crash_at_any_sync_loses_nothing_that_was_reported() {
    for nth in 1..60 {
        let (disk, mut rig) = Rig::memory(LogIo::Write);
        disk.fail_sync(nth);
        let mut reported = 0;
        let mut saved = HardState::default();
        for round in 1..40 {
            rig.append(2, round, 600);
            let state = hard(round, 1 + round % 3, reported);
            rig.log.save_hard_state(state);
            if round % 10 == 0 {
                rig.log.snapshot_saved(Index(reported), rig.log.term(Index(reported)).unwrap());
                rig.log.purge(Index(reported));
            }
            if rig.try_sync().is_err() {
                break;
            }
            reported = rig.log.persisted_index().0;
            saved = state;
        }
        let wanted = rig.contents();
        disk.crash();
        let rig = rig.reopen();
        let found = rig.contents();
        assert!(rig.log.last_index() >= Index(reported), "failure at sync {nth}");
        assert!(rig.recovered.hard_state.term >= saved.term, "failure at sync {nth}");
        for entry in wanted.iter().filter(|entry| entry.index.0 <= reported) {
            let at = (entry.index.0 - found[0].index.0) as usize;
            assert_eq!(found[at], *entry, "failure at sync {nth}");
        }
    }
}

#[test]
fn a_crash_during_an_opening_loses_nothing() {
    let (disk, mut rig, before) = fifty();
    rig.append(1, 1, 3000);
    disk.fail_sync(1);
    rig.try_sync().unwrap_err();
    let mut failed = 0;
    for nth in 1..12 {
        let copy = disk.fork();
        copy.crash_keeping(|_, sector| sector % 2 == 0);
        copy.fail_sync(nth);
        let outcome = Rig::open(Arc::new(copy.clone()), &rig.dir, rig.options).map(|_| ());
        failed += u32::from(outcome.is_err());
        copy.crash();
        let rig = Rig::open(Arc::new(copy.clone()), &rig.dir, rig.options).unwrap();
        assert_eq!(rig.contents(), before);
        assert_eq!(rig.recovered.hard_state, hard(1, 2, 24));
        assert_eq!(rig.reopen().contents(), before);
    }
    assert!(failed > 2, "only {failed} syncs are part of the opening");
}
