use crate::core::record::Mutation;
use crate::core::state::tests::Bench;
use godrive_proto::limits::MAX_XATTR_VALUE_BYTES;
use godrive_proto::meta::*;
use godrive_proto::{Code, Ino, ROOT};

impl Bench {
    pub fn set_xattr_as(
        &mut self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: SetXattrMode,
    ) -> Result<(), Code> {
        let request = SetXattrRequest { ino, name: name.to_vec(), value: value.to_vec(), mode };
        self.mutate(Mutation::SetXattr(request)).map(drop)
    }

    pub fn set_xattr(&mut self, ino: Ino, name: &[u8], value: &[u8]) -> Result<(), Code> {
        self.set_xattr_as(ino, name, value, SetXattrMode::Set)
    }

    pub fn remove_xattr(&mut self, ino: Ino, name: &[u8]) -> Result<(), Code> {
        self.mutate(Mutation::RemoveXattr(RemoveXattrRequest { ino, name: name.to_vec() })).map(drop)
    }
}

#[test]
fn xattrs_come_and_go() {
    let mut bench = Bench::new();
    let ino = bench.create(ROOT, "a").unwrap();
    let before = bench.attr(ino);
    assert!(!before.xattrs);
    bench.set_xattr(ino, b"user.b", b"2").unwrap();
    bench.set_xattr(ino, b"user.a", b"").unwrap();
    bench.set_xattr(ino, b"user.b", b"3").unwrap();
    let (attr, all) = bench.state.xattrs(ino).unwrap();
    assert!(attr.xattrs && attr.ctime > before.ctime && attr.mtime == before.mtime);
    assert_eq!(all, [(b"user.a".to_vec(), vec![]), (b"user.b".to_vec(), b"3".to_vec())]);
    bench.remove_xattr(ino, b"user.b").unwrap();
    assert_eq!(bench.remove_xattr(ino, b"user.b").unwrap_err(), Code::NoAttribute);
    bench.remove_xattr(ino, b"user.a").unwrap();
    let inode = bench.state.inode(ino).unwrap();
    assert_eq!((inode.xattrs, inode.xattr_bytes, inode.xattr_list_bytes), (0, 0, 0));
    assert!(!bench.attr(ino).xattrs);
}

#[test]
fn create_and_replace_are_told_apart() {
    let mut bench = Bench::new();
    let ino = bench.create(ROOT, "a").unwrap();
    let replace = bench.set_xattr_as(ino, b"user.a", b"1", SetXattrMode::Replace);
    assert_eq!(replace.unwrap_err(), Code::NoAttribute);
    bench.set_xattr_as(ino, b"user.a", b"1", SetXattrMode::Create).unwrap();
    assert_eq!(bench.set_xattr_as(ino, b"user.a", b"1", SetXattrMode::Create).unwrap_err(), Code::Exists);
    bench.set_xattr_as(ino, b"user.a", b"2", SetXattrMode::Replace).unwrap();
}

#[test]
fn limits_hold() {
    let mut bench = Bench::new();
    let ino = bench.create(ROOT, "a").unwrap();
    assert_eq!(bench.set_xattr(ino, b"", b"1").unwrap_err(), Code::Range);
    assert_eq!(bench.set_xattr(ino, &[b'x'; 256], b"1").unwrap_err(), Code::Range);
    assert_eq!(bench.set_xattr(ino, b"a\0b", b"1").unwrap_err(), Code::Invalid);
    let most = vec![7; MAX_XATTR_VALUE_BYTES];
    assert_eq!(bench.set_xattr(ino, b"user.a", &[most.clone(), vec![7]].concat()).unwrap_err(), Code::TooBig);
    let mut fit = 0;
    while bench.set_xattr(ino, format!("user.{fit}").as_bytes(), &most).is_ok() {
        fit += 1;
    }
    assert_eq!(fit, 7, "the eighth does not fit with its name");
    assert_eq!(bench.set_xattr(ino, b"user.z", &most).unwrap_err(), Code::NoSpace);
    bench.set_xattr(ino, b"user.0", b"").unwrap();
    bench.set_xattr(ino, b"user.z", &most).unwrap();
}
