//! What takes replicas away: deletion, quarantine, and the bar that keeps late deltas from making a chunk anew.

use super::DiskStore;
use super::log::Place;
use super::table::{Bar, Row};
use crate::core::record::{Deletion, Kind, Record};
use crate::core::replica::{Key, Life, Replica};
use godrive_proto::time::Timestamp;
use godrive_proto::{ChunkId, Epoch, Fault};

/// Deletions in one record.
const DELETIONS: usize = 256;

impl DiskStore {
    /// Removes replicas of these epochs or earlier ones, and keeps late deltas from making them anew.
    pub fn delete(&self, chunks: &[(ChunkId, Epoch)], now: Timestamp) -> Result<(), Fault> {
        let all: Vec<(Key, Epoch)> =
            chunks.iter().map(|(chunk, epoch)| (Key::live(*chunk), epoch.next())).collect();
        self.delete_keys(all, true, now)
    }

    /// A chunk that is not here is not made anew below this epoch.
    pub(super) fn bar(&self, chunk: ChunkId, floor: Epoch, now: Timestamp) -> Result<(), Fault> {
        if self.floor(chunk)? >= floor {
            return Ok(());
        }
        self.delete_keys(vec![(Key::live(chunk), floor)], false, now)
    }

    pub fn delete_asides(&self, keys: &[Key]) -> Result<(), Fault> {
        self.delete_keys(keys.iter().map(|key| (*key, Epoch(0))).collect(), true, Timestamp(0))
    }

    fn delete_keys(&self, mut keys: Vec<(Key, Epoch)>, remove: bool, now: Timestamp) -> Result<(), Fault> {
        self.check_usable()?;
        // Ascending, so that two deletions never wait for each other's replicas.
        keys.sort_unstable();
        keys.dedup_by_key(|(key, _)| *key);
        for batch in keys.chunks(DELETIONS) {
            let _gate = self.changing();
            let shared = self.with_table(|table| {
                let mut index = self.index.lock();
                batch
                    .iter()
                    .map(|(key, _)| index.find_or_vacant(table, *key, 1 << 20))
                    .collect::<Result<Vec<_>, _>>()
            })?;
            let mut guards: Vec<_> = shared.iter().map(|replica| replica.write()).collect();
            let mut record = self.record(Kind::Delete, &guards[0]);
            record.time = now;
            for (guard, (key, floor)) in guards.iter().zip(batch) {
                let goes = match guard.life {
                    Life::Live => remove && (key.aside != 0 || guard.epoch < *floor),
                    Life::Vacant => key.aside == 0,
                    Life::Gone => false,
                };
                if goes {
                    // A seal outlives the replica that it was made on.
                    let floor = guard.sealed.max(*floor);
                    record.deletions.push(Deletion { chunk: key.chunk, aside: key.aside, floor });
                }
            }
            let written =
                if record.deletions.is_empty() { Ok(()) } else { self.append_deletion(record, &mut guards) };
            for guard in guards.iter_mut().filter(|guard| guard.life == Life::Vacant) {
                guard.life = Life::Gone;
                self.index.lock().discard(guard.key);
            }
            written?;
        }
        Ok(())
    }

    fn append_deletion(
        &self,
        mut record: Record,
        guards: &mut [parking_lot::RwLockWriteGuard<'_, Replica>],
    ) -> Result<(), Fault> {
        let place = self.log.append(&mut record, &[]).map_err(|error| self.io("append", &error))?;
        let mut replicas: Vec<&mut Replica> = guards.iter_mut().map(|guard| &mut **guard).collect();
        self.deleted(&record, place, &mut replicas);
        Ok(())
    }

    /// Carries out a deletion that is in the log.
    pub(super) fn deleted(&self, record: &Record, place: Place, replicas: &mut [&mut Replica]) {
        let mut index = self.index.lock();
        index.account(record, place, &[]);
        for deletion in &record.deletions {
            let key = Key { chunk: deletion.chunk, aside: deletion.aside };
            if let Some(replica) =
                replicas.iter_mut().find(|replica| replica.key == key && replica.life == Life::Live)
            {
                replica.life = Life::Gone;
                index.release(replica.leaves.locations().map(|(_, _, location)| location));
                index.remove(key);
            }
            if key.aside == 0 {
                index.raise_bar(key.chunk, Bar { floor: deletion.floor, since: record.time });
            }
        }
    }

    /// Keeps a replica that is of no use as it seems: it is not served, and removed later. Only if it is still as it was
    /// `seen`: what has changed it may have made it a member.
    pub fn quarantine(&self, chunk: ChunkId, seen: &Row, why: &str, now: Timestamp) -> Result<(), Fault> {
        let Some(shared) = self.find(Key::live(chunk))? else { return Ok(()) };
        let _gate = self.changing();
        let mut replica = shared.write();
        if replica.life != Life::Live || replica.position != seen.position {
            return Ok(());
        }
        let mut record = self.record(Kind::Aside, &replica);
        record.time = now;
        self.append(&mut replica, record, &[])?;
        tracing::warn!(%chunk, disk = %self.id, why, "a replica is kept aside for a week");
        Ok(())
    }
}
