//! Disks that take far longer than the others to make something stable. Nothing new goes there until they have kept up for a
//! while, which becomes longer each time that they fall behind again.
//!
//! Slow is what is slow beside the others: a cluster of spinning disks is not full of slow ones.

use godrive_proto::DiskId;
use godrive_proto::time::Instant;
use std::collections::BTreeMap;
use std::time::Duration;

/// Faster than this is never slow.
const FLOOR_MS: u32 = 250;
/// Slower than so many times the median of the others is.
const FACTOR: u32 = 8;
/// So many reports in a row.
const REPORTS: u32 = 3;
/// What a disk said longer ago tells nothing of the present.
const RECENT: Duration = Duration::from_secs(60);
const FORGIVEN_AFTER: Duration = Duration::from_secs(60);
const FORGIVEN_AT_MOST: Duration = Duration::from_secs(3600);

#[derive(Debug, Default)]
pub struct Slowness {
    disks: BTreeMap<DiskId, Disk>,
}

#[derive(Debug, Default)]
struct Disk {
    /// The slowest sync of the last report that told of one, and when that came.
    latest: Option<(u32, Instant)>,
    in_a_row: u32,
    /// When it was slow last, and for how long since then it has to keep up.
    slow: Option<(Instant, Duration)>,
    /// How long it had to keep up the last time.
    before: Option<Duration>,
}

impl Slowness {
    /// The slowest sync of a disk since its last report. 0: there was none, which says nothing.
    pub fn report(&mut self, now: Instant, disk: DiskId, slowest_ms: u32) {
        let others = self.median_of_others(now, disk);
        let known = self.disks.entry(disk).or_default();
        if known.slow.is_some_and(|(since, patience)| now.since(since) >= patience) {
            known.before = known.slow.take().map(|(_, patience)| patience);
            known.in_a_row = 0;
        }
        if slowest_ms == 0 {
            return;
        }
        known.latest = Some((slowest_ms, now));
        let Some(others) = others else { return };
        if slowest_ms < FLOOR_MS.max(others.saturating_mul(FACTOR)) {
            known.in_a_row = 0;
            return;
        }
        known.in_a_row = known.in_a_row.saturating_add(1);
        match &mut known.slow {
            Some((since, _)) => *since = now,
            None if known.in_a_row >= REPORTS => {
                let longer = |before: Duration| (before * 2).min(FORGIVEN_AT_MOST);
                known.slow = Some((now, known.before.map_or(FORGIVEN_AFTER, longer)));
            }
            None => {}
        }
    }

    pub fn is_slow(&self, now: Instant, disk: DiskId) -> bool {
        let slow = self.disks.get(&disk).and_then(|known| known.slow);
        slow.is_some_and(|(since, patience)| now.since(since) < patience)
    }

    /// How long its syncs take, and those of the others.
    pub fn times_ms(&self, now: Instant, disk: DiskId) -> Option<(u32, u32)> {
        let (own, _) = self.disks.get(&disk)?.latest?;
        Some((own, self.median_of_others(now, disk)?))
    }

    fn median_of_others(&self, now: Instant, disk: DiskId) -> Option<u32> {
        let recent = self.disks.iter().filter(|(other, _)| **other != disk);
        let recent = recent.filter_map(|(_, known)| known.latest).filter(|(_, at)| now.since(*at) < RECENT);
        let mut times: Vec<u32> = recent.map(|(ms, _)| ms).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: DiskId = DiskId(1);

    fn at(seconds: u64) -> Instant {
        Instant(seconds * 1_000_000_000)
    }

    /// A report of each disk, each second; the seconds in which the first is slow.
    fn slow_seconds(seconds: u64, first_ms: impl Fn(u64) -> u32, others_ms: u32) -> Vec<u64> {
        let mut slowness = Slowness::default();
        let mut slow = Vec::new();
        for second in 0..seconds {
            for other in 2..5 {
                slowness.report(at(second), DiskId(other), others_ms);
            }
            slowness.report(at(second), SLOW, first_ms(second));
            if slowness.is_slow(at(second), SLOW) {
                slow.push(second);
            }
            assert!((2..5).all(|other| !slowness.is_slow(at(second), DiskId(other))));
        }
        slow
    }

    #[test]
    fn three_slow_reports_in_a_row_and_a_minute_of_keeping_up() {
        let slow = slow_seconds(200, |second| if (10..20).contains(&second) { 700 } else { 3 }, 3);
        assert_eq!((slow.first(), slow.last()), (Some(&12), Some(&78)));
        assert!(slow_seconds(100, |second| if second % 3 == 0 { 3 } else { 700 }, 3).is_empty());
    }

    #[test]
    fn slow_is_what_is_slow_beside_the_others() {
        assert!(slow_seconds(60, |_| 900, 120).is_empty());
        assert!(slow_seconds(60, |_| 240, 1).is_empty());
        assert!(!slow_seconds(60, |_| 1_000, 120).is_empty());
        let mut alone = Slowness::default();
        (0..60).for_each(|second| alone.report(at(second), SLOW, 5_000));
        assert!(!alone.is_slow(at(59), SLOW), "there is nothing to compare it with");
    }

    #[test]
    fn a_disk_that_falls_behind_again_has_to_keep_up_for_longer() {
        // It says nothing while nothing is written to it, and is slow whenever something is.
        let first = |second: u64| if second < 5 || (100..105).contains(&second) { 700 } else { 0 };
        let slow = slow_seconds(300, first, 3);
        assert!(slow.contains(&63) && !slow.contains(&64), "{slow:?}");
        assert_eq!(slow.iter().filter(|second| **second >= 100).count(), 122, "{slow:?}");
    }

    #[test]
    fn what_is_shown() {
        let mut slowness = Slowness::default();
        slowness.report(at(0), DiskId(2), 4);
        assert_eq!(slowness.times_ms(at(1), SLOW), None);
        slowness.report(at(1), SLOW, 700);
        assert_eq!(slowness.times_ms(at(1), SLOW), Some((700, 4)));
        assert_eq!(slowness.times_ms(at(61), SLOW), None);
    }
}
