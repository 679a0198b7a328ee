//! Setting a file's length.
//!
//! Chunks behind the new end go. The chunk that holds the end keeps bytes behind it until the client has trimmed
//! it; until then `trim_pending` stands, and nobody extends the file: those bytes would come back.

use super::set_attr::clear_set_id;
use crate::core::state::Transaction;
use crate::core::state::keys;
use crate::core::state::transaction::{Result, refuse};
use crate::core::state::values::{Chunk, Inode};
use godrive_proto::data::Layout;
use godrive_proto::limits::MAX_FILE_BYTES;
use godrive_proto::meta::{TruncateRequest, Truncated};
use godrive_proto::{Code, Ino};

pub fn truncate(transaction: &mut Transaction<'_>, request: &TruncateRequest) -> Result<Truncated> {
    let TruncateRequest { ino, size, kill_privileges } = request;
    let mut inode = transaction.file(*ino)?;
    check_size(&inode, *size)?;
    check_extending(*ino, &inode, *size)?;
    let trim = trim(transaction, *ino, &inode, *size)?;
    let chunk_bytes = u64::from(inode.chunk_bytes);
    if let Ok(from) = u32::try_from(size.div_ceil(chunk_bytes)) {
        transaction.free_slots(*ino, &mut inode, from)?;
    }
    inode.trim_pending = trim.is_some();
    inode.size = *size;
    if *kill_privileges {
        clear_set_id(&mut inode);
    }
    inode.touch_contents(transaction.now);
    transaction.change(*ino, &mut inode)?;
    Ok(Truncated { view: inode.view(*ino), trim })
}

pub fn check_size(inode: &Inode, size: u64) -> Result<()> {
    // Indexes of chunks are 32 bits wide.
    let limit = MAX_FILE_BYTES.min(u64::from(inode.chunk_bytes) << 32);
    if size > limit {
        return refuse(Code::FileTooLarge, format!("a file has at most {limit} bytes"));
    }
    Ok(())
}

pub fn check_extending(ino: Ino, inode: &Inode, size: u64) -> Result<()> {
    if size > inode.size && inode.trim_pending {
        let detail =
            format!("inode {ino} has a trim pending: truncate it to {} bytes and trim first", inode.size);
        return refuse(Code::Busy, detail);
    }
    Ok(())
}

/// Opens the chunk that holds the new end, if bytes may lie behind it: the file had them, an earlier trim was not
/// finished, or the chunk is being written and holds what was not committed.
fn trim(transaction: &mut Transaction<'_>, ino: Ino, inode: &Inode, size: u64) -> Result<Option<Layout>> {
    let chunk_bytes = u64::from(inode.chunk_bytes);
    if size.is_multiple_of(chunk_bytes) {
        return Ok(None);
    }
    let Ok(index) = u32::try_from(size / chunk_bytes) else { return Ok(None) };
    let Some(id) = transaction.slot(ino, index)? else { return Ok(None) };
    let chunk: Chunk = transaction.promised(&keys::chunk(id))?;
    let open = chunk.open_by.is_some();
    let written = open || chunk.unsettled || chunk.held.version.0 > 0;
    let behind = size < inode.size || inode.trim_pending || open;
    if !(written && behind) {
        return Ok(None);
    }
    transaction.open_chunk(id).map(Some)
}
