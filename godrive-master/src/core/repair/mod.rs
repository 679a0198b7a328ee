//! What to repair, to move and to remove, in which order, and how much at a time.
//!
//! The planner is a function of a view. First come chunks with the fewest living replicas; a chunk whose
//! missing node may only be restarting waits, unless so few replicas are left that the next failure could
//! take the chunk from its users. Nodes that are awaited after a restart or standstill of the master are no failures yet. Then members that are too many leave, then what is on drained disks is copied
//! elsewhere (and so becomes too many), then full disks give to empty ones. Limits bound the copies per node and in
//! all, and what is not endangered keeps to each node's budget of bytes. Replicas that nobody needs any more
//! are removed in batches that take no part in any of these limits: deletion delays no repair, and nothing but a copy of the
//! same chunk delays it.

mod rebalance;
mod surplus;
#[cfg(test)]
mod tests;
mod worklist;

pub use rebalance::{Balance, Levels};
pub use worklist::Worklist;

use super::nodes::Health;
use super::placement::{Candidate, NodeSelector, RoundRobin, place};
use godrive_proto::{ChunkId, DiskId, Epoch, NodeId};
use std::collections::BTreeMap;

/// One member of a chunk as the planner sees it.
#[derive(Clone, Debug)]
pub struct MemberView {
    pub node: NodeId,
    pub disk: DiskId,
    pub domain: String,
    pub health: Health,
    /// Its replica is to move elsewhere.
    pub draining: bool,
}

/// A chunk that may need something.
#[derive(Clone, Debug)]
pub struct ChunkView {
    pub chunk: ChunkId,
    /// What a replica may take, and what it holds now.
    pub bytes: u64,
    pub used_bytes: u64,
    pub members: Vec<MemberView>,
    /// Disks that have a replica of an older epoch: only what differs has to be copied there.
    pub leftovers: Vec<(NodeId, DiskId)>,
    /// An epoch change or a repair of it is under way, or it is quarantined.
    pub busy: bool,
    /// Somebody writes it.
    pub open: bool,
}

/// A replica to remove: superseded by a later epoch, or of a deleted chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unneeded {
    pub node: NodeId,
    pub chunk: ChunkId,
    /// Replicas of later epochs stay.
    pub epoch: Epoch,
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub replicas: usize,
    pub min_replicas: usize,
    /// Copies under way in all, and per node (as source or target).
    pub copies: usize,
    pub copies_per_node: usize,
    /// Copies that only balance disks, in all.
    pub rebalances: usize,
    /// Members leaving at one time.
    pub leaves: usize,
    /// Deletions per node in one command.
    pub deletions: usize,
}

#[derive(Debug, Default)]
pub struct View {
    pub chunks: Vec<ChunkView>,
    /// Chunks that need nothing, looked at for balance only, and what balance would be.
    pub settled: Vec<ChunkView>,
    pub levels: Levels,
    pub candidates: Vec<Candidate>,
    pub unneeded: Vec<Unneeded>,
    /// Copies under way by node, in all, and of these the ones that only balance.
    pub copying: BTreeMap<NodeId, usize>,
    pub copies: usize,
    pub rebalances: usize,
    pub leaves: usize,
    /// What is left of the nodes' budgets; those that are not in it have plenty.
    pub budgets: BTreeMap<NodeId, i64>,
}

/// Why a copy is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It may become unavailable: no budget holds for it.
    Endangered,
    Missing,
    Drain,
    /// Of a replica on this disk, which is to leave.
    Rebalance {
        from: DiskId,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Copy from `source`, then make `target` a member by an epoch change, in place of the one on another disk of its
    /// node if there is one.
    Join {
        chunk: ChunkId,
        source: NodeId,
        target: Candidate,
        bytes: u64,
        reason: Reason,
    },
    /// An epoch without this member.
    Leave {
        chunk: ChunkId,
        node: NodeId,
    },
    Delete {
        node: NodeId,
        chunks: Vec<(ChunkId, Epoch)>,
    },
}

/// What a chunk needs, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// So few members live that the next failure could take it from its users.
    Endangered {
        alive: usize,
    },
    Missing {
        alive: usize,
    },
    /// This member is too many.
    Surplus {
        leaves: NodeId,
    },
    /// A replica lies where none should be.
    Drain,
}

