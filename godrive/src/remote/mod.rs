//! The cluster's files through the client library, by path: what `put`, `get` and the gateway share.

mod path;
mod read;
mod upload;

pub use path::RemotePath;
pub use read::Reader;
pub use upload::{Source, Upload, UploadError};

use crate::admin::load_identity;
use crate::cluster::layout::Home;
use anyhow::{Context, Result};
use bytes::Bytes;
use godrive_client::fs::{Caller, DirEntry, Found, SetAttr};
use godrive_client::{Client, Fs, FsError};
use godrive_proto::meta::{Attr, Kind, NewNode};
use godrive_proto::net::machine::{MachineClock, MachineSockets};
use godrive_proto::{Ino, ROOT};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::sync::Arc;
use std::time::Duration;

/// One transfer moves pieces of this size; what a put or get holds in memory is a few of them.
pub const PIECE_BYTES: usize = 1 << 20;
const MOST_LINKS: u32 = 40;

pub type FsResult<T> = std::result::Result<T, FsError>;

/// An error as people read it: the errno's own words where nothing better is known.
pub fn said(error: &FsError) -> String {
    let context = error.context.trim_end();
    // A peer's fault without a sentence is only its code.
    if context.is_empty() || context.ends_with(':') {
        let text = std::io::Error::from_raw_os_error(error.errno).to_string();
        return text.split(" (os error").next().unwrap_or_default().to_lowercase();
    }
    context.into()
}

pub fn explained(error: FsError) -> anyhow::Error {
    anyhow::anyhow!("{}", said(&error))
}

/// A session with the cluster.
#[derive(Clone)]
pub struct Remote {
    fs: Arc<Fs>,
    caller: Caller,
}

impl Remote {
    /// Opens a session; `label` is what `status` shows.
    pub async fn connect(home: &Home, label: &str, deadline: Duration) -> Result<Self> {
        let master = home.cluster()?.master()?;
        crate::admin::refuse_stopped(home).await?;
        let mut driver = godrive_client::driver::Config::new(master, format!("{}:{label}", host()));
        driver.deadline = deadline;
        let mut config = godrive_client::Config::new(driver);
        // Streams need little of either.
        config.cache_bytes = 32 << 20;
        config.write_buffer_bytes = 32 << 20;
        let world = godrive_client::World {
            sockets: Arc::new(MachineSockets),
            clock: Arc::new(MachineClock),
            identity: load_identity(&home.client())?,
            seed: StdRng::from_os_rng().random(),
        };
        let fs = Client::start(config, world).await.with_context(|| {
            format!("the master {master}; is the cluster running (`godrive status`, `godrive up`)?")
        })?;
        let caller =
            Caller { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw(), umask: 0 };
        Ok(Self { fs, caller })
    }

    /// What is made belongs to the caller with these permissions taken away, as by umask(2).
    pub fn with_umask(mut self, umask: u16) -> Self {
        self.caller.umask = umask;
        self
    }

    /// Ends the session; says what could not be flushed.
    pub async fn stop(self) -> Result<()> {
        match self.fs.stop().await {
            Ok(()) => Ok(()),
            Err(unflushed) => {
                let lost: Vec<String> =
                    unflushed.0.into_iter().map(|(ino, why)| format!("inode {ino}: {why}")).collect();
                anyhow::bail!("could not be flushed: {}", lost.join("; "))
            }
        }
    }

    /// The inode of a name, or None.
    async fn child(&self, parent: Ino, name: &[u8]) -> FsResult<Option<Attr>> {
        Ok(match self.fs.lookup(parent, name).await?.value {
            Found::Entry(entry) => Some(entry.attr),
            Found::Missing(_) => None,
        })
    }

    pub async fn attr(&self, ino: Ino) -> FsResult<Attr> {
        Ok(self.fs.getattr(ino).await?.value.attr)
    }

    /// Makes the root directory the caller's own, if it still is the administrator's.
    pub async fn own_root(&self) -> FsResult<()> {
        let root = self.attr(ROOT).await?;
        if root.uid != 0 {
            return Ok(());
        }
        let owner = SetAttr { uid: Some(self.caller.uid), gid: Some(self.caller.gid), ..SetAttr::default() };
        self.fs.setattr(ROOT, None, owner).await.map(drop)
    }

