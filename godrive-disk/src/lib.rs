//! The disk as master and slave see it: one trait, the real directory behind it, and a simulated twin that
//! loses at a crash what was never synced. All calls block; callers choose the thread (see `blocking`).

use std::io;
use std::sync::Arc;

mod real;
mod simulated;

pub use real::RealDisk;
pub use simulated::SimulatedDisk;

/// A directory tree of its own on one disk. Paths are relative, `/`-separated, of plain names.
pub trait Disk: Send + Sync + 'static {
    /// Opens for reading and writing; `create` makes the file (and is durable after [`Disk::sync_directory`]).
    fn open(&self, path: &str, create: bool) -> io::Result<Arc<dyn DiskFile>>;
    fn exists(&self, path: &str) -> io::Result<bool>;
    /// Names in a directory, sorted.
    fn list(&self, directory: &str) -> io::Result<Vec<String>>;
    fn create_directory(&self, path: &str) -> io::Result<()>;
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Atomic replacement.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes creations, removals and renames in the directory durable.
    fn sync_directory(&self, directory: &str) -> io::Result<()>;
    fn space(&self) -> io::Result<Space>;
    /// True for the simulated disk: calls return at once, so nothing need be moved off the executor.
    fn is_instant(&self) -> bool;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub total_bytes: u64,
    pub free_bytes: u64,
}

pub trait DiskFile: Send + Sync + 'static {
    fn len(&self) -> io::Result<u64>;
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Fills `buf` or fails (`UnexpectedEof` past the end).
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of the pieces, one after the other (pwritev).
    fn write_at(&self, pieces: &[&[u8]], offset: u64) -> io::Result<()>;
    /// Gives the range back to the disk; it reads as zeros.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Asks the system to begin writing back; no promise (sync_file_range).
    fn start_writeback(&self, offset: u64, len: u64) -> io::Result<()>;
    /// fdatasync: everything written (and the length) is on stable storage when this returns Ok.
    fn sync(&self) -> io::Result<()>;
}
