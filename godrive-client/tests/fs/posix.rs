//! Random operations on several mounts, one after the other, against a file system in memory. Background flushes, recalls
//! and closes happen in between as they like. At the end the cluster itself must hold what the model holds.

use crate::cluster::{CHUNK, Client, Cluster};
use bytes::Bytes;
use godrive_client::driver::Config as DriverConfig;
use godrive_client::error::FsError;
use godrive_client::fs::config::Config;
use godrive_client::fs::{Caller, Found, Fs, Handle, SetAttr};
use godrive_proto::meta::{Kind, NewNode, RenameMode};
use godrive_proto::{Ino, ROOT};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const MOUNTS: usize = 3;
const OWNER: Caller = Caller { uid: 0, gid: 0, umask: 0 };
const NAMES: [&[u8]; 4] = [b"a", b"b", b"c", b"d"];

/// A name in the root or in one of the directories that may lie there under the same names.
#[derive(Clone, Copy, Debug)]
struct Path {
    directory: Option<usize>,
    name: usize,
}

#[derive(Clone, Debug)]
enum Step {
    Create {
        path: Path,
        exclusive: bool,
        truncate: bool,
    },
    Open {
        path: Path,
    },
    Write {
        handle: usize,
        offset: u64,
        len: u32,
        byte: u8,
    },
    Append {
        path: Path,
        len: u32,
        byte: u8,
    },
    Read {
        handle: usize,
        offset: u64,
        len: u32,
    },
    Flush {
        handle: usize,
    },
    Fsync {
        handle: usize,
    },
    Close {
        handle: usize,
    },
    Truncate {
        path: Path,
        size: u64,
    },
    Punch {
        handle: usize,
        offset: u64,
        len: u64,
    },
    /// Between handles of one mount; a multiple of 4 KiB more often than not.
    Copy {
        from: (usize, u64),
        to: (usize, u64),
        len: u64,
    },
    Stat {
        path: Path,
    },
    Chmod {
        path: Path,
        mode: u16,
    },
    Mkdir {
        path: Path,
    },
    Unlink {
        path: Path,
    },
    Rmdir {
        path: Path,
    },
    /// Removes all names, then the directory; perhaps when it is contended no longer.
    Clear {
        directory: Option<usize>,
        after_rest: bool,
    },
    Rename {
        from: Path,
        to: Path,
        replace: bool,
    },
    Link {
        from: Path,
        to: Path,
    },
    List {
        directory: Option<usize>,
    },
    Wait {
        ms: u64,
    },
}

fn step() -> impl Strategy<Value = (usize, Step)> {
    let path = || {
        (proptest::option::weighted(0.4, 0..NAMES.len()), 0..NAMES.len())
            .prop_map(|(directory, name)| Path { directory, name })
    };
    let offset = || prop_oneof![Just(0u64), 0..20_000u64, 0..4 * u64::from(CHUNK)];
    let len = || prop_oneof![1..300u32, Just(4096u32), 1..2 * CHUNK];
    let handle = || 0..8usize;
    let step = prop_oneof![
        4 => (path(), any::<bool>(), any::<bool>())
            .prop_map(|(path, exclusive, truncate)| Step::Create { path, exclusive, truncate }),
        3 => path().prop_map(|path| Step::Open { path }),
        8 => (handle(), offset(), len(), 1..=255u8)
            .prop_map(|(handle, offset, len, byte)| Step::Write { handle, offset, len, byte }),
        1 => (path(), len(), 1..=255u8).prop_map(|(path, len, byte)| Step::Append { path, len, byte }),
        8 => (handle(), offset(), len()).prop_map(|(handle, offset, len)| Step::Read { handle, offset, len }),
        2 => handle().prop_map(|handle| Step::Flush { handle }),
        1 => handle().prop_map(|handle| Step::Fsync { handle }),
        2 => handle().prop_map(|handle| Step::Close { handle }),
        2 => (path(), offset()).prop_map(|(path, size)| Step::Truncate { path, size }),
        1 => (handle(), offset(), len())
            .prop_map(|(handle, offset, len)| Step::Punch { handle, offset, len: u64::from(len) }),
        4 => ((handle(), offset()), (handle(), offset()), len())
            .prop_map(|(from, to, len)| Step::Copy { from, to, len: u64::from(len) }),
        3 => path().prop_map(|path| Step::Stat { path }),
        1 => (path(), 0..0o7777u16).prop_map(|(path, mode)| Step::Chmod { path, mode }),
        2 => path().prop_map(|path| Step::Mkdir { path }),
        4 => path().prop_map(|path| Step::Unlink { path }),
        2 => path().prop_map(|path| Step::Rmdir { path }),
        2 => (proptest::option::of(0..NAMES.len()), any::<bool>())
            .prop_map(|(directory, after_rest)| Step::Clear { directory, after_rest }),
        3 => (path(), path(), any::<bool>()).prop_map(|(from, to, replace)| Step::Rename { from, to, replace }),
        1 => (path(), path()).prop_map(|(from, to)| Step::Link { from, to }),
        2 => proptest::option::of(0..NAMES.len()).prop_map(|directory| Step::List { directory }),
        1 => (0..1500u64).prop_map(|ms| Step::Wait { ms }),
    ];
    (0..MOUNTS, step)
}

