//! A file to which records are appended, and which is read whole.

use super::history::{History, Model};
use std::collections::BTreeMap;
use std::fmt;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Names one record; every record is another.
pub type Record = u64;

/// The last so many records are told by themselves.
const TAIL: u64 = 16;

/// Which records, in which order: their number and a rolling hash. The last ones are kept as they are: for those who read
/// reports, and for the search.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Contents {
    pub records: u64,
    pub hash: u64,
    /// Each at its place, counted round.
    tail: [Record; TAIL as usize],
}

impl Contents {
    pub fn append(mut self, record: Record) -> Self {
        self.tail[(self.records % TAIL) as usize] = record;
        self.records += 1;
        self.hash = xxh3_64_with_seed(&record.to_le_bytes(), self.hash);
        self
    }

    /// The last records with their places.
    fn tail(&self) -> impl Iterator<Item = (u64, Record)> {
        (self.records.saturating_sub(TAIL)..self.records)
            .map(|place| (place, self.tail[(place % TAIL) as usize]))
    }
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last: Vec<_> = self.tail().map(|(_, record)| record).collect();
        write!(
            f,
            "{} records ({:016x}) that end with {:?}",
            self.records,
            self.hash,
            &last[last.len().saturating_sub(4)..]
        )
    }
}

impl FromIterator<Record> for Contents {
    fn from_iter<I: IntoIterator<Item = Record>>(records: I) -> Self {
        records.into_iter().fold(Self::default(), Self::append)
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Log;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Append(Record),
    Read,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Appended,
    Contents(Contents),
}

impl Model for Log {
    type State = Contents;
    type Call = Call;
    type Answer = Answer;
    /// Which record a read has shown at which place.
    type Hints = BTreeMap<u64, Record>;

    fn start() -> Contents {
        Contents::default()
    }

    fn run(state: &Contents, call: &Call) -> (Contents, Answer) {
        match call {
            Call::Append(record) => (state.append(*record), Answer::Appended),
            Call::Read => (*state, Answer::Contents(*state)),
        }
    }

    fn hints(history: &History<Self>) -> BTreeMap<u64, Record> {
        let shown = history.answers().filter_map(|answer| match answer {
            Answer::Contents(contents) => Some(*contents),
            Answer::Appended => None,
        });
        shown.flat_map(|contents| contents.tail().collect::<Vec<_>>()).collect()
    }

    /// A log only grows: what a read has shown at a place is what is appended there.
    fn may_be(hints: &BTreeMap<u64, Record>, state: &Contents) -> bool {
        let last = state.tail().last();
        last.is_none_or(|(place, record)| hints.get(&place).is_none_or(|shown| *shown == record))
    }

    fn is_invisible(call: &Call, _: &History<Self>) -> bool {
        *call == Call::Read
    }
}
