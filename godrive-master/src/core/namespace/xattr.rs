//! Extended attributes, as setxattr and removexattr answer.

use super::acl;
use crate::core::state::Transaction;
use crate::core::state::keys;
use crate::core::state::transaction::{Result, refuse};
use crate::core::state::values::Inode;
use bytes::Bytes;
use godrive_proto::limits::{MAX_XATTR_LIST_BYTES, MAX_XATTR_NAME_BYTES, MAX_XATTR_VALUE_BYTES};
use godrive_proto::meta::{InodeView, RemoveXattrRequest, SetXattrMode, SetXattrRequest};
use godrive_proto::{Code, Ino};

/// Names and values of one inode, so that all of them fit one reply.
pub const MAX_XATTR_BYTES: usize = 512 << 10;

pub fn set_xattr(transaction: &mut Transaction<'_>, request: &SetXattrRequest) -> Result<InodeView> {
    let SetXattrRequest { ino, name, value, mode } = request;
    check_name(name)?;
    if value.len() > MAX_XATTR_VALUE_BYTES {
        return refuse(Code::TooBig, format!("an xattr's value has at most {MAX_XATTR_VALUE_BYTES} bytes"));
    }
    let mut inode = transaction.inode(*ino)?;
    let key = keys::xattr(*ino, name);
    let old = if inode.xattrs > 0 { transaction.bytes(&key)? } else { None };
    match (mode, &old) {
        (SetXattrMode::Create, Some(_)) => return Err(Code::Exists.into()),
        (SetXattrMode::Replace, None) => return Err(Code::NoAttribute.into()),
        _ => {}
    }
    let value = match acl::is_one(name) {
        true => acl::set(&mut inode, name, value)?,
        false => Some(Bytes::copy_from_slice(value)),
    };
    match value {
        Some(value) => put(transaction, *ino, &mut inode, name, value)?,
        None => take(transaction, *ino, &mut inode, name)?,
    }
    inode.touch_status(transaction.now);
    transaction.change(*ino, &mut inode)?;
    Ok(inode.view(*ino))
}

/// Sets an attribute to what it is to be.
pub fn put(
    transaction: &mut Transaction<'_>,
    ino: Ino,
    inode: &mut Inode,
    name: &[u8],
    value: Bytes,
) -> Result<()> {
    let key = keys::xattr(ino, name);
    let old = if inode.xattrs > 0 { transaction.bytes(&key)? } else { None };
    let mut bytes = inode.xattr_bytes as usize + value.len();
    let mut list_bytes = inode.xattr_list_bytes as usize;
    match &old {
        Some(old) => bytes = bytes.saturating_sub(old.len()),
        None => {
            bytes += name.len();
            list_bytes += name.len() + 1;
            inode.xattrs += 1;
        }
    }
    if bytes > MAX_XATTR_BYTES || list_bytes > MAX_XATTR_LIST_BYTES {
        return refuse(
            Code::NoSpace,
            format!("the xattrs of inode {ino} would exceed {MAX_XATTR_BYTES} bytes"),
        );
    }
    (inode.xattr_bytes, inode.xattr_list_bytes) = (bytes as u32, list_bytes as u32);
    transaction.put_bytes(key, value);
    Ok(())
}

/// Takes an attribute away, if there is one.
fn take(transaction: &mut Transaction<'_>, ino: Ino, inode: &mut Inode, name: &[u8]) -> Result<()> {
    let key = keys::xattr(ino, name);
    let Some(old) = transaction.bytes(&key)? else { return Ok(()) };
    transaction.delete(key);
    inode.xattrs = inode.xattrs.saturating_sub(1);
    inode.xattr_bytes = inode.xattr_bytes.saturating_sub((old.len() + name.len()) as u32);
    inode.xattr_list_bytes = inode.xattr_list_bytes.saturating_sub(name.len() as u32 + 1);
    Ok(())
}

pub fn remove_xattr(transaction: &mut Transaction<'_>, request: &RemoveXattrRequest) -> Result<InodeView> {
    let RemoveXattrRequest { ino, name } = request;
    check_name(name)?;
    let mut inode = transaction.inode(*ino)?;
    if transaction.bytes(&keys::xattr(*ino, name))?.is_none() {
        // An ACL that says no more than the mode is not kept, but it is there.
        return if acl::is_one(name) { Ok(inode.view(*ino)) } else { Err(Code::NoAttribute.into()) };
    }
    take(transaction, *ino, &mut inode, name)?;
    inode.touch_status(transaction.now);
    transaction.change(*ino, &mut inode)?;
    Ok(inode.view(*ino))
}

fn check_name(name: &[u8]) -> Result<()> {
    match name.len() {
        0 => refuse(Code::Range, "an xattr's name must not be empty"),
        1..=MAX_XATTR_NAME_BYTES if name.contains(&0) => refuse(Code::Invalid, "an xattr's name has no NUL"),
        1..=MAX_XATTR_NAME_BYTES => Ok(()),
        _ => refuse(Code::Range, format!("an xattr's name has at most {MAX_XATTR_NAME_BYTES} bytes")),
    }
}
