//! Slaves with several disks: a replica is not where the record says.

use super::*;
use common::slave::disk_state;

/// One slave with two disks and a chunk of the second epoch on one of them: where it is, and the other disk.
async fn on_one_of_two_disks(cluster: &Cluster, client: &Client) -> (Slave, Layout, DiskId) {
    let mut slave = Slave::prepare(cluster);
    let second = DiskId(slave.disk.0 + 1);
    slave.store.disks.lock().unwrap().push(disk_state(second));
    slave.connect(cluster).await.unwrap();
    let mut slaves = vec![slave];
    let (_, layout) = written(client, &slaves, "f").await;
    let layout = report(client, &layout, Problem::Diverged).await.unwrap();
    assert_eq!(layout.epoch, Epoch(2));
    let slave = slaves.remove(0);
    let other = if layout.members[0].disk == second { slave.disk } else { second };
    (slave, layout, other)
}

/// The slave died between the record that its replica has moved to another disk and the message that says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_move_to_another_disk_was_cut_off_counts_where_it_is() {
    let cluster = Cluster::start(quick(1)).await;
    let client = cluster.client("a").await;
    let (mut slave, layout, other) = on_one_of_two_disks(&cluster, &client).await;
    let id = layout.chunk.id;
    slave.kill().await;
    slave.boot = BootId(2);
    let before = ReplicaState { disk: other, epoch: Epoch(1), ..slave.has(id).unwrap() };
    slave.store.replicas.lock().unwrap().insert(id, before);
    slave.connect(&cluster).await.unwrap();
    let now = eventually("it is a member", async || {
        report(&client, &layout, Problem::StaleLayout).await.ok().filter(|now| now.epoch > layout.epoch)
    })
    .await;
    assert_eq!((now.held, now.members[0].disk), (contents(1, 0xa), other));
    assert_eq!(slave.has(id).unwrap().epoch, now.epoch);
}

/// What was acknowledged on the disk of the record may be more than the record knows, and more than is elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_stands_in_for_a_replica_whose_disk_failed_nor_an_unfinished_copy_for_any() {
    for (epoch, failed) in [(0, true), (1, true), (0, false)] {
        let cluster = Cluster::start(quick(1)).await;
        let client = cluster.client("a").await;
        let (mut slave, layout, other) = on_one_of_two_disks(&cluster, &client).await;
        let id = layout.chunk.id;
        slave.kill().await;
        let copy = ReplicaState { disk: other, epoch: Epoch(epoch), ..slave.has(id).unwrap() };
        slave.store.replicas.lock().unwrap().insert(id, copy);
        for disk in slave.store.disks.lock().unwrap().iter_mut().filter(|disk| disk.disk != other) {
            disk.health = if failed { DiskHealth::Failed } else { DiskHealth::Healthy };
        }
        slave.connect(&cluster).await.unwrap();
        let fault = report(&client, &layout, Problem::Diverged).await.unwrap_err();
        assert_eq!(fault.code, Code::Quarantined, "epoch {epoch}, failed: {failed}: {fault}");
    }
}

/// There is nothing to copy, and nobody to copy it from.
#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_was_never_written_finds_another_place_where_its_disk_failed() {
    let cluster = Cluster::start(quick(1)).await;
    let client = cluster.client("a").await;
    let mut slave = Slave::prepare(&cluster);
    let second = DiskId(slave.disk.0 + 1);
    slave.store.disks.lock().unwrap().push(disk_state(second));
    slave.connect(&cluster).await.unwrap();
    let layout = client.create("f").await.unwrap().layout.unwrap();
    let failed = layout.members[0].disk;
    slave.kill().await;
    for disk in slave.store.disks.lock().unwrap().iter_mut().filter(|disk| disk.disk == failed) {
        disk.health = DiskHealth::Failed;
    }
    slave.connect(&cluster).await.unwrap();
    let now = report(&client, &layout, Problem::Failed(slave.node)).await.unwrap();
    assert_eq!((now.members.len(), now.held.version), (1, Version(0)));
    assert_ne!(now.members[0].disk, failed);
}
