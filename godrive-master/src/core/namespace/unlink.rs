//! Removing names: unlink and rmdir.

use super::names::check_name;
use crate::core::state::Transaction;
use crate::core::state::transaction::Result;
use godrive_proto::meta::{Kind, UnlinkRequest, Unlinked};
use godrive_proto::{Code, SessionId};

pub fn unlink(
    transaction: &mut Transaction<'_>,
    request: &UnlinkRequest,
    open_elsewhere: &[SessionId],
) -> Result<Unlinked> {
    let UnlinkRequest { parent, name, directory } = request;
    check_name(name)?;
    transaction.directory(*parent)?;
    let dentry = transaction.required(*parent, name)?;
    match (dentry.kind, directory) {
        (Kind::Directory, false) => return Err(Code::IsDirectory.into()),
        (Kind::Directory, true) if transaction.inode(dentry.ino)?.size > 0 => {
            return Err(Code::NotEmpty.into());
        }
        (Kind::Directory, true) | (_, false) => {}
        (_, true) => return Err(Code::NotDirectory.into()),
    }
    transaction.remove_name(*parent, name, dentry)?;
    let inode = transaction.drop_link(*parent, name, dentry, open_elsewhere)?;
    Ok(Unlinked { parent: transaction.view_of(*parent)?, entry: inode.view(dentry.ino) })
}
