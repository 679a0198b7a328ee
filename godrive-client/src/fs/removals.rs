//! Names removed under exclusive leases: answered here, followed by the master soon after.
//!
//! Who removes one file after the other gets the exclusive leases of the directory and of what it contains. Then a
//! removal changes what is known here and goes into one queue for the whole mount ([`Steps`]); a worker sends the queue
//! in batches. Every other change of the namespace waits until the queue is empty, so that the master sees the
//! mount's changes in their order; so does whatever asks for a lease back. Where a step cannot be followed, that one and
//! all behind it are given up, also when the session ends, since the leases end with it: what is lost is a suffix. The
//! directory's next fsync says so, and so does every change that waits behind it.

use super::inode::{Inode, State};
use super::lease::while_so;
use super::mutate::is_unknown;
use super::names::Busy;
use super::{Backend, Fs, checked};
use crate::core::attrs::{touch_contents, touch_status};
use crate::core::steps::Steps;
use crate::error::{FsError, Result};
use godrive_proto::lease::{Own, OwnRequest};
use godrive_proto::limits::MAX_STEPS;
use godrive_proto::meta::{Batch, BatchRequest, Batched, InodeView, Kind, Name, Step, UnlinkRequest};
use godrive_proto::{Code, Fault, Ino};
use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Leases that were not to be had are asked for again after so many times the usual number of removals.
const PENALTY: i64 = 16;
/// How long a removal waits for others to go with it.
const GATHER: Duration = Duration::from_millis(2);
/// Inodes asked for together with their directory, and names looked at to find them.
const MAX_OWNED: usize = 256;
const MAX_LOOKED_AT: usize = 4 * MAX_OWNED;

#[derive(Default)]
pub(super) struct Removals {
    steps: Mutex<Steps>,
    /// Somebody waits for the queue to be settled, or there is enough for a batch.
    urgent: Notify,
    settled: Notify,
    session_ended: Notify,
    /// Removals without another change of the namespace between them: more are likely to follow.
    streak: AtomicI64,
}

impl Removals {
    /// Another change of the namespace.
    pub fn interrupted(&self) {
        self.streak.fetch_min(0, Ordering::Relaxed);
    }

    /// From now on the master is asked first.
    pub fn close(&self) {
        self.steps.lock().close();
    }
}

impl<B: Backend> Fs<B> {
    pub fn try_unlink(self: &Arc<Self>, parent: Ino, name: &[u8]) -> Option<Result<()>> {
        self.try_remove(parent, name, false)
    }

    pub fn try_rmdir(self: &Arc<Self>, parent: Ino, name: &[u8]) -> Option<Result<()>> {
        self.try_remove(parent, name, true)
    }

    fn try_remove(self: &Arc<Self>, parent: Ino, name: &[u8], directory: bool) -> Option<Result<()>> {
        let name = match checked(name) {
            Ok(name) => name,
            Err(error) => return Some(Err(error)),
        };
        let within = self.table.find(parent)?;
        let inode = self.named(&within, &name)?;
        self.remove_here(&within, &inode, name, directory).then_some(Ok(()))
    }

    /// Removes the name if this mount alone may say that it is gone.
    pub(super) fn remove_here(
        self: &Arc<Self>,
        within: &Arc<Inode>,
        inode: &Arc<Inode>,
        name: Name,
        directory: bool,
    ) -> bool {
        if within.ino == inode.ino {
            return false;
        }
        let (mut outer, mut inner) = both(within, inode);
        let known = outer.directory.look_up(&name) == Some(Some(inode.ino));
        let alone = self.is_alone(&outer) && self.is_alone(&inner);
        if !known || !alone || !is_removable(&inner, directory) {
            return false;
        }
        let (State { attr: Some(parent), .. }, State { attr: Some(entry), .. }) = (&mut *outer, &mut *inner)
        else {
            return false;
        };
        // Under the inodes' locks: the queue has the order in which they were changed.
        let mut steps = self.removals.steps.lock();
        if !steps.accepts() {
            return false;
        }
        let at = self.backend.wall();
        parent.size = parent.size.saturating_sub(1);
        touch_contents(parent, at);
        if directory {
            parent.nlink = parent.nlink.saturating_sub(1);
        }
        entry.nlink = if directory { 0 } else { entry.nlink.saturating_sub(1) };
        touch_status(entry, at);
        // The kernel's listing of it is old.
        outer.opened_before = false;
        if outer.directory.change(name.clone(), None) {
            self.names.fetch_add(1, Ordering::Relaxed);
        }
        outer.unfollowed += 1;
        inner.unfollowed += 1;
        self.note(within.ino, &mut outer);
        let request = UnlinkRequest { parent: within.ino, name, directory };
        let step = Step::Unlink { request, ino: inode.ino, at };
        let (first, full) = (steps.push(step), steps.waiting() >= MAX_STEPS);
        drop((steps, outer, inner));
        self.removals.streak.fetch_add(1, Ordering::Relaxed);
        if first {
            self.runtime.spawn(self.clone().follow());
        } else if full {
            self.removals.urgent.notify_one();
        }
        true
    }

