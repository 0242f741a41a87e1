//! TLS settings of both sides, and the judgement over the other side's certificate.
//!
//! Chains and signatures are verified by webpki; on top of that [`judge`] demands an identity of our own cluster, the
//! extended key usage that goes with it, and that the identity suits the port. All of it happens in the handshake, so
//! a connection that exists has passed. What a dialler finds wrong is kept as a [`Rejection`] in its [`Judge`], since
//! QUIC itself passes on no more than an alert number.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{
    CertificateError, CipherSuite, DigitallySignedStruct, DistinguishedName, RootCertStore,
    SignatureScheme, version::TLS13,
};

use super::{Error, PortKind};
use crate::pki::{Certificate, Credentials, Identity, Problem};

/// What is wrong with the other side's certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Another authority issued it.
    #[error("its certificate is not of our authority, so it is of another cluster")]
    ForeignAuthority,
    /// It is out of its time.
    #[error("its certificate has expired or is not valid yet: renew it, or set the clocks right")]
    OutOfTime,
    /// Our authority issued it, for another cluster.
    #[error("it belongs to cluster {found}")]
    OtherCluster {
        /// The cluster in the certificate.
        found: String,
    },
    /// A node was called and somebody else answers.
    #[error("it is node {found}, not {expected}: is the address right?")]
    WrongNode {
        /// Who was called.
        expected: String,
        /// Who answers.
        found: String,
    },
    /// A client where a node must be.
    #[error("{found} is a client, and only a node may be there")]
    NotANode {
        /// The client's name.
        found: String,
    },
    /// The certificate says nothing that can be used.
    #[error("its certificate {0}")]
    Problem(#[from] Problem),
    /// The chain or a signature is bad.
    #[error("its certificate does not hold: {0}")]
    Invalid(String),
}

/// The ring provider with TLS 1.3 suites, AES-128-GCM first: the fastest here, and in QUIC anyway.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    provider.cipher_suites.retain(|suite| suite.tls13().is_some());
    provider.cipher_suites.sort_by_key(|s| s.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

/// What a port needs to take connections.
pub(super) fn server(
    kind: PortKind,
    credentials: &Credentials,
) -> Result<rustls::ServerConfig, Error> {
    let provider = provider();
    let chain =
        WebPkiClientVerifier::builder_with_provider(credentials.roots.clone(), provider.clone())
            .build()
            .map_err(|error| Error::Tls(error.to_string()))?;
    let cluster = credentials.identity().cluster.clone();
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| Error::Tls(error.to_string()))?
        .with_client_cert_verifier(Arc::new(Doorkeeper { chain, kind, cluster }))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.key.clone())));
    tls.alpn_protocols = vec![kind.alpn().to_vec()];
    // A resumed session would keep an identity that was judged long ago.
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.max_early_data_size = 0;
    Ok(tls)
}

/// What a dialler needs.
pub(super) fn client(
    kind: PortKind,
    credentials: &Credentials,
    judge: Arc<Judge>,
) -> Result<rustls::ClientConfig, Error> {
    let mut tls = rustls::ClientConfig::builder_with_provider(judge.provider.clone())
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| Error::Tls(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(judge)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.key.clone())));
    tls.alpn_protocols = vec![kind.alpn().to_vec()];
    tls.resumption = Resumption::disabled();
    tls.enable_early_data = false;
    Ok(tls)
}

/// The identity in a certificate whose chain is verified, if it is of `cluster` and has the usage that goes with it.
fn judge(der: &[u8], cluster: &str) -> Result<Identity, Rejection> {
    let certificate = Certificate::parse(der)?;
    let identity = certificate.identity()?;
    if identity.cluster != cluster {
        return Err(Rejection::OtherCluster { found: identity.cluster.clone() });
    }
    Ok(identity.clone())
}

fn must_be_node(identity: &Identity) -> Result<(), Rejection> {
    match identity.is_node() {
        true => Ok(()),
        false => Err(Rejection::NotANode { found: identity.name().to_owned() }),
    }
}

/// Judges those who come to a port.
#[derive(Debug)]
struct Doorkeeper {
    chain: Arc<dyn ClientCertVerifier>,
    kind: PortKind,
    cluster: String,
}

impl ClientCertVerifier for Doorkeeper {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        let judgement = judge(end_entity, &self.cluster).and_then(|identity| match self.kind {
            PortKind::Peer => must_be_node(&identity),
            PortKind::Client => Ok(()),
        });
        match judgement {
            Ok(()) => Ok(verified),
            Err(rejection) => {
                // Only holders of a certificate of our authority come this far: no stranger can fill the log.
                tracing::warn!(%rejection, port = ?self.kind, "refused a certificate");
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Judges who answers a dial: any node of the cluster, or one of a certain name. For one dial.
#[derive(Debug)]
pub(super) struct Judge {
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    cluster: String,
    node_name: Option<String>,
    rejection: Mutex<Option<Rejection>>,
}

impl Judge {
    pub(super) fn new(credentials: &Credentials, node_name: Option<&str>) -> Judge {
        Judge {
            provider: provider(),
            roots: credentials.roots.clone(),
            cluster: credentials.identity().cluster.clone(),
            node_name: node_name.map(str::to_owned),
            rejection: Mutex::new(None),
        }
    }

    /// Why the certificate of the other side was refused, if it was.
    pub(super) fn rejection(&self) -> Option<Rejection> {
        self.rejection.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Rejection> {
        let parsed = ParsedCertificate::try_from(end_entity).map_err(chain_rejection)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )
        .map_err(chain_rejection)?;
        let identity = judge(end_entity, &self.cluster)?;
        must_be_node(&identity)?;
        let Some(expected) = &self.node_name else { return Ok(()) };
        if identity.name() != expected {
            let (expected, found) = (expected.clone(), identity.name().to_owned());
            return Err(Rejection::WrongNode { expected, found });
        }
        verify_server_name(&parsed, server_name).map_err(chain_rejection)
    }
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Err(rejection) = self.verify(end_entity, intermediates, server_name, now) else {
            return Ok(ServerCertVerified::assertion());
        };
        *self.rejection.lock().unwrap_or_else(PoisonError::into_inner) = Some(rejection);
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn chain_rejection(error: rustls::Error) -> Rejection {
    use CertificateError as E;
    match error {
        // A self-made authority of the same name has another key: its signatures do not fit.
        rustls::Error::InvalidCertificate(E::UnknownIssuer | E::BadSignature) => {
            Rejection::ForeignAuthority
        }
        rustls::Error::InvalidCertificate(
            E::Expired | E::ExpiredContext { .. } | E::NotValidYet | E::NotValidYetContext { .. },
        ) => Rejection::OutOfTime,
        other => Rejection::Invalid(other.to_string()),
    }
}
