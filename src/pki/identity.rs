//! Who somebody is: one URI in the certificate's subject alternative names.
//!
//! `quicraft://CLUSTER/node/NAME` or `quicraft://CLUSTER/client/NAME?role=ROLE`. The parser is total
//! and takes exactly these forms: no escapes, no upper case, no second URI.

use std::fmt;

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

/// A name in a cluster, as its CA vouches for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster: a name and eight random hexadecimal digits, so that no two are the same.
    pub cluster: String,
    /// Which node or client.
    pub who: Who,
}

/// A node or a client; a client can never act as a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// A member of the cluster.
    Node {
        /// Its name.
        name: String,
    },
    /// A client of the cluster.
    Client {
        /// Its name.
        name: String,
        /// What it may do.
        role: Role,
    },
}

/// What a client may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "server", derive(clap::ValueEnum))]
pub enum Role {
    /// Read everything.
    #[cfg_attr(feature = "server", value(name = "readonly"))]
    ReadOnly,
    /// Read and write everything.
    #[cfg_attr(feature = "server", value(name = "readwrite"))]
    ReadWrite,
    /// Everything, the cluster's members included.
    #[cfg_attr(feature = "server", value(name = "admin"))]
    Admin,
}

impl Role {
    /// The role's name in certificates.
    pub fn name(self) -> &'static str {
        match self {
            Role::ReadOnly => "readonly",
            Role::ReadWrite => "readwrite",
            Role::Admin => "admin",
        }
    }

    fn parse(name: &str) -> Option<Role> {
        [Role::ReadOnly, Role::ReadWrite, Role::Admin].into_iter().find(|role| role.name() == name)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identity { cluster, who } = self;
        match who {
            Who::Node { name } => write!(f, "quicraft://{cluster}/node/{name}"),
            Who::Client { name, role } => {
                write!(f, "quicraft://{cluster}/client/{name}?role={}", role.name())
            }
        }
    }
}

impl Identity {
    /// Parses the URI; `None` if it is not exactly one of the two forms.
    pub fn parse(uri: &str) -> Option<Identity> {
        let mut parts = uri.strip_prefix("quicraft://")?.split('/');
        let (cluster, kind, rest) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || !is_name(cluster) {
            return None;
        }
        let who = match (kind, rest.split_once("?role=")) {
            ("node", None) => Who::Node { name: valid(rest)? },
            ("client", Some((name, role))) => {
                Who::Client { name: valid(name)?, role: Role::parse(role)? }
            }
            _ => return None,
        };
        Some(Identity { cluster: cluster.to_owned(), who })
    }

    /// The node's or client's name.
    pub fn name(&self) -> &str {
        match &self.who {
            Who::Node { name } | Who::Client { name, .. } => name,
        }
    }

    /// Reads the identity out of a certificate whose chain was verified already, and checks that its
    /// key usages fit: nodes serve and call, clients only call.
    ///
    /// # Errors
    /// What is wrong with the certificate, in words.
    pub fn of_certificate(der: &CertificateDer<'_>) -> Result<Identity, String> {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|_| "the certificate cannot be read".to_owned())?;
        let (mut uris, mut usages) = (Vec::new(), (false, false));
        for extension in certificate.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    uris.extend(names.general_names.iter().filter_map(|name| match name {
                        GeneralName::URI(uri) => Some(*uri),
                        _ => None,
                    }));
                }
                ParsedExtension::ExtendedKeyUsage(usage) => {
                    usages = (usage.server_auth, usage.client_auth);
                }
                _ => {}
            }
        }
        let [uri] = uris[..] else {
            return Err(format!("the certificate names {} identities instead of one", uris.len()));
        };
        let identity = Identity::parse(uri).ok_or_else(|| {
            format!("the certificate's identity {uri:.100?} is none of Quicraft's")
        })?;
        let fits = match identity.who {
            Who::Node { .. } => usages == (true, true),
            Who::Client { .. } => usages == (false, true),
        };
        if !fits {
            return Err(format!("the certificate's key usages do not fit {identity}"));
        }
        Ok(identity)
    }
}

fn valid(name: &str) -> Option<String> {
    is_name(name).then(|| name.to_owned())
}

/// Whether this may name a cluster, node or client: 1 to 48 of `a-z0-9-`, no dash at either end.
pub fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(plain)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// Names become file names and DNS labels (at most 63 bytes).
const NAME_BYTES_MAX: usize = 48;

/// The DNS name that a node's certificate carries: it ties the certificate to the node, whatever its
/// address is.
pub fn dns_name(node: &str, cluster: &str) -> String {
    format!("{node}.{cluster}.quicraft")
}

/// The cluster's name as a fixed number of bytes, for files: the first half of its SHA-256.
pub fn cluster_id(cluster: &str) -> [u8; 16] {
    let digest = ring::digest::digest(&ring::digest::SHA256, cluster.as_bytes());
    let mut id = [0; 16];
    id.copy_from_slice(&digest.as_ref()[..16]);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_read_as_they_are_written() {
        for uri in [
            "quicraft://demo-0123abcd/node/n1",
            "quicraft://demo-0123abcd/client/alice?role=readonly",
            "quicraft://d/client/a?role=admin",
        ] {
            assert_eq!(Identity::parse(uri).unwrap().to_string(), uri);
        }
    }

    #[test]
    fn anything_else_is_no_identity() {
        let long = format!("quicraft://d/node/{}", "a".repeat(49));
        for uri in [
            "",
            "quicraft://",
            "quicraft://d/node/",
            "quicraft://d/node/N1",
            "quicraft://d/node/n1/",
            "quicraft://d/node/n1?role=admin",
            "quicraft://d/client/a",
            "quicraft://d/client/a?role=root",
            "quicraft://d/client/a?role=admin&role=readonly",
            "quicraft://d/node/%2e%2e",
            "quicraft://d/node/..",
            "quicraft://d/node/-a",
            "quicraft:///node/a",
            "http://d/node/a",
            "quicraft://d/node/a\0",
            "quicraft://d\n/node/a",
            "QUICRAFT://d/node/a",
            &long,
        ] {
            assert_eq!(Identity::parse(uri), None, "{uri:?}");
        }
    }
}
