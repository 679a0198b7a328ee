//! The cluster's CA and the certificates that name cluster, role and id as the URI SAN `godrive://<cluster>/<role>/<id>`.
//!
//! Keys are Ed25519: their signatures have a fixed size, so that a simulation's datagrams repeat under its seed.
//! A certificate also carries the DNS name `<role>.godrive`, by which TLS itself refuses a peer of the wrong role;
//! cluster and id are checked from the URI afterwards.

use super::tls;
use crate::{ClusterId, Code, Fault, NodeId, Role};
use base64::Engine as _;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, SanType,
};
use rustls_pki_types::pem::{PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivatePkcs8KeyDer};
use std::time::Duration;

const DAY_S: i64 = 24 * 3600;
const YEAR_S: i64 = 365 * DAY_S;
const NODE_VALID_S: i64 = YEAR_S;
const AUTHORITY_VALID_S: i64 = 20 * YEAR_S;
/// Certificates of a simulation are checked against the real day's date, whatever its virtual clock says.
const SEEDED_VALID_S: i64 = 100 * YEAR_S;

/// A certificate, its key and the CA it was issued by: what a peer needs to speak. The key is never logged.
#[derive(Clone)]
pub struct Identity {
    pub cluster: ClusterId,
    pub role: Role,
    pub node: NodeId,
    /// DER.
    pub certificate: Vec<u8>,
    /// PKCS#8 DER.
    pub key: Vec<u8>,
    /// DER.
    pub ca: Vec<u8>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&uri(self.cluster, self.role.word(), &self.node.to_string()))
    }
}

impl Identity {
    /// Puts together what belongs together: reads the names from the certificate and checks that the key is its key.
    pub fn new(certificate: Vec<u8>, key: Vec<u8>, ca: Vec<u8>) -> Result<Self, Fault> {
        let (cluster, role, node) = subject(&certificate)?;
        let pair = key_pair(&key)?;
        let parsed = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|error| invalid(format!("the certificate does not parse: {error}")))?
            .1;
        if parsed.public_key().subject_public_key.data.as_ref() != pair.public_key_raw() {
            return Err(invalid("the key does not belong to the certificate"));
        }
        Ok(Self { cluster, role, node, certificate, key, ca })
    }

    /// Three PEM blocks (certificate, key, CA) in one text, for one 0600 file.
    pub fn to_pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate) + &pem("PRIVATE KEY", &self.key) + &pem("CERTIFICATE", &self.ca)
    }

    /// Parses [`Self::to_pem`]; cluster, role and node are read from the certificate.
    pub fn from_pem(text: &str) -> Result<Self, Fault> {
        let (mut certificates, key) = blocks(text)?;
        if certificates.len() != 2 {
            return Err(invalid(format!(
                "an identity file holds a certificate, its key and the CA's certificate; this has {} certificates",
                certificates.len()
            )));
        }
        let ca = certificates.remove(1);
        Self::new(certificates.remove(0), key, ca)
    }
}

/// The cluster's certificate authority.
pub struct Authority {
    cluster: ClusterId,
    certificate: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new CA for a new cluster. `now` in seconds since 1970 bounds the validity.
    pub fn create(cluster: ClusterId, now_s: i64) -> Result<Self, Fault> {
        Self::with_key(cluster, now_s, AUTHORITY_VALID_S, fresh_key()?)
    }

    /// As [`Self::create`] with a key derived from the seed, so that simulations repeat.
    pub fn create_seeded(cluster: ClusterId, now_s: i64, seed: [u8; 32]) -> Result<Self, Fault> {
        Self::with_key(cluster, now_s, SEEDED_VALID_S, seeded_key(seed)?)
    }

    fn with_key(cluster: ClusterId, now_s: i64, valid_s: i64, key: KeyPair) -> Result<Self, Fault> {
        let mut params = parameters(&format!("GoDrive cluster {cluster}"), now_s, valid_s);
        params.subject_alt_names = vec![SanType::URI(ia5(uri(cluster, "authority", ""))?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(internal)?.der().to_vec();
        Ok(Self { cluster, certificate, issuer: Issuer::new(params, key) })
    }

    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The CA's certificate, DER.
    pub fn ca(&self) -> &[u8] {
        &self.certificate
    }

    /// Certificate and key, PEM, for one 0600 file.
    pub fn to_pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate) + &pem("PRIVATE KEY", self.issuer.key().serialized_der())
    }

