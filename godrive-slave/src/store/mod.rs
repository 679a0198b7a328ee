//! The chunk store of one disk, as `docs/STORE.md` describes its files.
//!
//! Every change is one record appended to a [`log`] of segments with one write; the leaves' bytes stay where they
//! were appended. The [`index`] in memory says where each leaf of each replica lies, and is written to a redb
//! [`table`] in a [`checkpoint`](checkpoint) every few seconds; [`recovery`] loads it and replays what the log has
//! beyond it. Two rules keep that safe: blocks are given back to the disk only after a durable checkpoint that no
//! longer refers to them, and no checkpoint is durable before the log is, up to everything it refers to.
//!
//! Locks, in the order in which they are taken: `gate` (shared by changes, alone by the gathering of a checkpoint),
//! a replica's, the log's tail or the index. None is held across an await: this whole module blocks.

mod change;
mod checkpoint;
pub mod fsck;
mod identity;
mod index;
pub mod log;
mod overlay;
mod read;
mod recovery;
mod removal;
pub mod table;

pub use crate::core::record::Secret;
pub use change::{Adoption, Done};
pub use recovery::disk_id;

use crate::core::aging::Aging;
use crate::core::replica::{Key, Life};
use godrive_disk::{Disk, Reserved, SyncFailed};
use godrive_proto::cluster::{DiskHealth, DiskState};
use godrive_proto::data::Contents;
use godrive_proto::time::{Instant, Timestamp};
use godrive_proto::{ChunkId, ClusterId, Code, DiskId, Epoch, Fault, LogIndex, Term};
use index::{Index, Shared};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use table::{Row, Table};

const MAX_BALLAST_BYTES: u64 = 16 << 20;

#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub cluster: ClusterId,
    /// Free bytes that only deletions, seals and the index may use. None: 1 GiB, or a twentieth of a small disk.
    pub reserve_bytes: Option<u64>,
    pub segment_bytes: u64,
    /// Memory for clean replicas in the index.
    pub index_bytes: usize,
}

impl Options {
    pub const SEGMENT_BYTES: u64 = 64 << 20;

    pub fn new(cluster: ClusterId) -> Self {
        Self { cluster, reserve_bytes: None, segment_bytes: Self::SEGMENT_BYTES, index_bytes: 256 << 20 }
    }

    fn reserve(&self, total_bytes: u64) -> u64 {
        self.reserve_bytes.unwrap_or_else(|| (1 << 30).min(total_bytes / 20))
    }

    /// What of the reserve is allocated: data stays out of the rest, other programs do not.
    fn ballast(&self, total_bytes: u64) -> u64 {
        (self.reserve(total_bytes) / 4).min(MAX_BALLAST_BYTES)
    }
}

/// What makes an empty directory a disk of its own. Both are random; the id is known to many, the secret to nobody else.
#[derive(Clone, Copy, Debug)]
pub struct NewDisk {
    pub id: DiskId,
    pub secret: Secret,
}

pub struct DiskStore {
    id: DiskId,
    disk: Arc<Reserved>,
    options: Options,
    log: log::Log,
    /// None: it could not be opened again for want of room.
    table: RwLock<Option<Table>>,
    index: Mutex<Index>,
    gate: RwLock<()>,
    /// The log's last sequence when it was opened.
    opened_at: u64,
    checkpointing: Mutex<checkpoint::State>,
    /// Log bytes since the last checkpoint.
    grown: AtomicU64,
    failed: OnceLock<String>,
    /// More than this must be free before the disk counts as having room again; 0: it has.
    full_up_to: AtomicU64,
    bad_leaves: AtomicU64,
    aging: Mutex<Aging>,
    /// What must not be forgotten of the master.
    term: AtomicU64,
    seen: AtomicU64,
}

impl DiskStore {
    pub fn id(&self) -> DiskId {
        self.id
    }

    pub fn is_instant(&self) -> bool {
        self.disk.is_instant()
    }

    /// Why the disk is out of service, if it is.
    pub fn failure(&self) -> Option<&str> {
        self.failed.get().map(String::as_str)
    }

    pub fn check_usable(&self) -> Result<(), Fault> {
        match self.failure() {
            None => Ok(()),
            Some(why) => Err(Fault::new(Code::Disk, format!("disk {} is out of service: {why}", self.id))),
        }
    }

    pub fn state(&self) -> DiskState {
        let space = self.disk.space().unwrap_or(godrive_disk::Space { total_bytes: 0, free_bytes: 0 });
        let reserve = self.options.reserve(space.total_bytes);
        let health = match self.failure() {
            Some(_) => DiskHealth::Failed,
            None if space.free_bytes <= reserve.max(self.full_up_to.load(Ordering::Relaxed)) => {
                DiskHealth::Full
            }
            None => DiskHealth::Healthy,
        };
        DiskState {
            disk: self.id,
            total_bytes: space.total_bytes.saturating_sub(reserve),
            free_bytes: space.free_bytes.saturating_sub(reserve),
            chunks: self.replicas(),
            health,
        }
    }

