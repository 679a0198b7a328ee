//! Joining a cluster and looking at it.

use crate::cluster::NodeStatus;
use crate::meta::{Kind, Name};
use crate::operation::{Role, operations};
use crate::time::Timestamp;
use crate::{ChunkId, ClusterId, DiskId, Ino, LogIndex, NodeId, SessionId, Term};
use serde::{Deserialize, Serialize};

/// Sent by a [`Role::Joiner`] after it has verified the CA's hash from its token.
#[derive(Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    pub token_id: u64,
    #[serde(with = "serde_bytes")]
    pub secret: Vec<u8>,
    pub role: Role,
    /// PKCS#10, DER. The subject is ignored: the master writes the identity.
    #[serde(with = "serde_bytes")]
    pub certificate_request: Vec<u8>,
}

/// The secret never reaches a log.
impl std::fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinRequest")
            .field("token_id", &self.token_id)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    pub cluster: ClusterId,
    pub node: crate::NodeId,
    #[serde(with = "serde_bytes")]
    pub certificate: Vec<u8>,
    #[serde(with = "serde_bytes")]
    pub ca: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MakeTokenRequest {
    pub role: Role,
    pub valid_for_s: u32,
    pub uses: u32,
}

/// How many chunks are in which health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkHealth {
    pub total: u64,
    /// As many members as `replicas` asks for, all on living nodes.
    pub healthy: u64,
    pub under_replicated: u64,
    /// Fewer than `min_replicas` living members.
    pub unavailable: u64,
    pub quarantined: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    pub session: SessionId,
    pub label: String,
    pub last_renewed_ms: u64,
    pub shared_leases: u64,
    pub exclusive_leases: u64,
    pub dirty_bytes: u64,
    pub errors_after_close: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub cluster: ClusterId,
    pub term: Term,
    pub index: LogIndex,
    pub parameters: crate::lease::ClusterParameters,
    pub nodes: Vec<NodeStatus>,
    pub sessions: Vec<SessionStatus>,
    pub chunks: ChunkHealth,
    pub inodes: u64,
    pub orphans: u64,
    /// Chunks waiting for repair, being repaired now, and repaired since the master started.
    pub repair_queued: u64,
    pub repair_active: u64,
    pub repaired: u64,
    /// Deleted chunks whose replicas are not reclaimed yet.
    pub reclaim_queued: u64,
    /// What people should know, each a sentence.
    pub warnings: Vec<String>,
    pub trash: TrashStatus,
    /// Copies since the master started: of chunks with too few replicas, away from what is drained, and from full
    /// disks to empty ones.
    pub repair: Movement,
    pub drain: Movement,
    pub rebalance: Movement,
    /// Slaves that were decommissioned and are gone.
    pub retired: Vec<NodeId>,
}

/// What lies in the trash, for `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashStatus {
    /// How long what is removed is kept; 0: the trash is off.
    pub keep_s: u64,
    pub entries: u64,
    /// Without holes, counted once however many replicas there are.
    pub bytes: u64,
    /// When the oldest entry was removed.
    pub oldest: Option<Timestamp>,
}

/// Something that was removed and can be given a name again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashEntry {
    pub ino: Ino,
    pub kind: Kind,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub removed: Timestamp,
    /// The directory that it was in. It may be in the trash itself, or gone.
    pub parent: Ino,
    pub name: Name,
    /// Where it was, from the root and without the `/` in front; None if a directory above it is gone for good.
    #[serde(with = "serde_bytes")]
    pub path: Option<Vec<u8>>,
}

/// The next page of the trash, the oldest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListTrashRequest {
    /// The last entry of the page before.
    pub after: Option<(Timestamp, Ino)>,
    /// 1 to [`crate::limits::MAX_TRASH_PAGE`].
    pub limit: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrashPage {
    pub entries: Vec<TrashEntry>,
    pub end: bool,
}

/// What is the matter with a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Damage {
    /// No replica is known to be what was acknowledged: nothing is read until a sound one comes back.
    Quarantined,
    /// Every replica that is left was reported as damaged: what does not verify in any of them cannot be read.
    Rotten,
    /// No slave that has a replica is there: nothing that was written is read until one is.
    Unreachable,
    /// Fewer than `min_replicas` are there: it is read, and not written.
    ReadOnly,
}

/// A chunk that cannot be read or written as it should.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedChunk {
    pub chunk: ChunkId,
    pub damage: Damage,
    pub ino: Ino,
    /// The bytes of the file that it is for: from `index` times `chunk_bytes`, so many.
    pub index: u32,
    pub chunk_bytes: u32,
    pub members: Vec<NodeId>,
    /// The file has no name any more and is in the trash.
    pub trashed: bool,
    /// Where the file is, or was before it went to the trash, from the root and without the `/` in front. One of its names; None if none
    /// can be found with reasonable effort.
    #[serde(with = "serde_bytes")]
    pub path: Option<Vec<u8>>,
}

/// The next page, by chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListDamagedRequest {
    /// [`DamagedPage::next`] of the page before; 0 for the first.
    pub after: ChunkId,
    /// 1 to [`crate::limits::MAX_DAMAGED_PAGE`].
    pub limit: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedPage {
    pub chunks: Vec<DamagedChunk>,
    /// None: that was all.
    pub next: Option<ChunkId>,
}

/// Copies for one purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Movement {
    /// Chunks that wait, and those that are copied now.
    pub queued: u64,
    pub active: u64,
    /// Since the master started.
    pub done: u64,
    pub bytes: u64,
    /// Over the last ten seconds.
    pub bytes_per_s: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Intention {
    /// Nothing new goes there, and what is there moves elsewhere.
    Drain,
    Undrain,
    /// Drain, and when nothing is left the slave is forgotten and its ids are refused.
    Decommission,
    /// Ends that, also afterwards.
    Recommission,
}

/// What people want of a slave, or of one of its disks (to drain it, or not).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IntendRequest {
    pub node: NodeId,
    pub disk: Option<DiskId>,
    pub intention: Intention,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intended {
    /// What people should know before they wait for it, each a sentence.
    pub notes: Vec<String>,
}

operations! {
    0x0500 Join(JoinRequest) -> Joined [Joiner, Client, Slave, Admin];
    /// The token, one line.
    0x0501 MakeToken(MakeTokenRequest) -> String [Admin];
    0x0502 GetStatus(()) -> Status [Admin, Client];
    0x0503 Ping(()) -> () [Master, Slave, Client, Admin];
    0x0504 ListTrash(ListTrashRequest) -> TrashPage [Admin, Client];
    /// Removes these for good, at most [`crate::limits::MAX_TRASH_PAGE`]; those that are not in the trash are left alone. How many there were.
    0x0505 EmptyTrash(Vec<Ino>) -> u32 [Admin];
    0x0506 ListDamaged(ListDamagedRequest) -> DamagedPage [Admin];
    /// Durable when answered; it is followed in the background.
    0x0510 Intend(IntendRequest) -> Intended [Admin];
}
