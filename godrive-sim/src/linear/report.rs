//! A violation, for people.

use super::check::{Verdict, check, first_violation};
use super::history::{History, Model};
use std::fmt::Write;

/// Operations that are shown: those that ended last, and all that have no answer.
const SHOWN: usize = 24;

/// Checks the history of this object. None: it is linearizable.
pub fn explain<M: Model>(object: &str, history: &History<M>, budget: usize) -> Option<String> {
    match check(history, budget) {
        Verdict::Linearizable => None,
        Verdict::Undecided => Some(format!(
            "{object}: the search for an order exceeded {budget} steps, with {} operations of which {} have no answer; nothing is proven",
            history.operations.len(),
            history.operations.len() - history.known(),
        )),
        Verdict::Violated => Some(violation(object, history, budget)),
    }
}

fn violation<M: Model>(object: &str, history: &History<M>, budget: usize) -> String {
    let moment = first_violation(history, budget);
    let shown = moment.map_or_else(|| history.clone(), |moment| history.until(moment));
    let mut operations = shown.operations;
    operations.sort_by_key(|operation| operation.end.as_ref().map_or(u64::MAX, |(end, _)| *end));
    let known = operations.iter().filter(|operation| operation.end.is_some()).count();
    let left_out = known.saturating_sub(SHOWN);
    let mut text = format!(
        "{object}: no order of these operations explains their answers; the first that none explains is marked, {left_out} earlier ones are left out\n"
    );
    let mut rows = operations.split_off(left_out);
    rows.sort_by_key(|operation| operation.begin);
    // Writing into a string cannot fail.
    let _ = writeln!(text, "        begin      end  client  call -> answer");
    for row in rows {
        let (end, answer) = match &row.end {
            Some((end, answer)) => (end.to_string(), format!("{answer:?}")),
            None => ("-".to_owned(), "no answer (yet)".to_owned()),
        };
        let mark = if row.end.is_some_and(|(end, _)| Some(end) == moment) { ">" } else { " " };
        let _ = writeln!(
            text,
            "   {mark} {:>8} {end:>8} {:>7}  {:?} -> {answer}",
            row.begin, row.client, row.call
        );
    }
    text
}
