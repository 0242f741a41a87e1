//! Certificates of a running cluster: warned of before they expire, renewed without a restart, and the end of those whose
//! time is over.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use harness::{Cluster, PATIENCE, QUICRAFT, until, without_variables};
use quicraft::client::{Client, Options};
use quicraft::pki::{Certificate, Credentials};
use quicraft::quic::{PortKind, client_endpoint, dial};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Long enough for a busy machine to start a cluster, short enough to wait for.
const SHORT: Duration = Duration::from_secs(12);

/// Issues a certificate in the place of that of `name` which expires `lifetime` from now, for the same identity and key.
fn shorten(certs: &Path, name: &str, lifetime: Duration) -> SystemTime {
    let read = |file: &str| fs::read_to_string(certs.join(file)).unwrap();
    let old = rcgen_pem(&read(&format!("{name}.crt")));
    let ca_key = rcgen::KeyPair::from_pem(&read("ca.key")).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&read("ca.crt"), ca_key).unwrap();
    let mut params = rcgen::CertificateParams::new(old.hosts.clone()).unwrap();
    let uri = old.identity().unwrap().to_string();
    params.subject_alt_names.push(rcgen::SanType::URI(uri.try_into().unwrap()));
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    if old.is_for_servers {
        params.extended_key_usages.push(rcgen::ExtendedKeyUsagePurpose::ServerAuth);
    }
    let end = SystemTime::now() + lifetime;
    params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
    params.not_after = end.into();
    let key = rcgen::KeyPair::from_pem(&read(&format!("{name}.key"))).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    replace(&certs.join(format!("{name}.crt")), certificate.pem().as_bytes());
    end
}

fn rcgen_pem(pem: &str) -> Certificate {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    Certificate::parse(&CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap()
}

/// As an operator's tool does it: a reader never sees half a file.
fn replace(path: &Path, content: &[u8]) {
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, content).unwrap();
    fs::rename(&fresh, path).unwrap();
}

/// Waits until a certificate is over.
async fn pass(end: SystemTime) {
    while let Ok(left) = end.duration_since(SystemTime::now()) {
        tokio::time::sleep(left + Duration::from_millis(10)).await;
    }
    // It is good through its last second.
    tokio::time::sleep(Duration::from_secs(1)).await;
}

async fn says(cluster: &Cluster, node: usize, text: &str) {
    until(text, async || cluster.log(node).contains(text).then_some(())).await;
}

#[tokio::test]
async fn a_renewed_node_goes_on_and_one_that_was_forgotten_is_cut_off() {
    let mut cluster = Cluster::prepare(3, "");
    let certs = cluster.path("certs");
    shorten(&certs, "n2", SHORT);
    let end = shorten(&certs, "n3", SHORT);
    (0..3).for_each(|i| cluster.spawn(i));
    cluster.leader().await;
    let client = cluster.client().await;
    client.put("before", "1").await.unwrap();
    says(&cluster, 1, "this node's certificate expires in 0 days").await;
    assert!(!cluster.log(0).contains("expires"), "{}", cluster.log(0));
    let text = String::from_utf8(cluster.cli(&["status"]).stdout).unwrap();
    assert!(text.contains("n2: certificate n2.crt expires in 0 days"), "{text}");
    assert!(!text.contains("n1.crt"), "{text}");
    let json = cluster.cli(&["status", "-o", "json"]).stdout;
    let json: Value = serde_json::from_slice(&json).unwrap();
    assert!(json["nodes"][0]["certificates"][0]["days_left"].as_i64().unwrap() > 300, "{json}");
    assert_eq!(json["nodes"][1]["certificates"][0]["days_left"], 0, "{json}");

    let renewed = cluster.cli(&["cert", "renew", "n2"]);
    assert!(renewed.status.success(), "{renewed:?}");
    cluster.signal(1, Signal::HUP);
    says(&cluster, 1, "new certificates are in use").await;
    pass(end).await;

    says(&cluster, 2, "this node's certificate has expired").await;
    // n1 and n2 are a majority without it, and n2 has been there all the time.
    client.put("after", "2").await.unwrap();
    let n1_and_n2 = async || {
        let one = client.get_local("after", Some(1)).await.ok()??;
        let two = client.get_local("after", Some(2)).await.ok()??;
        (one == two).then_some(())
    };
    until("n1 and n2 go on together", n1_and_n2).await;
    let text = until("n3 is refused for its certificate", async || {
        let text = String::from_utf8(cluster.cli(&["status"]).stdout).unwrap();
        text.contains("n3: ").then_some(text)
    })
    .await;
    assert!(text.contains("expired"), "{text}");
    assert!(cluster.log(1).contains("has expired") || cluster.log(0).contains("has expired"));

    // Renewed without a signal, it is back by itself.
    assert!(cluster.cli(&["cert", "renew", "n3", "--new-key"]).status.success());
    says(&cluster, 2, "new certificates are in use").await;
    let fresh = cluster.client().await;
    until("n3 is back", async || fresh.get_local("after", Some(3)).await.ok()?).await;
    // A key that is another by now is no matter to what the node has on disk.
    cluster.term(2).await;
    cluster.spawn(2);
    cluster.converge().await;
}

