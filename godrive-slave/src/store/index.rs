//! The index in memory: replicas that are in use or not yet checkpointed, and what the next checkpoint must write.
//! Clean replicas are dropped, least recently used first, when they take too much memory.

use super::log::Place;
use super::table::{Bar, Changes, Run, Table};
use crate::core::leaves::{GroupSet, Location};
use crate::core::record::Record;
use crate::core::replica::{Key, Replica};
use godrive_proto::ChunkId;
use lru::LruCache;
use parking_lot::RwLock;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

pub type Shared = Arc<RwLock<Replica>>;

/// Clean replicas looked at per eviction.
const EVICTION_TRIES: usize = 16;
/// Beyond so many, changes waiting to be reported as stable are left to the next inventory.
const MAX_FRESH: usize = 1 << 20;
/// A header beside so much data is not worth a hole of its own.
const DATA_PER_HEADER: u32 = 16;

pub struct Index {
    cached: LruCache<Key, (Shared, usize)>,
    cached_bytes: usize,
    limit_bytes: usize,
    /// Changed since the last checkpoint began.
    dirty: BTreeMap<Key, GroupSet>,
    removed: BTreeSet<Key>,
    bars: BTreeMap<ChunkId, Bar>,
    /// What the checkpoint under way is writing.
    flushing: Flushing,
    frees: Vec<Run>,
    /// Leaves referred to, by segment.
    live: BTreeMap<u32, u32>,
    live_dirty: BTreeSet<u32>,
    /// Replicas, those kept aside included.
    pub count: u64,
    /// Chunks changed and not yet reported as stable, with the position that must be synced.
    pub fresh: BTreeMap<ChunkId, u64>,
}

#[derive(Default)]
struct Flushing {
    dirty: BTreeMap<Key, GroupSet>,
    removed: BTreeSet<Key>,
    bars: BTreeMap<ChunkId, Bar>,
    frees: Vec<Run>,
    live: BTreeSet<u32>,
    /// Segments before the checkpoint's that it refers to nowhere. What becomes dead while it is written does so by
    /// records that may still be lost, and then the checkpoint's leaves are needed again.
    dead: Vec<u32>,
}

impl Index {
    pub fn new(live: BTreeMap<u32, u32>, count: u64, limit_bytes: usize) -> Self {
        Self {
            cached: LruCache::unbounded(),
            cached_bytes: 0,
            limit_bytes,
            dirty: BTreeMap::new(),
            removed: BTreeSet::new(),
            bars: BTreeMap::new(),
            flushing: Flushing::default(),
            frees: Vec::new(),
            live,
            live_dirty: BTreeSet::new(),
            count,
            fresh: BTreeMap::new(),
        }
    }

    pub fn find(&mut self, table: &Table, key: Key) -> io::Result<Option<Shared>> {
        if let Some((replica, _)) = self.cached.get(&key) {
            return Ok(Some(replica.clone()));
        }
        if self.removed.contains(&key) || self.flushing.removed.contains(&key) {
            return Ok(None);
        }
        let Some(replica) = table.load(key)? else { return Ok(None) };
        let replica = Arc::new(RwLock::new(replica));
        self.put(key, replica.clone());
        Ok(Some(replica))
    }

    /// The replica, or a vacant one that is dropped with [`Self::discard`] unless a record makes it live.
    pub fn find_or_vacant(&mut self, table: &Table, key: Key, chunk_bytes: u32) -> io::Result<Shared> {
        if let Some(replica) = self.find(table, key)? {
            return Ok(replica);
        }
        let replica = Arc::new(RwLock::new(Replica::vacant(key, chunk_bytes)));
        self.put(key, replica.clone());
        Ok(replica)
    }

    pub fn discard(&mut self, key: Key) {
        if let Some((_, bytes)) = self.cached.pop(&key) {
            self.cached_bytes -= bytes;
        }
    }

    pub fn put(&mut self, key: Key, replica: Shared) {
        let bytes = 256 + replica.read().leaves.memory_bytes();
        if let Some((_, old)) = self.cached.put(key, (replica, bytes)) {
            self.cached_bytes -= old;
        }
        self.cached_bytes += bytes;
        self.evict();
    }

