use crate::core::record::{Mutation, Reply};
use crate::core::state::tests::{Bench, create, name};
use godrive_proto::meta::*;
use godrive_proto::{Code, ROOT};

#[test]
fn a_new_file_looks_as_asked() {
    let mut bench = Bench::new();
    let before = bench.attr(ROOT);
    let ino = bench.create(ROOT, "a").unwrap();
    let attr = bench.find(ROOT, "a").unwrap();
    assert_eq!(attr.ino, ino);
    assert_eq!((attr.kind, attr.mode, attr.nlink), (Kind::File, 0o644, 1));
    assert_eq!((attr.uid, attr.gid, attr.size, attr.blocks), (10, 20, 0, 0));
    assert!(attr.btime == attr.ctime && attr.ctime == attr.mtime && attr.mtime == attr.atime);
    let after = bench.attr(ROOT);
    assert_eq!((before.size, after.size, after.nlink), (0, 1, 2));
    assert!(after.mtime > before.mtime && after.ctime == after.mtime && after.change > before.change);
    bench.check();
}

#[test]
fn creating_finds_what_exists_unless_exclusive() {
    let mut bench = Bench::new();
    let ino = bench.create(ROOT, "a").unwrap();
    bench.mkdir(ROOT, "d").unwrap();
    assert_eq!(bench.create(ROOT, "a").unwrap_err(), Code::Exists);
    let find = |text: &str| match create(ROOT, text, true) {
        Mutation::Create { request, members } => {
            Mutation::Create { request: CreateRequest { exclusive: false, ..request }, members }
        }
        other => other,
    };
    let before = bench.attr(ROOT);
    match bench.mutate(find("a")).unwrap() {
        Reply::Created(found) => {
            assert!(found.existed && found.entry.attr.ino == ino && found.layout.is_none())
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.attr(ROOT), before);
    assert_eq!(bench.mutate(find("d")).unwrap_err(), Code::IsDirectory);
    bench.check();
}

#[test]
fn impossible_names_and_parents_are_refused() {
    let mut bench = Bench::new();
    let file = bench.create(ROOT, "a").unwrap();
    for (bad, code) in
        [("", Code::Invalid), (".", Code::Invalid), ("..", Code::Invalid), ("a/b", Code::Invalid)]
    {
        assert_eq!(bench.create(ROOT, bad).unwrap_err(), code);
        assert_eq!(bench.mkdir(ROOT, bad).unwrap_err(), code);
    }
    assert_eq!(bench.create(ROOT, &"x".repeat(256)).unwrap_err(), Code::NameTooLong);
    bench.create(ROOT, &"x".repeat(255)).unwrap();
    assert_eq!(bench.create(file, "b").unwrap_err(), Code::NotDirectory);
    assert_eq!(bench.create(godrive_proto::Ino(99), "b").unwrap_err(), Code::Stale);
    let directory = bench.mkdir(ROOT, "d").unwrap();
    bench.remove(ROOT, "d", true).unwrap();
    assert_eq!(bench.create(directory, "b").unwrap_err(), Code::NotFound);
    assert_eq!(bench.mkdir(directory, "b").unwrap_err(), Code::NotFound);
    bench.check();
}

#[test]
fn every_kind_of_node() {
    let mut bench = Bench::new();
    for (text, node, kind, rdev) in [
        ("d", NewNode::Directory, Kind::Directory, 0),
        ("p", NewNode::Fifo, Kind::Fifo, 0),
        ("s", NewNode::Socket, Kind::Socket, 0),
        ("c", NewNode::CharDevice(0x0103), Kind::CharDevice, 0x0103),
        ("b", NewNode::BlockDevice(0x0800), Kind::BlockDevice, 0x0800),
        ("f", NewNode::File, Kind::File, 0),
    ] {
        bench.make(ROOT, text, node.clone()).unwrap();
        let attr = bench.find(ROOT, text).unwrap();
        assert_eq!((attr.kind, attr.rdev, attr.mode), (kind, rdev, 0o755));
        assert_eq!(bench.make(ROOT, text, node).unwrap_err(), Code::Exists);
    }
    assert_eq!(bench.attr(ROOT).nlink, 3);
    assert_eq!(bench.find(ROOT, "d").unwrap().nlink, 2);
    bench.check();
}

#[test]
fn symlinks_keep_their_target() {
    let mut bench = Bench::new();
    let target = b"../\xff/x".to_vec();
    let ino = bench.make(ROOT, "l", NewNode::Symlink(target.clone())).unwrap();
    let (attr, found) = bench.state.target(ino).unwrap();
    assert_eq!((attr.mode, attr.size, found.to_vec()), (0o777, 6, target));
    for (bad, code) in
        [(vec![], Code::NotFound), (b"a\0b".to_vec(), Code::Invalid), (vec![b'x'; 4096], Code::NameTooLong)]
    {
        assert_eq!(bench.make(ROOT, "m", NewNode::Symlink(bad)).unwrap_err(), code);
    }
    assert_eq!(bench.state.target(ROOT).unwrap_err().code, Code::Invalid);
    bench.check();
}

#[test]
fn a_set_gid_directory_hands_its_group_down() {
    let mut bench = Bench::new();
    let directory = bench.mkdir(ROOT, "d").unwrap();
    let changes = AttrChanges { mode: Some(0o2770), gid: Some(77), ..Default::default() };
    bench.set_attr(directory, changes).unwrap();
    bench.create(directory, "f").unwrap();
    bench.mkdir(directory, "sub").unwrap();
    let (file, sub) = (bench.find(directory, "f").unwrap(), bench.find(directory, "sub").unwrap());
    assert_eq!((file.gid, file.mode), (77, 0o644));
    assert_eq!((sub.gid, sub.mode), (77, 0o2755));
}

#[test]
fn positions_stay_while_entries_come_and_go() {
    let mut bench = Bench::new();
    for text in ["a", "b", "c", "d"] {
        bench.create(ROOT, text).unwrap();
    }
    let page = bench.state.read_directory(ROOT, 0, 2).unwrap();
    assert!(!page.end && page.parent == ROOT);
    let after = page.entries[1].0;
    bench.remove(ROOT, "a", false).unwrap();
    bench.remove(ROOT, "c", false).unwrap();
    bench.create(ROOT, "e").unwrap();
    let rest = bench.state.read_directory(ROOT, after, 10).unwrap();
    let names: Vec<&Name> = rest.entries.iter().map(|(_, entry)| &entry.name).collect();
    assert_eq!(names, [&name("d"), &name("e")]);
    assert!(rest.end);
    assert!(bench.state.read_directory(ROOT, u64::MAX, 10).unwrap().entries.is_empty());
}
