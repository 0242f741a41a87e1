//! Everything that one end of a connection needs to prove who it is and to judge the other.
//!
//! In goes a directory and a name, out come checked [`Credentials`] or an [`Error`] that names the file and what to do.
//! Whatever would fail at the first handshake (a foreign authority, a wrong key, an expired certificate) fails here.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::hmac;
use rustls::RootCertStore;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use x509_parser::time::ASN1Time;

use super::{Certificate, Error, Identity, Problem, Subject};

/// A certificate with its private key, and the authorities that are trusted.
#[derive(Clone)]
pub struct Credentials {
    identity: Identity,
    certificate: Certificate,
    authorities: Vec<Certificate>,
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) key: Arc<CertifiedKey>,
    secret: hmac::Key,
}

impl Credentials {
    /// Loads `ca.crt`, `NAME.crt` and `NAME.key` from `dir` and checks them against each other and the clock. `ca.crt`
    /// may hold several authorities, while one takes over from another: those out of their time are left out.
    ///
    /// # Errors
    /// [`Error`] for a file that is missing, unreadable, damaged, exposed, of another cluster, or out of its time.
    pub fn load(dir: &Path, name: &str) -> Result<Credentials, Error> {
        super::check_name(name)?;
        let authority_path = dir.join("ca.crt");
        let (certificate_path, key_path) =
            (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
        let roots = read_certificates(
            &authority_path,
            "make a cluster's authority with `quicraft cert init`, or copy it from where it was made",
        )?;
        let hint = format!(
            "make it with `quicraft cert node {name} --host HOST` or `quicraft cert client {name}`"
        );
        let chain = read_certificates(&certificate_path, &hint)?;
        let key = read_key(&key_path, &hint)?;

        let at = |problem| Error::Certificate { path: certificate_path.clone(), problem };
        let certificate = Certificate::parse(&chain[0]).map_err(at)?;
        certificate.identity().map_err(at)?;
        check_validity(&certificate, &certificate_path)?;
        let roots = authorities_in_time(roots, &authority_path)?;
        let credentials = Self::assemble(&roots, chain, key).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                Error::KeyMismatch { certificate: certificate_path.clone(), key: key_path.clone() }
            }
            _ => Error::Pem { path: key_path.clone(), what: "private key that can be used" },
        })?;
        credentials.check_chain().map_err(|_| Error::Foreign {
            path: certificate_path.clone(),
            authority: authority_path.clone(),
        })?;
        Ok(credentials)
    }

    /// Puts credentials together without the checks that [`Credentials::load`] makes.
    pub(crate) fn assemble(
        roots: &[CertificateDer<'static>],
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Credentials, rustls::Error> {
        let bad = || rustls::Error::General("the certificate is of no node or client".to_owned());
        let der = chain.first().ok_or(rustls::Error::NoCertificatesPresented)?;
        let certificate = Certificate::parse(der).map_err(|_| bad())?;
        let Subject::Leaf(identity) = certificate.subject.clone() else { return Err(bad()) };
        let mut store = RootCertStore::empty();
        let mut authorities = Vec::new();
        for root in roots {
            store.add(root.clone())?;
            authorities.extend(Certificate::parse(root));
        }
        let secret = hmac::Key::new(hmac::HMAC_SHA256, key.secret_der());
        let key = Arc::new(CertifiedKey::from_der(chain, key, &default_provider())?);
        let roots = Arc::new(store);
        Ok(Credentials { identity, certificate, authorities, roots, key, secret })
    }

    /// A secret for one purpose: the same at every start with this private key, and unknown to everybody else.
    pub fn derive_secret(&self, purpose: &[u8]) -> [u8; 32] {
        let tag = hmac::sign(&self.secret, purpose);
        *tag.as_ref().first_chunk().expect("SHA-256 gives 32 bytes")
    }

    /// Who these credentials are of.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// When the certificate expires.
    pub fn not_after(&self) -> SystemTime {
        self.certificate.not_after
    }

    /// The certificates of the trusted authorities.
    pub fn authorities(&self) -> &[Certificate] {
        &self.authorities
    }

    /// Whether these are the same certificates.
    pub fn are(&self, others: &Credentials) -> bool {
        self.key.cert == others.key.cert && self.authorities == others.authorities
    }

    /// Whether the trusted authorities issued the certificate.
    fn check_chain(&self) -> Result<(), rustls::Error> {
        self.vouch_for(&self.key.cert)
    }

    /// Whether the trusted authorities issued the first certificate of a chain, and it is within its time.
    pub(crate) fn vouch_for(&self, chain: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        let verifier = WebPkiClientVerifier::builder_with_provider(
            self.roots.clone(),
            Arc::new(default_provider()),
        )
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
        let [leaf, rest @ ..] = chain else { return Err(rustls::Error::NoCertificatesPresented) };
        verifier.verify_client_cert(leaf, rest, UnixTime::now()).map(|_| ())
    }
}

/// Without the private key.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// All certificates of a file, at least one.
pub(super) fn read_certificates(
    path: &Path,
    hint: &str,
) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read(path, hint)?;
    let bad = || Error::Pem { path: path.to_owned(), what: "certificate" };
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    certificates.ok().filter(|found| !found.is_empty()).ok_or_else(bad)
}

