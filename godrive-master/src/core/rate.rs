//! How fast copies may go, and how fast they went. Time is passed in.

use godrive_proto::NodeId;
use godrive_proto::time::Instant;
use std::collections::BTreeMap;
use std::time::Duration;

/// A budget for each slave, as a token bucket that holds one second of the rate. What is taken may be more than it
/// holds: then nothing more is allowed until that is paid off, so that chunks of any size pass.
#[derive(Debug)]
pub struct Budgets {
    /// 0: no limit.
    bytes_per_s: u64,
    buckets: BTreeMap<NodeId, Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: i64,
    at: Instant,
}

impl Budgets {
    pub fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s, buckets: BTreeMap::new() }
    }

    fn full(&self) -> i64 {
        i64::try_from(self.bytes_per_s).unwrap_or(i64::MAX)
    }

    /// What each slave may take now; those that are not in it have a full bucket.
    pub fn left(&mut self, now: Instant) -> BTreeMap<NodeId, i64> {
        let (full, rate) = (self.full(), u128::from(self.bytes_per_s));
        for bucket in self.buckets.values_mut() {
            let gained = rate * now.since(bucket.at).as_nanos() / 1_000_000_000;
            if gained > 0 {
                // To when so much was gained, so that fractions are not lost.
                let spent = u64::try_from(gained * 1_000_000_000 / rate).unwrap_or(u64::MAX);
                bucket.at = bucket.at.after(Duration::from_nanos(spent));
                let gained = i64::try_from(gained).unwrap_or(i64::MAX);
                bucket.left = bucket.left.saturating_add(gained).min(full);
            }
        }
        self.buckets.retain(|_, bucket| bucket.left < full);
        self.buckets.iter().map(|(node, bucket)| (*node, bucket.left)).collect()
    }

    pub fn take(&mut self, now: Instant, node: NodeId, bytes: u64) {
        if self.bytes_per_s == 0 {
            return;
        }
        let full = self.full();
        let bucket = self.buckets.entry(node).or_insert(Bucket { left: full, at: now });
        bucket.left = bucket.left.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

/// Seconds over which a rate is an average.
const WINDOW: u64 = 10;

/// Bytes in all, and per second of late.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    pub bytes: u64,
    /// (second, bytes), the last of them.
    recent: Vec<(u64, u64)>,
}

impl Meter {
    pub fn add(&mut self, now: Instant, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        let second = seconds(now);
        self.recent.retain(|(at, _)| at + WINDOW > second);
        match self.recent.last_mut() {
            Some((at, sum)) if *at == second => *sum += bytes,
            _ => self.recent.push((second, bytes)),
        }
    }

    pub fn per_second(&self, now: Instant) -> u64 {
        let second = seconds(now);
        let sum: u64 =
            self.recent.iter().filter(|(at, _)| at + WINDOW > second).map(|(_, bytes)| bytes).sum();
        sum / WINDOW
    }
}

fn seconds(at: Instant) -> u64 {
    at.since(Instant(0)).as_secs()
}

/// What happened within some time of now.
#[derive(Debug)]
pub struct Recent<T> {
    within: Duration,
    events: Vec<(Instant, T)>,
}

impl<T> Recent<T> {
    pub fn new(within: Duration) -> Self {
        Self { within, events: Vec::new() }
    }

    pub fn add(&mut self, now: Instant, event: T) {
        self.events.push((now, event));
    }

    pub fn now(&mut self, now: Instant) -> impl Iterator<Item = &T> {
        self.events.retain(|(at, _)| now.since(*at) < self.within);
        self.events.iter().map(|(_, event)| event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);

    fn ms(ms: u64) -> Instant {
        Instant(ms * 1_000_000)
    }

    #[test]
    fn a_budget_is_spent_into_debt_and_paid_off_at_the_rate() {
        let mut budgets = Budgets::new(1000);
        assert!(budgets.left(ms(0)).is_empty(), "full");
        budgets.take(ms(0), A, 2500);
        assert_eq!(budgets.left(ms(0)), BTreeMap::from([(A, -1500)]));
        assert_eq!(budgets.left(ms(1000)), BTreeMap::from([(A, -500)]));
        assert_eq!(budgets.left(ms(1501)), BTreeMap::from([(A, 1)]));
        assert!(budgets.left(ms(60_000)).is_empty(), "no more than a second is saved up");
    }

    #[test]
    fn looking_often_loses_nothing() {
        let mut budgets = Budgets::new(3);
        budgets.take(ms(0), A, 6);
        for at in 0..1000 {
            budgets.left(ms(at));
        }
        assert_eq!(budgets.left(ms(1000)), BTreeMap::from([(A, 0)]));
    }

    #[test]
    fn over_a_long_time_the_rate_is_kept() {
        let mut budgets = Budgets::new(1000);
        let mut taken = 0;
        for at in 0..100_000 {
            if budgets.left(ms(at)).get(&A).is_none_or(|left| *left > 0) {
                budgets.take(ms(at), A, 700);
                taken += 700;
            }
        }
        assert!((99_000..=102_000).contains(&taken), "{taken} in 100 s");
    }

    #[test]
    fn without_a_rate_there_is_no_limit() {
        let mut budgets = Budgets::new(0);
        budgets.take(ms(0), A, u64::MAX);
        assert!(budgets.left(ms(0)).is_empty());
    }

    #[test]
    fn a_meter_forgets_what_is_long_ago() {
        let mut meter = Meter::default();
        meter.add(ms(500), 1000);
        meter.add(ms(900), 1000);
        meter.add(ms(5000), 8000);
        assert_eq!((meter.bytes, meter.per_second(ms(6000))), (10_000, 1000));
        assert_eq!(meter.per_second(ms(12_000)), 800);
        assert_eq!((meter.bytes, meter.per_second(ms(60_000))), (10_000, 0));
    }
}
