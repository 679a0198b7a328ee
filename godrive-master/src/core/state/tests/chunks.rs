use super::*;
use crate::core::record::Placed;
use godrive_proto::data::{ChunkState, Contents, Layout};
use godrive_proto::lease::LayoutRange;
use godrive_proto::{ChunkId, Digest, Epoch, ROOT, Version};

const ALL: LayoutRange = LayoutRange { first: 0, count: 1024 };

fn contents(version: u64) -> Contents {
    Contents { version: Version(version), digest: Digest(u128::from(version) * 17) }
}

fn state_of(layout: &Layout, version: u64) -> ChunkState {
    ChunkState {
        index: layout.index,
        chunk: layout.chunk.id,
        epoch: layout.epoch,
        held: contents(version),
        stable: false,
        used_bytes: 4096,
    }
}

impl Bench {
    fn open_chunks(&mut self, ino: Ino, indexes: &[u32]) -> Result<Vec<Layout>, Code> {
        let missing = self.state.unplaced(ino, indexes).unwrap();
        let placed =
            missing.iter().map(|index| Placed { index: *index, members: vec![member(4), member(5)] });
        let body = Body::OpenChunks { ino, indexes: indexes.to_vec(), placed: placed.collect() };
        match self.ask(body).map_err(|fault| fault.code)? {
            Reply::Layouts(layouts) => Ok(layouts),
            other => panic!("{other:?}"),
        }
    }

    /// A file with this many whole chunks, closed by its writer.
    fn written(&mut self, text: &str, chunks: u32, size: u64) -> (Ino, Vec<Layout>) {
        let ino = self.create(ROOT, text).unwrap();
        let layouts = self.open_chunks(ino, &(0..chunks).collect::<Vec<_>>()).unwrap();
        let chunks = layouts.iter().map(|layout| state_of(layout, 1)).collect();
        self.commit(CommitRequest { size: Some(size), chunks, keeps: Mode::Shared, ..nothing(ino) }).unwrap();
        (ino, layouts)
    }

    fn chunk(&self, id: ChunkId) -> crate::core::state::values::Chunk {
        self.state.chunk(id).unwrap().unwrap()
    }

    fn install(&mut self, id: ChunkId, epoch: u64, members: &[u128], version: u64) -> Answer {
        let members = members.iter().copied().map(member).collect();
        let (epoch, contents) = (Epoch(epoch), contents(version));
        self.own(Body::EpochInstalled { chunk: id, epoch, members, contents, stable: true, used_bytes: 8192 })
    }
}

#[test]
fn creating_for_writing_places_and_opens_the_first_chunk() {
    let mut bench = Bench::new();
    let created = bench.create_for_writing(ROOT, "a");
    let (ino, layout) = (created.entry.attr.ino, created.layout.unwrap());
    assert_eq!((layout.index, layout.epoch, layout.held.version), (0, Epoch(1), Version(0)));
    assert_eq!(layout.members.len(), 3);
    assert_eq!(bench.state.open_chunks(bench.session, ino).unwrap(), [layout.chunk.id]);
    assert_eq!(bench.state.replicas_of(NodeId(2), ChunkId(0), 10).unwrap(), [layout.chunk.id]);
    bench.check();
}

#[test]
fn layouts_carry_the_addresses_that_nodes_announced_last() {
    let mut bench = Bench::new();
    let layout = bench.create_for_writing(ROOT, "a").layout.unwrap();
    let address = ([127, 0, 0, 1], 99).into();
    let domain = "rack1".to_owned();
    let moved = Body::NodeRegistered {
        node: NodeId(2),
        address,
        domain,
        disks: vec![DiskId(102)],
        boot: godrive_proto::BootId(1),
    };
    bench.own(moved).unwrap();
    let found = bench.state.chunk_layout(layout.chunk.id).unwrap();
    assert_eq!(found.members[1].address, address);
    assert_eq!(found.members[0].address, member(1).address);
}

