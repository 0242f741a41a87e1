//! Who gets in.

use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};

use super::*;
use crate::pki::Problem;

async fn dial_port(
    port: &Port,
    credentials: &Credentials,
    kind: PortKind,
) -> Result<Connection, Error> {
    dial(&client_endpoint().unwrap(), port.addr, "n1", credentials, kind).await
}

fn rejection(dialled: Result<Connection, Error>) -> Rejection {
    match dialled {
        Err(Error::Rejected { rejection, .. }) => rejection,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_node_and_a_client_are_known_by_name() {
    let cluster = Cluster::new();
    for (kind, name) in
        [(PortKind::Peer, "n2"), (PortKind::Client, "n2"), (PortKind::Client, "alice")]
    {
        let port = open(kind, &cluster.credentials("n1"));
        let credentials = cluster.credentials(name);
        let connection = dial_port(&port, &credentials, kind).await.unwrap();
        assert_eq!(identity_of(&connection).unwrap(), cluster.node("n1"));
        let (accepted, identity) = port.accepted.await.unwrap().unwrap();
        assert_eq!(identity, *credentials.identity());
        assert_eq!(certificate_of(&accepted).unwrap(), *credentials.certificate());
    }
}

#[tokio::test]
async fn an_address_is_enough_to_dial_some_node() {
    let cluster = Cluster::new();
    let port = open(PortKind::Client, &cluster.credentials("n1"));
    let endpoint = client_endpoint().unwrap();
    let connection = dial_any(&endpoint, port.addr, &cluster.credentials("alice")).await.unwrap();
    assert_eq!(identity_of(&connection).unwrap(), cluster.node("n1"));
    port.accepted.await.unwrap().unwrap();
}

#[tokio::test]
async fn nobody_comes_in_without_a_certificate() {
    let cluster = Cluster::new();
    let port = open(PortKind::Client, &cluster.credentials("n1"));
    let judge = std::sync::Arc::new(tls::Judge::new(&cluster.credentials("alice"), None));
    let mut tls = tls::client(PortKind::Client, &cluster.credentials("alice"), judge).unwrap();
    tls.client_auth_cert_resolver = std::sync::Arc::new(Nobody);
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let config = quinn::ClientConfig::new(std::sync::Arc::new(crypto));
    let endpoint = client_endpoint().unwrap();
    let dialled = endpoint.connect_with(config, port.addr, "127.0.0.1").unwrap().await;
    let error = match dialled {
        Ok(connection) => connection.closed().await,
        Err(error) => error,
    };
    assert_eq!(explain(&error), Disconnect::CertificateMissing);
    assert!(port.accepted.await.unwrap().is_err());
}

#[derive(Debug)]
struct Nobody;

impl rustls::client::ResolvesClientCert for Nobody {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _sigschemes: &[rustls::SignatureScheme],
    ) -> Option<std::sync::Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn clusters_of_one_name_and_two_authorities_do_not_mix() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let port = open(PortKind::Peer, &theirs.credentials("n1"));
    let dialled = dial_port(&port, &ours.credentials("n2"), PortKind::Peer).await;
    assert_eq!(rejection(dialled), Rejection::ForeignAuthority);
    assert!(port.accepted.await.unwrap().is_err());

    // And if only the node that is dialled minds: the dialler trusts the other authority, with a certificate of ours.
    let port = open(PortKind::Peer, &theirs.credentials("n1"));
    let mut credentials = ours.credentials("n2");
    credentials.roots = theirs.credentials("n2").roots;
    let endpoint = client_endpoint().unwrap();
    let mut trusting = theirs.credentials("n2");
    trusting.key = credentials.key.clone();
    let dialled = dial(&endpoint, port.addr, "n1", &trusting, PortKind::Peer).await;
    assert_eq!(refusal(dialled).await, Disconnect::CertificateForeign);
    assert!(port.accepted.await.unwrap().is_err());
}

#[tokio::test]
async fn another_cluster_of_the_same_authority_is_refused() {
    let cluster = Cluster::new();
    let uri = "quicraft://demo-00000000/node/n2";
    let other = cluster.odd_credentials(uri, &[ServerAuth, ClientAuth]);
    let mut posing = cluster.credentials("n2");
    posing.key = other.key.clone();
    let port = open(PortKind::Peer, &cluster.credentials("n1"));
    let dialled = dial_port(&port, &posing, PortKind::Peer).await;
    assert_eq!(refusal(dialled).await, Disconnect::CertificateNotAllowed);

    let port = open(PortKind::Peer, &other);
    let dialled = dial_port(&port, &cluster.credentials("n2"), PortKind::Peer).await;
    let found = "demo-00000000".to_owned();
    assert_eq!(rejection(dialled), Rejection::OtherCluster { found });
}

#[tokio::test]
async fn a_client_is_refused_between_nodes_and_as_a_node() {
    let cluster = Cluster::new();
    let port = open(PortKind::Peer, &cluster.credentials("n1"));
    let dialled = dial_port(&port, &cluster.credentials("alice"), PortKind::Peer).await;
    assert_eq!(refusal(dialled).await, Disconnect::CertificateNotAllowed);
    assert!(port.accepted.await.unwrap().is_err());

    let uri = format!("quicraft://{}/client/eve?role=admin", cluster.authority.cluster());
    let posing = cluster.odd_credentials(&uri, &[ServerAuth, ClientAuth]);
    let port = open(PortKind::Client, &posing);
    let dialled =
        dial_any(&client_endpoint().unwrap(), port.addr, &cluster.credentials("alice")).await;
    assert_eq!(rejection(dialled), Rejection::NotANode { found: "eve".to_owned() });
}

#[tokio::test]
async fn another_node_than_the_one_that_was_dialled_is_refused() {
    let cluster = Cluster::new();
    let port = open(PortKind::Peer, &cluster.credentials("n1"));
    let endpoint = client_endpoint().unwrap();
    let dialled =
        dial(&endpoint, port.addr, "n3", &cluster.credentials("n2"), PortKind::Peer).await;
    let wrong = Rejection::WrongNode { expected: "n3".to_owned(), found: "n1".to_owned() };
    assert_eq!(rejection(dialled), wrong);
    assert!(port.accepted.await.unwrap().is_err());
}

#[tokio::test]
async fn the_other_port_of_a_node_is_told_apart() {
    let cluster = Cluster::new();
    let port = open(PortKind::Peer, &cluster.credentials("n1"));
    let dialled = dial_port(&port, &cluster.credentials("n2"), PortKind::Client).await;
    assert_eq!(refusal(dialled).await, Disconnect::WrongPort);
    assert!(port.accepted.await.unwrap().is_err());
}

#[tokio::test]
async fn certificates_without_their_key_usage_are_refused() {
    let cluster = Cluster::new();
    let uri = cluster.node("n1").to_string();
    for usages in [&[][..], &[ClientAuth]] {
        let bare = cluster.odd_credentials(&uri, usages);
        let port = open(PortKind::Peer, &cluster.credentials("n1"));
        let dialled = dial_port(&port, &bare, PortKind::Peer).await;
        assert_eq!(refusal(dialled).await, Disconnect::CertificateNotAllowed);
        assert!(port.accepted.await.unwrap().is_err());
    }
    let port = open(PortKind::Peer, &cluster.odd_credentials(&uri, &[]));
    let dialled = dial_port(&port, &cluster.credentials("n2"), PortKind::Peer).await;
    assert_eq!(rejection(dialled), Rejection::Problem(Problem::Usage("TLS clients")));
}

#[tokio::test]
async fn a_closed_port_and_a_taken_one_are_named() {
    let cluster = Cluster::new();
    let credentials = cluster.credentials("n1");
    let closed = std::net::UdpSocket::bind(loopback()).unwrap().local_addr().unwrap();
    let endpoint = client_endpoint().unwrap();
    let dialled = dial(&endpoint, closed, "n1", &credentials, PortKind::Client).await;
    assert!(matches!(dialled, Err(Error::NothingListening { addr }) if addr == closed));

    let silent = std::net::UdpSocket::bind(loopback()).unwrap();
    let addr = silent.local_addr().unwrap();
    let taken =
        server_endpoint(PortKind::Peer, addr, &credentials, None, &Default::default()).unwrap_err();
    assert!(matches!(taken, Error::AddressInUse { .. }));
    assert!(taken.to_string().contains(&addr.to_string()));
    let dialled = dial(&endpoint, addr, "n1", &credentials, PortKind::Peer).await;
    assert!(matches!(dialled, Err(Error::TimedOut { .. })));
}

#[tokio::test]
async fn new_credentials_serve_new_connections() {
    let cluster = Cluster::new();
    let old = cluster.credentials("n1");
    let port = open(PortKind::Client, &old);
    cluster.authority.issue_node("n1", &[], Issue { overwrite: true, ..Issue::default() }).unwrap();
    let new = cluster.credentials("n1");
    reload(&port.endpoint, PortKind::Client, &new).unwrap();
    let alice = cluster.credentials("alice");
    let connection = dial_port(&port, &alice, PortKind::Client).await.unwrap();
    assert_eq!(certificate_of(&connection).unwrap().serial, new.certificate().serial);
    assert_ne!(old.certificate().serial, new.certificate().serial);
}

#[tokio::test]
async fn a_restart_is_noticed_at_once_with_a_lasting_secret() {
    let cluster = Cluster::new();
    let n1 = cluster.credentials("n1");
    let secret = Some([7; 32]);
    let (address, addressed) = tokio::sync::oneshot::channel();
    let (die, death) = tokio::sync::oneshot::channel::<()>();
    let credentials = n1.clone();
    let process = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let open = runtime.block_on(async {
            let server = server_endpoint(
                PortKind::Client,
                loopback(),
                &credentials,
                secret,
                &Default::default(),
            );
            let server = server.unwrap();
            address.send(server.local_addr().unwrap()).unwrap();
            let connection = accept(server.accept().await.unwrap()).await.unwrap();
            death.await.unwrap();
            (server, connection)
        });
        // The tasks that would say goodbye go first.
        drop(runtime);
        drop(open);
    });
    let addr = addressed.await.unwrap();
    let endpoint = client_endpoint().unwrap();
    let connection = dial_any(&endpoint, addr, &cluster.credentials("alice")).await.unwrap();
    die.send(()).unwrap();
    process.join().unwrap();
    let _again = server_endpoint(PortKind::Client, addr, &n1, secret, &Default::default()).unwrap();
    let (mut stream, _) = connection.open_bi().await.unwrap();
    stream.write_all(&[0; 100]).await.unwrap();
    assert_eq!(explain(&connection.closed().await), Disconnect::Restarted);
}
