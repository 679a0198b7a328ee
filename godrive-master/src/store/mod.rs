//! The state's store: redb on one file, behind a write-back layer in memory.
//!
//! ```text
//!   read, scan    dirty  >  flushing  >  clean (recently used)  >  redb
//!   write         dirty
//!   checkpoint    dirty becomes flushing; one redb transaction writes it durably, on any thread; flushing goes
//! ```
//!
//! redb therefore only ever holds whole records, up to the index that lies in the same transaction, and every
//! change costs a map insertion until many are written at once, in key order. Keys that were changed often in
//! between (a directory's inode, the counters) are written once.

mod cache;
mod overlay;
mod recovery;

#[cfg(test)]
mod tests;

pub use recovery::{Recovered, RecoveryError, RecoveryOptions, checkpoint, recover};

use crate::core::kv::{Batch, Checkpoint, Kv, StoreError, Visit};
use bytes::Bytes;
use cache::Cache;
use parking_lot::Mutex;
use redb::{Database, ReadOnlyTable, ReadableDatabase, StorageBackend, TableDefinition};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// One table for all: its keys begin with a tag of their own. A new layout gets a new name here.
const TABLE: TableDefinition<'static, &'static [u8], &'static [u8]> =
    TableDefinition::new("godrive-master-1");

type Table = ReadOnlyTable<&'static [u8], &'static [u8]>;

#[derive(Clone, Copy, Debug)]
pub struct StoreOptions {
    /// Recently used values, in our own cache.
    pub clean_bytes: usize,
    /// redb's page cache.
    pub page_bytes: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { clean_bytes: 64 << 20, page_bytes: 64 << 20 }
    }
}

/// See the module.
pub struct Store {
    database: Arc<Database>,
    /// redb as of the last checkpoint.
    table: Table,
    dirty: Batch,
    dirty_bytes: usize,
    flushing: Option<Arc<Batch>>,
    clean: Mutex<Cache>,
}

fn failed(what: &'static str) -> impl Fn(redb::Error) -> StoreError {
    move |error| match error {
        redb::Error::Corrupted(detail) => StoreError::Damaged(format!("{what}: {detail}")),
        other => StoreError::Io(format!("{what}: {other}")),
    }
}

/// redb breaks off where it meets a page that it cannot have written.
fn caught<T>(what: &'static str, act: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, StoreError> {
    let broke_off = |_| StoreError::Damaged(format!("{what}: a page holds what was never written to it"));
    catch_unwind(AssertUnwindSafe(act)).map_err(broke_off)?.map_err(failed(what))
}

impl Store {
    /// Reads all of it once: what has rotted would show itself later as names that are missing, or as other ones.
    pub fn open(backend: impl StorageBackend, options: StoreOptions) -> Result<Self, StoreError> {
        let database = caught("opening", || open_database(backend, options))?;
        let table = caught("opening", || open_table(&database))?;
        Ok(Self {
            database: Arc::new(database),
            table,
            dirty: Batch::new(),
            dirty_bytes: 0,
            flushing: None,
            clean: Mutex::new(Cache::new(options.clean_bytes)),
        })
    }

    fn overlays(&self) -> [Option<&Batch>; 2] {
        [Some(&self.dirty), self.flushing.as_deref()]
    }
}

fn open_database(backend: impl StorageBackend, options: StoreOptions) -> Result<Database, redb::Error> {
    let database = godrive_disk::open_verified(backend, options.page_bytes)?;
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    transaction.open_table(TABLE)?;
    transaction.commit()?;
    Ok(database)
}

fn open_table(database: &Database) -> Result<Table, redb::Error> {
    Ok(database.begin_read()?.open_table(TABLE)?)
}

impl Kv for Store {
    fn read(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        for overlay in self.overlays().into_iter().flatten() {
            if let Some(value) = overlay.get(key) {
                return Ok(value.clone());
            }
        }
        if let Some(value) = self.clean.lock().get(key) {
            return Ok(value);
        }
        let value = caught("reading", || {
            let found = self.table.get(key)?;
            Ok(found.map(|guard| Bytes::copy_from_slice(guard.value())))
        })?;
        self.clean.lock().put(key, value.clone());
        Ok(value)
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        if from >= to {
            return Ok(());
        }
        let mut below = caught("reading", || Ok(self.table.range::<&[u8]>(from..to)?))?;
        let below = std::iter::from_fn(|| {
            let next = caught("reading", || {
                let Some((key, value)) = below.next().transpose()? else { return Ok(None) };
                Ok(Some((key.value().to_vec(), Bytes::copy_from_slice(value.value()))))
            });
            next.transpose()
        });
        overlay::merge(self.overlays(), from, to, below, visit)
    }

    fn write(&mut self, batch: Batch) -> Result<(), StoreError> {
        let mut clean = self.clean.lock();
        for (key, value) in batch {
            // It will be stale once this has been flushed.
            clean.remove(&key);
            let key_bytes = key.len();
            let bytes = overlay::cost(key_bytes, value.as_ref());
            self.dirty_bytes += bytes;
            if let Some(old) = self.dirty.insert(key, value) {
                self.dirty_bytes -= overlay::cost(key_bytes, old.as_ref());
            }
        }
        Ok(())
    }

    fn dirty_bytes(&self) -> usize {
        self.dirty_bytes
    }

    fn begin_checkpoint(&mut self) -> Option<Box<dyn Checkpoint>> {
        if self.flushing.is_some() || self.dirty.is_empty() {
            return None;
        }
        let flushing = Arc::new(std::mem::take(&mut self.dirty));
        self.dirty_bytes = 0;
        self.flushing = Some(flushing.clone());
        Some(Box::new(Flush { database: self.database.clone(), batch: flushing }))
    }

    fn end_checkpoint(&mut self) -> Result<(), StoreError> {
        if self.flushing.take().is_some() {
            self.table = caught("reading", || open_table(&self.database))?;
        }
        Ok(())
    }
}

/// One durable transaction. If it fails the store on disk is as it was before.
struct Flush {
    database: Arc<Database>,
    batch: Arc<Batch>,
}

impl Checkpoint for Flush {
    fn run(&self) -> Result<(), StoreError> {
        caught("writing a checkpoint", || self.write())
    }
}

impl Flush {
    fn write(&self) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        // Reopening after a crash must not walk the whole file.
        transaction.set_quick_repair(true);
        {
            let mut table = transaction.open_table(TABLE)?;
            for (key, value) in self.batch.iter() {
                match value {
                    Some(value) => drop(table.insert(key.as_slice(), value.as_ref())?),
                    None => drop(table.remove(key.as_slice())?),
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }
}
