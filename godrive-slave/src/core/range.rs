//! A delta made of another chunk's bytes. Pure.

use super::delta::check_chunk_bytes;
use bytes::Bytes;
use godrive_proto::data::{CopyRangeRequest, DeltaRequest, Extent, Fill};
use godrive_proto::limits::{LEAF_BYTES, MAX_DELTA_BYTES, MAX_DELTA_EXTENTS, MAX_MEMBERS};
use godrive_proto::proof::Run;
use godrive_proto::{ChunkId, Code, Fault, sums};
use std::ops::Range;

/// The leaves of the source that hold the bytes.
pub fn leaves(request: &CopyRangeRequest) -> Result<Range<u32>, Fault> {
    let CopyRangeRequest { delta, source } = request;
    let malformed = |why: String| {
        let detail = format!("copy from chunk {} to {}: {why}", source.chunk, delta.chunk);
        Err(Fault::new(Code::Malformed, detail))
    };
    check_chunk_bytes(source.chunk_bytes)?;
    check_chunk_bytes(delta.chunk_bytes)?;
    let [extent] = delta.extents.as_slice() else {
        return malformed(format!("{} extents instead of one", delta.extents.len()));
    };
    if extent.fill != Fill::Bytes || !delta.sums.is_empty() {
        return malformed("it brings what it is to fetch".into());
    }
    if extent.len == 0 || extent.len as usize > MAX_DELTA_BYTES {
        return malformed(format!("{} bytes", extent.len));
    }
    let within = |offset: u32, bytes: u32| offset.checked_add(extent.len).filter(|end| *end <= bytes);
    let (Some(end), Some(_)) =
        (within(source.offset, source.chunk_bytes), within(extent.offset, delta.chunk_bytes))
    else {
        return malformed(format!(
            "{} bytes from {} to {} exceed a chunk",
            extent.len, source.offset, extent.offset
        ));
    };
    if source.members.is_empty() || source.members.len() > MAX_MEMBERS {
        return malformed(format!("{} members", source.members.len()));
    }
    Ok(source.offset / LEAF_BYTES..end.div_ceil(LEAF_BYTES))
}

/// The delta that brings these bytes. `runs` are all [`leaves`] of a request that they passed.
pub fn filled(request: CopyRangeRequest, runs: &[Run]) -> (DeltaRequest, Bytes) {
    let CopyRangeRequest { mut delta, source } = request;
    let Some(wanted) = delta.extents.first().copied() else { return (delta, Bytes::new()) };
    let mut payload = Vec::with_capacity(wanted.len as usize);
    let mut extents: Vec<Extent> = Vec::new();
    let end = source.offset + wanted.len;
    for run in runs {
        let start = run.first * LEAF_BYTES;
        let from = start.max(source.offset);
        let to = (start + run.leaves * LEAF_BYTES).min(end);
        if from >= to {
            continue;
        }
        let fill = match &run.bytes {
            Some(bytes) => {
                payload.extend_from_slice(&bytes[(from - start) as usize..(to - start) as usize]);
                Fill::Bytes
            }
            None => Fill::Hole,
        };
        let offset = wanted.offset + (from - source.offset);
        match extents.last_mut() {
            Some(last) if last.fill == fill && last.offset + last.len == offset => last.len += to - from,
            _ => extents.push(Extent { offset, len: to - from, fill }),
        }
    }
    // As many leaves as there may be bytes have fewer changes between holes and bytes than there may be extents.
    const { assert!(MAX_DELTA_BYTES / LEAF_BYTES as usize + 2 <= MAX_DELTA_EXTENTS) };
    delta.sums = sums_of(delta.chunk, &extents, &payload);
    delta.extents = extents;
    (delta, payload.into())
}

