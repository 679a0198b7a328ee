//! Mode, owners and times. Size is [`super::truncate`]'s.

use super::acl;
use crate::core::state::Transaction;
use crate::core::state::keys;
use crate::core::state::transaction::{Result, refuse};
use crate::core::state::values::Inode;
use godrive_proto::meta::{AttrChanges, InodeView, Kind, SetAttrRequest, SetTime};
use godrive_proto::time::Timestamp;
use godrive_proto::{Code, Ino};

pub fn set_attr(transaction: &mut Transaction<'_>, request: &SetAttrRequest) -> Result<InodeView> {
    let SetAttrRequest { ino, changes } = request;
    if changes.ctime.is_some() {
        return refuse(Code::Invalid, "only a commit carries a ctime");
    }
    let mut inode = transaction.inode(*ino)?;
    let now = transaction.now;
    change_attributes(&mut inode, changes, now);
    if changes.mode.is_some() {
        acl::follow_mode(transaction, *ino, &inode)?;
    }
    inode.touch_status(now);
    transaction.change(*ino, &mut inode)?;
    Ok(inode.view(*ino))
}

/// Access times: they are no change of the inode, and do not undo one that came later.
pub fn accessed(transaction: &mut Transaction<'_>, times: &[(Ino, Timestamp)]) -> Result<()> {
    for (ino, at) in times {
        let key = keys::inode(*ino);
        let known: Option<Inode> = transaction.value(&key)?;
        if let Some(mut inode) = known.filter(|inode| *at > inode.atime && *at >= inode.ctime) {
            inode.atime = *at;
            transaction.put(key, &inode)?;
        }
    }
    Ok(())
}

/// All but ctime, which the callers know better.
pub fn change_attributes(inode: &mut Inode, changes: &AttrChanges, now: Timestamp) {
    let at = |time: SetTime| match time {
        SetTime::Now => now,
        SetTime::At(time) => time,
    };
    if let Some(mode) = changes.mode {
        inode.mode = mode & 0o7777;
    } else if changes.uid.is_some() || changes.gid.is_some() {
        clear_set_id(inode);
    }
    inode.uid = changes.uid.unwrap_or(inode.uid);
    inode.gid = changes.gid.unwrap_or(inode.gid);
    inode.atime = changes.atime.map_or(inode.atime, at);
    inode.mtime = changes.mtime.map_or(inode.mtime, at);
}

/// What a change of owner or contents does to a program's set-id bits. Set-gid without group execution is
/// not a program's bit (once it marked mandatory locks) and stays.
pub fn clear_set_id(inode: &mut Inode) {
    if inode.kind == Kind::Directory {
        return;
    }
    inode.mode &= !0o4000;
    if inode.mode & 0o010 != 0 {
        inode.mode &= !0o2000;
    }
}
