//! What was asked of an object, by whom, when, and what it answered.

use std::fmt::Debug;
use std::hash::Hash;

/// An object that does one thing at a time.
pub trait Model: Clone + Debug {
    type State: Clone + Debug + Eq + Hash;
    type Call: Clone + Debug;
    type Answer: Clone + Debug + Eq;
    /// What the answers tell of the states that there must have been.
    type Hints: Default;

    /// What every such object begins as.
    fn start() -> Self::State;

    /// What the call does to the state, and what it answers.
    fn run(state: &Self::State, call: &Self::Call) -> (Self::State, Self::Answer);

    /// Whether the call may give this answer in this state. Models whose answers leave something open say more.
    fn allows(state: &Self::State, call: &Self::Call, answer: &Self::Answer) -> bool {
        Self::run(state, call).1 == *answer
    }

    fn hints(_history: &History<Self>) -> Self::Hints
    where
        Self: Sized,
    {
        Self::Hints::default()
    }

    /// False: whoever comes into this state will not find an order, whatever follows. It spares the search the way.
    fn may_be(_hints: &Self::Hints, _state: &Self::State) -> bool {
        true
    }

    /// Whether nobody has seen anything of this call, whose answer is unknown, and it may be taken for one that never
    /// took effect without making any difference.
    fn is_invisible(_call: &Self::Call, _history: &History<Self>) -> bool
    where
        Self: Sized,
    {
        false
    }
}

/// One operation of a client.
#[derive(Clone, Debug)]
pub struct Operation<M: Model> {
    pub client: u16,
    pub call: M::Call,
    pub begin: u64,
    /// When it ended and with what answer. None: unknown; it may take effect at any later moment or never.
    pub end: Option<(u64, M::Answer)>,
}

/// The operations on one object. Begins and ends are numbers of one clock, no two of them alike.
#[derive(Clone, Debug)]
pub struct History<M: Model> {
    pub operations: Vec<Operation<M>>,
}

impl<M: Model> Default for History<M> {
    fn default() -> Self {
        Self { operations: Vec::new() }
    }
}

impl<M: Model> History<M> {
    /// Names the operation for its end.
    pub fn begin(&mut self, client: u16, call: M::Call, now: u64) -> usize {
        self.operations.push(Operation { client, call, begin: now, end: None });
        self.operations.len() - 1
    }

    pub fn end(&mut self, operation: usize, answer: M::Answer, now: u64) {
        self.operations[operation].end = Some((now, answer));
    }

    pub fn answers(&self) -> impl Iterator<Item = &M::Answer> {
        self.operations.iter().filter_map(|operation| operation.end.as_ref()).map(|(_, answer)| answer)
    }

    pub fn known(&self) -> usize {
        self.answers().count()
    }

    /// What could be known of it at this moment: later operations are missing, unfinished ones have no answer yet.
    pub fn until(&self, moment: u64) -> Self {
        let begun = self.operations.iter().filter(|operation| operation.begin <= moment).cloned();
        let operations = begun
            .map(|operation| Operation { end: operation.end.filter(|(end, _)| *end <= moment), ..operation });
        Self { operations: operations.collect() }
    }
}
