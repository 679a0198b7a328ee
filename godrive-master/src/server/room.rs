//! Room on the master's own disk. Below a reserve nothing is logged that makes the state larger for good; what gives room back,
//! keeps data safe or ends something goes on, on the reserve. Of that a part is a ballast, so that it is there although other
//! programs fill the file system.

use super::shared::Shared;
use godrive_disk::{Disk, Reserved};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// The reserve: this, or a twentieth of a small disk.
const RESERVE_BYTES: u64 = 512 << 20;
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub struct Room {
    disk: Arc<Reserved>,
    reserve_bytes: u64,
}

impl Room {
    pub fn open(disk: Arc<dyn Disk>) -> io::Result<Self> {
        let reserve_bytes = RESERVE_BYTES.min(disk.space()?.total_bytes / 20);
        // A checkpoint writes at most this much more than is dirty before it is due.
        let disk = Arc::new(Reserved::new(disk, reserve_bytes / 8)?);
        Ok(Self { disk, reserve_bytes })
    }

    pub fn disk(&self) -> Arc<dyn Disk> {
        self.disk.clone()
    }

    /// Whether the state may grow. Takes the ballast if there is room for it.
    pub fn is_enough(&self) -> io::Result<bool> {
        self.disk.refill(self.reserve_bytes / 2);
        Ok(self.disk.space()?.free_bytes > self.reserve_bytes)
    }
}

/// Runs as long as the master.
pub async fn watch(shared: Arc<Shared>, room: Room) {
    loop {
        let enough = shared.durability.blocking(|| room.is_enough());
        match enough {
            Ok(enough) => shared.with(|hub, _| hub.note_room(enough)),
            Err(error) => tracing::error!(%error, "the master's disk cannot be asked for its room"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
