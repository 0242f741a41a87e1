//! `quicraft scan`: a range of keys, one row per line.
//!
//! In: a range. Out: `key TAB value` lines (keys alone with `--keys-only`, a number with `--count`), escaped
//! so that each row is one line whatever is in it (`output`; a terminal sees the beginning of long values
//! only); or one JSON object per line. Rows are written as they arrive: a scan of any size needs no more
//! memory than a page.

use std::ffi::OsString;
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStringExt;

use clap::Args;
use serde_json::json;

use super::failure::Failure;
use super::output::{Format, Output, json_bytes, push_field};
use crate::client::{Client, Consistency, Row, ScanMode, ScanRequest, prefix_end};

/// Which rows, and what of them.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct ScanArgs {
    /// Only keys that begin with this
    #[arg(long, value_name = "PREFIX", conflicts_with_all = ["from", "to"])]
    pub(super) prefix: Option<OsString>,
    /// First key of the range
    #[arg(long, value_name = "KEY")]
    pub(super) from: Option<OsString>,
    /// End of the range: the first key that is not in it
    #[arg(long, value_name = "KEY")]
    pub(super) to: Option<OsString>,
    /// Rows at most
    #[arg(long, value_name = "N")]
    pub(super) limit: Option<u64>,
    /// From the last key to the first
    #[arg(long)]
    pub(super) reverse: bool,
    /// Keys without their values
    #[arg(long)]
    pub(super) keys_only: bool,
    /// Only how many there are
    #[arg(long, conflicts_with = "keys_only")]
    pub(super) count: bool,
    /// As one node has them, perhaps old, without asking the others
    #[arg(long)]
    pub(super) local: bool,
    /// As it was at this revision
    #[arg(long, value_name = "REVISION", conflicts_with = "local")]
    pub(super) rev: Option<u64>,
}

impl ScanArgs {
    fn request(self) -> ScanRequest {
        let (from, to) = match self.prefix.map(OsString::into_vec) {
            Some(prefix) => {
                let end = prefix_end(&prefix);
                (prefix, end)
            }
            None => (
                self.from.map(OsString::into_vec).unwrap_or_default(),
                self.to.map(OsString::into_vec),
            ),
        };
        let mode = match (self.count, self.keys_only) {
            (true, _) => ScanMode::Count,
            (false, true) => ScanMode::Keys,
            (false, false) => ScanMode::Rows,
        };
        let consistency = match self.local {
            true => Consistency::Local,
            false => Consistency::Linearizable,
        };
        let limit = self.limit.unwrap_or(u64::MAX);
        let (reverse, revision) = (self.reverse, self.rev);
        ScanRequest { from, to, limit, reverse, mode, consistency, node: None, revision }
    }
}

/// Reads the range and writes it to standard output.
///
/// # Errors
/// [`Failure`]; rows that were written before it are right.
pub(super) async fn run(args: ScanArgs, client: &Client, output: &Output) -> Result<(), Failure> {
    let request = args.request();
    let mode = request.mode;
    let mut stream = client.scan(request).await?;
    if mode == ScanMode::Count {
        let end = stream.finish().await?;
        let json = || json!({"count": end.rows, "revision": end.revision});
        output.line(|| end.rows.to_string(), json)?;
        return Ok(());
    }
    let mut out = BufWriter::new(io::stdout());
    let mut line = Vec::new();
    while let Some(row) = stream.next().await? {
        line.clear();
        write_row(&mut line, &row, mode, output);
        out.write_all(&line)?;
    }
    out.flush()?;
    Ok(())
}

/// What of a long value a person is shown; pipes and JSON get all of it.
const SHOWN_BYTES_MAX: usize = 200;

fn write_row(line: &mut Vec<u8>, row: &Row, mode: ScanMode, output: &Output) {
    match output.format {
        Format::Json => {
            let mut json = json!({"key": json_bytes(&row.key), "revision": row.revision});
            if mode == ScanMode::Rows {
                json["value"] = json_bytes(&row.value);
            }
            line.extend_from_slice(json.to_string().as_bytes());
        }
        Format::Text => {
            push_field(line, &row.key, output.terminal);
            if mode == ScanMode::Rows {
                line.push(b'\t');
                let shown = match output.terminal {
                    true => row.value.len().min(SHOWN_BYTES_MAX),
                    false => row.value.len(),
                };
                push_field(line, &row.value[..shown], output.terminal);
                if shown < row.value.len() {
                    line.extend_from_slice(format!("… ({} bytes)", row.value.len()).as_bytes());
                }
            }
        }
    }
    line.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        Row { key: (&b"a\n"[..]).into(), value: (&b"\xff\t"[..]).into(), revision: 7 }
    }

    fn written(mode: ScanMode, format: Format) -> Vec<u8> {
        let mut line = Vec::new();
        write_row(&mut line, &row(), mode, &Output { format, terminal: false });
        line
    }

    #[test]
    fn a_row_is_one_line_whatever_is_in_it() {
        assert_eq!(written(ScanMode::Rows, Format::Text), b"a\\n\t\xff\\t\n");
        assert_eq!(written(ScanMode::Keys, Format::Text), b"a\\n\n");
        let json = String::from_utf8(written(ScanMode::Rows, Format::Json)).unwrap();
        assert_eq!(json, "{\"key\":\"a\\n\",\"revision\":7,\"value\":{\"b64\":\"/wk=\"}}\n");
    }

    #[test]
    fn only_a_terminal_is_spared_long_values() {
        let row = Row { value: vec![b'v'; 300].into(), ..row() };
        let mut line = Vec::new();
        write_row(
            &mut line,
            &row,
            ScanMode::Rows,
            &Output { format: Format::Text, terminal: true },
        );
        let text = String::from_utf8(line).unwrap();
        assert!(text.ends_with("vv… (300 bytes)\n") && text.len() < 230, "{text}");
        let mut line = Vec::new();
        write_row(
            &mut line,
            &row,
            ScanMode::Rows,
            &Output { format: Format::Text, terminal: false },
        );
        assert_eq!(line.len(), 3 + 1 + 300 + 1);
    }

    #[test]
    fn a_prefix_is_a_range() {
        let args = ScanArgs { prefix: Some("g".into()), limit: Some(3), ..ScanArgs::default() };
        let request = args.request();
        assert_eq!((request.from, request.to), (b"g".to_vec(), Some(b"h".to_vec())));
        assert_eq!(request.limit, 3);
        assert_eq!(ScanArgs::default().request(), ScanRequest::default());
    }
}
