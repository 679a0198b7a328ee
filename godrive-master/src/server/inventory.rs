//! A slave's inventory against the record: what is missing, outdated, left over or unknown.

use super::hub::{Hub, Link};
use super::requests::Context;
use super::shared::Shared;
use super::slaves::Inventory;
use crate::core::repair::Worklist;
use crate::core::state::values::Chunk;
use godrive_proto::cluster::*;
use godrive_proto::frame::{Class, RequestHeader};
use godrive_proto::{ChunkId, Code, Fault, NodeId};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Replicas in one page of an inventory, and those looked at under one lock.
const MAX_PAGE: usize = 16_384;
const SLICE: usize = 512;
const QUARANTINE_DEADLINE: Duration = Duration::from_secs(10);

/// What one page of an inventory asks for.
#[derive(Default)]
struct Findings {
    unknown: Vec<ChunkId>,
    install: Vec<InstallRequest>,
    settle: Vec<ChunkId>,
}

pub async fn page(context: &Context, page: InventoryPage) -> Result<(), Fault> {
    if page.replicas.len() > MAX_PAGE {
        return Err(Fault::new(
            Code::Malformed,
            format!("an inventory page has at most {MAX_PAGE} replicas"),
        ));
    }
    if !page.replicas.is_sorted_by_key(|replica| replica.chunk) {
        return Err(Fault::new(Code::Malformed, "an inventory is ascending by chunk"));
    }
    let node = context.peer.node;
    let mut findings = Findings::default();
    let mut slices: Vec<&[ReplicaState]> = page.replicas.chunks(SLICE).collect();
    if slices.is_empty() {
        slices.push(&[]);
    }
    for (at, slice) in slices.iter().enumerate() {
        let last = page.last && at + 1 == slices.len();
        context.shared.with(|hub, _| {
            let inventory = hub.slaves.inventories.get(&node).copied();
            let Some(inventory) = inventory.filter(|inventory| inventory.link == context.link.number) else {
                return Err(Fault::new(Code::NotReady, "this connection is not registered: register first"));
            };
            reconcile(hub, node, inventory, slice, last, &mut findings)?;
            if last {
                hub.slaves.inventories.remove(&node);
                hub.nodes.inventoried(node);
                hub.slaves.reclaim = true;
            } else if let Some(replica) = slice.last() {
                hub.slaves.inventories.insert(node, Inventory { after: replica.chunk, ..inventory });
            }
            Ok(())
        })?;
        tokio::task::yield_now().await;
    }
    if page.last {
        tracing::info!(%node, "its inventory is complete");
    }
    let (shared, link) = (context.shared.clone(), context.link.clone());
    tokio::spawn(async move { follow(&shared, node, &link, findings).await });
    Ok(())
}

/// Compares a slice of an inventory with the record, in both directions.
fn reconcile(
    hub: &mut Hub,
    node: NodeId,
    inventory: Inventory,
    slice: &[ReplicaState],
    last: bool,
    findings: &mut Findings,
) -> Result<(), Fault> {
    let mut present = BTreeSet::new();
    for replica in slice {
        present.insert(replica.chunk);
        match hub.state.chunk(replica.chunk)? {
            Some(known) => compare(hub, node, &known, replica, findings),
            // Deleted ones are reclaimed through their queue, also from those that had left before.
            None if hub.state.deleted_chunk(replica.chunk)?.is_some() => {
                let places = hub.slaves.leftovers.entry(replica.chunk).or_default();
                places.insert((node, replica.disk), replica.epoch);
                hub.slaves.reclaim = true;
            }
            None => findings.unknown.push(replica.chunk),
        }
    }
    let end = match slice.last() {
        Some(replica) if !last => replica.chunk,
        _ => inventory.newest,
    };
    let mut after = inventory.after;
    while after < end {
        let page = hub.state.replicas_of(node, after, SLICE)?;
        let Some(furthest) = page.last().copied() else { break };
        for chunk in page.into_iter().filter(|chunk| *chunk <= end && !present.contains(chunk)) {
            let Some(known) = hub.state.chunk(chunk)?.filter(|known| known.held.version.0 > 0) else {
                continue;
            };
            tracing::error!(%chunk, %node, "the node does not have its replica any more: repaired from the others");
            hub.slaves.lost.entry(chunk).or_default().insert(node);
            hub.slaves.endangered.put(chunk, Worklist::UNKNOWN);
            if known.stable.version.0 == 0 {
                // A loss of power may have taken it from all of them: there is nothing to repair it from.
                findings.settle.push(chunk);
            }
        }
        after = furthest;
    }
    Ok(())
}

fn compare(hub: &mut Hub, node: NodeId, known: &Chunk, replica: &ReplicaState, findings: &mut Findings) {
    let chunk = replica.chunk;
    let member = known.members.iter().find(|member| member.node == node);
    if member.is_some_and(|member| member.disk != replica.disk) {
        // Its move to another disk of the node was cut off.
        findings.settle.push(chunk);
    } else if member.is_none() {
        hub.slaves.leftovers.entry(chunk).or_default().insert((node, replica.disk), replica.epoch);
        hub.slaves.endangered.put(chunk, Worklist::UNKNOWN);
    } else if replica.epoch > known.epoch {
        tracing::error!(%chunk, %node, epoch = %replica.epoch, known = %known.epoch,
            "the replica is of an epoch that this master never made");
        findings.settle.push(chunk);
    } else if replica.epoch < known.epoch && replica.contents == known.held && known.pending.is_none() {
        // It missed only the message of its installation.
        findings.install.push(InstallRequest {
            chunk,
            chunk_bytes: known.chunk_bytes,
            disk: replica.disk,
            epoch: known.epoch,
            contents: known.held,
        });
    } else if replica.epoch < known.epoch || outdated(known, replica) || known.quarantined {
        findings.settle.push(chunk);
    }
}

/// While a chunk is open its members may be ahead of the record; what every member has had, this one lost.
fn outdated(known: &Chunk, replica: &ReplicaState) -> bool {
    let ahead = known.open_by.is_some() && replica.contents.version > known.held.version;
    replica.contents != known.held && !ahead
}

fn repair(shared: &Shared) -> RequestHeader {
    RequestHeader { term: shared.term, class: Class::Repair, ..Default::default() }
}

/// Chunks of which there is no record are put aside.
pub async fn quarantine(shared: &Shared, node: NodeId, link: &Link, chunks: Vec<ChunkId>) {
    tracing::warn!(%node, chunks = chunks.len(), "it has chunks that nobody knows: quarantined for a week");
    let request = QuarantineRequest { chunks };
    let call = link.connection.call::<Quarantine>(repair(shared), &request, &[], QUARANTINE_DEADLINE);
    if let Err(fault) = call.await {
        tracing::warn!(%node, "unknown chunks could not be quarantined, its next inventory shows them again: {fault}");
    }
}

async fn follow(shared: &Arc<Shared>, node: NodeId, link: &Link, findings: Findings) {
    if !findings.unknown.is_empty() {
        quarantine(shared, node, link, findings.unknown).await;
    }
    for request in findings.install {
        let chunk = request.chunk;
        if let Err(fault) =
            link.connection.call::<Install>(repair(shared), &request, &[], QUARANTINE_DEADLINE).await
        {
            tracing::info!(%node, %chunk, "its replica cannot be installed as it is: {fault}");
            shared.with(|hub, now| hub.unfinished.insert(chunk, now));
        }
    }
    shared.with(|hub, now| hub.unfinished.extend(findings.settle.into_iter().map(|chunk| (chunk, now))));
}
