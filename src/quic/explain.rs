//! Why a connection ended, in words.
//!
//! In goes quinn's error, out comes a [`Disconnect`]: a value to decide on, whose text an operator can act on. TLS
//! alerts are told apart by number (RFC 8446, 6.2), never by text.

use quinn::ConnectionError;

/// Why a connection ended or never came about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Disconnect {
    /// Nothing was heard for the idle timeout.
    #[error("timed out: the other side is down, paused or cut off")]
    TimedOut,
    /// The other side has restarted.
    #[error("the other side has restarted")]
    Restarted,
    /// It wants a certificate and got none.
    #[error("refused: the other side wants a certificate")]
    CertificateMissing,
    /// It does not know the authority of our certificate.
    #[error("refused: our certificate is not of the other side's cluster")]
    CertificateForeign,
    /// Our certificate is out of its time.
    #[error("refused: our certificate has expired or is not valid yet")]
    CertificateExpired,
    /// Our certificate is good, but not there.
    #[error(
        "refused: our certificate is not allowed there (of another cluster, or a client's on the port between nodes)"
    )]
    CertificateNotAllowed,
    /// Our certificate is damaged or revoked.
    #[error("refused: our certificate is not accepted (alert {alert})")]
    CertificateBad {
        /// The TLS alert.
        alert: u8,
    },
    /// The port is for something else.
    #[error("refused: this is another port (nodes have one for clients and one for nodes)")]
    WrongPort,
    /// It takes no more connections.
    #[error("refused: the other side takes no more connections now")]
    Busy,
    /// The program at the other end closed the connection.
    #[error("closed by the other side with code {code}{reason}")]
    Closed {
        /// Its code, as agreed between the two programs.
        code: u64,
        /// Its words, escaped and cut; starts with a separator or is empty.
        reason: String,
    },
    /// We closed it.
    #[error("closed by us")]
    ClosedHere,
    /// Anything else in TLS or QUIC.
    #[error("broken: {0}")]
    Protocol(String),
}

/// Says why a connection ended.
pub fn explain(error: &ConnectionError) -> Disconnect {
    match error {
        ConnectionError::TimedOut => Disconnect::TimedOut,
        ConnectionError::Reset => Disconnect::Restarted,
        ConnectionError::LocallyClosed => Disconnect::ClosedHere,
        ConnectionError::ApplicationClosed(close) => {
            Disconnect::Closed { code: close.error_code.into_inner(), reason: words(&close.reason) }
        }
        ConnectionError::ConnectionClosed(close) => refusal(u64::from(close.error_code))
            .unwrap_or_else(|| {
                Disconnect::Protocol(format!("{}{}", close.error_code, words(&close.reason)))
            }),
        ConnectionError::TransportError(_)
        | ConnectionError::VersionMismatch
        | ConnectionError::CidsExhausted => {
            Disconnect::Protocol(error.to_string().escape_debug().to_string())
        }
    }
}

/// The meaning of a code with which the other side's QUIC or TLS closed the connection.
fn refusal(code: u64) -> Option<Disconnect> {
    const CONNECTION_REFUSED: u64 = 2;
    const CRYPTO: u64 = 0x100;
    if code == CONNECTION_REFUSED {
        return Some(Disconnect::Busy);
    }
    let alert = u8::try_from(code.checked_sub(CRYPTO)?).ok()?;
    Some(match alert {
        116 => Disconnect::CertificateMissing,
        48 | 51 => Disconnect::CertificateForeign,
        45 => Disconnect::CertificateExpired,
        49 => Disconnect::CertificateNotAllowed,
        42..=44 | 46 => Disconnect::CertificateBad { alert },
        120 => Disconnect::WrongPort,
        _ => return None,
    })
}

/// Words from outside, for a message.
fn words(reason: &[u8]) -> String {
    const BYTES_MAX: usize = 128;
    let reason = &reason[..reason.len().min(BYTES_MAX)];
    match reason {
        [] => String::new(),
        _ => format!(": {}", String::from_utf8_lossy(reason).escape_debug()),
    }
}
