//! Names removed under exclusive leases: owning a directory, and telling the master afterwards.

mod common;

use common::{Answer, Client, Cluster, create, eventually, name, quick};
use godrive_proto::frame::RequestHeader;
use godrive_proto::lease::*;
use godrive_proto::limits::MAX_STEPS;
use godrive_proto::meta::*;
use godrive_proto::time::Timestamp;
use godrive_proto::*;

async fn directory(client: &Client) -> Ino {
    client.make_directory("d").await.unwrap().entry.attr.ino
}

async fn file(client: &Client, parent: Ino, text: &str) -> Ino {
    let request = CreateRequest { parent, for_writing: false, ..create(text) };
    client.mutate::<Create>(&request).await.unwrap().entry.attr.ino
}

async fn own(client: &Client, directory: Ino, also: &[Ino]) -> Result<Owned, Fault> {
    client.call::<Own>(&OwnRequest { directory, also: also.to_vec() }).await
}

fn step(parent: Ino, text: &str, ino: Ino) -> Step {
    let request = UnlinkRequest { parent, name: name(text), directory: false };
    Step::Unlink { request, ino, at: Timestamp(1) }
}

async fn look(client: &Client, parent: Ino, text: &str) -> LookedUp {
    client.call::<Lookup>(&LookupRequest { parent, name: name(text) }).await.unwrap()
}

fn mode(view: &InodeView) -> Option<Mode> {
    view.lease.map(|lease| lease.mode)
}

fn code<T>(result: Result<T, Fault>) -> Option<Code> {
    result.err().map(|fault| fault.code)
}

