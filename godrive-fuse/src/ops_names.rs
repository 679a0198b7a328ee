//! Names: looked up, made, moved and removed.

use crate::answer::{Refuse, finish};
use crate::convert;
use crate::filesystem::Mount;
use crate::operations::What;
use crate::renames::{self, Renames};
use fuser::{Errno, Generation, INodeNo, RenameFlags, ReplyEmpty, ReplyEntry, Request};
use godrive_client::FsError;
use godrive_client::fs::{Caller, Entry, Found, Served};
use godrive_proto::Ino;
use godrive_proto::meta::{Kind, NewNode};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// Inode numbers are never reused, so there is only one generation.
pub const GENERATION: Generation = Generation(0);

impl Mount {
    pub(crate) fn op_lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (parent, caller) = (convert::ino(parent), req.pid());
        let what = What::new("lookup", parent);
        let known = self.fs.try_lookup(parent, name.as_bytes());
        let known = match known {
            Some(Ok(known)) if moved(&self.renames, caller, parent, name.as_bytes(), &known) => Some(known),
            Some(known) => return finish(what, reply, known, found),
            None => None,
        };
        let (fs, renames, name) = (self.fs.clone(), self.renames.clone(), name.as_bytes().to_vec());
        let work = async move {
            let served = match known {
                Some(known) => known,
                None => {
                    let served = fs.lookup(parent, &name).await?;
                    if !moved(&renames, caller, parent, &name, &served) {
                        return Ok(served);
                    }
                    served
                }
            };
            if let Found::Entry(entry) = &served.value
                && let Some(names) = renames::renaming(caller).await
                && renames.demands(caller, parent, &name, entry.attr.ino, &names)
            {
                return Err(FsError::bare(libc::ESTALE));
            }
            Ok(served)
        };
        self.answers.spawn(what, reply, work, found);
    }

    pub(crate) fn op_mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        (mode, umask): (u32, u32),
        rdev: u32,
        reply: ReplyEntry,
    ) {
        match convert::new_node(mode, rdev) {
            Ok(node) => self.make("mknod", req, parent, name, node, (mode, umask), reply),
            Err(errno) => reply.error(Errno::from_i32(errno)),
        }
    }

    pub(crate) fn op_mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: (u32, u32),
        reply: ReplyEntry,
    ) {
        self.make("mkdir", req, parent, name, NewNode::Directory, mode, reply);
    }

    pub(crate) fn op_symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let node = NewNode::Symlink(target.as_os_str().as_bytes().to_vec());
        self.make("symlink", req, parent, name, node, (0o777, 0), reply);
    }

    #[expect(clippy::too_many_arguments, reason = "the kernel's own list")]
    fn make(
        &self,
        operation: &'static str,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        node: NewNode,
        (mode, umask): (u32, u32),
        reply: ReplyEntry,
    ) {
        let (fs, name, parent, caller) =
            (self.fs.clone(), name.as_bytes().to_vec(), convert::ino(parent), caller(req, umask));
        let (mode, renames) = (convert::permissions(mode), self.renames.clone());
        let work = async move {
            let made = fs.make(parent, &name, node, mode, caller).await?;
            renames.told(parent, &name, Some(made.attr.ino));
            Ok(made)
        };
        self.answers.spawn(What::new(operation, parent), reply, work, entry);
    }

    pub(crate) fn op_link(&self, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (fs, name, ino, parent) =
            (self.fs.clone(), name.as_bytes().to_vec(), convert::ino(ino), convert::ino(parent));
        self.answers.spawn(
            What::new("link", ino).and(parent),
            reply,
            async move { fs.link(ino, parent, &name).await },
            entry,
        );
    }

    pub(crate) fn op_unlink(&self, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let parent = convert::ino(parent);
        let what = What::new("unlink", parent);
        if !self.answers.stopping()
            && let Some(removed) = self.fs.try_unlink(parent, name.as_bytes())
        {
            return finish(what, reply, removed, done);
        }
        let (fs, name) = (self.fs.clone(), name.as_bytes().to_vec());
        self.answers.spawn(what, reply, async move { fs.unlink(parent, &name).await }, done);
    }

    pub(crate) fn op_rmdir(&self, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let parent = convert::ino(parent);
        let what = What::new("rmdir", parent);
        if !self.answers.stopping()
            && let Some(removed) = self.fs.try_rmdir(parent, name.as_bytes())
        {
            return finish(what, reply, removed, done);
        }
        let (fs, name) = (self.fs.clone(), name.as_bytes().to_vec());
        self.answers.spawn(what, reply, async move { fs.rmdir(parent, &name).await }, done);
    }

    pub(crate) fn op_rename(
        &self,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = match convert::rename_mode(flags) {
            Ok(mode) => mode,
            Err(errno) => return reply.refuse(Errno::from_i32(errno)),
        };
        let (parent, new_parent) = (convert::ino(parent), convert::ino(new_parent));
        let (fs, name, new_name) = (self.fs.clone(), name.as_bytes().to_vec(), new_name.as_bytes().to_vec());
        let renames = self.renames.clone();
        let work = async move {
            fs.rename(parent, &name, new_parent, &new_name, mode).await?;
            renames.made((parent, &name), (new_parent, &new_name));
            Ok(())
        };
        self.answers.spawn(What::new("rename", parent).and(new_parent), reply, work, done);
    }
}

pub(crate) fn caller(req: &Request, umask: u32) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), umask: convert::permissions(umask) }
}

pub(crate) fn done(reply: ReplyEmpty, (): ()) {
    reply.ok();
}

/// Notes what is told. True: a rename would have to look again.
fn moved(renames: &Renames, caller: u32, parent: Ino, name: &[u8], found: &Served<Found>) -> bool {
    let (ino, single) = match &found.value {
        Found::Entry(Entry { attr, .. }) => (Some(attr.ino), attr.kind == Kind::Directory || attr.nlink == 1),
        Found::Missing(_) => (None, false),
    };
    renames.looks(caller, parent, name, ino, single)
}

fn found(reply: ReplyEntry, found: Served<Found>) {
    // The pass is given back after the kernel was answered, here as everywhere.
    let Served { value, pass: _pass } = found;
    match value {
        Found::Entry(entry) => answer_entry(reply, &entry),
        Found::Missing(ttl) if ttl.is_zero() => reply.error(Errno::ENOENT),
        // Inode 0 says that the name does not exist, for as long as the entry may be cached.
        Found::Missing(ttl) => reply.entry(&ttl, &convert::blank(0, Kind::File), GENERATION),
    }
}

fn entry(reply: ReplyEntry, entry: Served<Entry>) {
    let Served { value, pass: _pass } = entry;
    answer_entry(reply, &value);
}

fn answer_entry(reply: ReplyEntry, entry: &Entry) {
    reply.entry_with_ttls(&entry.attr_ttl, &entry.entry_ttl, &convert::attr(&entry.attr), GENERATION);
}

/// Where the kernel takes one time to live for a name and its attributes.
pub(crate) fn common_ttl(entry: &Entry) -> Duration {
    entry.attr_ttl.min(entry.entry_ttl)
}
