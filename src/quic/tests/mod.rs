//! Both ends on loopback: who gets in, who does not and why, and what travels.

mod handshake;
mod streams;

use std::fs;
use std::net::SocketAddr;

use quinn::{Connection, Endpoint};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::{TempDir, tempdir};
use tokio::task::JoinHandle;

use super::*;
use crate::pki::{Authority, Credentials, Identity, Issue, Role};

/// An authority with nodes `n1` and `n2` and the client `alice`.
struct Cluster {
    dir: TempDir,
    authority: Authority,
}

impl Cluster {
    fn new() -> Cluster {
        let dir = tempdir().unwrap();
        let authority = Authority::create(dir.path(), "demo").unwrap();
        for name in ["n1", "n2"] {
            authority.issue_node(name, &[], Issue::default()).unwrap();
        }
        authority.issue_client("alice", Role::ReadOnly, Issue::default()).unwrap();
        Cluster { dir, authority }
    }

    fn credentials(&self, name: &str) -> Credentials {
        Credentials::load(self.dir.path(), name).unwrap()
    }

    /// Credentials that `load` would refuse or `quicraft cert` would not make.
    fn odd_credentials(&self, uri: &str, usages: &[rcgen::ExtendedKeyUsagePurpose]) -> Credentials {
        let read = |file: &str| fs::read(self.dir.path().join(file)).unwrap();
        let text = |file: &str| String::from_utf8(read(file)).unwrap();
        let ca_key = rcgen::KeyPair::from_pem(&text("ca.key")).unwrap();
        let issuer = rcgen::Issuer::from_ca_cert_pem(&text("ca.crt"), ca_key).unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.subject_alt_names.push(rcgen::SanType::URI(uri.try_into().unwrap()));
        params.extended_key_usages = usages.to_vec();
        let key = rcgen::KeyPair::generate().unwrap();
        let chain = vec![params.signed_by(&key, &issuer).unwrap().der().clone()];
        let root = CertificateDer::from_pem_slice(&read("ca.crt")).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        Credentials::assemble(&[root], chain, key).unwrap()
    }

    fn node(&self, name: &str) -> Identity {
        Identity::node(self.authority.cluster(), name)
    }
}

/// A port of `n1`, and the outcome of the first connection to it.
struct Port {
    endpoint: Endpoint,
    addr: SocketAddr,
    accepted: JoinHandle<Result<(Connection, Identity), Error>>,
}

fn open(kind: PortKind, credentials: &Credentials) -> Port {
    let endpoint =
        server_endpoint(kind, loopback(), credentials, None, &Default::default()).unwrap();
    let addr = endpoint.local_addr().unwrap();
    let accepted = tokio::spawn({
        let endpoint = endpoint.clone();
        async move { accept(endpoint.accept().await.expect("the test keeps it open")).await }
    });
    Port { endpoint, addr, accepted }
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// Two connected ends.
struct Pair {
    dialler: Connection,
    acceptor: Connection,
    _endpoints: [Endpoint; 2],
}

async fn connect() -> Pair {
    let cluster = Cluster::new();
    let port = open(PortKind::Peer, &cluster.credentials("n1"));
    let endpoint = client_endpoint().unwrap();
    let dialler =
        dial(&endpoint, port.addr, "n1", &cluster.credentials("n2"), PortKind::Peer).await.unwrap();
    let (acceptor, _) = port.accepted.await.unwrap().unwrap();
    Pair { dialler, acceptor, _endpoints: [endpoint, port.endpoint] }
}

/// How a dialler learns that the other side did not want it.
async fn refusal(dialled: Result<Connection, Error>) -> Disconnect {
    match dialled {
        Ok(connection) => explain(&connection.closed().await),
        Err(Error::Disconnected { disconnect, .. }) => disconnect,
        Err(other) => panic!("{other}"),
    }
}
