use crate::core::record::{Body, Mutation};
use crate::core::state::tests::Bench;
use godrive_proto::meta::*;
use godrive_proto::time::Timestamp;
use godrive_proto::{Code, Ino, ROOT};

#[test]
fn only_what_is_asked_changes() {
    let mut bench = Bench::new();
    let ino = bench.create(ROOT, "a").unwrap();
    let before = bench.attr(ino);
    let after = bench.set_attr(ino, AttrChanges { mode: Some(0o17_4750), ..Default::default() }).unwrap();
    assert_eq!(after.mode, 0o4750, "only the permission bits count");
    assert!(after.ctime > before.ctime);
    let expected = Attr { mode: 0o4750, ctime: after.ctime, change: after.change, ..before };
    assert_eq!(after, expected);
    let ctime = AttrChanges { ctime: Some(Timestamp(1)), ..Default::default() };
    assert_eq!(bench.set_attr(ino, ctime).unwrap_err(), Code::Invalid);
}

#[test]
fn a_change_of_owner_clears_the_set_id_bits_of_programs() {
    let mut bench = Bench::new();
    let ino = bench.create(ROOT, "a").unwrap();
    let mode = |mode| AttrChanges { mode: Some(mode), ..Default::default() };
    let owner = AttrChanges { uid: Some(1), gid: Some(2), ..Default::default() };
    bench.set_attr(ino, mode(0o6755)).unwrap();
    let attr = bench.set_attr(ino, owner).unwrap();
    assert_eq!((attr.mode, attr.uid, attr.gid), (0o755, 1, 2));
    bench.set_attr(ino, mode(0o6744)).unwrap();
    assert_eq!(bench.set_attr(ino, owner).unwrap().mode, 0o2744);
    let asked = AttrChanges { mode: Some(0o6755), ..owner };
    assert_eq!(bench.set_attr(ino, asked).unwrap().mode, 0o6755, "a mode that comes along is meant");
    let directory = bench.mkdir(ROOT, "d").unwrap();
    bench.set_attr(directory, mode(0o2755)).unwrap();
    assert_eq!(bench.set_attr(directory, owner).unwrap().mode, 0o2755);
}

#[test]
fn a_future_mtime_is_a_users_and_the_next_change_ends_it() {
    let mut bench = Bench::new();
    let ino = bench.create(ROOT, "a").unwrap();
    let future = Timestamp(1 << 60);
    let set = |time| AttrChanges { mtime: Some(time), atime: Some(time), ..Default::default() };
    let attr = bench.set_attr(ino, set(SetTime::At(future))).unwrap();
    assert_eq!((attr.mtime, attr.atime), (future, future));
    assert!(attr.ctime < future);
    let attr = bench.truncate(ino, 5).unwrap().view.attr;
    assert_eq!(attr.mtime, attr.ctime);
    bench.set_attr(ino, set(SetTime::At(future))).unwrap();
    let attr = bench.set_attr(ino, set(SetTime::Now)).unwrap();
    assert_eq!((attr.mtime, attr.atime), (attr.ctime, attr.ctime));
}

#[test]
fn truncation_clears_privileges_when_asked() {
    let mut bench = Bench::new();
    let ino = bench.create(ROOT, "a").unwrap();
    bench.set_attr(ino, AttrChanges { mode: Some(0o6755), ..Default::default() }).unwrap();
    let request = TruncateRequest { ino, size: 0, kill_privileges: true };
    bench.mutate(Mutation::Truncate(request)).unwrap();
    assert_eq!(bench.attr(ino).mode, 0o755);
    let directory = bench.mkdir(ROOT, "d").unwrap();
    assert_eq!(bench.truncate(directory, 0).unwrap_err(), Code::IsDirectory);
    let fifo = bench.make(ROOT, "p", NewNode::Fifo).unwrap();
    assert_eq!(bench.truncate(fifo, 0).unwrap_err(), Code::Invalid);
}

#[test]
fn a_read_is_no_change_and_undoes_none() {
    let mut bench = Bench::new();
    let ino = bench.create(ROOT, "a").unwrap();
    let before = bench.attr(ino);
    let read = |bench: &mut Bench, at| {
        let times = vec![(Ino(99_999), Timestamp(5)), (ino, Timestamp(at))];
        bench.own(Body::Accessed { times }).unwrap();
        bench.attr(ino)
    };
    assert_eq!(read(&mut bench, before.ctime.0 - 1), before, "it was read before it was changed");
    let at = before.ctime.0 + 10;
    assert_eq!(read(&mut bench, at), Attr { atime: Timestamp(at), ..before.clone() });
    assert_eq!(read(&mut bench, at - 1).atime, Timestamp(at));
    bench.check();
}
