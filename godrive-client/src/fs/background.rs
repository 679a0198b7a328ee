//! What goes on without being asked: flushes, commits, reports of closed orphans, eviction.

use super::flush::Level;
use super::inode::Inode;
use super::losses::collect_regression;
use super::mutate::is_unknown;
use super::types::{Invalidation, Unflushed};
use super::{Backend, Fs};
use crate::core::gate::EVERYTHING;
use crate::error::FsError;
use godrive_proto::Ino;
use godrive_proto::lease::{Mode, ReleaseRequest, Releases};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// How often the background looks while something is dirty.
const TICK: Duration = Duration::from_millis(200);
/// What is older than this is flushed and committed.
const OLD: Duration = Duration::from_millis(700);
/// Tries of a flush whose file nobody has open, before its data is given up.
const MAX_TRIES: u32 = 3;
const MAX_ORPHANS: usize = 1024;
const MAX_EVICTED: usize = 8192;

pub(super) async fn run<B: Backend>(fs: Weak<Fs<B>>) {
    let mut reported = Instant::now();
    loop {
        let Some(strong) = fs.upgrade() else { return };
        if strong.stopped.load(Ordering::Relaxed) {
            return;
        }
        strong.start_ready();
        strong.start_old();
        strong.lower_idle();
        strong.start_telling();
        // Many files are often removed one after the other: one report is enough for all of them.
        if reported.elapsed() >= TICK {
            reported = Instant::now();
            strong.report_orphans();
        }
        let crowded = strong.evict();
        let busy = crowded
            || !strong.dirty.lock().is_empty()
            || !strong.idle_owners.lock().is_empty()
            || !strong.orphans.lock().is_empty();
        let wake = async { strong.wake.notified().await };
        // The second case only lets this task end when the file system is dropped.
        let pause = if busy { TICK } else { Duration::from_secs(5) };
        let _ = tokio::time::timeout(pause, wake).await;
    }
}

/// False if it was opened again since its report was queued: its next close reports it.
fn begin_telling(inode: &Inode) -> bool {
    let mut state = inode.state.lock();
    state.told_open |= state.open > 0;
    state.telling_closed = state.open == 0;
    state.telling_closed
}

impl<B: Backend> Fs<B> {
    /// Asks the background to flush chunks.
    pub(super) fn request_flush(&self, inode: &Arc<Inode>, chunks: Vec<(u32, bool)>) {
        if chunks.is_empty() {
            return;
        }
        self.ready.lock().extend(chunks.into_iter().map(|(index, all)| (inode.clone(), index, all)));
        self.wake.notify_one();
    }

    fn start_ready(self: &Arc<Self>) {
        for (inode, index, all) in std::mem::take(&mut *self.ready.lock()) {
            let fs = self.clone();
            tokio::spawn(async move {
                let result = fs.flush_chunk(&inode, index, false, all).await;
                let more = {
                    let mut state = inode.state.lock();
                    state.flushing.remove(&index);
                    result.is_ok() && state.buffer.fills_a_delta(index) && state.flushing.insert(index)
                };
                if more {
                    fs.request_flush(&inode, vec![(index, all)]);
                }
                if let Err(error) = result
                    && matches!(error.errno, libc::ENOSPC | libc::EDQUOT)
                {
                    fs.note_error(&inode, error);
                }
            });
        }
    }

    /// Flushes what has been dirty for a while; everything, if writers wait for room.
    fn start_old(self: &Arc<Self>) {
        let full = self.dirty_bytes.load(Ordering::Relaxed) >= self.limits.write_buffer_bytes;
        let now = Instant::now();
        let inodes: Vec<Arc<Inode>> = self.dirty.lock().values().cloned().collect();
        for inode in inodes {
            let start = {
                let mut state = inode.state.lock();
                let is_old = state.dirty_since.is_some_and(|since| now.duration_since(since) >= OLD);
                let start = (full || is_old) && !state.flushing_all && !state.gate.is_closed();
                state.flushing_all |= start;
                start
            };
            if start {
                let fs = self.clone();
                tokio::spawn(async move { fs.flush_old(inode).await });
            }
        }
    }

    async fn flush_old(self: Arc<Self>, inode: Arc<Inode>) {
        let result = self.flush_inode(&inode, Level::Held, Mode::Exclusive).await;
        let give_up = {
            let mut state = inode.state.lock();
            state.flushing_all = false;
            state.flush_failures = if result.is_ok() { 0 } else { state.flush_failures + 1 };
            // Not before the next round; failures are logged where they happen.
            state.dirty_since = state.dirty_since.map(|_| Instant::now());
            state.open == 0 && state.flush_failures >= MAX_TRIES
        };
        self.settle_dirty(&inode);
        self.lower_unused(&inode);
        if let (Err(error), true) = (&result, give_up) {
            self.change(&inode, |state| state.lose_dirty());
            self.settle_dirty(&inode);
            self.invalidate_later(Invalidation::Pages(inode.ino, EVERYTHING));
            self.note_error(&inode, error.clone());
            self.tell_later(&inode);
        } else if let Err(error) = result {
            tracing::warn!(ino = %inode.ino, %error, "a background flush failed, it is tried again");
            self.freed.notify_waiters();
            if matches!(error.errno, libc::ENOSPC | libc::EDQUOT) {
                self.note_error(&inode, error);
            }
        }
    }

