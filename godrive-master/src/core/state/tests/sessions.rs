use super::*;
use crate::core::record::Placed;
use godrive_proto::ROOT;
use godrive_proto::limits::MAX_OUTSTANDING;

#[test]
fn a_repeated_request_gets_its_first_answer_and_happens_once() {
    let mut bench = Bench::new();
    let origin = bench.origin();
    let first = bench.apply(origin, Body::Mutation(create(ROOT, "a", true)));
    assert!(!first.repeated);
    let again = bench.apply(origin, Body::Mutation(create(ROOT, "a", true)));
    assert!(again.repeated);
    assert_eq!(first.answer, again.answer);
    assert_eq!(again.effects, Default::default());
    assert_eq!(bench.state.kept(origin.session, origin.sequence).unwrap(), Some(first.answer));
    assert_eq!(bench.state.counts().inodes, 2);
    bench.check();
}

#[test]
fn a_refusal_is_kept_too() {
    let mut bench = Bench::new();
    bench.create(ROOT, "a").unwrap();
    let origin = bench.origin();
    let refused = bench.apply(origin, Body::Mutation(create(ROOT, "a", false))).answer;
    assert_eq!(refused.as_ref().unwrap_err().code, Code::Exists);
    bench.remove(ROOT, "a", false).unwrap();
    assert_eq!(bench.apply(origin, Body::Mutation(create(ROOT, "a", false))).answer, refused);
}

#[test]
fn results_are_dropped_once_they_were_answered() {
    let mut bench = Bench::new();
    let session = bench.session;
    let touch = |number: u64| Body::Mutation(create(ROOT, &format!("f{number}"), false));
    for sequence in 1..=5 {
        bench.apply(Origin { session, sequence, answered_below: 1 }, touch(sequence));
    }
    bench.apply(Origin { session, sequence: 6, answered_below: 5 }, touch(6));
    for sequence in 1..=4 {
        assert_eq!(bench.state.kept(session, sequence).unwrap(), None);
    }
    assert!(bench.state.kept(session, 5).unwrap().is_some());
    // Below what the session itself calls answered nothing is executed again.
    let late = bench.apply(Origin { session, sequence: 2, answered_below: 0 }, touch(99));
    assert_eq!(late.answer.unwrap_err().code, Code::Malformed);
    assert_eq!(bench.find(ROOT, "f99"), None);
    let sequence = 5 + MAX_OUTSTANDING;
    let far = bench.apply(Origin { session, sequence, answered_below: 5 }, touch(98));
    assert_eq!(far.answer.unwrap_err().code, Code::Malformed);
}

#[test]
fn a_claim_of_many_answers_costs_nothing() {
    let mut bench = Bench::new();
    let session = bench.session;
    for sequence in [1, u64::MAX / 2, u64::MAX - 1] {
        let origin = Origin { session, sequence, answered_below: sequence };
        let text = format!("f{sequence}");
        bench.apply(origin, Body::Mutation(create(ROOT, &text, false))).answer.unwrap();
    }
    assert_eq!(bench.state.kept(session, 1).unwrap(), None);
}

#[test]
fn an_unknown_session_executes_nothing() {
    let mut bench = Bench::new();
    let origin = Origin { session: SessionId(99), sequence: 1, answered_below: 1 };
    let lost = bench.apply(origin, Body::Mutation(create(ROOT, "a", false)));
    assert_eq!(lost.answer.unwrap_err().code, Code::SessionLost);
    assert_eq!(bench.find(ROOT, "a"), None);
    let revoked = bench.session;
    bench.own(Body::SessionRevoked { session: revoked }).unwrap();
    assert_eq!(bench.create(ROOT, "b").unwrap_err(), Code::SessionLost);
    bench.check();
}

#[test]
fn who_takes_a_session_over_keeps_its_orphans_and_drops_its_requests() {
    let mut bench = Bench::new();
    let session = bench.session;
    let (ino, orphan) = (bench.create(ROOT, "a").unwrap(), bench.create(ROOT, "b").unwrap());
    let placed = vec![Placed { index: 0, members: vec![member(1), member(2)] }];
    bench.ask(Body::OpenChunks { ino, indexes: vec![0], placed }).unwrap();
    bench.commit(CommitRequest { size: Some(100), ..nothing(ino) }).unwrap();
    bench.remove(ROOT, "b", false).unwrap();
    let used = bench.origin().sequence - 1;
    let early = bench.own(Body::SessionTakenOver { session, from: used });
    assert_eq!(early.unwrap_err().code, Code::Malformed, "that sequence was used");
    let taken = bench.apply(Origin::MASTER, Body::SessionTakenOver { session, from: used + 100 });
    assert_eq!(taken.answer, Ok(Reply::Done));
    assert_eq!(taken.effects.unsettled.len(), 1, "the chunk may be half written");
    assert!(bench.state.open_chunks(session, ino).unwrap().is_empty());
    assert_eq!(bench.state.orphans_of(session).unwrap(), [orphan]);
    assert_eq!(bench.state.kept(session, used).unwrap(), None);
    for sequence in [used, used + 1, used + 99] {
        let origin = Origin { session, sequence, answered_below: 1 };
        let late = bench.apply(origin, Body::Mutation(create(ROOT, "late", false)));
        assert_eq!(late.answer.unwrap_err().code, Code::Malformed, "{sequence}");
    }
    let origin = Origin { session, sequence: used + 100, answered_below: used + 100 };
    bench.apply(origin, Body::Mutation(create(ROOT, "c", false))).answer.unwrap();
    assert_eq!(bench.find(ROOT, "late"), None);
    bench.check();
}

