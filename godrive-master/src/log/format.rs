//! The log's bytes, format version 1. All numbers are little endian.
//!
//! ```text
//! segment   "GDLOGSEG" · version u32 · 0 u32 · cluster u128 · first index u64 · 0 u64 · 0 u64 · checksum u64   (72 bytes)
//! record    checksum u64 · body length u32 · 0 u32 · index u64 · term u64 · synced u64 · body · zeros to 8
//! ```
//!
//! A checksum is the xxh3-64 of what follows it in a record (header and body), or precedes it in a segment's
//! header, seeded with the cluster: bytes of another cluster do not verify. `synced` is the highest index that was
//! known to be on stable storage when the record was written. It tells a torn tail from a damaged disk: where a
//! damaged record is followed by an intact one that knew it to be synced, the disk has lost what it had promised.

use godrive_proto::{ClusterId, LogIndex, Term};
use xxhash_rust::xxh3::xxh3_64_with_seed;

pub const VERSION: u32 = 1;
pub const SEGMENT_HEADER_BYTES: usize = 72;
pub const RECORD_HEADER_BYTES: usize = 40;
/// No record is larger; a larger length is damage.
pub const MAX_RECORD_BYTES: usize = 4 << 20;

const MAGIC: &[u8; 8] = b"GDLOGSEG";

/// Why a segment's header is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    Damaged,
    Version(u32),
    Cluster(ClusterId),
}

/// What stands before a record's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    pub index: LogIndex,
    pub term: Term,
    pub synced: LogIndex,
}

pub fn seed(cluster: ClusterId) -> u64 {
    (cluster.0 >> 64) as u64 ^ cluster.0 as u64
}

pub fn number(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

pub fn half(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

pub fn segment_header(cluster: ClusterId, first: LogIndex) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SEGMENT_HEADER_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&cluster.0.to_le_bytes());
    bytes.extend_from_slice(&first.0.to_le_bytes());
    bytes.extend_from_slice(&[0; 24]);
    let checksum = xxh3_64_with_seed(&bytes, seed(cluster));
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

/// The index of the segment's first record.
pub fn read_segment_header(bytes: &[u8], cluster: ClusterId) -> Result<LogIndex, HeaderError> {
    if bytes.len() < SEGMENT_HEADER_BYTES || !bytes.starts_with(MAGIC) {
        return Err(HeaderError::Damaged);
    }
    let version = half(bytes, 8);
    let found = ClusterId(u128::from(number(bytes, 16)) | u128::from(number(bytes, 24)) << 64);
    let covered = SEGMENT_HEADER_BYTES - 8;
    if xxh3_64_with_seed(&bytes[..covered], seed(found)) != number(bytes, covered) {
        return Err(HeaderError::Damaged);
    }
    if version != VERSION {
        return Err(HeaderError::Version(version));
    }
    if found != cluster {
        return Err(HeaderError::Cluster(found));
    }
    Ok(LogIndex(number(bytes, 32)))
}

/// Appends one record to `bytes`.
pub fn write_record(bytes: &mut Vec<u8>, cluster: ClusterId, header: RecordHeader, body: &[u8]) {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&header.index.0.to_le_bytes());
    bytes.extend_from_slice(&header.term.0.to_le_bytes());
    bytes.extend_from_slice(&header.synced.0.to_le_bytes());
    bytes.extend_from_slice(body);
    let checksum = xxh3_64_with_seed(&bytes[start + 8..], seed(cluster));
    bytes[start..start + 8].copy_from_slice(&checksum.to_le_bytes());
    bytes.resize(start + record_bytes(body.len()), 0);
}

/// What a record with a body of this length takes.
pub fn record_bytes(body: usize) -> usize {
    (RECORD_HEADER_BYTES + body).next_multiple_of(8)
}

/// The record at the start of `bytes`, if one lies there whole and intact.
pub fn read_record(bytes: &[u8], cluster: ClusterId) -> Option<(RecordHeader, &[u8])> {
    let length = half(bytes.get(..RECORD_HEADER_BYTES)?, 8) as usize;
    if length > MAX_RECORD_BYTES {
        return None;
    }
    let body = bytes.get(..record_bytes(length))?.get(RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + length)?;
    if xxh3_64_with_seed(&bytes[8..RECORD_HEADER_BYTES + length], seed(cluster)) != number(bytes, 0) {
        return None;
    }
    let header = RecordHeader {
        index: LogIndex(number(bytes, 16)),
        term: Term(number(bytes, 24)),
        synced: LogIndex(number(bytes, 32)),
    };
    Some((header, body))
}