    /// Nobody else sees the inode, and no answer of the master is on its way that shows it as it was.
    fn is_alone(&self, state: &State) -> bool {
        state.is_exclusive() && self.is_valid(state) && !state.gate.is_closed() && state.busy == 0
    }

    /// Sends what is queued until there is nothing more.
    async fn follow(self: Arc<Self>) {
        loop {
            let enough = self.removals.steps.lock().waiting() >= MAX_STEPS;
            if !enough {
                // Both outcomes mean: go on.
                let _ = tokio::time::timeout(GATHER, self.removals.urgent.notified()).await;
            }
            let (session, steps) = {
                let mut steps = self.removals.steps.lock();
                (steps.session(), steps.take(MAX_STEPS))
            };
            if steps.is_empty() {
                return;
            }
            self.send(session, steps).await;
        }
    }

    /// Asks the master to follow, but not in another session than the one whose leases allowed the steps.
    async fn tell(&self, session: u64, request: &BatchRequest) -> std::result::Result<Batched, Fault> {
        let is_same = || self.removals.steps.lock().session() == session;
        let telling = self.backend.mutate::<Batch>(request);
        let ended = || Err(Fault::new(Code::SessionLost, "the session ended before the master had followed"));
        while_so(&self.removals.session_ended, is_same, telling).await.unwrap_or_else(ended)
    }

    async fn send(self: &Arc<Self>, session: u64, steps: Vec<Step>) {
        let request = BatchRequest { steps };
        let fault = match self.tell(session, &request).await {
            Ok(reply) => return self.followed(&request.steps, &reply.views),
            Err(fault) => fault,
        };
        if is_unknown(&fault) || request.steps.len() == 1 {
            return self.give_up(request.steps, &fault);
        }
        // None of them was executed: those before the one that is refused are.
        let mut steps = request.steps.into_iter();
        while let Some(step) = steps.next() {
            let request = BatchRequest { steps: vec![step] };
            match self.tell(session, &request).await {
                Ok(reply) => self.followed(&request.steps, &reply.views),
                Err(fault) => return self.give_up(request.steps.into_iter().chain(steps).collect(), &fault),
            }
        }
    }

    fn followed(self: &Arc<Self>, steps: &[Step], views: &[InodeView]) {
        let views: BTreeMap<Ino, &InodeView> = views.iter().map(|view| (view.attr.ino, view)).collect();
        let mut directories = BTreeSet::new();
        let mut entries = BTreeSet::new();
        for (ino, count) in touched(steps) {
            let inode = self.table.get(ino);
            let mut state = inode.state.lock();
            state.unfollowed -= count;
            if let Some(view) = views.get(&ino) {
                state.not_durable_yet(view);
                state.see(view);
            }
            self.note(ino, &mut state);
            if state.unfollowed == 0 && std::mem::take(&mut state.outdated) {
                drop(state);
                self.distrust(&inode);
            }
        }
        for Step::Unlink { request, ino, .. } in steps {
            directories.insert(request.parent);
            entries.insert(*ino);
        }
        for ino in &entries {
            if views.get(ino).is_none_or(|view| view.attr.nlink == 0) {
                self.removed(&self.table.get(*ino));
            }
        }
        for ino in directories.difference(&entries) {
            self.lower_later(&self.table.get(*ino));
        }
        self.settled(steps.len());
    }

    /// Neither these nor those behind them reach the master, or nobody knows whether they did.
    fn give_up(self: &Arc<Self>, mut steps: Vec<Step>, fault: &Fault) {
        let taken = steps.len();
        steps.extend(self.removals.steps.lock().fail());
        tracing::error!(%fault, names = steps.len(), taken, "names that were removed here may still exist");
        for (ino, count) in touched(&steps) {
            let inode = self.table.get(ino);
            let mut state = inode.state.lock();
            state.unfollowed -= count;
            state.outdated = false;
            state.owes_error = state.kind() == Some(Kind::Directory);
            self.note(ino, &mut state);
        }
        for Step::Unlink { ino, .. } in &steps {
            self.may_be_removed(&self.table.get(*ino));
        }
        let errno = if fault.code == Code::NoSpace { libc::ENOSPC } else { libc::EIO };
        let directories: BTreeSet<Ino> =
            steps.iter().map(|Step::Unlink { request, .. }| request.parent).collect();
        for ino in directories {
            let directory = self.table.get(ino);
            self.distrust(&directory);
            let told = format!("names removed in directory {ino} may still exist: {fault}");
            self.note_error(&directory, FsError::new(errno, told));
        }
        self.removals.steps.lock().failed(steps.len());
        self.removals.settled.notify_waiters();
    }

    /// The leases ended with the session, and what it allowed must not happen in the next: others may have changed the
    /// files meanwhile.
    pub(super) fn end_removals(self: &Arc<Self>) {
        let waiting = self.removals.steps.lock().end_session();
        self.removals.session_ended.notify_waiters();
        if !waiting.is_empty() {
            let fault = Fault::new(Code::SessionLost, "the session ended before the master was told");
            self.give_up(waiting, &fault);
        }
    }

