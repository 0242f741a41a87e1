//! `quicraft snapshot`: backups of a running cluster, and new clusters out of them.
//!
//! In: a cluster or a file. Out: a file, a description, or a data directory. Always: a file appears under its name only
//! when every byte of it was checked and synced; a restore changes nothing before that either. Left out: how a
//! snapshot looks (`store`).

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::failure::Failure;
use super::flags::ClientFlags;
use super::node::NodeKeys;
use super::output::{Format, Output, human_bytes};
use crate::client::Client;
use crate::disk::OsDisk;
use crate::server;
use crate::store::snapshot::{Description, Dir};

/// What to do with a snapshot.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum SnapshotCommand {
    /// Write all data of the running cluster, as of now, to a file
    Save {
        /// The file; one that exists is replaced when the new one is complete
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten, next_help_heading = "Cluster")]
        flags: ClientFlags,
    },
    /// Check every byte of a snapshot file and say what it holds
    Inspect {
        /// A file of `snapshot save`, or of a node's directory `snapshots`
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// How results are written
        #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Format::Text)]
        output: Format,
    },
    /// Make a node's data directory for a new cluster that begins with the data of a file
    ///
    /// Run it once for each node of the new cluster, with the same file, instead of `quicraft node --init`. The new
    /// cluster has an authority and certificates of its own (`quicraft cert init` in an empty directory).
    /// Revisions go on after those of the old cluster.
    Restore(Box<RestoreArgs>),
}

/// What a restore needs to know.
#[derive(Clone, Debug, Args)]
pub(super) struct RestoreArgs {
    /// The snapshot file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// How many revisions are left out, more than the old cluster can have made since the snapshot. The same on all nodes
    #[arg(long, value_name = "N", default_value_t = SKIPPED_REVISIONS)]
    skip_revisions: u64,
    #[command(flatten)]
    node: NodeKeys,
}

/// Does it.
///
/// # Errors
/// [`Failure`] with the exit code that fits.
pub(super) fn run(command: SnapshotCommand) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Save { file, flags } => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let client = flags.connect().await?;
                let result = save(&client, &file, &Output::stdout(flags.output)).await;
                client.close().await;
                result
            })
        }
        SnapshotCommand::Inspect { file, output } => {
            show(&file, &describe(&file)?, &Output::stdout(output))
        }
        SnapshotCommand::Restore(args) => restore(*args),
    }
}

/// Takes a backup.
async fn save(client: &Client, path: &Path, output: &Output) -> Result<(), Failure> {
    let mut stream = client.save_snapshot().await?;
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(200));
    bar.set_message("the cluster makes a snapshot");
    let (_, bytes) = stream.begin().await?;
    let style = ProgressStyle::with_template(
        "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
    );
    bar.set_style(style.expect("the template is sound"));
    bar.set_length(bytes);
    let unfinished = Unfinished::create(path)?;
    let mut file = &unfinished.file;
    while let Some(chunk) = stream.next().await? {
        file.write_all(&chunk).map_err(|error| wrong(path, &error))?;
        bar.inc(chunk.len() as u64);
    }
    file.sync_all().map_err(|error| wrong(path, &error))?;
    bar.finish_and_clear();
    let description = describe(&unfinished.path)?;
    unfinished.publish(path)?;
    show(path, &description, output)
}

/// A file on its way; removed when it does not become one.
struct Unfinished {
    path: PathBuf,
    file: File,
}

impl Unfinished {
    fn create(path: &Path) -> Result<Unfinished, Failure> {
        let mut name = OsString::from(path);
        name.push(".tmp");
        let temporary = PathBuf::from(name);
        let file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary);
        let file = file.map_err(|error| wrong(&temporary, &error))?;
        Ok(Unfinished { path: temporary, file })
    }

    fn publish(self, path: &Path) -> Result<(), Failure> {
        fs::rename(&self.path, path).map_err(|error| wrong(path, &error))?;
        let synced = File::open(parent(path)).and_then(|dir| dir.sync_all());
        synced.map_err(|error| wrong(path, &error))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // It is there only if it was not published.
        let _ = fs::remove_file(&self.path);
    }
}

fn restore(args: RestoreArgs) -> Result<(), Failure> {
    let RestoreArgs { file, skip_revisions, node } = args;
    let config = node.load().map_err(|error| Failure::usage(error.to_string()))?;
    let settings = config.settings;
    let index = server::restore(&settings, &dir_of(&file), &file, skip_revisions)
        .map_err(|error| Failure::Refused(error.to_string()))?;
    println!(
        "{} holds the data of {} now, at revision {index}; start it with `quicraft node`",
        settings.data.display(),
        file.display()
    );
    Ok(())
}

fn describe(path: &Path) -> Result<Description, Failure> {
    dir_of(path).describe(path).map_err(|error| Failure::Refused(error.to_string()))
}

fn show(path: &Path, about: &Description, output: &Output) -> Result<(), Failure> {
    let Description { meta, keys, live_bytes, oldest, state_hash, bytes } = about;
    let cluster: String = meta.cluster.iter().map(|byte| format!("{byte:02x}")).collect();
    let text = || {
        format!(
            "{}: whole\nrevision {}, of term {}, readable from {oldest} on\n{keys} keys, {} of keys and values, {} in the file\n\
             cluster {cluster}, state hash {state_hash:016x}",
            path.display(),
            meta.index,
            meta.term,
            human_bytes(*live_bytes),
            human_bytes(*bytes)
        )
    };
    let json = || {
        json!({
            "file": path.display().to_string(), "revision": meta.index.0, "term": meta.term.0,
            "oldest_revision": oldest.0, "keys": keys, "live_bytes": live_bytes, "bytes": bytes,
            "cluster": cluster, "state_hash": format!("{state_hash:016x}"),
        })
    };
    Ok(output.line(text, json)?)
}

fn dir_of(path: &Path) -> Dir {
    Dir::new(Arc::new(OsDisk), parent(path).to_owned())
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn wrong(path: &Path, error: &std::io::Error) -> Failure {
    Failure::usage(format!("cannot write {}: {error}", path.display()))
}

/// A cluster that writes a hundred thousand revisions a second for three hours makes as many.
const SKIPPED_REVISIONS: u64 = 1_000_000_000;
