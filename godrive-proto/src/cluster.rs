//! Between the master and its slaves. Slaves open the connection; commands travel on it in the other direction.
//! A command carries the master's term in the frame; a slave refuses a lower term than it has seen.

use crate::data::{Contents, Member};
use crate::operation::operations;
use crate::{BootId, ChunkId, ClusterId, DiskId, Epoch, NodeId, OpId};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// A disk as its slave sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskState {
    pub disk: DiskId,
    pub total_bytes: u64,
    pub free_bytes: u64,
    pub chunks: u64,
    pub health: DiskHealth,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskHealth {
    Healthy,
    /// Reads and deletes go on, nothing new fits.
    Full,
    /// Taken out of service after an error.
    Failed,
    /// In service, and far slower than the others: nothing new goes there. The master finds it, and shows it in its status.
    Slow,
}

/// A slave announces itself, after each connect. One disk id has one session: a second bearer is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterRequest {
    pub cluster: ClusterId,
    pub boot: BootId,
    /// Where clients and other slaves reach it.
    pub address: SocketAddr,
    /// Failure domain, for example `rack1/host7`; empty if none was configured.
    pub domain: String,
    pub disks: Vec<DiskState>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    pub heartbeat_every_ms: u32,
}

/// One replica in an inventory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaState {
    pub chunk: ChunkId,
    pub disk: DiskId,
    pub epoch: Epoch,
    /// The epoch it is sealed for, if that is above `epoch`.
    pub sealed: Epoch,
    pub contents: Contents,
    /// `contents` are on stable storage.
    pub stable: bool,
    pub boot: BootId,
    pub last_op: OpId,
    pub used_bytes: u32,
}

/// After registering, a slave reports all replicas in pages, ascending by chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InventoryPage {
    pub replicas: Vec<ReplicaState>,
    pub last: bool,
}

/// The pulse.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatRequest {
    pub disks: Vec<DiskState>,
    /// Blocks verified by the scrub, and those found bad, since the slave started.
    pub scrubbed_leaves: u64,
    pub bad_leaves: u64,
    pub errors: u64,
    /// Chunks that became stable since the last heartbeat, as (chunk, contents). At most 4096.
    pub stable: Vec<(ChunkId, Epoch, Contents)>,
    /// How far the scrub is on each disk that it reads.
    pub scrub: Vec<ScrubState>,
    /// How long the slowest sync of each disk took since the last heartbeat, in milliseconds, rounded up; 0: there was none.
    pub slowest_sync_ms: Vec<(DiskId, u32)>,
}

/// The scrub of one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubState {
    pub disk: DiskId,
    /// The pass that is under way, from 1, since the slave started.
    pub pass: u64,
    /// How much of it is done.
    pub percent: u8,
    /// Blocks found bad since the slave started, by reads too.
    pub bad_leaves: u64,
}

/// The master asks all members to stop working for the old epoch and to say what they have.
/// Persisted before it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealRequest {
    pub chunk: ChunkId,
    pub epoch: Epoch,
}

/// Makes a replica a member of a new epoch with exactly these contents; refused if it has others.
/// With version 0 and the empty digest it creates the replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstallRequest {
    pub chunk: ChunkId,
    pub chunk_bytes: u32,
    pub disk: DiskId,
    pub epoch: Epoch,
    pub contents: Contents,
}

/// The receiver makes its replica equal to another's: fetches the leaves that differ and verifies the digest.
/// Its own diverging contents are kept aside first if `keep_aside`. Stable when answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRequest {
    pub chunk: ChunkId,
    pub chunk_bytes: u32,
    pub disk: DiskId,
    pub source: Member,
    /// The contents it must end with; None while writes still go on (a copy ahead of the seal).
    pub expect: Option<Contents>,
    /// The epoch for which the copy is made; a replica sealed for a later one refuses.
    pub epoch: Epoch,
    pub keep_aside: bool,
    /// It may take the room that a disk keeps in reserve: without it too few members would have what was acknowledged.
    pub into_reserve: bool,
}

/// Removes replicas that the master positively knows as deleted or superseded: each only if the replica's
/// epoch is below or equal to the one given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteRequest {
    pub chunks: Vec<(ChunkId, Epoch)>,
}

/// Replicas that the master does not know: kept for a week, not served, then removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineRequest {
    pub chunks: Vec<ChunkId>,
}

operations! {
    0x0400 Register(RegisterRequest) -> Registered [Slave];
    0x0401 Inventory(InventoryPage) -> () [Slave];
    0x0402 Heartbeat(HeartbeatRequest) -> () [Slave];
    0x0480 Seal(SealRequest) -> ReplicaState [Master];
    0x0481 Install(InstallRequest) -> () [Master];
    0x0482 Copy(CopyRequest) -> Contents [Master];
    0x0483 Delete(DeleteRequest) -> () [Master];
    0x0484 Quarantine(QuarantineRequest) -> () [Master];
}

/// A node as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub node: NodeId,
    pub address: SocketAddr,
    pub domain: String,
    /// `alive`, `awaited` (since the master started, or stood still), `suspect` or `dead`.
    pub state: String,
    pub last_heard_ms: u64,
    pub disks: Vec<DiskState>,
    pub replicas: u64,
    pub errors: u64,
    pub bad_leaves: u64,
    pub scrubbed_leaves: u64,
    /// What people want of it: nothing special (empty), `draining` or `decommissioning`.
    pub intent: String,
    /// Replicas that still have to leave it, and of each disk what it has and whether it is drained.
    pub to_move: u64,
    pub places: Vec<DiskPlaces>,
    pub scrub: Vec<ScrubState>,
}

/// The replicas on one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskPlaces {
    pub disk: DiskId,
    pub replicas: u64,
    pub draining: bool,
}
