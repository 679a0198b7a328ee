//! The data path: clients to slaves, and slaves among themselves along a chunk's chain.

use crate::operation::operations;
use crate::time::Timestamp;
use crate::{ChunkId, Digest, DiskId, Epoch, NodeId, OpId, Version};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// How a chunk is laid out over its members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LayoutTag {
    /// Every member holds the whole chunk.
    Replicated,
}

/// A file's reference to a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRef {
    pub id: ChunkId,
    pub layout: LayoutTag,
    pub chunk_bytes: u32,
    /// The log index at which the reference was made (room for snapshots).
    pub birth: u64,
}

/// One member of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Member {
    pub node: NodeId,
    pub disk: DiskId,
    pub address: SocketAddr,
}

/// A version of a chunk's contents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Contents {
    pub version: Version,
    pub digest: Digest,
}

/// Where one chunk of a file lives, as a lease carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Position in the file: the chunk covers bytes `index * chunk_bytes ..`.
    pub index: u32,
    pub chunk: ChunkRef,
    pub epoch: Epoch,
    /// In chain order, fewest first hops first. The first receives writes.
    pub members: Vec<Member>,
    /// What every member has applied, as far as the master knows.
    pub held: Contents,
    /// What every member has on stable storage, as far as the master knows.
    pub stable: Contents,
}

/// What a commit reports of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkState {
    pub index: u32,
    pub chunk: ChunkId,
    pub epoch: Epoch,
    pub held: Contents,
    /// Every member had synced `held` when this was sent.
    pub stable: bool,
    /// Bytes that are not holes, for `blocks` and quotas.
    pub used_bytes: u32,
}

/// A change of one byte range within a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Within the chunk, bytes.
    pub offset: u32,
    pub len: u32,
    pub fill: Fill,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fill {
    /// The next `len` bytes of the payload.
    Bytes,
    /// Zeros; whole leaves become holes. Nothing of the payload.
    Hole,
}

/// A delta update: applied atomically by every member, or by none of those that answer.
/// Extents are ascending and do not overlap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaRequest {
    pub chunk: ChunkId,
    pub chunk_bytes: u32,
    /// The receiver's disk (as its [`Member`] names it): where base version 0 creates the replica.
    pub disk: DiskId,
    pub epoch: Epoch,
    /// The version this applies to; the result is `base + 1`.
    pub base: Version,
    /// A replica whose last applied operation this is answers as if it had just applied it.
    pub op: OpId,
    pub extents: Vec<Extent>,
    /// [`crate::sums::piece`] of every leaf piece of every `Bytes` extent, in order.
    pub sums: Vec<u64>,
    /// The members after the receiver, in chain order.
    pub chain: Vec<Member>,
    /// Every member syncs before it answers.
    pub sync: bool,
    pub mtime: Timestamp,
}

/// Bytes of a chunk, as the asker's lease has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub chunk: ChunkId,
    pub chunk_bytes: u32,
    pub epoch: Epoch,
    pub contents: Contents,
    pub members: Vec<Member>,
    /// Within the chunk, bytes.
    pub offset: u32,
}

/// A delta without a payload: its receiver, the first of the chain, takes the bytes from another place, and makes it one that
/// has them. What is a hole there becomes one here, as far as leaves lie alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRangeRequest {
    /// One `Bytes` extent of at most `MAX_DELTA_BYTES`, and no sums.
    pub delta: DeltaRequest,
    pub source: Source,
}

/// Every member from the receiver down the chain has applied the delta and has these contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    pub contents: Contents,
    /// All of them have `contents` on stable storage.
    pub stable: bool,
    pub used_bytes: u32,
}

/// Makes a chunk's current contents stable along the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncRequest {
    pub chunk: ChunkId,
    pub epoch: Epoch,
    pub version: Version,
    pub chain: Vec<Member>,
}

/// Reads whole leaves. Refused unless epoch and version match and the replica is not sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadRequest {
    pub chunk: ChunkId,
    pub epoch: Epoch,
    pub version: Version,
    pub first_leaf: u32,
    /// At most `MAX_READ_BYTES / LEAF_BYTES`.
    pub leaves: u32,
}

/// The proof of the leaves in the payload. The payload holds the leaves whose sum is not 0, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// All group sums of the chunk; their digest must be the expected one.
    pub groups: Vec<u64>,
    /// The leaf sums of every group that the range touches, whole groups, ascending.
    pub leaves: Vec<u64>,
}

/// Between slaves, for repair: the state of a replica at whatever epoch, sealed or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SumsRequest {
    pub chunk: ChunkId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    pub chunk_bytes: u32,
    pub epoch: Epoch,
    pub contents: Contents,
    pub leaves: Vec<u64>,
}

/// Between slaves, for repair: leaves of exactly this version, whatever the epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchRequest {
    pub chunk: ChunkId,
    pub version: Version,
    /// Ascending; at most `MAX_READ_BYTES / LEAF_BYTES`. Holes have no bytes in the payload.
    pub leaves: Vec<u32>,
}

operations! {
    0x0300 Delta(DeltaRequest) -> Applied [Client, Slave];
    0x0301 Sync(SyncRequest) -> Applied [Client, Slave];
    0x0302 Read(ReadRequest) -> Proof [Client, Slave];
    /// `NoSource`: the bytes cannot be had there; nothing was applied.
    0x0303 CopyRange(CopyRangeRequest) -> Applied [Client];
    0x0310 GetSums(SumsRequest) -> Sums [Slave];
    0x0311 Fetch(FetchRequest) -> Vec<u64> [Slave];
}
