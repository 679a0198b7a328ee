//! The master's log: the one place where a change becomes durable.
//!
//! A directory of segments, each a header and records that follow each other without a gap; see [`format`] for the
//! bytes. Appending writes all records of a group with one call; [`SyncPoint::run`] makes everything appended before
//! it durable, on any thread, while the next group is appended. The log is cut below a checkpoint by whole segments.
//!
//! Behind the last record zeros are written ahead, for records that follow; they are cut off when the segment is left or
//! opened. After a crash the tail may be torn: bytes that were written but never synced. It is cut off too. Damage in
//! front of records that knew it to be synced, or of what is [noted](note) as synced, is another matter: the log then
//! refuses to open and says what to do.

mod format;
mod note;
mod segment;
#[cfg(test)]
mod tests;

use crate::core::record::{Record, RecordError};
use format::{MAX_RECORD_BYTES, RecordHeader, segment_header, write_record};
use godrive_disk::{Disk, DiskFile};
use godrive_proto::{ClusterId, LogIndex, Term};
pub use note::Note;
use segment::{Segment, Verdict};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// A segment that has reached this size is followed by a new one.
    pub segment_bytes: u64,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { segment_bytes: 32 << 20 }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("{path}: {error}")]
    Io { path: String, error: io::Error },
    #[error("{path}: the segment's header is damaged. Put back the directory from a backup")]
    Header { path: String },
    #[error("{path}: the log's format has version {version}, this master knows {known}", known = format::VERSION)]
    Version { path: String, version: u32 },
    #[error("{path}: the log belongs to cluster {found}, this master's certificate to {expected}")]
    Cluster { path: String, found: ClusterId, expected: ClusterId },
    #[error(
        "{path}: the segment should begin with record {expected}: segments are missing. Put them back from a backup"
    )]
    Missing { path: String, expected: LogIndex },
    #[error(
        "{path}: record {index} at byte {at} is damaged, but it was on stable storage, as record {witness} behind it \
         knows: the disk has lost data. Put back the directory from a backup. To go on without record {index} and \
         all after it, losing what they say: truncate the file to {at} bytes and remove the file `{note}` beside it",
        note = note::NAME
    )]
    Damaged { path: String, index: LogIndex, at: u64, witness: LogIndex },
    #[error(
        "{path}: the log ends at record {last}, but the state has record {state}: the disk has lost data, or files of \
         the log are missing or of another time. Put back the whole directory from one backup. To go on with what the \
         state has, losing all that came behind record {state}: move `{path}` away and make an empty file \
         `{MAY_BEGIN}` beside it. It serves nothing all the same if a mount or slave has seen more"
    )]
    BelowState { path: String, last: LogIndex, state: LogIndex },
    #[error(
        "{path}: the log ends at record {last}, but record {noted} was on stable storage, as the file `{note}` there \
         knows: the disk has lost data. Put back the directory from a backup. To go on without what is behind \
         record {last}, losing what it says: remove the file `{note}`. It serves nothing all the same if a mount or \
         slave has seen more",
        note = note::NAME
    )]
    Short { path: String, last: LogIndex, noted: LogIndex },
    #[error("{path}: the record at byte {at} was intact when the log was opened and is not any longer")]
    Unreadable { path: String, at: u64 },
    #[error("record {index}: {error}")]
    Record { index: LogIndex, error: RecordError },
    #[error("a record of {0} bytes exceeds the limit of {MAX_RECORD_BYTES}")]
    TooLong(usize),
    #[error(
        "an earlier write or sync of the log failed; what is on the disk is not known. Restart the master"
    )]
    Failed,
}

impl LogError {
    pub fn is_full_disk(&self) -> bool {
        matches!(self, Self::Io { error, .. } if godrive_disk::is_full(error))
    }

    /// The record cannot be logged; nothing was written.
    pub fn is_of_the_record(&self) -> bool {
        matches!(self, Self::Record { .. } | Self::TooLong(_))
    }

