//! The log of one disk: segment files that are only appended to. A record goes out with one write, a sync covers
//! everything written before it, and a segment is synced before the next one begins, so that only the last one can
//! end in the middle of something.

use crate::core::leaves::Location;
use crate::core::record::{BLOCK, Record, Secret, Stamp};
use godrive_disk::{Disk, DiskFile, GroupSync, Reserved, SyncFailed};
use godrive_proto::DiskId;
use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

pub const DIRECTORY: &str = "segments";
const MAGIC: &[u8; 8] = b"GDSEGMNT";
/// Open segment files.
const MAX_OPEN: NonZeroUsize = NonZeroUsize::new(256).unwrap();
/// Writing back begins after so many new bytes, so that a sync after a long stream is short.
const WRITEBACK_BYTES: u64 = 8 << 20;
/// After some syncs in a row that each cover few new blocks, the log goes on in blocks that were written before, so many
/// at a time: see [`godrive_disk::write_zeros`].
const SMALL_SYNCS: u32 = 4;
const SMALL_SYNC_BLOCKS: u32 = 16;
const ZERO_BLOCKS: u32 = 64;

pub fn path(segment: u32) -> String {
    format!("{DIRECTORY}/{segment:08x}.seg")
}

/// The segment that a file name stands for.
pub fn number(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".seg").filter(|digits| digits.len() == 8)?;
    u32::from_str_radix(digits, 16).ok()
}

/// The first block of a segment.
pub fn segment_header(stamp: Stamp, disk: DiskId, segment: u32, first_sequence: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&u32::from(stamp.format).to_le_bytes());
    bytes.extend_from_slice(&segment.to_le_bytes());
    bytes.extend_from_slice(&disk.0.to_le_bytes());
    bytes.extend_from_slice(&first_sequence.to_le_bytes());
    bytes.extend_from_slice(&stamp.secret.0.to_le_bytes());
    bytes.resize(BLOCK, 0);
    let sum = xxh3_64(&bytes[16..]);
    bytes[8..16].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// The first sequence of a segment whose header is whole and is what it should be.
pub fn check_segment_header(bytes: &[u8], stamp: Stamp, disk: DiskId, segment: u32) -> Option<u64> {
    let first = u64::from_le_bytes(bytes.get(40..48)?.try_into().ok()?);
    (bytes == segment_header(stamp, disk, segment, first)).then_some(first)
}

/// The header is whole, and says that the segment has another secret, or is of another format.
pub fn has_another_stamp(bytes: &[u8], stamp: Stamp, disk: DiskId, segment: u32) -> bool {
    let secret = bytes.get(48..64).and_then(|secret| secret.try_into().ok()).map(u128::from_le_bytes);
    let said = [Some(Stamp::OLD), secret.map(|secret| Stamp::new(Secret(secret)))];
    let whole = |said: &Stamp| check_segment_header(bytes, *said, disk, segment).is_some();
    said.into_iter().flatten().any(|said| said != stamp && whole(&said))
}

/// Where a record was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub header: Location,
    pub data: Location,
    pub sequence: u64,
}

pub struct Log {
    shared: Arc<Shared>,
    group: GroupSync,
}

struct Shared {
    disk: Arc<Reserved>,
    id: DiskId,
    stamp: Stamp,
    segment_blocks: u32,
    tail: Mutex<Tail>,
    open: Mutex<LruCache<u32, Arc<dyn DiskFile>>>,
    synced: AtomicU64,
    /// Why nothing becomes stable any more. Held during a sync: whoever syncs next must not take the success that the
    /// system reports after an error for its own.
    failed: Mutex<Option<String>>,
}

struct Tail {
    segment: u32,
    block: u32,
    file: Arc<dyn DiskFile>,
    next_sequence: u64,
    written_back: u32,
    /// What the last sync covered, and how many small ones there were in a row.
    sync_end: u32,
    small_syncs: u32,
    /// Blocks from [`Self::block`] to here hold zeros.
    zeros_end: u32,
}

