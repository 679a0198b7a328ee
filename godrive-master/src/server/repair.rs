//! Repair and reclaim: notices what is missing or too much, lets the planner decide, does what it says.

use super::epoch::{Cause, change, command};
use super::hub::Hub;
use super::shared::Shared;
use super::slaves::member_health;
use crate::core::nodes::Health;
use crate::core::placement::Candidate;
use crate::core::record::Body;
use crate::core::repair::{ChunkView, Limits, MemberView, Step, Unneeded, View, Worklist, plan};
use crate::core::state::values::Chunk;
use godrive_proto::cluster::{Copy, CopyRequest, Delete, DeleteRequest};
use godrive_proto::frame::Class;
use godrive_proto::time::Instant;
use godrive_proto::{ChunkId, Epoch, Fault, LogIndex, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;

/// How often the slow scan goes on, and by how many chunks.
const PAUSE: Duration = Duration::from_millis(500);
/// A repair that failed is not tried again before.
const AFTER_A_FAILURE: Duration = Duration::from_secs(1);
const SCAN: usize = 200;
/// Chunks that one plan considers.
const TURN: usize = 1_000;
/// Deleted chunks that are looked at in one turn, and chunks in one command.
const RECLAIM: usize = 512;
const DELETIONS: usize = 1_024;
/// A whole chunk within this: at least a few MiB/s.
const COPY_DEADLINE: Duration = Duration::from_secs(60);
const DELETE_DEADLINE: Duration = Duration::from_secs(30);

/// What is under way.
#[derive(Default)]
struct Progress {
    /// Chunks being copied, and the nodes that takes part.
    joins: BTreeMap<ChunkId, [NodeId; 2]>,
    /// Chunks whose last repair failed, and when they may be tried again.
    failed: BTreeMap<ChunkId, Instant>,
    deleting: BTreeSet<NodeId>,
    /// Members of deleted chunks that have confirmed.
    confirmed: BTreeMap<ChunkId, BTreeSet<NodeId>>,
    scanned: ChunkId,
    scan_at: Instant,
    /// How far each dead node's replicas have been noticed; None: all.
    swept: BTreeMap<NodeId, Option<ChunkId>>,
    reclaimed: ChunkId,
}

/// For `status`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    pub active: u64,
    pub repaired: u64,
}

enum Ended {
    Join(ChunkId, bool),
    Deleted(NodeId, Vec<(ChunkId, Epoch)>, bool),
}

/// Runs as long as the master.
pub async fn run(shared: Arc<Shared>) {
    let mut progress = Progress::default();
    let (report, mut reports) = tokio::sync::mpsc::unbounded_channel();
    loop {
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = shared.repair.notified() => {}
            Some(ended) = reports.recv() => settle(&shared, &mut progress, ended),
        }
        while let Ok(ended) = reports.try_recv() {
            settle(&shared, &mut progress, ended);
        }
        let (planned, last) = shared.with(|hub, now| (turn(hub, now, &mut progress), hub.journal.last()));
        match planned {
            Ok(steps) => begin(&shared, &mut progress, steps, last, &report).await,
            Err(fault) => tracing::warn!("repair pauses: {fault}"),
        }
        // Coalesces what comes in bursts.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn begin(
    shared: &Arc<Shared>,
    progress: &mut Progress,
    steps: Vec<Step>,
    last: LogIndex,
    report: &UnboundedSender<Ended>,
) {
    let (deletions, joins): (Vec<_>, Vec<_>) =
        steps.into_iter().partition(|step| matches!(step, Step::Delete { .. }));
    for step in joins {
        start(shared, progress, step, report);
    }
    if deletions.is_empty() {
        return;
    }
    // What is not durable may come back after a power loss: nothing is deleted on its word.
    match shared.durable(last).await {
        Ok(()) => deletions.into_iter().for_each(|step| start(shared, progress, step, report)),
        Err(fault) => tracing::warn!("nothing is deleted now: {fault}"),
    }
}