    fn io(path: &str, error: io::Error) -> Self {
        Self::Io { path: path.to_owned(), error }
    }
}

/// Where this file is in the state directory, something may begin that an empty directory or log would otherwise not let begin: a
/// cluster, or the log behind a state. A directory that has lost everything has lost this, too.
pub const MAY_BEGIN: &str = "may-begin";

/// One record with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub index: LogIndex,
    pub term: Term,
    pub record: Record,
}

/// See the module.
pub struct Log {
    disk: Arc<dyn Disk>,
    directory: String,
    cluster: ClusterId,
    options: LogOptions,
    /// Ascending; the last is written to. Empty before the first record.
    segments: Vec<Segment>,
    next: LogIndex,
    shared: Arc<Shared>,
}

struct Shared {
    synced: AtomicU64,
    failed: AtomicBool,
}

impl Log {
    /// Opens a log or begins one in an empty directory. Cuts a torn tail; what remains is on stable storage.
    pub fn open(
        disk: Arc<dyn Disk>,
        directory: &str,
        cluster: ClusterId,
        options: LogOptions,
    ) -> Result<Self, LogError> {
        Self::open_behind(disk, directory, cluster, options, LogIndex(0), false)
    }

    /// As [`Self::open`], behind a state that has everything up to this record; a log that ends before it is left as it is. With
    /// `may_begin` an empty one goes on from there.
    pub fn open_behind(
        disk: Arc<dyn Disk>,
        directory: &str,
        cluster: ClusterId,
        options: LogOptions,
        state: LogIndex,
        may_begin: bool,
    ) -> Result<Self, LogError> {
        let here = |error| LogError::io(directory, error);
        disk.create_directory(directory).map_err(here)?;
        disk.sync_directory("").map_err(here)?;
        let shared = Arc::new(Shared { synced: AtomicU64::new(0), failed: AtomicBool::new(false) });
        let directory = directory.to_owned();
        let (segments, next) = (Vec::new(), LogIndex(1));
        let mut log = Self { disk, directory, cluster, options, segments, next, shared };
        log.load(state, may_begin)?;
        log.shared.synced.store(log.last().0, Ordering::SeqCst);
        Ok(log)
    }

    fn load(&mut self, state: LogIndex, may_begin: bool) -> Result<(), LogError> {
        let names = self.disk.list(&self.directory).map_err(|error| LogError::io(&self.directory, error))?;
        let mut firsts: Vec<LogIndex> = names.iter().filter_map(|name| segment::parse_name(name)).collect();
        firsts.sort();
        let (mut unborn, mut torn) = (None, false);
        for (position, first) in firsts.iter().enumerate() {
            let last = position + 1 == firsts.len();
            let path = format!("{}/{}", self.directory, segment::name(*first));
            let file = self.disk.open(&path, false).map_err(|error| LogError::io(&path, error))?;
            // After a sync that failed, the page cache has what the disk lacks and calls it written.
            file.drop_cache().map_err(|error| LogError::io(&path, error))?;
            if position > 0 && *first != self.next {
                return Err(LogError::Missing { path, expected: self.next });
            }
            match Segment::open(path.clone(), file, *first, self.cluster)? {
                Some(segment) => torn = self.load_segment(segment, last)?,
                None if last => unborn = Some(path),
                None => return Err(LogError::Header { path }),
            }
        }
        if may_begin && self.segments.is_empty() {
            self.next = state.next();
        }
        // Nothing is cut off while something is missing.
        if self.last() < state {
            return Err(LogError::BelowState { path: self.directory.clone(), last: self.last(), state });
        }
        let (last, noted) = (self.last(), note::read(&*self.disk, &self.directory, self.cluster)?.index);
        if last < noted {
            return Err(LogError::Short { path: self.directory.clone(), last, noted });
        }
        if let Some(path) = unborn {
            self.disk.remove(&path).map_err(|error| LogError::io(&path, error))?;
        }
        if let Some(segment) = self.segments.last_mut() {
            if torn {
                tracing::warn!(
                    path = segment.path,
                    at = segment.end,
                    "behind its last whole record the log had what a write left that was interrupted, or damage; it is cut off"
                );
            }
            segment.cut()?;
            segment.file.sync().map_err(|error| LogError::io(&segment.path, error))?;
        }
        // A segment may have been made just before the last end, its name not yet durable.
        self.disk.sync_directory(&self.directory).map_err(|error| LogError::io(&self.directory, error))
    }

