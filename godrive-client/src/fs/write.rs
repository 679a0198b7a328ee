//! Writing: into the buffer, under the exclusive lease, into chunks that are open.

use super::inode::{Inode, State};
use super::lease::Step;
use super::table::OpenFile;
use super::types::{Handle, Served};
use super::{Backend, Fs};
use crate::core::attrs::{touch_contents, without_privileges};
use crate::core::read_plan::spans;
use crate::core::write_buffer::Rotten;
use crate::error::{FsError, Result};
use bytes::Bytes;
use godrive_proto::lease::Mode;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Chunks that are opened at once when a stream reaches a new one.
const OPEN_AHEAD: u32 = 4;

/// Where a write goes.
#[derive(Clone, Copy)]
pub(super) enum Place {
    At(u64),
    Append,
}

impl OpenFile {
    fn place(&self, offset: u64) -> Place {
        if self.append { Place::Append } else { Place::At(offset) }
    }
}

/// What a write did.
struct Buffered {
    len: u32,
    /// Chunks that have enough for a delta, or (true) that the stream has left.
    ready: Vec<(u32, bool)>,
}

impl<B: Backend> Fs<B> {
    pub fn try_write(
        &self,
        handle: Handle,
        offset: u64,
        data: &Bytes,
        kill_privileges: bool,
    ) -> Option<Result<Served<u32>>> {
        if handle.is_sync() {
            return None;
        }
        self.try_put(handle, data, kill_privileges, |file| file.place(offset))
    }

    pub async fn write(
        self: &Arc<Self>,
        handle: Handle,
        offset: u64,
        data: Bytes,
        kill_privileges: bool,
    ) -> Result<Served<u32>> {
        let served = self.put(handle, data, kill_privileges, |file| file.place(offset)).await?;
        if served.value == 0 || !handle.is_sync() {
            return Ok(served);
        }
        // The pass would hold back a recall that the flush may have to wait for.
        let Served { value, pass } = served;
        drop(pass);
        self.fsync(handle, true).await?;
        Ok(Served { value, pass: Default::default() })
    }

    /// The kernel writes a mapped page back. It goes where it was read from, also through a handle that appends; and it is not made
    /// stable, also through a handle that syncs: the kernel takes any that can write, and asks for that itself (msync, fsync).
    pub fn try_write_back(&self, handle: Handle, offset: u64, data: &Bytes) -> Option<Result<Served<u32>>> {
        self.try_put(handle, data, false, |_| Place::At(offset))
    }

    /// See [`Self::try_write_back`].
    pub async fn write_back(
        self: &Arc<Self>,
        handle: Handle,
        offset: u64,
        data: Bytes,
    ) -> Result<Served<u32>> {
        self.put(handle, data, false, |_| Place::At(offset)).await
    }

    fn try_put(
        &self,
        handle: Handle,
        data: &Bytes,
        kill_privileges: bool,
        place: impl FnOnce(&OpenFile) -> Place,
    ) -> Option<Result<Served<u32>>> {
        let file = match self.writable(handle) {
            Ok(file) => file,
            Err(error) => return Some(Err(error)),
        };
        if data.is_empty() || self.dirty_bytes.load(Ordering::Relaxed) >= self.limits.write_buffer_bytes {
            return None;
        }
        let place = place(&file);
        let inode = &file.inode;
        let _content = inode.content.try_read().ok()?;
        let range = kernel_pages(place, data.len());
        let done = self.try_under(inode, Mode::Exclusive, range, |state| {
            self.buffer(state, place, data, kill_privileges)
        })?;
        Some(done.map(|(buffered, pass)| {
            self.request_flush(inode, buffered.ready);
            Served { value: buffered.len, pass }
        }))
    }

    async fn put(
        self: &Arc<Self>,
        handle: Handle,
        data: Bytes,
        kill_privileges: bool,
        place: impl FnOnce(&OpenFile) -> Place,
    ) -> Result<Served<u32>> {
        let file = self.writable(handle)?;
        if data.is_empty() {
            return Ok(Served { value: 0, pass: Default::default() });
        }
        let place = place(&file);
        self.write_to(&file.inode, place, &data, kill_privileges).await
    }

    pub(super) async fn write_to(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        place: Place,
        data: &Bytes,
        kill_privileges: bool,
    ) -> Result<Served<u32>> {
        self.reserve(inode).await?;
        let _content = self.within("waiting for a truncation", inode.content.read()).await?;
        let range = kernel_pages(place, data.len());
        let (buffered, pass) = self
            .under(inode, Mode::Exclusive, range, |state| self.buffer(state, place, data, kill_privileges))
            .await?;
        self.request_flush(inode, buffered.ready);
        Ok(Served { value: buffered.len, pass })
    }

    fn writable(&self, handle: Handle) -> Result<Arc<OpenFile>> {
        let file = self.sound(handle)?;
        if !file.writable {
            return Err(FsError::bare(libc::EBADF));
        }
        Ok(file)
    }

