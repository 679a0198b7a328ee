//! The model's namespace: what the master answers.

use crate::cluster::{Answer, CHUNK, Chunk, World};
use crate::leases::Need;
use godrive_proto::data::{Contents, Layout};
use godrive_proto::lease::*;
use godrive_proto::meta::*;
use godrive_proto::time::Timestamp;
use godrive_proto::{ChunkId, Code, Digest, Fault, Ino, Operation, ROOT};
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone)]
pub struct Node {
    pub attr: Attr,
    pub entries: BTreeMap<Name, (u64, Ino)>,
    pub chunks: BTreeMap<u32, ChunkId>,
    pub target: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub parent: Ino,
    holders: BTreeSet<u64>,
    open_at: BTreeSet<u64>,
}

pub struct Master {
    pub nodes: BTreeMap<Ino, Node>,
    last: u64,
    index: u64,
    position: u64,
    pub requests: BTreeMap<u16, u64>,
}

impl Default for Master {
    fn default() -> Self {
        let root = Node::new(ROOT, Kind::Directory, 0o755, Timestamp(1));
        Self {
            nodes: BTreeMap::from([(ROOT, root)]),
            last: 1,
            index: 0,
            position: 0,
            requests: BTreeMap::new(),
        }
    }
}

impl Node {
    fn new(ino: Ino, kind: Kind, mode: u16, now: Timestamp) -> Self {
        let attr = Attr {
            ino,
            kind,
            mode,
            nlink: if kind == Kind::Directory { 2 } else { 1 },
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            blocks: 0,
            chunk_bytes: CHUNK,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            change: 0,
            xattrs: false,
            trim_pending: false,
        };
        Self {
            attr,
            entries: BTreeMap::new(),
            chunks: BTreeMap::new(),
            target: Vec::new(),
            xattrs: BTreeMap::new(),
            parent: ROOT,
            holders: BTreeSet::new(),
            open_at: BTreeSet::new(),
        }
    }
}

type Done<T> = Result<T, Fault>;

impl Master {
    fn node(&mut self, ino: Ino) -> Done<&mut Node> {
        self.nodes.get_mut(&ino).ok_or_else(|| Code::Stale.into())
    }

    fn child(&self, parent: Ino, name: &Name) -> Option<Ino> {
        self.nodes.get(&parent)?.entries.get(name).map(|(_, ino)| *ino)
    }

    /// A fault of the master: a name is lost.
    pub fn forget_name(&mut self, parent: Ino, name: &[u8]) {
        let name = Name::new(name).expect("a name");
        self.nodes.get_mut(&parent).and_then(|node| node.entries.remove(&name)).expect("it was there");
    }

    /// A loss of power: the removal of a name is undone.
    pub fn remember_name(&mut self, parent: Ino, name: &[u8], ino: Ino) {
        self.position += 1;
        let directory = self.nodes.get_mut(&parent).expect("a directory");
        directory.entries.insert(Name::new(name).expect("a name"), (self.position, ino));
        directory.attr.size += 1;
        self.nodes.get_mut(&ino).expect("an inode").attr.nlink += 1;
    }

