//! What the server may ask of the state. Lists are pages: at most `limit`, ascending, behind `after`.

use super::State;
use super::keys::{self, Range};
use super::transaction::{Result as Found, Transaction, refuse};
use super::values::{
    Chunk, Deleted, Dentry, Entry, Inode, Intent, Node, Session, Slot, Token, Trash, Trashed, Value,
};
use crate::core::kv::Key;
use crate::core::record::Answer;
use bytes::Bytes;
use godrive_proto::data::Layout;
use godrive_proto::lease::LayoutRange;
use godrive_proto::meta::{Attr, Kind, Name};
use godrive_proto::time::Timestamp;
use godrive_proto::{ChunkId, Code, Fault, Ino, NodeId, SessionId};
use std::collections::BTreeSet;

/// As [`godrive_proto::meta::Xattrs::all`].
pub type NamesAndValues = Vec<(Vec<u8>, Vec<u8>)>;

/// One page of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    pub attr: Attr,
    /// For `..`.
    pub parent: Ino,
    /// By position.
    pub entries: Vec<(u64, Entry)>,
    pub end: bool,
}

impl State {
    pub fn inode(&self, ino: Ino) -> Result<Inode, Fault> {
        Ok(self.view().inode(ino)?)
    }

    /// None: it is gone.
    pub fn existing(&self, ino: Ino) -> Result<Option<Inode>, Fault> {
        Ok(self.view().value(&keys::inode(ino))?)
    }

    /// Whether the session may go on with the inode: it has a name, or the session had it open when the last one went. It is taken
    /// away, or laid into the trash, without asking anybody else.
    pub fn is_open_to(&self, session: SessionId, attr: &Attr) -> Result<bool, Fault> {
        Ok(attr.nlink > 0 || self.view().bytes(&keys::orphan(attr.ino, session))?.is_some())
    }

    pub fn attr(&self, ino: Ino) -> Result<Attr, Fault> {
        Ok(self.inode(ino)?.attr(ino))
    }

    /// The directory and, where the name exists, what it leads to.
    pub fn lookup(&self, parent: Ino, name: &Name) -> Result<(Attr, Option<Attr>), Fault> {
        let view = self.view();
        let directory = view.directory(parent)?;
        let entry = match view.dentry(parent, name)? {
            Some(dentry) => Some(view.inode(dentry.ino)?.attr(dentry.ino)),
            None => None,
        };
        Ok((directory.attr(parent), entry))
    }

    pub fn read_directory(&self, ino: Ino, after: u64, limit: usize) -> Result<Directory, Fault> {
        let view = self.view();
        let inode = view.directory(ino)?;
        let range = keys::entries_of(ino).after(keys::entry(ino, after));
        let mut pairs = view.scan(&range, limit.saturating_add(1))?;
        let end = pairs.len() <= limit;
        pairs.truncate(limit);
        let entries = decode_all(&pairs, keys::last_number)?;
        Ok(Directory { attr: inode.attr(ino), parent: inode.parent, entries, end })
    }

    /// A symlink's target.
    pub fn target(&self, ino: Ino) -> Result<(Attr, Bytes), Fault> {
        let view = self.view();
        let inode = view.inode(ino)?;
        if inode.kind != Kind::Symlink {
            return Err(Fault::new(Code::Invalid, format!("inode {ino} is not a symlink")));
        }
        let target = view.bytes(&keys::target(ino))?.unwrap_or_default();
        Ok((inode.attr(ino), target))
    }

    /// All (name, value) pairs; together at most [`crate::core::namespace::MAX_XATTR_BYTES`].
    pub fn xattrs(&self, ino: Ino) -> Result<(Attr, NamesAndValues), Fault> {
        let view = self.view();
        let inode = view.inode(ino)?;
        let mut all = Vec::new();
        if inode.xattrs > 0 {
            let range = keys::xattrs_of(ino);
            let name_at = range.from.len();
            for (key, value) in view.scan(&range, usize::MAX)? {
                all.push((key[name_at..].to_vec(), value.to_vec()));
            }
        }
        Ok((inode.attr(ino), all))
    }

