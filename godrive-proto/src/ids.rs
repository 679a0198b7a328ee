//! Newtypes for every id. None of them is ever reused within a cluster.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

macro_rules! uuid {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u128);

        /// 32 lower-case hexadecimal digits.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                u128::from_str_radix(text, 16).map(Self)
            }
        }
    };
}

number! {
    /// An inode number; 1 is the root directory. 64 bits, allotted by the master's log.
    Ino
}
number! {
    /// A chunk's identity for life; its contents change under it.
    ChunkId
}
number! {
    /// The generation of a chunk's membership. Only the master raises it. The upper half counts the elections
    /// before which all who had a voice had restarted, so that what was held and not stable may be lost.
    Epoch
}

impl Epoch {
    /// The epoch after a restart of all members.
    pub fn after_restarts(self) -> Self {
        Self(((self.0 >> 32) + 1) << 32)
    }

    /// How often all who had a voice had restarted.
    pub fn restarts(self) -> u64 {
        self.0 >> 32
    }
}

number! {
    /// How many deltas a chunk has seen. Every applied delta raises it by one.
    Version
}
number! {
    /// A mount's session with the master, allotted by the master's log.
    SessionId
}
number! {
    /// Identifies one grant of a lease; later grants have higher numbers, across restarts too.
    LeaseId
}
number! {
    /// A position in the master's log; the first record has index 1.
    LogIndex
}
number! {
    /// The master's term: raised at every start (and election).
    Term
}
number! {
    /// Changes each time a node's machine or process starts anew.
    BootId
}

uuid! {
    /// The cluster; certificates, disks and logs name it.
    ClusterId
}
uuid! {
    /// A master, slave, client or administrator: the id in its certificate.
    NodeId
}
uuid! {
    /// One disk of a slave.
    DiskId
}

/// The root of a chunk's checksum tree; see [`crate::sums`].
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(pub u128);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The root directory.
pub const ROOT: Ino = Ino(1);

/// Names one mutation of one session: the master executes it at most once, a replica applies it at most once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpId {
    pub session: SessionId,
    pub sequence: u64,
}
