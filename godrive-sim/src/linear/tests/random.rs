//! Random histories: those that an atomic execution makes pass, and those that were spoiled in a way that is surely wrong
//! are caught.

use crate::linear::log::{self, Contents, Log};
use crate::linear::names::{self, Names};
use crate::linear::register::{self, Register};
use crate::linear::{BUDGET, History, Model, Verdict, check};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const CLIENTS: u16 = 5;
const OPERATIONS: usize = 250;
/// Some three of these operations lose their answers, as many as a run bears before it turns to a new object.
const LOSSES: f64 = 0.004;

/// What a client is in the middle of.
struct Underway<M: Model> {
    operation: usize,
    call: M::Call,
    answer: Option<M::Answer>,
}

/// Runs an object that does one thing at a time, at random moments within the operations; some of the answers are lost, with
/// the operation's effect at any later moment or none.
fn execute<M: Model>(
    seed: u64,
    losses: f64,
    mut call: impl FnMut(&mut SmallRng, u64) -> M::Call,
) -> History<M> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut history = History::default();
    let mut state = M::start();
    let mut clients: Vec<Option<Underway<M>>> = (0..CLIENTS).map(|_| None).collect();
    let mut late: Vec<M::Call> = Vec::new();
    let mut now = 0;
    while history.operations.len() < OPERATIONS || clients.iter().any(Option::is_some) {
        now += 1;
        if !late.is_empty() && rng.random_bool(0.02) {
            let call = late.swap_remove(rng.random_range(0..late.len()));
            state = M::run(&state, &call).0;
        }
        let client = rng.random_range(0..usize::from(CLIENTS));
        clients[client] = match clients[client].take() {
            None if history.operations.len() >= OPERATIONS => None,
            None => {
                let call = call(&mut rng, now);
                let operation = history.begin(client as u16, call.clone(), now);
                Some(Underway { operation, call, answer: None })
            }
            Some(underway) if rng.random_bool(losses) => {
                late.extend(underway.answer.is_none().then_some(underway.call));
                None
            }
            Some(Underway { operation, call, answer: None }) => {
                let (after, answer) = M::run(&state, &call);
                state = after;
                Some(Underway { operation, call, answer: Some(answer) })
            }
            Some(Underway { operation, answer: Some(answer), .. }) => {
                history.end(operation, answer, now);
                None
            }
        };
    }
    history
}

fn register_call(rng: &mut SmallRng, unique: u64) -> register::Call {
    if rng.random_bool(0.6) { register::Call::Read } else { register::Call::Write(unique) }
}

fn log_call(rng: &mut SmallRng, unique: u64) -> log::Call {
    if rng.random_bool(0.5) { log::Call::Read } else { log::Call::Append(unique) }
}

fn names_call(rng: &mut SmallRng, unique: u64) -> names::Call {
    use names::Call;
    let one = rng.random_range(0..names::NAMES as u8);
    let other = (one + rng.random_range(1..names::NAMES as u8)) % names::NAMES as u8;
    match rng.random_range(0..10) {
        0..3 => Call::Create(one, unique as u32),
        3..5 => Call::Look(one),
        5 => Call::Rename(one, other),
        6 => Call::RenameNoReplace(one, other),
        7..9 => Call::Remove(one),
        _ => Call::List,
    }
}

/// Answers a read with what a write gave that was overwritten and seen to be, before the read began.
fn stale_read(history: &mut History<Register>) -> bool {
    use register::{Answer, Call};
    let value = |call: &Call| if let Call::Write(value) = call { Some(*value) } else { None };
    let writes: Vec<_> = history
        .operations
        .iter()
        .filter_map(|o| Some((o.begin, o.end.as_ref()?.0, value(&o.call)?)))
        .collect();
    let Some((old_end, old)) = writes.first().map(|(_, end, old)| (*end, *old)) else { return false };
    let Some(new_end) = writes.iter().filter(|(begin, ..)| *begin > old_end).map(|(_, end, _)| *end).min()
    else {
        return false;
    };
    let read =
        history.operations.iter_mut().find(|o| o.call == Call::Read && o.begin > new_end && o.end.is_some());
    let Some(answer) = read.and_then(|read| read.end.as_mut()) else { return false };
    answer.1 = Answer::Value(old);
    true
}

/// Answers a read of the log without what an earlier one has shown.
fn forgotten_record(history: &mut History<Log>) -> bool {
    use log::Answer;
    let reads: Vec<_> = history
        .operations
        .iter()
        .enumerate()
        .filter_map(|(index, o)| match &o.end {
            Some((end, Answer::Contents(contents))) => Some((index, o.begin, *end, *contents)),
            _ => None,
        })
        .collect();
    for (_, _, end, shown) in &reads {
        let older: Option<Contents> =
            reads.iter().map(|(.., contents)| *contents).find(|contents| contents.records < shown.records);
        let later = reads.iter().find(|(_, begin, ..)| begin > end);
        if let (Some(older), Some((index, ..))) = (older, later)
            && let Some(answer) = &mut history.operations[*index].end
        {
            answer.1 = Answer::Contents(older);
            return true;
        }
    }
    false
}

