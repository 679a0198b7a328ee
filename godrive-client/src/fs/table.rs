//! The inodes this mount knows, and the open handles.

use super::inode::Inode;
use super::types::Handle;
use crate::core::read_plan::ReadAhead;
use crate::error::{FsError, Result};
use godrive_proto::{Ino, LeaseId};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const SHARDS: u64 = 32;

#[derive(Default)]
struct Shard {
    inodes: BTreeMap<Ino, Arc<Inode>>,
    /// The highest lease recalled of any inode that was forgotten here: a new one starts with it, so that a grant
    /// which a recall overtook stays void even if the inode was forgotten in between.
    recalled: LeaseId,
    /// Where the eviction's clock stands.
    hand: Ino,
}

pub struct Table {
    shards: Vec<Mutex<Shard>>,
    len: AtomicUsize,
}

impl Default for Table {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), len: AtomicUsize::new(0) }
    }
}

impl Table {
    fn shard(&self, ino: Ino) -> &Mutex<Shard> {
        &self.shards[(ino.0 % SHARDS) as usize]
    }

    pub fn find(&self, ino: Ino) -> Option<Arc<Inode>> {
        self.shard(ino).lock().inodes.get(&ino).cloned()
    }

    pub fn get(&self, ino: Ino) -> Arc<Inode> {
        let mut shard = self.shard(ino).lock();
        let recalled = shard.recalled;
        let inode = shard.inodes.entry(ino).or_insert_with(|| {
            self.len.fetch_add(1, Ordering::Relaxed);
            Arc::new(Inode::new(ino, recalled))
        });
        inode.clone()
    }

    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    pub fn all(&self) -> Vec<Arc<Inode>> {
        self.shards
            .iter()
            .flat_map(|shard| shard.lock().inodes.values().cloned().collect::<Vec<_>>())
            .collect()
    }

    /// Up to `max` inodes that nobody uses and that were not touched since the clock last passed them.
    pub fn idle(&self, max: usize) -> Vec<Arc<Inode>> {
        let mut idle = Vec::new();
        for shard in &self.shards {
            let shard = &mut *shard.lock();
            let behind = shard.inodes.range(shard.hand..).chain(shard.inodes.range(..shard.hand));
            let mut seen = 0;
            let mut hand = shard.hand;
            for (ino, inode) in behind {
                seen += 1;
                if seen > 4 * max / SHARDS as usize + 16 || idle.len() >= max {
                    hand = *ino;
                    break;
                }
                if Arc::strong_count(inode) > 1 {
                    continue;
                }
                let mut state = inode.state.lock();
                if !std::mem::take(&mut state.used) && state.is_idle() {
                    idle.push(inode.clone());
                }
            }
            shard.hand = hand;
        }
        idle
    }

    /// Forgets an inode that is still idle and that nobody but the caller holds.
    pub fn evict(&self, inode: &Arc<Inode>) -> bool {
        let mut shard = self.shard(inode.ino).lock();
        let idle = Arc::strong_count(inode) == 2 && {
            let state = inode.state.lock();
            shard.recalled = shard.recalled.max(state.lease.recalled());
            state.is_idle() && !state.used
        };
        if idle && shard.inodes.remove(&inode.ino).is_some() {
            self.len.fetch_sub(1, Ordering::Relaxed);
        }
        idle
    }
}

/// An open file or directory.
pub struct OpenFile {
    pub inode: Arc<Inode>,
    pub readable: bool,
    pub writable: bool,
    pub append: bool,
    /// O_SYNC or O_DSYNC.
    pub sync: bool,
    /// O_DIRECT: no cache of the caller's has what is read.
    pub direct: bool,
    /// O_NOATIME.
    pub no_access_time: bool,
    /// [`super::inode::State::poison`] when it was opened.
    pub poison: u64,
    pub ahead: Mutex<ReadAhead>,
}

/// Handles say by themselves how they were opened and in which life of the mount's daemon, so that the daemon which
/// follows a dead one knows what the kernel means by them: the life in the upper 16 bits, then 8 bits of [`OpenFile::bits`],
/// then a count.
pub struct Handles {
    open: Mutex<BTreeMap<Handle, Arc<OpenFile>>>,
    last: AtomicU64,
    life: u16,
}

const COUNT_BITS: u32 = 40;
const LIFE_SHIFT: u32 = 48;

const APPEND: u32 = 2;
const SYNC: u32 = 3;

impl Handle {
    /// Opened with O_APPEND.
    pub fn appends(self) -> bool {
        self.is_set(APPEND)
    }

    /// Opened with O_SYNC or O_DSYNC.
    pub fn is_sync(self) -> bool {
        self.is_set(SYNC)
    }

    fn is_set(self, bit: u32) -> bool {
        self.0 >> (COUNT_BITS + bit) & 1 == 1
    }
}

impl OpenFile {
    fn bits(&self) -> u64 {
        [self.readable, self.writable, self.append, self.sync, self.direct, self.no_access_time]
            .into_iter()
            .enumerate()
            .map(|(bit, set)| u64::from(set) << bit)
            .sum()
    }

    fn from_bits(inode: Arc<Inode>, bits: u64) -> Self {
        let set = |bit: u32| bits >> bit & 1 == 1;
        let ahead = Mutex::default();
        Self {
            inode,
            readable: set(0),
            writable: set(1),
            append: set(APPEND),
            sync: set(SYNC),
            direct: set(4),
            no_access_time: set(5),
            poison: 0,
            ahead,
        }
    }
}

impl Handles {
    pub fn new(life: u16) -> Self {
        Self { open: Mutex::default(), last: AtomicU64::new(0), life }
    }

    pub fn add(&self, file: OpenFile) -> Handle {
        let count = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let count = count & ((1 << COUNT_BITS) - 1);
        let handle = Handle(u64::from(self.life) << LIFE_SHIFT | file.bits() << COUNT_BITS | count);
        self.open.lock().insert(handle, Arc::new(file));
        handle
    }

    /// Opened in an earlier life and not met in this one yet.
    pub fn is_unmet(&self, handle: Handle) -> bool {
        handle.0 >> LIFE_SHIFT != u64::from(self.life) && !self.open.lock().contains_key(&handle)
    }

    /// Takes in a handle of an earlier life.
    pub fn meet(&self, handle: Handle, inode: Arc<Inode>) {
        let file = OpenFile::from_bits(inode, handle.0 >> COUNT_BITS & 0xff);
        self.open.lock().entry(handle).or_insert_with(|| Arc::new(file));
    }

    pub fn find(&self, handle: Handle) -> Result<Arc<OpenFile>> {
        self.open.lock().get(&handle).cloned().ok_or_else(|| FsError::bare(libc::EBADF))
    }

    pub fn remove(&self, handle: Handle) -> Option<Arc<OpenFile>> {
        self.open.lock().remove(&handle)
    }
}
