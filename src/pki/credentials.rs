//! What a process shows and trusts: its certificate and key, and the cluster's CA.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Error, Identity};

/// A certificate with its key, and the CAs that are trusted.
#[derive(Debug)]
pub struct Credentials {
    identity: Identity,
    not_after: i64,
    roots: Arc<RootCertStore>,
    certified_key: Arc<CertifiedKey>,
    secret: ring::hmac::Key,
}

impl Credentials {
    /// Loads `ca.crt`, `NAME.crt` and `NAME.key` from `dir`.
    ///
    /// # Errors
    /// Missing or unreadable files, a key that others may read, a key of another certificate, a
    /// certificate out of its time or without an identity: each says which file.
    pub fn load(dir: &Path, name: &str) -> Result<Credentials, Error> {
        let file = |suffix: &str| dir.join(format!("{name}.{suffix}"));
        let (cert_path, key_path, ca_path) = (file("crt"), file("key"), dir.join("ca.crt"));
        let mut roots = RootCertStore::empty();
        for ca in certificates(&ca_path)? {
            roots.add(ca).map_err(|error| unusable(&ca_path, error))?;
        }
        let chain = certificates(&cert_path)?;
        let leaf = chain.first().ok_or_else(|| unusable(&cert_path, "it holds no certificate"))?;
        let identity =
            Identity::of_certificate(leaf).map_err(|reason| unusable(&cert_path, reason))?;
        let not_after = check_validity(&cert_path, leaf)?;
        check_permissions(&key_path)?;
        let pem = read(&key_path)?;
        let key = PrivateKeyDer::from_pem_slice(&pem)
            .map_err(|_| unusable(&key_path, "it holds no private key in PEM form"))?;
        let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key.secret_der());
        let certified_key = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| {
            unusable(&key_path, format!("it does not fit {cert_path:?}: {error}"))
        })?;
        Ok(Credentials {
            identity,
            not_after,
            roots: Arc::new(roots),
            certified_key: Arc::new(certified_key),
            secret,
        })
    }

    /// Who these credentials are for.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// When the certificate ends, in seconds since 1970.
    pub fn not_after(&self) -> i64 {
        self.not_after
    }

    /// The CAs that are trusted.
    pub fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }

    /// Certificate chain and key.
    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified_key)
    }

    /// A secret that is the same at every start of this node and unknown to everybody else.
    pub fn derive_secret(&self, purpose: &[u8]) -> [u8; 32] {
        let tag = ring::hmac::sign(&self.secret, purpose);
        let mut secret = [0; 32];
        secret.copy_from_slice(&tag.as_ref()[..32]);
        secret
    }
}

/// ring's algorithms, AES-128-GCM first: the fastest of TLS 1.3's suites here, and QUIC needs it anyway.
pub fn provider() -> CryptoProvider {
    let mut provider = rustls::crypto::ring::default_provider();
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read(path)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(path, format!("it is not in PEM form: {error}")))?;
    if chain.is_empty() {
        return Err(unusable(path, "it holds no certificate in PEM form"));
    }
    Ok(chain)
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::Missing(path.to_owned()),
        _ => Error::Io { path: path.to_owned(), source },
    })
}

/// A key that others can read is no secret.
fn check_permissions(path: &Path) -> Result<(), Error> {
    let metadata = fs::metadata(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::Missing(path.to_owned()),
        _ => Error::Io { path: path.to_owned(), source },
    })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Error::Exposed { path: path.to_owned(), mode });
    }
    let own = rustix_uid();
    if own.is_some_and(|own| own != 0 && metadata.uid() != own) {
        return Err(unusable(path, "it belongs to another user"));
    }
    Ok(())
}

/// Our own user, read from a file that is ours.
fn rustix_uid() -> Option<u32> {
    fs::metadata("/proc/self").ok().map(|metadata| metadata.uid())
}

fn check_validity(path: &Path, der: &CertificateDer<'_>) -> Result<i64, Error> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|_| unusable(path, "it cannot be read"))?;
    let validity = certificate.validity();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
    if now > validity.not_after.timestamp() {
        return Err(unusable(path, format!("it expired on {}", validity.not_after)));
    }
    if now < validity.not_before.timestamp() {
        return Err(unusable(path, format!("it is not valid before {}", validity.not_before)));
    }
    Ok(validity.not_after.timestamp())
}

fn unusable(path: &Path, reason: impl ToString) -> Error {
    Error::Unusable { path: PathBuf::from(path), reason: reason.to_string() }
}
