//! Damaged logs that become whole again, from another log that has the same entries.

use super::*;

/// Two logs with the same 60 entries in three terms, some of them written twice; the bytes on disk differ.
fn twins() -> [(MemDisk, Rig); 2] {
    [1, 2].map(|number| {
        let disk = MemDisk::new();
        let options = Options { salt_seed: number, ..options(LogIo::Write) };
        let dir = Path::new("/data/wal");
        let mut rig = Rig::open(Arc::new(disk.clone()), dir, options).unwrap();
        rig.log.save_hard_state(hard(1, number, 0));
        rig.append(20, 1, 300);
        rig.sync();
        if number == 1 {
            // What another leader had begun.
            rig.append(7, 1, 500);
            rig.sync();
            rig.log.truncate(Index(21));
        }
        rig.log.save_hard_state(hard(2, 2, 15));
        rig.append(20, 2, 700);
        rig.sync();
        rig.log.save_hard_state(hard(3, 3, 33));
        for _ in 0..10 {
            rig.append(2, 3, 100);
            rig.sync();
        }
        rig.writer.idle().unwrap();
        (disk, rig)
    })
}

/// What became of a damaged log.
#[derive(Debug, PartialEq, Eq)]
enum Mended {
    /// It was whole.
    Whole,
    /// It was mended, with so many entries of the other one.
    With(usize),
    /// Nobody can say what it lost.
    Unknown,
}

fn open_damaged(disk: &MemDisk, rig: &Rig) -> Opening {
    open(Arc::new(disk.clone()), &rig.dir, OWNER, rig.options).unwrap()
}

/// Mends a log from its twin and checks that it is what it was.
fn mend(disk: &MemDisk, rig: &Rig, twin: &Rig, chunk: usize) -> Mended {
    let mut damaged = match open_damaged(disk, rig) {
        Opening::Whole(_) => return Mended::Whole,
        Opening::Damaged(damaged) => *damaged,
    };
    assert!(!damaged.damages().is_empty());
    if !damaged.is_mendable() {
        return Mended::Unknown;
    }
    let mut fetched = 0;
    while let Some(gap) = damaged.wanted().first().copied() {
        assert_eq!(twin.log.term(gap.anchor.0), Some(gap.anchor.1), "{gap:?}");
        let last = gap.last.min(gap.first.plus(chunk as u64 - 1));
        for batch in twin.log.read(gap.first, last, usize::MAX).unwrap() {
            fetched += batch.len();
            damaged.supply(batch).unwrap();
        }
    }
    damaged.mend().unwrap();
    let healed = Rig::open(Arc::new(disk.clone()), &rig.dir, rig.options).unwrap();
    assert_eq!(healed.contents(), rig.contents());
    assert_eq!(healed.recovered.hard_state.term, Term(3));
    assert_eq!(healed.recovered.hard_state.voted_for, Some(NodeId(3)));
    assert_eq!(healed.files(".mend").len(), 0);
    let mut healed = healed.reopen();
    healed.append(3, 4, 10);
    healed.sync();
    let contents = healed.contents();
    assert_eq!(healed.reopen().contents(), contents);
    Mended::With(fetched)
}

#[test]
fn a_damaged_log_is_mended_from_one_that_has_the_same_entries() {
    let [(disk, rig), (_, twin)] = twins();
    assert_eq!(rig.contents(), twin.contents());
    let (mut with, mut unknown) = (0, 0);
    for name in rig.files(".wal") {
        let path = rig.dir.join(&name);
        let bytes = disk.dump(&path).unwrap();
        let written = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        for sector in 0..written.div_ceil(512) {
            for length in [512, 4096] {
                let copy = disk.fork();
                let start = sector * 512;
                copy.tamper(&path, |bytes| {
                    let end = (start + length).min(bytes.len());
                    bytes[start..end].fill(0xA5);
                });
                match mend(&copy, &rig, &twin, 1 + sector % 5) {
                    Mended::Whole => assert!(start < 4096, "{name} at {start}"),
                    Mended::With(_) => with += 1,
                    Mended::Unknown => unknown += 1,
                }
            }
        }
    }
    assert!(with > 100, "{with} mended, {unknown} not");
    assert!(unknown < with / 5, "{with} mended, {unknown} not");
}

#[test]
fn whole_segments_may_be_gone() {
    let [(disk, rig), (_, twin)] = twins();
    let names = rig.files(".wal");
    assert!(names.len() >= 3, "{names:?}");
    for (place, name) in names.iter().enumerate() {
        let path = rig.dir.join(name);
        for how in 0..4 {
            let copy = disk.fork();
            match how {
                0 => copy.remove(&path).unwrap(),
                1 => copy.tamper(&path, |bytes| bytes.fill(0)),
                2 => copy.tamper(&path, |bytes| bytes.truncate(100)),
                _ => copy.tamper(&path, |bytes| bytes[..4096].fill(7)),
            }
            let is_last = place + 1 == names.len();
            match mend(&copy, &rig, &twin, 3) {
                Mended::With(count) => assert!(!is_last && count > 0, "{name}, {how}: {count}"),
                Mended::Unknown => assert!(is_last || place == 0, "{name}, {how}"),
                Mended::Whole => panic!("{name}, {how}"),
            }
        }
    }
}

