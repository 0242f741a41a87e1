//! The commands that read and write keys, the same on the command line and in the shell.
//!
//! In: parsed arguments and a client. Out: results on standard output. `put`, `append` and `del` print the
//! revision; `get` prints the value and nothing else. Left out: how results look (`output`), how scans are
//! written (`scan`).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use clap::{Args, Subcommand};
use serde_json::json;

use super::failure::Failure;
use super::lines::{self, ExportArgs, ImportArgs};
use super::member::{self, MemberCommand, NameArgs};
use super::output::Output;
use super::scan::{self, ScanArgs};
use super::status::{self, StatusArgs};
use super::value::Source;
use crate::client::Client;

/// One command on data.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum DataCommand {
    /// Set a key to a value; prints the revision
    Put(PutArgs),
    /// Print the value of a key
    Get(GetArgs),
    /// Add to the end of a key's value; prints the revision
    Append(PutArgs),
    /// Remove a key; prints the revision, ends with 1 if it was not there
    Del(DelArgs),
    /// List keys and values in order
    Scan(ScanArgs),
    /// Show all nodes: roles, indexes, lag, sizes
    Status(StatusArgs),
    /// Change who takes part: add, promote, remove, list
    #[command(subcommand)]
    Member(MemberCommand),
    /// Hand leadership to a node
    Transfer(NameArgs),
    /// Write keys and values as JSON lines
    Export(ExportArgs),
    /// Read keys and values from JSON lines
    Import(ImportArgs),
}

/// A key and what to write to it.
#[derive(Clone, Debug, Args)]
pub(super) struct PutArgs {
    /// 1 to 4096 bytes
    pub(super) key: OsString,
    /// The value; @FILE for the content of a file, - for standard input, @@… for text that begins with @
    #[arg(allow_negative_numbers = true, value_name = "VALUE|@FILE|-")]
    pub(super) value: OsString,
}

/// Which key to read, and where.
#[derive(Clone, Debug, Args)]
pub(super) struct GetArgs {
    /// The key
    pub(super) key: OsString,
    /// As one node has it, perhaps old, without asking the others
    #[arg(long)]
    pub(super) local: bool,
    /// As it was at this revision
    #[arg(long, value_name = "REVISION", conflicts_with = "local")]
    pub(super) rev: Option<u64>,
}

/// Which key to remove.
#[derive(Clone, Debug, Args)]
pub(super) struct DelArgs {
    /// The key
    pub(super) key: OsString,
}

impl DataCommand {
    /// Does it; `stdin` says whether a value may come from standard input.
    ///
    /// # Errors
    /// [`Failure`] with the exit code that fits.
    pub(super) async fn run(
        self,
        client: &Client,
        output: &Output,
        stdin: bool,
    ) -> Result<(), Failure> {
        match self {
            DataCommand::Put(put) => {
                let value = Source::parse(&put.value).read(stdin)?;
                let revision = client.put(put.key.into_vec(), value).await?;
                output.line(|| revision.to_string(), || json!({"revision": revision}))?;
            }
            DataCommand::Append(append) => {
                let value = Source::parse(&append.value).read(stdin)?;
                let revision = client.append(append.key.into_vec(), value).await?;
                output.line(|| revision.to_string(), || json!({"revision": revision}))?;
            }
            DataCommand::Get(get) => {
                let key = get.key.into_vec();
                let value = match (get.local, get.rev) {
                    (true, _) => client.get_local(key, None).await?,
                    (false, Some(revision)) => client.get_at(key, revision).await?,
                    (false, None) => client.get(key).await?,
                };
                let value = value.ok_or(Failure::NotFound)?;
                output.value(&value.bytes, value.revision)?;
            }
            DataCommand::Del(del) => {
                let deleted = client.delete(del.key.into_vec()).await?;
                let json = || json!({"revision": deleted.revision, "existed": deleted.existed});
                output.line(|| deleted.revision.to_string(), json)?;
                if !deleted.existed {
                    return Err(Failure::NotFound);
                }
            }
            DataCommand::Scan(scan) => scan::run(scan, client, output).await?,
            DataCommand::Member(command) => member::run(&command, client, output).await?,
            DataCommand::Transfer(args) => member::transfer(&args, client, output).await?,
            DataCommand::Export(args) => lines::export(args, client, output).await?,
            DataCommand::Import(args) => lines::import(args, client, output, stdin).await?,
            DataCommand::Status(status) => status::run(&status, client, output).await?,
        }
        Ok(())
    }
}
