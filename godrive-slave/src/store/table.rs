//! The checkpointed index of a disk: redb tables with every replica's state and leaf map as of one position of the
//! log. Written in one transaction per checkpoint; whatever the log has beyond that position is replayed.

use crate::core::leaves::{Group, GroupSet, LeafMap, Location};
use crate::core::replica::{Key, Life, Replica};
use godrive_disk::{Disk, FileBackend, FileErrors};
use godrive_proto::data::Contents;
use godrive_proto::limits::GROUP_LEAVES;
use godrive_proto::time::Timestamp;
use godrive_proto::{ChunkId, Digest, Epoch, LogIndex, OpId, Term, Version, sums};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

pub const FILE: &str = "index.redb";
/// The version of every value here.
const FORMAT: u8 = 1;
const CACHE_BYTES: usize = 64 << 20;

type Rows<'a> = TableDefinition<'a, (u64, u64), &'static [u8]>;
/// (aside, chunk) → [`Row`].
const REPLICAS: Rows = TableDefinition::new("replicas");
/// (aside, chunk, group) → sums and places.
const GROUPS: TableDefinition<(u64, u64, u32), &[u8]> = TableDefinition::new("groups");
/// chunk → [`Bar`].
const BARS: TableDefinition<u64, &[u8]> = TableDefinition::new("bars");
/// segment → leaves in it that are referred to.
const SEGMENTS: TableDefinition<u32, u32> = TableDefinition::new("segments");
/// `checkpoint` → [`Checkpoint`].
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

/// Where the replay begins, and what the slave must not forget.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    pub segment: u32,
    pub block: u32,
    pub next_sequence: u64,
    /// Given back to the disk after this checkpoint; done again after a crash.
    pub frees: Vec<Run>,
    /// The highest term and log index of the master that were seen.
    pub term: Term,
    pub seen: LogIndex,
}

/// Blocks that lie one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Run {
    pub segment: u32,
    pub block: u32,
    pub blocks: u32,
}

/// What remains of a chunk that is not here: no delta of an epoch below `floor` makes it anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bar {
    pub floor: Epoch,
    pub since: Timestamp,
}

impl Bar {
    pub fn raised(self, other: Self) -> Self {
        Self { floor: self.floor.max(other.floor), since: self.since.max(other.since) }
    }
}

/// A replica without its leaf map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub chunk_bytes: u32,
    pub epoch: Epoch,
    pub sealed: Epoch,
    pub version: Version,
    pub digest: Digest,
    pub last_op: OpId,
    pub partial: bool,
    pub since: Timestamp,
    pub position: u64,
    pub used_bytes: u32,
}

impl Row {
    pub fn of(replica: &Replica) -> Self {
        Self {
            chunk_bytes: replica.leaves.chunk_bytes(),
            epoch: replica.epoch,
            sealed: replica.sealed,
            version: replica.version,
            digest: replica.leaves.digest(),
            last_op: replica.last_op,
            partial: replica.partial,
            since: replica.since,
            position: replica.position,
            used_bytes: replica.used_bytes(),
        }
    }

    pub fn contents(&self) -> Contents {
        Contents { version: self.version, digest: self.digest }
    }

    /// Of replicas of a chunk on several disks the one that ranks highest counts.
    pub fn rank(&self) -> (Epoch, Version) {
        (self.epoch, self.version)
    }
}

/// One checkpoint's transaction.
#[derive(Default)]
pub struct Changes {
    /// Dropped with all their groups, before the rows are written.
    pub removed: Vec<Key>,
    pub rows: Vec<(Key, Row)>,
    pub groups: Vec<(Key, u32, Option<Vec<u8>>)>,
    pub bars: BTreeMap<ChunkId, Bar>,
    /// Bars older than this are forgotten.
    pub forget_bars_before: Option<Timestamp>,
    /// None: the segment is gone.
    pub segments: Vec<(u32, Option<u32>)>,
    pub checkpoint: Checkpoint,
}

pub struct Table {
    db: Database,
    errors: Arc<FileErrors>,
}

fn no_room() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, format!("{FILE}: no room"))
}

fn to_io(error: impl Into<redb::Error>) -> io::Error {
    match error.into() {
        redb::Error::Io(error) => error,
        other => io::Error::other(format!("{FILE}: {other}")),
    }
}

/// redb breaks off where it meets a page that it cannot have written.
pub(super) fn caught<T>(act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let broke_off = |_| {
        let text = format!("{FILE}: a page holds what was never written to it");
        Err(io::Error::new(io::ErrorKind::InvalidData, text))
    };
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)).unwrap_or_else(broke_off)
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{FILE}: {what} does not decode"))
}