    /// The placed chunks of a range of indexes; those missing are holes.
    pub fn layout(&self, ino: Ino, range: LayoutRange) -> Result<Vec<Layout>, Fault> {
        let view = self.view();
        view.inode(ino)?;
        let last = range.first.saturating_add(range.count);
        let range = Range { from: keys::slot(ino, range.first), to: keys::slot(ino, last) };
        let mut layouts = Vec::new();
        for (_, bytes) in view.scan(&range, usize::MAX)? {
            layouts.push(view.layout_of(Slot::decode(&bytes)?.chunk.id)?);
        }
        Ok(layouts)
    }

    /// Of these indexes, those that have no chunk yet and need placing.
    pub fn unplaced(&self, ino: Ino, indexes: &[u32]) -> Result<Vec<u32>, Fault> {
        let view = self.view();
        view.inode(ino)?;
        let mut missing = Vec::new();
        for index in indexes {
            if view.bytes(&keys::slot(ino, *index))?.is_none() {
                missing.push(*index);
            }
        }
        Ok(missing)
    }

    pub fn chunk(&self, id: ChunkId) -> Result<Option<Chunk>, Fault> {
        Ok(self.view().value(&keys::chunk(id))?)
    }

    /// A chunk's layout by its own id, as the answer to a report.
    pub fn chunk_layout(&self, id: ChunkId) -> Result<Layout, Fault> {
        Ok(self.view().layout_of(id)?)
    }

    pub fn chunks(&self, after: ChunkId, limit: usize) -> Result<Vec<(ChunkId, Chunk)>, Fault> {
        self.page(keys::chunks().after(keys::chunk(after)), limit, |key| ChunkId(keys::last_number(key)))
    }

    /// Chunks, deleted ones too, that have a member on the node.
    pub fn replicas_of(&self, node: NodeId, after: ChunkId, limit: usize) -> Result<Vec<ChunkId>, Fault> {
        let range = keys::replicas_of(node).after(keys::replica(node, after));
        self.numbers(&range, limit, ChunkId)
    }

    pub fn deleted(&self, after: ChunkId, limit: usize) -> Result<Vec<(ChunkId, Deleted)>, Fault> {
        self.page(keys::all_deleted().after(keys::deleted(after)), limit, |key| {
            ChunkId(keys::last_number(key))
        })
    }

    pub fn deleted_chunk(&self, id: ChunkId) -> Result<Option<Deleted>, Fault> {
        Ok(self.view().value(&keys::deleted(id))?)
    }

    /// Chunks of the inode that need an epoch change before anybody may have it.
    pub fn unsettled_in(&self, ino: Ino) -> Result<Vec<ChunkId>, Fault> {
        self.numbers(&keys::unsettled_in(ino), usize::MAX, ChunkId)
    }

    /// All such chunks; after a restart their epoch changes have to be run again.
    pub fn unsettled(&self) -> Result<Vec<ChunkId>, Fault> {
        self.numbers(&keys::all_unsettled(), usize::MAX, ChunkId)
    }

    /// Inodes of which the session has chunks open for writing.
    pub fn open_inodes(&self, session: SessionId) -> Result<BTreeSet<Ino>, Fault> {
        let open = self.view().scan(&keys::open_by(session), usize::MAX)?;
        Ok(open.iter().map(|(key, _)| Ino(keys::number_before(key, 8))).collect())
    }

    /// Chunks of the inode that the session has open for writing.
    pub fn open_chunks(&self, session: SessionId, ino: Ino) -> Result<Vec<ChunkId>, Fault> {
        self.numbers(&keys::open_in(session, ino), usize::MAX, ChunkId)
    }

    pub fn session(&self, id: SessionId) -> Result<Option<Session>, Fault> {
        Ok(self.view().value(&keys::session(id))?)
    }

    pub fn sessions(&self) -> Result<Vec<(SessionId, Session)>, Fault> {
        self.page(keys::sessions(), usize::MAX, |key| SessionId(keys::last_number(key)))
    }