#[test]
fn orphans_live_until_their_last_holder_is_done() {
    let mut bench = Bench::new();
    let (mine, other) = (bench.session, bench.open_session());
    let ino = bench.create(ROOT, "a").unwrap();
    let request = UnlinkRequest { parent: ROOT, name: name("a"), directory: false };
    let outcome = bench.outcome(Body::Mutation(Mutation::Unlink { request, open_elsewhere: vec![other] }));
    outcome.answer.unwrap();
    assert!(outcome.effects.orphaned.contains(&ino) && outcome.effects.removed.is_empty());
    assert_eq!(bench.attr(ino).nlink, 0);
    assert_eq!(bench.link(ino, ROOT, "b").unwrap_err(), Code::NotFound);
    let closed =
        bench.apply(Origin::MASTER, Body::OrphansClosed { session: mine, inodes: vec![ino, Ino(77)] });
    assert!(closed.effects.removed.is_empty());
    assert_eq!(bench.state.orphans_of(other).unwrap(), [ino]);
    bench.check();
    let revoked = bench.apply(Origin::MASTER, Body::SessionRevoked { session: other });
    assert!(revoked.effects.removed.contains(&ino));
    assert_eq!(bench.state.attr(ino).unwrap_err().code, Code::Stale);
    bench.check();
}

#[test]
fn an_orphan_is_kept_for_a_session_that_declares_it_open() {
    let mut bench = Bench::new();
    let (mine, other) = (bench.session, bench.open_session());
    let ino = bench.create(ROOT, "a").unwrap();
    bench.own(Body::OrphanKept { ino, sessions: vec![other] }).unwrap();
    assert!(bench.state.orphans_of(other).unwrap().is_empty(), "it still has a name");
    bench.remove(ROOT, "a", false).unwrap();
    bench.own(Body::OrphanKept { ino, sessions: vec![other, SessionId(99)] }).unwrap();
    bench.own(Body::OrphansClosed { session: mine, inodes: vec![ino] }).unwrap();
    assert_eq!(bench.attr(ino).nlink, 0);
    bench.check();
}

#[test]
fn tokens_count_and_expire() {
    let mut bench = Bench::new();
    let role = godrive_proto::Role::Slave;
    let expires = Timestamp(bench.now.0 + 45);
    let made = bench.own(Body::TokenMade { role, secret_hash: [1; 32], expires, uses: 1 }).unwrap();
    let Reply::Token(once) = made else { panic!("{made:?}") };
    let made = bench.own(Body::TokenMade { role, secret_hash: [1; 32], expires, uses: 9 }).unwrap();
    let Reply::Token(often) = made else { panic!("{made:?}") };
    bench.own(Body::TokenUsed { token: once, node: NodeId(5) }).unwrap();
    let again = bench.own(Body::TokenUsed { token: once, node: NodeId(6) });
    assert_eq!(again.unwrap_err().code, Code::Forbidden);
    assert_eq!(bench.state.token(often).unwrap().unwrap().uses_left, 9);
    bench.now = expires;
    assert_eq!(
        bench.own(Body::TokenUsed { token: often, node: NodeId(7) }).unwrap_err().code,
        Code::Forbidden
    );
}

#[test]
fn terms_rise() {
    let mut bench = Bench::new();
    bench.own(Body::TermStarted { term: godrive_proto::Term(3) }).unwrap();
    assert_eq!(bench.state.term().0, 3);
    let lower = bench.own(Body::TermStarted { term: godrive_proto::Term(3) });
    assert_eq!(lower.unwrap_err().code, Code::WrongTerm);
}

#[test]
fn skipped_ids_are_not_given_out() {
    let mut bench = Bench::new();
    let before = bench.create(godrive_proto::ROOT, "a").unwrap();
    bench.own(Body::IdsSkipped { count: 1000 }).unwrap();
    let after = bench.create(godrive_proto::ROOT, "b").unwrap();
    assert_eq!(after.0, before.0 + 1001);
    assert_eq!(bench.own(Body::IdsSkipped { count: u64::MAX }).unwrap_err().code, Code::NoSpace);
    assert_eq!(
        bench.create(godrive_proto::ROOT, "c").unwrap().0,
        after.0 + 1,
        "a refused skip changes nothing"
    );
}

#[test]
fn nothing_happens_before_the_bootstrap_and_it_happens_once() {
    let mut state = State::open(Box::new(MemoryKv::default())).unwrap();
    let early = Record::own(Timestamp(1), Body::TermStarted { term: godrive_proto::Term(1) });
    assert_eq!(
        state.apply(godrive_proto::LogIndex(1), &early).unwrap().answer.unwrap_err().code,
        Code::NotReady
    );
    assert!(state.apply(godrive_proto::LogIndex(9), &early).is_err(), "a gap is an error of the caller");
    let mut bench = Bench::new();
    let again = Body::Bootstrap { cluster: ClusterId(8), parameters: parameters(), feature_level: 1 };
    assert_eq!(bench.own(again).unwrap_err().code, Code::Exists);
    assert_eq!(bench.state.cluster().unwrap().id, ClusterId(7));
}

#[test]
fn time_does_not_run_backwards() {
    let mut bench = Bench::new();
    let ino = bench.create(ROOT, "a").unwrap();
    let before = bench.attr(ino).ctime;
    bench.now = Timestamp(5);
    let after = bench.set_attr(ino, AttrChanges { mode: Some(0o600), ..Default::default() }).unwrap();
    assert_eq!(after.ctime, before);
    assert_eq!(bench.state.time(), before);
}
