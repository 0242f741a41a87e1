//! TLS for QUIC: 1.3 only, both sides show certificates, no resumption, no early data.
//!
//! A server is accepted for its identity (a node of our cluster, the one that was dialled), not for a
//! host name: addresses change, identities do not.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, PeerIncompatible, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::Error;
use crate::pki::{Credentials, Identity, Who, provider};

/// What a server tells and demands.
pub(super) fn server_config(
    credentials: &Credentials,
    alpn: &[u8],
) -> Result<QuicServerConfig, Error> {
    let provider = Arc::new(provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(credentials.roots(), Arc::clone(&provider))
            .build()
            .map_err(tls)?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(Always(credentials.certified_key())));
    config.alpn_protocols = vec![alpn.to_vec()];
    // A resumed session would skip the look at the certificate.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    QuicServerConfig::try_from(config).map_err(tls)
}

/// What a dialling process tells and demands: a node of its cluster, the named one if one is named.
pub(super) fn client_config(
    credentials: &Credentials,
    alpn: &[u8],
    node: Option<&str>,
) -> Result<QuicClientConfig, Error> {
    let provider = Arc::new(provider());
    let verifier = NodeVerifier {
        roots: credentials.roots(),
        cluster: credentials.identity().cluster.clone(),
        node: node.map(str::to_owned),
        provider: Arc::clone(&provider),
    };
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(Always(credentials.certified_key())));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    QuicClientConfig::try_from(config).map_err(tls)
}

fn tls(error: impl std::fmt::Display) -> Error {
    Error::Tls(error.to_string())
}

/// Shows one certificate to everybody.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl rustls::server::ResolvesServerCert for Always {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

impl ResolvesClientCert for Always {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Accepts a node of one cluster whose chain ends in the cluster's CA.
#[derive(Debug)]
struct NodeVerifier {
    roots: Arc<RootCertStore>,
    cluster: String,
    node: Option<String>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        let identity = Identity::of_certificate(end_entity).map_err(rustls::Error::General)?;
        let is_right = match &identity.who {
            Who::Node { name } => self.node.as_ref().is_none_or(|node| node == name),
            Who::Client { .. } => false,
        };
        if is_right && identity.cluster == self.cluster {
            Ok(ServerCertVerified::assertion())
        } else {
            let wanted = self.node.as_deref().unwrap_or("a node");
            Err(rustls::Error::General(format!(
                "{identity} answers instead of {wanted} of {}",
                self.cluster
            )))
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
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
