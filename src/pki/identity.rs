//! Identities: the URI in a certificate, parsed strictly.
//!
//! In goes the text of a URI, out comes an [`Identity`] or a [`Problem`]; there is exactly one spelling of each
//! identity (no escapes, no upper case, no empty parts), so comparing identities is comparing values.

use std::fmt;
use std::str::FromStr;

use ring::digest::{SHA256, digest};

use super::Problem;
use crate::proto::command::Principal;

const SCHEME: &str = "quicraft://";
const NAME_BYTES_MAX: usize = 32;
/// Random hex digits after a cluster's name.
pub(super) const CLUSTER_SUFFIX_DIGITS: usize = 8;

/// Who holds a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The cluster: its name, `-`, and eight hex digits that no other cluster has.
    pub cluster: String,
    /// The one in that cluster.
    pub who: Who,
}

/// A node or a client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    /// A member of the cluster.
    Node {
        /// Its name.
        name: String,
    },
    /// A user of the cluster.
    Client {
        /// Its name.
        name: String,
        /// What it may do.
        role: Role,
    },
}

/// What a client may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Role {
    /// Read and write all keys.
    #[default]
    ReadWrite,
    /// Read all keys.
    ReadOnly,
    /// All that, and change the cluster.
    Admin,
}

impl Identity {
    /// The node `name` of `cluster`.
    pub fn node(cluster: &str, name: &str) -> Identity {
        Identity { cluster: cluster.to_owned(), who: Who::Node { name: name.to_owned() } }
    }

    /// The client `name` of `cluster`.
    pub fn client(cluster: &str, name: &str, role: Role) -> Identity {
        Identity { cluster: cluster.to_owned(), who: Who::Client { name: name.to_owned(), role } }
    }

    /// The name of the node or client.
    pub fn name(&self) -> &str {
        match &self.who {
            Who::Node { name } | Who::Client { name, .. } => name,
        }
    }

    /// What the log knows it by: a hash of its kind and name. The role does not count, so sessions outlive a change of it;
    /// neither does the cluster, which is the same for all who get in. Never [`Principal::CLUSTER`].
    pub fn principal(&self) -> Principal {
        let kind = if self.is_node() { "node" } else { "client" };
        let hash = digest(&SHA256, format!("{kind}/{}", self.name()).as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hash.as_ref()[..8]);
        Principal(u64::from_le_bytes(first).max(1))
    }

    /// Whether this is a node.
    pub fn is_node(&self) -> bool {
        matches!(self.who, Who::Node { .. })
    }
}

impl FromStr for Identity {
    type Err = Problem;

    fn from_str(uri: &str) -> Result<Identity, Problem> {
        let bad = || Problem::Uri(excerpt(uri));
        let (cluster, rest) = split_cluster(uri).ok_or_else(bad)?;
        let (kind, rest) = rest.split_once('/').ok_or_else(bad)?;
        let (name, role) = match kind {
            "node" => (rest, None),
            "client" => {
                let (name, role) = rest.split_once("?role=").ok_or_else(bad)?;
                (name, Some(role.parse::<Role>().map_err(|_| bad())?))
            }
            _ => return Err(bad()),
        };
        check_name(name).map_err(|_| bad())?;
        Ok(match role {
            None => Identity::node(cluster, name),
            Some(role) => Identity::client(cluster, name, role),
        })
    }
}

/// The URI, as it stands in the certificate.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Who::Node { name } => write!(f, "{SCHEME}{}/node/{name}", self.cluster),
            Who::Client { name, role } => {
                write!(f, "{SCHEME}{}/client/{name}?role={role}", self.cluster)
            }
        }
    }
}

impl FromStr for Role {
    type Err = Problem;

    fn from_str(role: &str) -> Result<Role, Problem> {
        match role {
            "readwrite" => Ok(Role::ReadWrite),
            "readonly" => Ok(Role::ReadOnly),
            "admin" => Ok(Role::Admin),
            _ => Err(Problem::Role(excerpt(role))),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::ReadWrite => "readwrite",
            Role::ReadOnly => "readonly",
            Role::Admin => "admin",
        })
    }
}

/// Checks the name of a cluster (before its random part), node or client: `[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?`.
///
/// # Errors
/// [`Problem::Name`] if it is anything else.
pub fn check_name(name: &str) -> Result<(), Problem> {
    let good = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !name.starts_with('-')
        && !name.ends_with('-');
    if good { Ok(()) } else { Err(Problem::Name(excerpt(name))) }
}

/// The cluster as 16 bytes: the first half of the SHA-256 of its name with the random part. Files and messages carry
/// it, so that those of another cluster are told apart.
pub fn cluster_id(cluster: &str) -> [u8; 16] {
    let mut id = [0; 16];
    id.copy_from_slice(&digest(&SHA256, cluster.as_bytes()).as_ref()[..16]);
    id
}

