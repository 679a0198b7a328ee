//! Counters of a mount, beside the driver's.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub struct Stats {
    /// Reads answered from memory, and those that asked a slave.
    pub read_hits: Counter,
    pub read_misses: Counter,
    /// Lookups and attributes answered under a lease, and those that asked the master.
    pub meta_hits: Counter,
    pub meta_misses: Counter,
    pub recalls: Counter,
    pub deltas: Counter,
    pub commits: Counter,
    /// Invalidations that the kernel did not finish in time; it finishes them later.
    pub late_invalidations: Counter,
    /// Failures that no call could report when they happened.
    pub errors_after_close: Counter,
}

/// The values at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsSnapshot {
    pub read_hits: u64,
    pub read_misses: u64,
    pub meta_hits: u64,
    pub meta_misses: u64,
    pub recalls: u64,
    pub deltas: u64,
    pub commits: u64,
    pub late_invalidations: u64,
    pub errors_after_close: u64,
    pub cache_bytes: u64,
    pub dirty_bytes: u64,
    pub inodes: u64,
}
