//! Reading directories.
//!
//! A position is the master's plus two: `.` and `..` come first and are made here.

use super::inode::Inode;
use super::losses::collect_loss;
use super::names::Busy;
use super::passes::Pass;
use super::table::OpenFile;
use super::types::{DirEntry, Entry, Handle, Opened, Served};
use super::{Backend, Fs};
use crate::error::{FsError, Result};
use godrive_proto::Ino;
use godrive_proto::meta::{Barrier, DirectoryPage, Kind, Name, ReadDirectory, ReadDirectoryRequest};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const DOTS: u64 = 2;
const MAX_ENTRIES: usize = 2048;

impl<B: Backend> Fs<B> {
    /// Directories have handles too: they keep an unlinked directory and count as open.
    pub fn opendir(self: &Arc<Self>, ino: Ino) -> Result<Opened> {
        let inode = self.table.get(ino);
        let (valid, keep_cache, poison) = {
            let mut state = inode.state.lock();
            if state.kind().is_some_and(|kind| kind != Kind::Directory) {
                return Err(FsError::bare(libc::ENOTDIR));
            }
            state.open += 1;
            self.note(ino, &mut state);
            let opened_before = std::mem::replace(&mut state.opened_before, true);
            let valid = self.is_valid(&state);
            (valid, valid && opened_before, state.poison)
        };
        if !valid {
            self.cover_open(&inode);
        }
        if keep_cache {
            // The kernel may have the listing, and then nobody hears that it is read.
            self.accessed(&inode);
        }
        let ahead = Mutex::default();
        let file = OpenFile {
            inode,
            readable: true,
            writable: false,
            append: false,
            sync: false,
            direct: false,
            no_access_time: false,
            poison,
            ahead,
        };
        Ok(Opened { handle: self.handles.add(file), keep_cache, no_flush: true })
    }

    /// Entries after `offset` (0: from the start, which includes `.` and `..`), at most `max`. Empty: the end.
    pub fn try_readdir(
        &self,
        handle: Handle,
        offset: u64,
        max: usize,
        plus: bool,
    ) -> Option<Result<Served<Vec<DirEntry>>>> {
        let directory = match self.handles.find(handle) {
            Ok(file) => file.inode.clone(),
            Err(error) => return Some(Err(error)),
        };
        let (mut entries, mut pass, entry_ttl) = {
            let mut state = directory.state.lock();
            if !self.is_valid(&state) {
                return None;
            }
            let parent = state.directory.parent?;
            let mut entries = dots(directory.ino, parent, offset);
            let (after, most) = (offset.saturating_sub(DOTS), max.saturating_sub(entries.len()));
            let listed = state.directory.list(after, most)?;
            entries.extend(
                listed.into_iter().map(|(position, name, ino, kind)| plain(position, name, ino, kind)),
            );
            let (ttl, pass) = self.name_ttl(&directory, &mut state);
            if plus && !ttl.is_zero() {
                // The kernel may keep them: a recall must find the names here to take them back.
                let new = state.directory.learn_listed(after, most);
                self.names.fetch_add(new, Ordering::Relaxed);
            }
            (entries, pass, ttl)
        };
        if plus {
            let mut missing = 0;
            for entry in entries.iter_mut().filter(|entry| entry.offset > DOTS) {
                let child = self.table.find(entry.ino);
                missing +=
                    usize::from(child.as_ref().is_some_and(|child| child.state.lock().may_have_been_read()));
                match child.and_then(|child| self.cached_attr(&child)) {
                    Some((attr, attr_ttl, child_pass)) => {
                        pass = pass.and(child_pass);
                        entry.entry = Some(Entry { attr, attr_ttl, entry_ttl });
                    }
                    None => missing += 1,
                }
            }
            // One page of the master tells more than as many lookups.
            if missing > entries.len() / 8 {
                return None;
            }
        }
        self.stats.meta_hits.add(1);
        if offset == 0 {
            self.accessed(&directory);
        }
        Some(Ok(Served { value: entries, pass }))
    }

