//! What a read needs: the chunks it touches, the leaves that are missing, and what will be wanted next.

use crate::core::page_cache::PAGE_BYTES;
use bytes::Bytes;
use godrive_proto::limits::LEAF_BYTES;
use std::ops::Range;

/// A part of a file within one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub index: u32,
    /// Within the chunk.
    pub start: u32,
    pub end: u32,
}

impl Span {
    pub fn len(&self) -> u32 {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

/// Cuts a range of a file at the borders of its chunks.
pub fn spans(range: Range<u64>, chunk_bytes: u32) -> impl Iterator<Item = Span> {
    let chunk = u64::from(chunk_bytes);
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let index = at / chunk;
        let end = range.end.min((index + 1) * chunk);
        let span = Span {
            index: index as u32,
            start: (at - index * chunk) as u32,
            end: (end - index * chunk) as u32,
        };
        at = end;
        Some(span)
    })
}

/// A part of one cache page: offsets within the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    pub number: u32,
    pub start: u32,
    pub end: u32,
}

impl Page {
    /// The pages that cover `start..end` of a chunk.
    pub fn covering(start: u32, end: u32) -> impl Iterator<Item = Self> {
        spans(u64::from(start)..u64::from(end), PAGE_BYTES).map(|span| Self {
            number: span.index,
            start: span.start,
            end: span.end,
        })
    }

    /// Where the page begins within the chunk.
    pub fn base(&self) -> u32 {
        self.number * PAGE_BYTES
    }
}

/// The block of a file that a read is widened to where the cache has room for the whole file.
pub const AROUND_BYTES: u32 = 64 << 10;

/// A part of a chunk widened to whole blocks, but not beyond `end` (of the chunk or of the file).
pub fn around(span: Span, end: u32) -> Span {
    let start = span.start / AROUND_BYTES * AROUND_BYTES;
    let until = span.end.div_ceil(AROUND_BYTES).saturating_mul(AROUND_BYTES);
    Span { index: span.index, start, end: until.min(end).max(span.end) }
}

/// What lies over what: `above` wins. Both ascending and not overlapping; so is the result.
pub fn lay_over(above: Vec<(u32, Bytes)>, below: Vec<(u32, Bytes)>) -> Vec<(u32, Bytes)> {
    if above.is_empty() {
        return below;
    }
    if below.is_empty() {
        return above;
    }
    let mut all = Vec::with_capacity(above.len() + below.len());
    for (at, bytes) in below {
        let mut from = at;
        let end = at + bytes.len() as u32;
        let first = above.partition_point(|(over, bytes)| over + bytes.len() as u32 <= at);
        for (over, over_bytes) in above[first..].iter().take_while(|(over, _)| *over < end) {
            if from < *over {
                all.push((from, bytes.slice((from - at) as usize..(over - at) as usize)));
            }
            from = over + over_bytes.len() as u32;
        }
        if from < end {
            all.push((from, bytes.slice((from - at) as usize..)));
        }
    }
    all.extend(above);
    all.sort_by_key(|(at, _)| *at);
    all
}

/// The leaf runs, as (first leaf, number), that cover what `have` does not of `start..end`.
pub fn missing(start: u32, end: u32, have: &[(u32, Bytes)]) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    let mut add = |from: u32, to: u32| {
        if from < to {
            let (first, last) = (from / LEAF_BYTES, (to - 1) / LEAF_BYTES);
            match runs.last_mut() {
                Some((run, leaves)) if *run + *leaves >= first => {
                    *leaves = (last + 1).max(*run + *leaves) - *run
                }
                _ => runs.push((first, last + 1 - first)),
            }
        }
    };
    let mut at = start;
    for (offset, bytes) in have {
        add(at, *offset);
        at = at.max(offset + bytes.len() as u32);
    }
    add(at, end);
    runs
}

const FIRST_WINDOW: u64 = 2 << 20;
const LAST_WINDOW: u64 = 16 << 20;

/// Finds sequential streams and says what to fetch ahead of them. One per open handle.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadAhead {
    /// The end of the furthest read so far.
    next: u64,
    window: u64,
    fetched_until: u64,
}

impl ReadAhead {
    /// After a read of `range`: what to fetch ahead, if the reads are a stream. The kernel may deliver neighbouring
    /// reads out of order, so a read within one window of the expected place still belongs to the stream.
    pub fn on_read(&mut self, range: Range<u64>, size: u64) -> Option<Range<u64>> {
        let slack = self.window.max(128 << 10);
        let in_stream =
            range.start <= self.next.saturating_add(slack) && range.end.saturating_add(slack) >= self.next;
        if !in_stream || (self.next == 0 && range.start > 0) {
            *self = Self { next: range.end, ..Self::default() };
            return None;
        }
        self.next = self.next.max(range.end);
        self.window = (self.window * 2).clamp(FIRST_WINDOW, LAST_WINDOW);
        let wanted = self.next.saturating_add(self.window).min(size);
        let from = self.fetched_until.max(self.next);
        // Asked for in good pieces: at least half a window, or the file's last.
        if wanted <= from || (wanted - from < self.window / 2 && wanted < size) {
            return None;
        }
        self.fetched_until = wanted;
        Some(from..wanted)
    }

    /// Whether the reads so far are a long stream, whose reader is not expected back.
    pub fn goes_past(&self) -> bool {
        self.window == LAST_WINDOW
    }
}
