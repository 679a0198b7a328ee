//! The lease table: who may cache which inode, who waits, and whom to ask to give back.
//!
//! It is volatile. After a restart every logged session counts as a possible holder of everything until it has
//! resumed or its lease time has passed; see [`Leases::recovering`].
//!
//! A request states what it needs of each inode, all of it at once ([`Leases::ask`]). If nothing conflicts it
//! goes at once; the caller executes it and takes the grants. Otherwise it joins one queue, ordered by waiter
//! number, and the conflicting holders are recalled. A waiting request holds nothing, so requests cannot
//! deadlock; it is only *reserved* against later ones that conflict, so it cannot starve. When the table says
//! [`Effect::Ready`], the caller asks again under the same number: what the request touches may have changed.
//!
//! One exception to the reservation keeps recalls from waiting for their own waiter: a session that still
//! holds a lease for which an earlier request waits may pass that request, but is granted nothing new on that
//! inode ([`Need::Read`] and [`Need::Change`] only).

mod queue;
mod table;

#[cfg(test)]
mod tests;

pub use queue::WaiterId;
pub use table::{Leases, Settings};

use godrive_proto::lease::{Mode, RecallRequest};
use godrive_proto::{Ino, SessionId};

/// What a request needs of one inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// See it once, and share it if that is possible.
    Read,
    /// Share it: the lease is what the request is for.
    Share,
    /// Change it: no other session may hold it meanwhile. The requester shares it afterwards.
    Change,
    /// Own it exclusively.
    Own,
}

impl Need {
    /// Whether another session's lease of this mode is in the way.
    fn conflicts(self, held: Mode) -> bool {
        match self {
            Self::Read | Self::Share => held == Mode::Exclusive,
            Self::Change | Self::Own => true,
        }
    }

    /// Whether two requests of different sessions cannot both go on.
    fn excludes(self, other: Self) -> bool {
        self.changes() || other.changes()
    }

    fn changes(self) -> bool {
        matches!(self, Self::Change | Self::Own)
    }

    /// The most that a recalled holder may keep.
    fn may_keep(self) -> Option<Mode> {
        if self.changes() { None } else { Some(Mode::Shared) }
    }
}

/// What the caller has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The waiter may be able to go: ask again.
    Ready(WaiterId),
    /// Ask the session for a lease; its answer is [`Leases::released`], its silence [`Leases::recall_failed`].
    Recall(SessionId, RecallRequest),
    /// Somebody waits for a session whose lease time has passed: revoke it.
    Lapsed(SessionId),
}

/// The answer to [`Leases::ask`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Execute now, then take the grants. On the inodes listed nothing new is granted.
    Go { without_grant: Vec<Ino> },
    /// Queued; an effect will say when to ask again.
    Wait,
}
