//! What can go wrong for a user of the client, named for what the caller can do about it.

use crate::proto::client::Refusal;
use crate::proto::limits::KEY_BYTES_MAX;

/// Why an operation did not give its result. All but [`Error::Unknown`] and a [`Error::Timeout`] that says so
/// mean that nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No node answered; each address with its cause. Nothing was written.
    #[error("{}", unreachable_text(.tried))]
    Unreachable {
        /// What was tried and what came of it.
        tried: Vec<(String, String)>,
    },
    /// A node was reached, but one side does not accept the other's certificate.
    #[error("{address}: {reason}")]
    Rejected {
        /// The node's address.
        address: String,
        /// Which certificate is not accepted and why.
        reason: String,
    },
    /// The deadline came before an answer.
    #[error("{}", timeout_text(*.may_have_happened, .last))]
    Timeout {
        /// Whether a write may still have been, or come to be, applied.
        may_have_happened: bool,
        /// What stood in the way last, if anything did.
        last: Option<String>,
    },
    /// The write may or may not have happened, and asking again cannot tell: its session is gone.
    #[error("it is not known whether the write happened: read the key before writing again")]
    Unknown,
    /// A key must have 1 to [`KEY_BYTES_MAX`] bytes.
    #[error("a key has 1 to {KEY_BYTES_MAX} bytes, this one has {bytes}")]
    KeyInvalid {
        /// The length of the refused key.
        bytes: usize,
    },
    /// The value is, or would become, longer than allowed.
    #[error("a value has at most {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// The cluster has no room for more data; reads and deletes still work.
    #[error("the cluster has no room for more data")]
    NoSpace,
    /// The certificate's role does not allow the request.
    #[error("not allowed for a certificate with the role {role:?}")]
    Denied {
        /// The role of the certificate.
        role: String,
    },
    /// The node says that the request makes no sense.
    #[error("refused: {reason}")]
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// The asked revision is gone.
    #[error("that revision is gone, the oldest is {oldest}")]
    Compacted {
        /// The oldest that is there.
        oldest: u64,
    },
    /// No member of the cluster has this id.
    #[error("the cluster has no node {node_id}")]
    NoSuchNode {
        /// The id that was asked for.
        node_id: u64,
    },
    /// Another node answers at the address of the one that was asked, as after a member was replaced. Its answer is not
    /// taken for the other's.
    #[error("{address} is {found} now, not {asked}")]
    WrongNode {
        /// The address.
        address: String,
        /// Who was asked.
        asked: String,
        /// Who answers.
        found: String,
    },
    /// The certificates cannot be used.
    #[error("{0}")]
    Credentials(String),
    /// A local resource (a socket) was not to be had.
    #[error("{0}")]
    Local(String),
    /// A node answered something that is no answer to the question: its version or its software is another.
    #[error("node {node_id} answered with something else than expected: {what}")]
    Protocol {
        /// The node.
        node_id: u64,
        /// What was wrong.
        what: String,
    },
    /// A scan broke off because its node was lost; rows so far are right, the rest is missing.
    #[error("the scan broke off: {reason}")]
    ScanBroken {
        /// What happened to it.
        reason: String,
    },
    /// The client was closed.
    #[error("the client was closed")]
    Closed,
}

impl Error {
    /// Whether a write that ended with this error may nevertheless have been applied.
    pub fn may_have_happened(&self) -> bool {
        matches!(self, Error::Unknown | Error::Timeout { may_have_happened: true, .. })
    }

    /// The final error of a refusal, or `None` for those that another try can mend.
    pub(super) fn from_refusal(refusal: &Refusal) -> Option<Error> {
        Some(match refusal {
            Refusal::NotLeader { .. } | Refusal::Busy { .. } | Refusal::Unknown => return None,
            Refusal::TooLarge { limit } => Error::TooLarge { limit: *limit },
            Refusal::NoSpace => Error::NoSpace,
            Refusal::Compacted { oldest } => Error::Compacted { oldest: *oldest },
            Refusal::Denied { role } => Error::Denied { role: role.clone() },
            Refusal::Invalid { reason } => Error::Invalid { reason: reason.clone() },
        })
    }
}

fn unreachable_text(tried: &[(String, String)]) -> String {
    match tried {
        [] => "no endpoint is known".into(),
        [(address, cause)] => format!("{address}: {cause}"),
        _ => {
            let each: Vec<_> =
                tried.iter().map(|(address, cause)| format!("{address} ({cause})")).collect();
            format!("no node answers: {}", each.join(", "))
        }
    }
}

fn timeout_text(may_have_happened: bool, last: &Option<String>) -> String {
    let mut text = String::from("no answer in time");
    if let Some(last) = last {
        text = format!("{text} ({last})");
    }
    if may_have_happened {
        text.push_str(": the write may or may not have happened");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_final_refusals_become_errors() {
        assert_eq!(Error::from_refusal(&Refusal::NotLeader { leader: Some(1) }), None);
        assert_eq!(Error::from_refusal(&Refusal::Busy { retry_after_ms: 1 }), None);
        assert_eq!(Error::from_refusal(&Refusal::Unknown), None);
        assert_eq!(Error::from_refusal(&Refusal::NoSpace), Some(Error::NoSpace));
    }

    #[test]
    fn messages_are_one_line() {
        let tried = vec![("a:1".into(), "x".into()), ("b:2".into(), "y".into())];
        let text = Error::Unreachable { tried }.to_string();
        assert_eq!(text, "no node answers: a:1 (x), b:2 (y)");
        let error = Error::Timeout { may_have_happened: true, last: None };
        assert_eq!(error.to_string(), "no answer in time: the write may or may not have happened");
        assert!(error.may_have_happened());
    }
}
