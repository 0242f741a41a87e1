//! The certificate authority: making certificates.
//!
//! In goes a directory, out come files in it. A file appears whole or not at all under its name (keys are created
//! exclusively with mode 0600 and synced; a replacement is renamed over the old file). Keys are ECDSA P-256: what every
//! TLS implementation takes, and fast to verify.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SanType, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::ServerName;

use super::credentials::{check_private, read, read_certificates};
use super::identity::{CLUSTER_SUFFIX_DIGITS, authority_uri, check_name, node_dns_name};
use super::{Certificate, Error, Identity, Problem, Role, Subject};

/// Days for which an authority's certificate is valid.
pub const AUTHORITY_DAYS: u32 = 3650;
/// Days for which a node's or client's certificate is valid unless asked otherwise.
pub const LEAF_DAYS_DEFAULT: u32 = 365;
/// Clocks of other machines may be this much behind.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);
const HINT: &str = "make a cluster's authority with `quicraft cert init`";

/// The authority of one cluster, with its private key.
#[derive(Debug)]
pub struct Authority {
    pub(super) dir: PathBuf,
    cluster: String,
    not_after: SystemTime,
    issuer: Issuer<'static, KeyPair>,
}

/// How to issue a certificate.
#[derive(Clone, Copy, Debug)]
pub struct Issue {
    /// Days of validity, 1 to 3650; cut to what is left of the authority's.
    pub days: u32,
    /// Replace files of that name.
    pub overwrite: bool,
}

impl Default for Issue {
    fn default() -> Issue {
        Issue { days: LEAF_DAYS_DEFAULT, overwrite: false }
    }
}

impl Authority {
    /// Makes `ca.key` and `ca.crt` in `dir` (created with mode 0700 if it is not there) for a new cluster, which is
    /// called `cluster_name`, `-`, and eight random hex digits.
    ///
    /// # Errors
    /// [`Error`] if the name is none, there is an authority already, or the files cannot be written.
    pub fn create(dir: &Path, cluster_name: &str) -> Result<Authority, Error> {
        check_name(cluster_name)?;
        let (certificate_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        let hint = ": this directory belongs to a cluster already, use another one with --dir";
        refuse_existing(&[&certificate_path, &key_path], hint)?;
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| Error::Io {
            op: "create",
            path: dir.to_owned(),
            source,
        })?;

        let cluster = format!("{cluster_name}-{}", random_suffix()?);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let key_pem = key.serialize_pem();
        let mut params = params(vec![], &authority_uri(&cluster), &format!("{cluster} authority"))?;
        set_validity(&mut params, SystemTime::now() + days(AUTHORITY_DAYS));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let issuer = CertifiedIssuer::self_signed(params, key).map_err(make)?;
        create_file(&key_path, 0o600, key_pem.as_bytes())?;
        create_file(&certificate_path, 0o644, issuer.pem().as_bytes())?;
        sync_dir(dir)?;
        Authority::load(dir)
    }

    /// Loads `ca.crt` and `ca.key` from `dir`.
    ///
    /// # Errors
    /// [`Error`] for a file that is missing, exposed or damaged.
    pub fn load(dir: &Path) -> Result<Authority, Error> {
        let (certificate_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        let certificates = read_certificates(&certificate_path, HINT)?;
        check_private(&key_path, "certificates are made where the authority's private key is")?;
        let key_pem = String::from_utf8(read(&key_path, HINT)?).unwrap_or_default();
        let key = KeyPair::from_pem(&key_pem)
            .map_err(|_| Error::Pem { path: key_path.clone(), what: "private key" })?;

        let at = |problem| Error::Certificate { path: certificate_path.clone(), problem };
        let certificate = Certificate::parse(&certificates[0]).map_err(at)?;
        let Subject::Authority { cluster } = certificate.subject else {
            let found = "a node's or a client's";
            return Err(at(Problem::Kind { expected: "an authority's", found }));
        };
        if !holds_key(&certificates[0], &key) {
            return Err(Error::KeyMismatch { certificate: certificate_path, key: key_path });
        }
        let issuer = Issuer::from_ca_cert_der(&certificates[0], key).map_err(make)?;
        Ok(Authority { dir: dir.to_owned(), cluster, not_after: certificate.not_after, issuer })
    }

    /// The cluster, with its random part.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Issues `NAME.crt` and `NAME.key` for a node that is reached at `hosts` (IP addresses and DNS names; may be
    /// empty: nodes are dialled by name). Returns the path of the certificate.
    ///
    /// # Errors
    /// [`Error`] if a name, host or lifetime is none, the files exist, or they cannot be written.
    pub fn issue_node(&self, name: &str, hosts: &[String], how: Issue) -> Result<PathBuf, Error> {
        check_leaf_name(name)?;
        for host in hosts {
            ServerName::try_from(host.as_str()).map_err(|_| Error::Host(host.clone()))?;
        }
        let mut names = vec![node_dns_name(&self.cluster, name)];
        names.extend_from_slice(hosts);
        self.issue(&Identity::node(&self.cluster, name), names, how)
    }

    /// Issues `NAME.crt` and `NAME.key` for a client. Returns the path of the certificate.
    ///
    /// # Errors
    /// [`Error`] if a name or lifetime is none, the files exist, or they cannot be written.
    pub fn issue_client(&self, name: &str, role: Role, how: Issue) -> Result<PathBuf, Error> {
        check_leaf_name(name)?;
        self.issue(&Identity::client(&self.cluster, name, role), vec![], how)
    }

    fn issue(&self, identity: &Identity, names: Vec<String>, how: Issue) -> Result<PathBuf, Error> {
        let name = identity.name();
        let (certificate_path, key_path) =
            (self.dir.join(format!("{name}.crt")), self.dir.join(format!("{name}.key")));
        if !how.overwrite {
            let hint = ": choose another name, or replace it with --overwrite";
            refuse_existing(&[&certificate_path, &key_path], hint)?;
        }
        let key = new_key()?;
        let certificate = self.sign(identity, names, how.days, &key)?;
        let write = if how.overwrite { replace_file } else { create_file };
        write(&key_path, 0o600, key.serialize_pem().as_bytes())?;
        write(&certificate_path, 0o644, certificate.as_bytes())?;
        sync_dir(&self.dir)?;
        Ok(certificate_path)
    }

    /// A certificate for a public key, in PEM form.
    pub(super) fn sign(
        &self,
        identity: &Identity,
        names: Vec<String>,
        days_valid: u32,
        key: &impl PublicKeyData,
    ) -> Result<String, Error> {
        if !(1..=AUTHORITY_DAYS).contains(&days_valid) {
            return Err(Error::Days(days_valid));
        }
        let mut params = params(names, &identity.to_string(), identity.name())?;
        set_validity(&mut params, (SystemTime::now() + days(days_valid)).min(self.not_after));
        // Drawn: by default it comes of the key, and a renewed certificate may keep its key.
        let mut serial = random::<16>()?;
        serial[0] &= 0x7f;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages(identity.is_node());
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(key, &self.issuer).map_err(make)?.pem())
    }
}