    fn settled(&self, count: usize) {
        self.removals.steps.lock().settle(count);
        self.removals.settled.notify_waiters();
    }

    /// Waits until the master has followed all that was removed here before. An error: some of it was given up meanwhile.
    pub(super) async fn catch_up(&self) -> Result<()> {
        let (mark, failures) = {
            let steps = self.removals.steps.lock();
            (steps.mark(), steps.failures())
        };
        loop {
            let mut settled = std::pin::pin!(self.removals.settled.notified());
            settled.as_mut().enable();
            {
                let steps = self.removals.steps.lock();
                if steps.is_settled(mark) {
                    let followed = steps.failures() == failures;
                    let lost = || FsError::new(libc::EIO, "names that were removed before may still exist");
                    return if followed { Ok(()) } else { Err(lost()) };
                }
            }
            self.removals.urgent.notify_one();
            settled.await;
        }
    }

    /// The same as far as this inode was changed. What was given up is then read anew, and its fsync tells.
    pub(super) async fn catch_up_on(&self, inode: &Inode) {
        if inode.state.lock().unfollowed > 0 {
            let _ = self.catch_up().await;
        }
    }

    /// Counts a removal that the master is asked for. After many of them, gets the leases to make those that follow
    /// here; true if it got them.
    pub(super) async fn own_many(&self, within: &Arc<Inode>, inode: &Arc<Inode>, name: &Name) -> bool {
        let many = i64::from(self.limits.removals_in_a_row);
        let unwanted = || self.removals.streak.store(-PENALTY * many, Ordering::Relaxed);
        if self.removals.streak.fetch_add(1, Ordering::Relaxed) < many {
            return false;
        }
        let _one = within.acquiring.lock().await;
        let owned = |inode: &Inode| inode.state.lock().is_exclusive();
        if owned(within) && owned(inode) {
            return true;
        }
        let Some(also) = self.wanted(within, inode, name) else { return false };
        // The kernel holds the directory's lock meanwhile.
        let _busy = Busy::new(within);
        let reply = self.backend.query::<Own>(&OwnRequest { directory: within.ino, also }).await;
        let views = match reply {
            Ok(owned) => owned.also.into_iter().chain([owned.directory]),
            Err(fault) => {
                tracing::debug!(ino = %within.ino, %fault, "the directory cannot be owned");
                unwanted();
                return false;
            }
        };
        for view in views {
            let of = self.table.get(view.attr.ino);
            let exclusive = {
                let mut state = of.state.lock();
                state.see(&view);
                state.is_exclusive()
            };
            if exclusive {
                self.lower_later(&of);
            }
        }
        let all = owned(within) && owned(inode);
        if !all {
            // Somebody else uses them.
            unwanted();
        }
        all
    }

    /// What is to be owned besides the directory: this inode and those whose names follow. None: it would not help.
    fn wanted(&self, within: &Arc<Inode>, inode: &Arc<Inode>, name: &Name) -> Option<Vec<Ino>> {
        let is_unused = |state: &State| state.open == 0 && !state.is_dirty() && !state.gave_up;
        {
            let state = inode.state.lock();
            if state.kind() != Some(Kind::Directory) && !is_unused(&state) {
                return None;
            }
        }
        let next: Vec<Ino> = {
            let state = within.state.lock();
            let contended = state.hot_until.is_some_and(|until| until > Instant::now());
            if contended || !self.is_valid(&state) || state.gate.is_closed() || state.busy > 0 {
                return None;
            }
            state.directory.named_from(name, MAX_LOOKED_AT).collect()
        };
        let wanted = |ino: &Ino| {
            let known = self.table.find(*ino).filter(|known| known.ino != inode.ino);
            known.is_some_and(|known| {
                let state = known.state.lock();
                !state.is_exclusive() && is_unused(&state)
            })
        };
        let also = next.into_iter().filter(wanted).take(MAX_OWNED - 1);
        // A file may have several names here.
        let also: BTreeSet<Ino> = also.chain([inode.ino]).collect();
        Some(also.into_iter().collect())
    }
}

/// Two inodes at once, in the order of their numbers.
fn both<'a>(one: &'a Inode, other: &'a Inode) -> (MutexGuard<'a, State>, MutexGuard<'a, State>) {
    if one.ino < other.ino {
        let first = one.state.lock();
        (first, other.state.lock())
    } else {
        let first = other.state.lock();
        (one.state.lock(), first)
    }
}

/// Nothing but a name goes: it is what the caller thinks it is, empty and unused.
fn is_removable(state: &State, directory: bool) -> bool {
    match state.kind() {
        Some(Kind::Directory) => directory && state.size() == 0,
        Some(_) => !directory && state.open == 0 && !state.is_dirty() && !state.gave_up,
        None => false,
    }
}

/// How many of the steps change each inode.
fn touched(steps: &[Step]) -> BTreeMap<Ino, u32> {
    let mut touched = BTreeMap::new();
    for Step::Unlink { request, ino, .. } in steps {
        *touched.entry(request.parent).or_default() += 1;
        *touched.entry(*ino).or_default() += 1;
    }
    touched
}
