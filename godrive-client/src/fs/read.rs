//! Reading: from what is dirty, from the page cache, from the slaves; and ahead of sequential readers.

use super::inode::{Inode, State};
use super::lease::{Claim, Step, while_held};
use super::table::OpenFile;
use super::types::{Handle, Pieces, Served};
use super::{Backend, Fs};
use crate::core::gate::NO_LOCKED_PAGES;
use crate::core::page_cache::zeros;
use crate::core::read_plan::{Span, around, lay_over, missing, spans};
use crate::driver::Run;
use crate::error::{FsError, Result};
use bytes::Bytes;
use godrive_proto::Version;
use godrive_proto::data::Layout;
use godrive_proto::lease::Mode;
use godrive_proto::limits::{LEAF_BYTES, MAX_READ_BYTES};
use std::ops::Range;
use std::sync::Arc;

/// The longest file that is read ahead because its neighbours are read.
const SMALL_BYTES: u64 = 64 << 10;

/// Bytes in one request of a read-ahead.
const AHEAD_BYTES: u32 = 1 << 20;

/// What a look at the caches comes to.
enum Look {
    Whole(Pieces),
    /// These leaf runs of a chunk are missing, as (first leaf, number).
    Missing(u32, Vec<(u32, u32)>),
}

impl<B: Backend> Fs<B> {
    pub fn try_read(
        self: &Arc<Self>,
        handle: Handle,
        offset: u64,
        size: u32,
    ) -> Option<Result<Served<Pieces>>> {
        let file = match self.readable(handle) {
            Ok(file) => file,
            Err(error) => return Some(Err(error)),
        };
        let range = offset..offset.saturating_add(u64::from(size));
        let done =
            self.try_under(&file.inode, Mode::Shared, range.clone(), |state| self.look(state, &range))?;
        match done {
            Err(error) => Some(Err(error)),
            Ok((Look::Whole(value), pass)) => {
                // A stream that needs more fetched goes through the async twin, which fetches ahead.
                let wants_ahead = {
                    let mut ahead = file.ahead.lock();
                    let before = *ahead;
                    let size = file.inode.state.lock().size();
                    let more = ahead.on_read(range, size).is_some();
                    if more {
                        *ahead = before;
                    }
                    more
                };
                if wants_ahead {
                    return None;
                }
                self.stats.read_hits.add(1);
                self.read_by(&file);
                self.pass(&file, offset..offset.saturating_add(u64::from(size)));
                self.read_neighbours(&file.inode);
                Some(Ok(Served { value, pass }))
            }
            Ok((Look::Missing(..), _)) => None,
        }
    }

    pub async fn read(self: &Arc<Self>, handle: Handle, offset: u64, size: u32) -> Result<Served<Pieces>> {
        let file = self.readable(handle)?;
        let range = offset..offset.saturating_add(u64::from(size));
        let served = self.read_range(&file.inode, range.clone()).await?;
        self.read_by(&file);
        self.read_ahead(&file, range.clone());
        self.pass(&file, range);
        self.read_neighbours(&file.inode);
        Ok(served)
    }

    pub(super) fn read_by(&self, file: &OpenFile) {
        if !file.no_access_time {
            self.accessed(&file.inode);
        }
    }

    fn readable(&self, handle: Handle) -> Result<Arc<OpenFile>> {
        let file = self.sound(handle)?;
        if file.readable { Ok(file) } else { Err(FsError::bare(libc::EBADF)) }
    }

    pub(super) async fn read_range(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        range: Range<u64>,
    ) -> Result<Served<Pieces>> {
        self.read_under(inode, range.clone(), range).await
    }

    /// The same of a caller for which the kernel has no pages locked.
    pub(super) async fn read_unlocked(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        range: Range<u64>,
    ) -> Result<Served<Pieces>> {
        self.read_under(inode, range, NO_LOCKED_PAGES).await
    }

    async fn read_under(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        range: Range<u64>,
        locked: Range<u64>,
    ) -> Result<Served<Pieces>> {
        let mut fetched = false;
        // A recall gives it a moment, or the bytes would be fetched again and again where mounts contend.
        let mut claim = None;
        loop {
            let (look, pass) =
                self.under(inode, Mode::Shared, locked.clone(), |state| self.look(state, &range)).await?;
            match look {
                Look::Whole(value) => {
                    let counter = if fetched { &self.stats.read_misses } else { &self.stats.read_hits };
                    counter.add(1);
                    return Ok(Served { value, pass });
                }
                Look::Missing(index, runs) => {
                    drop(pass);
                    claim.get_or_insert_with(|| Claim::new(inode));
                    fetched = true;
                    let runs = self.widened(inode, index, runs);
                    self.fetch(inode, index, runs).await?;
                }
            }
        }
    }