#[derive(Clone, Debug)]
enum Content {
    File(Vec<u8>),
    Directory(BTreeMap<usize, usize>),
}

#[derive(Clone, Debug)]
struct Entry {
    content: Content,
    nlink: u32,
    mode: u16,
}

/// The file system in memory: inodes by number, 0 is the root.
struct Model {
    inodes: Vec<Entry>,
}

type Outcome<T> = Result<T, i32>;

impl Model {
    fn new() -> Self {
        let root = Entry { content: Content::Directory(BTreeMap::new()), nlink: 2, mode: 0o755 };
        Self { inodes: vec![root] }
    }

    fn directory(&mut self, path: Path) -> Outcome<usize> {
        let Some(name) = path.directory else { return Ok(0) };
        let Content::Directory(root) = &self.inodes[0].content else { unreachable!() };
        let id = *root.get(&name).ok_or(libc::ENOENT)?;
        match self.inodes[id].content {
            Content::Directory(_) => Ok(id),
            Content::File(_) => Err(libc::ENOTDIR),
        }
    }

    fn names(&mut self, id: usize) -> &mut BTreeMap<usize, usize> {
        match &mut self.inodes[id].content {
            Content::Directory(names) => names,
            Content::File(_) => unreachable!("directories only"),
        }
    }

    fn find(&mut self, path: Path) -> Outcome<usize> {
        let directory = self.directory(path)?;
        self.names(directory).get(&path.name).copied().ok_or(libc::ENOENT)
    }

    fn is_directory(&self, id: usize) -> bool {
        matches!(self.inodes[id].content, Content::Directory(_))
    }

    fn bytes(&mut self, id: usize) -> Outcome<&mut Vec<u8>> {
        match &mut self.inodes[id].content {
            Content::File(bytes) => Ok(bytes),
            Content::Directory(_) => Err(libc::EISDIR),
        }
    }

    fn add(&mut self, path: Path, content: Content, mode: u16) -> Outcome<usize> {
        let directory = self.directory(path)?;
        if self.names(directory).contains_key(&path.name) {
            return Err(libc::EEXIST);
        }
        let nlink = if matches!(content, Content::Directory(_)) { 2 } else { 1 };
        self.inodes.push(Entry { content, nlink, mode });
        let id = self.inodes.len() - 1;
        self.names(directory).insert(path.name, id);
        Ok(id)
    }

    fn remove(&mut self, path: Path, directory: bool) -> Outcome<()> {
        let id = self.find(path)?;
        match (self.is_directory(id), directory) {
            (true, false) => return Err(libc::EISDIR),
            (false, true) => return Err(libc::ENOTDIR),
            (true, true) if !self.names(id).is_empty() => return Err(libc::ENOTEMPTY),
            _ => {}
        }
        let parent = self.directory(path)?;
        self.names(parent).remove(&path.name);
        self.inodes[id].nlink -= 1;
        Ok(())
    }

    fn rename(&mut self, from: Path, to: Path, replace: bool) -> Outcome<()> {
        let (parent, new_parent) = (self.directory(from)?, self.directory(to)?);
        let id = self.find(from)?;
        let target = self.names(new_parent).get(&to.name).copied();
        if self.is_directory(id) && id == new_parent {
            return Err(libc::EINVAL);
        }
        if let Some(target) = target {
            if !replace {
                return Err(libc::EEXIST);
            }
            if target == id {
                return Ok(());
            }
            match (self.is_directory(id), self.is_directory(target)) {
                (true, false) => return Err(libc::ENOTDIR),
                (false, true) => return Err(libc::EISDIR),
                (true, true) if !self.names(target).is_empty() => return Err(libc::ENOTEMPTY),
                _ => {}
            }
            self.inodes[target].nlink -= 1;
        }
        self.names(parent).remove(&from.name);
        self.names(new_parent).insert(to.name, id);
        Ok(())
    }
}

