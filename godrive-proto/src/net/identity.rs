//! SKELETON: signatures fixed, bodies to come.
//! The cluster's CA and the certificates that name cluster, role and id as the URI SAN `godrive://<cluster>/<role>/<id>`.
use crate::{ClusterId, Fault, NodeId, Role};

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

impl Identity {
    /// Three PEM blocks (certificate, key, CA) in one text, for one 0600 file.
    pub fn to_pem(&self) -> String {
        todo!()
    }
    /// Parses [`Self::to_pem`]; cluster, role and node are read from the certificate.
    pub fn from_pem(_text: &str) -> Result<Self, Fault> {
        todo!()
    }
}

/// The cluster's certificate authority.
pub struct Authority {}

impl Authority {
    /// A new CA for a new cluster. `now` in seconds since 1970 bounds the validity.
    pub fn create(_cluster: ClusterId, _now_s: i64) -> Result<Self, Fault> {
        todo!()
    }
    /// As [`Self::create`] with a key derived from the seed, so that simulations repeat.
    pub fn create_seeded(_cluster: ClusterId, _now_s: i64, _seed: [u8; 32]) -> Result<Self, Fault> {
        todo!()
    }
    pub fn cluster(&self) -> ClusterId {
        todo!()
    }
    pub fn ca(&self) -> &[u8] {
        todo!()
    }
    /// Certificate and key, PEM, for one 0600 file.
    pub fn to_pem(&self) -> String {
        todo!()
    }
    pub fn from_pem(_text: &str) -> Result<Self, Fault> {
        todo!()
    }
    /// A fresh key and its certificate.
    pub fn issue(&self, _role: Role, _node: NodeId, _now_s: i64) -> Result<Identity, Fault> {
        todo!()
    }
    /// As [`Self::issue`] with a key derived from the seed.
    pub fn issue_seeded(&self, _role: Role, _node: NodeId, _now_s: i64, _seed: [u8; 32]) -> Result<Identity, Fault> {
        todo!()
    }
    /// Signs a joiner's PKCS#10 request; role and node are the master's decision. Returns the certificate, DER.
    pub fn sign(&self, _certificate_request: &[u8], _role: Role, _node: NodeId, _now_s: i64) -> Result<Vec<u8>, Fault> {
        todo!()
    }
}