    pub fn from_pem(text: &str) -> Result<Self, Fault> {
        let (certificates, key) = blocks(text)?;
        let [certificate] = <[Vec<u8>; 1]>::try_from(certificates).map_err(|found| {
            invalid(format!("an authority file holds one certificate, this has {}", found.len()))
        })?;
        let cluster = match names(&certificate)?.as_slice() {
            [(cluster, word, _)] if word == "authority" => *cluster,
            other => return Err(invalid(format!("this is not a cluster's authority but {other:?}"))),
        };
        let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(certificate.as_slice()), key_pair(&key)?)
            .map_err(|error| invalid(format!("the authority's certificate does not parse: {error}")))?;
        Ok(Self { cluster, certificate, issuer })
    }

    /// A fresh key and its certificate.
    pub fn issue(&self, role: Role, node: NodeId, now_s: i64) -> Result<Identity, Fault> {
        self.issue_for(role, node, now_s, NODE_VALID_S, fresh_key()?)
    }

    /// As [`Self::issue`] with a key derived from the seed.
    pub fn issue_seeded(
        &self,
        role: Role,
        node: NodeId,
        now_s: i64,
        seed: [u8; 32],
    ) -> Result<Identity, Fault> {
        self.issue_for(role, node, now_s, SEEDED_VALID_S, seeded_key(seed)?)
    }

    fn issue_for(
        &self,
        role: Role,
        node: NodeId,
        now_s: i64,
        valid_s: i64,
        key: KeyPair,
    ) -> Result<Identity, Fault> {
        let params = self.node_parameters(role, node, now_s, valid_s)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(internal)?.der().to_vec();
        let key = key.serialize_der();
        Ok(Identity { cluster: self.cluster, role, node, certificate, key, ca: self.certificate.clone() })
    }

    /// Signs a joiner's PKCS#10 request; role and node are the master's decision. Returns the certificate, DER.
    pub fn sign(
        &self,
        certificate_request: &[u8],
        role: Role,
        node: NodeId,
        now_s: i64,
    ) -> Result<Vec<u8>, Fault> {
        let mut request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(
            certificate_request,
        ))
        .map_err(|error| invalid(format!("the certificate request does not parse or verify: {error}")))?;
        // Only the public key is the joiner's: names and usages are written here.
        request.params = self.node_parameters(role, node, now_s, NODE_VALID_S)?;
        Ok(request.signed_by(&self.issuer).map_err(internal)?.der().to_vec())
    }

    fn node_parameters(
        &self,
        role: Role,
        node: NodeId,
        now_s: i64,
        valid_s: i64,
    ) -> Result<CertificateParams, Fault> {
        if role == Role::Joiner {
            return Err(invalid("a joiner has no certificate; issue one for the role it joins as"));
        }
        let mut params = parameters(&format!("{role} {node}"), now_s, valid_s);
        params.subject_alt_names = vec![
            SanType::DnsName(ia5(tls::server_name(role))?),
            SanType::URI(ia5(uri(self.cluster, role.word(), &node.to_string()))?),
        ];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

/// A fresh key (PKCS#8 DER) and a PKCS#10 request for it (DER), for a joiner.
pub(super) fn certificate_request() -> Result<(Vec<u8>, Vec<u8>), Fault> {
    let key = fresh_key()?;
    let request = CertificateParams::default().serialize_request(&key).map_err(internal)?;
    Ok((key.serialize_der(), request.der().to_vec()))
}

/// Cluster, role and node of a node's certificate.
pub(super) fn subject(certificate: &[u8]) -> Result<(ClusterId, Role, NodeId), Fault> {
    let names = names(certificate)?;
    let [(cluster, word, node)] = names.as_slice() else {
        return Err(invalid(format!(
            "a certificate names one godrive:// identity, this names {}",
            names.len()
        )));
    };
    let role = Role::ALL
        .into_iter()
        .find(|role| *role != Role::Joiner && role.word() == word)
        .ok_or_else(|| invalid(format!("the certificate is for {word:?}, which is no role of a peer")))?;
    let node =
        node.parse().map_err(|_| invalid(format!("the certificate's id {node:?} is not 32 hex digits")))?;
    Ok((*cluster, role, node))
}

/// All `godrive://` URIs in a certificate, as (cluster, word, rest).
fn names(certificate: &[u8]) -> Result<Vec<(ClusterId, String, String)>, Fault> {
    let der = CertificateDer::from(certificate);
    let parsed = webpki::EndEntityCert::try_from(&der)
        .map_err(|error| invalid(format!("the certificate does not parse: {error}")))?;
    let mut found = Vec::new();
    for name in parsed.valid_uri_names() {
        let Some(rest) = name.strip_prefix("godrive://") else { continue };
        let mut parts = rest.splitn(3, '/');
        let (cluster, word, rest) = (parts.next(), parts.next(), parts.next());
        let cluster = cluster.and_then(|text| text.parse().ok());
        match (cluster, word, rest) {
            (Some(cluster), Some(word), Some(rest)) => {
                found.push((cluster, word.to_owned(), rest.to_owned()))
            }
            _ => {
                return Err(invalid(format!(
                    "the certificate's name {name:?} is not godrive://<cluster>/<role>/<id>"
                )));
            }
        }
    }
    Ok(found)
}

fn uri(cluster: ClusterId, word: &str, rest: &str) -> String {
    format!("godrive://{cluster}/{word}/{rest}")
}

fn parameters(common_name: &str, now_s: i64, valid_s: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    // A day back: the peers' clocks need not agree to the second.
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + seconds(now_s - DAY_S);
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + seconds(now_s.saturating_add(valid_s));
    params
}

fn seconds(since_1970: i64) -> Duration {
    // Year 9999 is the last that a certificate can carry.
    Duration::from_secs(since_1970.clamp(0, 253_000_000_000).unsigned_abs())
}

fn ia5(text: String) -> Result<Ia5String, Fault> {
    Ia5String::try_from(text).map_err(internal)
}

fn fresh_key() -> Result<KeyPair, Fault> {
    KeyPair::generate_for(&PKCS_ED25519).map_err(internal)
}

fn seeded_key(seed: [u8; 32]) -> Result<KeyPair, Fault> {
    // PKCS#8 version 1 of an Ed25519 key (RFC 8410) is this prefix and the 32 bytes of the seed.
    const PREFIX: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    key_pair(&[PREFIX.as_slice(), &seed].concat())
}

fn key_pair(pkcs8: &[u8]) -> Result<KeyPair, Fault> {
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8), &PKCS_ED25519)
        .map_err(|error| invalid(format!("the private key is not an Ed25519 key in PKCS#8: {error}")))
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut block = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        block.push_str(&String::from_utf8_lossy(line));
        block.push('\n');
    }
    block + &format!("-----END {label}-----\n")
}

