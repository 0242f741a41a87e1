//! What a node is told at start, from `node.toml`, the environment and the command line.
//!
//! For: turning what a human wrote into [`Settings`], or into one line that says what to change.
//!
//! In and out: the text of the file, `QUICRAFT_*` variables and flags go in, all of them as text under the same keys;
//! a [`Config`] comes out, or the first [`enum@Error`].
//!
//! What always holds: a flag overrides a variable overrides the file overrides the default; every error names the
//! place (file and line, variable or flag), the key and what is allowed; a `Config` that comes out passed every rule in
//! `check`. Relative paths are relative to the current directory, not to the file.
//!
//! Left out: whether certificates exist, ports are free or the data directory is sound; that is found when they are
//! used.
//!
//! Read on: `keys` is the table of keys, `node.toml` at the top of the repository the commented sample.

mod check;
mod conf;
mod file;
mod keys;
mod units;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use tracing::level_filters::LevelFilter;

use crate::proto::limits::VALUE_BYTES_MAX_DEFAULT;
use crate::server::{LogIo, Member, Settings};

pub use keys::{key_names, variable};
pub use units::{parse_size, show_size};

/// Everything that `quicraft node` is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What the node itself needs.
    pub settings: Settings,
    /// The least important messages that are shown.
    pub log_level: LevelFilter,
    /// What is allowed but unwise, one line each.
    pub warnings: Vec<String>,
}

impl Default for Config {
    /// A cluster of one node on this machine.
    fn default() -> Self {
        let listen = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut config = Self {
            settings: Settings {
                name: "n1".to_owned(),
                data: PathBuf::from("data/n1"),
                certs: PathBuf::from("certs"),
                peer_listen: listen(7101),
                client_listen: listen(7001),
                members: Vec::new(),
                heartbeat: Duration::from_millis(50),
                election_timeout: Duration::from_millis(300),
                value_bytes_max: VALUE_BYTES_MAX_DEFAULT,
                segment_bytes: 64 << 20,
                snapshot_log_bytes: 256 << 20,
                history_revisions: 1_000_000,
                history_age: Duration::from_secs(3600),
                transfer_rate: 64 << 20,
                store_bytes_max: 8 << 30,
                log_io: LogIo::Write,
                lease_reads: false,
            },
            log_level: LevelFilter::INFO,
            warnings: Vec::new(),
        };
        config.settings.members = vec![config.only_member()];
        config
    }
}

impl Config {
    /// Reads the file at `path`, then applies `variable` (a look-up of environment variables) and `flags` (key and
    /// value) over it. `members_from` names a file in the form `node0ip=…` / `node0port=…` that takes the place of the
    /// member list.
    ///
    /// # Errors
    /// The first thing that is wrong; see [`enum@Error`].
    pub fn load(
        path: &Path,
        variable: impl Fn(&str) -> Option<String>,
        flags: &[(&'static str, String)],
        members_from: Option<&Path>,
    ) -> Result<Self, Error> {
        let mut draft = Draft::new();
        draft.file(path, &read(path)?)?;
        for key in key_names() {
            let name = keys::variable(key);
            if let Some(value) = variable(&name) {
                draft.set(key, &value, Origin::Variable(name))?;
            }
        }
        for (key, value) in flags {
            draft.set(key, value, Origin::Flag(keys::flag(key)))?;
        }
        if let Some(path) = members_from {
            draft.replace_members(conf::parse(path, &read(path)?)?, path);
        }
        draft.finish()
    }

    /// The configuration that the text of a file alone gives; `path` is for messages.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let mut draft = Draft::new();
        draft.file(path, text)?;
        draft.finish()
    }

    /// The member list of a node that knows of no other.
    fn only_member(&self) -> Member {
        Member {
            id: 1,
            name: self.settings.name.clone(),
            peer_address: self.settings.peer_listen.to_string(),
            client_address: self.settings.client_listen.to_string(),
        }
    }
}

/// A configuration in the making, with the place each key came from.
struct Draft {
    config: Config,
    origins: BTreeMap<&'static str, Origin>,
    /// Where each member stands, in the order of `config.settings.members`.
    member_origins: Vec<Origin>,
}

impl Draft {
    fn new() -> Self {
        let mut config = Config::default();
        config.settings.members.clear();
        Self { config, origins: BTreeMap::new(), member_origins: Vec::new() }
    }

