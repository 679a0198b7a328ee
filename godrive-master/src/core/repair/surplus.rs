//! Which member leaves a chunk that has more of them than it needs.

use super::{ChunkView, MemberView};
use crate::core::nodes::Health;
use crate::core::placement::{Candidate, shared_levels};
use godrive_proto::NodeId;
use std::cmp::Reverse;

/// A member without which `replicas` living ones are left: one that is lost, else one that is drained, else the one
/// that leaves the others in the best domains, and of several such the one on the fullest disk. One that may only be
/// restarting stays.
pub fn leaver(chunk: &ChunkView, replicas: usize, candidates: &[Candidate]) -> Option<NodeId> {
    let alive = chunk.alive();
    let lost = chunk.members.iter().find(|member| member.health == Health::Dead);
    if let Some(lost) = lost.filter(|_| alive >= replicas) {
        return Some(lost.node);
    }
    if alive <= replicas {
        return None;
    }
    let rank = |member: &&MemberView| {
        let others = chunk.members.iter().filter(|other| other.node != member.node);
        let spread = closeness(others.map(|other| other.domain.as_str()));
        let disk = candidates.iter().find(|candidate| candidate.disk == member.disk);
        (!member.draining, spread, Reverse(disk.map_or(u32::MAX, fullness)), member.node)
    };
    let living = chunk.members.iter().filter(|member| member.health == Health::Alive);
    living.min_by_key(rank).map(|member| member.node)
}

/// How close the domains are to each other, over all pairs: the less, the better they are spread.
pub fn closeness<'a>(domains: impl Iterator<Item = &'a str>) -> usize {
    let domains: Vec<&str> = domains.collect();
    let pairs = domains.iter().enumerate();
    pairs.flat_map(|(at, one)| domains[..at].iter().map(|other| shared_levels(one, other))).sum()
}

/// The used share of a disk, in thousandths.
pub fn fullness(disk: &Candidate) -> u32 {
    share(disk, disk.total_bytes.saturating_sub(disk.free_bytes))
}

/// What so many bytes are of the disk, in thousandths.
pub fn share(disk: &Candidate, bytes: u64) -> u32 {
    let total = u128::from(disk.total_bytes.max(1));
    u32::try_from(u128::from(bytes) * 1000 / total).unwrap_or(u32::MAX)
}