fn turn(hub: &mut Hub, now: Instant, progress: &mut Progress) -> Result<Vec<Step>, Fault> {
    hub.serving()?;
    let parameters = hub.parameters()?;
    let limits = Limits {
        replicas: parameters.replicas.into(),
        min_replicas: parameters.min_replicas.into(),
        copies: hub.config.nodes.repairs as usize,
        copies_per_node: hub.config.nodes.repairs_per_node as usize,
        deletions: DELETIONS,
    };
    // Whatever wakes this loop, the scan keeps its own pace.
    if now >= progress.scan_at {
        progress.scan_at = now.after(PAUSE);
        scan(hub, now, progress, &limits)?;
    }
    sweep(hub, now, progress)?;
    progress.failed.retain(|_, again| now < *again);
    let mut view = View { candidates: hub.nodes.candidates(now, &hub.reserved), ..View::default() };
    view.copies = progress.joins.len();
    for node in progress.joins.values().flatten() {
        *view.copying.entry(*node).or_default() += 1;
    }
    for chunk in hub.slaves.endangered.first(TURN) {
        let Some(known) = hub.state.chunk(chunk)? else {
            hub.slaves.endangered.remove(chunk);
            continue;
        };
        let chunk_view = look(hub, now, progress, chunk, &known);
        if is_complete(&chunk_view, &limits) {
            view.unneeded.extend(superseded(hub, chunk, &known));
            hub.slaves.endangered.remove(chunk);
        } else {
            hub.slaves.endangered.put(chunk, chunk_view.rank(&limits));
            view.chunks.push(chunk_view);
        }
    }
    reclaimable(hub, progress, &mut view)?;
    view.unneeded.retain(|unneeded| hub.slaves.links.contains_key(&unneeded.node));
    let steps = plan(&view, &limits, &mut *hub.selector);
    let busy = |step: &Step| matches!(step, Step::Delete { node, .. } if progress.deleting.contains(node));
    Ok(steps.into_iter().filter(|step| !busy(step)).collect())
}

fn look(hub: &Hub, now: Instant, progress: &Progress, chunk: ChunkId, known: &Chunk) -> ChunkView {
    let domain = |node: NodeId| hub.nodes.get(node).map_or(String::new(), |node| node.domain.clone());
    let members = known.members.iter().map(|member| MemberView {
        node: member.node,
        disk: member.disk,
        domain: domain(member.node),
        health: member_health(hub, now, chunk, member),
    });
    let leftovers = hub.slaves.leftovers.get(&chunk);
    ChunkView {
        chunk,
        bytes: known.chunk_bytes.into(),
        members: members.collect(),
        leftovers: leftovers.into_iter().flat_map(BTreeMap::keys).copied().collect(),
        busy: known.pending.is_some()
            || known.quarantined
            || known.unsettled
            || hub.epochs.contains_key(&chunk)
            || progress.joins.contains_key(&chunk)
            || progress.failed.contains_key(&chunk),
    }
}

fn is_complete(chunk: &ChunkView, limits: &Limits) -> bool {
    let alive = chunk.members.iter().filter(|member| member.health == Health::Alive).count();
    alive >= limits.replicas && !chunk.busy
}

/// Leftovers of a chunk that has all its members.
fn superseded(hub: &Hub, chunk: ChunkId, known: &Chunk) -> Vec<Unneeded> {
    let places = hub.slaves.leftovers.get(&chunk).into_iter().flatten();
    places
        .filter(|((node, _), _)| known.members.iter().all(|member| member.node != *node))
        .map(|((node, _), _)| Unneeded { node: *node, chunk, epoch: Epoch(known.epoch.0.saturating_sub(1)) })
        .collect()
}

/// Goes through all chunks, a few at a time, so that nothing stays unnoticed.
fn scan(hub: &mut Hub, now: Instant, progress: &mut Progress, limits: &Limits) -> Result<(), Fault> {
    let page = hub.state.chunks(progress.scanned, SCAN)?;
    progress.scanned =
        if page.len() < SCAN { ChunkId(0) } else { page.last().map_or(ChunkId(0), |(id, _)| *id) };
    for (chunk, known) in page {
        let alive =
            known.members.iter().filter(|member| member_health(hub, now, chunk, member) == Health::Alive);
        if alive.count() < limits.replicas || hub.slaves.leftovers.contains_key(&chunk) {
            hub.slaves.endangered.put(chunk, Worklist::UNKNOWN);
        }
        if (known.pending.is_some() || known.unsettled)
            && !known.quarantined
            && !hub.epochs.contains_key(&chunk)
        {
            hub.unfinished.entry(chunk).or_insert(now);
        }
    }
    Ok(())
}

/// Notices at once what a dead node had, a page at a time.
fn sweep(hub: &mut Hub, now: Instant, progress: &mut Progress) -> Result<(), Fault> {
    let dead: Vec<NodeId> = hub
        .nodes
        .iter()
        .map(|(node, _)| node)
        .filter(|node| hub.nodes.health(now, *node) == Health::Dead)
        .collect();
    progress.swept.retain(|node, _| dead.contains(node));
    for node in dead {
        let after = progress.swept.entry(node).or_insert(Some(ChunkId(0)));
        let Some(from) = *after else { continue };
        let page = hub.state.replicas_of(node, from, SCAN)?;
        *after = page.last().copied().filter(|_| page.len() == SCAN);
        for chunk in page {
            hub.slaves.endangered.put(chunk, Worklist::UNKNOWN);
        }
    }
    Ok(())
}

