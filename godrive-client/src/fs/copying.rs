//! copy_file_range: the slaves copy among themselves what they hold, so that the bytes do not pass this mount. What only
//! this mount has, and what is small, goes through its memory.

use super::inode::{Alone, Inode, State};
use super::lease::{Step, while_held};
use super::types::{Handle, Invalidation};
use super::write::{Place, rotten};
use super::{Backend, Fs};
use crate::core::gate::{NO_LOCKED_PAGES, NO_PAGES};
use crate::core::read_plan::spans;
use crate::driver::Copy;
use crate::error::{FsError, Result};
use bytes::{Bytes, BytesMut};
use godrive_proto::data::{Applied, ChunkState, Layout, Source};
use godrive_proto::lease::Mode;
use godrive_proto::limits::MAX_DELTA_BYTES;
use godrive_proto::time::Timestamp;
use godrive_proto::{Code, Fault, Ino, Version};
use std::sync::Arc;

/// Bytes that go through memory at a time.
const THROUGH_MEMORY: u64 = 1 << 20;

/// A piece of a copy: within one chunk of the source and one of the target.
#[derive(Clone, Copy, Debug)]
struct Piece {
    from: u64,
    to: u64,
    len: u64,
    /// The chunks, and where the piece begins in them.
    source: (u32, u32),
    target: (u32, u32),
}

/// The files of a copy.
struct Ends<'a> {
    source: &'a Arc<Inode>,
    target: &'a Arc<Inode>,
}

/// The target's chunk, and under what its copy was begun.
struct Begun {
    layout: Layout,
    generation: u64,
    poison: u64,
}

/// What the source has there.
enum Below {
    Hole,
    Chunk(Box<Layout>, u64),
    /// Not settled, or not known any longer.
    Unsettled,
}

