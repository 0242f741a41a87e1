//! The supervisor's lines: `12:00:00.123 n2 became leader in term 3`.

use std::io::{self, IsTerminal, Write};
use std::time::SystemTime;

/// Where the lines go.
pub(super) struct Show {
    color: bool,
}

impl Show {
    /// Colours only on a terminal, and not where `NO_COLOR` is set.
    pub(super) fn new() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { color: wanted && io::stdout().is_terminal() }
    }

    /// One event of the node at place `i` in the cluster.
    pub(super) fn event(&self, i: usize, name: &str, text: &str) {
        let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let time = now.get(TIME_OF_DAY).unwrap_or_default();
        if self.color {
            let color = COLORS[i % COLORS.len()];
            self.line(&format!("\x1b[2m{time}\x1b[0m \x1b[{color}m{name}\x1b[0m {text}"));
        } else {
            self.line(&format!("{time} {name} {text}"));
        }
    }

    /// A line as it is. A closed stdout does not stop the cluster.
    pub(super) fn line(&self, text: &str) {
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }
}

/// Cyan, yellow, magenta, green, blue, red, white.
const COLORS: [u8; 7] = [36, 33, 35, 32, 34, 31, 37];
/// `12:00:00.123` in `2026-01-31T12:00:00.123Z`.
const TIME_OF_DAY: std::ops::Range<usize> = 11..23;
const TIME_BYTES: usize = "2026-01-31T12:00:00.123Z".len();

/// What of a node's log line is worth showing: `None` for what is below INFO, the whole line where it has another form
/// (a panic, an error before the log began).
pub(super) fn worth_showing(line: &str) -> Option<String> {
    let Some((time, rest)) = line.split_once(' ') else {
        return (!line.is_empty()).then(|| line.to_owned());
    };
    if time.len() != TIME_BYTES || !time.ends_with('Z') {
        return Some(line.to_owned());
    }
    let (level, message) = rest.trim_start().split_once(' ').unwrap_or((rest, ""));
    let message = message.trim();
    match level {
        "INFO" => Some(message.to_owned()),
        "WARN" => Some(format!("warning: {message}")),
        "ERROR" => Some(format!("error: {message}")),
        "DEBUG" | "TRACE" => None,
        _ => Some(line.to_owned()),
    }
}