/// The private key in a file that nobody else may read.
fn read_key(path: &Path, hint: &str) -> Result<PrivateKeyDer<'static>, Error> {
    check_private(path, hint)?;
    let pem = read(path, hint)?;
    let bad = |_| Error::Pem { path: path.to_owned(), what: "private key" };
    PrivateKeyDer::from_pem_slice(&pem).map_err(bad)
}

/// Checks that only the owner may read `path`.
pub(super) fn check_private(path: &Path, hint: &str) -> Result<(), Error> {
    let metadata = fs::metadata(path).map_err(|source| open_error(path, hint, source))?;
    match metadata.mode() & 0o7777 {
        mode if mode & 0o077 != 0 => Err(Error::Exposed { path: path.to_owned(), mode }),
        _ => Ok(()),
    }
}

/// A whole file; no file of ours comes near the limit.
pub(super) fn read(path: &Path, hint: &str) -> Result<Vec<u8>, Error> {
    const FILE_BYTES_MAX: u64 = 1 << 20;
    let metadata = fs::metadata(path).map_err(|source| open_error(path, hint, source))?;
    if metadata.len() > FILE_BYTES_MAX {
        return Err(Error::Pem { path: path.to_owned(), what: "certificate or key" });
    }
    fs::read(path).map_err(|source| open_error(path, hint, source))
}

fn open_error(path: &Path, hint: &str, source: io::Error) -> Error {
    let path: PathBuf = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => Error::Missing { path, hint: hint.to_owned() },
        _ => Error::Io { op: "read", path, source },
    }
}

/// The authorities whose time it is, at least one.
fn authorities_in_time(
    found: Vec<CertificateDer<'static>>,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, Error> {
    let (mut good, mut out_of_time) = (Vec::new(), None);
    for der in found {
        match check_authority(&der, path) {
            Ok(()) => good.push(der),
            Err(error @ (Error::Expired { .. } | Error::NotYetValid { .. })) => {
                out_of_time.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    match out_of_time {
        Some(error) if good.is_empty() => Err(error),
        Some(_) | None => Ok(good),
    }
}

fn check_authority(der: &[u8], path: &Path) -> Result<(), Error> {
    let at = |problem| Error::Certificate { path: path.to_owned(), problem };
    let certificate = Certificate::parse(der).map_err(at)?;
    match certificate.subject {
        Subject::Authority { .. } => check_validity(&certificate, path),
        Subject::Leaf(_) => {
            Err(at(Problem::Kind { expected: "an authority's", found: "a node's or a client's" }))
        }
    }
}

fn check_validity(certificate: &Certificate, path: &Path) -> Result<(), Error> {
    let now = SystemTime::now();
    if now > certificate.not_after {
        let not_after = date(certificate.not_after);
        return Err(Error::Expired { path: path.to_owned(), not_after });
    }
    if now < certificate.not_before {
        let not_before = date(certificate.not_before);
        return Err(Error::NotYetValid { path: path.to_owned(), not_before });
    }
    Ok(())
}

/// A moment for a message, in UTC.
fn date(moment: SystemTime) -> String {
    let seconds = moment.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let time = i64::try_from(seconds).ok().and_then(|s| ASN1Time::from_timestamp(s).ok());
    time.map_or_else(|| "an unknown date".to_owned(), |time| time.to_string())
}
