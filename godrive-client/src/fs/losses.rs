//! What was lost behind the callers' backs, and who is told: the next close or fsync of the inode, once.

use super::inode::Inode;
use super::{Backend, Fs};
use crate::error::{FsError, Result};
use std::sync::Arc;

impl<B: Backend> Fs<B> {
    /// What failed behind the caller's back is told once.
    pub(super) fn collect_error(&self, inode: &Arc<Inode>) -> Result<()> {
        collect_regression(inode)?;
        let error = self.change(inode, |state| state.error.take());
        match error {
            None => Ok(()),
            Some(error) => {
                self.collected();
                Err(error)
            }
        }
    }
}

/// After a wait for the master's log: changes that it had answered and then lost with its power are told of once.
pub(super) fn collect_loss(inode: &Inode) -> Result<()> {
    if !std::mem::take(&mut inode.state.lock().unkept) {
        return Ok(());
    }
    let lost = format!(
        "a loss of the master's power has undone changes of inode {} that were not fsynced",
        inode.ino
    );
    Err(FsError::new(libc::EIO, lost))
}

/// A power loss took what was held: an fsync that returned 0 now would say that it is there.
pub(super) fn collect_regression(inode: &Inode) -> Result<()> {
    match inode.state.lock().regressed.take() {
        None => Ok(()),
        Some(index) => {
            tracing::error!(ino = %inode.ino, index, "a power loss took writes that were held and not yet stable");
            let lost = format!(
                "chunk {index} of inode {} lost writes that were not fsynced to a power loss",
                inode.ino
            );
            Err(FsError::new(libc::EIO, lost))
        }
    }
}

/// The same for an operation that needs all of a file, and is no fsync of it. Whoever has it open is still to be told.
pub(super) fn check_losses(inode: &Inode) -> Result<()> {
    let (open, lost) = {
        let state = inode.state.lock();
        (state.open > 0, state.regressed.is_some() || state.unkept)
    };
    if !open {
        collect_regression(inode)?;
        return collect_loss(inode);
    }
    match lost {
        true => Err(FsError::new(libc::EIO, format!("a power loss took changes of inode {}", inode.ino))),
        false => Ok(()),
    }
}
