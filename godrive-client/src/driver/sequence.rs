//! The window of a session's unanswered mutations.
//!
//! The master keeps a mutation's result until the client says, by `answered_below`, that nobody will ask for it
//! again. So that it keeps at most `MAX_OUTSTANDING` results, a new sequence is allotted only while the lowest
//! unanswered one is less than that behind. Pure.

use godrive_proto::limits::MAX_OUTSTANDING;
use std::collections::BTreeSet;

#[derive(Debug)]
pub struct Window {
    next: u64,
    unanswered: BTreeSet<u64>,
}

impl Default for Window {
    fn default() -> Self {
        Self { next: 1, unanswered: BTreeSet::new() }
    }
}

impl Window {
    /// For a session that others have used before.
    pub fn starting_at(next: u64) -> Self {
        Self { next, unanswered: BTreeSet::new() }
    }

    /// The next sequence, or None while too many are outstanding.
    pub fn allot(&mut self) -> Option<u64> {
        if self.next - self.answered_below() >= MAX_OUTSTANDING {
            return None;
        }
        let sequence = self.next;
        self.next += 1;
        self.unanswered.insert(sequence);
        Some(sequence)
    }

    /// Nobody will ask for this result (again).
    pub fn settle(&mut self, sequence: u64) {
        self.unanswered.remove(&sequence);
    }

    /// Every sequence below is settled.
    pub fn answered_below(&self) -> u64 {
        self.unanswered.first().copied().unwrap_or(self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answered_below_is_the_lowest_unanswered() {
        let mut window = Window::default();
        let all: Vec<_> = (0..3).filter_map(|_| window.allot()).collect();
        assert_eq!(all, [1, 2, 3]);
        window.settle(2);
        assert_eq!(window.answered_below(), 1);
        window.settle(1);
        assert_eq!(window.answered_below(), 3);
        window.settle(3);
        assert_eq!(window.answered_below(), 4);
    }

    #[test]
    fn one_stuck_mutation_bounds_what_the_master_keeps() {
        let mut window = Window::default();
        let stuck = window.allot().unwrap();
        let mut allotted = 1;
        while let Some(sequence) = window.allot() {
            window.settle(sequence);
            allotted += 1;
        }
        assert_eq!(allotted, MAX_OUTSTANDING);
        window.settle(stuck);
        assert_eq!(window.allot(), Some(MAX_OUTSTANDING + 1));
    }
}
