//! Files with chunks, and what clients ask about them.

use super::slave::{Slave, contents};
use super::{Client, Cluster};
use godrive_proto::data::{ChunkState, Contents, Layout};
use godrive_proto::lease::*;
use godrive_proto::meta::*;
use godrive_proto::*;

pub async fn slaves(cluster: &Cluster, count: usize) -> Vec<Slave> {
    let mut slaves = Vec::new();
    for _ in 0..count {
        slaves.push(Slave::start(cluster).await);
    }
    slaves
}

/// A file with one chunk that every member holds at version 1, committed.
pub async fn written(client: &Client, slaves: &[Slave], file: &str) -> (Ino, Layout) {
    let created = client.create(file).await.unwrap();
    let (ino, layout) = (created.entry.attr.ino, created.layout.unwrap());
    hold(slaves, &layout, contents(1, 0xa), false);
    commit(client, ino, &layout, contents(1, 0xa), Mode::Exclusive).await.unwrap();
    (ino, layout)
}

pub fn hold(slaves: &[Slave], layout: &Layout, contents: Contents, stable: bool) {
    for slave in slaves.iter().filter(|slave| layout.members.iter().any(|member| member.node == slave.node)) {
        slave.hold(layout, contents, stable);
    }
}

pub async fn commit(
    client: &Client,
    ino: Ino,
    layout: &Layout,
    held: Contents,
    keeps: Mode,
) -> Result<Committed, Fault> {
    let chunk = layout.chunk.id;
    let state =
        ChunkState { index: layout.index, chunk, epoch: layout.epoch, held, stable: false, used_bytes: 4096 };
    let request = CommitRequest {
        ino,
        size: Some(4096),
        changes: AttrChanges::default(),
        chunks: vec![state],
        trimmed: false,
        sync: true,
        keeps,
    };
    client.mutate::<Commit>(&request).await
}

pub async fn report(client: &Client, layout: &Layout, problem: Problem) -> Result<Layout, Fault> {
    let request =
        ReportRequest { chunk: layout.chunk.id, epoch: layout.epoch, problem, detail: "a test".into() };
    client.call::<Report>(&request).await
}

pub fn members(layout: &Layout) -> Vec<NodeId> {
    let mut nodes: Vec<_> = layout.members.iter().map(|member| member.node).collect();
    nodes.sort();
    nodes
}

pub fn by_node(slaves: &[Slave], node: NodeId) -> &Slave {
    slaves.iter().find(|slave| slave.node == node).unwrap()
}
