//! The disk as master and slave see it: one trait, the real directory behind it, and a simulated twin that
//! loses at a crash what was never synced. All calls block; callers choose the thread (see [`blocking`]).
//!
//! Beside them the two helpers that both daemons need: [`GroupSync`], which turns many waiters into few
//! fdatasyncs, and [`FileBackend`], which puts redb on a file of such a disk, with [`open_verified`] in front of it. [`Reserved`] keeps room on a disk that others fill.

use std::io;
use std::sync::Arc;
use std::time::Duration;

mod backend;
mod group;
mod real;
mod reserved;
mod simulated;
mod unusable;

pub use backend::{FileBackend, FileErrors, open_again, open_verified};
pub use group::{GroupSync, SyncFailed, blocking};
pub use real::RealDisk;
pub use reserved::{Reserved, is_full};
pub use simulated::{Block, Counters, Faults, SimulatedDisk};
pub use unusable::UnusableDisk;

/// A directory tree of its own on one disk. Paths are relative, `/`-separated, of plain names; the empty path
/// is the root.
pub trait Disk: Send + Sync + 'static {
    /// Opens for reading and writing; `create` makes the file (and is durable after [`Disk::sync_directory`]).
    fn open(&self, path: &str, create: bool) -> io::Result<Arc<dyn DiskFile>>;
    fn exists(&self, path: &str) -> io::Result<bool>;
    /// Names in a directory, sorted.
    fn list(&self, directory: &str) -> io::Result<Vec<String>>;
    /// Makes a directory; one that exists already is fine.
    fn create_directory(&self, path: &str) -> io::Result<()>;
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Atomic replacement, within one directory.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes creations, removals and renames in the directory durable.
    fn sync_directory(&self, directory: &str) -> io::Result<()>;
    fn space(&self) -> io::Result<Space>;
    /// True for the simulated disk: calls return at once, so nothing need be moved off the executor.
    fn is_instant(&self) -> bool;
    /// How long a sync takes on a simulated disk whose calls return at once: whoever syncs waits for so long first.
    fn sync_takes(&self) -> Duration {
        Duration::ZERO
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub total_bytes: u64,
    pub free_bytes: u64,
}

pub trait DiskFile: Send + Sync + 'static {
    fn len(&self) -> io::Result<u64>;
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Fills `buf` or fails (`UnexpectedEof` past the end).
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of the pieces, one after the other (pwritev).
    fn write_at(&self, pieces: &[&[u8]], offset: u64) -> io::Result<()>;
    /// Takes room for a range of which nothing but zeros was written; the file reaches over it, also where it takes only a part before
    /// an error.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Gives the range back to the disk; it reads as zeros. The length stays.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Asks the system to begin writing back; no promise (sync_file_range).
    fn start_writeback(&self, offset: u64, len: u64) -> io::Result<()>;
    /// fdatasync: everything written (and the length) is on stable storage when this returns Ok.
    fn sync(&self) -> io::Result<()>;
    /// Syncs, then has the system forget what it keeps of the file in memory (posix_fadvise): what is read next is what the medium
    /// has. After a sync that failed the two differ, for every process, and no later sync says so.
    fn drop_cache(&self) -> io::Result<()>;
}

/// Reads a whole small file; more than `limit` bytes are refused before anything is allocated.
pub fn read_small(disk: &dyn Disk, path: &str, limit: u64) -> io::Result<Vec<u8>> {
    let file = disk.open(path, false)?;
    let len = file.len()?;
    if len > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{path} has {len} bytes, more than {limit}"),
        ));
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    file.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Writes a small file so that it is there wholly or not at all, and durable on return.
pub fn write_small(disk: &dyn Disk, path: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = format!("{path}.new");
    let file = disk.open(&temporary, true)?;
    file.set_len(0)?;
    file.write_at(&[bytes], 0)?;
    file.sync()?;
    disk.rename(&temporary, path)?;
    disk.sync_directory(parent(path))
}

/// Writes zeros behind what a file holds up to `from`, for what follows to be written over: a sync then changes nothing about
/// the file, and the file system's journal, which takes longer than the data, is left out of it. Where there is no room for
/// all of them, none stay.
pub fn write_zeros(file: &dyn DiskFile, from: u64, len: u64) -> io::Result<()> {
    const PIECE: [u8; 4096] = [0; 4096];
    let whole = (len / PIECE.len() as u64) as usize;
    let mut pieces = vec![&PIECE[..]; whole];
    pieces.push(&PIECE[..(len % PIECE.len() as u64) as usize]);
    file.write_at(&pieces, from).inspect_err(|_| {
        if let Err(error) = file.set_len(from) {
            tracing::debug!(%error, "zeros that were written in part stay");
        }
    })
}

/// The directory part of a path; empty for the root.
fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Refuses paths that could lead out of the root: absolute ones, `.`, `..`, empty names, NUL, backslashes.
fn check_path(path: &str) -> io::Result<()> {
    let plain = |name: &str| {
        !name.is_empty() && name != "." && name != ".." && !name.contains(['\0', '\\']) && name.len() <= 255
    };
    if path.split('/').all(plain) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("`{path}` is not a plain relative path")))
}

fn check_directory(path: &str) -> io::Result<()> {
    if path.is_empty() { Ok(()) } else { check_path(path) }
}

fn check_rename(from: &str, to: &str) -> io::Result<()> {
    check_path(from)?;
    check_path(to)?;
    if parent(from) == parent(to) {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("`{from}` and `{to}` are in different directories"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_escape_are_refused() {
        for bad in ["", "/etc/passwd", "..", "a/../b", "a//b", "./a", "a/", "a\0b", "a\\b"] {
            assert!(check_path(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "a/b", "segments/01.seg", "..a", ".hidden"] {
            assert!(check_path(good).is_ok(), "{good:?}");
        }
        assert!(check_rename("a/b", "c/b").is_err());
        assert!(check_rename("a/b", "a/c").is_ok());
    }
}