    fn file(&mut self, path: &Path, text: &str) -> Result<(), Error> {
        let content = file::parse(path, text)?;
        for entry in content.entries {
            self.set(&entry.key, &entry.value, entry.origin)?;
        }
        for (member, origin) in content.members {
            self.config.settings.members.push(member);
            self.member_origins.push(origin);
        }
        Ok(())
    }

    /// Sets one key from its text.
    fn set(&mut self, name: &str, value: &str, origin: Origin) -> Result<(), Error> {
        let Some(key) = keys::find(name) else {
            return Err(Error::UnknownKey {
                origin,
                key: name.to_owned(),
                allowed: file::allowed_keys(),
            });
        };
        if (key.set)(&mut self.config, value).is_none() {
            return Err(Error::BadValue {
                origin,
                key: key.name.to_owned(),
                value: value.to_owned(),
                allowed: key.allowed.to_owned(),
            });
        }
        self.origins.insert(key.name, origin);
        Ok(())
    }

    fn replace_members(&mut self, members: Vec<(Member, usize)>, path: &Path) {
        self.config.settings.members.clear();
        self.member_origins.clear();
        for (member, line) in members {
            self.config.settings.members.push(member);
            self.member_origins.push(Origin::File { path: path.to_owned(), line });
        }
    }

    fn finish(mut self) -> Result<Config, Error> {
        if self.config.settings.members.is_empty() {
            self.config.settings.members = vec![self.config.only_member()];
            self.member_origins = vec![Origin::Default];
        }
        check::check(&self)?;
        self.config.warnings = check::warnings(&self.config.settings);
        Ok(self.config)
    }

    fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }
}

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In a file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// In this environment variable.
    Variable(String),
    /// In this flag.
    Flag(String),
    /// Nowhere: it is the default.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
            Self::Default => write!(f, "default"),
        }
    }
}

/// Why there is no configuration; each message is one line and says what to change.
#[derive(Debug, Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what its form demands.
    #[error("{origin}: {reason}")]
    Syntax {
        /// Where.
        origin: Origin,
        /// What is wrong.
        reason: String,
    },
    /// There is no such key.
    #[error("{origin}: unknown key `{key}`; allowed are {allowed}")]
    UnknownKey {
        /// Where.
        origin: Origin,
        /// The unknown key.
        key: String,
        /// All keys that there are.
        allowed: String,
    },
    /// A key is missing.
    #[error("{origin}: `{key}` is missing; give {allowed}")]
    Missing {
        /// Where it should stand.
        origin: Origin,
        /// The key.
        key: String,
        /// What it may be.
        allowed: String,
    },
    /// The value cannot be understood.
    #[error("{origin}: {key} = {value:?} is not allowed; give {allowed}")]
    BadValue {
        /// Where.
        origin: Origin,
        /// The key.
        key: String,
        /// What was given.
        value: String,
        /// What may be given.
        allowed: String,
    },
    /// The value is understood but breaks a rule.
    #[error("{origin}: {rule}")]
    Rule {
        /// Where.
        origin: Origin,
        /// What is wrong and what is allowed.
        rule: String,
    },
}

/// Longest file that is read as a configuration; a longer one is surely another file.
const FILE_BYTES_MAX: u64 = 1 << 20;

fn read(path: &Path) -> Result<String, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let bytes = std::fs::metadata(path).map_err(failed)?.len();
    if bytes > FILE_BYTES_MAX {
        let reason = format!("{bytes} bytes long; a configuration has at most {FILE_BYTES_MAX}");
        let origin = Origin::File { path: path.to_owned(), line: 1 };
        return Err(Error::Syntax { origin, reason });
    }
    std::fs::read_to_string(path).map_err(failed)
}

#[cfg(test)]
mod tests;
