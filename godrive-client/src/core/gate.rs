//! The gate of one inode: which operations may go on while its lease is recalled.
//!
//! Answers fill the kernel's caches, and a recall must empty them. So every answer that the kernel may cache is
//! counted from the moment it was decided until it was given (`admit` to `leave`). A recall
//!
//! 1. closes the gate: operations on pages that come now wait;
//! 2. lets those inside leave;
//! 3. invalidates the kernel's pages, all but those of waiting operations: the kernel has locked these and would
//!    wait for us. What arrives *during* the invalidation may be what the kernel waits for: it is let in, and its
//!    range is invalidated again, until nothing came in between. Others go on waiting. Who goes on and on with the same pages
//!    waits in the end too: the last round lets nobody in.
//! 4. gives the lease back and opens the gate.

use std::collections::BTreeMap;
use std::ops::Range;

/// An empty range: an answer about attributes or names, not about pages.
pub const NO_PAGES: Range<u64> = 0..0;

/// All pages.
pub const EVERYTHING: Range<u64> = 0..PAGES_END;

/// Behind all pages: for an operation that waits at a closed gate, but for which the kernel has no pages locked.
pub const NO_LOCKED_PAGES: Range<u64> = PAGES_END..u64::MAX;

/// The kernel's offsets are signed.
const PAGES_END: u64 = 1 << 63;

#[derive(Debug, Default)]
pub struct Gate {
    closed: bool,
    /// What is being invalidated now; only while closed.
    invalidating: Vec<Range<u64>>,
    inside: BTreeMap<u64, Range<u64>>,
    waiting: BTreeMap<u64, Range<u64>>,
    /// Let in during an invalidation.
    again: Vec<Range<u64>>,
    last: u64,
}

impl Gate {
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Lets an operation in, or None: it must wait.
    pub fn admit(&mut self, range: Range<u64>) -> Option<u64> {
        if self.closed && !range.is_empty() {
            if !self.invalidating.iter().any(|part| overlap(part, &range)) {
                return None;
            }
            self.again.push(range.clone());
        }
        self.last += 1;
        self.inside.insert(self.last, range);
        Some(self.last)
    }

    pub fn leave(&mut self, id: u64) {
        self.inside.remove(&id);
    }

    pub fn is_empty(&self) -> bool {
        self.inside.is_empty()
    }

    /// The operation waits (for the gate or for a lease) while the kernel has these pages locked.
    pub fn wait(&mut self, range: Range<u64>) -> u64 {
        self.last += 1;
        self.waiting.insert(self.last, range);
        self.last
    }

    pub fn end_wait(&mut self, id: u64) {
        self.waiting.remove(&id);
    }

    /// False if a recall is already under way.
    pub fn close(&mut self) -> bool {
        !std::mem::replace(&mut self.closed, true)
    }

    pub fn open(&mut self) {
        self.closed = false;
        self.invalidating.clear();
        self.again.clear();
    }

    /// What to invalidate first: everything that no waiting operation has locked.
    pub fn first_round(&mut self) -> Vec<Range<u64>> {
        self.begin(vec![EVERYTHING])
    }

    /// After a round, when those inside have left: what to invalidate again; None when nothing came in between.
    pub fn next_round(&mut self) -> Option<Vec<Range<u64>>> {
        self.invalidating.clear();
        let again = std::mem::take(&mut self.again);
        let parts = self.begin(again);
        (!parts.is_empty()).then_some(parts)
    }

    /// What is left of the round that did not begin, when there were many. Whoever comes now waits: the invalidation may wait for its pages, and the recall
    /// does not wait for that; its pages are invalidated when it was answered.
    pub fn last_round(&mut self, mut left: Vec<Range<u64>>) -> Vec<Range<u64>> {
        left.append(&mut self.again);
        let parts = self.begin(left);
        self.invalidating.clear();
        parts
    }

    fn begin(&mut self, ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
        let mut parts = ranges;
        for locked in self.waiting.values().filter(|range| !range.is_empty()) {
            let locked = locked.start / PAGE * PAGE..locked.end.div_ceil(PAGE).saturating_mul(PAGE);
            parts = parts.into_iter().flat_map(|part| without(part, &locked)).collect();
        }
        self.invalidating.clone_from(&parts);
        parts
    }
}

/// The kernel's page.
const PAGE: u64 = 4096;

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    // The kernel locks whole pages.
    a.start / PAGE * PAGE < b.end && b.start / PAGE * PAGE < a.end
}

fn without(part: Range<u64>, locked: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let before = part.start..part.end.min(locked.start);
    let after = part.start.max(locked.end)..part.end;
    [before, after].into_iter().filter(|range| range.start < range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_it_lets_in_only_what_an_invalidation_may_wait_for() {
        let mut gate = Gate::default();
        let early = gate.admit(0..10).unwrap();
        assert!(gate.close());
        assert!(!gate.close());
        assert!(gate.admit(0..10).is_none());
        assert!(gate.admit(NO_PAGES).is_some(), "attributes are answered without being cached");
        gate.leave(early);
        assert_eq!(gate.first_round(), vec![EVERYTHING]);
        let twice = 5000..6000;
        let during = gate.admit(twice.clone()).unwrap();
        assert!(!gate.is_empty());
        gate.leave(during);
        assert_eq!(gate.next_round(), Some(vec![twice]));
        assert!(gate.admit(0..10).is_none(), "another range waits during the second round");
        assert!(gate.admit(8191..8192).is_some(), "it shares a page with what is invalidated");
        assert!(gate.next_round().is_some());
        assert_eq!(gate.next_round(), None);
        assert!(gate.admit(5000..6000).is_none());
        gate.open();
        assert!(gate.admit(5000..6000).is_some());
    }

    #[test]
    fn pages_that_a_waiting_operation_has_locked_are_left_out() {
        let mut gate = Gate::default();
        let waiting = gate.wait(5000..9000);
        gate.close();
        assert_eq!(gate.first_round(), vec![0..4096, 12288..EVERYTHING.end]);
        gate.end_wait(waiting);
        assert_eq!(gate.next_round(), None);
    }

    #[test]
    fn who_goes_on_with_the_same_pages_waits_in_the_last_round() {
        let mut gate = Gate::default();
        gate.close();
        let mut round = gate.first_round();
        for _ in 0..8 {
            let again = gate.admit(0..700).unwrap();
            gate.leave(again);
            round = gate.next_round().unwrap();
        }
        let during = gate.admit(100..200).unwrap();
        gate.leave(during);
        assert_eq!(gate.last_round(round), vec![0..700, 100..200]);
        assert!(gate.admit(0..700).is_none());
    }

    #[test]
    fn an_operation_without_locked_pages_waits_and_keeps_none_from_being_invalidated() {
        let mut gate = Gate::default();
        let inside = gate.admit(NO_LOCKED_PAGES).unwrap();
        gate.wait(NO_LOCKED_PAGES);
        gate.close();
        assert!(!gate.is_empty(), "a recall lets it leave first");
        gate.leave(inside);
        assert_eq!(gate.first_round(), vec![EVERYTHING]);
        assert!(gate.admit(NO_LOCKED_PAGES).is_none(), "no invalidation waits for it");
        assert_eq!(gate.next_round(), None);
        gate.open();
        assert!(gate.admit(NO_LOCKED_PAGES).is_some());
    }
}
