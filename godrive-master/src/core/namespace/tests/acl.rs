use crate::core::namespace::acl::{ACCESS, DEFAULT};
use crate::core::record::Mutation;
use crate::core::state::tests::{Bench, create};
use godrive_proto::meta::*;
use godrive_proto::{Code, Ino, ROOT};

/// Entries of tag, permissions and id, as Linux passes them.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

const NONE: u32 = u32::MAX;

fn named(owner: u16, user: u16, mask: u16, other: u16) -> Vec<u8> {
    acl(&[(1, owner, NONE), (2, user, 1000), (4, 5, NONE), (0x10, mask, NONE), (0x20, other, NONE)])
}

impl Bench {
    fn xattr(&self, ino: Ino, name: &[u8]) -> Option<Vec<u8>> {
        let (_, all) = self.state.xattrs(ino).unwrap();
        all.into_iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    fn create_as(&mut self, parent: Ino, text: &str, mode: NewMode) -> Ino {
        let Mutation::Create { request, members } = create(parent, text, false) else { unreachable!() };
        self.mutate(Mutation::Create { request: CreateRequest { mode, ..request }, members }).unwrap();
        self.find(parent, text).unwrap().ino
    }
}

#[test]
fn mode_and_access_acl_follow_each_other() {
    let mut bench = Bench::new();
    let ino = bench.create(ROOT, "a").unwrap();
    bench.set_attr(ino, AttrChanges { mode: Some(0o4644), ..Default::default() }).unwrap();
    bench.set_xattr(ino, ACCESS, &named(7, 6, 6, 1)).unwrap();
    assert_eq!(bench.attr(ino).mode, 0o4761);
    bench.set_attr(ino, AttrChanges { mode: Some(0o640), ..Default::default() }).unwrap();
    assert_eq!(bench.xattr(ino, ACCESS), Some(named(6, 6, 4, 0)));
    let changes = AttrChanges { mode: Some(0o751), ..Default::default() };
    bench.commit(CommitRequest { changes, ..crate::core::state::tests::nothing(ino) }).unwrap();
    assert_eq!(bench.xattr(ino, ACCESS), Some(named(7, 6, 5, 1)));
    bench.set_xattr(ino, ACCESS, &acl(&[(1, 6, NONE), (4, 0, NONE), (0x20, 4, NONE)])).unwrap();
    assert_eq!((bench.attr(ino).mode, bench.attr(ino).xattrs), (0o604, false), "a mode says all of it");
    bench.check();
}

#[test]
fn a_default_acl_is_inherited_instead_of_the_umask() {
    let mut bench = Bench::new();
    let plain = bench.create_as(ROOT, "plain", NewMode::new(0o666, 0o027));
    assert_eq!(bench.attr(plain).mode, 0o640);
    let folder = bench.mkdir(ROOT, "d").unwrap();
    bench.set_xattr(folder, DEFAULT, &named(7, 7, 7, 5)).unwrap();
    let file = bench.create_as(folder, "f", NewMode::new(0o666, 0o077));
    assert_eq!(bench.attr(file).mode, 0o664);
    assert_eq!(bench.xattr(file, ACCESS), Some(named(6, 7, 6, 4)));
    assert_eq!(bench.xattr(file, DEFAULT), None);
    let sub = bench.mkdir(folder, "sub").unwrap();
    assert_eq!(bench.xattr(sub, DEFAULT), Some(named(7, 7, 7, 5)));
    assert_eq!((bench.xattr(sub, ACCESS), bench.attr(sub).mode), (Some(named(7, 7, 5, 5)), 0o755));
    let link = bench.make(folder, "link", NewNode::Symlink(b"f".to_vec())).unwrap();
    assert_eq!((bench.attr(link).mode, bench.attr(link).xattrs), (0o777, false));
    bench.remove_xattr(folder, DEFAULT).unwrap();
    assert_eq!(
        bench.attr(bench.state.lookup(folder, &Name(b"f".to_vec())).unwrap().1.unwrap().ino).mode,
        0o664
    );
    bench.check();
}

#[test]
fn what_is_no_acl_is_refused() {
    let mut bench = Bench::new();
    let file = bench.create(ROOT, "f").unwrap();
    let link = bench.make(ROOT, "l", NewNode::Symlink(b"f".to_vec())).unwrap();
    let before = bench.attr(file);
    assert_eq!(bench.set_xattr(file, ACCESS, b"").unwrap_err(), Code::Invalid);
    assert_eq!(bench.set_xattr(file, ACCESS, &named(7, 8, 7, 7)).unwrap_err(), Code::Invalid);
    assert_eq!(bench.set_xattr(file, DEFAULT, &named(7, 7, 7, 7)).unwrap_err(), Code::AccessDenied);
    assert_eq!(bench.set_xattr(file, b"system.other", b"x").unwrap_err(), Code::NotSupported);
    assert_eq!(bench.set_xattr(link, ACCESS, &named(7, 7, 7, 7)).unwrap_err(), Code::NotSupported);
    assert_eq!(bench.attr(file), before);
}
