//! Splits a line of the shell into words, like a POSIX shell does, without its expansions.
//!
//! In: a line. Out: its words, or why it is not complete. `'…'` takes everything as it is; inside `"…"` and
//! outside of quotes a backslash escapes: `\n`, `\t`, `\r`, `\0`, `\xNN` inside double quotes mean that byte,
//! anything else means itself. Left out: variables, globs, pipes, comments.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// Why a line cannot be split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WordsError {
    /// A quote was not closed.
    #[error("a {0} is not closed")]
    OpenQuote(char),
    /// The line ends with a backslash.
    #[error("the line ends with a backslash")]
    OpenEscape,
    /// `\x` without two hexadecimal digits.
    #[error("\\x needs two hexadecimal digits")]
    BadHex,
}

/// The words of `line`; none for a line of blanks.
///
/// # Errors
/// [`WordsError`] for a line that stops in the middle of a word.
pub(super) fn split(line: &str) -> Result<Vec<OsString>, WordsError> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        match c {
            ' ' | '\t' | '\n' | '\r' => words.extend(word.take().map(OsString::from_vec)),
            '\'' => single_quoted(&mut rest, word.get_or_insert_default())?,
            '"' => double_quoted(&mut rest, word.get_or_insert_default())?,
            '\\' => {
                let escaped = rest.next().ok_or(WordsError::OpenEscape)?;
                push(word.get_or_insert_default(), escaped);
            }
            _ => push(word.get_or_insert_default(), c),
        }
    }
    words.extend(word.map(OsString::from_vec));
    Ok(words)
}

fn single_quoted(rest: &mut std::str::Chars<'_>, word: &mut Vec<u8>) -> Result<(), WordsError> {
    loop {
        match rest.next().ok_or(WordsError::OpenQuote('\''))? {
            '\'' => return Ok(()),
            c => push(word, c),
        }
    }
}

fn double_quoted(rest: &mut std::str::Chars<'_>, word: &mut Vec<u8>) -> Result<(), WordsError> {
    loop {
        match rest.next().ok_or(WordsError::OpenQuote('"'))? {
            '"' => return Ok(()),
            '\\' => match rest.next().ok_or(WordsError::OpenEscape)? {
                'n' => word.push(b'\n'),
                't' => word.push(b'\t'),
                'r' => word.push(b'\r'),
                '0' => word.push(0),
                'x' => {
                    let mut digit = || rest.next().and_then(|c| c.to_digit(16));
                    let (high, low) = (digit(), digit());
                    let (Some(high), Some(low)) = (high, low) else {
                        return Err(WordsError::BadHex);
                    };
                    word.push((high * 16 + low) as u8);
                }
                c => push(word, c),
            },
            c => push(word, c),
        }
    }
}

fn push(word: &mut Vec<u8>, c: char) {
    word.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(line: &str) -> Vec<Vec<u8>> {
        split(line).unwrap().into_iter().map(OsString::into_vec).collect()
    }

    #[test]
    fn blanks_part_words_and_quotes_join_them() {
        assert_eq!(words("  put  a 'b c' "), [&b"put"[..], b"a", b"b c"]);
        assert_eq!(words("a'b'\"c\"d"), [b"abcd"]);
        assert_eq!(words("put k ''"), [&b"put"[..], b"k", b""]);
        assert!(words(" \t ").is_empty());
    }

    #[test]
    fn escapes_name_bytes_inside_double_quotes_only() {
        assert_eq!(words(r#""a\n\x00\xfF\"\\""#), [b"a\n\x00\xff\"\\"]);
        assert_eq!(words(r"a\ b \n"), [&b"a b"[..], b"n"]);
        assert_eq!(words(r"'\n'"), [br"\n"]);
    }

    #[test]
    fn unfinished_lines_say_what_is_missing() {
        assert_eq!(split("put 'a"), Err(WordsError::OpenQuote('\'')));
        assert_eq!(split("put \"a"), Err(WordsError::OpenQuote('"')));
        assert_eq!(split("put \\"), Err(WordsError::OpenEscape));
        assert_eq!(split("\"\\x4\""), Err(WordsError::BadHex));
    }

    proptest! {
        #[test]
        fn any_line_is_split_or_refused(line in ".*") {
            let _ = split(&line);
        }

        #[test]
        fn single_quotes_keep_everything(text in "[^']*") {
            prop_assert_eq!(words(&format!("'{text}'")), [text.as_bytes()]);
        }
    }
}
