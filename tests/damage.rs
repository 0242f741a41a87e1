//! Disks that damage what was written to them, under real nodes: they mend their logs from each other, or become new
//! members; a node alone refuses and says what to do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use harness::{Cluster, until};
use quicraft::client::{Client, RoleName};

const KEYS: usize = 300;

/// Writes keys whose values are known.
async fn fill(client: &Client, round: usize) {
    for key in 0..KEYS {
        client.put(format!("k{key:03}"), value(round, key)).await.unwrap();
    }
}

fn value(round: usize, key: usize) -> String {
    format!("{round}/{key}/").repeat(20)
}

async fn check(client: &Client, round: usize) {
    for key in 0..KEYS {
        let found = client.get(format!("k{key:03}")).await.unwrap().unwrap();
        assert_eq!(String::from_utf8_lossy(&found.bytes), value(round, key), "k{key:03}");
    }
}

/// The files of a node's log, or of its snapshots.
fn files(cluster: &Cluster, i: usize, part: &str) -> Vec<PathBuf> {
    let dir = cluster.path(&format!("data/n{}/{part}", i + 1));
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|it| it == "wal" || it == "snap"))
        .collect();
    files.sort();
    files
}

/// Overwrites a part of a file with garbage.
fn spoil(path: &PathBuf, offset: u64, bytes: usize) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&vec![0xA5; bytes], offset).unwrap();
    file.sync_all().unwrap();
}

/// How many bytes of a segment were written.
fn written(path: &PathBuf) -> u64 {
    let bytes = fs::read(path).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
}

async fn helical(extra: &str) {
    let mut cluster = Cluster::start_with(3, &format!("segment = \"64KiB\"\n{extra}")).await;
    let client = cluster.client().await;
    fill(&client, 1).await;
    cluster.converge().await;
    (0..3).for_each(|i| cluster.kill9(i));
    // Each node loses other thirds of each 12 KiB.
    for i in 0..3 {
        for path in files(&cluster, i, "wal") {
            let end = written(&path);
            let mut offset = 4096 + 4096 * i as u64;
            while offset + 8192 < end {
                spoil(&path, offset, 2000);
                offset += 3 * 4096;
            }
        }
    }
    (0..3).for_each(|i| cluster.spawn(i));
    cluster.leader().await;
    check(&client, 1).await;
    fill(&client, 2).await;
    check(&client, 2).await;
    cluster.converge().await;
    for i in 0..3 {
        assert!(cluster.log(i).contains("the log is mended"), "{}", cluster.log(i));
    }
}

#[tokio::test]
async fn three_nodes_with_damage_at_different_places_mend_each_other() {
    helical("").await;
}

#[tokio::test]
async fn the_same_with_a_mapped_log() {
    helical("log_io = \"map\"\n").await;
}

#[tokio::test]
async fn a_node_whose_data_is_all_garbage_comes_back_as_a_new_member() {
    let extra = "segment = \"64KiB\"\nsnapshot_after = \"128KiB\"\n";
    let mut cluster = Cluster::start_with(3, extra).await;
    let client = cluster.client().await;
    fill(&client, 1).await;
    cluster.kill9(2);
    let all = files(&cluster, 2, "wal").into_iter().chain(files(&cluster, 2, "snapshots"));
    for path in all.chain([cluster.path("data/n3/wal/wal.mark")]) {
        let bytes = fs::metadata(&path).unwrap().len() as usize;
        spoil(&path, 0, bytes);
    }
    cluster.spawn(2);
    fill(&client, 2).await;
    until("a new n3", async || {
        let statuses = cluster.statuses().await;
        let n3 = statuses.iter().find(|status| status.name == "n3")?;
        let leader = statuses.iter().find(|status| status.role == RoleName::Leader)?;
        (n3.node_id == 4 && n3.applied_index >= leader.applied_index).then_some(())
    })
    .await;
    assert!(cluster.log(2).contains("as the new member 4"), "{}", cluster.log(2));
    assert!(cluster.path("data/n3/lost-1/wal").is_dir());
    check(&client, 2).await;
    until("n3 is a voter in its own place", async || {
        let list = cluster.cli(&["member", "list", "-o", "json"]);
        let json: serde_json::Value = serde_json::from_slice(&list.stdout).ok()?;
        let members = json["members"].as_array()?;
        let is_voter = members.iter().any(|it| it["id"] == 4 && it["kind"] == "voter");
        (members.len() == 3 && is_voter).then_some(())
    })
    .await;
    // It is one like the others.
    cluster.kill9(0);
    fill(&client, 3).await;
    check(&client, 3).await;
}

#[tokio::test]
async fn a_node_that_is_overwritten_while_it_runs_comes_back() {
    let extra = "segment = \"64KiB\"\nsnapshot_after = \"128KiB\"\n";
    let mut cluster = Cluster::start_with(3, extra).await;
    let client = cluster.client().await;
    fill(&client, 1).await;
    let leader = cluster.leader().await;
    let all = files(&cluster, leader, "wal").into_iter();
    for path in all.chain(files(&cluster, leader, "snapshots")) {
        // It may have been purged meanwhile.
        if let Ok(meta) = fs::metadata(&path) {
            spoil(&path, 0, meta.len() as usize);
        }
    }
    fill(&client, 2).await;
    // What it wrote itself meanwhile is good; the rest is found at the next start.
    let name = format!("n{}", leader + 1);
    if cluster.is_running(leader) {
        cluster.kill9(leader);
    }
    cluster.spawn(leader);
    fill(&client, 3).await;
    until("all caught up", async || {
        let statuses = cluster.statuses().await;
        let last = statuses.iter().map(|status| status.applied_index).max()?;
        let back = statuses.iter().find(|status| status.name == name)?;
        (statuses.len() == 3 && back.applied_index == last).then_some(())
    })
    .await;
    check(&client, 3).await;
}

