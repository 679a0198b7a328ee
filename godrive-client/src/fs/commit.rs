//! Telling the master what the replicas hold, and what this mount has changed of the attributes. A commit may give the exclusive
//! lease back.

use super::inode::{Flushed, Inode};
use super::mutate::is_unknown;
use super::{Backend, Fs};
use crate::core::attrs::Pending;
use crate::error::{FsError, Result};
use godrive_proto::data::ChunkState;
use godrive_proto::ids::{Epoch, Version};
use godrive_proto::lease::{Mode, OpenChunks, OpenChunksRequest};
use godrive_proto::meta::{Barrier, Commit, CommitRequest, GetAttr, InodeView};
use godrive_proto::{Code, Fault};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Tries of a commit whose chunks get new epochs meanwhile.
const MAX_COMMITS: u32 = 8;
/// Chunks of one commit. A file that was written for long without an fsync may have to tell of more, after a loss of the master's power.
const MAX_CHUNKS_TOLD: usize = 4096;

impl<B: Backend> Fs<B> {
    /// Tells the master what the replicas hold, as far as everything was `flushed`. More chunks than one commit takes
    /// are told first, in commits of their own.
    pub(super) async fn commit(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        sync: bool,
        keeps: Mode,
        mut flushed: Flushed,
    ) -> Result<()> {
        let mut attempts = 0;
        loop {
            flushed.trims = self.flush_cut(inode, sync, flushed.trims).await?;
            // Lowering the lease is in order with requests for it. It never waits for one: that may wait for a recall.
            let lowering = if keeps == Mode::Shared { inode.acquiring.try_lock().ok() } else { None };
            let keeps = if lowering.is_some() { Mode::Shared } else { Mode::Exclusive };
            let Some((request, taken)) = self.take_commit(inode, sync, keeps, flushed)? else {
                let (unsynced, answered_early) = {
                    let state = inode.state.lock();
                    (state.is_unsynced(), state.answered_early)
                };
                if sync && unsynced {
                    self.backend.query::<Barrier>(&()).await?;
                    let mut state = inode.state.lock();
                    state.synced = state.synced.max(answered_early);
                }
                return Ok(());
            };
            self.stats.commits.add(1);
            match self.backend.mutate::<Commit>(&request).await {
                Ok(reply) => {
                    self.committed(inode, &request, &taken, &reply.view);
                    if taken.is_last {
                        return Ok(());
                    }
                }
                Err(fault) if fault.code == Code::NoLease && taken.again && attempts <= MAX_COMMITS => {
                    attempts += 1;
                    self.was_committed(inode, request, taken).await?;
                }
                Err(fault) => {
                    attempts += 1;
                    self.not_committed(inode, &fault, taken);
                    drop(lowering);
                    match fault.code {
                        _ if attempts > MAX_COMMITS => return Err(fault.into()),
                        Code::WrongEpoch => self.renew_layouts(inode).await,
                        Code::Busy => self.cut_untold(inode).await?,
                        _ => return Err(fault.into()),
                    }
                }
            }
        }
    }

    /// The master does not let the file grow, as what was cut off may be there again: a loss of power of which this mount has not heard.
    /// What it has written behind the master's end without an fsync may be lost with that, and is cut off with it.
    async fn cut_untold(&self, inode: &Arc<Inode>) -> Result<()> {
        // With its power it may have lost lengths that it had answered.
        let view = self.backend.query::<GetAttr>(&inode.ino).await?;
        self.change(inode, |state| state.see(&view));
        let (index, is_ready, generation, cuts) = {
            let state = inode.state.lock();
            let (index, from) = state.told_end();
            let is_ready = from == 0 || state.slots.get(&index).is_some_and(|slot| slot.opened);
            (index, is_ready, state.generation, state.cuts)
        };
        let mut layouts = Vec::new();
        if !is_ready {
            let request = OpenChunksRequest { ino: inode.ino, indexes: vec![index] };
            layouts = self.backend.query::<OpenChunks>(&request).await?;
            self.backend.meet(&layouts);
        }
        let is_cut = self.change(inode, |state| {
            if (state.generation, state.cuts) != (generation, cuts) || !state.is_exclusive() {
                return false;
            }
            for layout in layouts {
                state.place(layout, true, || self.new_tag());
            }
            state.regressed = Some(index);
            state.cut_again() || state.cut_between_chunks()
        });
        let lost =
            || FsError::new(libc::EIO, format!("inode {} cannot be trimmed before it grows", inode.ino));
        if is_cut { Ok(()) } else { Err(lost()) }
    }

