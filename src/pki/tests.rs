//! Making and loading certificates: every way in which a file can be wrong.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use tempfile::{TempDir, tempdir};

use super::*;

fn cluster() -> (TempDir, Authority) {
    let dir = tempdir().unwrap();
    let authority = Authority::create(dir.path(), "demo").unwrap();
    authority.issue_node("n1", &["127.0.0.1".to_owned()], Issue::default()).unwrap();
    authority.issue_client("alice", Role::Admin, Issue::default()).unwrap();
    (dir, authority)
}

fn message(dir: &Path, name: &str) -> String {
    let message = Credentials::load(dir, name).unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn what_is_issued_loads_as_issued() {
    let (dir, authority) = cluster();
    let node = Credentials::load(dir.path(), "n1").unwrap();
    assert_eq!(*node.identity(), Identity::node(authority.cluster(), "n1"));
    let names = [node_dns_name(authority.cluster(), "n1"), "127.0.0.1".to_owned()];
    assert_eq!(node.certificate().hosts, names);
    let client = Credentials::load(dir.path(), "alice").unwrap();
    assert_eq!(*client.identity(), Identity::client(authority.cluster(), "alice", Role::Admin));
    assert!(!client.certificate().is_for_servers);
    assert_eq!(Authority::load(dir.path()).unwrap().cluster(), authority.cluster());
    for key in ["ca.key", "n1.key", "alice.key"] {
        assert_eq!(fs::metadata(dir.path().join(key)).unwrap().mode() & 0o777, 0o600);
    }
    assert!(!format!("{node:?}").contains("key"));
}

#[test]
fn two_clusters_of_one_name_differ() {
    let ((_one, one), (_two, two)) = (cluster(), cluster());
    assert_ne!(one.cluster(), two.cluster());
}

#[test]
fn bad_input_is_refused_before_anything_is_written() {
    let (dir, authority) = cluster();
    let how = Issue::default();
    assert!(matches!(Authority::create(dir.path(), "x"), Err(Error::Exists { .. })));
    assert!(matches!(authority.issue_node("N1", &[], how), Err(Error::Input(_))));
    assert!(matches!(authority.issue_node("../n", &[], how), Err(Error::Input(_))));
    assert!(matches!(authority.issue_client("ca", Role::Admin, how), Err(Error::Input(_))));
    let host = ["10.0.0.1:7001".to_owned()];
    assert!(matches!(authority.issue_node("n2", &host, how), Err(Error::Host(_))));
    let never = Issue { days: 0, ..how };
    assert!(matches!(authority.issue_node("n2", &[], never), Err(Error::Days(0))));
    assert!(matches!(authority.issue_node("n1", &[], how), Err(Error::Exists { .. })));
    assert!(!dir.path().join("n2.crt").exists());
}

#[test]
fn overwriting_gives_a_new_pair_that_loads() {
    let (dir, authority) = cluster();
    let before = Credentials::load(dir.path(), "n1").unwrap();
    let how = Issue { days: 10, overwrite: true };
    authority.issue_node("n1", &[], how).unwrap();
    let after = Credentials::load(dir.path(), "n1").unwrap();
    assert!(after.not_after() < before.not_after());
    assert_eq!(fs::metadata(dir.path().join("n1.key")).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn a_missing_file_is_named_with_what_to_do() {
    let (dir, _) = cluster();
    let missing = message(dir.path(), "n2");
    assert!(missing.contains("n2.crt") && missing.contains("quicraft cert node n2"), "{missing}");
    fs::remove_file(dir.path().join("ca.crt")).unwrap();
    assert!(message(dir.path(), "n1").contains("ca.crt does not exist"));
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    let (dir, _) = cluster();
    let key = dir.path().join("n1.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let exposed = message(dir.path(), "n1");
    assert!(exposed.contains("mode 0644") && exposed.contains("chmod 600"), "{exposed}");
}

#[test]
fn garbage_is_named() {
    for file in ["ca.crt", "n1.crt", "n1.key"] {
        let (dir, _) = cluster();
        for garbage in [
            &b"\xff\x00 nothing"[..],
            b"",
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        ] {
            fs::write(dir.path().join(file), garbage).unwrap();
            assert!(message(dir.path(), "n1").contains(file), "{file}");
        }
    }
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let (dir, _) = cluster();
    fs::copy(dir.path().join("alice.key"), dir.path().join("n1.key")).unwrap();
    assert!(matches!(Credentials::load(dir.path(), "n1"), Err(Error::KeyMismatch { .. })));
    fs::copy(dir.path().join("alice.key"), dir.path().join("ca.key")).unwrap();
    assert!(matches!(Authority::load(dir.path()), Err(Error::KeyMismatch { .. })));
}

#[test]
fn a_certificate_of_another_authority_is_refused() {
    let ((one, _), (two, _)) = (cluster(), cluster());
    fs::copy(two.path().join("ca.crt"), one.path().join("ca.crt")).unwrap();
    assert!(matches!(Credentials::load(one.path(), "n1"), Err(Error::Foreign { .. })));
    fs::copy(one.path().join("n1.crt"), one.path().join("ca.crt")).unwrap();
    assert!(matches!(Credentials::load(one.path(), "n1"), Err(Error::Certificate { .. })));
}

#[test]
fn certificates_out_of_their_time_are_refused() {
    let (dir, _) = cluster();
    write_leaf(
        dir.path(),
        "old",
        rcgen::date_time_ymd(2020, 1, 1),
        rcgen::date_time_ymd(2021, 1, 1),
    );
    let expired = message(dir.path(), "old");
    assert!(expired.contains("old.crt expired on Jan  1") && expired.contains("2021"), "{expired}");
    write_leaf(
        dir.path(),
        "new",
        rcgen::date_time_ymd(2090, 1, 1),
        rcgen::date_time_ymd(2091, 1, 1),
    );
    assert!(matches!(Credentials::load(dir.path(), "new"), Err(Error::NotYetValid { .. })));
}

/// A node's certificate with any validity, of the authority in `dir`.
fn write_leaf<T>(dir: &Path, name: &str, not_before: T, not_after: T)
where
    T: Into<std::time::SystemTime>,
{
    let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap();
    let ca_key = rcgen::KeyPair::from_pem(&read("ca.key")).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&read("ca.crt"), ca_key).unwrap();
    let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
    let uri = format!("quicraft://demo-00c0ffee/node/{name}");
    params.subject_alt_names.push(rcgen::SanType::URI(uri.try_into().unwrap()));
    params.extended_key_usages = vec![
        rcgen::ExtendedKeyUsagePurpose::ServerAuth,
        rcgen::ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.not_before = not_before.into().into();
    params.not_after = not_after.into().into();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    fs::write(dir.join(format!("{name}.crt")), certificate.pem()).unwrap();
    let key_path = dir.join(format!("{name}.key"));
    fs::write(&key_path, key.serialize_pem()).unwrap();
    fs::set_permissions(&key_path, fs::Permissions::from_mode(0o600)).unwrap();
}