#[test]
fn opening_places_what_is_missing_and_is_idempotent() {
    let mut bench = Bench::new();
    let ino = bench.create(ROOT, "a").unwrap();
    let first = bench.open_chunks(ino, &[0, 3]).unwrap();
    assert_eq!(first.iter().map(|layout| layout.index).collect::<Vec<_>>(), [0, 3]);
    assert_eq!(bench.open_chunks(ino, &[0, 3]).unwrap(), first);
    assert_eq!(bench.state.layout(ino, ALL).unwrap(), first);
    assert_eq!(bench.state.layout(ino, LayoutRange { first: 1, count: 2 }).unwrap(), []);
    let nowhere = Body::OpenChunks { ino, indexes: vec![9], placed: Vec::new() };
    assert_eq!(bench.ask(nowhere).unwrap_err().code, Code::NoSpace);
    let session = bench.open_session();
    let theirs = Body::OpenChunks { ino, indexes: vec![0], placed: Vec::new() };
    let refused = bench.apply(Origin { session, ..Origin::MASTER }, theirs).answer;
    assert_eq!(refused.unwrap_err().code, Code::Busy);
    let directory = bench.mkdir(ROOT, "d").unwrap();
    assert_eq!(bench.open_chunks(directory, &[0]).unwrap_err(), Code::IsDirectory);
    bench.check();
}

#[test]
fn a_commit_moves_what_is_held_and_never_back() {
    let mut bench = Bench::new();
    let created = bench.create_for_writing(ROOT, "a");
    let (ino, layout) = (created.entry.attr.ino, created.layout.unwrap());
    let chunks = vec![ChunkState { stable: true, ..state_of(&layout, 3) }];
    let request = CommitRequest { size: Some(5000), chunks, ..nothing(ino) };
    let attr = bench.commit(request).unwrap();
    assert_eq!((attr.size, attr.blocks), (5000, 8));
    assert!(attr.mtime > created.entry.attr.mtime && attr.ctime == attr.mtime);
    let chunk = bench.chunk(layout.chunk.id);
    assert_eq!((chunk.held, chunk.stable), (contents(3), contents(3)));
    // Late news, and a shorter size, change nothing.
    let stale = CommitRequest { size: Some(10), chunks: vec![state_of(&layout, 2)], ..nothing(ino) };
    assert_eq!(bench.commit(stale).unwrap(), attr);
    assert_eq!(bench.chunk(layout.chunk.id), chunk);
    bench.check();
}

/// A mount that met a restarted master repeats its commit: what that says was held before the nodes restarted.
#[test]
fn a_commit_behind_restarts_tells_of_what_was_before_them() {
    let mut bench = Bench::new();
    let (ino, layouts) = bench.written("a", 1, 100);
    let (layout, id) = (&layouts[0], layouts[0].chunk.id);
    let commit = |bench: &mut Bench, chunk| {
        let request = CommitRequest { chunks: vec![chunk], ..nothing(ino) };
        bench.ask(Body::Mutation(Mutation::Commit(request))).unwrap();
    };
    commit(&mut bench, state_of(layout, 2));
    assert_eq!(bench.chunk(id).held_at, bench.state.applied());
    let restart = |bench: &mut Bench, node: u128| {
        let (disks, boot) = (vec![DiskId(node + 100)], godrive_proto::BootId(1));
        let (address, domain) = (member(node).address, "rack1".to_owned());
        bench.own(Body::NodeRegistered { node: NodeId(node), address, domain, disks, boot }).unwrap();
    };
    for node in [4, 5] {
        restart(&mut bench, node);
    }
    for version in [3, 4] {
        commit(&mut bench, state_of(layout, version));
        let held_at = bench.chunk(id).held_at;
        for node in [4, 5] {
            let node = bench.state.node(NodeId(node)).unwrap().unwrap();
            assert!(node.booted_at > held_at, "version {version} may be lost");
        }
    }
    bench.own(Body::EpochPending { chunk: id, epoch: Epoch(2) }).unwrap();
    bench.install(id, 2, &[4, 5], 4).unwrap();
    let next = ChunkState { epoch: Epoch(2), ..state_of(layout, 5) };
    commit(&mut bench, next);
    assert_eq!(bench.chunk(id).held_at, bench.state.applied());
}

