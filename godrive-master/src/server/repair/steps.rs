//! The planner's steps, done: copies, members that leave, deletions.

use super::{Ended, Joining, PAUSE, Progress};
use crate::core::placement::Candidate;
use crate::core::repair::{Reason, Step};
use crate::server::epoch::{Cause, change, command};
use crate::server::shared::Shared;
use godrive_proto::cluster::{Copy, CopyRequest, Delete, DeleteRequest};
use godrive_proto::frame::Class;
use godrive_proto::{ChunkId, Code, Epoch, Fault, NodeId};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;

/// A whole chunk within this: at least a few MiB/s.
const COPY_DEADLINE: Duration = Duration::from_secs(60);
const DELETE_DEADLINE: Duration = Duration::from_secs(30);

/// The receiver of the reports lives as long as the master.
pub fn start(shared: &Arc<Shared>, progress: &mut Progress, step: Step, report: &UnboundedSender<Ended>) {
    let (shared, report) = (shared.clone(), report.clone());
    match step {
        Step::Join { chunk, source, target, bytes, reason } => {
            begin_join(&shared, progress, chunk, Joining { nodes: [source, target.node], bytes, reason });
            tokio::spawn(async move {
                let node = target.node;
                let result = join(&shared, chunk, source, target).await;
                match &result {
                    Ok(()) => tracing::info!(%chunk, %node, ?reason, "copied: the node has joined"),
                    Err(fault) => {
                        tracing::warn!(%chunk, %node, ?reason, "the copy failed, it is planned again: {fault}")
                    }
                }
                let _ = report.send(Ended::Join(chunk, result.is_ok()));
            });
        }
        Step::Leave { chunk, node } => {
            progress.leaves.insert(chunk);
            tokio::spawn(async move {
                match leave(&shared, chunk, node).await {
                    Ok(()) => tracing::info!(%chunk, %node, "the node has left the chunk"),
                    Err(fault) => {
                        tracing::warn!(%chunk, %node, "it does not leave yet, it is planned again: {fault}");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                let _ = report.send(Ended::Leave(chunk));
            });
        }
        Step::Delete { node, chunks } => {
            progress.deleting.insert(node);
            tokio::spawn(async move {
                let result = delete(&shared, node, &chunks).await;
                if let Err(fault) = &result {
                    tracing::warn!(%node, chunks = chunks.len(), "deletion failed, it is repeated: {fault}");
                    tokio::time::sleep(PAUSE).await;
                }
                let _ = report.send(Ended::Deleted(node, chunks, result.is_ok()));
            });
        }
    }
}

/// Charges the copy to its nodes, and a disk that is to be relieved by it with what will be free there.
fn begin_join(shared: &Arc<Shared>, progress: &mut Progress, chunk: ChunkId, joining: Joining) {
    let now = shared.clock.now();
    if joining.reason != Reason::Endangered {
        joining.nodes.iter().for_each(|node| progress.budgets.take(now, *node, joining.bytes));
    }
    if let Reason::Rebalance { from } = joining.reason {
        progress.balance.moved(now, from, joining.bytes);
    }
    progress.joins.insert(chunk, joining);
    shared.with(|hub, _| hub.repairs.active(progress.joins.values()));
}

/// Copies while writes go on, then makes the copy a member; the epoch change copies what was written meanwhile.
async fn join(shared: &Arc<Shared>, chunk: ChunkId, source: NodeId, target: Candidate) -> Result<(), Fault> {
    let found = shared.with(|hub, _| {
        let known = hub.state.chunk(chunk)?;
        let Some(known) = known else { return Err(Fault::new(Code::NoChunk, "it was deleted")) };
        let from = known.members.iter().find(|member| member.node == source).copied();
        let link = hub.slaves.links.get(&target.node).map(|link| link.connection.clone());
        match (from, hub.member(&target), link) {
            (Some(mut from), Some(to), Some(link)) => {
                from.address = hub.nodes.get(source).map_or(from.address, |node| node.address);
                Ok((known, from, to, link))
            }
            _ => Err(Fault::new(Code::Unreachable, "source or target is gone")),
        }
    });
    let (known, from, to, connection) = found?;
    if known.held.version.0 > 0 {
        let request = CopyRequest {
            chunk,
            chunk_bytes: known.chunk_bytes,
            disk: to.disk,
            source: from,
            expect: None,
            epoch: known.epoch,
            keep_aside: false,
            into_reserve: false,
        };
        if let Err(fault) = command::<Copy>(shared, connection, request, Class::Repair, COPY_DEADLINE).await {
            shared.with(|hub, _| hub.may_have_copied(chunk, from, to, &fault))?;
            return Err(fault);
        }
    }
    let changed = change(shared, chunk, Cause::Join(target)).await;
    // The change may have been one that was under way for another reason.
    let joined = shared.with(|hub, _| {
        let joined = match hub.state.chunk(chunk)? {
            Some(known) => {
                known.members.iter().any(|member| (member.node, member.disk) == (to.node, to.disk))
            }
            None => hub.state.deleted_chunk(chunk)?.is_none(),
        };
        // A copy beside a member of the same node is the slave's own to remove.
        if !joined && known.members.iter().all(|member| member.node != to.node) {
            hub.slaves.copied(chunk, to);
        }
        Ok::<_, Fault>(joined)
    })?;
    changed?;
    if joined { Ok(()) } else { Err(Fault::new(Code::Busy, "another epoch change came first")) }
}

/// An epoch without the member, if there are enough others.
async fn leave(shared: &Arc<Shared>, chunk: ChunkId, node: NodeId) -> Result<(), Fault> {
    change(shared, chunk, Cause::Leave(node)).await?;
    let stays = shared.with(|hub, _| {
        let known = hub.state.chunk(chunk)?;
        Ok::<_, Fault>(known.is_some_and(|known| known.members.iter().any(|member| member.node == node)))
    })?;
    // The change may have been one that was under way for another reason, or too many did not answer.
    if stays {
        Err(Fault::new(Code::Busy, "too few others are left, or another epoch change came first"))
    } else {
        Ok(())
    }
}

async fn delete(shared: &Arc<Shared>, node: NodeId, chunks: &[(ChunkId, Epoch)]) -> Result<(), Fault> {
    let link = shared.with(|hub, _| hub.slaves.links.get(&node).map(|link| link.connection.clone()));
    let Some(connection) = link else {
        return Err(Fault::new(Code::Unreachable, "it is not connected"));
    };
    let request = DeleteRequest { chunks: chunks.to_vec() };
    command::<Delete>(shared, connection, request, Class::Repair, DELETE_DEADLINE).await
}
