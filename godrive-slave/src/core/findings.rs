//! Replicas that were found bad here: each is told to the master once in a while, and kept until it can be.

use godrive_proto::time::Instant;
use godrive_proto::{ChunkId, Epoch};
use std::collections::BTreeMap;
use std::time::Duration;

/// A bad chunk is told again after this long, if it is still bad: the master may have had another epoch change under way,
/// or may have taken the finding for one that is mended.
const AGAIN_AFTER: Duration = Duration::from_secs(30);
/// What is found beyond these while there is no master is left to the next scrub.
const MAX_WAITING: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub epoch: Epoch,
    pub detail: String,
}

#[derive(Debug, Default)]
pub struct Findings {
    told: BTreeMap<ChunkId, Instant>,
    waiting: BTreeMap<ChunkId, Finding>,
}

impl Findings {
    /// Whether it is news, which is to be told now.
    pub fn found(&mut self, chunk: ChunkId, now: Instant) -> bool {
        self.told.retain(|_, at| now.since(*at) < AGAIN_AFTER);
        let news = !self.told.contains_key(&chunk);
        if news {
            self.told.insert(chunk, now);
        }
        news
    }

    /// There was no master to tell. False if too many wait already.
    pub fn keep(&mut self, chunk: ChunkId, finding: Finding) -> bool {
        let room = self.waiting.len() < MAX_WAITING || self.waiting.contains_key(&chunk);
        if room {
            self.waiting.insert(chunk, finding);
        } else {
            self.told.remove(&chunk);
        }
        room
    }

    /// What is to be told now that there is a master.
    pub fn take_waiting(&mut self) -> BTreeMap<ChunkId, Finding> {
        std::mem::take(&mut self.waiting)
    }

    /// What is found of the chunk from now on is news.
    pub fn forget(&mut self, chunk: ChunkId) {
        self.told.remove(&chunk);
        self.waiting.remove(&chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: ChunkId = ChunkId(1);

    fn finding() -> Finding {
        Finding { epoch: Epoch(2), detail: "bad".into() }
    }

    #[test]
    fn the_same_is_told_once_in_a_while() {
        let mut findings = Findings::default();
        let later = |by: Duration| Instant(0).after(by);
        assert!(findings.found(CHUNK, Instant(0)));
        assert!(findings.found(ChunkId(2), Instant(0)), "another chunk");
        assert!(!findings.found(CHUNK, later(AGAIN_AFTER - Duration::from_secs(1))));
        assert!(findings.found(CHUNK, later(AGAIN_AFTER)), "however often it was found meanwhile");
        findings.forget(CHUNK);
        assert!(findings.found(CHUNK, later(AGAIN_AFTER)), "made anew and bad again");
    }

    #[test]
    fn what_cannot_be_told_waits_and_is_given_out_once() {
        let mut findings = Findings::default();
        assert!(findings.found(CHUNK, Instant(0)) && findings.keep(CHUNK, finding()));
        assert!(!findings.found(CHUNK, Instant(1)), "it waits already");
        assert_eq!(findings.take_waiting(), BTreeMap::from([(CHUNK, finding())]));
        assert_eq!(findings.take_waiting(), BTreeMap::new());
        assert!(findings.keep(CHUNK, finding()));
        findings.forget(CHUNK);
        assert_eq!(findings.take_waiting(), BTreeMap::new(), "made anew");
    }

    #[test]
    fn what_waits_is_bounded_and_the_rest_is_news_again() {
        let mut findings = Findings::default();
        for id in 0..MAX_WAITING as u64 {
            assert!(findings.keep(ChunkId(id), finding()));
        }
        assert!(findings.keep(ChunkId(0), finding()), "in the place of what is said of it already");
        let beyond = ChunkId(MAX_WAITING as u64);
        assert!(findings.found(beyond, Instant(0)) && !findings.keep(beyond, finding()));
        assert!(findings.found(beyond, Instant(1)));
        assert_eq!(findings.take_waiting().len(), MAX_WAITING);
    }
}
