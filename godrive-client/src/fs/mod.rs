//! The file system's operations and the contract behind them.
//!
//! An operation finds its [`inode::Inode`], makes sure that the session holds the lease it needs ([`lease`]), and acts on
//! the inode's state under a short lock. What is cached may be used while the lease is valid: the session's
//! time runs ([`Backend::lease_remaining`]) and the lease was not recalled. `try_*` are the same operations where
//! everything is at hand; they never block and never wait.
//!
//! | file | does |
//! |---|---|
//! | `lease` | acquires, waits at the gate, runs an operation under a lease |
//! | `names`, `mutate`, `listing`, `xattr`, `attr`, `access` | the namespace |
//! | `removals` | names removed under exclusive leases, ahead of the master |
//! | `open`, `read`, `write`, `truncate`, `space` | files |
//! | `locks` | byte-range locks |
//! | `flush`, `stable`, `commit` | close, fsync, deltas; what the master is told of them |
//! | `losses` | what failed behind the callers' backs, told once |
//! | `recall` | gives leases back, survives the master's restart and the session's loss |
//! | `inherit` | notes what the next daemon must know; goes on after a dead one |
//! | `background` | flushes what is old, reports closed orphans, evicts |
//!

mod access;
mod attr;
mod backend;
mod background;
mod commit;
pub mod config;
mod copying;
mod flush;
mod inherit;
mod inode;
mod layouts;
mod lease;
mod listing;
mod locks;
mod losses;
mod lower;
mod mutate;
mod names;
mod open;
mod passes;
mod read;
mod recall;
mod removals;
mod space;
mod stable;
mod stats;
mod table;
mod truncate;
mod types;
mod write;
mod xattr;

pub use backend::Backend;
pub use stats::StatsSnapshot;
pub use types::*;

use crate::core::page_cache::{PageCache, Tag};
use crate::driver::{Driver, World};
use crate::error::{FsError, Result};
use crate::ledger::{Inheritance, Ledger};
use config::{CloseMode, Config};
use godrive_proto::meta::{FsStat, Name};
use godrive_proto::{Fault, Ino};
use inode::{Inode, State};
use parking_lot::Mutex;
use stats::Stats;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use table::{Handles, Table};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

/// Chunks of one file that are flushed at one time.
const MAX_CHUNKS: usize = 32;
/// Read-aheads on their way: of streams, and of small files.
const MAX_AHEADS: usize = 32;
const MAX_NEIGHBOURS: usize = 8;
/// Below this, the largest read might not fit into the page cache.
const MIN_CACHE_BYTES: u64 = 16 << 20;

pub struct Client;

impl Client {
    /// Connects to the master and opens a session.
    pub async fn start(config: Config, world: World) -> std::result::Result<Arc<Fs>, Fault> {
        Self::start_noted(config, world, None, None, None).await
    }

    /// The same for a mount whose daemon may be killed and followed by another ([`crate::ledger`]).
    pub async fn start_noted(
        config: Config,
        world: World,
        kernel: Option<Arc<dyn Invalidate>>,
        ledger: Option<Arc<dyn Ledger>>,
        inherited: Option<Inheritance>,
    ) -> std::result::Result<Arc<Fs>, Fault> {
        let noted = (ledger.clone(), inherited.as_ref());
        let (driver, succession) =
            Driver::start_noted(config.driver.clone(), world, noted.0, noted.1).await?;
        let fs = Fs::noted(driver.clone(), config, ledger, inherited.as_ref().map_or(0, |left| left.life));
        // Before the first recall is answered.
        kernel.into_iter().for_each(|kernel| fs.set_invalidate(kernel));
        let inherited_locks = inherited.as_ref().map(Inheritance::locked);
        if let Some(inherited) = inherited {
            fs.inherit(&inherited, &succession);
        }
        driver.serve(fs.clone());
        if let Some(locked) = inherited_locks {
            fs.inherit_locks(&locked).await?;
        }
        Ok(fs)
    }
}

