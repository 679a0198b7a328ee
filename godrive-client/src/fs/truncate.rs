//! Setting a file's length.
//!
//! Longer: bytes behind the end are zeros already, so only the length changes, locally. Shorter: what is dirty is flushed (for the length
//! 0 it need not be), the master logs the length and drops the chunks behind it, and the rest of the chunk that
//! holds the new end becomes a hole in the write buffer. The master's trim is pending until that hole is held and
//! committed, which is before any longer length can be.

use super::inode::{Alone, Inode};
use super::lease::{Claim, Step};
use super::names::Busy;
use super::write::rotten;
use super::{Backend, Fs};
use crate::core::attrs::{touch_contents, without_privileges};
use crate::core::gate::NO_PAGES;
use crate::driver::BoxFuture;
use crate::error::{FsError, Result};
use godrive_proto::Code;
use godrive_proto::lease::Mode;
use godrive_proto::meta::{Kind, Truncate, TruncateRequest};
use std::collections::BTreeMap;
use std::sync::Arc;

const MAX_ATTEMPTS: u32 = 16;

/// What a truncation needs to do.
enum Plan {
    Nothing,
    Shrink(u64),
    /// To the present size, then look again.
    Trim(u64),
}

/// As long as it lives, a file does not grow, and its lease stays: a request for a trim that is late must not cut off what another
/// mount has written meanwhile.
struct SizeFixed<'a>(&'a Inode);

impl Drop for SizeFixed<'_> {
    fn drop(&mut self) {
        self.0.state.lock().size_fixed = false;
        self.0.changed.notify_waiters();
    }
}

