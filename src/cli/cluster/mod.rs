//! `quicraft cluster`: a whole cluster on this machine, as real node processes under one supervisor.
//!
//! For: a cluster with one command, and failovers to watch from a second terminal.
//!
//! In and out: a number of nodes goes in at the first start; certificates and configurations come out where they are
//! missing, then lines of events on stdout until Ctrl-C. `kill` and `start` reach the supervisor through a socket in
//! the data directory.
//!
//! What always holds: the nodes end when the supervisor does, however it ends (their standard input closes). Started
//! again it is the same cluster with the same data. A node that ends by itself stays down until `start`.
//!
//! Left out: nodes on other machines; a cluster there is n times `quicraft node`.
//!
//! Read on: `files` (what is made), `supervisor` (the loop), `child` (one process), `control` (the socket).

mod child;
mod control;
mod files;
mod show;
mod supervisor;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

/// Runs a cluster on this machine: n real nodes, secured and durable.
///
/// Makes certificates and configurations where they are missing. Started again it is the same cluster with the same
/// data. Ctrl-C stops all nodes gracefully.
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = false)]
pub(super) struct ClusterArgs {
    /// Number of nodes; 3 for a new cluster, else as many as there are
    #[arg(short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=7))]
    n: Option<u16>,
    /// Directory of the cluster's data
    #[arg(long, value_name = "DIR", default_value = "data", global = true)]
    data: PathBuf,
    /// Directory of the certificates
    #[arg(long, value_name = "DIR", default_value = "certs")]
    certs: PathBuf,
    /// Client port of the first node, 7001 for a new cluster; the next node has the next one, peer ports lie 100 above
    #[arg(long, value_name = "PORT", env = "QUICRAFT_BASE_PORT",
          value_parser = clap::value_parser!(u16).range(1..=i64::from(BASE_PORT_MAX)))]
    base_port: Option<u16>,
    #[command(subcommand)]
    command: Option<Command>,
}

/// The last peer port must still be a port.
const BASE_PORT_MAX: u16 = u16::MAX - files::PEER_PORT_OFFSET - NODES_MAX + 1;
/// More nodes on one machine teach nothing more.
const NODES_MAX: u16 = 7;

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Kills one node of the running cluster with signal 9
    Kill {
        /// Its name, such as n2
        node: String,
    },
    /// Starts a node that was killed or ended
    Start {
        /// Its name, such as n2
        node: String,
        /// It has lost its data: a new member takes its place
        #[arg(long)]
        rejoin: bool,
    },
}

/// Runs the supervisor, or tells a running one what to do.
#[must_use]
pub(super) fn run(args: ClusterArgs) -> ExitCode {
    let done = match &args.command {
        Some(Command::Kill { node }) => control::ask(&args.data, "kill", node),
        Some(Command::Start { node, rejoin }) => {
            control::ask(&args.data, if *rejoin { "rejoin" } else { "start" }, node)
        }
        None => supervise(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn supervise(args: &ClusterArgs) -> Result<(), Error> {
    files::make_directory(&args.data)?;
    // First of all: from here on no other supervisor touches the directory.
    let control = control::Control::open(&args.data)?;
    let plan = files::prepare(args)?;
    supervisor::run(plan, control)
}

/// Why there is no cluster, or not as asked; each message is one line.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error(transparent)]
    Config(#[from] crate::config::Error),
    #[error(transparent)]
    Pki(#[from] crate::pki::Error),
    #[error(transparent)]
    Server(Box<crate::server::Error>),
    #[error("a cluster is already running in {}: stop it first, or give another --data", data.display())]
    Running { data: PathBuf },
    #[error("no cluster is running in {}: start one with `quicraft cluster`", data.display())]
    NotRunning { data: PathBuf },
    #[error("{}: {} bytes are too many for a socket's path, at most {max}; give a shorter or relative --data",
            path.display(), path.as_os_str().len())]
    SocketPath { path: PathBuf, max: usize },
    #[error("port {port} is in use: {hint}")]
    Port { port: u16, hint: String },
    #[error("{} holds a cluster {is}, not {asked}: leave that out, or give another --data", data.display())]
    Other { data: PathBuf, is: String, asked: String },
    #[error(
        "{} is missing, but {} holds a cluster that was made with it: bring it back, or give another --data",
        ca.display(), data.display()
    )]
    NoAuthority { ca: PathBuf, data: PathBuf },
    #[error("no node is running any more; the reasons stand above and in the nodes' logs")]
    AllEnded,
    #[error("{0}")]
    Refused(String),
}

impl Error {
    fn io(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    /// As for every command: 3 not reachable, 4 refused.
    fn exit_code(&self) -> u8 {
        match self {
            Self::NotRunning { .. } => 3,
            Self::Refused(_) => 4,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests;
