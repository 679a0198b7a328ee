//! One simulated file: what programs see (live), what a power loss leaves (durable), and which pages differ.

use rand::Rng;
use rand::rngs::SmallRng;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub const PAGE: u64 = 4096;
const SECTOR: usize = 512;

type Page = Arc<[u8; PAGE as usize]>;
type Pages = BTreeMap<u64, Page>;

#[derive(Clone, Default)]
pub struct Image {
    pub len: u64,
    live: Pages,
    durable_len: u64,
    durable: Pages,
    /// Pages written or punched since the last sync.
    dirty: BTreeSet<u64>,
}

/// What a crash does to the unsynced pages of one file.
#[derive(Clone, Copy)]
enum Fate {
    Lost,
    Kept,
    /// Each page is either old or new.
    Pages,
    /// Each 512-byte sector is either old or new.
    Sectors,
}

impl Image {
    pub fn live_pages(&self) -> u64 {
        self.live.len() as u64
    }

    /// What programs see, all of it stable.
    pub fn settled(&self) -> Self {
        let Self { len, live, .. } = self;
        Self {
            len: *len,
            live: live.clone(),
            durable_len: *len,
            durable: live.clone(),
            dirty: BTreeSet::new(),
        }
    }

    pub fn has_page(&self, page: u64) -> bool {
        self.live.contains_key(&page)
    }

    /// The page holds this, on the medium and in what is read.
    pub fn put(&mut self, page: u64, bytes: &[u8]) {
        let mut whole = [0; PAGE as usize];
        let len = bytes.len().min(whole.len());
        whole[..len].copy_from_slice(&bytes[..len]);
        let whole = Arc::new(whole);
        self.live.insert(page, whole.clone());
        self.durable.insert(page, whole);
        self.dirty.remove(&page);
        self.durable_len = self.durable_len.max(((page + 1) * PAGE).min(self.len));
    }

    /// How many pages a write would add.
    pub fn added_pages(&self, offset: u64, len: u64) -> u64 {
        if len == 0 {
            return 0;
        }
        let (first, last) = (offset / PAGE, (offset + len - 1) / PAGE);
        last - first + 1 - self.live.range(first..=last).count() as u64
    }

    /// The caller has checked the bounds.
    pub fn read(&self, buf: &mut [u8], offset: u64) {
        for (page, in_page, range) in split(offset, buf.len()) {
            match self.live.get(&page) {
                Some(bytes) => buf[range.clone()].copy_from_slice(&bytes[in_page..in_page + range.len()]),
                None => buf[range].fill(0),
            }
        }
    }

    pub fn write(&mut self, bytes: &[u8], offset: u64) {
        for (page, in_page, range) in split(offset, bytes.len()) {
            let target = self.live.entry(page).or_insert_with(|| Arc::new([0; PAGE as usize]));
            Arc::make_mut(target)[in_page..in_page + range.len()].copy_from_slice(&bytes[range]);
            self.dirty.insert(page);
        }
        self.len = self.len.max(offset + bytes.len() as u64);
    }

    /// Pages that are not there become zeros, one page in memory for all of them.
    pub fn allocate(&mut self, offset: u64, len: u64) {
        let zeros = Arc::new([0; PAGE as usize]);
        let end = offset + len;
        for page in offset / PAGE..end.div_ceil(PAGE) {
            if let Entry::Vacant(vacant) = self.live.entry(page) {
                vacant.insert(zeros.clone());
                self.dirty.insert(page);
            }
        }
        self.len = self.len.max(end);
    }

    pub fn punch(&mut self, offset: u64, len: u64) {
        let end = (offset + len).min(self.len.next_multiple_of(PAGE));
        if end <= offset {
            return;
        }
        for (page, in_page, range) in split(offset, (end - offset) as usize) {
            if range.len() as u64 == PAGE {
                if self.live.remove(&page).is_some() {
                    self.dirty.insert(page);
                }
            } else if let Some(bytes) = self.live.get_mut(&page) {
                Arc::make_mut(bytes)[in_page..in_page + range.len()].fill(0);
                self.dirty.insert(page);
            }
        }
    }