    /// Whether something that is no record lies behind its records.
    fn load_segment(&mut self, mut segment: Segment, last: bool) -> Result<bool, LogError> {
        let bytes = segment.read()?;
        let scan = segment.scan(&bytes, self.cluster);
        match scan.verdict {
            Verdict::Whole => {}
            Verdict::Torn if last => {}
            // A segment is synced before the next is begun, so its own end cannot be torn.
            Verdict::Torn => {
                let (path, at) = (segment.path, scan.end);
                return Err(LogError::Damaged { path, index: scan.next, at, witness: scan.next });
            }
            Verdict::Damaged { witness } => {
                let (path, at) = (segment.path, scan.end);
                return Err(LogError::Damaged { path, index: scan.next, at, witness });
            }
        }
        segment.end = scan.end;
        self.next = scan.next;
        self.segments.push(segment);
        Ok(scan.verdict == Verdict::Torn)
    }

    /// The index of the first record that is still there; of an empty log, that of the first to come.
    pub fn first(&self) -> LogIndex {
        self.segments.first().map_or(self.next, |segment| segment.first)
    }

    /// The last record that was appended; 0 for none.
    pub fn last(&self) -> LogIndex {
        LogIndex(self.next.0 - 1)
    }

    /// The last record known to be on stable storage.
    pub fn synced(&self) -> LogIndex {
        LogIndex(self.shared.synced.load(Ordering::SeqCst))
    }

    /// What is on the disk is not known: nothing more is accepted.
    pub fn has_failed(&self) -> bool {
        self.shared.failed.load(Ordering::SeqCst)
    }

    /// Writes the records behind each other, with one call, and returns the index of the last. A kill of the process
    /// does not lose them; a loss of power may, until a [`SyncPoint`] taken afterwards has run.
    pub fn append(&mut self, term: Term, records: &[Record]) -> Result<LogIndex, LogError> {
        if self.shared.failed.load(Ordering::SeqCst) {
            return Err(LogError::Failed);
        }
        let mut bytes = Vec::new();
        let synced = self.synced();
        for (position, record) in records.iter().enumerate() {
            let index = LogIndex(self.next.0 + position as u64);
            let body = record.encode().map_err(|error| LogError::Record { index, error })?;
            if body.len() > MAX_RECORD_BYTES {
                return Err(LogError::TooLong(body.len()));
            }
            write_record(&mut bytes, self.cluster, RecordHeader { index, term, synced }, &body);
        }
        if bytes.is_empty() {
            return Ok(self.last());
        }
        self.make_room()?;
        let failed = self.shared.clone();
        let Some(segment) = self.segments.last_mut() else { return Err(LogError::Failed) };
        if let Err(error) = segment.file.write_at(&[&bytes], segment.end) {
            // A full disk leaves the log usable if what was half written can be taken back.
            if segment.file.set_len(segment.end).is_err() {
                failed.failed.store(true, Ordering::SeqCst);
            }
            segment.zeros_end = segment.end;
            return Err(LogError::io(&segment.path, error));
        }
        segment.end += bytes.len() as u64;
        if segment.end > segment.zeros_end {
            segment.zero_ahead(self.options.segment_bytes);
        }
        self.next = LogIndex(self.next.0 + records.len() as u64);
        Ok(self.last())
    }