#[tokio::test(flavor = "multi_thread")]
async fn owning_a_directory_recalls_what_others_share() {
    let cluster = Cluster::start(quick(1)).await;
    let (one, two) = (cluster.client("one").await, cluster.client("two").await);
    let d = directory(&one).await;
    assert_eq!(mode(&two.lookup("d").await.unwrap().entry.unwrap()), Some(Mode::Shared));
    let owned = own(&one, d, &[]).await.unwrap();
    assert_eq!((owned.directory.attr.ino, mode(&owned.directory)), (d, Some(Mode::Exclusive)));
    assert_eq!(two.recalled(), [(d, None)]);
    // And what others own.
    let owned = own(&two, d, &[]).await.unwrap();
    assert_eq!(mode(&owned.directory), Some(Mode::Exclusive));
    assert_eq!(one.recalled(), [(d, None)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_other_inodes_only_those_are_owned_that_nobody_holds() {
    let cluster = Cluster::start(quick(1)).await;
    let (one, two) = (cluster.client("one").await, cluster.client("two").await);
    let d = directory(&one).await;
    let free = file(&one, d, "free").await;
    let node = NewNode::Directory;
    let request = MakeNodeRequest { parent: d, name: name("sub"), node, mode: 0o755.into(), uid: 0, gid: 0 };
    let sub = one.mutate::<MakeNode>(&request).await.unwrap().entry.attr.ino;
    let (owned, shared) = (file(&one, d, "owned").await, file(&one, d, "shared").await);
    two.acquire(owned, Mode::Exclusive).await.unwrap();
    two.acquire(shared, Mode::Shared).await.unwrap();
    // It would be waited for in vain.
    two.answers(Answer::Silent);
    let got = own(&one, d, &[owned, free, Ino(1_000), shared, sub]).await.unwrap();
    assert_eq!(mode(&got.directory), Some(Mode::Exclusive));
    let also: Vec<_> = got.also.iter().map(|view| (view.attr.ino, mode(view))).collect();
    let exclusive = Some(Mode::Exclusive);
    assert_eq!(also, [(owned, None), (free, exclusive), (shared, None), (sub, exclusive)]);
    assert_eq!(two.recalled(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_owned_or_followed_is_refused() {
    let cluster = Cluster::start(quick(1)).await;
    let client = cluster.client("a").await;
    let (d, f) = (directory(&client).await, file(&client, ROOT, "f").await);
    assert_eq!(code(own(&client, f, &[]).await), Some(Code::NotDirectory));
    assert_eq!(code(own(&client, Ino(1_000), &[]).await), Some(Code::Stale));
    assert_eq!(code(own(&client, d, &[Ino(1_000); 1025]).await), Some(Code::Malformed));
    assert_eq!(own(&client, d, &[Ino(1_000); 1024]).await.unwrap().also, []);
    for count in [0, MAX_STEPS + 1] {
        let request = BatchRequest { steps: vec![step(ROOT, "f", f); count] };
        assert_eq!(code(client.mutate::<Batch>(&request).await), Some(Code::Malformed), "{count} steps");
    }
    let mut steps = Vec::new();
    for n in 0..MAX_STEPS {
        let text = format!("{n}");
        steps.push(step(d, &text, file(&client, d, &text).await));
    }
    let inodes: Vec<Ino> = steps.iter().map(|Step::Unlink { ino, .. }| *ino).collect();
    own(&client, d, &inodes).await.unwrap();
    let views = client.mutate::<Batch>(&BatchRequest { steps }).await.unwrap().views;
    assert_eq!(views.len(), 1 + MAX_STEPS);
    assert_eq!(look(&client, d, "0").await.parent.attr.size, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_into_an_owned_directory_recalls_it() {
    let cluster = Cluster::start(quick(1)).await;
    let (one, two) = (cluster.client("one").await, cluster.client("two").await);
    let d = directory(&one).await;
    let f = file(&one, d, "f").await;
    own(&one, d, &[]).await.unwrap();
    let seen = look(&two, d, "f").await;
    assert_eq!((mode(&seen.parent), seen.entry.unwrap().attr.ino), (Some(Mode::Shared), f));
    assert_eq!(one.recalled(), [(d, Some(Mode::Shared))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owners_batch_passes_those_who_wait_for_its_leases() {
    let cluster = Cluster::start(quick(1)).await;
    let (one, two) = (cluster.client("one").await, cluster.client("two").await);
    let d = directory(&one).await;
    let (a, b) = (file(&one, d, "a").await, file(&one, d, "b").await);
    own(&one, d, &[a, b]).await.unwrap();
    one.answers(Answer::Silent);
    let looking = tokio::spawn(async move { look(&two, d, "a").await });
    // Not that of the file: to look at it, its owner would be asked.
    eventually("the recall has come", async || (one.recalled() == [(d, Some(Mode::Shared))]).then_some(()))
        .await;
    let steps = vec![step(d, "a", a), step(d, "b", b)];
    let views = one.mutate::<Batch>(&BatchRequest { steps }).await.unwrap().views;
    assert!(!looking.is_finished(), "it waits for the owner");
    // The leases stay as they were, recalled or not.
    let held: Vec<_> = views.iter().map(|view| (view.attr.ino, mode(view))).collect();
    assert_eq!(held, [d, a, b].map(|ino| (ino, Some(Mode::Exclusive))));
    let leases = views.iter().map(|view| {
        let lease = view.lease.unwrap();
        Release { ino: lease.ino, id: lease.id, keeps: Some(Mode::Shared), open: false }
    });
    let request = ReleaseRequest { leases: leases.collect(), closed_orphans: vec![] };
    one.call::<Releases>(&request).await.unwrap();
    let seen = looking.await.unwrap();
    assert!(seen.entry.is_none());
    assert_eq!((seen.parent.attr.size, mode(&seen.parent)), (0, Some(Mode::Shared)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_without_its_leases_is_refused() {
    let cluster = Cluster::start(quick(1)).await;
    let (one, two) = (cluster.client("one").await, cluster.client("two").await);
    let d = directory(&one).await;
    let f = file(&one, d, "f").await;
    let request = BatchRequest { steps: vec![step(d, "f", f)] };
    assert_eq!(code(one.mutate::<Batch>(&request).await), Some(Code::NoLease), "both are shared");
    own(&one, d, &[]).await.unwrap();
    assert_eq!(code(one.mutate::<Batch>(&request).await), Some(Code::NoLease), "the file is shared");
    one.acquire(f, Mode::Exclusive).await.unwrap();
    assert_eq!(code(two.mutate::<Batch>(&request).await), Some(Code::NoLease), "they are another's");
    assert_eq!(one.recalled(), []);
    one.mutate::<Batch>(&request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_changes_nothing_lends_nothing_that_another_owns() {
    let cluster = Cluster::start(quick(1)).await;
    let (one, two) = (cluster.client("one").await, cluster.client("two").await);
    let d = directory(&one).await;
    own(&one, d, &[]).await.unwrap();
    let request = RemoveXattrRequest { ino: d, name: b"system.posix_acl_default".to_vec() };
    let seen = two.mutate::<RemoveXattr>(&request).await.unwrap();
    assert_eq!((seen.attr.ino, mode(&seen)), (d, None));
    assert_eq!(one.recalled(), []);
}

/// Which files they have open, a master that has restarted learns from them.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_waits_for_those_from_before_a_restart() {
    let mut cluster = Cluster::start(quick(1)).await;
    let (mut one, mut two) = (cluster.client("one").await, cluster.client("two").await);
    let d = directory(&one).await;
    let f = file(&one, d, "f").await;
    two.answers(Answer::Obey { open: true });
    two.acquire(f, Mode::Shared).await.unwrap();
    let owned = own(&one, d, &[]).await.unwrap().directory;
    let also = one.acquire(f, Mode::Exclusive).await.unwrap().views.remove(0);
    assert_eq!(two.recalled(), [(f, None)]);
    cluster.restart().await;
    one.reconnect(&cluster).await;
    two.reconnect(&cluster).await;
    let exclusive = [&owned, &also].map(|view| (view.attr.ino, view.lease.unwrap().id)).into();
    let resumed = one.call::<Resume>(&ResumeRequest { exclusive, open: vec![], last: true }).await.unwrap();
    assert_eq!(resumed.lost, []);
    let request = BatchRequest { steps: vec![step(d, "f", f)] };
    let header = RequestHeader { sequence: one.next_sequence(), ..one.header() };
    let soon = RequestHeader { deadline_ms: 200, ..header.clone() };
    assert_eq!(code(one.call_with::<Batch>(soon, &request).await), Some(Code::Timeout));
    two.call::<Resume>(&ResumeRequest { exclusive: vec![], open: vec![f], last: true }).await.unwrap();
    one.call_with::<Batch>(header, &request).await.unwrap();
    let closed = ReleaseRequest { leases: vec![], closed_orphans: vec![f] };
    one.call::<Releases>(&closed).await.unwrap();
    assert_eq!(two.call::<GetAttr>(&f).await.unwrap().attr.nlink, 0);
}

/// The owner of a directory may be ahead of the master: a refusal that rests on names is the owner's to give.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_because_of_names_recalls_who_may_have_removed_them() {
    let cluster = Cluster::start(quick(1)).await;
    let (one, two) = (cluster.client("one").await, cluster.client("two").await);
    let d = directory(&one).await;
    let f = file(&one, d, "f").await;
    let again = || async { own(&one, d, &[f]).await.map(drop).unwrap() };
    let recalled = |before: usize| {
        let mut recalled = one.recalled().split_off(before);
        recalled.sort();
        recalled
    };
    let shared = Some(Mode::Shared);
    again().await;
    let rmdir = UnlinkRequest { parent: ROOT, name: name("d"), directory: true };
    assert_eq!(code(two.mutate::<Unlink>(&rmdir).await), Some(Code::NotEmpty));
    assert_eq!(recalled(0), [(d, shared)]);
    again().await;
    let request = CreateRequest { parent: d, exclusive: true, ..create("f") };
    assert_eq!(code(two.mutate::<Create>(&request).await), Some(Code::Exists));
    assert_eq!(recalled(1), [(d, shared)], "the file itself does not matter");
    // Whoever owns it itself waits for nobody.
    again().await;
    assert_eq!(code(one.mutate::<Unlink>(&rmdir).await), Some(Code::NotEmpty));
    assert_eq!(recalled(2), []);
    // What the recall brings to light is followed: the directory was empty.
    one.answers(Answer::Silent);
    let removing = tokio::spawn(async move { two.mutate::<Unlink>(&rmdir).await });
    eventually("the recall has come", async || (recalled(2) == [(d, shared)]).then_some(())).await;
    let views = one.mutate::<Batch>(&BatchRequest { steps: vec![step(d, "f", f)] }).await.unwrap().views;
    let lease = views[0].lease.unwrap();
    // The change itself takes the rest.
    one.answers(Answer::Obey { open: false });
    let leases = vec![Release { ino: d, id: lease.id, keeps: shared, open: false }];
    one.call::<Releases>(&ReleaseRequest { leases, closed_orphans: vec![f] }).await.unwrap();
    removing.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_removed_by_a_batch_lives_until_its_last_opener_closes() {
    let cluster = Cluster::start(quick(1)).await;
    let (one, two) = (cluster.client("one").await, cluster.client("two").await);
    let f = two.create("f").await.unwrap().entry.attr.ino;
    two.answers(Answer::Obey { open: true });
    own(&one, ROOT, &[]).await.unwrap();
    one.acquire(f, Mode::Exclusive).await.unwrap();
    one.mutate::<Batch>(&BatchRequest { steps: vec![step(ROOT, "f", f)] }).await.unwrap();
    let close = ReleaseRequest { leases: vec![], closed_orphans: vec![f] };
    one.call::<Releases>(&close).await.unwrap();
    assert_eq!(two.acquire(f, Mode::Shared).await.unwrap().views[0].attr.nlink, 0);
    two.call::<Releases>(&close).await.unwrap();
    assert_eq!(code(two.acquire(f, Mode::Shared).await), Some(Code::Stale));
    assert_eq!(cluster.status().await.orphans, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_batch_is_answered_alike_and_executed_once() {
    let mut cluster = Cluster::start(quick(1)).await;
    let mut client = cluster.client("a").await;
    let d = directory(&client).await;
    let f = file(&client, d, "f").await;
    own(&client, d, &[f]).await.unwrap();
    let header = RequestHeader { sequence: client.next_sequence(), ..client.header() };
    let request = BatchRequest { steps: vec![step(d, "f", f)] };
    let first = client.call_with::<Batch>(header.clone(), &request).await.unwrap().body;
    let again = client.call_with::<Batch>(header.clone(), &request).await.unwrap().body;
    let attrs = |batched: &Batched| batched.views.iter().map(|view| view.attr.clone()).collect::<Vec<_>>();
    assert_eq!(attrs(&again), attrs(&first));
    assert!(again.views.iter().all(|view| mode(view) == Some(Mode::Exclusive)), "{again:?}");
    // Executed twice it would not find the name, or another file behind it.
    let new = file(&client, d, "f").await;
    let leases: Vec<_> = again.views.iter().map(|view| (view.attr.ino, view.lease.unwrap().id)).collect();
    cluster.restart().await;
    client.reconnect(&cluster).await;
    let resume = ResumeRequest { exclusive: leases, open: vec![f], last: true };
    assert_eq!(client.call::<Resume>(&resume).await.unwrap().lost, []);
    let retried = RequestHeader { term: Term(0), ..header };
    let again = client.call_with::<Batch>(retried, &request).await.unwrap().body;
    assert_eq!(attrs(&again)[1], attrs(&first)[1]);
    assert_eq!(again.views[0].attr.size, 1, "the directory as it is now");
    assert_eq!(look(&client, d, "f").await.entry.unwrap().attr.ino, new);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_still_owned_after_a_restart() {
    let mut cluster = Cluster::start(quick(1)).await;
    let (mut one, mut two) = (cluster.client("one").await, cluster.client("two").await);
    let d = directory(&one).await;
    let (a, b) = (file(&one, d, "a").await, file(&one, d, "b").await);
    let owned = own(&one, d, &[a]).await.unwrap();
    let mut exclusive = Vec::new();
    for view in owned.also.iter().chain([&owned.directory]) {
        exclusive.push((view.attr.ino, view.lease.unwrap().id));
    }
    let missing = Ino(1_000);
    let lease = exclusive[1].1;
    cluster.restart().await;
    one.reconnect(&cluster).await;
    two.reconnect(&cluster).await;
    let resume = |exclusive| ResumeRequest { exclusive, open: vec![], last: true };
    exclusive.push((missing, lease));
    assert_eq!(one.call::<Resume>(&resume(exclusive)).await.unwrap().lost, [missing]);
    // Nobody else has it too.
    assert_eq!(two.call::<Resume>(&resume(vec![(d, lease)])).await.unwrap().lost, [d]);
    let views = one.mutate::<Batch>(&BatchRequest { steps: vec![step(d, "a", a)] }).await.unwrap().views;
    assert_eq!(views.iter().map(mode).collect::<Vec<_>>(), [Some(Mode::Exclusive); 2]);
    assert_eq!(views[0].lease.unwrap().id, lease);
    assert_eq!(one.recalled(), []);
    let seen = look(&two, d, "b").await;
    assert_eq!((seen.parent.attr.size, seen.entry.unwrap().attr.ino), (1, b));
    assert_eq!(one.recalled(), [(d, Some(Mode::Shared))]);
}
