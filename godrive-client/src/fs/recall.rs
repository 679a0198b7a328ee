//! Giving leases back, and what follows when the master restarts or the session is lost.

use super::flush::Level;
use super::inode::Inode;
use super::types::Invalidation;
use super::{Backend, Fs};
use crate::core::attrs::Pending;
use crate::driver::{BoxFuture, Declared, Upcalls};
use crate::error::{FsError, Result};
use godrive_proto::lease::{GiveUp, Mode, RecallRequest, Release, RenewRequest};
use godrive_proto::locks::LockOwner;
use godrive_proto::meta::{Attr, Kind};
use godrive_proto::time::Timestamp;
use godrive_proto::{Ino, LogIndex};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// The longest that answers which have been decided may take until the kernel has them.
const DRAIN: Duration = Duration::from_secs(2);
/// The longest for the kernel to forget pages; it goes on by itself afterwards.
const FORGET_PAGES: Duration = Duration::from_secs(2);
/// The same for names. Whoever tells the kernel does not wait for operations in their directory; this is for a machine that is
/// very busy, and below what the master waits for.
const FORGET_NAMES: Duration = Duration::from_secs(5);
/// The longest that a recall waits for an operation that has just been granted this lease.
const CLAIM: Duration = Duration::from_millis(200);
/// Between flushes of a recall while something is changed again and again.
const STIRRED: Duration = Duration::from_millis(1);
/// A directory that is recalled twice within this time is contended for as long again.
const HOT: Duration = Duration::from_secs(2);
/// Between attempts to tell the master what was given up.
const TOLD_AGAIN: Duration = Duration::from_millis(200);
/// Rounds of invalidation before whoever goes on with the same pages has to wait.
const MAX_ROUNDS: usize = 32;
/// Flushes of a recall that succeed and leave something dirty again: a change of attributes, a copy.
const MAX_FLUSHES: usize = 64;

