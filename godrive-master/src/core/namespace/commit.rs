//! What the replicas hold already becomes the file: metadata changes only after successful replication.

use super::acl;
use super::set_attr::change_attributes;
use super::truncate::{check_extending, check_size};
use crate::core::state::keys;
use crate::core::state::transaction::{Result, refuse};
use crate::core::state::values::{Chunk, Inode, Node};
use crate::core::state::{Closing, Transaction};
use godrive_proto::data::ChunkState;
use godrive_proto::lease::Mode;
use godrive_proto::meta::{AttrChanges, CommitRequest, Committed};
use godrive_proto::{Code, Ino, LogIndex};

pub fn commit(transaction: &mut Transaction<'_>, request: &CommitRequest) -> Result<Committed> {
    let CommitRequest { ino, size, changes, chunks, trimmed, sync: _, keeps } = request;
    let mut inode = transaction.inode(*ino)?;
    let before = inode.clone();
    if size.is_some() || !chunks.is_empty() {
        transaction.file(*ino)?;
    }
    if *trimmed {
        inode.trim_pending = false;
    }
    let mut advanced = false;
    for state in chunks {
        advanced |= commit_chunk(transaction, *ino, &mut inode, state)?;
    }
    // Another commit may have made it longer: this never shortens.
    if let Some(size) = size.filter(|size| *size > inode.size) {
        check_size(&inode, size)?;
        check_extending(*ino, &inode, size)?;
        inode.size = size;
        advanced = true;
    }
    change_times(transaction, &mut inode, changes, advanced);
    if changes.mode.is_some() {
        acl::follow_mode(transaction, *ino, &inode)?;
    }
    if inode != before {
        transaction.change(*ino, &mut inode)?;
    }
    if *keeps == Mode::Shared && transaction.session.0 != 0 {
        transaction.close_chunks(transaction.session, *ino, Closing::Committed)?;
        inode = transaction.inode(*ino)?;
    }
    Ok(Committed { view: inode.view(*ino) })
}

/// The holder of the exclusive lease owned the times; what it does not say is now.
fn change_times(transaction: &Transaction<'_>, inode: &mut Inode, changes: &AttrChanges, advanced: bool) {
    let now = transaction.now;
    if advanced && changes.mtime.is_none() {
        inode.touch_contents(now);
    }
    change_attributes(inode, changes, now);
    match changes.ctime {
        Some(ctime) => inode.touch_status(ctime),
        None if advanced || *changes != AttrChanges::default() => inode.touch_status(now),
        None => {}
    }
}

/// The record at which the members had what is committed now, or an earlier one. A replica takes no delta between its
/// node's restart and an election, so a commit that comes behind restarts within the epoch, repeated perhaps by a mount
/// that met a restarted master, tells of what was held before them. Only a replica that a first delta makes behind the
/// restart was not there before; that cannot be told apart, and an election then rather speaks of a loss that was none.
fn held_since(transaction: &Transaction<'_>, chunk: &Chunk) -> Result<LogIndex> {
    let mut since = transaction.index;
    for member in &chunk.members {
        let node: Option<Node> = transaction.value(&keys::node(member.node))?;
        if let Some(node) = node.filter(|node| node.booted_at > chunk.held_at) {
            since = since.min(LogIndex(node.booted_at.0.saturating_sub(1)));
        }
    }
    Ok(since)
}

/// True if the chunk's contents advanced.
fn commit_chunk(
    transaction: &mut Transaction<'_>,
    ino: Ino,
    inode: &mut Inode,
    state: &ChunkState,
) -> Result<bool> {
    let ChunkState { index, chunk: id, epoch, held, stable, used_bytes } = *state;
    if transaction.slot(ino, index)? != Some(id) {
        return refuse(Code::NoChunk, format!("chunk {id} is not at index {index} of inode {ino}"));
    }
    let mut chunk: Chunk = transaction.promised(&keys::chunk(id))?;
    if epoch != chunk.epoch {
        return refuse(Code::WrongEpoch, format!("chunk {id} has epoch {}, not {epoch}", chunk.epoch));
    }
    if used_bytes > chunk.chunk_bytes {
        return refuse(Code::Malformed, format!("chunk {id} cannot use {used_bytes} bytes"));
    }
    if held.version == chunk.held.version && held.digest != chunk.held.digest {
        let detail = format!("chunk {id} has another digest at version {}", held.version);
        return refuse(Code::WrongVersion, detail);
    }
    let before = chunk.clone();
    let advanced = held.version > chunk.held.version;
    if advanced {
        chunk.held_at = held_since(transaction, &chunk)?;
    }
    if held.version >= chunk.held.version {
        chunk.held = held;
        transaction.use_bytes(&mut chunk, inode, used_bytes);
    }
    if stable && held.version > chunk.stable.version {
        chunk.stable = held;
    }
    if chunk != before {
        transaction.put(keys::chunk(id), &chunk)?;
    }
    Ok(advanced)
}