/// A mounted cluster. Names are raw bytes and checked here; `flags` are `libc::O_*`.
/// `try_*` answer from caches without blocking, or None: then ask the async twin.
pub struct Fs<B: Backend = Driver> {
    backend: Arc<B>,
    limits: Limits,
    table: Table,
    handles: Handles,
    pages: PageCache,
    tags: AtomicU64,
    stats: Stats,
    kernel: OnceLock<Arc<dyn Invalidate>>,
    /// Inodes with something to flush or commit.
    dirty: Mutex<BTreeMap<Ino, Arc<Inode>>>,
    dirty_bytes: AtomicU64,
    /// Inodes whose exclusive lease nobody writes under any longer, and since when.
    idle_owners: Mutex<BTreeMap<Ino, (Instant, Arc<Inode>)>>,
    names: AtomicU64,
    /// Memory of the write buffer was freed, or a flush failed.
    freed: Notify,
    aheads: Arc<Semaphore>,
    neighbours: Arc<Semaphore>,
    /// Chunks to flush in the background: the whole of it, or only what fills deltas.
    ready: Mutex<Vec<(Arc<Inode>, u32, bool)>>,
    /// Operations that never block may be called from any thread, so spawning needs the handle.
    runtime: tokio::runtime::Handle,
    /// The background has something to do.
    wake: Notify,
    /// Unlinked inodes closed here, to be reported.
    orphans: Mutex<BTreeSet<Ino>>,
    /// Inodes of which the master is to be told that writes were given up.
    given_up: Mutex<Vec<Arc<Inode>>>,
    /// Errors that no call has collected.
    uncollected: AtomicU64,
    /// Of the master, as this mount was told of them.
    restarts: AtomicU64,
    removals: removals::Removals,
    locks: locks::Locks,
    /// Reads of which the master was not told yet.
    accesses: Mutex<access::Accesses>,
    /// The names of a directory are being taken back from the kernel.
    evicting: AtomicBool,
    stopped: AtomicBool,
    /// The cluster's space, and when it was asked for.
    space: Mutex<Option<(Instant, FsStat)>>,
    ledger: Option<Arc<dyn Ledger>>,
}

struct Limits {
    close: CloseMode,
    ttl_max: Duration,
    write_buffer_bytes: u64,
    caller_caches: bool,
    max_inodes: usize,
    max_names: usize,
    removals_in_a_row: u32,
    access_times: bool,
    min_slave_copy_bytes: u64,
    /// None: wait for ever.
    deadline: Option<Duration>,
}

impl<B: Backend> Fs<B> {
    /// A file system over a backend; [`Client::start`] is the usual way.
    pub fn over(backend: Arc<B>, config: Config) -> Arc<Self> {
        Self::noted(backend, config, None, 0)
    }

    fn noted(backend: Arc<B>, config: Config, ledger: Option<Arc<dyn Ledger>>, life: u16) -> Arc<Self> {
        let limits = Limits {
            close: config.close,
            ttl_max: config.ttl_max,
            write_buffer_bytes: config.write_buffer_bytes,
            caller_caches: config.caller_caches,
            max_inodes: config.max_inodes,
            max_names: config.max_names,
            removals_in_a_row: config.removals_in_a_row,
            access_times: config.access_times,
            min_slave_copy_bytes: config.min_slave_copy_bytes,
            deadline: (!config.driver.hard).then_some(config.driver.deadline),
        };
        let fs = Arc::new(Self {
            backend,
            limits,
            table: Table::default(),
            handles: Handles::new(life),
            pages: PageCache::new(config.cache_bytes.max(MIN_CACHE_BYTES)),
            tags: AtomicU64::new(0),
            stats: Stats::default(),
            kernel: OnceLock::new(),
            dirty: Mutex::default(),
            dirty_bytes: AtomicU64::new(0),
            idle_owners: Mutex::default(),
            names: AtomicU64::new(0),
            freed: Notify::new(),
            aheads: Arc::new(Semaphore::new(MAX_AHEADS)),
            neighbours: Arc::new(Semaphore::new(MAX_NEIGHBOURS)),
            ready: Mutex::default(),
            runtime: tokio::runtime::Handle::current(),
            wake: Notify::new(),
            orphans: Mutex::default(),
            given_up: Mutex::default(),
            uncollected: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
            removals: removals::Removals::default(),
            locks: locks::Locks::default(),
            accesses: Mutex::default(),
            evicting: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            space: Mutex::default(),
            ledger,
        });
        tokio::spawn(background::run(Arc::downgrade(&fs)));
        fs
    }

