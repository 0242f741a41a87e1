//! `node.toml`: what a node is told at start. Flags override `QUICRAFT_*` variables override the file.
//!
//! Sizes and durations are written as people write them: `"64MiB"`, `"150ms"`. An unknown key or a bad
//! value is an error that names the place and what is allowed; nothing is guessed.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::pki::is_name;
use crate::proto::limits::{MEMBERS_MAX, VALUE_BYTES_CEILING};
use crate::server::{LogIo, Member, Settings};
use crate::wal::{SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no configuration; names line and key.
    #[error("{path}: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong where.
        reason: String,
    },
    /// A value is not allowed.
    #[error("{key}: {reason}")]
    Value {
        /// The key.
        key: &'static str,
        /// What is wrong, and what is allowed.
        reason: String,
    },
}

/// Values that flags and variables put in place of the file's.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Overrides {
    /// This node's name
    #[arg(long, env = "QUICRAFT_NAME")]
    pub name: Option<String>,
    /// Directory of the log and the snapshots
    #[arg(long, env = "QUICRAFT_DATA")]
    pub data: Option<PathBuf>,
    /// Directory of the certificates
    #[arg(long, env = "QUICRAFT_CERTS")]
    pub certs: Option<PathBuf>,
    /// Address for other nodes
    #[arg(long, env = "QUICRAFT_PEER_LISTEN")]
    pub peer_listen: Option<SocketAddr>,
    /// Address for clients
    #[arg(long, env = "QUICRAFT_CLIENT_LISTEN")]
    pub client_listen: Option<SocketAddr>,
}

/// The file, as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    #[serde(default = "default_data")]
    data: PathBuf,
    #[serde(default = "default_certs")]
    certs: PathBuf,
    peer_listen: SocketAddr,
    client_listen: SocketAddr,
    members: Vec<FileMember>,
    #[serde(default = "default_heartbeat", deserialize_with = "duration")]
    heartbeat: Duration,
    #[serde(default = "default_election_timeout", deserialize_with = "duration")]
    election_timeout: Duration,
    #[serde(default = "default_value_max", deserialize_with = "size")]
    value_max: u64,
    #[serde(default = "default_segment", deserialize_with = "size")]
    segment: u64,
    #[serde(default = "default_snapshot_after", deserialize_with = "size")]
    snapshot_after: u64,
    #[serde(default = "default_store_max", deserialize_with = "size")]
    store_max: u64,
    #[serde(default)]
    log_io: FileLogIo,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileMember {
    id: u64,
    name: String,
    peer: String,
    client: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum FileLogIo {
    #[default]
    Write,
    Map,
}

/// Reads a configuration and puts the overrides in place.
///
/// # Errors
/// [`Error`] names file, line and key.
pub fn load(path: &Path, overrides: &Overrides) -> Result<Settings, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let file: File = toml::from_str(&text)
        .map_err(|error| Error::Parse { path: path.to_owned(), reason: explain(&text, &error) })?;
    let overrides = overrides.clone();
    let members = file.members.into_iter().map(|member| Member {
        id: member.id,
        name: member.name,
        peer_address: member.peer,
        client_address: member.client,
    });
    let settings = Settings {
        name: overrides.name.unwrap_or(file.name),
        data: overrides.data.unwrap_or(file.data),
        certs: overrides.certs.unwrap_or(file.certs),
        peer_listen: overrides.peer_listen.unwrap_or(file.peer_listen),
        client_listen: overrides.client_listen.unwrap_or(file.client_listen),
        members: members.collect(),
        heartbeat: file.heartbeat,
        election_timeout: file.election_timeout,
        value_bytes_max: usize::try_from(file.value_max).unwrap_or(usize::MAX),
        segment_bytes: file.segment,
        snapshot_log_bytes: file.snapshot_after,
        store_bytes_max: file.store_max,
        log_io: match file.log_io {
            FileLogIo::Write => LogIo::Write,
            FileLogIo::Map => LogIo::Map,
        },
    };
    check(&settings)?;
    Ok(settings)
}

/// The parser's message with its line, on one line.
fn explain(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().replace('\n', " ");
    match error.span() {
        Some(span) => {
            let line = text[..span.start.min(text.len())].matches('\n').count() + 1;
            format!("line {line}: {message}")
        }
        None => message,
    }
}

fn check(settings: &Settings) -> Result<(), Error> {
    let wrong = |key, reason: String| Err(Error::Value { key, reason });
    if settings.heartbeat < Duration::from_millis(10) {
        return wrong("heartbeat", "at least 10ms".to_owned());
    }
    if settings.election_timeout < settings.heartbeat * 5 {
        return wrong("election_timeout", "at least five times the heartbeat".to_owned());
    }
    if settings.election_timeout > Duration::from_secs(60) {
        return wrong("election_timeout", "at most 60s".to_owned());
    }
    if settings.value_bytes_max == 0 || settings.value_bytes_max > VALUE_BYTES_CEILING {
        return wrong("value_max", "1 byte to 64MiB".to_owned());
    }
    if !(SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&settings.segment_bytes) {
        return wrong("segment", "16KiB to 1GiB".to_owned());
    }
    if settings.snapshot_log_bytes < 64 << 10 {
        return wrong("snapshot_after", "at least 64KiB".to_owned());
    }
    if settings.store_bytes_max > STORE_BYTES_MAX {
        return wrong("store_max", "at most 28GiB".to_owned());
    }
    check_members(settings)
}

