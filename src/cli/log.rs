//! `quicraft log`: a node's log on disk, while the node does not run.
//!
//! In: a data directory. Out: records, a verdict, an exit code: 0 for a log that is whole, 1 for one that is damaged.
//! `dump` and `verify` change nothing; `salvage` is the one command that gives up what is lost, and only if it is told
//! so twice.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::{Value as Json, json};

use super::failure::Failure;
use super::output::{Format, Output, json_bytes, terminal_text};
use crate::disk::{Disk, OsDisk};
use crate::node;
use crate::proto::command::{Command, Op, decode_entry};
use crate::raft::{EntryKind, Index, Term};
use crate::wal::{self, Item, Opening, Report, What};

/// What to do with a log.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum LogCommand {
    /// Print all records, good or bad
    Dump {
        #[command(flatten)]
        which: Which,
        /// Print the values of entries, too
        #[arg(long)]
        bodies: bool,
    },
    /// Check every byte; ends with 1 if the log is damaged
    Verify(Which),
    /// Give up what is lost and no other node has: everything from the first lost entry on
    Salvage {
        #[command(flatten)]
        which: Which,
        /// Do it, and do not only say what would be done
        #[arg(long)]
        yes: bool,
    },
}

/// Which log.
#[derive(Clone, Debug, Args)]
pub(super) struct Which {
    /// The node's data directory, like data/n1
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// How results are written
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Format::Text)]
    output: Format,
}

/// Does it.
///
/// # Errors
/// [`Failure`] with the exit code that fits.
pub(super) fn run(command: &LogCommand) -> Result<(), Failure> {
    let (LogCommand::Dump { which, .. }
    | LogCommand::Verify(which)
    | LogCommand::Salvage { which, .. }) = command;
    let output = Output::stdout(which.output);
    let log = which.dir.join("wal");
    if !node::holds_data(&OsDisk, &which.dir) {
        return Err(Failure::usage(format!("{} holds no data of a node", which.dir.display())));
    }
    match command {
        LogCommand::Dump { bodies, .. } => dump(&log, *bodies, &output),
        LogCommand::Verify(_) => verify(&log, &output),
        LogCommand::Salvage { yes, .. } => salvage(&which.dir, &log, *yes, &output),
    }
}

fn disk() -> Arc<dyn Disk> {
    Arc::new(OsDisk)
}

fn refused(error: impl std::error::Error) -> Failure {
    Failure::Refused(error.to_string())
}

fn dump(log: &Path, bodies: bool, output: &Output) -> Result<(), Failure> {
    let mut written = Ok(());
    wal::dump(&OsDisk, log, &mut |item| {
        if written.is_ok() {
            written = output.line(|| text_of(&item, bodies), || json_of(&item, bodies));
        }
    })
    .map_err(refused)?;
    Ok(written?)
}

/// One line for people.
fn text_of(item: &Item, bodies: bool) -> String {
    match item {
        Item::Segment { path, incarnation, first_ordinal, .. } => format!(
            "{}: made by opening {incarnation}, begins with record {first_ordinal}",
            path.display()
        ),
        Item::Record { offset, ordinal, durable, what } => {
            let what = match what {
                What::Entry { index, term, kind: EntryKind::Command, body } => {
                    let body = command_text(body, bodies);
                    format!("entry {index} of term {term}: {body}")
                }
                What::Entry { index, term, kind, body } => {
                    format!("entry {index} of term {term}: {kind:?}, {} bytes", body.len())
                }
                What::Hard(hard) => format!(
                    "term {}, vote for {}, commit {}",
                    hard.term,
                    hard.voted_for.map_or_else(|| "nobody".to_owned(), |node| node.to_string()),
                    hard.commit_index
                ),
                What::Other(name, index, term) => format!("{name} {index} of term {term}"),
            };
            format!("  {offset:>9} record {ordinal} (durable {durable}): {what}")
        }
        Item::Damage(damage) => format!("  {damage}"),
    }
}

fn command_text(body: &[u8], bodies: bool) -> String {
    let Ok((owner, command)) = decode_entry(body) else {
        return format!("{} bytes that are no command", body.len());
    };
    match command {
        Command::Clock { now_ms } => format!("clock {now_ms} ms"),
        Command::Compact { below } => format!("compact below {below}"),
        Command::OpenSession => format!("open a session of {:016x}", owner.0),
        Command::CloseSession(session) => {
            format!("close session {} of {:016x}", session.0, owner.0)
        }
        Command::Write { session, seq, op, .. } => {
            let (name, value) = op_parts(&op);
            let key = terminal_text(op.key());
            let value = match bodies {
                true => terminal_text(value),
                false => format!("{} bytes", value.len()),
            };
            let owner = owner.0;
            format!("{name} {key} {value} (session {} of {owner:016x} number {seq})", session.0)
        }
    }
}

fn op_parts<'a>(op: &Op<'a>) -> (&'static str, &'a [u8]) {
    match op {
        Op::Put { value, .. } => ("put", value),
        Op::Append { value, .. } => ("append", value),
        Op::Delete { .. } => ("del", &[]),
    }
}

