//! What waits for the log to be on stable storage, and what does not (docs/adr/0005-early-answers.md).
#![allow(clippy::unwrap_used)]

mod common;

use common::chunks::{commit, hold, slaves};
use common::slave::contents;
use common::{Answer, Client, Cluster, create, eventually, name, quick};
use godrive_disk::{Disk, Faults, SimulatedDisk, read_small};
use godrive_proto::frame::RequestHeader;
use godrive_proto::lease::*;
use godrive_proto::meta::*;
use godrive_proto::time::Timestamp;
use godrive_proto::{Code, Operation, ROOT, Term};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::collections::BTreeSet;

/// An answer that must wait for the log does not come within this time.
const A_WHILE_MS: u32 = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_change_is_answered_at_once_and_shown_to_others_when_it_is_durable() {
    let cluster = Cluster::start(quick(1)).await;
    let (one, two) = (cluster.client("one").await, cluster.client("two").await);
    // What came before is durable.
    one.call::<Barrier>(&()).await.unwrap();
    cluster.gate.set_closed(true);
    let header = RequestHeader { sequence: 1, ..one.header() };
    let created = one.call_with::<Create>(header.clone(), &create("f")).await.unwrap().body;
    let lookup = LookupRequest { parent: ROOT, name: name("f") };
    // Its own session sees it, too.
    let own = one.call::<Lookup>(&lookup).await.unwrap();
    assert_eq!(own.entry.unwrap().attr.ino, created.entry.attr.ino);
    // What another session asks for waits; so does an fsync, and so does the same request asked again.
    let shortly = |header: RequestHeader| RequestHeader { deadline_ms: A_WHILE_MS, ..header };
    let seen = two.call_with::<Lookup>(shortly(two.header()), &lookup).await;
    assert_eq!(seen.err().map(|fault| fault.code), Some(Code::Timeout), "{}", Lookup::NAME);
    let synced = one.call_with::<Barrier>(shortly(one.header()), &()).await;
    assert_eq!(synced.err().map(|fault| fault.code), Some(Code::Timeout), "{}", Barrier::NAME);
    let again = one.call_with::<Create>(shortly(header.clone()), &create("f")).await;
    assert_eq!(again.err().map(|fault| fault.code), Some(Code::Timeout), "repeated {}", Create::NAME);
    cluster.gate.set_closed(false);
    let seen = two.call::<Lookup>(&lookup).await.unwrap().entry.unwrap();
    assert_eq!(seen.attr.ino, created.entry.attr.ino);
    one.call::<Barrier>(&()).await.unwrap();
    let again = one.call_with::<Create>(header, &create("f")).await.unwrap().body;
    assert_eq!(again.entry.attr.ino, created.entry.attr.ino);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_change_shows_what_others_changed_before_it_only_when_that_is_durable() {
    let cluster = Cluster::start(quick(1)).await;
    let (one, two) = (cluster.client("one").await, cluster.client("two").await);
    one.call::<Barrier>(&()).await.unwrap();
    cluster.gate.set_closed(true);
    let created = one.create("f").await.unwrap();
    let shortly = |sequence| RequestHeader { deadline_ms: A_WHILE_MS, sequence, ..two.header() };
    // That the file exists already, and the entries of the directory in which another is made, are news of the first.
    let existing = CreateRequest { exclusive: false, ..create("f") };
    let seen = two.call_with::<Create>(shortly(1), &existing).await;
    assert_eq!(seen.err().map(|fault| fault.code), Some(Code::Timeout), "{}", Create::NAME);
    let directory = MakeNodeRequest {
        parent: ROOT,
        name: name("d"),
        node: NewNode::Directory,
        mode: 0o755.into(),
        uid: 0,
        gid: 0,
    };
    let seen = two.call_with::<MakeNode>(shortly(2), &directory).await;
    assert_eq!(seen.err().map(|fault| fault.code), Some(Code::Timeout), "{}", MakeNode::NAME);
    cluster.gate.set_closed(false);
    let again =
        two.call_with::<Create>(RequestHeader { sequence: 1, ..two.header() }, &existing).await.unwrap();
    assert_eq!((again.body.existed, again.body.entry.attr.ino), (true, created.entry.attr.ino));
    two.call_with::<MakeNode>(RequestHeader { sequence: 2, ..two.header() }, &directory).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_batch_is_answered_at_once_and_shown_to_others_when_it_is_durable() {
    let cluster = Cluster::start(quick(1)).await;
    let (one, two) = (cluster.client("one").await, cluster.client("two").await);
    let ino = one.create("f").await.unwrap().entry.attr.ino;
    one.call::<Own>(&OwnRequest { directory: ROOT, also: vec![ino] }).await.unwrap();
    one.call::<Barrier>(&()).await.unwrap();
    cluster.gate.set_closed(true);
    let request = UnlinkRequest { parent: ROOT, name: name("f"), directory: false };
    let batch = BatchRequest { steps: vec![Step::Unlink { request, ino, at: Timestamp(1) }] };
    let header = RequestHeader { sequence: one.next_sequence(), ..one.header() };
    let first = one.call_with::<Batch>(header.clone(), &batch).await.unwrap().body;
    let shortly = |header: RequestHeader| RequestHeader { deadline_ms: A_WHILE_MS, ..header };
    let lookup = LookupRequest { parent: ROOT, name: name("f") };
    let seen = two.call_with::<Lookup>(shortly(two.header()), &lookup).await;
    assert_eq!(seen.err().map(|fault| fault.code), Some(Code::Timeout), "{}", Lookup::NAME);
    let again = one.call_with::<Batch>(shortly(header.clone()), &batch).await;
    assert_eq!(again.err().map(|fault| fault.code), Some(Code::Timeout), "repeated {}", Batch::NAME);
    cluster.gate.set_closed(false);
    assert!(two.call::<Lookup>(&lookup).await.unwrap().entry.is_none());
    let again = one.call_with::<Batch>(header, &batch).await.unwrap().body;
    let attrs = |batched: Batched| batched.views.into_iter().map(|view| view.attr).collect::<Vec<_>>();
    assert_eq!(attrs(again), attrs(first));
}

/// A master that comes back without that record takes the one who gave the lease back for a writer, and fences the file of the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_file_that_was_given_back_with_open_chunks_is_granted_when_that_is_durable() {
    let cluster = Cluster::start(quick(1)).await;
    let slaves = slaves(&cluster, 1).await;
    let (one, two) = (cluster.client("one").await, cluster.client("two").await);
    let created = one.create("f").await.unwrap();
    let (ino, layout) = (created.entry.attr.ino, created.layout.unwrap());
    hold(&slaves, &layout, contents(1, 0xa), false);
    commit(&one, ino, &layout, contents(1, 0xa), Mode::Exclusive).await.unwrap();
    one.call::<Barrier>(&()).await.unwrap();
    cluster.gate.set_closed(true);
    let id = created.entry.lease.unwrap().id;
    let leases = vec![Release { ino, id, keeps: None, open: true }];
    one.call::<Releases>(&ReleaseRequest { leases, closed_orphans: vec![] }).await.unwrap();
    let request = AcquireRequest { inodes: vec![ino], mode: Mode::Exclusive, layout: None };
    let shortly = RequestHeader { deadline_ms: A_WHILE_MS, ..two.header() };
    let granted = two.call_with::<Acquire>(shortly, &request).await;
    assert_eq!(granted.err().map(|fault| fault.code), Some(Code::Timeout));
    cluster.gate.set_closed(false);
    let granted = two.call::<Acquire>(&request).await.unwrap();
    assert_eq!(granted.views[0].lease.map(|lease| lease.mode), Some(Mode::Exclusive));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_commit_of_an_fsync_waits_for_the_log_and_that_of_a_close_does_not() {
    let cluster = Cluster::start(quick(1)).await;
    let one = cluster.client("one").await;
    let ino = one.create("f").await.unwrap().entry.attr.ino;
    one.call::<Barrier>(&()).await.unwrap();
    cluster.gate.set_closed(true);
    let commit = |size, sync| CommitRequest {
        ino,
        size: Some(size),
        changes: AttrChanges::default(),
        chunks: Vec::new(),
        trimmed: false,
        sync,
        keeps: Mode::Exclusive,
    };
    one.mutate::<Commit>(&commit(1, false)).await.unwrap();
    let header = RequestHeader { sequence: one.next_sequence(), ..one.header() };
    let shortly = RequestHeader { deadline_ms: A_WHILE_MS, ..header.clone() };
    let waited = one.call_with::<Commit>(shortly, &commit(2, true)).await;
    assert_eq!(waited.err().map(|fault| fault.code), Some(Code::Timeout));
    cluster.gate.set_closed(false);
    let committed = one.call_with::<Commit>(header, &commit(2, true)).await.unwrap().body;
    assert_eq!(committed.view.attr.size, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_a_full_disk_changes_are_refused_and_reads_go_on() {
    let cluster = Cluster::start(quick(1)).await;
    let (mut one, two) = (cluster.client("one").await, cluster.client("two").await);
    let f = one.create("f").await.unwrap().entry.attr.ino;
    cluster.gate.set_full(true);
    assert_eq!(two.create("g").await.unwrap_err().code, Code::NoSpace);
    assert_eq!(two.lookup("f").await.unwrap().entry.unwrap().attr.ino, f);
    assert!(two.lookup("g").await.unwrap().entry.is_none());
    let warnings = cluster.status().await.warnings;
    assert!(warnings.iter().any(|warning| warning.contains("the master's disk is full")), "{warnings:?}");
    // Nor can a session be revoked; that is made up for.
    one.answers(Answer::Silent);
    one.stop_renewing();
    let header = RequestHeader { deadline_ms: 1_500, sequence: two.next_sequence(), ..two.header() };
    let changes = AttrChanges { mode: Some(0o600), ..AttrChanges::default() };
    let change = SetAttrRequest { ino: f, changes };
    let waited = two.call_with::<SetAttr>(header, &change).await;
    assert_eq!(waited.err().map(|fault| fault.code), Some(Code::Timeout));
    cluster.gate.set_full(false);
    two.mutate::<SetAttr>(&change).await.unwrap();
    eventually("the master finds that there is room", async || two.create("g").await.ok()).await;
    assert!(!cluster.status().await.warnings.iter().any(|warning| warning.contains("disk is full")));
}

/// Others have filled the file system: what takes away, ends or says what is stored goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_the_last_of_its_room_the_master_makes_nothing_new_and_goes_on_with_the_rest() {
    let (mut cluster, disk) = on_a_simulated_disk();
    cluster.boot().await.unwrap();
    let one = cluster.client("one").await;
    let f = one.create("f").await.unwrap().entry.attr.ino;
    one.create("g").await.unwrap();
    eventually("the ballast is there", async || disk.exists("ballast").unwrap().then_some(())).await;
    disk.set_capacity((1 << 30) - disk.space().unwrap().free_bytes);
    eventually("the master finds that its disk is full", async || {
        cluster.status().await.warnings.iter().any(|warning| warning.contains("disk is full")).then_some(())
    })
    .await;
    assert_eq!(one.create("h").await.unwrap_err().code, Code::NoSpace);
    for mode in 0..0o777 {
        let changes = AttrChanges { mode: Some(mode), ..AttrChanges::default() };
        one.mutate::<SetAttr>(&SetAttrRequest { ino: f, changes }).await.unwrap();
    }
    one.unlink("g").await.unwrap();
    // Its checkpoint included.
    cluster.try_stop().await.unwrap();
    disk.kill();
    cluster.boot().await.unwrap();
    let two = cluster.client("two").await;
    assert!(two.lookup("g").await.unwrap().entry.is_none());
    assert_eq!(two.lookup("f").await.unwrap().entry.unwrap().attr.mode, 0o776);
    disk.set_capacity(1 << 30);
    eventually("the master finds that there is room", async || two.create("h").await.ok()).await;
}

/// A mount whose changes were answered early asks a restarted master which of them are left.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_restarted_master_tells_where_the_log_of_the_term_before_ended() {
    let mut cluster = Cluster::start(quick(1)).await;
    let mut one = cluster.client("one").await;
    let created = one.create("f").await.unwrap();
    let term = cluster.status().await.term;
    cluster.restart().await;
    one.reconnect(&cluster).await;
    // Before anything else: the session has not resumed yet.
    let last = one.call::<Ended>(&term).await.unwrap().expect("it was the term before");
    assert!(last.0 >= created.entry.attr.change, "{last} {created:?}");
    assert_eq!(one.call::<StatFs>(&()).await.err().map(|fault| fault.code), Some(Code::NotReady));
    cluster.restart().await;
    one.reconnect(&cluster).await;
    assert_eq!(one.call::<Ended>(&term).await.unwrap(), None, "another term lies between");
    assert!(one.call::<Ended>(&term.next()).await.unwrap().is_some_and(|later| later > last));
}

/// On a disk of which a loss of power leaves only what was synced.
fn on_a_simulated_disk() -> (Cluster, SimulatedDisk) {
    let disk = SimulatedDisk::new(1 << 30);
    let mut cluster = Cluster::new(quick(1));
    cluster.simulated = Some(disk.clone());
    (cluster, disk)
}

/// The power fails so many changes of the disk after the master was told to stop. True: it had stopped before.
async fn lose_power(cluster: &mut Cluster, disk: &SimulatedDisk, changes: u64) -> bool {
    disk.stop_after(changes);
    let stopped = cluster.try_stop().await.is_ok();
    disk.crash(&mut SmallRng::seed_from_u64(changes));
    stopped
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_term_that_served_is_never_served_again() {
    let (mut cluster, disk) = on_a_simulated_disk();
    let mut last = Term(0);
    for seed in 0..12 {
        cluster.boot().await.unwrap();
        let term = cluster.status().await.term;
        assert!(term > last, "seed {seed}: {term} after {last}");
        last = term;
        // Not one more change: what is there was there when it served.
        disk.stop_after(0);
        cluster.try_stop().await.unwrap_err();
        disk.crash(&mut SmallRng::seed_from_u64(seed));
    }
}

/// The same client again, which holds nothing.
async fn resume(client: &mut Client, cluster: &Cluster) {
    client.reconnect(cluster).await;
    client.call::<Resume>(&ResumeRequest { exclusive: vec![], open: vec![], last: true }).await.unwrap();
}

/// What a peer saw of the term before is missing, though the log has grown beyond it since.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_log_that_ended_too_early_is_noticed_when_it_has_grown_again() {
    let mut cluster = Cluster::start(quick(1)).await;
    let mut one = cluster.client("one").await;
    let term = cluster.status().await.term;
    cluster.restart().await;
    resume(&mut one, &cluster).await;
    let ended = one.call::<Ended>(&term).await.unwrap().expect("it was the term before");
    for n in 0..5 {
        one.make_directory(&format!("d{n}")).await.unwrap();
    }
    let lookup = LookupRequest { parent: ROOT, name: name("d4") };
    let seen = |seen| RequestHeader { term, seen, ..one.header() };
    one.call_with::<Lookup>(seen(ended), &lookup).await.unwrap();
    let fault = one.call_with::<Lookup>(seen(ended.next()), &lookup).await.err().unwrap();
    assert!(fault.code == Code::NotReady && fault.detail.contains("history is missing"), "{fault}");
}

/// The newest note of how far the log is synced.
fn noted(disk: &SimulatedDisk) -> u64 {
    let Ok(file) = disk.open("log/synced", false) else { return 0 };
    let index = |slot: u64| {
        let mut bytes = [0; 8];
        file.read_at(&mut bytes, slot + 32).map_or(0, |()| u64::from_le_bytes(bytes))
    };
    index(0).max(index(4096))
}

const FIRST_SEGMENT: &str = "log/00000000000000000001.log";

/// Says at which byte.
fn damage_the_last_record(disk: &SimulatedDisk) -> u64 {
    let bytes = read_small(disk, FIRST_SEGMENT, 1 << 30).unwrap();
    let last = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64;
    assert!(disk.flip(FIRST_SEGMENT, last));
    last
}

/// Everybody was switched off, and nobody knows of what the last record of the log said but its disk, which has lost it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_damaged_last_record_is_noticed_also_where_nobody_is_left_who_saw_it() {
    let (mut cluster, disk) = on_a_simulated_disk();
    cluster.boot().await.unwrap();
    let client = cluster.client("a").await;
    client.make_directory("d").await.unwrap();
    client.call::<Barrier>(&()).await.unwrap();
    let seen = client.header().seen.0;
    eventually("the note", async || (noted(&disk) >= seen).then_some(())).await;
    disk.stop_after(0);
    cluster.try_stop().await.unwrap_err();
    disk.kill();
    let last = damage_the_last_record(&disk);
    let error = format!("{:#}", cluster.boot().await.unwrap_err());
    assert!(error.contains("the disk has lost data") && error.contains("`synced`"), "{error}");
    assert!(disk.flip(FIRST_SEGMENT, last));
    cluster.boot().await.unwrap();
    assert_eq!(cluster.status().await.inodes, 2);
}

/// The state of a clean stop has what that record said, and the message says how to go on with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_log_that_ends_before_the_state_is_left_as_it_is_until_people_do_without_it() {
    let (mut cluster, disk) = on_a_simulated_disk();
    cluster.boot().await.unwrap();
    let mut client = cluster.client("a").await;
    client.make_directory("d").await.unwrap();
    cluster.stop().await;
    damage_the_last_record(&disk);
    let error = format!("{:#}", cluster.boot().await.unwrap_err());
    assert!(error.contains("the state has record") && error.contains("`may-begin`"), "{error}");
    for name in disk.list("log").unwrap() {
        disk.remove(&format!("log/{name}")).unwrap();
    }
    let error = format!("{:#}", cluster.boot().await.unwrap_err());
    assert!(error.contains("the log ends at record 0"), "{error}");
    disk.open("may-begin", true).unwrap();
    cluster.boot().await.unwrap();
    resume(&mut client, &cluster).await;
    client.make_directory("e").await.unwrap();
    cluster.restart().await;
    resume(&mut client, &cluster).await;
    for name in ["d", "e"] {
        assert!(client.lookup(name).await.unwrap().entry.is_some(), "{name}");
    }
    assert!(!disk.exists("may-begin").unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_id_that_was_given_out_and_lost_with_the_power_is_not_given_again() {
    let (mut cluster, disk) = on_a_simulated_disk();
    cluster.boot().await.unwrap();
    let mut client = cluster.client("a").await;
    let (mut given, mut lost) = (BTreeSet::new(), 0);
    for seed in 0..12 {
        disk.set_faults(Faults { syncs: true, ..Faults::default() });
        let file = format!("f{seed}");
        let ino = client.create(&file).await.unwrap().entry.attr.ino;
        assert!(given.insert(ino), "seed {seed}: inode {ino} a second time");
        disk.stop_after(0);
        cluster.try_stop().await.unwrap_err();
        disk.set_faults(Faults::default());
        disk.crash(&mut SmallRng::seed_from_u64(seed));
        cluster.boot().await.unwrap();
        resume(&mut client, &cluster).await;
        lost += u32::from(client.lookup(&file).await.unwrap().entry.is_none());
    }
    assert!(lost > 0, "no crash lost anything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stop_that_is_cut_off_anywhere_loses_nothing_that_was_synced() {
    let (mut cluster, disk) = on_a_simulated_disk();
    cluster.boot().await.unwrap();
    let mut client = cluster.client("a").await;
    for changes in 0..40 {
        client.make_directory(&format!("synced{changes}")).await.unwrap();
        client.call::<Barrier>(&()).await.unwrap();
        let synced = cluster.status().await.inodes;
        // Answered and not yet on stable storage: the checkpoint of the stop must not be ahead of it.
        client.make_directory(&format!("answered{changes}")).await.unwrap();
        lose_power(&mut cluster, &disk, changes).await;
        cluster.boot().await.unwrap_or_else(|error| panic!("after {changes} changes: {error:#}"));
        let found = cluster.status().await.inodes;
        assert!(found >= synced, "after {changes} changes: {found} inodes of {synced}");
        resume(&mut client, &cluster).await;
    }
}

/// The log has two segments, of which the checkpoint of the stop makes the first superfluous.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_log_is_cut_behind_a_checkpoint_wherever_that_is_cut_off() {
    let (mut cluster, disk) = on_a_simulated_disk();
    cluster.boot().await.unwrap();
    let client = cluster.client("a").await;
    let ino = client.create("f").await.unwrap().entry.attr.ino;
    let is_segment = |name: &&String| name.ends_with(".log");
    let segments = || disk.list("log").unwrap().iter().filter(is_segment).count();
    let (name, value, mode) = (b"user.large".to_vec(), vec![7; 65_536], SetXattrMode::Set);
    let request = SetXattrRequest { ino, name, value, mode };
    while segments() == 1 {
        client.mutate::<SetXattr>(&request).await.unwrap();
    }
    client.call::<Barrier>(&()).await.unwrap();
    let mut cut_off = 0;
    while !lose_power(&mut cluster, &disk, cut_off).await {
        cut_off += 1;
        cluster.boot().await.unwrap_or_else(|error| panic!("after {cut_off} changes: {error:#}"));
        assert_eq!(cluster.status().await.inodes, 2, "after {cut_off} changes");
    }
    assert!(cut_off > 5 && segments() == 1, "{cut_off}, {} segments", segments());
    cluster.boot().await.unwrap();
    assert_eq!(cluster.status().await.inodes, 2);
}
