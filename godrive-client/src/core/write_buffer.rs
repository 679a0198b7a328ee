//! Bytes that were written and are not yet held by the slaves, of one file.
//!
//! Each chunk has two layers: `dirty`, and above it nothing; below it `in_flight`, the delta that is on its way. A read
//! sees dirty over in flight over whatever the replicas have. A piece never crosses a 4 KiB leaf and has the sum that was
//! made when its bytes entered. Where pieces are joined or cut, the old sums are verified before the new one is
//! made: no wrong bit gets a right sum on the way. Holes (from trims and punches) are pieces too, as long as they like.

use bytes::Bytes;
use godrive_proto::ChunkId;
use godrive_proto::data::{Extent, Fill};
use godrive_proto::limits::{LEAF_BYTES, MAX_DELTA_BYTES, MAX_DELTA_EXTENTS};
use godrive_proto::sums;
use std::collections::BTreeMap;

/// What a piece costs beside its bytes, so that many tiny ones are bounded too.
const PIECE_OVERHEAD: u64 = 64;

/// Bytes in memory no longer have the sum they had when they entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("buffered bytes of {chunk} at leaf {leaf} changed in memory")]
pub struct Rotten {
    pub chunk: ChunkId,
    pub leaf: u32,
}

#[derive(Clone, Debug)]
struct Piece {
    len: u32,
    /// None: a hole.
    data: Option<(Bytes, u64)>,
}

impl Piece {
    fn data_bytes(&self) -> u64 {
        self.data.as_ref().map_or(0, |(bytes, _)| bytes.len() as u64)
    }
}

#[derive(Debug)]
struct ChunkBuffer {
    chunk: ChunkId,
    dirty: Layer,
    in_flight: Layer,
}

/// A delta's contents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    pub extents: Vec<Extent>,
    pub sums: Vec<u64>,
    pub payload: Vec<Bytes>,
    /// Where the next delta of the same pass begins.
    pub end: u32,
    /// Nothing is left to be taken behind it.
    pub last: bool,
}

/// A part of a chunk that the buffer knows, as offset, length and bytes; None is a hole.
pub type Segment = (u32, u32, Option<Bytes>);

#[derive(Debug, Default)]
pub struct WriteBuffer {
    chunks: BTreeMap<u32, ChunkBuffer>,
    cost: u64,
}

impl WriteBuffer {
    /// Memory in use.
    pub fn cost(&self) -> u64 {
        self.cost
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Chunks with something dirty or in flight.
    pub fn indexes(&self) -> impl Iterator<Item = u32> + '_ {
        self.chunks.keys().copied()
    }

    pub fn has(&self, index: u32) -> bool {
        self.chunks.contains_key(&index)
    }

    /// The dirty pieces of a chunk would fill a delta.
    pub fn fills_a_delta(&self, index: u32) -> bool {
        self.chunks.get(&index).is_some_and(|chunk| {
            chunk.dirty.bytes >= MAX_DELTA_BYTES as u64 || chunk.dirty.map.len() >= MAX_DELTA_EXTENTS
        })
    }

    /// Buffers bytes at an offset within a chunk. They must fit into it.
    pub fn write(&mut self, index: u32, chunk: ChunkId, offset: u32, bytes: &Bytes) -> Result<(), Rotten> {
        self.change(index, Some(chunk), |buffer| {
            for (leaf, start, end) in sums::pieces(offset, bytes.len() as u32) {
                buffer.dirty.write(chunk, leaf, offset + start as u32, bytes.slice(start..end))?;
            }
            Ok(())
        })
    }

    /// Makes a range of a chunk zeros.
    pub fn punch(&mut self, index: u32, chunk: ChunkId, offset: u32, len: u32) -> Result<(), Rotten> {
        if len == 0 {
            return Ok(());
        }
        self.change(index, Some(chunk), |buffer| buffer.dirty.punch(chunk, offset, len))
    }

