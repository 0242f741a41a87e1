//! `quicraft status`: every node by its own word, in one table.

use std::time::Duration;

use clap::Args;
use comfy_table::{Table, presets};
use serde_json::json;

use super::text::size;
use super::{Connect, Failure, Output};
use crate::client::{Client, Error};
use crate::proto::client::{MemberInfo, RoleName, Status};

#[derive(Args)]
pub(super) struct StatusArgs {
    /// Show it again every second
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    connect: Connect,
}

pub(super) async fn status(args: StatusArgs) -> Result<(), Failure> {
    let client = args.connect.client().await?;
    loop {
        let nodes = ask_all(&client).await;
        match args.connect.output {
            Output::Text => {
                if args.watch {
                    // Clears the screen and goes to its beginning.
                    print!("\x1b[2J\x1b[H");
                }
                println!("{}", table(&nodes));
            }
            Output::Json => nodes.iter().for_each(|node| println!("{}", to_json(node))),
        }
        if !args.watch {
            client.close().await;
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

type Answer = (MemberInfo, Result<Status, Error>);

async fn ask_all(client: &Client) -> Vec<Answer> {
    let mut asks = tokio::task::JoinSet::new();
    for member in client.members() {
        let client = client.clone();
        asks.spawn(async move {
            let status = client.status(&member).await;
            (member, status)
        });
    }
    let mut answers = asks.join_all().await;
    answers.sort_by_key(|(member, _)| member.id);
    answers
}

fn role(role: RoleName) -> &'static str {
    match role {
        RoleName::Follower => "follower",
        RoleName::PreCandidate => "pre-candidate",
        RoleName::Candidate => "candidate",
        RoleName::Leader => "leader",
    }
}

fn table(nodes: &[Answer]) -> Table {
    let newest = nodes.iter().filter_map(|(_, status)| status.as_ref().ok());
    let commit_index = newest.map(|status| status.commit_index).max().unwrap_or(0);
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "NODE", "ROLE", "TERM", "COMMIT", "APPLIED", "LAG", "SNAPSHOT", "LOG", "KEYS", "STORE",
    ]);
    for (member, status) in nodes {
        match status {
            Ok(status) => table.add_row([
                member.name.clone(),
                role(status.role).to_owned(),
                status.term.to_string(),
                status.commit_index.to_string(),
                status.applied_index.to_string(),
                commit_index.saturating_sub(status.applied_index).to_string(),
                status.snapshot_index.to_string(),
                size(status.log_bytes),
                status.keys.to_string(),
                size(status.store_bytes),
            ]),
            Err(_) => table.add_row([member.name.as_str(), "unreachable"]),
        };
    }
    table
}

fn to_json((member, status): &Answer) -> serde_json::Value {
    match status {
        Ok(status) => json!({
            "node": member.name, "id": member.id, "address": member.client_address,
            "reachable": true, "role": role(status.role), "term": status.term,
            "leader": status.leader, "commit_index": status.commit_index,
            "applied_index": status.applied_index, "last_log_index": status.last_log_index,
            "durable_index": status.durable_index, "snapshot_index": status.snapshot_index,
            "log_bytes": status.log_bytes, "keys": status.keys,
            "store_bytes": status.store_bytes,
            "state_hash": format!("{:016x}", status.state_hash),
            "cluster": status.cluster, "version": status.version,
        }),
        Err(error) => json!({
            "node": member.name, "id": member.id, "address": member.client_address,
            "reachable": false, "error": error.to_string(),
        }),
    }
}