    /// The inode at a path; links are followed, the last one too if `follow`.
    pub async fn resolve(&self, path: &RemotePath, follow: bool) -> FsResult<Attr> {
        let mut todo: Vec<Vec<u8>> = path.names().iter().rev().cloned().collect();
        let mut above = Vec::new();
        let mut here = self.attr(ROOT).await?;
        let mut links = 0;
        while let Some(name) = todo.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    here = above.pop().unwrap_or(here);
                    continue;
                }
                _ => {}
            }
            if here.kind != Kind::Directory {
                return Err(FsError::new(
                    libc::ENOTDIR,
                    format!("{path}: a part of the path is not a directory"),
                ));
            }
            let Some(found) = self.child(here.ino, &name).await? else {
                return Err(FsError::new(libc::ENOENT, format!("{path} does not exist")));
            };
            if found.kind != Kind::Symlink || (todo.is_empty() && !follow) {
                above.push(std::mem::replace(&mut here, found));
                continue;
            }
            links += 1;
            let target = self.fs.readlink(found.ino).await?;
            if links > MOST_LINKS {
                return Err(FsError::new(
                    libc::ELOOP,
                    format!("{path}: more than {MOST_LINKS} symbolic links"),
                ));
            }
            if target.starts_with(b"/") {
                return Err(FsError::new(
                    libc::ELOOP,
                    format!(
                        "{path} leads through an absolute symbolic link, which has a meaning only where it is mounted"
                    ),
                ));
            }
            todo.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
        }
        Ok(here)
    }

    /// The directory a path lies in, and its last name.
    async fn parent<'p>(&self, path: &'p RemotePath) -> FsResult<(Ino, &'p [u8])> {
        let Some((folder, name)) = path.split() else {
            return Err(FsError::new(libc::EISDIR, "/ is a directory"));
        };
        let folder = self.resolve(&folder, true).await?;
        if folder.kind != Kind::Directory {
            return Err(FsError::new(
                libc::ENOTDIR,
                format!("{path}: a part of the path is not a directory"),
            ));
        }
        Ok((folder.ino, name))
    }

    /// What is at a path; links are not followed.
    pub async fn exists(&self, path: &RemotePath) -> FsResult<Option<Kind>> {
        match self.resolve(path, false).await {
            Ok(attr) => Ok(Some(attr.kind)),
            Err(error) if error.errno == libc::ENOENT => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub async fn make_directory(&self, path: &RemotePath) -> FsResult<Ino> {
        let (parent, name) = self.parent(path).await?;
        self.fs.make(parent, name, NewNode::Directory, 0o755, self.caller).await?;
        Ok(parent)
    }

    /// Gives an inode in the trash a name again; the directory to [`Self::settle`].
    pub async fn restore(&self, ino: Ino, path: &RemotePath) -> FsResult<Ino> {
        let (parent, name) = self.parent(path).await?;
        self.fs.restore(ino, parent, name).await?;
        Ok(parent)
    }

    /// Makes the directories above a path that are missing. Somebody else making them at the same time is no error.
    pub async fn make_parents(&self, path: &RemotePath) -> FsResult<()> {
        for folder in path.ancestors() {
            match self.resolve(&folder, true).await {
                Ok(_) => continue,
                Err(error) if error.errno == libc::ENOENT => {}
                Err(error) => return Err(error),
            }
            let (parent, name) = self.parent(&folder).await?;
            match self.fs.make(parent, name, NewNode::Directory, 0o755, self.caller).await {
                Ok(_) => {}
                Err(error) if error.errno == libc::EEXIST => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Removes a file, link or empty directory.
    pub async fn remove(&self, path: &RemotePath) -> FsResult<()> {
        let (parent, name) = self.parent(path).await?;
        match self.child(parent, name).await? {
            None => Err(FsError::new(libc::ENOENT, format!("{path} does not exist"))),
            Some(attr) => {
                self.remove_entry(parent, name, attr.kind).await?;
                self.settle(parent).await
            }
        }
    }

    async fn remove_entry(&self, parent: Ino, name: &[u8], kind: Kind) -> FsResult<()> {
        match kind {
            Kind::Directory => self.fs.rmdir(parent, name).await,
            _ => self.fs.unlink(parent, name).await,
        }
    }

    /// Removes a path and everything below it. Links are removed, not followed.
    pub async fn remove_all(&self, path: &RemotePath) -> FsResult<()> {
        let (parent, name) = self.parent(path).await?;
        let Some(attr) = self.child(parent, name).await? else {
            return Err(FsError::new(libc::ENOENT, format!("{path} does not exist")));
        };
        // Depth first, with an explicit stack: depth is the user's.
        let mut stack = vec![(parent, name.to_vec(), attr)];
        while let Some((parent, name, attr)) = stack.last().cloned() {
            if attr.kind == Kind::Directory {
                let below = self.list(attr.ino, 0, 1024).await?;
                if !below.is_empty() {
                    for entry in below {
                        let found = self.child(attr.ino, &entry.name).await?;
                        match found {
                            Some(found) if found.kind == Kind::Directory => {
                                stack.push((attr.ino, entry.name, found))
                            }
                            Some(found) => self.remove_entry(attr.ino, &entry.name, found.kind).await?,
                            None => {}
                        }
                    }
                    continue;
                }
            }
            self.remove_entry(parent, &name, attr.kind).await?;
            stack.pop();
        }
        self.settle(parent).await
    }

    /// Up to `most` entries of a directory after a position, without `.` and `..`.
    pub async fn list(&self, directory: Ino, after: u64, most: usize) -> FsResult<Vec<DirEntry>> {
        let handle = self.fs.opendir(directory)?.handle;
        let result = self.fs.readdir(handle, after, most.saturating_add(2), true).await;
        self.fs.releasedir(handle);
        let mut entries = result?.value;
        entries.retain(|entry| entry.name != b"." && entry.name != b"..");
        entries.truncate(most);
        Ok(entries)
    }

    pub async fn read_link(&self, ino: Ino) -> FsResult<Bytes> {
        self.fs.readlink(ino).await
    }
}

fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown-host".into(), |name| name.trim().into())
}