    /// What the caches have of a range.
    fn look(&self, state: &mut State, range: &Range<u64>) -> Result<Step<Look>> {
        let end = range.end.min(state.size());
        if range.start >= end {
            return Ok(Step::Done(Look::Whole(Pieces::new())));
        }
        let mut pieces = Pieces::new();
        for span in spans(range.start..end, state.chunk_bytes()) {
            if let Some(window) = state.unknown_window(span.index) {
                return Ok(Step::Window(window));
            }
            let parts = self.parts(state, span);
            let runs = missing(span.start, span.end, &parts);
            if !runs.is_empty() {
                return Ok(Step::Done(Look::Missing(span.index, runs)));
            }
            pieces.extend(parts.into_iter().map(|(_, bytes)| bytes));
        }
        Ok(Step::Done(Look::Whole(pieces)))
    }

    /// What is known of a part of a chunk: dirty bytes over cached ones; zeros where there is no chunk.
    fn parts(&self, state: &State, span: Span) -> Vec<(u32, Bytes)> {
        let overlay = state.buffer.overlay(span.index, span.start, span.end);
        let above: Vec<(u32, Bytes)> = overlay
            .into_iter()
            .flat_map(|(at, len, bytes)| match bytes {
                Some(bytes) => vec![(at, bytes)],
                None => zero_parts(at, len),
            })
            .collect();
        let below = match state.slots.get(&span.index) {
            Some(slot) if slot.layout.held.version > Version(0) => {
                self.pages.read(slot.tag, span.start, span.end)
            }
            _ => zero_parts(span.start, span.len()),
        };
        lay_over(above, below)
    }

    /// A file that the cache has room for is read whole sooner or later, so each request brings a good piece of it.
    /// Of a larger one, bytes that were not asked for would be pushed out before they are.
    fn widened(&self, inode: &Arc<Inode>, index: u32, runs: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
        let state = inode.state.lock();
        let chunk_start = u64::from(index) * u64::from(state.chunk_bytes());
        let end = state.size().saturating_sub(chunk_start).min(u64::from(state.chunk_bytes())) as u32;
        let (Some((first, _)), Some((last, leaves))) = (runs.first(), runs.last()) else { return runs };
        let asked = Span { index, start: first * LEAF_BYTES, end: (last + leaves) * LEAF_BYTES };
        if !self.pages.has_room_for(state.size()) {
            return runs;
        }
        let span = around(asked, end);
        let wider = missing(span.start, span.end, &self.parts(&state, span));
        if wider.is_empty() { runs } else { wider }
    }

    /// Fetches leaf runs of one chunk into the page cache, those that nobody else is fetching; waits for the others.
    async fn fetch(self: &Arc<Self>, inode: &Arc<Inode>, index: u32, runs: Vec<(u32, u32)>) -> Result<()> {
        for (first, leaves) in runs {
            let longest = MAX_READ_BYTES as u32 / LEAF_BYTES;
            for at in (first..first + leaves).step_by(longest as usize) {
                self.fetch_run(inode, index, at, longest.min(first + leaves - at)).await?;
            }
        }
        Ok(())
    }

    async fn fetch_run(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        index: u32,
        first: u32,
        leaves: u32,
    ) -> Result<()> {
        let changed = inode.changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        let io = {
            let mut state = inode.state.lock();
            let Some(slot) = state.slots.get(&index) else { return Ok(()) };
            let io = slot.io.clone();
            let end = first + leaves;
            let other = state.fetching.range((index, 0)..(index, end)).any(|(_, fetched)| *fetched > first);
            if !other {
                state.fetching.insert((index, first), end);
            }
            (!other).then_some(io)
        };
        let Some(io) = io else {
            return self.within("waiting for a read under way", changed).await;
        };
        let _fetching = Fetching { inode: inode.clone(), key: (index, first) };
        let _shared = io.read().await;
        let (mut layout, tag, generation) = {
            let state = inode.state.lock();
            // Behind another slot's lock a delta may be under way: the caller looks again.
            let slot = state.slots.get(&index).filter(|slot| Arc::ptr_eq(&slot.io, &io));
            let Some(slot) = slot else { return Ok(()) };
            (slot.layout.clone(), slot.tag, state.generation)
        };
        let asked = layout.clone();
        // When the lease goes, the version that is asked for may go too: the caller asks again under its next lease.
        let reading = self.backend.read(&mut layout, first, leaves);
        let Some(answer) = while_held(inode, generation, reading).await else { return Ok(()) };
        let tag = self.note_layout(inode, index, &asked, &layout).unwrap_or(tag);
        let answer = answer?;
        for Run { first, leaves, bytes } in answer {
            match bytes {
                Some(bytes) => self.pages.insert(tag, first * LEAF_BYTES, &bytes),
                None => self.pages.insert_hole(tag, first * LEAF_BYTES, leaves * LEAF_BYTES),
            }
        }
        Ok(())
    }

