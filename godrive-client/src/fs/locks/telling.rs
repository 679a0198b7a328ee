//! What the master is told of the locks here, and what follows when it, the session or the last daemon is gone.

use super::{Key, Owner};
use crate::driver::locks_page;
use crate::fs::{Backend, Fs};
use godrive_proto::locks::{DeclareLocks, OwnLocks, OwnerLocks};
use godrive_proto::{Fault, Ino};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The pause after the master could not be told what an owner has.
const TELL_AGAIN: Duration = Duration::from_millis(500);

impl<B: Backend> Fs<B> {
    /// Tells the master what those in doubt have, in a task that ends when nobody is.
    pub(super) fn tell_locks(self: &Arc<Self>) {
        let begun = std::mem::replace(&mut self.locks.table.lock().tells, true);
        if !begun {
            self.runtime.spawn(self.clone().tell_locks_until_told());
        }
        self.locks.changed.notify_waiters();
    }

    async fn tell_locks_until_told(self: Arc<Self>) {
        loop {
            let changed = self.locks.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let (told, doubts, losses) = {
                let mut table = self.locks.table.lock();
                let stopped = self.stopped.load(Ordering::Relaxed);
                if stopped || !table.owners.values().any(|owner| owner.doubt.is_some()) {
                    table.tells = false;
                    return;
                }
                // One that asks for more is told of when it has its answer.
                let told =
                    table.owners.iter().filter(|(_, owner)| owner.doubt.is_some() && owner.asking == 0);
                let told: Vec<_> = told.map(|(key, owner)| owner_locks(*key, owner)).collect();
                (locks_page(&told), table.doubts, table.losses)
            };
            if told.is_empty() {
                changed.await;
                continue;
            }
            match self.backend.query::<DeclareLocks>(&told).await {
                Ok(lost) => self.told(&told, &lost, doubts, losses),
                Err(fault) => {
                    tracing::warn!(%fault, owners = told.len(), "the master does not know yet which locks there are");
                    tokio::time::sleep(TELL_AGAIN).await;
                }
            }
        }
    }

    fn told(self: &Arc<Self>, told: &[OwnerLocks], lost: &[Key], doubts: u64, losses: u64) {
        // It may be the new session that was told what the old one had.
        let in_time = {
            let mut table = self.locks.table.lock();
            let in_time = table.losses == losses;
            for OwnerLocks { ino, owner, .. } in told {
                let key = (*ino, *owner);
                if !in_time {
                    table.doubt(key);
                } else if table.owner(key).doubt.is_some_and(|doubt| doubt <= doubts) {
                    let owner = table.owner(key);
                    owner.doubt = None;
                    owner.closed.clear();
                }
                table.tidy(key);
            }
            in_time
        };
        if in_time {
            self.lose_locks(lost);
        }
        self.locks.changed.notify_waiters();
    }

    /// Every lock that callers have been told of.
    pub(in crate::fs) fn all_locks(&self) -> Vec<OwnerLocks> {
        let mut table = self.locks.table.lock();
        table.declared += 1;
        let held = table.owners.iter().filter(|(_, owner)| !owner.locks.is_empty() || owner.doubt.is_some());
        held.map(|(key, owner)| owner_locks(*key, owner)).collect()
    }

    /// These owners have lost what they had.
    pub(in crate::fs) fn lose_locks(&self, lost: &[Key]) {
        let mut inodes = BTreeSet::new();
        for key in lost {
            let mut table = self.locks.table.lock();
            if !std::mem::take(&mut table.owner(*key).locks).is_empty() {
                inodes.insert(key.0);
            }
            table.tidy(*key);
        }
        inodes.into_iter().for_each(|ino| self.locks_are_lost(ino));
    }

    /// The session is gone, and all locks with it.
    pub(in crate::fs) fn lose_all_locks(&self) {
        let inodes: BTreeSet<Ino> = {
            let mut table = self.locks.table.lock();
            table.losses += 1;
            let held = table.owners.iter().filter(|(_, owner)| !owner.locks.is_empty());
            let inodes = held.map(|((ino, _), _)| *ino).collect();
            for owner in table.owners.values_mut() {
                owner.locks.clear();
                // The new session has nothing of it, unless it is asked right now.
                owner.doubt = None;
            }
            table.owners.retain(|_, owner| owner.asking > 0);
            inodes
        };
        inodes.into_iter().for_each(|ino| self.locks_are_lost(ino));
        self.locks.changed.notify_waiters();
    }

    /// Whoever has the file open must not go on as if nobody else had it.
    fn locks_are_lost(&self, ino: Ino) {
        tracing::error!(%ino, "locks on the file were lost with the session; who has it open gets EIO");
        let inode = self.table.get(ino);
        self.note_locks(&inode);
        self.change(&inode, |state| {
            state.poison += 1;
            state.lost_open = state.open > 0;
        });
    }

    /// Asks what the session has that a dead daemon has left. Of the inodes that it noted to have locks, those that the master does
    /// not know of have lost them.
    pub(in crate::fs) async fn inherit_locks(
        self: &Arc<Self>,
        noted: &BTreeSet<Ino>,
    ) -> std::result::Result<(), Fault> {
        let held = loop {
            let standing = || {
                let table = self.locks.table.lock();
                (table.losses, table.declared)
            };
            let before = standing();
            let held = self.own_locks().await?;
            // Not what a master said that has restarted since, nor of a session that is gone.
            if standing() == before {
                break held;
            }
        };
        let known: BTreeSet<Ino> = held.iter().map(|owner| owner.ino).collect();
        for OwnerLocks { ino, owner, locks } in held {
            let inode = self.table.get(ino);
            let open = inode.state.lock().open > 0;
            {
                let mut table = self.locks.table.lock();
                // What was locked through files that were closed is free.
                if open {
                    table.owner((ino, owner)).locks = locks;
                } else {
                    table.doubt((ino, owner));
                }
            }
            self.note_locks(&inode);
        }
        noted.difference(&known).for_each(|ino| self.locks_are_lost(*ino));
        self.tell_locks();
        Ok(())
    }

    /// The locks of the session, page by page.
    async fn own_locks(&self) -> std::result::Result<Vec<OwnerLocks>, Fault> {
        let mut all: Vec<OwnerLocks> = Vec::new();
        loop {
            let after = all.last().map(|owner| (owner.ino, owner.owner));
            let page = self.backend.query::<OwnLocks>(&after).await?;
            // Each page is behind the last, whatever the master says.
            if page.first().is_none_or(|first| after.is_some_and(|after| (first.ino, first.owner) <= after)) {
                return Ok(all);
            }
            all.extend(page);
        }
    }
}

fn owner_locks((ino, owner): Key, known: &Owner) -> OwnerLocks {
    OwnerLocks { ino, owner, locks: known.locks.clone() }
}
