//! Repair, moves and reclaim: notices what is missing or too much, lets the planner decide, does what it says.

mod look;
mod steps;

pub use look::{limits, view_of};

use super::shared::Shared;
use crate::core::rate::{Budgets, Meter};
use crate::core::repair::{Balance, Levels, Reason, Step, Unneeded, Worklist};
use godrive_proto::admin::Movement;
use godrive_proto::time::Instant;
use godrive_proto::{ChunkId, DiskId, Epoch, LogIndex, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;

/// How often the slow scan goes on.
const PAUSE: Duration = Duration::from_millis(500);
/// A copy that failed is not tried again before.
const AFTER_A_FAILURE: Duration = Duration::from_secs(1);

/// What is under way.
struct Progress {
    joins: BTreeMap<ChunkId, Joining>,
    /// Chunks whose last copy failed, and when they may be tried again.
    failed: BTreeMap<ChunkId, Instant>,
    leaves: BTreeSet<ChunkId>,
    deleting: BTreeSet<NodeId>,
    /// Members of deleted chunks that have confirmed.
    confirmed: BTreeMap<ChunkId, BTreeSet<NodeId>>,
    scanned: ChunkId,
    scan_at: Instant,
    /// Nodes in trouble, and how far their replicas have been noticed; None: all.
    swept: BTreeMap<NodeId, (Trouble, Option<ChunkId>)>,
    reclaimed: ChunkId,
    budgets: Budgets,
    balance: Balance,
}

/// What is the matter with a node.
#[derive(PartialEq)]
struct Trouble {
    dead: bool,
    /// Failed or drained.
    disks: Vec<DiskId>,
}

/// A chunk being copied, and the nodes that take part.
struct Joining {
    nodes: [NodeId; 2],
    bytes: u64,
    reason: Reason,
}

impl Joining {
    fn is_rebalance(&self) -> bool {
        matches!(self.reason, Reason::Rebalance { .. })
    }
}

/// For `status`.
#[derive(Default)]
pub struct Repairs {
    pub repair: Work,
    pub drain: Work,
    pub rebalance: Work,
    /// What the last turn had to bring level.
    pub levels: Levels,
}

/// Copies for one purpose.
#[derive(Default)]
pub struct Work {
    pub active: u64,
    pub done: u64,
    meter: Meter,
}

impl Work {
    /// `wanting`: chunks that want such a copy, with those that are being copied.
    pub fn status(&self, now: Instant, wanting: u64) -> Movement {
        Movement {
            queued: wanting.saturating_sub(self.active),
            active: self.active,
            done: self.done,
            bytes: self.meter.bytes,
            bytes_per_s: self.meter.per_second(now),
        }
    }
}

impl Repairs {
    fn work(&mut self, reason: Reason) -> &mut Work {
        match reason {
            Reason::Endangered | Reason::Missing => &mut self.repair,
            Reason::Drain => &mut self.drain,
            Reason::Rebalance { .. } => &mut self.rebalance,
        }
    }

    fn active<'a>(&mut self, joins: impl Iterator<Item = &'a Joining>) {
        for work in [&mut self.repair, &mut self.drain, &mut self.rebalance] {
            work.active = 0;
        }
        joins.for_each(|joining| self.work(joining.reason).active += 1);
    }
}

enum Ended {
    Join(ChunkId, bool),
    Leave(ChunkId),
    Deleted(NodeId, Vec<(ChunkId, Epoch)>, bool),
}

/// Runs as long as the master.
pub async fn run(shared: Arc<Shared>) {
    let nodes = shared.with(|hub, _| hub.config.nodes.clone());
    let mut progress = Progress {
        joins: BTreeMap::new(),
        failed: BTreeMap::new(),
        leaves: BTreeSet::new(),
        deleting: BTreeSet::new(),
        confirmed: BTreeMap::new(),
        scanned: ChunkId(0),
        scan_at: Instant(0),
        swept: BTreeMap::new(),
        reclaimed: ChunkId(0),
        budgets: Budgets::new(nodes.repair_bytes_per_s),
        balance: Balance::new(nodes.rebalance_above_percent),
    };
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
        let (planned, last) =
            shared.with(|hub, now| (look::turn(hub, now, &mut progress), hub.journal.last()));
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
        steps::start(shared, progress, step, report);
    }
    if deletions.is_empty() {
        return;
    }
    // What is not durable may come back after a power loss: nothing is deleted on its word.
    match shared.durable(last).await {
        Ok(()) => deletions.into_iter().for_each(|step| steps::start(shared, progress, step, report)),
        Err(fault) => tracing::warn!("nothing is deleted now: {fault}"),
    }
}

fn settle(shared: &Arc<Shared>, progress: &mut Progress, ended: Ended) {
    match ended {
        Ended::Join(chunk, done) => {
            let Some(joining) = progress.joins.remove(&chunk) else { return };
            shared.with(|hub, now| {
                hub.repairs.active(progress.joins.values());
                if !done {
                    progress.failed.insert(chunk, now.after(AFTER_A_FAILURE));
                } else {
                    let work = hub.repairs.work(joining.reason);
                    work.done += 1;
                    work.meter.add(now, joining.bytes);
                }
                hub.slaves.endangered.put(chunk, Worklist::UNKNOWN);
            });
        }
        Ended::Leave(chunk) => {
            progress.leaves.remove(&chunk);
            shared.with(|hub, _| hub.slaves.endangered.put(chunk, Worklist::UNKNOWN));
        }
        Ended::Deleted(node, chunks, done) => {
            progress.deleting.remove(&node);
            if !done {
                return;
            }
            shared.with(|hub, _| {
                for (chunk, epoch) in chunks {
                    hub.slaves.removed(Unneeded { node, chunk, epoch });
                    // One of an earlier epoch, asked for while the chunk lived, says nothing of what is there now.
                    let is_over = match hub.state.deleted_chunk(chunk) {
                        Ok(deleted) => deleted.is_some_and(|deleted| epoch >= deleted.epoch),
                        Err(fault) => {
                            tracing::error!(%chunk, %node, "its deletion is asked for again: {fault}");
                            false
                        }
                    };
                    if is_over && let Some(confirmed) = progress.confirmed.get_mut(&chunk) {
                        confirmed.insert(node);
                    }
                }
            });
        }
    }
}
