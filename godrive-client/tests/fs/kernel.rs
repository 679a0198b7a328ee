//! A model of a kernel's caches over one mount: pages without time to live, locked while they are read and written;
//! attributes and names with one; directories locked while something happens in them.

use crate::cluster::{Client, Cluster};
use bytes::Bytes;
use godrive_client::driver::BoxFuture;
use godrive_client::error::Result;
use godrive_client::fs::{AttrReply, Found, Fs, Handle, Invalidate, Invalidation, Served};
use godrive_proto::Ino;
use godrive_proto::meta::{Attr, RenameMode};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{Mutex as AsyncMutex, RwLock};
use tokio::time::Instant;

const PAGE: u64 = 4096;

type Dentry = (Option<Attr>, Instant);

#[derive(Default)]
struct Caches {
    pages: BTreeMap<(Ino, u64), Option<Vec<u8>>>,
    attrs: BTreeMap<Ino, (Attr, Instant)>,
    versions: BTreeMap<Ino, u64>,
    names: BTreeMap<(Ino, Vec<u8>), Dentry>,
    page_locks: BTreeMap<(Ino, u64), Arc<AsyncMutex<()>>>,
    directory_locks: BTreeMap<Ino, Arc<RwLock<()>>>,
}

#[derive(Clone)]
pub struct Kernel {
    pub fs: Arc<Fs<Client>>,
    caches: Arc<Mutex<Caches>>,
}

struct Notifier(Arc<Mutex<Caches>>);

impl Kernel {
    pub fn mount(cluster: &Arc<Cluster>, id: u64) -> Self {
        Self::over(cluster.mount(id))
    }

    pub fn over(fs: Arc<Fs<Client>>) -> Self {
        let caches = Arc::new(Mutex::new(Caches::default()));
        fs.set_invalidate(Arc::new(Notifier(caches.clone())));
        Self { fs, caches }
    }

    fn page_lock(&self, ino: Ino, page: u64) -> Arc<AsyncMutex<()>> {
        self.caches.lock().page_locks.entry((ino, page)).or_default().clone()
    }

    pub fn directory(&self, ino: Ino) -> Arc<RwLock<()>> {
        self.caches.lock().directory_locks.entry(ino).or_default().clone()
    }

    pub async fn stat(&self, ino: Ino) -> Result<Attr> {
        let version = {
            let caches = self.caches.lock();
            match caches.attrs.get(&ino) {
                Some((attr, until)) if *until > Instant::now() => return Ok(attr.clone()),
                _ => caches.versions.get(&ino).copied(),
            }
        };
        let Served { value: AttrReply { attr, ttl }, pass } = match self.fs.try_getattr(ino) {
            Some(answer) => answer?,
            None => self.fs.getattr(ino).await?,
        };
        let mut caches = self.caches.lock();
        if caches.versions.get(&ino).copied() == version {
            caches.attrs.insert(ino, (attr.clone(), Instant::now() + ttl));
        }
        drop(caches);
        drop(pass);
        Ok(attr)
    }

    pub async fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Option<Ino>> {
        let key = (parent, name.to_vec());
        if let Some((attr, until)) = self.caches.lock().names.get(&key)
            && *until > Instant::now()
        {
            return Ok(attr.as_ref().map(|attr| attr.ino));
        }
        let lock = self.directory(parent);
        let _shared = lock.read().await;
        let Served { value, pass } = match self.fs.try_lookup(parent, name) {
            Some(answer) => answer?,
            None => self.fs.lookup(parent, name).await?,
        };
        let (attr, ttl) = match value {
            Found::Entry(entry) => (Some(entry.attr), entry.entry_ttl),
            Found::Missing(ttl) => (None, ttl),
        };
        let ino = attr.as_ref().map(|attr| attr.ino);
        self.caches.lock().names.insert(key, (attr, Instant::now() + ttl));
        drop(pass);
        Ok(ino)
    }

    /// A change of a name by this mount: the kernel knows the outcome from its own call.
    pub fn forget_name(&self, parent: Ino, name: &[u8]) {
        self.caches.lock().names.remove(&(parent, name.to_vec()));
    }

    pub fn forget_attr(&self, ino: Ino) {
        let mut caches = self.caches.lock();
        *caches.versions.entry(ino).or_default() += 1;
        caches.attrs.remove(&ino);
    }

    pub fn forget_pages(&self, ino: Ino, from: u64) {
        let mut caches = self.caches.lock();
        caches.pages.retain(|(of, page), _| *of != ino || (page + 1) * PAGE <= from);
    }

    pub async fn read(&self, handle: Handle, ino: Ino, offset: u64, len: u64) -> Result<Vec<u8>> {
        let size = self.stat(ino).await?.size;
        let end = (offset + len).min(size);
        if offset >= end {
            return Ok(Vec::new());
        }
        let pages = offset / PAGE..end.div_ceil(PAGE);
        let mut locks = Vec::new();
        for page in pages.clone() {
            locks.push(self.page_lock(ino, page).lock_owned().await);
        }
        let is_cached =
            pages.clone().all(|page| self.caches.lock().pages.get(&(ino, page)).is_some_and(Option::is_some));
        if !is_cached {
            let (from, bytes) = (pages.start * PAGE, (pages.end - pages.start) * PAGE);
            let Served { value, pass } = match self.fs.try_read(handle, from, bytes as u32) {
                Some(answer) => answer?,
                None => self.fs.read(handle, from, bytes as u32).await?,
            };
            let mut read = value.concat();
            read.resize(bytes as usize, 0);
            let mut caches = self.caches.lock();
            for (page, bytes) in pages.clone().zip(read.chunks(PAGE as usize)) {
                caches.pages.insert((ino, page), Some(bytes.to_vec()));
            }
            drop(caches);
            drop(pass);
        }
        let caches = self.caches.lock();
        let all: Vec<u8> =
            pages.clone().flat_map(|page| caches.pages[&(ino, page)].clone().unwrap_or_default()).collect();
        let skip = (offset - pages.start * PAGE) as usize;
        Ok(all[skip..skip + (end - offset) as usize].to_vec())
    }

