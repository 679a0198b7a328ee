//! Verifies what a slave answered to a read against the digest that a lease carries. Pure.
//!
//! The chain of evidence: the group sums hash to the digest, the leaf sums of each touched group hash to its group
//! sum, each leaf's bytes hash to its leaf sum, and a leaf whose sum is 0 is a hole without bytes.

use crate::data::Proof;
use crate::limits::{GROUP_LEAVES, LEAF_BYTES};
use crate::{ChunkId, Digest, sums};
use bytes::{Bytes, BytesMut};

const LEAF: usize = LEAF_BYTES as usize;

/// Leaves that share one buffer start at a multiple of this: few enough that a cached leaf does not keep much else
/// alive, and as many as the page cache keeps together.
const BUFFER_LEAVES: u32 = 16;

/// Leaves that follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub first: u32,
    /// At least 1.
    pub leaves: u32,
    /// Their bytes; None where they are holes.
    pub bytes: Option<Bytes>,
}

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub chunk: ChunkId,
    pub chunk_bytes: u32,
    pub digest: Digest,
    pub first_leaf: u32,
    /// At least 1, and within the chunk.
    pub leaves: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    #[error("the proof has {0} {1} sums instead of {2}")]
    Shape(usize, &'static str, usize),
    #[error("the group sums do not hash to the digest {0}")]
    Digest(Digest),
    #[error("the leaf sums of group {0} do not hash to its sum")]
    Group(u32),
    #[error("the payload has {0} bytes instead of {1}")]
    Payload(usize, usize),
    #[error("the bytes of leaf {0} do not hash to its sum")]
    Leaf(u32),
}

/// All wanted leaves, ascending. `payload` may be cut anywhere.
pub fn verify(wanted: &Wanted, proof: &Proof, payload: &[Bytes]) -> Result<Vec<Run>, ProofError> {
    let leaf_sums = verified_sums(wanted, proof)?;
    let full = leaf_sums.iter().filter(|sum| **sum != sums::HOLE).count();
    let payload_bytes: usize = payload.iter().map(Bytes::len).sum();
    if payload_bytes != full * LEAF {
        return Err(ProofError::Payload(payload_bytes, full * LEAF));
    }
    let mut payload = Pieces { pieces: payload, at: 0 };
    let mut runs = Vec::new();
    let (mut first, mut left) = (wanted.first_leaf, leaf_sums);
    while let Some(sum) = left.first() {
        let is_hole = *sum == sums::HOLE;
        let most = if is_hole { left.len() } else { (BUFFER_LEAVES - first % BUFFER_LEAVES) as usize };
        let alike = left.iter().take(most).take_while(|sum| (**sum == sums::HOLE) == is_hole).count();
        let (run, rest) = left.split_at(alike);
        let leaves = run.len() as u32;
        let bytes = if is_hole { None } else { Some(joined(wanted.chunk, first, run, &mut payload)?) };
        runs.push(Run { first, leaves, bytes });
        (first, left) = (first + leaves, rest);
    }
    Ok(runs)
}

/// The bytes of leaves that are not holes, each of which hashes to its sum.
fn joined(chunk: ChunkId, first: u32, sums: &[u64], payload: &mut Pieces<'_>) -> Result<Bytes, ProofError> {
    let bytes = payload.take(sums.len() * LEAF);
    for ((leaf, sum), bytes) in (first..).zip(sums).zip(bytes.chunks(LEAF)) {
        if sums::piece(chunk, leaf, bytes) != *sum {
            return Err(ProofError::Leaf(leaf));
        }
    }
    Ok(bytes)
}

/// The sums of the wanted leaves, after they were traced to the digest.
fn verified_sums<'a>(wanted: &Wanted, proof: &'a Proof) -> Result<&'a [u64], ProofError> {
    let groups = sums::groups_in(wanted.chunk_bytes) as usize;
    if proof.groups.len() != groups {
        return Err(ProofError::Shape(proof.groups.len(), "group", groups));
    }
    if sums::digest(wanted.chunk, &proof.groups) != wanted.digest {
        return Err(ProofError::Digest(wanted.digest));
    }
    let first_group = wanted.first_leaf / GROUP_LEAVES;
    let last_group = (wanted.first_leaf + wanted.leaves - 1) / GROUP_LEAVES;
    let expected = ((last_group - first_group + 1) * GROUP_LEAVES) as usize;
    if proof.leaves.len() != expected {
        return Err(ProofError::Shape(proof.leaves.len(), "leaf", expected));
    }
    for (group, leaf_sums) in (first_group..).zip(proof.leaves.chunks_exact(GROUP_LEAVES as usize)) {
        if proof.groups.get(group as usize) != Some(&sums::group(leaf_sums)) {
            return Err(ProofError::Group(group));
        }
    }
    let start = (wanted.first_leaf - first_group * GROUP_LEAVES) as usize;
    Ok(&proof.leaves[start..start + wanted.leaves as usize])
}

/// A payload in packet-sized pieces, of which each byte is copied once.
struct Pieces<'a> {
    pieces: &'a [Bytes],
    /// Offset in the first piece.
    at: usize,
}

