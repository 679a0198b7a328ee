//! The master's commands: seal, install, delete, quarantine. Each is on stable storage before it is answered.

use super::shared::Shared;
use crate::core::replica::no_chunk;
use crate::store::DiskStore;
use crate::store::table::Row;
use godrive_proto::cluster::{DeleteRequest, InstallRequest, QuarantineRequest, ReplicaState, SealRequest};
use godrive_proto::{ChunkId, Code, DiskId, Epoch, Fault};
use std::collections::BTreeMap;
use std::sync::Arc;

/// On every disk that has the chunk, so that no copy beside the one that counts becomes a member of an epoch that is over. A
/// chunk that is not here is sealed too, on each disk: a delta of the old epoch that arrives late does not make it. Where it may lie
/// on a disk that is out of service, nobody can say that it is not here.
pub async fn seal(shared: &Arc<Shared>, request: SealRequest) -> Result<ReplicaState, Fault> {
    let mut best: Option<(&Arc<DiskStore>, Row)> = None;
    for store in holders(shared, request.chunk)? {
        let sealed = store.seal(request.chunk, request.epoch, shared.clock.wall());
        shared.ring_if_due(store);
        match sealed {
            Ok(row) => {
                if !store.is_stable(row.position) {
                    store.sync().await?;
                }
                if best.as_ref().is_none_or(|(_, best)| row.rank() > best.rank()) {
                    best = Some((store, row));
                }
            }
            Err(fault) if fault.code == Code::NoChunk => store.sync().await?,
            Err(fault) => return Err(fault),
        }
    }
    match best {
        Some((store, row)) => Ok(shared.replica_state(store, request.chunk, &row)),
        None => Err(shared.out_of_service().unwrap_or_else(|| no_chunk(request.chunk))),
    }
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
            store.quarantine(chunk, &row, "it is a member on another disk", shared.clock.wall())
        }
        _ => Ok(()),
    }
}

pub async fn delete(shared: &Arc<Shared>, request: DeleteRequest) -> Result<(), Fault> {
    let mut by_disk: BTreeMap<DiskId, Vec<(ChunkId, Epoch)>> = BTreeMap::new();
    for (chunk, epoch) in request.chunks {
        super::copy::deleting(shared, chunk, epoch);
        for store in holders(shared, chunk)? {
            by_disk.entry(store.id()).or_default().push((chunk, epoch));
        }
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
        if let Some((store, row)) = shared.find(chunk)? {
            store.quarantine(chunk, &row, "the master does not know it", shared.clock.wall())?;
        }
    }
    for store in shared.usable().filter(|store| store.needs_sync()) {
        store.sync().await?;
    }
    Ok(())
}

/// The disks that have the chunk; if none has it, all in service.
fn holders(shared: &Shared, chunk: ChunkId) -> Result<Vec<&Arc<DiskStore>>, Fault> {
    let mut stores: Vec<_> = shared.rows(chunk)?.into_iter().map(|(store, _)| store).collect();
    if stores.is_empty() {
        stores.extend(shared.usable());
    }
    if stores.is_empty() {
        return Err(Fault::new(Code::Disk, "no disk of this slave is in service"));
    }
    Ok(stores)
}
