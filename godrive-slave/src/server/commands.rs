//! The master's commands: seal, install, delete, quarantine. Each is on stable storage before it is answered.

use super::shared::Shared;
use crate::core::replica::no_chunk;
use crate::store::DiskStore;
use godrive_proto::cluster::{DeleteRequest, InstallRequest, QuarantineRequest, ReplicaState, SealRequest};
use godrive_proto::{ChunkId, Code, DiskId, Epoch, Fault};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A chunk that is not here is sealed too, on each disk: a delta of the old epoch that arrives late does not make it.
pub async fn seal(shared: &Arc<Shared>, request: SealRequest) -> Result<ReplicaState, Fault> {
    let stores = match shared.find(request.chunk)? {
        Some((store, _)) => vec![store],
        None => in_service(shared)?,
    };
    for store in stores {
        let sealed = store.seal(request.chunk, request.epoch, shared.clock.wall());
        shared.ring_if_due(store);
        match sealed {
            Ok(row) => {
                if !store.is_stable(row.position) {
                    store.sync().await?;
                }
                return Ok(shared.replica_state(store, request.chunk, &row));
            }
            Err(fault) if fault.code == Code::NoChunk => store.sync().await?,
            Err(fault) => return Err(fault),
        }
    }
    Err(no_chunk(request.chunk))
}

/// On the disk that is named and on no other: that is where the record has it.
pub async fn install(shared: &Arc<Shared>, request: InstallRequest) -> Result<(), Fault> {
    let store = shared.place(request.disk)?;
    let InstallRequest { chunk, chunk_bytes, epoch, contents, .. } = request;
    let done = store.install(chunk, chunk_bytes, epoch, contents, shared.clock.wall())?;
    shared.ring_if_due(store);
    if !store.is_stable(done.position) {
        store.sync().await?;
    }
    for other in shared.usable().filter(|other| other.id() != store.id()) {
        moved_away(shared, other, &request)?;
    }
    Ok(())
}

/// The chunk is a member on another disk now. What is left here goes, but for what is newer than that.
fn moved_away(shared: &Shared, store: &DiskStore, request: &InstallRequest) -> Result<(), Fault> {
    let chunk = request.chunk;
    match store.row(chunk)? {
        Some(row) if row.epoch < request.epoch && row.version <= request.contents.version => {
            godrive_disk::blocking(store.is_instant(), || {
                store.delete(&[(chunk, row.epoch)], shared.clock.wall())
            })
        }
        Some(row) if row.epoch < request.epoch => {
            store.quarantine(chunk, "it is a member on another disk", shared.clock.wall()).map(drop)
        }
        _ => Ok(()),
    }
}

pub async fn delete(shared: &Arc<Shared>, request: DeleteRequest) -> Result<(), Fault> {
    let mut by_disk: BTreeMap<DiskId, Vec<(ChunkId, Epoch)>> = BTreeMap::new();
    for (chunk, epoch) in request.chunks {
        super::copy::deleting(shared, chunk, epoch);
        let mut holders = Vec::new();
        for store in shared.usable() {
            if store.row(chunk)?.is_some() {
                holders.push(store.id());
            }
        }
        if holders.is_empty() {
            holders.extend(in_service(shared)?.into_iter().map(|store| store.id()));
        }
        holders.into_iter().for_each(|disk| by_disk.entry(disk).or_default().push((chunk, epoch)));
    }
    for (disk, chunks) in by_disk {
        let store = shared.place(disk)?;
        godrive_disk::blocking(store.is_instant(), || store.delete(&chunks, shared.clock.wall()))?;
        shared.ring_if_due(store);
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

fn in_service(shared: &Shared) -> Result<Vec<&Arc<DiskStore>>, Fault> {
    let stores: Vec<_> = shared.usable().collect();
    if stores.is_empty() {
        return Err(Fault::new(Code::Disk, "no disk of this slave is in service"));
    }
    Ok(stores)
}
