//! The checker itself: histories that are known to be right or wrong, and random ones.

mod known;
mod random;

use super::history::{History, Model};

/// A history in few words: (client, call, begin, end and answer).
pub type Row<M> = (u16, <M as Model>::Call, u64, Option<(u64, <M as Model>::Answer)>);

pub fn history<M: Model>(rows: impl IntoIterator<Item = Row<M>>) -> History<M> {
    let mut history = History::default();
    for (client, call, begin, end) in rows {
        let operation = history.begin(client, call, begin);
        if let Some((end, answer)) = end {
            history.end(operation, answer, end);
        }
    }
    history
}
