use crate::core::record::Body;
use crate::core::state::tests::Bench;
use godrive_proto::meta::{NewNode, RenameMode};
use godrive_proto::{Code, Ino, ROOT};

fn kept(min_age_s: u32) -> Bench {
    let mut bench = Bench::new();
    bench.own(Body::TrashKept { keep_s: 60, min_age_s }).unwrap();
    bench
}

impl Bench {
    fn close(&mut self, ino: Ino) {
        let session = self.session;
        self.own(Body::OrphansClosed { session, inodes: vec![ino] }).unwrap();
    }

    fn in_trash(&self) -> Vec<(u64, String)> {
        let all = self.state.trashed(None, 100).unwrap();
        all.iter().map(|(ino, trashed, _)| (ino.0, String::from_utf8_lossy(&trashed.name.0).into())).collect()
    }
}

#[test]
fn what_was_removed_comes_back_as_it_was() {
    let mut bench = kept(0);
    let directory = bench.mkdir(ROOT, "d").unwrap();
    let file = bench.create(directory, "f").unwrap();
    bench.set_xattr_as(file, b"user.a", b"v", godrive_proto::meta::SetXattrMode::Set).unwrap();
    let link = bench.make(directory, "l", NewNode::Symlink(b"t".to_vec())).unwrap();
    for (name, ino) in [("f", file), ("l", link)] {
        bench.remove(directory, name, false).unwrap();
        bench.close(ino);
    }
    bench.remove(ROOT, "d", true).unwrap();
    bench.close(directory);
    bench.check();
    let names = [(file, "f"), (link, "l"), (directory, "d")].map(|(ino, name)| (ino.0, name.to_owned()));
    assert_eq!(bench.in_trash(), names);
    assert_eq!(bench.state.counts().orphans, 0);

    assert_eq!(bench.restore(file, directory, "f").unwrap_err(), Code::NotFound, "its directory has no name");
    bench.restore(directory, ROOT, "back").unwrap();
    bench.restore(file, directory, "f").unwrap();
    bench.restore(link, ROOT, "elsewhere").unwrap();
    assert_eq!(bench.restore(link, ROOT, "twice").unwrap_err(), Code::NotFound);
    bench.check();
    assert_eq!((bench.attr(directory).nlink, bench.attr(file).nlink), (2, 1));
    assert_eq!(bench.attr(ROOT).nlink, 3);
    assert!(bench.attr(file).xattrs);
    assert_eq!(bench.state.target(link).unwrap().1, b"t".as_slice());
    assert_eq!(bench.names(directory), ["f"]);
    assert_eq!(bench.in_trash(), []);
}

#[test]
fn what_is_replaced_is_kept_too_and_a_name_that_is_left_keeps_all() {
    let mut bench = kept(0);
    let (old, new) = (bench.create(ROOT, "a").unwrap(), bench.create(ROOT, "b").unwrap());
    bench.rename((ROOT, "b"), (ROOT, "a"), RenameMode::Replace).unwrap();
    assert_eq!(bench.in_trash(), [(old.0, "a".to_owned())]);
    assert_eq!(bench.restore(old, ROOT, "a").unwrap_err(), Code::Exists);
    bench.link(new, ROOT, "more").unwrap();
    bench.remove(ROOT, "a", false).unwrap();
    assert_eq!(bench.in_trash().len(), 1);
    bench.check();
}

#[test]
fn short_lives_leave_nothing_and_nothing_is_kept_when_it_is_off() {
    let mut bench = kept(1);
    let (young, old) = (bench.create(ROOT, "young").unwrap(), bench.create(ROOT, "old").unwrap());
    bench.remove(ROOT, "young", false).unwrap();
    bench.now.0 += 1_000_000_000;
    bench.remove(ROOT, "old", false).unwrap();
    assert_eq!(bench.in_trash(), [(old.0, "old".to_owned())]);
    bench.close(young);
    assert_eq!(bench.state.attr(young).unwrap_err().code, Code::Stale);
    bench.own(Body::TrashKept { keep_s: 0, min_age_s: 1 }).unwrap();
    bench.create(ROOT, "later").unwrap();
    bench.now.0 += 1_000_000_000;
    bench.remove(ROOT, "later", false).unwrap();
    assert_eq!(bench.in_trash().len(), 1);
    bench.check();
}

#[test]
fn whoever_has_it_open_goes_on_when_it_leaves_the_trash() {
    let mut bench = kept(0);
    let ino = bench.create(ROOT, "a").unwrap();
    bench.remove(ROOT, "a", false).unwrap();
    let dropped = bench.apply(crate::core::record::Origin::MASTER, Body::TrashDropped { inodes: vec![ino] });
    assert!(dropped.effects.removed.is_empty());
    bench.check();
    assert_eq!((bench.attr(ino).nlink, bench.state.counts().orphans), (0, 1));
    assert_eq!(bench.restore(ino, ROOT, "a").unwrap_err(), Code::NotFound);
    bench.close(ino);
    assert_eq!(bench.state.attr(ino).unwrap_err().code, Code::Stale);
    bench.check();

    let ino = bench.create(ROOT, "b").unwrap();
    bench.remove(ROOT, "b", false).unwrap();
    bench.restore(ino, ROOT, "b").unwrap();
    bench.check();
    // It closed what has a name again.
    bench.close(ino);
    assert_eq!(bench.attr(ino).nlink, 1);
    assert_eq!(bench.state.counts().orphans, 0);
    bench.check();
}