struct Open {
    mount: usize,
    handle: Handle,
    id: usize,
}

struct Run {
    cluster: Arc<Cluster>,
    mounts: Vec<Arc<Fs<Client>>>,
    model: Model,
    open: Vec<Open>,
}

fn errno<T>(result: Result<T, FsError>) -> Outcome<T> {
    result.map_err(|error| error.errno)
}

async fn ino_of(fs: &Arc<Fs<Client>>, parent: Ino, name: usize) -> Outcome<(Ino, Kind)> {
    let found = match fs.try_lookup(parent, NAMES[name]) {
        Some(found) => errno(found)?,
        None => errno(fs.lookup(parent, NAMES[name]).await)?,
    };
    match &found.value {
        Found::Entry(entry) => Ok((entry.attr.ino, entry.attr.kind)),
        Found::Missing(_) => Err(libc::ENOENT),
    }
}

async fn parent_of(fs: &Arc<Fs<Client>>, path: Path) -> Outcome<Ino> {
    let Some(name) = path.directory else { return Ok(ROOT) };
    match ino_of(fs, ROOT, name).await? {
        (ino, Kind::Directory) => Ok(ino),
        _ => Err(libc::ENOTDIR),
    }
}

async fn find(fs: &Arc<Fs<Client>>, path: Path) -> Outcome<Ino> {
    let parent = parent_of(fs, path).await?;
    Ok(ino_of(fs, parent, path.name).await?.0)
}

