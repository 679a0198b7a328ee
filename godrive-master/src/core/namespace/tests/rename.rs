use crate::core::state::tests::Bench;
use godrive_proto::meta::NewNode;
use godrive_proto::meta::RenameMode::{Exchange, NoReplace, Replace};
use godrive_proto::{Code, ROOT};

#[test]
fn a_name_moves() {
    let mut bench = Bench::new();
    let (d, e) = (bench.mkdir(ROOT, "d").unwrap(), bench.mkdir(ROOT, "e").unwrap());
    let ino = bench.create(d, "a").unwrap();
    let before = bench.attr(ino);
    let renamed = bench.rename((d, "a"), (e, "b"), NoReplace).unwrap();
    assert_eq!(renamed.entry.attr.ino, ino);
    assert!(renamed.entry.attr.ctime > before.ctime && renamed.entry.attr.mtime == before.mtime);
    assert_eq!((renamed.parent.attr.size, renamed.new_parent.attr.size), (0, 1));
    assert_eq!((bench.find(d, "a"), bench.find(e, "b").unwrap().ino), (None, ino));
    assert_eq!(bench.rename((d, "a"), (e, "b"), Replace).unwrap_err(), Code::NotFound);
    bench.check();
}

#[test]
fn a_directory_takes_its_dot_dot_along() {
    let mut bench = Bench::new();
    let (d, e) = (bench.mkdir(ROOT, "d").unwrap(), bench.mkdir(ROOT, "e").unwrap());
    let sub = bench.mkdir(d, "sub").unwrap();
    assert_eq!((bench.attr(d).nlink, bench.attr(e).nlink), (3, 2));
    bench.rename((d, "sub"), (e, "sub"), Replace).unwrap();
    assert_eq!((bench.attr(d).nlink, bench.attr(e).nlink), (2, 3));
    assert_eq!(bench.state.read_directory(sub, 0, 1).unwrap().parent, e);
    bench.check();
}

#[test]
fn replacing_follows_the_kinds() {
    let mut bench = Bench::new();
    let (d, e) = (bench.mkdir(ROOT, "d").unwrap(), bench.mkdir(ROOT, "e").unwrap());
    let file = bench.create(ROOT, "f").unwrap();
    bench.create(e, "x").unwrap();
    assert_eq!(bench.rename((ROOT, "f"), (ROOT, "d"), Replace).unwrap_err(), Code::IsDirectory);
    assert_eq!(bench.rename((ROOT, "d"), (ROOT, "f"), Replace).unwrap_err(), Code::NotDirectory);
    assert_eq!(bench.rename((ROOT, "d"), (ROOT, "e"), Replace).unwrap_err(), Code::NotEmpty);
    assert_eq!(bench.rename((ROOT, "d"), (ROOT, "e"), NoReplace).unwrap_err(), Code::Exists);
    bench.remove(e, "x", false).unwrap();
    let renamed = bench.rename((ROOT, "d"), (ROOT, "e"), Replace).unwrap();
    assert_eq!(renamed.other.unwrap().attr.nlink, 0);
    assert_eq!(bench.find(ROOT, "e").unwrap().ino, d);
    assert_eq!(bench.attr(ROOT).nlink, 3);
    let link = bench.make(ROOT, "l", NewNode::Symlink(b"x".to_vec())).unwrap();
    let renamed = bench.rename((ROOT, "l"), (ROOT, "f"), Replace).unwrap();
    assert_eq!(renamed.other.unwrap().attr.ino, file);
    assert_eq!(bench.find(ROOT, "f").unwrap().ino, link);
    bench.check();
}

#[test]
fn a_replaced_name_keeps_its_position() {
    let mut bench = Bench::new();
    for text in ["a", "b", "c"] {
        bench.create(ROOT, text).unwrap();
    }
    bench.rename((ROOT, "c"), (ROOT, "a"), Replace).unwrap();
    assert_eq!(bench.names(ROOT), ["a", "b"]);
}

#[test]
fn two_names_of_one_inode_stay() {
    let mut bench = Bench::new();
    let ino = bench.create(ROOT, "a").unwrap();
    bench.link(ino, ROOT, "b").unwrap();
    let before = (bench.attr(ROOT), bench.attr(ino));
    assert!(bench.rename((ROOT, "a"), (ROOT, "b"), Replace).unwrap().other.is_none());
    bench.rename((ROOT, "a"), (ROOT, "a"), Replace).unwrap();
    bench.rename((ROOT, "a"), (ROOT, "b"), Exchange).unwrap();
    assert_eq!((bench.attr(ROOT), bench.attr(ino)), before);
    assert_eq!(bench.rename((ROOT, "a"), (ROOT, "b"), NoReplace).unwrap_err(), Code::Exists);
    bench.check();
}

#[test]
fn no_directory_becomes_its_own_ancestor() {
    let mut bench = Bench::new();
    let a = bench.mkdir(ROOT, "a").unwrap();
    let b = bench.mkdir(a, "b").unwrap();
    let c = bench.mkdir(b, "c").unwrap();
    assert_eq!(bench.rename((ROOT, "a"), (c, "x"), Replace).unwrap_err(), Code::Invalid);
    assert_eq!(bench.rename((ROOT, "a"), (a, "x"), Replace).unwrap_err(), Code::Invalid);
    assert_eq!(bench.rename((b, "c"), (ROOT, "a"), Replace).unwrap_err(), Code::NotEmpty);
    assert_eq!(bench.rename((b, "c"), (ROOT, "a"), Exchange).unwrap_err(), Code::Invalid);
    assert_eq!(bench.rename((ROOT, "a"), (b, "c"), Exchange).unwrap_err(), Code::Invalid);
    bench.rename((b, "c"), (ROOT, "c"), Replace).unwrap();
    bench.check();
}

#[test]
fn exchange_swaps_two_names() {
    let mut bench = Bench::new();
    let (d, e) = (bench.mkdir(ROOT, "d").unwrap(), bench.mkdir(ROOT, "e").unwrap());
    let sub = bench.mkdir(d, "x").unwrap();
    let file = bench.create(e, "y").unwrap();
    assert_eq!(bench.rename((d, "x"), (e, "none"), Exchange).unwrap_err(), Code::NotFound);
    let renamed = bench.rename((d, "x"), (e, "y"), Exchange).unwrap();
    assert_eq!(renamed.other.unwrap().attr.ino, file);
    assert_eq!((bench.find(d, "x").unwrap().ino, bench.find(e, "y").unwrap().ino), (file, sub));
    assert_eq!((bench.attr(d).nlink, bench.attr(e).nlink), (2, 3));
    bench.check();
}

#[test]
fn nothing_moves_into_a_removed_directory() {
    let mut bench = Bench::new();
    let directory = bench.mkdir(ROOT, "d").unwrap();
    bench.create(ROOT, "a").unwrap();
    bench.remove(ROOT, "d", true).unwrap();
    assert_eq!(bench.rename((ROOT, "a"), (directory, "a"), Replace).unwrap_err(), Code::NotFound);
    bench.check();
}
