//! Which chunks cannot be read or written as they should, and which files that concerns.

use super::hub::Hub;
use super::paths::Paths;
use super::repair;
use super::requests::Context;
use super::slaves::member_health;
use crate::core::nodes::Health;
use crate::core::repair::{ChunkView, Limits};
use crate::core::state::values::Chunk;
use godrive_proto::admin::{Damage, DamagedChunk, DamagedPage, ListDamagedRequest};
use godrive_proto::limits::MAX_DAMAGED_PAGE;
use godrive_proto::time::Instant;
use godrive_proto::{ChunkId, Code, Fault};

/// Chunks that are looked at under one lock, and for one answer.
const PAGE: usize = 1_000;
const LOOKED_AT: usize = 200_000;
/// Entries of directories in which their files are looked for, and bytes of paths, in one answer.
const SEARCHED: usize = 500_000;
const PATH_BYTES: usize = 512 << 10;

/// What is the matter with a chunk, the worst; None: at most it misses replicas.
pub fn damage(
    hub: &Hub,
    now: Instant,
    known: &Chunk,
    view: &ChunkView,
    limits: &Limits,
) -> Result<Option<Damage>, Fault> {
    let alive = view.alive();
    Ok(if known.quarantined {
        Some(Damage::Quarantined)
    } else if hub.is_damaged(now, view.chunk, &known.members, None)?
        || only_rotten_left(hub, now, known, view.chunk)
    {
        Some(Damage::Rotten)
    } else if alive == 0 && known.held.version.0 > 0 {
        Some(Damage::Unreachable)
    } else if alive < limits.min_replicas {
        Some(Damage::ReadOnly)
    } else {
        None
    })
}

/// Of the members that are there each was reported as corrupt: what the others have cannot be read now.
fn only_rotten_left(hub: &Hub, now: Instant, known: &Chunk, chunk: ChunkId) -> bool {
    let Some(corrupt) = hub.slaves.corrupt.get(&chunk) else { return false };
    let mut there =
        known.members.iter().filter(|m| member_health(hub, now, chunk, m) == Health::Alive).peekable();
    there.peek().is_some() && there.all(|member| corrupt.contains_key(&member.node))
}

pub async fn list(context: &Context, request: ListDamagedRequest) -> Result<DamagedPage, Fault> {
    let limit = request.limit as usize;
    if !(1..=MAX_DAMAGED_PAGE).contains(&limit) {
        return Err(Fault::new(Code::Malformed, format!("a page has 1 to {MAX_DAMAGED_PAGE} entries")));
    }
    let mut page = DamagedPage { chunks: Vec::new(), next: Some(request.after) };
    let mut looked_at = 0;
    while page.chunks.len() < limit
        && looked_at < LOOKED_AT
        && let Some(after) = page.next
    {
        page.next = context.shared.with(|hub, now| look(hub, now, after, limit, &mut page.chunks))?;
        looked_at += PAGE;
        tokio::task::yield_now().await;
    }
    let mut paths = Paths::new(&context.shared, SEARCHED);
    paths.find(page.chunks.iter().map(|damaged| damaged.ino)).await?;
    let mut room = PATH_BYTES;
    for damaged in &mut page.chunks {
        let path = paths.of(damaged.ino).await?;
        damaged.path = path.filter(|path| path.len() <= room);
        room -= damaged.path.as_ref().map_or(0, Vec::len);
    }
    Ok(page)
}

/// Adds what is found behind `after`, up to `limit` in all, and says where to go on.
fn look(
    hub: &mut Hub,
    now: Instant,
    after: ChunkId,
    limit: usize,
    found: &mut Vec<DamagedChunk>,
) -> Result<Option<ChunkId>, Fault> {
    let limits = repair::limits(hub)?;
    let page = hub.state.chunks(after, PAGE)?;
    let end = page.len() < PAGE;
    let mut last = None;
    for (chunk, known) in page {
        if found.len() == limit {
            return Ok(last);
        }
        last = Some(chunk);
        let view = repair::view_of(hub, now, chunk, &known);
        if let Some(damage) = damage(hub, now, &known, &view, &limits)? {
            found.push(DamagedChunk {
                chunk,
                damage,
                ino: known.ino,
                index: known.index,
                chunk_bytes: known.chunk_bytes,
                members: known.members.iter().map(|member| member.node).collect(),
                trashed: hub.state.trashed_name(known.ino)?.is_some(),
                path: None,
            });
        }
    }
    Ok(last.filter(|_| !end))
}
