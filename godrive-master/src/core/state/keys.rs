//! The keys of the state: a table's tag, then its ids in big endian so that they sort as numbers.

use crate::core::kv::Key;
use godrive_proto::time::Timestamp;
use godrive_proto::{ChunkId, Ino, NodeId, SessionId};

const INODE: u8 = 0x10;
const DENTRY: u8 = 0x11;
const ENTRY: u8 = 0x12;
const TARGET: u8 = 0x13;
const XATTR: u8 = 0x14;
const ORPHAN: u8 = 0x15;
const SESSION_ORPHAN: u8 = 0x16;
const TRASHED: u8 = 0x17;
const TRASH_ORDER: u8 = 0x18;
const SLOT: u8 = 0x20;
const CHUNK: u8 = 0x21;
const REPLICA: u8 = 0x22;
const OPEN: u8 = 0x23;
const UNSETTLED: u8 = 0x24;
const DELETED: u8 = 0x25;
const SESSION: u8 = 0x30;
const KEPT: u8 = 0x31;
const NODE: u8 = 0x40;
const TOKEN: u8 = 0x41;
const INTENT: u8 = 0x42;

/// The one key of [`super::values::Meta`].
pub const META: [u8; 1] = [0x01];

/// The one key of [`super::values::Trash`].
pub const TRASH: [u8; 1] = [0x02];

fn key(tag: u8, parts: &[&[u8]]) -> Key {
    let mut key = Vec::with_capacity(1 + parts.iter().map(|part| part.len()).sum::<usize>());
    key.push(tag);
    for part in parts {
        key.extend_from_slice(part);
    }
    key
}

pub fn inode(ino: Ino) -> Key {
    key(INODE, &[&ino.0.to_be_bytes()])
}

pub fn dentry(parent: Ino, name: &[u8]) -> Key {
    key(DENTRY, &[&parent.0.to_be_bytes(), name])
}

pub fn entry(parent: Ino, position: u64) -> Key {
    key(ENTRY, &[&parent.0.to_be_bytes(), &position.to_be_bytes()])
}

pub fn target(ino: Ino) -> Key {
    key(TARGET, &[&ino.0.to_be_bytes()])
}

pub fn xattr(ino: Ino, name: &[u8]) -> Key {
    key(XATTR, &[&ino.0.to_be_bytes(), name])
}

pub fn orphan(ino: Ino, session: SessionId) -> Key {
    key(ORPHAN, &[&ino.0.to_be_bytes(), &session.0.to_be_bytes()])
}

pub fn session_orphan(session: SessionId, ino: Ino) -> Key {
    key(SESSION_ORPHAN, &[&session.0.to_be_bytes(), &ino.0.to_be_bytes()])
}

pub fn trashed(ino: Ino) -> Key {
    key(TRASHED, &[&ino.0.to_be_bytes()])
}

/// Sorts by the time; one before 1970 counts as 0.
pub fn trash_order(removed: Timestamp, ino: Ino) -> Key {
    key(TRASH_ORDER, &[&removed.0.max(0).to_be_bytes(), &ino.0.to_be_bytes()])
}

pub fn slot(ino: Ino, index: u32) -> Key {
    key(SLOT, &[&ino.0.to_be_bytes(), &index.to_be_bytes()])
}

pub fn chunk(id: ChunkId) -> Key {
    key(CHUNK, &[&id.0.to_be_bytes()])
}

pub fn replica(node: NodeId, id: ChunkId) -> Key {
    key(REPLICA, &[&node.0.to_be_bytes(), &id.0.to_be_bytes()])
}

pub fn open(session: SessionId, ino: Ino, id: ChunkId) -> Key {
    key(OPEN, &[&session.0.to_be_bytes(), &ino.0.to_be_bytes(), &id.0.to_be_bytes()])
}

pub fn unsettled(ino: Ino, id: ChunkId) -> Key {
    key(UNSETTLED, &[&ino.0.to_be_bytes(), &id.0.to_be_bytes()])
}

pub fn deleted(id: ChunkId) -> Key {
    key(DELETED, &[&id.0.to_be_bytes()])
}

