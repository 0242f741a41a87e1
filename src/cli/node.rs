//! `quicraft node`: one node, until it is told to stop.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{self, Overrides};
use crate::server;

#[derive(Args)]
pub(super) struct NodeArgs {
    /// The configuration
    #[arg(long, env = "QUICRAFT_CONFIG", default_value = "node.toml")]
    config: PathBuf,
    /// Make the data directory of a new cluster's node, and end
    #[arg(long)]
    init: bool,
    /// What to tell: error, warn, info, debug
    #[arg(long, env = "QUICRAFT_LOG_LEVEL", default_value = "info")]
    log_level: tracing::Level,
    /// Stop when standard input ends, so that no node outlives who started it
    #[arg(long, hide = true)]
    stop_on_stdin_eof: bool,
    #[command(flatten)]
    overrides: Overrides,
}

pub(super) fn run(args: NodeArgs) -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(args.log_level)
        .with_target(false)
        .with_ansi(false)
        .init();
    match carry_out(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("quicraft: {message}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(args: &NodeArgs) -> Result<(), String> {
    let settings = config::load(&args.config, &args.overrides).map_err(|e| e.to_string())?;
    if args.init {
        return server::init(&settings).map_err(|e| e.to_string());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("no runtime: {e}"))?;
    let stdin = args.stop_on_stdin_eof;
    let result = runtime.block_on(async {
        let shutdown = shutdown(stdin).map_err(|e| format!("no signals: {e}"))?;
        server::run(settings, shutdown).await.map_err(|e| e.to_string())
    });
    // A read of standard input that never ends must not hold the process.
    runtime.shutdown_background();
    result
}

/// Resolves when the node is told to stop.
fn shutdown(stdin: bool) -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        let input_ends = async {
            if stdin {
                let mut rest = [0; 64];
                let mut input = tokio::io::stdin();
                while input.read(&mut rest).await.is_ok_and(|count| count > 0) {}
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = input_ends => {}
        }
    })
}
