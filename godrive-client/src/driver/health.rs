//! Which of a chunk's members to ask first, and how long to wait before the next is asked as well.
//!
//! A node that failed, or answered a read later than another one that was asked after it, is avoided for a while that
//! doubles with each time in a row. Among the others the least busy is nearest, and equals are taken in an order that
//! the caller's spread rotates, so that different chunks (and different mounts) ask different members and one chunk
//! keeps asking the same.
//!
//! How long a node's answers take is estimated like the round trips of RFC 6298: a smoothed mean and a smoothed
//! deviation, of which four are added. A member is late when the next one, asked instead, would have answered twice
//! by now ("hedged requests": Dean and Barroso, The Tail at Scale, 2013). Pure.

use godrive_proto::NodeId;
use godrive_proto::time::Instant;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

#[derive(Debug, Default)]
pub struct Health {
    nodes: BTreeMap<NodeId, Node>,
}

#[derive(Debug, Default)]
struct Node {
    failed: Avoidance,
    /// Not forgiven by answers to anything but reads: a disk may be slow for reads only.
    late: Avoidance,
    reads: Option<Estimate>,
    outstanding: u32,
}

impl Node {
    fn is_avoided(&self, now: Instant) -> bool {
        self.failed.lasts(now) || self.late.lasts(now)
    }
}

#[derive(Debug, Default)]
struct Avoidance {
    times: u32,
    until: Option<Instant>,
}

impl Avoidance {
    const SHORTEST: Duration = Duration::from_secs(2);
    const LONGEST: Duration = Duration::from_secs(16);

    /// What went wrong together counts once.
    fn begin(&mut self, now: Instant) {
        if self.lasts(now) {
            return;
        }
        let wait = Self::SHORTEST.saturating_mul(1 << self.times.min(8)).min(Self::LONGEST);
        self.times = self.times.saturating_add(1);
        self.until = Some(now.after(wait));
    }

    fn lasts(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

/// How long answers take: the mean and the deviation, smoothed.
#[derive(Clone, Copy, Debug)]
struct Estimate {
    mean: Duration,
    deviation: Duration,
}

impl Estimate {
    fn first(took: Duration) -> Self {
        Self { mean: took, deviation: took / 2 }
    }

    fn next(self, took: Duration) -> Self {
        let deviation = self.deviation * 3 / 4 + self.mean.abs_diff(took) / 4;
        Self { mean: self.mean * 7 / 8 + took / 8, deviation }
    }

    /// Few answers take longer.
    fn bound(self) -> Duration {
        self.mean + self.deviation * 4
    }
}

impl Health {
    pub fn begun(&mut self, node: NodeId) {
        self.nodes.entry(node).or_default().outstanding += 1;
    }

    pub fn ended(&mut self, node: NodeId) {
        let outstanding = &mut self.nodes.entry(node).or_default().outstanding;
        *outstanding = outstanding.saturating_sub(1);
    }

    pub fn succeeded(&mut self, node: NodeId) {
        self.nodes.entry(node).or_default().failed = Avoidance::default();
    }

    /// Failures of requests that were under way together count once.
    pub fn failed(&mut self, node: NodeId, now: Instant) {
        self.nodes.entry(node).or_default().failed.begin(now);
    }

    /// A read was answered in time, after `took`.
    pub fn read(&mut self, node: NodeId, took: Duration) {
        let node = self.nodes.entry(node).or_default();
        node.reads = Some(node.reads.map_or_else(|| Estimate::first(took), |reads| reads.next(took)));
        // One quick answer, perhaps out of a cache, does not undo that others were slow.
        node.late.times = node.late.times.saturating_sub(1);
    }

    /// Another member, asked later, has answered a read first; this one had `waited` for.
    pub fn late(&mut self, node: NodeId, waited: Duration, now: Instant) {
        let node = self.nodes.entry(node).or_default();
        node.reads = Some(node.reads.map_or_else(|| Estimate::first(waited), |reads| reads.next(waited)));
        node.late.begin(now);
    }

    /// How long to wait for an answer before one of `others` is asked as well. Those that were never asked may be slow.
    pub fn hedge(&self, others: impl Iterator<Item = NodeId>, within: &RangeInclusive<Duration>) -> Duration {
        let bounds = others.filter_map(|node| Some(self.nodes.get(&node)?.reads?.bound()));
        let twice = bounds.min().map(|bound| bound * 2);
        twice.unwrap_or(*within.end()).min(*within.end()).max(*within.start())
    }

    pub fn is_unreachable(&self, node: NodeId, now: Instant) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.failed.lasts(now))
    }

