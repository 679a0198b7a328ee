//! A block of a file: the last write is what every read gives.

use super::history::{History, Model};

/// Names one write; every write of a block writes another. Zero: never written.
pub type Value = u64;

#[derive(Clone, Copy, Debug)]
pub struct Register;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Read,
    Write(Value),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Written,
    Value(Value),
}

impl Model for Register {
    type State = Value;
    type Call = Call;
    type Answer = Answer;
    type Hints = ();

    fn start() -> Value {
        0
    }

    fn run(state: &Value, call: &Call) -> (Value, Answer) {
        match call {
            Call::Read => (*state, Answer::Value(*state)),
            Call::Write(value) => (*value, Answer::Written),
        }
    }

    /// A write that no read has given.
    fn is_invisible(call: &Call, history: &History<Self>) -> bool {
        match call {
            Call::Read => true,
            Call::Write(value) => !history.answers().any(|answer| *answer == Answer::Value(*value)),
        }
    }
}