impl Pieces<'_> {
    /// The next bytes; the caller has checked that there are enough.
    fn take(&mut self, wanted: usize) -> Bytes {
        let mut joined = BytesMut::with_capacity(wanted);
        while joined.len() < wanted
            && let Some(piece) = self.pieces.first()
        {
            let take = (piece.len() - self.at).min(wanted - joined.len());
            joined.extend_from_slice(&piece[self.at..self.at + take]);
            self.at += take;
            if self.at == piece.len() {
                self.pieces = &self.pieces[1..];
                self.at = 0;
            }
        }
        joined.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: ChunkId = ChunkId(7);
    const CHUNK_BYTES: u32 = 1 << 20;

    /// A chunk of 256 leaves in which every third is a hole.
    fn chunk() -> (Vec<Option<Vec<u8>>>, Vec<u64>, Vec<u64>) {
        let leaves: Vec<Option<Vec<u8>>> =
            (0..256u32).map(|leaf| (leaf % 3 != 0).then(|| vec![leaf as u8; LEAF])).collect();
        let leaf_sums: Vec<u64> = (0..)
            .zip(&leaves)
            .map(|(leaf, bytes)| bytes.as_ref().map_or(sums::HOLE, |bytes| sums::piece(CHUNK, leaf, bytes)))
            .collect();
        let groups = leaf_sums.chunks(GROUP_LEAVES as usize).map(sums::group).collect();
        (leaves, leaf_sums, groups)
    }

    fn asked(first: u32, count: u32, piece_bytes: usize) -> (Wanted, Proof, Vec<Bytes>) {
        let (leaves, leaf_sums, groups) = chunk();
        let wanted = Wanted {
            chunk: CHUNK,
            chunk_bytes: CHUNK_BYTES,
            digest: sums::digest(CHUNK, &groups),
            first_leaf: first,
            leaves: count,
        };
        let from = (first / GROUP_LEAVES * GROUP_LEAVES) as usize;
        let to = ((first + count).div_ceil(GROUP_LEAVES) * GROUP_LEAVES) as usize;
        let range = first as usize..(first + count) as usize;
        let bytes: Vec<u8> = leaves[range].iter().flatten().flatten().copied().collect();
        let payload = bytes.chunks(piece_bytes).map(Bytes::copy_from_slice).collect();
        (wanted, Proof { groups, leaves: leaf_sums[from..to].to_vec() }, payload)
    }

    #[test]
    fn every_range_and_every_cut_verifies() {
        let (leaves, ..) = chunk();
        for (first, count) in [(0, 256), (0, 1), (1, 1), (63, 2), (100, 90), (255, 1)] {
            for piece_bytes in [1200, 4096, 1 << 20] {
                let (wanted, proof, payload) = asked(first, count, piece_bytes);
                let got = verify(&wanted, &proof, &payload).unwrap();
                let mut next = first;
                for run in &got {
                    assert_eq!(run.first, next);
                    next += run.leaves;
                    let expected = &leaves[run.first as usize..next as usize];
                    match &run.bytes {
                        None => assert!(expected.iter().all(Option::is_none)),
                        Some(bytes) => {
                            let expected: Vec<u8> =
                                expected.iter().flat_map(|leaf| leaf.clone().unwrap()).collect();
                            assert_eq!(bytes, &expected);
                            assert_eq!(run.first / BUFFER_LEAVES, (next - 1) / BUFFER_LEAVES);
                        }
                    }
                }
                assert_eq!(next, first + count);
            }
        }
    }

    #[test]
    fn one_flipped_bit_anywhere_is_found() {
        let (wanted, proof, payload) = asked(60, 10, 1200);
        let mut bad = payload.clone();
        let mut piece = bad[1].to_vec();
        piece[5] ^= 1;
        bad[1] = piece.into();
        assert!(matches!(verify(&wanted, &proof, &bad), Err(ProofError::Leaf(_))));

        let mut bad = proof.clone();
        bad.leaves[3] ^= 1;
        assert_eq!(verify(&wanted, &bad, &payload), Err(ProofError::Group(0)));

        let mut bad = proof.clone();
        bad.groups[3] ^= 1;
        assert_eq!(verify(&wanted, &bad, &payload), Err(ProofError::Digest(wanted.digest)));
    }

    #[test]
    fn a_hole_that_is_claimed_or_hidden_is_found() {
        let (wanted, proof, payload) = asked(64, 64, 4096);
        let mut bad = proof.clone();
        bad.leaves[1] = sums::HOLE;
        assert_eq!(verify(&wanted, &bad, &payload), Err(ProofError::Group(1)));
    }

    #[test]
    fn wrong_shapes_are_refused_without_a_panic() {
        let (wanted, proof, payload) = asked(10, 200, 4096);
        let mut bad = proof.clone();
        bad.leaves.pop();
        assert!(matches!(verify(&wanted, &bad, &payload), Err(ProofError::Shape(255, "leaf", 256))));
        let mut bad = proof.clone();
        bad.groups.clear();
        assert!(matches!(verify(&wanted, &bad, &payload), Err(ProofError::Shape(0, "group", 4))));
        assert!(matches!(verify(&wanted, &proof, &payload[1..]), Err(ProofError::Payload(..))));
        let mut longer = payload.clone();
        longer.push(Bytes::from_static(b"x"));
        assert!(matches!(verify(&wanted, &proof, &longer), Err(ProofError::Payload(..))));
    }
}
