//! Whom to trust: TLS 1.3 with ring, both sides with certificates of the own cluster's CA.
//!
//! Session resumption is off, so that every connection verifies its peer anew and a renewed or revoked certificate
//! takes effect at the next connect.

use super::identity::Identity;
use crate::{Code, Fault, Role};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CipherSuite, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use std::sync::Arc;

/// The DNS name that a certificate of this role carries, and that a connect asks for.
pub(super) fn server_name(role: Role) -> String {
    format!("{role}.godrive")
}

/// The side that accepts.
pub(super) fn server(identity: &Identity, accept_joiners: bool) -> Result<QuicServerConfig, Fault> {
    let provider = provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(&identity.ca)?, provider.clone());
    let verifier = if accept_joiners { verifier.allow_unauthenticated() } else { verifier };
    let verifier =
        verifier.build().map_err(|error| unusable(format!("the CA cannot verify clients: {error}")))?;
    let (chain, key) = own(identity);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![crate::version::ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    QuicServerConfig::try_from(config).map_err(unusable)
}

/// The side that connects, with its certificate.
pub(super) fn client(identity: &Identity) -> Result<QuicClientConfig, Fault> {
    let (chain, key) = own(identity);
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_root_certificates(roots(&identity.ca)?)
        .with_client_auth_cert(chain, key)
        .map_err(unusable)?;
    finish(config)
}

/// The side that connects to join: no certificate, and of the cluster it knows only the CA's hash.
pub(super) fn joiner(ca_hash: [u8; 32]) -> Result<QuicClientConfig, Fault> {
    let verifier = Arc::new(PinnedAuthority { ca_hash, provider: provider() });
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    finish(config)
}

fn finish(mut config: ClientConfig) -> Result<QuicClientConfig, Fault> {
    config.alpn_protocols = vec![crate::version::ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    QuicClientConfig::try_from(config).map_err(unusable)
}

/// Prefers AES-128: it is as safe for what lives as long as a connection, and a quarter faster than AES-256. A process
/// that has a provider of its own is the simulation.
fn provider() -> Arc<CryptoProvider> {
    let own = CryptoProvider::get_default().map(|own| (**own).clone());
    let mut provider = own.unwrap_or_else(rustls::crypto::ring::default_provider);
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

/// The chain includes the CA, where joiners find the certificate that their token's hash names.
fn own(identity: &Identity) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = vec![identity.certificate.clone().into(), identity.ca.clone().into()];
    (chain, PrivatePkcs8KeyDer::from(identity.key.clone()).into())
}

fn roots(ca: &[u8]) -> Result<Arc<RootCertStore>, Fault> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from(ca.to_vec()))
        .map_err(|error| unusable(format!("the CA does not parse: {error}")))?;
    Ok(Arc::new(roots))
}

fn unusable(error: impl std::fmt::Display) -> Fault {
    Fault::new(Code::Forbidden, format!("the identity cannot be used for TLS: {error}"))
}

/// Trusts the CA whose hash the token carries: finds it in the chain that the server presents, then verifies the
/// chain against it as usual.
#[derive(Debug)]
struct PinnedAuthority {
    ca_hash: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = intermediates
            .iter()
            .find(|certificate| super::token::sha256(certificate) == self.ca_hash)
            .ok_or(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let supported = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, supported)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
