//! `quicraft status`: one line per node, those that do not answer included.
//!
//! In: what each node says of itself. Out: a table, or one JSON value. `lag` is how many entries a node's
//! store is behind the highest commit index that any node named. With `--watch` it is drawn again each second
//! until Ctrl-C. The exit code is 0 if any node answered.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value as Json, json};

use super::failure::Failure;
use super::member;
use super::output::{Format, Output, human_bytes, terminal_text};
use crate::client::{Client, Door, Doors, MemberKind, NodeStatus, RoleName, Status};

/// How to show the nodes.
#[derive(Clone, Debug, Args)]
pub(super) struct StatusArgs {
    /// Again each second, until Ctrl-C
    #[arg(long)]
    pub(super) watch: bool,
}

/// Asks all nodes and shows what they say.
///
/// # Errors
/// [`Failure`] if the output fails.
pub(super) async fn run(
    args: &StatusArgs,
    client: &Client,
    output: &Output,
) -> Result<(), Failure> {
    loop {
        let nodes = client.status_all().await;
        if args.watch && output.terminal && output.format == Format::Text {
            // Home and clear: the table stays in its place.
            io::stdout().write_all(b"\x1b[H\x1b[2J")?;
        }
        output.line(|| table(&nodes), || json_nodes(&nodes))?;
        if !args.watch {
            return Ok(());
        }
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(()),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

const HEADER: [&str; 9] =
    ["NODE", "ROLE", "TERM", "COMMIT", "APPLIED", "LAG", "SNAPSHOT", "LOG", "KEYS"];

fn table(nodes: &[NodeStatus]) -> String {
    let commit = commit_index(nodes);
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(HEADER);
    for node in nodes {
        let name = terminal_text(node.member.name.as_bytes());
        match &node.status {
            Ok(status) => table.add_row(vec![
                name,
                part(node.member.kind, status.role).to_owned(),
                status.term.to_string(),
                status.commit_index.to_string(),
                status.applied_index.to_string(),
                commit.saturating_sub(status.applied_index).to_string(),
                status.snapshot_index.to_string(),
                human_bytes(status.log_bytes),
                status.keys.to_string(),
            ]),
            Err(_) => table.add_row(vec![name, "unreachable".to_owned()]),
        };
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = table.trim_fmt();
    for node in nodes {
        let line = match &node.status {
            Err(error) => Some(error.to_string()),
            Ok(status) => turned_away(&status.doors).map(|words| format!("turned away {words}")),
        };
        if let Some(line) = line {
            let line = format!("\n{}: {line}", node.member.name);
            text.push_str(&terminal_text(line.as_bytes()).replacen("\\n", "\n", 1));
        }
    }
    text
}

fn json_nodes(nodes: &[NodeStatus]) -> Json {
    let commit = commit_index(nodes);
    let nodes = nodes.iter().map(|node| {
        let mut json = json!({
            "id": node.member.id,
            "name": node.member.name,
            "client_address": node.member.client_address,
            "kind": member::kind(node.member.kind),
            "reachable": node.status.is_ok(),
        });
        match &node.status {
            Ok(status) => add_status(&mut json, status, commit),
            Err(error) => json["error"] = error.to_string().into(),
        }
        json
    });
    json!({"nodes": nodes.collect::<Vec<_>>()})
}

fn add_status(json: &mut Json, status: &Status, commit: u64) {
    json["cluster"] = status.cluster.as_str().into();
    json["version"] = status.version.as_str().into();
    json["role"] = role(status.role).into();
    json["term"] = status.term.into();
    json["leader"] = status.leader.into();
    json["commit_index"] = status.commit_index.into();
    json["applied_index"] = status.applied_index.into();
    json["lag"] = commit.saturating_sub(status.applied_index).into();
    json["last_log_index"] = status.last_log_index.into();
    json["durable_index"] = status.durable_index.into();
    json["snapshot_index"] = status.snapshot_index.into();
    json["log_bytes"] = status.log_bytes.into();
    json["keys"] = status.keys.into();
    json["store_bytes"] = status.store_bytes.into();
    // As text: it does not fit into the numbers of most JSON readers.
    json["state_hash"] = format!("{:016x}", status.state_hash).into();
    let peers = status
        .peers
        .iter()
        .map(|peer| json!({"id": peer.id, "match_index": peer.match_index, "alive": peer.alive}));
    json["peers"] = peers.collect();
    json["doors"] = doors(&status.doors);
}

fn doors(doors: &Doors) -> Json {
    let door = |door: &Door| {
        json!({
            "connections": door.connections,
            "half_open": door.half_open,
            "retried": door.retried,
            "ignored": door.ignored,
            "refused": door.refused,
            "failed": door.failed,
            "timed_out": door.timed_out,
        })
    };
    json!({
        "client": door(&doors.client),
        "peer": door(&doors.peer),
        "reply_bytes": doors.reply_bytes,
        "half_frame_bytes": doors.half_frame_bytes,
        "held_reads": doors.held_reads,
        "not_taken": doors.not_taken,
        "half_frames": doors.half_frames,
        "busy": doors.busy,
    })
}

/// What a node turned away since its start, for people; `None` if it turned nothing away.
fn turned_away(doors: &Doors) -> Option<String> {
    let sum = |of: fn(&Door) -> u64| of(&doors.client) + of(&doors.peer);
    let counts = [
        (sum(|door| door.refused), "connections too many"),
        (sum(|door| door.ignored), "handshakes without a place"),
        (sum(|door| door.timed_out), "handshakes not over in time"),
        (doors.busy, "requests for want of room"),
        (doors.not_taken, "streams whose answers nobody took"),
        (doors.half_frames, "requests not whole in time"),
    ];
    let counts = counts.into_iter().filter(|&(count, _)| count > 0);
    let words: Vec<String> = counts.map(|(count, what)| format!("{count} {what}")).collect();
    (!words.is_empty()).then(|| words.join(", "))
}

fn commit_index(nodes: &[NodeStatus]) -> u64 {
    let known = nodes.iter().filter_map(|node| node.status.as_ref().ok());
    known.map(|status| status.commit_index).max().unwrap_or(0)
}

/// What a node is: a learner follows too, and that it has no vote matters more.
fn part(kind: MemberKind, name: RoleName) -> &'static str {
    match (kind, name) {
        (_, RoleName::Repairing) => role(name),
        (MemberKind::Learner, _) => member::kind(kind),
        (MemberKind::Voter | MemberKind::Leaving, name) => role(name),
    }
}

fn role(role: RoleName) -> &'static str {
    match role {
        RoleName::Follower => "follower",
        RoleName::PreCandidate => "pre-candidate",
        RoleName::Candidate => "candidate",
        RoleName::Leader => "leader",
        RoleName::Repairing => "repairing",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Error, MemberInfo, MemberKind};

    fn member(id: u64) -> MemberInfo {
        let client_address = format!("127.0.0.1:700{id}");
        let peer_address = format!("127.0.0.1:710{id}");
        let (name, kind) = (format!("n{id}"), MemberKind::Voter);
        MemberInfo { id, name, client_address, peer_address, kind }
    }

    fn nodes() -> Vec<NodeStatus> {
        let status = Status {
            node_id: 1,
            name: "n1".into(),
            cluster: "c".into(),
            version: "0.1.0".into(),
            role: RoleName::Leader,
            term: 3,
            leader: Some(1),
            commit_index: 120,
            applied_index: 118,
            last_log_index: 121,
            durable_index: 120,
            snapshot_index: 100,
            log_bytes: 1536,
            keys: 7,
            store_bytes: 10,
            oldest_revision: 0,
            state_hash: u64::MAX,
            peers: vec![],
            doors: Box::default(),
        };
        let lost = Error::Unreachable { tried: vec![("127.0.0.1:7002".into(), "gone".into())] };
        vec![
            NodeStatus { member: member(1), status: Ok(status) },
            NodeStatus { member: member(2), status: Err(lost) },
        ]
    }

    #[test]
    fn the_table_shows_lag_and_the_unreachable() {
        let text = table(&nodes());
        let lines: Vec<_> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        let [header, first, second, why]: [Vec<&str>; 4] = lines.try_into().unwrap();
        assert_eq!(header, HEADER);
        assert_eq!(first, ["n1", "leader", "3", "120", "118", "2", "100", "1.5", "KiB", "7"]);
        assert_eq!(second, ["n2", "unreachable"]);
        assert_eq!(why, ["n2:", "127.0.0.1:7002:", "gone"]);
    }

    #[test]
    fn what_was_turned_away_has_a_line_and_only_then() {
        assert_eq!(turned_away(&Doors::default()), None);
        let mut nodes = nodes();
        if let Ok(status) = &mut nodes[0].status {
            status.doors.client.ignored = 3;
            status.doors.not_taken = 2;
        }
        let text = table(&nodes);
        let line =
            "n1: turned away 3 handshakes without a place, 2 streams whose answers nobody took";
        assert!(text.contains(line), "{text}");
        assert_eq!(json_nodes(&nodes)["nodes"][0]["doors"]["client"]["ignored"], 3);
    }

    #[test]
    fn json_names_each_node_and_keeps_all_bits_of_the_hash() {
        let json = json_nodes(&nodes());
        assert_eq!(json["nodes"][0]["state_hash"], "ffffffffffffffff");
        assert_eq!(json["nodes"][0]["lag"], 2);
        assert_eq!(json["nodes"][1]["reachable"], false);
    }
}