    /// Where invalidations of the kernel's caches go; none without a mount.
    pub fn set_invalidate(&self, kernel: Arc<dyn Invalidate>) {
        if self.kernel.set(kernel).is_err() {
            tracing::error!("a file system has one kernel; another one is ignored");
        }
    }

    pub fn stats(&self) -> StatsSnapshot {
        StatsSnapshot {
            read_hits: self.stats.read_hits.value(),
            read_misses: self.stats.read_misses.value(),
            meta_hits: self.stats.meta_hits.value(),
            meta_misses: self.stats.meta_misses.value(),
            recalls: self.stats.recalls.value(),
            deltas: self.stats.deltas.value(),
            commits: self.stats.commits.value(),
            late_invalidations: self.stats.late_invalidations.value(),
            errors_after_close: self.stats.errors_after_close.value(),
            cache_bytes: self.pages.cost(),
            dirty_bytes: self.dirty_bytes.load(Ordering::Relaxed),
            inodes: self.table.len() as u64,
        }
    }

    pub fn driver(&self) -> &Arc<B> {
        &self.backend
    }

    /// The lease is held and the session's time runs.
    fn is_valid(&self, state: &State) -> bool {
        state.mode().is_some() && self.backend.lease_remaining().is_some()
    }

    /// How long the kernel may keep what is known of the inode.
    fn ttl(&self, inode: &Inode, state: &State) -> Duration {
        let forgets = || self.kernel.get().is_some_and(|kernel| kernel.is_forgetting(inode.ino));
        if state.mode().is_none() || state.gate.is_closed() || forgets() {
            return Duration::ZERO;
        }
        self.backend.lease_remaining().map_or(Duration::ZERO, |remaining| remaining.min(self.limits.ttl_max))
    }

    fn new_tag(&self) -> Tag {
        Tag(self.tags.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Runs a change of an inode's state and keeps the account of its dirty bytes and of the dirty inodes.
    fn change<T>(&self, inode: &Arc<Inode>, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = inode.state.lock();
        self.account(inode, &mut state, change)
    }

    fn account<T>(&self, inode: &Arc<Inode>, state: &mut State, change: impl FnOnce(&mut State) -> T) -> T {
        let before = state.buffer.cost();
        let result = change(state);
        let after = state.buffer.cost();
        if after > before {
            self.dirty_bytes.fetch_add(after - before, Ordering::Relaxed);
        } else if after < before {
            self.dirty_bytes.fetch_sub(before - after, Ordering::Relaxed);
            self.freed.notify_waiters();
        }
        if state.is_dirty() && state.dirty_since.is_none() {
            state.touch_dirty();
            let first = {
                let mut dirty = self.dirty.lock();
                dirty.insert(inode.ino, inode.clone());
                dirty.len() == 1
            };
            if first {
                self.wake.notify_one();
            }
        }
        self.note(inode.ino, state);
        result
    }

    /// Runs a future to its end or the operation's deadline.
    async fn within<T>(&self, what: &'static str, future: impl Future<Output = T>) -> Result<T> {
        match self.limits.deadline {
            None => Ok(future.await),
            Some(deadline) => tokio::time::timeout(deadline, future)
                .await
                .map_err(|_| FsError::new(libc::EIO, format!("{what}: no progress within {deadline:?}"))),
        }
    }
}

fn checked(name: &[u8]) -> Result<Name> {
    Name::new(name).map_err(FsError::from)
}
