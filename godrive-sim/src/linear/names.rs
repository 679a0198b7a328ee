//! A directory in which a few names come, move and go.

use super::history::{History, Model};

pub const NAMES: usize = 8;
/// One of the few.
pub type Name = u8;
/// Names one thing that was made, and moves with it; every one is another. Zero: there is no such name.
pub type Value = u32;

#[derive(Clone, Copy, Debug)]
pub struct Names;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Exclusive.
    Create(Name, Value),
    Look(Name),
    /// Of two different names; over whatever the second one leads to.
    Rename(Name, Name),
    /// The same unless the second one exists.
    RenameNoReplace(Name, Name),
    Remove(Name),
    /// Of the whole directory, at one moment.
    List,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    Exists,
    Missing,
    Found(Value),
    /// For each name whether it is there and, where that was told, what it leads to.
    Listing([Listed; NAMES]),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    Absent,
    Present,
    Leads(Value),
}

type State = [Value; NAMES];

impl Model for Names {
    type State = State;
    type Call = Call;
    type Answer = Answer;
    type Hints = ();

    fn start() -> State {
        State::default()
    }

    fn run(state: &State, call: &Call) -> (State, Answer) {
        let at = |name: &Name| state[usize::from(*name)];
        let with = |changes: &[(Name, Value)]| {
            let mut after = *state;
            changes.iter().for_each(|(name, value)| after[usize::from(*name)] = *value);
            (after, Answer::Done)
        };
        match call {
            Call::Create(name, _) if at(name) != 0 => (*state, Answer::Exists),
            Call::Create(name, value) => with(&[(*name, *value)]),
            Call::Look(name) if at(name) == 0 => (*state, Answer::Missing),
            Call::Look(name) => (*state, Answer::Found(at(name))),
            Call::Rename(from, _) | Call::RenameNoReplace(from, _) | Call::Remove(from) if at(from) == 0 => {
                (*state, Answer::Missing)
            }
            Call::RenameNoReplace(_, to) if at(to) != 0 => (*state, Answer::Exists),
            Call::Rename(from, to) | Call::RenameNoReplace(from, to) => with(&[(*to, at(from)), (*from, 0)]),
            Call::Remove(name) => with(&[(*name, 0)]),
            Call::List => (*state, Answer::Listing(state.map(listed))),
        }
    }

    fn allows(state: &State, call: &Call, answer: &Answer) -> bool {
        match (call, answer) {
            // Of two reasons for a refusal either may be given.
            (Call::RenameNoReplace(_, to), Answer::Exists) => state[usize::from(*to)] != 0,
            (Call::List, Answer::Listing(names)) => names.iter().zip(state).all(|(name, value)| match name {
                Listed::Absent => *value == 0,
                Listed::Present => *value != 0,
                Listed::Leads(found) => found == value,
            }),
            _ => Self::run(state, call).1 == *answer,
        }
    }

    fn is_invisible(call: &Call, _: &History<Self>) -> bool {
        matches!(call, Call::Look(_) | Call::List)
    }
}

fn listed(value: Value) -> Listed {
    match value {
        0 => Listed::Absent,
        value => Listed::Leads(value),
    }
}