/// The DNS name by which a node is dialled: bound to the node, not to its address.
pub fn node_dns_name(cluster: &str, name: &str) -> String {
    format!("{name}.{cluster}.quicraft")
}

/// The URI of the authority itself.
#[cfg(feature = "server")]
pub(super) fn authority_uri(cluster: &str) -> String {
    format!("{SCHEME}{cluster}/ca")
}

/// The cluster, if `uri` is that of an authority.
pub(super) fn parse_authority_uri(uri: &str) -> Option<&str> {
    split_cluster(uri).filter(|(_, rest)| *rest == "ca").map(|(cluster, _)| cluster)
}

fn split_cluster(uri: &str) -> Option<(&str, &str)> {
    let (cluster, rest) = uri.strip_prefix(SCHEME)?.split_once('/')?;
    let (name, suffix) = cluster.rsplit_once('-')?;
    let good = suffix.len() == CLUSTER_SUFFIX_DIGITS
        && suffix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    check_name(name).ok().filter(|()| good).map(|()| (cluster, rest))
}

/// Foreign text cut to a length that suits a message (which shows it with escapes).
fn excerpt(text: &str) -> String {
    const CHARS_MAX: usize = 64;
    text.chars().take(CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_identity_has_the_documented_uri() {
        let node = Identity::node("demo-00c0ffee", "n1");
        assert_eq!(node.to_string(), "quicraft://demo-00c0ffee/node/n1");
        assert_eq!(node.to_string().parse(), Ok(node));
        for (role, text) in
            [(Role::ReadWrite, "readwrite"), (Role::ReadOnly, "readonly"), (Role::Admin, "admin")]
        {
            let client = Identity::client("demo-00c0ffee", "alice", role);
            let uri = format!("quicraft://demo-00c0ffee/client/alice?role={text}");
            assert_eq!(client.to_string(), uri);
            assert_eq!(uri.parse(), Ok(client));
        }
    }

    #[test]
    fn a_principal_is_a_name_of_a_kind_whatever_its_role() {
        let client = |name, role| Identity::client("demo-00c0ffee", name, role).principal();
        let alice = client("alice", Role::ReadWrite);
        // Stands in logs and snapshots: the first 8 bytes of the SHA-256 of "client/alice".
        assert_eq!(alice, Principal(0x420d_4bc0_74be_85f2));
        assert_eq!(alice, client("alice", Role::Admin));
        assert_ne!(alice, client("bob", Role::ReadWrite));
        assert_ne!(alice, Identity::node("demo-00c0ffee", "alice").principal());
    }

    #[test]
    fn near_misses_are_refused() {
        let long = format!("quicraft://demo-00c0ffee/node/{}", "a".repeat(33));
        for uri in [
            "",
            "quicraft://",
            "kv://demo-00c0ffee/node/n1",
            "quicraft://demo/node/n1",
            "quicraft://-00c0ffee/node/n1",
            "quicraft://demo-00C0FFEE/node/n1",
            "quicraft://demo-00c0ffee/node/",
            "quicraft://demo-00c0ffee/node/N1",
            "quicraft://demo-00c0ffee/node/-n1",
            "quicraft://demo-00c0ffee/node/n1-",
            "quicraft://demo-00c0ffee/node/n1/",
            "quicraft://demo-00c0ffee/node/n1\0",
            "quicraft://demo-00c0ffee/node/n1?role=admin",
            "quicraft://demo-00c0ffee/node/%2e%2e",
            "quicraft://demo-00c0ffee/node/n\u{e4}",
            "quicraft://demo-00c0ffee//node/n1",
            "quicraft://demo-00c0ffee/client/alice",
            "quicraft://demo-00c0ffee/client/alice?role=",
            "quicraft://demo-00c0ffee/client/alice?role=root",
            "quicraft://demo-00c0ffee/client/alice?role=admin&role=readonly",
            "quicraft://demo-00c0ffee/ca",
            &long,
        ] {
            assert!(uri.parse::<Identity>().is_err(), "{uri:?}");
        }
    }

    #[test]
    fn clusters_of_one_name_have_different_ids() {
        assert_ne!(cluster_id("demo-00c0ffee"), cluster_id("demo-00c0ffef"));
        assert_eq!(cluster_id("demo-00c0ffee"), cluster_id("demo-00c0ffee"));
    }

    proptest! {
        #[test]
        fn an_identity_has_one_spelling(
            uri in "(quicraft://)?[a-z0-9-]{0,4}-[0-9a-fA-F]{8}/(node|client|ca)/?[a-zA-Z0-9%-]{0,34}(\\?role=(admin|readonly|x))?"
        ) {
            if let Ok(identity) = uri.parse::<Identity>() {
                prop_assert_eq!(identity.to_string(), uri);
            }
        }

        #[test]
        fn any_text_is_an_identity_or_a_problem(uri in ".*") {
            prop_assert!(uri.parse::<Identity>().is_err());
        }
    }
}
