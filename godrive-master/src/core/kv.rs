//! Ordered bytes: all that the state asks of a store.
//!
//! A record's changes arrive as one [`Batch`] that is visible as a whole or not at all; the state keeps its
//! position in the log under a key of its own, in the same batch. Durability comes from the log: a store only
//! needs to be whole, at whatever record, after [`Checkpoint::run`] or a crash.

use bytes::Bytes;
use godrive_proto::{Code, Fault};
use std::collections::BTreeMap;
use std::ops::Bound;

pub type Key = Vec<u8>;

/// What one record changes; None removes the key.
pub type Batch = BTreeMap<Key, Option<Bytes>>;

/// The store failed or holds what it cannot. The master must stop: its memory may be ahead of its disk.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the master's store failed: {0}")]
    Io(String),
    #[error("the master's store is damaged: {0}")]
    Damaged(String),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Fault::new(Code::Disk, error.to_string())
    }
}

/// Called for every pair of a scan; false ends it.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &Bytes) -> bool;

pub trait Kv: Send {
    fn read(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// Visits the keys from `from` to before `to`, ascending.
    fn scan(&self, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), StoreError>;

    fn write(&mut self, batch: Batch) -> Result<(), StoreError>;

    /// Bytes that a checkpoint would write.
    fn dirty_bytes(&self) -> usize {
        0
    }

    /// Everything written so far, ready to be made durable elsewhere. None: nothing to do, or one is under way.
    fn begin_checkpoint(&mut self) -> Option<Box<dyn Checkpoint>> {
        None
    }

    /// The checkpoint begun last has run; it is no longer needed in memory.
    fn end_checkpoint(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// A checkpoint under way. May run on another thread while the store is read and written.
pub trait Checkpoint: Send {
    /// Blocks until all of it is on stable storage.
    fn run(&self) -> Result<(), StoreError>;
}

/// A store without a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryKv {
    pub map: BTreeMap<Key, Bytes>,
}

impl Kv for MemoryKv {
    fn read(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.map.get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        if from >= to {
            return Ok(());
        }
        for (key, value) in self.map.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to))) {
            if !visit(key, value) {
                break;
            }
        }
        Ok(())
    }

    fn write(&mut self, batch: Batch) -> Result<(), StoreError> {
        for (key, value) in batch {
            match value {
                Some(value) => self.map.insert(key, value),
                None => self.map.remove(&key),
            };
        }
        Ok(())
    }
}