impl<B: Backend> Fs<B> {
    /// The kernel forgets all of it, or the time is over: then it goes on by itself.
    pub(super) async fn invalidate(&self, what: Vec<Invalidation>, longest: Duration) {
        let Some(kernel) = self.kernel.get().cloned() else { return };
        if what.is_empty() {
            return;
        }
        // A task of its own: what is begun is brought to its end.
        let task = tokio::spawn(kernel.invalidate(what));
        match tokio::time::timeout(longest, task).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "an invalidation of the kernel's caches broke off"),
            Err(_) => {
                self.stats.late_invalidations.add(1);
                tracing::debug!("the kernel has not forgotten everything yet, it goes on");
            }
        }
    }

    /// The same without waiting.
    pub(super) fn invalidate_later(&self, what: Invalidation) {
        if let Some(kernel) = self.kernel.get().cloned() {
            self.runtime.spawn(kernel.invalidate(vec![what]));
        }
    }

    /// What the kernel believes of the inode may be wrong.
    pub async fn forget_attributes(&self, ino: Ino) {
        self.invalidate(vec![Invalidation::Attributes(ino)], FORGET_PAGES).await;
    }

    async fn recall_lease(self: Arc<Self>, recall: RecallRequest) -> Release {
        self.stats.recalls.add(1);
        let inode = self.table.get(recall.ino);
        // Grants up to this id are void from now on, before anything is waited for.
        let (meant, newer) = {
            let mut state = inode.state.lock();
            let meant = state.lease.recall(recall.id);
            (meant, state.mode().is_some() && !meant)
        };
        let keeps = if newer {
            None // An old recall came again; the lease held now is another.
        } else {
            self.give_back(&inode, meant, recall.may_keep).await
        };
        let mut state = inode.state.lock();
        let open = state.open > 0;
        state.told_open |= open;
        tracing::debug!(ino = %recall.ino, id = ?recall.id, meant, newer, ?keeps, "a lease goes back");
        Release { ino: recall.ino, id: recall.id, keeps, open }
    }

    pub(super) async fn give_back(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        meant: bool,
        may_keep: Option<Mode>,
    ) -> Option<Mode> {
        self.wait_for(inode, CLAIM, |state| state.claims == 0).await;
        while !inode.state.lock().gate.close() {
            // The same recall under way: it ends, then this one finds nothing.
            self.wait_for(inode, DRAIN, |state| !state.gate.is_closed()).await;
        }
        let keeps = if meant { may_keep } else { None };
        if keeps.is_none() {
            self.empty_kernel(inode).await;
        } else if is_mapped(&inode.state.lock()) {
            // Who comes next may write to the same pages.
            self.empty_pages(inode).await;
        }
        let kept = loop {
            self.flush_for_recall(inode).await;
            self.catch_up_on(inode).await;
            let given_back = self.change(inode, |state| {
                // What passes the gate, as a change of the length does, may have made it dirty again.
                if state.is_dirty() || state.size_fixed || state.unfollowed > 0 {
                    return None;
                }
                // What was given up may come to be what the file is.
                let kept = keeps.filter(|_| !state.gave_up);
                match kept {
                    Some(_) => {
                        state.lease.lower(Some(Mode::Shared));
                        state.close_chunks();
                    }
                    None => {
                        self.forget(state);
                    }
                }
                Some(kept)
            });
            if let Some(kept) = given_back {
                break kept;
            }
            self.wait_for(inode, STIRRED, |state| !state.is_dirty() && !state.size_fixed).await;
        };
        if kept < keeps {
            let pages = Invalidation::Pages(inode.ino, crate::core::gate::EVERYTHING);
            self.invalidate(vec![pages], FORGET_PAGES).await;
        }
        while let Err(error) = self.tell_given_up(inode).await {
            if self.stopped.load(Ordering::Relaxed) {
                break;
            }
            tracing::warn!(ino = %inode.ino, %error, "the master does not know yet which writes were given up, it is told again");
            tokio::time::sleep(TOLD_AGAIN).await;
        }
        inode.state.lock().gate.open();
        inode.changed.notify_waiters();
        kept
    }

    /// Waits until the state is so, or the time is over.
    pub(super) async fn wait_for(
        &self,
        inode: &Arc<Inode>,
        longest: Duration,
        is_so: impl Fn(&super::inode::State) -> bool,
    ) {
        let wait = async {
            loop {
                let changed = inode.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if is_so(&inode.state.lock()) {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(longest, wait).await.is_err() {
            tracing::debug!(ino = %inode.ino, ?longest, "not waited for any longer");
        }
    }

    /// The kernel forgets the inode, and what is answered while it does so is forgotten again. See [`crate::core::gate`].
    async fn empty_kernel(self: &Arc<Self>, inode: &Arc<Inode>) {
        self.wait_for(inode, DRAIN, |state| state.gate.is_empty()).await;
        self.empty_names(inode).await;
        self.empty_pages(inode).await;
    }

    /// What the kernel has of dirty pages is written back with that.
    async fn empty_pages(self: &Arc<Self>, inode: &Arc<Inode>) {
        self.wait_for(inode, DRAIN, |state| state.gate.is_empty()).await;
        let mut round = inode.state.lock().gate.first_round();
        for _ in 0..MAX_ROUNDS {
            // Those that wait for the gate look again: the invalidation may wait for them.
            inode.changed.notify_waiters();
            let what = round.into_iter().map(|range| Invalidation::Pages(inode.ino, range)).collect();
            self.invalidate(what, FORGET_PAGES).await;
            self.wait_for(inode, DRAIN, |state| state.gate.is_empty()).await;
            match inode.state.lock().gate.next_round() {
                None => return,
                Some(next) => round = next,
            }
        }
        let rest = inode.state.lock().gate.last_round(round);
        let what = rest.into_iter().map(|range| Invalidation::Pages(inode.ino, range)).collect();
        self.invalidate(what, FORGET_PAGES).await;
        self.wait_for(inode, DRAIN, |state| state.gate.is_empty()).await;
    }

    /// The names of a directory. The kernel needs the directory's lock for that, which an operation of this mount in it
    /// may hold while it waits for the very mount that recalls. Then the rest happens when that operation is
    /// answered, and for a while the kernel is given no names of this directory to keep.
    async fn empty_names(self: &Arc<Self>, inode: &Arc<Inode>) {
        let names: Vec<_> = {
            let mut state = inode.state.lock();
            let now = Instant::now();
            let again = state.last_recall.replace(now).is_some_and(|last| now.duration_since(last) < HOT);
            let busy = state.busy > 0;
            if busy || again {
                state.hot_until = Some(now + HOT);
            }
            state.directory.names().filter(|_| state.names_given).cloned().collect()
        };
        let what = names.into_iter().map(|name| Invalidation::Entry(inode.ino, name.0)).collect();
        self.invalidate(what, FORGET_NAMES).await;
    }

    /// Everything dirty is held and committed, or lost: the lease must go back.
    async fn flush_for_recall(self: &Arc<Self>, inode: &Arc<Inode>) {
        if !inode.state.lock().is_dirty() {
            return;
        }
        let (mut result, mut failures) = (Ok(()), 0);
        for _ in 0..MAX_FLUSHES {
            result = self.flush_inode(inode, Level::Held, Mode::Exclusive).await;
            if !inode.state.lock().is_dirty() {
                return;
            }
            // A commit may have been recalled half-way by another flush; one more try finds the rest. Room it does not find.
            failures += usize::from(result.is_err());
            if failures == 2 || result.as_ref().is_err_and(|error| error.errno == libc::ENOSPC) {
                break;
            }
        }
        // Somebody goes on and on; what was flushed is not given up for that, and the caller looks again.
        let Err(error) = result else { return };
        self.change(inode, |state| state.lose_dirty());
        self.settle_dirty(inode);
        self.note_error(
            inode,
            FsError::new(
                error.errno,
                format!("the lease was recalled and the flush failed: {}", error.context),
            ),
        );
    }

    /// The master closes the open chunks as those of a dead writer: what may still be under way is refused, and what came behind
    /// the end of the file is cut off before it grows. Nobody asks for the lease meanwhile; who still has it, tells when it goes.
    pub(super) async fn tell_given_up(&self, inode: &Arc<Inode>) -> Result<()> {
        {
            let state = inode.state.lock();
            if !state.gave_up || state.is_exclusive() {
                return Ok(());
            }
        }
        let left = self.backend.mutate::<GiveUp>(&inode.ino).await?;
        self.change(inode, |state| {
            state.gave_up = false;
            state.lease.was_lowered(left.as_ref());
        });
        Ok(())
    }

    /// Drops what is known of all inodes that `which` chooses; gives what the kernel must forget.
    fn drop_caches(&self, which: impl Fn(&super::inode::State) -> bool) -> Vec<Invalidation> {
        let mut what = Vec::new();
        for inode in self.table.all() {
            let mut state = inode.state.lock();
            if !which(&state) {
                continue;
            }
            let names = self.forget(&mut state);
            inode.changed.notify_waiters();
            what.extend(names.into_iter().map(|name| Invalidation::Entry(inode.ino, name.0)));
            what.push(Invalidation::Pages(inode.ino, crate::core::gate::EVERYTHING));
        }
        what
    }

    /// What the master answered behind `last` is lost with its power: whoever has the inodes open is told by fsync. What
    /// this mount owns it tells again.
    fn lose_early(&self, last: LogIndex) {
        let mut inodes = 0;
        for inode in self.table.all() {
            self.change(&inode, |state| {
                // The master counts on from there: what it says next is newer than what is known, whatever its number.
                if let Some(attr) = state.attr.as_mut().filter(|attr| attr.change > last.0) {
                    attr.change = 0;
                }
                if std::mem::take(&mut state.early) <= last {
                    return;
                }
                inodes += 1;
                state.unkept = true;
                if owned(state) && state.kind() == Some(Kind::File) && !state.removed {
                    state.pending = Pending::ALL;
                    // A trim that it was told of may be lost, too. It is told again with its hole; where the hole is in a chunk that
                    // is not open any more, and may be lost with it, the file is trimmed before it grows.
                    let has_hole = state.slots.values().any(|slot| slot.opened && slot.is_cut);
                    if let Some(attr) = state.attr.as_mut().filter(|attr| !attr.trim_pending) {
                        attr.trim_pending = !has_hole;
                        state.trimming |= has_hole;
                    }
                    for (index, slot) in state.slots.iter().filter(|(_, slot)| slot.opened) {
                        if let Some(told) = slot.told {
                            state.chunks.entry(*index).or_insert(told);
                        }
                    }
                }
            });
        }
        if inodes > 0 {
            tracing::error!(inodes, "a loss of the master's power has undone changes that were not fsynced");
        }
    }

    async fn after_restart(self: Arc<Self>) -> Declared {
        self.restarts.fetch_add(1, Ordering::SeqCst);
        let what = self.drop_caches(|state| !resumed(state));
        // The kernel may wait for operations that wait for the master, and the master waits for this.
        self.invalidate(what, FORGET_NAMES).await;
        let mut exclusive = Vec::new();
        let mut open = Vec::new();
        for inode in self.table.all() {
            let mut state = inode.state.lock();
            if let (true, Some(id)) = (owned(&state), state.lease.id()) {
                exclusive.push((inode.ino, id));
                // Its loss of power may have taken removals that it had followed.
                state.outdated = state.unfollowed > 0;
            }
            if state.open > 0 {
                state.told_open = true;
                open.push(inode.ino);
            }
        }
        Declared { exclusive, open, locks: self.all_locks() }
    }

    async fn lose(self: Arc<Self>, inodes: Vec<Ino>) {
        for ino in inodes {
            let Some(inode) = self.table.find(ino) else { continue };
            self.lose_inode(&inode, "the exclusive lease was lost when the master restarted");
            self.invalidate_later(Invalidation::Pages(ino, crate::core::gate::EVERYTHING));
        }
    }

    fn lose_inode(&self, inode: &Arc<Inode>, why: &str) {
        let (told, names) = self.change(inode, |state| {
            let dirty = state.is_dirty();
            if dirty {
                state.lose_dirty();
                state.owes_error = !state.removed;
            }
            let names = self.forget(state);
            (dirty && !state.removed, names)
        });
        inode.changed.notify_waiters();
        for name in names {
            self.invalidate_later(Invalidation::Entry(inode.ino, name.0));
        }
        self.settle_dirty(inode);
        self.tell_later(inode);
        if told {
            self.note_error(inode, FsError::new(libc::EIO, why));
        }
    }

    async fn after_session_loss(self: Arc<Self>) {
        let what = self.drop_caches(|state| !state.is_dirty());
        for inode in self.table.all() {
            if inode.state.lock().is_dirty() {
                self.lose_inode(&inode, "the session was lost with data that was not flushed");
                self.invalidate_later(Invalidation::Pages(inode.ino, crate::core::gate::EVERYTHING));
            }
        }
        self.end_removals();
        self.lose_all_locks();
        self.invalidate(what, FORGET_NAMES).await;
        // The new session has told the master of no open handle yet. Orphans of the old one are gone.
        for inode in self.table.all() {
            let mut state = inode.state.lock();
            state.told_open = false;
            // The master did that for all chunks that the old session had open.
            state.gave_up = false;
            if state.open > 0 && !state.removed {
                drop(state);
                self.cover_open(&inode);
            }
        }
    }
}

/// The kernel may have dirty pages of it.
fn is_mapped(state: &super::inode::State) -> bool {
    state.is_exclusive() && state.mappable > 0
}

/// Exclusive as the master knows it: also where a commit that gives it back was not answered.
fn owned(state: &super::inode::State) -> bool {
    state.is_exclusive() || (state.has_commit() && state.mode().is_some())
}

/// A lease to go on with when the master has restarted. Others are given up: what was learned under them may not be in
/// its log any longer.
fn resumed(state: &super::inode::State) -> bool {
    let opened = || state.slots.values().any(|slot| slot.opened);
    let in_use = state.open > 0 || state.is_dirty() || state.gave_up || opened();
    owned(state) && (state.unfollowed > 0 || (state.kind() == Some(Kind::File) && in_use))
}

impl<B: Backend> Upcalls for Fs<B> {
    fn recall(self: Arc<Self>, recall: RecallRequest) -> BoxFuture<'static, Release> {
        Box::pin(self.recall_lease(recall))
    }

    fn attributes(&self, ino: Ino) -> Option<Attr> {
        let inode = self.table.find(ino)?;
        let state = inode.state.lock();
        // While a lowering commit is on its way nobody owns it; the master asks for the lease then.
        // Nor is anybody shown what a removal made here has changed: the master has to follow first.
        let owned = state.is_exclusive() && self.is_valid(&state) && state.unfollowed == 0;
        if owned { state.attr.clone() } else { None }
    }

    fn log_ended(self: Arc<Self>, last: LogIndex) -> BoxFuture<'static, ()> {
        Box::pin(async move { self.lose_early(last) })
    }

    fn resume(self: Arc<Self>) -> BoxFuture<'static, Declared> {
        Box::pin(self.after_restart())
    }

    fn lost_leases(self: Arc<Self>, inodes: Vec<Ino>) -> BoxFuture<'static, ()> {
        Box::pin(self.lose(inodes))
    }

    fn lost_locks(self: Arc<Self>, owners: Vec<(Ino, LockOwner)>) -> BoxFuture<'static, ()> {
        Box::pin(async move { self.lose_locks(&owners) })
    }

    fn session_lost(self: Arc<Self>) -> BoxFuture<'static, ()> {
        Box::pin(self.after_session_loss())
    }

    fn accesses(&self) -> Vec<(Ino, Timestamp)> {
        self.take_accesses()
    }

    fn accesses_not_told(&self, times: Vec<(Ino, Timestamp)>) {
        self.put_accesses_back(times);
    }

    fn renewal(&self) -> RenewRequest {
        RenewRequest {
            errors_after_close: self.uncollected.load(Ordering::Relaxed) as u32,
            dirty_bytes: self.dirty_bytes.load(Ordering::Relaxed),
        }
    }
}
