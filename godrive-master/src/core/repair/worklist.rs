//! The chunks that may need something, by urgency.

use godrive_proto::ChunkId;
use std::collections::{BTreeMap, BTreeSet};

/// Chunks that may need something, the most urgent first. Bounded turns take from its front.
#[derive(Debug, Default)]
pub struct Worklist {
    ranks: BTreeMap<ChunkId, u8>,
    order: BTreeSet<(u8, ChunkId)>,
}

impl Worklist {
    /// Not looked at yet, so before everything else.
    pub const UNKNOWN: u8 = 0;
    /// Nothing can be done for it now.
    pub const HOPELESS: u8 = u8::MAX;

    pub fn put(&mut self, chunk: ChunkId, rank: u8) {
        if let Some(old) = self.ranks.insert(chunk, rank) {
            self.order.remove(&(old, chunk));
        }
        self.order.insert((rank, chunk));
    }

    pub fn remove(&mut self, chunk: ChunkId) {
        if let Some(rank) = self.ranks.remove(&chunk) {
            self.order.remove(&(rank, chunk));
        }
    }

    pub fn first(&self, count: usize) -> Vec<ChunkId> {
        self.order.iter().take(count).map(|(_, chunk)| *chunk).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_urgent_come_first_and_new_ones_before() {
        let mut list = Worklist::default();
        for (chunk, rank) in [(1, 3), (2, Worklist::HOPELESS), (3, 1), (4, Worklist::UNKNOWN), (1, 2)] {
            list.put(ChunkId(chunk), rank);
        }
        assert_eq!(list.first(3), [ChunkId(4), ChunkId(3), ChunkId(1)]);
        list.remove(ChunkId(4));
        assert_eq!(list.first(9), [ChunkId(3), ChunkId(1), ChunkId(2)]);
    }
}
