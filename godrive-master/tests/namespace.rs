//! Sessions, names and leases, through the wire.

#![allow(clippy::disallowed_methods, reason = "tests on the real machine take its time")]

mod common;

use common::{Answer, Client, Cluster, DEADLINE, create, eventually, name, quick};
use godrive_master::config::{Config, Trash};
use godrive_proto::frame::RequestHeader;
use godrive_proto::lease::*;
use godrive_proto::meta::*;
use godrive_proto::*;

#[tokio::test(flavor = "multi_thread")]
async fn names_are_made_found_listed_and_removed() {
    let cluster = Cluster::start(quick(1)).await;
    let client = cluster.client("a").await;
    let made = client.make_directory("d").await.unwrap();
    assert_eq!(made.entry.attr.kind, Kind::Directory);
    assert_eq!(made.entry.lease.unwrap().mode, Mode::Shared);
    let created = client.create("f").await.unwrap();
    assert!(!created.existed && created.layout.is_none());
    assert_eq!(created.entry.lease.unwrap().mode, Mode::Exclusive);
    assert_eq!(client.create("f").await.unwrap_err().code, Code::Exists);
    let found = client.lookup("f").await.unwrap();
    assert_eq!(found.entry.unwrap().attr.ino, created.entry.attr.ino);
    assert!(found.parent.lease.is_some());
    let missing = client.lookup("g").await.unwrap();
    assert!(missing.entry.is_none() && missing.parent.lease.is_some());
    let request = ReadDirectoryRequest { directory: ROOT, after: 0, max_entries: 100, views: true };
    let page = client.call::<ReadDirectory>(&request).await.unwrap();
    let names: Vec<_> =
        page.entries.iter().map(|entry| String::from_utf8_lossy(&entry.name.0).into_owned()).collect();
    assert_eq!(names, ["d", "f"]);
    assert!(page.end && page.entries.iter().all(|entry| entry.view.is_some()));
    client.unlink("f").await.unwrap();
    assert!(client.lookup("f").await.unwrap().entry.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_recalls_what_others_hold() {
    let cluster = Cluster::start(quick(1)).await;
    let (one, two) = (cluster.client("one").await, cluster.client("two").await);
    one.create("f").await.unwrap();
    let ino = one.lookup("f").await.unwrap().entry.unwrap().attr.ino;
    // A reader makes the owner step down; the owner keeps sharing.
    let seen = two.lookup("f").await.unwrap();
    assert_eq!(seen.entry.unwrap().lease.unwrap().mode, Mode::Shared);
    assert_eq!(one.recalled(), [(ino, Some(Mode::Shared))]);
    // A change in the directory takes it back from everybody else.
    one.create("g").await.unwrap();
    assert_eq!(two.recalled(), [(ROOT, None)]);
    // An exclusive lease takes back the file.
    let acquired = two.acquire(ino, Mode::Exclusive).await.unwrap();
    assert_eq!(acquired.views[0].lease.unwrap().mode, Mode::Exclusive);
    assert_eq!(one.recalled().last(), Some(&(ino, None)));
    // Both hold the directory's listing again after looking; a page comes without the view of what is owned.
    let request = ReadDirectoryRequest { directory: ROOT, after: 0, max_entries: 100, views: true };
    let page = one.call::<ReadDirectory>(&request).await.unwrap();
    let with_view: Vec<_> = page.entries.iter().map(|entry| entry.view.is_some()).collect();
    assert_eq!(with_view, [false, true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_at_a_file_asks_its_owner_and_recalls_nothing() {
    let cluster = Cluster::start(quick(1)).await;
    let (one, two) = (cluster.client("one").await, cluster.client("two").await);
    let attr = one.create("f").await.unwrap().entry.attr;
    let ino = attr.ino;
    *one.owned.lock().unwrap() = Some(Attr { size: 77, ..attr.clone() });
    let seen = two.call::<GetAttr>(&ino).await.unwrap();
    assert_eq!((seen.attr.size, seen.lease), (77, None));
    let found = two.lookup("f").await.unwrap().entry.unwrap();
    assert_eq!((found.attr.size, found.lease), (77, None));
    assert_eq!(one.recalled(), [], "its writer need not flush");
    // One that says that it owns nothing is recalled.
    *one.owned.lock().unwrap() = None;
    let seen = two.call::<GetAttr>(&ino).await.unwrap();
    assert_eq!((seen.attr.size, seen.lease.unwrap().mode), (attr.size, Mode::Shared));
    assert_eq!(one.recalled(), [(ino, Some(Mode::Shared))]);
    assert_eq!(two.call::<GetAttr>(&Ino(999)).await.unwrap_err().code, Code::Stale);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_taken_over_goes_on_and_owns_nothing() {
    let cluster = Cluster::start(quick(1)).await;
    let (one, two) = (cluster.client("one").await, cluster.client("two").await);
    let ino = one.create("f").await.unwrap().entry.attr.ino;
    one.acquire(ino, Mode::Exclusive).await.unwrap();
    one.answers(Answer::Silent);
    // Somebody waits for the daemon that is about to be killed.
    let waiting = tokio::spawn({
        let (header, connection) = (two.header(), two.connection.clone());
        let request = AcquireRequest { inodes: vec![ino], mode: Mode::Shared, layout: None };
        async move { connection.call::<Acquire>(header, &request, &[], DEADLINE).await }
    });
    eventually("the recall", async || (!one.recalled().is_empty()).then_some(())).await;
    let taken = one.call::<TakeOver>(&TakeOverRequest { from: 1_000 }).await.unwrap();
    assert_eq!(taken.orphans, []);
    assert_eq!(waiting.await.unwrap().unwrap().body.views[0].lease.unwrap().mode, Mode::Shared);
    // A copy of the request that arrives late takes nothing away.
    one.answers(Answer::Obey { open: false });
    two.answers(Answer::Obey { open: false });
    one.acquire(ino, Mode::Exclusive).await.unwrap();
    one.call::<TakeOver>(&TakeOverRequest { from: 1_000 }).await.unwrap();
    *one.owned.lock().unwrap() = Some(one.acquire(ino, Mode::Shared).await.unwrap().views[0].attr.clone());
    assert_eq!(two.call::<GetAttr>(&ino).await.unwrap().lease, None, "it owns the file still");
    // What the first daemon sent and what arrives only now is not executed.
    let late = RequestHeader { sequence: 999, answered_below: 1, ..one.header() };
    assert_eq!(one.call_with::<Create>(late, &create("late")).await.err().unwrap().code, Code::Malformed);
    let next = RequestHeader { sequence: 1_000, answered_below: 1_000, ..one.header() };
    one.call_with::<Create>(next, &create("next")).await.unwrap();
    assert!(two.lookup("late").await.unwrap().entry.is_none());
    // Another client cannot take it over.
    let stolen = RequestHeader { session: one.session, ..two.header() };
    let refused = two.call_with::<TakeOver>(stolen, &TakeOverRequest { from: 5_000 }).await;
    assert_eq!(refused.err().unwrap().code, Code::Forbidden);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_does_not_answer_is_waited_for_and_then_revoked() {
    let cluster = Cluster::start(quick(1)).await;
    let (mut one, two) = (cluster.client("one").await, cluster.client("two").await);
    let ino = one.create("f").await.unwrap().entry.attr.ino;
    one.answers(Answer::Silent);
    // While it renews it is not revoked, and the waiter gives up at its own deadline.
    let header = RequestHeader { deadline_ms: 1_000, ..two.header() };
    let request = AcquireRequest { inodes: vec![ino], mode: Mode::Shared, layout: None };
    assert_eq!(two.call_with::<Acquire>(header, &request).await.err().unwrap().code, Code::Timeout);
    one.renew().await.unwrap();
    one.stop_renewing();
    // Without renewals it lapses, and the next one gets the lease.
    let acquired = two.acquire(ino, Mode::Shared).await.unwrap();
    assert!(acquired.views[0].lease.is_some());
    assert_eq!(one.renew().await.unwrap_err().code, Code::SessionLost);
    assert_eq!(one.create("g").await.unwrap_err().code, Code::SessionLost);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unlinked_file_lives_until_its_last_opener_closes() {
    let cluster = Cluster::start(quick(1)).await;
    let (one, two) = (cluster.client("one").await, cluster.client("two").await);
    let ino = one.create("f").await.unwrap().entry.attr.ino;
    one.answers(Answer::Obey { open: true });
    let removed = two.unlink("f").await.unwrap();
    assert_eq!((removed.entry.attr.ino, removed.entry.attr.nlink), (ino, 0));
    assert_eq!(cluster.status().await.orphans, 1);
    let close = ReleaseRequest { leases: vec![], closed_orphans: vec![ino] };
    two.call::<Releases>(&close).await.unwrap();
    assert_eq!(one.acquire(ino, Mode::Shared).await.unwrap().views[0].attr.nlink, 0);
    one.call::<Releases>(&close).await.unwrap();
    assert_eq!(one.acquire(ino, Mode::Shared).await.unwrap_err().code, Code::Stale);
    assert_eq!(cluster.status().await.orphans, 0);
}

/// It would be removed under whoever comes later.
#[tokio::test(flavor = "multi_thread")]
async fn an_unlinked_file_is_there_only_for_those_who_had_it_open() {
    // 0: it is laid into the trash.
    for min_age_s in [10, 0] {
        let config = quick(1);
        let trash = Trash { min_age_s, ..config.trash };
        let cluster = Cluster::start(Config { trash, ..config }).await;
        let (one, two) = (cluster.client("one").await, cluster.client("two").await);
        let ino = one.create("f").await.unwrap().entry.attr.ino;
        one.answers(Answer::Obey { open: true });
        cluster.client("three").await.unlink("f").await.unwrap();
        assert_eq!(two.acquire(ino, Mode::Shared).await.unwrap_err().code, Code::Stale);
        // It may look, but nothing that it then believes is held to.
        let seen = two.call::<GetAttr>(&ino).await.unwrap();
        let xattrs = two.call::<ReadXattrs>(&ino).await.unwrap();
        assert_eq!((seen.attr.nlink, seen.lease, xattrs.view.lease), (0, None, None));
        assert_eq!(one.call::<GetAttr>(&ino).await.unwrap().lease.unwrap().mode, Mode::Shared);
        assert_eq!(one.acquire(ino, Mode::Exclusive).await.unwrap().views[0].attr.ino, ino);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_sequence_is_executed_once() {
    let cluster = Cluster::start(quick(1)).await;
    let client = cluster.client("a").await;
    let header = RequestHeader { sequence: 1, ..client.header() };
    let first = client.call_with::<Create>(header.clone(), &create("f")).await.unwrap().body;
    let again = client.call_with::<Create>(header, &create("f")).await.unwrap().body;
    assert_eq!((first.entry.attr, first.existed), (again.entry.attr, again.existed));
    // It owns the file still: the answer that was lost would have said so.
    assert_eq!(again.entry.lease.unwrap().mode, Mode::Exclusive);
    assert_eq!(cluster.status().await.inodes, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_the_state_and_waits_for_those_who_may_hold_leases() {
    let mut cluster = Cluster::start(quick(1)).await;
    let (mut one, mut two) = (cluster.client("one").await, cluster.client("two").await);
    let created = one.create("f").await.unwrap();
    let (ino, lease) = (created.entry.attr.ino, created.entry.lease.unwrap());
    let retried = RequestHeader { sequence: 77, ..one.header() };
    let directory = MakeNodeRequest {
        parent: ROOT,
        name: name("d"),
        node: NewNode::Directory,
        mode: 0o755.into(),
        uid: 0,
        gid: 0,
    };
    let made = one.call_with::<MakeNode>(retried.clone(), &directory).await.unwrap().body;
    cluster.restart().await;
    one.reconnect(&cluster).await;
    two.reconnect(&cluster).await;
    assert_eq!(one.lookup("f").await.unwrap_err().code, Code::NotReady);
    assert!(one.renew().await.unwrap().must_resume);
    let resume = |exclusive| ResumeRequest { exclusive, open: vec![ino], last: true };
    assert_eq!(two.call::<Resume>(&resume(vec![])).await.unwrap().lost, []);
    // Two has resumed, one not yet: it may own anything.
    let header = RequestHeader { deadline_ms: 200, ..two.header() };
    let request = LookupRequest { parent: ROOT, name: name("f") };
    assert_eq!(two.call_with::<Lookup>(header, &request).await.err().unwrap().code, Code::Timeout);
    assert_eq!(one.call::<Resume>(&resume(vec![(ino, lease.id)])).await.unwrap().lost, []);
    // The retried mutation is answered from what was kept.
    let again =
        one.call_with::<MakeNode>(RequestHeader { term: Term(0), ..retried }, &directory).await.unwrap().body;
    assert_eq!(again.entry.attr, made.entry.attr);
    let found = two.lookup("f").await.unwrap().entry.unwrap();
    assert_eq!(found.attr.ino, ino);
    assert_eq!(one.recalled(), [(ino, Some(Mode::Shared))]);
    assert!(found.lease.unwrap().id > lease.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_repeated_after_a_restart_owns_its_file_and_shows_it_as_it_is() {
    let mut cluster = Cluster::start(quick(1)).await;
    let (mut one, mut two) = (cluster.client("one").await, cluster.client("two").await);
    let header = RequestHeader { sequence: 1, ..one.header() };
    let first = one.call_with::<Create>(header.clone(), &create("f")).await.unwrap().body;
    let ino = first.entry.attr.ino;
    // The answer was lost, and so is the lease that it carried.
    cluster.restart().await;
    for client in [&mut one, &mut two] {
        client.reconnect(&cluster).await;
        let nothing = ResumeRequest { exclusive: vec![], open: vec![], last: true };
        client.call::<Resume>(&nothing).await.unwrap();
    }
    let again = one.call_with::<Create>(header.clone(), &create("f")).await.unwrap().body;
    assert_eq!(again.entry.lease.unwrap().mode, Mode::Exclusive);
    // Meanwhile somebody else changes it: a repetition must not make the old attributes cacheable.
    let changes = AttrChanges { mode: Some(0o600), ..AttrChanges::default() };
    two.mutate::<SetAttr>(&SetAttrRequest { ino, changes }).await.unwrap();
    let again = one.call_with::<Create>(header, &create("f")).await.unwrap().body;
    assert_eq!(again.entry.attr.mode, 0o600);
    assert_ne!(again.entry.lease.map(|lease| lease.mode), Some(Mode::Exclusive));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_a_session_that_stays_away_lapses() {
    let mut cluster = Cluster::start(quick(1)).await;
    let (mut one, mut two) = (cluster.client("one").await, cluster.client("two").await);
    one.create("f").await.unwrap();
    one.stop_renewing();
    cluster.restart().await;
    two.reconnect(&cluster).await;
    two.call::<Resume>(&ResumeRequest { exclusive: vec![], open: vec![], last: true }).await.unwrap();
    assert!(two.lookup("f").await.unwrap().entry.is_some());
    assert_eq!(cluster.status().await.sessions.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_session_leaves_nothing() {
    let cluster = Cluster::start(quick(1)).await;
    let (one, two) = (cluster.client("one").await, cluster.client("two").await);
    one.create("f").await.unwrap();
    one.call::<CloseSession>(&()).await.unwrap();
    assert_eq!(one.lookup("f").await.unwrap_err().code, Code::SessionLost);
    let started = std::time::Instant::now();
    two.lookup("f").await.unwrap();
    assert!(started.elapsed() < DEADLINE / 2);
    assert_eq!(one.recalled(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_requests_are_refused_and_hurt_nobody() {
    let cluster = Cluster::start(quick(1)).await;
    let (one, two) = (cluster.client("one").await, cluster.client("two").await);
    let ino = one.create("f").await.unwrap().entry.attr.ino;
    // Another client's session.
    let header = RequestHeader { session: one.session, ..two.header() };
    let code = |result: Result<_, Fault>| result.err().unwrap().code;
    let request = LookupRequest { parent: ROOT, name: name("f") };
    assert_eq!(code(two.call_with::<Lookup>(header, &request).await.map(|_| ())), Code::Forbidden);
    // No session, bad names, bad ranges, no lease.
    let header = RequestHeader { session: SessionId(0), ..two.header() };
    assert_eq!(code(two.call_with::<Lookup>(header, &request).await.map(|_| ())), Code::Malformed);
    for bad in [&b"a/b"[..], b"", b".."] {
        let request = LookupRequest { parent: ROOT, name: Name(bad.to_vec()) };
        assert_eq!(code(two.call::<Lookup>(&request).await.map(|_| ())), Code::Invalid);
    }
    let range = LayoutRange { first: 0, count: 1 << 30 };
    assert_eq!(code(two.call::<GetLayout>(&LayoutRequest { ino, range }).await.map(|_| ())), Code::Malformed);
    for inodes in [vec![], vec![ino; 1025]] {
        let request = LayoutsRequest { inodes, range: LayoutRange { first: 0, count: 1 } };
        assert_eq!(code(two.call::<GetLayouts>(&request).await.map(|_| ())), Code::Malformed);
    }
    let commit = CommitRequest {
        ino,
        size: Some(1),
        changes: AttrChanges::default(),
        chunks: vec![],
        trimmed: false,
        sync: true,
        keeps: Mode::Exclusive,
    };
    assert_eq!(code(two.mutate::<Commit>(&commit).await.map(|_| ())), Code::NoLease);
    assert_eq!(code(two.acquire(ROOT, Mode::Exclusive).await.map(|_| ())), Code::Invalid);
    // A client may not do what administrators and slaves do.
    let token = admin::MakeTokenRequest { role: Role::Admin, valid_for_s: 60, uses: 1 };
    assert_eq!(code(two.call::<admin::MakeToken>(&token).await.map(|_| ())), Code::Forbidden);
    let page = cluster::InventoryPage { replicas: vec![], last: true };
    assert_eq!(code(two.call::<cluster::Inventory>(&page).await.map(|_| ())), Code::Forbidden);
    one.lookup("f").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_lost_history_serves_nothing_and_says_so() {
    let cluster = Cluster::start(quick(1)).await;
    let client = cluster.client("a").await;
    client.create("f").await.unwrap();
    let header = RequestHeader { seen: LogIndex(1_000_000), ..client.header() };
    let request = LookupRequest { parent: ROOT, name: name("f") };
    let fault = client.call_with::<Lookup>(header, &request).await.err().unwrap();
    assert_eq!(fault.code, Code::NotReady);
    assert!(fault.detail.contains("Restore its directory"), "{}", fault.detail);
    // From now on for everybody, but status tells why.
    assert_eq!(client.lookup("f").await.unwrap_err().code, Code::NotReady);
    let status = cluster.status().await;
    assert!(status.warnings[0].contains("history is missing"), "{:?}", status.warnings);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_lost_its_newest_terms_serves_nothing_either() {
    let cluster = Cluster::start(quick(1)).await;
    let client = cluster.client("a").await;
    let header = RequestHeader { term: godrive_proto::Term(7), ..client.header() };
    let request = LookupRequest { parent: ROOT, name: name("f") };
    let fault = client.call_with::<Lookup>(header, &request).await.err().unwrap();
    assert!(fault.code == Code::NotReady && fault.detail.contains("history is missing"), "{fault}");
    assert_eq!(client.lookup("f").await.unwrap_err().code, Code::NotReady);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_log_is_noticed_by_those_who_saw_more() {
    let mut cluster = Cluster::start(quick(1)).await;
    let before = cluster.path().join("before");
    let mut client = cluster.client("a").await;
    cluster.stop().await;
    copy_tree(cluster.path(), &before);
    cluster.boot().await.unwrap();
    client.reconnect(&cluster).await;
    client.call::<Resume>(&ResumeRequest { exclusive: vec![], open: vec![], last: true }).await.unwrap();
    for n in 0..20 {
        client.make_directory(&format!("d{n}")).await.unwrap();
    }
    // What nobody synced may be missing, and no answer has named its index.
    client.call::<Barrier>(&()).await.unwrap();
    cluster.stop().await;
    // The directory comes back from an old copy.
    std::fs::remove_file(cluster.path().join("state.redb")).unwrap();
    std::fs::remove_dir_all(cluster.path().join("log")).unwrap();
    copy_tree(&before, cluster.path());
    cluster.boot().await.unwrap();
    client.reconnect(&cluster).await;
    let fault = client.renew().await.unwrap_err();
    assert!(fault.code == Code::NotReady && fault.detail.contains("history is missing"), "{fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_has_lost_everything_does_not_begin_anew() {
    let mut cluster = Cluster::start(quick(1)).await;
    let mut client = cluster.client("a").await;
    client.make_directory("d").await.unwrap();
    cluster.restart().await;
    cluster.stop().await;
    let kept = tempfile::tempdir().unwrap();
    copy_tree(cluster.path(), kept.path());
    for again in 0..2 {
        std::fs::remove_file(cluster.path().join("state.redb")).unwrap();
        std::fs::remove_dir_all(cluster.path().join("log")).unwrap();
        let error = format!("{:#}", cluster.boot().await.unwrap_err());
        assert!(
            error.contains("there is nothing of cluster") && error.contains("`may-begin`"),
            "{again}: {error}"
        );
    }
    copy_tree(kept.path(), cluster.path());
    cluster.boot().await.unwrap();
    client.reconnect(&cluster).await;
    client.call::<Resume>(&ResumeRequest { exclusive: vec![], open: vec![], last: true }).await.unwrap();
    assert!(client.lookup("d").await.unwrap().entry.is_some());
}

fn copy_tree(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if target == to.join("before") {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_at_once_agree_on_what_they_made() {
    let cluster = Cluster::start(quick(1)).await;
    let clients: Vec<Client> = {
        let mut clients = Vec::new();
        for n in 0..4 {
            clients.push(cluster.client(&format!("c{n}")).await);
        }
        clients
    };
    let tasks: Vec<_> = clients
        .into_iter()
        .enumerate()
        .map(|(n, client)| {
            tokio::spawn(async move {
                for i in 0..25 {
                    client.create(&format!("f{n}-{i}")).await.unwrap();
                }
                client
            })
        })
        .collect();
    let mut clients = Vec::new();
    for task in tasks {
        clients.push(task.await.unwrap());
    }
    let request = ReadDirectoryRequest { directory: ROOT, after: 0, max_entries: 1000, views: false };
    eventually("all files are there", async || {
        let page = clients[0].call::<ReadDirectory>(&request).await.unwrap();
        (page.entries.len() == 100).then_some(())
    })
    .await;
}
