//! The log record: one atomic change of the store, as bytes. `docs/STORE.md` is the reference; the golden bytes in
//! the tests pin it.
//!
//! A record is one or more 4 KiB header blocks, followed by the new leaves that are not holes. The header's sum
//! covers the header, each leaf's own sum (in the header) covers the leaf: a record that was written in part does
//! not verify. It names its own place and its position in the disk's order, so that bytes of an older file or of
//! another place do not verify either. It has the disk's secret, so that no block of a user's is one.

use super::leaves::LeafSum;
use godrive_proto::time::Timestamp;
use godrive_proto::{ChunkId, Digest, Epoch, OpId, SessionId, Version, sums};
use xxhash_rust::xxh3::xxh3_64;

pub const BLOCK: usize = 4096;
const MAGIC: &[u8; 8] = b"GDRECORD";
const FIXED: usize = 160;
/// Where the secret lies.
const SECRET: usize = 136;
/// A header never lists more than the leaves of the largest chunk, or so many deletions.
pub const MAX_ENTRIES: usize = 16_384;

/// What only who can read the disk knows: no user can write a block that has it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret(pub u128);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// How a segment and all of its records are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub format: u16,
    pub secret: Secret,
}

impl Stamp {
    /// Format 1 has no secret; it is only read.
    pub const OLD: Self = Self { format: 1, secret: Secret(0) };

    pub fn new(secret: Secret) -> Self {
        Self { format: 2, secret }
    }
}

/// How each segment of a disk is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamps {
    pub secret: Secret,
    /// The first segment that has it; those before are of format 1.
    pub since: u32,
}

impl Stamps {
    pub fn of(self, segment: u32) -> Stamp {
        if segment < self.since { Stamp::OLD } else { Stamp::new(self.secret) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A delta's new leaves.
    Delta = 1,
    Seal = 2,
    Install = 3,
    /// Removes replicas; each entry says which, and below which epoch the chunk may not be made anew.
    Delete = 4,
    /// The replica's contents become another's. With `keep_aside` the old ones move to (chunk, sequence) first.
    Copy = 5,
    /// The replica moves to (chunk, sequence): kept, not served.
    Aside = 6,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Delta, Self::Seal, Self::Install, Self::Delete, Self::Copy, Self::Aside];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deletion {
    pub chunk: ChunkId,
    pub aside: u64,
    /// A replica of this chunk is not made by a delta of an epoch below this any more.
    pub floor: Epoch,
}

/// State after the record, and what it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub kind: Kind,
    pub partial: bool,
    pub keep_aside: bool,
    /// Position in the disk's order, from 1 without gaps.
    pub sequence: u64,
    /// Everything up to this sequence was on stable storage when the record was written.
    pub synced: u64,
    /// Where the record lies.
    pub segment: u32,
    pub block: u32,
    pub chunk: ChunkId,
    pub chunk_bytes: u32,
    pub epoch: Epoch,
    pub sealed: Epoch,
    pub version: Version,
    pub op: OpId,
    pub digest: Digest,
    pub time: Timestamp,
    /// Ascending; [`sums::HOLE`] where the leaf becomes a hole.
    pub leaves: Vec<LeafSum>,
    pub deletions: Vec<Deletion>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("not a record")]
    NoMagic,
    #[error("a record of format {0} in a segment of another")]
    Format(u16),
    #[error("the record does not have the disk's secret")]
    Forged,
    #[error("the header's sum does not match")]
    Sum,
    #[error("the header says something impossible")]
    Impossible,
    #[error("the record names another place")]
    Misplaced,
}

impl Record {
    /// Blocks of the header.
    pub fn header_blocks(&self) -> u32 {
        (FIXED + self.leaves.len() * 12 + self.deletions.len() * 24).div_ceil(BLOCK) as u32
    }

    /// Leaves that follow the header.
    pub fn data_blocks(&self) -> u32 {
        self.leaves.iter().filter(|leaf| leaf.sum != sums::HOLE).count() as u32
    }

