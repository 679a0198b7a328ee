//! From the buffer to the slaves: close, fsync, and the deltas that they send.

use super::config::CloseMode;
use super::inode::{Alone, Inode, State};
use super::lease::while_held;
use super::losses::{collect_loss, collect_regression};
use super::types::Handle;
use super::{Backend, Fs, MAX_CHUNKS};
use crate::driver::Delta;
use crate::error::{FsError, Result};
use godrive_proto::data::{ChunkState, Layout};
use godrive_proto::lease::Mode;
use godrive_proto::time::Timestamp;
use godrive_proto::{Code, Fault};
use std::ops::Range;
use std::sync::Arc;
use tokio::task::JoinSet;

/// What is written in one piece of so many bytes is a stream.
const STREAM_BYTES: u32 = 1 << 20;
/// How far a flush goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Held,
    Stable { datasync: bool },
}

impl Level {
    fn is_stable(self) -> bool {
        self != Self::Held
    }
}

impl<B: Backend> Fs<B> {
    /// At each close of a descriptor. None: there is something to flush.
    pub fn try_flush(&self, handle: Handle) -> Option<Result<()>> {
        let file = match self.sound(handle) {
            Ok(file) => file,
            Err(error) => return Some(Err(error)),
        };
        let state = file.inode.state.lock();
        let clean =
            !file.writable || (!state.is_dirty() && state.error.is_none() && state.regressed.is_none());
        clean.then_some(Ok(()))
    }

    pub async fn flush(self: &Arc<Self>, handle: Handle) -> Result<()> {
        let file = self.sound(handle)?;
        if !file.writable {
            return Ok(());
        }
        let inode = &file.inode;
        self.collect_error(inode)?;
        let keeps = {
            let state = inode.state.lock();
            if !state.is_dirty() || (state.removed && state.open == 1 && state.lease.is_sole()) {
                return Ok(());
            }
            if state.writers > 1 { Mode::Exclusive } else { Mode::Shared }
        };
        if self.limits.close == CloseMode::Queued {
            return Ok(()); // The background flushes within a second, and keeps what fails.
        }
        self.flush_inode(inode, Level::Held, keeps).await?;
        self.sound(handle).map(drop)
    }

    pub async fn fsync(self: &Arc<Self>, handle: Handle, datasync: bool) -> Result<()> {
        let file = self.sound(handle)?;
        self.catch_up_on(&file.inode).await;
        self.collect_error(&file.inode)?;
        let flushed = self.flush_inode(&file.inode, Level::Stable { datasync }, Mode::Exclusive).await;
        // Also with what failed: a loss is told once.
        collect_regression(&file.inode)?;
        flushed?;
        collect_loss(&file.inode)?;
        self.sound(handle).map(drop)
    }

    /// Everything written before this call is held (or stable), and the master knows what it must. Goes on to its end
    /// even if the caller goes away.
    pub(super) async fn flush_inode(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        level: Level,
        keeps: Mode,
    ) -> Result<()> {
        let (fs, inode) = (self.clone(), inode.clone());
        let task = tokio::spawn(async move {
            let _order = inode.order.lock().await;
            fs.flush_in_order(&inode, level, keeps).await
        });
        task.await.unwrap_or_else(|error| Err(FsError::new(libc::EIO, format!("a flush broke off: {error}"))))
    }

    /// The same under the inode's order lock.
    pub(super) async fn flush_in_order(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        level: Level,
        keeps: Mode,
    ) -> Result<()> {
        let poison = inode.state.lock().poison;
        // First, as the rest may have to ask for the lease.
        self.settle_lowering(inode).await?;
        let flushed = self.flush_stages(inode, level, keeps).await;
        if flushed.is_ok() && inode.state.lock().poison != poison {
            let lost = format!("inode {} lost data that was being flushed", inode.ino);
            return Err(FsError::new(libc::EIO, lost));
        }
        flushed
    }

    async fn flush_stages(self: &Arc<Self>, inode: &Arc<Inode>, level: Level, keeps: Mode) -> Result<()> {
        let (flushed, indexes) = {
            let state = inode.state.lock();
            (state.to_flush(), state.buffer.indexes().collect())
        };
        self.flush_chunks(inode, indexes, level.is_stable()).await?;
        if level.is_stable() {
            self.sync_unstable(inode).await?;
        }
        let sync = match level {
            Level::Held => false,
            Level::Stable { datasync } => {
                let state = inode.state.lock();
                let local = state.pending;
                let grown = local.size || state.trimming || state.has_new(&state.chunks);
                let sync = grown || state.is_unsynced() || (local.is_set() && !datasync);
                if !sync {
                    return Ok(()); // Versions and times reach the master within a second.
                }
                sync
            }
        };
        self.commit(inode, sync, keeps, flushed).await
    }

    /// Sends the dirty pieces of these chunks, several at a time. In a task of its own: a caller that goes away must not
    /// break off deltas, whose pieces would stay in flight for ever.
    pub(super) async fn flush_chunks(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        indexes: Vec<u32>,
        sync: bool,
    ) -> Result<()> {
        let broke_off = |error| Err(FsError::new(libc::EIO, format!("a delta broke off: {error}")));
        let (fs, inode) = (self.clone(), inode.clone());
        let all = tokio::spawn(async move {
            let mut indexes = indexes.into_iter();
            let mut tasks = JoinSet::new();
            let mut result = Ok(());
            loop {
                // After an error no more are begun: each may take until its deadline.
                while tasks.len() < MAX_CHUNKS && result.is_ok() {
                    let Some(index) = indexes.next() else { break };
                    let (fs, inode) = (fs.clone(), inode.clone());
                    tasks.spawn(async move { fs.flush_chunk(&inode, index, sync, true).await });
                }
                let Some(ended) = tasks.join_next().await else { return result };
                result = result.and(ended.unwrap_or_else(broke_off));
            }
        });
        all.await.unwrap_or_else(broke_off)
    }

