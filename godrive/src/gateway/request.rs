//! What a request's headers and query mean: ranges, conditions, listings.

use godrive_proto::meta::Attr;
use std::ops::Range;
use std::time::{Duration, SystemTime};

/// What a `Range` header asks of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    All,
    Part(Range<u64>),
    /// The range lies behind the end: 416.
    Unsatisfiable,
}

/// Understands one range of bytes. Several ranges, other units and nonsense are answered with the whole, as HTTP allows.
pub fn range(header: Option<&str>, size: u64) -> Wanted {
    let Some((unit, set)) = header.and_then(|header| header.split_once('=')) else { return Wanted::All };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Wanted::All;
    }
    let Some((first, last)) = set.trim().split_once('-') else { return Wanted::All };
    match (number(first), number(last)) {
        (Some(first), None) if last.trim().is_empty() => part(first, size, size),
        (Some(first), Some(last)) if first <= last => part(first, last.saturating_add(1), size),
        // The last so many bytes.
        (None, Some(length)) if first.trim().is_empty() => part(size.saturating_sub(length), size, size),
        _ => Wanted::All,
    }
}

fn part(start: u64, end: u64, size: u64) -> Wanted {
    let end = end.min(size);
    if start < end { Wanted::Part(start..end) } else { Wanted::Unsatisfiable }
}

/// Digits only; a number too large for us is behind every end.
fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

/// Names one state of one file: another whenever its bytes are.
pub fn etag(attr: &Attr) -> String {
    format!("\"{:x}-{:x}-{:x}-{:x}\"", attr.ino.0, attr.size, attr.mtime.0, attr.change)
}

pub fn modified(attr: &Attr) -> SystemTime {
    let since = Duration::from_secs(u64::try_from(attr.mtime.0 / 1_000_000_000).unwrap_or(0));
    SystemTime::UNIX_EPOCH + since
}

/// The conditions of a GET or HEAD.
#[derive(Clone, Copy, Debug, Default)]
pub struct Conditions<'a> {
    pub if_none_match: Option<&'a str>,
    pub if_modified_since: Option<&'a str>,
    pub if_range: Option<&'a str>,
}

impl Conditions<'_> {
    /// The client has it already: 304.
    pub fn unchanged(&self, attr: &Attr) -> bool {
        match (self.if_none_match, self.if_modified_since) {
            (Some(tags), _) => matches(tags, &etag(attr)),
            (None, Some(date)) => httpdate::parse_http_date(date).is_ok_and(|date| modified(attr) <= date),
            (None, None) => false,
        }
    }

    /// Whether a range may be answered with a part: what the client has of the file is of the same state.
    pub fn range_holds(&self, attr: &Attr) -> bool {
        // A date is no proof that the bytes are the same, so it gets the whole.
        self.if_range.is_none_or(|tag| tag.trim() == etag(attr))
    }
}

/// Whether a list of entity tags has this one. Weak tags compare by what they say.
pub fn matches(list: &str, tag: &str) -> bool {
    list.split(',').map(str::trim).any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag)
}

/// `?list&after=POSITION&limit=N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listing {
    pub after: u64,
    pub limit: usize,
}

pub const LISTING_LIMIT: usize = 10_000;

/// Understands a query; None without `list`.
pub fn listing(query: Option<&str>) -> Result<Option<Listing>, String> {
    let mut listing = Listing { after: 0, limit: 1000 };
    let mut asked = false;
    for word in query.unwrap_or("").split('&').filter(|word| !word.is_empty()) {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        match (name, number(value)) {
            ("list", _) => asked = true,
            ("after", Some(after)) => listing.after = after,
            ("limit", Some(limit)) if (1..=LISTING_LIMIT as u64).contains(&limit) => {
                listing.limit = limit as usize
            }
            ("after" | "limit", _) => {
                return Err(format!("`{name}` must be a number, and a limit 1 to {LISTING_LIMIT}"));
            }
            _ => return Err(format!("`{name}` is not known in a query: list, after, limit")),
        }
    }
    Ok(asked.then_some(listing))
}

#[cfg(test)]
mod tests {
    use super::*;
    use godrive_proto::Ino;
    use godrive_proto::meta::Kind;
    use godrive_proto::time::Timestamp;
    use proptest::prelude::*;

