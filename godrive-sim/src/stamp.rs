//! What the workload writes: blocks that say who wrote them, when in its order, and where they belong, and whose
//! every byte follows from that. A block that is torn, misplaced or made of two writes does not parse.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

const MAGIC: [u8; 8] = *b"GDblock\x01";
const HEADER_BYTES: usize = 32;

/// Names one write of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    pub client: u16,
    pub sequence: u64,
}

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Zeros: never written.
    Nothing,
    Written(Stamp),
    /// Neither zeros nor the whole of one write to this place.
    Torn,
}

pub fn block(stamp: Stamp, place: u64, len: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(len.max(HEADER_BYTES) + 8);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&u64::from(stamp.client).to_le_bytes());
    bytes.extend_from_slice(&stamp.sequence.to_le_bytes());
    bytes.extend_from_slice(&place.to_le_bytes());
    let seed = xxh3_64_with_seed(&bytes, 0);
    let mut at = 0u64;
    while bytes.len() < len {
        bytes.extend_from_slice(&xxh3_64_with_seed(&at.to_le_bytes(), seed).to_le_bytes());
        at += 1;
    }
    bytes.truncate(len);
    bytes.into()
}

pub fn read(bytes: &[u8], place: u64) -> Found {
    if bytes.iter().all(|byte| *byte == 0) {
        return Found::Nothing;
    }
    let field =
        |at: usize| bytes.get(at..at + 8).and_then(|field| field.try_into().ok()).map(u64::from_le_bytes);
    let (Some(client), Some(sequence)) = (field(8), field(16)) else { return Found::Torn };
    let Ok(client) = u16::try_from(client) else { return Found::Torn };
    let stamp = Stamp { client, sequence };
    if bytes == block(stamp, place, bytes.len()) { Found::Written(stamp) } else { Found::Torn }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_tells_whose_it_is_and_every_damage_shows() {
        let stamp = Stamp { client: 3, sequence: 99 };
        let bytes = block(stamp, 7, 3001);
        assert_eq!(read(&bytes, 7), Found::Written(stamp));
        assert_eq!(read(&bytes, 8), Found::Torn);
        assert_eq!(read(&bytes[..3000], 7), Found::Written(stamp));
        assert_eq!(read(&[0; 3001], 7), Found::Nothing);
        for at in (0..3001).step_by(13) {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1;
            assert_eq!(read(&damaged, 7), Found::Torn, "byte {at}");
        }
        let mixed = [&bytes[..1500], &block(Stamp { client: 3, sequence: 100 }, 7, 3001)[1500..]].concat();
        assert_eq!(read(&mixed, 7), Found::Torn);
    }
}
