//! Changes of the namespace. The master executes them; what the reply says is known from then on.

use super::inode::{Inode, State};
use super::names::Busy;
use super::types::{Caller, Entry, Found, Invalidation, Served};
use super::{Backend, Fs, checked};
use crate::error::{FsError, Result};
use godrive_proto::lease::Mode;
use godrive_proto::meta::{
    InodeView, Kind, Link, LinkRequest, MakeNode, MakeNodeRequest, Name, NewMode, NewNode, Rename,
    RenameMode, RenameRequest, Restore, RestoreRequest, Unlink, UnlinkRequest,
};
use godrive_proto::{Code, Fault, Ino, Operation};
use parking_lot::MutexGuard;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Tries to make the source of a rename stable, where it is removed again and again meanwhile.
const MAX_SETTLES: u32 = 8;

impl<B: Backend> Fs<B> {
    /// A mutation, in its order behind the removals made here; where these fail, so does it. If its outcome stays
    /// unknown, `doubt` says what is not trusted any longer.
    pub(super) async fn mutate<O: Operation>(
        &self,
        request: &O::Request,
        doubt: impl FnOnce() + Send,
    ) -> Result<O::Reply> {
        self.catch_up().await?;
        let reply = self.backend.mutate::<O>(request).await;
        if let Err(fault) = &reply
            && is_unknown(fault)
        {
            tracing::warn!(operation = O::NAME, %fault, "outcome unknown, what it may have changed is read anew");
            doubt();
        }
        Ok(reply?)
    }

    /// A mutation of names in directories; they are busy until its reply was taken in.
    pub(super) async fn mutate_in<O: Operation>(
        &self,
        names: &[(&Arc<Inode>, &Name)],
        request: &O::Request,
    ) -> Result<(O::Reply, Vec<Busy>)> {
        self.mutate_names::<O>(names, &[], request).await
    }

    /// The same where inodes may lose or get a name.
    async fn mutate_names<O: Operation>(
        &self,
        names: &[(&Arc<Inode>, &Name)],
        inodes: &[Arc<Inode>],
        request: &O::Request,
    ) -> Result<(O::Reply, Vec<Busy>)> {
        if O::CODE != Unlink::CODE {
            self.removals.interrupted();
        }
        let changing = names.iter().map(|(directory, name)| Busy::changing(directory, name));
        let busy = changing.chain(inodes.iter().map(Busy::new)).collect();
        let doubt = || {
            names.iter().for_each(|(directory, _)| self.distrust(directory));
            inodes.iter().for_each(|inode| self.may_be_removed(inode));
        };
        Ok((self.mutate::<O>(request, doubt).await?, busy))
    }

    /// What a name in this directory is known to mean.
    pub(super) fn named(&self, directory: &Arc<Inode>, name: &Name) -> Option<Arc<Inode>> {
        let ino = directory.state.lock().directory.look_up(name)??;
        self.table.find(ino)
    }

    /// Its last name may be gone. Then the master keeps it for this mount, until it is told that it need not.
    pub(super) fn may_be_removed(&self, inode: &Arc<Inode>) {
        self.distrust(inode);
        let open = {
            let mut state = inode.state.lock();
            state.told_open |= state.open > 0;
            state.open > 0
        };
        if !open {
            self.report_closed(inode.ino);
        }
    }

    /// mknod, mkdir and symlink.
    pub async fn make(
        self: &Arc<Self>,
        parent: Ino,
        name: &[u8],
        node: NewNode,
        mode: u16,
        caller: Caller,
    ) -> Result<Served<Entry>> {
        let name = checked(name)?;
        let directory = self.table.get(parent);
        let Caller { uid, gid, umask } = caller;
        let mode = NewMode::new(mode, umask);
        let request = MakeNodeRequest { parent, name: name.clone(), node, mode, uid, gid };
        let (reply, _busy) = self.mutate_in::<MakeNode>(&[(&directory, &name)], &request).await?;
        let made = self.made(&directory, name, &reply.parent, &reply.entry)?;
        if reply.entry.attr.kind == Kind::Directory {
            let inode = self.table.get(reply.entry.attr.ino);
            let mut state = inode.state.lock();
            if state.is_fresh(&reply.entry) && self.is_valid(&state) {
                state.directory.born();
            }
        }
        Ok(made)
    }

