//! What one turn sees: chunks that are noticed, in the view of the planner.

use super::{PAUSE, Progress, Trouble};
use crate::core::nodes::Health;
use crate::core::record::{Body, Purpose};
use crate::core::repair::{ChunkView, Limits, MemberView, Need, Step, Unneeded, View, Worklist, plan};
use crate::core::state::values::Chunk;
use crate::server::hub::Hub;
use crate::server::slaves::member_health;
use godrive_proto::time::Instant;
use godrive_proto::{ChunkId, Epoch, Fault, NodeId};
use std::collections::{BTreeMap, BTreeSet};

/// By how many chunks the slow scan goes on.
const SCAN: usize = 200;
/// Chunks that one plan considers.
const TURN: usize = 1_000;
/// Deleted chunks that are looked at in one turn, and chunks in one command.
const RECLAIM: usize = 512;
const DELETIONS: usize = 1_024;
/// Copies for balance alone, and members that leave, at one time.
const REBALANCES: usize = 2;
const LEAVES: usize = 8;

pub fn limits(hub: &Hub) -> Result<Limits, Fault> {
    let parameters = hub.parameters()?;
    Ok(Limits {
        replicas: parameters.replicas.into(),
        min_replicas: parameters.min_replicas.into(),
        copies: hub.config.nodes.repairs as usize,
        copies_per_node: hub.config.nodes.repairs_per_node as usize,
        rebalances: REBALANCES,
        leaves: LEAVES,
        deletions: DELETIONS,
    })
}

pub fn turn(hub: &mut Hub, now: Instant, progress: &mut Progress) -> Result<Vec<Step>, Fault> {
    hub.serving()?;
    let limits = limits(hub)?;
    let mut view = begin(hub, now, progress);
    // Whatever wakes this loop, the scan keeps its own pace.
    if now >= progress.scan_at {
        progress.scan_at = now.after(PAUSE);
        scan(hub, now, progress, &limits, &mut view)?;
    }
    sweep(hub, now, progress)?;
    for chunk in hub.slaves.endangered.first(TURN) {
        let Some(known) = hub.state.chunk(chunk)? else {
            hub.slaves.endangered.remove(chunk);
            continue;
        };
        take_up(hub, now, chunk, &known);
        let chunk_view = look(hub, now, progress, chunk, &known);
        let need = chunk_view.need(&limits, &view.candidates);
        if is_complete(&chunk_view, need, &limits) {
            view.unneeded.extend(superseded(hub, chunk, &known));
            hub.slaves.endangered.remove(chunk);
        } else {
            hub.slaves.endangered.put(chunk, Need::rank(need));
            view.chunks.push(chunk_view);
        }
    }
    reclaimable(hub, now, progress, &mut view)?;
    retire(hub, now, progress)?;
    view.unneeded.retain(|unneeded| hub.slaves.links.contains_key(&unneeded.node));
    let (steps, stuck) = plan(&view, &limits, &mut *hub.selector);
    // They make room for others; the scan brings them again.
    stuck.into_iter().for_each(|chunk| hub.slaves.endangered.put(chunk, Worklist::HOPELESS));
    let busy = |step: &Step| matches!(step, Step::Delete { node, .. } if progress.deleting.contains(node));
    Ok(steps.into_iter().filter(|step| !busy(step)).collect())
}

/// The view without its chunks.
fn begin(hub: &mut Hub, now: Instant, progress: &mut Progress) -> View {
    progress.failed.retain(|_, again| now < *again);
    let candidates = hub.nodes.candidates(now, &hub.reserved);
    let levels = progress.balance.levels(now, &candidates);
    hub.repairs.levels = levels.clone();
    let mut view = View {
        candidates,
        levels,
        copies: progress.joins.len(),
        rebalances: progress.joins.values().filter(|joining| joining.is_rebalance()).count(),
        leaves: progress.leaves.len(),
        budgets: progress.budgets.left(now),
        ..View::default()
    };
    for node in progress.joins.values().flat_map(|joining| joining.nodes) {
        *view.copying.entry(node).or_default() += 1;
    }
    view
}

fn look(hub: &Hub, now: Instant, progress: &Progress, chunk: ChunkId, known: &Chunk) -> ChunkView {
    let mut view = view_of(hub, now, chunk, known);
    view.busy |= progress.joins.contains_key(&chunk)
        || progress.leaves.contains(&chunk)
        || progress.failed.contains_key(&chunk);
    view
}

/// As [`look`], without what this loop itself has under way.
pub fn view_of(hub: &Hub, now: Instant, chunk: ChunkId, known: &Chunk) -> ChunkView {
    let domain = |node: NodeId| hub.nodes.get(node).map_or(String::new(), |node| node.domain.clone());
    let members = known.members.iter().map(|member| MemberView {
        node: member.node,
        disk: member.disk,
        domain: domain(member.node),
        health: member_health(hub, now, chunk, member),
        draining: hub.nodes.intents.is_draining(member.node, member.disk),
    });
    let leftovers = hub.slaves.leftovers.get(&chunk);
    ChunkView {
        chunk,
        bytes: known.chunk_bytes.into(),
        used_bytes: known.used_bytes.into(),
        members: members.collect(),
        leftovers: leftovers.into_iter().flat_map(BTreeMap::keys).copied().collect(),
        busy: known.pending.is_some()
            || known.quarantined
            || known.unsettled
            || hub.epochs.contains_key(&chunk),
        open: known.open_by.is_some(),
    }
}

