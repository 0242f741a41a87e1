//! Faults of the real machine: kills under load, power cuts of a file system, a disk that is full, a device that fails
//! behind the page cache. Nothing acknowledged may be lost.
//!
//! File systems are made in files and mounted by way of loop devices, which needs root; where that is not possible, the
//! test says so, and the summary counts it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use harness::workload::{self, Workload};
use harness::{Cluster, PATIENCE, until};
use quicraft::client::Error;

/// Kills of nodes, and power cuts, for each way of writing the log.
const KILLS: usize = 200;
const POWER_CUTS: usize = 50;
const WAYS: [&str; 2] = ["log_io = \"write\"\n", "log_io = \"map\"\n"];

/// Why a test could not run.
type Skipped = String;

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (mut passed, mut skipped) = (0, Vec::new());
    let mut take = |name: &str, outcome: Result<String, Skipped>, begin: Instant| {
        let seconds = begin.elapsed().as_secs_f64();
        match outcome {
            Ok(what) => {
                println!("{name}: ok, {what} ({seconds:.0} s)");
                passed += 1;
            }
            Err(why) => {
                println!("{name}: SKIPPED, {why}");
                skipped.push(why);
            }
        }
    };
    runtime.block_on(async {
        for way in WAYS {
            let begin = Instant::now();
            take("kill -9 under load", kills(way).await, begin);
            let begin = Instant::now();
            take("power cuts of ext4", power_cuts(way).await, begin);
            let begin = Instant::now();
            take("a full disk of a leader, freed again", full_disk(way).await, begin);
            let begin = Instant::now();
            take("errors of writeback", writeback_errors(way).await, begin);
        }
    });
    println!("real faults: {passed} passed, {} skipped", skipped.len());
    ExitCode::SUCCESS
}

/// A file system in a file, unmounted when dropped.
struct Mount {
    at: PathBuf,
    image: PathBuf,
}

impl Mount {
    /// Makes an ext4 of this size in `image` and mounts it where a node's data directory is, with the data that is
    /// there.
    fn under(data: &Path, image: PathBuf, mebibytes: u64) -> Result<Mount, Skipped> {
        let file = fs::File::create(&image).unwrap();
        file.set_len(mebibytes << 20).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        let aside = data.with_extension("aside");
        fs::rename(data, &aside).unwrap();
        fs::create_dir(data).unwrap();
        let mount = Mount { at: data.to_owned(), image };
        if let Err(why) = mount.mount() {
            fs::remove_dir(data).unwrap();
            fs::rename(&aside, data).unwrap();
            return Err(why);
        }
        run(Command::new("cp").arg("-a").arg(aside.join(".")).arg(data))?;
        run(&mut Command::new("sync"))?;
        Ok(mount)
    }