impl Run {
    async fn step(&mut self, mount: usize, step: &Step) {
        let fs = self.mounts[mount].clone();
        match step.clone() {
            Step::Create { path, exclusive, truncate } => self.create(mount, path, exclusive, truncate).await,
            Step::Open { path } => {
                let real = match find(&fs, path).await {
                    Ok(ino) => errno(fs.open(ino, libc::O_RDWR).await).map(|opened| opened.value.handle),
                    Err(error) => Err(error),
                };
                let expected = self.model.find(path).and_then(|id| self.model.bytes(id).map(|_| id));
                self.opened(mount, real, expected);
            }
            Step::Write { handle, offset, len, byte } => {
                let Some(open) = self.handle(handle) else { return };
                let (fs, handle, id) = (self.mounts[open.mount].clone(), open.handle, open.id);
                let data = Bytes::from(vec![byte; len as usize]);
                let written = match fs.try_write(handle, offset, &data, false) {
                    Some(written) => written,
                    None => fs.write(handle, offset, data, false).await,
                };
                assert_eq!(written.unwrap().value, len);
                put(self.model.bytes(id).unwrap(), offset, len, byte);
            }
            Step::Append { path, len, byte } => {
                let Ok(id) = self.model.find(path) else { return };
                let Ok(bytes) = self.model.bytes(id) else { return };
                let end = bytes.len() as u64;
                put(bytes, end, len, byte);
                let ino = find(&fs, path).await.unwrap();
                let handle = fs.open(ino, libc::O_WRONLY | libc::O_APPEND).await.unwrap().value.handle;
                let data = Bytes::from(vec![byte; len as usize]);
                assert_eq!(fs.write(handle, 0, data, false).await.unwrap().value, len);
                fs.flush(handle).await.unwrap();
                fs.release(handle);
            }
            Step::Read { handle, offset, len } => {
                let Some(open) = self.handle(handle) else { return };
                let (mount, handle, id) = (open.mount, open.handle, open.id);
                self.check_bytes(mount, handle, id, offset, len).await;
            }
            Step::Flush { handle } => {
                let Some(open) = self.handle(handle) else { return };
                let fs = &self.mounts[open.mount];
                match fs.try_flush(open.handle) {
                    Some(result) => result.unwrap(),
                    None => fs.flush(open.handle).await.unwrap(),
                }
            }
            Step::Fsync { handle } => {
                let Some(open) = self.handle(handle) else { return };
                self.mounts[open.mount].fsync(open.handle, false).await.unwrap();
            }
            Step::Close { handle } => self.close(handle).await,
            Step::Truncate { path, size } => {
                let set = SetAttr { size: Some(size), ..SetAttr::default() };
                let real = match find(&fs, path).await {
                    Ok(ino) => errno(fs.setattr(ino, None, set).await).map(|reply| reply.attr.size),
                    Err(error) => Err(error),
                };
                let model = &mut self.model;
                let expected = model.find(path).and_then(|id| {
                    model.bytes(id)?.resize(size as usize, 0);
                    Ok(size)
                });
                assert_eq!(real, expected);
            }
            Step::Punch { handle, offset, len } => {
                let Some(open) = self.handle(handle) else { return };
                let (mount, handle, id) = (open.mount, open.handle, open.id);
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                self.mounts[mount].fallocate(handle, mode, offset, len, false).await.unwrap();
                let bytes = self.model.bytes(id).unwrap();
                let (from, to) =
                    ((offset as usize).min(bytes.len()), ((offset + len) as usize).min(bytes.len()));
                bytes[from..to].fill(0);
            }
            Step::Copy { from, to, len } => self.copy(from, to, len).await,
            Step::Stat { path } => self.check_stat(&fs, path).await,
            Step::Chmod { path, mode } => {
                let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
                let real = match find(&fs, path).await {
                    Ok(ino) => errno(fs.setattr(ino, None, set).await).map(|reply| reply.attr.mode),
                    Err(error) => Err(error),
                };
                let model = &mut self.model;
                let expected = model.find(path).map(|id| {
                    model.inodes[id].mode = mode;
                    mode
                });
                assert_eq!(real, expected);
            }
            Step::Mkdir { path } => {
                let real = match parent_of(&fs, path).await {
                    Ok(parent) => {
                        errno(fs.make(parent, NAMES[path.name], NewNode::Directory, 0o755, OWNER).await)
                            .map(|_| ())
                    }
                    Err(error) => Err(error),
                };
                let expected = self.model.add(path, Content::Directory(BTreeMap::new()), 0o755);
                assert_eq!(real, expected.map(|_| ()));
            }
            Step::Unlink { path } => {
                let real = match parent_of(&fs, path).await {
                    Ok(parent) => match fs.try_unlink(parent, NAMES[path.name]) {
                        Some(removed) => errno(removed),
                        None => errno(fs.unlink(parent, NAMES[path.name]).await),
                    },
                    Err(error) => Err(error),
                };
                assert_eq!(real, self.model.remove(path, false));
            }
            Step::Rmdir { path } => {
                let real = match parent_of(&fs, path).await {
                    Ok(parent) => match fs.try_rmdir(parent, NAMES[path.name]) {
                        Some(removed) => errno(removed),
                        None => errno(fs.rmdir(parent, NAMES[path.name]).await),
                    },
                    Err(error) => Err(error),
                };
                assert_eq!(real, self.model.remove(path, true));
            }
            Step::Clear { directory, after_rest } => {
                if after_rest {
                    tokio::time::sleep(Duration::from_secs(3)).await;
                }
                for name in 0..NAMES.len() {
                    Box::pin(self.step(mount, &Step::Unlink { path: Path { directory, name } })).await;
                }
                if let Some(name) = directory {
                    let path = Path { directory: None, name };
                    Box::pin(self.step(mount, &Step::Rmdir { path })).await;
                }
            }
            Step::Rename { from, to, replace } => {
                let mode = if replace { RenameMode::Replace } else { RenameMode::NoReplace };
                let real = match (parent_of(&fs, from).await, parent_of(&fs, to).await) {
                    (Ok(parent), Ok(new_parent)) => {
                        errno(fs.rename(parent, NAMES[from.name], new_parent, NAMES[to.name], mode).await)
                    }
                    (Err(error), _) | (_, Err(error)) => Err(error),
                };
                assert_eq!(real, self.model.rename(from, to, replace));
            }
            Step::Link { from, to } => self.link(&fs, from, to).await,
            Step::List { directory } => self.check_list(&fs, directory).await,
            Step::Wait { ms } => tokio::time::sleep(Duration::from_millis(ms)).await,
        }
    }

    async fn copy(&mut self, from: (usize, u64), to: (usize, u64), len: u64) {
        let Some(source) = self.handle(from.0) else { return };
        let same: Vec<&Open> = self.open.iter().filter(|open| open.mount == source.mount).collect();
        let target = same[to.0 % same.len()];
        let (fs, source, target) =
            (&self.mounts[source.mount], (source.handle, source.id), (target.handle, target.id));
        let copied = errno(fs.copy_file_range(source.0, from.1, target.0, to.1, len).await);
        if source.1 == target.1 && from.1 < to.1 + len && to.1 < from.1 + len {
            return assert_eq!(copied, Err(libc::EINVAL));
        }
        let bytes = self.model.bytes(source.1).unwrap();
        let (start, end) = ((from.1 as usize).min(bytes.len()), ((from.1 + len) as usize).min(bytes.len()));
        let bytes = bytes[start..end].to_vec();
        assert_eq!(copied, Ok(bytes.len() as u64));
        if bytes.is_empty() {
            return;
        }
        let model = self.model.bytes(target.1).unwrap();
        let start = to.1 as usize;
        model.resize(model.len().max(start + bytes.len()), 0);
        model[start..start + bytes.len()].copy_from_slice(&bytes);
    }

