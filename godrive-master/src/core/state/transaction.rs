//! One record's view of the state: reads see its own writes, and nothing reaches the store unless it succeeds.
//!
//! The same type, without writes, serves the queries, and as a rehearsal [`super::State::check`].

use super::keys::{self, Range};
use super::values::{Inode, Meta, Value};
use crate::core::kv::{Batch, Key, Kv, StoreError};
use bytes::Bytes;
use godrive_proto::time::Timestamp;
use godrive_proto::{ChunkId, Code, Fault, Ino, LogIndex, SessionId};
use std::collections::BTreeSet;
use std::ops::Bound;

/// Why an operation did not happen.
#[derive(Clone, Debug)]
pub enum Failure {
    /// The answer to the request: a function of the state.
    Refused(Fault),
    /// The state could not be read.
    Store(StoreError),
}

pub type Result<T> = std::result::Result<T, Failure>;

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Refused(fault)
    }
}

impl From<Code> for Failure {
    fn from(code: Code) -> Self {
        Self::Refused(Fault::bare(code))
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(fault) => fault,
            Failure::Store(error) => error.into(),
        }
    }
}

pub fn refuse<T>(code: Code, detail: impl Into<String>) -> Result<T> {
    Err(Failure::Refused(Fault::new(code, detail)))
}

/// What a record did beside its answer, for the server to act on. Ascending and without repetitions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Inodes that existed before and look different now (attributes, names, xattrs or layout).
    pub changed: BTreeSet<Ino>,
    pub created: BTreeSet<Ino>,
    /// Inodes whose last name was removed and that some session keeps as an orphan.
    pub orphaned: BTreeSet<Ino>,
    /// Inodes that no session can reach any longer: gone, or in the trash without a holder.
    pub removed: BTreeSet<Ino>,
    /// Chunks that entered the queue of deleted ones.
    pub freed: BTreeSet<ChunkId>,
    /// Chunks whose writer was revoked: run an epoch change before anybody else may have the inode.
    pub unsettled: BTreeSet<ChunkId>,
    /// Inodes that lost an unsettled chunk: no epoch change will put it in order.
    pub settled: BTreeSet<Ino>,
}

pub struct Transaction<'a> {
    kv: &'a dyn Kv,
    writes: Batch,
    pub meta: Meta,
    pub index: LogIndex,
    /// Never before that of an earlier record.
    pub now: Timestamp,
    /// Who asked; 0 if nobody did.
    pub session: SessionId,
    pub effects: Effects,
}

impl<'a> Transaction<'a> {
    pub fn new(kv: &'a dyn Kv, meta: Meta, index: LogIndex, time: Timestamp, session: SessionId) -> Self {
        let now = time.max(meta.time);
        Self { kv, writes: Batch::new(), meta, index, now, session, effects: Effects::default() }
    }

    /// The meta value is written with every record, so that the store knows its place in the log.
    pub fn finish(mut self) -> Result<(Batch, Meta, Effects)> {
        self.meta.applied = self.index;
        self.meta.time = self.now;
        let meta = self.meta.encode()?;
        self.put_bytes(keys::META.to_vec(), meta);
        Ok((self.writes, self.meta, self.effects))
    }

    pub fn bytes(&self, key: &[u8]) -> Result<Option<Bytes>> {
        match self.writes.get(key) {
            Some(own) => Ok(own.clone()),
            None => Ok(self.kv.read(key)?),
        }
    }

    pub fn value<V: Value>(&self, key: &[u8]) -> Result<Option<V>> {
        match self.bytes(key)? {
            Some(bytes) => Ok(Some(V::decode(&bytes)?)),
            None => Ok(None),
        }
    }

    /// A value that another one promises; its absence is damage, not an answer.
    pub fn promised<V: Value>(&self, key: &[u8]) -> Result<V> {
        match self.value(key)? {
            Some(value) => Ok(value),
            None => Err(StoreError::Damaged(format!("{} {key:02x?} is missing", V::NAME)).into()),
        }
    }

    pub fn put_bytes(&mut self, key: Key, value: Bytes) {
        self.writes.insert(key, Some(value));
    }

    pub fn put<V: Value>(&mut self, key: Key, value: &V) -> Result<()> {
        self.put_bytes(key, value.encode()?);
        Ok(())
    }

    /// A key whose presence is all it says.
    pub fn mark(&mut self, key: Key) {
        self.put_bytes(key, Bytes::new());
    }

    pub fn delete(&mut self, key: Key) {
        self.writes.insert(key, None);
    }

    /// At most `limit` pairs of the range, ascending.
    pub fn scan(&self, range: &Range, limit: usize) -> Result<Vec<(Key, Bytes)>> {
        let mut found = Vec::new();
        if limit == 0 || range.from >= range.to {
            return Ok(found);
        }
        let bounds = (Bound::Included(range.from.as_slice()), Bound::Excluded(range.to.as_slice()));
        let mut own = self.writes.range::<[u8], _>(bounds).peekable();
        self.kv.scan(&range.from, &range.to, &mut |key, value| {
            while let Some((own_key, own_value)) = own.next_if(|(own_key, _)| own_key.as_slice() <= key) {
                if let Some(own_value) = own_value {
                    found.push((own_key.clone(), own_value.clone()));
                }
                if own_key.as_slice() == key {
                    return found.len() < limit;
                }
                if found.len() >= limit {
                    return false;
                }
            }
            found.push((key.to_vec(), value.clone()));
            found.len() < limit
        })?;
        while found.len() < limit {
            match own.next() {
                Some((key, Some(value))) => found.push((key.clone(), value.clone())),
                Some((_, None)) => {}
                None => break,
            }
        }
        Ok(found)
    }

    pub fn is_empty(&self, range: &Range) -> Result<bool> {
        if range.from >= range.to {
            return Ok(true);
        }
        let bounds = (Bound::Included(range.from.as_slice()), Bound::Excluded(range.to.as_slice()));
        let written = self.writes.range::<[u8], _>(bounds).any(|(_, value)| value.is_some());
        Ok(!written && self.scan(range, 1)?.is_empty())
    }

    /// An inode that a request names. Numbers are never reused, so what is missing was removed.
    pub fn inode(&self, ino: Ino) -> Result<Inode> {
        match self.value(&keys::inode(ino))? {
            Some(inode) => Ok(inode),
            None => refuse(Code::Stale, format!("inode {ino} does not exist (any longer)")),
        }
    }

    /// Writes an inode that existed before; its change index becomes this record's.
    pub fn change(&mut self, ino: Ino, inode: &mut Inode) -> Result<()> {
        inode.change = self.index.0;
        self.put(keys::inode(ino), inode)?;
        if !self.effects.created.contains(&ino) {
            self.effects.changed.insert(ino);
        }
        Ok(())
    }
}