    pub fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.punch(len, self.len - len);
            let beyond: Vec<u64> = self.live.range(len.div_ceil(PAGE)..).map(|(page, _)| *page).collect();
            for page in beyond {
                self.live.remove(&page);
                self.dirty.insert(page);
            }
        }
        self.len = len;
    }

    pub fn sync(&mut self) {
        for page in std::mem::take(&mut self.dirty) {
            match self.live.get(&page) {
                Some(bytes) => self.durable.insert(page, bytes.clone()),
                None => self.durable.remove(&page),
            };
        }
        self.durable_len = self.len;
    }

    /// A sync that failed: the system forgets that the pages are dirty, so no later sync writes them.
    pub fn fail_sync(&mut self) {
        self.dirty.clear();
    }

    /// What is not dirty is read from the medium again.
    pub fn drop_cache(&mut self) {
        let dirty = &self.dirty;
        self.live.retain(|page, _| dirty.contains(page));
        let clean = self.durable.iter().filter(|(page, _)| !dirty.contains(page) && **page * PAGE < self.len);
        self.live.extend(clean.map(|(page, bytes)| (*page, bytes.clone())));
    }

    /// Flips one bit in both images, as rot on the medium.
    pub fn flip(&mut self, offset: u64) {
        for pages in [&mut self.live, &mut self.durable] {
            if let Some(page) = pages.get_mut(&(offset / PAGE)) {
                Arc::make_mut(page)[(offset % PAGE) as usize] ^= 0x10;
            }
        }
    }

    /// The file after a power loss.
    pub fn crash(&mut self, rng: &mut SmallRng) {
        let fate = match rng.random_range(0..4) {
            0 => Fate::Lost,
            1 => Fate::Kept,
            2 => Fate::Pages,
            _ => Fate::Sectors,
        };
        let mut after = self.durable.clone();
        let mut reach = self.durable_len;
        for page in &self.dirty {
            let new = self.live.get(page).cloned();
            let old = self.durable.get(page).cloned();
            let mixed = match fate {
                Fate::Lost => old,
                Fate::Kept => new,
                Fate::Pages if rng.random_bool(0.5) => new,
                Fate::Pages => old,
                Fate::Sectors => Some(mix(old, new, rng)),
            };
            match mixed {
                Some(bytes) => {
                    after.insert(*page, bytes);
                    reach = reach.max(((page + 1) * PAGE).min(self.len));
                }
                None => {
                    after.remove(page);
                }
            }
        }
        let len = match fate {
            Fate::Lost => self.durable_len,
            Fate::Kept => self.len,
            Fate::Pages | Fate::Sectors => reach,
        };
        *self = Self { len, live: after, durable_len: len, durable: Pages::new(), dirty: BTreeSet::new() };
        self.live.retain(|page, _| page * PAGE < len);
        self.durable = self.live.clone();
    }
}

fn mix(old: Option<Page>, new: Option<Page>, rng: &mut SmallRng) -> Page {
    let zeros = || Arc::new([0; PAGE as usize]);
    let (mut bytes, new) = (old.unwrap_or_else(zeros), new.unwrap_or_else(zeros));
    let target = Arc::make_mut(&mut bytes);
    for at in (0..PAGE as usize).step_by(SECTOR) {
        if rng.random_bool(0.5) {
            target[at..at + SECTOR].copy_from_slice(&new[at..at + SECTOR]);
        }
    }
    bytes
}

/// Splits a range at page boundaries: (page, offset in the page, range within the buffer).
fn split(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= len {
            return None;
        }
        let position = offset + at as u64;
        let in_page = (position % PAGE) as usize;
        let take = (PAGE as usize - in_page).min(len - at);
        let piece = (position / PAGE, in_page, at..at + take);
        at += take;
        Some(piece)
    })
}