    pub async fn link(self: &Arc<Self>, ino: Ino, parent: Ino, name: &[u8]) -> Result<Served<Entry>> {
        let name = checked(name)?;
        let directory = self.table.get(parent);
        let request = LinkRequest { ino, parent, name: name.clone() };
        let inode = self.table.get(ino);
        let (reply, _busy) = self.mutate_names::<Link>(&[(&directory, &name)], &[inode], &request).await?;
        self.made(&directory, name, &reply.parent, &reply.entry)
    }

    /// Gives an inode in the trash a name again.
    pub async fn restore(self: &Arc<Self>, ino: Ino, parent: Ino, name: &[u8]) -> Result<Served<Entry>> {
        let name = checked(name)?;
        let directory = self.table.get(parent);
        let request = RestoreRequest { ino, parent, name: name.clone() };
        let (reply, _busy) = self.mutate_in::<Restore>(&[(&directory, &name)], &request).await?;
        self.made(&directory, name, &reply.parent, &reply.entry)
    }

    pub(super) fn made(
        &self,
        directory: &Arc<Inode>,
        name: Name,
        parent: &InodeView,
        entry: &InodeView,
    ) -> Result<Served<Entry>> {
        self.not_durable_yet(entry);
        self.renamed(directory, &name, parent, Some(entry.attr.ino));
        let Served { value, pass } = self.take_entry(directory, name, parent, Some(entry));
        match value {
            Found::Entry(entry) => Ok(Served { value: entry, pass }),
            Found::Missing(_) => Err(FsError::new(libc::EIO, "an entry that was just made is missing")),
        }
    }

    pub async fn unlink(self: &Arc<Self>, parent: Ino, name: &[u8]) -> Result<()> {
        self.remove(parent, name, false).await
    }

    pub async fn rmdir(self: &Arc<Self>, parent: Ino, name: &[u8]) -> Result<()> {
        self.remove(parent, name, true).await
    }

    async fn remove(self: &Arc<Self>, parent: Ino, name: &[u8], directory: bool) -> Result<()> {
        let name = checked(name)?;
        let within = self.table.get(parent);
        let named: Vec<_> = self.named(&within, &name).into_iter().collect();
        if let Some(inode) = named.first()
            && self.own_many(&within, inode, &name).await
            && self.remove_here(&within, inode, name.clone(), directory)
        {
            return Ok(());
        }
        let request = UnlinkRequest { parent, name: name.clone(), directory };
        let (reply, _busy) = self.mutate_names::<Unlink>(&[(&within, &name)], &named, &request).await?;
        self.renamed(&within, &name, &reply.parent, None);
        self.unlinked(&reply.entry);
        Ok(())
    }

    /// `new_name` never shows less than the writer had written: where it exists, the source is made stable first.
    pub async fn rename(
        self: &Arc<Self>,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        let (name, new_name) = (checked(name)?, checked(new_name)?);
        if mode != RenameMode::NoReplace {
            self.settle_before_rename((parent, &name), (new_parent, &new_name)).await?;
            if mode == RenameMode::Exchange {
                self.settle_before_rename((new_parent, &new_name), (parent, &name)).await?;
            }
        }
        let (from, to) = (self.table.get(parent), self.table.get(new_parent));
        let request =
            RenameRequest { parent, name: name.clone(), new_parent, new_name: new_name.clone(), mode };
        let named = [self.named(&from, &name), self.named(&to, &new_name)];
        let named: Vec<_> = named.into_iter().flatten().collect();
        let (reply, _busy) =
            self.mutate_names::<Rename>(&[(&from, &name), (&to, &new_name)], &named, &request).await?;
        let same = reply.other.as_ref().is_some_and(|other| other.attr.ino == reply.entry.attr.ino);
        if same {
            // Two names of one inode: nothing happened.
            self.take_view(&reply.entry);
            return Ok(());
        }
        let left = reply.other.as_ref().filter(|_| mode == RenameMode::Exchange).map(|other| other.attr.ino);
        self.moved(&from, &name, &reply.parent, left);
        self.moved(&to, &new_name, &reply.new_parent, Some(reply.entry.attr.ino));
        self.not_durable_yet(&reply.entry);
        self.take_view(&reply.entry);
        if let Some(other) = &reply.other {
            self.unlinked(other);
        }
        Ok(())
    }

    /// See [`State::not_durable_yet`].
    pub(super) fn not_durable_yet(&self, view: &InodeView) {
        self.table.get(view.attr.ino).state.lock().not_durable_yet(view);
    }