    /// Sends the dirty pieces of one chunk, one delta after the other: all that are dirty now, or as long as they fill a delta.
    pub(super) async fn flush_chunk(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        index: u32,
        sync: bool,
        all: bool,
    ) -> Result<()> {
        // Without a slot it was cut off, or lost with the session.
        while let Some(alone) = inode.alone(index).await {
            self.flush_pass(inode, index, sync, all, &alone).await?;
            if inode.state.lock().slot_under(index, &alone).is_some() {
                break;
            }
        }
        Ok(())
    }

    /// From the chunk's beginning to its end, once: what is written behind its back meanwhile is another one's, or somebody who goes on
    /// writing would keep it from ending.
    async fn flush_pass(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        index: u32,
        sync: bool,
        all: bool,
        alone: &Alone,
    ) -> Result<()> {
        let mut from = 0;
        loop {
            if !all && !inode.state.lock().buffer.fills_a_delta(index) {
                return Ok(());
            }
            let Some((mut layout, delta, under)) = self.take_delta(inode, index, sync, alone, &mut from)?
            else {
                return Ok(());
            };
            let Under { poison, generation } = under;
            self.stats.deltas.add(1);
            let writing = self.backend.write(&mut layout, delta);
            let result = while_held(inode, generation, writing).await.unwrap_or_else(|| {
                Err(Fault::new(Code::NoLease, "the lease was lost while a delta was under way"))
            });
            self.change(inode, |state| {
                let chunk = layout.chunk.id;
                let is_same = state.slots.get(&index).is_some_and(|slot| slot.layout.chunk.id == chunk);
                if state.poison != poison || !is_same {
                    return Ok(()); // Cut off, or given up with the session: who is told has been told.
                }
                match result {
                    Ok(applied) => {
                        if applied.stable {
                            layout.stable = layout.held;
                        }
                        let used_bytes = applied.used_bytes;
                        self.landed(state, index, layout, used_bytes);
                        Ok(())
                    }
                    Err(fault) => {
                        state.buffer.give_back(index).map_err(super::write::rotten)?;
                        if let Some(slot) = state.slots.get_mut(&index) {
                            // It may have been applied or not; the pages under the old tag are not trusted.
                            slot.tag = self.new_tag();
                        }
                        state.renew_layout(layout);
                        Err(FsError::from(fault))
                    }
                }
            })
            .inspect_err(|error| {
                tracing::warn!(ino = %inode.ino, chunk = index, %error, "a delta failed; its bytes stay buffered");
                self.freed.notify_waiters();
            })?;
        }
    }

    /// The next delta of a pass, which has come as far as `from`. None: nothing is dirty there, or the slot is another one by now.
    fn take_delta(
        &self,
        inode: &Arc<Inode>,
        index: u32,
        sync: bool,
        alone: &Alone,
        from: &mut u32,
    ) -> Result<Option<(Layout, Delta, Under)>> {
        let mut state = inode.state.lock();
        let Some(layout) = state.slot_under(index, alone).map(|slot| slot.layout.clone()) else {
            return Ok(None);
        };
        if !state.buffer.has(index) {
            return Ok(None);
        }
        if !state.is_exclusive() {
            // Somebody else may have written since: what is here must not go over it.
            let lost = format!("inode {} is dirty without its exclusive lease", inode.ino);
            return Err(FsError::new(libc::EIO, lost));
        }
        if state.buffer.is_in_flight(index) {
            // Nobody may take these bytes for held.
            let broken = format!("a delta of chunk {index} of inode {} has never ended", inode.ino);
            return Err(FsError::new(libc::EIO, broken));
        }
        let Some(taken) = state.buffer.take(index, *from) else { return Ok(None) };
        *from = taken.end;
        let mtime = state.attr.as_ref().map_or(Timestamp(0), |attr| attr.mtime);
        // A sync makes stable what came before it too.
        let sync = sync && taken.last;
        let delta = Delta { extents: taken.extents, sums: taken.sums, payload: taken.payload, mtime, sync };
        Ok(Some((layout, delta, Under { poison: state.poison, generation: state.generation })))
    }

    /// The delta in flight is held: its bytes become cached ones, at one moment for every reader.
    fn landed(&self, state: &mut State, index: u32, layout: Layout, used_bytes: u32) {
        let Some(slot) = state.slots.get_mut(&index) else { return };
        let mut runs: Vec<Range<u32>> = Vec::new();
        for (at, len, bytes) in state.buffer.in_flight(index) {
            match bytes {
                Some(bytes) => self.pages.insert(slot.tag, at, &bytes),
                None => self.pages.insert_hole(slot.tag, at, len),
            }
            match runs.last_mut() {
                Some(run) if run.end == at => run.end += len,
                _ => runs.push(at..at + len),
            }
        }
        // As with what a long stream has read.
        let is_stream = |run: &Range<u32>| self.limits.caller_caches && run.end - run.start >= STREAM_BYTES;
        for run in runs.into_iter().filter(is_stream) {
            self.pages.pass(slot.tag, run.start, run.end);
        }
        let chunk = ChunkState {
            index,
            chunk: layout.chunk.id,
            epoch: layout.epoch,
            held: layout.held,
            stable: layout.stable == layout.held,
            used_bytes,
        };
        state.renew_layout(layout);
        state.chunks.insert(index, chunk);
        state.buffer.landed(index);
    }
}

/// What covers a delta on its way: it counts only while neither has moved.
struct Under {
    poison: u64,
    generation: u64,
}