fn sums_of(chunk: ChunkId, extents: &[Extent], payload: &[u8]) -> Vec<u64> {
    let mut rest = payload;
    let mut all = Vec::new();
    for extent in extents.iter().filter(|extent| extent.fill == Fill::Bytes) {
        let (bytes, behind) = rest.split_at(extent.len as usize);
        let pieces = sums::pieces(extent.offset, extent.len);
        all.extend(pieces.map(|(leaf, start, end)| sums::piece(chunk, leaf, &bytes[start..end])));
        rest = behind;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::delta;
    use godrive_proto::data::{Contents, Member, Source};
    use godrive_proto::time::Timestamp;
    use godrive_proto::{DiskId, Epoch, NodeId, OpId, SessionId, Version};

    const CHUNK_BYTES: u32 = 1 << 20;

    fn request(from: u32, to: u32, len: u32) -> CopyRangeRequest {
        let member = Member { node: NodeId(1), disk: DiskId(1), address: ([127, 0, 0, 1], 1).into() };
        CopyRangeRequest {
            delta: DeltaRequest {
                chunk: ChunkId(2),
                chunk_bytes: CHUNK_BYTES,
                disk: DiskId(1),
                epoch: Epoch(1),
                base: Version(1),
                op: OpId { session: SessionId(1), sequence: 1 },
                extents: vec![Extent { offset: to, len, fill: Fill::Bytes }],
                sums: Vec::new(),
                chain: Vec::new(),
                sync: false,
                mtime: Timestamp(0),
            },
            source: Source {
                chunk: ChunkId(1),
                chunk_bytes: CHUNK_BYTES,
                epoch: Epoch(1),
                contents: Contents::default(),
                members: vec![member],
                offset: from,
            },
        }
    }

    /// Every third leaf is a hole.
    fn runs(leaves: Range<u32>) -> Vec<Run> {
        let bytes = |leaf: u32| {
            let bytes = (0..LEAF_BYTES).map(|at| (leaf + at / 7) as u8 | 1).collect::<Vec<u8>>();
            (!leaf.is_multiple_of(3)).then(|| bytes.into())
        };
        leaves.map(|leaf| Run { first: leaf, leaves: 1, bytes: bytes(leaf) }).collect()
    }

    #[test]
    fn the_delta_has_the_bytes_at_their_new_place_and_passes_every_check() {
        for (from, to, len) in [(0, 0, 8192), (5000, 100, 40_000), (4096, 65_536, 65_536), (3, 4095, 2)] {
            let copy = request(from, to, len);
            let wanted = leaves(&copy).unwrap();
            let source: Vec<u8> = runs(wanted.clone())
                .into_iter()
                .flat_map(|run| {
                    run.bytes.map_or_else(|| vec![0; LEAF_BYTES as usize], |bytes| bytes.to_vec())
                })
                .collect();
            let (delta, payload) = filled(copy, &runs(wanted.clone()));
            delta::check(&delta, payload.len()).unwrap();
            delta::verify(&delta, &payload).unwrap();
            let (mut at, mut copied) = (0, vec![0xaa; len as usize]);
            for extent in &delta.extents {
                let range = (extent.offset - to) as usize..(extent.offset - to + extent.len) as usize;
                match extent.fill {
                    Fill::Hole => copied[range].fill(0),
                    Fill::Bytes => {
                        copied[range].copy_from_slice(&payload[at..at + extent.len as usize]);
                        at += extent.len as usize;
                    }
                }
            }
            let start = (from - wanted.start * LEAF_BYTES) as usize;
            assert!(copied == source[start..start + len as usize], "{from} {to} {len}");
        }
    }

    #[test]
    fn what_is_aligned_alike_keeps_its_holes() {
        let copy = request(0, 4096 * 9, 4096 * 9);
        let wanted = leaves(&copy).unwrap();
        let (delta, payload) = filled(copy, &runs(wanted));
        assert_eq!(payload.len(), 4096 * 6);
        assert_eq!(delta.extents.iter().filter(|extent| extent.fill == Fill::Hole).count(), 3);
    }

    #[test]
    fn impossible_copies_are_refused() {
        assert!(leaves(&request(0, 0, 0)).is_err());
        assert!(leaves(&request(0, 0, MAX_DELTA_BYTES as u32 + 1)).is_err());
        assert!(leaves(&request(CHUNK_BYTES - 10, 0, 11)).is_err());
        assert!(leaves(&request(0, u32::MAX, 2)).is_err());
        let mut strange = request(0, 0, 10);
        strange.source.chunk_bytes = 12_345;
        assert!(leaves(&strange).is_err());
        let mut strange = request(0, 0, 10);
        strange.delta.extents.clear();
        assert!(leaves(&strange).is_err());
        let mut strange = request(0, 0, 10);
        strange.delta.extents[0].fill = Fill::Hole;
        assert!(leaves(&strange).is_err());
        let mut strange = request(0, 0, 10);
        strange.delta.sums.push(1);
        assert!(leaves(&strange).is_err());
        let mut strange = request(0, 0, 10);
        strange.source.members.clear();
        assert!(leaves(&strange).is_err());
        assert_eq!(leaves(&request(CHUNK_BYTES - 10, 0, 10)).unwrap(), 255..256);
    }
}
