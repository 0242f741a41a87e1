//! Where a value on the command line comes from.
//!
//! `@FILE` is the content of a file, `-` is standard input to its end, `@@…` is text that begins with one
//! `@`, anything else is the text itself. A source longer than any value may be is given up after one byte
//! too many.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::proto::limits::VALUE_BYTES_CEILING;

/// A value or the place where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The value itself.
    Literal(Vec<u8>),
    /// A file that holds it.
    File(PathBuf),
    /// Standard input.
    Stdin,
}

/// Why a value could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ValueError {
    /// The file or standard input gave an error.
    #[error("cannot read {from}: {source}")]
    Io {
        /// Which.
        from: String,
        /// The cause.
        source: io::Error,
    },
    /// No value may be this long.
    #[error("{from} has more than {VALUE_BYTES_CEILING} bytes, and no value may be longer")]
    TooLong {
        /// Which.
        from: String,
    },
    /// `-` was typed in the shell.
    #[error("'-' is standard input, which the shell itself reads: use @FILE")]
    NoStdin,
}

impl Source {
    /// What `argument` means.
    pub(super) fn parse(argument: &OsStr) -> Source {
        match argument.as_bytes() {
            b"-" => Source::Stdin,
            [b'@', b'@', ..] => Source::Literal(argument.as_bytes()[1..].to_vec()),
            [b'@', path @ ..] => Source::File(PathBuf::from(OsStr::from_bytes(path))),
            literal => Source::Literal(literal.to_vec()),
        }
    }

    /// The bytes; `stdin` says whether standard input is free to be read.
    ///
    /// # Errors
    /// [`ValueError`] when they are not to be had.
    pub(super) fn read(self, stdin: bool) -> Result<Vec<u8>, ValueError> {
        match self {
            Source::Literal(bytes) => Ok(bytes),
            Source::Stdin if !stdin => Err(ValueError::NoStdin),
            Source::Stdin => read_all(io::stdin().lock(), "standard input".into()),
            Source::File(path) => {
                let from = path.display().to_string();
                match File::open(&path) {
                    Ok(file) => read_all(file, from),
                    Err(source) => Err(ValueError::Io { from, source }),
                }
            }
        }
    }
}

fn read_all(reader: impl Read, from: String) -> Result<Vec<u8>, ValueError> {
    let mut bytes = Vec::new();
    match reader.take(VALUE_BYTES_CEILING as u64 + 1).read_to_end(&mut bytes) {
        Err(source) => Err(ValueError::Io { from, source }),
        Ok(_) if bytes.len() > VALUE_BYTES_CEILING => Err(ValueError::TooLong { from }),
        Ok(_) => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Source {
        Source::parse(OsStr::new(text))
    }

    #[test]
    fn the_first_character_says_where_the_value_is() {
        assert_eq!(parse("hello"), Source::Literal(b"hello".to_vec()));
        assert_eq!(parse(""), Source::Literal(vec![]));
        assert_eq!(parse("-"), Source::Stdin);
        assert_eq!(parse("-5"), Source::Literal(b"-5".to_vec()));
        assert_eq!(parse("@a/b"), Source::File("a/b".into()));
        assert_eq!(parse("@@home"), Source::Literal(b"@home".to_vec()));
    }

    #[test]
    fn a_file_is_read_whole_and_a_missing_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        std::fs::write(&path, b"\x00\xff").unwrap();
        assert_eq!(Source::File(path).read(true).unwrap(), b"\x00\xff");
        let error = parse("@/no/such/file").read(true).unwrap_err();
        assert!(error.to_string().starts_with("cannot read /no/such/file: "), "{error}");
    }

    #[test]
    fn the_shell_keeps_its_input() {
        assert!(matches!(parse("-").read(false), Err(ValueError::NoStdin)));
    }
}
