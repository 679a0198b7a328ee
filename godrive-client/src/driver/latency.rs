//! How long reads take, by size: a smoothed mean and a smoothed deviation, as of round trips (RFC 6298). A member is late
//! when another one, asked in its place, would have answered twice by now: "hedged requests" (Dean and Barroso, The Tail
//! at Scale, 2013). Pure.

use godrive_proto::limits::{LEAF_BYTES, MAX_READ_BYTES};
use std::time::Duration;

/// A read's size: four times as much is another class, as the bytes take their time, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    leaves: u32,
}

impl Size {
    const LARGEST: u32 = MAX_READ_BYTES as u32 / LEAF_BYTES;
    pub const COUNT: usize = Self::of(Self::LARGEST).class() + 1;
    /// What a link must carry, or a read of the largest size seems late.
    const SLOWEST_BYTES_PER_MS: u64 = 8 << 10;

    pub const fn of(leaves: u32) -> Self {
        Self { leaves: if leaves < Self::LARGEST { leaves } else { Self::LARGEST } }
    }

    pub const fn class(self) -> usize {
        match self.leaves.checked_ilog2() {
            Some(log) => log.div_ceil(2) as usize,
            None => 0,
        }
    }

    /// What the bytes may take on a slow link.
    pub fn longest_transit(self) -> Duration {
        Duration::from_millis(u64::from(self.leaves) * u64::from(LEAF_BYTES) / Self::SLOWEST_BYTES_PER_MS)
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Estimate {
    mean: Duration,
    deviation: Duration,
}

impl Estimate {
    pub fn add(estimate: &mut Option<Self>, took: Duration) {
        *estimate = Some(match *estimate {
            None => Self { mean: took, deviation: took / 2 },
            Some(Self { mean, deviation }) => {
                Self { mean: mean * 7 / 8 + took / 8, deviation: deviation * 3 / 4 + mean.abs_diff(took) / 4 }
            }
        });
    }

    pub fn mean(self) -> Duration {
        self.mean
    }

    /// Few answers take longer.
    pub fn bound(self) -> Duration {
        self.mean + self.deviation * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_class_each_up_to_the_largest_read() {
        let classes: Vec<usize> =
            [0, 1, 2, 3, 4, 5, 16, 64, 255, 256, 1023, 1024].map(|leaves| Size::of(leaves).class()).to_vec();
        assert_eq!(classes, [0, 0, 1, 1, 1, 1, 2, 3, 4, 4, 5, 5]);
        assert_eq!((Size::COUNT, Size::of(u32::MAX).class()), (6, 5));
        assert_eq!(Size::of(256).longest_transit(), Duration::from_millis(128));
    }
}
