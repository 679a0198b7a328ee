//! A delta as it comes from the network: checked, then turned into changes of leaves.
//!
//! The rule that makes replicas equal: a `Bytes` extent makes its leaves data (also if the bytes are zeros); a
//! `Hole` extent turns leaves that it covers wholly into holes, writes zeros into those it covers partly, and
//! leaves alone partly covered leaves that are holes already.

use godrive_proto::data::{DeltaRequest, Extent, Fill};
use godrive_proto::limits::{
    LEAF_BYTES, MAX_CHUNK_BYTES, MAX_DELTA_BYTES, MAX_DELTA_EXTENTS, MAX_MEMBERS, MIN_CHUNK_BYTES,
};
use godrive_proto::{Code, Fault, sums};

const LEAF: usize = LEAF_BYTES as usize;

/// What happens to one leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Hole,
    /// All of it, from this offset of the payload; its sum is that of the request.
    Whole {
        at: usize,
        sum: u64,
    },
    /// Parts of it, ascending.
    Merge(Vec<Part>),
}

/// A part of a leaf: `start..end` within it, from this offset of the payload, or zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub start: usize,
    pub end: usize,
    pub source: Option<usize>,
}

impl Change {
    /// Whether the leaf's old bytes are needed.
    pub fn needs_old(&self) -> bool {
        match self {
            Self::Hole | Self::Whole { .. } => false,
            Self::Merge(parts) => parts.iter().map(|part| part.end - part.start).sum::<usize>() < LEAF,
        }
    }

    /// Zeros only: no leaf need be made for it where there is a hole.
    pub fn only_zeros(&self) -> bool {
        match self {
            Self::Hole => true,
            Self::Whole { .. } => false,
            Self::Merge(parts) => parts.iter().all(|part| part.source.is_none()),
        }
    }
}

/// Writes the parts over a leaf's old bytes.
pub fn merge(leaf: &mut [u8], parts: &[Part], payload: &[u8]) {
    for part in parts {
        let target = &mut leaf[part.start..part.end];
        match part.source {
            Some(at) => target.copy_from_slice(&payload[at..at + part.end - part.start]),
            None => target.fill(0),
        }
    }
}

/// Checks everything that can be checked without the payload or the replica.
pub fn check(request: &DeltaRequest, payload_bytes: usize) -> Result<(), Fault> {
    let malformed =
        |why: String| Err(Fault::new(Code::Malformed, format!("delta for chunk {}: {why}", request.chunk)));
    check_chunk_bytes(request.chunk_bytes)?;
    if request.epoch.0 == 0 {
        return malformed("epochs begin with 1".into());
    }
    if payload_bytes > MAX_DELTA_BYTES {
        return malformed(format!("a payload of {payload_bytes} bytes, more than {MAX_DELTA_BYTES}"));
    }
    if request.extents.len() > MAX_DELTA_EXTENTS || request.chain.len() >= MAX_MEMBERS {
        return malformed(format!("{} extents, {} members", request.extents.len(), request.chain.len()));
    }
    let (mut reached, mut bytes, mut pieces) = (0u32, 0u64, 0usize);
    for extent in &request.extents {
        let end = extent.offset.checked_add(extent.len).filter(|end| *end <= request.chunk_bytes);
        let Some(end) = end.filter(|_| extent.len > 0 && extent.offset >= reached) else {
            return malformed(format!(
                "extent {}+{} overlaps or exceeds the chunk",
                extent.offset, extent.len
            ));
        };
        reached = end;
        if extent.fill == Fill::Bytes {
            bytes += u64::from(extent.len);
            pieces += sums::pieces(extent.offset, extent.len).count();
        }
    }
    if bytes != payload_bytes as u64 || pieces != request.sums.len() {
        let sums = request.sums.len();
        return malformed(format!(
            "{bytes} bytes in {pieces} pieces, but {payload_bytes} came with {sums} sums"
        ));
    }
    Ok(())
}

pub fn check_chunk_bytes(chunk_bytes: u32) -> Result<(), Fault> {
    if chunk_bytes.is_power_of_two() && (MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES).contains(&chunk_bytes) {
        return Ok(());
    }
    Err(Fault::new(Code::Malformed, format!("a chunk size of {chunk_bytes} bytes is not allowed")))
}

/// Checks the payload of a request that passed [`check`] against its sums.
pub fn verify(request: &DeltaRequest, payload: &[u8]) -> Result<(), Fault> {
    for (piece, sum) in payload_pieces(&request.extents).zip(&request.sums) {
        let bytes = &payload[piece.at..piece.at + piece.end - piece.start];
        if sums::piece(request.chunk, piece.leaf, bytes) != *sum {
            let detail = format!(
                "delta for chunk {}: the bytes of leaf {} do not match their sum",
                request.chunk, piece.leaf
            );
            return Err(Fault::new(Code::Corrupt, detail));
        }
    }
    Ok(())
}

