//! fuser's trait, one line per operation: what it touches, and where it is converted.
//!
//! The conversions themselves lie beside each other by subject: [`crate::ops_names`], [`crate::ops_attrs`],
//! [`crate::ops_data`], [`crate::ops_dirs`], [`crate::ops_locks`]. Not implemented on purpose: `access` (the kernel checks permissions),
//! `forget` (inode numbers are never reused and the client remembers what it wants), `bmap`, `ioctl`, `poll`.

use crate::answer::{Answers, Refuse};
use crate::convert::{self, BLOCK_BYTES};
use crate::notify::Forgetting;
use crate::operations::{Operations, What};
use crate::ops_locks::Asked;
use crate::renames::Renames;
use fuser::{
    CopyFileRangeFlags, FileHandle, Filesystem, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use godrive_client::fs::Handle;
use godrive_client::{Fs, FsError};
use std::convert::Infallible;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::SystemTime;

/// Requests the kernel may have under way without a caller waiting: read-ahead and direct I/O.
const MAX_BACKGROUND: u16 = 128;

/// What the kernel is asked for. Its write-back cache stays off, because it would own size and mtime of files that
/// other mounts change. Nor is it promised that an open truncates (`FUSE_ATOMIC_O_TRUNC`): the kernel would take a file for empty
/// that a program runs out of, and then refuse the open.
const WANTED: [InitFlags; 13] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_AUTO_INVAL_DATA,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_FLOCK_LOCKS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_POSIX_LOCKS,
];

/// One mount, as fuser sees it.
pub struct Mount {
    pub(crate) fs: Arc<Fs>,
    pub(crate) answers: Answers,
    pub(crate) renames: Arc<Renames>,
    pub(crate) forgetting: Arc<Forgetting>,
    stopping: Arc<AtomicBool>,
    kernel: Arc<Kernel>,
}

/// See [`Mount::kernel`].
#[derive(Default)]
pub struct Kernel {
    pub minor: AtomicU32,
    pub capabilities: AtomicU64,
}

impl Mount {
    pub fn new(
        fs: Arc<Fs>,
        runtime: tokio::runtime::Handle,
        operations: Arc<Operations>,
        forgetting: Arc<Forgetting>,
    ) -> Self {
        let stopping = Arc::new(AtomicBool::new(false));
        let answers = Answers::new(runtime, operations, stopping.clone());
        Self { fs, answers, renames: Arc::default(), forgetting, stopping, kernel: Arc::default() }
    }

    /// Set it when the mount ends: nothing that cannot be flushed any more is accepted from then on.
    pub fn stopping(&self) -> Arc<AtomicBool> {
        self.stopping.clone()
    }

    /// What the kernel said at the handshake: the minor version of its interface, and what it can do.
    pub fn kernel(&self) -> Arc<Kernel> {
        self.kernel.clone()
    }

    /// For what was asked of a daemon that is dead. It may have done it, and another mount may have gone on from there: it is not
    /// done twice, and the kernel asks what has become of the inode before the caller can.
    pub(crate) fn leave_in_doubt(&self, what: What, reply: impl Refuse) {
        let fs = self.fs.clone();
        let work = async move {
            fs.forget_attributes(what.ino).await;
            let context = "asked of a daemon that was killed, which may have done it";
            Err::<Infallible, _>(FsError::new(libc::EIO, context))
        };
        self.answers.spawn(what, reply, work, |_, never| match never {});
    }

    /// A handle as the kernel names it, perhaps since before this daemon.
    pub(crate) fn handle(&self, ino: INodeNo, fh: FileHandle) -> Handle {
        let handle = Handle(fh.0);
        self.fs.meet_handle(convert::ino(ino), handle);
        handle
    }
}

