//! What went over the simulated network, as one number: equal seeds must give equal traces.

use godrive_proto::net::simulated::{Passage, Watcher};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// Hashes time, endpoints and contents of every datagram.
#[derive(Clone, Default)]
pub struct Trace {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    hash: Xxh3,
    datagrams: u64,
    bytes: u64,
}

/// A trace so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest {
    pub hash: u64,
    pub datagrams: u64,
    pub bytes: u64,
}

impl Trace {
    pub fn digest(&self) -> Digest {
        let state = self.state.lock();
        Digest { hash: state.hash.digest(), datagrams: state.datagrams, bytes: state.bytes }
    }
}

impl Watcher for Trace {
    fn sent(&self, from: SocketAddr, to: SocketAddr, contents: &[u8]) -> Passage {
        let at = turmoil::sim_elapsed().unwrap_or_default().as_nanos();
        let mut state = self.state.lock();
        state.hash.update(&at.to_le_bytes());
        state.hash.update(format!("{from} {to} {} ", contents.len()).as_bytes());
        state.hash.update(contents);
        state.datagrams += 1;
        state.bytes += contents.len() as u64;
        Passage::Whole
    }
}
