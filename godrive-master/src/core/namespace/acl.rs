//! POSIX ACLs (the withdrawn POSIX 1003.1e draft 17, as Linux implements it): how they and the mode follow each other, and what
//! a directory passes on to what is made in it. The kernels of the mounts enforce them, as they do modes.
//!
//! They are kept as the xattrs in which Linux passes them: a version, then entries of tag, permissions and id, little-endian. An ACL
//! that says no more than a mode is not kept.

use crate::core::state::Transaction;
use crate::core::state::keys;
use crate::core::state::transaction::{Result, refuse};
use crate::core::state::values::Inode;
use bytes::Bytes;
use godrive_proto::meta::{Kind, NewMode};
use godrive_proto::{Code, Ino};

pub const ACCESS: &[u8] = b"system.posix_acl_access";
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: [u8; 4] = 2u32.to_le_bytes();
const ENTRY_BYTES: usize = 8;
/// Kernels read no more.
const MAX_BYTES: usize = 4096;
/// The bits of a mode that an ACL stands for.
const PERMISSIONS: u16 = 0o777;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tag {
    Owner,
    User,
    Group,
    NamedGroup,
    Mask,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: Tag,
    permissions: u16,
    id: u32,
}

/// A valid ACL: entries in the order of their tags, those of owner, group and others exactly once, and a mask where there are
/// named users or groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl(Vec<Entry>);

impl Acl {
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let entries = bytes.strip_prefix(&VERSION).filter(|entries| entries.len() % ENTRY_BYTES == 0);
        let Some(entries) = entries else {
            return refuse(Code::Invalid, "an ACL has the version 2 and whole entries");
        };
        let entries: Option<Vec<Entry>> = entries.chunks_exact(ENTRY_BYTES).map(Entry::decode).collect();
        let Some(acl) = entries.map(Self).filter(Self::is_valid) else {
            return refuse(Code::Invalid, "the entries of the ACL are not valid");
        };
        Ok(acl)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_vec();
        for entry in &self.0 {
            bytes.extend(entry.tag.number().to_le_bytes());
            bytes.extend(entry.permissions.to_le_bytes());
            bytes.extend(entry.id.to_le_bytes());
        }
        bytes
    }

    fn is_valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|entry| entry.tag == tag).count();
        let named = count(Tag::User) + count(Tag::NamedGroup) > 0;
        self.0.is_sorted_by_key(|entry| entry.tag)
            && self.0.iter().all(|entry| entry.permissions <= 7)
            && [Tag::Owner, Tag::Group, Tag::Other].into_iter().all(|tag| count(tag) == 1)
            && (count(Tag::Mask) == 1 || (count(Tag::Mask) == 0 && !named))
    }

    fn of(&self, tag: Tag) -> Option<u16> {
        self.0.iter().find(|entry| entry.tag == tag).map(|entry| entry.permissions)
    }

    fn set(&mut self, tag: Tag, permissions: u16) {
        self.0.iter_mut().filter(|entry| entry.tag == tag).for_each(|entry| entry.permissions = permissions);
    }

    /// The entry that the mode's bits of the group stand for.
    fn group_class(&self) -> Tag {
        if self.of(Tag::Mask).is_some() { Tag::Mask } else { Tag::Group }
    }

    /// The permission bits of the mode that goes with it.
    pub fn mode(&self) -> u16 {
        let bits = |tag| self.of(tag).unwrap_or(0);
        bits(Tag::Owner) << 6 | bits(self.group_class()) << 3 | bits(Tag::Other)
    }

    /// It says no more than the mode.
    pub fn is_mode(&self) -> bool {
        self.0.len() == 3
    }

    /// As after a chmod.
    pub fn follow(&mut self, mode: u16) {
        let group = self.group_class();
        self.set(Tag::Owner, mode >> 6 & 7);
        self.set(group, mode >> 3 & 7);
        self.set(Tag::Other, mode & 7);
    }

    /// A directory's default one as that of something new, which its maker wants to have at most `mode`.
    pub fn inherited(mut self, mode: u16) -> Self {
        let mode = self.mode() & mode;
        self.follow(mode);
        self
    }
}

impl Entry {
    fn decode(bytes: &[u8]) -> Option<Self> {
        let short = |at: usize| Some(u16::from_le_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        let id = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?);
        Some(Self { tag: Tag::from_number(short(0)?)?, permissions: short(2)?, id })
    }
}

impl Tag {
    const NUMBERS: [(Self, u16); 6] = [
        (Self::Owner, 0x01),
        (Self::User, 0x02),
        (Self::Group, 0x04),
        (Self::NamedGroup, 0x08),
        (Self::Mask, 0x10),
        (Self::Other, 0x20),
    ];

    fn number(self) -> u16 {
        Self::NUMBERS[self as usize].1
    }

    fn from_number(number: u16) -> Option<Self> {
        Self::NUMBERS.iter().find(|(_, known)| *known == number).map(|(tag, _)| *tag)
    }
}