/// Deleted chunks: replicas to remove, and those of which none is left.
fn reclaimable(hub: &mut Hub, progress: &mut Progress, view: &mut View) -> Result<(), Fault> {
    let page = hub.state.deleted(progress.reclaimed, RECLAIM)?;
    progress.reclaimed =
        if page.len() < RECLAIM { ChunkId(0) } else { page.last().map_or(ChunkId(0), |(id, _)| *id) };
    let mut forgotten = Vec::new();
    for (chunk, deleted) in page {
        let confirmed = progress.confirmed.entry(chunk).or_default();
        let left =
            hub.slaves.leftovers.get(&chunk).into_iter().flat_map(BTreeMap::keys).map(|(node, _)| *node);
        let holders: BTreeSet<NodeId> =
            deleted.members.iter().map(|member| member.node).chain(left).collect();
        let waiting: Vec<_> = holders.into_iter().filter(|node| !confirmed.contains(node)).collect();
        if waiting.is_empty() {
            forgotten.push(chunk);
        }
        for node in waiting {
            view.unneeded.push(Unneeded { node, chunk, epoch: deleted.epoch });
        }
    }
    if !forgotten.is_empty() {
        hub.decide(Body::ChunksForgotten { chunks: forgotten.clone() })?.0?;
        for chunk in &forgotten {
            progress.confirmed.remove(chunk);
            hub.slaves.leftovers.remove(chunk);
        }
    }
    Ok(())
}

fn start(shared: &Arc<Shared>, progress: &mut Progress, step: Step, report: &UnboundedSender<Ended>) {
    let (shared, report) = (shared.clone(), report.clone());
    match step {
        Step::Join { chunk, source, target } => {
            progress.joins.insert(chunk, [source, target.node]);
            shared.with(|hub, _| hub.repairs.active = progress.joins.len() as u64);
            tokio::spawn(async move {
                let node = target.node;
                let result = join(&shared, chunk, source, target).await;
                match &result {
                    Ok(()) => tracing::info!(%chunk, %node, "repaired: the node has joined"),
                    Err(fault) => {
                        tracing::warn!(%chunk, %node, "repair failed, it is planned again: {fault}")
                    }
                }
                // The receiver lives as long as the master.
                let _ = report.send(Ended::Join(chunk, result.is_ok()));
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

/// Copies while writes go on, then makes the copy a member; the epoch change copies what was written meanwhile.
async fn join(shared: &Arc<Shared>, chunk: ChunkId, source: NodeId, target: Candidate) -> Result<(), Fault> {
    use godrive_proto::Code;
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
        };
        command::<Copy>(shared, connection, request, Class::Repair, COPY_DEADLINE).await?;
    }
    let changed = change(shared, chunk, Cause::Join(target)).await;
    // The change may have been one that was under way for another reason.
    let joined = shared.with(|hub, _| {
        let joined = match hub.state.chunk(chunk)? {
            Some(known) => known.members.iter().any(|member| member.node == to.node),
            None => hub.state.deleted_chunk(chunk)?.is_none(),
        };
        if !joined {
            hub.slaves.copied(chunk, to);
        }
        Ok::<_, Fault>(joined)
    })?;
    changed?;
    if joined { Ok(()) } else { Err(Fault::new(Code::Busy, "another epoch change came first")) }
}

async fn delete(shared: &Arc<Shared>, node: NodeId, chunks: &[(ChunkId, Epoch)]) -> Result<(), Fault> {
    let link = shared.with(|hub, _| hub.slaves.links.get(&node).map(|link| link.connection.clone()));
    let Some(connection) = link else {
        return Err(Fault::new(godrive_proto::Code::Unreachable, "it is not connected"));
    };
    let request = DeleteRequest { chunks: chunks.to_vec() };
    command::<Delete>(shared, connection, request, Class::Repair, DELETE_DEADLINE).await
}

fn settle(shared: &Arc<Shared>, progress: &mut Progress, ended: Ended) {
    match ended {
        Ended::Join(chunk, repaired) => {
            progress.joins.remove(&chunk);
            shared.with(|hub, now| {
                if !repaired {
                    progress.failed.insert(chunk, now.after(AFTER_A_FAILURE));
                }
                hub.repairs.active = progress.joins.len() as u64;
                hub.repairs.repaired += u64::from(repaired);
                hub.slaves.endangered.put(chunk, Worklist::UNKNOWN);
            });
        }
        Ended::Deleted(node, chunks, done) => {
            progress.deleting.remove(&node);
            if !done {
                return;
            }
            shared.with(|hub, _| {
                for (chunk, epoch) in chunks {
                    hub.slaves.removed(Unneeded { node, chunk, epoch });
                    if let Some(confirmed) = progress.confirmed.get_mut(&chunk) {
                        confirmed.insert(node);
                    }
                }
            });
        }
    }
}
