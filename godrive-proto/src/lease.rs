//! Leases: what makes caches coherent and deltas safe. Sessions hold them; the master recalls them.

use crate::meta::InodeView;
use crate::operation::operations;
use crate::time::Timestamp;
use crate::{ChunkId, Ino, LeaseId, LogIndex, NodeId, SessionId, Term};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// What a lease allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// Cache attributes, names (of a directory), xattrs and pages.
    Shared,
    /// Of a file: also buffer writes and own size, times, mode and owners. Of a directory and of what it contains: also
    /// remove names, and tell the master afterwards ([`crate::meta::Batch`]).
    Exclusive,
}

/// One lease. It is valid while the session's lease time runs and it was not recalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub ino: Ino,
    pub id: LeaseId,
    pub mode: Mode,
    /// Room for byte-range leases; always the whole file for now.
    pub range: ByteRange,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByteRange {
    pub start: u64,
    /// Exclusive.
    pub end: u64,
}

impl ByteRange {
    pub const WHOLE: Self = Self { start: 0, end: u64::MAX };
}

/// The session's lease times, all counted on CLOCK_BOOTTIME. The holder stops strictly before the master revokes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseTiming {
    /// The holder renews this often.
    pub renew_every_ms: u32,
    /// The holder stops using its leases this long after *sending* the last renewal that was answered.
    pub holder_stops_after_ms: u32,
    /// The master may revoke this long after *receiving* the last renewal.
    pub revoked_after_ms: u32,
}

impl Default for LeaseTiming {
    fn default() -> Self {
        Self { renew_every_ms: 2_000, holder_stops_after_ms: 6_000, revoked_after_ms: 8_000 }
    }
}

/// What every client must know of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterParameters {
    /// Chunk size of new files, bytes; a power of two.
    pub chunk_bytes: u32,
    pub replicas: u8,
    pub min_replicas: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenSessionRequest {
    /// For people: host and mountpoint, at most 255 bytes.
    pub label: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenedSession {
    pub session: SessionId,
    pub timing: LeaseTiming,
    pub parameters: ClusterParameters,
    /// The master's wall clock, from which the client keeps its offset.
    pub now: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    pub now: Timestamp,
    /// The master restarted (its term rose): drop every shared lease and send [`Resume`] before anything else.
    pub must_resume: bool,
    /// Errors that no call could report yet (for `godrive status`), as the master counted them.
    pub errors_pending: u32,
}

/// The renewal's own report of the client: what it could not flush and could tell nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewRequest {
    /// Errors after `close` that no later call has collected, counted since the mount began.
    pub errors_after_close: u32,
    pub dirty_bytes: u64,
}

/// Sent by the daemon that goes on with a session after its predecessor was killed, before anything else. What the
/// predecessor had under way is dropped: its waiting requests, and its mutations that have not arrived yet. What it had
/// opened for writing goes through an epoch change, and its exclusive leases become shared ones, so that what the kernel
/// has cached stays covered by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeOverRequest {
    /// Mutations of the predecessor have lower sequences, and so has everything that it said to be answered.
    pub from: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenOver {
    pub timing: LeaseTiming,
    pub parameters: ClusterParameters,
    pub now: Timestamp,
    /// Unlinked inodes that are kept for this session, at most [`crate::limits::MAX_ORPHANS_TOLD`]: those that are not
    /// open any longer are to be reported closed.
    pub orphans: Vec<Ino>,
}

/// Sent once after the master restarted; conflicting grants wait for it (or for the lease time).
/// The client has dropped its shared leases before it sends this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeRequest {
    /// Exclusive leases it still holds.
    pub exclusive: Vec<(Ino, LeaseId)>,
    /// Inodes with open handles; the master keeps them as orphans if they were unlinked.
    pub open: Vec<Ino>,
    /// False if more pages of the lists follow; the session resumes with the last.
    pub last: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// Exclusive leases that could not be taken up again; the client poisons their handles if they were dirty.
    pub lost: Vec<Ino>,
}

/// Asks for leases on several inodes, all or none. Waits while conflicting leases are recalled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcquireRequest {
    pub inodes: Vec<Ino>,
    pub mode: Mode,
    /// Also return the layout of the first inode for this range of chunk indexes.
    pub layout: Option<LayoutRange>,
}

/// Asks for what is needed to remove names of a directory under leases: the exclusive lease of the directory, for which
/// it waits as [`Acquire`] does, and those of some of what it contains, as far as they can be had at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnRequest {
    pub directory: Ino,
    /// At most 1024.
    pub also: Vec<Ino>,
}

