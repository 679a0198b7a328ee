use crate::core::state::keys;
use crate::core::state::tests::Bench;
use crate::core::state::values::{Inode, Value};
use godrive_proto::limits::MAX_LINKS;
use godrive_proto::meta::NewNode;
use godrive_proto::{Code, Ino, ROOT};

#[test]
fn hard_links_count() {
    let mut bench = Bench::new();
    let ino = bench.create(ROOT, "a").unwrap();
    let directory = bench.mkdir(ROOT, "d").unwrap();
    let before = bench.attr(ino);
    bench.link(ino, directory, "b").unwrap();
    let linked = bench.attr(ino);
    assert_eq!(linked.nlink, 2);
    assert!(linked.ctime > before.ctime && linked.mtime == before.mtime);
    assert_eq!(bench.find(directory, "b").unwrap().ino, ino);
    assert_eq!(bench.link(ino, ROOT, "a").unwrap_err(), Code::Exists);
    assert_eq!(bench.link(directory, ROOT, "e").unwrap_err(), Code::NotPermitted);
    assert_eq!(bench.link(Ino(99), ROOT, "e").unwrap_err(), Code::Stale);
    assert_eq!(bench.link(ino, ino, "e").unwrap_err(), Code::NotDirectory);
    let left = bench.remove(ROOT, "a", false).unwrap();
    assert_eq!(left.entry.attr.nlink, 1);
    assert!(left.entry.attr.ctime > linked.ctime);
    assert_eq!(bench.find(ROOT, "a"), None);
    bench.check();
}

#[test]
fn links_have_a_limit() {
    let mut bench = Bench::new();
    let ino = bench.create(ROOT, "0").unwrap();
    let nearly = Inode { nlink: MAX_LINKS - 1, ..bench.state.inode(ino).unwrap() };
    bench.kv.0.lock().map.insert(keys::inode(ino), nearly.encode().unwrap());
    bench.link(ino, ROOT, "last").unwrap();
    assert_eq!(bench.link(ino, ROOT, "more").unwrap_err(), Code::TooManyLinks);
}

#[test]
fn unlink_and_rmdir_know_their_kinds() {
    let mut bench = Bench::new();
    bench.create(ROOT, "f").unwrap();
    let directory = bench.mkdir(ROOT, "d").unwrap();
    bench.create(directory, "x").unwrap();
    assert_eq!(bench.remove(ROOT, "d", false).unwrap_err(), Code::IsDirectory);
    assert_eq!(bench.remove(ROOT, "d", true).unwrap_err(), Code::NotEmpty);
    assert_eq!(bench.remove(ROOT, "f", true).unwrap_err(), Code::NotDirectory);
    assert_eq!(bench.remove(ROOT, "none", false).unwrap_err(), Code::NotFound);
    assert_eq!(bench.remove(ROOT, "none", true).unwrap_err(), Code::NotFound);
    bench.remove(directory, "x", false).unwrap();
    let before = bench.attr(ROOT);
    let removed = bench.remove(ROOT, "d", true).unwrap();
    assert_eq!((removed.entry.attr.nlink, removed.parent.attr.nlink), (0, 2));
    assert!(removed.parent.attr.mtime > before.mtime);
    assert_eq!(removed.parent.attr.size, before.size - 1);
    bench.check();
}

#[test]
fn everything_of_a_removed_inode_goes() {
    let mut bench = Bench::new();
    let ino = bench.make(ROOT, "l", NewNode::Symlink(b"x".to_vec())).unwrap();
    bench.set_xattr(ino, b"user.a", b"1").unwrap();
    let before = bench.kv.0.lock().map.len();
    bench.remove(ROOT, "l", false).unwrap();
    let session = bench.session;
    bench.own(crate::core::record::Body::OrphansClosed { session, inodes: vec![ino] }).unwrap();
    // Inode, dentry, entry, target and xattr are gone; two more results are kept.
    let results = 1;
    assert_eq!(bench.kv.0.lock().map.len(), before - 5 + results);
    assert_eq!(bench.state.counts().inodes, 1);
    bench.check();
}
