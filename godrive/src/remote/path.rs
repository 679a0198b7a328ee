//! A path in the cluster: names as bytes, from the root.

use std::fmt;
use std::fmt::Write;

/// The names from the root; empty for the root itself. None of them is `.`, `..` or holds `/` or NUL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemotePath(Vec<Vec<u8>>);

/// Why bytes are not a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("`.` and `..` are not allowed in a path")]
    Dots,
    #[error("a name in a path must not contain NUL or an encoded `/`")]
    Byte,
    #[error("a name in a path has at most 255 bytes")]
    TooLong,
    #[error("`%` must be followed by two hexadecimal digits")]
    Encoding,
}

impl RemotePath {
    /// Plain bytes, as typed. Several `/` count as one.
    pub fn plain(bytes: &[u8]) -> Result<Self, PathError> {
        let names = bytes.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
        let path = Self(names.map(<[u8]>::to_vec).collect());
        path.check()?;
        Ok(path)
    }

    /// As in a URL: each name percent-encoded. Split before it is decoded, so an encoded `/` cannot make a name two.
    pub fn encoded(text: &str) -> Result<Self, PathError> {
        let names = text.split('/').filter(|name| !name.is_empty()).map(decode).collect::<Result<_, _>>()?;
        let path = Self(names);
        path.check()?;
        Ok(path)
    }

    fn check(&self) -> Result<(), PathError> {
        for name in &self.0 {
            match name.as_slice() {
                b"." | b".." => return Err(PathError::Dots),
                name if name.len() > 255 => return Err(PathError::TooLong),
                name if name.contains(&0) || name.contains(&b'/') => return Err(PathError::Byte),
                _ => {}
            }
        }
        Ok(())
    }

    pub fn names(&self) -> &[Vec<u8>] {
        &self.0
    }

    /// The path above and the last name; None for the root.
    pub fn split(&self) -> Option<(Self, &[u8])> {
        let (name, above) = self.0.split_last()?;
        Some((Self(above.to_vec()), name))
    }

    /// The directories above it, from the top, without the root.
    pub fn ancestors(&self) -> impl Iterator<Item = Self> {
        (1..self.0.len()).map(|length| Self(self.0[..length].to_vec()))
    }

    pub fn join(&self, name: &[u8]) -> Result<Self, PathError> {
        let mut names = self.0.clone();
        names.push(name.to_vec());
        let path = Self(names);
        path.check()?;
        Ok(path)
    }

    /// As a URL has it.
    pub fn to_encoded(&self) -> String {
        if self.0.is_empty() {
            return "/".into();
        }
        self.0.iter().fold(String::new(), |text, name| text + "/" + &encode(name))
    }
}

/// For people: control characters are escaped.
impl fmt::Display for RemotePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_char('/');
        }
        self.0.iter().try_for_each(|name| write!(f, "/{}", crate::table::printable(name)))
    }
}

fn decode(text: &str) -> Result<Vec<u8>, PathError> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first != b'%' {
            plain.push(first);
            rest = tail;
            continue;
        }
        let digit = |position: usize| tail.get(position).and_then(|byte| char::from(*byte).to_digit(16));
        let (Some(high), Some(low)) = (digit(0), digit(1)) else { return Err(PathError::Encoding) };
        plain.push((high * 16 + low) as u8);
        rest = &tail[2..];
    }
    Ok(plain)
}

/// Everything but RFC 3986's unreserved characters is encoded.
pub fn encode(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for &byte in name {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_paths() {
        assert_eq!(RemotePath::plain(b"/").unwrap().names().len(), 0);
        assert_eq!(RemotePath::plain(b"//a///b/").unwrap().to_string(), "/a/b");
        assert_eq!(RemotePath::plain(b"100%").unwrap().to_encoded(), "/100%25");
        assert_eq!(RemotePath::plain(b"/a/../b"), Err(PathError::Dots));
        assert_eq!(RemotePath::plain(b"./b"), Err(PathError::Dots));
        assert_eq!(RemotePath::plain(b"a\0b"), Err(PathError::Byte));
        assert_eq!(RemotePath::plain(&[b'x'; 256]), Err(PathError::TooLong));
    }

    #[test]
    fn encoded_paths() {
        assert_eq!(RemotePath::encoded("/a%20b/%C3%A9").unwrap().to_string(), "/a b/é");
        assert_eq!(RemotePath::encoded("/...").unwrap().to_string(), "/...");
        for (text, error) in [
            ("/a/../b", PathError::Dots),
            ("/%2e%2E/etc", PathError::Dots),
            ("/.%2e", PathError::Dots),
            ("/%2e", PathError::Dots),
            ("/a%2fb", PathError::Byte),
            ("/a%00", PathError::Byte),
            ("/a%", PathError::Encoding),
            ("/a%2", PathError::Encoding),
            ("/a%zz", PathError::Encoding),
            ("/a%+1", PathError::Encoding),
        ] {
            assert_eq!(RemotePath::encoded(text), Err(error), "{text}");
        }
    }

    #[test]
    fn the_way_down() {
        let path = RemotePath::plain(b"a/b/c").unwrap();
        let ancestors: Vec<String> = path.ancestors().map(|path| path.to_string()).collect();
        assert_eq!(ancestors, ["/a", "/a/b"]);
        let (above, name) = path.split().unwrap();
        assert_eq!((above.to_string().as_str(), name), ("/a/b", b"c".as_slice()));
        assert!(RemotePath::plain(b"").unwrap().split().is_none());
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_the_same(names in prop::collection::vec("[^/\0]{1,40}", 0..5)) {
            let plain = RemotePath::plain(names.join("/").as_bytes());
            if let Ok(path) = plain {
                prop_assert_eq!(RemotePath::encoded(&path.to_encoded()), Ok(path));
            }
        }

        #[test]
        fn any_text_is_a_checked_path_or_refused(text in ".{0,60}") {
            if let Ok(path) = RemotePath::encoded(&text) {
                for name in path.names() {
                    prop_assert!(godrive_proto::meta::Name::new(name.clone()).is_ok());
                }
            }
        }
    }
}
