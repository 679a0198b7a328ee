//! The session's lease time and the master's wall clock, in atomics that every cache hit may read.

use godrive_proto::time::{Clock, Instant, Timestamp};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

pub struct Timing {
    clock: Arc<dyn Clock>,
    /// Nanoseconds on the clock; 0: lapsed.
    valid_until: AtomicU64,
    /// The master's wall clock minus our clock, nanoseconds.
    offset: AtomicI64,
    last_wall: AtomicI64,
}

/// A master whose clock is behind by more than this was set back, and is followed.
const STEP_NS: i64 = 1_000_000_000;

impl Timing {
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            valid_until: AtomicU64::new(0),
            offset: AtomicI64::new(0),
            last_wall: AtomicI64::new(i64::MIN),
        }
    }

    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// A renewal that was *sent* at `sent` has been answered. A later one is never shortened by an earlier.
    pub fn renewed(&self, sent: Instant, holder_stops_after: Duration) {
        self.valid_until.fetch_max(sent.after(holder_stops_after).0, Ordering::SeqCst);
    }

    /// Nothing may be served from now on.
    pub fn lapse(&self) {
        self.valid_until.store(0, Ordering::SeqCst);
    }

    pub fn lease_remaining(&self) -> Option<Duration> {
        let until = Instant(self.valid_until.load(Ordering::SeqCst));
        let remaining = until.since(self.clock.now());
        (!remaining.is_zero()).then_some(remaining)
    }

    /// The master said `wall` between `sent` and now.
    pub fn set_wall(&self, wall: Timestamp, sent: Instant) {
        let middle = sent.0 / 2 + self.clock.now().0 / 2;
        let offset = wall.0.saturating_sub_unsigned(middle);
        self.offset.store(offset, Ordering::SeqCst);
        let now = offset.saturating_add_unsigned(self.clock.now().0);
        let follow = |last: i64| (last.saturating_sub(now) > STEP_NS).then_some(now);
        // What is a little behind is waited for.
        let _ = self.last_wall.fetch_update(Ordering::SeqCst, Ordering::SeqCst, follow);
    }

    /// Not backwards, but behind a step of the master's clock: the times of one file never go back.
    pub fn wall(&self) -> Timestamp {
        let now = self.offset.load(Ordering::SeqCst).saturating_add_unsigned(self.clock.now().0);
        Timestamp(self.last_wall.fetch_max(now, Ordering::SeqCst).max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Hand(AtomicU64);

    impl Clock for Hand {
        fn now(&self) -> Instant {
            Instant(self.0.load(Ordering::SeqCst))
        }
        fn wall(&self) -> Timestamp {
            Timestamp(0)
        }
    }

    #[test]
    fn the_lease_counts_from_the_sending_and_ends_strictly() {
        let hand = Arc::new(Hand::default());
        let timing = Timing::new(hand.clone());
        assert_eq!(timing.lease_remaining(), None);
        timing.renewed(Instant(100), Duration::from_nanos(50));
        hand.0.store(120, Ordering::SeqCst);
        assert_eq!(timing.lease_remaining(), Some(Duration::from_nanos(30)));
        timing.renewed(Instant(90), Duration::from_nanos(50));
        assert_eq!(timing.lease_remaining(), Some(Duration::from_nanos(30)));
        hand.0.store(150, Ordering::SeqCst);
        assert_eq!(timing.lease_remaining(), None);
        timing.renewed(Instant(140), Duration::from_nanos(50));
        timing.lapse();
        assert_eq!(timing.lease_remaining(), None);
    }

    #[test]
    fn wall_follows_the_master_and_never_goes_back() {
        let hand = Arc::new(Hand::default());
        let timing = Timing::new(hand.clone());
        hand.0.store(1_000, Ordering::SeqCst);
        timing.set_wall(Timestamp(5_000), Instant(800));
        assert_eq!(timing.wall(), Timestamp(5_100));
        timing.set_wall(Timestamp(3_000), Instant(1_000));
        assert_eq!(timing.wall(), Timestamp(5_100));
        hand.0.store(4_000, Ordering::SeqCst);
        assert_eq!(timing.wall(), Timestamp(6_000));
    }
    #[test]
    fn wall_follows_a_master_whose_clock_was_ahead_and_is_right_again() {
        const SECOND: i64 = 1_000_000_000;
        let hand = Arc::new(Hand::default());
        let timing = Timing::new(hand.clone());
        timing.set_wall(Timestamp(3600 * SECOND), Instant(0));
        assert_eq!(timing.wall(), Timestamp(3600 * SECOND));
        timing.set_wall(Timestamp(3600 * SECOND - SECOND / 2), Instant(0));
        assert_eq!(timing.wall(), Timestamp(3600 * SECOND), "a clock that is waited for");
        timing.set_wall(Timestamp(5 * SECOND), Instant(0));
        assert_eq!(timing.wall(), Timestamp(5 * SECOND));
        hand.0.store(2_000_000_000, Ordering::SeqCst);
        assert_eq!(timing.wall(), Timestamp(7 * SECOND));
    }
}
