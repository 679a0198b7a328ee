//! What leaves the trash before its time: what is over, what is too many, and, before the disks are full, what is oldest.
//!
//! No wall clock decides what is over, as it may be set. What has been removed by a point of the log is over once that point
//! is as old as entries are kept, on the monotonic clock. What happened before this master started is remembered by no
//! point: its time begins again.
//!
//! Room comes back only when the slaves have deleted and punched, which takes them some seconds. So nothing more is dropped
//! for want of room while deletions are under way, or before the disks can have said what the last ones gave.

use godrive_proto::LogIndex;
use godrive_proto::time::{Instant, Timestamp};
use std::collections::VecDeque;
use std::time::Duration;

/// Less than one part in so many of all disks free: the oldest entries go.
const FREE_PARTS: u64 = 10;
/// How long the effect of deletions is waited for.
const PATIENCE: Duration = Duration::from_secs(15);
/// So many points of the log are remembered for as long as entries are kept.
const POINTS: u32 = 64;

/// The log up to a record: its time, which never runs backwards, and its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    pub time: Timestamp,
    pub index: LogIndex,
}

/// What the planner sees.
#[derive(Clone, Copy, Debug)]
pub struct View {
    pub now: Instant,
    pub log: Point,
    pub keep_s: u64,
    pub max_entries: u64,
    pub entries: u64,
    /// Bytes of the living disks.
    pub total_bytes: u64,
    pub free_bytes: u64,
    /// How many replicas each byte has.
    pub replicas: u64,
    /// Deleted chunks that wait for replicas to go, on slaves that are connected.
    pub deleting: u64,
}

/// What may go now, the oldest entries first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// All that was removed up to this.
    pub until: Option<Point>,
    /// At least so many entries, whatever their age,
    pub entries: u64,
    /// and so many bytes, counted once.
    pub bytes: u64,
}

impl Due {
    /// While the wall clock is behind the log, records have the same time: then the record of the last change decides.
    pub fn is_over(&self, removed: Timestamp, changed: LogIndex) -> bool {
        self.until.is_some_and(|until| (removed, changed) <= (until.time, until.index))
    }
}

#[derive(Debug, Default)]
pub struct Planner {
    /// The end of the log at some moments, the last that is as old as entries are kept and those after it.
    points: VecDeque<(Instant, Point)>,
    /// Bytes were dropped for want of room, or deletions were under way.
    waiting_since: Option<Instant>,
}

impl Planner {
    pub fn plan(&mut self, view: &View) -> Due {
        let until = self.until(view);
        let entries = view.entries.saturating_sub(view.max_entries);
        Due { until, entries, bytes: self.bytes(view) }
    }

    fn until(&mut self, view: &View) -> Option<Point> {
        let keep = Duration::from_secs(view.keep_s);
        let age = |at: Instant| view.now.since(at);
        if self.points.back().is_none_or(|(at, _)| age(*at) >= keep / POINTS) {
            self.points.push_back((view.now, view.log));
        }
        while self.points.get(1).is_some_and(|(at, _)| age(*at) >= keep) {
            self.points.pop_front();
        }
        self.points.front().filter(|(at, _)| age(*at) >= keep).map(|(_, point)| *point)
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

    const SECOND: i64 = 1_000_000_000;

    fn at(seconds: i64, index: u64) -> Point {
        Point { time: Timestamp(seconds * SECOND), index: LogIndex(index) }
    }

    fn view(seconds: u64) -> View {
        View {
            now: Instant(seconds * 1_000_000_000),
            log: at(1_000, 7),
            keep_s: 100,
            max_entries: 50,
            entries: 40,
            total_bytes: 1_000,
            free_bytes: 100,
            replicas: 2,
            deleting: 0,
        }
    }

    /// Looks once a second, and says what was over in the end.
    fn look(planner: &mut Planner, seconds: std::ops::Range<u64>, log: impl Fn(u64) -> Point) -> Due {
        let dues = seconds.map(|second| planner.plan(&View { log: log(second), ..view(second) }));
        dues.last().unwrap()
    }

    fn is_over(due: &Due, removed: Point) -> bool {
        due.is_over(removed.time, removed.index)
    }

    #[test]
    fn what_is_over_goes_and_what_is_too_many() {
        let mut planner = Planner::default();
        let log = |second: u64| at(1_000 + second as i64, second);
        assert!(
            !is_over(&look(&mut planner, 0..100, log), at(900, 0)),
            "it lies there since the start at least"
        );
        let due = look(&mut planner, 100..300, log);
        assert!(is_over(&due, at(1_190, 190)) && !is_over(&due, at(1_200, 200)), "{due:?}");
        assert!(planner.points.len() <= POINTS as usize + 2);
        assert_eq!(Planner::default().plan(&View { entries: 60, ..view(0) }).entries, 10);
        assert!(is_over(&Planner::default().plan(&View { keep_s: 0, ..view(0) }), at(1_000, 7)));
    }

    #[test]
    fn a_wall_clock_that_steps_forward_takes_nothing_early() {
        let mut planner = Planner::default();
        let year = 31_536_000;
        // Removed in the 40th second, the step comes in the 50th; removed after it, in the 60th.
        let log = |second: u64| at(1_000 + second as i64 + if second < 50 { 0 } else { year }, second);
        let due = look(&mut planner, 0..140, log);
        assert!(!is_over(&due, log(40)), "{due:?}");
        let due = look(&mut planner, 140..150, log);
        assert!(is_over(&due, log(40)) && !is_over(&due, log(60)), "{due:?}");
        assert!(is_over(&look(&mut planner, 150..165, log), log(60)), "nor is it kept for a year");
        // The log remembers the step, a new master does not believe it.
        assert!(!is_over(&look(&mut Planner::default(), 200..299, log), log(60)));
    }

    #[test]
    fn a_wall_clock_that_steps_back_takes_nothing_early() {
        let mut planner = Planner::default();
        // The time of the log stands still from the 50th second on.
        let log = |second: u64| at(1_000 + second.min(50) as i64, second);
        let due = look(&mut planner, 0..165, log);
        assert!(is_over(&due, log(60)) && !is_over(&due, log(70)), "{due:?}");
        // Nor does the log, if nothing happens.
        let idle = look(&mut Planner::default(), 0..101, |_| at(1_000, 7));
        assert!(is_over(&idle, at(1_000, 7)));
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
