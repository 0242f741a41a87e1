//! How a command ends when it does not succeed: one line on standard error and an exit code that scripts can
//! rely on.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | the key was not there |
//! | 2 | the command line, a file or a value is wrong; nothing was sent |
//! | 3 | no node answered (in time); nothing was written |
//! | 4 | the cluster refused; nothing was written |
//! | 5 | a write may or may not have happened |

use std::io;
use std::process::ExitCode;

use super::value::ValueError;
use crate::client::Error;

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The key was not there; there is nothing more to say.
    #[error("not found")]
    NotFound,
    /// The command line or a file that it names is wrong.
    #[error("{0}")]
    Usage(String),
    /// The cluster could not be reached, refused, or left the outcome open.
    #[error("{}", client_text(.0))]
    Client(#[from] Error),
    /// The cluster did something else than was asked.
    #[error("{0}")]
    Refused(String),
    /// Whoever reads the output has gone, which is no error.
    #[error("standard output is closed")]
    OutputClosed,
    /// Output or terminal failed in another way.
    #[error("cannot write the output: {0}")]
    Output(io::Error),
}

impl Failure {
    /// Something wrong with what the user gave.
    pub(super) fn usage(text: impl Into<String>) -> Failure {
        Failure::Usage(text.into())
    }

    /// The number for the shell that started us.
    pub(super) fn code(&self) -> u8 {
        match self {
            Failure::OutputClosed => 0,
            Failure::NotFound => 1,
            Failure::Usage(_) | Failure::Output(_) => 2,
            Failure::Refused(_) => 4,
            Failure::Client(error) => client_code(error),
        }
    }

    /// Whether there is a message for a human.
    pub(super) fn is_silent(&self) -> bool {
        matches!(self, Failure::NotFound | Failure::OutputClosed)
    }

    /// Says what is wrong on standard error and gives the exit code.
    pub(super) fn report(&self) -> ExitCode {
        if !self.is_silent() {
            eprintln!("error: {self}");
        }
        ExitCode::from(self.code())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::Output(error),
        }
    }
}

impl From<ValueError> for Failure {
    fn from(error: ValueError) -> Failure {
        Failure::Usage(error.to_string())
    }
}

fn client_code(error: &Error) -> u8 {
    match error {
        Error::Unknown | Error::Timeout { may_have_happened: true, .. } => 5,
        Error::KeyInvalid { .. } | Error::Credentials(_) | Error::NoSuchNode { .. } => 2,
        Error::Rejected { .. }
        | Error::WrongNode { .. }
        | Error::TooLarge { .. }
        | Error::NoSpace
        | Error::Denied { .. }
        | Error::Invalid { .. }
        | Error::Compacted { .. }
        | Error::Protocol { .. } => 4,
        Error::Unreachable { .. }
        | Error::Timeout { may_have_happened: false, .. }
        | Error::Local(_)
        | Error::ScanBroken { .. }
        | Error::Closed => 3,
    }
}

fn client_text(error: &Error) -> String {
    const HINT: &str = "is the cluster running? (quicraft cluster)";
    match error {
        Error::Unreachable { tried } if !tried.is_empty() => {
            let nothing = tried.iter().all(|(_, cause)| cause == "nothing is listening");
            match nothing {
                true => {
                    let all: Vec<_> = tried.iter().map(|(address, _)| address.as_str()).collect();
                    format!("Nothing is listening at {}: {HINT}", all.join(", "))
                }
                false => format!("{error}: {HINT}"),
            }
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_table() {
        let late = |may_have_happened| Error::Timeout { may_have_happened, last: None };
        for (error, code) in [
            (Error::Unknown, 5),
            (late(true), 5),
            (late(false), 3),
            (Error::Unreachable { tried: vec![] }, 3),
            (Error::NoSpace, 4),
            (Error::Denied { role: "readonly".into() }, 4),
            (Error::TooLarge { limit: 1 }, 4),
            (Error::KeyInvalid { bytes: 0 }, 2),
            (Error::Credentials(String::new()), 2),
        ] {
            assert_eq!(Failure::Client(error.clone()).code(), code, "{error:?}");
        }
        assert_eq!(Failure::NotFound.code(), 1);
        assert_eq!(Failure::usage("x").code(), 2);
        assert_eq!(Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)).code(), 0);
    }

    #[test]
    fn a_cluster_that_is_not_running_gets_advice() {
        let tried = vec![("127.0.0.1:7001".to_owned(), "nothing is listening".to_owned())];
        assert_eq!(
            Failure::Client(Error::Unreachable { tried }).to_string(),
            "Nothing is listening at 127.0.0.1:7001: is the cluster running? (quicraft cluster)"
        );
    }
}