/// What is to be kept where an xattr is set to `value`; None: nothing. An access ACL changes the mode.
pub fn set(inode: &mut Inode, name: &[u8], value: &[u8]) -> Result<Option<Bytes>> {
    if value.len() > MAX_BYTES {
        return refuse(Code::TooBig, format!("an ACL has at most {MAX_BYTES} bytes"));
    }
    match name {
        ACCESS if inode.kind != Kind::Symlink => {
            let acl = Acl::decode(value)?;
            inode.mode = inode.mode & !PERMISSIONS | acl.mode();
            Ok((!acl.is_mode()).then(|| acl.encode().into()))
        }
        DEFAULT if inode.kind == Kind::Directory => Ok(Some(Acl::decode(value)?.encode().into())),
        DEFAULT => refuse(Code::AccessDenied, "only a directory has a default ACL"),
        _ => refuse(Code::NotSupported, "there are no such attributes"),
    }
}

/// Whether the attribute is one that only this module may change.
pub fn is_one(name: &[u8]) -> bool {
    name.starts_with(b"system.")
}

/// The access ACL says what the mode says, which was just set.
pub fn follow_mode(transaction: &mut Transaction<'_>, ino: Ino, inode: &Inode) -> Result<()> {
    let key = keys::xattr(ino, ACCESS);
    let kept = if inode.xattrs > 0 { transaction.bytes(&key)? } else { None };
    if let Some(kept) = kept {
        let mut acl = Acl::decode(&kept)?;
        acl.follow(inode.mode);
        transaction.put_bytes(key, acl.encode().into());
    }
    Ok(())
}

/// Names and values.
type Attributes = Vec<(&'static [u8], Bytes)>;

/// The mode of something new in a directory, and the attributes that it begins with.
pub fn inherit(
    transaction: &mut Transaction<'_>,
    (parent, directory): (Ino, &Inode),
    kind: Kind,
    wanted: NewMode,
) -> Result<(u16, Attributes)> {
    let default = match directory.xattrs > 0 && kind != Kind::Symlink {
        true => transaction.bytes(&keys::xattr(parent, DEFAULT))?,
        false => None,
    };
    let Some(default) = default else { return Ok((wanted.masked(), Vec::new())) };
    let acl = Acl::decode(&default)?.inherited(wanted.mode());
    let mode = wanted.mode() & !PERMISSIONS | acl.mode();
    let mut attributes = Vec::new();
    if !acl.is_mode() {
        attributes.push((ACCESS, acl.encode().into()));
    }
    if kind == Kind::Directory {
        attributes.push((DEFAULT, default));
    }
    Ok((mode, attributes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: u32 = u32::MAX;

    fn acl(entries: &[(Tag, u16, u32)]) -> Acl {
        Acl(entries
            .iter()
            .map(|(tag, permissions, id)| Entry { tag: *tag, permissions: *permissions, id: *id })
            .collect())
    }

    fn named() -> Acl {
        acl(&[
            (Tag::Owner, 7, NOBODY),
            (Tag::User, 6, 1000),
            (Tag::Group, 5, NOBODY),
            (Tag::Mask, 6, NOBODY),
            (Tag::Other, 1, NOBODY),
        ])
    }

    #[test]
    fn the_bytes_are_those_of_linux() {
        let bytes = [
            2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 6, 0, 232, 3, 0, 0, 4, 0, 5, 0, 255, 255, 255,
            255, 16, 0, 6, 0, 255, 255, 255, 255, 32, 0, 1, 0, 255, 255, 255, 255,
        ];
        assert_eq!(named().encode(), bytes);
        assert_eq!(Acl::decode(&bytes).unwrap(), named());
        for end in 0..bytes.len() {
            assert!(Acl::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn what_is_not_valid_is_refused() {
        let refused = |entries: &[(Tag, u16, u32)]| Acl::decode(&acl(entries).encode()).is_err();
        let (owner, group, other) =
            ((Tag::Owner, 6, NOBODY), (Tag::Group, 4, NOBODY), (Tag::Other, 0, NOBODY));
        assert!(!refused(&[owner, group, other]));
        assert!(refused(&[owner, other]) && refused(&[owner, owner, group, other]));
        assert!(refused(&[group, owner, other]), "the order");
        assert!(refused(&[owner, (Tag::User, 4, 5), group, other]), "a mask is missing");
        assert!(refused(&[owner, (Tag::Group, 8, NOBODY), other]));
        let mut strange = named().encode();
        strange[4] = 3;
        assert!(Acl::decode(&strange).is_err(), "no such tag");
        strange = named().encode();
        strange[0] = 1;
        assert!(Acl::decode(&strange).is_err(), "no such version");
    }

    #[test]
    fn mode_and_acl_follow_each_other() {
        let mut acl = named();
        assert_eq!((acl.mode(), acl.is_mode()), (0o761, false));
        acl.follow(0o1640);
        assert_eq!((acl.of(Tag::Mask), acl.of(Tag::Group), acl.of(Tag::Other)), (Some(4), Some(5), Some(0)));
        assert_eq!(acl.mode(), 0o640);
        let inherited = named().inherited(0o666);
        assert_eq!(inherited.mode(), 0o660);
        assert_eq!(inherited.of(Tag::User), Some(6), "the mask limits it");
        let mut plain = Acl(vec![named().0[0], named().0[2], named().0[4]]);
        assert_eq!((plain.mode(), plain.is_mode()), (0o751, true));
        plain.follow(0o604);
        assert_eq!(plain.mode(), 0o604);
    }
}
