//! Drained and decommissioned slaves, members too many, failed disks, balance: replicas that move, with slaves that
//! only pretend to store.

#![allow(clippy::disallowed_methods, reason = "tests on the real machine take its time")]

mod common;

use common::chunks::*;
use common::slave::{Slave, disk_state};
use common::{Client, Cluster, eventually, quick};
use godrive_master::Config;
use godrive_proto::admin::{Intend, IntendRequest, Intended, Intention, Status};
use godrive_proto::cluster::{DiskHealth, NodeStatus};
use godrive_proto::data::{ChunkState, Layout};
use godrive_proto::lease::*;
use godrive_proto::meta::*;
use godrive_proto::*;

async fn intend(
    cluster: &Cluster,
    intention: Intention,
    node: NodeId,
    disk: Option<DiskId>,
) -> Result<Intended, Fault> {
    cluster.admin().await.call::<Intend>(&IntendRequest { node, disk, intention }).await
}

async fn now(client: &Client, layout: &Layout) -> Layout {
    report(client, layout, Problem::StaleLayout).await.unwrap()
}

/// Files with a chunk each that no writer has open.
async fn files(client: &Client, slaves: &[Slave], count: usize) -> Vec<Layout> {
    let mut layouts = Vec::new();
    for at in 0..count {
        let (ino, layout) = written(client, slaves, &format!("f{at}")).await;
        commit(client, ino, &layout, common::slave::contents(1, 0xa), Mode::Shared).await.unwrap();
        layouts.push(layout);
    }
    layouts
}

fn status_of(status: &Status, node: NodeId) -> &NodeStatus {
    status.nodes.iter().find(|known| known.node == node).unwrap()
}

fn replicas_at(slave: &Slave, layouts: &[Layout]) -> usize {
    layouts.iter().filter(|layout| slave.has(layout.chunk.id).is_some()).count()
}

/// Every chunk has so many members, all of them with its contents, and nobody else has a replica.
async fn check_whole(client: &Client, slaves: &[Slave], layouts: &[Layout], members_each: usize) {
    for layout in layouts {
        let now = now(client, layout).await;
        assert_eq!(now.members.len(), members_each, "{now:?}");
        for slave in slaves {
            let replica = slave.has(layout.chunk.id);
            let is_member = members(&now).contains(&slave.node);
            assert_eq!(replica.is_some(), is_member, "{now:?} at {}", slave.node);
            let right =
                |replica: cluster::ReplicaState| (replica.contents, replica.epoch) == (now.held, now.epoch);
            assert!(replica.is_none_or(right), "{replica:?} is not {now:?}");
        }
    }
}

