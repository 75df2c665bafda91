//! TLS 1.3 between nodes: who is on the other end of a connection, and the configurations that prove it.

use super::ca;
use crate::wall::Wall;
use anyhow::{Context, Result, anyhow};
use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use std::sync::Arc;

/// The one provider of ciphers, with the cheap 128-bit AES first.
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

/// A node's certificate and key, replaceable while connections use it: new handshakes see the new one.
#[derive(Debug)]
pub struct Credentials(ArcSwap<CertifiedKey>);

impl Credentials {
    /// Reads a certificate, its root and its key, all PEM.
    pub fn new(cert_pem: &str, ca_pem: &str, key_pem: &str) -> Result<Arc<Self>> {
        Ok(Arc::new(Self(ArcSwap::new(certified(cert_pem, ca_pem, key_pem)?))))
    }

    /// Uses another certificate from now on.
    pub fn replace(&self, cert_pem: &str, ca_pem: &str, key_pem: &str) -> Result<()> {
        self.0.store(certified(cert_pem, ca_pem, key_pem)?);
        Ok(())
    }
}

impl ResolvesServerCert for Credentials {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl ResolvesClientCert for Credentials {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The root is sent along, so that a joining node can compare it with its token.
fn certified(cert_pem: &str, ca_pem: &str, key_pem: &str) -> Result<Arc<CertifiedKey>> {
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
        .map_err(|error| anyhow!("the node's key cannot be read: {error}"))?;
    let chain = vec![ca::der(cert_pem)?, ca::der(ca_pem)?];
    let key = CertifiedKey::from_der(chain, key, &provider()).context("certificate and key do not fit")?;
    Ok(Arc::new(key))
}

fn roots(ca_pem: &str) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    roots.add(ca::der(ca_pem)?).context("the cluster's root certificate cannot be used")?;
    Ok(Arc::new(roots))
}

/// For a listener. With `everyone`, callers without a certificate are let in (to join, and for nothing else).
pub fn server(
    credentials: Arc<Credentials>,
    ca_pem: &str,
    everyone: bool,
    alpn: &[u8],
) -> Result<Arc<ServerConfig>> {
    let mut verifier = WebPkiClientVerifier::builder_with_provider(roots(ca_pem)?, provider());
    if everyone {
        verifier = verifier.allow_unauthenticated();
    }
    let verifier = verifier.build().context("cannot verify certificates with this root")?;
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(Wall))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("TLS 1.3 is not available")?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(credentials);
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(Arc::new(config))
}

/// For dialling a node: the name that is asked for decides which node it must be.
pub fn client(credentials: Arc<Credentials>, ca_pem: &str, alpn: &[u8]) -> Result<Arc<ClientConfig>> {
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(Wall))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("TLS 1.3 is not available")?
        .with_root_certificates(roots(ca_pem)?)
        .with_client_cert_resolver(credentials);
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(Arc::new(config))
}

/// For joining: no certificate of one's own yet, and the other side is any node of the cluster whose root has
/// this digest.
pub fn joining(digest: &str, alpn: &[u8]) -> Result<Arc<ClientConfig>> {
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(Wall))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("TLS 1.3 is not available")?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ByDigest(digest.to_owned())))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(Arc::new(config))
}

/// Accepts a chain that ends in the root whose digest it was told, verified as usual from there on.
#[derive(Debug)]
struct ByDigest(String);

impl ServerCertVerifier for ByDigest {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let foreign = || rustls::Error::General(FOREIGN_CA.to_owned());
        let root = intermediates.last().ok_or_else(foreign)?;
        if super::token::digest(root) != self.0 {
            return Err(foreign());
        }
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned())?;
        let (cluster, node) = ca::subject(end_entity).ok_or_else(foreign)?;
        let name = ServerName::try_from(ca::server_name(&node, &cluster)).map_err(|_| foreign())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, &name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// What a joining node says of a cluster that its token was not made for.
pub const FOREIGN_CA: &str =
    "the cluster at this address is not the one the token was made for: its root certificate differs";
