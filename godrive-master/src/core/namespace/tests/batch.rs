use crate::core::record::{Body, Mutation, Reply, Taken};
use crate::core::state::tests::{Bench, taken, taken_at};
use godrive_proto::meta::*;
use godrive_proto::time::Timestamp;
use godrive_proto::{Code, Ino, ROOT, SessionId};

impl Bench {
    pub fn batch(&mut self, steps: Vec<Taken>) -> Result<Vec<InodeView>, Code> {
        match self.mutate(Mutation::Batch(steps))? {
            Reply::Batched(batched) => Ok(batched.views),
            other => panic!("{other:?}"),
        }
    }

    fn remove_at(&mut self, parent: Ino, text: &str, ino: Ino, at: Timestamp) {
        self.batch(vec![taken_at(parent, text, false, ino, at)]).unwrap();
    }
}

#[test]
fn a_directory_goes_in_one_batch_with_what_it_contained() {
    let mut bench = Bench::new();
    let d = bench.mkdir(ROOT, "d").unwrap();
    let sub = bench.mkdir(d, "sub").unwrap();
    let (a, b) = (bench.create(d, "a").unwrap(), bench.create(sub, "b").unwrap());
    bench.create(ROOT, "stays").unwrap();
    let steps = vec![
        taken(d, "a", false, a),
        taken(sub, "b", false, b),
        taken(d, "sub", true, sub),
        taken(ROOT, "d", true, d),
    ];
    let views = bench.batch(steps).unwrap();
    let inodes: Vec<_> = views.iter().map(|view| view.attr.ino).collect();
    assert_eq!(inodes, [ROOT, d, sub, a, b], "each once");
    for view in &views {
        assert_eq!(view.attr, bench.attr(view.attr.ino), "as it is after all steps");
        assert_eq!(view.attr.nlink, if view.attr.ino == ROOT { 2 } else { 0 });
    }
    assert_eq!(bench.names(ROOT), ["stays"]);
    assert_eq!((bench.attr(ROOT).size, bench.attr(d).size), (1, 0));
    assert_eq!(bench.state.counts().orphans, 4);
    bench.check();
}

#[test]
fn one_step_refused_and_nothing_has_changed() {
    let mut bench = Bench::new();
    let d = bench.mkdir(ROOT, "d").unwrap();
    let (a, b) = (bench.create(d, "a").unwrap(), bench.create(d, "b").unwrap());
    let first = taken(d, "a", false, a);
    let look = |bench: &Bench| ([ROOT, d, a, b].map(|ino| bench.attr(ino)), bench.names(d));
    let before = look(&bench);
    for (refused, code) in [
        (taken(ROOT, "d", true, d), Code::NotEmpty),
        (taken(d, "none", false, b), Code::NotFound),
        (taken(d, "a", false, a), Code::NotFound),
        (taken(d, "b", false, a), Code::Stale),
        (taken(d, "b", true, b), Code::NotDirectory),
        (taken(ROOT, "d", false, d), Code::IsDirectory),
    ] {
        assert_eq!(bench.batch(vec![first.clone(), refused.clone()]).unwrap_err(), code, "{refused:?}");
        assert_eq!(look(&bench), before, "{refused:?}");
    }
    assert_eq!(bench.state.counts().orphans, 0);
    bench.check();
}

#[test]
fn a_name_that_leads_elsewhere_by_now_stays() {
    let mut bench = Bench::new();
    let old = bench.create(ROOT, "a").unwrap();
    bench.remove(ROOT, "a", false).unwrap();
    let new = bench.create(ROOT, "a").unwrap();
    assert_eq!(bench.batch(vec![taken(ROOT, "a", false, old)]).unwrap_err(), Code::Stale);
    assert_eq!(bench.find(ROOT, "a").unwrap().ino, new);
    bench.check();
}

#[test]
fn a_hard_link_keeps_its_other_name() {
    let mut bench = Bench::new();
    let d = bench.mkdir(ROOT, "d").unwrap();
    let ino = bench.create(d, "a").unwrap();
    for text in ["b", "c"] {
        bench.link(ino, d, text).unwrap();
    }
    let views = bench.batch(vec![taken(d, "a", false, ino), taken(d, "c", false, ino)]).unwrap();
    let links: Vec<_> = views.iter().map(|view| (view.attr.ino, view.attr.nlink)).collect();
    assert_eq!(links, [(d, 2), (ino, 1)]);
    assert_eq!((bench.names(d), bench.state.counts().orphans), (vec!["b".to_owned()], 0));
    bench.check();
}

