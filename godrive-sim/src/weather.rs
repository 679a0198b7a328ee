//! What the network does to single datagrams: it loses them, delivers them twice, or changes bits of them.

use crate::trace::Trace;
use godrive_proto::net::simulated::{Passage, Watcher};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::net::SocketAddr;
use std::sync::Arc;

/// Of a thousand datagrams, so many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weather {
    pub lost: u16,
    pub doubled: u16,
    pub altered: u16,
}

/// The network between all hosts. Clones are the same.
#[derive(Clone)]
pub struct Network {
    trace: Trace,
    state: Arc<Mutex<(Weather, SmallRng)>>,
}

impl Network {
    pub fn new(trace: Trace, seed: u64) -> Self {
        let dice = SmallRng::seed_from_u64(seed);
        Self { trace, state: Arc::new(Mutex::new((Weather::default(), dice))) }
    }

    pub fn set(&self, weather: Weather) {
        self.state.lock().0 = weather;
    }
}

impl Watcher for Network {
    fn sent(&self, from: SocketAddr, to: SocketAddr, contents: &[u8]) -> Passage {
        self.trace.sent(from, to, contents);
        let mut state = self.state.lock();
        let (Weather { lost, doubled, altered }, dice) = &mut *state;
        if *lost + *doubled + *altered == 0 || contents.is_empty() {
            return Passage::Whole;
        }
        let fate = dice.random_range(0..1000);
        if fate < *lost {
            Passage::Lost
        } else if fate < *lost + *doubled {
            Passage::Twice
        } else if fate < *lost + *doubled + *altered {
            let mut bytes = contents.to_vec();
            for _ in 0..dice.random_range(1..4) {
                let at = dice.random_range(0..bytes.len());
                bytes[at] ^= 1 << dice.random_range(0..8);
            }
            Passage::Altered(bytes)
        } else {
            Passage::Whole
        }
    }
}
