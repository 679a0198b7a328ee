//! Chunks: placement, epochs, repair, reclaim, with slaves that only pretend to store.

#![allow(clippy::disallowed_methods, reason = "tests on the real machine take its time")]

mod common;
#[path = "chunks/disks.rs"]
mod disks;
#[path = "chunks/guards.rs"]
mod guards;

use common::chunks::*;
use common::slave::{Slave, contents, heartbeat};
use common::{Client, Cluster, create, eventually, quick};
use godrive_proto::admin::{Damage, DamagedChunk, EmptyTrash, Intend, IntendRequest, Intention};
use godrive_proto::cluster::{DiskHealth, Heartbeat, InventoryPage, ReplicaState};
use godrive_proto::data::{Contents, Layout};
use godrive_proto::lease::*;
use godrive_proto::meta::*;
use godrive_proto::*;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_is_placed_on_as_many_nodes_as_it_needs() {
    let cluster = Cluster::start(quick(3)).await;
    let client = cluster.client("a").await;
    // Without slaves files can be made, but not written.
    let created = client.create("early").await.unwrap();
    assert!(created.layout.is_none());
    let open = OpenChunksRequest { ino: created.entry.attr.ino, indexes: vec![0] };
    let fault = client.mutate::<OpenChunks>(&open).await.unwrap_err();
    assert_eq!(fault.code, Code::Unavailable);
    assert!(fault.detail.contains("needs 2 usable slaves") && fault.detail.contains("start more"), "{fault}");
    let slaves = slaves(&cluster, 4).await;
    let layouts =
        client.mutate::<OpenChunks>(&OpenChunksRequest { indexes: vec![0, 1, 5], ..open }).await.unwrap();
    assert_eq!(layouts.iter().map(|layout| layout.index).collect::<Vec<_>>(), [0, 1, 5]);
    for layout in &layouts {
        let mut nodes = members(layout);
        nodes.dedup();
        assert_eq!((nodes.len(), layout.epoch, layout.held.version), (3, Epoch(1), Version(0)));
        assert!(nodes.iter().all(|node| slaves.iter().any(|slave| slave.node == *node)));
    }
    // Nobody has filled the disks yet, but a chunk too many is promised to no one.
    let status = cluster.status().await;
    assert_eq!((status.chunks.total, status.chunks.healthy, status.nodes.len()), (3, 3, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_learns_of_the_living_slaves_each_from_another_on() {
    let cluster = Cluster::start(quick(1)).await;
    let mut slaves = slaves(&cluster, 3).await;
    let (one, two) = (cluster.client("one").await, cluster.client("two").await);
    let told = async |client: &Client| {
        let told = client.call::<Slaves>(&()).await.unwrap();
        assert!(told.iter().all(|slave| slave.address.port() == 9), "as it announced itself");
        told.into_iter().map(|slave| slave.node).collect::<Vec<_>>()
    };
    let (mut first, mut second) = (told(&one).await, told(&two).await);
    assert_ne!(first[0], second[0]);
    first.sort();
    second.sort();
    let mut known: Vec<_> = slaves.iter().map(|slave| slave.node).collect();
    known.sort();
    assert_eq!((&first, &second), (&known, &known));
    slaves[1].hush();
    let left = [slaves[0].node, slaves[2].node];
    eventually("the silent one is not told any longer", async || {
        let told = told(&one).await;
        (told.len() == 2 && told.iter().all(|node| left.contains(node))).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_cluster_says_so() {
    let cluster = Cluster::start(quick(1)).await;
    let slaves = slaves(&cluster, 1).await;
    let client = cluster.client("a").await;
    let mut full = heartbeat(slaves[0].disk, vec![]);
    full.disks[0].free_bytes = 3 << 20;
    // The slave's own pulse says otherwise every 50 ms: stop it.
    let mut slaves = slaves;
    slaves[0].hush();
    slaves[0].call::<Heartbeat>(&full).await.unwrap();
    let ino = client.create("f").await.unwrap().entry.attr.ino;
    let open = |indexes| OpenChunksRequest { ino, indexes };
    // Three chunks of 1 MiB fit, the first was placed with the file.
    let layouts = client.mutate::<OpenChunks>(&open(vec![0, 1, 2, 3, 4])).await.unwrap();
    assert_eq!(layouts.len(), 3);
    let fault = client.mutate::<OpenChunks>(&open(vec![3])).await.unwrap_err();
    assert!(fault.code == Code::NoSpace && fault.detail.contains("add a slave"), "{fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_fails_during_a_write_leaves_quickly() {
    let cluster = Cluster::start(quick(3)).await;
    let mut slaves = slaves(&cluster, 3).await;
    let client = cluster.client("a").await;
    let (ino, layout) = written(&client, &slaves, "f").await;
    // The first member applied the next delta, the others did not; the last one is dead.
    let next = contents(2, 0xb);
    let dead = layout.members[2].node;
    slaves.iter_mut().find(|slave| slave.node == dead).unwrap().kill().await;
    by_node(&slaves, layout.members[0].node).hold(&layout, next, false);
    let started = Instant::now();
    let renewed = report(&client, &layout, Problem::Failed(dead)).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(2));
    // What one has may have been acknowledged: it wins, and the laggard got it.
    assert_eq!((renewed.epoch, renewed.held), (Epoch(2), next));
    assert_eq!(renewed.members.len(), 2);
    for member in &renewed.members {
        let replica = by_node(&slaves, member.node).has(layout.chunk.id).unwrap();
        assert_eq!((replica.epoch, replica.contents), (Epoch(2), next));
    }
    // The old epoch is refused, the new one is committed.
    assert_eq!(
        commit(&client, ino, &layout, next, Mode::Exclusive).await.unwrap_err().code,
        Code::WrongEpoch
    );
    commit(&client, ino, &renewed, next, Mode::Shared).await.unwrap();
    // A late report of the old epoch only gets the layout.
    let again = report(&client, &layout, Problem::Failed(dead)).await.unwrap();
    assert_eq!((again.epoch, members(&again)), (renewed.epoch, members(&renewed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_member_costs_the_seal_deadline_and_repair_replaces_it() {
    let cluster = Cluster::start(quick(3)).await;
    let slaves = slaves(&cluster, 4).await;
    let client = cluster.client("a").await;
    let (_, layout) = written(&client, &slaves, "f").await;
    let silent = layout.members[1].node;
    by_node(&slaves, silent).silent(true);
    let started = Instant::now();
    let renewed = report(&client, &layout, Problem::Failed(silent)).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(2));
    assert_eq!(renewed.members.len(), 2);
    // In the background the fourth becomes a member.
    let repaired = eventually("it has three members again", async || {
        let now = report(&client, &renewed, Problem::StaleLayout).await.unwrap();
        (now.members.len() == 3).then_some(now)
    })
    .await;
    assert!(!members(&repaired).contains(&silent));
    assert!(repaired.epoch > renewed.epoch);
    eventually("status counts the repair", async || {
        let status = cluster.status().await;
        (status.repaired >= 1 && status.chunks.healthy == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_members_are_unavailable_and_stay_readable() {
    let cluster = Cluster::start(quick(3)).await;
    let mut slaves = slaves(&cluster, 3).await;
    let client = cluster.client("a").await;
    let (_, layout) = written(&client, &slaves, "f").await;
    for slave in &mut slaves[1..] {
        slave.kill().await;
    }
    let fault = report(&client, &layout, Problem::Failed(slaves[1].node)).await.unwrap_err();
    assert!(fault.code == Code::Unavailable && fault.detail.contains("start the missing slaves"), "{fault}");
    // Nothing was sealed: whoever only reads goes on.
    assert!(!slaves[0].store.log.lock().unwrap().iter().any(|line| line.starts_with("seal")));
    // When one is back, it works.
    slaves[1].connect(&cluster).await.unwrap();
    let renewed = report(&client, &layout, Problem::Failed(slaves[2].node)).await.unwrap();
    assert_eq!(renewed.members.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_writers_chunks_are_settled_before_the_next_one_gets_the_file() {
    let cluster = Cluster::start(quick(3)).await;
    let slaves = slaves(&cluster, 3).await;
    let (mut one, two) = (cluster.client("one").await, cluster.client("two").await);
    let (ino, layout) = written(&one, &slaves, "f").await;
    // It wrote on, was cut off in the middle of a chain, and died: never committed, never renewed.
    by_node(&slaves, layout.members[0].node).hold(&layout, contents(2, 0xb), false);
    one.answers(common::Answer::Silent);
    one.stop_renewing();
    let acquired = two.acquire(ino, Mode::Exclusive).await.unwrap();
    assert_eq!(acquired.layout[0].epoch, Epoch(2));
    assert_eq!(acquired.layout[0].held, contents(2, 0xb));
    for slave in &slaves {
        let replica = slave.has(layout.chunk.id).unwrap();
        assert_eq!((replica.epoch, replica.contents), (Epoch(2), contents(2, 0xb)));
    }
    let layouts = two.mutate::<OpenChunks>(&OpenChunksRequest { ino, indexes: vec![0] }).await.unwrap();
    assert_eq!(layouts[0].epoch, Epoch(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_contradict_each_other_are_quarantined() {
    let cluster = Cluster::start(quick(2)).await;
    let slaves = slaves(&cluster, 2).await;
    let client = cluster.client("a").await;
    let (_, layout) = written(&client, &slaves, "f").await;
    slaves[0].hold(&layout, contents(2, 0xb), false);
    slaves[1].hold(&layout, contents(2, 0xc), false);
    assert_eq!(report(&client, &layout, Problem::Diverged).await.unwrap_err().code, Code::Quarantined);
    assert_eq!(cluster.status().await.chunks.quarantined, 1);
    // Nothing was overwritten.
    assert_eq!(slaves[0].has(layout.chunk.id).unwrap().contents, contents(2, 0xb));
    assert_eq!(slaves[1].has(layout.chunk.id).unwrap().contents, contents(2, 0xc));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_member_has_no_voice_and_is_replaced() {
    let cluster = Cluster::start(quick(3)).await;
    let slaves = slaves(&cluster, 3).await;
    let client = cluster.client("a").await;
    let (_, layout) = written(&client, &slaves, "f").await;
    let corrupt = layout.members[0].node;
    by_node(&slaves, corrupt).hold(&layout, contents(9, 0xbad), false);
    let renewed = report(&client, &layout, Problem::Corrupt(corrupt)).await.unwrap();
    assert_eq!(renewed.held, contents(1, 0xa));
    assert!(!members(&renewed).contains(&corrupt));
    // It is the only place left for a third replica: it gets the right contents.
    eventually("it is a member again", async || {
        let now = report(&client, &renewed, Problem::StaleLayout).await.unwrap();
        (now.members.len() == 3).then_some(())
    })
    .await;
    assert_eq!(by_node(&slaves, corrupt).has(layout.chunk.id).unwrap().contents, contents(1, 0xa));
}

/// Nobody else could take its place: what verifies there stays, the rest is copied.
#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_member_that_cannot_be_spared_is_mended_where_it_is() {
    let cluster = Cluster::start(quick(2)).await;
    let slaves = slaves(&cluster, 2).await;
    let client = cluster.client("a").await;
    let (_, layout) = written(&client, &slaves, "f").await;
    let mut now = layout.clone();
    for [corrupt, sound] in [[0, 1], [1, 0]] {
        now = report(&client, &now, Problem::Corrupt(slaves[corrupt].node)).await.unwrap();
        assert_eq!((now.held, now.members.len()), (contents(1, 0xa), 2));
        let copied = format!("copy {} from {}", layout.chunk.id, slaves[sound].node);
        let log = slaves[corrupt].store.log.lock().unwrap().clone();
        assert_eq!(log.iter().filter(|line| **line == copied).count(), 1, "{log:?}");
        assert_eq!(slaves[corrupt].has(layout.chunk.id).unwrap().epoch, now.epoch);
    }
}

/// The others do not get through to it, though the master does.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_only_the_master_reaches_leaves() {
    let cluster = Cluster::start(quick(3)).await;
    let slaves = slaves(&cluster, 4).await;
    let client = cluster.client("a").await;
    let (_, layout) = written(&client, &slaves, "f").await;
    let unreached = layout.members[1].node;
    let spared = report(&client, &layout, Problem::Failed(unreached)).await.unwrap();
    assert_eq!(spared.members.len(), 3, "it answers");
    let now = report(&client, &spared, Problem::Failed(unreached)).await.unwrap();
    assert!(now.members.len() == 2 && !members(&now).contains(&unreached), "{now:?}");
    eventually("another one takes its place", async || {
        let now = report(&client, &now, Problem::StaleLayout).await.unwrap();
        (now.members.len() == 3 && !members(&now).contains(&unreached)).then_some(())
    })
    .await;
    for at in 0..8 {
        let layout = client.create(&format!("new{at}")).await.unwrap().layout.unwrap();
        assert!(!members(&layout).contains(&unreached), "nothing new goes there");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_only_the_master_reaches_is_replaced_first_where_it_cannot_be_spared() {
    let cluster = Cluster::start(quick(2)).await;
    let mut slaves = slaves(&cluster, 2).await;
    let client = cluster.client("a").await;
    let (_, layout) = written(&client, &slaves, "f").await;
    let unreached = layout.members[0].node;
    let mut now = layout.clone();
    for _ in 0..3 {
        now = report(&client, &now, Problem::Failed(unreached)).await.unwrap();
        assert_eq!(now.members.len(), 2, "there is no other");
    }
    slaves.push(Slave::start(&cluster).await);
    let spare = slaves[2].node;
    let now = report(&client, &now, Problem::Failed(unreached)).await.unwrap();
    assert_eq!(BTreeSet::from_iter(members(&now)), BTreeSet::from([layout.members[1].node, spare]));
    let copied = format!("copy {} from {}", layout.chunk.id, layout.members[1].node);
    assert!(slaves[2].store.log.lock().unwrap().contains(&copied), "not from the one that nobody reaches");
}

/// Nobody answers within the deadline of a seal, and all do soon after it.
#[tokio::test(flavor = "multi_thread")]
async fn where_all_members_are_slow_their_answers_are_waited_for() {
    let cluster = Cluster::start(quick(3)).await;
    let slaves = slaves(&cluster, 3).await;
    let client = cluster.client("a").await;
    let (_, layout) = written(&client, &slaves, "f").await;
    let deadline = Duration::from_millis(quick(3).nodes.seal_deadline_ms.into());
    slaves.iter().for_each(|slave| *slave.store.seals_take.lock().unwrap() = deadline * 3 / 2);
    let now = report(&client, &layout, Problem::Diverged).await.unwrap();
    assert_eq!((now.epoch, now.members.len()), (Epoch(2), 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_whose_members_are_all_corrupt_is_told_so_at_once_and_comes_back() {
    let cluster = Cluster::start(quick(3)).await;
    let mut slaves = slaves(&cluster, 3).await;
    let client = cluster.client("a").await;
    let (_, layout) = written(&client, &slaves, "f").await;
    let rotten = |slaves: &[Slave], rotten| {
        slaves.iter().for_each(|slave| *slave.store.rotten.lock().unwrap() = rotten);
    };
    rotten(&slaves, true);
    // One is spared, the others have the digest that they should have, and no sound copy is found.
    let mut now = report(&client, &layout, Problem::Corrupt(layout.members[0].node)).await.unwrap();
    assert_eq!(now.members.len(), 2);
    let fault = report(&client, &now, Problem::Corrupt(now.members[0].node)).await.unwrap_err();
    assert!(fault.code == Code::Quarantined && fault.detail.contains("do not verify"), "{fault}");
    // The members answer for what verifies, and a report of what does not is answered at once.
    now = eventually("the members serve", async || {
        report(&client, &now, Problem::StaleLayout).await.ok().filter(|layout| layout.epoch > now.epoch)
    })
    .await;
    assert_eq!((now.held, now.members.len()), (contents(1, 0xa), 2));
    let sealed = |slave: &Slave| {
        slave.store.log.lock().unwrap().iter().filter(|line| line.starts_with("seal")).count()
    };
    let before: usize = slaves.iter().map(sealed).sum();
    let started = Instant::now();
    for member in &now.members {
        let fault = report(&client, &now, Problem::Corrupt(member.node)).await.unwrap_err();
        assert_eq!(fault.code, Code::Quarantined);
    }
    assert!(started.elapsed() < Duration::from_secs(2));
    assert_eq!(slaves.iter().map(sealed).sum::<usize>(), before, "nothing is sealed for it");
    let status = cluster.status().await;
    assert_eq!(status.chunks.quarantined, 1);
    assert!(status.warnings.iter().any(|warning| warning.contains("quarantined")), "{:?}", status.warnings);
    let damaged = cluster.damaged().await;
    let told = |damaged: &DamagedChunk| (damaged.chunk, damaged.damage, damaged.path.clone());
    let it = (layout.chunk.id, Damage::Rotten, Some(b"f".to_vec()));
    assert_eq!(damaged.iter().map(told).collect::<Vec<_>>(), [it]);
    let nodes = |members: &mut dyn Iterator<Item = NodeId>| members.collect::<BTreeSet<_>>();
    let members = nodes(&mut now.members.iter().map(|member| member.node));
    assert_eq!(nodes(&mut damaged[0].members.iter().copied()), members);
    assert!(slaves.iter().all(|slave| slave.has(layout.chunk.id).unwrap().contents == contents(1, 0xa)));
    // A member whose disk is read again comes back.
    rotten(&slaves, false);
    let back = slaves.iter().position(|slave| slave.node == now.members[1].node).unwrap();
    slaves[back].kill().await;
    slaves[back].connect(&cluster).await.unwrap();
    eventually("the chunk is whole again", async || {
        let status = cluster.status().await;
        (status.chunks.quarantined == 0 && status.chunks.healthy == 1).then_some(())
    })
    .await;
    assert_eq!(cluster.damaged().await, []);
    let now = report(&client, &now, Problem::StaleLayout).await.unwrap();
    let renewed = report(&client, &now, Problem::Corrupt(layout.members[0].node)).await.unwrap();
    assert_eq!(renewed.held, contents(1, 0xa));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_only_a_rotten_replica_is_left_that_is_what_people_are_told() {
    let cluster = Cluster::start(quick(2)).await;
    let mut slaves = slaves(&cluster, 2).await;
    let client = cluster.client("a").await;
    let (_, layout) = written(&client, &slaves, "f").await;
    let damage = async |expected: Damage| {
        let what = format!("{expected:?}");
        eventually(&what, async || {
            let damaged = cluster.damaged().await;
            (damaged.iter().map(|chunk| chunk.damage).collect::<Vec<_>>() == [expected]).then_some(())
        })
        .await;
    };
    slaves[1].kill().await;
    damage(Damage::ReadOnly).await;
    report(&client, &layout, Problem::Corrupt(slaves[0].node)).await.unwrap_err();
    damage(Damage::Rotten).await;
    slaves[1].connect(&cluster).await.unwrap();
    eventually("it can be read again", async || cluster.damaged().await.is_empty().then_some(())).await;
}

/// Comes back after a loss of power with less than was held, and nobody looks at what it has before the test does.
async fn lose_power(cluster: &Cluster, slave: &mut Slave, layout: &Layout, left: Contents) {
    slave.kill().await;
    slave.boot = BootId(2);
    slave.connect(cluster).await.unwrap();
    slave.hold(layout, left, true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_member_is_not_left_out_where_the_others_have_less_than_was_held() {
    let cluster = Cluster::start(quick(2)).await;
    // The third one could be copied to, if the stale replica won.
    let mut slaves = slaves(&cluster, 3).await;
    let client = cluster.client("a").await;
    let (ino, layout) = written(&client, &slaves, "f").await;
    let held = contents(2, 0xb);
    hold(&slaves, &layout, held, false);
    commit(&client, ino, &layout, held, Mode::Exclusive).await.unwrap();
    let (stale, corrupt) = (layout.members[0].node, layout.members[1].node);
    let at = slaves.iter().position(|slave| slave.node == stale).unwrap();
    lose_power(&cluster, &mut slaves[at], &layout, contents(1, 0xa)).await;
    // One leaf rotted where the only whole version lies: what the others have is not the truth.
    let fault = report(&client, &layout, Problem::Corrupt(corrupt)).await.unwrap_err();
    assert!(fault.code == Code::Unavailable && fault.detail.contains("reported as corrupt"), "{fault}");
    // Heard again it wins, and the stale one copies from it what differs.
    let now = report(&client, &layout, Problem::StaleLayout).await.unwrap();
    assert_eq!((now.held, members(&now)), (held, members(&layout)));
    assert_eq!(slaves[at].has(layout.chunk.id).unwrap().contents, held);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_replica_is_levelled_though_its_chunk_stays_open() {
    let cluster = Cluster::start(quick(2)).await;
    let mut slaves = slaves(&cluster, 2).await;
    let client = cluster.client("a").await;
    let (ino, layout) = written(&client, &slaves, "f").await;
    let held = contents(2, 0xb);
    hold(&slaves, &layout, held, false);
    commit(&client, ino, &layout, held, Mode::Exclusive).await.unwrap();
    // The writer is idle and keeps the chunk open while a member loses power. The other one is away when it returns.
    slaves[0].kill().await;
    slaves[1].kill().await;
    slaves[0].boot = BootId(2);
    slaves[0].hold(&layout, contents(1, 0xa), true);
    slaves[0].connect(&cluster).await.unwrap();
    let away = Problem::Failed(slaves[1].node);
    assert_eq!(report(&client, &layout, away).await.unwrap_err().code, Code::Unavailable);
    slaves[1].connect(&cluster).await.unwrap();
    eventually("the stale replica has what was held", async || {
        (slaves[0].has(layout.chunk.id).unwrap().contents == held).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_during_an_election_is_not_taken_back_by_it() {
    let config = quick(2);
    let nodes = godrive_master::config::Nodes { seal_deadline_ms: 1_000, ..config.nodes };
    let cluster = Cluster::start(godrive_master::Config { nodes, ..config }).await;
    let mut slaves = slaves(&cluster, 3).await;
    let client = cluster.client("a").await;
    let (ino, layout) = written(&client, &slaves, "f").await;
    // Both have the next version, its commit is on its way; one loses it with its power, the other is slow.
    let next = contents(2, 0xb);
    hold(&slaves, &layout, next, false);
    let (stale, slow) = (layout.members[0].node, layout.members[1].node);
    let at = slaves.iter().position(|slave| slave.node == stale).unwrap();
    lose_power(&cluster, &mut slaves[at], &layout, contents(1, 0xa)).await;
    by_node(&slaves, slow).silent(true);
    let during = async {
        eventually("the members are being sealed", async || {
            let log = by_node(&slaves, stale).store.log.lock().unwrap();
            log.iter().any(|line| line.starts_with("seal")).then_some(())
        })
        .await;
        commit(&client, ino, &layout, next, Mode::Exclusive).await
    };
    let (elected, committed) = tokio::join!(report(&client, &layout, Problem::Failed(slow)), during);
    committed.unwrap();
    assert_eq!(elected.unwrap_err().code, Code::Unavailable);
    by_node(&slaves, slow).silent(false);
    let now = report(&client, &layout, Problem::StaleLayout).await.unwrap();
    assert_eq!(now.held, next);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_was_given_up_while_the_master_was_down_leaves_no_chunk_open() {
    let mut cluster = Cluster::start(quick(1)).await;
    let mut slaves = slaves(&cluster, 1).await;
    let (mut one, mut two) = (cluster.client("one").await, cluster.client("two").await);
    let (ino, _) = written(&one, &slaves, "f").await;
    // A create whose answer is lost.
    let header = frame::RequestHeader { sequence: 100, ..one.header() };
    let lost = one.call_with::<Create>(header.clone(), &create("g")).await.unwrap().body;
    cluster.restart().await;
    slaves[0].connect(&cluster).await.unwrap();
    for client in [&mut one, &mut two] {
        client.reconnect(&cluster).await;
        let nothing = ResumeRequest { exclusive: vec![], open: vec![], last: true };
        client.call::<Resume>(&nothing).await.unwrap();
    }
    let acquired = two.acquire(ino, Mode::Exclusive).await.unwrap();
    assert!(acquired.views[0].attr.trim_pending, "a commit of it may have been lost");
    let opened = two.mutate::<OpenChunks>(&OpenChunksRequest { ino, indexes: vec![0] }).await.unwrap();
    assert_eq!(opened[0].held, contents(1, 0xa));
    // The repeated one owns its file; the chunk placed for it is gone, and it is not told to write there.
    let again = one.call_with::<Create>(header, &create("g")).await.unwrap().body;
    assert_eq!(again.entry.attr.ino, lost.entry.attr.ino);
    assert_eq!((again.entry.lease.unwrap().mode, again.layout), (Mode::Exclusive, None));
    let open = OpenChunksRequest { ino: again.entry.attr.ino, indexes: vec![0] };
    let opened = one.mutate::<OpenChunks>(&open).await.unwrap();
    assert_ne!(opened[0].chunk.id, lost.layout.unwrap().chunk.id);
}

/// Its commit may have been lost with the master's power, and no later one names it.
#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_from_before_a_restart_is_not_taken_for_never_written() {
    for restarted in [true, false] {
        let mut cluster = Cluster::start(quick(1)).await;
        let mut slaves = slaves(&cluster, 1).await;
        let (mut one, mut two) = (cluster.client("one").await, cluster.client("two").await);
        let created = one.create("f").await.unwrap();
        let (ino, layout) = (created.entry.attr.ino, created.layout.unwrap());
        let nothing = CommitRequest {
            ino,
            size: Some(4096),
            changes: AttrChanges::default(),
            chunks: vec![],
            trimmed: false,
            sync: true,
            keeps: Mode::Exclusive,
        };
        one.mutate::<Commit>(&nothing).await.unwrap();
        if restarted {
            hold(&slaves, &layout, contents(1, 0xa), true);
            cluster.restart().await;
            slaves[0].connect(&cluster).await.unwrap();
            one.reconnect(&cluster).await;
            two.reconnect(&cluster).await;
            let exclusive = vec![(ino, created.entry.lease.unwrap().id)];
            let claims = ResumeRequest { exclusive, open: vec![ino], last: true };
            assert_eq!(one.call::<Resume>(&claims).await.unwrap().lost, []);
            let nothing = ResumeRequest { exclusive: vec![], open: vec![], last: true };
            two.call::<Resume>(&nothing).await.unwrap();
        }
        one.mutate::<Commit>(&CommitRequest { keeps: Mode::Shared, ..nothing }).await.unwrap();
        let known: Vec<_> = two.acquire(ino, Mode::Exclusive).await.unwrap().layout;
        let held: Vec<Contents> = known.iter().map(|layout| layout.held).collect();
        assert_eq!(held, if restarted { vec![contents(1, 0xa)] } else { vec![] });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_join_failed_is_removed_when_nobody_needs_it() {
    let cluster = Cluster::start(quick(2)).await;
    let mut slaves = slaves(&cluster, 3).await;
    let client = cluster.client("a").await;
    let (ino, layout) = written(&client, &slaves, "f").await;
    commit(&client, ino, &layout, contents(1, 0xa), Mode::Shared).await.unwrap();
    let place = |node| slaves.iter().position(|slave| slave.node == node).unwrap();
    let (source, gone) = (place(layout.members[0].node), place(layout.members[1].node));
    let spare = 3 - source - gone;
    // The third one gets a copy, and then the source does not answer the seal.
    slaves[source].silent(true);
    slaves[gone].kill().await;
    eventually("the copy is made", async || slaves[spare].has(layout.chunk.id)).await;
    slaves[spare].hush();
    eventually("it counts as dead", async || {
        let spare = format!("slave {} ", slaves[spare].node);
        let warnings = cluster.status().await.warnings;
        warnings.iter().any(|warning| warning.contains(&spare) && warning.ends_with("is dead")).then_some(())
    })
    .await;
    slaves[source].silent(false);
    slaves[gone].connect(&cluster).await.unwrap();
    eventually("the chunk has its members again", async || {
        let now = report(&client, &layout, Problem::StaleLayout).await.ok()?;
        (now.epoch > layout.epoch && members(&now) == members(&layout)).then_some(())
    })
    .await;
    eventually("the copy is removed", async || slaves[spare].has(layout.chunk.id).is_none().then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_nodes_are_repaired_and_returning_ones_reconciled() {
    let cluster = Cluster::start(quick(3)).await;
    let mut slaves = slaves(&cluster, 4).await;
    let client = cluster.client("a").await;
    let (ino, layout) = written(&client, &slaves, "f").await;
    commit(&client, ino, &layout, contents(1, 0xa), Mode::Shared).await.unwrap();
    let dead = layout.members[0].node;
    let at = slaves.iter().position(|slave| slave.node == dead).unwrap();
    slaves[at].kill().await;
    let repaired = eventually("the fourth has joined", async || {
        let now = report(&client, &layout, Problem::StaleLayout).await.unwrap();
        (now.members.len() == 3 && !members(&now).contains(&dead)).then_some(now)
    })
    .await;
    assert!(repaired.epoch > layout.epoch);
    // It comes back with a replica that nobody needs, and one that nobody knows.
    let stranger = ReplicaState { chunk: ChunkId(999), ..slaves[at].has(layout.chunk.id).unwrap() };
    slaves[at].store.replicas.lock().unwrap().insert(ChunkId(999), stranger);
    slaves[at].connect(&cluster).await.unwrap();
    eventually("the superseded replica is deleted", async || {
        slaves[at].has(layout.chunk.id).is_none().then_some(())
    })
    .await;
    eventually("the unknown one is quarantined", async || {
        (*slaves[at].store.quarantined.lock().unwrap() == [ChunkId(999)]).then_some(())
    })
    .await;
}

/// A writer made it that did not know yet that the master had lost the record of it with its power.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_knows_is_quarantined_also_when_it_comes_after_the_inventory() {
    let cluster = Cluster::start(quick(1)).await;
    let slaves = slaves(&cluster, 1).await;
    let client = cluster.client("a").await;
    let (_, layout) = written(&client, &slaves, "f").await;
    let (known, gone) = (layout.chunk.id, ChunkId(999));
    let news = [known, gone].map(|chunk| (chunk, Epoch(1), contents(1, 0xa)));
    slaves[0].call::<Heartbeat>(&heartbeat(slaves[0].disk, news.to_vec())).await.unwrap();
    eventually("the unknown one is quarantined", async || {
        (*slaves[0].store.quarantined.lock().unwrap() == [gone]).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_vanished_is_made_again() {
    let cluster = Cluster::start(quick(3)).await;
    let mut slaves = slaves(&cluster, 3).await;
    let client = cluster.client("a").await;
    let (ino, layout) = written(&client, &slaves, "f").await;
    commit(&client, ino, &layout, contents(1, 0xa), Mode::Shared).await.unwrap();
    slaves[0].kill().await;
    slaves[0].store.replicas.lock().unwrap().clear();
    slaves[0].connect(&cluster).await.unwrap();
    eventually("it has the replica again", async || {
        let replica = slaves[0].has(layout.chunk.id)?;
        (replica.contents == contents(1, 0xa) && replica.epoch > layout.epoch).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stable_is_what_all_members_reported() {
    let cluster = Cluster::start(quick(2)).await;
    let slaves = slaves(&cluster, 2).await;
    let client = cluster.client("a").await;
    let (_, layout) = written(&client, &slaves, "f").await;
    let news = vec![(layout.chunk.id, layout.epoch, contents(1, 0xa))];
    slaves[0].call::<Heartbeat>(&heartbeat(slaves[0].disk, news.clone())).await.unwrap();
    let now = report(&client, &layout, Problem::StaleLayout).await.unwrap();
    assert_eq!(now.stable.version, Version(0));
    slaves[1].call::<Heartbeat>(&heartbeat(slaves[1].disk, news)).await.unwrap();
    let now = report(&client, &layout, Problem::StaleLayout).await.unwrap();
    assert_eq!(now.stable, contents(1, 0xa));
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_chunks_are_reclaimed_from_all_members() {
    let cluster = Cluster::start(quick(2)).await;
    let mut slaves = slaves(&cluster, 2).await;
    let client = cluster.client("a").await;
    let (ino, layout) = written(&client, &slaves, "f").await;
    slaves[1].kill().await;
    client.unlink("f").await.unwrap();
    let closed = ReleaseRequest { leases: vec![], closed_orphans: vec![ino] };
    client.call::<Releases>(&closed).await.unwrap();
    eventually("the living one deletes", async || slaves[0].has(layout.chunk.id).is_none().then_some(()))
        .await;
    // The other one still has to: it is remembered, across a connection.
    assert_eq!(cluster.status().await.reclaim_queued, 1);
    slaves[1].connect(&cluster).await.unwrap();
    eventually("the other one deletes, too", async || slaves[1].has(layout.chunk.id).is_none().then_some(()))
        .await;
    eventually("it is forgotten", async || (cluster.status().await.reclaim_queued == 0).then_some(())).await;
    assert_eq!(cluster.status().await.chunks.total, 0);
}

/// It left the epoch while it was away, and the chunk was deleted before it came back.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_chunk_is_known_until_all_have_told_what_they_have() {
    let mut config = quick(2);
    config.nodes.dead_after_ms = 3_000;
    let cluster = Cluster::start(config).await;
    let mut slaves = slaves(&cluster, 3).await;
    let client = cluster.client("a").await;
    let remove = async |name: &str, ino| {
        client.unlink(name).await.unwrap();
        let closed = ReleaseRequest { leases: vec![], closed_orphans: vec![ino] };
        client.call::<Releases>(&closed).await.unwrap();
    };
    let (ino, layout) = written(&client, &slaves, "f").await;
    let at = slaves.iter().position(|slave| slave.node == layout.members[0].node).unwrap();
    let mut away = slaves.remove(at);
    away.kill().await;
    eventually("both others have it", async || {
        slaves
            .iter()
            .all(|slave| slave.has(layout.chunk.id).is_some_and(|r| r.epoch > layout.epoch))
            .then_some(())
    })
    .await;
    remove("f", ino).await;
    let deleted = async |layout: &Layout| {
        let id = layout.chunk.id;
        eventually("both delete it", async || {
            slaves.iter().all(|slave| slave.has(id).is_none()).then_some(())
        })
        .await;
    };
    deleted(&layout).await;
    // It takes two attempts to tell what it has.
    away.register(&cluster).await.unwrap();
    away.kill().await;
    away.register(&cluster).await.unwrap();
    let (ino, later) = written(&client, &slaves, "g").await;
    remove("g", ino).await;
    deleted(&later).await;
    assert_eq!(cluster.status().await.reclaim_queued, 2);
    away.go_on().await.unwrap();
    eventually("the last replica is deleted", async || away.has(layout.chunk.id).is_none().then_some(()))
        .await;
    eventually("they are forgotten", async || (cluster.status().await.reclaim_queued == 0).then_some(()))
        .await;
    assert_eq!(*away.store.quarantined.lock().unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_is_deleted_while_it_is_copied_goes_when_that_has_ended() {
    let cluster = Cluster::start(quick(3)).await;
    let mut slaves = slaves(&cluster, 2).await;
    let client = cluster.client("a").await;
    let remove = async |name: &str, ino| {
        client.unlink(name).await.unwrap();
        let closed = ReleaseRequest { leases: vec![], closed_orphans: vec![ino] };
        client.call::<Releases>(&closed).await.unwrap();
    };
    let (ino, layout) = written(&client, &slaves, "f").await;
    let mut third = Slave::prepare(&cluster);
    let store = third.store.clone();
    let copying = store.copying.lock().await;
    third.connect(&cluster).await.unwrap();
    slaves.push(third);
    eventually("the third one copies", async || slaves[2].has(layout.chunk.id)).await;
    remove("f", ino).await;
    // What is removed after it is forgotten before it.
    let mut tries = 0;
    let (ino, later) = loop {
        let (ino, later) = written(&client, &slaves, &format!("g{tries}")).await;
        // On a busy machine the third one may seem silent; a copy to it would not end.
        if later.members.len() == 3 {
            break (ino, later);
        }
        tries += 1;
        assert!(tries < 100, "the third slave gets nothing");
    };
    remove(&format!("g{tries}"), ino).await;
    eventually("the later one is forgotten", async || {
        let gone = slaves.iter().all(|slave| slave.has(later.chunk.id).is_none());
        (gone && cluster.status().await.reclaim_queued == 1).then_some(())
    })
    .await;
    drop(copying);
    eventually("all replicas are deleted", async || {
        slaves.iter().all(|slave| slave.has(layout.chunk.id).is_none()).then_some(())
    })
    .await;
    eventually("it is forgotten", async || (cluster.status().await.reclaim_queued == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_change_that_was_cut_off_is_finished_after_a_restart() {
    let mut cluster = Cluster::start(quick(3)).await;
    let mut slaves = slaves(&cluster, 3).await;
    let client = cluster.client("a").await;
    let (_, layout) = written(&client, &slaves, "f").await;
    // Sealed, and then nobody answers the rest.
    for slave in &slaves {
        slave.silent(true);
    }
    assert_eq!(report(&client, &layout, Problem::Diverged).await.unwrap_err().code, Code::Unavailable);
    cluster.restart().await;
    for slave in &mut slaves {
        slave.silent(false);
        slave.connect(&cluster).await.unwrap();
    }
    eventually("a new epoch is installed", async || {
        slaves.iter().all(|slave| slave.has(layout.chunk.id).unwrap().epoch > layout.epoch).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_loss_the_newest_common_state_is_taken_up() {
    let mut cluster = Cluster::start(quick(2)).await;
    let mut slaves = slaves(&cluster, 2).await;
    let client = cluster.client("a").await;
    let layout = lose_all_power(&mut cluster, client, &mut slaves, 2).await;
    let client = cluster.client("b").await;
    let now = usable_after_power_loss(&cluster, &client, &layout).await;
    assert_eq!((now.held, now.epoch.restarts()), (contents(1, 0xa), 1));
    // Who is there when nobody has restarted since is told nothing.
    let now = report(&client, &now, Problem::Diverged).await.unwrap();
    assert_eq!(now.epoch.restarts(), 1);
}

/// One that was up all the time and has nothing any more tells as little as one that restarted.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_loss_of_those_whose_disks_did_not_fail_mounts_are_told() {
    let cluster = Cluster::start(quick(3)).await;
    let mut slaves = slaves(&cluster, 3).await;
    let client = cluster.client("a").await;
    let (ino, layout) = written(&client, &slaves, "f").await;
    hold(&slaves, &layout, contents(2, 0xb), false);
    commit(&client, ino, &layout, contents(2, 0xb), Mode::Exclusive).await.unwrap();
    slaves[0].store.replicas.lock().unwrap().clear();
    for slave in &mut slaves[1..] {
        lose_power(&cluster, slave, &layout, contents(1, 0xa)).await;
    }
    let now = report(&client, &layout, Problem::Diverged).await.unwrap();
    assert_eq!((now.held, now.epoch.restarts()), (contents(1, 0xa), 1));
}

/// What the record does not know of yet, and a silent member may have, is not waited for, but not passed over either.
#[tokio::test(flavor = "multi_thread")]
async fn where_only_those_answer_that_lost_power_mounts_are_told() {
    let cluster = Cluster::start(quick(3)).await;
    let mut slaves = slaves(&cluster, 3).await;
    let client = cluster.client("a").await;
    let (ino, layout) = written(&client, &slaves, "f").await;
    commit(&client, ino, &layout, contents(1, 0xa), Mode::Exclusive).await.unwrap();
    hold(&slaves, &layout, contents(2, 0xb), false);
    slaves[0].silent(true);
    for slave in &mut slaves[1..] {
        lose_power(&cluster, slave, &layout, contents(1, 0xa)).await;
    }
    let now = report(&client, &layout, Problem::Failed(slaves[0].node)).await.unwrap();
    assert_eq!((now.held, now.epoch.restarts()), (contents(1, 0xa), 1));
}

/// Everything loses power, and so many replicas come back as they were before the last write, which was held.
async fn lose_all_power(
    cluster: &mut Cluster,
    client: Client,
    slaves: &mut [Slave],
    come_back: usize,
) -> Layout {
    let (ino, layout) = written(&client, slaves, "f").await;
    hold(slaves, &layout, contents(2, 0xb), false);
    commit(&client, ino, &layout, contents(2, 0xb), Mode::Shared).await.unwrap();
    drop(client);
    for slave in &mut *slaves {
        slave.kill().await;
    }
    cluster.restart().await;
    for slave in &mut slaves[..come_back] {
        slave.boot = BootId(2);
        slave.hold(&layout, contents(1, 0xa), true);
        slave.connect(cluster).await.unwrap();
    }
    layout
}

async fn usable_after_power_loss(cluster: &Cluster, client: &Client, layout: &Layout) -> Layout {
    let now = eventually("the chunk is usable", async || {
        let now = report(client, layout, Problem::StaleLayout).await.ok()?;
        (now.epoch > layout.epoch).then_some(now)
    })
    .await;
    let status = cluster.status().await;
    assert!(status.warnings.iter().any(|warning| warning.contains("power loss")), "{:?}", status.warnings);
    now
}

/// A chunk of which nothing was ever stable is, where no member has anything of it, what it was before it was written.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_loss_a_chunk_that_was_never_stable_may_be_empty_again() {
    for left in [0, 1] {
        let mut cluster = Cluster::start(quick(2)).await;
        let mut slaves = slaves(&cluster, 2).await;
        let client = cluster.client("a").await;
        let (ino, layout) = written(&client, &slaves, "f").await;
        commit(&client, ino, &layout, contents(1, 0xa), Mode::Shared).await.unwrap();
        drop(client);
        for slave in &mut slaves {
            slave.kill().await;
        }
        cluster.restart().await;
        for (at, slave) in slaves.iter_mut().enumerate() {
            slave.boot = BootId(2);
            if at >= left {
                slave.store.replicas.lock().unwrap().clear();
            }
            slave.connect(&cluster).await.unwrap();
        }
        let client = cluster.client("b").await;
        let now = eventually("the chunk is usable", async || {
            let now = report(&client, &layout, Problem::StaleLayout).await.ok()?;
            (now.epoch > layout.epoch).then_some(now)
        })
        .await;
        let held = if left == 0 { layout.held } else { contents(1, 0xa) };
        assert_eq!((now.held, now.epoch.restarts()), (held, 1));
        assert_eq!(members(&now).len(), 2);
        assert_eq!(cluster.status().await.chunks.quarantined, 0);
    }
}

/// What only a lost disk had is waited for until people give it up.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_loss_a_member_that_does_not_come_back_is_waited_for_until_it_is_decommissioned() {
    let mut cluster = Cluster::start(quick(3)).await;
    let mut slaves = slaves(&cluster, 3).await;
    let client = cluster.client("a").await;
    let layout = lose_all_power(&mut cluster, client, &mut slaves, 2).await;
    let lost = slaves[2].node;
    let client = cluster.client("b").await;
    let fault = eventually("a round without the third", async || {
        let fault = report(&client, &layout, Problem::Diverged).await.unwrap_err();
        fault.detail.contains("decommission").then_some(fault)
    })
    .await;
    assert_eq!(fault.code, Code::Unavailable, "{fault}");
    let request = IntendRequest { node: lost, disk: None, intention: Intention::Decommission };
    // While it may come back by itself, that it is to go is not that it is lost.
    eventually("it is dead, and given up", async || {
        let intended = cluster.admin().await.call::<Intend>(&request).await.unwrap();
        intended.notes.iter().any(|note| note.contains("given up as lost")).then_some(())
    })
    .await;
    let now = usable_after_power_loss(&cluster, &client, &layout).await;
    assert_eq!((now.held, members(&now).len()), (contents(1, 0xa), 2));
    assert_eq!(now.epoch.restarts(), 1, "a mount that knew of more is to be told");
    eventually("it is forgotten", async || {
        let status = cluster.status().await;
        status.nodes.iter().all(|node| node.node != lost).then_some(())
    })
    .await;
}

/// A slave that lives on without its disk confirms no deletion.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_trash_is_emptied_early_also_while_the_disk_of_a_slave_is_out_of_service() {
    let mut config = quick(2);
    config.trash = godrive_master::config::Trash { min_age_s: 0, ..config.trash };
    let cluster = Cluster::start(config).await;
    let slaves = slaves(&cluster, 2).await;
    let client = cluster.client("a").await;
    let mut removed = Vec::new();
    for file in ["f", "g"] {
        let (ino, layout) = written(&client, &slaves, file).await;
        commit(&client, ino, &layout, contents(1, 0xa), Mode::Shared).await.unwrap();
        removed.push((ino, layout.chunk.id));
        client.unlink(file).await.unwrap();
        client.call::<Releases>(&ReleaseRequest { leases: vec![], closed_orphans: vec![ino] }).await.unwrap();
    }
    let [(gone, chunk), (_, kept)] = removed[..] else { panic!("two files") };
    slaves[1].store.disks.lock().unwrap()[0].health = DiskHealth::Failed;
    let emptied = cluster.admin().await.call::<EmptyTrash>(&vec![gone]).await;
    assert_eq!(emptied.unwrap(), 1);
    eventually("the other one deletes", async || slaves[0].has(chunk).is_none().then_some(())).await;
    slaves[0].store.disks.lock().unwrap()[0].free_bytes = 1 << 30;
    eventually("what is in the trash goes", async || slaves[0].has(kept).is_none().then_some(())).await;
    let decommission = IntendRequest { intention: Intention::Decommission, node: slaves[1].node, disk: None };
    let decommissioned = cluster.admin().await.call::<Intend>(&decommission).await;
    assert!(decommissioned.is_err(), "two replicas are the least");
    let spare = Slave::start(&cluster).await;
    cluster.admin().await.call::<Intend>(&decommission).await.unwrap();
    eventually("it is forgotten, and nobody waits for it", async || {
        let status = cluster.status().await;
        (status.retired == [slaves[1].node] && status.reclaim_queued == 0).then_some(())
    })
    .await;
    drop(spare);
}

/// The disk that has the replica was out of service when its slave confirmed the deletion.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_back_after_its_deletion_was_confirmed_is_deleted_again() {
    let cluster = Cluster::start(quick(2)).await;
    let mut slaves = slaves(&cluster, 2).await;
    let client = cluster.client("a").await;
    let (ino, layout) = written(&client, &slaves, "f").await;
    commit(&client, ino, &layout, contents(1, 0xa), Mode::Shared).await.unwrap();
    let chunk = layout.chunk.id;
    let replica = slaves[0].has(chunk).unwrap();
    slaves[1].kill().await;
    client.unlink("f").await.unwrap();
    client.call::<Releases>(&ReleaseRequest { leases: vec![], closed_orphans: vec![ino] }).await.unwrap();
    cluster.admin().await.call::<EmptyTrash>(&vec![ino]).await.unwrap();
    eventually("it has confirmed", async || slaves[0].has(chunk).is_none().then_some(())).await;
    slaves[0].kill().await;
    slaves[0].store.replicas.lock().unwrap().insert(chunk, replica);
    slaves[0].connect(&cluster).await.unwrap();
    eventually("it is deleted again", async || slaves[0].has(chunk).is_none().then_some(())).await;
    slaves[1].connect(&cluster).await.unwrap();
    eventually("nothing is left", async || {
        let queued = cluster.status().await.reclaim_queued;
        (slaves[1].has(chunk).is_none() && queued == 0).then_some(())
    })
    .await;
}

/// A seal that the disk of the replica cannot answer, though the master has not heard of that yet.
#[tokio::test(flavor = "multi_thread")]
async fn that_a_disk_cannot_be_asked_is_no_word_about_what_it_has() {
    for written_to in [false, true] {
        let cluster = Cluster::start(quick(1)).await;
        let slaves = slaves(&cluster, 1).await;
        let client = cluster.client("a").await;
        let layout = if written_to {
            written(&client, &slaves, "f").await.1
        } else {
            client.create("f").await.unwrap().layout.unwrap()
        };
        *slaves[0].store.lacks_disk.lock().unwrap() = true;
        let outcome = report(&client, &layout, Problem::Diverged).await;
        assert_eq!(outcome.err().map(|fault| fault.code), written_to.then_some(Code::Unavailable));
        assert_eq!(cluster.status().await.chunks.quarantined, 0);
        *slaves[0].store.lacks_disk.lock().unwrap() = false;
        report(&client, &layout, Problem::Diverged).await.unwrap();
    }
}

/// What only a dead slave has to delete gives no room now.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_trash_is_emptied_early_also_while_a_slave_is_dead() {
    let mut config = quick(2);
    config.trash = godrive_master::config::Trash { min_age_s: 0, ..config.trash };
    let cluster = Cluster::start(config).await;
    let mut slaves = slaves(&cluster, 2).await;
    let client = cluster.client("a").await;
    let mut removed = Vec::new();
    for file in ["f", "g"] {
        let (ino, layout) = written(&client, &slaves, file).await;
        commit(&client, ino, &layout, contents(1, 0xa), Mode::Shared).await.unwrap();
        removed.push((ino, layout.chunk.id));
        client.unlink(file).await.unwrap();
        client.call::<Releases>(&ReleaseRequest { leases: vec![], closed_orphans: vec![ino] }).await.unwrap();
    }
    let [(gone, chunk), (_, kept)] = removed[..] else { panic!("two files") };
    slaves[1].kill().await;
    let emptied = cluster.admin().await.call::<EmptyTrash>(&vec![gone]).await;
    assert_eq!(emptied.unwrap(), 1);
    eventually("the living one deletes", async || slaves[0].has(chunk).is_none().then_some(())).await;
    slaves[0].store.disks.lock().unwrap()[0].free_bytes = 1 << 30;
    eventually("what is in the trash goes", async || slaves[0].has(kept).is_none().then_some(())).await;
    assert_eq!(cluster.status().await.reclaim_queued, 2);
    slaves[1].connect(&cluster).await.unwrap();
    eventually("all is deleted", async || (cluster.status().await.reclaim_queued == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inventory_out_of_order_or_without_registration_is_refused() {
    let cluster = Cluster::start(quick(1)).await;
    let slaves = slaves(&cluster, 1).await;
    let client = cluster.client("a").await;
    let (_, layout) = written(&client, &slaves, "f").await;
    let replica = slaves[0].has(layout.chunk.id).unwrap();
    let page =
        InventoryPage { replicas: vec![ReplicaState { chunk: ChunkId(2), ..replica }, replica], last: true };
    assert_eq!(slaves[0].call::<cluster::Inventory>(&page).await.unwrap_err().code, Code::Malformed);
    let page = InventoryPage { replicas: vec![replica], last: true };
    assert_eq!(slaves[0].call::<cluster::Inventory>(&page).await.unwrap_err().code, Code::NotReady);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retried_create_gets_its_layout_again() {
    let cluster = Cluster::start(quick(2)).await;
    let _slaves = slaves(&cluster, 3).await;
    let client = cluster.client("a").await;
    let header = frame::RequestHeader { sequence: 1, ..client.header() };
    let first = client.call_with::<Create>(header.clone(), &create("f")).await.unwrap().body;
    let again = client.call_with::<Create>(header, &create("f")).await.unwrap().body;
    assert_eq!(first.layout.as_ref().unwrap().chunk, again.layout.as_ref().unwrap().chunk);
    assert_eq!(cluster.status().await.chunks.total, 1);
    let range = LayoutRange { first: 0, count: 4 };
    let layout = client.call::<GetLayout>(&LayoutRequest { ino: first.entry.attr.ino, range }).await.unwrap();
    assert_eq!(layout.len(), 1);
    // The same for many; of another client's file, which this one holds no lease on, nothing is told.
    let other = cluster.client("b").await.call::<Create>(&create("g")).await.unwrap().entry.attr.ino;
    let own = first.entry.attr.ino;
    let request = LayoutsRequest { inodes: vec![other, own, Ino(u64::MAX)], range };
    assert_eq!(client.call::<GetLayouts>(&request).await.unwrap(), [(own, layout)]);
}

/// What a member was told and the master forgot with its power would be another epoch the next time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_epoch_is_on_stable_storage_before_its_members_hear_of_it() {
    const A_WHILE: Duration = Duration::from_millis(300);
    let cluster = Cluster::start(quick(2)).await;
    let slaves = slaves(&cluster, 2).await;
    let client = cluster.client("a").await;
    let (_, layout) = written(&client, &slaves, "f").await;
    client.call::<Barrier>(&()).await.unwrap();
    let heard = |word: &str| {
        slaves.iter().any(|slave| slave.store.log.lock().unwrap().iter().any(|entry| entry.starts_with(word)))
    };
    // No sync of the log ends from the first seal on.
    let gate = cluster.gate.clone();
    *slaves[0].store.on_seal.lock().unwrap() = Some(Box::new(move || gate.set_closed(true)));
    cluster.gate.set_closed(true);
    let watch = async {
        tokio::time::sleep(A_WHILE).await;
        assert!(!heard("seal"), "sealed for an epoch that may be lost");
        cluster.gate.set_closed(false);
        eventually("the members are sealed", async || heard("seal").then_some(())).await;
        tokio::time::sleep(A_WHILE).await;
        assert!(!heard("install"), "installed an epoch that may be lost");
        *slaves[0].store.on_seal.lock().unwrap() = None;
        cluster.gate.set_closed(false);
    };
    let (reported, ()) = tokio::join!(report(&client, &layout, Problem::Diverged), watch);
    assert!(reported.unwrap().epoch > layout.epoch && heard("install"));
}
