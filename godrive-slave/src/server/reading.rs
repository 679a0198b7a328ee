//! Reads of clients, and of other slaves for repair.

use super::shared::Shared;
use bytes::Bytes;
use godrive_proto::data::{FetchRequest, Proof, ReadRequest, Sums, SumsRequest};
use godrive_proto::{ChunkId, Code, Epoch, Fault};
use std::sync::Arc;

/// Reads of more leaves may take a while: other tasks go on meanwhile.
pub const INLINE_LEAVES: u32 = 16;

pub async fn read(shared: &Arc<Shared>, request: ReadRequest) -> Result<(Proof, Vec<Bytes>), Fault> {
    let store = shared.with_chunk(request.chunk)?;
    let inline = store.is_instant() || request.leaves <= INLINE_LEAVES;
    let result = godrive_disk::blocking(inline, || store.read(&request));
    result.inspect_err(|fault| notice(shared, request.chunk, request.epoch, fault))
}

pub async fn sums(shared: &Arc<Shared>, request: SumsRequest) -> Result<Sums, Fault> {
    shared.with_chunk(request.chunk)?.sums(request.chunk)
}

pub async fn fetch(shared: &Arc<Shared>, request: FetchRequest) -> Result<(Vec<u64>, Vec<Bytes>), Fault> {
    let store = shared.with_chunk(request.chunk)?;
    let result = godrive_disk::blocking(store.is_instant(), || store.fetch(&request));
    if let Err(fault) = &result {
        let epoch = store.row(request.chunk).ok().flatten().map_or(Epoch(0), |row| row.epoch);
        notice(shared, request.chunk, epoch, fault);
    }
    result
}

/// Bad leaves are reported, errors counted: those of this slave's own disks. What names a member is that one's, or was bad when it came.
pub fn notice(shared: &Arc<Shared>, chunk: ChunkId, epoch: Epoch, fault: &Fault) {
    if fault.node.is_some() {
        return;
    }
    match fault.code {
        Code::Corrupt => shared.report_corrupt(chunk, epoch, fault.detail.clone()),
        Code::Disk | Code::Internal => shared.count_error(),
        _ => {}
    }
}
