//! redb on a file of a [`crate::Disk`].

use crate::{DiskFile, is_full};
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const AHEAD_BYTES: u64 = 1 << 20;

/// Wraps a file as redb's storage. One database per file: the disk's owner is the only writer.
pub struct FileBackend {
    file: Arc<dyn DiskFile>,
    errors: Arc<FileErrors>,
}

/// What the file under a database answered. redb refuses everything after an error, and does not say after which.
#[derive(Debug, Default)]
pub struct FileErrors {
    full: AtomicBool,
    other: AtomicBool,
}

impl FileErrors {
    /// There was no room for something, and nothing worse: opened again, the database is as of its last commit.
    pub fn only_full(&self) -> bool {
        self.full.load(Ordering::Acquire) && !self.other.load(Ordering::Acquire)
    }

    pub fn forget(&self) {
        self.full.store(false, Ordering::Release);
        self.other.store(false, Ordering::Release);
    }

    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| {
            let kind = if is_full(error) { &self.full } else { &self.other };
            kind.store(true, Ordering::Release);
        })
    }
}

impl FileBackend {
    pub fn new(file: Arc<dyn DiskFile>) -> Self {
        Self { file, errors: Arc::default() }
    }

    pub fn errors(&self) -> Arc<FileErrors> {
        self.errors.clone()
    }
}

impl fmt::Debug for FileBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FileBackend")
    }
}

impl redb::StorageBackend for FileBackend {
    fn len(&self) -> io::Result<u64> {
        self.errors.note(self.file.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.errors.note(self.file.read_at(out, offset))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.errors.note(self.file.set_len(len))
    }

    /// What a sync could not write is lost, whatever it says.
    fn sync_data(&self) -> io::Result<()> {
        let synced = self.file.sync().map_err(|error| io::Error::other(format!("a sync failed: {error}")));
        self.errors.note(synced)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.errors.note(self.file.write_at(&[data], offset))
    }
}

/// Opens a database, or makes one in an empty file. By itself redb trusts what it reads unless it was not closed: here the
/// checksums of all pages are compared first, so that nothing which the disk has changed is taken for what was written.
/// That reads the whole file.
pub fn open_verified(
    backend: impl redb::StorageBackend,
    cache_bytes: usize,
) -> Result<redb::Database, redb::Error> {
    if let Err(error) = read_ahead(&backend) {
        // It may be a page that nothing refers to: redb finds out.
        tracing::debug!(%error, "a database cannot be read in one go");
    }
    caught(|| {
        let mut database = create(backend, cache_bytes)?;
        // False: what is free was counted anew. The last commit is whole, or this is an error.
        let _counted_right = database.check_integrity()?;
        Ok(database)
    })
}

/// Opens a database that this process has verified before and that only ran out of room since.
pub fn open_again(
    backend: impl redb::StorageBackend,
    cache_bytes: usize,
) -> Result<redb::Database, redb::Error> {
    caught(|| create(backend, cache_bytes))
}

fn create(backend: impl redb::StorageBackend, cache_bytes: usize) -> Result<redb::Database, redb::Error> {
    Ok(redb::Database::builder().set_cache_size(cache_bytes).create_with_backend(backend)?)
}

/// Damage may lead redb out of its bounds before it is noticed.
fn caught(open: impl FnOnce() -> Result<redb::Database, redb::Error>) -> Result<redb::Database, redb::Error> {
    let opened = catch_unwind(AssertUnwindSafe(open));
    opened.unwrap_or_else(|_| Err(redb::Error::Corrupted("its pages lead nowhere".into())))
}

/// The checks read page by page, in the order of the trees: in that of the disk it takes a fraction of the time, a much smaller one
/// where heads move.
fn read_ahead(backend: &impl redb::StorageBackend) -> io::Result<()> {
    let len = backend.len()?;
    let mut piece = vec![0; AHEAD_BYTES.min(len) as usize];
    for at in (0..len).step_by(AHEAD_BYTES as usize) {
        backend.read(at, &mut piece[..AHEAD_BYTES.min(len - at) as usize])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Disk, SimulatedDisk};
    use rand::{Rng, SeedableRng, rngs::SmallRng};
    use redb::{Database, ReadableDatabase, TableDefinition};

    const TABLE: TableDefinition<u64, u64> = TableDefinition::new("t");

    /// What was committed with `Immediate` survives every crash; nothing is half there.
    #[test]
    fn committed_transactions_survive_crashes() {
        for seed in 0..40 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let disk = SimulatedDisk::new(1 << 30);
            let mut committed = 0;
            disk.open("db", true).unwrap();
            disk.sync_directory("").unwrap();
            for round in 0..4 {
                let backend = FileBackend::new(disk.open("db", false).unwrap());
                let db = Database::builder().create_with_backend(backend).unwrap();
                if committed > 0 {
                    let table = db.begin_read().unwrap().open_table(TABLE).unwrap();
                    let found = table.get(0).unwrap().unwrap().value();
                    assert_eq!(table.get(1).unwrap().unwrap().value(), found, "seed {seed} round {round}");
                    assert!(found >= committed, "seed {seed} round {round}: {found} < {committed}");
                }
                disk.stop_after(rng.random_range(1..60));
                for value in committed + 1..committed + 20 {
                    let Ok(mut write) = db.begin_write() else { break };
                    write.set_quick_repair(true);
                    let done = (|| -> Result<(), redb::Error> {
                        {
                            let mut table = write.open_table(TABLE)?;
                            table.insert(0, value)?;
                            table.insert(1, value)?;
                        }
                        write.commit()?;
                        Ok(())
                    })();
                    if done.is_err() {
                        break;
                    }
                    committed = value;
                }
                disk.crash(&mut rng);
                drop(db);
            }
        }
    }
}