    pub fn open_elsewhere(&mut self, ino: Ino, client: u64) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.open_at.insert(client);
        }
    }

    /// As far as the client's releases said.
    pub fn is_open_at(&self, ino: Ino, client: u64) -> bool {
        self.nodes.get(&ino).is_some_and(|node| node.open_at.contains(&client))
    }

    /// The leases a request needs, as the namespace is now.
    pub fn needs(&self, code: u16, request: &(dyn Any + Send + Sync)) -> Vec<(Ino, Need)> {
        use Need::{Alone, Share};
        let mut needs = Vec::new();
        match code {
            Lookup::CODE => {
                let request: &LookupRequest = cast(request);
                needs.push((request.parent, Share));
                needs.extend(self.child(request.parent, &request.name).map(|ino| (ino, Share)));
            }
            ReadDirectory::CODE => needs.push((cast::<ReadDirectoryRequest>(request).directory, Share)),
            ReadSymlink::CODE | ReadXattrs::CODE | GetAttr::CODE => {
                needs.push((*cast::<Ino>(request), Share))
            }
            Acquire::CODE => {
                let request: &AcquireRequest = cast(request);
                let need = if request.mode == Mode::Exclusive { Alone } else { Share };
                needs.extend(request.inodes.iter().map(|ino| (*ino, need)));
            }
            Own::CODE => needs.push((cast::<OwnRequest>(request).directory, Alone)),
            Batch::CODE => {
                for Step::Unlink { request, ino, .. } in &cast::<BatchRequest>(request).steps {
                    needs.extend([(request.parent, Alone), (*ino, Alone)]);
                }
            }
            Create::CODE => {
                let request: &CreateRequest = cast(request);
                match self.child(request.parent, &request.name) {
                    Some(ino) => needs.extend([(request.parent, Share), (ino, Share)]),
                    None => needs.push((request.parent, Alone)),
                }
            }
            MakeNode::CODE => needs.push((cast::<MakeNodeRequest>(request).parent, Alone)),
            Link::CODE => {
                let request: &LinkRequest = cast(request);
                needs.extend([(request.parent, Alone), (request.ino, Alone)]);
            }
            Unlink::CODE => {
                let request: &UnlinkRequest = cast(request);
                needs.push((request.parent, Alone));
                needs.extend(self.child(request.parent, &request.name).map(|ino| (ino, Alone)));
            }
            Rename::CODE => {
                let request: &RenameRequest = cast(request);
                needs.extend([(request.parent, Alone), (request.new_parent, Alone)]);
                let moved = self.child(request.parent, &request.name);
                needs.extend(
                    moved
                        .into_iter()
                        .chain(self.child(request.new_parent, &request.new_name))
                        .map(|ino| (ino, Alone)),
                );
            }
            SetAttr::CODE => needs.push((cast::<SetAttrRequest>(request).ino, Alone)),
            SetXattr::CODE => needs.push((cast::<SetXattrRequest>(request).ino, Alone)),
            RemoveXattr::CODE => needs.push((cast::<RemoveXattrRequest>(request).ino, Alone)),
            _ => {}
        }
        needs
    }
}

fn cast<T: 'static>(request: &(dyn Any + Send + Sync)) -> &T {
    request.downcast_ref().expect("the request of this operation")
}

fn boxed<T: Send + 'static>(value: T) -> Answer {
    Ok(Box::new(value))
}

