//! How keys and values become text: JSON, table cells and lines.
//!
//! In: bytes. Out: text. Always: standard output carries data only, and a line of `scan` is one row whatever
//! is in it: backslash, tab, line feed and carriage return are written `\\`, `\t`, `\n`, `\r`. For a
//! terminal, other control bytes and bytes that are no UTF-8 are written `\xNN` too, so that data cannot
//! command the terminal; into a pipe they go as they are. JSON: UTF-8 as a string, other bytes as `{"b64":
//! "…"}`. `get` writes the bytes of the value alone.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value as Json, json};

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For people and for pipes.
    #[default]
    Text,
    /// One JSON value per line.
    Json,
}

/// Where results go.
#[derive(Debug)]
pub(super) struct Output {
    /// How they are written.
    pub(super) format: Format,
    /// Whether a person looks at them.
    pub(super) terminal: bool,
}

impl Output {
    /// Standard output.
    pub(super) fn stdout(format: Format) -> Output {
        Output { format, terminal: io::stdout().is_terminal() }
    }

    /// Writes one result: `text` as it is, or `json` on a line.
    ///
    /// # Errors
    /// Whatever standard output gives, a closed pipe above all.
    pub(super) fn line(
        &self,
        text: impl FnOnce() -> String,
        json: impl FnOnce() -> Json,
    ) -> io::Result<()> {
        let mut out = io::stdout().lock();
        match self.format {
            Format::Text => writeln!(out, "{}", text()),
            Format::Json => writeln!(out, "{}", json()),
        }
    }

    /// Writes a value and nothing else; on a terminal, a line end follows if the value has none.
    ///
    /// # Errors
    /// Whatever standard output gives.
    pub(super) fn value(&self, bytes: &[u8], revision: u64) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.format == Format::Json {
            return writeln!(out, "{}", json!({"value": json_bytes(bytes), "revision": revision}));
        }
        out.write_all(bytes)?;
        if self.terminal && !bytes.ends_with(b"\n") {
            out.write_all(b"\n")?;
        }
        out.flush()
    }
}

/// Bytes as JSON: a string if they are UTF-8, else `{"b64": "…"}`.
pub(super) fn json_bytes(bytes: &[u8]) -> Json {
    match std::str::from_utf8(bytes) {
        Ok(text) => Json::from(text),
        Err(_) => json!({"b64": STANDARD.encode(bytes)}),
    }
}

/// Appends one field of a row to `line`, so that it stays one field of one line.
pub(super) fn push_field(line: &mut Vec<u8>, bytes: &[u8], terminal: bool) {
    if terminal {
        line.extend_from_slice(terminal_text(bytes).as_bytes());
        return;
    }
    for &byte in bytes {
        match short_escape(byte) {
            Some(letter) => line.extend_from_slice(&[b'\\', letter]),
            None => line.push(byte),
        }
    }
}

/// Text that a terminal shows and does not obey.
pub(super) fn terminal_text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match u8::try_from(c).ok().and_then(short_escape) {
                Some(letter) => text.extend(['\\', letter as char]),
                None if c.is_control() => {
                    for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                        push_hex(&mut text, byte);
                    }
                }
                None => text.push(c),
            }
        }
        for &byte in chunk.invalid() {
            push_hex(&mut text, byte);
        }
    }
    text
}

fn push_hex(text: &mut String, byte: u8) {
    write!(text, "\\x{byte:02x}").expect("a String takes everything");
}

fn short_escape(byte: u8) -> Option<u8> {
    Some(match byte {
        b'\\' => b'\\',
        b'\t' => b't',
        b'\n' => b'n',
        b'\r' => b'r',
        _ => return None,
    })
}

/// Bytes as a human reads them: `17 B`, `4.2 MiB`.
pub(super) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keeps_text_and_encodes_other_bytes() {
        assert_eq!(json_bytes("grüße\n".as_bytes()), Json::from("grüße\n"));
        assert_eq!(json_bytes(b"\xff\x00\x01").to_string(), r#"{"b64":"/wAB"}"#);
        assert_eq!(json_bytes(b"\xff").to_string(), r#"{"b64":"/w=="}"#);
        assert_eq!(json_bytes(b""), Json::from(""));
    }

    #[test]
    fn a_piped_field_escapes_only_what_would_break_the_line() {
        let mut line = Vec::new();
        push_field(&mut line, b"a\tb\nc\\d\re\x1b\xff", false);
        assert_eq!(line, b"a\\tb\\nc\\\\d\\re\x1b\xff");
    }

    #[test]
    fn a_terminal_is_never_commanded_by_data() {
        assert_eq!(terminal_text(b"\x1b[2J\x07\xfe\n"), r"\x1b[2J\x07\xfe\n");
        assert_eq!(terminal_text("é\u{9b}".as_bytes()), r"é\xc2\x9b");
    }

    #[test]
    fn sizes_have_one_digit_after_the_point() {
        assert_eq!(human_bytes(0), "0 B");
        assert_eq!(human_bytes(1023), "1023 B");
        assert_eq!(human_bytes(1536), "1.5 KiB");
        assert_eq!(human_bytes(64 << 20), "64.0 MiB");
    }
}