    /// Buffers the bytes; under the lock, so that appends are atomic.
    fn buffer(&self, state: &mut State, place: Place, data: &Bytes, kill: bool) -> Result<Step<Buffered>> {
        // An error of the background that says "full" is told to the writer, not only to who closes.
        if let Some(error) = &state.error
            && matches!(error.errno, libc::ENOSPC | libc::EDQUOT)
        {
            return Err(error.clone());
        }
        let Some(attr) = &state.attr else {
            return Err(FsError::new(libc::EIO, "a lease without attributes"));
        };
        let (size, chunk_bytes) = (attr.size, attr.chunk_bytes);
        let start = match place {
            Place::At(offset) => offset,
            Place::Append => size,
        };
        let range = writable_range(start, data.len(), state.max_bytes())?;
        if range.end > size && state.must_trim() {
            return Ok(Step::Trim);
        }
        if let Some(open) = to_open(state, &range, chunk_bytes) {
            return Ok(open);
        }
        let mut ready = Vec::new();
        for span in spans(range.clone(), chunk_bytes) {
            let Some(slot) = state.slots.get(&span.index) else {
                return Err(FsError::new(libc::EIO, "a chunk that was open is gone"));
            };
            let from =
                (u64::from(span.index) * u64::from(chunk_bytes) + u64::from(span.start) - start) as usize;
            let bytes = data.slice(from..from + span.len() as usize);
            state.buffer.write(span.index, slot.layout.chunk.id, span.start, &bytes).map_err(rotten)?;
            let left = span.end == chunk_bytes && span.start > 0;
            if (left || state.buffer.fills_a_delta(span.index)) && state.flushing.insert(span.index) {
                ready.push((span.index, left));
            }
        }
        let wall = self.backend.wall();
        // Behind such a write the kernel knows the length; an append it puts where it believes the end to be.
        state.grown &= range.end <= state.size() || matches!(place, Place::Append);
        self.written(state, range.end, wall, kill);
        Ok(Step::Done(Buffered { len: (range.end - range.start) as u32, ready }))
    }

    pub(super) fn written(
        &self,
        state: &mut State,
        end: u64,
        wall: godrive_proto::time::Timestamp,
        kill: bool,
    ) {
        let Some(attr) = &mut state.attr else { return };
        if end > attr.size {
            attr.size = end;
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
    }

    /// Zeros in a range that lies within chunks that exist. Where there is no chunk, there are zeros already.
    pub(super) async fn zero(self: &Arc<Self>, inode: &Arc<Inode>, range: Range<u64>) -> Result<()> {
        let _content = self.within("waiting for a truncation", inode.content.read()).await?;
        self.under(inode, Mode::Exclusive, crate::core::gate::NO_LOCKED_PAGES, |state| {
            let range = range.start..range.end.min(state.size());
            let chunk_bytes = state.chunk_bytes();
            for span in spans(range.clone(), chunk_bytes) {
                if let Some(window) = state.unknown_window(span.index) {
                    return Ok(Step::Window(window));
                }
                if state.slots.get(&span.index).is_some_and(|slot| !slot.opened) {
                    return Ok(Step::Open(vec![span.index], 1));
                }
            }
            for span in spans(range, chunk_bytes) {
                if let Some(slot) = state.slots.get(&span.index) {
                    let chunk = slot.layout.chunk.id;
                    state.buffer.punch(span.index, chunk, span.start, span.len()).map_err(rotten)?;
                }
            }
            let wall = self.backend.wall();
            self.written(state, 0, wall, false);
            Ok(Step::Done(()))
        })
        .await?;
        Ok(())
    }

    /// Waits until the write buffer has room.
    async fn reserve(self: &Arc<Self>, inode: &Arc<Inode>) -> Result<()> {
        let wait = async {
            loop {
                let freed = self.freed.notified();
                tokio::pin!(freed);
                freed.as_mut().enable();
                if self.dirty_bytes.load(Ordering::Relaxed) < self.limits.write_buffer_bytes {
                    return Ok(());
                }
                if let Some(error) = &inode.state.lock().error {
                    return Err(error.clone());
                }
                self.wake.notify_one();
                freed.await;
            }
        };
        self.within("waiting for room in the write buffer", wait).await?
    }
}

/// The pages that the kernel has locked for a write. A file opened for appending bypasses them.
fn kernel_pages(place: Place, len: usize) -> Range<u64> {
    match place {
        Place::At(offset) => offset..offset.saturating_add(len as u64),
        Place::Append => crate::core::gate::NO_LOCKED_PAGES,
    }
}

fn writable_range(start: u64, len: usize, max: u64) -> Result<Range<u64>> {
    if start >= max {
        return Err(FsError::bare(libc::EFBIG));
    }
    Ok(start..start.saturating_add(len as u64).min(max))
}

/// The chunks of a range that are not open for writing; where a stream reaches a new chunk, some more.
fn to_open<T>(state: &State, range: &Range<u64>, chunk_bytes: u32) -> Option<Step<T>> {
    let is_open = |index: &u32| state.slots.get(index).is_some_and(|slot| slot.opened);
    let mut closed: Vec<u32> =
        spans(range.clone(), chunk_bytes).map(|span| span.index).filter(|index| !is_open(index)).collect();
    let last = *closed.last()?;
    let needed = closed.len();
    let first = closed[0];
    if first > 0 && is_open(&(first - 1)) {
        // The last of all chunks has the highest number there is.
        let ahead = last.saturating_add(1)..last.saturating_add(OPEN_AHEAD);
        closed.extend(ahead.filter(|index| !is_open(index)));
    }
    Some(Step::Open(closed, needed))
}

pub(super) fn rotten(error: Rotten) -> FsError {
    FsError::new(libc::EIO, error.to_string())
}
