//! Opening a disk: the index as of its checkpoint, then every record of the log beyond it, in order. All of it is read from the
//! medium: what the page cache has may never have reached it, if a sync failed in the process before.
//!
//! Where the log ends in a record that does not verify, it was cut by a crash and nobody was told that the record is
//! stable; it is cut off. If a later record or the next segment says that it was stable, something else happened
//! (rot, a lost write): the disk is refused, because what it holds can no longer be told from what it should hold. A leaf
//! that rotted under a good header is kept as it is: reads and the scrub find it.

use super::index::Index;
use super::log::{self, Log, Place};
use super::table::{self, Changes, Checkpoint, Run, Table};
use super::{DiskStore, NewDisk, Options, identity};
use crate::core::leaves::Location;
use crate::core::record::{BLOCK, Kind, Record, RecordError, Stamp, Stamps};
use crate::core::replica::{Key, Life};
use godrive_disk::{Disk, DiskFile, Reserved};
use godrive_proto::time::Timestamp;
use godrive_proto::{Code, DiskId, sums};
use parking_lot::{Mutex, RwLock};
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};

fn refuse(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Refuses what the disk has lost: the cluster has it elsewhere.
fn anew(text: String) -> io::Error {
    refuse(format!("{text}. Empty the directory to let the cluster make its replicas anew"))
}

/// What cannot be read is an error of the disk; what reads as nonsense is damage.
fn of_index(error: io::Error) -> io::Error {
    if error.raw_os_error().is_some() { error } else { anew(error.to_string()) }
}

/// What the replay found where it ended.
struct Tail {
    /// Of the next record.
    sequence: u64,
    /// A segment whose making was interrupted: it is made again.
    unmade: Option<u32>,
    /// What lies behind the last good record.
    cut: Option<Run>,
}

impl DiskStore {
    /// Opens a disk, making it ready as `fresh` if it is empty.
    pub fn open(disk: Arc<dyn Disk>, options: Options, fresh: NewDisk, now: Timestamp) -> io::Result<Self> {
        let disk = Arc::new(Reserved::new(disk.clone(), options.ballast(disk.space()?.total_bytes))?);
        let (id, known) = match identity::load(&*disk, options.cluster)? {
            Some(known) => {
                // The process before may have been killed before its name was on stable storage.
                disk.sync_directory("")?;
                known
            }
            None => {
                format(&*disk, fresh, options)?;
                (fresh.id, Some(Stamps { secret: fresh.secret, since: 0 }))
            }
        };
        if !disk.exists(table::FILE)? {
            return Err(anew(format!("{} is missing: what the segments hold cannot be known", table::FILE)));
        }
        let table = Table::open(&*disk, false).map_err(of_index)?;
        let checkpoint = table.checkpoint().map_err(of_index)?;
        let checkpoint = checkpoint.ok_or_else(|| anew(format!("{} has no checkpoint", table::FILE)))?;
        let mut live = table.segments().map_err(of_index)?;
        let segments = segments(&*disk)?;
        live.entry(checkpoint.segment).or_insert(0);
        let index = Index::new(live, table.count()?, options.index_bytes);
        let records =
            Replay { disk: &*disk, id, stamps: known, checkpoint: &checkpoint, segments: &segments };
        let (records, tail) = records.read()?;
        let last = segments.last().copied().unwrap_or(0).max(checkpoint.segment);
        let next_segment = tail.unmade.unwrap_or(last + 1);
        let stamps = known.unwrap_or(Stamps { secret: fresh.secret, since: next_segment });
        if known.is_none() {
            // Before a segment has it.
            identity::store(&*disk, id, options.cluster, stamps)?;
            tracing::info!(disk = %id, "the disk is of format {} from now on", identity::FORMAT);
        }
        let log =
            Log::begin(disk.clone(), id, stamps.secret, next_segment, tail.sequence, options.segment_bytes)?;
        let store = Self {
            id,
            disk,
            options,
            log,
            table: RwLock::new(Some(table)),
            index: Mutex::new(index),
            gate: RwLock::new(()),
            opened_at: tail.sequence.saturating_sub(1),
            checkpointing: Mutex::default(),
            grown: AtomicU64::new(0),
            failed: OnceLock::new(),
            full_up_to: AtomicU64::new(0),
            bad_leaves: AtomicU64::new(0),
            aging: Mutex::default(),
            term: AtomicU64::new(checkpoint.term.0),
            seen: AtomicU64::new(checkpoint.seen.0),
        };
        let replayed = records.len();
        store.recover(&checkpoint, records, &segments, tail, now)?;
        tracing::info!(disk = %id, replayed, chunks = store.index.lock().count, "disk opened");
        Ok(store)
    }

    fn recover(
        &self,
        checkpoint: &Checkpoint,
        records: Vec<(Record, Place)>,
        segments: &[u32],
        tail: Tail,
        now: Timestamp,
    ) -> io::Result<()> {
        for (record, place) in records {
            self.replay(&record, place)?;
        }
        {
            let mut index = self.index.lock();
            segments
                .iter()
                .filter(|segment| **segment >= checkpoint.segment)
                .for_each(|segment| index.open_segment(*segment));
            index.open_segment(self.log.end().0.segment);
            // What the last checkpoint was to give back, and the torn end.
            checkpoint.frees.iter().copied().chain(tail.cut).for_each(|run| index.free(run));
        }
        let forgotten = segments.iter().filter(|segment| !self.index.lock().knows(**segment));
        for segment in forgotten {
            match self.log.remove(*segment) {
                Err(error) if godrive_disk::is_full(&error) => {
                    tracing::warn!(disk = %self.id, segment, "no room to remove a segment; tried again at the next start");
                }
                other => other?,
            }
        }
        match self.checkpoint(now) {
            // The log has it all: it is made when there is room.
            Err(fault) if fault.code == Code::NoSpace => {
                tracing::warn!(disk = %self.id, %fault, "no checkpoint of what was replayed");
                Ok(())
            }
            other => other.map_err(|fault| io::Error::other(fault.to_string())),
        }
    }

    fn replay(&self, record: &Record, place: Place) -> io::Result<()> {
        let fault = |fault: godrive_proto::Fault| io::Error::other(fault.to_string());
        let shared = |key, chunk_bytes| {
            self.with_table(|table| self.index.lock().find_or_vacant(table, key, chunk_bytes)).map_err(fault)
        };
        if record.kind == Kind::Delete {
            let mut all = Vec::new();
            for deletion in &record.deletions {
                all.push(shared(Key { chunk: deletion.chunk, aside: deletion.aside }, 1 << 20)?);
            }
            let mut guards: Vec<_> = all.iter().map(|replica| replica.write()).collect();
            let mut replicas: Vec<_> = guards.iter_mut().map(|guard| &mut **guard).collect();
            self.deleted(record, place, &mut replicas);
            for guard in guards.iter().filter(|guard| guard.life == Life::Vacant) {
                self.index.lock().discard(guard.key);
            }
            return Ok(());
        }
        let replica = shared(Key::live(record.chunk), record.chunk_bytes)?;
        let mut replica = replica.write();
        self.settle(&mut replica, record, place);
        if replica.life == Life::Live && replica.leaves.digest() != record.digest {
            return Err(anew(format!(
                "record {} leaves chunk {} with another digest than it says: index and log do not belong together",
                record.sequence, record.chunk
            )));
        }
        Ok(())
    }
}

/// The id of a disk that may not be possible to open.
pub fn disk_id(disk: &dyn Disk, options: Options) -> Option<DiskId> {
    identity::load(disk, options.cluster).ok().flatten().map(|(id, _)| id)
}

/// Makes an empty directory a disk. Its identity comes last: without it, this is done again.
fn format(disk: &dyn Disk, fresh: NewDisk, options: Options) -> io::Result<()> {
    let foreign: Vec<String> = disk.list("")?.into_iter().filter(|name| !is_ours(name)).collect();
    if !foreign.is_empty() {
        return Err(refuse(format!(
            "the directory holds other files ({}): use an empty one",
            foreign.join(", ")
        )));
    }
    disk.create_directory(log::DIRECTORY)?;
    if !segments(disk)?.is_empty() {
        return Err(refuse(format!(
            "{} is missing, but there are segments: whose disk is this?",
            identity::FILE
        )));
    }
    let file = disk.open(table::FILE, true)?;
    file.set_len(0)?;
    disk.sync_directory("")?;
    drop(file);
    let table = Table::open(disk, false)?;
    let checkpoint = Checkpoint { segment: 0, block: 1, next_sequence: 1, ..Checkpoint::default() };
    table.commit(&Changes { checkpoint, ..Changes::default() })?;
    drop(table);
    identity::store(disk, fresh.id, options.cluster, Stamps { secret: fresh.secret, since: 0 })?;
    disk.sync_directory("")
}

/// What an interrupted [`format`] may have left.
fn is_ours(name: &str) -> bool {
    name == log::DIRECTORY || name == table::FILE || name == "disk.toml.new" || name == "lost+found"
}

fn segments(disk: &dyn Disk) -> io::Result<Vec<u32>> {
    let mut segments: Vec<u32> =
        disk.list(log::DIRECTORY)?.iter().filter_map(|name| log::number(name)).collect();
    segments.sort_unstable();
    Ok(segments)
}

struct Replay<'a> {
    disk: &'a dyn Disk,
    id: DiskId,
    /// None in a disk of format 1.
    stamps: Option<Stamps>,
    checkpoint: &'a Checkpoint,
    segments: &'a [u32],
}

