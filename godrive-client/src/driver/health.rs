//! Which of a chunk's members to ask first.
//!
//! A node that failed is avoided for a while that doubles with each failure in a row; among the others the least
//! busy is nearest, and equals are taken in an order that the caller's spread rotates, so that different chunks
//! (and different mounts) ask different members and one chunk keeps asking the same. Pure.

use godrive_proto::NodeId;
use godrive_proto::time::Instant;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Debug, Default)]
pub struct Health {
    nodes: BTreeMap<NodeId, Node>,
}

#[derive(Debug, Default)]
struct Node {
    failures: u32,
    avoided_until: Option<Instant>,
    outstanding: u32,
}

impl Health {
    const AVOID: Duration = Duration::from_secs(2);
    const AVOID_AT_MOST: Duration = Duration::from_secs(16);

    pub fn begun(&mut self, node: NodeId) {
        self.nodes.entry(node).or_default().outstanding += 1;
    }

    pub fn ended(&mut self, node: NodeId) {
        let outstanding = &mut self.nodes.entry(node).or_default().outstanding;
        *outstanding = outstanding.saturating_sub(1);
    }

    pub fn succeeded(&mut self, node: NodeId) {
        let node = self.nodes.entry(node).or_default();
        node.failures = 0;
        node.avoided_until = None;
    }

    /// Failures of requests that were under way together count once.
    pub fn failed(&mut self, node: NodeId, now: Instant) {
        let node = self.nodes.entry(node).or_default();
        if node.avoided_until.is_some_and(|until| now < until) {
            return;
        }
        let avoid = Self::AVOID.saturating_mul(1 << node.failures.min(8)).min(Self::AVOID_AT_MOST);
        node.failures = node.failures.saturating_add(1);
        node.avoided_until = Some(now.after(avoid));
    }

    pub fn is_avoided(&self, node: NodeId, now: Instant) -> bool {
        self.nodes.get(&node).and_then(|node| node.avoided_until).is_some_and(|until| now < until)
    }

    /// Positions of `members` in the order in which to ask them. Avoided ones are last, never left out.
    pub fn order(&self, members: impl Iterator<Item = NodeId>, spread: u64, now: Instant) -> Vec<usize> {
        let members: Vec<NodeId> = members.collect();
        let count = members.len();
        let start = if count == 0 { 0 } else { (spread % count as u64) as usize };
        let mut order: Vec<usize> = (0..count).map(|at| (start + at) % count).collect();
        order.sort_by_key(|at| {
            let outstanding = self.nodes.get(&members[*at]).map_or(0, |node| node.outstanding);
            (self.is_avoided(members[*at], now), outstanding)
        });
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMBERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

    #[test]
    fn the_spread_rotates_and_the_busy_and_the_failed_come_later() {
        let mut health = Health::default();
        let now = Instant(0);
        let order = |health: &Health, spread, now| health.order(MEMBERS.into_iter(), spread, now);
        assert_eq!(order(&health, 0, now), [0, 1, 2]);
        assert_eq!(order(&health, 4, now), [1, 2, 0]);
        health.begun(NodeId(2));
        assert_eq!(order(&health, 4, now), [2, 0, 1]);
        health.failed(NodeId(3), now);
        assert_eq!(order(&health, 4, now), [0, 1, 2]);
        let later = now.after(Health::AVOID);
        assert_eq!(order(&health, 4, later), [2, 0, 1]);
        assert!(health.order([].into_iter(), 7, now).is_empty());
    }

    #[test]
    fn failures_in_a_row_are_avoided_longer_and_a_success_forgives() {
        let mut health = Health::default();
        let node = NodeId(1);
        let mut now = Instant(0);
        health.failed(node, now);
        health.failed(node, now);
        assert!(health.is_avoided(node, now));
        now = now.after(Health::AVOID);
        assert!(!health.is_avoided(node, now));
        health.failed(node, now);
        now = now.after(Health::AVOID);
        assert!(health.is_avoided(node, now));
        health.succeeded(node);
        assert!(!health.is_avoided(node, now));
    }
}