    fn handle(&self, index: usize) -> Option<&Open> {
        (!self.open.is_empty()).then(|| &self.open[index % self.open.len()])
    }

    fn opened(&mut self, mount: usize, real: Outcome<Handle>, expected: Outcome<usize>) {
        assert_eq!(real.map(|_| ()), expected.map(|_| ()));
        if let (Ok(handle), Ok(id)) = (real, expected) {
            self.open.push(Open { mount, handle, id });
        }
    }

    async fn create(&mut self, mount: usize, path: Path, exclusive: bool, truncate: bool) {
        let fs = self.mounts[mount].clone();
        let mut flags = libc::O_RDWR | libc::O_CREAT;
        flags |= if exclusive { libc::O_EXCL } else { 0 };
        flags |= if truncate { libc::O_TRUNC } else { 0 };
        let real = match parent_of(&fs, path).await {
            Ok(parent) => errno(fs.create(parent, NAMES[path.name], 0o640, flags, OWNER).await),
            Err(error) => Err(error),
        };
        let real = real.map(|created| created.value.opened.handle);
        let model = &mut self.model;
        let expected = match model.add(path, Content::File(Vec::new()), 0o640) {
            Err(libc::EEXIST) if !exclusive => model.find(path).and_then(|id| {
                let bytes = model.bytes(id)?;
                if truncate {
                    bytes.clear();
                }
                Ok(id)
            }),
            result => result,
        };
        self.opened(mount, real, expected);
    }

    async fn link(&mut self, fs: &Arc<Fs<Client>>, from: Path, to: Path) {
        let real = match (find(fs, from).await, parent_of(fs, to).await) {
            (Ok(ino), Ok(parent)) => {
                errno(fs.link(ino, parent, NAMES[to.name]).await).map(|entry| entry.value.attr.nlink)
            }
            (Err(error), _) | (_, Err(error)) => Err(error),
        };
        let model = &mut self.model;
        let expected = model.find(from).and_then(|id| {
            let parent = model.directory(to)?;
            if model.names(parent).contains_key(&to.name) {
                return Err(libc::EEXIST);
            }
            if model.is_directory(id) {
                return Err(libc::EPERM);
            }
            model.names(parent).insert(to.name, id);
            model.inodes[id].nlink += 1;
            Ok(model.inodes[id].nlink)
        });
        assert_eq!(real, expected);
    }

    async fn close(&mut self, index: usize) {
        if self.open.is_empty() {
            return;
        }
        let open = self.open.remove(index % self.open.len());
        let fs = &self.mounts[open.mount];
        if fs.try_flush(open.handle).is_none() {
            fs.flush(open.handle).await.unwrap();
        }
        fs.release(open.handle);
    }

    async fn check_bytes(&mut self, mount: usize, handle: Handle, id: usize, offset: u64, len: u32) {
        let fs = &self.mounts[mount];
        let read = match fs.try_read(handle, offset, len) {
            Some(read) => read,
            None => fs.read(handle, offset, len).await,
        };
        let read = read.unwrap().value.concat();
        let bytes = self.model.bytes(id).unwrap();
        let (from, to) =
            ((offset as usize).min(bytes.len()), (offset as usize + len as usize).min(bytes.len()));
        let expected = &bytes[from..to];
        let differs = read.iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!((read.len(), differs), (expected.len(), None), "mount {mount}, inode {id}, at {offset}");
    }

    async fn check_stat(&mut self, fs: &Arc<Fs<Client>>, path: Path) {
        let real = match find(fs, path).await {
            Ok(ino) => {
                let attr = match fs.try_getattr(ino) {
                    Some(reply) => reply,
                    None => fs.getattr(ino).await,
                };
                errno(attr).map(|reply| {
                    let attr = &reply.value.attr;
                    (attr.size, attr.mode, if attr.kind == Kind::File { attr.nlink } else { 0 })
                })
            }
            Err(error) => Err(error),
        };
        let model = &mut self.model;
        let expected = model.find(path).map(|id| {
            let size = match &model.inodes[id].content {
                Content::File(bytes) => bytes.len(),
                Content::Directory(names) => names.len(),
            };
            let entry = &model.inodes[id];
            (size as u64, entry.mode, if model.is_directory(id) { 0 } else { entry.nlink })
        });
        assert_eq!(real, expected, "{path:?}");
    }