impl Replay<'_> {
    /// Every record from the checkpoint to the end of the log.
    fn read(&self) -> io::Result<(Vec<(Record, Place)>, Tail)> {
        let Checkpoint { segment: start, block, next_sequence, .. } = *self.checkpoint;
        let mut records = Vec::new();
        let mut tail = Tail { sequence: next_sequence, unmade: None, cut: None };
        let mut numbers = self.segments.iter().copied().filter(|segment| *segment >= start);
        let mut open_next = || numbers.next().map(|number| self.open(number)).transpose();
        let mut next = open_next()?;
        while let Some(segment) = next {
            next = open_next()?;
            if segment.number != start {
                let path = log::path(segment.number);
                match segment.first {
                    // The header is stable before anything follows it.
                    None if next.is_none() && segment.blocks <= 1 => {
                        tail.unmade = Some(segment.number);
                        break;
                    }
                    None => return Err(anew(format!("the header of {path} is damaged"))),
                    Some(sequence) if sequence != tail.sequence => {
                        let end = tail.sequence;
                        return Err(anew(format!(
                            "{path} begins with record {sequence}, but the log before it ends below {end}: records are damaged or lost"
                        )));
                    }
                    Some(_) => {}
                }
            }
            let first = if segment.number == start { block } else { 1 };
            // What is below was stable before the next segment was made.
            let stable_below = next.as_ref().and_then(|next| next.first).unwrap_or(0);
            tail.cut = segment.read(first, stable_below, &mut tail.sequence, &mut records)?;
        }
        Ok((records, tail))
    }

    fn open(&self, number: u32) -> io::Result<Segment> {
        let file = self.disk.open(&log::path(number), false)?;
        // What is found is stable before anything is built on it: the next segment's header says where it goes on.
        file.drop_cache()?;
        let blocks = (file.len()? / BLOCK as u64) as u32;
        let stamp = self.stamps.map_or(Stamp::OLD, |stamps| stamps.of(number));
        let mut header = vec![0; BLOCK];
        let whole = blocks > 0 && file.read_at(&mut header, 0).is_ok();
        if log::has_another_stamp(&header, stamp, self.id, number) {
            let path = log::path(number);
            return Err(anew(format!("{path} was not written with what {} says", identity::FILE)));
        }
        let first = log::check_segment_header(&header, stamp, self.id, number).filter(|_| whole);
        Ok(Segment { file, number, blocks, stamp, first })
    }
}

