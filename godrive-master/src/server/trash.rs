//! The trash: what it holds, and what leaves it for good, asked for or in its time.

use super::hub::Hub;
use super::paths::Paths;
use super::requests::Context;
use super::shared::Shared;
use crate::core::record::Body;
use crate::core::state::values::{Inode, Trashed};
use crate::core::trash::{Due, Planner, Point, View};
use godrive_proto::admin::{ListTrashRequest, TrashEntry, TrashPage, TrashStatus};
use godrive_proto::limits::MAX_TRASH_PAGE;
use godrive_proto::time::Instant;
use godrive_proto::{Code, Fault, Ino, LogIndex};
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked at what is due, and the pause after a page of it was dropped.
const PAUSE: Duration = Duration::from_secs(1);
const BETWEEN_PAGES: Duration = Duration::from_millis(20);
/// Entries that are dropped under one lock.
const PAGE: usize = 256;

/// Runs as long as the master.
pub async fn run(shared: Arc<Shared>) {
    let mut planner = Planner::default();
    loop {
        tokio::time::sleep(PAUSE).await;
        let mut due = match shared.with(|hub, now| view(hub, now)) {
            Ok(view) => planner.plan(&view),
            Err(fault) => {
                tracing::debug!("the trash is left as it is: {fault}");
                continue;
            }
        };
        loop {
            match shared.with(|hub, _| drop_due(hub, &mut due)) {
                Ok(dropped) if dropped == PAGE => tokio::time::sleep(BETWEEN_PAGES).await,
                Ok(_) => break,
                Err(fault) => {
                    tracing::warn!("nothing leaves the trash now: {fault}");
                    break;
                }
            }
        }
    }
}

fn view(hub: &Hub, now: Instant) -> Result<View, Fault> {
    hub.serving()?;
    let trash = hub.state.trash()?;
    let disks = hub.nodes.candidates(now, &hub.reserved);
    Ok(View {
        now,
        log: Point { time: hub.state.time(), index: hub.state.applied() },
        keep_s: trash.keep_s,
        max_entries: hub.config.trash.max_entries,
        entries: trash.entries,
        total_bytes: disks.iter().map(|disk| disk.total_bytes).sum(),
        free_bytes: disks.iter().map(|disk| disk.free_bytes).sum(),
        replicas: hub.parameters()?.replicas.into(),
        deleting: hub.state.counts().deleted.saturating_sub(hub.slaves.stuck.len() as u64),
    })
}

/// Drops a page of what is due, and says how many entries that were.
fn drop_due(hub: &mut Hub, due: &mut Due) -> Result<usize, Fault> {
    let (mut over, mut early) = (Vec::new(), 0);
    for (ino, trashed, inode) in hub.state.trashed(None, PAGE)? {
        let is_over = due.is_over(trashed.removed, LogIndex(inode.change));
        if !is_over && due.entries == 0 && due.bytes == 0 {
            break;
        }
        early += usize::from(!is_over);
        due.entries = due.entries.saturating_sub(1);
        due.bytes = due.bytes.saturating_sub(trashed.bytes);
        over.push(ino);
    }
    if early > 0 {
        tracing::info!(entries = early, "they leave the trash before their time, to make room");
    }
    let count = over.len();
    if count > 0 {
        hub.decide(Body::TrashDropped { inodes: over })?.0?;
    }
    Ok(count)
}

pub fn status(hub: &Hub) -> Result<TrashStatus, Fault> {
    let trash = hub.state.trash()?;
    let oldest = hub.state.trashed(None, 1)?.first().map(|(_, trashed, _)| trashed.removed);
    Ok(TrashStatus { keep_s: trash.keep_s, entries: trash.entries, bytes: trash.bytes, oldest })
}

pub async fn empty(context: &Context, inodes: Vec<Ino>) -> Result<u32, Fault> {
    if inodes.len() > MAX_TRASH_PAGE {
        let detail = format!("at most {MAX_TRASH_PAGE} entries can be removed at once");
        return Err(Fault::new(Code::Malformed, detail));
    }
    let step = |hub: &mut Hub, _: Instant| {
        let before = hub.state.trash()?.entries;
        let (answer, durable) = hub.decide(Body::TrashDropped { inodes })?;
        answer?;
        let dropped = before.saturating_sub(hub.state.trash()?.entries);
        Ok((u32::try_from(dropped).unwrap_or(u32::MAX), durable))
    };
    context.step(step).await
}

pub async fn list(context: &Context, request: ListTrashRequest) -> Result<TrashPage, Fault> {
    let limit = request.limit as usize;
    if !(1..=MAX_TRASH_PAGE).contains(&limit) {
        return Err(Fault::new(Code::Malformed, format!("a page has 1 to {MAX_TRASH_PAGE} entries")));
    }
    let step = |hub: &mut Hub, _: Instant| {
        let found = hub.state.trashed(request.after, limit)?;
        Ok((found, hub.must_be_durable(context.session)))
    };
    let found = context.step(step).await?;
    let end = found.len() < limit;
    let mut paths = Paths::new(&context.shared, usize::MAX);
    let mut entries = Vec::with_capacity(found.len());
    for (ino, trashed, inode) in found {
        let path = paths.below(trashed.parent, &trashed.name.0).await?;
        entries.push(entry(ino, trashed, &inode, path));
    }
    Ok(TrashPage { entries, end })
}

fn entry(ino: Ino, trashed: Trashed, inode: &Inode, path: Option<Vec<u8>>) -> TrashEntry {
    TrashEntry {
        ino,
        kind: inode.kind,
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        size: inode.size,
        removed: trashed.removed,
        parent: trashed.parent,
        name: trashed.name,
        path,
    }
}