    pub async fn readdir(
        self: &Arc<Self>,
        handle: Handle,
        offset: u64,
        max: usize,
        plus: bool,
    ) -> Result<Served<Vec<DirEntry>>> {
        if let Some(answer) = self.try_readdir(handle, offset, max, plus) {
            return answer;
        }
        let directory = self.handles.find(handle)?.inode.clone();
        self.stats.meta_misses.add(1);
        let after = offset.saturating_sub(DOTS);
        let request = ReadDirectoryRequest {
            directory: directory.ino,
            after,
            max_entries: max.clamp(1, MAX_ENTRIES) as u32,
            views: plus,
        };
        let _busy = Busy::new(&directory);
        self.catch_up_on(&directory).await;
        let page = self.backend.query::<ReadDirectory>(&request).await?;
        let served = self.take_page(&directory, page, offset, max, plus);
        if offset == 0 {
            self.accessed(&directory);
        }
        Ok(served)
    }

    /// Learns the names of a directory in which one after the other is looked up: one page tells more than as many
    /// lookups.
    pub(super) async fn learn_names(self: &Arc<Self>, directory: &Arc<Inode>) -> Result<()> {
        let max = MAX_ENTRIES;
        let request =
            ReadDirectoryRequest { directory: directory.ino, after: 0, max_entries: max as u32, views: true };
        let page = self.backend.query::<ReadDirectory>(&request).await?;
        self.take_page(directory, page, 0, max, true);
        Ok(())
    }

    fn take_page(
        &self,
        directory: &Arc<Inode>,
        page: DirectoryPage,
        offset: u64,
        max: usize,
        plus: bool,
    ) -> Served<Vec<DirEntry>> {
        let after = offset.saturating_sub(DOTS);
        let (entry_ttl, mut pass) = {
            let mut state = directory.state.lock();
            state.see(&page.directory);
            if state.is_fresh(&page.directory) {
                state.directory.parent = Some(page.parent);
                state.directory.learn_page(after, &page.entries, page.end);
                for entry in page.entries.iter().filter(|_| plus) {
                    if state.directory.learn(entry.name.clone(), Some(entry.ino)) {
                        self.names.fetch_add(1, Ordering::Relaxed);
                    }
                }
                if page.end && plus {
                    state.directory.learned_all();
                }
                self.name_ttl(directory, &mut state)
            } else {
                (Duration::ZERO, Pass::default())
            }
        };
        let mut entries = dots(directory.ino, page.parent, offset);
        let mut files = Vec::new();
        for from in page.entries {
            if entries.len() >= max {
                break;
            }
            let mut entry = plain(from.position, &from.name, from.ino, from.kind);
            if plus && let Some(view) = &from.view {
                let (attr, attr_ttl, child_pass) = self.take_view(view);
                pass = pass.and(child_pass);
                if attr.kind == Kind::File && attr.size > 0 {
                    files.push(from.ino);
                }
                entry.entry = Some(Entry { attr, attr_ttl, entry_ttl });
            }
            entries.push(entry);
        }
        self.note_neighbours(files);
        Served { value: entries, pass }
    }

    /// Every change of the namespace that this mount was told of is durable; or what was removed here still exists.
    pub async fn fsyncdir(self: &Arc<Self>, handle: Handle) -> Result<()> {
        let directory = self.handles.find(handle)?.inode.clone();
        // What was given up in this directory is its error; of another, the fsync of that one tells.
        let _ = self.catch_up().await;
        self.collect_error(&directory)?;
        self.backend.query::<Barrier>(&()).await?;
        collect_loss(&directory)
    }

    pub fn releasedir(self: &Arc<Self>, handle: Handle) {
        self.release(handle);
    }
}

fn dots(own: Ino, parent: Ino, offset: u64) -> Vec<DirEntry> {
    let dot = |offset, name: &[u8], ino| DirEntry {
        offset,
        name: name.to_vec(),
        ino,
        kind: Kind::Directory,
        entry: None,
    };
    [dot(1, b".", own), dot(DOTS, b"..", parent)].into_iter().filter(|entry| entry.offset > offset).collect()
}

fn plain(position: u64, name: &Name, ino: Ino, kind: Kind) -> DirEntry {
    DirEntry { offset: position + DOTS, name: name.0.clone(), ino, kind, entry: None }
}
