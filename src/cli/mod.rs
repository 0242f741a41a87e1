//! The command line: standard output is data, standard error is for people, exit codes are for scripts.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | not found; for `node` and `cluster`: stopped by an error |
//! | 2 | usage |
//! | 3 | unreachable |
//! | 4 | refused |
//! | 5 | outcome unknown |

mod cert;
mod cluster;
mod data;
mod node;
mod status;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::client::{Client, Error, Options};

/// A durable, replicated, ordered key-value store.
#[derive(Parser)]
#[command(name = "quicraft", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a cluster of real nodes on this machine
    Cluster(cluster::ClusterArgs),
    /// Run one node
    Node(node::NodeArgs),
    /// Make and show certificates
    Cert(cert::CertArgs),
    /// Set a key and print the revision
    Put(data::PutArgs),
    /// Print the value of a key
    Get(data::GetArgs),
    /// Add to the end of a key's value and print the revision
    Append(data::PutArgs),
    /// Remove a key and print the revision
    Del(data::DelArgs),
    /// Print keys and values in key order
    Scan(data::ScanArgs),
    /// Show how the nodes are
    Status(status::StatusArgs),
    /// Print a script for shell completion
    Completion {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

/// How to reach the cluster.
#[derive(Args, Clone)]
struct Connect {
    /// Some nodes, as host:port [default: those in client.toml beside the certificates]
    #[arg(long, env = "QUICRAFT_ENDPOINTS", value_delimiter = ',')]
    endpoints: Vec<String>,
    /// Directory with ca.crt and the client's certificate and key
    #[arg(long, env = "QUICRAFT_CERTS", default_value = "certs")]
    certs: PathBuf,
    /// The client's name: its certificate is NAME.crt
    #[arg(long, env = "QUICRAFT_CLIENT", default_value = "client")]
    client: String,
    /// How long one operation may take
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// How to print.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// What the `cluster` command leaves for clients.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientFile {
    endpoints: Vec<String>,
}

impl Connect {
    /// The nodes to ask: named ones, then those in `client.toml`, then this machine.
    fn endpoints(&self) -> Result<Vec<String>, Error> {
        if !self.endpoints.is_empty() {
            return Ok(self.endpoints.clone());
        }
        let path = self.certs.join("client.toml");
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                toml::from_str::<ClientFile>(&text).map(|file| file.endpoints).map_err(|error| {
                    Error::Address(format!("{}: {}", path.display(), error.message()))
                })
            }
            Err(_) => Ok(Options::default().endpoints),
        }
    }

    async fn client(&self) -> Result<Client, Error> {
        let options = Options {
            endpoints: self.endpoints()?,
            certs: self.certs.clone(),
            name: self.client.clone(),
            timeout: self.timeout,
        };
        Client::connect(options).await
    }
}

/// Why a command ends without having done its work.
enum Failure {
    /// The key is not there.
    NotFound,
    /// The cluster, or the way to it.
    Client(Error),
    /// The command itself.
    Usage(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Client(error)
    }
}

impl Failure {
    /// Tells people, and gives the exit code.
    fn report(self) -> ExitCode {
        let (message, code) = match self {
            Failure::NotFound => return ExitCode::from(1),
            Failure::Usage(message) => (message, 2),
            Failure::Client(error) => {
                let code = match &error {
                    Error::KeyLength(_) | Error::Address(_) => 2,
                    Error::Unreachable(_) | Error::Timeout(_) => 3,
                    Error::Credentials(_)
                    | Error::Refused(_)
                    | Error::TooLarge { .. }
                    | Error::NoSpace
                    | Error::Denied { .. }
                    | Error::Protocol(_) => 4,
                    Error::Unknown(_) => 5,
                };
                (error.to_string(), code)
            }
        };
        eprintln!("quicraft: {message}");
        ExitCode::from(code)
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Cluster(args) => return cluster::run(args),
        Command::Node(args) => return node::run(args),
        Command::Cert(args) => return cert::run(args),
        Command::Completion { shell } => {
            let mut command = <Cli as clap::CommandFactory>::command();
            clap_complete::generate(shell, &mut command, "quicraft", &mut std::io::stdout());
            return ExitCode::SUCCESS;
        }
        Command::Put(args) => block_on(data::put(args)),
        Command::Append(args) => block_on(data::append(args)),
        Command::Get(args) => block_on(data::get(args)),
        Command::Del(args) => block_on(data::del(args)),
        Command::Scan(args) => block_on(data::scan(args)),
        Command::Status(args) => block_on(status::status(args)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn block_on(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Usage(format!("no runtime: {error}")))?;
    runtime.block_on(work)
}
