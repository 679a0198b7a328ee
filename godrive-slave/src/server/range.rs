//! `CopyRange`: the first member of a chain fetches the bytes, from its own disks or from another slave, and goes on as if a
//! delta had brought them.

use super::delta::{self, Feed};
use super::reading::{self, INLINE_LEAVES};
use super::requests::deadline;
use super::shared::Shared;
use crate::core::range;
use bytes::Bytes;
use godrive_proto::data::{Applied, CopyRangeRequest, Member, Proof, Read, ReadRequest, Source};
use godrive_proto::frame::{Class, RequestHeader};
use godrive_proto::limits::{LEAF_BYTES, MAX_READ_BYTES};
use godrive_proto::proof::{self, Run, Wanted};
use godrive_proto::{Code, Fault};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Of the time that the request has, this part is for each member of the source.
const PART: u32 = 4;

pub async fn copy_range(
    shared: Arc<Shared>,
    request: CopyRangeRequest,
    header: RequestHeader,
) -> Result<Applied, Fault> {
    let leaves = range::leaves(&request)?;
    // What would be refused with its bytes is refused before they are fetched.
    delta::admit(&shared, &request.delta)?;
    let begun = tokio::time::Instant::now();
    // Before the asker gives up, it is told to carry the bytes itself.
    let Ok(Ok(_permit)) = tokio::time::timeout(deadline(&header) / PART, shared.ranges.acquire()).await
    else {
        return Err(Fault::new(Code::NoSource, "this slave copies as much as it can"));
    };
    let runs = fetch(&shared, &request.source, leaves, &header).await?;
    let inline = runs.len() <= INLINE_LEAVES as usize;
    let (delta, bytes) = godrive_disk::blocking(inline, || range::filled(request, &runs));
    drop(runs);
    // So that a member behind is blamed for its own delay, before the asker gives up this one.
    let left = deadline(&header).saturating_sub(begun.elapsed());
    let deadline_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1);
    delta::run(&shared, &delta, &RequestHeader { deadline_ms, ..header }, Feed::Here(bytes)).await
}

/// From this slave if it has them, else from one of the others.
async fn fetch(
    shared: &Arc<Shared>,
    source: &Source,
    leaves: Range<u32>,
    header: &RequestHeader,
) -> Result<Vec<Run>, Fault> {
    let (here, there): (Vec<_>, Vec<_>) =
        source.members.iter().partition(|member| member.node == shared.node);
    let limit = deadline(header) / PART;
    let mut failures = Vec::new();
    for member in here.into_iter().chain(there) {
        match fetch_from(shared, member, source, leaves.clone(), header.class, limit).await {
            Ok(runs) => return Ok(runs),
            Err(fault) => failures.push(format!("slave {}: {fault}", member.node)),
        }
    }
    let detail = format!("chunk {} cannot be copied: {}", source.chunk, failures.join("; "));
    Err(Fault::new(Code::NoSource, detail))
}

async fn fetch_from(
    shared: &Arc<Shared>,
    member: &Member,
    source: &Source,
    leaves: Range<u32>,
    class: Class,
    limit: Duration,
) -> Result<Vec<Run>, Fault> {
    let longest = MAX_READ_BYTES as u32 / LEAF_BYTES;
    let mut runs = Vec::new();
    for first_leaf in leaves.clone().step_by(longest as usize) {
        let count = longest.min(leaves.end - first_leaf);
        let Source { chunk, chunk_bytes, epoch, contents, .. } = *source;
        let request = ReadRequest { chunk, epoch, version: contents.version, first_leaf, leaves: count };
        let (proof, payload): (Proof, Vec<Bytes>) = if member.node == shared.node {
            reading::read(shared, request).await?
        } else {
            let connection = shared.peers.connection(member, limit / 2).await?;
            let reply = connection.call::<Read>(shared.request_header(class), &request, &[], limit).await?;
            (reply.body, reply.payload)
        };
        let wanted = Wanted { chunk, chunk_bytes, digest: contents.digest, first_leaf, leaves: count };
        let verified =
            godrive_disk::blocking(count <= INLINE_LEAVES, || proof::verify(&wanted, &proof, &payload));
        runs.extend(verified.map_err(|error| Fault::new(Code::Corrupt, error.to_string()))?);
    }
    Ok(runs)
}