pub fn execute(
    world: &mut World,
    client: u64,
    code: u16,
    request: &(dyn Any + Send + Sync),
    now: Timestamp,
) -> Answer {
    *world.master.requests.entry(code).or_default() += 1;
    let mut run = Run { world, client, now };
    match code {
        Lookup::CODE => boxed(run.lookup(cast(request))?),
        ReadDirectory::CODE => boxed(run.read_directory(cast(request))?),
        ReadSymlink::CODE => {
            let ino = *cast::<Ino>(request);
            let target = run.world.master.node(ino)?.target.clone();
            boxed(Target { view: run.view(ino)?, target })
        }
        ReadXattrs::CODE => {
            let ino = *cast::<Ino>(request);
            let all = run.world.master.node(ino)?.xattrs.clone().into_iter().collect();
            boxed(Xattrs { view: run.view(ino)?, all })
        }
        StatFs::CODE => boxed(FsStat::default()),
        GetAttr::CODE => boxed(run.view(*cast::<Ino>(request))?),
        Acquire::CODE => boxed(run.acquire(cast(request))?),
        Own::CODE => {
            let OwnRequest { directory, also } = cast(request);
            let also = also.iter().filter_map(|ino| run.view_as(*ino, Mode::Exclusive).ok()).collect();
            boxed(Owned { directory: run.view_as(*directory, Mode::Exclusive)?, also })
        }
        GetLayout::CODE => {
            let request: &LayoutRequest = cast(request);
            if !run.world.leases.holds(client, request.ino) {
                return Err(Code::NoLease.into());
            }
            boxed(run.layouts(request.ino, request.range)?)
        }
        GetLayouts::CODE => {
            let LayoutsRequest { inodes, range } = cast::<LayoutsRequest>(request);
            let mut all = Vec::new();
            for ino in
                inodes.iter().filter(|ino| run.world.leases.holds(client, **ino)).copied().collect::<Vec<_>>()
            {
                all.push((ino, run.layouts(ino, *range)?));
            }
            boxed(all)
        }
        OpenChunks::CODE => boxed(run.open_chunks(cast(request))?),
        GiveUp::CODE => {
            let ino = *cast::<Ino>(request);
            run.world.give_up_chunks(client, ino);
            run.world.leases.lower(client, ino);
            boxed(run.world.leases.current(client, ino))
        }
        Releases::CODE => {
            for release in &cast::<ReleaseRequest>(request).leases {
                if run.world.leases.released(client, release.id, release.keeps, release.ino) {
                    run.world.close_chunks(client, release.ino);
                }
            }
            for ino in &cast::<ReleaseRequest>(request).closed_orphans {
                if let Some(node) = run.world.master.nodes.get_mut(ino) {
                    node.holders.remove(&client);
                    node.open_at.remove(&client);
                    run.reap(*ino);
                }
            }
            boxed(())
        }
        Create::CODE => boxed(run.create(cast(request))?),
        MakeNode::CODE => boxed(run.make(cast(request))?),
        Link::CODE => boxed(run.link(cast(request))?),
        Unlink::CODE => boxed(run.unlink(cast(request))?),
        Rename::CODE => boxed(run.rename(cast(request))?),
        SetAttr::CODE => {
            let SetAttrRequest { ino, changes } = cast(request);
            run.change(*ino, |node| set(&mut node.attr, changes, now))?;
            boxed(run.view(*ino)?)
        }
        Truncate::CODE => boxed(run.truncate(cast(request))?),
        Commit::CODE => boxed(run.commit(cast(request))?),
        SetXattr::CODE => boxed(run.set_xattr(cast(request))?),
        RemoveXattr::CODE => {
            let RemoveXattrRequest { ino, name } = cast(request);
            run.world.master.node(*ino)?.xattrs.remove(name).ok_or(Code::NoAttribute)?;
            run.change(*ino, |node| node.attr.xattrs = !node.xattrs.is_empty())?;
            boxed(run.view(*ino)?)
        }
        Batch::CODE => boxed(run.batch(&cast::<BatchRequest>(request).steps)?),
        Barrier::CODE => boxed(()),
        Accessed::CODE => {
            for (ino, at) in cast::<Vec<(Ino, Timestamp)>>(request) {
                if let Some(node) = run.world.master.nodes.get_mut(ino) {
                    node.attr.atime = node.attr.atime.max(*at);
                }
            }
            boxed(())
        }
        _ => panic!("the model does not know operation {code:#x}"),
    }
}

fn set(attr: &mut Attr, changes: &AttrChanges, now: Timestamp) {
    let time = |time| match time {
        SetTime::Now => now,
        SetTime::At(time) => time,
    };
    attr.mode = changes.mode.unwrap_or(attr.mode);
    attr.uid = changes.uid.unwrap_or(attr.uid);
    attr.gid = changes.gid.unwrap_or(attr.gid);
    attr.atime = changes.atime.map_or(attr.atime, time);
    attr.mtime = changes.mtime.map_or(attr.mtime, time);
    attr.ctime = changes.ctime.unwrap_or(now).max(attr.ctime);
}

struct Run<'a> {
    world: &'a mut World,
    client: u64,
    now: Timestamp,
}