impl Filesystem for Mount {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        self.kernel.minor.store(config.kernel_abi().1, Ordering::SeqCst);
        self.kernel.capabilities.store(config.capabilities().bits(), Ordering::SeqCst);
        for flag in WANTED {
            if config.add_capabilities(flag).is_err() {
                tracing::info!(?flag, "this kernel lacks a capability; the mount works without it");
            }
        }
        // The largest requests that the kernel makes; it answers a larger wish with the nearest value it grants.
        let _ = config.set_max_write(BLOCK_BYTES);
        if let Err(most) = config.set_max_readahead(BLOCK_BYTES) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.answers.inline("lookup", req, parent, || self.op_lookup(req, parent, name, reply));
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.answers
            .inline("mknod", req, parent, || self.op_mknod(req, parent, name, (mode, umask), rdev, reply));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.answers.inline("mkdir", req, parent, || self.op_mkdir(req, parent, name, (mode, umask), reply));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        self.answers.inline("symlink", req, parent, || self.op_symlink(req, parent, name, target, reply));
    }

    fn link(&self, req: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.answers.inline("link", req, ino, || self.op_link(ino, parent, name, reply));
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.answers.inline("unlink", req, parent, || self.op_unlink(parent, name, reply));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.answers.inline("rmdir", req, parent, || self.op_rmdir(parent, name, reply));
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.answers.inline("rename", req, parent, || {
            self.op_rename(parent, name, new_parent, new_name, flags, reply)
        });
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.answers.inline("getattr", req, ino, || self.op_getattr(ino, reply));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = crate::ops_attrs::set_attr(req, mode, uid, gid, size, atime, mtime);
        self.answers.inline("setattr", req, ino, || self.op_setattr(req, ino, fh, set, reply));
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        self.answers.inline("readlink", req, ino, || self.op_readlink(ino, reply));
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.answers.inline("statfs", req, ino, || self.op_statfs(ino, reply));
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.answers.inline("getxattr", req, ino, || self.op_getxattr(ino, name, size, reply));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.answers.inline("listxattr", req, ino, || self.op_listxattr(req, ino, size, reply));
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.answers.inline("setxattr", req, ino, || self.op_setxattr(req, ino, name, value, flags, reply));
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.answers.inline("removexattr", req, ino, || self.op_removexattr(ino, name, reply));
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.answers
            .inline("create", req, parent, || self.op_create(req, parent, name, (mode, umask), flags, reply));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.answers.inline("open", req, ino, || self.op_open(req, ino, flags, reply));
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.answers.inline("read", req, ino, || self.op_read(ino, fh, offset, size, reply));
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.answers.inline("write", req, ino, || self.op_write(ino, fh, offset, data, write_flags, reply));
    }

    fn flush(&self, req: &Request, ino: INodeNo, fh: FileHandle, lock_owner: LockOwner, reply: ReplyEmpty) {
        self.answers.inline("flush", req, ino, || self.op_flush(ino, fh, lock_owner, reply));
    }

    fn getlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let asked = Asked { fh, owner, start, end, kind, pid };
        self.answers.inline("getlk", req, ino, || self.op_getlk(ino, asked, reply));
    }

    fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        kind: i32,
        pid: u32,
        waits: bool,
        reply: ReplyEmpty,
    ) {
        let asked = Asked { fh, owner, start, end, kind, pid };
        self.answers.inline("setlk", req, ino, || self.op_setlk(req, ino, asked, waits, reply));
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.answers.inline("release", req, ino, || self.op_release(ino, fh, reply));
    }

    fn fsync(&self, req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.answers.inline("fsync", req, ino, || self.op_fsync(ino, fh, datasync, reply));
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.answers
            .inline("fallocate", req, ino, || self.op_fallocate(req, (ino, fh), offset, length, mode, reply));
    }

    fn lseek(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.answers.inline("lseek", req, ino, || self.op_lseek(ino, fh, offset, whence, reply));
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = ((ino_in, fh_in, offset_in), (ino_out, fh_out, offset_out));
        self.answers.inline("copy_file_range", req, ino_in, || self.op_copy_file_range(from, to, len, reply));
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.answers.inline("opendir", req, ino, || self.op_opendir(ino, reply));
    }

    fn readdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.answers.inline("readdir", req, ino, || self.op_readdir(ino, fh, offset, reply));
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.answers.inline("readdirplus", req, ino, || self.op_readdirplus(ino, fh, offset, reply));
    }

    fn releasedir(&self, req: &Request, ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.answers.inline("releasedir", req, ino, || self.op_releasedir(ino, fh, reply));
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.answers.inline("fsyncdir", req, ino, || self.op_fsyncdir(ino, fh, reply));
    }
}