struct Piece {
    leaf: u32,
    start: usize,
    end: usize,
    at: usize,
}

fn payload_pieces(extents: &[Extent]) -> impl Iterator<Item = Piece> + '_ {
    let mut at = 0;
    extents.iter().filter(|extent| extent.fill == Fill::Bytes).flat_map(move |extent| {
        let base = at;
        at += extent.len as usize;
        sums::pieces(extent.offset, extent.len).map(move |(leaf, start, end)| {
            let in_leaf = (extent.offset as usize + start) % LEAF;
            Piece { leaf, start: in_leaf, end: in_leaf + end - start, at: base + start }
        })
    })
}

/// The changes of a request that passed [`check`], ascending by leaf.
pub fn changes(request: &DeltaRequest) -> Vec<(u32, Change)> {
    let mut all: Vec<(u32, Change)> = Vec::new();
    let mut at = 0;
    let mut next_sum = request.sums.iter();
    for extent in &request.extents {
        for (leaf, start, end) in sums::pieces(extent.offset, extent.len) {
            let in_leaf = (extent.offset as usize + start) % LEAF;
            let whole = end - start == LEAF;
            let source = (extent.fill == Fill::Bytes).then_some(at + start);
            let sum = if source.is_some() { next_sum.next().copied().unwrap_or(0) } else { 0 };
            let part = Part { start: in_leaf, end: in_leaf + end - start, source };
            match (all.last_mut(), source) {
                (Some((last, Change::Merge(parts))), _) if *last == leaf => parts.push(part),
                (_, None) if whole => all.push((leaf, Change::Hole)),
                (_, Some(at)) if whole => all.push((leaf, Change::Whole { at, sum })),
                _ => all.push((leaf, Change::Merge(vec![part]))),
            }
        }
        if extent.fill == Fill::Bytes {
            at += extent.len as usize;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use godrive_proto::time::Timestamp;
    use godrive_proto::{ChunkId, DiskId, Epoch, OpId, Version};

    fn request(extents: Vec<Extent>, payload: &[u8]) -> DeltaRequest {
        let mut request = DeltaRequest {
            chunk: ChunkId(1),
            chunk_bytes: MIN_CHUNK_BYTES,
            disk: DiskId(1),
            epoch: Epoch(1),
            base: Version(0),
            op: OpId::default(),
            extents,
            sums: Vec::new(),
            chain: Vec::new(),
            sync: false,
            mtime: Timestamp(0),
        };
        let pieces = payload_pieces(&request.extents);
        let sum = |piece: Piece| {
            sums::piece(ChunkId(1), piece.leaf, &payload[piece.at..piece.at + piece.end - piece.start])
        };
        request.sums = pieces.map(sum).collect();
        request
    }

    fn bytes(offset: u32, len: u32) -> Extent {
        Extent { offset, len, fill: Fill::Bytes }
    }

    fn hole(offset: u32, len: u32) -> Extent {
        Extent { offset, len, fill: Fill::Hole }
    }

    #[test]
    fn extents_become_changes_of_leaves() {
        let payload = vec![9; 10 + 4096 + 4000];
        let request =
            request(vec![bytes(100, 10), hole(200, 50), bytes(4096, 8096), hole(12_200, 8_280)], &payload);
        check(&request, payload.len()).unwrap();
        verify(&request, &payload).unwrap();
        let part = |start, end, source| Part { start, end, source };
        let sum = request.sums[1];
        assert_eq!(
            changes(&request),
            [
                (0, Change::Merge(vec![part(100, 110, Some(0)), part(200, 250, None)])),
                (1, Change::Whole { at: 10, sum }),
                (2, Change::Merge(vec![part(0, 4000, Some(4106)), part(4008, 4096, None)])),
                (3, Change::Hole),
                (4, Change::Hole),
            ]
        );
    }

    #[test]
    fn impossible_extents_are_refused() {
        let cases = [
            vec![bytes(MIN_CHUNK_BYTES - 1, 2)],
            vec![bytes(u32::MAX, 2)],
            vec![bytes(0, 0)],
            vec![hole(10, 10), hole(19, 1)],
            vec![hole(10, 10), hole(0, 1)],
        ];
        for extents in cases {
            let mut request = request(Vec::new(), &[]);
            request.sums = vec![0; 1];
            request.extents = extents.clone();
            assert_eq!(check(&request, 2).unwrap_err().code, Code::Malformed, "{extents:?}");
        }
        let good = request(vec![bytes(0, 2)], &[1, 2]);
        check(&good, 2).unwrap();
        assert!(check(&good, 3).is_err());
        assert!(check(&DeltaRequest { chunk_bytes: 12_345, ..good.clone() }, 2).is_err());
        assert!(check(&DeltaRequest { sums: vec![], ..good.clone() }, 2).is_err());
        assert_eq!(verify(&good, &[1, 3]).unwrap_err().code, Code::Corrupt);
    }
}