pub fn session(id: SessionId) -> Key {
    key(SESSION, &[&id.0.to_be_bytes()])
}

pub fn kept(session: SessionId, sequence: u64) -> Key {
    key(KEPT, &[&session.0.to_be_bytes(), &sequence.to_be_bytes()])
}

pub fn node(id: NodeId) -> Key {
    key(NODE, &[&id.0.to_be_bytes()])
}

pub fn token(id: u64) -> Key {
    key(TOKEN, &[&id.to_be_bytes()])
}

pub fn intent(id: NodeId) -> Key {
    key(INTENT, &[&id.0.to_be_bytes()])
}

/// From the first to behind the last key that begins with `prefix`.
pub struct Range {
    pub from: Key,
    pub to: Key,
}

fn prefix(prefix: Key) -> Range {
    let mut to = prefix.clone();
    while let Some(last) = to.pop() {
        if last < u8::MAX {
            to.push(last + 1);
            break;
        }
    }
    Range { from: prefix, to }
}

impl Range {
    /// Only keys behind this one.
    pub fn after(mut self, key: Key) -> Self {
        self.from = key;
        self.from.push(0);
        self
    }
}

pub fn entries_of(parent: Ino) -> Range {
    prefix(key(ENTRY, &[&parent.0.to_be_bytes()]))
}

pub fn xattrs_of(ino: Ino) -> Range {
    prefix(key(XATTR, &[&ino.0.to_be_bytes()]))
}

pub fn holders_of(orphan: Ino) -> Range {
    prefix(key(ORPHAN, &[&orphan.0.to_be_bytes()]))
}

pub fn orphans() -> Range {
    prefix(key(ORPHAN, &[]))
}

pub fn orphans_of(session: SessionId) -> Range {
    prefix(key(SESSION_ORPHAN, &[&session.0.to_be_bytes()]))
}

pub fn whole_trash() -> Range {
    prefix(key(TRASH_ORDER, &[]))
}

pub fn slots_of(ino: Ino) -> Range {
    prefix(key(SLOT, &[&ino.0.to_be_bytes()]))
}

pub fn slots_from(ino: Ino, index: u32) -> Range {
    Range { from: slot(ino, index), to: slots_of(ino).to }
}

pub fn chunks() -> Range {
    prefix(key(CHUNK, &[]))
}

pub fn replicas_of(node: NodeId) -> Range {
    prefix(key(REPLICA, &[&node.0.to_be_bytes()]))
}

pub fn open_by(session: SessionId) -> Range {
    prefix(key(OPEN, &[&session.0.to_be_bytes()]))
}

pub fn open_in(session: SessionId, ino: Ino) -> Range {
    prefix(key(OPEN, &[&session.0.to_be_bytes(), &ino.0.to_be_bytes()]))
}

pub fn unsettled_in(ino: Ino) -> Range {
    prefix(key(UNSETTLED, &[&ino.0.to_be_bytes()]))
}

pub fn all_unsettled() -> Range {
    prefix(key(UNSETTLED, &[]))
}

pub fn all_deleted() -> Range {
    prefix(key(DELETED, &[]))
}

pub fn sessions() -> Range {
    prefix(key(SESSION, &[]))
}

pub fn kept_of(session: SessionId) -> Range {
    prefix(key(KEPT, &[&session.0.to_be_bytes()]))
}

pub fn nodes() -> Range {
    prefix(key(NODE, &[]))
}

pub fn intents() -> Range {
    prefix(key(INTENT, &[]))
}

/// The number in the last eight bytes of a key.
pub fn last_number(key: &[u8]) -> u64 {
    number_before(key, 0)
}

/// The number in the eight bytes before the last `skip`.
pub fn number_before(key: &[u8], skip: usize) -> u64 {
    let end = key.len().saturating_sub(skip);
    key.get(end.saturating_sub(8)..end).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// The id in a node's key.
pub fn node_number(key: &[u8]) -> NodeId {
    let bytes = key.get(1..17).and_then(|bytes| bytes.try_into().ok());
    NodeId(bytes.map_or(0, u128::from_be_bytes))
}