    /// Keeps an error for the next fsync or close of the inode.
    pub(super) fn note_error(&self, inode: &Arc<Inode>, error: FsError) {
        tracing::error!(ino = %inode.ino, %error, "data was not written; the next fsync or close reports it");
        let first = {
            self.change(inode, |state| {
                state.owes_error = false;
                state.error.replace(error).is_none()
            })
        };
        if first {
            self.stats.errors_after_close.add(1);
            self.uncollected.fetch_add(1, Ordering::Relaxed);
        }
        self.freed.notify_waiters();
    }

    pub(super) fn collected(&self) {
        self.uncollected.fetch_sub(1, Ordering::Relaxed);
    }

    /// The background tells the master that writes of this inode were given up, again and again until it knows.
    pub(super) fn tell_later(&self, inode: &Arc<Inode>) {
        if inode.state.lock().gave_up {
            self.given_up.lock().push(inode.clone());
            self.wake.notify_one();
        }
    }

    fn start_telling(self: &Arc<Self>) {
        for inode in std::mem::take(&mut *self.given_up.lock()) {
            let fs = self.clone();
            tokio::spawn(async move {
                let _no_other = inode.acquiring.lock().await;
                if let Err(error) = fs.tell_given_up(&inode).await {
                    tracing::warn!(ino = %inode.ino, %error, "the master is told again which writes were given up");
                    tokio::time::sleep(TICK).await;
                    fs.tell_later(&inode);
                }
            });
        }
    }

    fn report_orphans(self: &Arc<Self>) {
        let orphans = std::mem::take(&mut *self.orphans.lock());
        let inodes = orphans.into_iter().map(|ino| self.table.get(ino));
        let closed: Vec<Arc<Inode>> = inodes.filter(|inode| begin_telling(inode)).collect();
        for inodes in closed.chunks(MAX_ORPHANS).map(<[Arc<Inode>]>::to_vec) {
            let fs = self.clone();
            tokio::spawn(async move {
                let closed_orphans: Vec<Ino> = inodes.iter().map(|inode| inode.ino).collect();
                let request = ReleaseRequest { leases: Vec::new(), closed_orphans };
                let told = fs.backend.query::<Releases>(&request).await;
                // What was sent may still be executed: then whoever opens them goes on waiting.
                if told.as_ref().err().is_none_or(|fault| !is_unknown(fault)) {
                    for inode in &inodes {
                        inode.state.lock().telling_closed = false;
                        inode.changed.notify_waiters();
                    }
                }
                if let Err(fault) = told {
                    tracing::warn!(%fault, orphans = inodes.len(), "closed orphans were not reported, again later");
                    fs.orphans.lock().extend(request.closed_orphans);
                    fs.wake.notify_one();
                }
            });
        }
    }

    /// Forgets inodes that nobody has used lately, when there are too many of them or of their names. True: there are.
    fn evict(self: &Arc<Self>) -> bool {
        let too_many_names = self.names.load(Ordering::Relaxed) as usize > self.limits.max_names;
        if self.table.len() <= self.limits.max_inodes && !too_many_names {
            return false;
        }
        for inode in self.table.idle(MAX_EVICTED) {
            if inode.state.lock().directory.is_empty() {
                self.table.evict(&inode);
            } else {
                self.evict_names(inode);
            }
        }
        if too_many_names && !self.evicting.swap(true, Ordering::Relaxed) {
            self.evict_largest_directory();
        }
        true
    }

    /// The kernel may have the names of a directory that will not be known any longer, so it forgets them first,
    /// as if the lease were recalled.
    fn evict_names(self: &Arc<Self>, directory: Arc<Inode>) {
        let fs = self.clone();
        tokio::spawn(async move {
            fs.give_back(&directory, true, None).await;
            fs.table.evict(&directory);
            fs.evicting.store(false, Ordering::Relaxed);
        });
    }

    fn evict_largest_directory(self: &Arc<Self>) {
        let size = |inode: &Arc<Inode>| {
            let state = inode.state.lock();
            if state.gate.is_closed() { 0 } else { state.directory.len() }
        };
        match self.table.all().into_iter().max_by_key(size) {
            Some(largest) => self.evict_names(largest),
            None => self.evicting.store(false, Ordering::Relaxed),
        }
    }

    /// Flushes everything, closes the session; says what could not be flushed.
    pub async fn stop(self: &Arc<Self>) -> std::result::Result<(), Unflushed> {
        self.removals.close();
        // What was given up is an error of its directory, collected below.
        let _ = self.catch_up().await;
        let inodes: Vec<Arc<Inode>> = self.dirty.lock().values().cloned().collect();
        let tasks: Vec<_> = inodes
            .into_iter()
            .map(|inode| {
                let fs = self.clone();
                tokio::spawn(async move {
                    let result = fs.flush_inode(&inode, Level::Held, Mode::Shared).await;
                    let earlier = inode.state.lock().error.clone();
                    result.err().or(earlier).map(|error| (inode.ino, error.context))
                })
            })
            .collect();
        let mut unflushed = Vec::new();
        for task in tasks {
            match task.await {
                Ok(failed) => unflushed.extend(failed),
                Err(error) => unflushed.push((Ino(0), format!("a flush broke off: {error}"))),
            }
        }
        for inode in self.table.all() {
            let regression = collect_regression(&inode).err();
            if let Some(error) = inode.state.lock().error.take().or(regression)
                && !unflushed.iter().any(|(ino, _)| *ino == inode.ino)
            {
                unflushed.push((inode.ino, error.context));
            }
        }
        self.stopped.store(true, Ordering::Relaxed);
        self.wake.notify_one();
        self.tell_accesses().await;
        self.backend.stop().await;
        if unflushed.is_empty() { Ok(()) } else { Err(Unflushed(unflushed)) }
    }
}
