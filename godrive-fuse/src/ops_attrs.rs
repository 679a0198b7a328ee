//! Attributes: of inodes, extended ones, and of the whole file system.

use crate::answer::finish;
use crate::convert;
use crate::filesystem::Mount;
use crate::operations::What;
use crate::ops_names::done;
use fuser::{
    Errno, FileHandle, INodeNo, ReplyAttr, ReplyData, ReplyEmpty, ReplyStatfs, ReplyXattr, Request, TimeOrNow,
};
use godrive_client::FsError;
use godrive_client::fs::{AttrReply, Fs, Served, SetAttr};
use godrive_proto::Ino;
use godrive_proto::limits::MAX_NAME_BYTES;
use godrive_proto::meta::{Attr, FsStat, Kind};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
const STATFS_BLOCK_BYTES: u32 = 4096;
/// Inode numbers do not run out; programs want to see a number.
const FREE_INODES: u64 = 1 << 40;

/// What the kernel asks to change. Whoever is not root loses the set-id bits with a new size: the kernel says so in a
/// flag that fuser does not pass on, so the rule is applied here.
pub(crate) fn set_attr(
    req: &Request,
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    size: Option<u64>,
    atime: Option<TimeOrNow>,
    mtime: Option<TimeOrNow>,
) -> SetAttr {
    SetAttr {
        mode: mode.map(convert::permissions),
        uid,
        gid,
        size,
        atime: atime.map(convert::set_time),
        mtime: mtime.map(convert::set_time),
        kill_privileges: size.is_some() && req.uid() != 0,
    }
}

/// The mode without the bits that a write, a truncation or a change of owner by an ordinary user clears;
/// None if it has none of them. Set-gid without group execution is not a privilege and stays.
pub(crate) fn without_privileges(attr: &Attr) -> Option<u16> {
    let mut mode = attr.mode & !libc_mode(libc::S_ISUID);
    if mode & libc_mode(libc::S_IXGRP) != 0 {
        mode &= !libc_mode(libc::S_ISGID);
    }
    (attr.kind != Kind::Directory && mode != attr.mode).then_some(mode)
}

fn libc_mode(mode: u32) -> u16 {
    convert::permissions(mode)
}

impl Mount {
    pub(crate) fn op_getattr(&self, ino: INodeNo, reply: ReplyAttr) {
        let ino = convert::ino(ino);
        let what = What::without_locks("getattr", ino);
        let known = self.fs.try_getattr(ino).filter(|_| self.forgetting.is_over(ino));
        if let Some(known) = known {
            return finish(what, reply, known, answer_attr);
        }
        let (fs, forgetting) = (self.fs.clone(), self.forgetting.clone());
        let ask = move || {
            let fs = fs.clone();
            async move { fs.getattr(ino).await }
        };
        let work = async move { forgetting.settled(ino, ask).await };
        self.answers.spawn(what, reply, work, answer_attr);
    }

