//! `quicraft bench` against real nodes: every kind of work is done, counted and charged to the right process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use harness::Cluster;
use serde_json::Value as Json;

/// Too short to measure anything, long enough to do something.
const SHORT: [&str; 4] = ["--duration", "400ms", "--warmup", "100ms"];

fn bench(cluster: &Cluster, args: &[&str]) -> Json {
    let words = [&["bench", "-o", "json", "--keys", "200"], &SHORT[..], args].concat();
    let output = cluster.cli(&words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn every_kind_of_work_runs_without_errors() {
    let cluster = Cluster::start(3).await;
    for work in ["put", "get", "scan", "mixed", "append"] {
        let report = bench(&cluster, &[work, "--clients", "8", "--conns", "2", "--rows", "10"]);
        assert!(report["operations"].as_u64().unwrap() > 0, "{report}");
        assert_eq!(report["errors"].as_object().unwrap().len(), 0, "{report}");
        assert!(report["latency_ms"]["p50"].as_f64().unwrap() > 0.0, "{report}");
        let nodes = report["cpu_us_per_operation"]["nodes"].as_object().unwrap();
        assert_eq!(nodes.keys().collect::<Vec<_>>(), ["n1", "n2", "n3"], "{report}");
    }
    let count = cluster.cli(&["scan", "--prefix", "bench/", "--count"]);
    assert_eq!(String::from_utf8_lossy(&count.stdout).trim(), "200");
}

#[tokio::test]
async fn an_open_loop_offers_its_rate_and_no_more() {
    let cluster = Cluster::start(1).await;
    let args = ["put", "--rate", "100", "--clients", "4", "--conns", "1"];
    let report = bench(&cluster, &args);
    let operations = report["operations"].as_u64().unwrap();
    // 40 are due in 400 ms; a machine that is busy with others may be late with some.
    assert!((1..=44).contains(&operations), "{report}");
}

#[tokio::test]
async fn arguments_that_make_no_sense_are_refused() {
    let cluster = Cluster::start(1).await;
    for (args, word) in [
        (&["--conns", "9", "--clients", "8"][..], "--conns"),
        (&["--key-size", "8", "--keys", "100000"], "--key-size"),
        (&["--read-ratio", "1.5"], "--read-ratio"),
        (&["--rate", "0"], "--rate"),
    ] {
        let output = cluster.cli(&[&["bench", "put"], args].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(word), "{args:?}");
    }
}
