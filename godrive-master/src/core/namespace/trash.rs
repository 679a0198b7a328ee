//! What was removed and can get a name again: the inode as it is, with the name that it lost last. A directory is empty
//! when it is removed, so what was in it lies in the trash beside it.
//!
//! Whoever still has the inode open goes on with it as with every orphan. It leaves the trash when it is restored, or for
//! good when the master says so ([`crate::core::record::Body::TrashDropped`]).

use super::names::check_name;
use crate::core::state::keys;
use crate::core::state::transaction::{Result, refuse};
use crate::core::state::values::{Inode, Slot, Trash, Trashed, Value};
use crate::core::state::{Closing, Transaction};
use godrive_proto::meta::{Kind, Linked, Name, RestoreRequest};
use godrive_proto::{Code, Ino, SessionId};
use std::collections::BTreeSet;

const SECOND: i64 = 1_000_000_000;

impl Transaction<'_> {
    pub fn trash_facts(&self) -> Result<Trash> {
        Ok(self.value(&keys::TRASH)?.unwrap_or_default())
    }

    pub fn keep_trash(&mut self, keep_s: u64, min_age_s: u32) -> Result<()> {
        let trash = self.trash_facts()?;
        self.put(keys::TRASH.to_vec(), &Trash { keep_s, min_age_s, ..trash })
    }

    pub fn is_trashed(&self, ino: Ino) -> Result<bool> {
        Ok(self.bytes(&keys::trashed(ino))?.is_some())
    }

    /// The inode has lost its last name, this one.
    pub fn trash(&mut self, ino: Ino, inode: &Inode, parent: Ino, name: &Name) -> Result<()> {
        let trash = self.trash_facts()?;
        let lived = self.now.0.saturating_sub(inode.btime.0);
        if trash.keep_s == 0 || lived < i64::from(trash.min_age_s) * SECOND {
            return Ok(());
        }
        let trashed = Trashed { removed: self.now, parent, name: name.clone(), bytes: inode.used_bytes };
        self.put(keys::trashed(ino), &trashed)?;
        self.mark(keys::trash_order(trashed.removed, ino));
        self.count(1, 0, trashed.bytes)
    }

    /// Nobody has it open any longer. Whoever wrote it said all that it had to say; what it wrote behind the end and told
    /// nobody of is cut off when the file grows again.
    pub fn lay_down(&mut self, ino: Ino) -> Result<()> {
        let mut trashed: Trashed = self.promised(&keys::trashed(ino))?;
        let mut writers: BTreeSet<SessionId> = BTreeSet::new();
        for (_, value) in self.scan(&keys::slots_of(ino), usize::MAX)? {
            let chunk = Slot::decode(&value)?.chunk.id;
            let chunk: crate::core::state::values::Chunk = self.promised(&keys::chunk(chunk))?;
            writers.extend(chunk.open_by);
        }
        for writer in &writers {
            self.close_chunks(*writer, ino, Closing::Committed)?;
        }
        let mut inode = self.inode(ino)?;
        if !writers.is_empty() && !inode.trim_pending && inode.size % u64::from(inode.chunk_bytes.max(1)) > 0
        {
            inode.trim_pending = true;
            self.change(ino, &mut inode)?;
        }
        let before = std::mem::replace(&mut trashed.bytes, inode.used_bytes);
        if before != trashed.bytes {
            self.put(keys::trashed(ino), &trashed)?;
            self.count(0, before, trashed.bytes)?;
        }
        Ok(())
    }

    /// These are gone for good, those that are still open when they are closed. Others are left alone.
    pub fn drop_trash(&mut self, inodes: &[Ino]) -> Result<()> {
        for ino in inodes {
            if self.take_out(*ino)?.is_some() && !self.is_held(*ino)? {
                self.remove(*ino)?;
                self.effects.removed.insert(*ino);
            }
        }
        Ok(())
    }

    fn take_out(&mut self, ino: Ino) -> Result<Option<Trashed>> {
        let Some(trashed) = self.value::<Trashed>(&keys::trashed(ino))? else { return Ok(None) };
        self.delete(keys::trashed(ino));
        self.delete(keys::trash_order(trashed.removed, ino));
        let mut trash = self.trash_facts()?;
        trash.entries = trash.entries.saturating_sub(1);
        trash.bytes = trash.bytes.saturating_sub(trashed.bytes);
        self.put(keys::TRASH.to_vec(), &trash)?;
        Ok(Some(trashed))
    }

    fn count(&mut self, entries: u64, bytes_before: u64, bytes: u64) -> Result<()> {
        let mut trash = self.trash_facts()?;
        trash.entries += entries;
        trash.bytes = trash.bytes.saturating_sub(bytes_before) + bytes;
        self.put(keys::TRASH.to_vec(), &trash)
    }
}

pub fn restore(transaction: &mut Transaction<'_>, request: &RestoreRequest) -> Result<Linked> {
    let RestoreRequest { ino, parent, name } = request;
    check_name(name)?;
    transaction.open_directory(*parent)?;
    if transaction.dentry(*parent, name)?.is_some() {
        return Err(Code::Exists.into());
    }
    if transaction.take_out(*ino)?.is_none() {
        return refuse(Code::NotFound, format!("inode {ino} is not in the trash"));
    }
    transaction.adopt_orphan(*ino)?;
    let now = transaction.now;
    let inode = transaction.update(*ino, |inode| {
        inode.nlink = if inode.kind == Kind::Directory { 2 } else { 1 };
        inode.parent = *parent;
        inode.touch_status(now);
    })?;
    if inode.kind == Kind::Directory {
        transaction.update(*parent, |directory| directory.nlink += 1)?;
    }
    transaction.add_name(*parent, name, *ino, inode.kind)?;
    Ok(Linked { parent: transaction.view_of(*parent)?, entry: inode.view(*ino) })
}
