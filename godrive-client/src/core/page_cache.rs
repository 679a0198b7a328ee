//! The page cache: bytes of chunks as the replicas hold them, least recently used first out, bounded in bytes. What a
//! sequential reader has gone past goes before, so that a long stream neither pushes out what others use nor takes
//! memory that the caller's own cache holds a second time.
//!
//! A page is keyed by a tag and its number. A tag stands for one chunk of one file with one history of contents
//! as this client saw it: under a lease the owner patches its pages when its own deltas land; when a lease comes back
//! and the chunk has other contents, the owner takes a new tag and the old pages are never found again.
//! Pages are 64 KiB and may be partly there, so that a random reader of a large file does
//! not pay for what it does not read.

use crate::core::read_plan::Page;
use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// Bytes per page.
pub const PAGE_BYTES: u32 = 64 << 10;
const SHARDS: u64 = 16;
/// What a page costs beside its bytes.
const PAGE_OVERHEAD: u64 = 256;
/// Pages that sequential readers have gone past may take this share of the limit.
const PASSED_SHARE: u64 = 32;

static ZEROS: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];

/// Zeros that take no memory.
pub fn zeros(len: u32) -> Bytes {
    Bytes::from_static(&ZEROS[..len.min(PAGE_BYTES) as usize])
}

/// Names a history of contents of one chunk. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u64);

/// Byte runs of a page by offset, not overlapping.
#[derive(Debug, Default)]
struct Runs {
    map: BTreeMap<u32, Bytes>,
    bytes: u64,
}

impl Runs {
    fn insert(&mut self, offset: u32, bytes: Bytes) {
        let end = offset + bytes.len() as u32;
        let before = self.map.range(..offset).next_back().map(|(at, _)| *at);
        let touched: Vec<u32> =
            before.into_iter().chain(self.map.range(offset..end).map(|(at, _)| *at)).collect();
        for at in touched {
            let Some(old) = self.map.remove(&at) else { continue };
            self.bytes -= cost(&old);
            let old_end = at + old.len() as u32;
            for (from, to) in [(at, old_end.min(offset)), (at.max(end), old_end)] {
                if from < to {
                    self.put(from, old.slice((from - at) as usize..(to - at) as usize));
                }
            }
        }
        self.put(offset, bytes);
    }

    /// Memory in use.
    fn cost(&self) -> u64 {
        self.bytes + PAGE_OVERHEAD
    }

    fn put(&mut self, offset: u32, bytes: Bytes) {
        self.bytes += cost(&bytes);
        self.map.insert(offset, bytes);
    }

    fn read(&self, start: u32, end: u32, into: &mut Vec<(u32, Bytes)>, base: u32) {
        let before = self.map.range(..start).next_back();
        for (at, bytes) in before.into_iter().chain(self.map.range(start..end)) {
            let (from, to) = ((*at).max(start), (*at + bytes.len() as u32).min(end));
            if from < to {
                into.push((base + from, bytes.slice((from - at) as usize..(to - at) as usize)));
            }
        }
    }
}

fn cost(bytes: &Bytes) -> u64 {
    let is_static = ZEROS.as_ptr_range().contains(&bytes.as_ptr());
    if is_static { 0 } else { bytes.len() as u64 }
}

type Key = (Tag, u32);

struct Shard {
    pages: LruCache<Key, Runs>,
    /// Pages that a sequential reader has gone past, and no one has asked for since.
    passed: LruCache<Key, Runs>,
    passed_cost: u64,
    /// Of all.
    cost: u64,
}

impl Shard {
    /// The page, as the most recently used.
    fn find(&mut self, key: &Key) -> Option<&Runs> {
        if let Some(runs) = self.passed.pop(key) {
            self.passed_cost -= runs.cost();
            self.pages.push(*key, runs);
        }
        self.pages.get(key)
    }

    fn take(&mut self, key: &Key) -> Option<Runs> {
        self.find(key)?;
        let runs = self.pages.pop(key)?;
        self.cost -= runs.cost();
        Some(runs)
    }

    fn keep(&mut self, key: Key, runs: Runs, limit: u64) {
        self.cost += runs.cost();
        self.pages.push(key, runs);
        while self.cost > limit {
            if !self.drop_passed() {
                let Some((_, old)) = self.pages.pop_lru() else { break };
                self.cost -= old.cost();
            }
        }
    }

    fn pass(&mut self, key: Key, limit: u64) {
        let Some(runs) = self.pages.pop(&key) else { return };
        self.passed_cost += runs.cost();
        self.passed.push(key, runs);
        while self.passed_cost > limit && self.drop_passed() {}
    }

    fn drop_passed(&mut self) -> bool {
        let Some((_, old)) = self.passed.pop_lru() else { return false };
        self.passed_cost -= old.cost();
        self.cost -= old.cost();
        true
    }
}

pub struct PageCache {
    shards: Vec<Mutex<Shard>>,
    shard_limit: u64,
}

impl PageCache {
    pub fn new(limit_bytes: u64) -> Self {
        let shard = || {
            let (pages, passed) = (LruCache::unbounded(), LruCache::unbounded());
            Mutex::new(Shard { pages, passed, passed_cost: 0, cost: 0 })
        };
        Self { shards: (0..SHARDS).map(|_| shard()).collect(), shard_limit: limit_bytes / SHARDS }
    }

    /// Whether so many bytes are well within the limit.
    pub fn has_room_for(&self, bytes: u64) -> bool {
        bytes <= self.shard_limit * SHARDS
    }

    /// Memory in use.
    pub fn cost(&self) -> u64 {
        self.shards.iter().map(|shard| shard.lock().cost).sum()
    }

    /// What is there of `start..end` of a chunk: ascending, not overlapping, as (offset in the chunk, bytes).
    pub fn read(&self, tag: Tag, start: u32, end: u32) -> Vec<(u32, Bytes)> {
        let mut found = Vec::new();
        for page in Page::covering(start, end) {
            let mut shard = self.shard(tag, page.number).lock();
            if let Some(runs) = shard.find(&(tag, page.number)) {
                runs.read(page.start, page.end, &mut found, page.base());
            }
        }
        found
    }

    /// Puts bytes in, over what was there.
    pub fn insert(&self, tag: Tag, offset: u32, bytes: &Bytes) {
        for page in Page::covering(offset, offset + bytes.len() as u32) {
            let from = (page.base() + page.start - offset) as usize;
            let part = bytes.slice(from..from + (page.end - page.start) as usize);
            self.put(tag, &page, part);
        }
    }

    /// Makes a range zeros.
    pub fn insert_hole(&self, tag: Tag, offset: u32, len: u32) {
        for page in Page::covering(offset, offset + len) {
            self.put(tag, &page, zeros(page.end - page.start));
        }
    }

    /// A sequential reader has gone past `start..end`: its whole pages are the first to go.
    pub fn pass(&self, tag: Tag, start: u32, end: u32) {
        for number in start.div_ceil(PAGE_BYTES)..end / PAGE_BYTES {
            self.shard(tag, number).lock().pass((tag, number), self.shard_limit / PASSED_SHARE);
        }
    }

    fn put(&self, tag: Tag, page: &Page, bytes: Bytes) {
        let mut shard = self.shard(tag, page.number).lock();
        let mut runs = shard.take(&(tag, page.number)).unwrap_or_default();
        runs.insert(page.start, bytes);
        shard.keep((tag, page.number), runs, self.shard_limit);
    }

    fn shard(&self, tag: Tag, page: u32) -> &Mutex<Shard> {
        let spread = (tag.0 ^ u64::from(page)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        &self.shards[(spread % SHARDS) as usize]
    }
}
