//! Inodes without a name that somebody still has open. They live until the last holder closes them or ends, and then
//! on if they lie in the trash.

use crate::core::state::Transaction;
use crate::core::state::keys;
use crate::core::state::transaction::Result;
use crate::core::state::values::{Inode, Session};
use godrive_proto::{Ino, SessionId};

impl Transaction<'_> {
    /// The last name is gone. The asking session holds the orphan whether it has it open or not, as only it knows.
    pub fn orphan(&mut self, ino: Ino, open_elsewhere: &[SessionId]) -> Result<()> {
        let holders: Vec<SessionId> = [self.session].iter().chain(open_elsewhere).copied().collect();
        if self.hold(ino, &holders)? {
            self.effects.orphaned.insert(ino);
            return Ok(());
        }
        self.parted(ino)
    }

    pub fn keep_orphan(&mut self, ino: Ino, sessions: &[SessionId]) -> Result<()> {
        match self.value::<Inode>(&keys::inode(ino))? {
            Some(inode) if inode.nlink == 0 => self.hold(ino, sessions).map(drop),
            _ => Ok(()),
        }
    }

    pub fn close_orphans(&mut self, session: SessionId, inodes: &[Ino]) -> Result<()> {
        for ino in inodes {
            if self.bytes(&keys::orphan(*ino, session))?.is_none() {
                continue;
            }
            self.let_go(*ino, session);
            if !self.is_held(*ino)? {
                self.meta.counts.orphans -= 1;
                self.parted(*ino)?;
            }
        }
        Ok(())
    }

    /// It has a name again.
    pub fn adopt_orphan(&mut self, ino: Ino) -> Result<()> {
        let holders = self.scan(&keys::holders_of(ino), usize::MAX)?;
        self.meta.counts.orphans -= u64::from(!holders.is_empty());
        for (key, _) in holders {
            self.let_go(ino, SessionId(keys::last_number(&key)));
        }
        Ok(())
    }

    pub fn is_held(&self, ino: Ino) -> Result<bool> {
        Ok(!self.is_empty(&keys::holders_of(ino))?)
    }

    /// Those of the sessions that exist. Whether anybody holds it now.
    fn hold(&mut self, ino: Ino, sessions: &[SessionId]) -> Result<bool> {
        let before = self.is_held(ino)?;
        let mut held = before;
        for session in sessions {
            if self.value::<Session>(&keys::session(*session))?.is_some() {
                self.mark(keys::orphan(ino, *session));
                self.mark(keys::session_orphan(*session, ino));
                held = true;
            }
        }
        self.meta.counts.orphans += u64::from(held && !before);
        Ok(held)
    }

    fn let_go(&mut self, ino: Ino, session: SessionId) {
        self.delete(keys::orphan(ino, session));
        self.delete(keys::session_orphan(session, ino));
    }

    /// Nobody has it open.
    fn parted(&mut self, ino: Ino) -> Result<()> {
        self.effects.removed.insert(ino);
        if self.is_trashed(ino)? { self.lay_down(ino) } else { self.remove(ino) }
    }

    /// The end of an inode without names and holders.
    pub fn remove(&mut self, ino: Ino) -> Result<()> {
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
        self.meta.counts.inodes -= 1;
        Ok(())
    }
}
