//! Another name for an inode.

use super::names::check_name;
use crate::core::state::Transaction;
use crate::core::state::transaction::{Result, refuse};
use godrive_proto::Code;
use godrive_proto::limits::MAX_LINKS;
use godrive_proto::meta::{Kind, LinkRequest, Linked};

pub fn link(transaction: &mut Transaction<'_>, request: &LinkRequest) -> Result<Linked> {
    let LinkRequest { ino, parent, name } = request;
    check_name(name)?;
    let inode = transaction.inode(*ino)?;
    transaction.open_directory(*parent)?;
    if transaction.dentry(*parent, name)?.is_some() {
        return Err(Code::Exists.into());
    }
    if inode.kind == Kind::Directory {
        return refuse(Code::NotPermitted, "a directory has one name only");
    }
    if inode.nlink == 0 {
        return refuse(Code::NotFound, format!("inode {ino} has lost its last name"));
    }
    if inode.nlink >= MAX_LINKS {
        return refuse(Code::TooManyLinks, format!("inode {ino} has {MAX_LINKS} names already"));
    }
    let now = transaction.now;
    let inode = transaction.update(*ino, |inode| {
        inode.nlink += 1;
        inode.parent = *parent;
        inode.touch_status(now);
    })?;
    transaction.add_name(*parent, name, *ino, inode.kind)?;
    Ok(Linked { parent: transaction.view_of(*parent)?, entry: inode.view(*ino) })
}