    /// The same but for what is dirty or in flight there.
    pub fn punch_beneath(&mut self, index: u32, chunk: ChunkId, offset: u32, len: u32) -> Result<(), Rotten> {
        let (mut at, end) = (offset, offset + len);
        let above = self.overlay(index, offset, end);
        for (start, len, _) in above.into_iter().chain([(end, 0, None)]) {
            self.punch(index, chunk, at, start - at)?;
            at = start + len;
        }
        Ok(())
    }

    /// Forgets what lies at or behind `offset` of chunk `index`, and all later chunks. Nothing there may be in flight.
    pub fn cut(&mut self, index: u32, offset: u32) -> Result<(), Rotten> {
        if let Some(first) = index.checked_add(u32::from(offset > 0)) {
            let behind = self.chunks.split_off(&first);
            self.cost -= behind.values().map(ChunkBuffer::cost).sum::<u64>();
        }
        self.change(index, None, |buffer| buffer.dirty.carve(buffer.chunk, offset, u32::MAX))
    }

    /// A delta of the chunk is on its way.
    pub fn is_in_flight(&self, index: u32) -> bool {
        self.chunks.get(&index).is_some_and(|chunk| !chunk.in_flight.map.is_empty())
    }

    /// Moves the first dirty pieces of a chunk that end behind `from` into flight. None if there are none, or a delta is in flight.
    pub fn take(&mut self, index: u32, from: u32) -> Option<Taken> {
        let buffer = self.chunks.get_mut(&index)?;
        if !buffer.in_flight.map.is_empty() {
            return None;
        }
        let mut next = buffer.dirty.first_behind(from)?;
        let mut taken = Taken::default();
        let mut payload_bytes = 0;
        while let Some(piece) = buffer.dirty.remove(next) {
            payload_bytes += piece.data_bytes();
            if payload_bytes > MAX_DELTA_BYTES as u64 || !taken.push(next, &piece) {
                buffer.dirty.put(next, piece);
                break;
            }
            taken.end = next + piece.len;
            buffer.in_flight.put(next, piece);
            let Some(at) = buffer.dirty.first_behind(taken.end) else {
                taken.last = true;
                break;
            };
            next = at;
        }
        Some(taken)
    }

    /// The delta in flight is held by all members.
    pub fn landed(&mut self, index: u32) {
        let cleared = self.change(index, None, |buffer| {
            buffer.in_flight = Layer::default();
            Ok(())
        });
        debug_assert!(cleared.is_ok(), "nothing is verified here");
    }

    /// The delta in flight failed: its pieces are dirty again, beneath what was written since.
    pub fn give_back(&mut self, index: u32) -> Result<(), Rotten> {
        self.change(index, None, |buffer| {
            let chunk = buffer.chunk;
            let newer = std::mem::replace(&mut buffer.dirty, std::mem::take(&mut buffer.in_flight));
            for (offset, piece) in newer.map {
                let Some((bytes, sum)) = piece.data else {
                    buffer.dirty.punch(chunk, offset, piece.len)?;
                    continue;
                };
                let leaf = offset / LEAF_BYTES;
                verify(chunk, leaf, &bytes, sum)?;
                buffer.dirty.write(chunk, leaf, offset, bytes)?;
            }
            Ok(())
        })
    }

    /// Everything is lost, what is in flight too.
    pub fn clear(&mut self) {
        self.chunks.clear();
        self.cost = 0;
    }

    /// What a read of this range must see instead of the replicas' bytes: ascending, not overlapping.
    pub fn overlay(&self, index: u32, start: u32, end: u32) -> Vec<Segment> {
        let Some(buffer) = self.chunks.get(&index) else { return Vec::new() };
        let above = buffer.dirty.segments(start, end);
        if buffer.in_flight.map.is_empty() {
            return above;
        }
        let mut all = Vec::new();
        let mut at = start;
        for segment in above {
            all.extend(buffer.in_flight.segments(at, segment.0));
            at = segment.0 + segment.1;
            all.push(segment);
        }
        all.extend(buffer.in_flight.segments(at, end));
        all
    }

