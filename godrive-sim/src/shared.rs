//! What the run and its hosts have in common: the oracle, and what everyone is doing.

use crate::cluster::Node;
use crate::histories::Histories;
use crate::operator::Desk;
use crate::oracle::Oracle;
use crate::walker::Seen;
use godrive_proto::Ino;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Operations that took longer are logged.
const SLOW: Duration = Duration::from_millis(400);

/// See [`crate::folder`].
#[derive(Clone, Copy, Debug)]
pub struct Folder {
    pub ino: Ino,
    /// Its number as a file of the oracle's.
    pub file: u32,
    /// [`Oracle::disturbances`] when it was made.
    pub disturbances: u64,
}

/// What some spans of a run ask for by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Removal,
    /// A write and the `close` behind it; it began when the write did.
    Close,
    /// The same with an `fsync`.
    Fsync,
}

#[derive(Clone, Copy, Debug)]
pub struct Done {
    pub kind: Kind,
    pub client: u16,
    pub began: Duration,
    pub ended: Duration,
}

#[derive(Default)]
pub struct Notes {
    pub oracle: Oracle,
    /// See [`crate::sharing`].
    pub histories: Histories,
    pub desk: Desk,
    /// Clients whose machines sleep: nothing is asked of them.
    pub asleep: BTreeSet<u16>,
    /// The operation that each client is in and since when, for the report of a hang; of a client that does several at
    /// once, by the number of the worker.
    pub doing: BTreeMap<(u16, u16), (Duration, String)>,
    /// When each acknowledged operation of each client ended.
    pub acknowledged: Vec<(u16, Duration)>,
    pub done: Vec<Done>,
    /// The folder that each client works in.
    pub folders: BTreeMap<u16, Folder>,
    pub made_folders: u32,
    /// Clients that have done all they had to.
    pub finished: BTreeMap<u16, bool>,
    /// What must not happen, apart from what the oracle finds.
    pub problems: Vec<String>,
    /// Errors that clients met, for the report: message and how often.
    pub errors: BTreeMap<String, u64>,
    /// Nodes whose process ended at its start, and what it said.
    pub refused: BTreeMap<Node, String>,
    /// What those that came only to look have seen.
    pub seen: BTreeMap<u16, Seen>,
    /// By so much later than planned everything happens, because the cluster had to settle first.
    pub delayed: Duration,
    /// The cluster is to settle: clients do little meanwhile.
    pub settling: bool,
}

/// Clones are the same notes.
#[derive(Clone, Default)]
pub struct Shared(Arc<Mutex<Notes>>);

impl Shared {
    pub fn with<T>(&self, act: impl FnOnce(&mut Notes) -> T) -> T {
        act(&mut self.0.lock())
    }

    pub fn doing(&self, client: u16, what: impl Into<String>) {
        self.worker_doing((client, 0), what);
    }

    pub fn worker_doing(&self, (client, worker): (u16, u16), what: impl Into<String>) {
        let at = turmoil::sim_elapsed().unwrap_or_default();
        let before = self.with(|notes| notes.doing.insert((client, worker), (at, what.into())));
        if let Some((since, what)) = before.filter(|(since, _)| at - *since > SLOW) {
            tracing::info!(client, worker, took = ?(at - since), "slow: {what}");
        }
    }

    /// Whether the workload's time is over.
    pub fn is_over(&self, until: Duration) -> bool {
        let (delayed, settling) = self.with(|notes| (notes.delayed, notes.settling));
        !settling && turmoil::sim_elapsed().unwrap_or_default() >= until + delayed
    }

    /// Returns when the client's machine does not sleep.
    pub async fn awake(&self, client: u16) {
        while self.with(|notes| notes.asleep.contains(&client)) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub fn acknowledged(&self, client: u16) {
        let at = turmoil::sim_elapsed().unwrap_or_default();
        self.with(|notes| notes.acknowledged.push((client, at)));
    }

    /// It began then and has ended well.
    pub fn done(&self, kind: Kind, client: u16, began: Duration) {
        let ended = turmoil::sim_elapsed().unwrap_or_default();
        self.with(|notes| notes.done.push(Done { kind, client, began, ended }));
    }

    pub fn error(&self, what: &str, error: &impl std::fmt::Display) {
        // Addresses and numbers differ from case to case; the first words say what it is.
        let text: String = format!("{what}: {error}").chars().take(100).collect();
        self.with(|notes| *notes.errors.entry(text).or_default() += 1);
    }

    pub fn problem(&self, what: impl Into<String>) {
        let at = turmoil::sim_elapsed().unwrap_or_default();
        self.with(|notes| notes.problems.push(format!("at {at:?}: {}", what.into())));
    }
}