impl Tail {
    fn new(segment: u32, file: Arc<dyn DiskFile>, next_sequence: u64) -> Self {
        Self {
            segment,
            block: 1,
            file,
            next_sequence,
            written_back: 1,
            sync_end: 1,
            small_syncs: 0,
            zeros_end: 1,
        }
    }
}

impl Log {
    /// Begins a new segment, durably.
    pub fn begin(
        disk: Arc<Reserved>,
        id: DiskId,
        secret: Secret,
        segment: u32,
        next_sequence: u64,
        segment_bytes: u64,
    ) -> io::Result<Self> {
        let stamp = Stamp::new(secret);
        let file = create_segment(&disk, &segment_header(stamp, id, segment, next_sequence), segment)?;
        let tail = Tail::new(segment, file, next_sequence);
        let instant = disk.is_instant();
        let shared = Arc::new(Shared {
            disk,
            id,
            stamp,
            segment_blocks: (segment_bytes / BLOCK as u64).max(16) as u32,
            tail: Mutex::new(tail),
            open: Mutex::new(LruCache::new(MAX_OPEN)),
            synced: AtomicU64::new(next_sequence - 1),
            failed: Mutex::default(),
        });
        let (syncing, slow) = (shared.clone(), shared.clone());
        let group = GroupSync::new(move || syncing.sync(), instant).taking(move || slow.disk.sync_takes());
        Ok(Self { shared, group })
    }

    /// Writes one record and its leaves; fills in sequence and place. After an error nothing was appended.
    pub fn append(&self, record: &mut Record, data: &[&[u8]]) -> io::Result<Place> {
        let mut guard = self.shared.tail();
        let tail = &mut *guard;
        let blocks = record.header_blocks() + record.data_blocks();
        if tail.block > 1 && tail.block + blocks > self.shared.segment_blocks {
            godrive_disk::blocking(self.shared.disk.is_instant(), || self.shared.rotate(tail))?;
        }
        record.sequence = tail.next_sequence;
        record.synced = self.synced();
        (record.segment, record.block) = (tail.segment, tail.block);
        let header = record.encode(self.shared.stamp);
        let mut pieces: Vec<&[u8]> = Vec::with_capacity(1 + data.len());
        pieces.push(&header);
        pieces.extend_from_slice(data);
        let offset = u64::from(tail.block) * BLOCK as u64;
        let write = || tail.file.write_at(&pieces, offset);
        // Data never takes what is kept for records without it.
        let written = if data.is_empty() { self.shared.disk.with_room(write) } else { write() };
        if let Err(error) = written {
            // What was written in part is given back; it could never verify as a record.
            if let Err(second) = tail.file.set_len(offset) {
                tracing::warn!(%second, segment = tail.segment, "cannot cut a segment after a failed write");
            }
            tail.zeros_end = tail.block;
            return Err(error);
        }
        let header = Location { segment: tail.segment, block: tail.block };
        let data = Location { segment: tail.segment, block: tail.block + record.header_blocks() };
        tail.block += blocks;
        tail.next_sequence += 1;
        self.shared.write_back(tail);
        Ok(Place { header, data, sequence: record.sequence })
    }

    /// Reads blocks that lie one after the other.
    pub fn read(&self, first: Location, buf: &mut [u8]) -> io::Result<()> {
        self.shared.file(first.segment)?.read_at(buf, u64::from(first.block) * BLOCK as u64)
    }

    pub fn punch(&self, first: Location, blocks: u32) -> io::Result<()> {
        let (offset, len) = (u64::from(first.block) * BLOCK as u64, u64::from(blocks) * BLOCK as u64);
        let file = self.shared.file(first.segment)?;
        self.shared.disk.with_room(|| file.punch(offset, len))
    }