/// The certificates in order, and the one private key.
fn blocks(text: &str) -> Result<(Vec<Vec<u8>>, Vec<u8>), Fault> {
    let (mut certificates, mut keys) = (Vec::new(), Vec::new());
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes()) {
        match section.map_err(|error| invalid(format!("the PEM text does not parse: {error}")))? {
            (SectionKind::Certificate, der) => certificates.push(der),
            (SectionKind::PrivateKey, der) => keys.push(der),
            (other, _) => return Err(invalid(format!("unexpected PEM block {other:?}"))),
        }
    }
    match (certificates.is_empty(), keys.len()) {
        (false, 1) => Ok((certificates, keys.remove(0))),
        (_, keys) => Err(invalid(format!(
            "expected certificates and one private key, found {} certificates and {keys} keys",
            certificates.len()
        ))),
    }
}

fn invalid(detail: impl Into<String>) -> Fault {
    Fault::new(Code::Forbidden, detail)
}

fn internal(error: rcgen::Error) -> Fault {
    Fault::new(Code::Internal, format!("making a certificate failed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: i64 = 1_790_000_000;

    #[test]
    fn identities_survive_their_pem_form() {
        let authority = Authority::create(ClusterId(7), NOW_S).unwrap();
        let authority = Authority::from_pem(&authority.to_pem()).unwrap();
        assert_eq!(authority.cluster(), ClusterId(7));
        let identity = authority.issue(Role::Slave, NodeId(9), NOW_S).unwrap();
        let read = Identity::from_pem(&identity.to_pem()).unwrap();
        assert_eq!((read.cluster, read.role, read.node), (ClusterId(7), Role::Slave, NodeId(9)));
        assert_eq!((read.certificate, read.key, read.ca), (identity.certificate, identity.key, identity.ca));
    }

    #[test]
    fn seeded_identities_repeat() {
        let make = |seed| {
            let authority = Authority::create_seeded(ClusterId(7), NOW_S, [1; 32]).unwrap();
            authority.issue_seeded(Role::Client, NodeId(9), NOW_S, seed).unwrap().certificate
        };
        assert_eq!(make([2; 32]), make([2; 32]));
        assert_ne!(make([2; 32]), make([3; 32]));
    }

    #[test]
    fn the_master_decides_a_joiners_names() {
        let authority = Authority::create(ClusterId(7), NOW_S).unwrap();
        let (key, request) = certificate_request().unwrap();
        let certificate = authority.sign(&request, Role::Slave, NodeId(5), NOW_S).unwrap();
        let identity = Identity::new(certificate.clone(), key, authority.ca().to_vec()).unwrap();
        assert_eq!((identity.role, identity.node), (Role::Slave, NodeId(5)));
        let (other_key, _) = certificate_request().unwrap();
        assert!(Identity::new(certificate, other_key, authority.ca().to_vec()).is_err());
        assert!(authority.sign(b"garbage", Role::Slave, NodeId(5), NOW_S).is_err());
    }

    #[test]
    fn wrong_files_are_told_apart() {
        let authority = Authority::create(ClusterId(7), NOW_S).unwrap();
        let identity = authority.issue(Role::Master, NodeId(1), NOW_S).unwrap();
        assert!(Identity::from_pem(&authority.to_pem()).is_err());
        assert!(Authority::from_pem(&identity.to_pem()).is_err());
        assert!(Identity::from_pem("").is_err());
    }
}
