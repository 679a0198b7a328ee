//! The values of the state, as they lie in the store: one version byte, then postcard.
//!
//! A type that changes shape gets a new version and learns to read its predecessor; see docs/MASTER-STORE.md.

use crate::core::kv::StoreError;
use crate::core::record::Purpose;
use bytes::Bytes;
use godrive_proto::data::{ChunkRef, Contents, LayoutTag, Member};
use godrive_proto::lease::ClusterParameters;
use godrive_proto::meta::{Attr, InodeView, Kind, Name};
use godrive_proto::time::Timestamp;
use godrive_proto::{
    BootId, ChunkId, ClusterId, DiskId, Epoch, Ino, LogIndex, NodeId, Role, SessionId, Term,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::net::SocketAddr;

/// A type with a place in the store.
pub trait Value: Serialize + DeserializeOwned {
    const NAME: &'static str;
    const VERSION: u8 = 1;

    fn encode(&self) -> Result<Bytes, StoreError> {
        postcard::to_extend(self, vec![Self::VERSION])
            .map(Bytes::from)
            .map_err(|error| StoreError::Damaged(format!("{} does not encode: {error}", Self::NAME)))
    }

    fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let damaged = |what: String| StoreError::Damaged(format!("{}: {what}", Self::NAME));
        let (version, rest) = bytes.split_first().ok_or_else(|| damaged("empty".to_owned()))?;
        if *version != Self::VERSION {
            return Err(damaged(format!("version {version}, this master knows {}", Self::VERSION)));
        }
        match postcard::take_from_bytes(rest) {
            Ok((value, [])) => Ok(value),
            Ok((_, rest)) => Err(damaged(format!("{} bytes follow", rest.len()))),
            Err(error) => Err(damaged(error.to_string())),
        }
    }
}

macro_rules! values {
    ($($name:ident)+) => { $(impl Value for $name { const NAME: &'static str = stringify!($name); })+ };
}
values! { Meta Inode Dentry Entry Trash Trashed Slot Chunk Deleted Session Node Token Intent }

impl Value for crate::core::record::Answer {
    const NAME: &'static str = "Answer";
}

/// The state's counters and facts of which there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The last record that was applied.
    pub applied: LogIndex,
    /// The time of that record; no later one has a lower.
    pub time: Timestamp,
    pub term: Term,
    /// None until the bootstrap record.
    pub cluster: Option<Cluster>,
    /// The highest ids given out.
    pub last_ino: Ino,
    pub last_chunk: ChunkId,
    pub last_session: SessionId,
    pub last_token: u64,
    pub counts: Counts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    pub id: ClusterId,
    pub parameters: ClusterParameters,
    pub feature_level: u16,
}

/// Kept with every record, so that statfs and status need no scan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub inodes: u64,
    /// Inodes without a name that some session still has open, those in the trash among them.
    pub orphans: u64,
    pub chunks: u64,
    pub quarantined: u64,
    /// Deleted chunks whose replicas are not confirmed as gone.
    pub deleted: u64,
    pub sessions: u64,
    /// Bytes of all chunks that are not holes, counted once however many replicas there are.
    pub used_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    pub kind: Kind,
    pub mode: u16,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    /// As in [`Attr::size`].
    pub size: u64,
    pub used_bytes: u64,
    pub chunk_bytes: u32,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub btime: Timestamp,
    /// The log index of the last change, and of its making.
    pub change: u64,
    pub birth: u64,
    /// Of a directory, its parent; of others, where they were last given a name.
    pub parent: Ino,
    /// Room for quotas and authorization by subtree; 0 so far.
    pub subtree: u64,
    /// Of a directory, the position of the next new entry.
    pub next_position: u64,
    pub xattrs: u32,
    /// Names and values together.
    pub xattr_bytes: u32,
    /// Names with their terminating NULs, as listxattr returns them.
    pub xattr_list_bytes: u32,
    pub trim_pending: bool,
}

impl Inode {
    pub fn attr(&self, ino: Ino) -> Attr {
        Attr {
            ino,
            kind: self.kind,
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: self.rdev,
            size: self.size,
            blocks: self.used_bytes.div_ceil(512),
            chunk_bytes: self.chunk_bytes,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            btime: self.btime,
            change: self.change,
            xattrs: self.xattrs > 0,
            trim_pending: self.trim_pending,
        }
    }

    /// Without a lease: that is not part of the state.
    pub fn view(&self, ino: Ino) -> InodeView {
        InodeView { attr: self.attr(ino), lease: None }
    }
}

/// What a name in a directory leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dentry {
    pub ino: Ino,
    pub kind: Kind,
    pub position: u64,
}

/// The same by position, for reading directories.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub name: Name,
    pub ino: Ino,
    pub kind: Kind,
}

/// What is kept of what was removed, and how much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trash {
    /// How long; 0: nothing is kept.
    pub keep_s: u64,
    /// What lived for less than this when it was removed is not kept.
    pub min_age_s: u32,
    pub entries: u64,
    /// The sum of [`Trashed::bytes`].
    pub bytes: u64,
}

/// An inode without a name that can get one again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trashed {
    pub removed: Timestamp,
    /// The last name, and the directory that it was in.
    pub parent: Ino,
    pub name: Name,
    /// [`Inode::used_bytes`] when it was removed or closed last.
    pub bytes: u64,
}

/// One index of a file's layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    pub chunk: ChunkRef,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// The file that the chunk was made for and where in it.
    pub ino: Ino,
    pub index: u32,
    pub references: u32,
    pub chunk_bytes: u32,
    pub layout: LayoutTag,
    pub birth: u64,
    pub epoch: Epoch,
    /// An epoch change to this epoch has begun.
    pub pending: Option<Epoch>,
    pub members: Vec<Member>,
    pub held: Contents,
    /// The record that last changed `held`: members that booted after it may have lost what was not stable.
    pub held_at: LogIndex,
    pub stable: Contents,
    pub open_by: Option<SessionId>,
    /// Its writer was revoked: it needs an epoch change before anybody else may have the inode.
    pub unsettled: bool,
    pub used_bytes: u32,
    pub quarantined: bool,
}

impl Chunk {
    pub fn reference(&self, id: ChunkId) -> ChunkRef {
        ChunkRef { id, layout: self.layout, chunk_bytes: self.chunk_bytes, birth: self.birth }
    }
}

/// A chunk that no file refers to any longer; its members have to delete their replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// Replicas up to this epoch are to go.
    pub epoch: Epoch,
    pub members: Vec<Member>,
    pub time: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub client: NodeId,
    pub label: String,
    pub opened: Timestamp,
    /// The results of sequences below are no longer kept.
    pub kept_from: u64,
    /// The highest sequence with a kept result.
    pub highest: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub address: SocketAddr,
    pub domain: String,
    pub disks: Vec<DiskId>,
    pub boot: BootId,
    /// The record in which this boot was announced first.
    pub booted_at: LogIndex,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub role: Role,
    /// SHA-256.
    pub secret_hash: [u8; 32],
    pub expires: Timestamp,
    pub uses_left: u32,
}

/// What people want of a slave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    pub purpose: Purpose,
    /// Disks that are drained by themselves; once it is retired, all that it had.
    pub disks: Vec<DiskId>,
}
