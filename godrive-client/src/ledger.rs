//! What a mount notes outside of its own process, so that another one can go on where it was killed.
//!
//! The kernel's mount, its open files and the master's session outlive a daemon. The next daemon learns from the
//! [`Ledger`] which session it is, which sequences were used, what is open, and of which inodes something was known to the
//! dead one alone: that is lost, and whoever has them open is told. Everything else it asks the master again.

use godrive_proto::{Ino, SessionId};
use std::collections::BTreeSet;

/// Where notes go. Called under locks, so it must not wait; what it was told must be readable by another process once the
/// call has returned, however this one ends.
pub trait Ledger: Send + Sync + 'static {
    /// The session, from now on. Nothing of the last one is used in it but what is open.
    fn session(&self, session: SessionId);
    /// Mutations of this session have sequences below this.
    fn sequences(&self, below: u64);
    /// What is to be known of the inode; the default: nothing.
    fn note(&self, ino: Ino, trace: Trace);
}

/// What is noted of one inode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Open handles, and those of them that may write.
    pub open: u32,
    pub writers: u32,
    /// There are bytes, attributes, removed names or errors that nobody else knows of.
    pub unsent: bool,
    /// The replicas have contents of which the master was not told yet.
    pub uncommitted: bool,
    /// Handles that are open lost data: they answer EIO until they are closed.
    pub lost: bool,
    /// The session has byte-range locks on it.
    pub locked: bool,
}

/// What a dead daemon has left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inheritance {
    pub session: SessionId,
    /// Above every sequence that it used.
    pub from: u64,
    /// How many daemons there were before this one.
    pub life: u16,
    pub traces: Vec<(Ino, Trace)>,
}

impl Inheritance {
    /// The inodes with locks.
    pub fn locked(&self) -> BTreeSet<Ino> {
        self.traces.iter().filter(|(_, trace)| trace.locked).map(|(ino, _)| *ino).collect()
    }
}