/// The members are sealed for the next number; what they answer may ask for a higher one.
#[test]
fn an_epoch_is_installed_as_it_was_begun_or_as_the_first_after_restarts() {
    let mut bench = Bench::new();
    let (_, layouts) = bench.written("a", 1, 100);
    let id = layouts[0].chunk.id;
    bench.own(Body::EpochPending { chunk: id, epoch: Epoch(2) }).unwrap();
    for wrong in [1, 3, (1 << 32) + 1, 2 << 32] {
        assert_eq!(bench.install(id, wrong, &[4, 5], 1).unwrap_err().code, Code::WrongEpoch, "{wrong:#x}");
    }
    bench.install(id, 1 << 32, &[4, 5], 1).unwrap();
    assert_eq!((bench.chunk(id).epoch, bench.chunk(id).pending), (Epoch(1 << 32), None));
    let fault = bench.own(Body::EpochPending { chunk: id, epoch: Epoch(3) }).unwrap_err();
    assert_eq!(fault.code, Code::WrongEpoch);
}

#[test]
fn a_commit_that_cannot_be_is_refused() {
    let mut bench = Bench::new();
    let created = bench.create_for_writing(ROOT, "a");
    let (ino, layout) = (created.entry.attr.ino, created.layout.unwrap());
    let good = state_of(&layout, 1);
    bench.commit(CommitRequest { chunks: vec![good], ..nothing(ino) }).unwrap();
    let digest = Digest(1);
    let other = Contents { digest, ..good.held };
    for (bad, code) in [
        (ChunkState { epoch: Epoch(2), ..good }, Code::WrongEpoch),
        (ChunkState { index: 1, ..good }, Code::NoChunk),
        (ChunkState { chunk: ChunkId(99), ..good }, Code::NoChunk),
        (ChunkState { held: other, ..good }, Code::WrongVersion),
        (ChunkState { used_bytes: CHUNK as u32 + 1, ..good }, Code::Malformed),
    ] {
        assert_eq!(bench.commit(CommitRequest { chunks: vec![bad], ..nothing(ino) }).unwrap_err(), code);
    }
    let huge = CommitRequest { size: Some(CHUNK << 33), ..nothing(ino) };
    assert_eq!(bench.commit(huge).unwrap_err(), Code::FileTooLarge);
    bench.check();
}

#[test]
fn times_in_a_commit_are_the_holders_except_that_ctime_never_falls() {
    let mut bench = Bench::new();
    let ino = bench.create(ROOT, "a").unwrap();
    let ctime = bench.attr(ino).ctime;
    let (mtime, atime) = (Some(SetTime::At(Timestamp(-5))), Some(SetTime::At(Timestamp(7))));
    let changes =
        AttrChanges { mtime, atime, ctime: Some(Timestamp(3)), mode: Some(0o600), ..Default::default() };
    let attr = bench.commit(CommitRequest { size: Some(9), changes, ..nothing(ino) }).unwrap();
    assert_eq!((attr.mtime, attr.atime, attr.ctime), (Timestamp(-5), Timestamp(7), ctime));
    assert_eq!((attr.mode, attr.size), (0o600, 9));
}

#[test]
fn a_writer_that_is_done_leaves_no_unused_chunks() {
    let mut bench = Bench::new();
    let ino = bench.create(ROOT, "a").unwrap();
    let layouts = bench.open_chunks(ino, &[0, 1, 2, 3]).unwrap();
    let chunks = vec![state_of(&layouts[0], 1)];
    let request = CommitRequest { size: Some(CHUNK * 2), chunks, keeps: Mode::Shared, ..nothing(ino) };
    let outcome = bench.outcome(Body::Mutation(Mutation::Commit(request)));
    outcome.answer.unwrap();
    // 1 was never written and is a hole, 2 and 3 lie behind the end.
    let unused: Vec<ChunkId> = layouts[1..].iter().map(|layout| layout.chunk.id).collect();
    assert_eq!(outcome.effects.freed.into_iter().collect::<Vec<_>>(), unused);
    assert_eq!(bench.state.layout(ino, ALL).unwrap().len(), 1);
    assert_eq!(bench.state.open_chunks(bench.session, ino).unwrap(), []);
    assert!(!bench.attr(ino).trim_pending);
    bench.check();
}

