//! What each disk needs beside requests: everything is synced within some seconds, the index is checkpointed, what
//! was kept aside long enough is removed.

use super::copy::Copying;
use super::shared::Shared;
use crate::core::replica::Key;
use crate::store::DiskStore;
use godrive_proto::{ChunkId, Code, Fault};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Everything is stable within this time (and the sync's own) without being asked.
const SYNC_EVERY: Duration = Duration::from_secs(2);
const CHECKPOINT_TICKS: u32 = 2;
const EXPIRY_TICKS: u32 = 1800;

pub async fn look_after(shared: Arc<Shared>, store: Arc<DiskStore>) {
    let mut ticks: u32 = 0;
    let mut next = Instant::now() + SYNC_EVERY;
    // After a checkpoint that found none, the bell is passed over until the next tick.
    let mut room = true;
    while store.failure().is_none() {
        let due = shared.checkpoint_due.notified();
        // The bell rings for all disks, and must not put off what this one needs by the time.
        let rang = tokio::time::timeout_at(next, due).await.is_ok();
        let mut result = Ok(());
        if rang && room && store.checkpoint_is_due() {
            result = checkpoint(&shared, &store);
        } else if !rang {
            room = true;
            next = Instant::now() + SYNC_EVERY;
            ticks = ticks.wrapping_add(1);
            if store.needs_sync() {
                result = store.sync().await;
            }
            if result.is_ok() && ticks.is_multiple_of(CHECKPOINT_TICKS) {
                result = checkpoint(&shared, &store);
            }
            if result.is_ok() && ticks % EXPIRY_TICKS == 1 {
                result = expire(&shared, &store);
            }
        }
        if let Err(fault) = result {
            room = fault.code != Code::NoSpace;
            shared.count_error();
            tracing::error!(disk = %store.id(), %fault, "looking after the disk failed; tried again in {SYNC_EVERY:?}");
        }
    }
    tracing::error!(disk = %store.id(), why = store.failure(), "the disk is no longer looked after");
}

fn checkpoint(shared: &Shared, store: &DiskStore) -> Result<(), Fault> {
    let now = shared.clock.wall();
    godrive_disk::blocking(store.is_instant(), || {
        store.checkpoint(now)?;
        store.refill_reserve();
        Ok(())
    })
}

pub(super) fn expire(shared: &Shared, store: &DiskStore) -> Result<(), Fault> {
    godrive_disk::blocking(store.is_instant(), || {
        let unused = store.unused(shared.clock.now(), shared.clock.wall())?;
        let (copies, asides): (Vec<_>, Vec<_>) = unused.into_iter().partition(|(key, _)| key.aside == 0);
        let asides: Vec<Key> = asides.into_iter().map(|(key, _)| key).collect();
        store.delete_asides(&asides)?;
        if !asides.is_empty() {
            tracing::info!(disk = %store.id(), expired = asides.len(), "removed replicas that were kept aside for a week");
        }
        copies.into_iter().try_for_each(|(key, position)| expire_copy(shared, store, key.chunk, position))
    })
}

/// Where a copy is under way, what is here is its base.
fn expire_copy(shared: &Shared, store: &DiskStore, chunk: ChunkId, position: u64) -> Result<(), Fault> {
    let Ok(_no_other) = Copying::begin(shared, chunk) else { return Ok(()) };
    if let Some(row) = store.row(chunk)?.filter(|row| row.position == position) {
        store.delete(&[(chunk, row.epoch)], shared.clock.wall())?;
        tracing::info!(disk = %store.id(), %chunk, "removed a partial copy that was not gone on with for a week");
    }
    Ok(())
}
