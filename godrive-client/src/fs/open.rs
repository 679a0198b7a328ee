//! Opening, creating and closing.
//!
//! While a handle is open, a lease is held or the master was told so with the last release: that is what keeps an
//! unlinked file alive.

use super::inode::{Inode, State};
use super::lease::Step;
use super::table::OpenFile;
use super::types::{Caller, Created, Entry, Handle, Made, Opened, Served};
use super::{Backend, Fs, checked};
use crate::core::gate::NO_PAGES;
use crate::error::{FsError, Result};
use godrive_proto::Ino;
use godrive_proto::lease::Mode;
use godrive_proto::meta::{Create, CreateRequest, Kind, NewMode};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// Tries to make or open a name that others make and remove.
const MAX_CREATIONS: u32 = 8;

struct Access {
    flags: i32,
}

impl Access {
    fn writes(&self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_RDONLY
    }

    fn reads(&self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_WRONLY
    }

    fn truncates(&self) -> bool {
        self.writes() && self.flags & libc::O_TRUNC != 0
    }

    fn lease(&self) -> Mode {
        if self.writes() { Mode::Exclusive } else { Mode::Shared }
    }

    /// Nothing can be written through it, and its process has no locks to give up with it.
    fn needs_no_flush(&self, inode: &Inode) -> bool {
        !self.writes() && !inode.state.lock().locked
    }

    /// Counts a handle in.
    fn enter(&self, state: &mut State) -> Result<Step<(bool, u64)>> {
        match state.kind() {
            Some(Kind::File) => {}
            Some(Kind::Directory) => return Err(FsError::bare(libc::EISDIR)),
            _ => return Err(FsError::bare(libc::ENXIO)),
        }
        if state.telling_closed {
            return Ok(Step::Wait);
        }
        self.count(state);
        Ok(Step::Done((std::mem::replace(&mut state.opened_before, true), state.poison)))
    }

    fn count(&self, state: &mut State) {
        state.open += 1;
        state.writers += u32::from(self.writes());
        state.mappable += u32::from(self.writes() && self.reads());
    }

    fn file(&self, inode: Arc<Inode>, poison: u64) -> OpenFile {
        OpenFile {
            inode,
            readable: self.reads(),
            writable: self.writes(),
            append: self.flags & libc::O_APPEND != 0,
            sync: self.flags & (libc::O_SYNC | libc::O_DSYNC) != 0,
            direct: self.flags & libc::O_DIRECT != 0,
            no_access_time: self.flags & libc::O_NOATIME != 0,
            poison,
            ahead: Mutex::default(),
        }
    }
}

impl<B: Backend> Fs<B> {
    pub fn try_open(&self, ino: Ino, flags: i32) -> Option<Result<Served<Opened>>> {
        let access = Access { flags };
        if access.truncates() {
            return None;
        }
        let inode = self.table.find(ino)?;
        let done = self.try_under(&inode, access.lease(), NO_PAGES, |state| access.enter(state))?;
        if let Ok(((true, _), _)) = &done {
            self.opened_for_reading(&inode, &access);
        }
        Some(done.map(|((keep_cache, poison), pass)| {
            let no_flush = access.needs_no_flush(&inode);
            let handle = self.handles.add(access.file(inode, poison));
            Served { value: Opened { handle, keep_cache, no_flush }, pass }
        }))
    }

    /// O_TRUNC is honoured, but the kernel says it only where it was promised to it (FUSE_ATOMIC_O_TRUNC); see `godrive-fuse`.
    pub async fn open(self: &Arc<Self>, ino: Ino, flags: i32) -> Result<Served<Opened>> {
        let access = Access { flags };
        let inode = self.table.get(ino);
        let ((keep_cache, poison), pass) =
            self.under(&inode, access.lease(), NO_PAGES, |state| access.enter(state)).await?;
        let handle = self.handles.add(access.file(inode.clone(), poison));
        if keep_cache {
            self.opened_for_reading(&inode, &access);
        }
        if access.truncates() {
            // The pass would hold back a recall that the truncation may have to wait for.
            drop(pass);
            if let Err(error) = self.truncate(&inode, 0, false).await {
                self.release(handle);
                return Err(error);
            }
            let value = Opened { handle, keep_cache: false, no_flush: false };
            return Ok(Served { value, pass: Default::default() });
        }
        Ok(Served { value: Opened { handle, keep_cache, no_flush: access.needs_no_flush(&inode) }, pass })
    }

