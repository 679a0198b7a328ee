//! What the driver asks of the file system above it.

use godrive_proto::lease::{RecallRequest, Release, RenewRequest};
use godrive_proto::locks::{LockOwner, OwnerLocks};
use godrive_proto::meta::Attr;
use godrive_proto::time::Timestamp;
use godrive_proto::{Ino, LeaseId, LogIndex};
use std::pin::Pin;
use std::sync::Arc;

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a mount holds, to be said to a master that has restarted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    pub exclusive: Vec<(Ino, LeaseId)>,
    /// Inodes with open handles.
    pub open: Vec<Ino>,
    pub locks: Vec<OwnerLocks>,
}

/// Implemented by the file system.
///
/// While `resume` and `session_lost` run, every request to the master waits for them to end: they must not wait
/// for the master, nor for an operation that does.
pub trait Upcalls: Send + Sync + 'static {
    /// Flush, commit, invalidate the kernel's caches, give back. Must end within the lease time.
    /// The same recall may come again after a reconnect.
    fn recall(self: Arc<Self>, recall: RecallRequest) -> BoxFuture<'static, Release>;

    /// The attributes of a file as they are now, if this mount owns it.
    fn attributes(&self, ino: Ino) -> Option<Attr>;

    /// The master restarted, and what it had answered behind this record of its log is lost, if there was any. Comes before
    /// `resume` or `session_lost`.
    fn log_ended(self: Arc<Self>, last: LogIndex) -> BoxFuture<'static, ()>;

    /// The master restarted: drop shared leases and what was cached under them (the kernel's caches too), then
    /// say what is held exclusively and what is open.
    fn resume(self: Arc<Self>) -> BoxFuture<'static, Declared>;

    /// The exclusive leases that a resume could not take up again.
    fn lost_leases(self: Arc<Self>, inodes: Vec<Ino>) -> BoxFuture<'static, ()>;

    /// The owners whose locks could not be taken up again.
    fn lost_locks(self: Arc<Self>, owners: Vec<(Ino, LockOwner)>) -> BoxFuture<'static, ()>;

    /// The session is gone and a new one was opened: drop all caches, poison dirty handles.
    fn session_lost(self: Arc<Self>) -> BoxFuture<'static, ()>;

    /// What was read since this was asked last, to be told to the master.
    fn accesses(&self) -> Vec<(Ino, Timestamp)>;

    /// They are to be told another time.
    fn accesses_not_told(&self, times: Vec<(Ino, Timestamp)>);

    /// What the next renewal reports.
    fn renewal(&self) -> RenewRequest;
}
