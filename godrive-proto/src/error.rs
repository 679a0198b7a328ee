//! How a request fails: a code that programs act on and a sentence for people.

use serde::{Deserialize, Serialize};

/// Why a peer refused or failed. The errno is decided from it in one place, the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Code {
    // The namespace's answers, named as errno names them.
    NotFound,
    Exists,
    NotDirectory,
    IsDirectory,
    NotEmpty,
    Invalid,
    NameTooLong,
    TooManyLinks,
    NotPermitted,
    AccessDenied,
    CrossDevice,
    Stale,
    NoAttribute,
    TooBig,
    Range,
    FileTooLarge,
    Loop,
    Busy,
    NotSupported,
    /// No node has room, or the slave's disk is full.
    NoSpace,
    /// Fewer than `min_replicas` usable slaves, or no correct copy reachable.
    Unavailable,
    /// The data exists in no correct copy that can be elected; nothing was overwritten.
    Quarantined,

    // The protocol's own.
    /// The session is unknown or was revoked; nothing was executed.
    SessionLost,
    /// The request needs a lease that the session does not hold.
    NoLease,
    /// The epoch is not the current one at this replica (or is sealed): ask the master for the layout.
    WrongEpoch,
    /// The base version does not match: nothing was applied.
    WrongVersion,
    /// A checksum did not match what was claimed.
    Corrupt,
    /// This slave does not have the chunk. Never means zeros.
    NoChunk,
    /// A member further down the chain failed; the detail names it.
    MemberFailed,
    /// A disk error at the slave.
    Disk,
    /// Wrong role, cluster or certificate for this request.
    Forbidden,
    /// Malformed, oversized or impossible request.
    Malformed,
    /// The master is not (any longer) the one, or its term is lower than one seen.
    WrongTerm,
    /// The master is recovering or lacks history that a peer has seen.
    NotReady,
    /// The deadline passed; the outcome of a mutation is unknown.
    Timeout,
    /// The connection failed before an answer; the outcome of a mutation is unknown.
    Unreachable,
    /// A defect at the peer; it logged the details.
    Internal,
    /// Waiting for this lock would never end: its holder waits for one of the requester's.
    Deadlock,
    /// There are too many locks.
    NoLocks,
    /// What is to be copied could not be had from any replica of it, in this version; nothing was applied.
    NoSource,
}

/// A refusal or failure, as it travels in a reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code:?}: {detail}")]
pub struct Fault {
    pub code: Code,
    /// Names the thing, the cause and, where there is one, the next step.
    pub detail: String,
    /// The member a chain failed at, for [`Code::MemberFailed`].
    pub node: Option<crate::NodeId>,
}

impl Fault {
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), node: None }
    }

    pub fn at(code: Code, node: crate::NodeId, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), node: Some(node) }
    }

    /// A fault that needs no sentence, for example a plain `NotFound`.
    pub fn bare(code: Code) -> Self {
        Self { code, detail: String::new(), node: None }
    }
}

impl From<Code> for Fault {
    fn from(code: Code) -> Self {
        Self::bare(code)
    }
}
