//! One file of the log: opened, scanned, judged.

use super::format::{
    HeaderError, MAX_RECORD_BYTES, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, read_record,
    read_segment_header, record_bytes,
};
use super::{Entry, LogError};
use crate::core::record::Record;
use godrive_disk::DiskFile;
use godrive_proto::{ClusterId, LogIndex};
use std::sync::Arc;

pub struct Segment {
    pub path: String,
    pub file: Arc<dyn DiskFile>,
    pub first: LogIndex,
    /// Where the next record goes.
    pub end: u64,
    /// Zeros, or what a crash has left, lie from [`Self::end`] to here.
    pub zeros_end: u64,
}

/// The log goes on in bytes that were written before, so many at a time: see [`godrive_disk::write_zeros`].
const ZERO_BYTES: u64 = 256 << 10;

/// What a scan of a segment's bytes found.
pub struct Scan {
    /// One behind the last intact record in sequence.
    pub next: LogIndex,
    /// Where it would lie; behind it is nothing, or what follows.
    pub end: u64,
    pub verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The records fill the file, but for zeros behind them.
    Whole,
    /// Bytes follow that were never known to be on stable storage: a write that a crash interrupted.
    Torn,
    /// The record that follows is damaged, though this intact one behind it knew it to be on stable storage.
    Damaged { witness: LogIndex },
}

pub fn name(first: LogIndex) -> String {
    format!("{:020}.log", first.0)
}

/// The first index that a file's name claims; None for files that are not ours.
pub fn parse_name(name: &str) -> Option<LogIndex> {
    let digits = name.strip_suffix(".log").filter(|digits| digits.len() == 20)?;
    digits.parse().ok().map(LogIndex)
}

impl Segment {
    /// One without records.
    pub fn new(path: String, file: Arc<dyn DiskFile>, first: LogIndex) -> Self {
        let end = SEGMENT_HEADER_BYTES as u64;
        Self { path, file, first, end, zeros_end: end }
    }

    /// Writes zeros for the records that follow, within a segment of so many bytes.
    pub fn zero_ahead(&mut self, segment_bytes: u64) {
        let len = ZERO_BYTES.min(segment_bytes.saturating_sub(self.end));
        self.zeros_end = self.end;
        match godrive_disk::write_zeros(&*self.file, self.end, len) {
            Ok(()) => self.zeros_end += len,
            // The log does without.
            Err(error) => tracing::debug!(path = self.path, %error, "no zeros written ahead"),
        }
    }

    /// Nothing is left behind the records.
    pub fn cut(&mut self) -> Result<(), LogError> {
        if self.zeros_end > self.end {
            self.file.set_len(self.end).map_err(|error| LogError::io(&self.path, error))?;
            self.zeros_end = self.end;
        }
        Ok(())
    }

    /// None: the file was being made when the master stopped, and never held a record.
    pub fn open(
        path: String,
        file: Arc<dyn DiskFile>,
        first: LogIndex,
        cluster: ClusterId,
    ) -> Result<Option<Self>, LogError> {
        let io = |error| LogError::io(&path, error);
        let len = file.len().map_err(io)?;
        let mut header = vec![0; SEGMENT_HEADER_BYTES.min(usize::try_from(len).unwrap_or(usize::MAX))];
        file.read_at(&mut header, 0).map_err(io)?;
        match read_segment_header(&header, cluster) {
            Ok(found) if found == first => {
                let zeros_end = len;
                Ok(Some(Self { zeros_end, ..Self::new(path, file, first) }))
            }
            Err(HeaderError::Damaged) if len <= SEGMENT_HEADER_BYTES as u64 => Ok(None),
            Ok(_) | Err(HeaderError::Damaged) => Err(LogError::Header { path }),
            Err(HeaderError::Version(version)) => Err(LogError::Version { path, version }),
            Err(HeaderError::Cluster(found)) => Err(LogError::Cluster { path, found, expected: cluster }),
        }
    }

    pub fn read(&self) -> Result<Vec<u8>, LogError> {
        let io = |error| LogError::io(&self.path, error);
        let len = usize::try_from(self.file.len().map_err(io)?)
            .map_err(|_| LogError::Header { path: self.path.clone() })?;
        let mut bytes = vec![0; len];
        self.file.read_at(&mut bytes, 0).map_err(io)?;
        Ok(bytes)
    }

    pub fn scan(&self, bytes: &[u8], cluster: ClusterId) -> Scan {
        let mut next = self.first;
        let mut at = SEGMENT_HEADER_BYTES;
        while let Some((header, body)) = bytes.get(at..).and_then(|rest| read_record(rest, cluster)) {
            if header.index != next {
                break;
            }
            next = next.next();
            at += record_bytes(body.len());
        }
        let rest = &bytes[at..];
        let verdict =
            if rest.iter().all(|byte| *byte == 0) { Verdict::Whole } else { judge(rest, next, cluster) };
        Scan { next, end: at as u64, verdict }
    }

    /// The records from an index on; the segment was scanned before.
    pub fn entries(&self, from: LogIndex, cluster: ClusterId) -> Result<Vec<Entry>, LogError> {
        let bytes = self.read()?;
        let mut entries = Vec::new();
        let mut at = SEGMENT_HEADER_BYTES;
        let end = usize::try_from(self.end).unwrap_or(usize::MAX).min(bytes.len());
        while at < end {
            let found = read_record(&bytes[at..], cluster);
            let Some((header, body)) = found else {
                return Err(LogError::Unreadable { path: self.path.clone(), at: at as u64 });
            };
            if header.index >= from {
                let record =
                    Record::decode(body).map_err(|error| LogError::Record { index: header.index, error })?;
                entries.push(Entry { index: header.index, term: header.term, record });
            }
            at += record_bytes(body.len());
        }
        Ok(entries)
    }
}

/// Looks behind a damaged record for one that is intact and claims that the damaged one was on stable storage.
/// Records written together may reach the disk in any order, so an intact one alone proves nothing.
fn judge(rest: &[u8], damaged: LogIndex, cluster: ClusterId) -> Verdict {
    let mut at = 8;
    while at + RECORD_HEADER_BYTES <= rest.len() {
        let candidate = &rest[at..(at + record_bytes(MAX_RECORD_BYTES)).min(rest.len())];
        // Cheap tests first: most offsets are no records.
        let plausible = candidate[12..16] == [0; 4];
        if plausible
            && let Some((header, _)) = read_record(candidate, cluster)
            && header.index > damaged
            && header.synced >= damaged
        {
            return Verdict::Damaged { witness: header.index };
        }
        at += 8;
    }
    Verdict::Torn
}