    /// Those that are served.
    pub fn replicas(&self) -> u64 {
        self.index.lock().count
    }

    /// Takes the part of the reserve that the disk's other users must not fill, if there is room for it.
    pub fn refill_reserve(&self) {
        match self.disk.plain().space() {
            Ok(space) => self.disk.refill(self.options.reserve(space.total_bytes) / 2),
            Err(error) => tracing::warn!(disk = %self.id, %error, "the disk cannot be asked for its room"),
        }
    }

    /// Leaves found bad since the start.
    pub fn bad_leaves(&self) -> u64 {
        self.bad_leaves.load(Ordering::Relaxed)
    }

    /// Remembers the master's term and log index with the next checkpoint.
    pub fn remember(&self, term: Term, seen: LogIndex) {
        self.term.fetch_max(term.0, Ordering::Relaxed);
        self.seen.fetch_max(seen.0, Ordering::Relaxed);
    }

    pub fn remembered(&self) -> (Term, LogIndex) {
        (Term(self.term.load(Ordering::Relaxed)), LogIndex(self.seen.load(Ordering::Relaxed)))
    }

    /// Returns when everything that was changed before this call is on stable storage.
    pub async fn sync(&self) -> Result<(), Fault> {
        self.check_usable()?;
        self.log.sync().await.map_err(|failed| self.sync_failed(failed))
    }

    /// How long the slowest sync took since the last time that this was called.
    pub fn take_slowest_sync(&self) -> Duration {
        self.log.take_slowest_sync()
    }

    pub fn is_stable(&self, position: u64) -> bool {
        position <= self.log.synced()
    }

    /// Something was written that is not stable yet.
    pub fn needs_sync(&self) -> bool {
        self.failure().is_none() && self.log.end().1 - 1 > self.log.synced()
    }

    fn sync_failed(&self, failed: SyncFailed) -> Fault {
        self.fail(&failed.to_string());
        Fault::new(Code::Disk, format!("disk {}: {failed}", self.id))
    }

    /// Takes the disk out of service, for the life of this process.
    fn fail(&self, why: &str) {
        if self.failed.set(why.to_owned()).is_ok() {
            tracing::error!(
                disk = %self.id,
                why,
                "disk taken out of service; its replicas will be made anew elsewhere. Check the disk, then restart the slave"
            );
        }
    }

    /// What an I/O error means: a full disk refuses, any other error takes the disk out of service.
    fn io(&self, what: &str, error: &io::Error) -> Fault {
        if godrive_disk::is_full(error) {
            let free = self.disk.space().map_or(0, |space| space.free_bytes);
            self.full_up_to.store(free.max(1), Ordering::Relaxed);
            return Fault::new(Code::NoSpace, format!("disk {} is full: {what}: {error}", self.id));
        }
        self.fail(&format!("{what}: {error}"));
        Fault::new(Code::Disk, format!("disk {}: {what}: {error}", self.id))
    }

    /// Does it again where a checkpoint ran out of room meanwhile: redb then refuses to read, too.
    fn with_table<T>(&self, act: impl Fn(&Table) -> io::Result<T>) -> Result<T, Fault> {
        loop {
            if let Some(table) = &*self.table.read() {
                match table::caught(|| act(table)) {
                    Err(_) if table.ran_full() => {}
                    result => return result.map_err(|error| self.io("index", &error)),
                }
            }
            self.reopen_table()?;
        }
    }

    /// Opens the index again if it ran out of room. The log has everything that the failed checkpoint was to write.
    fn reopen_table(&self) -> Result<(), Fault> {
        let is_open = |table: &Option<Table>| table.as_ref().is_some_and(|table| !table.ran_full());
        if is_open(&self.table.read()) {
            return Ok(());
        }
        let mut table = self.table.write();
        if !is_open(&table) {
            // First closed: one database per file.
            *table = None;
            let opened = Table::open_again(&*self.disk);
            *table = Some(opened.map_err(|error| self.io("the index cannot be opened again", &error))?);
        }
        Ok(())
    }

