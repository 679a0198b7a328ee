//! Coming back: the store's last checkpoint, then the log behind it.
//!
//! Nothing is guessed here. A log that has lost what the store knows, or begins behind it, is refused with what to do.

use super::{Store, StoreOptions};
use crate::core::kv::StoreError;
use crate::core::state::State;
use crate::log::{Log, LogError, LogOptions, MAY_BEGIN};
use godrive_disk::{Disk, FileBackend};
use godrive_proto::{ClusterId, LogIndex};
use std::sync::Arc;

const STORE: &str = "state.redb";
const LOG: &str = "log";

#[derive(Clone, Copy, Debug)]
pub struct RecoveryOptions {
    pub store: StoreOptions,
    pub log: LogOptions,
    /// While replaying, checkpoint when this much is dirty.
    pub dirty_bytes: usize,
}

impl Default for RecoveryOptions {
    fn default() -> Self {
        Self { store: StoreOptions::default(), log: LogOptions::default(), dirty_bytes: 64 << 20 }
    }
}

/// A master's state directory, opened. Without a cluster in the state it is a new one and needs the bootstrap record.
pub struct Recovered {
    pub state: State,
    /// Ends at the state's last applied record, all of it on stable storage.
    pub log: Log,
    /// Records applied from the log behind the checkpoint.
    pub replayed: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    #[error("{STORE}: {0}. Put back the whole directory from one backup, unless the disk can be mended")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("{STORE}: {0}")]
    Io(#[from] std::io::Error),
    #[error(
        "{STORE} ends at record {state}, but the log begins at record {log}: the records between are missing. Put \
         back the whole directory from one backup"
    )]
    Gap { log: LogIndex, state: LogIndex },
    #[error("{STORE} belongs to cluster {found}, this master's certificate to {expected}")]
    Cluster { found: ClusterId, expected: ClusterId },
}

/// Opens what lies on the disk, or begins anew where it is empty.
pub fn recover(
    disk: &Arc<dyn Disk>,
    cluster: ClusterId,
    options: RecoveryOptions,
) -> Result<Recovered, RecoveryError> {
    let file = disk.open(STORE, true)?;
    // What is read is on the medium, also after a sync that failed.
    file.drop_cache()?;
    disk.sync_directory("")?;
    let store = Store::open(FileBackend::new(file), options.store)?;
    let mut state = State::open(Box::new(store))?;
    if let Some(found) = state.cluster().map(|cluster| cluster.id)
        && found != cluster
    {
        return Err(RecoveryError::Cluster { found, expected: cluster });
    }
    let applied = state.applied();
    let may_begin = disk.exists(MAY_BEGIN)?;
    let log = Log::open_behind(disk.clone(), LOG, cluster, options.log, applied, may_begin)?;
    if log.first() > applied.next() {
        return Err(RecoveryError::Gap { log: log.first(), state: applied });
    }
    let mut replayed = 0;
    for entry in log.entries(applied.next()) {
        let entry = entry?;
        // The answer went out (or did not) when the record was new; only its effect on the state is wanted.
        let _answered = state.apply(entry.index, &entry.record)?;
        replayed += 1;
        if state.dirty_bytes() > options.dirty_bytes {
            checkpoint(&mut state)?;
        }
    }
    Ok(Recovered { state, log, replayed })
}

/// Checkpoints in place. The log must be on stable storage up to the state's last record.
pub fn checkpoint(state: &mut State) -> Result<(), StoreError> {
    if let Some(checkpoint) = state.begin_checkpoint() {
        checkpoint.run()?;
        state.end_checkpoint()?;
    }
    Ok(())
}
