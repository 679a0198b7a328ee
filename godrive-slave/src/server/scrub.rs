//! Reads every leaf of a disk again and again, slowly, and reports what does not verify.

use super::shared::Shared;
use crate::core::scrub::{BATCH_LEAVES, Cursor, Step};
use crate::store::DiskStore;
use godrive_proto::Fault;
use godrive_proto::cluster::ScrubState;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Between two passes.
const PAUSE: Duration = Duration::from_secs(60);

pub async fn run(shared: Arc<Shared>, store: Arc<DiskStore>) {
    let rate = shared.config.scrub_bytes_per_s;
    if rate == 0 {
        return;
    }
    let mut cursor = Cursor::new(rate);
    while store.failure().is_none() {
        show(&shared, &store, &cursor);
        let began = shared.clock.now();
        let passes = cursor.passes;
        match godrive_disk::blocking(store.is_instant(), || step(&shared, &store, &mut cursor)) {
            Ok(read) => {
                let wait = cursor.due(began, read).since(shared.clock.now());
                // Also without a wait: other tasks of a single thread go on.
                tokio::time::sleep(wait).await;
            }
            Err(fault) => {
                shared.count_error();
                tracing::error!(disk = %store.id(), %fault, "scrub failed");
                tokio::time::sleep(PAUSE).await;
            }
        }
        if cursor.passes > passes {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// For the heartbeat.
fn show(shared: &Shared, store: &DiskStore, cursor: &Cursor) {
    let state = ScrubState {
        disk: store.id(),
        pass: cursor.passes + 1,
        percent: cursor.percent(store.replicas()),
        bad_leaves: store.bad_leaves(),
    };
    shared.scrub.lock().insert(store.id(), state);
}

/// One step; how many leaves were read.
fn step(shared: &Arc<Shared>, store: &DiskStore, cursor: &mut Cursor) -> Result<u32, Fault> {
    match cursor.step() {
        Step::Next(after) => {
            let next = store.page(after, 1)?.first().map(|(key, _)| *key);
            cursor.found(next.filter(|key| key.aside == 0));
            Ok(0)
        }
        Step::Verify { key, first_leaf } => {
            let Some(verified) = store.verify(key, first_leaf, BATCH_LEAVES)? else {
                cursor.verified(0);
                return Ok(0);
            };
            shared.scrubbed_leaves.fetch_add(verified.read.into(), Ordering::Relaxed);
            if let Some(leaf) = verified.bad.first() {
                let detail =
                    format!("scrub: {} leaves from {leaf} do not match their sums", verified.bad.len());
                shared.report_corrupt(key.chunk, verified.epoch, detail);
            }
            cursor.verified(verified.leaves);
            Ok(verified.read)
        }
    }
}
