//! New inodes: files, directories, symlinks and special files.

use super::names::check_name;
use super::{acl, xattr};
use crate::core::state::Transaction;
use crate::core::state::keys;
use crate::core::state::transaction::{Result, refuse};
use crate::core::state::values::Inode;
use bytes::Bytes;
use godrive_proto::data::Member;
use godrive_proto::limits::MAX_SYMLINK_BYTES;
use godrive_proto::meta::{CreateRequest, Created, Kind, Linked, MakeNodeRequest, Name, NewMode, NewNode};
use godrive_proto::{Code, Ino};

const SET_GID: u16 = 0o2000;

/// Creates a regular file or finds the one that exists.
pub fn create(
    transaction: &mut Transaction<'_>,
    request: &CreateRequest,
    members: &[Member],
) -> Result<Created> {
    let CreateRequest { parent, name, mode, uid, gid, exclusive, for_writing } = request;
    check_name(name)?;
    let directory = transaction.open_directory(*parent)?;
    if let Some(dentry) = transaction.dentry(*parent, name)? {
        if *exclusive {
            return Err(Code::Exists.into());
        }
        if dentry.kind == Kind::Directory {
            return Err(Code::IsDirectory.into());
        }
        let entry = transaction.view_of(dentry.ino)?;
        return Ok(Created { parent: directory.view(*parent), entry, existed: true, layout: None });
    }
    let inode = transaction.fresh_inode(Kind::File, 0, *uid, *gid);
    let chunk_bytes = inode.chunk_bytes;
    let ino = add_inode(transaction, *parent, name, inode, *mode)?;
    let mut layout = None;
    if *for_writing && !members.is_empty() && transaction.session.0 != 0 {
        let chunk = transaction.place(ino, 0, chunk_bytes, members)?;
        layout = Some(transaction.open_chunk(chunk)?);
    }
    let (parent, entry) = (transaction.view_of(*parent)?, transaction.view_of(ino)?);
    Ok(Created { parent, entry, existed: false, layout })
}

/// Makes anything that has no chunks.
pub fn make_node(transaction: &mut Transaction<'_>, request: &MakeNodeRequest) -> Result<Linked> {
    let MakeNodeRequest { parent, name, node, mode, uid, gid } = request;
    check_name(name)?;
    transaction.open_directory(*parent)?;
    if transaction.dentry(*parent, name)?.is_some() {
        return Err(Code::Exists.into());
    }
    let (kind, rdev) = match node {
        NewNode::Directory => (Kind::Directory, 0),
        NewNode::Fifo => (Kind::Fifo, 0),
        NewNode::Socket => (Kind::Socket, 0),
        NewNode::CharDevice(rdev) => (Kind::CharDevice, *rdev),
        NewNode::BlockDevice(rdev) => (Kind::BlockDevice, *rdev),
        NewNode::File => (Kind::File, 0),
        NewNode::Symlink(_) => (Kind::Symlink, 0),
    };
    let mode = if kind == Kind::Symlink { NewMode::from(0o777) } else { *mode };
    let mut inode = transaction.fresh_inode(kind, 0, *uid, *gid);
    inode.rdev = rdev;
    if kind == Kind::Directory {
        inode.nlink = 2;
    }
    if let NewNode::Symlink(target) = node {
        check_target(target)?;
        inode.size = target.len() as u64;
    }
    let ino = add_inode(transaction, *parent, name, inode, mode)?;
    if let NewNode::Symlink(target) = node {
        transaction.put_bytes(keys::target(ino), Bytes::copy_from_slice(target));
    }
    Ok(Linked { parent: transaction.view_of(*parent)?, entry: transaction.view_of(ino)? })
}

fn check_target(target: &[u8]) -> Result<()> {
    match target.len() {
        0 => refuse(Code::NotFound, "a symlink's target must not be empty"),
        1..=MAX_SYMLINK_BYTES if target.contains(&0) => {
            refuse(Code::Invalid, "a symlink's target has no NUL")
        }
        1..=MAX_SYMLINK_BYTES => Ok(()),
        _ => refuse(Code::NameTooLong, format!("a symlink's target has at most {MAX_SYMLINK_BYTES} bytes")),
    }
}

/// Numbers the inode, lets it inherit from its directory and names it.
fn add_inode(
    transaction: &mut Transaction<'_>,
    parent: Ino,
    name: &Name,
    mut inode: Inode,
    wanted: NewMode,
) -> Result<Ino> {
    transaction.meta.last_ino = transaction.meta.last_ino.next();
    transaction.meta.counts.inodes += 1;
    let ino = transaction.meta.last_ino;
    transaction.effects.created.insert(ino);
    let kind = inode.kind;
    let directory = transaction.inode(parent)?;
    inode.parent = parent;
    inode.subtree = directory.subtree;
    let (mode, attributes) = acl::inherit(transaction, (parent, &directory), kind, wanted)?;
    inode.mode = mode;
    for (name, value) in attributes {
        xattr::put(transaction, ino, &mut inode, name, value)?;
    }
    if directory.mode & SET_GID != 0 {
        inode.gid = directory.gid;
        if kind == Kind::Directory {
            inode.mode |= SET_GID;
        }
    }
    transaction.change(ino, &mut inode)?;
    transaction.add_name(parent, name, ino, kind)?;
    if kind == Kind::Directory {
        transaction.update(parent, |directory| directory.nlink += 1)?;
    }
    Ok(ino)
}
