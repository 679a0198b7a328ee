//! Changes made here under exclusive leases that the master has not followed yet: one queue, first in, first out.

use godrive_proto::meta::Step;
use std::collections::VecDeque;

/// Unsettled steps beyond which changes wait for the master.
pub const MAX_UNSETTLED: u64 = 4096;

/// Steps are taken from the front, sent, and settled: followed or given up.
#[derive(Debug, Default)]
pub struct Steps {
    waiting: VecDeque<Step>,
    pushed: u64,
    settled: u64,
    /// Somebody takes steps until there are none.
    worked: bool,
    /// Sessions that have ended. Steps were allowed by the leases of theirs, so they do not go into the next.
    sessions: u64,
    /// How often steps were given up, and how many of them are being dealt with.
    failures: u64,
    failing: u32,
    closed: bool,
}

impl Steps {
    /// True if nobody works on them yet: then the caller sees to it.
    pub fn push(&mut self, step: Step) -> bool {
        self.waiting.push_back(step);
        self.pushed += 1;
        !std::mem::replace(&mut self.worked, true)
    }

    /// The first up to `max`; empty: there are none, and the worker is done.
    pub fn take(&mut self, max: usize) -> Vec<Step> {
        let count = max.min(self.waiting.len());
        self.worked = count > 0;
        self.waiting.drain(..count).collect()
    }

    /// Whether another step may be pushed. Not while some are given up: what is lost would not be the last.
    pub fn accepts(&self) -> bool {
        !self.closed && self.failing == 0 && self.unsettled() < MAX_UNSETTLED
    }

    /// No more are accepted.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// All that were not sent, to be given up and settled. None are accepted until [`Self::failed`].
    pub fn fail(&mut self) -> Vec<Step> {
        self.failures += 1;
        self.failing += 1;
        self.waiting.drain(..).collect()
    }

    /// So many that were given up are dealt with.
    pub fn failed(&mut self, count: usize) {
        self.failing -= 1;
        self.settle(count);
    }

    /// How often steps were given up, without those that are being dealt with: they are still to be told of.
    pub fn failures(&self) -> u64 {
        self.failures - u64::from(self.failing)
    }

    /// The session has ended: what was taken before is not sent any more, nor are those that are returned.
    pub fn end_session(&mut self) -> Vec<Step> {
        self.sessions += 1;
        self.waiting.drain(..).collect()
    }

    pub fn session(&self) -> u64 {
        self.sessions
    }

    pub fn settle(&mut self, count: usize) {
        self.settled += count as u64;
    }

    /// Not sent yet.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn unsettled(&self) -> u64 {
        self.pushed - self.settled
    }

    /// Everything up to now, as a number for [`Self::is_settled`].
    pub fn mark(&self) -> u64 {
        self.pushed
    }

    pub fn is_settled(&self, mark: u64) -> bool {
        self.settled >= mark
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use godrive_proto::Ino;
    use godrive_proto::meta::{Name, UnlinkRequest};
    use godrive_proto::time::Timestamp;

    fn step(ino: u64) -> Step {
        let name = Name::new(format!("n{ino}")).unwrap();
        let request = UnlinkRequest { parent: Ino(1), name, directory: false };
        Step::Unlink { request, ino: Ino(ino), at: Timestamp(0) }
    }

    #[test]
    fn they_leave_in_the_order_in_which_they_came() {
        let mut steps = Steps::default();
        for ino in 2..7 {
            steps.push(step(ino));
        }
        assert_eq!(steps.take(3), [step(2), step(3), step(4)]);
        steps.push(step(7));
        assert_eq!(steps.take(3), [step(5), step(6), step(7)]);
        assert_eq!(steps.take(3), []);
    }

    #[test]
    fn one_worker_at_a_time_and_never_none() {
        let mut steps = Steps::default();
        assert!(steps.push(step(2)));
        assert!(!steps.push(step(3)));
        assert_eq!(steps.take(8).len(), 2);
        assert!(!steps.push(step(4)), "the worker sends, and comes back");
        assert_eq!(steps.take(8).len(), 1);
        assert!(steps.take(8).is_empty());
        assert!(steps.push(step(5)), "the worker has gone");
    }

    #[test]
    fn while_steps_are_given_up_none_follow_them() {
        let mut steps = Steps::default();
        steps.push(step(2));
        let taken = steps.take(1);
        steps.push(step(3));
        assert_eq!((steps.failures(), steps.fail()), (0, vec![step(3)]));
        assert!(!steps.accepts());
        assert_eq!(steps.fail(), [], "the session's end and the worker both give up");
        assert_eq!(steps.failures(), 0, "who begins to wait now waits for what is lost");
        steps.failed(taken.len());
        assert!(!steps.accepts());
        steps.failed(1);
        assert!(steps.accepts() && steps.is_settled(steps.mark()));
        assert_eq!(steps.failures(), 2);
        steps.close();
        assert!(!steps.accepts());
    }

    #[test]
    fn only_so_many_are_unsettled() {
        let mut steps = Steps::default();
        for ino in 0..MAX_UNSETTLED {
            assert!(steps.accepts());
            steps.push(step(ino + 2));
        }
        assert!(!steps.accepts());
        steps.take(1);
        assert!(!steps.accepts(), "taken is not settled");
        steps.settle(1);
        assert!(steps.accepts());
    }

    #[test]
    fn a_mark_is_settled_when_all_before_it_are() {
        let mut steps = Steps::default();
        assert!(steps.is_settled(steps.mark()));
        steps.push(step(2));
        steps.push(step(3));
        let mark = steps.mark();
        steps.push(step(4));
        let taken = steps.take(2).len();
        assert!(!steps.is_settled(mark));
        steps.settle(taken);
        assert!(steps.is_settled(mark));
        assert_eq!((steps.unsettled(), steps.waiting()), (1, 1));
    }
}
