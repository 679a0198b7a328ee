//! The checkpoint: what changed since the last one is gathered while no record is appended (memory only, some
//! milliseconds), then the log is synced, then one transaction makes the index durable as of that position of the
//! log. Only after that are superseded blocks punched and empty segments removed.

use super::DiskStore;
use super::table::{Changes, Checkpoint, Run};
use crate::core::leaves::Location;
use crate::core::record::BLOCK;
use godrive_proto::time::Timestamp;
use godrive_proto::{Fault, LogIndex, Term};
use std::io;
use std::sync::atomic::Ordering;

/// A checkpoint is due after so many bytes of log, or so many changed replicas.
const DUE_BYTES: u64 = 64 << 20;
/// The same where the log lives on the reserve: a checkpoint gives blocks back.
const DUE_BYTES_SHORT: u64 = 1 << 20;
const DUE_REPLICAS: usize = 4096;
/// Bars keep late deltas out, which nobody sends after a day.
const BAR_NS: i64 = 24 * 3600 * 1_000_000_000;
const BAR_SWEEP_NS: i64 = 3600 * 1_000_000_000;

#[derive(Default)]
pub(super) struct State {
    last_bar_sweep: Timestamp,
    /// This wall time was a day ago as the process has seen it: a clock that is set forward lifts no bar.
    pub(super) old_bars: Option<Timestamp>,
    kept: (Term, LogIndex),
}

impl DiskStore {
    /// Enough has changed that the next checkpoint should not wait.
    pub fn checkpoint_is_due(&self) -> bool {
        let due_bytes = if self.disk.is_cut() { DUE_BYTES_SHORT } else { DUE_BYTES };
        self.failure().is_none()
            && (self.grown.load(Ordering::Relaxed) >= due_bytes
                || self.index.lock().dirty_replicas() >= DUE_REPLICAS)
    }

    /// Makes the index durable and gives free blocks back. Blocks; does nothing if nothing changed.
    pub fn checkpoint(&self, now: Timestamp) -> Result<(), Fault> {
        self.check_usable()?;
        let mut state = self.checkpointing.lock();
        let remembered = self.remembered();
        if !self.index.lock().is_dirty() && remembered == state.kept {
            return Ok(());
        }
        self.reopen_table()?;
        let mut changes = Changes::default();
        if let Some(old) = state.old_bars
            && now.0.saturating_sub(state.last_bar_sweep.0) >= BAR_SWEEP_NS
        {
            state.last_bar_sweep = now;
            changes.forget_bars_before = Some(old.min(Timestamp(now.0.saturating_sub(BAR_NS))));
        }
        {
            let _gate = self.gate.write();
            let (end, next_sequence) = self.log.end();
            let Location { segment, block } = end;
            changes.checkpoint = Checkpoint {
                segment,
                block,
                next_sequence,
                term: remembered.0,
                seen: remembered.1,
                ..Checkpoint::default()
            };
            self.index.lock().gather(&mut changes);
            self.grown.store(0, Ordering::Relaxed);
        }
        if let Err(failed) = self.log.sync_now() {
            self.index.lock().not_flushed();
            return Err(self.sync_failed(failed));
        }
        let committed = match &*self.table.read() {
            Some(table) => table.commit(&changes),
            None => Err(io::ErrorKind::StorageFull.into()),
        };
        if let Err(error) = committed {
            self.index.lock().not_flushed();
            return Err(self.io("checkpoint", &error));
        }
        state.kept = remembered;
        let (punches, dead) = self.index.lock().flushed();
        self.give_back(&punches, &dead)
    }

    /// Runs nothing refers to any more, and segments without live leaves, as of a durable checkpoint. What cannot be given back for
    /// want of room is left to the next one.
    pub(super) fn give_back(&self, punches: &[Run], dead: &[u32]) -> Result<(), Fault> {
        // Whole files first: they make room for the holes.
        for segment in dead {
            match self.log.remove(*segment) {
                Err(error) if godrive_disk::is_full(&error) => self.index.lock().open_segment(*segment),
                other => other.map_err(|error| self.io("removal of a segment", &error))?,
            }
        }
        let (mut freed, mut left) = (0, Vec::new());
        for run in punches {
            let first = Location { segment: run.segment, block: run.block };
            match self.log.punch(first, run.blocks) {
                Ok(()) => freed += u64::from(run.blocks) * BLOCK as u64,
                Err(error) if godrive_disk::is_full(&error) => left.push(*run),
                // With the file its blocks are gone; what else it held is found missing by reads and the scrub.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    tracing::error!(disk = %self.id, segment = run.segment, "a segment is missing");
                }
                // A file system without holes: the space comes back when the whole segment is free.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    tracing::debug!(disk = %self.id, "the file system cannot punch holes");
                    break;
                }
                Err(error) => return Err(self.io("punch", &error)),
            }
        }
        if !left.is_empty() {
            tracing::warn!(disk = %self.id, runs = left.len(), "no room to punch holes; tried again with the next checkpoint");
            let mut index = self.index.lock();
            left.into_iter().for_each(|run| index.free(run));
        }
        tracing::debug!(disk = %self.id, freed_bytes = freed, segments = dead.len(), "checkpoint");
        Ok(())
    }
}
