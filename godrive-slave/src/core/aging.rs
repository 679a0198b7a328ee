//! How long things have been as they are, as far as this process has seen it on its monotonic clock: a wall clock that is
//! set makes nothing older, and a restart begins anew.

use super::replica::Key;
use godrive_proto::time::{Instant, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long what was put aside and what a copy left unfinished are kept: the master knows of neither.
const KEEP: Duration = Duration::from_secs(7 * 24 * 3600);

#[derive(Debug, Default)]
pub struct Aging {
    /// What is of no use: its position, and since when it has it.
    unused: BTreeMap<Key, (u64, Instant)>,
    /// A wall time, and when it was so.
    mark: Option<(Instant, Timestamp)>,
    /// Of the mark before.
    old: Option<Timestamp>,
}

impl Aging {
    /// All that is of no use now; of that what has been so, unchanged, for a week.
    pub fn unused(&mut self, now: Instant, all: Vec<(Key, u64)>) -> Vec<(Key, u64)> {
        let before = std::mem::take(&mut self.unused);
        let since = |key: &Key, position: u64| match before.get(key) {
            Some((known, since)) if *known == position => *since,
            _ => now,
        };
        self.unused = all.iter().map(|(key, position)| (*key, (*position, since(key, *position)))).collect();
        let of_age = |key: &Key| self.unused.get(key).is_some_and(|(_, since)| now.since(*since) >= KEEP);
        all.into_iter().filter(|(key, _)| of_age(key)).collect()
    }

    /// A wall time that was a day ago or earlier, once there is one.
    pub fn a_day_ago(&mut self, now: Instant, wall: Timestamp) -> Option<Timestamp> {
        let (since, then) = *self.mark.get_or_insert((now, wall));
        if now.since(since) >= DAY {
            (self.mark, self.old) = (Some((now, wall)), Some(then));
        }
        self.old
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use godrive_proto::ChunkId;

    fn day(days: u64) -> Instant {
        Instant(days * DAY.as_nanos() as u64)
    }

    #[test]
    fn a_week_begins_anew_with_each_change() {
        let mut aging = Aging::default();
        let (one, two) = (Key { chunk: ChunkId(1), aside: 5 }, Key::live(ChunkId(2)));
        assert_eq!(aging.unused(day(100), vec![(one, 5), (two, 6)]), []);
        assert_eq!(aging.unused(day(106), vec![(one, 5), (two, 7)]), []);
        assert_eq!(aging.unused(day(107), vec![(one, 5), (two, 7)]), [(one, 5)]);
        // It was of use for a while.
        assert_eq!(aging.unused(day(108), vec![]), []);
        assert_eq!(aging.unused(day(114), vec![(two, 7)]), []);
        assert_eq!(aging.unused(day(121), vec![(two, 7)]), [(two, 7)]);
    }

    #[test]
    fn a_day_is_one_of_the_monotonic_clock() {
        let mut aging = Aging::default();
        assert_eq!(aging.a_day_ago(day(1), Timestamp(10)), None);
        assert_eq!(aging.a_day_ago(day(1), Timestamp(i64::MAX)), None);
        assert_eq!(aging.a_day_ago(day(2), Timestamp(30)), Some(Timestamp(10)));
        assert_eq!(aging.a_day_ago(day(2), Timestamp(40)), Some(Timestamp(10)));
        assert_eq!(aging.a_day_ago(day(3), Timestamp(50)), Some(Timestamp(30)));
    }
}
