//! The bearer token: 32 random bytes in a file that only its owner reads.

use crate::cluster::create::{PRIVATE, write};
use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::{RngCore, SeedableRng, rngs::StdRng};
use ring::hmac;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const SHORTEST: usize = 16;

/// A token that can only be compared, and that in constant time: not it is kept but a tag of it under a random key.
pub struct Token {
    key: hmac::Key,
    tag: hmac::Tag,
}

impl Token {
    fn new(token: &str) -> Self {
        let mut secret = [0; 32];
        StdRng::from_os_rng().fill_bytes(&mut secret);
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let tag = hmac::sign(&key, token.as_bytes());
        Self { key, tag }
    }

    /// Reads the file's first line, or makes the file.
    pub fn load_or_make(file: &Path) -> Result<Self> {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut bytes = [0; 32];
                StdRng::from_os_rng().fill_bytes(&mut bytes);
                let text = URL_SAFE_NO_PAD.encode(bytes);
                write(file, &format!("{text}\n"), PRIVATE)?;
                text
            }
            Err(error) => return Err(error).with_context(|| format!("reading the token {}", file.display())),
        };
        let mode = std::fs::metadata(file).with_context(|| file.display().to_string())?.permissions().mode();
        if mode & 0o077 != 0 {
            bail!("the token {0} can be read by others: chmod 600 {0}", file.display());
        }
        let token = text.trim();
        if token.len() < SHORTEST || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            bail!("the token in {} must be {SHORTEST} or more visible ASCII characters", file.display());
        }
        Ok(Self::new(token))
    }

    /// Whether an `Authorization` header carries it.
    pub fn opens(&self, header: Option<&[u8]>) -> bool {
        let Some(header) = header else { return false };
        let Some((scheme, rest)) = header.split_at_checked(7) else { return false };
        scheme.eq_ignore_ascii_case(b"bearer ")
            && hmac::verify(&self.key, rest.trim_ascii(), self.tag.as_ref()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_opens() {
        let token = Token::new("0123456789abcdef");
        assert!(token.opens(Some(b"Bearer 0123456789abcdef")));
        assert!(token.opens(Some(b"bearer  0123456789abcdef ")));
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdeff",
            "Basic 0123456789abcdef",
        ] {
            assert!(!token.opens(Some(wrong.as_bytes())), "{wrong}");
        }
        assert!(!token.opens(None));
    }

    #[test]
    fn the_file_is_made_once_private_and_refused_if_others_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        Token::load_or_make(&file).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Token::load_or_make(&file).unwrap();
        assert!(again.opens(Some(format!("Bearer {}", text.trim()).as_bytes())));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Token::load_or_make(&file).err().unwrap().to_string().contains("chmod 600"));
        write(&file, "short\n", PRIVATE).unwrap();
        assert!(Token::load_or_make(&file).is_err());
    }
}