    /// Everything appended so far, to be made durable.
    pub fn sync_point(&self) -> SyncPoint {
        let file = self.segments.last().map(|segment| (segment.path.clone(), segment.file.clone()));
        SyncPoint { file, last: self.last(), shared: self.shared.clone() }
    }

    /// How far the log is synced now, to be noted where damage to its last records does not reach.
    pub fn note(&self) -> Note {
        let (disk, directory) = (self.disk.clone(), self.directory.clone());
        Note { disk, directory, cluster: self.cluster, index: self.synced() }
    }

    /// Begins a new segment if the last is full, after that one is synced: only a last segment can end torn.
    fn make_room(&mut self) -> Result<(), LogError> {
        if self.segments.last().is_some_and(|segment| segment.end < self.options.segment_bytes) {
            return Ok(());
        }
        self.segments.last_mut().map_or(Ok(()), Segment::cut)?;
        self.sync_point().run()?;
        let path = format!("{}/{}", self.directory, segment::name(self.next));
        let made = self.make_segment(&path);
        let file = made.map_err(|error| LogError::io(&path, error))?;
        self.segments.push(Segment::new(path, file, self.next));
        Ok(())
    }

    fn make_segment(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.disk.open(path, true)?;
        file.set_len(0)?;
        file.write_at(&[&segment_header(self.cluster, self.next)], 0)?;
        file.sync()?;
        self.disk.sync_directory(&self.directory)?;
        Ok(file)
    }

    /// The records from an index on, segment by segment.
    pub fn entries(&self, from: LogIndex) -> impl Iterator<Item = Result<Entry, LogError>> + '_ {
        let behind = self.segments.partition_point(|segment| segment.first <= from);
        let segments = self.segments.iter().skip(behind.saturating_sub(1));
        segments.flat_map(move |segment| match segment.entries(from, self.cluster) {
            Ok(entries) => entries.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        })
    }

    /// Leaves out the segments that hold only records below `index`, which a durable checkpoint must cover. Their files
    /// are removed by [`Cut::run`], on any thread; one that is left over is read again and cut again.
    pub fn cut_below(&mut self, index: LogIndex) -> Cut {
        let behind = self.segments.partition_point(|segment| segment.first <= index);
        let paths = self.segments.drain(..behind.saturating_sub(1)).map(|segment| segment.path).collect();
        Cut { disk: self.disk.clone(), directory: self.directory.clone(), paths }
    }
}

/// Segments that the log does without, to be removed.
#[must_use]
pub struct Cut {
    disk: Arc<dyn Disk>,
    directory: String,
    /// Ascending.
    paths: Vec<String>,
}

impl Cut {
    pub fn run(&self) -> Result<(), LogError> {
        for path in &self.paths {
            self.disk.remove(path).map_err(|error| LogError::io(path, error))?;
            // One at a time: a crash must not leave a gap.
            self.disk
                .sync_directory(&self.directory)
                .map_err(|error| LogError::io(&self.directory, error))?;
        }
        Ok(())
    }
}

/// A moment in the log. May run on another thread, once or never.
pub struct SyncPoint {
    file: Option<(String, Arc<dyn DiskFile>)>,
    last: LogIndex,
    shared: Arc<Shared>,
}

impl SyncPoint {
    /// What will be durable.
    pub fn last(&self) -> LogIndex {
        self.last
    }

    /// Blocks until it is. After a failed sync nobody can say what the disk has: the log accepts nothing more.
    pub fn run(&self) -> Result<LogIndex, LogError> {
        if self.shared.failed.load(Ordering::SeqCst) {
            return Err(LogError::Failed);
        }
        if let Some((path, file)) = &self.file {
            file.sync().map_err(|error| {
                self.shared.failed.store(true, Ordering::SeqCst);
                LogError::io(path, error)
            })?;
            self.shared.synced.fetch_max(self.last.0, Ordering::SeqCst);
        }
        Ok(self.last)
    }
}
