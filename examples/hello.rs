//! Connects to the cluster of `quicraft cluster` and does one of everything.
//!
//! `cargo run --example hello`, beside a running `cargo run --release -- cluster`.

use quicraft::client::{Client, Error, Options, ScanRequest};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let client = Client::connect(Options::default()).await?;

    let revision = client.put("greeting", "hello").await?;
    println!("put at revision {revision}");
    client.append("greeting", ", world").await?;

    if let Some(value) = client.get("greeting").await? {
        println!("greeting = {}", String::from_utf8_lossy(&value.bytes));
    }

    let mut rows = client.scan(ScanRequest::prefix("greet")).await?;
    while let Some(row) = rows.next().await? {
        println!("{} has {} bytes", String::from_utf8_lossy(&row.key), row.value.len());
    }

    let deleted = client.delete("greeting").await?;
    println!("deleted at revision {}, it was there: {}", deleted.revision, deleted.existed);
    client.close().await;
    Ok(())
}
