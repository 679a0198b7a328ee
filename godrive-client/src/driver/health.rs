//! Which of a chunk's members to ask first, and how long to wait before the next is asked as well.
//!
//! A node that failed, or answered a read later than another one that was asked after it, is avoided for a while that
//! doubles if it happens again. Among the others the least busy is nearest, and equals are taken in an order that
//! the caller's spread rotates, so that different chunks (and different mounts) ask different members and one chunk
//! keeps asking the same. Pure.

use super::latency::{Estimate, Size};
use godrive_proto::NodeId;
use godrive_proto::time::Instant;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

#[derive(Debug)]
pub struct Health {
    nodes: BTreeMap<NodeId, Node>,
    /// The bounds of a wait before a read is asked of another member as well.
    hedge: RangeInclusive<Duration>,
    /// What may be asked twice without need, in parts of [`Self::A_HEDGE`]. Many reads at once may take more, which is owed.
    credit: i32,
}

/// A read that was answered or overtaken.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    pub node: NodeId,
    pub size: Size,
    /// Until the answer, or so far.
    pub took: Duration,
    /// How long it was waited for before another one was asked; None: there was no other.
    pub patience: Option<Duration>,
}

#[derive(Debug, Default)]
struct Node {
    failed: Avoidance,
    /// Not forgiven by answers to anything but reads: a disk may be slow for reads only.
    late: Avoidance,
    reads: [Option<Estimate>; Size::COUNT],
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

impl Health {
    /// One read in ten may be asked of another member before the longest wait is over, and some in a row.
    const A_HEDGE: i32 = 10;
    const MOST_CREDIT: i32 = 16 * Self::A_HEDGE;

    pub fn new(hedge: RangeInclusive<Duration>) -> Self {
        Self { nodes: BTreeMap::new(), hedge, credit: Self::MOST_CREDIT }
    }

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

    /// A read was answered first by this one.
    pub fn read(&mut self, wait: Wait) {
        self.credit = (self.credit + 1).min(Self::MOST_CREDIT);
        let in_time = wait.patience.is_some_and(|patience| wait.took <= patience);
        let took = self.at_most(wait.took);
        let node = self.nodes.entry(wait.node).or_default();
        Estimate::add(&mut node.reads[wait.size.class()], took);
        if in_time {
            // One quick answer, perhaps out of a cache, does not undo that others were slow.
            node.late.times = node.late.times.saturating_sub(1);
        }
    }

    /// Another one has answered first, and this one so far not. `overtaken`: the other was asked later.
    pub fn unanswered(&mut self, wait: Wait, overtaken: bool, now: Instant) {
        let took = self.at_most(wait.took);
        let silent = overtaken && wait.took >= *self.hedge.end() + wait.size.longest_transit();
        let node = self.nodes.entry(wait.node).or_default();
        let estimate = &mut node.reads[wait.size.class()];
        // It takes longer than this; by how much is not known.
        if estimate.map_or(overtaken, |estimate| estimate.mean() < took) {
            Estimate::add(estimate, took);
        }
        if overtaken {
            node.late.begin(now);
        }
        if silent {
            node.failed.begin(now);
        }
    }

    /// A machine that slept has waited for hours.
    fn at_most(&self, took: Duration) -> Duration {
        took.min(self.hedge.end().saturating_mul(4))
    }

    /// How long to wait for an answer before `next` is asked as well; the longest if it is not known how quick that is, as what
    /// was known of a node that fails now no longer holds.
    pub fn hedge(&self, next: NodeId, size: Size, now: Instant) -> Duration {
        let longest = *self.hedge.end() + size.longest_transit();
        if self.credit < Self::A_HEDGE || self.is_unreachable(next, now) {
            return longest;
        }
        let estimate = self.nodes.get(&next).and_then(|node| node.reads[size.class()]);
        estimate.map_or(longest, |estimate| (estimate.bound() * 2).max(*self.hedge.start()).min(longest))
    }