impl ChunkView {
    fn count(&self, is: impl Fn(&&MemberView) -> bool) -> usize {
        self.members.iter().filter(is).count()
    }

    pub fn alive(&self) -> usize {
        self.count(|member| member.health == Health::Alive)
    }

    /// None: nothing, or nothing can be done now.
    pub fn need(&self, limits: &Limits, candidates: &[Candidate]) -> Option<Need> {
        let alive = self.alive();
        // Without a living source nothing can be done.
        if self.busy || alive == 0 {
            return None;
        }
        let present = alive + self.count(|member| member.health == Health::Awaited);
        let endangered = present < limits.min_replicas || (present <= 1 && limits.replicas > 1);
        if endangered && present < limits.replicas {
            return Some(Need::Endangered { alive });
        }
        if present + self.count(|member| member.health == Health::Suspect) < limits.replicas {
            return Some(Need::Missing { alive });
        }
        if let Some(leaves) = surplus::leaver(self, limits.replicas, candidates) {
            return Some(Need::Surplus { leaves });
        }
        let drained = self.count(|member| member.draining && member.health == Health::Alive);
        // One that may be restarting may be enough when it is back.
        let staying = self.count(|member| !member.draining && member.health != Health::Dead);
        (drained > 0 && alive >= limits.replicas && staying < limits.replicas).then_some(Need::Drain)
    }
}

impl Need {
    /// The place in the [`Worklist`] of a chunk that needs this.
    pub fn rank(need: Option<Self>) -> u8 {
        const SURPLUS: u8 = 200;
        match need {
            Some(Self::Endangered { alive } | Self::Missing { alive }) => {
                u8::try_from(alive).unwrap_or(SURPLUS - 1).clamp(1, SURPLUS - 1)
            }
            Some(Self::Surplus { .. }) => SURPLUS,
            Some(Self::Drain) => SURPLUS + 1,
            None => Worklist::HOPELESS,
        }
    }
}

/// The next steps, most urgent first, and chunks that need a copy for which there is no place. Call again when
/// something has changed or ended.
pub fn plan(view: &View, limits: &Limits, selector: &mut dyn NodeSelector) -> (Vec<Step>, Vec<ChunkId>) {
    let needs = view.chunks.iter().filter_map(|c| Some((c.need(limits, &view.candidates)?, c)));
    let mut needs: Vec<(Need, &ChunkView)> = needs.collect();
    needs.sort_by_key(|(need, chunk)| (*need, chunk.chunk));
    let mut room = Room::new(view, limits);
    let (mut steps, mut stuck) = (Vec::new(), Vec::new());
    let mut leaves = view.leaves;
    for (need, chunk) in needs {
        let reason = match need {
            Need::Endangered { .. } => Reason::Endangered,
            Need::Missing { .. } => Reason::Missing,
            Need::Drain => Reason::Drain,
            Need::Surplus { leaves: node } => {
                if leaves < limits.leaves {
                    leaves += 1;
                    steps.push(Step::Leave { chunk: chunk.chunk, node });
                }
                continue;
            }
        };
        if room.is_full() {
            continue;
        }
        match room.join(chunk, reason, |free| target(chunk, reason, free, selector)) {
            Some(step) => steps.push(step),
            None if target(chunk, reason, &view.candidates, &mut RoundRobin::default()).is_none() => {
                stuck.push(chunk.chunk);
            }
            None => {}
        }
    }
    let joins = |step: &Step| matches!(step, Step::Join { .. });
    if view.copies == view.rebalances && !steps.iter().any(joins) {
        steps.extend(rebalance(view, limits, &mut room));
    }
    steps.extend(deletions(view, limits));
    (steps, stuck)
}

/// What more may begin.
struct Room<'a> {
    limits: &'a Limits,
    copying: BTreeMap<NodeId, usize>,
    copies: usize,
    budgets: BTreeMap<NodeId, i64>,
    candidates: Vec<Candidate>,
}

impl<'a> Room<'a> {
    fn new(view: &View, limits: &'a Limits) -> Self {
        Self {
            limits,
            copying: view.copying.clone(),
            copies: view.copies,
            budgets: view.budgets.clone(),
            candidates: view.candidates.clone(),
        }
    }

    fn is_full(&self) -> bool {
        self.copies >= self.limits.copies
    }

