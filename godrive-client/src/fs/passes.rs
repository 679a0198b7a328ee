//! Passes: answers that have been decided and not yet given to the kernel. See [`crate::core::gate`].

use super::inode::Inode;
use std::sync::Arc;

/// Given back when dropped. Empty for answers that the kernel does not cache.
#[derive(Default)]
pub struct Pass(Vec<(Arc<Inode>, u64)>);

impl Pass {
    pub(super) fn new(inode: &Arc<Inode>, id: u64) -> Self {
        Self(vec![(inode.clone(), id)])
    }

    pub(super) fn and(mut self, mut other: Self) -> Self {
        self.0.append(&mut other.0);
        self
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        for (inode, id) in self.0.drain(..) {
            let closed = {
                let mut state = inode.state.lock();
                state.gate.leave(id);
                state.gate.is_closed()
            };
            if closed {
                inode.changed.notify_waiters();
            }
        }
    }
}

impl std::fmt::Debug for Pass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(inode, _)| inode.ino)).finish()
    }
}

/// An operation waits, for the gate or for a lease, while the kernel has pages locked for it.
pub(super) struct Waiting {
    inode: Arc<Inode>,
    id: u64,
}

impl Waiting {
    pub(super) fn new(inode: &Arc<Inode>, range: std::ops::Range<u64>) -> Self {
        let id = inode.state.lock().gate.wait(range);
        Self { inode: inode.clone(), id }
    }

    /// The operation was let in.
    pub(super) fn end(&self, state: &mut super::inode::State) {
        state.gate.end_wait(self.id);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.inode.state.lock().gate.end_wait(self.id);
    }
}
