//! Full disks give to empty ones. It begins when two disks differ by more than the threshold and goes on until none
//! differ by more than half of it, so that it does not begin again with the next file. What was moved away
//! counts as free at once, though the slave needs some time to give it back, and the disk takes nothing meanwhile:
//! otherwise the same bytes would be moved twice, or to and fro.

use super::surplus::{closeness, fullness, share};
use super::{ChunkView, Limits};
use crate::core::nodes::Health;
use crate::core::placement::Candidate;
use crate::core::rate::Recent;
use godrive_proto::DiskId;
use godrive_proto::time::Instant;
use std::time::Duration;

/// By then a slave has given back what was moved away, and said so.
const SETTLES_IN: Duration = Duration::from_secs(30);

/// Whether disks are being brought level, and what was moved lately.
#[derive(Debug)]
pub struct Balance {
    /// Thousandths of a disk; 0: never.
    threshold: u32,
    moving: bool,
    moved: Recent<(DiskId, u64)>,
}

/// How full the disks are, for the moves of one turn.
#[derive(Clone, Debug, Default)]
pub struct Levels {
    disks: Vec<Level>,
    /// Smaller differences stay.
    least: u32,
}

#[derive(Clone, Debug)]
struct Level {
    disk: Candidate,
    fullness: u32,
    /// It gave something away and may look fuller than it will be.
    settling: bool,
}

/// A replica's move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    pub from: DiskId,
    pub to: DiskId,
    pub difference: u32,
}

impl Balance {
    pub fn new(threshold_percent: u32) -> Self {
        Self { threshold: threshold_percent * 10, moving: false, moved: Recent::new(SETTLES_IN) }
    }

    /// A replica began to move away from the disk.
    pub fn moved(&mut self, now: Instant, from: DiskId, bytes: u64) {
        self.moved.add(now, (from, bytes));
    }

    /// No levels: nothing is to be moved.
    pub fn levels(&mut self, now: Instant, candidates: &[Candidate]) -> Levels {
        let moved: Vec<(DiskId, u64)> = self.moved.now(now).copied().collect();
        let level = |candidate: &Candidate| {
            let of_it = || moved.iter().filter(|(disk, _)| *disk == candidate.disk);
            let credit: u64 = of_it().map(|(_, bytes)| bytes).sum();
            let free_bytes = candidate.free_bytes.saturating_add(credit).min(candidate.total_bytes);
            let disk = Candidate { free_bytes, ..candidate.clone() };
            Level { fullness: fullness(&disk), disk, settling: of_it().next().is_some() }
        };
        let disks: Vec<Level> = candidates.iter().filter(|c| c.total_bytes > 0).map(level).collect();
        let all = || disks.iter().map(|level| level.fullness);
        let difference = all().max().unwrap_or(0) - all().min().unwrap_or(0);
        let least = if self.moving { self.threshold / 2 } else { self.threshold };
        self.moving = self.threshold > 0 && difference > least;
        match self.moving {
            true => Levels { disks, least: self.threshold / 2 },
            false => Levels::default(),
        }
    }
}

impl Levels {
    pub fn is_even(&self) -> bool {
        self.disks.is_empty()
    }

    /// The move of one of the chunk's replicas that narrows the difference most: to another node, in domains no
    /// closer than they are, and only if the target stays the emptier one.
    pub fn narrowing(&self, chunk: &ChunkView, limits: &Limits) -> Option<Move> {
        let whole = chunk.members.len() == limits.replicas
            && chunk.members.iter().all(|member| member.health == Health::Alive && !member.draining);
        if !whole || chunk.busy || chunk.open {
            return None;
        }
        let now = closeness(chunk.members.iter().map(|member| member.domain.as_str()));
        let mut best: Option<Move> = None;
        for member in &chunk.members {
            let Some(from) = self.disks.iter().find(|level| level.disk.disk == member.disk) else { continue };
            let others = || chunk.members.iter().filter(|other| other.node != member.node);
            for to in self.disks.iter().filter(|to| !to.settling && to.disk.free_bytes >= chunk.bytes) {
                let difference = from.fullness.saturating_sub(to.fullness);
                let narrows = share(&from.disk, chunk.used_bytes) + share(&to.disk, chunk.used_bytes);
                let elsewhere = chunk.members.iter().all(|member| member.node != to.disk.node);
                let domains = others().map(|other| other.domain.as_str());
                if difference > self.least
                    && difference > best.map_or(0, |best| best.difference)
                    && narrows <= difference
                    && elsewhere
                    && closeness(domains.chain([to.disk.domain.as_str()])) <= now
                {
                    best = Some(Move { from: from.disk.disk, to: to.disk.disk, difference });
                }
            }
        }
        best
    }
}