    async fn check_list(&mut self, fs: &Arc<Fs<Client>>, directory: Option<usize>) {
        let path = Path { directory, name: 0 };
        let Ok(id) = self.model.directory(path) else { return };
        let ino = parent_of(fs, path).await.unwrap();
        let handle = fs.opendir(ino).unwrap().handle;
        let (mut offset, mut names) = (0, Vec::new());
        loop {
            let page = match fs.try_readdir(handle, offset, 3, true) {
                Some(page) => page,
                None => fs.readdir(handle, offset, 3, true).await,
            };
            let page = page.unwrap().value;
            let Some(last) = page.last() else { break };
            offset = last.offset;
            names.extend(page.into_iter().map(|entry| entry.name));
        }
        fs.releasedir(handle);
        let mut expected: Vec<Vec<u8>> =
            self.model.names(id).keys().map(|name| NAMES[*name].to_vec()).collect();
        expected.extend([b".".to_vec(), b"..".to_vec()]);
        expected.sort();
        names.sort();
        assert_eq!(names, expected);
    }

    /// Everything closed: the cluster holds what the model holds, and every mount sees it.
    async fn finish(mut self) {
        while !self.open.is_empty() {
            self.close(0).await;
        }
        // A truncation or a change of mode without a handle is answered under the lease and committed later.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let paths = (0..NAMES.len()).flat_map(|name| {
            let below = (0..NAMES.len()).map(move |below| Path { directory: Some(name), name: below });
            below.chain([Path { directory: None, name }])
        });
        for path in paths {
            let Ok(id) = self.model.find(path) else { continue };
            let Ok(expected) = self.model.bytes(id).cloned() else { continue };
            let ino = find(&self.mounts[0], path).await.unwrap();
            {
                let world = self.cluster.world.lock();
                let node = &world.master.nodes[&ino];
                assert_eq!(node.attr.size, expected.len() as u64, "{path:?} as the master knows it");
                for (index, id) in &node.chunks {
                    let from = (*index as usize * CHUNK as usize).min(expected.len());
                    let to = (from + CHUNK as usize).min(expected.len());
                    let chunk = &world.chunks[id];
                    assert!(chunk.bytes[..to - from] == expected[from..to], "chunk {index} of {path:?}");
                    assert!(
                        chunk.bytes[to - from..].iter().all(|byte| *byte == 0),
                        "behind the end of {path:?}"
                    );
                }
            }
            for mount in 0..self.mounts.len() {
                let fs = self.mounts[mount].clone();
                let handle = fs.open(ino, libc::O_RDONLY).await.unwrap().value.handle;
                self.check_bytes(mount, handle, id, 0, 8 * CHUNK).await;
                fs.release(handle);
                self.check_stat(&fs, path).await;
            }
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        for fs in &self.mounts {
            assert_eq!(fs.stats().dirty_bytes, 0);
            fs.stop().await.unwrap();
        }
        let world = self.cluster.world.lock();
        assert_eq!(world.violations, Vec::<String>::new());
        let orphans = world.master.nodes.values().filter(|node| node.attr.nlink == 0).count();
        assert_eq!(orphans, 0, "every unlinked file was let go");
    }
}

fn put(bytes: &mut Vec<u8>, offset: u64, len: u32, byte: u8) {
    let end = offset as usize + len as usize;
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset as usize..end].fill(byte);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn mounts_behave_like_one_file_system(
        seed in any::<u64>(),
        count in 1..=MOUNTS,
        removals_in_a_row in prop_oneof![3 => Just(0u32), 1 => Just(4u32)],
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let cluster = Cluster::new(seed);
            let driver = DriverConfig::new("127.0.0.1:1".parse().unwrap(), "model");
            let config = Config { removals_in_a_row, min_slave_copy_bytes: 4096, ..Config::new(driver) };
            let mounts = (0..count).map(|id| cluster.mount_with(id as u64, config.clone())).collect();
            let mut run = Run { cluster, mounts, model: Model::new(), open: Vec::new() };
            for (mount, step) in &steps {
                run.step(*mount % count, step).await;
            }
            run.finish().await;
        });
    }
}