/// A segment that is replayed.
struct Segment {
    file: Arc<dyn DiskFile>,
    number: u32,
    blocks: u32,
    stamp: Stamp,
    /// The sequence of its first record, if its header is whole.
    first: Option<u64>,
}

impl Segment {
    /// Reads records until one does not verify; returns what remains of the file behind them.
    fn read(
        &self,
        mut block: u32,
        stable_below: u64,
        next: &mut u64,
        records: &mut Vec<(Record, Place)>,
    ) -> io::Result<Option<Run>> {
        let Self { number: segment, blocks, .. } = *self;
        while block < blocks {
            let record = match self.header(block)? {
                Ok(record) if record.sequence == *next => record,
                _ => return self.end(block, *next).map(Some),
            };
            let data = Location { segment, block: block + record.header_blocks() };
            let end = data.block.checked_add(record.data_blocks()).filter(|end| *end <= blocks);
            let good = end.is_some() && data_is_good(&*self.file, &record, data)?;
            if !good && *next >= stable_below && !self.later_says_stable(block + 1, *next)? {
                return Ok(Some(Run { segment, block, blocks: blocks - block }));
            }
            let Some(end) = end else { return Err(damaged(segment, block)) };
            if !good {
                tracing::error!(segment, block, chunk = %record.chunk, "leaves of a stable record do not match their sums");
            }
            let place = Place { header: Location { segment, block }, data, sequence: record.sequence };
            records.push((record, place));
            *next += 1;
            block = end;
        }
        Ok(None)
    }