    /// The pieces in flight, for the page cache once they have landed.
    pub fn in_flight(&self, index: u32) -> Vec<Segment> {
        self.chunks.get(&index).map_or_else(Vec::new, |buffer| buffer.in_flight.segments(0, u32::MAX))
    }

    /// Runs a change of one chunk's buffer and keeps the account; `create` makes the buffer if there is none.
    fn change(
        &mut self,
        index: u32,
        create: Option<ChunkId>,
        change: impl FnOnce(&mut ChunkBuffer) -> Result<(), Rotten>,
    ) -> Result<(), Rotten> {
        let buffer = match (self.chunks.get_mut(&index), create) {
            (Some(buffer), _) => buffer,
            (None, Some(chunk)) => self.chunks.entry(index).or_insert_with(|| ChunkBuffer::new(chunk)),
            (None, None) => return Ok(()),
        };
        let before = buffer.cost();
        let result = change(buffer);
        let after = buffer.cost();
        if after == 0 {
            self.chunks.remove(&index);
        }
        self.cost = self.cost - before + after;
        result
    }
}

impl ChunkBuffer {
    fn new(chunk: ChunkId) -> Self {
        Self { chunk, dirty: Layer::default(), in_flight: Layer::default() }
    }

    fn cost(&self) -> u64 {
        self.dirty.cost() + self.in_flight.cost()
    }
}

impl Taken {
    /// False if the delta is full.
    fn push(&mut self, offset: u32, piece: &Piece) -> bool {
        let fill = if piece.data.is_some() { Fill::Bytes } else { Fill::Hole };
        // Pieces that meet within a leaf have sums of their own and so stay extents of their own.
        let joins = fill == Fill::Hole || offset.is_multiple_of(LEAF_BYTES);
        let full = self.extents.len() == MAX_DELTA_EXTENTS;
        match self.extents.last_mut() {
            Some(last) if joins && last.fill == fill && last.offset + last.len == offset => {
                last.len += piece.len
            }
            _ if full => return false,
            _ => self.extents.push(Extent { offset, len: piece.len, fill }),
        }
        if let Some((bytes, sum)) = &piece.data {
            self.sums.push(*sum);
            self.payload.push(bytes.clone());
        }
        true
    }
}

fn verify(chunk: ChunkId, leaf: u32, bytes: &[u8], sum: u64) -> Result<(), Rotten> {
    if sums::piece(chunk, leaf, bytes) == sum { Ok(()) } else { Err(Rotten { chunk, leaf }) }
}

/// Pieces by offset, not overlapping.
#[derive(Debug, Default)]
struct Layer {
    map: BTreeMap<u32, Piece>,
    bytes: u64,
}

impl Layer {
    fn cost(&self) -> u64 {
        self.bytes + self.map.len() as u64 * PIECE_OVERHEAD
    }

    fn put(&mut self, offset: u32, piece: Piece) {
        self.bytes += piece.data_bytes();
        if let Some(old) = self.map.insert(offset, piece) {
            self.bytes -= old.data_bytes();
        }
    }

    fn remove(&mut self, offset: u32) -> Option<Piece> {
        let piece = self.map.remove(&offset)?;
        self.bytes -= piece.data_bytes();
        Some(piece)
    }

    /// The first piece that ends behind `from`: a write may have joined one there with what lies before it.
    fn first_behind(&self, from: u32) -> Option<u32> {
        let before = self.map.range(..from).next_back().filter(|(at, piece)| *at + piece.len > from);
        before.or_else(|| self.map.range(from..).next()).map(|(at, _)| *at)
    }

