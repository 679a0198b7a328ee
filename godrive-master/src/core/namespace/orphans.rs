//! Inodes without a name that somebody still has open. They live until the last holder closes them or ends.

use crate::core::state::Transaction;
use crate::core::state::keys;
use crate::core::state::transaction::Result;
use crate::core::state::values::{Inode, Session};
use godrive_proto::{Ino, SessionId};

impl Transaction<'_> {
    /// The last name is gone. The asking session holds the orphan whether it has it open or not, as only it knows.
    pub fn orphan(&mut self, ino: Ino, open_elsewhere: &[SessionId]) -> Result<()> {
        self.meta.counts.orphans += 1;
        self.hold(ino, &[self.session])?;
        self.hold(ino, open_elsewhere)?;
        self.remove_unheld(ino)?;
        if !self.effects.removed.contains(&ino) {
            self.effects.orphaned.insert(ino);
        }
        Ok(())
    }

    pub fn keep_orphan(&mut self, ino: Ino, sessions: &[SessionId]) -> Result<()> {
        match self.value::<Inode>(&keys::inode(ino))? {
            Some(inode) if inode.nlink == 0 => self.hold(ino, sessions),
            _ => Ok(()),
        }
    }

    pub fn close_orphans(&mut self, session: SessionId, inodes: &[Ino]) -> Result<()> {
        for ino in inodes {
            if self.bytes(&keys::orphan(*ino, session))?.is_none() {
                continue;
            }
            self.delete(keys::orphan(*ino, session));
            self.delete(keys::session_orphan(session, *ino));
            self.remove_unheld(*ino)?;
        }
        Ok(())
    }

    fn hold(&mut self, ino: Ino, sessions: &[SessionId]) -> Result<()> {
        for session in sessions {
            if self.value::<Session>(&keys::session(*session))?.is_some() {
                self.mark(keys::orphan(ino, *session));
                self.mark(keys::session_orphan(*session, ino));
            }
        }
        Ok(())
    }

    fn remove_unheld(&mut self, ino: Ino) -> Result<()> {
        if !self.is_empty(&keys::holders_of(ino))? {
            return Ok(());
        }
        let mut inode = self.inode(ino)?;
        self.free_slots(ino, &mut inode, 0)?;
        if inode.xattrs > 0 {
            for (key, _) in self.scan(&keys::xattrs_of(ino), usize::MAX)? {
                self.delete(key);
            }
        }
        if inode.kind == godrive_proto::meta::Kind::Symlink {
            self.delete(keys::target(ino));
        }
        self.delete(keys::inode(ino));
        self.meta.counts.orphans -= 1;
        self.meta.counts.inodes -= 1;
        self.effects.removed.insert(ino);
        Ok(())
    }
}