    /// One was asked as well.
    pub fn hedged(&mut self) {
        self.credit = (self.credit - Self::A_HEDGE).max(-4 * Self::MOST_CREDIT);
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

    fn health() -> Health {
        Health::new(ms(30)..=ms(500))
    }

    fn order(health: &Health, spread: u64, now: Instant) -> Vec<usize> {
        health.order(MEMBERS.into_iter(), spread, now)
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn small() -> Size {
        Size::of(1)
    }

    fn wait(node: u128, took: u64) -> Wait {
        Wait { node: NodeId(node), size: small(), took: ms(took), patience: Some(ms(500)) }
    }

    #[test]
    fn the_spread_rotates_and_the_busy_and_the_failed_come_later() {
        let mut health = health();
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
        let mut health = health();
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
        let mut health = health();
        let mut now = Instant(0);
        health.unanswered(wait(1, 60), true, now);
        health.succeeded(NodeId(1));
        assert_eq!(order(&health, 0, now), [1, 2, 0]);
        assert!(!health.is_unreachable(NodeId(1), now));
        now = now.after(Avoidance::SHORTEST);
        assert_eq!(order(&health, 0, now), [0, 1, 2]);
        // Late again: for twice as long, for as long again after one quick answer, and for a short time after two.
        for (quick, seconds) in [(0, 4), (1, 4), (2, 2)] {
            for _ in 0..quick {
                health.read(wait(1, 1));
            }
            health.unanswered(wait(1, 60), true, now);
            now = now.after(Duration::from_secs(seconds) - ms(1));
            assert_eq!(order(&health, 0, now), [1, 2, 0], "{quick} quick answers");
            now = now.after(ms(1));
            assert_eq!(order(&health, 0, now), [0, 1, 2], "{quick} quick answers");
        }
        // What came too late, or from the only one that was left, was not quick.
        health.read(wait(1, 501));
        health.read(Wait { patience: None, ..wait(1, 400) });
        health.unanswered(wait(1, 60), true, now);
        assert_eq!(order(&health, 0, now.after(ms(3_999))), [1, 2, 0]);
        // Who was only asked later than the one that answered is not late; who says nothing at all is not asked to write.
        health.unanswered(wait(2, 60), false, now);
        assert_eq!(order(&health, 0, now), [1, 2, 0]);
        health.unanswered(wait(3, 501), true, now);
        assert!(health.is_unreachable(NodeId(3), now) && !health.is_unreachable(NodeId(1), now));
    }

    #[test]
    fn the_next_is_asked_when_it_would_have_answered_twice() {
        let mut health = health();
        let hedge = |health: &Health| health.hedge(NodeId(2), small(), Instant(0));
        // Nothing is known of it, however quick the others are.
        health.read(wait(1, 1));
        assert!((ms(500)..ms(502)).contains(&hedge(&health)));
        health.unanswered(wait(2, 1), false, Instant(0));
        assert!((ms(500)..ms(502)).contains(&hedge(&health)));
        health.read(wait(2, 40));
        assert_eq!(hedge(&health), ms(40 + 80) * 2);
        // Reads of another size say nothing of this one.
        health.read(Wait { size: Size::of(1024), ..wait(2, 700) });
        assert_eq!(hedge(&health), ms(40 + 80) * 2);
        // What takes always the same is waited for less and less.
        for _ in 0..100 {
            health.read(wait(2, 50));
        }
        assert!((ms(100)..ms(104)).contains(&hedge(&health)), "{:?}", hedge(&health));
        // A crowd that makes all of them slow makes nobody late, also if the one is never the first to answer.
        for _ in 0..100 {
            health.unanswered(wait(2, 200), false, Instant(0));
        }
        assert!(hedge(&health) > ms(350), "{:?}", hedge(&health));
        for _ in 0..100 {
            health.read(wait(2, 1));
        }
        assert_eq!(hedge(&health), ms(30));
        // Not while it fails.
        health.failed(NodeId(2), Instant(0));
        assert!((ms(500)..ms(502)).contains(&hedge(&health)));
        health.succeeded(NodeId(2));
        assert_eq!(hedge(&health), ms(30));
        // That it was waited for before says nothing against it.
        health.unanswered(wait(2, 0), false, Instant(0));
        assert_eq!(hedge(&health), ms(30));
        // A machine that slept has forgotten it soon.
        health.read(wait(2, 3_600_000));
        for _ in 0..40 {
            health.read(wait(2, 1));
        }
        assert!(hedge(&health) < ms(250), "{:?}", hedge(&health));
    }

    #[test]
    fn one_read_in_ten_may_be_asked_twice_early() {
        let mut health = health();
        health.read(wait(2, 1));
        let early = |health: &Health| health.hedge(NodeId(2), small(), Instant(0)) == ms(30);
        for hedge in 0..16 {
            assert!(early(&health), "{hedge}");
            health.hedged();
        }
        for read in 0..10 {
            assert!(!early(&health), "{read}");
            health.read(wait(2, 1));
        }
        assert!(early(&health));
        // Reads that wait at one time take more than there is, and owe it.
        (0..4).for_each(|_| health.hedged());
        for read in 0..40 {
            assert!(!early(&health), "{read}");
            health.read(wait(2, 1));
        }
        assert!(early(&health));
    }
}
