//! The gateway's certificate: fresh at each start, for localhost and the address it listens on.

use crate::Usage;
use crate::cluster::create::read_authority;
use crate::cluster::layout::Home;
use anyhow::{Context, Result};
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Browsers refuse server certificates that are valid for much more than a year.
const VALID: Duration = Duration::from_secs(397 * 86_400);
const CLOCK_SKEW: Duration = Duration::from_secs(86_400);

pub struct Certificate {
    pub config: Arc<rustls::ServerConfig>,
    /// What clients pin.
    pub ca_pem: String,
}

/// Issues a server's certificate. It carries no identity of the cluster, so it opens nothing there.
pub fn issue(home: &Home, listen: IpAddr, hosts: &[String]) -> Result<Certificate> {
    let authority = read_authority(home)?.to_pem();
    let ca = CertificateDer::from_pem_slice(authority.as_bytes()).context("the authority's certificate")?;
    let ca_key = PrivatePkcs8KeyDer::from_pem_slice(authority.as_bytes()).context("the authority's key")?;
    let ca_key = KeyPair::try_from(&ca_key).context("the authority's key")?;
    let issuer = Issuer::from_ca_cert_der(&ca, ca_key).context("the authority's certificate")?;

    let mut params = CertificateParams::new(names(listen, hosts)?).context("the names of the certificate")?;
    let now = SystemTime::now();
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + VALID).into();
    params.distinguished_name.push(DnType::CommonName, "GoDrive gateway");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.signed_by(&key, &issuer).context("issuing the gateway's certificate")?;

    let chain = vec![certificate.der().clone()];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let ca_pem = certificate_block(&authority);
    Ok(Certificate { config: Arc::new(config), ca_pem })
}

fn names(listen: IpAddr, hosts: &[String]) -> Result<Vec<String>> {
    let mut names = vec!["localhost".to_string(), "127.0.0.1".into(), "::1".into()];
    if !listen.is_unspecified() {
        names.push(listen.to_string());
    }
    for host in hosts {
        // Nodes know each other by names of this form.
        if host.to_ascii_lowercase().trim_end_matches('.').ends_with(".godrive") {
            return Err(Usage(format!("--host {host}: names that end in .godrive are the nodes' own")).into());
        }
        names.push(host.clone());
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// The certificate without the key.
fn certificate_block(pem: &str) -> String {
    const END: &str = "-----END CERTIFICATE-----";
    let start = pem.find("-----BEGIN CERTIFICATE-----").unwrap_or(0);
    let end = pem[start..].find(END).map_or(start, |at| start + at + END.len());
    format!("{}\n", &pem[start..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::create::Maker;
    use crate::cluster::plan::Parameters;

    #[test]
    fn a_certificate_is_issued_and_the_published_file_has_no_key() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path().into());
        let listen = IpAddr::from([127, 0, 0, 1]);
        let parameters = Parameters { replicas: 1, min_replicas: 1, chunk_bytes: 1 << 20 };
        Maker::new(listen).unwrap().cluster(&home, parameters).unwrap();
        let certificate = issue(&home, IpAddr::from([192, 0, 2, 7]), &["files.example".into()]).unwrap();
        assert!(certificate.ca_pem.starts_with("-----BEGIN CERTIFICATE-----"));
        assert!(certificate.ca_pem.ends_with("-----END CERTIFICATE-----\n"));
        assert!(!certificate.ca_pem.contains("KEY"));
        let error = issue(&home, listen, &["Master.GoDrive".into()]).err().unwrap();
        assert!(error.is::<Usage>(), "{error}");
    }
}