    /// What the session was answered when it first sent this sequence.
    pub fn kept(&self, session: SessionId, sequence: u64) -> Result<Option<Answer>, Fault> {
        let view = self.view();
        let known: Option<Session> = view.value(&keys::session(session))?;
        Ok(match known {
            Some(known) => view.kept(session, &known, sequence)?,
            None => None,
        })
    }

    /// Unlinked inodes that the session keeps.
    pub fn orphans_of(&self, session: SessionId) -> Result<Vec<Ino>, Fault> {
        self.numbers(&keys::orphans_of(session), usize::MAX, Ino)
    }

    pub fn trash(&self) -> Result<Trash, Fault> {
        Ok(self.view().trash_facts()?)
    }

    /// What lies in the trash, the oldest first.
    pub fn trashed(
        &self,
        after: Option<(Timestamp, Ino)>,
        limit: usize,
    ) -> Result<Vec<(Ino, Trashed, Inode)>, Fault> {
        let view = self.view();
        let range = keys::whole_trash();
        let range = match after {
            Some((removed, ino)) => range.after(keys::trash_order(removed, ino)),
            None => range,
        };
        let mut found = Vec::new();
        for (key, _) in view.scan(&range, limit)? {
            let ino = Ino(keys::last_number(&key));
            found.push((ino, view.promised(&keys::trashed(ino))?, view.inode(ino)?));
        }
        Ok(found)
    }

    pub fn trashed_name(&self, ino: Ino) -> Result<Option<Trashed>, Fault> {
        Ok(self.view().value(&keys::trashed(ino))?)
    }

    pub fn node(&self, id: NodeId) -> Result<Option<Node>, Fault> {
        Ok(self.view().value(&keys::node(id))?)
    }

    pub fn nodes(&self) -> Result<Vec<(NodeId, Node)>, Fault> {
        self.page(keys::nodes(), usize::MAX, keys::node_number)
    }

    pub fn intents(&self) -> Result<Vec<(NodeId, Intent)>, Fault> {
        self.page(keys::intents(), usize::MAX, keys::node_number)
    }

    pub fn token(&self, id: u64) -> Result<Option<Token>, Fault> {
        Ok(self.view().value(&keys::token(id))?)
    }

    fn page<K, V: Value>(
        &self,
        range: Range,
        limit: usize,
        id: fn(&[u8]) -> K,
    ) -> Result<Vec<(K, V)>, Fault> {
        let pairs = self.view().scan(&range, limit)?;
        Ok(decode_all(&pairs, id)?)
    }

    fn numbers<T>(&self, range: &Range, limit: usize, id: fn(u64) -> T) -> Result<Vec<T>, Fault> {
        let pairs = self.view().scan(range, limit)?;
        Ok(pairs.iter().map(|(key, _)| id(keys::last_number(key))).collect())
    }
}

fn decode_all<K, V: Value>(pairs: &[(Key, Bytes)], id: impl Fn(&[u8]) -> K) -> Found<Vec<(K, V)>> {
    pairs.iter().map(|(key, value)| Ok((id(key), V::decode(value)?))).collect()
}

impl Transaction<'_> {
    /// An inode that must be a directory.
    pub fn directory(&self, ino: Ino) -> Found<Inode> {
        let inode = self.inode(ino)?;
        match inode.kind {
            Kind::Directory => Ok(inode),
            _ => refuse(Code::NotDirectory, format!("inode {ino} is not a directory")),
        }
    }

    pub fn dentry(&self, parent: Ino, name: &Name) -> Found<Option<Dentry>> {
        self.value(&keys::dentry(parent, &name.0))
    }

    /// With the members' addresses as they last announced them.
    pub fn layout_of(&self, id: ChunkId) -> Found<Layout> {
        let Some(chunk) = self.value::<Chunk>(&keys::chunk(id))? else {
            return refuse(Code::NoChunk, format!("chunk {id} does not exist (any longer)"));
        };
        let mut members = chunk.members.clone();
        for member in &mut members {
            if let Some(node) = self.value::<Node>(&keys::node(member.node))? {
                member.address = node.address;
            }
        }
        Ok(Layout {
            index: chunk.index,
            chunk: chunk.reference(id),
            epoch: chunk.epoch,
            members,
            held: chunk.held,
            stable: chunk.stable,
        })
    }
}