#[tokio::test]
async fn a_node_in_repair_says_so_and_serves_nothing() {
    let mut cluster = Cluster::start_with(3, "segment = \"64KiB\"\n").await;
    let client = cluster.client().await;
    fill(&client, 1).await;
    cluster.converge().await;
    (0..3).for_each(|i| cluster.kill9(i));
    let first = &files(&cluster, 1, "wal")[1];
    spoil(first, 8192, 9000);
    cluster.spawn(1);
    until("n2 repairs", async || {
        let statuses = cluster.statuses().await;
        statuses.iter().any(|status| status.role == RoleName::Repairing).then_some(())
    })
    .await;
    let get = cluster.cli(&["get", "k001", "--local", "--timeout", "1s"]);
    assert_eq!(get.status.code(), Some(3), "{get:?}");
    let status = cluster.cli(&["status", "--timeout", "1s"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("repairing"), "{status:?}");
    // The others alone are a majority, and it comes back by itself.
    cluster.spawn(0);
    cluster.spawn(2);
    check(&client, 1).await;
    cluster.converge().await;
}

#[tokio::test]
async fn a_node_alone_refuses_and_names_file_offset_and_command() {
    let mut cluster = Cluster::start_with(1, "segment = \"64KiB\"\n").await;
    let client = cluster.client().await;
    fill(&client, 1).await;
    cluster.kill9(0);
    let first = files(&cluster, 0, "wal").remove(1);
    let before = fs::read(&first).unwrap();
    spoil(&first, 8192, 100);
    let spoiled = fs::read(&first).unwrap();
    for _ in 0..2 {
        cluster.spawn(0);
        let status = cluster.exit(0).await;
        let message = cluster.log(0);
        assert_eq!(status.code(), Some(1), "{message}");
        let last = message.lines().last().unwrap();
        for word in ["0000000000000002.wal", "offset 8", "quicraft log salvage"] {
            assert!(last.contains(word), "{word}: {last}");
        }
        assert_eq!(fs::read(&first).unwrap(), spoiled, "nothing was changed");
    }
    fs::write(&first, before).unwrap();
    cluster.spawn(0);
    check(&client, 1).await;
}

#[tokio::test]
async fn offline_tools_show_a_log_judge_it_and_give_up_what_is_lost() {
    let mut cluster = Cluster::start_with(1, "segment = \"64KiB\"\n").await;
    let client = cluster.client().await;
    fill(&client, 1).await;
    let busy = cluster.cli(&["log", "verify", "data/n1"]);
    assert_eq!(busy.status.code(), Some(4), "{busy:?}");
    cluster.term(0).await;

    let whole = cluster.cli(&["log", "verify", "data/n1"]);
    assert_eq!(whole.status.code(), Some(0), "{whole:?}");
    let dump = cluster.cli(&["log", "dump", "data/n1", "--bodies"]);
    let dump = String::from_utf8(dump.stdout).unwrap();
    for key in 0..KEYS {
        assert!(dump.contains(&format!("put k{key:03} {}", value(1, key))), "k{key:03}");
    }
    let json = cluster.cli(&["log", "dump", "data/n1", "-o", "json"]);
    let json = String::from_utf8(json.stdout).unwrap();
    let lines: Vec<serde_json::Value> =
        json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let offset_of = |key: &str| {
        let line = lines.iter().find(|line| line["entry"]["key"] == key).unwrap();
        line["offset"].as_u64().unwrap()
    };

    let path = files(&cluster, 0, "wal").remove(1);
    spoil(&path, offset_of("k050"), 200);
    let before = fs::read(&path).unwrap();
    let damaged = cluster.cli(&["log", "verify", "data/n1", "-o", "json"]);
    assert_eq!(damaged.status.code(), Some(1), "{damaged:?}");
    let verdict: serde_json::Value = serde_json::from_slice(&damaged.stdout).unwrap();
    assert_eq!(verdict["damages"][0]["offset"], offset_of("k050"), "{verdict}");
    assert_eq!((&verdict["whole"], &verdict["unnamed_loss"]), (&false.into(), &false.into()));
    let asked = cluster.cli(&["log", "salvage", "data/n1"]);
    assert_eq!(asked.status.code(), Some(4), "{asked:?}");
    assert_eq!(fs::read(&path).unwrap(), before, "nothing was changed");
    let done = cluster.cli(&["log", "salvage", "data/n1", "--yes"]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert!(path.with_extension("damaged").exists());

    cluster.spawn(0);
    for key in 0..KEYS {
        let found = client.get(format!("k{key:03}")).await.unwrap();
        assert_eq!(found.is_some(), key < 50, "k{key:03}");
    }
    client.put("after", "1").await.unwrap();
    let none = cluster.cli(&["log", "verify", "nowhere"]);
    assert_eq!(none.status.code(), Some(2), "{none:?}");
}

#[tokio::test]
async fn a_file_that_is_cut_off_under_a_map_ends_the_node_with_a_word() {
    let mut cluster = Cluster::start_with(1, "segment = \"64KiB\"\nlog_io = \"map\"\n").await;
    let client = cluster.client().await;
    client.put("k", "v").await.unwrap();
    let active = files(&cluster, 0, "wal").pop().unwrap();
    fs::File::options().write(true).open(active).unwrap().set_len(4096).unwrap();
    let writer = tokio::spawn(async move { client.put("k", "w".repeat(9000)).await });
    let status = cluster.exit(0).await;
    writer.abort();
    assert_eq!(status.code(), Some(75), "{}", cluster.log(0));
    assert!(cluster.log(0).contains("SIGBUS"), "{}", cluster.log(0));
}