    /// Removes a segment that nothing refers to any more.
    pub fn remove(&self, segment: u32) -> io::Result<()> {
        self.shared.open.lock().pop(&segment);
        match self.shared.disk.remove(&path(segment)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Where the next record goes, and its sequence.
    pub fn end(&self) -> (Location, u64) {
        let tail = self.shared.tail();
        (Location { segment: tail.segment, block: tail.block }, tail.next_sequence)
    }

    /// Everything up to this sequence is on stable storage.
    pub fn synced(&self) -> u64 {
        self.shared.synced.load(Ordering::Acquire)
    }

    /// Returns when everything appended so far is stable; shares the sync with others who wait.
    pub async fn sync(&self) -> Result<(), SyncFailed> {
        self.group.sync().await
    }

    /// See [`GroupSync::take_slowest`].
    pub fn take_slowest_sync(&self) -> Duration {
        self.group.take_slowest()
    }

    pub fn sync_now(&self) -> Result<(), SyncFailed> {
        self.group.sync_now()
    }
}

impl Shared {
    /// A rotation holds it over its syncs: whoever waits for that is in no other task's way.
    fn tail(&self) -> MutexGuard<'_, Tail> {
        let wait = || godrive_disk::blocking(self.disk.is_instant(), || self.tail.lock());
        self.tail.try_lock().unwrap_or_else(wait)
    }

    fn sync(&self) -> io::Result<()> {
        let (file, last) = {
            let mut tail = self.tail.lock();
            self.zero_ahead(&mut tail);
            (tail.file.clone(), tail.next_sequence - 1)
        };
        match last > self.synced.load(Ordering::Acquire) {
            true => self.make_stable(&*file, last),
            false => Ok(()),
        }
    }

    /// Syncs the last segment, and with it everything up to `last`.
    fn make_stable(&self, file: &dyn DiskFile, last: u64) -> io::Result<()> {
        let mut failed = self.failed.lock();
        if let Some(why) = &*failed {
            return Err(io::Error::other(why.clone()));
        }
        file.sync().map_err(sync_error).inspect_err(|error| *failed = Some(error.to_string()))?;
        self.synced.fetch_max(last, Ordering::AcqRel);
        Ok(())
    }

    fn zero_ahead(&self, tail: &mut Tail) {
        let fresh = tail.block - std::mem::replace(&mut tail.sync_end, tail.block);
        if fresh == 0 {
            return;
        }
        tail.small_syncs = if fresh <= SMALL_SYNC_BLOCKS { tail.small_syncs + 1 } else { 0 };
        let from = tail.zeros_end.max(tail.block);
        let until = (tail.block + ZERO_BLOCKS).min(self.segment_blocks);
        // There is enough for another like this.
        let enough = tail.zeros_end >= tail.block + fresh;
        if tail.small_syncs < SMALL_SYNCS || enough || until <= from {
            return;
        }
        let block = BLOCK as u64;
        match godrive_disk::write_zeros(&*tail.file, u64::from(from) * block, u64::from(until - from) * block)
        {
            Ok(()) => tail.zeros_end = until,
            // The log does without.
            Err(error) => tracing::debug!(%error, segment = tail.segment, "no zeros written ahead"),
        }
    }

    fn rotate(&self, tail: &mut Tail) -> io::Result<()> {
        if tail.zeros_end > tail.block
            && let Err(error) = tail.file.set_len(u64::from(tail.block) * BLOCK as u64)
        {
            tracing::debug!(%error, segment = tail.segment, "zeros stay behind the end of a segment");
        }
        self.make_stable(&*tail.file, tail.next_sequence - 1)?;
        let segment =
            tail.segment.checked_add(1).ok_or_else(|| io::Error::other("segment numbers are used up"))?;
        let header = segment_header(self.stamp, self.id, segment, tail.next_sequence);
        let file = create_segment(&self.disk, &header, segment)?;
        *tail = Tail::new(segment, file, tail.next_sequence);
        Ok(())
    }

    fn write_back(&self, tail: &mut Tail) {
        let block = BLOCK as u64;
        let fresh = u64::from(tail.block - tail.written_back) * block;
        if fresh >= WRITEBACK_BYTES {
            // Only a hint: the sync that follows reports what matters.
            if let Err(error) = tail.file.start_writeback(u64::from(tail.written_back) * block, fresh) {
                tracing::debug!(%error, "start of write-back refused");
            }
            tail.written_back = tail.block;
        }
    }

    fn file(&self, segment: u32) -> io::Result<Arc<dyn DiskFile>> {
        if let Some(file) = self.open.lock().get(&segment) {
            return Ok(file.clone());
        }
        let file = self.disk.plain().open(&path(segment), false)?;
        self.open.lock().put(segment, file.clone());
        Ok(file)
    }
}

/// What a sync could not write is lost, and the next one says Ok all the same: its error is final and never means
/// only that the disk is full.
fn sync_error(error: io::Error) -> io::Error {
    io::Error::other(format!("a sync failed: {error}"))
}

/// Nothing is left of a segment that could not be made.
fn create_segment(disk: &Reserved, header: &[u8], segment: u32) -> io::Result<Arc<dyn DiskFile>> {
    let path = path(segment);
    let create = || {
        let file = disk.with_room(|| {
            let file = disk.plain().open(&path, true)?;
            file.set_len(0)?;
            file.write_at(&[header], 0)?;
            Ok(file)
        })?;
        file.sync().map_err(sync_error)?;
        disk.sync_directory(DIRECTORY).map_err(sync_error)?;
        Ok(file)
    };
    create().inspect_err(|_: &io::Error| {
        if let Err(error) = disk.remove(&path) {
            tracing::debug!(%error, path, "no trace to remove");
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: Secret = Secret(0x71 << 64 | 0x72);

    /// The bytes of each format. A change here is a new format with a migration.
    #[test]
    fn golden_bytes() {
        let golden = [
            (Stamp::OLD, 48, include_str!("../../tests/golden/segment-1.hex")),
            (Stamp::new(SECRET), 64, include_str!("../../tests/golden/segment-2.hex")),
        ];
        for (stamp, len, golden) in golden {
            let header = segment_header(stamp, DiskId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10), 42, 70_000);
            let hex: String = header[..len].iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, golden.trim_end());
            assert!(header.len() == BLOCK && header[len..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn names_and_headers_are_strict() {
        assert_eq!(path(255), "segments/000000ff.seg");
        assert_eq!(number("000000ff.seg"), Some(255));
        for bad in ["ff.seg", "000000ff", "0000000g.seg", "x000000ff.seg"] {
            assert_eq!(number(bad), None);
        }
        let stamps = [Stamp::OLD, Stamp::new(SECRET), Stamp::new(Secret(0x72))];
        for stamp in stamps {
            let header = segment_header(stamp, DiskId(9), 4, 77);
            let check = |header: &[u8], disk, segment| check_segment_header(header, stamp, disk, segment);
            assert_eq!(check(&header, DiskId(9), 4), Some(77));
            assert_eq!(check(&header, DiskId(9), 5), None);
            assert_eq!(check(&header, DiskId(8), 4), None);
            for other in stamps.into_iter().filter(|other| *other != stamp) {
                assert_eq!(check_segment_header(&header, other, DiskId(9), 4), None);
                assert!(has_another_stamp(&header, other, DiskId(9), 4));
            }
            assert!(!has_another_stamp(&header, stamp, DiskId(9), 4));
            let mut damaged = header;
            damaged[100] ^= 1;
            assert_eq!(check(&damaged, DiskId(9), 4), None);
            assert!(!has_another_stamp(&damaged, Stamp::new(Secret(1)), DiskId(9), 4));
        }
    }
}