pub(super) fn new_key() -> Result<KeyPair, Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)
}

/// What the certificate of a node or client is for.
fn usages(is_node: bool) -> Vec<ExtendedKeyUsagePurpose> {
    if is_node {
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
    } else {
        vec![ExtendedKeyUsagePurpose::ClientAuth]
    }
}

/// `ca` would take the authority's own files.
pub(super) fn check_leaf_name(name: &str) -> Result<(), Error> {
    check_name(name)?;
    if name == "ca" { Err(Problem::Name(name.to_owned()).into()) } else { Ok(()) }
}

fn params(names: Vec<String>, uri: &str, title: &str) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(names).map_err(make)?;
    params.subject_alt_names.push(SanType::URI(uri.try_into().map_err(make)?));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, title);
    Ok(params)
}

fn set_validity(params: &mut CertificateParams, not_after: SystemTime) {
    params.not_before = (SystemTime::now() - CLOCK_SKEW).into();
    params.not_after = not_after.into();
}

fn holds_key(certificate: &[u8], key: &KeyPair) -> bool {
    use x509_parser::prelude::{FromDer, X509Certificate};
    X509Certificate::from_der(certificate).is_ok_and(|(_, certificate)| {
        certificate.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
    })
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::Make("the operating system gives no random numbers".to_owned()))?;
    Ok(bytes)
}

fn random_suffix() -> Result<String, Error> {
    let bytes = random::<{ CLUSTER_SUFFIX_DIGITS / 2 }>()?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

pub(super) fn make(error: rcgen::Error) -> Error {
    Error::Make(error.to_string())
}

fn days(days: u32) -> Duration {
    Duration::from_secs(u64::from(days) * 24 * 3600)
}

fn refuse_existing(paths: &[&Path], hint: &'static str) -> Result<(), Error> {
    match paths.iter().find(|path| path.symlink_metadata().is_ok()) {
        Some(path) => Err(Error::Exists { path: path.to_path_buf(), hint }),
        None => Ok(()),
    }
}

/// Writes a new file and syncs it.
pub(super) fn create_file(path: &Path, mode: u32, content: &[u8]) -> Result<(), Error> {
    let io_error = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => Error::Exists { path: path.to_owned(), hint: "" },
        _ => Error::Io { op: "write", path: path.to_owned(), source },
    };
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(io_error)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(io_error)
}

/// Puts a new file in the place of an old one.
pub(super) fn replace_file(path: &Path, mode: u32, content: &[u8]) -> Result<(), Error> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    // One that a crash left behind is nobody's.
    let _ = fs::remove_file(&fresh);
    create_file(&fresh, mode, content)?;
    fs::rename(&fresh, path).map_err(|source| Error::Io {
        op: "replace",
        path: path.to_owned(),
        source,
    })
}

pub(super) fn sync_dir(dir: &Path) -> Result<(), Error> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| Error::Io {
        op: "sync",
        path: dir.to_owned(),
        source,
    })
}