/// Lets a look find what a look found that ended before a removal of the only name that it ever had.
fn resurrection(history: &mut History<Names>) -> bool {
    use names::{Answer, Call};
    let done = |o: &crate::linear::Operation<Names>| matches!(o.end, Some((_, Answer::Done)));
    // A name whose thing was found and of which then nothing but the removal is known to have happened.
    let Some((name, value, found)) = history.operations.iter().find_map(|o| match (&o.call, &o.end) {
        (Call::Look(name), Some((end, Answer::Found(value)))) => Some((*name, *value, *end)),
        _ => None,
    }) else {
        return false;
    };
    let touches = |call: &Call| match call {
        Call::Rename(one, other) | Call::RenameNoReplace(one, other) => *one == name || *other == name,
        _ => false,
    };
    let Some(removed) = history
        .operations
        .iter()
        .filter(|o| o.call == Call::Remove(name) && done(o) && o.begin > found)
        .filter_map(|o| Some(o.end.as_ref()?.0))
        .min()
    else {
        return false;
    };
    // A rename could have moved it away and back.
    if history.operations.iter().any(|o| touches(&o.call) && o.begin < removed) {
        return false;
    }
    let look = history
        .operations
        .iter_mut()
        .find(|o| matches!(o.call, Call::Look(_)) && o.begin > removed && o.end.is_some());
    let Some(look) = look else { return false };
    look.call = Call::Look(name);
    if let Some(answer) = &mut look.end {
        answer.1 = Answer::Found(value);
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_atomic_passes(seed: u64, lossy: bool) {
        let losses = if lossy { LOSSES } else { 0.0 };
        prop_assert_eq!(check(&execute::<Register>(seed, losses, register_call), BUDGET), Verdict::Linearizable);
        prop_assert_eq!(check(&execute::<Log>(seed, losses, log_call), BUDGET), Verdict::Linearizable);
        prop_assert_eq!(check(&execute::<Names>(seed, losses, names_call), BUDGET), Verdict::Linearizable);
    }

    #[test]
    fn a_stale_read_is_caught(seed: u64, lossy: bool) {
        let mut history = execute(seed, if lossy { LOSSES } else { 0.0 }, register_call);
        prop_assume!(stale_read(&mut history));
        prop_assert_eq!(check(&history, BUDGET), Verdict::Violated);
    }

    #[test]
    fn a_forgotten_record_is_caught(seed: u64, lossy: bool) {
        let mut history = execute(seed, if lossy { LOSSES } else { 0.0 }, log_call);
        prop_assume!(forgotten_record(&mut history));
        prop_assert_eq!(check(&history, BUDGET), Verdict::Violated);
    }

    #[test]
    fn a_resurrection_is_caught(seed: u64) {
        // Without renames of the name; a removed thing is never made again.
        let mut history = execute(seed, 0.0, |rng: &mut SmallRng, unique| match names_call(rng, unique) {
            names::Call::Rename(one, _) | names::Call::RenameNoReplace(one, _) => names::Call::Look(one),
            other => other,
        });
        prop_assume!(resurrection(&mut history));
        prop_assert_eq!(check(&history, BUDGET), Verdict::Violated);
    }

    /// A history that is small enough to try every order of it.
    #[test]
    fn the_search_agrees_with_trying_every_order(seed: u64, spoiled in 0..6usize, value in 0..40u64) {
        let mut history = execute(seed, 0.05, register_call);
        history.operations.truncate(7);
        if let Some((_, answer)) = &mut history.operations[spoiled].end
            && *answer != register::Answer::Written
        {
            *answer = register::Answer::Value(value);
        }
        let expected = if any_order(&history, &mut Vec::new(), 0) { Verdict::Linearizable } else { Verdict::Violated };
        prop_assert_eq!(check(&history, BUDGET), expected);
    }
}

/// Tries every order of the operations, those without an answer in it or not.
fn any_order(history: &History<Register>, order: &mut Vec<usize>, state: u64) -> bool {
    let left: Vec<usize> = (0..history.operations.len()).filter(|index| !order.contains(index)).collect();
    let end = |index: usize| history.operations[index].end.as_ref().map_or(u64::MAX, |(end, _)| *end);
    if left.iter().all(|index| end(*index) == u64::MAX) {
        return true;
    }
    left.iter().any(|index| {
        let operation = &history.operations[*index];
        if left.iter().any(|other| end(*other) < operation.begin) {
            return false;
        }
        let (after, given) = Register::run(&state, &operation.call);
        if operation.end.as_ref().is_some_and(|(_, answer)| *answer != given) {
            return false;
        }
        order.push(*index);
        let found = any_order(history, order, after);
        order.pop();
        found
    })
}