    async fn settle_before_rename(self: &Arc<Self>, from: (Ino, &Name), to: (Ino, &Name)) -> Result<()> {
        let mut tries = MAX_SETTLES;
        loop {
            let Found::Entry(source) = self.find(from.0, from.1).await?.value else {
                return Ok(()); // The master says ENOENT.
            };
            if source.attr.kind != Kind::File {
                return Ok(());
            }
            let Found::Entry(target) = self.find(to.0, to.1).await?.value else {
                return Ok(());
            };
            if target.attr.ino == source.attr.ino {
                return Ok(());
            }
            let inode = self.table.get(source.attr.ino);
            let Err(error) = self.make_stable(&inode).await else { return Ok(()) };
            let is_gone = error.errno == libc::ESTALE || inode.state.lock().removed;
            tries -= 1;
            if !is_gone || tries == 0 {
                return Err(error);
            }
            // Somebody removed or replaced it meanwhile: the name may lead to another one now.
        }
    }

    /// After a rename. A moved entry keeps the time to live that the kernel was given for it in the other directory.
    fn moved(&self, directory: &Arc<Inode>, name: &Name, view: &InodeView, ino: Option<Ino>) {
        let mut state = directory.state.lock();
        state.names_given |= ino.is_some();
        self.name_changed(directory, state, name, view, ino);
    }

    /// After a mutation: the directory's view, and what a name in it means now.
    fn renamed(&self, directory: &Arc<Inode>, name: &Name, view: &InodeView, ino: Option<Ino>) {
        self.name_changed(directory, directory.state.lock(), name, view, ino);
    }

    fn name_changed(
        &self,
        directory: &Arc<Inode>,
        mut state: MutexGuard<'_, State>,
        name: &Name,
        view: &InodeView,
        ino: Option<Ino>,
    ) {
        state.touched_early(view);
        state.see(view);
        // The kernel's listing of it is old.
        state.opened_before = false;
        if state.is_fresh(view) {
            if state.directory.change(name.clone(), ino) {
                self.names.fetch_add(1, Ordering::Relaxed);
            }
            return;
        }
        // Another reply told of a later change, or the lease is gone: what the name means now is unknown. The
        // kernel keeps a moved entry with the time to live it had, so it is taken back.
        let names = self.forget(&mut state);
        drop(state);
        for name in names.into_iter().chain([name.clone()]) {
            self.invalidate_later(Invalidation::Entry(directory.ino, name.0));
        }
    }

    /// A name of this inode is gone.
    fn unlinked(self: &Arc<Self>, view: &InodeView) {
        let (_, _, pass) = self.take_view(view);
        drop(pass);
        self.not_durable_yet(view);
        if view.attr.nlink == 0 || (view.attr.kind == Kind::Directory && view.attr.nlink < 2) {
            self.removed(&self.table.get(view.attr.ino));
        }
    }

    /// The last name is gone: the inode lives until its last handle here is closed.
    pub(super) fn removed(self: &Arc<Self>, inode: &Arc<Inode>) {
        let closed = {
            let mut state = inode.state.lock();
            state.removed = true;
            state.open == 0
        };
        if closed {
            self.let_go(inode);
        }
    }

    /// An orphan has no handle here any longer; the background tells the master.
    pub(super) fn report_closed(&self, ino: Ino) {
        let first = {
            let mut orphans = self.orphans.lock();
            orphans.insert(ino);
            orphans.len() == 1
        };
        if first {
            self.wake.notify_one();
        }
    }

    /// Attributes that need the master: those of inodes that this mount does not own.
    pub(super) async fn fresh_view(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
    ) -> Result<godrive_proto::meta::Attr> {
        let (attr, _pass) = self
            .under(inode, Mode::Shared, crate::core::gate::NO_PAGES, |state| {
                Ok(super::lease::Step::Done(state.attr.clone()))
            })
            .await?;
        attr.ok_or_else(|| FsError::new(libc::EIO, format!("a lease on {} without attributes", inode.ino)))
    }
}

/// The mutation may have been executed, or may still be.
pub(super) fn is_unknown(fault: &Fault) -> bool {
    matches!(
        fault.code,
        Code::Timeout
            | Code::Unreachable
            | Code::Internal
            | Code::NotReady
            | Code::SessionLost
            | Code::WrongTerm
    )
}