    pub(crate) fn op_setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: Option<FileHandle>,
        set: SetAttr,
        reply: ReplyAttr,
    ) {
        if self.answers.is_asked_again() {
            return self.leave_in_doubt(What::new("setattr", convert::ino(ino)), reply);
        }
        let caller = req.uid();
        let (fs, ino, handle) = (self.fs.clone(), convert::ino(ino), fh.map(|fh| self.handle(ino, fh)));
        self.answers.spawn(
            What::new("setattr", ino),
            reply,
            async move {
                let set = clear_privileges_of_chown(&fs, ino, set, caller).await?;
                fs.setattr(ino, handle, set).await
            },
            answer_attr,
        );
    }

    pub(crate) fn op_readlink(&self, ino: INodeNo, reply: ReplyData) {
        let ino = convert::ino(ino);
        let what = What::new("readlink", ino);
        if let Some(known) = self.fs.try_readlink(ino) {
            return finish(what, reply, known, |reply, target| reply.data(&target));
        }
        let fs = self.fs.clone();
        self.answers
            .spawn(what, reply, async move { fs.readlink(ino).await }, |reply, target| reply.data(&target));
    }

    pub(crate) fn op_statfs(&self, ino: INodeNo, reply: ReplyStatfs) {
        let fs = self.fs.clone();
        let what = What::new("statfs", convert::ino(ino));
        self.answers.spawn(what, reply, async move { fs.statfs().await }, |reply, stat| {
            let FsStat { total_bytes, free_bytes, inodes } = stat;
            let block = u64::from(STATFS_BLOCK_BYTES);
            let (blocks, free) = (total_bytes / block, free_bytes / block);
            let files = inodes.saturating_add(FREE_INODES);
            let name_bytes = u32::try_from(MAX_NAME_BYTES).unwrap_or(u32::MAX);
            reply.statfs(
                blocks,
                free,
                free,
                files,
                FREE_INODES,
                STATFS_BLOCK_BYTES,
                name_bytes,
                STATFS_BLOCK_BYTES,
            );
        });
    }

    pub(crate) fn op_getxattr(&self, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = match stored(name) {
            Ok(name) => name,
            Err(errno) => return reply.error(errno),
        };
        let ino = convert::ino(ino);
        let what = What::new("getxattr", ino);
        let answer = move |reply: ReplyXattr, value: bytes::Bytes| answer_xattr(reply, &value, size);
        if let Some(known) = self.fs.try_getxattr(ino, name) {
            return finish(what, reply, known, answer);
        }
        let (fs, name) = (self.fs.clone(), name.to_vec());
        self.answers.spawn(what, reply, async move { fs.getxattr(ino, &name).await }, answer);
    }

    /// Names of the administrator's are not shown to others, as on a local disk; who asks for one by name, the kernel refuses.
    pub(crate) fn op_listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let ino = convert::ino(ino);
        let what = What::new("listxattr", ino);
        let ordinary = req.uid() != 0;
        let answer = move |reply: ReplyXattr, mut names: Vec<Vec<u8>>| {
            names.retain(|name| !ordinary || !name.starts_with(b"trusted."));
            answer_xattr(reply, &joined(&names), size);
        };
        if let Some(known) = self.fs.try_listxattr(ino) {
            return finish(what, reply, known, answer);
        }
        let fs = self.fs.clone();
        self.answers.spawn(what, reply, async move { fs.listxattr(ino).await }, answer);
    }

    pub(crate) fn op_setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        reply: ReplyEmpty,
    ) {
        let name = match stored(name) {
            Ok(name) => name,
            Err(errno) => return reply.error(errno),
        };
        let mode = match convert::set_xattr_mode(flags) {
            Ok(mode) => mode,
            Err(errno) => return reply.error(Errno::from_i32(errno)),
        };
        let (fs, ino, name, value) = (self.fs.clone(), convert::ino(ino), name.to_vec(), value.to_vec());
        let who = (req.uid(), req.gid(), req.pid());
        self.answers.spawn(
            What::new("setxattr", ino),
            reply,
            async move {
                fs.setxattr(ino, &name, &value, mode).await?;
                if name == ACCESS_ACL {
                    clear_set_gid_of_strangers(&fs, ino, who).await?;
                }
                Ok(())
            },
            done,
        );
    }

    pub(crate) fn op_removexattr(&self, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = match stored(name) {
            Ok(name) => name,
            Err(errno) => return reply.error(errno),
        };
        let (fs, ino, name) = (self.fs.clone(), convert::ino(ino), name.to_vec());
        self.answers.spawn(
            What::new("removexattr", ino),
            reply,
            async move { fs.removexattr(ino, &name).await },
            done,
        );
    }
}

/// With HANDLE_KILLPRIV the kernel leaves it to us that a change of owner clears set-id, root's too, and also one that leaves owner
/// and group as they are: that is what a request to set nothing is, and of it alone the kernel does not look who asks.
async fn clear_privileges_of_chown(
    fs: &Arc<Fs>,
    ino: Ino,
    set: SetAttr,
    caller: u32,
) -> Result<SetAttr, FsError> {
    let sets_nothing = set == SetAttr::default();
    if set.mode.is_some() || (set.uid.is_none() && set.gid.is_none() && !sets_nothing) {
        return Ok(set);
    }
    let attr = fs.getattr(ino).await?;
    let mode = without_privileges(&attr.attr);
    if sets_nothing && mode.is_some() && caller != 0 && caller != attr.attr.uid {
        return Err(FsError::bare(libc::EPERM));
    }
    Ok(SetAttr { mode, ..set })
}

