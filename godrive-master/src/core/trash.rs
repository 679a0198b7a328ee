//! What leaves the trash before its time: what is over, what is too many, and, before the disks are full, what is oldest.
//!
//! Room comes back only when the slaves have deleted and punched, which takes them some seconds. So nothing more is dropped
//! for want of room while deletions are under way, or before the disks can have said what the last ones gave.

use godrive_proto::time::{Instant, Timestamp};
use std::time::Duration;

/// Less than one part in so many of all disks free: the oldest entries go.
const FREE_PARTS: u64 = 10;
/// How long the effect of deletions is waited for.
const PATIENCE: Duration = Duration::from_secs(15);
const SECOND: i64 = 1_000_000_000;

/// What the planner sees.
#[derive(Clone, Copy, Debug)]
pub struct View {
    pub now: Instant,
    pub wall: Timestamp,
    pub keep_s: u64,
    pub max_entries: u64,
    pub entries: u64,
    /// Bytes of the living disks.
    pub total_bytes: u64,
    pub free_bytes: u64,
    /// How many replicas each byte has.
    pub replicas: u64,
    /// Deleted chunks that wait for their replicas to go.
    pub deleting: u64,
}

/// What may go now, the oldest entries first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// All that was removed at or before this.
    pub until: Option<Timestamp>,
    /// At least so many entries, whatever their age,
    pub entries: u64,
    /// and so many bytes, counted once.
    pub bytes: u64,
}

#[derive(Debug, Default)]
pub struct Planner {
    /// Bytes were dropped for want of room, or deletions were under way.
    waiting_since: Option<Instant>,
}

impl Planner {
    pub fn plan(&mut self, view: &View) -> Due {
        let kept_ns = i64::try_from(view.keep_s).unwrap_or(i64::MAX).saturating_mul(SECOND);
        let until = Some(Timestamp(view.wall.0.saturating_sub(kept_ns)));
        let entries = view.entries.saturating_sub(view.max_entries);
        Due { until, entries, bytes: self.bytes(view) }
    }

    fn bytes(&mut self, view: &View) -> u64 {
        let wanted = (view.total_bytes / FREE_PARTS).saturating_sub(view.free_bytes);
        if wanted == 0 || view.entries == 0 {
            self.waiting_since = None;
            return 0;
        }
        let patient = self.waiting_since.is_some_and(|since| view.now.since(since) < PATIENCE);
        if view.deleting > 0 || patient {
            if view.deleting > 0 {
                self.waiting_since = Some(view.now);
            }
            return 0;
        }
        self.waiting_since = Some(view.now);
        (wanted / view.replicas.max(1)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(seconds: u64) -> View {
        View {
            now: Instant(seconds * 1_000_000_000),
            wall: Timestamp(1_000 * SECOND),
            keep_s: 100,
            max_entries: 50,
            entries: 40,
            total_bytes: 1_000,
            free_bytes: 100,
            replicas: 2,
            deleting: 0,
        }
    }

    #[test]
    fn what_is_over_goes_and_what_is_too_many() {
        let due = Planner::default().plan(&view(0));
        assert_eq!(due, Due { until: Some(Timestamp(900 * SECOND)), entries: 0, bytes: 0 });
        assert_eq!(Planner::default().plan(&View { entries: 60, ..view(0) }).entries, 10);
        let off = Planner::default().plan(&View { keep_s: 0, ..view(0) });
        assert_eq!(off.until, Some(Timestamp(1_000 * SECOND)));
    }

    #[test]
    fn before_the_disks_are_full_the_oldest_make_room_and_no_more_than_is_needed() {
        let mut planner = Planner::default();
        let short = |seconds| View { free_bytes: 40, ..view(seconds) };
        assert_eq!(planner.plan(&short(0)).bytes, 30);
        // The slaves have not deleted yet, then have not said so yet.
        assert_eq!(planner.plan(&View { deleting: 3, ..short(8) }).bytes, 0);
        assert_eq!(planner.plan(&short(20)).bytes, 0);
        assert_eq!(planner.plan(&short(23)).bytes, 30);
        assert_eq!(planner.plan(&view(24)).bytes, 0);
        assert_eq!(planner.plan(&short(25)).bytes, 30);
        assert_eq!(planner.plan(&View { entries: 0, ..short(60) }).bytes, 0);
    }
}
