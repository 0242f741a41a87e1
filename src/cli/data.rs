//! The commands that read and write data.

use std::io::{IsTerminal, Read, Write};

use clap::Args;
use serde_json::json;

use super::text::{escape, to_json};
use super::{Connect, Failure, Output};
use crate::client::{ScanRequest, Written};
use crate::proto::client::{Consistency, ScanMode};

#[derive(Args)]
pub(super) struct PutArgs {
    key: String,
    /// The value; @FILE for the content of a file, - for standard input, @@… for a value that begins with @
    #[arg(allow_hyphen_values = true)]
    value: String,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Args)]
pub(super) struct GetArgs {
    key: String,
    /// Ask the first node only, which may answer with old data
    #[arg(long)]
    local: bool,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Args)]
pub(super) struct DelArgs {
    key: String,
    #[command(flatten)]
    connect: Connect,
}

#[derive(Args)]
pub(super) struct ScanArgs {
    /// Only keys that begin with this
    #[arg(long, conflicts_with_all = ["from", "to"])]
    prefix: Option<String>,
    /// First key
    #[arg(long)]
    from: Option<String>,
    /// First key after the range
    #[arg(long)]
    to: Option<String>,
    /// Rows at most
    #[arg(long)]
    limit: Option<u64>,
    /// From the last key to the first
    #[arg(long)]
    reverse: bool,
    /// Print keys only
    #[arg(long, conflicts_with = "count")]
    keys_only: bool,
    /// Print the number of keys only
    #[arg(long)]
    count: bool,
    #[command(flatten)]
    connect: Connect,
}

/// A value as it is given on the command line.
fn read_value(value: &str) -> Result<Vec<u8>, Failure> {
    let failed = |what: &str, error| Failure::Usage(format!("{what}: {error}"));
    match value.strip_prefix('@') {
        Some(rest) if rest.starts_with('@') => Ok(rest.as_bytes().to_vec()),
        Some(path) => std::fs::read(path).map_err(|error| failed(path, error)),
        None if value == "-" => {
            let mut bytes = Vec::new();
            let read = std::io::stdin().lock().read_to_end(&mut bytes);
            read.map_err(|error| failed("standard input", error))?;
            Ok(bytes)
        }
        None => Ok(value.as_bytes().to_vec()),
    }
}

/// Standard output that is gone is no reason for a panic.
fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(bytes).and_then(|()| out.flush());
    written.map_err(|error| Failure::Usage(format!("standard output: {error}")))
}

fn print_written(output: Output, written: Written) -> Result<(), Failure> {
    let Written { revision, existed } = written;
    match output {
        Output::Text => print(format!("{revision}\n").as_bytes()),
        Output::Json => {
            print(format!("{}\n", json!({ "revision": revision, "existed": existed })).as_bytes())
        }
    }
}

pub(super) async fn put(args: PutArgs) -> Result<(), Failure> {
    let value = read_value(&args.value)?;
    let client = args.connect.client().await?;
    let written = client.put(args.key.as_bytes(), &value).await?;
    client.close().await;
    print_written(args.connect.output, written)
}

pub(super) async fn append(args: PutArgs) -> Result<(), Failure> {
    let value = read_value(&args.value)?;
    let client = args.connect.client().await?;
    let written = client.append(args.key.as_bytes(), &value).await?;
    client.close().await;
    print_written(args.connect.output, written)
}

pub(super) async fn del(args: DelArgs) -> Result<(), Failure> {
    let client = args.connect.client().await?;
    let written = client.delete(args.key.as_bytes()).await?;
    client.close().await;
    print_written(args.connect.output, written)?;
    if written.existed { Ok(()) } else { Err(Failure::NotFound) }
}

pub(super) async fn get(args: GetArgs) -> Result<(), Failure> {
    let client = args.connect.client().await?;
    let consistency = if args.local { Consistency::Local } else { Consistency::Linearizable };
    let value = client.get_with(args.key.as_bytes(), consistency).await?;
    client.close().await;
    let Some(value) = value else { return Err(Failure::NotFound) };
    match args.connect.output {
        Output::Json => {
            let row = json!({
                "key": args.key, "value": to_json(&value.bytes), "revision": value.revision,
            });
            print(format!("{row}\n").as_bytes())
        }
        Output::Text if std::io::stdout().is_terminal() => {
            print(format!("{}\n", escape(&value.bytes)).as_bytes())
        }
        Output::Text => print(&value.bytes),
    }
}

pub(super) async fn scan(args: ScanArgs) -> Result<(), Failure> {
    let mut request = match &args.prefix {
        Some(prefix) => ScanRequest::prefix(prefix.as_bytes()),
        None => ScanRequest {
            from: args.from.unwrap_or_default().into_bytes(),
            to: args.to.map(String::into_bytes),
            ..ScanRequest::default()
        },
    };
    request.limit = args.limit.unwrap_or(u64::MAX);
    request.reverse = args.reverse;
    request.mode = match (args.count, args.keys_only) {
        (true, _) => ScanMode::Count,
        (false, true) => ScanMode::Keys,
        (false, false) => ScanMode::Rows,
    };
    let client = args.connect.client().await?;
    let mut rows = client.scan(&request).await?;
    while let Some(row) = rows.next().await? {
        let line = match (args.connect.output, request.mode) {
            (Output::Json, ScanMode::Keys) => {
                json!({ "key": to_json(&row.key), "revision": row.revision }).to_string()
            }
            (Output::Json, _) => json!({
                "key": to_json(&row.key), "value": to_json(&row.value), "revision": row.revision,
            })
            .to_string(),
            (Output::Text, ScanMode::Keys) => escape(&row.key),
            (Output::Text, _) => format!("{}\t{}", escape(&row.key), escape(&row.value)),
        };
        print(format!("{line}\n").as_bytes())?;
    }
    if let (ScanMode::Count, Some(end)) = (request.mode, rows.end()) {
        print(format!("{}\n", end.rows).as_bytes())?;
    }
    client.close().await;
    Ok(())
}