    fn mount(&self) -> Result<(), Skipped> {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.at))
    }

    /// Unmounts it, as soon as nobody uses it any more.
    fn unmount(&self) {
        let deadline = Instant::now() + PATIENCE;
        while let Err(why) = run(Command::new("umount").arg(&self.at)) {
            assert!(Instant::now() < deadline, "{why}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The power goes: what the file system did not write to its device is gone, its own log included.
    fn cut_power(&self) {
        let root = fs::File::open(&self.at).unwrap();
        let no_log_flush: u32 = 2;
        // SAFETY: FS_IOC_SHUTDOWN reads a u32 behind the pointer, which lives on this stack.
        let done =
            unsafe { libc::ioctl(root.as_raw_fd(), FS_IOC_SHUTDOWN, &raw const no_log_flush) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }
}

/// `_IOR('X', 125, __u32)` of linux/fs.h.
const FS_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
    }
}

fn run(command: &mut Command) -> Result<(), Skipped> {
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}

/// Kills nodes under load, and starts them again.
async fn kills(way: &str) -> Result<String, Skipped> {
    let mut acknowledged = 0;
    for nodes in [1, 3] {
        let mut cluster = Cluster::start_with(
            nodes,
            &format!("segment = \"256KiB\"\nsnapshot_after = \"1MiB\"\n{way}"),
        )
        .await;
        let load = Workload::start(&cluster, 4, 1 << 30, PATIENCE).await;
        for kill in 0..KILLS / 2 {
            load.reach(20 * (kill as u64 + 1)).await;
            cluster.kill9(kill % nodes);
            cluster.spawn(kill % nodes);
        }
        load.stop();
        acknowledged += workload::check(&mut cluster, &load.finish().await).await;
    }
    Ok(format!("{KILLS} kills, {acknowledged} acknowledged writes, none lost"))
}

/// Cuts the power of the only node's file system under load.
async fn power_cuts(way: &str) -> Result<String, Skipped> {
    let mut cluster =
        Cluster::prepare(1, &format!("segment = \"256KiB\"\nsnapshot_after = \"1MiB\"\n{way}"));
    let disk = Mount::under(&cluster.path("data/n1"), cluster.path("disk"), 48)?;
    cluster.spawn(0);
    cluster.leader().await;
    let load = Workload::start(&cluster, 4, 1 << 30, PATIENCE).await;
    for cut in 0..POWER_CUTS {
        load.reach(20 * (cut as u64 + 1)).await;
        disk.cut_power();
        if cluster.is_running(0) {
            cluster.kill9(0);
        }
        disk.unmount();
        disk.mount()?;
        cluster.spawn(0);
    }
    load.stop();
    let acknowledged = workload::check(&mut cluster, &load.finish().await).await;
    cluster.kill9(0);
    Ok(format!("{POWER_CUTS} cuts, {acknowledged} acknowledged writes, none lost"))
}

/// Fills the leader's disk, and frees it again.
async fn full_disk(way: &str) -> Result<String, Skipped> {
    let mut cluster = Cluster::prepare(3, &format!("segment = \"1MiB\"\n{way}"));
    let data = |i: usize| format!("data/n{}", i + 1);
    let mut disks = Vec::new();
    for i in 0..3 {
        disks.push(Mount::under(&cluster.path(&data(i)), cluster.path(&format!("disk{i}")), 32)?);
    }
    (0..3).for_each(|i| cluster.spawn(i));
    let leader = cluster.leader().await;
    let client = cluster.client().await;
    let mut written = 0;
    let mut put = async || {
        written += 1;
        client.put(format!("key{written}"), vec![b'v'; 100_000]).await.map(|_| written)
    };
    put().await.unwrap();
    // The others go on when the leader's disk is full.
    let ballast = |i: usize| cluster.path(&format!("{}/ballast", data(i)));
    fill(&ballast(leader));
    let mut last = 0;
    for _ in 0..40 {
        last = put().await.unwrap();
    }
    assert_ne!(cluster.leader().await, leader, "a leader without room leads on");
    // All are full: reads go on, growth is refused, nobody ends.
    for i in (0..3).filter(|i| *i != leader) {
        fill(&cluster.path(&format!("{}/ballast", data(i))));
    }
    let refused = loop {
        match put().await {
            Ok(done) => last = done,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::NoSpace), "{refused}");
    assert!(client.get("key1").await.unwrap().is_some());
    assert!((0..3).all(|i| cluster.is_running(i)), "a full disk ended a node");
    // Room again: it goes on by itself.
    for i in 0..3 {
        fs::remove_file(cluster.path(&format!("{}/ballast", data(i)))).unwrap();
    }
    until("growth", async || client.put("after", "1").await.ok()).await;
    for key in 1..=last {
        assert!(client.get(format!("key{key}")).await.unwrap().is_some(), "key{key} is lost");
    }
    cluster.converge().await;
    (0..3).for_each(|i| cluster.kill9(i));
    drop(disks);
    Ok(format!("{last} acknowledged writes, none lost"))
}

/// Writes zeros until the file system has no more room.
fn fill(path: &Path) {
    use std::io::Write as _;
    let mut file = fs::File::create(path).unwrap();
    let zeros = vec![0; 64 << 10];
    while file.write_all(&zeros).is_ok() {}
    let _ = file.sync_all();
}

/// The device under the only node's file system fails behind the page cache.
async fn writeback_errors(way: &str) -> Result<String, Skipped> {
    let mut cluster = Cluster::prepare(1, &format!("segment = \"1MiB\"\n{way}"));
    let backing = cluster.path("backing");
    fs::create_dir(&backing).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=16M", "none"]).arg(&backing))?;
    let _tmpfs = Mount { at: backing.clone(), image: PathBuf::new() };
    // The image is longer than what is under it: at some point the device has no room for what it promised.
    let disk = Mount::under(&cluster.path("data/n1"), backing.join("disk"), 64)?;
    cluster.spawn(0);
    cluster.leader().await;
    let client = cluster.client_of(vec![cluster.endpoint(0)], Duration::from_secs(5)).await;
    let mut acknowledged = 0;
    let error = loop {
        match client.put(format!("key{}", acknowledged + 1), vec![b'v'; 100_000]).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 1000, "the device did not fail");
    };
    let end = match error {
        // It met a file that is made ahead, of which nothing depended yet.
        Error::NoSpace => {
            cluster.kill9(0);
            "the node took the device for full"
        }
        _ => {
            let status = cluster.exit(0).await;
            assert_eq!(status.code(), Some(74), "{}", cluster.log(0));
            "the node ended with code 74"
        }
    };
    disk.unmount();
    run(Command::new("mount").args(["-o", "remount,size=128M"]).arg(&backing))?;
    disk.mount()?;
    cluster.spawn(0);
    cluster.leader().await;
    let client = cluster.client().await;
    for key in 1..=acknowledged {
        assert!(client.get(format!("key{key}")).await.unwrap().is_some(), "key{key} is lost");
    }
    cluster.kill9(0);
    drop(disk);
    Ok(format!("{end}; {acknowledged} acknowledged writes, none lost"))
}