    fn join(
        &mut self,
        chunk: &ChunkView,
        reason: Reason,
        target: impl FnOnce(&[Candidate]) -> Option<Candidate>,
    ) -> Option<Step> {
        if self.is_full() {
            return None;
        }
        let busy = |node: NodeId| self.copying.get(&node).copied().unwrap_or(0);
        let may = |node: NodeId| {
            let in_budget = reason == Reason::Endangered || self.budgets.get(&node).is_none_or(|b| *b > 0);
            busy(node) < self.limits.copies_per_node && in_budget
        };
        let living = chunk.members.iter().filter(|member| member.health == Health::Alive);
        let sources: Vec<NodeId> = living.map(|member| member.node).filter(|node| may(*node)).collect();
        if sources.is_empty() {
            return None;
        }
        let free: Vec<_> = self.candidates.iter().filter(|c| may(c.node)).cloned().collect();
        let target = target(&free)?;
        // A replica that moves between the disks of a node comes from another one, if there is one.
        let source = sources.into_iter().min_by_key(|node| (*node == target.node, busy(*node)))?;
        for node in [source, target.node] {
            *self.copying.entry(node).or_default() += 1;
            if reason != Reason::Endangered
                && let Some(budget) = self.budgets.get_mut(&node)
            {
                *budget = budget.saturating_sub(i64::try_from(chunk.used_bytes).unwrap_or(i64::MAX));
            }
        }
        self.copies += 1;
        for candidate in self.candidates.iter_mut().filter(|c| c.disk == target.disk) {
            candidate.free_bytes = candidate.free_bytes.saturating_sub(chunk.bytes);
        }
        Some(Step::Join { chunk: chunk.chunk, source, target, bytes: chunk.used_bytes, reason })
    }
}

/// A disk with a leftover of the chunk, else one that the selector chooses. The node of a member whose replica
/// is lost may get it again, and what is drained of a disk alone may go to another disk of its node.
fn target(
    chunk: &ChunkView,
    reason: Reason,
    free: &[Candidate],
    selector: &mut dyn NodeSelector,
) -> Option<Candidate> {
    let present = chunk.members.iter().filter(|member| member.health != Health::Dead);
    // Who will leave takes its node, but its domain is free.
    let domain = |member: &MemberView| if member.draining { String::new() } else { member.domain.clone() };
    let members: Vec<_> = present.map(|member| (member.node, domain(member))).collect();
    let leftover = |c: &&Candidate| {
        c.free_bytes > 0
            && chunk.leftovers.contains(&(c.node, c.disk))
            && members.iter().all(|(node, _)| *node != c.node)
    };
    let beside = || {
        let drained = |node| {
            let is = |m: &&MemberView| m.node == node && m.draining && m.health == Health::Alive;
            chunk.members.iter().any(|member| is(&member))
        };
        free.iter()
            .find(|c| reason == Reason::Drain && c.free_bytes >= chunk.bytes && drained(c.node))
            .cloned()
    };
    let leftover = free.iter().find(leftover).cloned();
    leftover.or_else(|| place(selector, free, &members, 1, chunk.bytes).pop()).or_else(beside)
}

/// Moves that narrow the widest differences.
fn rebalance(view: &View, limits: &Limits, room: &mut Room<'_>) -> Vec<Step> {
    let mut moves: Vec<_> = view
        .settled
        .iter()
        .filter_map(|chunk| Some((view.levels.narrowing(chunk, limits)?, chunk)))
        .collect();
    moves.sort_by_key(|(found, chunk)| (std::cmp::Reverse(found.difference), chunk.chunk));
    let mut steps = Vec::new();
    for (found, chunk) in moves {
        if view.rebalances + steps.len() >= limits.rebalances {
            break;
        }
        let reason = Reason::Rebalance { from: found.from };
        steps.extend(room.join(chunk, reason, |free| free.iter().find(|c| c.disk == found.to).cloned()));
    }
    steps
}

fn deletions(view: &View, limits: &Limits) -> Vec<Step> {
    let mut by_node: BTreeMap<NodeId, Vec<(ChunkId, Epoch)>> = BTreeMap::new();
    for unneeded in &view.unneeded {
        let chunks = by_node.entry(unneeded.node).or_default();
        if chunks.len() < limits.deletions {
            chunks.push((unneeded.chunk, unneeded.epoch));
        }
    }
    by_node.into_iter().map(|(node, chunks)| Step::Delete { node, chunks }).collect()
}
