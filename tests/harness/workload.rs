//! Clients that write and remember what was acknowledged, and the check that it is all there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quicraft::client::{Client, ScanRequest};
use tokio::task::JoinHandle;

use super::Cluster;

/// Every so many keys a client also appends a token.
const APPEND_EVERY: u64 = 10;

/// What one client did.
#[derive(Default)]
pub struct Record {
    /// Keys with their values; whether the put was acknowledged.
    puts: Vec<(String, String, bool)>,
    /// Tokens that were appended to the client's own key, in order; whether that was acknowledged.
    tokens: Vec<(String, bool)>,
}

/// Running clients.
pub struct Workload {
    tasks: Vec<JoinHandle<Record>>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
}

impl Workload {
    /// Starts `clients` clients with a session and a connection each; each writes `keys` distinct keys.
    pub async fn start(cluster: &Cluster, clients: u64, keys: u64, timeout: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let mut tasks = Vec::new();
        for c in 0..clients {
            let endpoints = (0..cluster.len()).map(|i| cluster.endpoint(i)).collect();
            let client = cluster.client_of(endpoints, timeout).await;
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            tasks.push(tokio::spawn(write(client, c, keys, stop, acknowledged)));
        }
        Self { tasks, stop, acknowledged }
    }

    /// Waits until so many puts were acknowledged.
    pub async fn reach(&self, puts: u64) {
        super::until("progress of the clients", async || {
            (self.acknowledged.load(Ordering::Relaxed) >= puts).then_some(())
        })
        .await;
    }

    /// Lets the clients stop after what they are doing.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// What all clients did, once they are done.
    pub async fn finish(self) -> Vec<Record> {
        let mut records = Vec::new();
        for task in self.tasks {
            records.push(task.await.unwrap());
        }
        records
    }
}

async fn write(
    client: Client,
    c: u64,
    keys: u64,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
) -> Record {
    let mut record = Record::default();
    for k in 0..keys {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (key, value) = (format!("key/{c}/{k:08}"), format!("value {k} of {c}"));
        let done = client.put(&key, &value).await.is_ok();
        acknowledged.fetch_add(u64::from(done), Ordering::Relaxed);
        record.puts.push((key, value, done));
        if k % APPEND_EVERY == 0 {
            let token = format!("<{c}.{k}>");
            let done = client.append(format!("tokens/{c}"), &token).await.is_ok();
            record.tokens.push((token, done));
        }
    }
    record
}

/// Checks what the cluster holds against what was acknowledged. Returns the number of acknowledged puts.
pub async fn check(cluster: &mut Cluster, records: &[Record]) -> usize {
    let client = cluster.client().await;
    let rows = rows(&client, "key/").await;
    let mut acknowledged = 0;
    let mut known = 0;
    for (key, value, done) in records.iter().flat_map(|record| &record.puts) {
        match rows.get(key.as_bytes()) {
            Some(found) => {
                assert_eq!(found, value.as_bytes(), "another value at {key}");
                known += 1;
            }
            None => assert!(!done, "acknowledged, but lost: {key}"),
        }
        acknowledged += usize::from(*done);
    }
    assert_eq!(known, rows.len(), "there are keys that nobody wrote");
    let tokens = self::rows(&client, "tokens/").await;
    for (c, record) in records.iter().enumerate() {
        let empty = Vec::new();
        let text = tokens.get(format!("tokens/{c}").as_bytes()).unwrap_or(&empty);
        check_tokens(&String::from_utf8_lossy(text), &record.tokens);
    }
    cluster.converge().await;
    acknowledged
}

/// Acknowledged tokens stand there exactly once and in the order of their appends, others at most once.
fn check_tokens(text: &str, tokens: &[(String, bool)]) {
    let mut found: Vec<String> = text.split_inclusive('>').map(str::to_owned).collect();
    for (token, done) in tokens {
        let times = found.iter().filter(|other| *other == token).count();
        assert!(times <= 1, "{token} was applied {times} times in {text}");
        assert!(!done || times == 1, "{token} was acknowledged, but is not in {text}");
    }
    found.retain(|token| tokens.iter().any(|(other, done)| *done && other == token));
    let acknowledged = tokens.iter().filter(|(_, done)| *done).map(|(token, _)| token);
    assert!(found.iter().eq(acknowledged), "acknowledged tokens out of order in {text}");
}

/// All rows under a prefix.
pub async fn rows(client: &Client, prefix: &str) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut scan = client.scan(ScanRequest::prefix(prefix)).await.unwrap();
    let mut rows = BTreeMap::new();
    while let Some(row) = scan.next().await.unwrap() {
        rows.insert(row.key.to_vec(), row.value.to_vec());
    }
    rows
}
