//! The checksum tree of a chunk.
//!
//! A chunk is an array of 4 KiB leaves. A leaf that was never written (or was punched) is a hole: it
//! reads as zeros, takes no space and has the sum 0. Every other leaf has the xxh3-64 of its 4 KiB,
//! seeded with chunk id and leaf index so that a block that lies at the wrong place does not verify.
//! 64 leaves form a group, whose sum is the xxh3-64 over their sums (0 if all are holes); the chunk's
//! digest is the xxh3-128 over all group sums, seeded with the chunk id. Sums are hashed as little endian.
//!
//! Two levels make a proof small: a reader of one leaf needs its group's 64 leaf sums and the group sums.

use crate::limits::{GROUP_LEAVES, LEAF_BYTES};
use crate::{ChunkId, Digest};
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

/// The sum of a hole.
pub const HOLE: u64 = 0;

fn seed(chunk: ChunkId, leaf: u32) -> u64 {
    // Two odd multipliers (from splitmix64) keep neighbouring chunks and leaves far apart.
    (chunk.0 ^ 0x676f_6472_6976_6531).wrapping_mul(0xbf58_476d_1ce4_e5b9)
        ^ u64::from(leaf).wrapping_mul(0x94d0_49bb_1331_11eb)
}

/// The sum of bytes that lie within leaf `leaf`: the leaf sum if they are the whole leaf, else the sum
/// that guards a partial extent on its way. Never [`HOLE`].
pub fn piece(chunk: ChunkId, leaf: u32, bytes: &[u8]) -> u64 {
    xxh3_64_with_seed(bytes, seed(chunk, leaf)).max(1)
}

/// The sum of one group from its leaf sums (at most [`GROUP_LEAVES`], fewer only in tests).
pub fn group(leaves: &[u64]) -> u64 {
    if leaves.iter().all(|sum| *sum == HOLE) {
        return HOLE;
    }
    xxh3_64_with_seed(&le_bytes(leaves), 0).max(1)
}

/// The digest of a chunk from its group sums.
pub fn digest(chunk: ChunkId, groups: &[u64]) -> Digest {
    Digest(xxh3_128_with_seed(&le_bytes(groups), seed(chunk, u32::MAX)))
}

/// The digest of a chunk that has only holes.
pub fn empty_digest(chunk: ChunkId, chunk_bytes: u32) -> Digest {
    digest(chunk, &vec![HOLE; groups_in(chunk_bytes) as usize])
}

pub fn leaves_in(chunk_bytes: u32) -> u32 {
    chunk_bytes / LEAF_BYTES
}

pub fn groups_in(chunk_bytes: u32) -> u32 {
    leaves_in(chunk_bytes) / GROUP_LEAVES
}

/// Where a byte range splits at leaf boundaries: (leaf, start, end) with offsets within the range.
pub fn pieces(offset: u32, len: u32) -> impl Iterator<Item = (u32, usize, usize)> {
    let mut at = 0u32;
    std::iter::from_fn(move || {
        if at >= len {
            return None;
        }
        let position = offset + at;
        let take = (LEAF_BYTES - position % LEAF_BYTES).min(len - at);
        let piece = (position / LEAF_BYTES, at as usize, (at + take) as usize);
        at += take;
        Some(piece)
    })
}

fn le_bytes(sums: &[u64]) -> Vec<u8> {
    sums.iter().flat_map(|sum| sum.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_at_the_wrong_place_does_not_verify() {
        let block = [7u8; LEAF_BYTES as usize];
        let here = piece(ChunkId(1), 0, &block);
        assert_ne!(here, piece(ChunkId(1), 1, &block));
        assert_ne!(here, piece(ChunkId(2), 0, &block));
    }

    #[test]
    fn swapped_leaves_and_groups_change_the_digest() {
        assert_ne!(group(&[1, 2]), group(&[2, 1]));
        assert_ne!(digest(ChunkId(1), &[1, 2]), digest(ChunkId(1), &[2, 1]));
        assert_eq!(group(&[HOLE; 64]), HOLE);
    }

    #[test]
    fn pieces_split_at_leaf_boundaries() {
        let all: Vec<_> = pieces(4000, 5000).collect();
        assert_eq!(all, [(0, 0, 96), (1, 96, 4192), (2, 4192, 5000)]);
        assert_eq!(pieces(0, 0).count(), 0);
    }
}