impl<B: Backend> Fs<B> {
    /// Less than `len` at the end of the source, or where an error came behind what was copied.
    pub async fn copy_file_range(
        self: &Arc<Self>,
        from: Handle,
        from_offset: u64,
        to: Handle,
        to_offset: u64,
        len: u64,
    ) -> Result<u64> {
        let (source, target) = (self.sound(from)?, self.sound(to)?);
        self.read_by(&source);
        if !source.readable || !target.writable || target.append {
            return Err(FsError::bare(libc::EBADF));
        }
        let overlaps =
            from_offset < to_offset.saturating_add(len) && to_offset < from_offset.saturating_add(len);
        if source.inode.ino == target.inode.ino && overlaps {
            return Err(FsError::bare(libc::EINVAL));
        }
        // As it is now: a copy within a file may make it longer.
        let size =
            self.under(&source.inode, Mode::Shared, NO_PAGES, |state| Ok(Step::Done(state.size()))).await?.0;
        let len = len.min(size.saturating_sub(from_offset));
        let ends = Ends { source: &source.inode, target: &target.inode };
        let (mut done, mut failure) = (0, None);
        while done < len {
            match self.copy_piece(&ends, from_offset + done, to_offset + done, len - done).await {
                Ok(0) => break,
                Ok(copied) => done += copied,
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        if failure.is_none() && target.sync && done > 0 {
            failure = self.fsync(to, true).await.err();
            done = if failure.is_some() { 0 } else { done };
        }
        let Some(error) = failure else { return Ok(done) };
        // The kernel forgets only the pages that it is told were copied; others may have been.
        self.copied_beneath(target.inode.ino, to_offset, len);
        if done > 0 { Ok(done) } else { Err(error) }
    }

    /// The kernel has not been told, or not of all of it, that this was copied.
    pub fn copied_beneath(&self, ino: Ino, offset: u64, len: u64) {
        self.invalidate_later(Invalidation::Pages(ino, offset..offset.saturating_add(len)));
    }

    /// Copies the first piece of at most `len` bytes; 0 at the end of the source.
    async fn copy_piece(self: &Arc<Self>, ends: &Ends<'_>, from: u64, to: u64, len: u64) -> Result<u64> {
        let Some(piece) = self.next_piece(ends, from, to, len).await? else { return Ok(0) };
        let Ends { source, target } = *ends;
        if piece.len >= self.limits.min_slave_copy_bytes {
            match self.below(source, piece).await? {
                Below::Hole => {
                    self.zero(target, piece.to..piece.end()).await?;
                    self.reach(target, piece.end(), false).await?;
                    return Ok(piece.len);
                }
                Below::Chunk(..) => {
                    let piece = Piece { len: piece.len.min(MAX_DELTA_BYTES as u64), ..piece };
                    if self.copy_between(ends, piece).await? {
                        return Ok(piece.len);
                    }
                }
                Below::Unsettled => {}
            }
        }
        let end = piece.from + piece.len.min(THROUGH_MEMORY);
        let bytes = joined(&self.read_unlocked(source, piece.from..end).await?.value);
        if bytes.is_empty() {
            return Ok(0); // Truncated meanwhile.
        }
        Ok(u64::from(self.write_to(target, Place::At(piece.to), &bytes, false).await?.value))
    }

    async fn next_piece(
        self: &Arc<Self>,
        ends: &Ends<'_>,
        from: u64,
        to: u64,
        len: u64,
    ) -> Result<Option<Piece>> {
        let shape =
            |state: &mut State| Ok(Step::Done((state.size(), state.chunk_bytes(), state.max_bytes())));
        // The passes are given back at once: nothing is given to the kernel, and recalls would wait for them.
        let (size, source_bytes, _) = self.under(ends.source, Mode::Shared, NO_PAGES, shape).await?.0;
        let (_, target_bytes, max) =
            self.under(ends.target, Mode::Exclusive, NO_LOCKED_PAGES, shape).await?.0;
        if from >= size || len == 0 {
            return Ok(None);
        }
        if to >= max {
            return Err(FsError::bare(libc::EFBIG));
        }
        let len = len.min(size - from).min(max - to);
        let first = |at: u64, chunk_bytes: u32| spans(at..at + len, chunk_bytes).next();
        let (Some(within_source), Some(within_target)) = (first(from, source_bytes), first(to, target_bytes))
        else {
            return Err(FsError::new(libc::EIO, "a file without a chunk size"));
        };
        Ok(Some(Piece {
            from,
            to,
            len: u64::from(within_source.len().min(within_target.len())),
            source: (within_source.index, within_source.start),
            target: (within_target.index, within_target.start),
        }))
    }

    /// What lies under the piece, after what is dirty there was flushed.
    async fn below(self: &Arc<Self>, source: &Arc<Inode>, piece: Piece) -> Result<Below> {
        let index = piece.source.0;
        for flushed in [false, true] {
            let below = self
                .under(source, Mode::Shared, NO_PAGES, |state| {
                    Ok(match state.unknown_window(index) {
                        Some(window) => Step::Window(window),
                        None => Step::Done(look(state, index)),
                    })
                })
                .await?
                .0;
            if flushed || !matches!(below, Below::Unsettled) {
                return Ok(below);
            }
            self.flush_chunks(source, vec![index], false).await?;
        }
        Ok(Below::Unsettled)
    }

    /// Lets the slaves copy the piece. False: they cannot, and nothing has changed but times.
    ///
    /// Under the target's order lock, and with its times changed before anything is sent, so that whoever recalls the lease
    /// meanwhile flushes first, and the flush waits.
    async fn copy_between(self: &Arc<Self>, ends: &Ends<'_>, piece: Piece) -> Result<bool> {
        let Ends { source, target } = *ends;
        let (index, offset) = piece.target;
        let _content = self.within("waiting for a truncation", target.content.read()).await?;
        self.open_target(target, piece).await?;
        let _order = self.within("waiting for a flush", target.order.lock()).await?;
        let Some(alone) = target.alone(index).await else { return Ok(false) };
        let settled = {
            let state = source.state.lock();
            if self.is_valid(&state) { look(&state, piece.source.0) } else { Below::Unsettled }
        };
        let Below::Chunk(below, source_generation) = settled else { return Ok(false) };
        let wall = self.backend.wall();
        let Some(begun) = self.begin_copy(target, piece, wall, &alone) else { return Ok(false) };
        let copy = Copy {
            source: Source {
                chunk: below.chunk.id,
                chunk_bytes: below.chunk.chunk_bytes,
                epoch: below.epoch,
                contents: below.held,
                members: below.members.clone(),
                offset: piece.source.1,
            },
            offset,
            len: piece.len as u32,
            mtime: wall,
        };
        self.stats.deltas.add(1);
        let mut layout = begun.layout.clone();
        let copying = while_held(target, begun.generation, self.backend.copy(&mut layout, copy));
        // Without the source's lease it may be old by now; what arrives is overwritten by what is read then.
        let copied = while_held(source, source_generation, copying).await;
        let source_is_held = copied.is_some();
        let copied = match copied {
            Some(Some(copied)) => copied,
            Some(None) => Err(Fault::new(Code::NoLease, "the lease was lost while slaves copied")),
            None => Err(Fault::new(Code::NoLease, "the lease of what is copied was lost")),
        };
        let Err(fault) = self.end_copy(target, piece, &begun, layout, copied)? else { return Ok(true) };
        if !matches!(fault.code, Code::NoSource | Code::Forbidden) && source_is_held {
            return Err(fault.into());
        }
        Ok(false)
    }

    /// The target's chunk is open, and what was dirty in it is held.
    async fn open_target(self: &Arc<Self>, target: &Arc<Inode>, piece: Piece) -> Result<()> {
        let (index, end) = (piece.target.0, piece.end());
        let dirty = self
            .under(target, Mode::Exclusive, NO_LOCKED_PAGES, |state| {
                if let Some(window) = state.unknown_window(index) {
                    return Ok(Step::Window(window));
                }
                if end > state.size() && state.must_trim() {
                    return Ok(Step::Trim);
                }
                if !is_open(state, index) {
                    return Ok(Step::Open(vec![index], 1));
                }
                Ok(Step::Done(state.buffer.has(index)))
            })
            .await?
            .0;
        if dirty { self.flush_chunks(target, vec![index], false).await } else { Ok(()) }
    }

    /// None: the chunk is not as [`Self::open_target`] left it.
    fn begin_copy(&self, target: &Arc<Inode>, piece: Piece, wall: Timestamp, alone: &Alone) -> Option<Begun> {
        let (index, end) = (piece.target.0, piece.end());
        self.change(target, |state| {
            let trims = end > state.size() && state.must_trim();
            let is_alone = state.slot_under(index, alone).is_some_and(|slot| slot.opened);
            if !state.is_exclusive() || !is_alone || state.buffer.has(index) || trims {
                return None;
            }
            self.written(state, 0, wall, false);
            let layout = state.slots.get(&index)?.layout.clone();
            Some(Begun { layout, generation: state.generation, poison: state.poison })
        })
    }

    /// Takes in what the copy came to. The error of the outer result: the lease was lost meanwhile.
    fn end_copy(
        &self,
        target: &Arc<Inode>,
        piece: Piece,
        begun: &Begun,
        layout: Layout,
        copied: std::result::Result<Applied, Fault>,
    ) -> Result<std::result::Result<(), Fault>> {
        let (index, offset) = piece.target;
        let wall = self.backend.wall();
        self.change(target, |state| {
            let chunk = layout.chunk.id;
            let is_same = state.slots.get(&index).is_some_and(|slot| slot.layout.chunk.id == chunk);
            if state.poison != begun.poison || state.generation != begun.generation || !is_same {
                return Err(FsError::new(libc::EIO, "the exclusive lease was lost during a copy"));
            }
            if let Some(slot) = state.slots.get_mut(&index) {
                // The pages under the old tag are not what is there now, or may not be.
                slot.tag = self.new_tag();
            }
            let applied = match copied {
                Ok(applied) => applied,
                Err(fault) => {
                    // It may still be under way: then it is refused before anybody else gets the file.
                    state.gave_up = true;
                    state.renew_layout(layout);
                    // And what it may have put behind the end is zeros again.
                    let behind = state.size().max(piece.to);
                    if let Ok(len @ 1..) = u32::try_from(piece.end().saturating_sub(behind)) {
                        let from = offset + (behind - piece.to) as u32;
                        state.buffer.punch(index, chunk, from, len).map_err(rotten)?;
                    }
                    return Ok(Err(fault));
                }
            };
            let held = ChunkState {
                index,
                chunk,
                epoch: layout.epoch,
                held: layout.held,
                stable: applied.stable,
                used_bytes: applied.used_bytes,
            };
            state.renew_layout(layout);
            state.chunks.insert(index, held);
            self.written(state, piece.end(), wall, false);
            Ok(Ok(()))
        })
    }
}

impl Piece {
    /// In the target.
    fn end(&self) -> u64 {
        self.to + self.len
    }
}

fn is_open(state: &State, index: u32) -> bool {
    state.slots.get(&index).is_some_and(|slot| slot.opened)
}

fn look(state: &State, index: u32) -> Below {
    if state.buffer.has(index) || state.unknown_window(index).is_some() {
        return Below::Unsettled;
    }
    match state.slots.get(&index) {
        Some(slot) if slot.layout.held.version > Version(0) => {
            Below::Chunk(Box::new(slot.layout.clone()), state.generation)
        }
        _ => Below::Hole,
    }
}

fn joined(pieces: &[Bytes]) -> Bytes {
    let mut all = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces.iter().for_each(|piece| all.extend_from_slice(piece));
    all.freeze()
}
