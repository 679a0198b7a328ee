//! Looking names up, and taking the master's views in.

use super::inode::{Inode, State};
use super::passes::Pass;
use super::types::{Entry, Found, Invalidation, Served};
use super::{Backend, Fs, checked};
use crate::error::Result;
use godrive_proto::Ino;
use godrive_proto::meta::{Attr, InodeView, Lookup, LookupRequest, Name};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// Names looked up in a directory after which the others are likely to follow.
const MANY_NAMES: u32 = 4;

/// An operation in a directory, or a change of an inode, that waits for the master. The kernel holds the inode's lock
/// meanwhile, and would not let an invalidation of a directory's names pass; and nothing is removed here under leases
/// that the answer would not know of.
pub(super) struct Busy {
    inode: Arc<Inode>,
    /// The name in the directory that the operation changes.
    changes: Option<Name>,
}

impl Busy {
    pub fn new(inode: &Arc<Inode>) -> Self {
        inode.state.lock().busy += 1;
        Self { inode: inode.clone(), changes: None }
    }

    /// Until this is dropped, the master is asked for the name, and for a listing.
    pub fn changing(directory: &Arc<Inode>, name: &Name) -> Self {
        let mut busy = Self::new(directory);
        directory.state.lock().directory.change_begins(name.clone());
        busy.changes = Some(name.clone());
        busy
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.inode.state.lock();
        state.busy -= 1;
        if let Some(name) = &self.changes {
            state.directory.change_ends(name);
        }
    }
}

impl<B: Backend> Fs<B> {
    pub fn try_lookup(&self, parent: Ino, name: &[u8]) -> Option<Result<Served<Found>>> {
        match checked(name) {
            Ok(name) => self.try_find(parent, &name).map(|found| Ok(self.told_length(found))),
            Err(error) => Some(Err(error)),
        }
    }

    pub async fn lookup(self: &Arc<Self>, parent: Ino, name: &[u8]) -> Result<Served<Found>> {
        Ok(self.told_length(self.find(parent, &checked(name)?).await?))
    }

    /// With the name the caller is told the length.
    fn told_length(&self, found: Served<Found>) -> Served<Found> {
        if let Found::Entry(entry) = &found.value
            && let Some(inode) = self.table.find(entry.attr.ino)
        {
            let mut state = inode.state.lock();
            // What crosses an invalidation the kernel drops.
            state.grown &= state.gate.is_closed();
        }
        found
    }

    fn try_find(&self, parent: Ino, name: &Name) -> Option<Served<Found>> {
        let directory = self.table.find(parent)?;
        let mut state = directory.state.lock();
        if !self.is_valid(&state) {
            return None;
        }
        let child = state.directory.look_up(name)?;
        let child = match child {
            Some(ino) => Some(self.table.find(ino)?),
            None => {
                // The kernel may keep it: a recall must find the name here to take it back.
                if state.directory.learn(name.clone(), None) {
                    self.names.fetch_add(1, Ordering::Relaxed);
                }
                None
            }
        };
        let (entry_ttl, pass) = self.name_ttl(&directory, &mut state);
        drop(state);
        let found = match child {
            None => Served { value: Found::Missing(entry_ttl), pass },
            Some(child) => {
                let (attr, attr_ttl, child_pass) = self.cached_attr(&child)?;
                Served {
                    value: Found::Entry(Entry { attr, attr_ttl, entry_ttl }),
                    pass: pass.and(child_pass),
                }
            }
        };
        self.stats.meta_hits.add(1);
        Some(found)
    }

    /// The same for a caller that is not told: it only needs to know.
    pub(super) async fn find(self: &Arc<Self>, parent: Ino, name: &Name) -> Result<Served<Found>> {
        if let Some(found) = self.try_find(parent, name) {
            return Ok(found);
        }
        self.stats.meta_misses.add(1);
        let directory = self.table.get(parent);
        let _busy = Busy::new(&directory);
        self.catch_up_on(&directory).await;
        if self.looks_for_many(&directory) {
            match self.learn_names(&directory).await {
                Ok(()) => {
                    if let Some(found) = self.try_find(parent, name) {
                        return Ok(found);
                    }
                }
                Err(error) => tracing::debug!(ino = %parent, %error, "a directory was not read ahead"),
            }
        }
        let reply = self.backend.query::<Lookup>(&LookupRequest { parent, name: name.clone() }).await?;
        Ok(self.take_entry(&directory, name.clone(), &reply.parent, reply.entry.as_ref()))
    }