#[tokio::test]
async fn a_clients_connection_ends_with_its_certificate_and_a_renewed_client_goes_on() {
    let cluster = Cluster::start(1).await;
    let certs = cluster.path("certs");
    let lifetime = Duration::from_secs(5);
    let end = shorten(&certs, "client", lifetime);
    let credentials = Credentials::load(&certs, "client").unwrap();
    let endpoint = client_endpoint().unwrap();
    let address = cluster.endpoint(0).parse().unwrap();
    let connection = dial(&endpoint, address, "n1", &credentials, PortKind::Client).await.unwrap();
    let options = Options {
        endpoints: vec![cluster.endpoint(0)],
        certs: certs.clone(),
        name: "client".into(),
        timeout: PATIENCE,
    };
    let client = Client::connect(options).await.unwrap();
    client.put("key", "1").await.unwrap();

    let reason = tokio::time::timeout(PATIENCE, connection.closed()).await.unwrap().to_string();
    let late = SystemTime::now().duration_since(end - Duration::from_secs(1));
    assert!(late.is_ok(), "it ended before its time");
    assert!(reason.contains("certificate of client has expired"), "{reason}");
    assert!(cluster.log(0).contains("certificate of client has expired"), "{}", cluster.log(0));

    assert!(cluster.cli(&["cert", "renew", "client"]).status.success());
    client.put("key", "2").await.unwrap();
    assert_eq!(client.get("key").await.unwrap().unwrap().bytes, "2");
}

#[tokio::test]
async fn certificates_that_cannot_be_used_change_nothing_and_are_named_once() {
    let cluster = Cluster::start(1).await;
    let path = cluster.path("certs/n1.crt");
    let good = fs::read(&path).unwrap();
    replace(&path, b"no certificate");
    cluster.signal(0, Signal::HUP);
    says(&cluster, 0, "are not reloaded, the old ones stay").await;
    let client = cluster.client().await;
    client.put("key", "1").await.unwrap();
    // Some looks at the files later it is no news.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let log = cluster.log(0);
    assert_eq!(log.matches("are not reloaded").count(), 1, "{log}");
    assert!(log.contains("n1.crt"), "{log}");
    replace(&path, &good);
    says(&cluster, 0, "the certificates are the same as before").await;
}

#[tokio::test]
async fn an_authority_that_is_not_trusted_any_more_ends_connections() {
    let cluster = Cluster::start(1).await;
    let certs = cluster.path("certs");
    let credentials = Credentials::load(&certs, "client").unwrap();
    let endpoint = client_endpoint().unwrap();
    let address = cluster.endpoint(0).parse().unwrap();
    let connection = dial(&endpoint, address, "n1", &credentials, PortKind::Client).await.unwrap();

    // Another authority of the same cluster, and the node's certificate of it.
    let read = |file: &str| fs::read_to_string(certs.join(file)).unwrap();
    let uri = format!("quicraft://{}/ca", credentials.identity().cluster);
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    params.subject_alt_names.push(rcgen::SanType::URI(uri.try_into().unwrap()));
    params.distinguished_name.push(rcgen::DnType::CommonName, "the second authority");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let key = rcgen::KeyPair::generate().unwrap();
    let key_pem = key.serialize_pem();
    let authority = rcgen::CertifiedIssuer::self_signed(params, key).unwrap();
    let (old, new) = (read("ca.crt"), authority.pem());
    let old_key = read("ca.key");
    replace(&certs.join("ca.key"), key_pem.as_bytes());
    {
        use std::os::unix::fs::PermissionsExt;
        let owner_only = fs::Permissions::from_mode(0o600);
        fs::set_permissions(certs.join("ca.key"), owner_only).unwrap();
    }
    // Both are trusted for a while.
    replace(&certs.join("ca.crt"), format!("{new}{old}").as_bytes());
    shorten(&certs, "n1", Duration::from_secs(3600));
    cluster.signal(0, Signal::HUP);
    says(&cluster, 0, "new certificates are in use").await;
    assert!(connection.close_reason().is_none(), "{:?}", connection.close_reason());
    assert_ne!(old_key, key_pem);

    replace(&certs.join("ca.crt"), new.as_bytes());
    cluster.signal(0, Signal::HUP);
    let reason = tokio::time::timeout(PATIENCE, connection.closed()).await.unwrap().to_string();
    assert!(reason.contains("not trusted any more"), "{reason}");
}

#[tokio::test]
async fn sighup_does_not_end_a_node_that_joins() {
    let cluster = Cluster::prepare_empty(1, "");
    let log = cluster.path("n1.log");
    let mut command = Command::new(QUICRAFT);
    without_variables(&mut command);
    command.args(["node", "--config", "n1.toml", "--join", "127.0.0.1:9"]);
    command.current_dir(cluster.path("")).stdin(Stdio::null());
    let mut child = command.stderr(File::create(&log).unwrap()).spawn().unwrap();
    until("it tries to join", async || {
        fs::read_to_string(&log).unwrap().contains("not yet joined").then_some(())
    })
    .await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let _ = child.kill();
    child.wait().unwrap();
}
