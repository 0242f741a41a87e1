//! `quicraft member` and `quicraft transfer`: who takes part, and who leads.
//!
//! In: names of members. Out: one line on what was done, or a table. A change is done when the command ends with 0;
//! the certificate must be an administrator's.

use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use comfy_table::{Table, presets};
use serde_json::json;

use super::failure::Failure;
use super::output::{Output, terminal_text};
use crate::client::{Client, Manage, MemberInfo, MemberKind};

/// A change of the members.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum MemberCommand {
    /// Announce a node that will join: it may then be started with `quicraft node --join`
    Add(AddArgs),
    /// Make a learner that is caught up a voter now
    Promote(NameArgs),
    /// Remove a member for ever
    Remove(NameArgs),
    /// Show all members
    List,
}

/// Who is announced.
#[derive(Clone, Debug, Args)]
pub(super) struct AddArgs {
    /// Its name, as in its certificate
    pub(super) name: String,
    /// Where other nodes will reach it
    #[arg(long, value_name = "HOST:PORT")]
    pub(super) peer: String,
    /// Where clients will reach it, until it says so itself [default: the host of PEER, 100 ports below]
    #[arg(long, value_name = "HOST:PORT")]
    pub(super) client: Option<String>,
    /// It stays a learner, without a vote, until `member promote`
    #[arg(long)]
    pub(super) learner: bool,
}

/// Which member.
#[derive(Clone, Debug, Args)]
pub(super) struct NameArgs {
    /// Its name
    pub(super) name: String,
}

/// Where clients find a node whose peers find it at `peer`, by the custom of node.toml and `quicraft cluster`.
fn usual_client_address(peer: &str) -> Result<String, Failure> {
    let parts = peer.rsplit_once(':').and_then(|(host, port)| {
        let port = port.parse::<u16>().ok()?.checked_sub(100).filter(|port| *port > 0)?;
        Some(format!("{host}:{port}"))
    });
    parts
        .ok_or_else(|| Failure::usage(format!("--client HOST:PORT is needed beside --peer {peer}")))
}

/// Does it.
///
/// # Errors
/// [`Failure`] with the exit code that fits.
pub(super) async fn run(
    command: &MemberCommand,
    client: &Client,
    output: &Output,
) -> Result<(), Failure> {
    let (done, name, manage) = match command {
        MemberCommand::List => return list(client, output),
        MemberCommand::Add(add) => {
            let client_address = match &add.client {
                Some(address) => address.clone(),
                None => usual_client_address(&add.peer)?,
            };
            let manage = Manage::Add {
                name: add.name.clone(),
                peer_address: add.peer.clone(),
                client_address,
                data: 0,
                stays: add.learner,
                rejoins: false,
            };
            ("is announced as a learner", &add.name, manage)
        }
        MemberCommand::Promote(NameArgs { name }) => {
            let id = find(client, name, |kind| kind == MemberKind::Learner)?;
            ("is a voter", name, Manage::Promote { id })
        }
        MemberCommand::Remove(NameArgs { name }) => {
            let id = find(client, name, |_| true)?;
            ("is removed", name, Manage::Remove { id })
        }
    };
    let id = client.manage(&manage).await?;
    output.line(|| format!("{name} {done} (id {id})"), || json!({"name": name, "id": id}))?;
    Ok(())
}

/// Hands leadership to a member and waits until it leads.
///
/// # Errors
/// [`Failure`] with the exit code that fits.
pub(super) async fn transfer(
    args: &NameArgs,
    client: &Client,
    output: &Output,
) -> Result<(), Failure> {
    let to = find(client, &args.name, |kind| kind == MemberKind::Voter)?;
    client.manage(&Manage::Transfer { to }).await?;
    let deadline = Instant::now() + TRANSFER_PATIENCE;
    while client.status(to).await?.leader != Some(to) {
        if Instant::now() >= deadline {
            let text = format!("{} did not take over: another node leads", args.name);
            return Err(Failure::Refused(text));
        }
        tokio::time::sleep(TRANSFER_POLL).await;
    }
    output.line(|| format!("{} leads", args.name), || json!({"name": args.name, "id": to}))?;
    Ok(())
}

/// The id of the member of this name; of two, one of which takes the other's place, the one that fits.
fn find(client: &Client, name: &str, fits: impl Fn(MemberKind) -> bool) -> Result<u64, Failure> {
    let members = client.members();
    let named: Vec<&MemberInfo> = members.iter().filter(|member| member.name == name).collect();
    match named.iter().find(|member| fits(member.kind)).or(named.first()) {
        Some(member) => Ok(member.id),
        None => {
            let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
            Err(Failure::usage(format!("{name:?} is no member; they are {}", names.join(", "))))
        }
    }
}

fn list(client: &Client, output: &Output) -> Result<(), Failure> {
    let members = client.members();
    let leader = client.leader();
    let text = || {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(["ID", "NODE", "PART", "PEERS", "CLIENTS"]);
        for member in &members {
            let name = terminal_text(member.name.as_bytes());
            let part = if leader == Some(member.id) { "leader" } else { kind(member.kind) };
            let addresses = [&member.peer_address, &member.client_address];
            let [peers, clients] = addresses.map(|address| terminal_text(address.as_bytes()));
            table.add_row([member.id.to_string(), name, part.to_owned(), peers, clients]);
        }
        table.trim_fmt()
    };
    let rows = || {
        let rows = members.iter().map(|member| {
            json!({
                "id": member.id,
                "name": member.name,
                "kind": kind(member.kind),
                "leads": leader == Some(member.id),
                "peer_address": member.peer_address,
                "client_address": member.client_address,
            })
        });
        json!({"members": rows.collect::<Vec<_>>()})
    };
    output.line(text, rows)?;
    Ok(())
}

/// The word for a member's part.
pub(super) fn kind(kind: MemberKind) -> &'static str {
    match kind {
        MemberKind::Voter => "voter",
        MemberKind::Learner => "learner",
        MemberKind::Leaving => "leaving",
    }
}

const TRANSFER_PATIENCE: Duration = Duration::from_secs(3);
const TRANSFER_POLL: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_looked_for_a_hundred_ports_below_peers() {
        assert_eq!(usual_client_address("n4.example:7104").unwrap(), "n4.example:7004");
        assert_eq!(usual_client_address("[::1]:7104").unwrap(), "[::1]:7004");
        for peer in ["n4", "n4:", "n4:100", "n4:70000", ""] {
            assert!(usual_client_address(peer).is_err(), "{peer}");
        }
    }
}
