//! Exclusive leases that nobody writes or removes names under any longer go back by themselves: the master then closes the file's chunks
//! and takes back the space that it had reserved for them, and the inode may be forgotten here.

use super::inode::Inode;
use super::types::Invalidation;
use super::{Backend, Fs};
use crate::core::gate::EVERYTHING;
use godrive_proto::lease::{Mode, Release, ReleaseRequest, Releases};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A file that is opened for writing again within this keeps its lease.
const IDLE: Duration = Duration::from_secs(2);
const MAX_LOWERED: usize = 256;

impl<B: Backend> Fs<B> {
    /// A file that has its lease for nothing, or a directory.
    pub(super) fn lower_later(&self, inode: &Arc<Inode>) {
        let first = {
            let mut owners = self.idle_owners.lock();
            owners.insert(inode.ino, (Instant::now(), inode.clone()));
            owners.len() == 1
        };
        if first {
            self.wake.notify_one();
        }
    }

    /// If nobody has a handle that can write: the last one was closed, or the lease was taken without one.
    pub(super) fn lower_unused(&self, inode: &Arc<Inode>) {
        let unused = {
            let state = inode.state.lock();
            state.writers == 0 && state.is_exclusive() && !state.removed
        };
        if unused {
            self.lower_later(inode);
        }
    }

    pub(super) fn lower_idle(self: &Arc<Self>) {
        let now = Instant::now();
        let due: Vec<Arc<Inode>> = {
            let mut owners = self.idle_owners.lock();
            let due = owners.iter().filter(|(_, (since, _))| now.duration_since(*since) >= IDLE);
            let due: Vec<_> = due.take(MAX_LOWERED).map(|(ino, _)| *ino).collect();
            due.iter().filter_map(|ino| owners.remove(ino)).map(|(_, inode)| inode).collect()
        };
        if !due.is_empty() {
            let fs = self.clone();
            tokio::spawn(async move { fs.lower(due).await });
        }
    }

    /// In order with flushes and with requests for leases; a file that has one under way is looked at again later.
    async fn lower(self: Arc<Self>, inodes: Vec<Arc<Inode>>) {
        let mut leases = Vec::new();
        let mut alone = Vec::new();
        for inode in &inodes {
            let (Ok(order), Ok(acquiring)) = (inode.order.try_lock(), inode.acquiring.try_lock()) else {
                self.lower_later(inode);
                continue;
            };
            let mut state = inode.state.lock();
            if state.writers > 0 || !state.is_exclusive() || state.removed {
                continue;
            }
            if state.unfollowed > 0 || state.is_dirty() || state.claims > 0 || state.gate.is_closed() {
                drop(state);
                self.lower_later(inode);
                continue;
            }
            if state.gave_up {
                self.forget(&mut state);
                drop(state);
                self.invalidate_later(Invalidation::Pages(inode.ino, EVERYTHING));
                self.tell_later(inode);
            } else if let Some(id) = state.lease.id() {
                state.lease.lower(Some(Mode::Shared));
                state.close_chunks();
                let open = state.open > 0;
                leases.push(Release { ino: inode.ino, id, keeps: Some(Mode::Shared), open });
                alone.push((order, acquiring));
            }
        }
        if leases.is_empty() {
            return;
        }
        let request = ReleaseRequest { leases, closed_orphans: Vec::new() };
        if let Err(fault) = self.backend.query::<Releases>(&request).await {
            // The master takes them for exclusive until it recalls them, which costs nothing but time.
            tracing::debug!(%fault, leases = request.leases.len(), "idle leases were not given back");
        }
    }
}
