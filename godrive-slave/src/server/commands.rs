//! The master's commands: seal, install, delete, quarantine. Each is on stable storage before it is answered.

use super::shared::Shared;
use crate::store::DiskStore;
use godrive_proto::cluster::{DeleteRequest, InstallRequest, QuarantineRequest, ReplicaState, SealRequest};
use godrive_proto::{ChunkId, Code, DiskId, Epoch, Fault};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A chunk that is not here is sealed too: a delta of the old epoch that arrives late does not make it.
pub async fn seal(shared: &Arc<Shared>, request: SealRequest) -> Result<ReplicaState, Fault> {
    let store = match shared.find(request.chunk)? {
        Some((store, _)) => store,
        None => first(shared)?,
    };
    let sealed = store.seal(request.chunk, request.epoch, shared.clock.wall());
    match sealed {
        Ok(row) => {
            if !store.is_stable(row.position) {
                store.sync().await?;
            }
            Ok(shared.replica_state(store, request.chunk, &row))
        }
        Err(fault) if fault.code == Code::NoChunk => {
            store.sync().await?;
            Err(fault)
        }
        Err(fault) => Err(fault),
    }
}

pub async fn install(shared: &Arc<Shared>, request: InstallRequest) -> Result<(), Fault> {
    let store = shared.find_or_place(request.chunk, request.disk)?;
    let InstallRequest { chunk, chunk_bytes, epoch, contents, .. } = request;
    let done = store.install(chunk, chunk_bytes, epoch, contents, shared.clock.wall())?;
    if !store.is_stable(done.position) {
        store.sync().await?;
    }
    Ok(())
}

pub async fn delete(shared: &Arc<Shared>, request: DeleteRequest) -> Result<(), Fault> {
    let mut by_disk: BTreeMap<DiskId, Vec<(ChunkId, Epoch)>> = BTreeMap::new();
    for (chunk, epoch) in request.chunks {
        let store = match shared.find(chunk)? {
            Some((store, _)) => store,
            None => first(shared)?,
        };
        by_disk.entry(store.id()).or_default().push((chunk, epoch));
    }
    for (disk, chunks) in by_disk {
        let store = shared.place(disk)?;
        godrive_disk::blocking(store.is_instant(), || store.delete(&chunks, shared.clock.wall()))?;
        store.sync().await?;
    }
    Ok(())
}

pub async fn quarantine(shared: &Arc<Shared>, request: QuarantineRequest) -> Result<(), Fault> {
    for chunk in request.chunks {
        if let Some((store, _)) = shared.find(chunk)? {
            store.quarantine(chunk, "the master does not know it", shared.clock.wall())?;
        }
    }
    for store in shared.usable().filter(|store| store.needs_sync()) {
        store.sync().await?;
    }
    Ok(())
}

fn first(shared: &Shared) -> Result<&Arc<DiskStore>, Fault> {
    shared.usable().next().ok_or_else(|| Fault::new(Code::Disk, "no disk of this slave is in service"))
}
