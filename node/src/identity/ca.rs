//! The cluster's own certificate authority. A certificate says which node somebody is and nothing else: what
//! that node may do is looked up in the replicated state at each request.

use anyhow::{Context, Result, anyhow};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::time::{Duration, SystemTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// How long a root certificate lives.
const ROOT_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// How far certificates are back-dated, against clocks that disagree.
const BACKDATE: Duration = Duration::from_secs(3600);

/// A root certificate with its key, both in PEM.
pub struct Root {
    /// The certificate.
    pub cert_pem: String,
    /// The private key (PKCS #8).
    pub key_pem: String,
}

impl Root {
    /// A new root for the cluster that is called `cluster` (its id).
    pub fn generate(cluster: &str, now: SystemTime) -> Result<Self> {
        let key = KeyPair::generate().context("cannot make a key for the cluster's root certificate")?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name("rswarm root", cluster);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + ROOT_LIFE).into();
        let cert = params.self_signed(&key).context("cannot sign the cluster's root certificate")?;
        Ok(Self { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }

    /// Signs a request. Of the request only the public key is taken: the names are those of `node`.
    pub fn sign(
        &self,
        csr_pem: &str,
        node: &str,
        cluster: &str,
        now: SystemTime,
        life: Duration,
    ) -> Result<String> {
        let key = KeyPair::from_pem(&self.key_pem).context("cannot read the cluster's root key")?;
        let issuer = Issuer::from_ca_cert_pem(&self.cert_pem, key)
            .context("cannot read the cluster's root certificate")?;
        let mut csr = CertificateSigningRequestParams::from_pem(csr_pem)
            .context("the certificate request cannot be read")?;
        csr.params = leaf(node, cluster, now, life)?;
        Ok(csr.signed_by(&issuer).context("cannot sign the node's certificate")?.pem())
    }
}

/// A new key and a request to have it certified, both in PEM.
pub fn request() -> Result<(String, String)> {
    let key = KeyPair::generate().context("cannot make a node key")?;
    let csr = CertificateParams::default().serialize_request(&key).context("cannot make a request")?;
    Ok((key.serialize_pem(), csr.pem().context("cannot write a request")?))
}

/// The name a client expects in the certificate of the node it dials.
pub fn server_name(node: &str, cluster: &str) -> String {
    format!("{node}.{cluster}.rswarm")
}

/// In place of a node's id where any node of the cluster will do.
pub const ANY_NODE: &str = "node";

/// A name that every certificate of the cluster bears, for connections where the name does not say which node is
/// meant.
pub fn any_node(cluster: &str) -> String {
    server_name(ANY_NODE, cluster)
}

/// Cluster and node of a certificate, from its URI `spiffe://<cluster>/node/<node>`.
pub fn subject(cert: &CertificateDer<'_>) -> Option<(String, String)> {
    let (_, cert) = X509Certificate::from_der(cert).ok()?;
    let names = cert.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => {
            let (cluster, node) = uri.strip_prefix("spiffe://")?.split_once("/node/")?;
            Some((cluster.to_owned(), node.to_owned()))
        }
        _ => None,
    })
}

/// From when and until when a certificate is valid, in seconds since the epoch.
pub fn validity(cert_pem: &str) -> Result<(u64, u64)> {
    let der = der(cert_pem)?;
    let (_, cert) = X509Certificate::from_der(&der).map_err(|_| anyhow!("the certificate cannot be read"))?;
    let validity = cert.validity();
    Ok((validity.not_before.timestamp().max(0) as u64, validity.not_after.timestamp().max(0) as u64))
}

/// The first certificate of a PEM text.
pub fn der(cert_pem: &str) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(cert_pem.as_bytes())
        .map_err(|error| anyhow!("the certificate cannot be read: {error}"))
}

fn leaf(node: &str, cluster: &str, now: SystemTime, life: Duration) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(node, cluster);
    params.subject_alt_names = vec![
        SanType::DnsName(server_name(node, cluster).try_into().context("not a name for a certificate")?),
        SanType::DnsName(any_node(cluster).try_into().context("not a name for a certificate")?),
        SanType::URI(
            format!("spiffe://{cluster}/node/{node}").try_into().context("not a name for a certificate")?,
        ),
    ];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + life).into();
    Ok(params)
}

fn name(common: &str, organisation: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name.push(DnType::OrganizationName, organisation);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_names_the_node_it_was_signed_for_whatever_the_request_said() {
        let now = SystemTime::now();
        let root = Root::generate("c1", now).unwrap();
        let (_, csr) = request().unwrap();
        let pem = root.sign(&csr, "n1", "c1", now, Duration::from_secs(86_400)).unwrap();
        assert_eq!(subject(&der(&pem).unwrap()), Some(("c1".to_owned(), "n1".to_owned())));
        let (from, until) = validity(&pem).unwrap();
        assert_eq!(until - from, 86_400 + 3600);
    }

    #[test]
    fn rubbish_is_refused() {
        let now = SystemTime::now();
        let root = Root::generate("c1", now).unwrap();
        assert!(root.sign("rubbish", "n1", "c1", now, Duration::from_secs(1)).is_err());
        assert!(der("rubbish").is_err());
    }
}
