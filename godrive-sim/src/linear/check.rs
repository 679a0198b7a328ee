//! The search for an order.

use super::history::{History, Model, Operation};
use std::collections::HashSet;
use xxhash_rust::xxh3::Xxh3DefaultBuilder;

/// Steps of one search. A history of some hundred operations takes about as many where all answers are known.
pub const BUDGET: usize = 400_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is such an order.
    Linearizable,
    /// There is none.
    Violated,
    /// Not found within the budget.
    Undecided,
}

/// Which operations have had their moment.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Done(Box<[u64]>);

impl Done {
    fn has(&self, index: usize) -> bool {
        self.0[index / 64] & (1 << (index % 64)) != 0
    }

    fn set(&mut self, index: usize, done: bool) {
        let bit = 1 << (index % 64);
        match done {
            true => self.0[index / 64] |= bit,
            false => self.0[index / 64] &= !bit,
        }
    }
}

/// A state on the way: what can be done next in it, and what state each leads to.
struct Frame<S> {
    /// The operation that led to it.
    by: Option<usize>,
    next: std::vec::IntoIter<(usize, S)>,
}

struct Search<'a, M: Model> {
    /// Those with an answer in the order of their beginnings, then those without.
    operations: Vec<&'a Operation<M>>,
    known: usize,
    hints: M::Hints,
    done: Done,
    /// So many of the known ones are done.
    finished: usize,
    /// All known ones before it are done.
    first: usize,
    seen: HashSet<(Done, M::State), Xxh3DefaultBuilder>,
}

/// Searches an order of at most `budget` steps.
pub fn check<M: Model>(history: &History<M>, budget: usize) -> Verdict {
    Search::new(history).run(budget)
}

impl<'a, M: Model> Search<'a, M> {
    fn new(history: &'a History<M>) -> Self {
        let mut operations: Vec<_> = history
            .operations
            .iter()
            .filter(|operation| operation.end.is_some() || !M::is_invisible(&operation.call, history))
            .collect();
        operations.sort_by_key(|operation| (operation.end.is_none(), operation.begin));
        let known = operations.iter().filter(|operation| operation.end.is_some()).count();
        let done = Done(vec![0; operations.len().div_ceil(64)].into());
        let hints = M::hints(history);
        Self { operations, known, hints, done, finished: 0, first: 0, seen: HashSet::default() }
    }

    fn run(mut self, budget: usize) -> Verdict {
        let start = M::start();
        let mut path = vec![Frame { next: self.candidates(&start).into_iter(), by: None }];
        let mut steps = 0;
        while self.finished < self.known {
            let Some(frame) = path.last_mut() else { return Verdict::Violated };
            let Some((index, state)) = frame.next.next() else {
                if let Some(index) = path.pop().and_then(|frame| frame.by) {
                    self.undo(index);
                }
                continue;
            };
            steps += 1;
            if steps > budget {
                return Verdict::Undecided;
            }
            self.take(index);
            if !self.seen.insert((self.done.clone(), state.clone())) {
                self.undo(index);
                continue;
            }
            path.push(Frame { next: self.candidates(&state).into_iter(), by: Some(index) });
        }
        Verdict::Linearizable
    }

    fn take(&mut self, index: usize) {
        self.done.set(index, true);
        self.finished += usize::from(index < self.known);
        while self.first < self.known && self.done.has(self.first) {
            self.first += 1;
        }
    }

    fn undo(&mut self, index: usize) {
        self.done.set(index, false);
        self.finished -= usize::from(index < self.known);
        if index < self.known {
            self.first = self.first.min(index);
        }
    }

    /// What can be next: whatever began before the first end of what is still to be done, and gives its answer in this
    /// state. The most likely comes first.
    fn candidates(&self, state: &M::State) -> Vec<(usize, M::State)> {
        let mut first_end = u64::MAX;
        let mut begun = Vec::new();
        for index in self.first..self.known {
            let operation = self.operations[index];
            if operation.begin > first_end {
                break;
            }
            let Some((end, answer)) = operation.end.as_ref().filter(|_| !self.done.has(index)) else {
                continue;
            };
            first_end = first_end.min(*end);
            begun.push((*end, index, answer));
        }
        begun.retain(|(_, index, _)| self.operations[*index].begin < first_end);
        begun.sort_by_key(|(end, index, _)| (*end, *index));
        let mut candidates = Vec::new();
        for (_, index, answer) in begun {
            let call = &self.operations[index].call;
            if !M::allows(state, call, answer) {
                continue;
            }
            let after = M::run(state, call).0;
            if after == *state {
                // Whatever order there is, this one can come now: it changes nothing and answers rightly.
                return vec![(index, after)];
            }
            if M::may_be(&self.hints, &after) {
                candidates.push((index, after));
            }
        }
        for index in self.known..self.operations.len() {
            let operation = self.operations[index];
            if operation.begin < first_end && !self.done.has(index) {
                let after = M::run(state, &operation.call).0;
                if after != *state && M::may_be(&self.hints, &after) {
                    candidates.push((index, after));
                }
            }
        }
        candidates
    }
}

/// The moment of the first answer that no order explains together with all before it; None if there is no such answer
/// within the budget. Whatever is not linearizable stays so with more operations, so halving finds it.
pub fn first_violation<M: Model>(history: &History<M>, budget: usize) -> Option<u64> {
    let mut ends: Vec<u64> =
        history.operations.iter().filter_map(|operation| Some(operation.end.as_ref()?.0)).collect();
    ends.sort_unstable();
    let violated = |moment: u64| check(&history.until(moment), budget) == Verdict::Violated;
    let first = ends.partition_point(|moment| !violated(*moment));
    ends.get(first).copied().filter(|moment| violated(*moment))
}