/// On three slaves, two replicas of each.
async fn six_files() -> (Cluster, Vec<Slave>, Client, Vec<Layout>) {
    let cluster = Cluster::start(quick(2)).await;
    let slaves = slaves(&cluster, 3).await;
    let client = cluster.client("a").await;
    let layouts = files(&client, &slaves, 6).await;
    (cluster, slaves, client, layouts)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_slave_is_emptied_and_no_chunk_misses_a_replica_meanwhile() {
    let mut cluster = Cluster::start(quick(2)).await;
    let mut slaves = slaves(&cluster, 3).await;
    let client = cluster.client("a").await;
    let layouts = files(&client, &slaves, 12).await;
    let drained = slaves[0].node;
    assert!(replicas_at(&slaves[0], &layouts) > 0);
    assert_eq!(intend(&cluster, Intention::Drain, drained, None).await.unwrap().notes, Vec::<String>::new());
    eventually("nothing is left there", async || {
        for layout in &layouts {
            assert!(now(&client, layout).await.members.len() >= 2, "a replica is missing");
        }
        let status = cluster.status().await;
        assert_eq!((status.chunks.under_replicated, status.chunks.unavailable), (0, 0));
        let node = status_of(&status, drained);
        assert_eq!(node.intent, "draining");
        (node.to_move == 0 && node.replicas == 0 && replicas_at(&slaves[0], &layouts) == 0).then_some(())
    })
    .await;
    check_whole(&client, &slaves, &layouts, 2).await;
    let status = cluster.status().await;
    assert!(status.drain.done > 0 && status.drain.bytes > 0, "{status:?}");
    assert_eq!((status.drain.queued, status.drain.active, status.repair.done), (0, 0, 0));
    let (_, layout) = written(&client, &slaves, "new").await;
    assert!(!members(&layout).contains(&drained), "nothing new goes there");
    // It is remembered.
    drop(client);
    cluster.restart().await;
    for slave in &mut slaves {
        slave.connect(&cluster).await.unwrap();
    }
    let status = cluster.status().await;
    let node = status_of(&status, drained);
    assert!(node.intent == "draining" && node.places[0].draining, "{node:?}");
    intend(&cluster, Intention::Undrain, drained, None).await.unwrap();
    let client = cluster.client("b").await;
    let after = files_named(&client, &slaves, "after", 3).await;
    assert!(after.iter().any(|layout| members(layout).contains(&drained)), "it serves as before");
}

async fn files_named(client: &Client, slaves: &[Slave], stem: &str, count: usize) -> Vec<Layout> {
    let mut layouts = Vec::new();
    for at in 0..count {
        layouts.push(written(client, slaves, &format!("{stem}{at}")).await.1);
    }
    layouts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_would_end_all_writing_is_refused() {
    let cluster = Cluster::start(quick(2)).await;
    let slaves = slaves(&cluster, 2).await;
    let fault = intend(&cluster, Intention::Drain, slaves[0].node, None).await.unwrap_err();
    assert!(fault.code == Code::Invalid && fault.detail.contains("add a slave first"), "{fault}");
    let fault = intend(&cluster, Intention::Drain, NodeId(4711), None).await.unwrap_err();
    assert_eq!(fault.code, Code::NotFound);
    let client = cluster.client("a").await;
    let request = IntendRequest { node: slaves[0].node, disk: None, intention: Intention::Undrain };
    assert_eq!(
        client.call::<Intend>(&request).await.unwrap_err().code,
        Code::Forbidden,
        "not an administrator"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_without_a_place_to_go_waits_and_says_so() {
    let cluster = Cluster::start(Config { min_replicas: Some(1), ..quick(2) }).await;
    let mut slaves = slaves(&cluster, 2).await;
    let client = cluster.client("a").await;
    let layouts = files(&client, &slaves, 3).await;
    let notes = intend(&cluster, Intention::Drain, slaves[0].node, None).await.unwrap().notes;
    assert!(notes[0].contains("until there is another slave"), "{notes:?}");
    let status = cluster.status().await;
    assert!(status.warnings.iter().any(|warning| warning.contains("it cannot all move")), "{status:?}");
    assert_eq!((status_of(&status, slaves[0].node).to_move, status.drain.queued), (3, 3));
    slaves.push(Slave::start(&cluster).await);
    eventually("the new slave has it all", async || {
        (replicas_at(&slaves[0], &layouts) == 0 && replicas_at(&slaves[2], &layouts) == 3).then_some(())
    })
    .await;
    check_whole(&client, &slaves, &layouts, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decommissioned_slave_is_emptied_forgotten_and_refused_until_it_is_taken_back() {
    let mut cluster = Cluster::start(quick(2)).await;
    let mut slaves = slaves(&cluster, 3).await;
    let client = cluster.client("a").await;
    let layouts = files(&client, &slaves, 6).await;
    let gone = slaves[0].node;
    intend(&cluster, Intention::Decommission, gone, None).await.unwrap();
    let fault = intend(&cluster, Intention::Decommission, slaves[1].node, None).await.unwrap_err();
    assert!(fault.code == Code::Invalid && fault.detail.contains("min_replicas"), "{fault}");
    eventually("it is forgotten", async || (cluster.status().await.retired == [gone]).then_some(())).await;
    assert_eq!(replicas_at(&slaves[0], &layouts), 0, "it was emptied first");
    check_whole(&client, &slaves, &layouts, 2).await;
    let status = cluster.status().await;
    assert!(status.nodes.iter().all(|node| node.node != gone), "{status:?}");
    for restarted in [false, true] {
        if restarted {
            cluster.restart().await;
            for slave in &mut slaves[1..] {
                slave.connect(&cluster).await.unwrap();
            }
        }
        let fault = slaves[0].connect(&cluster).await.unwrap_err();
        assert!(fault.code == Code::Forbidden && fault.detail.contains("godrive recommission"), "{fault}");
        // Nor do its disks come back in another slave.
        let mut other = Slave::prepare(&cluster);
        other.disk = slaves[0].disk;
        *other.store.disks.lock().unwrap() = vec![disk_state(other.disk)];
        let fault = other.connect(&cluster).await.unwrap_err();
        assert!(fault.code == Code::Forbidden && fault.detail.contains("an empty directory"), "{fault}");
    }
    intend(&cluster, Intention::Recommission, gone, None).await.unwrap();
    slaves[0].connect(&cluster).await.unwrap();
    let status = cluster.status().await;
    assert_eq!((status_of(&status, gone).intent.as_str(), status.retired.len()), ("", 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_gone_can_be_decommissioned() {
    let (cluster, mut slaves, client, layouts) = six_files().await;
    let gone = slaves[0].node;
    slaves[0].kill().await;
    // Of what is deleted now, it will never confirm that it is gone there.
    for at in 0..6 {
        client.unlink(&format!("f{at}")).await.unwrap();
    }
    assert!(layouts.iter().any(|layout| members(layout).contains(&gone)));
    intend(&cluster, Intention::Decommission, gone, None).await.unwrap();
    eventually("it is forgotten, and so are its replicas", async || {
        let status = cluster.status().await;
        (status.retired == [gone] && status.reclaim_queued == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_machine_that_was_decommissioned_once_had_can_be_deleted() {
    let (cluster, mut slaves, client, layouts) = six_files().await;
    let gone = slaves[0].node;
    slaves[0].kill().await;
    eventually("it was replaced", async || {
        for layout in &layouts {
            let members = members(&now(&client, layout).await);
            if members.contains(&gone) || members.len() != 2 {
                return None;
            }
        }
        Some(())
    })
    .await;
    intend(&cluster, Intention::Decommission, gone, None).await.unwrap();
    let retired = async || (cluster.status().await.retired == [gone]).then_some(());
    eventually("it is forgotten", retired).await;
    for at in 0..6 {
        client.unlink(&format!("f{at}")).await.unwrap();
    }
    let reclaimed = async || (cluster.status().await.reclaim_queued == 0).then_some(());
    eventually("nobody waits for it", reclaimed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_after_it_was_replaced_leaves_no_surplus() {
    let (cluster, mut slaves, client, layouts) = six_files().await;
    // It says nothing but answers: chunks with only one more are at risk, and it stays a member beside the third.
    slaves[0].hush();
    eventually("it was replaced", async || {
        let shared = layouts.iter().filter(|layout| members(layout).contains(&slaves[0].node));
        for layout in shared {
            if now(&client, layout).await.epoch == layout.epoch {
                return None;
            }
        }
        Some(())
    })
    .await;
    slaves[0].connect(&cluster).await.unwrap();
    eventually("two members each", async || {
        for layout in &layouts {
            let holders = slaves.iter().filter(|slave| slave.has(layout.chunk.id).is_some()).count();
            if now(&client, layout).await.members.len() != 2 || holders != 2 {
                return None;
            }
        }
        Some(())
    })
    .await;
    check_whole(&client, &slaves, &layouts, 2).await;
}

async fn with_two_disks(cluster: &Cluster) -> Vec<Slave> {
    let mut slaves: Vec<Slave> = Vec::new();
    for _ in 0..3 {
        let mut slave = Slave::prepare(cluster);
        let second = DiskId(slave.disk.0 + 1);
        slave.store.disks.lock().unwrap().push(disk_state(second));
        slave.connect(cluster).await.unwrap();
        slaves.push(slave);
    }
    slaves
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_disk_is_shown_and_replaced_and_its_slave_serves_on() {
    let cluster = Cluster::start(quick(2)).await;
    let slaves = with_two_disks(&cluster).await;
    let client = cluster.client("a").await;
    let layouts = files(&client, &slaves, 12).await;
    let (node, failed) = (slaves[0].node, slaves[0].disk);
    let on = |layout: &Layout, disk: DiskId| layout.members.iter().any(|member| member.disk == disk);
    let other = DiskId(failed.0 + 1);
    assert!(
        layouts.iter().any(|layout| on(layout, failed)) && layouts.iter().any(|layout| on(layout, other))
    );
    slaves[0].store.disks.lock().unwrap()[0].health = DiskHealth::Failed;
    // What was on it cannot be read there any more.
    slaves[0].store.replicas.lock().unwrap().retain(|_, replica| replica.disk != failed);
    let status = eventually("its replicas are made anew", async || {
        let status = cluster.status().await;
        let left = status_of(&status, node).places.iter().find(|place| place.disk == failed)?.replicas;
        (left == 0 && status.chunks.healthy == 12 && status.repair.done > 0).then_some(status)
    })
    .await;
    let shown = status_of(&status, node);
    assert_eq!((shown.state.as_str(), shown.disks[0].health), ("alive", DiskHealth::Failed));
    let warned = |warning: &String| warning.contains(&format!("disk {failed} of slave {node} has failed"));
    assert!(status.warnings.iter().any(warned), "{:?}", status.warnings);
    for layout in &layouts {
        let now = now(&client, layout).await;
        assert!(now.members.len() == 2 && !on(&now, failed), "{now:?}");
        if on(layout, other) {
            assert_eq!((now.epoch, &now.members), (layout.epoch, &layout.members), "it was not touched");
        }
    }
    // New data goes to the disk that is left.
    let new = files_named(&client, &slaves, "new", 6).await;
    assert!(new.iter().any(|layout| on(layout, other)) && !new.iter().any(|layout| on(layout, failed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_disk_is_emptied_and_the_other_disk_stays() {
    let cluster = Cluster::start(quick(2)).await;
    let slaves = with_two_disks(&cluster).await;
    let client = cluster.client("a").await;
    let layouts = files(&client, &slaves, 12).await;
    let (node, drained) = (slaves[0].node, slaves[0].disk);
    let before = replicas_at(&slaves[0], &layouts);
    intend(&cluster, Intention::Drain, node, Some(drained)).await.unwrap();
    let status = eventually("the disk is empty", async || {
        let status = cluster.status().await;
        let here = |disk: DiskId, state: &cluster::ReplicaState| state.disk == disk;
        let left = slaves[0].store.replicas.lock().unwrap().values().filter(|r| here(drained, r)).count();
        (status_of(&status, node).to_move == 0 && left == 0).then_some(status)
    })
    .await;
    check_whole(&client, &slaves, &layouts, 2).await;
    let places = &status_of(&status, node).places;
    assert_eq!(places.iter().map(|place| place.draining).collect::<Vec<_>>(), [true, false]);
    let after = replicas_at(&slaves[0], &layouts);
    assert!(after > 0 && after < before, "{after} of {before} are left, on the other disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disks_give_to_empty_ones_and_nothing_comes_back() {
    let cluster = Cluster::start(quick(1)).await;
    let mut slaves = slaves(&cluster, 1).await;
    let client = cluster.client("a").await;
    let layouts = files(&client, &slaves, 8).await;
    slaves[0].store.disks.lock().unwrap()[0].free_bytes = 1 << 36;
    slaves.push(Slave::start(&cluster).await);
    let status = eventually("the empty one has them", async || {
        let status = cluster.status().await;
        let moved = replicas_at(&slaves[1], &layouts) == 8 && replicas_at(&slaves[0], &layouts) == 0;
        (moved && status.rebalance.done == 8 && status.rebalance.active == 0).then_some(status)
    })
    .await;
    check_whole(&client, &slaves, &layouts, 1).await;
    assert_eq!((status.rebalance.queued, status.repair.done, status.drain.done), (0, 0, 0));
}

/// A file with a whole chunk of 1 MiB.
async fn large(client: &Client, slaves: &[Slave], file: &str) -> Layout {
    let (ino, layout) = written(client, slaves, file).await;
    let held = common::slave::contents(1, 0xa);
    let (index, chunk, epoch) = (layout.index, layout.chunk.id, layout.epoch);
    let state = ChunkState { index, chunk, epoch, held, stable: false, used_bytes: 1 << 20 };
    let request = CommitRequest {
        ino,
        size: Some(1 << 20),
        changes: AttrChanges::default(),
        chunks: vec![state],
        trimmed: false,
        sync: true,
        keeps: Mode::Shared,
    };
    client.mutate::<Commit>(&request).await.unwrap();
    layout
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_keep_to_the_rate_except_of_what_is_endangered() {
    let mut config = quick(2);
    config.nodes.repair_bytes_per_s = 1 << 18;
    let cluster = Cluster::start(Config { min_replicas: Some(1), ..config }).await;
    let mut slaves = slaves(&cluster, 2).await;
    let client = cluster.client("a").await;
    let mut layouts = Vec::new();
    for at in 0..3 {
        layouts.push(large(&client, &slaves, &format!("f{at}")).await);
    }
    let began = std::time::Instant::now();
    intend(&cluster, Intention::Drain, slaves[0].node, None).await.unwrap();
    slaves.push(Slave::start(&cluster).await);
    eventually("it is drained", async || (cluster.status().await.drain.done == 3).then_some(())).await;
    // A quarter of one was saved up. What is missing of the first and the second, and then the third may begin.
    assert!(began.elapsed().as_millis() >= 6900, "{:?}", began.elapsed());
    eventually("it has left", async || (replicas_at(&slaves[0], &layouts) == 0).then_some(())).await;
    // One replica each is left. At the rate it would take four seconds for each of them.
    slaves[2].kill().await;
    intend(&cluster, Intention::Undrain, slaves[0].node, None).await.unwrap();
    let began = std::time::Instant::now();
    eventually("all are whole", async || (cluster.status().await.chunks.healthy == 3).then_some(())).await;
    assert!(began.elapsed().as_millis() < 6000, "they were held up: {:?}", began.elapsed());
}
