//! `quicraft node`: one node, in the foreground.
//!
//! For: putting configuration, log lines, signals and the server together.
//!
//! In and out: arguments, `QUICRAFT_*` variables and `node.toml` go in; log lines go to stderr, one event each, and the
//! exit code says how it ended: 0 after a graceful stop, 74 if the disk failed, 75 if a mapped file was cut off under the
//! node, 76 if its state is not that of the other nodes, 1 after any other error, which is one line on stderr.
//!
//! What always holds: SIGTERM and SIGINT stop the node gracefully; a second one ends the process at once. SIGHUP makes it
//! read its certificates again, and never ends it, not while it starts or joins either. Nothing is left running when
//! `run` returns.
//!
//! Left out: what a node does (`server`), what may be configured (`config`).
//!
//! Read on: `config::Config::load` for the order of precedence.

use std::io::{IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::join;
use crate::config::Config;
use crate::disk::explain_bus_errors;
use crate::server::{self, Ended};
use crate::{node, wal};

/// Runs one node.
///
/// Every key of the configuration file is also a flag and a variable: --peer-listen, QUICRAFT_PEER_LISTEN. Flags
/// override variables override the file.
///
/// Ends with 0 after a graceful stop, 74 if the disk failed, 75 if a mapped file was cut off under it, 76 if its state is not that
/// of the other nodes, 2 for a wrong
/// command line, 1 after any other error. A node whose data is damaged does not end: it fetches what it lacks from
/// the others, or becomes a new member in its own place.
#[derive(Args, Clone, Debug)]
pub(super) struct NodeArgs {
    #[command(flatten)]
    keys: NodeKeys,
    /// Makes the data directory of a new cluster's node, once, and ends
    #[arg(long)]
    init: bool,
    /// Joins a running cluster by way of one of its nodes, unless it is a member already
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "init")]
    join: Option<String>,
    /// Joins again after its data was lost: a new member takes the place of the one of this name
    #[arg(long, conflicts_with = "init")]
    rejoin: bool,
    /// Stops gracefully when standard input ends, for a supervisor that may die
    #[arg(long, hide = true)]
    stop_on_stdin_eof: bool,
}

/// What says which node it is.
#[derive(Args, Clone, Debug)]
pub(super) struct NodeKeys {
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "QUICRAFT_CONFIG", default_value = "node.toml")]
    config: PathBuf,
    /// Takes the member list from a file with lines such as node0ip=10.0.0.1 and node0port=29016
    #[arg(long, value_name = "FILE")]
    members_from: Option<PathBuf>,
    #[command(flatten)]
    keys: KeyArgs,
}

impl NodeKeys {
    /// Reads the configuration.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub(super) fn load(self) -> Result<Config, crate::config::Error> {
        let variable = |name: &str| std::env::var(name).ok();
        let flags = self.keys.given();
        Config::load(&self.config, variable, &flags, self.members_from.as_deref())
    }
}