    /// Only replicas that nobody holds and that need no checkpoint.
    fn evict(&mut self) {
        for _ in 0..EVICTION_TRIES {
            if self.cached_bytes <= self.limit_bytes {
                return;
            }
            let Some((key, (replica, bytes))) = self.cached.pop_lru() else { return };
            let pinned = self.dirty.contains_key(&key) || self.flushing.dirty.contains_key(&key);
            if pinned || Arc::strong_count(&replica) > 1 {
                self.cached.put(key, (replica, bytes));
            } else {
                self.cached_bytes -= bytes;
            }
        }
    }

    pub fn is_dirty(&self) -> bool {
        !(self.dirty.is_empty() && self.removed.is_empty() && self.bars.is_empty() && self.frees.is_empty())
    }

    pub fn dirty_replicas(&self) -> usize {
        self.dirty.len()
    }

    /// Keys after `after` whose rows in the table are not current.
    pub fn changed_after(&self, after: Option<Key>) -> impl Iterator<Item = Key> + '_ {
        let order = |key: &Key| (key.aside, key.chunk);
        let changed: BTreeSet<(u64, ChunkId)> = self
            .dirty
            .keys()
            .chain(self.flushing.dirty.keys())
            .filter(|key| after.is_none_or(|after| order(key) > order(&after)))
            .map(order)
            .collect();
        changed.into_iter().map(|(aside, chunk)| Key { chunk, aside })
    }

    pub fn is_removed(&self, key: Key) -> bool {
        !self.cached.contains(&key) && (self.removed.contains(&key) || self.flushing.removed.contains(&key))
    }

    pub fn cached(&self, key: Key) -> Option<Shared> {
        self.cached.peek(&key).map(|(replica, _)| replica.clone())
    }

    pub fn bar(&self, table: &Table, chunk: ChunkId) -> io::Result<Bar> {
        let raised = [&self.bars, &self.flushing.bars].into_iter().filter_map(|bars| bars.get(&chunk));
        Ok(raised.fold(table.bar(chunk)?.unwrap_or_default(), |bar, raised| bar.raised(*raised)))
    }

    /// Raises the bar of a chunk that is not here; that in the table, too, with the next checkpoint.
    pub fn raise_bar(&mut self, chunk: ChunkId, bar: Bar) {
        let old = self.bars.entry(chunk).or_default();
        *old = old.raised(bar);
    }

    /// Accounts for a record that was appended: its header and what it superseded become free at the next checkpoint.
    pub fn account(&mut self, record: &Record, place: Place, superseded: &[Location]) {
        let (headers, data) = (record.header_blocks(), record.data_blocks());
        let segment = place.header.segment;
        *self.live.entry(segment).or_insert(0) += data;
        self.live_dirty.insert(segment);
        if data <= headers * DATA_PER_HEADER {
            self.frees.push(Run { segment, block: place.header.block, blocks: headers });
        }
        self.release(superseded.iter().copied());
    }

    /// Nothing refers to these leaves any more.
    pub fn release(&mut self, locations: impl Iterator<Item = Location>) {
        for location in locations {
            let live = self.live.entry(location.segment).or_insert(0);
            *live = live.saturating_sub(1);
            self.live_dirty.insert(location.segment);
            match self.frees.last_mut() {
                Some(run) if run.segment == location.segment && run.block + run.blocks == location.block => {
                    run.blocks += 1;
                }
                _ => self.frees.push(Run { segment: location.segment, block: location.block, blocks: 1 }),
            }
        }
    }

    pub fn free(&mut self, run: Run) {
        self.frees.push(run);
    }

    /// Whether a segment may hold something that is referred to.
    pub fn knows(&self, segment: u32) -> bool {
        self.live.contains_key(&segment)
    }

    pub fn open_segment(&mut self, segment: u32) {
        self.live.entry(segment).or_insert(0);
        self.live_dirty.insert(segment);
    }

    pub fn mark(&mut self, key: Key, groups: GroupSet, position: u64) {
        self.dirty.entry(key).or_default().extend(groups);
        if key.aside == 0 && (self.fresh.len() < MAX_FRESH || self.fresh.contains_key(&key.chunk)) {
            self.fresh.insert(key.chunk, position);
        }
    }

    /// Takes a replica out; its leaves are not released by this.
    pub fn remove(&mut self, key: Key) {
        self.discard(key);
        self.dirty.remove(&key);
        self.removed.insert(key);
        if key.aside == 0 {
            self.fresh.remove(&key.chunk);
        }
        self.count = self.count.saturating_sub(1);
    }

    /// Takes everything that changed for a checkpoint. No record may be appended meanwhile.
    pub fn gather(&mut self, changes: &mut Changes) {
        for (key, groups) in std::mem::take(&mut self.dirty) {
            if let Some((replica, _)) = self.cached.peek(&key) {
                let replica = replica.read();
                changes.rows.push((key, super::table::Row::of(&replica)));
                super::table::encode_groups(&replica, groups, changes);
                self.flushing.dirty.insert(key, groups);
            }
        }
        self.flushing.removed = std::mem::take(&mut self.removed);
        changes.removed.extend(&self.flushing.removed);
        self.flushing.bars = std::mem::take(&mut self.bars);
        changes.bars.clone_from(&self.flushing.bars);
        self.flushing.frees = merge(std::mem::take(&mut self.frees));
        changes.checkpoint.frees.clone_from(&self.flushing.frees);
        self.flushing.live = std::mem::take(&mut self.live_dirty);
        changes
            .segments
            .extend(self.flushing.live.iter().map(|segment| (*segment, self.live.get(segment).copied())));
        let before = self.live.range(..changes.checkpoint.segment);
        self.flushing.dead = before.filter(|(_, live)| **live == 0).map(|(segment, _)| *segment).collect();
    }

    /// The checkpoint is durable: what to punch, and which segments to remove.
    pub fn flushed(&mut self) -> (Vec<Run>, Vec<u32>) {
        let flushing = std::mem::take(&mut self.flushing);
        for key in flushing.dirty.keys() {
            // Whoever changes a replica holds it while waiting for this index: only a look that does not wait is allowed.
            let size = |replica: &Shared| replica.try_read().map(|replica| replica.leaves.memory_bytes());
            if let Some((replica, old)) = self.cached.peek_mut(key) {
                let Some(bytes) = size(replica).map(|bytes| 256 + bytes) else { continue };
                self.cached_bytes = self.cached_bytes + bytes - *old;
                *old = bytes;
            }
        }
        self.evict();
        for segment in &flushing.dead {
            self.live.remove(segment);
            self.live_dirty.insert(*segment);
        }
        let punches = flushing.frees.into_iter().filter(|run| self.live.contains_key(&run.segment)).collect();
        (punches, flushing.dead)
    }

    /// The checkpoint failed: everything is to be written again.
    pub fn not_flushed(&mut self) {
        let flushing = std::mem::take(&mut self.flushing);
        for (key, groups) in flushing.dirty {
            if self.cached.contains(&key) {
                self.dirty.entry(key).or_default().extend(groups);
            }
        }
        self.removed.extend(flushing.removed);
        flushing.bars.into_iter().for_each(|(chunk, bar)| self.raise_bar(chunk, bar));
        self.frees.extend(flushing.frees);
        self.live_dirty.extend(flushing.live);
    }
}

/// Sorted, and adjacent runs made one.
fn merge(mut runs: Vec<Run>) -> Vec<Run> {
    runs.sort_unstable();
    let mut merged: Vec<Run> = Vec::new();
    for run in runs {
        match merged.last_mut() {
            Some(last) if last.segment == run.segment && last.block + last.blocks == run.block => {
                last.blocks += run.blocks;
            }
            _ => merged.push(run),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_merged() {
        let run = |segment, block, blocks| Run { segment, block, blocks };
        let merged = merge(vec![run(1, 5, 1), run(1, 2, 3), run(2, 6, 1), run(1, 7, 1)]);
        assert_eq!(merged, [run(1, 2, 4), run(1, 7, 1), run(2, 6, 1)]);
    }
}
