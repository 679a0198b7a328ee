//! Notices that the master itself stood still: it was stopped, or its machine slept. It has heard nobody meanwhile, which
//! is nobody's silence.

use godrive_proto::time::Instant;
use std::time::Duration;

/// Looks come more often than this.
const APART: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Watch {
    looked: Option<Instant>,
}

/// The master did nothing between these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standstill {
    before: Instant,
    now: Instant,
}

impl Watch {
    /// Before each step.
    pub fn look(&mut self, now: Instant) -> Option<Standstill> {
        let before = self.looked.replace(now)?;
        (now.since(before) > APART).then_some(Standstill { before, now })
    }
}

impl Standstill {
    pub fn lasted(&self) -> Duration {
        self.now.since(self.before)
    }

    /// Whether somebody last heard at `heard` had been silent for less than this when it began.
    pub fn found_silent_for_less_than(&self, patience: Duration, heard: Instant) -> bool {
        self.before.since(heard) < patience
    }

    /// When somebody last heard at `heard` counts as heard: of the standstill no more than [`APART`] is silence, so that
    /// a master that stands still again and again notices the dead, too, only later.
    pub fn counted(&self, heard: Instant) -> Instant {
        let silence = self.now.since(heard).min(self.before.since(heard) + APART);
        Instant(self.now.0.saturating_sub(u64::try_from(silence.as_nanos()).unwrap_or(u64::MAX))).max(heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Instant {
        Instant(ms * 1_000_000)
    }

    #[test]
    fn only_what_is_longer_than_looks_are_apart_is_a_standstill() {
        let mut watch = Watch::default();
        for at in [5_000, 5_500, 6_500] {
            assert_eq!(watch.look(ms(at)), None, "{at}");
        }
        let stood_still = watch.look(ms(7_501)).unwrap();
        assert_eq!(stood_still, Standstill { before: ms(6_500), now: ms(7_501) });
        assert_eq!(stood_still.lasted(), Duration::from_millis(1_001));
    }

    #[test]
    fn silence_goes_on_where_it_was_and_what_was_heard_after_the_last_look_counts() {
        let stood_still = Standstill { before: ms(10_000), now: ms(70_000) };
        for (heard, counted) in
            [(8_000, 67_000), (10_000, 69_000), (10_300, 69_000), (69_500, 69_500), (70_000, 70_000)]
        {
            assert_eq!(stood_still.counted(ms(heard)), ms(counted), "{heard}");
        }
        assert!(stood_still.found_silent_for_less_than(Duration::from_secs(3), ms(8_000)));
        assert!(!stood_still.found_silent_for_less_than(Duration::from_secs(3), ms(7_000)));
        let short = Standstill { before: ms(10_000), now: ms(11_100) };
        assert_eq!(short.counted(ms(9_000)), ms(9_100));
    }
}
