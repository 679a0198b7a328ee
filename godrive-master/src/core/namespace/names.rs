//! Names in directories: the dentry by name, the entry by position, and the directory's own count and times.

use crate::core::state::Transaction;
use crate::core::state::keys;
use crate::core::state::transaction::{Result, refuse};
use crate::core::state::values::{Dentry, Entry, Inode};
use godrive_proto::meta::{InodeView, Kind, Name, NameError};
use godrive_proto::{Code, Fault, Ino};

pub fn check_name(name: &Name) -> Result<()> {
    name.check().map_err(|error| {
        let code = match error {
            NameError::Invalid => Code::Invalid,
            NameError::TooLong => Code::NameTooLong,
        };
        Fault::new(code, error.to_string()).into()
    })
}

impl Transaction<'_> {
    /// Reads, changes and writes one inode.
    pub fn update(&mut self, ino: Ino, change: impl FnOnce(&mut Inode)) -> Result<Inode> {
        let mut inode = self.inode(ino)?;
        change(&mut inode);
        self.change(ino, &mut inode)?;
        Ok(inode)
    }

    pub fn view_of(&self, ino: Ino) -> Result<InodeView> {
        Ok(self.inode(ino)?.view(ino))
    }

    /// A directory that takes a new name. One that was removed while open takes none.
    pub fn open_directory(&self, ino: Ino) -> Result<Inode> {
        let directory = self.directory(ino)?;
        if directory.nlink == 0 {
            return refuse(Code::NotFound, format!("directory {ino} was removed"));
        }
        Ok(directory)
    }

    pub fn required(&self, parent: Ino, name: &Name) -> Result<Dentry> {
        match self.dentry(parent, name)? {
            Some(dentry) => Ok(dentry),
            None => Err(Code::NotFound.into()),
        }
    }

    /// Adds a name that does not exist, behind all others.
    pub fn add_name(&mut self, parent: Ino, name: &Name, ino: Ino, kind: Kind) -> Result<()> {
        let now = self.now;
        let mut position = 0;
        self.update(parent, |directory| {
            position = directory.next_position;
            directory.next_position += 1;
            directory.size += 1;
            directory.touch_contents(now);
        })?;
        self.point(parent, name, Dentry { ino, kind, position })
    }

    pub fn remove_name(&mut self, parent: Ino, name: &Name, dentry: Dentry) -> Result<()> {
        let now = self.now;
        self.update(parent, |directory| {
            directory.size = directory.size.saturating_sub(1);
            directory.touch_contents(now);
        })?;
        self.delete(keys::dentry(parent, &name.0));
        self.delete(keys::entry(parent, dentry.position));
        Ok(())
    }

    /// Lets a name that exists lead to another inode. Its position stays, so that a reader of the directory misses nothing.
    pub fn redirect(&mut self, parent: Ino, name: &Name, dentry: Dentry) -> Result<()> {
        let now = self.now;
        self.update(parent, |directory| directory.touch_contents(now))?;
        self.point(parent, name, dentry)
    }

    fn point(&mut self, parent: Ino, name: &Name, dentry: Dentry) -> Result<()> {
        let Dentry { ino, kind, position } = dentry;
        self.put(keys::entry(parent, position), &Entry { name: name.clone(), ino, kind })?;
        self.put(keys::dentry(parent, &name.0), &dentry)
    }

    /// Takes one name's worth of links from an inode, and of a directory its `..` from the parent.
    /// Without any left it goes into the trash, becomes an orphan of these holders, or goes at once.
    pub fn drop_link(
        &mut self,
        parent: Ino,
        name: &Name,
        dentry: Dentry,
        holders: &[godrive_proto::SessionId],
    ) -> Result<Inode> {
        let now = self.now;
        if dentry.kind == Kind::Directory {
            self.update(parent, |directory| directory.nlink = directory.nlink.saturating_sub(1))?;
        }
        let inode = self.update(dentry.ino, |inode| {
            inode.nlink = if inode.kind == Kind::Directory { 0 } else { inode.nlink.saturating_sub(1) };
            inode.touch_status(now);
        })?;
        if inode.nlink == 0 {
            self.trash(dentry.ino, &inode, parent, name)?;
            self.orphan(dentry.ino, holders)?;
        }
        Ok(inode)
    }
}