fn json_of(item: &Item, bodies: bool) -> Json {
    match item {
        Item::Segment { path, seq, incarnation, first_ordinal } => json!({
            "segment": path.display().to_string(), "seq": seq, "incarnation": incarnation, "first_ordinal": first_ordinal,
        }),
        Item::Damage(damage) => damage_json(damage),
        Item::Record { offset, ordinal, durable, what } => {
            let mut json = json!({"offset": offset, "ordinal": ordinal, "durable": durable});
            match what {
                What::Entry { index, term, kind, body } => {
                    json["entry"] = json!({"index": index.0, "term": term.0, "kind": format!("{kind:?}").to_lowercase(), "bytes": body.len()});
                    let command = (*kind == EntryKind::Command).then(|| decode_entry(body));
                    if let Some(Ok((_, Command::Write { op, .. }))) = command {
                        let (name, value) = op_parts(&op);
                        json["entry"]["op"] = name.into();
                        json["entry"]["key"] = json_bytes(op.key());
                        if bodies {
                            json["entry"]["value"] = json_bytes(value);
                        }
                    }
                }
                What::Hard(hard) => {
                    let vote = hard.voted_for.map(|node| node.0);
                    json["hard_state"] = json!({"term": hard.term.0, "voted_for": vote, "commit_index": hard.commit_index.0});
                }
                What::Other(name, Index(index), Term(term)) => {
                    json[name.replace(' ', "_")] = json!({"index": index, "term": term});
                }
            }
            json
        }
    }
}

fn damage_json(damage: &wal::Damage) -> Json {
    json!({"damage": {"path": damage.path.display().to_string(), "offset": damage.offset, "reason": damage.reason}})
}

fn verify(log: &Path, output: &Output) -> Result<(), Failure> {
    let report = wal::verify(&disk(), log).map_err(refused)?;
    output.line(|| report_text(&report), || report_json(&report))?;
    if report.damages.is_empty() { Ok(()) } else { Err(Failure::NotFound) }
}

fn report_text(report: &Report) -> String {
    let hard = &report.hard_state;
    let mut text = format!(
        "node {}: entries {} to {}, term {}, commit {} or more",
        report.identity.node,
        report.base.0.next(),
        report.last,
        hard.term,
        hard.commit_index
    );
    for line in report.torn.iter().cloned().chain(report.damages.iter().map(ToString::to_string)) {
        text += &format!("\n{line}");
    }
    for gap in &report.gaps {
        text += &format!("\nentries {} to {} are lost", gap.first, gap.last);
    }
    if report.has_unnamed_loss {
        text += "\nmore was lost, and nobody can say what";
    }
    text + if report.damages.is_empty() { "\nwhole" } else { "\nDAMAGED" }
}

fn report_json(report: &Report) -> Json {
    let damages: Vec<Json> =
        report.damages.iter().map(|damage| damage_json(damage)["damage"].clone()).collect();
    let gaps: Vec<Json> =
        report.gaps.iter().map(|gap| json!({"first": gap.first.0, "last": gap.last.0})).collect();
    json!({
        "node": report.identity.node.0,
        "first": report.base.0.next().0,
        "last": report.last.0,
        "term": report.hard_state.term.0,
        "commit_index": report.hard_state.commit_index.0,
        "torn": report.torn,
        "damages": damages,
        "lost": gaps,
        "unnamed_loss": report.has_unnamed_loss,
        "whole": report.damages.is_empty(),
    })
}

/// Gives up what is lost, if it is told to.
fn salvage(data: &Path, log: &Path, yes: bool, output: &Output) -> Result<(), Failure> {
    let report = wal::verify(&disk(), log).map_err(refused)?;
    if report.damages.is_empty() {
        output.line(
            || "the log is whole: there is nothing to give up".to_owned(),
            || json!({"whole": true}),
        )?;
        return Ok(());
    }
    let snapshots = node::snapshots_dir(&disk(), data);
    let covered = snapshots.newest_sound().map_err(refused)?;
    if !yes {
        return Err(Failure::Refused(format!(
            "{}\nIf another node has this data, start this one: it mends its log from there. If not, --yes gives up \
             everything from the first lost entry on (a snapshot covers up to {}), also writes that were acknowledged; \
             the damaged files are kept as *.damaged",
            report_text(&report),
            covered.map_or(0, |at| at.0.0)
        )));
    }
    let options = wal::Options::new(wal::LogIo::Write);
    let opening = wal::open(disk(), log, report.identity, options).map_err(refused)?;
    let Opening::Damaged(mut damaged) = opening else {
        return Err(Failure::Refused("the log is whole now".to_owned()));
    };
    damaged.forget(covered.unwrap_or_default());
    let Some(last) = damaged.give_up().map_err(refused)? else {
        return Err(Failure::Refused(
            "not even the beginning of the log is known, and no snapshot covers it: nothing can be saved from here"
                .to_owned(),
        ));
    };
    damaged.mend().map_err(refused)?;
    output.line(
        || format!("everything up to entry {last} is saved; what came after it is given up"),
        || json!({"last": last.0}),
    )?;
    Ok(())
}