fn encode<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    postcard::to_extend(value, vec![FORMAT]).map_err(io::Error::other)
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> io::Result<T> {
    match bytes.split_first() {
        Some((&FORMAT, rest)) => postcard::from_bytes(rest).map_err(|_| damaged(what)),
        Some((format, _)) => {
            let text = format!("{FILE}: {what} has format {format}; this program knows {FORMAT}");
            Err(io::Error::new(io::ErrorKind::InvalidData, text))
        }
        None => Err(damaged(what)),
    }
}

impl Table {
    /// Opens or, with `create`, makes the file; all of it is on the medium and has the checksums that it should have.
    pub fn open(disk: &dyn Disk, create: bool) -> io::Result<Self> {
        let file = disk.open(FILE, create)?;
        file.drop_cache()?;
        let backend = FileBackend::new(file);
        let errors = backend.errors();
        let db = godrive_disk::open_verified(backend, CACHE_BYTES).map_err(to_io)?;
        // What it met on the way has done no harm.
        errors.forget();
        Ok(Self { db, errors })
    }

    /// Opens it after [`Self::ran_full`], without reading all of it.
    pub fn open_again(disk: &dyn Disk) -> io::Result<Self> {
        let backend = FileBackend::new(disk.open(FILE, false)?);
        let errors = backend.errors();
        match godrive_disk::open_again(backend, CACHE_BYTES) {
            Ok(db) => Ok(Self { db, errors }),
            Err(_) if errors.only_full() => Err(no_room()),
            Err(error) => Err(to_io(error)),
        }
    }

    /// There was no room for something, so that every answer may be a refusal. As of the last commit all is well.
    pub fn ran_full(&self) -> bool {
        self.errors.only_full()
    }

    pub fn commit(&self, changes: &Changes) -> io::Result<()> {
        caught(|| self.write(changes)).map_err(|error| if self.ran_full() { no_room() } else { error })
    }

    fn write(&self, changes: &Changes) -> io::Result<()> {
        let mut write = self.db.begin_write().map_err(to_io)?;
        write.set_durability(Durability::Immediate).map_err(io::Error::other)?;
        write.set_quick_repair(true);
        self.fill(&write, changes)?;
        write.commit().map_err(to_io)
    }

    fn fill(&self, write: &redb::WriteTransaction, changes: &Changes) -> io::Result<()> {
        let mut replicas = write.open_table(REPLICAS).map_err(to_io)?;
        let mut groups = write.open_table(GROUPS).map_err(to_io)?;
        for key in &changes.removed {
            replicas.remove((key.aside, key.chunk.0)).map_err(to_io)?;
            let all = (key.aside, key.chunk.0, 0)..=(key.aside, key.chunk.0, u32::MAX);
            groups.retain_in(all, |_, _| false).map_err(to_io)?;
        }
        for (key, row) in &changes.rows {
            replicas.insert((key.aside, key.chunk.0), encode(row)?.as_slice()).map_err(to_io)?;
        }
        for (key, group, value) in &changes.groups {
            let at = (key.aside, key.chunk.0, *group);
            match value {
                Some(value) => groups.insert(at, value.as_slice()).map_err(to_io)?,
                None => groups.remove(at).map_err(to_io)?,
            };
        }
        let mut bars = write.open_table(BARS).map_err(to_io)?;
        if let Some(before) = changes.forget_bars_before {
            let recent =
                |_: u64, bar: &[u8]| decode::<Bar>(bar, "a bar").is_ok_and(|bar| bar.since >= before);
            bars.retain(recent).map_err(to_io)?;
        }
        for (chunk, bar) in &changes.bars {
            let old = bars.get(chunk.0).map_err(to_io)?;
            let old = old.map(|old| decode::<Bar>(old.value(), "a bar")).transpose()?.unwrap_or_default();
            bars.insert(chunk.0, encode(&bar.raised(old))?.as_slice()).map_err(to_io)?;
        }
        let mut segments = write.open_table(SEGMENTS).map_err(to_io)?;
        for (segment, live) in &changes.segments {
            match live {
                Some(live) => segments.insert(segment, live).map_err(to_io)?,
                None => segments.remove(segment).map_err(to_io)?,
            };
        }
        let mut meta = write.open_table(META).map_err(to_io)?;
        meta.insert("checkpoint", encode(&changes.checkpoint)?.as_slice()).map_err(to_io)?;
        Ok(())
    }