    /// True once under each lease: after some names that were not known.
    fn looks_for_many(&self, directory: &Arc<Inode>) -> bool {
        let mut state = directory.state.lock();
        let contended = state.hot_until.is_some_and(|until| until > Instant::now());
        if contended || !self.is_valid(&state) {
            return false;
        }
        state.unknown_names = state.unknown_names.saturating_add(1);
        state.unknown_names == MANY_NAMES
    }

    /// Takes a directory's view in with what it says of a name, and makes the answer.
    pub(super) fn take_entry(
        &self,
        directory: &Arc<Inode>,
        name: Name,
        parent: &InodeView,
        entry: Option<&InodeView>,
    ) -> Served<Found> {
        let (entry_ttl, pass) = {
            let mut state = directory.state.lock();
            state.see(parent);
            if state.is_fresh(parent) {
                if state.directory.learn(name, entry.map(|view| view.attr.ino)) {
                    self.names.fetch_add(1, Ordering::Relaxed);
                }
                self.name_ttl(directory, &mut state)
            } else {
                (Duration::ZERO, Pass::default())
            }
        };
        match entry {
            None => Served { value: Found::Missing(entry_ttl), pass },
            Some(view) => {
                let (attr, attr_ttl, child_pass) = self.take_view(view);
                Served {
                    value: Found::Entry(Entry { attr, attr_ttl, entry_ttl }),
                    pass: pass.and(child_pass),
                }
            }
        }
    }

    /// Takes a view in; gives the newest attributes known and how long they may be kept.
    pub(super) fn take_view(&self, view: &InodeView) -> (Attr, Duration, Pass) {
        let inode = self.table.get(view.attr.ino);
        let mut state = inode.state.lock();
        state.see(view);
        let attr = state.attr.clone().unwrap_or_else(|| view.attr.clone());
        let (ttl, pass) = self.pass_ttl(&inode, &mut state);
        (attr, ttl, pass)
    }

    /// Attributes under a valid lease.
    pub(super) fn cached_attr(&self, inode: &Arc<Inode>) -> Option<(Attr, Duration, Pass)> {
        let mut state = inode.state.lock();
        if !self.is_valid(&state) || state.is_being_changed() {
            return None;
        }
        state.used = true;
        let attr = state.attr.clone()?;
        if state.may_have_been_read() {
            return Some((attr, Duration::ZERO, Pass::default()));
        }
        let (ttl, pass) = self.pass_ttl(inode, &mut state);
        Some((attr, ttl, pass))
    }

    /// How long an answer may be kept, and the pass for it if it may.
    fn pass_ttl(&self, inode: &Arc<Inode>, state: &mut State) -> (Duration, Pass) {
        let ttl = self.ttl(inode, state);
        let id = if ttl.is_zero() { None } else { state.gate.admit(crate::core::gate::NO_PAGES) };
        (ttl, id.map_or_else(Pass::default, |id| Pass::new(inode, id)))
    }

    /// The same for a name. Where mounts contend for a directory its names are not given to the kernel to keep:
    /// to take them back, the kernel would need the directory's lock, which operations waiting for the other mount hold.
    pub(super) fn name_ttl(&self, directory: &Arc<Inode>, state: &mut State) -> (Duration, Pass) {
        if state.hot_until.is_some_and(|until| until > Instant::now()) {
            return (Duration::ZERO, Pass::default());
        }
        let (ttl, pass) = self.pass_ttl(directory, state);
        state.names_given |= !ttl.is_zero();
        (ttl, pass)
    }

    /// Drops what is known under a lease that is gone; says what the kernel must forget.
    pub(super) fn forget(&self, state: &mut State) -> Vec<Name> {
        let names = state.forget();
        self.names.fetch_sub(names.len() as u64, Ordering::Relaxed);
        names
    }

    /// After a mutation whose outcome is unknown, nothing that it may have changed is trusted. What is dirty is kept,
    /// and the answer to its commit tells the rest.
    pub(super) fn distrust(&self, inode: &Arc<Inode>) {
        let names = {
            let mut state = inode.state.lock();
            if state.is_dirty() {
                state.xattrs = None;
                // There may be some now.
                state.attr.iter_mut().for_each(|attr| attr.xattrs = true);
                return;
            }
            self.forget(&mut state)
        };
        for name in names {
            self.invalidate_later(Invalidation::Entry(inode.ino, name.0));
        }
        self.invalidate_later(Invalidation::Pages(inode.ino, crate::core::gate::EVERYTHING));
    }
}