impl<B: Backend> Fs<B> {
    /// Bytes behind the end become zeros, as an unfinished trim or a dead writer may have left some. Goes on to its end even if the
    /// caller goes away.
    pub(super) fn trim(self: &Arc<Self>, inode: &Arc<Inode>) -> BoxFuture<'static, Result<()>> {
        let (fs, inode) = (self.clone(), inode.clone());
        Box::pin(async move {
            let task = tokio::spawn(async move { fs.trim_in_order(&inode).await });
            task.await
                .unwrap_or_else(|error| Err(FsError::new(libc::EIO, format!("a trim broke off: {error}"))))
        })
    }

    async fn trim_in_order(self: &Arc<Self>, inode: &Arc<Inode>) -> Result<()> {
        let _order = self.within("waiting for a flush", inode.order.lock()).await?;
        let size = {
            let mut state = inode.state.lock();
            if !state.must_trim() || !state.is_exclusive() {
                return Ok(());
            }
            // Others write at the same time, and what goes on below may make them believe that nothing is to be trimmed any longer.
            state.size_fixed = true;
            state.size()
        };
        let _fixed = SizeFixed(inode);
        self.shrink(inode, size, false).await?;
        Ok(())
    }

    /// Goes on to its end even if the caller goes away: the master may have cut the file already.
    pub(super) async fn truncate(self: &Arc<Self>, inode: &Arc<Inode>, size: u64, kill: bool) -> Result<()> {
        let (fs, inode) = (self.clone(), inode.clone());
        let task = tokio::spawn(async move {
            let set = fs.set_length(&inode, size, kill).await;
            fs.lower_unused(&inode);
            set
        });
        task.await
            .unwrap_or_else(|error| Err(FsError::new(libc::EIO, format!("a truncation broke off: {error}"))))
    }

    async fn set_length(self: &Arc<Self>, inode: &Arc<Inode>, size: u64, kill: bool) -> Result<()> {
        let _busy = Busy::new(inode);
        self.catch_up_on(inode).await;
        let _content = self.within("waiting for writes", inode.content.write()).await?;
        let _order = self.within("waiting for a flush", inode.order.lock()).await?;
        self.settle_lowering(inode).await?;
        let mut attempts = 0;
        loop {
            let (plan, pass) =
                self.under(inode, Mode::Exclusive, NO_PAGES, |state| self.plan(state, size, kill)).await?;
            drop(pass);
            attempts += 1;
            if attempts > MAX_ATTEMPTS {
                return Err(FsError::new(libc::EIO, "the exclusive lease was recalled again and again"));
            }
            match plan {
                Plan::Nothing => return Ok(()),
                Plan::Trim(present) => {
                    inode.state.lock().size_fixed = true;
                    let _fixed = SizeFixed(inode);
                    self.shrink(inode, present, false).await?;
                }
                Plan::Shrink(size) => {
                    if self.shrink(inode, size, kill).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn plan(&self, state: &mut super::inode::State, size: u64, kill: bool) -> Result<Step<Plan>> {
        let wall = self.backend.wall();
        if size > state.max_bytes() {
            return Err(FsError::bare(libc::EFBIG));
        }
        let Some(attr) = &mut state.attr else {
            return Err(FsError::new(libc::EIO, "a lease without attributes"));
        };
        match attr.kind {
            Kind::File => {}
            Kind::Directory => return Err(FsError::bare(libc::EISDIR)),
            _ => return Err(FsError::bare(libc::EINVAL)),
        }
        if size < attr.size {
            return Ok(Step::Done(Plan::Shrink(size)));
        }
        if size > attr.size && attr.trim_pending && !state.trimming {
            return Ok(Step::Done(Plan::Trim(attr.size)));
        }
        if size > attr.size {
            attr.size = size;
            state.pending.size = true;
        }
        touch_contents(attr, wall);
        state.pending.mtime = true;
        state.pending.ctime = true;
        let mode = without_privileges(attr.mode);
        if kill && mode != attr.mode {
            attr.mode = mode;
            state.pending.mode = true;
        }
        Ok(Step::Done(Plan::Nothing))
    }

    /// False: the lease was recalled in between; try again.
    async fn shrink(self: &Arc<Self>, inode: &Arc<Inode>, size: u64, kill: bool) -> Result<bool> {
        let chunk_bytes = u64::from(inode.state.lock().chunk_bytes().max(1));
        // At the largest size there is, all of the last chunk stays.
        let (last, offset) = match u32::try_from(size / chunk_bytes) {
            Ok(last) => (last, (size % chunk_bytes) as u32),
            Err(_) => (u32::MAX, chunk_bytes as u32),
        };
        if size > 0 && inode.state.lock().is_dirty() {
            // Also what lies behind the new end: a commit of the old length without it would show what never was, and the truncation
            // may yet be refused.
            self.flush_in_order(inode, super::flush::Level::Held, Mode::Exclusive).await?;
        }
        let _still = self.quiesce(inode, last).await;
        if !inode.state.lock().is_exclusive() {
            return Ok(false);
        }
        let _claim = Claim::new(inode);
        let (generation, given_back, answered_early) = {
            let state = inode.state.lock();
            (state.generation, state.lease.given_back(), state.answered_early)
        };
        let request = TruncateRequest { ino: inode.ino, size, kill_privileges: kill };
        let reply = match self.backend.mutate::<Truncate>(&request).await {
            Ok(reply) => reply,
            Err(fault) if fault.code == Code::NoLease => {
                // A recall came first; what was dirty it has flushed.
                self.lease_denied(inode, generation);
                return Ok(false);
            }
            Err(fault) => {
                if super::mutate::is_unknown(&fault) {
                    self.lease_denied(inode, generation);
                }
                return Err(fault.into());
            }
        };
        self.change(inode, |state| {
            state.cuts += 1;
            // The reply may be late: under another lease it says nothing of what the file is now, but that its layouts are old.
            let is_same = state.generation == generation && state.lease.given_back() == given_back;
            if !is_same || !state.is_exclusive() {
                state.windows.clear();
                return Ok(false);
            }
            state.buffer.cut(last, offset).map_err(rotten)?;
            state.pending.size = false;
            if !state.size_fixed {
                (state.pending.mtime, state.pending.mtime_set) = (false, false);
                state.pending.ctime = false;
            }
            state.pending.mode &= !kill;
            if let Some(first) = last.checked_add(u32::from(offset > 0)) {
                state.slots.split_off(&first);
                state.chunks.split_off(&first);
            }
            state.synced = state.synced.max(answered_early);
            state.trimming = false;
            state.see(&reply.view);
            let Some(trim) = reply.trim else { return Ok(true) };
            let (index, chunk) = (trim.index, trim.chunk.id);
            let from = if index == last { offset } else { 0 };
            let len = trim.chunk.chunk_bytes.saturating_sub(from);
            if state.slots.get(&index).is_none_or(|slot| !slot.opened) {
                state.place(trim, true, || self.new_tag());
            }
            if let Some(slot) = state.slots.get_mut(&index) {
                slot.is_cut = true;
            }
            state.trimming = true;
            state.trims += 1;
            state.buffer.punch(index, chunk, from, len).map_err(rotten)?;
            Ok(true)
        })
    }

    /// Waits until no delta of a chunk at or behind `first` is in flight. No new one starts as long as this is kept.
    async fn quiesce(&self, inode: &Arc<Inode>, first: u32) -> BTreeMap<u32, Alone> {
        let mut still = BTreeMap::new();
        loop {
            let moving: Vec<u32> = {
                let state = inode.state.lock();
                let is_still = |index: &u32| {
                    still.get(index).is_some_and(|alone| state.slot_under(*index, alone).is_some())
                };
                state.slots.range(first..).map(|(index, _)| *index).filter(|index| !is_still(index)).collect()
            };
            if moving.is_empty() {
                return still;
            }
            for index in moving {
                if let Some(alone) = inode.alone(index).await {
                    still.insert(index, alone);
                }
            }
        }
    }
}