    pub async fn write(&self, handle: Handle, ino: Ino, offset: u64, bytes: &[u8]) -> Result<u32> {
        let pages = offset / PAGE..(offset + bytes.len() as u64).div_ceil(PAGE);
        let mut locks = Vec::new();
        for page in pages.clone() {
            locks.push(self.page_lock(ino, page).lock_owned().await);
            self.caches.lock().pages.entry((ino, page)).or_insert(None);
        }
        let data = Bytes::copy_from_slice(bytes);
        let answer = match self.fs.try_write(handle, offset, &data, false) {
            Some(answer) => answer,
            None => self.fs.write(handle, offset, data, false).await,
        };
        let Served { value: written, pass } = match answer {
            Ok(served) => served,
            Err(error) => {
                self.forget_pages(ino, 0);
                return Err(error);
            }
        };
        {
            let mut caches = self.caches.lock();
            for page in pages {
                let (from, to) =
                    (offset.max(page * PAGE), (offset + u64::from(written)).min((page + 1) * PAGE));
                let cached = caches.pages.entry((ino, page)).or_default();
                if from < to && to - from == PAGE {
                    *cached = Some(vec![0; PAGE as usize]);
                }
                if let (true, Some(cached)) = (from < to, cached) {
                    cached[(from - page * PAGE) as usize..(to - page * PAGE) as usize]
                        .copy_from_slice(&bytes[(from - offset) as usize..(to - offset) as usize]);
                }
            }
        }
        self.forget_attr(ino);
        drop(pass);
        Ok(written)
    }
}

impl Invalidate for Notifier {
    fn invalidate(&self, what: Vec<Invalidation>) -> BoxFuture<'static, ()> {
        let caches = self.0.clone();
        Box::pin(async move {
            for one in what {
                forget(&caches, one).await;
            }
        })
    }
}

async fn forget(caches: &Arc<Mutex<Caches>>, what: Invalidation) {
    match what {
        Invalidation::Attributes(ino) => forget_attr(caches, ino),
        Invalidation::Pages(ino, range) => {
            forget_attr(caches, ino);
            let pages: Vec<u64> = {
                let caches = caches.lock();
                let known = caches.pages.range((ino, range.start / PAGE)..=(ino, u64::MAX));
                known.map(|((_, page), _)| *page).filter(|page| page * PAGE < range.end).collect()
            };
            for page in pages {
                let lock = caches.lock().page_locks.entry((ino, page)).or_default().clone();
                let _alone = lock.lock().await;
                caches.lock().pages.remove(&(ino, page));
            }
        }
        Invalidation::Entry(parent, name) => {
            let lock = caches.lock().directory_locks.entry(parent).or_default().clone();
            let _alone = lock.write().await;
            caches.lock().names.remove(&(parent, name));
        }
    }
}

fn forget_attr(caches: &Arc<Mutex<Caches>>, ino: Ino) {
    let mut caches = caches.lock();
    *caches.versions.entry(ino).or_default() += 1;
    caches.attrs.remove(&ino);
}

/// What a kernel knows of names without having looked them up one by one.
impl Kernel {
    /// The names that a listing gives with their inodes are kept as if they had been looked up.
    pub async fn list(&self, directory: Ino, plus: bool) -> Result<()> {
        let lock = self.directory(directory);
        let _shared = lock.read().await;
        let handle = self.fs.opendir(directory)?.handle;
        let answer = match self.fs.try_readdir(handle, 0, 100, plus) {
            Some(answer) => answer,
            None => self.fs.readdir(handle, 0, 100, plus).await,
        };
        let Served { value, pass } = answer?;
        let now = Instant::now();
        for listed in value {
            if let Some(entry) = listed.entry {
                let dentry = (Some(entry.attr), now + entry.entry_ttl);
                self.caches.lock().names.insert((directory, listed.name), dentry);
            }
        }
        drop(pass);
        self.fs.releasedir(handle);
        Ok(())
    }

    /// What is known of a name moves with it, and so does its time to live.
    pub async fn rename(&self, from: (Ino, &[u8]), to: (Ino, &[u8])) -> Result<()> {
        let (first, second) = (self.directory(from.0), self.directory(to.0));
        let _first = first.write().await;
        let _second = if from.0 == to.0 { None } else { Some(second.write().await) };
        self.fs.rename(from.0, from.1, to.0, to.1, RenameMode::Replace).await?;
        let mut caches = self.caches.lock();
        let moved = caches.names.remove(&(from.0, from.1.to_vec()));
        let target = (to.0, to.1.to_vec());
        match moved {
            Some(dentry) => caches.names.insert(target, dentry),
            None => caches.names.remove(&target),
        };
        Ok(())
    }
}
