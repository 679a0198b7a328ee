//! Moving names: replace, no-replace and exchange.

use super::names::check_name;
use crate::core::state::Transaction;
use crate::core::state::transaction::{Result, refuse};
use crate::core::state::values::Dentry;
use godrive_proto::meta::{Kind, RenameMode, RenameRequest, Renamed};
use godrive_proto::{Code, Ino, ROOT, SessionId};

pub fn rename(
    transaction: &mut Transaction<'_>,
    request: &RenameRequest,
    open_elsewhere: &[SessionId],
) -> Result<Renamed> {
    let RenameRequest { parent, name, new_parent, new_name, mode } = request;
    check_name(name)?;
    check_name(new_name)?;
    transaction.directory(*parent)?;
    transaction.open_directory(*new_parent)?;
    let source = transaction.required(*parent, name)?;
    let target = transaction.dentry(*new_parent, new_name)?;
    match (mode, target) {
        (RenameMode::NoReplace, Some(_)) => return Err(Code::Exists.into()),
        (RenameMode::Exchange, None) => return Err(Code::NotFound.into()),
        _ => check_loops(transaction, request, source, target)?,
    }
    let mut other = None;
    match (mode, target) {
        // Two names of one inode: nothing happens, says POSIX.
        (RenameMode::Replace | RenameMode::Exchange, Some(target)) if target.ino == source.ino => {}
        (RenameMode::Exchange, Some(target)) => {
            exchange(transaction, request, source, target)?;
            other = Some(transaction.view_of(target.ino)?);
        }
        (_, Some(target)) => {
            check_replacing(transaction, source, target)?;
            transaction.remove_name(*parent, name, source)?;
            let replaced = transaction.drop_link(*new_parent, new_name, target, open_elsewhere)?;
            other = Some(replaced.view(target.ino));
            transaction.redirect(*new_parent, new_name, Dentry { position: target.position, ..source })?;
            moved(transaction, source, *parent, *new_parent)?;
        }
        (_, None) => {
            transaction.remove_name(*parent, name, source)?;
            transaction.add_name(*new_parent, new_name, source.ino, source.kind)?;
            moved(transaction, source, *parent, *new_parent)?;
        }
    }
    Ok(Renamed {
        parent: transaction.view_of(*parent)?,
        new_parent: transaction.view_of(*new_parent)?,
        entry: transaction.view_of(source.ino)?,
        other,
    })
}

/// A directory must not become its own ancestor, nor replace one.
fn check_loops(
    transaction: &Transaction<'_>,
    request: &RenameRequest,
    source: Dentry,
    target: Option<Dentry>,
) -> Result<()> {
    let RenameRequest { parent, new_parent, mode, .. } = request;
    if parent == new_parent {
        return Ok(());
    }
    if source.kind == Kind::Directory && is_within(transaction, *new_parent, source.ino)? {
        return refuse(Code::Invalid, "a directory cannot move into itself");
    }
    if let Some(target) = target.filter(|target| target.kind == Kind::Directory)
        && is_within(transaction, *parent, target.ino)?
    {
        let code = if *mode == RenameMode::Exchange { Code::Invalid } else { Code::NotEmpty };
        return refuse(code, "the target is a directory above the source");
    }
    Ok(())
}

/// Whether `directory` is `ancestor` or lies below it.
fn is_within(transaction: &Transaction<'_>, mut directory: Ino, ancestor: Ino) -> Result<bool> {
    while directory != ancestor {
        if directory == ROOT {
            return Ok(false);
        }
        directory = transaction.inode(directory)?.parent;
    }
    Ok(true)
}

fn check_replacing(transaction: &Transaction<'_>, source: Dentry, target: Dentry) -> Result<()> {
    match (source.kind, target.kind) {
        (Kind::Directory, Kind::Directory) if transaction.inode(target.ino)?.size > 0 => {
            Err(Code::NotEmpty.into())
        }
        (Kind::Directory, Kind::Directory) => Ok(()),
        (Kind::Directory, _) => Err(Code::NotDirectory.into()),
        (_, Kind::Directory) => Err(Code::IsDirectory.into()),
        _ => Ok(()),
    }
}

/// The inode of `dentry` has its name in `to` now.
fn moved(transaction: &mut Transaction<'_>, dentry: Dentry, from: Ino, to: Ino) -> Result<()> {
    let now = transaction.now;
    if dentry.kind == Kind::Directory && from != to {
        transaction.update(from, |directory| directory.nlink = directory.nlink.saturating_sub(1))?;
        transaction.update(to, |directory| directory.nlink += 1)?;
    }
    transaction.update(dentry.ino, |inode| {
        inode.parent = to;
        inode.touch_status(now);
    })?;
    Ok(())
}

fn exchange(transaction: &mut Transaction<'_>, request: &RenameRequest, a: Dentry, b: Dentry) -> Result<()> {
    let RenameRequest { parent, name, new_parent, new_name, .. } = request;
    transaction.redirect(*parent, name, Dentry { position: a.position, ..b })?;
    transaction.redirect(*new_parent, new_name, Dentry { position: b.position, ..a })?;
    moved(transaction, a, *parent, *new_parent)?;
    moved(transaction, b, *new_parent, *parent)
}