fn is_complete(chunk: &ChunkView, need: Option<Need>, limits: &Limits) -> bool {
    need.is_none() && chunk.alive() >= limits.replicas && !chunk.busy
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
fn scan(
    hub: &mut Hub,
    now: Instant,
    progress: &mut Progress,
    limits: &Limits,
    view: &mut View,
) -> Result<(), Fault> {
    let page = hub.state.chunks(progress.scanned, SCAN)?;
    progress.scanned =
        if page.len() < SCAN { ChunkId(0) } else { page.last().map_or(ChunkId(0), |(id, _)| *id) };
    for (chunk, known) in page {
        let found = look(hub, now, progress, chunk, &known);
        let need = found.need(limits, &view.candidates);
        if need.is_some() || found.alive() < limits.replicas || hub.slaves.leftovers.contains_key(&chunk) {
            hub.slaves.endangered.put(chunk, Worklist::UNKNOWN);
        } else if !view.levels.is_even() {
            view.settled.push(found);
        }
        take_up(hub, now, chunk, &known);
    }
    Ok(())
}

/// An epoch change that a restart of the master cut off goes on.
fn take_up(hub: &mut Hub, now: Instant, chunk: ChunkId, known: &Chunk) {
    if (known.pending.is_some() || known.unsettled) && !known.quarantined && !hub.epochs.contains_key(&chunk)
    {
        hub.unfinished.entry(chunk).or_insert(now);
    }
}

/// Notices at once what lies on dead nodes, failed disks and drained ones, a page at a time.
fn sweep(hub: &mut Hub, now: Instant, progress: &mut Progress) -> Result<(), Fault> {
    let troubles = hub.nodes.iter().map(|(node, _)| {
        let dead = hub.nodes.health(now, node) == Health::Dead;
        (node, Trouble { dead, disks: hub.nodes.troubled_disks(node) })
    });
    let troubles: BTreeMap<_, _> =
        troubles.filter(|(_, trouble)| trouble.dead || !trouble.disks.is_empty()).collect();
    progress.swept.retain(|node, (trouble, _)| troubles.get(node) == Some(trouble));
    for (node, trouble) in troubles {
        let (_, after) = progress.swept.entry(node).or_insert((trouble, Some(ChunkId(0))));
        let Some(from) = *after else { continue };
        let page = hub.state.replicas_of(node, from, SCAN)?;
        *after = page.last().copied().filter(|_| page.len() == SCAN);
        for chunk in page {
            hub.slaves.endangered.put(chunk, Worklist::UNKNOWN);
        }
    }
    Ok(())
}

/// Deleted chunks: replicas to remove, and those of which none is left that is waited for.
fn reclaimable(hub: &mut Hub, now: Instant, progress: &mut Progress, view: &mut View) -> Result<(), Fault> {
    let page = hub.state.deleted(progress.reclaimed, RECLAIM)?;
    progress.reclaimed =
        if page.len() < RECLAIM { ChunkId(0) } else { page.last().map_or(ChunkId(0), |(id, _)| *id) };
    // Who has not told yet what it has may have one that was not known of.
    let all_told = hub.nodes.all_told(now);
    let mut forgotten = Vec::new();
    for (chunk, deleted) in page {
        // A copy that is under way leaves a replica behind the deletion, which nobody would know.
        if progress.joins.contains_key(&chunk) || hub.epochs.contains_key(&chunk) {
            continue;
        }
        let confirmed = progress.confirmed.entry(chunk).or_default();
        let left: BTreeSet<NodeId> = hub
            .slaves
            .leftovers
            .get(&chunk)
            .into_iter()
            .flat_map(BTreeMap::keys)
            .map(|(node, _)| *node)
            .collect();
        let holders: BTreeSet<NodeId> =
            deleted.members.iter().map(|member| member.node).chain(left.iter().copied()).collect();
        let waiting: Vec<_> = holders
            .into_iter()
            .filter(|node| left.contains(node) || !confirmed.contains(node))
            .filter(|node| !hub.nodes.is_given_up(now, *node))
            .collect();
        if waiting.is_empty() && all_told {
            forgotten.push(chunk);
        }
        let may_answer =
            |node: &NodeId| hub.slaves.links.contains_key(node) && !hub.nodes.has_no_disk_in_service(*node);
        if waiting.iter().any(may_answer) {
            hub.slaves.stuck.remove(&chunk);
        } else {
            hub.slaves.stuck.insert(chunk);
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
            hub.slaves.stuck.remove(chunk);
        }
    }
    Ok(())
}

/// Forgets slaves that are decommissioned and hold nothing any more.
fn retire(hub: &mut Hub, now: Instant, progress: &Progress) -> Result<(), Fault> {
    let leaving: Vec<NodeId> = hub.nodes.intents.with_purpose(Purpose::Decommission).collect();
    for node in leaving {
        let copying = progress.joins.values().any(|joining| joining.nodes.contains(&node));
        if copying || !hub.state.replicas_of(node, ChunkId(0), 1)?.is_empty() {
            continue;
        }
        let left = || hub.slaves.leftovers.values().any(|places| places.keys().any(|(at, _)| *at == node));
        let ready = match hub.nodes.health(now, node) {
            Health::Alive if hub.nodes.has_no_disk_in_service(node) => true,
            Health::Alive => hub.nodes.get(node).is_some_and(|known| known.inventoried) && !left(),
            Health::Awaited | Health::Suspect => false,
            Health::Dead => true,
        };
        if ready {
            hub.retire(node)?;
            tracing::info!(%node, "decommissioned: it holds nothing any more and is forgotten");
        }
    }
    Ok(())
}
