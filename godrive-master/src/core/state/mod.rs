//! The logged state: the namespace, the chunk table, sessions, nodes and tokens, over a [`Kv`].
//!
//! [`State::apply`] is the only way to change it. It runs a record as a transaction: an operation that is refused
//! leaves no trace but its answer (kept for the session's retry) and the record's index. [`State::check`] rehearses
//! a mutation and throws the result away, which tells the server exactly which inodes it would change, and lets
//! operations that fail be answered without a record.

pub mod keys;
pub mod values;

mod apply;
mod chunks;
mod epochs;
mod queries;
mod registry;
mod sessions;
pub mod transaction;

#[cfg(test)]
pub mod tests;

pub use chunks::Closing;
pub use transaction::{Effects, Failure, Transaction};

use crate::core::kv::{Checkpoint, Kv, StoreError};
use crate::core::record::{Answer, Mutation};
use godrive_proto::time::Timestamp;
use godrive_proto::{ChunkId, Fault, LogIndex, SessionId, Term};
use values::{Cluster, Counts, Meta, Value};

/// See the module.
pub struct State {
    kv: Box<dyn Kv>,
    meta: Meta,
}

/// What applying a record gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub answer: Answer,
    pub effects: Effects,
    /// The answer waits until the record is on stable storage.
    pub sync_required: bool,
    /// The session had asked this before: the answer is the kept one and nothing happened.
    pub repeated: bool,
}

impl State {
    /// Over an empty store, or where a store's last checkpoint (or crash) left it.
    pub fn open(kv: Box<dyn Kv>) -> Result<Self, StoreError> {
        let meta = match kv.read(&keys::META)? {
            Some(bytes) => Meta::decode(&bytes)?,
            None => Meta::default(),
        };
        Ok(Self { kv, meta })
    }

    /// The last record that was applied; 0 for none.
    pub fn applied(&self) -> LogIndex {
        self.meta.applied
    }

    /// None: the first record has to be [`crate::core::record::Body::Bootstrap`].
    pub fn cluster(&self) -> Option<Cluster> {
        self.meta.cluster
    }

    /// The last term that was started.
    pub fn term(&self) -> Term {
        self.meta.term
    }

    /// The time of the last record; the next will not have an earlier one.
    pub fn time(&self) -> Timestamp {
        self.meta.time
    }

    /// The chunk made last; ids rise.
    pub fn newest_chunk(&self) -> ChunkId {
        self.meta.last_chunk
    }

    pub fn counts(&self) -> Counts {
        self.meta.counts
    }

    /// Rehearses a mutation as of `time`: the inodes it would change (whose leases in other sessions' hands must be
    /// recalled first), or the fault it would answer. A create that would find an existing file changes nothing.
    pub fn check(&self, session: SessionId, time: Timestamp, mutation: &Mutation) -> Result<Effects, Fault> {
        let mut rehearsal = self.begin(self.meta.applied.next(), time, session);
        if session.0 != 0 {
            rehearsal.session_of(session)?;
        }
        apply::mutate(&mut rehearsal, mutation)?;
        Ok(rehearsal.effects)
    }

    /// Bytes in memory that a checkpoint would write.
    pub fn dirty_bytes(&self) -> usize {
        self.kv.dirty_bytes()
    }

    /// Makes everything applied so far durable in the store. The log must be on stable storage up to
    /// [`Self::applied`] before [`StateCheckpoint::run`]; it may be cut below the checkpoint's index after
    /// [`Self::end_checkpoint`]. None: there is nothing new, or a checkpoint is under way.
    pub fn begin_checkpoint(&mut self) -> Option<StateCheckpoint> {
        let store = self.kv.begin_checkpoint()?;
        Some(StateCheckpoint { index: self.meta.applied, store })
    }

    /// Call once after a checkpoint has run without error.
    pub fn end_checkpoint(&mut self) -> Result<(), StoreError> {
        self.kv.end_checkpoint()
    }

    #[cfg(test)]
    pub fn kv(&self) -> &dyn Kv {
        &*self.kv
    }

    fn begin(&self, index: LogIndex, time: Timestamp, session: SessionId) -> Transaction<'_> {
        Transaction::new(&*self.kv, self.meta.clone(), index, time, session)
    }

    /// For queries: sees the state as it is.
    fn view(&self) -> Transaction<'_> {
        self.begin(self.meta.applied, self.meta.time, SessionId(0))
    }
}

/// A checkpoint under way; may run on another thread while records are applied.
pub struct StateCheckpoint {
    /// What the store holds once this has run.
    pub index: LogIndex,
    store: Box<dyn Checkpoint>,
}

impl StateCheckpoint {
    /// Blocks until the checkpoint is on stable storage. After an error the master must stop.
    pub fn run(&self) -> Result<(), StoreError> {
        self.store.run()
    }
}