impl Run<'_> {
    fn view(&mut self, ino: Ino) -> Done<InodeView> {
        self.view_as(ino, Mode::Shared)
    }

    fn view_as(&mut self, ino: Ino, mode: Mode) -> Done<InodeView> {
        let attr = self.world.master.node(ino)?.attr.clone();
        Ok(InodeView { attr, lease: self.world.leases.grant(self.client, ino, mode) })
    }

    fn change<T>(&mut self, ino: Ino, change: impl FnOnce(&mut Node) -> T) -> Done<T> {
        self.world.master.index += 1;
        let index = self.world.master.index;
        let node = self.world.master.node(ino)?;
        let result = change(node);
        node.attr.change = index;
        Ok(result)
    }

    fn touch(&mut self, directory: Ino) -> Done<()> {
        let now = self.now;
        self.change(directory, |node| {
            (node.attr.mtime, node.attr.ctime, node.attr.size) = (now, now, node.entries.len() as u64);
        })
    }

    fn lookup(&mut self, request: &LookupRequest) -> Done<LookedUp> {
        let entry = self.world.master.child(request.parent, &request.name);
        let entry = entry.map(|ino| self.view(ino)).transpose()?;
        Ok(LookedUp { parent: self.view(request.parent)?, entry })
    }

    fn read_directory(&mut self, request: &ReadDirectoryRequest) -> Done<DirectoryPage> {
        let node = self.world.master.node(request.directory)?.clone();
        let mut all: Vec<_> =
            node.entries.iter().map(|(name, (position, ino))| (*position, name, *ino)).collect();
        all.sort();
        let behind: Vec<_> = all.into_iter().filter(|(position, ..)| *position > request.after).collect();
        let page = behind.iter().take(request.max_entries as usize);
        let mut entries = Vec::new();
        for (position, name, ino) in page {
            let kind = self.world.master.node(*ino)?.attr.kind;
            let view =
                if request.views { Some(self.view(*ino)?).filter(|view| view.lease.is_some()) } else { None };
            entries.push(DirectoryEntry {
                position: *position,
                name: (*name).clone(),
                ino: *ino,
                kind,
                view,
            });
        }
        let end = entries.len() == behind.len();
        Ok(DirectoryPage { directory: self.view(request.directory)?, parent: node.parent, entries, end })
    }

    fn acquire(&mut self, request: &AcquireRequest) -> Done<Acquired> {
        let views: Done<Vec<_>> = request.inodes.iter().map(|ino| self.view_as(*ino, request.mode)).collect();
        let layout = match request.layout {
            Some(range) => self.layouts(request.inodes[0], range)?,
            None => Vec::new(),
        };
        Ok(Acquired { views: views?, layout })
    }

    fn layouts(&mut self, ino: Ino, range: LayoutRange) -> Done<Vec<Layout>> {
        let node = self.world.master.node(ino)?.clone();
        let indexes = range.first..range.first + range.count;
        Ok(node.chunks.range(indexes).filter_map(|(index, _)| self.world.layout(&node, *index)).collect())
    }

    fn open_chunks(&mut self, request: &OpenChunksRequest) -> Done<Vec<Layout>> {
        if !self.world.leases.is_exclusive(self.client, request.ino) {
            return Err(Code::NoLease.into());
        }
        let free = self.world.free_chunks;
        let node = self.world.master.node(request.ino)?;
        let missing = request.indexes.iter().filter(|index| !node.chunks.contains_key(index)).count() as u64;
        if free.is_some_and(|free| free < missing) {
            return Err(Code::NoSpace.into());
        }
        self.world.free_chunks = free.map(|free| free - missing);
        request.indexes.iter().map(|index| self.open_chunk(request.ino, *index)).collect()
    }

    fn open_chunk(&mut self, ino: Ino, index: u32) -> Done<Layout> {
        let id = match self.world.master.node(ino)?.chunks.get(&index) {
            Some(id) => *id,
            None => {
                self.world.master.last += 1;
                let id = ChunkId(self.world.master.last);
                let bytes = vec![0; CHUNK as usize];
                let empty = Contents { version: Default::default(), digest: Digest(0) };
                let stable_bytes = bytes.clone();
                let chunk = Chunk {
                    bytes,
                    held: empty,
                    stable: empty,
                    stable_bytes,
                    committed: empty,
                    open_by: None,
                };
                self.world.chunks.insert(id, chunk);
                self.world.master.node(ino)?.chunks.insert(index, id);
                id
            }
        };
        self.world.chunks.get_mut(&id).expect("placed").open_by = Some(self.client);
        let node = self.world.master.node(ino)?.clone();
        self.world.layout(&node, index).ok_or_else(|| Code::Internal.into())
    }

    fn add(&mut self, parent: Ino, name: &Name, ino: Ino) -> Done<()> {
        self.world.master.position += 1;
        let position = self.world.master.position;
        self.world.master.node(parent)?.entries.insert(name.clone(), (position, ino));
        self.touch(parent)
    }

    fn fresh(&mut self, parent: Ino, name: &Name, kind: Kind, mode: u16) -> Done<Ino> {
        if self.world.master.child(parent, name).is_some() {
            return Err(Code::Exists.into());
        }
        if self.world.master.node(parent)?.attr.nlink == 0 {
            return Err(Code::NotFound.into());
        }
        self.world.master.last += 1;
        let ino = Ino(self.world.master.last);
        let mut node = Node::new(ino, kind, mode, self.now);
        node.parent = parent;
        self.world.master.nodes.insert(ino, node);
        self.change(ino, |_| ())?;
        self.add(parent, name, ino)?;
        if kind == Kind::Directory {
            self.world.master.node(parent)?.attr.nlink += 1;
        }
        Ok(ino)
    }

    fn create(&mut self, request: &CreateRequest) -> Done<Created> {
        if let Some(ino) = self.world.master.child(request.parent, &request.name) {
            if request.exclusive {
                return Err(Code::Exists.into());
            }
            if self.world.master.node(ino)?.attr.kind == Kind::Directory {
                return Err(Code::IsDirectory.into());
            }
            let (parent, entry) = (self.view(request.parent)?, self.view(ino)?);
            return Ok(Created { parent, entry, existed: true, layout: None });
        }
        let ino = self.fresh(request.parent, &request.name, Kind::File, request.mode.masked())?;
        let mode = if request.for_writing { Mode::Exclusive } else { Mode::Shared };
        let (parent, entry) = (self.view(request.parent)?, self.view_as(ino, mode)?);
        let full = self.world.free_chunks.is_some();
        let layout = (request.for_writing && !full).then(|| self.open_chunk(ino, 0)).transpose()?;
        Ok(Created { parent, entry, existed: false, layout })
    }

    fn make(&mut self, request: &MakeNodeRequest) -> Done<Linked> {
        let kind = match &request.node {
            NewNode::Directory => Kind::Directory,
            NewNode::Symlink(_) => Kind::Symlink,
            _ => Kind::File,
        };
        let ino = self.fresh(request.parent, &request.name, kind, request.mode.masked())?;
        if let NewNode::Symlink(target) = &request.node {
            let node = self.world.master.node(ino)?;
            node.target.clone_from(target);
            node.attr.size = target.len() as u64;
        }
        Ok(Linked { parent: self.view(request.parent)?, entry: self.view(ino)? })
    }

    fn link(&mut self, request: &LinkRequest) -> Done<Linked> {
        if self.world.master.child(request.parent, &request.name).is_some() {
            return Err(Code::Exists.into());
        }
        let node = self.world.master.node(request.ino)?;
        match node.attr.kind {
            Kind::Directory => return Err(Code::NotPermitted.into()),
            _ if node.attr.nlink == 0 => return Err(Code::NotFound.into()),
            _ => {}
        }
        let now = self.now;
        self.change(request.ino, |node| {
            node.attr.nlink += 1;
            node.attr.ctime = now;
        })?;
        self.add(request.parent, &request.name, request.ino)?;
        Ok(Linked { parent: self.view(request.parent)?, entry: self.view(request.ino)? })
    }

    fn unlink(&mut self, request: &UnlinkRequest) -> Done<Unlinked> {
        let ino = self.world.master.child(request.parent, &request.name).ok_or(Code::NotFound)?;
        let node = self.world.master.node(ino)?;
        match (node.attr.kind == Kind::Directory, request.directory) {
            (true, false) => return Err(Code::IsDirectory.into()),
            (false, true) => return Err(Code::NotDirectory.into()),
            (true, true) if !node.entries.is_empty() => return Err(Code::NotEmpty.into()),
            _ => {}
        }
        self.world.master.node(request.parent)?.entries.remove(&request.name);
        let entry = self.drop_name(request.parent, ino)?;
        self.touch(request.parent)?;
        Ok(Unlinked { parent: self.view(request.parent)?, entry })
    }

    /// All steps or none; those of a correct client can always be followed.
    fn batch(&mut self, steps: &[Step]) -> Done<Batched> {
        let mut changed = BTreeSet::new();
        let before = self.world.master.nodes.clone();
        for Step::Unlink { request, ino, at } in steps {
            self.own(request.parent, "a removal")?;
            self.own(*ino, "a removal")?;
            let named = self.world.master.child(request.parent, &request.name);
            self.now = *at;
            if named != Some(*ino) || self.unlink(request).is_err() {
                self.world.master.nodes = before;
                let what = format!("client {} removes {request:?} of {ino}, it is {named:?}", self.client);
                return Err(self.world.violation(what));
            }
            changed.extend([request.parent, *ino]);
        }
        let views: Done<Vec<_>> = changed.into_iter().map(|ino| self.view(ino)).collect();
        Ok(Batched { views: views? })
    }

    /// One name less; gives the view after it.
    fn drop_name(&mut self, parent: Ino, ino: Ino) -> Done<InodeView> {
        let now = self.now;
        let is_directory = self.change(ino, |node| {
            let is_directory = node.attr.kind == Kind::Directory;
            node.attr.nlink = if is_directory { 0 } else { node.attr.nlink - 1 };
            node.attr.ctime = now;
            is_directory
        })?;
        if is_directory {
            self.world.master.node(parent)?.attr.nlink -= 1;
        }
        let view = self.view(ino)?;
        if view.attr.nlink == 0 {
            let client = self.client;
            let node = self.world.master.node(ino)?;
            node.holders.insert(client);
            node.holders.extend(node.open_at.clone());
        }
        Ok(view)
    }

    fn reap(&mut self, ino: Ino) {
        let gone = self
            .world
            .master
            .nodes
            .get(&ino)
            .is_some_and(|node| node.attr.nlink == 0 && node.holders.is_empty());
        if gone && let Some(node) = self.world.master.nodes.remove(&ino) {
            for id in node.chunks.values() {
                self.world.chunks.remove(id);
            }
        }
    }

    fn is_within(&self, ino: Ino, ancestor: Ino) -> bool {
        let mut at = ino;
        loop {
            if at == ancestor {
                return true;
            }
            match self.world.master.nodes.get(&at) {
                Some(node) if at != ROOT => at = node.parent,
                _ => return false,
            }
        }
    }

    fn rename(&mut self, request: &RenameRequest) -> Done<Renamed> {
        let ino = self.world.master.child(request.parent, &request.name).ok_or(Code::NotFound)?;
        let target = self.world.master.child(request.new_parent, &request.new_name);
        let is_directory = self.world.master.node(ino)?.attr.kind == Kind::Directory;
        if self.world.master.node(request.new_parent)?.attr.nlink == 0 {
            return Err(Code::NotFound.into());
        }
        if is_directory && self.is_within(request.new_parent, ino) {
            return Err(Code::Invalid.into());
        }
        let mut other = None;
        if let Some(target) = target {
            if request.mode == RenameMode::NoReplace {
                return Err(Code::Exists.into());
            }
            if target == ino {
                let (parent, new_parent) = (self.view(request.parent)?, self.view(request.new_parent)?);
                return Ok(Renamed {
                    parent,
                    new_parent,
                    entry: self.view(ino)?,
                    other: Some(self.view(ino)?),
                });
            }
            let node = self.world.master.node(target)?;
            match (is_directory, node.attr.kind == Kind::Directory) {
                (true, false) => return Err(Code::NotDirectory.into()),
                (false, true) => return Err(Code::IsDirectory.into()),
                (true, true) if !node.entries.is_empty() => return Err(Code::NotEmpty.into()),
                _ => {}
            }
            self.world.master.node(request.new_parent)?.entries.remove(&request.new_name);
            other = Some(self.drop_name(request.new_parent, target)?);
        }
        self.world.master.node(request.parent)?.entries.remove(&request.name);
        self.add(request.new_parent, &request.new_name, ino)?;
        self.touch(request.parent)?;
        let now = self.now;
        self.change(ino, |node| node.attr.ctime = now)?;
        self.world.master.node(ino)?.parent = request.new_parent;
        if is_directory {
            self.world.master.node(request.parent)?.attr.nlink -= 1;
            self.world.master.node(request.new_parent)?.attr.nlink += 1;
        }
        let (parent, new_parent) = (self.view(request.parent)?, self.view(request.new_parent)?);
        Ok(Renamed { parent, new_parent, entry: self.view(ino)?, other })
    }

    fn own(&mut self, ino: Ino, what: &str) -> Done<()> {
        if self.world.leases.is_exclusive(self.client, ino) {
            return Ok(());
        }
        let what = format!("client {}: {what} of {ino} without the exclusive lease", self.client);
        self.world.violation(what);
        Err(Code::NoLease.into())
    }

    fn truncate(&mut self, request: &TruncateRequest) -> Done<Truncated> {
        self.own(request.ino, "truncation")?;
        let (size, now) = (request.size, self.now);
        let (index, within) = ((size / u64::from(CHUNK)) as u32, size % u64::from(CHUNK));
        let node = self.world.master.node(request.ino)?;
        let from = index + u32::from(within > 0);
        let dropped = node.chunks.split_off(&from);
        let has = within > 0 && node.chunks.contains_key(&index);
        for id in dropped.values() {
            self.world.chunks.remove(id);
        }
        self.change(request.ino, |node| {
            (node.attr.size, node.attr.mtime, node.attr.ctime) = (size, now, now);
            node.attr.trim_pending = has;
        })?;
        let trim = has.then(|| self.open_chunk(request.ino, index)).transpose()?;
        Ok(Truncated { view: self.view(request.ino)?, trim })
    }

    fn commit(&mut self, request: &CommitRequest) -> Done<Committed> {
        if self.world.commits_again && !self.world.leases.is_exclusive(self.client, request.ino) {
            return Err(Code::NoLease.into());
        }
        self.own(request.ino, "commit")?;
        self.world.largest_commit = self.world.largest_commit.max(request.chunks.len());
        let now = self.now;
        for state in &request.chunks {
            if state.epoch < self.world.epoch() {
                return Err(Code::WrongEpoch.into());
            }
            let named = self.world.master.node(request.ino)?.chunks.get(&state.index) == Some(&state.chunk);
            let held = self.world.chunks.get(&state.chunk).map(|chunk| chunk.held);
            if !named || held.is_none_or(|held| held.version < state.held.version) {
                let what = format!("client {} commits {state:?}, the replicas have {held:?}", self.client);
                return Err(self.world.violation(what));
            }
            let chunk = self.world.chunks.get_mut(&state.chunk).expect("seen above");
            if state.held.version > chunk.committed.version {
                chunk.committed = state.held;
            }
        }
        let trimming = self.world.master.node(request.ino)?.attr.trim_pending && !request.trimmed;
        if trimming && request.size.is_some() {
            return Err(Code::Busy.into());
        }
        self.change(request.ino, |node| {
            node.attr.trim_pending &= !request.trimmed;
            node.attr.size = node.attr.size.max(request.size.unwrap_or(0));
            set(&mut node.attr, &request.changes, now);
        })?;
        if request.keeps == Mode::Shared {
            self.world.leases.lower(self.client, request.ino);
            self.world.close_chunks(self.client, request.ino);
        }
        Ok(Committed { view: self.view(request.ino)? })
    }

    fn set_xattr(&mut self, request: &SetXattrRequest) -> Done<InodeView> {
        let node = self.world.master.node(request.ino)?;
        match (request.mode, node.xattrs.contains_key(&request.name)) {
            (SetXattrMode::Create, true) => return Err(Code::Exists.into()),
            (SetXattrMode::Replace, false) => return Err(Code::NoAttribute.into()),
            _ => {}
        }
        self.change(request.ino, |node| {
            node.xattrs.insert(request.name.clone(), request.value.clone());
            node.attr.xattrs = true;
        })?;
        self.view(request.ino)
    }
}