    /// Offsets of the pieces that overlap or touch `start..end`.
    fn touching(&self, start: u32, end: u32) -> Vec<u32> {
        let before = self.map.range(..start).next_back().filter(|(at, piece)| *at + piece.len >= start);
        before.into_iter().chain(self.map.range(start..=end)).map(|(at, _)| *at).collect()
    }

    fn punch(&mut self, chunk: ChunkId, offset: u32, len: u32) -> Result<(), Rotten> {
        self.carve(chunk, offset, offset + len)?;
        self.put(offset, Piece { len, data: None });
        Ok(())
    }

    /// Puts bytes of one leaf in, joined with the bytes of that leaf that they touch.
    fn write(&mut self, chunk: ChunkId, leaf: u32, offset: u32, bytes: Bytes) -> Result<(), Rotten> {
        let end = offset + bytes.len() as u32;
        let (leaf_start, leaf_end) = (leaf * LEAF_BYTES, (leaf + 1) * LEAF_BYTES);
        let (mut from, mut to) = (offset, end);
        let mut joined = Vec::new();
        for at in self.touching(offset, end) {
            let Some(Piece { len, data: Some((old, sum)) }) = self.map.get(&at) else { continue };
            let within = at >= leaf_start && at < leaf_end;
            let covered = at >= offset && at + len <= end;
            if within && !covered {
                verify(chunk, leaf, old, *sum)?;
                from = from.min(at);
                to = to.max(at + len);
                joined.push((at, old.clone()));
            }
        }
        let merged = if joined.is_empty() { bytes } else { join(from, to, joined, (offset, bytes)) };
        self.carve(chunk, from, to)?;
        let sum = sums::piece(chunk, leaf, &merged);
        self.put(from, Piece { len: merged.len() as u32, data: Some((merged, sum)) });
        Ok(())
    }

    /// Removes `start..end`; what remains of pieces at its edges is cut and summed anew.
    fn carve(&mut self, chunk: ChunkId, start: u32, end: u32) -> Result<(), Rotten> {
        for at in self.touching(start, end) {
            let Some(piece) = self.map.get(&at) else { continue };
            let (len, piece_end, leaf) = (piece.len, at + piece.len, at / LEAF_BYTES);
            if piece_end <= start || at >= end {
                continue;
            }
            let cut = at < start || piece_end > end;
            if let (true, Some((bytes, sum))) = (cut, &piece.data) {
                verify(chunk, leaf, bytes, *sum)?;
            }
            let Some(piece) = self.remove(at) else { continue };
            for (from, to) in [(0, start.saturating_sub(at)), (end.saturating_sub(at).min(len), len)] {
                if from < to {
                    let data = piece.data.as_ref().map(|(bytes, _)| {
                        let rest = bytes.slice(from as usize..to as usize);
                        let sum = sums::piece(chunk, leaf, &rest);
                        (rest, sum)
                    });
                    self.put(at + from, Piece { len: to - from, data });
                }
            }
        }
        Ok(())
    }

    /// The parts of the pieces that lie within `start..end`.
    fn segments(&self, start: u32, end: u32) -> Vec<Segment> {
        if start >= end {
            return Vec::new();
        }
        let before = self.map.range(..start).next_back();
        before
            .into_iter()
            .chain(self.map.range(start..end))
            .filter_map(|(at, piece)| {
                let (from, to) = ((*at).max(start), (*at + piece.len).min(end));
                let part = |bytes: &Bytes| bytes.slice((from - at) as usize..(to - at) as usize);
                (from < to).then(|| (from, to - from, piece.data.as_ref().map(|(bytes, _)| part(bytes))))
            })
            .collect()
    }
}

/// One buffer of `from..to`: the old pieces, the new one over them.
fn join(from: u32, to: u32, old: Vec<(u32, Bytes)>, new: (u32, Bytes)) -> Bytes {
    let mut whole = vec![0; (to - from) as usize];
    for (at, bytes) in old.into_iter().chain([new]) {
        let at = (at - from) as usize;
        whole[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    Bytes::from(whole)
}