    /// Flushes what was cut off again since there were so many trims; how many there are now.
    async fn flush_cut(self: &Arc<Self>, inode: &Arc<Inode>, sync: bool, trims: u64) -> Result<u64> {
        let (indexes, now) = {
            let state = inode.state.lock();
            if state.trims == trims {
                return Ok(trims);
            }
            // The master may have been told of a longer file since: the hole may lie in any of them.
            (state.buffer.indexes().collect(), state.trims)
        };
        self.flush_chunks(inode, indexes, sync).await?;
        Ok(now)
    }

    fn committed(&self, inode: &Arc<Inode>, request: &CommitRequest, taken: &TakenCommit, view: &InodeView) {
        self.change(inode, |state| {
            state.lease.answered(view.lease.as_ref());
            if state.poison != taken.poison {
                return;
            }
            state.committing = Pending::default();
            state.committing_chunks = false;
            state.trimming &= !request.trimmed || state.trims > taken.trims;
            if request.sync {
                state.synced = state.synced.max(taken.answered_early);
            } else if taken.matters() || request.trimmed {
                state.not_durable_yet(view);
            }
            for chunk in &request.chunks {
                let slot = state.slots.get_mut(&chunk.index);
                if let Some(slot) = slot.filter(|slot| slot.layout.chunk.id == chunk.chunk) {
                    slot.is_new = false;
                    // An answer may come behind that to a later commit.
                    if slot.told.is_none_or(|told| order(&told) < order(chunk)) {
                        slot.told = Some(*chunk);
                    }
                }
            }
            if request.keeps == Mode::Shared {
                state.close_chunks();
            }
            state.see(view);
        });
        self.settle_dirty(inode);
    }

    /// The lease went back with a commit that was not answered, and that is why it is refused when it comes again.
    async fn was_committed(
        &self,
        inode: &Arc<Inode>,
        request: CommitRequest,
        taken: TakenCommit,
    ) -> Result<()> {
        match self.backend.query::<GetAttr>(&inode.ino).await {
            // Another master than that which had executed it: it may have been lost with that one's power.
            Ok(_) if self.restarts.load(Ordering::SeqCst) != taken.restarts => {
                let fault = Fault::new(Code::WrongTerm, "the master restarted meanwhile");
                self.not_committed(inode, &fault, taken);
                Ok(())
            }
            Ok(view) => {
                // Whether it was synced, nobody has heard.
                let request = CommitRequest { sync: false, ..request };
                self.committed(inode, &request, &taken, &view);
                Ok(())
            }
            Err(fault) => {
                self.not_committed(inode, &fault, taken);
                Err(fault.into())
            }
        }
    }

    fn not_committed(&self, inode: &Arc<Inode>, fault: &Fault, taken: TakenCommit) {
        let generation = self.change(inode, |state| {
            state.lease.answered(None);
            if state.poison == taken.poison {
                state.committing = Pending::default();
                state.committing_chunks = false;
                state.pending.merge(taken.pending);
                for (index, chunk) in taken.chunks {
                    let known = state.chunks.entry(index).or_insert(chunk);
                    // What the master lost was put there meanwhile.
                    if order(known) < order(&chunk) {
                        *known = chunk;
                    }
                }
                match taken.lowered {
                    true if is_unknown(fault) => state.close_chunks(),
                    true if !taken.again => state.lease.restore(),
                    _ => {}
                }
            }
            state.generation
        });
        if matches!(fault.code, Code::NoLease | Code::SessionLost | Code::Stale | Code::NotFound) {
            self.lease_denied(inode, generation);
        }
    }

