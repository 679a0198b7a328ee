//! The histories of all objects that clients share in a run, and what the checker says of them.

use crate::linear::log::Log;
use crate::linear::names::Names;
use crate::linear::register::Register;
use crate::linear::{BUDGET, History, Model, explain};
use std::collections::BTreeMap;
use std::fmt;

/// Reports of one run; more say nothing new.
const MAX_REPORTS: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Blocks,
    Directory,
    Log,
}

impl Kind {
    /// After so many operations, or so many without an answer, everyone turns to a new object: with each of them the
    /// search for an order becomes harder.
    fn limits(self) -> (usize, usize) {
        match self {
            Self::Blocks => (600, 12),
            Self::Directory => (300, 4),
            Self::Log => (300, 6),
        }
    }
}

/// A lane of objects, of which one at a time is used.
pub type Lane = (Kind, u16);

/// An object with a history of its own: of a file of blocks, each block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    pub lane: Lane,
    pub generation: u32,
    pub part: u64,
}

impl Object {
    /// Of the file or directory.
    pub fn name(&self) -> String {
        let (kind, number) = self.lane;
        format!("{}-{number}-{}", format!("{kind:?}").to_lowercase(), self.generation)
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lane.0 {
            Kind::Blocks => write!(f, "block {} of {}", self.part, self.name()),
            Kind::Directory | Kind::Log => f.write_str(&self.name()),
        }
    }
}

/// Names an operation for its end.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    pub object: Object,
    operation: usize,
}

/// The histories of one kind of object.
pub struct Book<M: Model>(BTreeMap<Object, History<M>>);

impl<M: Model> Default for Book<M> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

/// An object model whose histories are kept.
pub trait Kept: Model {
    fn book(histories: &mut Histories) -> &mut Book<Self>
    where
        Self: Sized;
}

impl Kept for Register {
    fn book(histories: &mut Histories) -> &mut Book<Self> {
        &mut histories.blocks
    }
}

impl Kept for Names {
    fn book(histories: &mut Histories) -> &mut Book<Self> {
        &mut histories.directories
    }
}

impl Kept for Log {
    fn book(histories: &mut Histories) -> &mut Book<Self> {
        &mut histories.logs
    }
}

#[derive(Default)]
struct Turn {
    generation: u32,
    operations: usize,
    unknown: usize,
}

/// What was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// With an answer.
    pub operations: usize,
    /// Without one.
    pub unknown: usize,
    pub objects: usize,
}

#[derive(Default)]
pub struct Histories {
    /// Beginnings and ends: the order in which the one process saw them.
    now: u64,
    values: u64,
    turns: BTreeMap<Lane, Turn>,
    blocks: Book<Register>,
    directories: Book<Names>,
    logs: Book<Log>,
}

impl Histories {
    pub fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// What begins or ends from here on has at least this number, for example that of the microsecond.
    pub fn not_before(&mut self, moment: u64) {
        self.now = self.now.max(moment);
    }

    /// One that nobody has got before.
    pub fn value(&mut self) -> u64 {
        self.values += 1;
        self.values
    }

    pub fn generation(&mut self, lane: Lane) -> u32 {
        self.turns.entry(lane).or_default().generation
    }

    pub fn begin<M: Kept>(&mut self, client: u16, object: Object, call: M::Call) -> Ticket {
        let now = self.tick();
        let operation = M::book(self).0.entry(object).or_default().begin(client, call, now);
        let turn = self.turns.entry(object.lane).or_default();
        if turn.generation == object.generation {
            turn.operations += 1;
        }
        self.turn(object.lane, false);
        Ticket { object, operation }
    }

    /// It ended at that moment with that answer.
    pub fn end<M: Kept>(&mut self, ticket: Ticket, answer: M::Answer, moment: u64) {
        if let Some(history) = M::book(self).0.get_mut(&ticket.object) {
            history.end(ticket.operation, answer, moment);
        }
    }

    /// An operation of the lane failed; its answer will not come.
    pub fn unknown(&mut self, object: Object) {
        let turn = self.turns.entry(object.lane).or_default();
        if turn.generation == object.generation {
            turn.unknown += 1;
        }
        self.turn(object.lane, false);
    }

    /// Everyone turns to new objects: a client died in the middle of who knows what.
    pub fn turn_all(&mut self) {
        let lanes: Vec<Lane> = self.turns.keys().copied().collect();
        lanes.into_iter().for_each(|lane| self.turn(lane, true));
    }

    fn turn(&mut self, lane: Lane, now: bool) {
        let (operations, unknown) = lane.0.limits();
        let turn = self.turns.entry(lane).or_default();
        if now || turn.operations >= operations || turn.unknown >= unknown {
            *turn = Turn { generation: turn.generation + 1, ..Turn::default() };
        }
    }

    /// Checks every history; says what was checked and what is wrong.
    pub fn verdict(&self) -> (Checked, Vec<String>) {
        let mut checked = Checked::default();
        let mut reports = Vec::new();
        judge(&self.blocks, &mut checked, &mut reports);
        judge(&self.directories, &mut checked, &mut reports);
        judge(&self.logs, &mut checked, &mut reports);
        let more = reports.len().saturating_sub(MAX_REPORTS);
        reports.truncate(MAX_REPORTS);
        if more > 0 {
            reports.push(format!("{more} more objects whose histories are not linearizable"));
        }
        (checked, reports)
    }
}

fn judge<M: Model>(book: &Book<M>, checked: &mut Checked, reports: &mut Vec<String>) {
    for (object, history) in &book.0 {
        checked.objects += 1;
        checked.operations += history.known();
        checked.unknown += history.operations.len() - history.known();
        reports.extend(explain(&object.to_string(), history, BUDGET));
    }
}