    fn attr() -> Attr {
        let time = Timestamp(1_700_000_000_500_000_000);
        Attr {
            ino: Ino(16),
            kind: Kind::File,
            mode: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 10,
            blocks: 8,
            chunk_bytes: 1 << 24,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            change: 3,
            xattrs: false,
            trim_pending: false,
        }
    }

    #[test]
    fn ranges() {
        for (header, wanted) in [
            ("bytes=0-4", Wanted::Part(0..5)),
            ("bytes=0-0", Wanted::Part(0..1)),
            ("Bytes = 5-", Wanted::Part(5..10)),
            ("bytes=5-99", Wanted::Part(5..10)),
            ("bytes=9-9", Wanted::Part(9..10)),
            ("bytes=-3", Wanted::Part(7..10)),
            ("bytes=-99", Wanted::Part(0..10)),
            ("bytes=10-", Wanted::Unsatisfiable),
            ("bytes=-0", Wanted::Unsatisfiable),
            ("bytes=99999999999999999999-", Wanted::Unsatisfiable),
            ("bytes=0-99999999999999999999", Wanted::Part(0..10)),
            ("bytes=4-2", Wanted::All),
            ("bytes=0-1,3-4", Wanted::All),
            ("bytes=-", Wanted::All),
            ("bytes=+1-2", Wanted::All),
            ("bytes=a-b", Wanted::All),
            ("lines=0-1", Wanted::All),
            ("bytes", Wanted::All),
        ] {
            assert_eq!(range(Some(header), 10), wanted, "{header}");
        }
        assert_eq!(range(None, 10), Wanted::All);
        assert_eq!(range(Some("bytes=0-"), 0), Wanted::Unsatisfiable);
    }

    proptest! {
        #[test]
        fn a_part_always_lies_within_the_file(header in "bytes=[0-9]{0,21}-[0-9]{0,21}", size: u64) {
            if let Wanted::Part(part) = range(Some(&header), size) {
                prop_assert!(part.start < part.end && part.end <= size);
            }
        }

        #[test]
        fn any_header_is_survived(header in ".{0,40}", query in ".{0,40}") {
            range(Some(&header), 10);
            let _ = listing(Some(&query));
            Conditions { if_none_match: Some(&header), if_modified_since: Some(&header), if_range: Some(&header) }.unchanged(&attr());
        }
    }

    #[test]
    fn conditions() {
        let attr = attr();
        let tag = etag(&attr);
        let none_match =
            |tags: &str| Conditions { if_none_match: Some(tags), ..Conditions::default() }.unchanged(&attr);
        let two = format!("\"x\", W/{tag}");
        assert!(none_match(&tag) && none_match("*") && none_match(&two));
        assert!(!none_match("\"x\""));
        let since = |date: &str| {
            Conditions { if_modified_since: Some(date), ..Conditions::default() }.unchanged(&attr)
        };
        assert!(since("Tue, 14 Nov 2023 22:13:20 GMT"));
        assert!(!since("Tue, 14 Nov 2023 22:13:19 GMT"));
        assert!(!since("yesterday"));
        let range =
            |tag: &str| Conditions { if_range: Some(tag), ..Conditions::default() }.range_holds(&attr);
        assert!(range(&tag) && !range("\"x\"") && !range("Tue, 14 Nov 2023 22:13:20 GMT"));
    }

    #[test]
    fn the_tag_changes_with_the_bytes() {
        let before = attr();
        for after in [
            Attr { size: 11, ..before.clone() },
            Attr { mtime: Timestamp(before.mtime.0 + 1), ..before.clone() },
            Attr { change: 4, ..before.clone() },
            Attr { ino: Ino(17), ..before.clone() },
        ] {
            assert_ne!(etag(&before), etag(&after));
        }
    }

    #[test]
    fn listings() {
        assert_eq!(listing(None), Ok(None));
        assert_eq!(listing(Some("list")), Ok(Some(Listing { after: 0, limit: 1000 })));
        assert_eq!(listing(Some("list=&after=7&limit=2")), Ok(Some(Listing { after: 7, limit: 2 })));
        for bad in ["list&limit=0", "list&limit=10001", "list&after=x", "other"] {
            assert!(listing(Some(bad)).is_err(), "{bad}");
        }
    }
}