    pub fn encode(&self, stamp: Stamp) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.header_blocks() as usize * BLOCK);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&stamp.format.to_le_bytes());
        bytes.push(self.kind as u8);
        bytes.push(u8::from(self.partial) | u8::from(self.keep_aside) << 1);
        bytes.extend_from_slice(&self.header_blocks().to_le_bytes());
        bytes.extend_from_slice(&(self.leaves.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(self.deletions.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(&self.synced.to_le_bytes());
        bytes.extend_from_slice(&self.segment.to_le_bytes());
        bytes.extend_from_slice(&self.block.to_le_bytes());
        bytes.extend_from_slice(&self.chunk.0.to_le_bytes());
        bytes.extend_from_slice(&u64::from(self.chunk_bytes).to_le_bytes());
        bytes.extend_from_slice(&self.epoch.0.to_le_bytes());
        bytes.extend_from_slice(&self.sealed.0.to_le_bytes());
        bytes.extend_from_slice(&self.version.0.to_le_bytes());
        bytes.extend_from_slice(&self.op.session.0.to_le_bytes());
        bytes.extend_from_slice(&self.op.sequence.to_le_bytes());
        bytes.extend_from_slice(&self.digest.0.to_le_bytes());
        bytes.extend_from_slice(&self.time.0.to_le_bytes());
        bytes.extend_from_slice(&stamp.secret.0.to_le_bytes());
        bytes.resize(FIXED, 0);
        for leaf in &self.leaves {
            bytes.extend_from_slice(&leaf.leaf.to_le_bytes());
            bytes.extend_from_slice(&leaf.sum.to_le_bytes());
        }
        for deletion in &self.deletions {
            bytes.extend_from_slice(&deletion.chunk.0.to_le_bytes());
            bytes.extend_from_slice(&deletion.aside.to_le_bytes());
            bytes.extend_from_slice(&deletion.floor.0.to_le_bytes());
        }
        bytes.resize(self.header_blocks() as usize * BLOCK, 0);
        let sum = xxh3_64(&bytes[16..]);
        bytes[8..16].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// How many blocks the header has, from its first block. The number is not yet verified, only bounded.
    pub fn peek_blocks(first: &[u8], stamp: Stamp) -> Result<u32, RecordError> {
        let mut reader = Reader(first);
        if reader.take::<8>()? != *MAGIC {
            return Err(RecordError::NoMagic);
        }
        reader.take::<8>()?;
        let format = u16::from_le_bytes(reader.take()?);
        if format != stamp.format {
            return Err(RecordError::Format(format));
        }
        reader.take::<2>()?;
        let blocks = reader.u32()?;
        reader.take::<{ SECRET - 24 }>()?;
        if reader.take()? != stamp.secret.0.to_le_bytes() {
            return Err(RecordError::Forged);
        }
        let most = (FIXED + MAX_ENTRIES * 24).div_ceil(BLOCK) as u32;
        if blocks == 0 || blocks > most {
            return Err(RecordError::Impossible);
        }
        Ok(blocks)
    }

    /// Decodes and verifies a whole header that was read from this place.
    pub fn decode(bytes: &[u8], segment: u32, block: u32, stamp: Stamp) -> Result<Self, RecordError> {
        let blocks = Self::peek_blocks(bytes, stamp)?;
        let bytes = bytes.get(..blocks as usize * BLOCK).ok_or(RecordError::Impossible)?;
        let mut reader = Reader(&bytes[8..]);
        if reader.u64()? != xxh3_64(&bytes[16..]) {
            return Err(RecordError::Sum);
        }
        let record = Self::fields(&mut reader)?;
        if (record.segment, record.block) != (segment, block) {
            return Err(RecordError::Misplaced);
        }
        if record.header_blocks() != blocks {
            return Err(RecordError::Impossible);
        }
        Ok(record)
    }

    fn fields(reader: &mut Reader) -> Result<Self, RecordError> {
        reader.take::<2>()?;
        let [kind, flags] = reader.take()?;
        let kind = Kind::ALL.into_iter().find(|known| *known as u8 == kind).ok_or(RecordError::Impossible)?;
        reader.u32()?;
        let (leaves, deletions) = (reader.u32()? as usize, reader.u32()? as usize);
        if leaves > MAX_ENTRIES || deletions > MAX_ENTRIES || flags > 3 {
            return Err(RecordError::Impossible);
        }
        let mut record = Self {
            kind,
            partial: flags & 1 != 0,
            keep_aside: flags & 2 != 0,
            sequence: reader.u64()?,
            synced: reader.u64()?,
            segment: reader.u32()?,
            block: reader.u32()?,
            chunk: ChunkId(reader.u64()?),
            chunk_bytes: u32::try_from(reader.u64()?).map_err(|_| RecordError::Impossible)?,
            epoch: Epoch(reader.u64()?),
            sealed: Epoch(reader.u64()?),
            version: Version(reader.u64()?),
            op: OpId { session: SessionId(reader.u64()?), sequence: reader.u64()? },
            digest: Digest(u128::from_le_bytes(reader.take()?)),
            time: Timestamp(i64::from_le_bytes(reader.take()?)),
            leaves: Vec::with_capacity(leaves),
            deletions: Vec::with_capacity(deletions),
        };
        reader.take::<24>()?;
        for _ in 0..leaves {
            record.leaves.push(LeafSum { leaf: reader.u32()?, sum: reader.u64()? });
        }
        for _ in 0..deletions {
            let (chunk, aside) = (ChunkId(reader.u64()?), reader.u64()?);
            record.deletions.push(Deletion { chunk, aside, floor: Epoch(reader.u64()?) });
        }
        let ascending = record.leaves.windows(2).all(|pair| pair[0].leaf < pair[1].leaf);
        let bounded = record.leaves.iter().all(|leaf| leaf.leaf < sums::leaves_in(record.chunk_bytes));
        if record.kind != Kind::Delete && super::delta::check_chunk_bytes(record.chunk_bytes).is_err() {
            return Err(RecordError::Impossible);
        }
        if ascending && bounded { Ok(record) } else { Err(RecordError::Impossible) }
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(RecordError::Impossible)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, RecordError> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64, RecordError> {
        Ok(u64::from_le_bytes(self.take()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn example() -> Record {
        Record {
            kind: Kind::Delta,
            partial: false,
            keep_aside: true,
            sequence: 0x0102,
            synced: 0x0101,
            segment: 3,
            block: 5,
            chunk: ChunkId(0x11),
            chunk_bytes: 1 << 20,
            epoch: Epoch(0x21),
            sealed: Epoch(0x22),
            version: Version(0x23),
            op: OpId { session: SessionId(0x31), sequence: 0x32 },
            digest: Digest(0x41),
            time: Timestamp(-2),
            leaves: vec![LeafSum { leaf: 7, sum: 0x51 }, LeafSum { leaf: 8, sum: 0 }],
            deletions: vec![Deletion { chunk: ChunkId(0x61), aside: 0x62, floor: Epoch(0x63) }],
        }
    }

    const NEW: Stamp = Stamp { format: 2, secret: Secret(0x71 << 64 | 0x72) };

    /// The bytes of each format. A change here is a new format with a migration.
    #[test]
    fn golden_bytes() {
        let golden = [
            (Stamp::OLD, include_str!("../../tests/golden/record-1.hex")),
            (NEW, include_str!("../../tests/golden/record-2.hex")),
        ];
        for (stamp, golden) in golden {
            let bytes = example().encode(stamp);
            assert_eq!(bytes.len(), BLOCK);
            let hex: String = bytes[..FIXED + 48].iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, golden.split_whitespace().collect::<String>());
            assert!(bytes[FIXED + 48..].iter().all(|byte| *byte == 0));
            assert_eq!(Record::decode(&bytes, 3, 5, stamp), Ok(example()));
        }
    }

    #[test]
    fn a_record_is_of_its_segments_format_and_has_the_disks_secret() {
        let decode = |written, stamp| Record::decode(&example().encode(written), 3, 5, stamp);
        assert_eq!(decode(Stamp::OLD, NEW), Err(RecordError::Format(1)));
        assert_eq!(decode(NEW, Stamp::OLD), Err(RecordError::Format(2)));
        for guess in [0, 0x71 << 64, 0x72] {
            assert_eq!(decode(Stamp::new(Secret(guess)), NEW), Err(RecordError::Forged));
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let bytes = example().encode(NEW);
        for at in (0..FIXED + 60).chain([BLOCK - 1]) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert!(Record::decode(&damaged, 3, 5, NEW).is_err(), "byte {at}");
        }
        assert_eq!(Record::decode(&bytes, 3, 6, NEW), Err(RecordError::Misplaced));
        assert_eq!(Record::decode(&bytes[..100], 3, 5, NEW), Err(RecordError::Impossible));
        assert_eq!(Record::decode(&[0; BLOCK], 3, 5, NEW), Err(RecordError::NoMagic));
    }

    proptest! {
        #[test]
        fn hostile_headers_do_not_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..9000)) {
            let _ = Record::decode(&bytes, 0, 0, NEW);
            if bytes.len() >= SECRET + 16 {
                bytes[..8].copy_from_slice(MAGIC);
                bytes[16..18].copy_from_slice(&NEW.format.to_le_bytes());
                bytes[SECRET..SECRET + 16].copy_from_slice(&NEW.secret.0.to_le_bytes());
                bytes[20..24].copy_from_slice(&1u32.to_le_bytes());
                if bytes.len() >= BLOCK {
                    let sum = xxh3_64(&bytes[16..BLOCK]);
                    bytes[8..16].copy_from_slice(&sum.to_le_bytes());
                }
                let _ = Record::decode(&bytes, 0, 0, NEW);
            }
        }
    }
}