    /// None: nothing was ever committed.
    pub fn checkpoint(&self) -> io::Result<Option<Checkpoint>> {
        let read = self.db.begin_read().map_err(to_io)?;
        let meta = match read.open_table(META) {
            Ok(meta) => meta,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(to_io(error)),
        };
        let value = meta.get("checkpoint").map_err(to_io)?;
        value.map(|value| decode(value.value(), "the checkpoint")).transpose()
    }

    pub fn segments(&self) -> io::Result<BTreeMap<u32, u32>> {
        let read = self.db.begin_read().map_err(to_io)?;
        let table = read.open_table(SEGMENTS).map_err(to_io)?;
        let mut segments = BTreeMap::new();
        for entry in table.iter().map_err(to_io)? {
            let (segment, live) = entry.map_err(to_io)?;
            segments.insert(segment.value(), live.value());
        }
        Ok(segments)
    }

    pub fn bar(&self, chunk: ChunkId) -> io::Result<Option<Bar>> {
        let read = self.db.begin_read().map_err(to_io)?;
        let value = read.open_table(BARS).map_err(to_io)?.get(chunk.0).map_err(to_io)?;
        value.map(|value| decode(value.value(), "a bar")).transpose()
    }

    /// How many replicas there are, those kept aside included.
    pub fn count(&self) -> io::Result<u64> {
        let read = self.db.begin_read().map_err(to_io)?;
        read.open_table(REPLICAS).map_err(to_io)?.len().map_err(to_io)
    }

    /// Loads a replica with its leaf map; its digest must be the one that was written.
    pub fn load(&self, key: Key) -> io::Result<Option<Replica>> {
        let read = self.db.begin_read().map_err(to_io)?;
        let replicas = read.open_table(REPLICAS).map_err(to_io)?;
        let Some(value) = replicas.get((key.aside, key.chunk.0)).map_err(to_io)? else { return Ok(None) };
        let row: Row = decode(value.value(), "a replica")?;
        crate::core::delta::check_chunk_bytes(row.chunk_bytes).map_err(|_| damaged("a replica"))?;
        let groups = read.open_table(GROUPS).map_err(to_io)?;
        let mut stored = Vec::new();
        let all = (key.aside, key.chunk.0, 0)..=(key.aside, key.chunk.0, u32::MAX);
        for entry in groups.range(all).map_err(to_io)? {
            let (at, value) = entry.map_err(to_io)?;
            let group = decode_group(value.value()).ok_or_else(|| damaged("a group"))?;
            stored.push((at.value().2 as usize, group));
        }
        let leaves = LeafMap::from_groups(key.chunk, row.chunk_bytes, stored.into_iter());
        if leaves.digest() != row.digest {
            let text = format!("{FILE}: the leaf map of chunk {} does not match its digest", key.chunk);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Some(Replica {
            key,
            life: Life::Live,
            epoch: row.epoch,
            sealed: row.sealed,
            version: row.version,
            last_op: row.last_op,
            partial: row.partial,
            since: row.since,
            position: row.position,
            leaves,
        }))
    }

    pub fn row(&self, key: Key) -> io::Result<Option<Row>> {
        let read = self.db.begin_read().map_err(to_io)?;
        let value = read.open_table(REPLICAS).map_err(to_io)?.get((key.aside, key.chunk.0)).map_err(to_io)?;
        value.map(|value| decode(value.value(), "a replica")).transpose()
    }

    /// Up to `limit` replicas after `after` (None: from the first), ascending; those kept aside come last.
    pub fn page(&self, after: Option<Key>, limit: usize) -> io::Result<Vec<(Key, Row)>> {
        use std::ops::Bound;
        let read = self.db.begin_read().map_err(to_io)?;
        let table = read.open_table(REPLICAS).map_err(to_io)?;
        let from = after.map_or(Bound::Unbounded, |key| Bound::Excluded((key.aside, key.chunk.0)));
        let mut page = Vec::new();
        for entry in table.range((from, Bound::Unbounded)).map_err(to_io)?.take(limit) {
            let (key, value) = entry.map_err(to_io)?;
            let (aside, chunk) = key.value();
            page.push((Key { chunk: ChunkId(chunk), aside }, decode(value.value(), "a replica")?));
        }
        Ok(page)
    }
}

/// The stored form of the groups of a replica.
pub fn encode_groups(replica: &Replica, groups: GroupSet, out: &mut Changes) {
    let count = replica.leaves.group_sums().len();
    for index in groups.iter().take_while(|index| *index < count) {
        out.groups.push((replica.key, index as u32, replica.leaves.group(index).map(encode_group)));
    }
}

