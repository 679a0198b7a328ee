//! Attributes.

use super::flush::Level;
use super::inode::{Inode, State};
use super::lease::Step;
use super::names::Busy;
use super::types::{AttrReply, Handle, Served, SetAttr};
use super::{Backend, Fs};
use crate::core::attrs::{touch_status, without_privileges};
use crate::core::gate::NO_PAGES;
use crate::error::{FsError, Result};
use bytes::Bytes;
use godrive_proto::Ino;
use godrive_proto::lease::Mode;
use godrive_proto::meta::{
    Attr, AttrChanges, FsStat, GetAttr, Kind, ReadSymlink, SetAttr as SetAttrOperation, SetAttrRequest,
    SetTime, StatFs,
};
use godrive_proto::time::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Programs that walk through trees ask for the file system's space in each directory; nobody needs it that fresh.
const SPACE_KNOWN_FOR: Duration = Duration::from_secs(2);

impl<B: Backend> Fs<B> {
    pub fn try_getattr(&self, ino: Ino) -> Option<Result<Served<AttrReply>>> {
        let inode = self.table.find(ino)?;
        {
            let state = inode.state.lock();
            if state.may_have_been_read() || state.has_grown_open() {
                return None;
            }
        }
        let (attr, ttl, pass) = self.cached_attr(&inode)?;
        self.stats.meta_hits.add(1);
        Some(Ok(Served { value: AttrReply { attr, ttl }, pass }))
    }

    /// Of a file that nobody here has open, without a lease if another mount owns it: whoever has it open is likely to
    /// read it next, and needs the lease for that.
    pub async fn getattr(self: &Arc<Self>, ino: Ino) -> Result<Served<AttrReply>> {
        let reply = self.attributes(ino).await?;
        let inode = self.table.get(ino);
        if !inode.state.lock().has_grown_open() {
            return Ok(reply);
        }
        // A pass would hold back a recall that the read may have to wait for.
        drop(reply);
        self.tell_length(&inode).await;
        self.attributes(ino).await
    }

    /// What the kernel has open became longer elsewhere.
    async fn tell_length(self: &Arc<Self>, inode: &Arc<Inode>) {
        let Some(kernel) = self.kernel.get().cloned() else { return };
        let last = inode.state.lock().size().saturating_sub(1);
        match self.read_unlocked(inode, last..last + 1).await {
            Ok(Served { value, pass: _pass }) => {
                inode.state.lock().grown = false;
                if let Some(byte) = value.into_iter().next() {
                    kernel.reaches(inode.ino, last, byte).await;
                }
            }
            Err(error) => {
                tracing::warn!(ino = %inode.ino, %error, "the end of a file that became longer cannot be read");
            }
        }
    }

    async fn attributes(self: &Arc<Self>, ino: Ino) -> Result<Served<AttrReply>> {
        if let Some(known) = self.try_getattr(ino) {
            return known;
        }
        let inode = self.table.get(ino);
        let ours = {
            let state = inode.state.lock();
            let waits = state.is_dirty() || state.gate.is_closed();
            waits || (state.open > 0 && !state.is_being_changed())
        };
        if ours {
            match self.attr_reply(&inode).await {
                // Without a name it is lent to nobody who comes later; to look is still possible.
                Err(error) if error.errno == libc::ESTALE && !inode.state.lock().is_dirty() => {}
                reply => return reply,
            }
        }
        self.stats.meta_misses.add(1);
        let view = self.backend.query::<GetAttr>(&ino).await?;
        let (attr, ttl, pass) = self.take_view(&view);
        Ok(Served { value: AttrReply { attr, ttl }, pass })
    }

    async fn attr_reply(self: &Arc<Self>, inode: &Arc<Inode>) -> Result<Served<AttrReply>> {
        let fs = self.clone();
        let (value, pass) = self
            .under(inode, Mode::Shared, NO_PAGES, |state| {
                let Some(attr) = state.attr.clone() else {
                    return Err(FsError::new(libc::EIO, "a lease without attributes"));
                };
                Ok(Step::Done(AttrReply { attr, ttl: fs.ttl(inode, state) }))
            })
            .await?;
        Ok(Served { value, pass })
    }

