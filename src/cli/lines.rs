//! `quicraft export` and `quicraft import`: keys and values as JSON, one object a line.
//!
//! In and out: `{"key": …, "value": …}`, each a string, or `{"b64": "…"}` for bytes that are not UTF-8. Always: an
//! export is of one revision; an import writes the lines in such an order that of two with the same key the later
//! counts, and stops at the first that makes no sense, which it names. Left out: revisions, sessions, history
//! (`quicraft snapshot`).

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::{Value as Json, json};
use tokio::task::JoinSet;

use super::failure::Failure;
use super::output::{Output, json_bytes};
use crate::client::{Client, ScanRequest};

/// What is exported, and where to.
#[derive(Clone, Debug, Args)]
pub(super) struct ExportArgs {
    /// The file, - for standard output
    #[arg(value_name = "FILE|-", default_value = "-")]
    file: PathBuf,
    /// Only keys that begin with this
    #[arg(long, value_name = "PREFIX", default_value = "")]
    prefix: OsString,
    /// As it was at this revision
    #[arg(long, value_name = "REVISION")]
    rev: Option<u64>,
}

/// What is imported.
#[derive(Clone, Debug, Args)]
pub(super) struct ImportArgs {
    /// The file, - for standard input
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
}

/// Writes all rows.
///
/// # Errors
/// [`Failure`]; lines that were written before it are right.
pub(super) async fn export(
    args: ExportArgs,
    client: &Client,
    output: &Output,
) -> Result<(), Failure> {
    let request = ScanRequest { revision: args.rev, ..ScanRequest::prefix(args.prefix.into_vec()) };
    let mut stream = client.scan(request).await?;
    let to_stdout = is_standard(&args.file);
    let out: Box<dyn Write> = match to_stdout {
        true => Box::new(io::stdout()),
        false => {
            Box::new(File::create(&args.file).map_err(|error| cannot("write", &args.file, &error))?)
        }
    };
    let mut out = BufWriter::new(out);
    while let Some(row) = stream.next().await? {
        let line = json!({"key": json_bytes(&row.key), "value": json_bytes(&row.value)});
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    let end = stream.finish().await?;
    if !to_stdout {
        let json = || json!({"keys": end.rows, "revision": end.revision});
        output.line(|| format!("{} keys at revision {}", end.rows, end.revision), json)?;
    }
    Ok(())
}

/// Writes all lines to the cluster.
///
/// # Errors
/// [`Failure`]; lines before the one that it names were written, some after it perhaps too.
pub(super) async fn import(
    args: ImportArgs,
    client: &Client,
    output: &Output,
    stdin: bool,
) -> Result<(), Failure> {
    let input: Box<dyn BufRead> = match is_standard(&args.file) {
        true if stdin => Box::new(BufReader::new(io::stdin())),
        true => {
            return Err(Failure::usage(
                "'-' is standard input, which the shell itself reads: give a file",
            ));
        }
        false => Box::new(BufReader::new(
            File::open(&args.file).map_err(|error| cannot("read", &args.file, &error))?,
        )),
    };
    let mut writes = Writes { client, running: JoinSet::new(), keys: HashSet::new(), done: 0 };
    for (number, line) in (1_u64..).zip(input.lines()) {
        let line = line.map_err(|error| cannot("read", &args.file, &error))?;
        if line.trim().is_empty() {
            continue;
        }
        let (key, value) = parse(&line).map_err(|reason| {
            Failure::usage(format!("{} line {number}: {reason}", args.file.display()))
        })?;
        writes.put(key, value).await?;
    }
    writes.drain(0).await?;
    let done = writes.done;
    output.line(|| format!("{done} keys written"), || json!({"keys": done}))?;
    Ok(())
}

/// Writes on their way.
struct Writes<'a> {
    client: &'a Client,
    running: JoinSet<Result<u64, crate::client::Error>>,
    keys: HashSet<Vec<u8>>,
    done: u64,
}

impl Writes<'_> {
    async fn put(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), Failure> {
        if self.keys.contains(&key) || self.keys.len() >= KEYS_MAX {
            self.drain(0).await?;
        }
        self.drain(WRITES_MAX - 1).await?;
        self.keys.insert(key.clone());
        let client = self.client.clone();
        self.running.spawn(async move { client.put(key, value).await });
        Ok(())
    }

    /// Waits until no more than `count` are on their way.
    async fn drain(&mut self, count: usize) -> Result<(), Failure> {
        while self.running.len() > count
            && let Some(joined) = self.running.join_next().await
        {
            joined.map_err(|error| Failure::Refused(error.to_string()))??;
            self.done += 1;
        }
        if self.running.is_empty() {
            self.keys.clear();
        }
        Ok(())
    }
}

fn parse(line: &str) -> Result<(Vec<u8>, Vec<u8>), String> {
    let json: Json = serde_json::from_str(line).map_err(|error| format!("no JSON: {error}"))?;
    Ok((bytes(&json, "key")?, bytes(&json, "value")?))
}

fn bytes(json: &Json, name: &str) -> Result<Vec<u8>, String> {
    let field = json.get(name).ok_or_else(|| format!("no {name:?}"))?;
    if let Some(text) = field.as_str() {
        return Ok(text.as_bytes().to_vec());
    }
    let encoded = field.get("b64").and_then(Json::as_str);
    let encoded = encoded.ok_or_else(|| format!("{name:?} is neither text nor {{\"b64\": …}}"))?;
    STANDARD.decode(encoded).map_err(|error| format!("{name:?} is no base64: {error}"))
}

fn is_standard(file: &Path) -> bool {
    file == Path::new("-")
}

fn cannot(what: &str, file: &Path, error: &io::Error) -> Failure {
    Failure::usage(format!("cannot {what} {}: {error}", file.display()))
}

/// Keys that are remembered, to keep writes of the same one in order.
const KEYS_MAX: usize = 64 * WRITES_MAX;
/// Writes of an import that are on their way at once.
const WRITES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_what_an_export_writes_and_nothing_else() {
        for (key, value) in [(&b"a"[..], &b"1"[..]), (b"\xff\0", b""), ("ü\n".as_bytes(), b"\xfe")]
        {
            let line = json!({"key": json_bytes(key), "value": json_bytes(value)}).to_string();
            assert_eq!(parse(&line), Ok((key.to_vec(), value.to_vec())));
        }
        for line in [
            "",
            "[]",
            "{\"key\": \"a\"}",
            "{\"key\": 1, \"value\": \"\"}",
            "{\"key\": {\"b64\": \"?\"}, \"value\": \"\"}",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
