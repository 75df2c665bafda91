//! Certificates and meshes for tests.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    RootCertStore,
    client::WebPkiServerVerifier,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};

/// The name all test certificates carry.
pub const SERVER_NAME: &str = "rswarm";

/// An authority that remembers to whom it gave which certificate.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    known: Arc<Mutex<HashMap<Vec<u8>, String>>>,
}

/// The TLS configurations of one node.
pub struct Keys {
    pub server: Arc<rustls::ServerConfig>,
    pub client: Arc<rustls::ClientConfig>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer, known: Arc::default() }
    }

    /// Certificates and verifiers for `node`.
    pub fn keys(&self, node: &str, provider: rustls::crypto::CryptoProvider) -> Keys {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![SERVER_NAME.into()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        self.known.lock().unwrap().insert(certificate.der().to_vec(), node.into());
        let chain = vec![certificate.der().clone()];
        let private = || PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let (roots, provider) = (Arc::new(roots), Arc::new(provider));
        let clients =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build().unwrap();
        let server = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(chain.clone(), private())
            .unwrap();
        let servers = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build().unwrap();
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_webpki_verifier(servers)
            .with_client_auth_cert(chain, private())
            .unwrap();
        Keys { server: Arc::new(server), client: Arc::new(client) }
    }

    /// Who has the leaf of a chain.
    pub fn holder(&self) -> impl Fn(&[CertificateDer<'_>]) -> Option<String> + Send + Sync + 'static + use<> {
        let known = self.known.clone();
        move |chain| known.lock().unwrap().get(&chain.first()?.to_vec()).cloned()
    }
}

/// Polls `done` until it says yes, at most ten seconds.
pub async fn eventually(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !done().await {
        assert!(start.elapsed() < Duration::from_secs(10), "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