#[test]
fn two_places_are_mended_one_after_the_other() {
    let [(disk, rig), (_, twin)] = twins();
    // The first one holds its lock.
    let disk = disk.fork();
    let names = rig.files(".wal");
    for name in &names[..2] {
        disk.tamper(&rig.dir.join(name), |bytes| bytes[5000..5400].fill(1));
    }
    assert!(matches!(mend(&disk, &rig, &twin, 100), Mended::With(2..)));
}

#[test]
fn what_a_snapshot_covers_is_not_wanted() {
    let [(disk, rig), _] = twins();
    // The first one holds its lock.
    let disk = disk.fork();
    let names = rig.files(".wal");
    disk.tamper(&rig.dir.join(&names[0]), |bytes| bytes[4096..9000].fill(1));
    let Opening::Damaged(mut damaged) = open_damaged(&disk, &rig) else { panic!("whole") };
    damaged.forget((Index(25), Term(2)));
    assert!(damaged.is_mendable() && damaged.wanted().is_empty(), "{:?}", damaged.wanted());
    damaged.mend().unwrap();
    let healed = Rig::open(Arc::new(disk), &rig.dir, rig.options).unwrap();
    assert_eq!(healed.log.base(), (Index(25), Term(2)));
    assert_eq!(healed.contents(), rig.contents()[25..]);
}

#[test]
fn foreign_entries_are_not_taken() {
    let [(disk, rig), (_, twin)] = twins();
    // The first one holds its lock.
    let disk = disk.fork();
    disk.tamper(&rig.dir.join(&rig.files(".wal")[0]), |bytes| bytes[6000..6700].fill(1));
    let Opening::Damaged(mut damaged) = open_damaged(&disk, &rig) else { panic!("whole") };
    let gap = damaged.wanted()[0];
    let wrong = twin.log.read(gap.first.next(), gap.last.next(), usize::MAX).unwrap().remove(0);
    assert_eq!(damaged.supply(wrong).unwrap_err(), NotWanted);
    let long = twin.log.read(gap.first, gap.last.next(), usize::MAX).unwrap().remove(0);
    assert_eq!(damaged.supply(long).unwrap_err(), NotWanted);
    assert_eq!(damaged.wanted(), [gap]);
}

#[test]
fn a_damaged_log_gives_what_it_surely_has() {
    let [(disk, rig), (_, twin)] = twins();
    // The first one holds its lock.
    let disk = disk.fork();
    disk.tamper(&rig.dir.join(&rig.files(".wal")[0]), |bytes| bytes[6000..6700].fill(1));
    let Opening::Damaged(damaged) = open_damaged(&disk, &rig) else { panic!("whole") };
    let gap = damaged.wanted()[0];
    let anchor = (Index(60), Term(3));
    let read = |first, last| damaged.read(anchor, (first, last), usize::MAX);
    assert!(read(gap.first, gap.last).is_none());
    for (first, last) in [(Index(1), Index(60)), (gap.last.next(), Index(60))] {
        let batch = read(first, last).unwrap();
        let same = twin.log.read(first, batch.last_index(), usize::MAX).unwrap();
        let same: Vec<Entry> = same.iter().flat_map(Batch::entries).collect();
        assert_eq!(batch.entries().collect::<Vec<_>>(), same);
    }
    assert_eq!(read(Index(1), Index(60)).unwrap().last_index(), gap.first.previous());
    assert!(damaged.read((Index(60), Term(2)), (Index(1), Index(2)), usize::MAX).is_none());
    assert!(damaged.read((Index(61), Term(3)), (Index(1), Index(2)), usize::MAX).is_none());
}

#[test]
fn a_crash_anywhere_in_a_mending_leaves_a_log_that_can_be_mended_or_is() {
    let [(disk, rig), (_, twin)] = twins();
    disk.tamper(&rig.dir.join(&rig.files(".wal")[0]), |bytes| bytes[6000..6700].fill(1));
    let (mut before, mut after) = (0, 0);
    for changes in 0.. {
        let copy = disk.fork();
        let Opening::Damaged(mut damaged) = open_damaged(&copy, &rig) else { panic!("whole") };
        while let Some(gap) = damaged.wanted().first().copied() {
            for batch in twin.log.read(gap.first, gap.last, usize::MAX).unwrap() {
                damaged.supply(batch).unwrap();
            }
        }
        copy.cut_power_after(changes);
        let done = damaged.mend().is_ok();
        copy.crash_keeping(|_, sector| sector as u64 % 3 == changes % 3);
        match mend(&copy, &rig, &twin, 50) {
            Mended::Whole => {
                let healed = Rig::open(Arc::new(copy), &rig.dir, rig.options).unwrap();
                assert_eq!(healed.contents(), rig.contents(), "cut after {changes}");
                after += 1;
            }
            Mended::With(_) => before += 1,
            Mended::Unknown => panic!("cut after {changes}"),
        }
        if done {
            break;
        }
    }
    assert!(before > 5 && after > 1, "{before} before and {after} after");
}