    pub async fn setattr(
        self: &Arc<Self>,
        ino: Ino,
        _handle: Option<Handle>,
        set: SetAttr,
    ) -> Result<Served<AttrReply>> {
        let inode = self.table.get(ino);
        if let Some(size) = set.size {
            self.truncate(&inode, size, set.kill_privileges).await?;
        }
        let attr = self.fresh_view(&inode).await?;
        if set.atime.is_some() {
            self.forget_access(&inode);
        }
        let changes = changes(&set, &attr);
        if changes != AttrChanges::default() && !self.set_locally(&inode, &changes) {
            // What was changed here before is committed first: a commit that came later would undo this change.
            if inode.state.lock().is_dirty() {
                self.flush_inode(&inode, Level::Held, Mode::Exclusive).await?;
            }
            let _busy = Busy::new(&inode);
            let request = SetAttrRequest { ino, changes };
            let view = self.mutate::<SetAttrOperation>(&request, || self.distrust(&inode)).await?;
            self.not_durable_yet(&view);
            self.take_view(&view);
            inode.state.lock().xattrs = None;
        }
        self.attr_reply(&inode).await
    }

    /// The holder of a file's exclusive lease changes its own attributes; they go with the next commit.
    fn set_locally(&self, inode: &Arc<Inode>, changes: &AttrChanges) -> bool {
        let wall = self.backend.wall();
        self.change(inode, |state| {
            let owned = state.is_exclusive() && state.kind() == Some(Kind::File) && self.is_valid(state);
            // There may be an ACL, which the master makes follow the mode.
            let listed = state.attr.as_ref().is_some_and(|attr| attr.xattrs) && changes.mode.is_some();
            if !owned || state.gate.is_closed() || state.removed || listed {
                return false;
            }
            apply(state, changes, wall)
        })
    }

    pub fn try_readlink(&self, ino: Ino) -> Option<Result<Bytes>> {
        let inode = self.table.find(ino)?;
        let state = inode.state.lock();
        self.is_valid(&state).then(|| state.target.clone()).flatten().map(Ok)
    }

    pub async fn readlink(self: &Arc<Self>, ino: Ino) -> Result<Bytes> {
        if let Some(target) = self.try_readlink(ino) {
            return target;
        }
        let reply = self.backend.query::<ReadSymlink>(&ino).await?;
        let target = Bytes::from(reply.target);
        let inode = self.table.get(ino);
        let mut state = inode.state.lock();
        state.see(&reply.view);
        if state.is_fresh(&reply.view) {
            state.target = Some(target.clone());
        }
        Ok(target)
    }

    pub async fn statfs(self: &Arc<Self>) -> Result<FsStat> {
        let known = *self.space.lock();
        if let Some((asked, stat)) = known
            && asked.elapsed() < SPACE_KNOWN_FOR
            && self.backend.lease_remaining().is_some()
        {
            return Ok(stat);
        }
        let asked = Instant::now();
        let stat = self.backend.query::<StatFs>(&()).await?;
        *self.space.lock() = Some((asked, stat));
        Ok(stat)
    }
}

/// A change of owner takes privileges away, unless the caller says which mode it wants.
fn changes(set: &SetAttr, attr: &Attr) -> AttrChanges {
    let chown = set.uid.is_some() || set.gid.is_some();
    let killed = without_privileges(attr.mode);
    let kill = chown && attr.kind == Kind::File && killed != attr.mode;
    AttrChanges {
        mode: set.mode.or_else(|| kill.then_some(killed)),
        uid: set.uid,
        gid: set.gid,
        atime: set.atime,
        mtime: set.mtime,
        ctime: None,
    }
}

fn apply(state: &mut State, changes: &AttrChanges, wall: Timestamp) -> bool {
    let Some(attr) = &mut state.attr else { return false };
    let time = |set: SetTime| match set {
        SetTime::Now => wall,
        SetTime::At(time) => time,
    };
    if let Some(mode) = changes.mode {
        attr.mode = mode & 0o7777;
        state.pending.mode = true;
    }
    if changes.uid.is_some() || changes.gid.is_some() {
        attr.uid = changes.uid.unwrap_or(attr.uid);
        attr.gid = changes.gid.unwrap_or(attr.gid);
        state.pending.owner = true;
        // With the mode beside it the owner takes nothing more away at the master.
        state.pending.mode = true;
    }
    if let Some(atime) = changes.atime {
        attr.atime = time(atime);
        state.pending.atime = true;
    }
    if let Some(mtime) = changes.mtime {
        attr.mtime = time(mtime);
        (state.pending.mtime, state.pending.mtime_set) = (true, true);
    }
    touch_status(attr, wall);
    state.pending.ctime = true;
    true
}