    /// The log ends here, if nothing behind says that what should be here was stable.
    fn end(&self, block: u32, next: u64) -> io::Result<Run> {
        if self.later_says_stable(block, next)? {
            return Err(damaged(self.number, block));
        }
        Ok(Run { segment: self.number, block, blocks: self.blocks - block })
    }

    fn later_says_stable(&self, from: u32, sequence: u64) -> io::Result<bool> {
        for block in from..self.blocks {
            if let Ok(record) = self.header(block)?
                && record.sequence > sequence
                && record.synced >= sequence
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn header(&self, block: u32) -> io::Result<Result<Record, RecordError>> {
        let mut bytes = vec![0; BLOCK];
        self.file.read_at(&mut bytes, u64::from(block) * BLOCK as u64)?;
        let count = match Record::peek_blocks(&bytes, self.stamp) {
            Ok(count) if count <= self.blocks - block => count,
            Ok(_) => return Ok(Err(RecordError::Impossible)),
            Err(error) => return Ok(Err(error)),
        };
        if count > 1 {
            bytes.resize(count as usize * BLOCK, 0);
            self.file.read_at(&mut bytes, u64::from(block) * BLOCK as u64)?;
        }
        Ok(Record::decode(&bytes, self.number, block, self.stamp))
    }
}

fn damaged(segment: u32, block: u32) -> io::Error {
    let path = log::path(segment);
    anew(format!("{path}, block {block}: a record that was on stable storage is damaged"))
}

fn data_is_good(file: &dyn DiskFile, record: &Record, data: Location) -> io::Result<bool> {
    let mut bytes = vec![0; BLOCK];
    let mut at = u64::from(data.block) * BLOCK as u64;
    for leaf in record.leaves.iter().filter(|leaf| leaf.sum != sums::HOLE) {
        file.read_at(&mut bytes, at)?;
        if sums::piece(record.chunk, leaf.leaf, &bytes) != leaf.sum {
            return Ok(false);
        }
        at += BLOCK as u64;
    }
    Ok(true)
}