    fn take_commit(
        &self,
        inode: &Arc<Inode>,
        sync: bool,
        keeps: Mode,
        flushed: Flushed,
    ) -> Result<Option<(CommitRequest, TakenCommit)>> {
        let mut state = inode.state.lock();
        if !state.has_commit() {
            return Ok(None);
        }
        let again = !state.is_exclusive();
        if state.mode().is_none() {
            return Err(FsError::new(
                libc::EIO,
                "there is something to commit, but the exclusive lease is gone",
            ));
        }
        let Some(attr) = state.attr.clone() else {
            return Err(FsError::new(libc::EIO, "there is something to commit, but no attributes are known"));
        };
        let later = match state.chunks.keys().nth(MAX_CHUNKS_TOLD).copied() {
            Some(next) => state.chunks.split_off(&next),
            None => BTreeMap::new(),
        };
        // What was cut off again just now comes before the length: behind it, it would be inside the file.
        let is_cut = !state.trimming || state.trims == flushed.trims;
        let is_last = later.is_empty() && is_cut;
        let chunks = std::mem::replace(&mut state.chunks, later);
        // The new length waits for the last chunk.
        let pending = if is_last { std::mem::take(&mut state.pending) } else { Pending::default() };
        let has_new = state.has_new(&chunks);
        let committed = attr.size.min(flushed.size);
        // Written since the flush began: that length is not backed by replicas yet.
        state.pending.size |= pending.size && attr.size > committed;
        state.committing = pending;
        let trimmed = state.trimming && is_last;
        // Removals of its names that the master has not followed need the exclusive lease too, and so does a trim.
        let done = trimmed == state.trimming
            && state.buffer.is_empty()
            && !state.pending.any()
            && !state.gave_up
            && state.unfollowed == 0;
        let keeps = if done && is_last { keeps } else { Mode::Exclusive };
        let request = CommitRequest {
            ino: inode.ino,
            size: pending.size.then_some(committed),
            changes: pending.changes(&attr),
            chunks: chunks.values().copied().collect(),
            trimmed,
            sync,
            keeps,
        };
        // From here on new writes ask for the lease again: when the master has lowered it, readers trust it.
        let lowered = keeps == Mode::Shared;
        if lowered {
            state.lease.begin_lowering();
        }
        state.committing_chunks = true;
        let (poison, answered_early) = (state.poison, state.answered_early);
        let restarts = self.restarts.load(Ordering::SeqCst);
        let taken = TakenCommit {
            trims: flushed.trims,
            pending,
            chunks,
            is_last,
            has_new,
            lowered,
            again,
            restarts,
            poison,
            answered_early,
        };
        Ok(Some((request, taken)))
    }

    /// The inode leaves the list of dirty ones if nothing is left to do.
    pub(super) fn settle_dirty(&self, inode: &Arc<Inode>) {
        let mut state = inode.state.lock();
        if state.is_dirty() {
            // What was written since begins a new second.
            state.dirty_since = Some(tokio::time::Instant::now());
        } else {
            state.dirty_since = None;
            self.dirty.lock().remove(&inode.ino);
        }
    }

    /// A commit that gave the lease back and was not answered is made again, under the inode's order lock. To ask for the lease before
    /// that could mean to wait for a recall that waits for this commit.
    pub(super) async fn settle_lowering(self: &Arc<Self>, inode: &Arc<Inode>) -> Result<()> {
        let (lowered, flushed) = {
            let state = inode.state.lock();
            (state.has_commit() && !state.is_exclusive(), state.to_flush())
        };
        if lowered { self.commit(inode, false, Mode::Exclusive, flushed).await } else { Ok(()) }
    }
}

/// What was said of one chunk, earlier or later.
fn order(said: &ChunkState) -> (Epoch, Version, bool) {
    (said.epoch, said.held.version, said.stable)
}

/// What a commit on its way has taken out of the state.
struct TakenCommit {
    trims: u64,
    pending: Pending,
    chunks: BTreeMap<u32, ChunkState>,
    /// Nothing was left for another one, but what came meanwhile.
    is_last: bool,
    /// First versions are among them.
    has_new: bool,
    lowered: bool,
    /// One that gave the lease back was sent before, and not answered.
    again: bool,
    /// Restarts of the master that this mount had seen when the commit was sent.
    restarts: u64,
    poison: u64,
    /// As it was when the commit was sent: what is answered later, its sync does not cover.
    answered_early: u64,
}

impl TakenCommit {
    /// Something that an fsync owes to the master's stable storage.
    fn matters(&self) -> bool {
        self.has_new || self.pending.size || self.pending.is_set()
    }
}