/// A flag for each scalar key; their values are read where those of the file are.
#[derive(Args, Clone, Debug)]
struct KeyArgs {
    /// This node's name, one of the members
    #[arg(long)]
    name: Option<String>,
    /// Directory of the log and the snapshots
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Directory of the certificates
    #[arg(long, value_name = "DIR")]
    certs: Option<String>,
    /// Where other nodes reach this one
    #[arg(long, value_name = "IP:PORT")]
    peer_listen: Option<String>,
    /// Where clients reach this one
    #[arg(long, value_name = "IP:PORT")]
    client_listen: Option<String>,
    /// How often a leader shows that it is alive
    #[arg(long, value_name = "DURATION")]
    heartbeat: Option<String>,
    /// Shortest time without a leader before an election
    #[arg(long, value_name = "DURATION")]
    election_timeout: Option<String>,
    /// Longest value that clients may write
    #[arg(long, value_name = "SIZE")]
    value_max: Option<String>,
    /// Size of one file of the log
    #[arg(long, value_name = "SIZE")]
    segment: Option<String>,
    /// Log after which a snapshot is made and the log is cut
    #[arg(long, value_name = "SIZE")]
    snapshot_after: Option<String>,
    /// How many revisions back can be read
    #[arg(long, value_name = "N")]
    history_revisions: Option<String>,
    /// How long back can be read
    #[arg(long, value_name = "DURATION")]
    history_age: Option<String>,
    /// Snapshots are sent at this rate, in bytes a second
    #[arg(long, value_name = "SIZE")]
    transfer_rate: Option<String>,
    /// Size of the store above which new data is refused
    #[arg(long, value_name = "SIZE")]
    store_max: Option<String>,
    /// How the log is written: write or map
    #[arg(long, value_name = "HOW")]
    log_io: Option<String>,
    /// Whether a leader reads without asking the others, which relies on clocks: true or false
    #[arg(long, value_name = "BOOL")]
    lease_reads: Option<String>,
    /// Least important messages shown: error, warn, info, debug, trace or off
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

impl KeyArgs {
    /// The given ones, by the name of their key.
    fn given(self) -> Vec<(&'static str, String)> {
        let all = [
            ("name", self.name),
            ("data", self.data),
            ("certs", self.certs),
            ("peer_listen", self.peer_listen),
            ("client_listen", self.client_listen),
            ("heartbeat", self.heartbeat),
            ("election_timeout", self.election_timeout),
            ("value_max", self.value_max),
            ("segment", self.segment),
            ("snapshot_after", self.snapshot_after),
            ("history_revisions", self.history_revisions),
            ("history_age", self.history_age),
            ("transfer_rate", self.transfer_rate),
            ("store_max", self.store_max),
            ("log_io", self.log_io),
            ("lease_reads", self.lease_reads),
            ("log_level", self.log_level),
        ];
        all.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }
}

/// Runs a node until it is told to stop.
#[must_use]
pub(super) fn run(args: NodeArgs) -> ExitCode {
    match serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            error.code()
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Config(#[from] crate::config::Error),
    #[error("cannot start the runtime: {0}")]
    Runtime(std::io::Error),
    #[error(transparent)]
    Join(#[from] join::Error),
    #[error(transparent)]
    Server(#[from] server::Error),
    #[error("the data was damaged {LIVES_MAX} times in a row while the node ran: check the disk")]
    Damaged,
}

impl Error {
    /// The number for whoever started the node.
    fn code(&self) -> ExitCode {
        match self {
            Error::Server(
                server::Error::Log(wal::Error::Disk(_))
                | server::Error::Data(node::Error::Log(wal::Error::Disk(_))),
            ) => ExitCode::from(EXIT_DISK),
            Error::Server(server::Error::Diverged { .. } | server::Error::Contradicted { .. }) => {
                ExitCode::from(EXIT_DIVERGED)
            }
            _ => ExitCode::FAILURE,
        }
    }
}

/// The disk failed: what it holds is unknown until the next start. (`EX_IOERR` of sysexits.h.)
const EXIT_DISK: u8 = 74;
/// The node's state is not that of the others: it must not be started again with its data. (`EX_PROTOCOL` of
/// sysexits.h.)
const EXIT_DIVERGED: u8 = 76;
/// The ports of a life that is over may be busy for a moment.
const PORT_TRIES: u32 = 100;
const PORT_PAUSE: Duration = Duration::from_millis(50);
/// A disk that damages what was just mended is not worth mending it again.
const LIVES_MAX: usize = 10;

fn serve(args: NodeArgs) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    // From now on SIGHUP ends nothing. Whoever runs later reads certificates again at one.
    let _hangups = {
        let _context = runtime.enter();
        signal(SignalKind::hangup()).map_err(Error::Runtime)?
    };
    let config = args.keys.load()?;
    if args.init {
        return Ok(server::init(&config.settings)?);
    }
    end_at_panics();
    explain_bus_errors().map_err(Error::Runtime)?;
    start_log(&config);
    for warning in &config.warnings {
        warn!("{warning}");
    }
    runtime.block_on(async {
        let stdin = args.stop_on_stdin_eof.then(stdin_end);
        let shutdown = shutdown(stdin).map_err(Error::Runtime)?;
        if args.join.is_some() || args.rejoin {
            join::join(&config.settings, args.join, args.rejoin).await?;
        }
        let mut shutdown = std::pin::pin!(shutdown);
        let ask = join::ask(&config.settings);
        let (mut lives, mut patience) = (0, PORT_TRIES);
        while lives < LIVES_MAX {
            match server::run(&config.settings, &mut shutdown, &ask).await {
                Ok(Ended::Stopped) => return Ok(()),
                Ok(Ended::Again) => (lives, patience) = (lives + 1, PORT_TRIES),
                Err(error) if error.is_port_taken() && lives > 0 && patience > 0 => {
                    patience -= 1;
                    tokio::time::sleep(PORT_PAUSE).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::Damaged)
    })
}

/// A bug ends the process, whichever thread or task it is in: a node whose log, links or listeners died would go on
/// half alive, and nobody would take its place.
fn end_at_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

/// Log lines: UTC time, level, message; the supervisor of `quicraft cluster` reads this form.
fn start_log(config: &Config) {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_timer(UtcMillis)
        .with_target(false)
        .with_max_level(config.log_level)
        .compact()
        .init();
}

/// `2026-01-31T12:00:00.123Z`.
struct UtcMillis;

impl tracing_subscriber::fmt::time::FormatTime for UtcMillis {
    fn format_time(&self, w: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        write!(w, "{}", humantime::format_rfc3339_millis(std::time::SystemTime::now()))
    }
}

/// Resolves when the node shall stop. From then on another signal ends the process.
fn shutdown(stdin: Option<oneshot::Receiver<()>>) -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        let stdin_end = async {
            match stdin {
                Some(end) => drop(end.await),
                None => std::future::pending().await,
            }
        };
        let why = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            () = stdin_end => "the end of its supervisor",
        };
        info!("stopping after {why}");
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            eprintln!("error: stopped by a second signal, before the end of the graceful stop");
            std::process::exit(1);
        });
    })
}

/// Resolves at the end of standard input. The reading thread blocks until then and ends with the process.
fn stdin_end() -> oneshot::Receiver<()> {
    let (ended, end) = oneshot::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 256];
        while matches!(std::io::stdin().read(&mut buffer), Ok(1..)) {}
        drop(ended);
    });
    end
}