    /// Positions of `members` in the order in which to ask them. Avoided ones are last, never left out.
    pub fn order(&self, members: impl Iterator<Item = NodeId>, spread: u64, now: Instant) -> Vec<usize> {
        let members: Vec<NodeId> = members.collect();
        let count = members.len();
        let start = if count == 0 { 0 } else { (spread % count as u64) as usize };
        let mut order: Vec<usize> = (0..count).map(|at| (start + at) % count).collect();
        order.sort_by_key(|at| {
            self.nodes.get(&members[*at]).map_or((false, 0), |node| (node.is_avoided(now), node.outstanding))
        });
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMBERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

    fn order(health: &Health, spread: u64, now: Instant) -> Vec<usize> {
        health.order(MEMBERS.into_iter(), spread, now)
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_spread_rotates_and_the_busy_and_the_failed_come_later() {
        let mut health = Health::default();
        let now = Instant(0);
        assert_eq!(order(&health, 0, now), [0, 1, 2]);
        assert_eq!(order(&health, 4, now), [1, 2, 0]);
        health.begun(NodeId(2));
        assert_eq!(order(&health, 4, now), [2, 0, 1]);
        health.failed(NodeId(3), now);
        assert_eq!(order(&health, 4, now), [0, 1, 2]);
        let later = now.after(Avoidance::SHORTEST);
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
        assert!(health.is_unreachable(node, now));
        now = now.after(Avoidance::SHORTEST);
        assert!(!health.is_unreachable(node, now));
        health.failed(node, now);
        now = now.after(Avoidance::SHORTEST);
        assert!(health.is_unreachable(node, now));
        health.succeeded(node);
        assert!(!health.is_unreachable(node, now));
    }

    #[test]
    fn the_late_are_asked_last_for_reads_only_and_answers_to_writes_do_not_forgive() {
        let mut health = Health::default();
        let mut now = Instant(0);
        health.late(NodeId(1), ms(60), now);
        health.succeeded(NodeId(1));
        assert_eq!(order(&health, 0, now), [1, 2, 0]);
        assert!(!health.is_unreachable(NodeId(1), now));
        now = now.after(Avoidance::SHORTEST);
        assert_eq!(order(&health, 0, now), [0, 1, 2]);
        // Late again: for twice as long, for as long again after one quick answer, and for a short time after two.
        for (quick, wait) in [(0, 4), (1, 4), (2, 2)] {
            for _ in 0..quick {
                health.read(NodeId(1), ms(1));
            }
            health.late(NodeId(1), ms(60), now);
            now = now.after(Duration::from_secs(wait) - ms(1));
            assert_eq!(order(&health, 0, now), [1, 2, 0], "{quick} quick answers");
            now = now.after(ms(1));
            assert_eq!(order(&health, 0, now), [0, 1, 2], "{quick} quick answers");
        }
    }

    #[test]
    fn the_next_is_asked_when_it_would_have_answered_twice() {
        let mut health = Health::default();
        let within = ms(30)..=ms(500);
        let hedge = |health: &Health| health.hedge([NodeId(2), NodeId(3)].into_iter(), &within);
        // Nothing is known of them, however quick the one is that was asked.
        health.read(NodeId(1), ms(1));
        assert_eq!(hedge(&health), ms(500));
        health.read(NodeId(2), ms(40));
        assert_eq!(hedge(&health), ms(40 + 80) * 2);
        // The quickest counts, and what takes always the same is waited for less and less.
        for _ in 0..100 {
            health.read(NodeId(3), ms(50));
        }
        assert!((ms(100)..ms(104)).contains(&hedge(&health)), "{:?}", hedge(&health));
        // A crowd that makes all of them slow makes nobody late.
        for _ in 0..100 {
            health.read(NodeId(2), ms(200));
            health.late(NodeId(3), ms(200), Instant(0));
        }
        assert!((ms(400)..ms(420)).contains(&hedge(&health)), "{:?}", hedge(&health));
        for _ in 0..100 {
            health.read(NodeId(2), ms(1));
        }
        assert_eq!(hedge(&health), ms(30));
    }
}
