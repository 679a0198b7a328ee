//! Bytes: files opened, read, written, flushed and closed.

use crate::answer::finish;
use crate::convert;
use crate::filesystem::Mount;
use crate::operations::What;
use crate::ops_attrs::without_privileges;
use crate::ops_names::{GENERATION, caller, common_ttl, done};
use bytes::Bytes;
use fuser::{
    Errno, FileHandle, FopenFlags, INodeNo, LockOwner, OpenFlags, ReplyCreate, ReplyData, ReplyEmpty,
    ReplyLseek, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use godrive_client::FsError;
use godrive_client::fs::{Created, Fs, Made, Opened, Pieces, Served, SetAttr, Whence};
use godrive_proto::Ino;
use godrive_proto::lease::ByteRange;
use godrive_proto::locks::LOCKS_END;
use godrive_proto::meta::{Attr, Kind};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

/// One copy_file_range copies at most this much, so that none takes long; callers go on where it ended.
const MAX_COPY_BYTES: u64 = 64 << 20;
/// How often a file that comes and goes is made or opened before that is given up.
const CREATIONS: usize = 16;
/// All that can be locked.
const ALL_BYTES: ByteRange = ByteRange { start: 0, end: LOCKS_END };

type Place = (INodeNo, FileHandle, u64);

impl Mount {
    pub(crate) fn op_create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        (mode, umask): (u32, u32),
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (fs, name, parent, caller) =
            (self.fs.clone(), name.as_bytes().to_vec(), convert::ino(parent), caller(req, umask));
        let mode = convert::permissions(mode);
        let (unwanted, renames) = (self.fs.clone(), self.renames.clone());
        self.answers.spawn_or_undo(
            What::new("create", parent),
            reply,
            async move {
                let told = |ino| renames.told(parent, &name, Some(ino));
                for _ in 0..CREATIONS {
                    // It may be there, as another mount was quicker, and be gone when it is to be opened; so may be what is made here.
                    let found = match fs.create_new(parent, &name, mode, flags, caller).await {
                        Ok(Made::New(created)) => {
                            told(created.entry.attr.ino);
                            return Ok(created);
                        }
                        Ok(Made::There(entry)) => entry,
                        Err(error) if error.errno == libc::ESTALE => continue,
                        Err(error) => return Err(error),
                    };
                    told(found.attr.ino);
                    if !may_open(&found.attr, caller.uid, flags) {
                        break;
                    }
                    match fs.open_found(found, flags).await {
                        Err(error) if error.errno == libc::ESTALE => {}
                        // It was changed while the open waited.
                        Ok(opened) if !may_open(&opened.value.entry.attr, caller.uid, flags) => {
                            fs.release(opened.value.opened.handle);
                            break;
                        }
                        opened => return opened,
                    }
                }
                // The kernel looks again, once, and then at everything.
                Err(FsError::bare(libc::ESTALE))
            },
            move |reply, created| {
                let Served { value: Created { entry, opened }, pass: _pass } = created;
                let attr = convert::attr(&entry.attr);
                let ttl = common_ttl(&entry);
                reply.created(
                    &ttl,
                    &attr,
                    GENERATION,
                    FileHandle(opened.handle.0),
                    open_flags(&opened, flags),
                );
            },
            move |created| unwanted.release(created.value.opened.handle),
        );
    }

    pub(crate) fn op_open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let ino = convert::ino(ino);
        let flags = flags.0;
        let what = What::new("open", ino);
        if flags & libc::O_TRUNC != 0 && self.answers.is_asked_again() {
            return self.leave_in_doubt(what, reply);
        }
        let answer = move |reply: ReplyOpen, opened: Served<Opened>| {
            let Served { value: opened, pass: _pass } = opened;
            reply.opened(FileHandle(opened.handle.0), open_flags(&opened, flags));
        };
        if let Some(known) = self.fs.try_open(ino, flags) {
            return finish(what, reply, known, answer);
        }
        let fs = self.fs.clone();
        let truncates_as_user = flags & libc::O_TRUNC != 0 && req.uid() != 0;
        let unwanted = self.fs.clone();
        self.answers.spawn_or_undo(
            what,
            reply,
            async move {
                if truncates_as_user {
                    clear_privileges(&fs, ino).await?;
                }
                fs.open(ino, flags).await
            },
            answer,
            move |opened| unwanted.release(opened.value.handle),
        );
    }

    pub(crate) fn op_read(&self, ino: INodeNo, fh: FileHandle, offset: u64, size: u32, reply: ReplyData) {
        let handle = self.handle(ino, fh);
        let what = What::new("read", convert::ino(ino));
        if let Some(known) = self.fs.try_read(handle, offset, size) {
            return finish(what, reply, known, answer_read);
        }
        let fs = self.fs.clone();
        self.answers.spawn(what, reply, async move { fs.read(handle, offset, size).await }, answer_read);
    }

    /// The bytes are copied once, out of the reader's buffer.
    pub(crate) fn op_write(
        &self,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        reply: ReplyWrite,
    ) {
        if self.answers.stopping() {
            return reply.error(Errno::ENOTCONN);
        }
        let (handle, data) = (self.handle(ino, fh), Bytes::copy_from_slice(data));
        let kill_privileges = flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let what = What::new("write", convert::ino(ino));
        let written_back = flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        // The first may be in the file already, and would be there twice; the second is answered late, when others may have seen it.
        let is_made_once = handle.appends() || handle.is_sync();
        if self.answers.is_asked_again() && is_made_once && !written_back {
            return self.leave_in_doubt(what, reply);
        }
        let known = if written_back {
            self.fs.try_write_back(handle, offset, &data)
        } else {
            self.fs.try_write(handle, offset, &data, kill_privileges)
        };
        if let Some(known) = known {
            return finish(what, reply, known, answer_write);
        }
        let fs = self.fs.clone();
        let work = async move {
            if written_back {
                fs.write_back(handle, offset, data).await
            } else {
                fs.write(handle, offset, data, kill_privileges).await
            }
        };
        self.answers.spawn(what, reply, work, answer_write);
    }

    /// One descriptor of the handle is closed, and with it its process gives up its locks on the file.
    pub(crate) fn op_flush(&self, ino: INodeNo, fh: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        let (handle, owner) = (self.handle(ino, fh), godrive_proto::locks::LockOwner(owner.0));
        let what = What::new("flush", convert::ino(ino));
        let locks = self.fs.has_locks(what.ino, owner);
        let known = self.fs.try_flush(handle);
        if let (false, Some(known)) = (locks, known.as_ref()) {
            return finish(what, reply, known.clone(), done);
        }
        let fs = self.fs.clone();
        let work = async move {
            let flushed = match known {
                Some(known) => known,
                None => fs.flush(handle).await,
            };
            if locks {
                fs.unlock(what.ino, owner, ALL_BYTES).await?;
            }
            flushed
        };
        self.answers.spawn(what, reply, work, done);
    }

    pub(crate) fn op_release(&self, ino: INodeNo, fh: FileHandle, reply: ReplyEmpty) {
        let handle = self.handle(ino, fh);
        // Nobody waits for the answer; given first, it is not asked for again of the next daemon.
        reply.ok();
        self.answers.enter(|| self.fs.release(handle));
    }

    pub(crate) fn op_fsync(&self, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let (fs, handle) = (self.fs.clone(), self.handle(ino, fh));
        let what = What::new("fsync", convert::ino(ino));
        self.answers.spawn(what, reply, async move { fs.fsync(handle, datasync).await }, done);
    }

    pub(crate) fn op_fallocate(
        &self,
        req: &Request,
        (ino, fh): (INodeNo, FileHandle),
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let what = What::new("fallocate", convert::ino(ino));
        if self.answers.is_asked_again() {
            return self.leave_in_doubt(what, reply);
        }
        let (fs, handle) = (self.fs.clone(), self.handle(ino, fh));
        // The kernel leaves it to us, and does not say so.
        let kill_privileges = req.uid() != 0;
        self.answers.spawn(
            what,
            reply,
            async move { fs.fallocate(handle, mode, offset, length, kill_privileges).await },
            done,
        );
    }

    pub(crate) fn op_lseek(&self, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let whence = match whence {
            libc::SEEK_DATA => Whence::Data,
            libc::SEEK_HOLE => Whence::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let (fs, handle) = (self.fs.clone(), self.handle(ino, fh));
        let what = What::new("lseek", convert::ino(ino));
        self.answers.spawn(
            what,
            reply,
            async move { fs.lseek(handle, offset, whence).await },
            |reply, offset| match i64::try_from(offset) {
                Ok(offset) => reply.offset(offset),
                Err(_) => reply.error(Errno::EOVERFLOW),
            },
        );
    }

    pub(crate) fn op_copy_file_range(&self, from: Place, to: Place, len: u64, reply: ReplyWrite) {
        let fs = self.fs.clone();
        let ((from_ino, from, from_offset), (to_ino, to, to_offset)) = (from, to);
        let (from, to) = (self.handle(from_ino, from), self.handle(to_ino, to));
        let what = What::new("copy_file_range", convert::ino(from_ino)).and(convert::ino(to_ino));
        let (len, unheard, target) = (len.min(MAX_COPY_BYTES), self.fs.clone(), convert::ino(to_ino));
        if self.answers.is_asked_again() {
            self.answers.enter(|| self.fs.copied_beneath(target, to_offset, len));
            return self.leave_in_doubt(What::new("copy_file_range", target), reply);
        }
        let work = async move { fs.copy_file_range(from, from_offset, to, to_offset, len).await };
        let answer = |reply: ReplyWrite, copied: u64| match u32::try_from(copied) {
            Ok(copied) => reply.written(copied),
            Err(_) => reply.error(Errno::EIO),
        };
        let undo = move |copied| unheard.copied_beneath(target, to_offset, copied);
        self.answers.spawn_or_undo(what, reply, work, answer, undo);
    }
}

