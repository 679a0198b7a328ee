//! A host's clock in the simulation: turmoil's virtual time, running a little fast or slow.

use godrive_proto::time::{Clock, Instant, Timestamp};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// 2026-01-01 00:00 UTC, when every simulation begins.
pub const EPOCH_S: i64 = 1_767_225_600;

const AWAKE: i64 = -1;

/// Must be read within a turmoil host; elsewhere it stands at zero.
#[derive(Debug)]
pub struct SimulatedClock {
    /// Parts per million by which this clock is fast.
    drift_ppm: i64,
    /// How far its wall clock is off.
    wall_offset_ns: AtomicI64,
    /// When its machine fell asleep, or [`AWAKE`].
    asleep_since_ns: AtomicI64,
}

impl SimulatedClock {
    pub fn new(drift_ppm: i64, wall_offset_ns: i64) -> Self {
        Self {
            drift_ppm,
            wall_offset_ns: AtomicI64::new(wall_offset_ns),
            asleep_since_ns: AtomicI64::new(AWAKE),
        }
    }

    /// Its machine sleeps: nobody there is to see that time goes on, until [`Self::wake`], when the clock jumps ahead.
    pub fn sleep(&self, now: Duration) {
        self.asleep_since_ns.store(nanoseconds(now), Ordering::Relaxed);
    }

    pub fn wake(&self) {
        self.asleep_since_ns.store(AWAKE, Ordering::Relaxed);
    }

    /// Somebody sets the wall clock, forwards or back.
    pub fn step(&self, ns: i64) {
        self.wall_offset_ns.fetch_add(ns, Ordering::Relaxed);
    }

    fn elapsed_ns(&self) -> i64 {
        let true_ns = match self.asleep_since_ns.load(Ordering::Relaxed) {
            AWAKE => nanoseconds(turmoil::sim_elapsed().unwrap_or_default()),
            since => since,
        };
        true_ns + true_ns / 1_000_000 * self.drift_ppm
    }
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

impl Clock for SimulatedClock {
    fn now(&self) -> Instant {
        Instant(self.elapsed_ns().unsigned_abs())
    }

    fn wall(&self) -> Timestamp {
        Timestamp(EPOCH_S * 1_000_000_000 + self.elapsed_ns() + self.wall_offset_ns.load(Ordering::Relaxed))
    }
}
