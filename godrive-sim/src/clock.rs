//! A host's clock in the simulation: turmoil's virtual time, running a little fast or slow.

use godrive_proto::time::{Clock, Instant, Timestamp};

/// 2026-01-01 00:00 UTC, when every simulation begins.
pub const EPOCH_S: i64 = 1_767_225_600;

/// Must be read within a turmoil host; elsewhere it stands at zero.
#[derive(Clone, Copy, Debug)]
pub struct SimulatedClock {
    /// Parts per million by which this clock is fast.
    drift_ppm: i64,
    /// How far its wall clock is off.
    wall_offset_ns: i64,
}

impl SimulatedClock {
    pub fn new(drift_ppm: i64, wall_offset_ns: i64) -> Self {
        Self { drift_ppm, wall_offset_ns }
    }

    fn elapsed_ns(&self) -> i64 {
        let true_ns =
            i64::try_from(turmoil::sim_elapsed().unwrap_or_default().as_nanos()).unwrap_or(i64::MAX);
        true_ns + true_ns / 1_000_000 * self.drift_ppm
    }
}

impl Clock for SimulatedClock {
    fn now(&self) -> Instant {
        Instant(self.elapsed_ns().unsigned_abs())
    }

    fn wall(&self) -> Timestamp {
        Timestamp(EPOCH_S * 1_000_000_000 + self.elapsed_ns() + self.wall_offset_ns)
    }
}
