//! One certificate, read.
//!
//! In goes DER, out comes what the rest of the house wants to know of it. Nothing is verified here: signatures and
//! chains are the business of TLS (and of [`super::Credentials::load`]). Bytes from anyone may come in.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::identity::parse_authority_uri;
use super::{Identity, Problem};

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Whose it is.
    pub subject: Subject,
    /// DNS names and IP addresses.
    pub hosts: Vec<String>,
    /// First moment of validity.
    pub not_before: SystemTime,
    /// Last moment of validity.
    pub not_after: SystemTime,
    /// The serial number in hex.
    pub serial: String,
    /// Whether the extended key usage names TLS servers.
    pub is_for_servers: bool,
    /// Whether the extended key usage names TLS clients.
    pub is_for_clients: bool,
}

/// Whose certificate it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The cluster's authority.
    Authority {
        /// The cluster.
        cluster: String,
    },
    /// A node or client.
    Leaf(Identity),
}

impl Certificate {
    /// Reads a certificate.
    ///
    /// # Errors
    /// [`Problem`] if it is none, or has not exactly one URI that is an identity.
    pub fn parse(der: &[u8]) -> Result<Certificate, Problem> {
        let (rest, x509) = X509Certificate::from_der(der).map_err(|_| Problem::Encoding)?;
        let names = x509.subject_alternative_name().map_err(|_| Problem::Encoding)?;
        let usage = x509.extended_key_usage().map_err(|_| Problem::Encoding)?;
        if !rest.is_empty() {
            return Err(Problem::Encoding);
        }
        let (mut uris, mut hosts) = (Vec::new(), Vec::new());
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::URI(uri) => uris.push(*uri),
                GeneralName::DNSName(host) => hosts.push(host.escape_debug().to_string()),
                GeneralName::IPAddress(bytes) => hosts.extend(address(bytes)),
                _ => (),
            }
        }
        let &[uri] = uris.as_slice() else { return Err(Problem::Uris(uris.len())) };
        let subject = match parse_authority_uri(uri).filter(|_| x509.is_ca()) {
            Some(cluster) => Subject::Authority { cluster: cluster.to_owned() },
            None => Subject::Leaf(uri.parse()?),
        };
        Ok(Certificate {
            subject,
            hosts,
            not_before: moment(x509.validity().not_before.timestamp()),
            not_after: moment(x509.validity().not_after.timestamp()),
            serial: x509.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
            is_for_servers: usage.as_ref().is_some_and(|usage| usage.value.server_auth),
            is_for_clients: usage.as_ref().is_some_and(|usage| usage.value.client_auth),
        })
    }

    /// The identity of a node or client whose certificate also has the extended key usage that goes with it: clients
    /// that of TLS clients, nodes also that of servers. (webpki accepts certificates that name no usage at all.)
    ///
    /// # Errors
    /// [`Problem`] if it is an authority's certificate or lacks a usage.
    pub fn identity(&self) -> Result<&Identity, Problem> {
        let Subject::Leaf(identity) = &self.subject else {
            return Err(Problem::Kind {
                expected: "a node's or a client's",
                found: "an authority's",
            });
        };
        if !self.is_for_clients {
            return Err(Problem::Usage("TLS clients"));
        }
        if identity.is_node() && !self.is_for_servers {
            return Err(Problem::Usage("TLS servers"));
        }
        Ok(identity)
    }
}

fn address(bytes: &[u8]) -> Option<String> {
    let address = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        _ => return None,
    };
    Some(address.to_string())
}

/// Seconds since 1970 as a moment; what lies before is as good as 1970 itself.
fn moment(unix_seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(unix_seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_certificate_or_a_problem(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(Certificate::parse(&bytes).is_err());
        }
    }
}