/// What the kernel may do with an open file.
///
/// A file opened for appending bypasses the kernel's pages: the kernel appends where it believes the end to be, and
/// another mount may have moved it. The client puts the bytes at the true end; pages filled at the believed one would
/// show them in the wrong place.
fn open_flags(opened: &Opened, flags: i32) -> FopenFlags {
    let mut open = FopenFlags::empty();
    open.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
    open.set(FopenFlags::FOPEN_NOFLUSH, opened.no_flush);
    open.set(FopenFlags::FOPEN_DIRECT_IO, flags & libc::O_APPEND != 0 && convert::writes(OpenFlags(flags)));
    open
}

/// Whether the kernel would let the caller open a file in the place of one that it was to make, and leave it as it is: it looks at no
/// permission where it believes a file to be new. For the owner that can be told from the attributes. What else it looks at comes
/// after our answer, so that nothing may be truncated here.
fn may_open(attr: &Attr, caller: u32, flags: i32) -> bool {
    let access = flags & libc::O_ACCMODE;
    let reads = if access == libc::O_WRONLY { 0 } else { 0o400 };
    let writes = if access == libc::O_RDONLY { 0 } else { 0o200 };
    let is_granted = caller == attr.uid && u32::from(attr.mode) & (reads | writes) == (reads | writes);
    attr.kind == Kind::File && flags & libc::O_TRUNC == 0 && is_granted
}

