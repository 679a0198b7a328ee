//! The file system's operations. (Signatures; bodies follow.)
#![allow(clippy::todo, unused_variables)]

pub mod config;
mod passes;
mod types;

pub use types::*;

use crate::driver::{Driver, World};
use crate::error::Result;
use bytes::Bytes;
use config::Config;
use godrive_proto::meta::{FsStat, NewNode, RenameMode, SetXattrMode};
use godrive_proto::{Fault, Ino};
use std::sync::Arc;

pub struct Client;

impl Client {
    /// Connects to the master and opens a session.
    pub async fn start(config: Config, world: World) -> std::result::Result<Arc<Fs>, Fault> {
        todo!()
    }
}

pub struct Fs<B = Driver> {
    backend: Arc<B>,
}

/// `try_*` answer from caches without blocking, or None: then ask the async twin.
/// Names are raw bytes and checked here. `flags` are `libc::O_*`.
impl Fs {
    /// Where invalidations of the kernel's caches go; none without a mount.
    pub fn set_invalidate(&self, kernel: Arc<dyn Invalidate>) { todo!() }
    /// Flushes everything, closes the session; says what could not be flushed.
    pub async fn stop(self: &Arc<Self>) -> std::result::Result<(), Unflushed> { todo!() }

    pub fn try_lookup(&self, parent: Ino, name: &[u8]) -> Option<Result<Served<Found>>> { todo!() }
    pub async fn lookup(self: &Arc<Self>, parent: Ino, name: &[u8]) -> Result<Served<Found>> { todo!() }
    pub fn try_getattr(&self, ino: Ino) -> Option<Result<Served<AttrReply>>> { todo!() }
    pub async fn getattr(self: &Arc<Self>, ino: Ino) -> Result<Served<AttrReply>> { todo!() }
    pub async fn setattr(self: &Arc<Self>, ino: Ino, handle: Option<Handle>, set: SetAttr) -> Result<Served<AttrReply>> { todo!() }
    pub fn try_readlink(&self, ino: Ino) -> Option<Result<Bytes>> { todo!() }
    pub async fn readlink(self: &Arc<Self>, ino: Ino) -> Result<Bytes> { todo!() }
    /// mknod, mkdir and symlink.
    pub async fn make(self: &Arc<Self>, parent: Ino, name: &[u8], node: NewNode, mode: u16, caller: Caller) -> Result<Served<Entry>> { todo!() }
    pub async fn link(self: &Arc<Self>, ino: Ino, parent: Ino, name: &[u8]) -> Result<Served<Entry>> { todo!() }
    pub async fn unlink(self: &Arc<Self>, parent: Ino, name: &[u8]) -> Result<()> { todo!() }
    pub async fn rmdir(self: &Arc<Self>, parent: Ino, name: &[u8]) -> Result<()> { todo!() }
    pub async fn rename(self: &Arc<Self>, parent: Ino, name: &[u8], new_parent: Ino, new_name: &[u8], mode: RenameMode) -> Result<()> { todo!() }

    pub async fn create(self: &Arc<Self>, parent: Ino, name: &[u8], mode: u16, flags: i32, caller: Caller) -> Result<Served<Created>> { todo!() }
    pub fn try_open(&self, ino: Ino, flags: i32) -> Option<Result<Served<Opened>>> { todo!() }
    /// O_TRUNC is honoured (FUSE_ATOMIC_O_TRUNC).
    pub async fn open(self: &Arc<Self>, ino: Ino, flags: i32) -> Result<Served<Opened>> { todo!() }
    pub fn try_read(&self, handle: Handle, offset: u64, size: u32) -> Option<Result<Served<Pieces>>> { todo!() }
    pub async fn read(self: &Arc<Self>, handle: Handle, offset: u64, size: u32) -> Result<Served<Pieces>> { todo!() }
    pub fn try_write(&self, handle: Handle, offset: u64, data: &Bytes, kill_privileges: bool) -> Option<Result<Served<u32>>> { todo!() }
    pub async fn write(self: &Arc<Self>, handle: Handle, offset: u64, data: Bytes, kill_privileges: bool) -> Result<Served<u32>> { todo!() }
    /// At each close of a descriptor. None: there is something to flush.
    pub fn try_flush(&self, handle: Handle) -> Option<Result<()>> { todo!() }
    pub async fn flush(self: &Arc<Self>, handle: Handle) -> Result<()> { todo!() }
    pub async fn fsync(self: &Arc<Self>, handle: Handle, datasync: bool) -> Result<()> { todo!() }
    /// The last descriptor of the handle is closed. Answers at once; what remains to do goes on in the background.
    pub fn release(self: &Arc<Self>, handle: Handle) { todo!() }
    pub async fn fallocate(self: &Arc<Self>, handle: Handle, mode: i32, offset: u64, len: u64) -> Result<()> { todo!() }
    pub async fn lseek(self: &Arc<Self>, handle: Handle, offset: u64, whence: Whence) -> Result<u64> { todo!() }
    pub async fn copy_file_range(self: &Arc<Self>, from: Handle, from_offset: u64, to: Handle, to_offset: u64, len: u64) -> Result<u64> { todo!() }

    /// Directories have handles too: they keep an unlinked directory and count as open.
    pub fn opendir(&self, ino: Ino) -> Result<Opened> { todo!() }
    /// Entries after `offset` (0: from the start, which includes `.` and `..`), at most `max`. Empty: the end.
    pub fn try_readdir(&self, handle: Handle, offset: u64, max: usize, plus: bool) -> Option<Result<Served<Vec<DirEntry>>>> { todo!() }
    pub async fn readdir(self: &Arc<Self>, handle: Handle, offset: u64, max: usize, plus: bool) -> Result<Served<Vec<DirEntry>>> { todo!() }
    pub async fn fsyncdir(self: &Arc<Self>, handle: Handle) -> Result<()> { todo!() }
    pub fn releasedir(self: &Arc<Self>, handle: Handle) { todo!() }

    pub async fn statfs(self: &Arc<Self>) -> Result<FsStat> { todo!() }
    pub fn try_getxattr(&self, ino: Ino, name: &[u8]) -> Option<Result<Bytes>> { todo!() }
    pub async fn getxattr(self: &Arc<Self>, ino: Ino, name: &[u8]) -> Result<Bytes> { todo!() }
    pub fn try_listxattr(&self, ino: Ino) -> Option<Result<Vec<Vec<u8>>>> { todo!() }
    pub async fn listxattr(self: &Arc<Self>, ino: Ino) -> Result<Vec<Vec<u8>>> { todo!() }
    pub async fn setxattr(self: &Arc<Self>, ino: Ino, name: &[u8], value: &[u8], mode: SetXattrMode) -> Result<()> { todo!() }
    pub async fn removexattr(self: &Arc<Self>, ino: Ino, name: &[u8]) -> Result<()> { todo!() }

    pub fn driver(&self) -> &Arc<Driver> { &self.backend }
}