/// Its first version may have been fsynced without a commit.
#[test]
fn of_a_chunk_of_which_no_version_is_known_its_members_are_asked() {
    for version in [0, 5] {
        let mut bench = Bench::new();
        let ino = bench.create(ROOT, "a").unwrap();
        bench.commit(CommitRequest { size: Some(CHUNK), ..nothing(ino) }).unwrap();
        let layouts = bench.open_chunks(ino, &[0, 1]).unwrap();
        let (first, behind) = (layouts[0].chunk.id, layouts[1].chunk.id);
        let closed = bench.apply(Origin::MASTER, Body::ChunksClosed { session: bench.session, ino });
        assert_eq!(closed.effects.freed.into_iter().collect::<Vec<_>>(), [behind]);
        assert_eq!(closed.effects.unsettled.into_iter().collect::<Vec<_>>(), [first]);
        assert!(!bench.attr(ino).trim_pending);
        bench.check();
        bench.own(Body::EpochPending { chunk: first, epoch: Epoch(2) }).unwrap();
        bench.install(first, 2, &[1, 2], version).unwrap();
        assert_eq!(bench.state.unsettled().unwrap(), []);
        let left: Vec<u64> = bench.state.layout(ino, ALL).unwrap().iter().map(|l| l.held.version.0).collect();
        assert_eq!(left, [version]);
        bench.check();
    }
}

#[test]
fn a_revoked_writers_chunks_need_an_epoch_and_its_tail_a_trim() {
    let mut bench = Bench::new();
    let ino = bench.create(ROOT, "a").unwrap();
    let layouts = bench.open_chunks(ino, &[0, 1, 2]).unwrap();
    let chunks = layouts.iter().map(|layout| state_of(layout, 1)).collect();
    bench.commit(CommitRequest { size: Some(CHUNK + 100), chunks, ..nothing(ino) }).unwrap();
    let (first, second) = (layouts[0].chunk.id, layouts[1].chunk.id);
    let dead = bench.session;
    bench.session = bench.open_session();
    let revoked = bench.apply(Origin::MASTER, Body::SessionRevoked { session: dead });
    assert_eq!(revoked.effects.unsettled.into_iter().collect::<Vec<_>>(), [first, second]);
    assert!(revoked.effects.freed.contains(&layouts[2].chunk.id), "it was never part of the file");
    assert_eq!(bench.state.unsettled_in(ino).unwrap(), [first, second]);
    assert!(bench.attr(ino).trim_pending);
    assert_eq!(bench.open_chunks(ino, &[0]).unwrap_err(), Code::Busy);
    bench.check();

    for id in [first, second] {
        bench.own(Body::EpochPending { chunk: id, epoch: Epoch(2) }).unwrap();
        bench.install(id, 2, &[1, 2], 5).unwrap();
    }
    assert_eq!(bench.state.unsettled().unwrap(), []);
    assert_eq!(bench.chunk(first).held, contents(5));
    // Nobody extends before the trim is done.
    assert_eq!(bench.truncate(ino, CHUNK + 200).unwrap_err(), Code::Busy);
    let extend = CommitRequest { size: Some(CHUNK + 200), ..nothing(ino) };
    assert_eq!(bench.commit(extend.clone()).unwrap_err(), Code::Busy);
    let trim = bench.truncate(ino, CHUNK + 100).unwrap().trim.unwrap();
    assert_eq!(trim.chunk.id, second);
    bench.commit(CommitRequest { trimmed: true, ..extend }).unwrap();
    assert_eq!((bench.attr(ino).size, bench.attr(ino).trim_pending), (CHUNK + 200, false));
    bench.check();
}

