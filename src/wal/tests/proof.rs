//! The single-fault proof: one fault of each kind at each place of a log of 200 records, and the table of what came of
//! it (`cargo test --release --lib proof -- --nocapture`). Nothing that was acknowledged is ever lost in silence, and
//! nothing is refused when nothing acknowledged was touched.

use std::collections::BTreeMap;
use std::fmt;

use super::*;
use crate::disk::Fate;

/// What a fault may have touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Touched {
    /// Nothing that was acknowledged: the log must open.
    Nothing,
    /// Perhaps something: the log may be refused.
    Perhaps,
}

/// One line of the table.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    cases: u64,
    whole: u64,
    mended: u64,
    refused: u64,
    silent_losses: u64,
    wrong_refusals: u64,
}

impl Row {
    fn add(&mut self, other: Row) {
        self.cases += other.cases;
        self.whole += other.whole;
        self.mended += other.mended;
        self.refused += other.refused;
        self.silent_losses += other.silent_losses;
        self.wrong_refusals += other.wrong_refusals;
    }
}

/// All lines.
#[derive(Debug, Default)]
struct Table(BTreeMap<&'static str, Row>);

impl Table {
    fn row(&mut self, fault: &'static str) -> &mut Row {
        self.0.entry(fault).or_default()
    }

    fn take(&mut self, other: Table) {
        other.0.into_iter().for_each(|(fault, row)| self.row(fault).add(row));
    }

    fn check(&self) {
        eprintln!("{self}");
        for (fault, row) in &self.0 {
            assert!(row.cases > 0, "{fault}");
            assert_eq!((row.silent_losses, row.wrong_refusals), (0, 0), "{fault}");
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head =
            ["fault", "cases", "whole", "mended", "refused", "silent losses", "wrong refusals"];
        writeln!(
            f,
            "{:<42} {:>7} {:>7} {:>7} {:>8} {:>14} {:>15}",
            head[0], head[1], head[2], head[3], head[4], head[5], head[6]
        )?;
        for (fault, row) in &self.0 {
            let Row { cases, whole, mended, refused, silent_losses, wrong_refusals } = row;
            writeln!(
                f,
                "{fault:<42} {cases:>7} {whole:>7} {mended:>7} {refused:>8} {silent_losses:>14} {wrong_refusals:>15}"
            )?;
        }
        Ok(())
    }
}

/// A log of 200 acknowledged records, attested by its mark.
struct Subject {
    disk: MemDisk,
    dir: PathBuf,
    options: Options,
    contents: Vec<Entry>,
    hard: HardState,
    /// Its files, and how far each was written.
    files: Vec<(PathBuf, usize)>,
}

fn subject(io: LogIo, owner: u64) -> Subject {
    let disk = MemDisk::new();
    let options = Options { salt_seed: owner, ..options(io) };
    let mut rig = Rig::open(Arc::new(disk.clone()), Path::new("/data/wal"), options).unwrap();
    for round in 0..100 {
        rig.append(1, 1 + round / 40, 60 + (round as usize * 37) % 190);
        rig.log.save_hard_state(hard(1 + round / 40, 1 + round / 40, round));
        rig.sync();
    }
    rig.writer.idle().unwrap();
    let (contents, hard) = (rig.contents(), hard(3, 3, 99));
    let written = |path: &PathBuf| {
        let bytes = disk.dump(path).unwrap();
        bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
    };
    let named = rig.files(".wal").into_iter().chain(["wal.mark".to_owned()]);
    let files = named.map(|name| rig.dir.join(name)).map(|path| (path.clone(), written(&path)));
    Subject {
        dir: rig.dir.clone(),
        options,
        contents,
        hard,
        files: files.collect(),
        disk: disk.fork(),
    }
}

impl Subject {
    /// Opens a copy with a fault, and judges what comes of it.
    fn judge(&self, row: &mut Row, touched: Touched, fault: impl FnOnce(&MemDisk)) {
        let copy = self.disk.fork();
        fault(&copy);
        row.cases += 1;
        let opened = open(Arc::new(copy.clone()), &self.dir, OWNER, self.options);
        match opened {
            Ok(Opening::Whole(opened)) => {
                row.whole += 1;
                row.silent_losses += u64::from(!self.is_all_there(*opened));
            }
            Ok(Opening::Damaged(damaged))
                if damaged.is_mendable() && damaged.wanted().is_empty() =>
            {
                row.mended += 1;
                damaged.mend().unwrap();
                match open(Arc::new(copy), &self.dir, OWNER, self.options) {
                    Ok(Opening::Whole(opened)) => {
                        row.silent_losses += u64::from(!self.is_all_there(*opened));
                    }
                    other => panic!("mended, and then {other:?}"),
                }
            }
            Ok(Opening::Damaged(_)) | Err(Error::Foreign { .. }) => {
                row.refused += 1;
                row.wrong_refusals += u64::from(touched == Touched::Nothing);
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn is_all_there(&self, opened: Opened) -> bool {
        let Opened { log, writer, recovered } = opened;
        let (hard, is_long) =
            (recovered.hard_state, log.last_index().0 == self.contents.len() as u64);
        let rig = Rig {
            disk: Arc::new(self.disk.clone()),
            dir: self.dir.clone(),
            options: self.options,
            log,
            writer,
            recovered,
        };
        is_long && hard == self.hard && rig.contents() == self.contents
    }

    /// Whether a fault at `from..to` of a file can have touched what was acknowledged. Each header and the mark are
    /// there twice.
    fn touches(&self, place: usize, range: std::ops::Range<usize>) -> Touched {
        let (path, written) = &self.files[place];
        let is_mark = path.ends_with("wal.mark");
        let is_one_copy = range.end <= 2048 || (range.start >= 2048 && range.end <= 4096);
        match is_mark || is_one_copy || range.start >= *written {
            true => Touched::Nothing,
            false => Touched::Perhaps,
        }
    }

    fn bytes(&self, place: usize) -> Vec<u8> {
        self.disk.dump(&self.files[place].0).unwrap()
    }
}

/// Every byte flipped, one bit of it or all, in the files with this parity.
fn flips(half: usize) -> Table {
    let (subject, mut table) = (subject(LogIo::Write, 42), Table::default());
    for place in 0..subject.files.len() {
        for at in (half..subject.bytes(place).len()).step_by(2) {
            let flip = if at % 3 == 0 { 0xff } else { 1 << (at % 8) };
            let touched = subject.touches(place, at..at + 1);
            let path = &subject.files[place].0;
            subject.judge(table.row("a byte flipped"), touched, |disk| {
                disk.tamper(path, |bytes| bytes[at] ^= flip);
            });
        }
    }
    table
}

/// Every file cut off at every place, in steps of two.
fn prefixes(half: usize) -> Table {
    let (subject, mut table) = (subject(LogIo::Write, 42), Table::default());
    for (place, (path, written)) in subject.files.iter().enumerate() {
        for length in (half..subject.bytes(place).len()).step_by(2) {
            let is_mark = path.ends_with("wal.mark");
            let touched =
                if is_mark || length >= *written { Touched::Nothing } else { Touched::Perhaps };
            subject.judge(table.row("a file cut off"), touched, |disk| {
                disk.tamper(path, |bytes| bytes.truncate(length));
            });
        }
    }
    table
}

fn sectors() -> Table {
    let (subject, mut table) = (subject(LogIo::Write, 42), Table::default());
    for place in 0..subject.files.len() {
        let path = &subject.files[place].0;
        let count = subject.bytes(place).len() / 512;
        for sector in 0..count {
            let range = sector * 512..sector * 512 + 512;
            let touched = subject.touches(place, range.clone());
            subject.judge(table.row("a sector zeroed"), touched, |disk| {
                disk.tamper(path, |bytes| bytes[range.clone()].fill(0));
            });
            for other in [(sector + 1) % count, (sector * 7 + 3) % count] {
                let second = other * 512..other * 512 + 512;
                let both = [touched, subject.touches(place, second.clone())];
                // Both copies of a header may be hit; and what lands behind the end looks like a record gone wrong.
                let is_apart = sector * 512 >= subject.files[place].1
                    && second.start >= subject.files[place].1;
                let touched = match both == [Touched::Nothing; 2] && is_apart {
                    true => Touched::Nothing,
                    false => Touched::Perhaps,
                };
                subject.judge(table.row("two sectors swapped"), touched, |disk| {
                    disk.tamper(path, |bytes| {
                        let first = bytes[range.clone()].to_vec();
                        bytes.copy_within(second.clone(), range.start);
                        bytes[second.clone()].copy_from_slice(&first);
                    });
                });
            }
        }
    }
    table
}

fn segments() -> Table {
    let (subject, mut table) = (subject(LogIo::Write, 42), Table::default());
    let stranger = MemDisk::new();
    let owner = Identity { node: NodeId(9), ..OWNER };
    let Ok(Opening::Whole(_)) =
        open(Arc::new(stranger.clone()), &subject.dir, owner, subject.options)
    else {
        panic!("a new log")
    };
    let segments: Vec<&PathBuf> = subject
        .files
        .iter()
        .map(|(path, _)| path)
        .filter(|path| !path.ends_with("wal.mark"))
        .collect();
    let foreign = stranger.dump(segments[0]).unwrap();
    let next = segment::segment_path(&subject.dir, segments.len() as u32 + 1);
    let put = |disk: &MemDisk, path: &Path, bytes: &[u8]| {
        if disk.dump(path).is_none() {
            disk.create(path).unwrap();
            disk.sync_dir(&subject.dir).unwrap();
        }
        disk.tamper(path, |now| *now = bytes.to_vec());
    };
    for (place, path) in segments.iter().enumerate() {
        let own = subject.disk.dump(path).unwrap();
        for other in segments.iter().skip(place + 1) {
            let theirs = subject.disk.dump(other).unwrap();
            subject.judge(table.row("two segments swapped"), Touched::Perhaps, |disk| {
                put(disk, path, &theirs);
                put(disk, other, &own);
            });
            subject.judge(table.row("a segment in another's place"), Touched::Perhaps, |disk| {
                put(disk, other, &own);
            });
        }
        let row = table.row("a segment once more, after the last");
        subject.judge(row, Touched::Nothing, |disk| put(disk, &next, &own));
        let row = table.row("a segment of another node in its place");
        subject.judge(row, Touched::Perhaps, |disk| put(disk, path, &foreign));
        let row = table.row("a segment gone");
        subject.judge(row, Touched::Perhaps, |disk| disk.remove(path).unwrap());
    }
    let row = table.row("a segment of another node after the last");
    subject.judge(row, Touched::Nothing, |disk| put(disk, &next, &foreign));
    let row = table.row("the mark gone");
    subject
        .judge(row, Touched::Nothing, |disk| disk.remove(&mark::mark_path(&subject.dir)).unwrap());
    table
}

/// Runs the whole life of a log with the sync that fails at each place, and a power cut after it.
fn syncs(io: LogIo) -> Table {
    let mut table = Table::default();
    for nth in 1.. {
        let (disk, mut rig) = Rig::memory(io);
        disk.fail_sync(nth);
        let mut acknowledged = (0, HardState::default());
        let mut has_failed = false;
        for round in 0..100 {
            rig.append(1, 1 + round / 40, 60 + (round as usize * 37) % 190);
            rig.log.save_hard_state(hard(1 + round / 40, 1, round));
            has_failed = rig.try_sync().is_err() || (round % 10 == 9 && rig.writer.idle().is_err());
            if has_failed {
                break;
            }
            acknowledged = (round + 1, hard(1 + round / 40, 1, round));
        }
        if !has_failed {
            return table;
        }
        let wanted = rig.contents();
        for keep in 0..3 {
            let copy = disk.fork();
            copy.crash_with(keep == 2, |_, sector| match keep {
                0 => Fate::Lost,
                1 if sector % 2 == 0 => Fate::Kept,
                1 => Fate::Lost,
                _ => Fate::Kept,
            });
            let row = table.row("a sync failed");
            row.cases += 1;
            match Rig::open(Arc::new(copy), &rig.dir, rig.options) {
                Ok(again) => {
                    row.whole += 1;
                    let found = again.contents();
                    let is_prefix = found.len() <= wanted.len() && found == wanted[..found.len()];
                    let is_there = found.len() as u64 >= acknowledged.0
                        && again.recovered.hard_state.term >= acknowledged.1.term;
                    row.silent_losses += u64::from(!is_prefix || !is_there);
                }
                Err(Error::Corrupt(_)) => {
                    row.refused += 1;
                    row.wrong_refusals += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    table
}

/// A last batch over eight sectors that was not synced when the power went: each set of them is lost.
fn subsets(io: LogIo) -> Table {
    let mut table = Table::default();
    let (disk, mut rig) = Rig::memory(io);
    for _ in 0..20 {
        rig.append(1, 1, 100);
        rig.sync();
    }
    let before = rig.contents();
    rig.append(9, 1, 380);
    let wanted = rig.contents();
    disk.fail_sync(1);
    rig.try_sync().unwrap_err();
    let mut dirty = Vec::new();
    disk.fork().crash_keeping(|_, sector| {
        dirty.push(sector);
        false
    });
    assert_eq!(dirty.len(), 9, "the first one also holds what is durable");
    for lost in 0..1_u32 << 8 {
        let copy = disk.fork();
        copy.crash_keeping(|_, sector| {
            let place = dirty.iter().position(|dirty| *dirty == sector).unwrap();
            place == 0 || lost & (1 << (place - 1)) == 0
        });
        let row = table.row("a set of the last batch's sectors lost");
        row.cases += 1;
        match Rig::open(Arc::new(copy), &rig.dir, rig.options) {
            Ok(again) => {
                row.whole += 1;
                let found = again.contents();
                let is_prefix = found.len() <= wanted.len() && found == wanted[..found.len()];
                row.silent_losses += u64::from(!is_prefix || found.len() < before.len());
            }
            Err(error) => {
                eprintln!("{error}");
                row.refused += 1;
                row.wrong_refusals += 1;
            }
        }
    }
    table
}

#[test]
fn no_single_fault_loses_what_was_acknowledged() {
    // Faults of what lies on the disk need only one way of writing it: the bytes are the same.
    let [write, map] = [LogIo::Write, LogIo::Map].map(|io| subject(io, 42));
    assert_eq!(write.files, map.files);
    for place in 0..write.files.len() {
        assert!(write.bytes(place) == map.bytes(place), "{:?}", write.files[place]);
    }
    let mut table = Table::default();
    std::thread::scope(|scope| {
        let threads = [
            scope.spawn(|| {
                [flips(0), prefixes(0), sectors(), syncs(LogIo::Write), subsets(LogIo::Write)]
            }),
            scope.spawn(|| {
                [flips(1), prefixes(1), segments(), syncs(LogIo::Map), subsets(LogIo::Map)]
            }),
        ];
        for thread in threads {
            thread.join().unwrap().into_iter().for_each(|part| table.take(part));
        }
    });
    table.check();
}
