//! What the scrub reads next and how fast: chunk after chunk in order of their ids, batch after batch of leaves,
//! at a rate in bytes per second. One pass after another, with a pause between them.

use super::replica::Key;
use godrive_proto::limits::LEAF_BYTES;
use godrive_proto::time::Instant;
use std::time::Duration;

/// Leaves verified in one step.
pub const BATCH_LEAVES: u32 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Verify so many leaves from the first; skip what are holes.
    Verify { key: Key, first_leaf: u32 },
    /// Look up the next replica after this one (None: the first) and tell [`Cursor::found`].
    Next(Option<Key>),
}

/// Where a pass is.
#[derive(Clone, Debug)]
pub struct Cursor {
    bytes_per_s: u64,
    at: Option<(Key, u32)>,
    done: Option<Key>,
    /// Passes finished, and replicas done in the one under way.
    pub passes: u64,
    pub replicas: u64,
}

impl Cursor {
    pub fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s, at: None, done: None, passes: 0, replicas: 0 }
    }

    pub fn step(&self) -> Step {
        match self.at {
            Some((key, first_leaf)) => Step::Verify { key, first_leaf },
            None => Step::Next(self.done),
        }
    }

    /// The next replica, or the end of the pass.
    pub fn found(&mut self, key: Option<Key>) {
        self.at = key.map(|key| (key, 0));
        if key.is_none() {
            self.done = None;
            self.passes += 1;
            self.replicas = 0;
        }
    }

    /// A batch was done (or the replica is gone: `leaves` 0).
    pub fn verified(&mut self, leaves: u32) {
        if let Some((key, first)) = self.at {
            let next = first.saturating_add(BATCH_LEAVES);
            self.at = (next < leaves).then_some((key, next));
            if self.at.is_none() {
                self.done = Some(key);
                self.replicas += 1;
            }
        }
    }

    /// How much of the pass is done, of a disk with so many replicas. They come and go, so it is not exact.
    pub fn percent(&self, of: u64) -> u8 {
        u8::try_from(self.replicas.saturating_mul(100) / of.max(1)).unwrap_or(100).min(100)
    }

    /// When the next step may begin after one that read so many leaves.
    pub fn due(&self, began: Instant, read_leaves: u32) -> Instant {
        let bytes = u64::from(read_leaves) * u64::from(LEAF_BYTES);
        let nanos = bytes.saturating_mul(1_000_000_000) / self.bytes_per_s.max(1);
        began.after(Duration::from_nanos(nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use godrive_proto::ChunkId;

    #[test]
    fn a_pass_visits_every_batch_of_every_chunk_once() {
        let chunks = [(1, 256), (4, 10), (9, 64)];
        let mut cursor = Cursor::new(1 << 20);
        let mut seen = Vec::new();
        while cursor.passes == 0 {
            match cursor.step() {
                Step::Next(after) => {
                    let after = after.map_or(0, |key| key.chunk.0);
                    cursor.found(
                        chunks.iter().find(|(id, _)| *id > after).map(|(id, _)| Key::live(ChunkId(*id))),
                    );
                }
                Step::Verify { key, first_leaf } => {
                    seen.push((key.chunk.0, first_leaf));
                    let before = cursor.percent(3);
                    cursor.verified(chunks.iter().find(|(id, _)| *id == key.chunk.0).unwrap().1);
                    assert!(cursor.percent(3) >= before && cursor.percent(2) <= 100);
                }
            }
        }
        assert_eq!((cursor.replicas, cursor.percent(3)), (0, 0), "of the next pass");
        assert_eq!(seen, [(1, 0), (1, 64), (1, 128), (1, 192), (4, 0), (9, 0)]);
        assert_eq!(cursor.step(), Step::Next(None), "and begins again");
    }

    #[test]
    fn the_rate_is_kept() {
        let cursor = Cursor::new(1 << 20);
        assert_eq!(cursor.due(Instant(0), 256), Instant(1_000_000_000));
        assert_eq!(cursor.due(Instant(5), 0), Instant(5));
    }
}