/// The hole may be among what the members lost.
#[test]
fn what_was_cut_off_is_cut_off_again_after_a_regression() {
    let mut bench = Bench::new();
    let (ino, layouts) = bench.written("a", 2, CHUNK * 2);
    let [first, second] = [layouts[0].chunk.id, layouts[1].chunk.id];
    bench.truncate(ino, CHUNK + 100).unwrap();
    let opened = bench.open_chunks(ino, &[0, 1]).unwrap();
    let chunks = opened.iter().map(|layout| state_of(layout, 2)).collect();
    bench.commit(CommitRequest { chunks, trimmed: true, ..nothing(ino) }).unwrap();
    let mut regress = |id| {
        bench.own(Body::EpochPending { chunk: id, epoch: Epoch(2) }).unwrap();
        bench.install(id, 2, &[1, 2, 3], 1).unwrap();
        bench.check();
        bench.attr(ino).trim_pending
    };
    assert!(!regress(first), "the end is elsewhere");
    assert!(regress(second));
}

/// No epoch change will put it in order.
#[test]
fn an_unsettled_chunk_that_is_cut_off_leaves_its_inode_settled() {
    let mut bench = Bench::new();
    let (ino, layouts) = bench.written("a", 1, 10);
    bench.open_chunks(ino, &[0]).unwrap();
    let session = bench.session;
    let given_up = bench.apply(Origin::MASTER, Body::ChunksGivenUp { session, ino });
    assert_eq!(given_up.effects.unsettled, [layouts[0].chunk.id].into());
    let cut = TruncateRequest { ino, size: 0, kill_privileges: false };
    let cut = bench.outcome(Body::Mutation(Mutation::Truncate(cut)));
    assert_eq!(cut.effects.settled, [ino].into());
    bench.check();
}

#[test]
fn truncation_drops_chunks_and_asks_for_a_trim() {
    let mut bench = Bench::new();
    let (ino, layouts) = bench.written("a", 4, CHUNK * 4);
    let truncated = bench.truncate(ino, CHUNK + 1).unwrap();
    assert_eq!(truncated.view.attr.size, CHUNK + 1);
    assert_eq!(truncated.trim.unwrap().chunk.id, layouts[1].chunk.id);
    assert!(truncated.view.attr.trim_pending);
    assert_eq!(bench.state.layout(ino, ALL).unwrap().len(), 2);
    let deleted = bench.state.deleted(ChunkId(0), 10).unwrap();
    assert_eq!(
        deleted.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
        [layouts[2].chunk.id, layouts[3].chunk.id]
    );
    assert_eq!(bench.attr(ino).blocks, 16);
    // A cut at a chunk's edge needs no trim, and settles the pending one.
    let truncated = bench.truncate(ino, CHUNK).unwrap();
    assert!(truncated.trim.is_none() && !truncated.view.attr.trim_pending);
    assert!(bench.truncate(ino, CHUNK * 9 + 5).unwrap().trim.is_none(), "the new end is a hole");
    assert_eq!(bench.truncate(ino, 1 << 62).unwrap_err(), Code::FileTooLarge);
    bench.check();
}

#[test]
fn extending_needs_no_trim_unless_the_chunk_is_being_written() {
    let mut bench = Bench::new();
    let (ino, _) = bench.written("a", 1, 100);
    assert!(bench.truncate(ino, 200).unwrap().trim.is_none());
    bench.open_chunks(ino, &[0]).unwrap();
    assert!(bench.truncate(ino, 300).unwrap().trim.is_some());
    bench.check();
}