fn check_members(settings: &Settings) -> Result<(), Error> {
    let wrong = |reason: String| Err(Error::Value { key: "members", reason });
    if settings.members.is_empty() || settings.members.len() > MEMBERS_MAX {
        return wrong(format!("1 to {MEMBERS_MAX} members"));
    }
    let mut seen = BTreeSet::new();
    for member in &settings.members {
        let Member { id, name, peer_address, client_address } = member;
        if *id == 0 {
            return wrong(format!("{name} has id 0, ids begin with 1"));
        }
        if !is_name(name) {
            return wrong(format!("{name:?} is no name: a-z, 0-9 and inner dashes"));
        }
        for address in [peer_address, client_address] {
            let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            if port.is_none_or(|port| port == 0) {
                return wrong(format!("{address:?} is no address: host:port"));
            }
        }
        for key in [&format!("id {id}"), name, peer_address, client_address] {
            if !seen.insert(key.clone()) {
                return wrong(format!("{key} is there twice"));
            }
        }
    }
    if !settings.members.iter().any(|member| member.name == settings.name) {
        return wrong(format!("{} is not among them", settings.name));
    }
    Ok(())
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text)
        .map_err(|_| serde::de::Error::custom(format!("{text:?} is no duration like \"150ms\"")))
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Size {
        Bytes(u64),
        Text(String),
    }
    match Size::deserialize(deserializer)? {
        Size::Bytes(bytes) => Ok(bytes),
        Size::Text(text) => parse_size(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no size like \"64MiB\""))),
    }
}

/// A number of bytes as people write it: `512`, `64KiB`, `1 GiB`.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn default_data() -> PathBuf {
    PathBuf::from("data/n1")
}

fn default_certs() -> PathBuf {
    PathBuf::from("certs")
}

fn default_heartbeat() -> Duration {
    Duration::from_millis(50)
}

fn default_election_timeout() -> Duration {
    Duration::from_millis(500)
}

fn default_value_max() -> u64 {
    4 << 20
}

fn default_segment() -> u64 {
    64 << 20
}

fn default_snapshot_after() -> u64 {
    256 << 20
}

fn default_store_max() -> u64 {
    8 << 30
}

/// The store's address space is 32 GiB; the rest is room for what is on its way.
const STORE_BYTES_MAX: u64 = 28 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str) -> Result<Settings, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        std::fs::write(&path, text).unwrap();
        load(&path, &Overrides::default()).map_err(|error| error.to_string())
    }

    const MEMBER: &str = "
[[members]]
id = 1
name = \"n1\"
peer = \"127.0.0.1:7101\"
client = \"127.0.0.1:7001\"
";
    const HEAD: &str =
        "name = \"n1\"\npeer_listen = \"127.0.0.1:7101\"\nclient_listen = \"127.0.0.1:7001\"\n";

    #[test]
    fn the_sample_says_what_the_defaults_are() {
        let sample = include_str!("../node.toml");
        let short = load_text(&format!("{HEAD}{MEMBER}")).unwrap();
        assert_eq!(load_text(sample).unwrap(), short);
    }

    #[test]
    fn bad_values_are_refused_with_their_place() {
        for (line, expected) in [
            ("colour = 1", "line 4: unknown field `colour`"),
            ("heartbeat = \"soon\"", "is no duration like"),
            ("heartbeat = \"1ms\"", "heartbeat: at least 10ms"),
            ("election_timeout = \"100ms\"", "five times the heartbeat"),
            ("value_max = \"65MiB\"", "1 byte to 64MiB"),
            ("segment = \"1KiB\"", "16KiB to 1GiB"),
            ("log_io = \"fast\"", "unknown variant `fast`"),
            ("name = \"n2\"", "line 4"),
        ] {
            let error = load_text(&format!("{HEAD}{line}\n{MEMBER}")).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
        let twice = load_text(&format!("{HEAD}{MEMBER}{MEMBER}")).unwrap_err();
        assert!(twice.contains("id 1 is there twice"), "{twice}");
    }

    #[test]
    fn sizes_read_as_people_write_them() {
        for (text, bytes) in
            [("512", 512), ("64KiB", 65_536), ("1 GiB", 1 << 30), ("4MiB", 4 << 20), ("7B", 7)]
        {
            assert_eq!(parse_size(text), Some(bytes));
        }
        for text in ["", "MiB", "-1", "1.5MiB", "4mb", "99999999999999999999", "99999999999GiB"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }
}
