//! Directories: opened, listed, synced and closed.

use crate::answer::{finish, refuse_with};
use crate::convert;
use crate::filesystem::Mount;
use crate::operations::What;
use crate::ops_names::{GENERATION, common_ttl, done};
use crate::renames::Renames;
use fuser::{FileHandle, FopenFlags, INodeNo, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyOpen};
use godrive_client::FsError;
use godrive_client::fs::{DirEntry, Fs, Handle, Served};
use godrive_proto::Ino;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

/// What fits into the kernel's usual 32 KiB, with names of ordinary length. What does not fit is asked for again.
const ENTRIES: usize = 800;
const ENTRIES_PLUS: usize = 200;

impl Mount {
    /// The kernel keeps listings too: a recall of the directory's lease drops them, and without a lease the kernel
    /// asks for the directory's mtime before it uses one.
    pub(crate) fn op_opendir(&self, ino: INodeNo, reply: ReplyOpen) {
        match self.answers.enter(|| self.fs.opendir(convert::ino(ino))) {
            Ok(opened) => {
                let mut flags = FopenFlags::FOPEN_CACHE_DIR;
                flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
                reply.opened(FileHandle(opened.handle.0), flags);
            }
            Err(error) => refuse_with(What::new("opendir", convert::ino(ino)), reply, &error),
        }
    }

    pub(crate) fn op_readdir(&self, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        let handle = self.handle(ino, fh);
        let what = What::new("readdir", convert::ino(ino));
        if let Some(known) = self.fs.try_readdir(handle, offset, ENTRIES, false) {
            return finish(what, reply, known, answer);
        }
        let fs = self.fs.clone();
        self.answers.spawn(
            what,
            reply,
            async move { fs.readdir(handle, offset, ENTRIES, false).await },
            answer,
        );
    }

    pub(crate) fn op_readdirplus(
        &self,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let (handle, ino) = (self.handle(ino, fh), convert::ino(ino));
        let what = What::new("readdirplus", ino);
        match self.fs.try_readdir(handle, offset, ENTRIES_PLUS, true) {
            Some(Ok(known)) if seen(&known) => return answer_plus(reply, known, ino, &self.renames),
            Some(Err(error)) => return refuse_with(what, reply, &error),
            _ => {}
        }
        let (fs, renames) = (self.fs.clone(), self.renames.clone());
        let work = async move { first_seen(&fs, handle, offset).await };
        self.answers.spawn(what, reply, work, move |reply, listed| answer_plus(reply, listed, ino, &renames));
    }

    pub(crate) fn op_releasedir(&self, ino: INodeNo, fh: FileHandle, reply: ReplyEmpty) {
        let handle = self.handle(ino, fh);
        reply.ok();
        self.answers.enter(|| self.fs.releasedir(handle));
    }

    pub(crate) fn op_fsyncdir(&self, ino: INodeNo, fh: FileHandle, reply: ReplyEmpty) {
        let (fs, handle) = (self.fs.clone(), self.handle(ino, fh));
        let what = What::new("fsyncdir", convert::ino(ino));
        self.answers.spawn(what, reply, async move { fs.fsyncdir(handle).await }, done);
    }
}

fn answer(mut reply: ReplyDirectory, listed: Served<Vec<DirEntry>>) {
    let Served { value: entries, pass: _pass } = listed;
    for entry in &entries {
        let name = OsStr::from_bytes(&entry.name);
        if reply.add(INodeNo(entry.ino.0), entry.offset, convert::kind(entry.kind), name) {
            break;
        }
    }
    reply.ok();
}

/// The kernel makes an inode of every entry of a readdirplus, so each must come with true attributes. A page is
/// therefore cut before the first inode that another mount holds exclusively; the next request starts with that one,
/// and only then is its holder asked.
fn answer_plus(
    mut reply: ReplyDirectoryPlus,
    listed: Served<Vec<DirEntry>>,
    directory: Ino,
    renames: &Renames,
) {
    let Served { value: entries, pass: _pass } = listed;
    for listed in entries.iter().take_while(|entry| shown(entry)) {
        let (attr, ttl) = match &listed.entry {
            Some(entry) => (convert::attr(&entry.attr), common_ttl(entry)),
            None => (convert::blank(listed.ino.0, listed.kind), Duration::ZERO),
        };
        let name = OsStr::from_bytes(&listed.name);
        if reply.add(attr.ino, listed.offset, name, &ttl, &attr, GENERATION) {
            break;
        }
        if listed.entry.is_some() {
            renames.told(directory, &listed.name, Some(listed.ino));
        }
    }
    reply.ok();
}

/// A page whose first entry can be shown. If another mount holds that inode, its attributes are asked for, and the
/// page is that entry alone; an inode that vanished meanwhile is passed over.
async fn first_seen(fs: &Arc<Fs>, handle: Handle, mut offset: u64) -> Result<Served<Vec<DirEntry>>, FsError> {
    loop {
        let listed = fs.readdir(handle, offset, ENTRIES_PLUS, true).await?;
        if seen(&listed) {
            return Ok(listed);
        }
        // The directory's pass is given back before anything is waited for.
        let Some(mut first) = listed.value.into_iter().next() else { continue };
        drop(listed.pass);
        match fs.getattr(first.ino).await {
            Ok(Served { value, pass }) => {
                let entry = godrive_client::fs::Entry {
                    attr: value.attr,
                    attr_ttl: value.ttl,
                    entry_ttl: Duration::ZERO,
                };
                first.entry = Some(entry);
                return Ok(Served { value: vec![first], pass });
            }
            Err(FsError { errno: libc::ENOENT | libc::ESTALE, .. }) => offset = first.offset,
            Err(error) => return Err(error),
        }
    }
}

fn seen(entries: &[DirEntry]) -> bool {
    entries.first().is_none_or(shown)
}

fn shown(entry: &DirEntry) -> bool {
    entry.entry.is_some() || matches!(entry.name.as_slice(), b"." | b"..")
}

#[cfg(test)]
mod tests {
    use super::*;
    use godrive_proto::meta::Kind;

    fn entry(name: &str) -> DirEntry {
        DirEntry { offset: 1, name: name.into(), ino: Ino(2), kind: Kind::File, entry: None }
    }

    #[test]
    fn only_dots_are_shown_without_attributes() {
        assert!(shown(&entry(".")) && shown(&entry("..")));
        assert!(!shown(&entry("...")) && !shown(&entry("file")));
        assert!(seen(&[]));
        assert!(!seen(&[entry("file"), entry(".")]));
    }
}