fn answer_attr(reply: ReplyAttr, attr: Served<AttrReply>) {
    let Served { value: AttrReply { attr, ttl }, pass: _pass } = attr;
    reply.attr(&ttl, &convert::attr(&attr));
}

/// A name in one of the kernel's name spaces; of `system.` only the ACLs mean something here.
fn stored(name: &OsStr) -> Result<&[u8], Errno> {
    let name = name.as_bytes();
    let space = [&b"user."[..], b"trusted.", b"security."].into_iter().find(|space| name.starts_with(space));
    match space {
        Some(space) if name == space => Err(Errno::EINVAL),
        None if ![ACCESS_ACL, DEFAULT_ACL].contains(&name) => Err(Errno::EOPNOTSUPP),
        _ => Ok(name),
    }
}

/// As a chmod by somebody who is not of the file's group, a change of its ACL takes the set-gid bit. The kernel says so in a flag
/// that fuser does not pass on.
async fn clear_set_gid_of_strangers(
    fs: &Arc<Fs>,
    ino: Ino,
    (uid, gid, pid): (u32, u32, u32),
) -> Result<(), FsError> {
    let attr = fs.getattr(ino).await?.attr.clone();
    let set_gid = libc_mode(libc::S_ISGID);
    let member = uid == 0 || gid == attr.gid || groups(pid).contains(&attr.gid);
    if attr.mode & set_gid != 0 && !member {
        let mode = Some(attr.mode & !set_gid);
        fs.setattr(ino, None, SetAttr { mode, ..SetAttr::default() }).await?;
    }
    Ok(())
}

/// The supplementary groups of a thread.
fn groups(pid: u32) -> Vec<u32> {
    #[expect(clippy::disallowed_methods, reason = "the kernel's account of a process")]
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// Size 0 asks how much there is; too small a buffer is an error.
fn answer_xattr(reply: ReplyXattr, value: &[u8], size: u32) {
    match u32::try_from(value.len()) {
        Ok(length) if size == 0 => reply.size(length),
        Ok(length) if length <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

fn joined(names: &[Vec<u8>]) -> Vec<u8> {
    let mut list = Vec::with_capacity(names.iter().map(|name| name.len() + 1).sum());
    for name in names {
        list.extend(name);
        list.push(0);
    }
    list
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use godrive_proto::time::Timestamp;

    pub(crate) fn attr(kind: Kind, mode: u16) -> Attr {
        let time = Timestamp(0);
        Attr {
            ino: Ino(1),
            kind,
            mode,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            chunk_bytes: 1 << 20,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            change: 0,
            xattrs: false,
            trim_pending: false,
        }
    }

    #[test]
    fn privileges_are_set_uid_and_set_gid_with_group_execution() {
        assert_eq!(without_privileges(&attr(Kind::File, 0o755)), None);
        assert_eq!(without_privileges(&attr(Kind::File, 0o4755)), Some(0o755));
        assert_eq!(without_privileges(&attr(Kind::File, 0o6755)), Some(0o755));
        assert_eq!(without_privileges(&attr(Kind::File, 0o2745)), None, "mandatory locking, not a privilege");
        assert_eq!(without_privileges(&attr(Kind::File, 0o6745)), Some(0o2745));
        assert_eq!(without_privileges(&attr(Kind::Directory, 0o2755)), None, "inheritance, not a privilege");
    }

    #[test]
    fn lists_end_each_name_with_nul_and_of_system_attributes_only_acls_are_stored() {
        assert_eq!(joined(&[b"user.a".to_vec(), b"user.b".to_vec()]), b"user.a\0user.b\0");
        assert_eq!(joined(&[]), b"");
        let refused = |name: &str| stored(OsStr::new(name)).unwrap_err().code();
        assert_eq!((refused("system.nfs4_acl"), refused("nonsense.x")), (libc::EOPNOTSUPP, libc::EOPNOTSUPP));
        assert_eq!((refused("user."), refused("trusted.")), (libc::EINVAL, libc::EINVAL));
        assert!(stored(OsStr::new("system.posix_acl_access")).is_ok_and(|name| name == ACCESS_ACL));
        assert!(stored(OsStr::new("user.a")).is_ok_and(|name| name == b"user.a"));
    }
}