/// `[format][bitmap of leaves][their sums][runs: leaves u8, segment, block]`, little endian.
fn encode_group(group: &Group) -> Vec<u8> {
    let present: Vec<usize> = (0..GROUP_LEAVES as usize).filter(|at| group.sums[*at] != sums::HOLE).collect();
    let bitmap = present.iter().fold(0u64, |bitmap, at| bitmap | 1 << at);
    let mut bytes = vec![FORMAT];
    bytes.extend_from_slice(&bitmap.to_le_bytes());
    for at in &present {
        bytes.extend_from_slice(&group.sums[*at].to_le_bytes());
    }
    let follows = |a: &usize, b: &usize| {
        let (a, b) = (group.locations[*a], group.locations[*b]);
        a.segment == b.segment && a.block + 1 == b.block
    };
    for run in present.chunk_by(follows) {
        let first = group.locations[run[0]];
        bytes.push(run.len() as u8);
        bytes.extend_from_slice(&first.segment.to_le_bytes());
        bytes.extend_from_slice(&first.block.to_le_bytes());
    }
    bytes
}

fn decode_group(bytes: &[u8]) -> Option<Group> {
    let (format, bytes) = bytes.split_first()?;
    let (bitmap, mut bytes) = bytes.split_first_chunk::<8>()?;
    let bitmap = u64::from_le_bytes(*bitmap);
    let present: Vec<usize> = (0..64).filter(|at| bitmap >> at & 1 == 1).collect();
    let mut group = Group::HOLES;
    for at in &present {
        let (sum, rest) = bytes.split_first_chunk::<8>()?;
        group.sums[*at] = u64::from_le_bytes(*sum);
        bytes = rest;
    }
    let mut next = present.iter();
    while let Some((count, rest)) = bytes.split_first() {
        let (segment, rest) = rest.split_first_chunk::<4>()?;
        let (block, rest) = rest.split_first_chunk::<4>()?;
        let (segment, first) = (u32::from_le_bytes(*segment), u32::from_le_bytes(*block));
        for step in 0..u32::from(*count) {
            group.locations[*next.next()?] = Location { segment, block: first.checked_add(step)? };
        }
        bytes = rest;
    }
    let whole =
        *format == FORMAT && next.next().is_none() && present.iter().all(|at| group.sums[*at] != sums::HOLE);
    whole.then_some(group)
}

#[cfg(test)]
mod tests {
    use super::*;
    use godrive_proto::SessionId;

    /// The bytes of format 1. A change here is a new format with a migration.
    #[test]
    fn golden_bytes() {
        let mut group = Group::HOLES;
        for (at, block) in [(0, 10), (1, 11), (5, 13)] {
            (group.sums[at], group.locations[at]) = (0x51 + at as u64, Location { segment: 2, block });
        }
        let row = Row {
            chunk_bytes: 1 << 20,
            epoch: Epoch(300),
            sealed: Epoch(301),
            version: Version(7),
            digest: Digest(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
            last_op: OpId { session: SessionId(4), sequence: 500 },
            partial: true,
            since: Timestamp(-2),
            position: 70_000,
            used_bytes: 12_288,
        };
        let frees = vec![Run { segment: 1, block: 2, blocks: 300 }];
        let (term, seen) = (Term(3), LogIndex(400));
        let checkpoint = Checkpoint { segment: 9, block: 17, next_sequence: 600, frees, term, seen };
        let values = [
            ("row", encode(&row).unwrap()),
            ("group", encode_group(&group)),
            ("bar", encode(&Bar { floor: Epoch(8), since: Timestamp(1_000) }).unwrap()),
            ("checkpoint", encode(&checkpoint).unwrap()),
        ];
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let found: String = values.iter().map(|(what, bytes)| format!("{what}: {}\n", hex(bytes))).collect();
        assert!(
            found == include_str!("../../tests/golden/index-1.txt"),
            "the bytes changed; found:\n{found}"
        );
        assert_eq!(decode::<Row>(&values[0].1, "a row").unwrap(), row);
        assert_eq!(decode::<Checkpoint>(&values[3].1, "a checkpoint").unwrap(), checkpoint);
        assert_eq!(decode_group(&values[1].1), Some(group));
    }

    #[test]
    fn groups_keep_runs() {
        let mut group = Group::HOLES;
        for (at, block) in [(0, 10), (1, 11), (2, 12), (5, 13), (63, 40)] {
            group.sums[at] = 100 + at as u64;
            group.locations[at] = Location { segment: 2, block };
        }
        let bytes = encode_group(&group);
        assert_eq!(bytes.len(), 1 + 8 + 5 * 8 + 2 * 9);
        assert_eq!(decode_group(&bytes), Some(group));
        for cut in 0..bytes.len() {
            assert_eq!(decode_group(&bytes[..cut]), None, "cut at {cut}");
        }
    }
}