    /// The kernel may have pages of it, and then nobody hears of the reads.
    fn opened_for_reading(&self, inode: &Arc<Inode>, access: &Access) {
        if !access.writes() && access.flags & libc::O_NOATIME == 0 {
            self.accessed(inode);
        }
    }

    /// Makes a file and opens it; one that is there is opened, whoever asks.
    pub async fn create(
        self: &Arc<Self>,
        parent: Ino,
        name: &[u8],
        mode: u16,
        flags: i32,
        caller: Caller,
    ) -> Result<Served<Created>> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let opened = match self.create_new(parent, name, mode, flags, caller).await {
                Ok(Made::New(created)) => return Ok(created),
                Ok(Made::There(entry)) => self.open_found(entry, flags).await,
                Err(error) => Err(error),
            };
            match opened {
                // It was there, as another mount was quicker, and gone when it was to be opened; so may be what is made here.
                Err(error) if error.errno == libc::ESTALE && attempts < MAX_CREATIONS => {}
                opened => return opened,
            }
        }
    }

    /// Opens what [`Self::create_new`] found there.
    pub async fn open_found(
        self: &Arc<Self>,
        Served { value: entry, pass }: Served<Entry>,
        flags: i32,
    ) -> Result<Served<Created>> {
        // The pass would hold back a recall that the open may have to wait for; so the name may not be cached.
        drop(pass);
        let inode = self.table.get(entry.attr.ino);
        let Served { value: opened, pass } = self.open(inode.ino, flags).await?;
        let attr = inode.state.lock().attr.clone().unwrap_or(entry.attr);
        let entry = Entry { attr, attr_ttl: Duration::ZERO, entry_ttl: Duration::ZERO };
        Ok(Served { value: Created { entry, opened }, pass })
    }

    /// Makes a file and opens it. What is there already is left as it is, and not opened.
    pub async fn create_new(
        self: &Arc<Self>,
        parent: Ino,
        name: &[u8],
        mode: u16,
        flags: i32,
        caller: Caller,
    ) -> Result<Made> {
        let access = Access { flags };
        let name = checked(name)?;
        let directory = self.table.get(parent);
        let request = CreateRequest {
            parent,
            name: name.clone(),
            mode: NewMode::new(mode, caller.umask),
            uid: caller.uid,
            gid: caller.gid,
            exclusive: flags & libc::O_EXCL != 0,
            for_writing: access.writes(),
        };
        let (reply, _busy) = self.mutate_in::<Create>(&[(&directory, &name)], &request).await?;
        let inode = self.table.get(reply.entry.attr.ino);
        let Served { value: entry, pass } = self.made(&directory, name, &reply.parent, &reply.entry)?;
        if reply.existed {
            return Ok(Made::There(Served { value: entry, pass }));
        }
        let (covered, poison) = {
            let mut state = inode.state.lock();
            if state.is_exclusive() {
                state.lease.born();
                // A new file has no other chunks.
                state.place_window(0, Vec::new(), || self.new_tag());
                if let Some(layout) = reply.layout {
                    state.place(layout, true, || self.new_tag());
                }
            }
            access.count(&mut state);
            state.opened_before = true;
            self.note(inode.ino, &mut state);
            (self.is_valid(&state), state.poison)
        };
        let handle = self.handles.add(access.file(inode.clone(), poison));
        let opened = Opened { handle, keep_cache: false, no_flush: !access.writes() };
        if covered {
            return Ok(Made::New(Served { value: Created { entry, opened }, pass }));
        }
        // A recall overtook the answer, and the master was told that nobody has it open: it may be removed already. A pass would hold
        // back a recall that this has to wait for.
        drop(pass);
        if let Err(error) = self.acquire(&inode, Mode::Shared).await {
            self.release(handle);
            return Err(error);
        }
        let entry = Entry { attr_ttl: Duration::ZERO, entry_ttl: Duration::ZERO, ..entry };
        Ok(Made::New(Served { value: Created { entry, opened }, pass: Default::default() }))
    }

    /// A handle was opened without a lease (a recall overtook it, the session is new): a shared one tells the master.
    pub(super) fn cover_open(self: &Arc<Self>, inode: &Arc<Inode>) {
        let (fs, inode) = (self.clone(), inode.clone());
        self.runtime.spawn(async move {
            if let Err(error) = fs.acquire(&inode, Mode::Shared).await {
                tracing::warn!(ino = %inode.ino, %error, "an open inode is not covered by a lease; if it is unlinked it is lost");
            }
        });
    }

    /// The last descriptor of the handle is closed. Answers at once; what remains to do goes on in the background.
    pub fn release(self: &Arc<Self>, handle: Handle) {
        let Some(file) = self.handles.remove(handle) else {
            tracing::warn!(?handle, "released, but not open");
            return;
        };
        let inode = &file.inode;
        let (removed, told) = self.change(inode, |state| {
            state.open -= 1;
            state.writers -= u32::from(file.writable);
            // Of those that a dead daemon has left all may be.
            state.mappable -= u32::from(file.writable && file.readable).min(state.mappable);
            state.mappable = state.mappable.min(state.writers);
            if state.open > 0 {
                return (false, false);
            }
            state.lost_open = false;
            (state.removed, !state.removed && std::mem::take(&mut state.told_open))
        });
        let last = inode.state.lock().open == 0;
        self.unlock_handle(inode, handle, last);
        self.lower_unused(inode);
        if removed {
            self.let_go(inode);
        } else if told {
            self.report_closed(inode.ino);
        }
    }

    /// Nobody here has the removed inode open any longer. Another mount may: it must see what was written here.
    pub(super) fn let_go(self: &Arc<Self>, inode: &Arc<Inode>) {
        let unseen = self.change(inode, |state| state.lease.is_sole() || !state.is_dirty());
        if unseen {
            return self.drop_removed(inode);
        }
        let (fs, inode) = (self.clone(), inode.clone());
        self.runtime.spawn(async move {
            if let Err(error) = fs.flush_inode(&inode, super::flush::Level::Held, Mode::Shared).await {
                tracing::warn!(ino = %inode.ino, %error, "an unlinked file was not flushed; another mount may have it open");
            }
            if inode.state.lock().open == 0 {
                fs.drop_removed(&inode);
            }
            fs.tell_later(&inode);
        });
    }

    fn drop_removed(&self, inode: &Arc<Inode>) {
        self.change(inode, |state| {
            // What of it is held goes with the inode, where nobody else can have it.
            let gave_up = state.gave_up || (state.is_dirty() && !state.lease.is_sole());
            state.lose_dirty();
            state.gave_up = gave_up;
            // Nobody can ask for it any more.
            state.owes_error = false;
            self.forget(state);
            state.told_open = false;
        });
        self.settle_dirty(inode);
        self.report_closed(inode.ino);
    }

    /// The handle's file, unless its dirty data was lost while it was open.
    pub(super) fn sound(&self, handle: Handle) -> Result<Arc<OpenFile>> {
        let file = self.handles.find(handle)?;
        let poison = file.inode.state.lock().poison;
        if poison != file.poison {
            return Err(FsError::new(
                libc::EIO,
                format!("inode {} lost data that was written before; close and reopen it", file.inode.ino),
            ));
        }
        Ok(file)
    }
}