#[test]
fn removing_a_file_frees_its_chunks_until_they_are_forgotten() {
    let mut bench = Bench::new();
    let (ino, layouts) = bench.written("a", 2, CHUNK * 2);
    bench.remove(ROOT, "a", false).unwrap();
    assert_eq!(bench.state.counts().chunks, 2);
    let session = bench.session;
    let closed = bench.apply(Origin::MASTER, Body::OrphansClosed { session, inodes: vec![ino] });
    let freed: Vec<ChunkId> = closed.effects.freed.into_iter().collect();
    assert_eq!(freed, layouts.iter().map(|layout| layout.chunk.id).collect::<Vec<_>>());
    assert_eq!(bench.state.counts().deleted, 2);
    assert_eq!(bench.state.replicas_of(NodeId(4), ChunkId(0), 10).unwrap(), freed);
    bench.check();
    bench.own(Body::ChunksForgotten { chunks: freed }).unwrap();
    assert_eq!(bench.state.counts().deleted, 0);
    assert_eq!(bench.state.replicas_of(NodeId(4), ChunkId(0), 10).unwrap(), []);
    bench.check();
}

#[test]
fn an_epoch_is_begun_and_installed_in_order() {
    let mut bench = Bench::new();
    let created = bench.create_for_writing(ROOT, "a");
    let id = created.layout.unwrap().chunk.id;
    assert_eq!(bench.install(id, 2, &[1], 1).unwrap_err().code, Code::WrongEpoch);
    for epoch in [2, 4] {
        bench.own(Body::EpochPending { chunk: id, epoch: Epoch(epoch) }).unwrap();
    }
    let again = bench.own(Body::EpochPending { chunk: id, epoch: Epoch(4) });
    assert_eq!(again.unwrap_err().code, Code::WrongEpoch);
    assert_eq!(bench.install(id, 2, &[1], 1).unwrap_err().code, Code::WrongEpoch);
    assert_eq!(bench.install(id, 4, &[], 1).unwrap_err().code, Code::Invalid);
    bench.own(Body::ChunkQuarantined { chunk: id }).unwrap();
    bench.check();
    assert_eq!(bench.open_chunks(created.entry.attr.ino, &[0]).unwrap_err(), Code::Quarantined);
    bench.install(id, 4, &[2, 9], 6).unwrap();
    let chunk = bench.chunk(id);
    assert_eq!(
        (chunk.epoch, chunk.pending, chunk.held, chunk.quarantined),
        (Epoch(4), None, contents(6), false)
    );
    assert_eq!(chunk.open_by, Some(bench.session), "its writer goes on");
    assert_eq!(bench.state.replicas_of(NodeId(1), ChunkId(0), 10).unwrap(), []);
    assert_eq!(bench.state.replicas_of(NodeId(9), ChunkId(0), 10).unwrap(), [id]);
    bench.check();
}

#[test]
fn a_joiner_of_a_chunk_deleted_meanwhile_is_told_to_delete_too() {
    let mut bench = Bench::new();
    let created = bench.create_for_writing(ROOT, "a");
    let (ino, id) = (created.entry.attr.ino, created.layout.unwrap().chunk.id);
    bench.own(Body::EpochPending { chunk: id, epoch: Epoch(2) }).unwrap();
    bench.remove(ROOT, "a", false).unwrap();
    let session = bench.session;
    bench.own(Body::OrphansClosed { session, inodes: vec![ino] }).unwrap();
    bench.install(id, 2, &[1, 8], 1).unwrap();
    let deleted = bench.state.deleted_chunk(id).unwrap().unwrap();
    assert_eq!(deleted.epoch, Epoch(2));
    assert_eq!(deleted.members.iter().map(|member| member.node.0).collect::<Vec<_>>(), [1, 2, 3, 8]);
    bench.check();
}