#[test]
fn a_step_dates_what_it_changes() {
    let mut bench = Bench::new();
    let d = bench.mkdir(ROOT, "d").unwrap();
    let inodes = ["a", "b", "c", "e"].map(|text| bench.create(d, text).unwrap());
    let before = inodes.map(|ino| bench.attr(ino));
    let times = |bench: &Bench, ino: Ino| (bench.attr(ino).mtime, bench.attr(ino).ctime);
    // Later than the creation, earlier than the record.
    let at = Timestamp(bench.now.0 + 3);
    bench.remove_at(d, "a", inodes[0], at);
    assert!(at < bench.now);
    assert_eq!((times(&bench, d), times(&bench, inodes[0])), ((at, at), (before[0].mtime, at)));
    // Dated later than the master's clock says.
    bench.remove_at(d, "b", inodes[1], Timestamp(bench.now.0 + 1_000));
    let now = bench.now;
    assert_eq!((times(&bench, d), times(&bench, inodes[1])), ((now, now), (before[1].mtime, now)));
    // Dated before what came before: no time runs backwards.
    bench.remove_at(d, "c", inodes[2], Timestamp(1));
    assert_eq!(
        (times(&bench, d), times(&bench, inodes[2])),
        ((now, now), (before[2].mtime, before[2].ctime))
    );
    // The master's own time stayed at the batch's, even if its clock is set back.
    bench.now.0 -= 15;
    let made = bench.create(ROOT, "f").unwrap();
    assert_eq!(bench.attr(made).ctime, Timestamp(bench.now.0 + 5));
    bench.check();
}

#[test]
fn each_step_has_its_own_time_and_the_directory_the_latest() {
    let mut bench = Bench::new();
    let d = bench.mkdir(ROOT, "d").unwrap();
    let (a, b) = (bench.create(d, "a").unwrap(), bench.create(d, "b").unwrap());
    let (late, early) = (Timestamp(bench.now.0 + 8), Timestamp(bench.now.0 + 4));
    let dated = |text, ino, at| taken_at(d, text, false, ino, at);
    bench.batch(vec![dated("a", a, late), dated("b", b, early)]).unwrap();
    assert_eq!([d, a, b].map(|ino| bench.attr(ino).ctime), [late, late, early]);
    assert_eq!(bench.attr(d).mtime, late);
}

#[test]
fn orphans_wait_for_the_session_and_for_those_who_have_them_open() {
    let mut bench = Bench::new();
    let (a, b) = (bench.create(ROOT, "a").unwrap(), bench.create(ROOT, "b").unwrap());
    let (one, two) = (bench.session, bench.open_session());
    let mut steps = vec![taken(ROOT, "a", false, a), taken(ROOT, "b", false, b)];
    // One of them has ended meanwhile.
    steps[0].open_elsewhere = vec![two, SessionId(99)];
    bench.batch(steps).unwrap();
    assert_eq!(bench.state.counts().orphans, 2);
    bench.own(Body::OrphansClosed { session: one, inodes: vec![a, b] }).unwrap();
    assert_eq!(bench.state.attr(b).unwrap_err().code, Code::Stale);
    assert_eq!(bench.attr(a).nlink, 0);
    bench.check();
    bench.own(Body::OrphansClosed { session: two, inodes: vec![a] }).unwrap();
    assert_eq!(bench.state.attr(a).unwrap_err().code, Code::Stale);
    assert_eq!(bench.state.counts().orphans, 0);
    bench.check();
}

#[test]
fn what_nobody_holds_goes_at_once_and_is_not_shown() {
    let mut bench = Bench::new();
    let d = bench.mkdir(ROOT, "d").unwrap();
    let a = bench.create(d, "a").unwrap();
    let steps = vec![taken(d, "a", false, a), taken(ROOT, "d", true, d)];
    match bench.own(Body::Mutation(Mutation::Batch(steps))).unwrap() {
        Reply::Batched(Batched { views }) => {
            assert_eq!(views.iter().map(|view| view.attr.ino).collect::<Vec<_>>(), [ROOT]);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.state.counts().inodes, 1);
    bench.check();
}