/// The directory, and each of the others that exists; those without a lease were not to be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned {
    pub directory: InodeView,
    pub also: Vec<InodeView>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutRange {
    pub first: u32,
    /// At most 1024.
    pub count: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acquired {
    pub views: Vec<InodeView>,
    pub layout: Vec<crate::data::Layout>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutRequest {
    pub ino: Ino,
    pub range: LayoutRange,
}

/// The layouts of many files at once, before they are read one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutsRequest {
    /// 1 to 1024.
    pub inodes: Vec<Ino>,
    pub range: LayoutRange,
}

/// Opens chunks for writing, placing those that do not exist yet. Needs the exclusive lease.
/// Logs that this session has them open, so that its death leads to an epoch change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenChunksRequest {
    pub ino: Ino,
    pub indexes: Vec<u32>,
}

/// Gives leases up without being asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseRequest {
    pub leases: Vec<Release>,
    /// Unlinked inodes of which this client has closed its last handle.
    pub closed_orphans: Vec<Ino>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub ino: Ino,
    pub id: LeaseId,
    /// What the holder keeps: None, or Shared after Exclusive.
    pub keeps: Option<Mode>,
    /// The holder has open handles: the inode must outlive its last name.
    pub open: bool,
}

/// The master asks for a lease back. The reply is the release, after everything dirty was flushed and committed
/// and the kernel's caches were invalidated. Leases of the inode with a lower or equal id are meant, also such
/// whose grant has not arrived yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecallRequest {
    pub ino: Ino,
    pub id: LeaseId,
    /// The most the holder may keep: None, or Shared if the waiter wants only that.
    pub may_keep: Option<Mode>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportRequest {
    pub chunk: ChunkId,
    pub epoch: crate::Epoch,
    pub problem: Problem,
    /// For the master's log.
    pub detail: String,
}

/// What a client or slave met at a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Problem {
    /// No answer from this member, or its disk failed: run an epoch change without it if it is really gone.
    Failed(NodeId),
    /// This member's bytes do not verify against the digest: exclude, quarantine, repair.
    Corrupt(NodeId),
    /// Members answered different digests or versions: seal and elect.
    Diverged,
    /// A member refused the epoch: the reporter only wants the current layout.
    StaleLayout,
}

/// A slave, and where it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slave {
    pub node: NodeId,
    pub address: SocketAddr,
}

operations! {
    0x0100 OpenSession(OpenSessionRequest) -> OpenedSession [Client];
    0x0101 Renew(RenewRequest) -> Renewed [Client];
    0x0102 Resume(ResumeRequest) -> Resumed [Client];
    /// A clean unmount: releases everything.
    0x0103 CloseSession(()) -> () [Client];
    /// After the master's restart: how far the log of the term that ended reaches in the new one. What was answered of it
    /// behind that is lost. None: not known, because other terms lie between.
    0x0104 Ended(Term) -> Option<LogIndex> [Client];
    /// Slaves that are alive, at most [`crate::limits::MAX_SLAVES_TOLD`]: for a mount to connect to before it needs them.
    0x0105 Slaves(()) -> Vec<Slave> [Client];
    0x0106 TakeOver(TakeOverRequest) -> TakenOver [Client];
    0x0110 Acquire(AcquireRequest) -> Acquired [Client];
    /// The layout of a file that the session holds a lease on. Indexes without an entry are holes.
    0x0111 GetLayout(LayoutRequest) -> Vec<crate::data::Layout> [Client];
    0x0112 OpenChunks(OpenChunksRequest) -> Vec<crate::data::Layout> [Client];
    0x0113 Releases(ReleaseRequest) -> () [Client];
    /// Answered when the chunk is usable again (a new epoch where needed), with its layout.
    0x0114 Report(ReportRequest) -> crate::data::Layout [Client, Slave];
    /// As GetLayout for each of the files on which the session holds a lease; the others are left out, and so are the
    /// last ones where there are more than 1024 layouts in all.
    0x0115 GetLayouts(LayoutsRequest) -> Vec<(Ino, Vec<crate::data::Layout>)> [Client];
    0x0116 Own(OwnRequest) -> Owned [Client];
    /// Writes of this file were given up: what of them is held, or may still arrive, no commit will name. Its chunks that
    /// the session has open are closed as a dead writer's are, and the lease, which is answered, is shared from now on. Said before the
    /// lease goes back or is asked for again.
    0x0117 GiveUp(Ino) -> Option<Lease> [Client];
    /// From the master to a client, on the client's own connection.
    0x0180 Recall(RecallRequest) -> Release [Master];
    /// From the master to the owner of a file: its attributes as they are now, or None if it does not own it (any longer).
    0x0181 Ask(Ino) -> Option<crate::meta::Attr> [Master];
}