    /// To be held by a change. Behind a checkpoint that gathers, it waits for the changes before: in no other task's way.
    fn changing(&self) -> RwLockReadGuard<'_, ()> {
        let wait = || godrive_disk::blocking(self.is_instant(), || self.gate.read());
        self.gate.try_read().unwrap_or_else(wait)
    }

    fn find(&self, key: Key) -> Result<Option<Shared>, Fault> {
        self.check_usable()?;
        self.with_table(|table| self.index.lock().find(table, key))
    }

    /// State of the replica of a chunk.
    pub fn row(&self, chunk: ChunkId) -> Result<Option<Row>, Fault> {
        let found = self.find(Key::live(chunk))?;
        Ok(found.and_then(|replica| {
            let replica = replica.read();
            (replica.life == Life::Live).then(|| Row::of(&replica))
        }))
    }

    /// The epoch below which no delta makes this chunk anew.
    pub fn floor(&self, chunk: ChunkId) -> Result<Epoch, Fault> {
        self.check_usable()?;
        Ok(self.with_table(|table| self.index.lock().bar(table, chunk))?.floor)
    }

    /// Up to `limit` replicas after `after`, ascending by chunk, those kept aside last. An empty page is the end.
    pub fn page(&self, after: Option<Key>, limit: usize) -> Result<Vec<(Key, Row)>, Fault> {
        let order = |key: &Key| (key.aside, key.chunk);
        let mut after = after;
        loop {
            let changed: Vec<(Key, Option<Shared>)> = {
                let index = self.index.lock();
                index.changed_after(after).take(limit).map(|key| (key, index.cached(key))).collect()
            };
            let rows = self.with_table(|table| table.page(after, limit))?;
            // Neither list says anything about keys behind the last of a full one.
            let ends = [
                (rows.len() == limit).then(|| rows.last().map(|(key, _)| order(key))).flatten(),
                (changed.len() == limit).then(|| changed.last().map(|(key, _)| order(key))).flatten(),
            ];
            let end = ends.into_iter().flatten().min();
            let mut merged: BTreeMap<_, (Key, Row)> =
                rows.into_iter().map(|(key, row)| (order(&key), (key, row))).collect();
            for (key, replica) in changed {
                let row = replica.and_then(|replica| {
                    let replica = replica.read();
                    (replica.life == Life::Live).then(|| Row::of(&replica))
                });
                match row {
                    Some(row) => merged.insert(order(&key), (key, row)),
                    None => merged.remove(&order(&key)),
                };
            }
            let index = self.index.lock();
            let page: Vec<(Key, Row)> = merged
                .into_values()
                .filter(|(key, _)| end.is_none_or(|end| order(key) <= end) && !index.is_removed(*key))
                .collect();
            drop(index);
            match (page.is_empty(), end) {
                (true, Some((aside, chunk))) => after = Some(Key { chunk, aside }),
                _ => return Ok(page),
            }
        }
    }

    /// Takes up to `limit` chunks whose last change became stable and was not reported yet.
    pub fn take_stable(&self, limit: usize) -> Vec<(ChunkId, Epoch, Contents)> {
        if self.failure().is_some() {
            return Vec::new();
        }
        let synced = self.log.synced();
        let taken: Vec<ChunkId> = {
            let mut index = self.index.lock();
            let ready: Vec<ChunkId> = index
                .fresh
                .iter()
                .filter(|(_, at)| **at <= synced)
                .map(|(chunk, _)| *chunk)
                .take(limit)
                .collect();
            index.fresh.retain(|chunk, _| ready.binary_search(chunk).is_err());
            ready
        };
        let rows = taken.into_iter().filter_map(|chunk| Some((chunk, self.row(chunk).ok()??)));
        let stable =
            rows.filter(|(_, row)| row.position <= self.log.synced() && row.epoch.0 > 0 && !row.partial);
        stable.map(|(chunk, row)| (chunk, row.epoch, row.contents())).collect()
    }

    /// Chunks whose report did not arrive: they are reported again.
    pub fn untake_stable(&self, chunks: impl Iterator<Item = ChunkId>) {
        let mut index = self.index.lock();
        for chunk in chunks {
            index.fresh.entry(chunk).or_insert(0);
        }
    }

    /// What has been of no use for a week, unchanged: contents kept aside, and partial copies that were not gone on with. To be
    /// called now and then: only what this process sees counts.
    pub fn unused(&self, now: Instant, wall: Timestamp) -> Result<Vec<(Key, u64)>, Fault> {
        let (mut after, mut all) = (None, Vec::new());
        loop {
            let page = self.page(after, 256)?;
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            let unused = page.iter().filter(|(key, row)| key.aside != 0 || row.partial);
            all.extend(unused.map(|(key, row)| (*key, row.position)));
        }
        let mut aging = self.aging.lock();
        self.checkpointing.lock().old_bars = aging.a_day_ago(now, wall);
        Ok(aging.unused(now, all))
    }
}

#[cfg(test)]
mod tests;