    /// After a read the driver may know a newer layout. New contents get a new tag.
    fn note_layout(
        &self,
        inode: &Arc<Inode>,
        index: u32,
        asked: &Layout,
        now: &Layout,
    ) -> Option<crate::core::page_cache::Tag> {
        if asked == now {
            return None;
        }
        self.change(inode, |state| {
            let slot = state.slots.get_mut(&index).filter(|slot| slot.layout == *asked)?;
            if slot.layout.held != now.held {
                slot.tag = self.new_tag();
            }
            let tag = slot.tag;
            state.renew_layout(now.clone());
            Some(tag)
        })
    }

    /// Fetches ahead of a sequential reader, in the background.
    fn read_ahead(self: &Arc<Self>, file: &Arc<OpenFile>, range: Range<u64>) {
        let (size, chunk_bytes) = {
            let state = file.inode.state.lock();
            (state.size(), state.chunk_bytes())
        };
        if chunk_bytes == 0 {
            return;
        }
        let Some(wanted) = file.ahead.lock().on_read(range, size) else { return };
        for span in spans(wanted, chunk_bytes).flat_map(pieces) {
            let Ok(permit) = self.aheads.clone().try_acquire_owned() else { return };
            let (fs, inode) = (self.clone(), file.inode.clone());
            tokio::spawn(async move {
                let _permit = permit;
                let runs = {
                    let state = inode.state.lock();
                    if !fs.is_valid(&state) || state.unknown_window(span.index).is_some() {
                        return;
                    }
                    missing(span.start, span.end, &fs.parts(&state, span))
                };
                if let Err(error) = fs.fetch(&inode, span.index, runs).await {
                    tracing::debug!(ino = %inode.ino, chunk = span.index, %error, "read-ahead failed; the read will try itself");
                }
            });
        }
    }

    /// What a long stream was given is in the caller's cache, and here the first to make room.
    fn pass(&self, file: &OpenFile, range: Range<u64>) {
        if !self.limits.caller_caches || file.direct || !file.ahead.lock().goes_past() {
            return;
        }
        let state = file.inode.state.lock();
        if state.chunk_bytes() == 0 {
            return;
        }
        for span in spans(range.start..range.end.min(state.size()), state.chunk_bytes()) {
            if let Some(slot) = state.slots.get(&span.index) {
                self.pages.pass(slot.tag, span.start, span.end);
            }
        }
    }

    /// Fetches small files ahead of a reader who goes through a directory, in the background.
    fn read_neighbours(self: &Arc<Self>, inode: &Arc<Inode>) {
        let Some(neighbours) = inode.state.lock().neighbours.take() else { return };
        let next = neighbours.lock().on_read();
        for inode in next.into_iter().filter_map(|ino| self.table.find(ino)) {
            let fs = self.clone();
            self.runtime.spawn(async move {
                // The semaphore is never closed.
                let Ok(_permit) = fs.neighbours.clone().acquire_owned().await else { return };
                if let Err(error) = fs.read_small(&inode).await {
                    tracing::debug!(ino = %inode.ino, %error, "a small file was not read ahead; the read will try itself");
                }
            });
        }
    }

    async fn read_small(self: &Arc<Self>, inode: &Arc<Inode>) -> Result<()> {
        let is_small = |state: &State| {
            let unread = state.neighbours.is_some() && (1..=SMALL_BYTES).contains(&state.size());
            unread && self.is_valid(state) && state.mode() == Some(Mode::Shared)
        };
        let window = {
            let state = inode.state.lock();
            if !is_small(&state) {
                return Ok(());
            }
            state.unknown_window(0)
        };
        if let Some(window) = window {
            self.load_window(inode, window).await?;
        }
        let missing: Vec<_> = {
            let state = inode.state.lock();
            if !is_small(&state) || state.unknown_window(0).is_some() {
                return Ok(());
            }
            let parts = |span: Span| (span.index, missing(span.start, span.end, &self.parts(&state, span)));
            spans(0..state.size(), state.chunk_bytes()).map(parts).collect()
        };
        for (index, runs) in missing {
            self.fetch(inode, index, runs).await?;
        }
        Ok(())
    }
}

/// A leaf run that is being fetched.
struct Fetching {
    inode: Arc<Inode>,
    key: (u32, u32),
}

impl Drop for Fetching {
    fn drop(&mut self) {
        self.inode.state.lock().fetching.remove(&self.key);
        self.inode.changed.notify_waiters();
    }
}

/// A read-ahead goes in pieces of their own: while one is verified here, the next is on its way and another is read from a disk.
fn pieces(span: Span) -> impl Iterator<Item = Span> {
    let starts = (span.start..span.end).step_by(AHEAD_BYTES as usize);
    starts.map(move |start| Span { start, end: span.end.min(start + AHEAD_BYTES), ..span })
}

fn zero_parts(start: u32, len: u32) -> Vec<(u32, Bytes)> {
    let mut parts = Vec::new();
    let mut at = start;
    while at < start + len {
        let bytes = zeros(start + len - at);
        parts.push((at, bytes.clone()));
        at += bytes.len() as u32;
    }
    parts
}
