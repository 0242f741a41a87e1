//! Bytes for people and for JSON.

use serde_json::{Value, json};

/// Bytes as JSON: a string if they are UTF-8, otherwise `{"hex": …}`.
pub(super) fn to_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "hex": hex(bytes) }),
    }
}

/// Bytes on one line: what is not printable is escaped, so that nothing acts on a terminal.
pub(super) fn escape(bytes: &[u8]) -> String {
    let mut line = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            if char.is_control() || char == '\\' {
                line.extend(char.escape_default());
            } else {
                line.push(char);
            }
        }
        for byte in chunk.invalid() {
            line.push_str(&format!("\\x{byte:02x}"));
        }
    }
    line
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A number of bytes as people read it.
pub(super) fn size(bytes: u64) -> String {
    let units = [(1_u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|&(unit, _)| bytes >= unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_unprintable_reaches_a_terminal() {
        assert_eq!(escape(b"a\tb\n\x1b[31m\\\xff"), "a\\tb\\n\\u{1b}[31m\\\\\\xff");
        assert_eq!(escape("grüße".as_bytes()), "grüße");
    }

    #[test]
    fn json_keeps_text_readable_and_bytes_whole() {
        assert_eq!(to_json(b"hello"), json!("hello"));
        assert_eq!(to_json(b"\xff\x00"), json!({ "hex": "ff00" }));
    }
}
