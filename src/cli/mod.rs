//! The command line: one binary that is node, client and certificate authority.
//!
//! In: arguments and `QUICRAFT_*` variables. Out: data on standard output, messages on standard error, an exit code (the
//! table in `failure`). Always: flags override variables override files; a mistake is one line that says what is
//! allowed. Each command is a file here; the data commands are the same in the shell (`data`). Left out: any logic of
//! the store.

mod bench;
mod cert;
mod cluster;
mod data;
mod failure;
mod flags;
mod join;
mod lines;
mod log;
mod member;
mod node;
mod output;
mod scan;
mod shell;
mod snapshot;
mod status;
mod value;
mod words;

use std::io;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use self::data::{DataCommand, DelArgs, GetArgs, PutArgs};
use self::failure::Failure;
use self::flags::ClientFlags;
use self::lines::{ExportArgs, ImportArgs};
use self::member::{AddArgs, MemberCommand, NameArgs};
use self::output::Output;
use self::scan::ScanArgs;
use self::status::StatusArgs;

/// A durable, replicated, ordered key-value store in one binary
#[derive(Debug, Parser)]
#[command(name = "quicraft", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a cluster of real nodes on this machine
    Cluster(cluster::ClusterArgs),
    /// Run one node
    Node(Box<node::NodeArgs>),
    /// Make and show certificates
    #[command(subcommand)]
    Cert(cert::CertCommand),
    /// Set a key to a value; prints the revision
    Put(OnCluster<PutArgs>),
    /// Print the value of a key
    Get(OnCluster<GetArgs>),
    /// Add to the end of a key's value; prints the revision
    Append(OnCluster<PutArgs>),
    /// Remove a key; prints the revision, ends with 1 if it was not there
    Del(OnCluster<DelArgs>),
    /// List keys and values in order
    Scan(OnCluster<ScanArgs>),
    /// Show all nodes: roles, indexes, lag, sizes
    Status(OnCluster<StatusArgs>),
    /// Change who takes part: add, promote, remove, list
    #[command(subcommand)]
    Member(Members),
    /// Hand leadership to a node
    Transfer(OnCluster<NameArgs>),
    /// Measure the cluster: operations a second, latencies, CPU per operation
    Bench(OnCluster<bench::BenchArgs>),
    /// Look into a node's log while the node does not run: dump, verify, salvage
    #[command(subcommand)]
    Log(log::LogCommand),
    /// Back a running cluster up, and begin a new one with a backup: save, inspect, restore
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// Write keys and values as JSON lines
    Export(OnCluster<ExportArgs>),
    /// Read keys and values from JSON lines
    Import(OnCluster<ImportArgs>),
    /// Do the same interactively: history, completion, help, timing
    Shell(OnCluster<Nothing>),
    /// Print the completion script of a shell
    Completion {
        /// Which shell: bash, zsh or fish
        shell: clap_complete::Shell,
    },
}

/// A command that talks to a cluster.
#[derive(Debug, Args)]
struct OnCluster<T: Args> {
    #[command(flatten)]
    args: T,
    #[command(flatten, next_help_heading = "Cluster")]
    flags: ClientFlags,
}

/// [`MemberCommand`], each with the flags of a command that talks to a cluster.
#[derive(Debug, Subcommand)]
enum Members {
    /// Announce a node that will join: it may then be started with `quicraft node --join`
    Add(OnCluster<AddArgs>),
    /// Make a learner that is caught up a voter now
    Promote(OnCluster<NameArgs>),
    /// Remove a member for ever
    Remove(OnCluster<NameArgs>),
    /// Show all members
    List(OnCluster<Nothing>),
}

impl Members {
    fn split(self) -> (ClientFlags, Option<DataCommand>) {
        let (flags, command) = match self {
            Members::Add(on) => (on.flags, MemberCommand::Add(on.args)),
            Members::Promote(on) => (on.flags, MemberCommand::Promote(on.args)),
            Members::Remove(on) => (on.flags, MemberCommand::Remove(on.args)),
            Members::List(on) => (on.flags, MemberCommand::List),
        };
        (flags, Some(DataCommand::Member(command)))
    }
}

#[derive(Debug, Args)]
struct Nothing {}

/// Parses the command line, does what it says, and gives the exit code.
pub fn main() -> ExitCode {
    let (flags, command) = match Cli::parse().command {
        Command::Cluster(args) => return cluster::run(args),
        Command::Node(args) => return node::run(*args),
        Command::Cert(command) => return certificates(command),
        Command::Put(on) => (on.flags, Some(DataCommand::Put(on.args))),
        Command::Get(on) => (on.flags, Some(DataCommand::Get(on.args))),
        Command::Append(on) => (on.flags, Some(DataCommand::Append(on.args))),
        Command::Del(on) => (on.flags, Some(DataCommand::Del(on.args))),
        Command::Scan(on) => (on.flags, Some(DataCommand::Scan(on.args))),
        Command::Status(on) => (on.flags, Some(DataCommand::Status(on.args))),
        Command::Member(members) => members.split(),
        Command::Transfer(on) => (on.flags, Some(DataCommand::Transfer(on.args))),
        Command::Bench(on) => return ended(bench::run(&on.args, &on.flags)),
        Command::Log(command) => return ended(log::run(&command)),
        Command::Snapshot(command) => return ended(snapshot::run(command)),
        Command::Export(on) => (on.flags, Some(DataCommand::Export(on.args))),
        Command::Import(on) => (on.flags, Some(DataCommand::Import(on.args))),
        Command::Shell(on) => (on.flags, None),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "quicraft", &mut io::stdout());
            return ExitCode::SUCCESS;
        }
    };
    ended(on_cluster(&flags, command))
}

fn ended(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Makes or shows certificates.
fn certificates(command: cert::CertCommand) -> ExitCode {
    match cert::run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a data command, or the shell for `None`, on a runtime of its own.
fn on_cluster(flags: &ClientFlags, command: Option<DataCommand>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = flags.connect().await?;
        let result = match command {
            Some(command) => command.run(&client, &Output::stdout(flags.output), true).await,
            None => shell::run(&client, flags.output).await,
        };
        client.close().await;
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_stand_before_or_after_the_arguments() {
        for line in ["put -o json k v", "put k v -o json", "put k - --timeout 1s", "put k -5"] {
            let words = ["quicraft"].into_iter().chain(line.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
    }
}
