//! Openings that leave out what a snapshot covers.

use super::*;

/// A log of some segments and 90 entries of term 2, whose hard state has a vote.
fn rig() -> (MemDisk, Rig) {
    let (disk, mut rig) = Rig::memory(LogIo::Write);
    for round in 1..=30 {
        rig.append(3, 2, 700);
        rig.log.save_hard_state(hard(2, 1, round));
        rig.sync();
    }
    assert!(rig.files(".wal").len() > 4, "the log rotated");
    (disk, rig)
}

fn reopen_above(rig: Rig, covered: u64) -> Rig {
    let Rig { disk, dir, options, log, writer, .. } = rig;
    drop((log, writer));
    let opening = open_above(disk.clone(), &dir, OWNER, options, Index(covered)).unwrap();
    let Opening::Whole(opened) = opening else { panic!("the log is whole") };
    let Opened { log, writer, recovered } = *opened;
    Rig { disk, dir, options, log, writer, recovered }
}

#[test]
fn what_a_snapshot_covers_is_left_out_and_still_there() {
    for covered in [1, 20, 45, 89, 90, 1000] {
        let (_, rig) = self::rig();
        let (before, files) = (rig.contents(), rig.files(".wal").len());
        let mut rig = reopen_above(rig, covered);
        let base = rig.recovered.base.0;
        assert!(base.0 <= covered);
        assert_eq!(base == Index(0), covered < 20, "{covered}: from {base} on");
        assert_eq!(rig.contents(), before[base.0 as usize..]);
        assert_eq!(rig.recovered.hard_state, hard(2, 1, 30));
        rig.append(5, 3, 100);
        rig.sync();
        let rig = rig.reopen();
        assert_eq!(rig.recovered.base.0, Index(0));
        assert_eq!(rig.contents()[..90], before);
        assert_eq!((rig.log.last_index(), rig.files(".wal").len()), (Index(95), files + 2));
    }
}

#[test]
fn as_many_entries_are_kept_as_followers_may_lack() {
    let (_, rig) = self::rig();
    let options = Options { entries_kept: 40, ..rig.options };
    let rig = reopen_above(Rig { options, ..rig }, 90);
    assert!((1..=50).contains(&rig.recovered.base.0.0), "from {} on", rig.recovered.base.0);
}

#[test]
fn what_was_left_out_is_purged_like_the_rest() {
    let (_, rig) = self::rig();
    let mut rig = reopen_above(rig, 60);
    let (base, before) = (rig.recovered.base.0, rig.contents());
    rig.log.snapshot_saved(Index(80), Term(2));
    rig.sync();
    let files = rig.files(".wal");
    rig.log.purge(base.plus(5));
    rig.sync();
    let left = rig.files(".wal");
    assert!(left.len() < files.len() && files.ends_with(&left));
    let rig = rig.reopen();
    assert_eq!(rig.recovered.base.0, base);
    assert_eq!(rig.contents(), before);
}

#[test]
fn anything_wrong_makes_it_walk_everything() {
    for (file, is_seen) in [(0, false), (3, true)] {
        for missing in [false, true] {
            let (disk, rig) = self::rig();
            let name = rig.files(".wal")[file].clone();
            let path = rig.dir.join(name);
            let Rig { dir, options, log, writer, .. } = rig;
            drop((log, writer));
            if missing {
                disk.remove(&path).unwrap();
            } else {
                disk.tamper(&path, |bytes| bytes[5000] ^= 0x40);
            }
            let open = |covered| {
                let disk = Arc::new(disk.fork());
                open_above(disk, &dir, OWNER, options, Index(covered)).unwrap()
            };
            let is_whole = matches!(open(45), Opening::Whole(_));
            assert_eq!(is_whole, !is_seen && !missing, "file {file}, missing {missing}");
            assert!(matches!(open(0), Opening::Damaged(_)));
        }
    }
}
