//! The certificate authority of a cluster: makes itself, and certificates for nodes and clients.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Error, Identity, Role, Who, dns_name, is_name};

/// A cluster's CA with its key, in a directory with the certificates that it made.
pub struct Authority {
    dir: PathBuf,
    cluster: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes the CA of a new cluster: `ca.crt` and `ca.key` in `dir`.
    ///
    /// # Errors
    /// [`Error::Exists`] if there is a CA already, [`Error::Name`] for a bad cluster name.
    pub fn create(dir: &Path, name: &str) -> Result<Authority, Error> {
        let cluster = format!("{name}-{}", random_hex()?);
        if name.is_empty() || !is_name(&cluster) {
            return Err(Error::Name(name.to_owned()));
        }
        let (cert_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        if let Some(path) = [&cert_path, &key_path].into_iter().find(|path| path.exists()) {
            return Err(Error::Exists(path.clone()));
        }
        let mut params = CertificateParams::new(Vec::new()).map_err(issue)?;
        params.distinguished_name.push(DnType::OrganizationName, "Quicraft");
        params.distinguished_name.push(DnType::CommonName, cluster.as_str());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        set_validity(&mut params, CA_DAYS);
        let key = new_key()?;
        let pem = key.serialize_pem();
        let ca = CertifiedIssuer::self_signed(params, key).map_err(issue)?;
        write_new(&key_path, pem.as_bytes(), 0o600)?;
        write_new(&cert_path, ca.pem().as_bytes(), 0o644)?;
        Authority::load(dir)
    }

    /// Loads the CA in `dir`.
    ///
    /// # Errors
    /// [`Error::Missing`] without one, [`Error::Unusable`] if it is no CA of a Quicraft cluster.
    pub fn load(dir: &Path) -> Result<Authority, Error> {
        let (cert_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        let unusable = |path: &Path, reason: &str| Error::Unusable {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        let cert = read(&cert_path)?;
        let key = KeyPair::from_pem(&read(&key_path)?)
            .map_err(|_| unusable(&key_path, "it holds no private key in PEM form"))?;
        let cluster = common_name(&cert)
            .filter(|cluster| is_name(cluster))
            .ok_or_else(|| unusable(&cert_path, "it is no CA of a Quicraft cluster"))?;
        let issuer = Issuer::from_ca_cert_pem(&cert, key)
            .map_err(|error| unusable(&cert_path, &error.to_string()))?;
        Ok(Authority { dir: dir.to_owned(), cluster, issuer })
    }

    /// The cluster's name, the random part included.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Makes `NAME.crt` and `NAME.key` for a node that is reached under these host names and addresses.
    ///
    /// # Errors
    /// [`Error::Exists`] if one of the files is there, [`Error::Name`], [`Error::Host`].
    pub fn issue_node(&self, name: &str, hosts: &[String], days: u32) -> Result<(), Error> {
        let identity = self.identity(Who::Node { name: name.to_owned() })?;
        let mut hosts = hosts.to_vec();
        hosts.push(dns_name(name, &self.cluster));
        self.issue(
            &identity,
            hosts,
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            days,
        )
    }

    /// Makes `NAME.crt` and `NAME.key` for a client with a role.
    ///
    /// # Errors
    /// [`Error::Exists`] if one of the files is there, [`Error::Name`].
    pub fn issue_client(&self, name: &str, role: Role, days: u32) -> Result<(), Error> {
        let identity = self.identity(Who::Client { name: name.to_owned(), role })?;
        self.issue(&identity, Vec::new(), vec![ExtendedKeyUsagePurpose::ClientAuth], days)
    }

    fn identity(&self, who: Who) -> Result<Identity, Error> {
        let identity = Identity { cluster: self.cluster.clone(), who };
        let is_reserved = identity.name() == "ca";
        if !is_name(identity.name()) || is_reserved {
            return Err(Error::Name(identity.name().to_owned()));
        }
        Ok(identity)
    }

    fn issue(
        &self,
        identity: &Identity,
        hosts: Vec<String>,
        usages: Vec<ExtendedKeyUsagePurpose>,
        days: u32,
    ) -> Result<(), Error> {
        let name = identity.name();
        let file = |suffix: &str| self.dir.join(format!("{name}.{suffix}"));
        let (cert_path, key_path) = (file("crt"), file("key"));
        if let Some(path) = [&cert_path, &key_path].into_iter().find(|path| path.exists()) {
            return Err(Error::Exists(path.clone()));
        }
        for host in &hosts {
            let single = CertificateParams::new(vec![host.clone()]);
            single.map_err(|_| Error::Host(host.clone()))?;
        }
        let mut params = CertificateParams::new(hosts).map_err(issue)?;
        let uri = identity.to_string().try_into().map_err(issue)?;
        params.subject_alt_names.push(SanType::URI(uri));
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = usages;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, i64::from(days));
        let key = new_key()?;
        let cert = params.signed_by(&key, &self.issuer).map_err(issue)?;
        write_new(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
        write_new(&cert_path, cert.pem().as_bytes(), 0o644)
    }
}

fn new_key() -> Result<KeyPair, Error> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(issue)
}

/// From an hour ago, for clocks that are a little apart.
fn set_validity(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::hours(1);
    params.not_after = now + Duration::days(days);
}

fn random_hex() -> Result<String, Error> {
    use ring::rand::{SecureRandom, SystemRandom};
    let mut bytes = [0; 4];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::Issue("no randomness".to_owned()))?;
    Ok(format!("{:08x}", u32::from_le_bytes(bytes)))
}

fn common_name(pem: &str) -> Option<String> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    certificate.is_ca().then_some(name)
}

fn issue(error: impl std::fmt::Display) -> Error {
    Error::Issue(error.to_string())
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::Missing(path.to_owned()),
        _ => Error::Io { path: path.to_owned(), source },
    })
}

/// Writes a new file durably, in a directory that only we can enter.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let dir = dir.unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(
        |source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => Error::Exists(path.to_owned()),
            _ => io(source),
        },
    )?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io)?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)
}

const CA_DAYS: i64 = 3650;
