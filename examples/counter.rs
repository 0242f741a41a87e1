//! Many tasks append to one key. Kill the leader meanwhile: each append is there exactly once.
//!
//! `cargo run --example counter`, beside a running cluster.

use quicraft::client::{Client, Error, Options};

const TASKS: usize = 16;
const APPENDS: usize = 100;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let client = Client::connect(Options::default()).await?;
    client.delete("counter").await?;

    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..TASKS {
        let client = client.clone();
        tasks.spawn(async move {
            for _ in 0..APPENDS {
                client.append("counter", "|").await?;
            }
            Ok::<_, Error>(())
        });
    }
    for result in tasks.join_all().await {
        result?;
    }

    let counted = client.get("counter").await?.map_or(0, |value| value.bytes.len());
    println!("{counted} of {} appends are there", TASKS * APPENDS);
    client.close().await;
    Ok(())
}
