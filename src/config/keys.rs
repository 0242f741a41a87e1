//! The table of scalar keys: name, what is allowed, how the text becomes a value. The file, the environment and the
//! flags all go through it.

use std::time::Duration;

use tracing::level_filters::LevelFilter;

use super::Config;
use super::units::parse_size;
use crate::server::LogIo;

/// One key.
pub(super) struct Key {
    /// As in the file; the flag and the variable follow from it.
    pub(super) name: &'static str,
    /// What may be given, for messages: completes "give …".
    pub(super) allowed: &'static str,
    /// Sets it; `None` if the text is not allowed.
    pub(super) set: fn(&mut Config, &str) -> Option<()>,
}

/// Names of all scalar keys, in the order of the sample file.
pub fn key_names() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|key| key.name)
}

/// The environment variable of a key: `QUICRAFT_PEER_LISTEN` for `peer_listen`.
#[must_use]
pub fn variable(key: &str) -> String {
    format!("QUICRAFT_{}", key.to_ascii_uppercase())
}

/// The flag of a key: `--peer-listen` for `peer_listen`.
pub(super) fn flag(key: &str) -> String {
    format!("--{}", key.replace('_', "-"))
}

pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Whether `name` may name a node: it stands in certificates, file names and log lines.
pub(super) fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// What [`is_name`] allows, for messages.
pub(super) const NAME_ALLOWED: &str =
    "1 to 32 of a-z, 0-9 and -, no - first or last, such as \"n1\"";
/// As in certificates (`pki`).
const NAME_BYTES_MAX: usize = 32;

const DURATION: &str = "a duration with its unit, such as \"50ms\" or \"1s\"";
const SIZE: &str = "a size, such as \"64MiB\", \"512KiB\" or a number of bytes";
const LISTEN: &str = "an IP address and a port from 1 to 65535, such as \"0.0.0.0:7001\"";
const DIRECTORY: &str = "the path of a directory";

static KEYS: [Key; 17] = [
    Key {
        name: "name",
        allowed: NAME_ALLOWED,
        set: |c, v| is_name(v).then(|| v.clone_into(&mut c.settings.name)),
    },
    Key { name: "data", allowed: DIRECTORY, set: |c, v| put(&mut c.settings.data, path(v)) },
    Key { name: "certs", allowed: DIRECTORY, set: |c, v| put(&mut c.settings.certs, path(v)) },
    Key {
        name: "peer_listen",
        allowed: LISTEN,
        set: |c, v| put(&mut c.settings.peer_listen, listen(v)),
    },
    Key {
        name: "client_listen",
        allowed: LISTEN,
        set: |c, v| put(&mut c.settings.client_listen, listen(v)),
    },
    Key {
        name: "heartbeat",
        allowed: DURATION,
        set: |c, v| put(&mut c.settings.heartbeat, duration(v)),
    },
    Key {
        name: "election_timeout",
        allowed: DURATION,
        set: |c, v| put(&mut c.settings.election_timeout, duration(v)),
    },
    Key {
        name: "value_max",
        allowed: SIZE,
        set: |c, v| {
            let bytes = parse_size(v).and_then(|bytes| usize::try_from(bytes).ok());
            put(&mut c.settings.value_bytes_max, bytes)
        },
    },
    Key {
        name: "segment",
        allowed: SIZE,
        set: |c, v| put(&mut c.settings.segment_bytes, parse_size(v)),
    },
    Key {
        name: "snapshot_after",
        allowed: SIZE,
        set: |c, v| put(&mut c.settings.snapshot_log_bytes, parse_size(v)),
    },
    Key {
        name: "history_revisions",
        allowed: "a number of revisions",
        set: |c, v| put(&mut c.settings.history_revisions, v.parse().ok()),
    },
    Key {
        name: "history_age",
        allowed: DURATION,
        set: |c, v| put(&mut c.settings.history_age, duration(v)),
    },
    Key {
        name: "transfer_rate",
        allowed: SIZE,
        set: |c, v| put(&mut c.settings.transfer_rate, parse_size(v)),
    },
    Key {
        name: "store_max",
        allowed: SIZE,
        set: |c, v| put(&mut c.settings.store_bytes_max, parse_size(v)),
    },
    Key {
        name: "log_io",
        allowed: "\"write\" or \"map\"",
        set: |c, v| put(&mut c.settings.log_io, log_io(v)),
    },
    Key {
        name: "lease_reads",
        allowed: "true or false",
        set: |c, v| put(&mut c.settings.lease_reads, v.parse().ok()),
    },
    Key {
        name: "log_level",
        allowed: "\"error\", \"warn\", \"info\", \"debug\", \"trace\" or \"off\"",
        set: |c, v| put(&mut c.log_level, log_level(v)),
    },
];

fn put<T>(place: &mut T, value: Option<T>) -> Option<()> {
    *place = value?;
    Some(())
}

fn path(text: &str) -> Option<std::path::PathBuf> {
    (!text.is_empty()).then(|| text.into())
}

fn listen(text: &str) -> Option<std::net::SocketAddr> {
    text.parse().ok().filter(|address: &std::net::SocketAddr| address.port() != 0)
}

fn duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok()
}

fn log_io(text: &str) -> Option<LogIo> {
    match text {
        "write" => Some(LogIo::Write),
        "map" => Some(LogIo::Map),
        _ => None,
    }
}

fn log_level(text: &str) -> Option<LevelFilter> {
    match text {
        "error" => Some(LevelFilter::ERROR),
        "warn" => Some(LevelFilter::WARN),
        "info" => Some(LevelFilter::INFO),
        "debug" => Some(LevelFilter::DEBUG),
        "trace" => Some(LevelFilter::TRACE),
        "off" => Some(LevelFilter::OFF),
        _ => None,
    }
}
