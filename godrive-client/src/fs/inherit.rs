//! Notes for the next daemon, and going on after one that was killed. See [`crate::ledger`].

use super::inode::{Inode, State};
use super::types::{Handle, Invalidation, SetAttr};
use super::{Backend, Fs};
use crate::core::gate::EVERYTHING;
use crate::driver::Succession;
use crate::error::FsError;
use crate::ledger::Inheritance;
use godrive_proto::Ino;
use godrive_proto::meta::{Kind, SetTime};
use std::collections::BTreeSet;
use std::sync::Arc;

impl<B: Backend> Fs<B> {
    /// Notes what changed, before anybody is told of the change.
    pub(super) fn note(&self, ino: Ino, state: &mut State) {
        let Some(ledger) = &self.ledger else { return };
        let trace = state.trace();
        if trace != state.noted {
            state.noted = trace;
            ledger.note(ino, trace);
        }
    }

    /// Takes in what the dead daemon has left, before anything is asked of this one.
    pub(super) fn inherit(self: &Arc<Self>, left: &Inheritance, succession: &Succession) {
        let mut lost = 0;
        for (ino, trace) in &left.traces {
            let inode = self.table.get(*ino);
            self.change(&inode, |state| {
                (state.open, state.writers, state.mappable) = (trace.open, trace.writers, trace.writers);
                // The master may have been told, with a lease that was returned.
                state.told_open = trace.open > 0;
                state.noted = *trace;
                state.locked = trace.locked;
                (state.owes_error, state.owes_time) = (trace.unsent, trace.uncommitted);
                state.lost_open = trace.open > 0 && (trace.unsent || trace.lost);
                state.poison += u64::from(trace.unsent || trace.lost);
            });
            if trace.unsent {
                lost += 1;
                let told = "the mount's daemon was killed before it had sent what was changed here";
                self.note_error(&inode, FsError::new(libc::EIO, told));
            }
        }
        let open: BTreeSet<Ino> =
            left.traces.iter().filter(|(_, trace)| trace.open > 0).map(|(ino, _)| *ino).collect();
        if let Succession::Taken(orphans) = succession {
            self.orphans.lock().extend(orphans.iter().filter(|ino| !open.contains(ino)));
        }
        // The dead daemon may have been killed before it had told the master of all of them.
        for ino in &open {
            self.cover_open(&self.table.get(*ino));
        }
        tracing::warn!(open = open.len(), lost, ?succession, "this daemon goes on after one that was killed");
    }

    /// To be called once the kernel can be told: it forgets pages that only the dead daemon could explain, and files
    /// whose new contents the master does not know of get a time that says so.
    pub fn follow_up(self: &Arc<Self>, left: &Inheritance) {
        let pages = left.traces.iter().map(|(ino, _)| Invalidation::Pages(*ino, EVERYTHING)).collect();
        if let Some(kernel) = self.kernel.get().cloned() {
            self.runtime.spawn(kernel.invalidate(pages));
        }
        for (ino, _) in left.traces.iter().filter(|(_, trace)| trace.uncommitted) {
            self.runtime.spawn(self.clone().touch(*ino));
        }
    }

    async fn touch(self: Arc<Self>, ino: Ino) {
        let touched = async {
            if self.getattr(ino).await?.attr.kind != Kind::File {
                return Ok(());
            }
            let set = SetAttr { mtime: Some(SetTime::Now), ..SetAttr::default() };
            self.setattr(ino, None, set).await.map(drop)
        };
        let touched = touched.await;
        self.change(&self.table.get(ino), |state| state.owes_time = false);
        match touched {
            Err(error) if !matches!(error.errno, libc::ENOENT | libc::ESTALE) => {
                tracing::warn!(%ino, %error, "the file's modification time is older than its contents");
            }
            _ => {}
        }
    }

    /// A handle that the kernel uses. One that was opened in an earlier life of the daemon is met here for the first time.
    pub fn meet_handle(&self, ino: Ino, handle: Handle) {
        if self.handles.is_unmet(handle) {
            let inode: Arc<Inode> = self.table.get(ino);
            // What was never noted as open is not: the operation then finds no such handle.
            if inode.state.lock().open > 0 {
                self.handles.meet(handle, inode);
            }
        }
    }
}