/// On a mount that was begun by a daemon that promised it, an open truncates. O_TRUNC by an ordinary user takes the set-id bits; the kernel's flag for it does not get through fuser.
async fn clear_privileges(fs: &Arc<Fs>, ino: Ino) -> Result<(), FsError> {
    let attr = fs.getattr(ino).await?;
    let Some(mode) = without_privileges(&attr.attr) else { return Ok(()) };
    drop(attr);
    fs.setattr(ino, None, SetAttr { mode: Some(mode), ..SetAttr::default() }).await.map(drop)
}

/// fuser sends one slice, so that a read across several pieces is joined first.
fn answer_read(reply: ReplyData, read: Served<Pieces>) {
    let Served { value: pieces, pass: _pass } = read;
    match pieces.as_slice() {
        [] => reply.data(&[]),
        [one] => reply.data(one),
        many => reply.data(&many.concat()),
    }
}

fn answer_write(reply: ReplyWrite, written: Served<u32>) {
    let Served { value: bytes, pass: _pass } = written;
    reply.written(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(keep_cache: bool, no_flush: bool) -> Opened {
        Opened { handle: godrive_client::fs::Handle(1), keep_cache, no_flush }
    }

    #[test]
    fn what_is_found_is_opened_for_its_owner_where_the_kernel_would() {
        use libc::{O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY};
        let attr = |kind, mode| Attr { kind, mode, uid: 7, ..crate::ops_attrs::tests::attr(kind, mode) };
        for (kind, mode, caller, flags, expected) in [
            (Kind::File, 0o600, 7, O_RDWR, true),
            (Kind::File, 0o600, 7, O_RDWR | O_TRUNC, false),
            (Kind::File, 0o600, 0, O_RDWR, false),
            (Kind::File, 0o666, 8, O_RDONLY, false),
            (Kind::File, 0o400, 7, O_RDONLY, true),
            (Kind::File, 0o400, 7, O_RDWR, false),
            (Kind::File, 0o200, 7, O_WRONLY, true),
            (Kind::File, 0o200, 7, O_RDWR, false),
            (Kind::Symlink, 0o777, 7, O_RDONLY, false),
            (Kind::Directory, 0o777, 7, O_RDONLY, false),
            (Kind::Fifo, 0o666, 7, O_RDONLY, false),
        ] {
            assert_eq!(
                may_open(&attr(kind, mode), caller, flags),
                expected,
                "{kind:?} {mode:o} {caller} {flags:x}"
            );
        }
    }

    #[test]
    fn appending_bypasses_the_kernels_pages() {
        let append = open_flags(&opened(false, false), libc::O_WRONLY | libc::O_APPEND);
        assert_eq!(append, FopenFlags::FOPEN_DIRECT_IO);
        let read = open_flags(&opened(true, true), libc::O_RDONLY | libc::O_APPEND);
        assert_eq!(read, FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
        assert_eq!(open_flags(&opened(false, false), libc::O_RDWR), FopenFlags::empty());
    }
}
