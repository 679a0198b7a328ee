//! Checkpoints of the state behind the log, so that a restart replays little and the log stays short.

use super::shared::Shared;
use godrive_proto::{Code, Fault};
use std::sync::Arc;
use std::time::Duration;

/// At the latest after this.
const PERIOD: Duration = Duration::from_secs(30);
/// Looked at this often; much that is dirty is written sooner.
const PAUSE: Duration = Duration::from_secs(2);
const DIRTY_BYTES: usize = 32 << 20;

/// Runs as long as the master.
pub async fn run(shared: Arc<Shared>) {
    let mut waited = Duration::ZERO;
    loop {
        tokio::time::sleep(PAUSE).await;
        waited += PAUSE;
        let much = shared.with(|hub, _| hub.state.dirty_bytes() > DIRTY_BYTES);
        if waited < PERIOD && !much {
            continue;
        }
        waited = Duration::ZERO;
        if let Err(fault) = once(&shared).await {
            shared.with(|hub, _| hub.refuse(format!("no checkpoint can be written: {fault}")));
            return;
        }
    }
}

/// One checkpoint: what it covers is durable in the log first, and the log is cut below it afterwards.
pub async fn once(shared: &Arc<Shared>) -> Result<(), Fault> {
    let Some(checkpoint) = shared.with(|hub, _| hub.state.begin_checkpoint()) else { return Ok(()) };
    shared.durable(checkpoint.index).await?;
    shared.durability.blocking(|| checkpoint.run())?;
    let cut = shared.with(|hub, _| {
        hub.state.end_checkpoint()?;
        Ok::<_, Fault>(hub.journal.log.cut_below(checkpoint.index))
    })?;
    // Not under the lock: each removal is synced.
    shared.durability.blocking(|| cut.run()).map_err(|error| Fault::new(Code::Disk, error.to_string()))
}
