//! The one-line join token and the way from it to an identity.
//!
//! `gd1.<base64url of: CA hash, secret, token id, master's address>`: only letters, digits, `-`, `_` and `.`, so that
//! a double click selects it and a shell passes it on. The CA's hash is what makes the first contact safe: the
//! joiner sends the secret only to a server whose chain ends in that very CA.

use super::endpoint::{Endpoint, Expect, Sockets};
use super::identity::{self, Identity};
use crate::admin::{Join, JoinRequest};
use crate::frame::RequestHeader;
use crate::{Code, Fault, Role};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

const PREFIX: &str = "gd1.";
const FIXED_BYTES: usize = 32 + 16 + 8;
const JOIN_WITHIN: Duration = Duration::from_secs(15);

/// What a joiner needs. The master keeps only the secret's hash, the expiry and the uses left.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub master: SocketAddr,
    pub ca_hash: [u8; 32],
    pub id: u64,
    pub secret: [u8; 16],
}

/// The secret never reaches a log.
impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinToken")
            .field("master", &self.master)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Display for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut bytes = [self.ca_hash.as_slice(), &self.secret, &self.id.to_be_bytes()].concat();
        bytes.extend_from_slice(self.master.to_string().as_bytes());
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl std::str::FromStr for JoinToken {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let wrong = |what: &str| Fault::new(Code::Invalid, format!("this is not a join token: {what}"));
        let text = text.trim().strip_prefix(PREFIX).ok_or_else(|| wrong("it does not begin with gd1."))?;
        let bytes =
            URL_SAFE_NO_PAD.decode(text).map_err(|_| wrong("it was cut or altered when it was copied"))?;
        let (fixed, address) =
            bytes.split_at_checked(FIXED_BYTES).ok_or_else(|| wrong("it was cut short"))?;
        let (mut ca_hash, mut secret, mut id) = ([0; 32], [0; 16], [0; 8]);
        ca_hash.copy_from_slice(&fixed[..32]);
        secret.copy_from_slice(&fixed[32..48]);
        id.copy_from_slice(&fixed[48..]);
        let address = std::str::from_utf8(address).ok().and_then(|text| text.parse().ok());
        let master = address.ok_or_else(|| wrong("the master's address in it does not parse"))?;
        Ok(Self { master, ca_hash, id: u64::from_be_bytes(id), secret })
    }
}

/// SHA-256, as used for the CA's and the secret's hash.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
    hash
}

/// Asks the token's master for a certificate: verifies the CA's hash first, then sends the secret and a fresh key's request.
pub async fn join(sockets: &Arc<dyn Sockets>, token: &JoinToken, role: Role) -> Result<Identity, Fault> {
    let bind: SocketAddr = match token.master {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let endpoint = Endpoint::joiner(sockets, bind, token.ca_hash)?;
    let joined = ask(&endpoint, token, role).await;
    endpoint.close().await;
    joined
}

async fn ask(endpoint: &Endpoint, token: &JoinToken, role: Role) -> Result<Identity, Fault> {
    let master = Expect { role: Role::Master, node: None };
    let connection = endpoint.connect(token.master, master).await?;
    let (key, certificate_request) = identity::certificate_request()?;
    let request =
        JoinRequest { token_id: token.id, secret: token.secret.to_vec(), role, certificate_request };
    let joined = connection.call::<Join>(RequestHeader::default(), &request, &[], JOIN_WITHIN).await?.body;
    if sha256(&joined.ca) != token.ca_hash {
        return Err(Fault::new(Code::Forbidden, "the master answered with another CA than the token names"));
    }
    let identity = Identity::new(joined.certificate, key, joined.ca)?;
    if (identity.cluster, identity.role, identity.node) != (joined.cluster, role, joined.node) {
        return Err(Fault::new(
            Code::Forbidden,
            format!("the master issued a certificate for {identity:?} instead"),
        ));
    }
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(master: &str) -> JoinToken {
        JoinToken { master: master.parse().unwrap(), ca_hash: [7; 32], id: 42, secret: [9; 16] }
    }

    #[test]
    fn a_token_survives_pasting() {
        for master in ["127.0.0.1:7000", "[2001:db8::1]:65535"] {
            let text = token(master).to_string();
            assert!(
                text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)),
                "{text}"
            );
            assert_eq!(format!("  {text}\n").parse::<JoinToken>().unwrap(), token(master));
        }
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let text = token("127.0.0.1:7000").to_string();
        for wrong in ["", "gd1.", "gd2.AAAA", &text[..40], &text[..text.len() - 6], &format!("{text}!")] {
            assert!(wrong.parse::<JoinToken>().is_err(), "{wrong:?} was taken for a token");
        }
    }

    #[test]
    fn the_secret_is_not_shown() {
        let shown = format!("{:?}", token("127.0.0.1:7000"));
        assert!(shown.contains("42") && !shown.contains("9, 9"), "{shown}");
    }
}