#[test]
fn stability_is_believed_for_the_present_epoch_only() {
    let mut bench = Bench::new();
    let created = bench.create_for_writing(ROOT, "a");
    let (ino, layout) = (created.entry.attr.ino, created.layout.unwrap());
    let id = layout.chunk.id;
    bench.commit(CommitRequest { chunks: vec![state_of(&layout, 2)], ..nothing(ino) }).unwrap();
    let report = |epoch, contents| Body::ChunksStable { chunks: vec![(id, Epoch(epoch), contents)] };
    bench.own(report(2, contents(2))).unwrap();
    bench.own(report(1, Contents { digest: Digest(5), ..contents(2) })).unwrap();
    assert_eq!(bench.chunk(id).stable.version, Version(0));
    bench.own(report(1, contents(2))).unwrap();
    assert_eq!(bench.chunk(id).stable, contents(2));
    bench.own(report(1, contents(4))).unwrap();
    assert_eq!((bench.chunk(id).stable, bench.chunk(id).held), (contents(4), contents(4)));
    bench.own(report(1, contents(3))).unwrap();
    assert_eq!(bench.chunk(id).stable, contents(4));
}

#[test]
fn a_lease_given_up_closes_the_chunks() {
    let mut bench = Bench::new();
    let (ino, layouts) = bench.written("a", 1, 10);
    bench.open_chunks(ino, &[0]).unwrap();
    let session = bench.session;
    bench.own(Body::ChunksClosed { session, ino }).unwrap();
    assert_eq!(bench.chunk(layouts[0].chunk.id).open_by, None);
    assert!(!bench.chunk(layouts[0].chunk.id).unsettled);
    bench.check();
}

#[test]
fn what_a_writer_gave_up_is_treated_as_that_of_a_dead_one() {
    let mut bench = Bench::new();
    let (ino, layouts) = bench.written("a", 1, 10);
    bench.open_chunks(ino, &[0]).unwrap();
    let session = bench.session;
    let given_up = bench.apply(Origin::MASTER, Body::ChunksGivenUp { session, ino });
    assert_eq!(given_up.effects.unsettled.into_iter().collect::<Vec<_>>(), [layouts[0].chunk.id]);
    assert_eq!(bench.chunk(layouts[0].chunk.id).open_by, None);
    assert!(bench.attr(ino).trim_pending);
    bench.check();
}

#[test]
fn chunks_in_the_trash_are_kept_closed_and_go_when_it_is_emptied() {
    let mut bench = Bench::new();
    bench.own(Body::TrashKept { keep_s: 60, min_age_s: 0 }).unwrap();
    let ino = bench.create(ROOT, "a").unwrap();
    let layouts = bench.open_chunks(ino, &[0, 1]).unwrap();
    // The second chunk was opened ahead and not used.
    let chunks = vec![state_of(&layouts[0], 1)];
    bench.commit(CommitRequest { size: Some(5000), chunks, ..nothing(ino) }).unwrap();
    bench.remove(ROOT, "a", false).unwrap();
    assert_eq!(bench.chunk(layouts[0].chunk.id).open_by, Some(bench.session));
    let session = bench.session;
    let closed = bench.apply(Origin::MASTER, Body::OrphansClosed { session, inodes: vec![ino] });
    assert_eq!(closed.effects.removed, [ino].into());
    bench.check();
    assert_eq!(bench.chunk(layouts[0].chunk.id).open_by, None);
    assert!(bench.state.chunk(layouts[1].chunk.id).unwrap().is_none());
    let trash = bench.state.trash().unwrap();
    assert_eq!((trash.entries, trash.bytes), (1, 4096));

    bench.restore(ino, ROOT, "b").unwrap();
    // What its writer may have left behind the end is cut off before it grows.
    assert!(bench.attr(ino).trim_pending);
    assert_eq!((bench.attr(ino).size, bench.state.layout(ino, ALL).unwrap().len()), (5000, 1));
    bench.remove(ROOT, "b", false).unwrap();
    bench.own(Body::OrphansClosed { session, inodes: vec![ino] }).unwrap();
    let dropped = bench.apply(Origin::MASTER, Body::TrashDropped { inodes: vec![ino] });
    assert_eq!(dropped.effects.removed, [ino].into());
    assert_eq!(dropped.effects.freed, [layouts[0].chunk.id].into());
    bench.check();
    assert_eq!(bench.state.counts().used_bytes, 0);
}
