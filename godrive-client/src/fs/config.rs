//! What a mount is told: the driver's part and the caches' limits.

use std::time::Duration;

/// When `close` answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CloseMode {
    /// When every byte is held by the chunk's members and the master knows the length.
    #[default]
    Held,
    /// At once; the bytes are held within about a second. A failure surfaces as an error after close.
    Queued,
}

/// Limits and habits of a mount. [`Config::new`] has the defaults.
#[derive(Clone, Debug)]
pub struct Config {
    pub driver: crate::driver::Config,
    /// The page cache, bytes.
    pub cache_bytes: u64,
    /// Whether the caller keeps what it has read in a cache of its own, as the kernel does for a mount: a long
    /// stream then leaves little behind in the page cache.
    pub caller_caches: bool,
    /// Bytes written and not yet held by the slaves; a writer above it waits.
    pub write_buffer_bytes: u64,
    pub close: CloseMode,
    /// The most that an entry or attribute may live in the kernel's caches, if the lease lasts that long.
    pub ttl_max: Duration,
    /// Inodes and names that are remembered; beyond it the least recently used are forgotten.
    pub max_inodes: usize,
    pub max_names: usize,
    /// After so many removals in a row, those that follow in a directory are made under its exclusive lease and the
    /// master is told behind them; `u32::MAX`: never.
    pub removals_in_a_row: u32,
    /// Fewer bytes of a copy go through memory: they are read and written sooner than a slave has fetched them from another.
    pub min_slave_copy_bytes: u64,
    /// Reads set the access time, as `relatime` does.
    pub access_times: bool,
}

impl Config {
    pub fn new(driver: crate::driver::Config) -> Self {
        Self {
            driver,
            cache_bytes: 256 << 20,
            caller_caches: false,
            write_buffer_bytes: 128 << 20,
            close: CloseMode::Held,
            ttl_max: Duration::from_secs(60),
            max_inodes: 1 << 18,
            max_names: 1 << 19,
            removals_in_a_row: 4,
            min_slave_copy_bytes: 64 << 10,
            access_times: true,
        }
    }
}
