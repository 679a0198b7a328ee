//! The records of the master's log: everything that ever changed the cluster, in order.
//!
//! A record carries every decision that is not a function of the state before it: the time, where chunks were
//! placed, which sessions have an unlinked inode open. Ids come from counters in the state. Applying the same
//! records to the same state therefore gives the same state, byte for byte, on every master and after every restart.
//!
//! Records are frozen per version: the encoding begins with [`RECORD_VERSION`], and the golden bytes in the tests
//! fail when a type inside one changes shape. Enums grow at their end only.

use godrive_proto::data::{Contents, Layout, Member};
use godrive_proto::lease::ClusterParameters;
use godrive_proto::meta::*;
use godrive_proto::time::Timestamp;
use godrive_proto::{BootId, ChunkId, ClusterId, DiskId, Epoch, Fault, Ino, NodeId, Role, SessionId, Term};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// The first byte of an encoded record.
pub const RECORD_VERSION: u8 = 1;

/// One entry of the log, without its index and term, which the log keeps beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The master's wall clock. The state never lets it run backwards.
    pub time: Timestamp,
    /// Whose request this is; [`Origin::MASTER`] for the master's own decisions.
    pub origin: Origin,
    pub body: Body,
}

/// The session that asked and where the request stands in its order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// 0: nobody's.
    pub session: SessionId,
    /// From 1; 0: the request may be executed again, its result is not kept.
    pub sequence: u64,
    /// The session has the answers to everything below; their kept results are dropped.
    pub answered_below: u64,
}

impl Origin {
    pub const MASTER: Self = Self { session: SessionId(0), sequence: 0, answered_below: 0 };
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// The first record of a cluster.
    Bootstrap {
        cluster: ClusterId,
        parameters: ClusterParameters,
        feature_level: u16,
    },
    /// A master began to serve in this term.
    TermStarted {
        term: Term,
    },
    OpenSession {
        client: NodeId,
        label: String,
    },
    /// A clean unmount of the origin's session.
    CloseSession,
    /// The session had lapsed and somebody wanted what it held.
    SessionRevoked {
        session: SessionId,
    },
    /// A client's change of the namespace.
    Mutation(Mutation),
    /// Opens chunks for the origin's session; see [`Placed`] for those that do not exist yet.
    OpenChunks {
        ino: Ino,
        indexes: Vec<u32>,
        placed: Vec<Placed>,
    },
    /// The session gave up its exclusive lease without a [`Commit`] that said so.
    ChunksClosed {
        session: SessionId,
        ino: Ino,
    },
    /// These sessions have the inode open (declared after a restart). Ignored unless it is an orphan.
    OrphanKept {
        ino: Ino,
        sessions: Vec<SessionId>,
    },
    /// The session closed its last handles of these unlinked inodes.
    OrphansClosed {
        session: SessionId,
        inodes: Vec<Ino>,
    },
    /// An epoch change of the chunk has begun.
    EpochPending {
        chunk: ChunkId,
        epoch: Epoch,
    },
    /// It ended: the members and what all of them hold.
    EpochInstalled {
        chunk: ChunkId,
        epoch: Epoch,
        members: Vec<Member>,
        contents: Contents,
        /// All members have `contents` on stable storage.
        stable: bool,
        used_bytes: u32,
    },
    /// All members of the epoch have the contents on stable storage.
    ChunksStable {
        chunks: Vec<(ChunkId, Epoch, Contents)>,
    },
    /// No safe winner among the replicas: nothing is overwritten, reads fail. An installed epoch lifts it.
    ChunkQuarantined {
        chunk: ChunkId,
    },
    /// Every member of these deleted chunks has confirmed that its replica is gone.
    ChunksForgotten {
        chunks: Vec<ChunkId>,
    },
    /// A slave announced itself, for the first time or with something changed.
    NodeRegistered {
        node: NodeId,
        address: SocketAddr,
        domain: String,
        disks: Vec<DiskId>,
        boot: BootId,
    },
    /// Its id comes back in [`Reply::Token`].
    TokenMade {
        role: Role,
        secret_hash: [u8; 32],
        expires: Timestamp,
        uses: u32,
    },
    /// A joiner presented the token (the secret was checked before) and becomes `node`.
    TokenUsed {
        token: u64,
        node: NodeId,
    },
    /// A new term leaves so many inode and chunk ids out: a power loss may have taken records that gave them out, and slaves
    /// and mounts may know them.
    IdsSkipped {
        count: u64,
    },
    /// Another daemon goes on with the session: mutations below this sequence are dropped, and what the session had
    /// opened for writing may be half written.
    SessionTakenOver {
        session: SessionId,
        from: u64,
    },
    /// These inodes were read.
    Accessed {
        times: Vec<(Ino, Timestamp)>,
    },
    /// What is removed from now on is kept for so long, if it lived for so long; see [`super::state::values::Trash`].
    TrashKept {
        keep_s: u64,
        min_age_s: u32,
    },
    /// These leave the trash for good.
    TrashDropped {
        inodes: Vec<Ino>,
    },
    /// What people want of a slave from now on, in place of what they wanted before.
    NodeIntended {
        node: NodeId,
        purpose: Purpose,
        disks: Vec<DiskId>,
    },
    /// A slave that is decommissioned holds nothing any more: it is forgotten, and its ids are not taken again.
    NodeRetired {
        node: NodeId,
    },
    /// The session has said that it gave up writes of this file, or does not claim it after a restart: what is held of its open
    /// chunks may never have been committed.
    ChunksGivenUp {
        session: SessionId,
        ino: Ino,
    },
}

/// What a slave is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    #[default]
    Serve,
    /// Nothing new goes there, and what is there moves away.
    Drain,
    /// Likewise, and then it is retired.
    Decommission,
    /// It is gone for good. Who comes with its id or one of its disks is refused.
    Retired,
}

/// The namespace operations of a client. [`crate::core::state::State::check`] tells beforehand what one would change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mutation {
    /// With the members of chunk 0, chosen if the request is `for_writing` and there is room.
    Create {
        request: CreateRequest,
        members: Vec<Member>,
    },
    MakeNode(MakeNodeRequest),
    Link(LinkRequest),
    /// With the other sessions that have the inode open; they keep it too if this was its last name.
    Unlink {
        request: UnlinkRequest,
        open_elsewhere: Vec<SessionId>,
    },
    /// Likewise for the inode that is replaced.
    Rename {
        request: RenameRequest,
        open_elsewhere: Vec<SessionId>,
    },
    SetAttr(SetAttrRequest),
    Truncate(TruncateRequest),
    Commit(CommitRequest),
    SetXattr(SetXattrRequest),
    RemoveXattr(RemoveXattrRequest),
    /// What the session did under exclusive leases.
    Batch(Vec<Taken>),
    Restore(RestoreRequest),
}

impl Body {
    /// It makes the state larger for good. What takes away, ends, or says what is stored does not count, even where it adds some
    /// bytes.
    pub fn grows(&self) -> bool {
        match self {
            Self::Mutation(mutation) => mutation.grows(),
            Self::OpenChunks { placed, .. } => !placed.is_empty(),
            _ => false,
        }
    }
}

impl Mutation {
    fn grows(&self) -> bool {
        match self {
            Self::Create { .. }
            | Self::MakeNode(_)
            | Self::Link(_)
            | Self::SetXattr(_)
            | Self::Restore(_) => true,
            Self::Unlink { .. }
            | Self::Rename { .. }
            | Self::SetAttr(_)
            | Self::Truncate(_)
            | Self::Commit(_)
            | Self::RemoveXattr(_)
            | Self::Batch(_) => false,
        }
    }

    /// The names that it makes or takes away, each with its directory. A batch's are its session's own.
    pub fn names(&self) -> Vec<(Ino, &Name)> {
        match self {
            Self::Create { request, .. } => vec![(request.parent, &request.name)],
            Self::MakeNode(request) => vec![(request.parent, &request.name)],
            Self::Link(request) => vec![(request.parent, &request.name)],
            Self::Restore(request) => vec![(request.parent, &request.name)],
            Self::Unlink { request, .. } => vec![(request.parent, &request.name)],
            Self::Rename { request, .. } => {
                vec![(request.parent, &request.name), (request.new_parent, &request.new_name)]
            }
            Self::SetAttr(_)
            | Self::Truncate(_)
            | Self::Commit(_)
            | Self::SetXattr(_)
            | Self::RemoveXattr(_)
            | Self::Batch(_) => Vec::new(),
        }
    }
}

/// One step of a batch, with the other sessions that have its inode open, as in [`Mutation::Unlink`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    pub step: Step,
    pub open_elsewhere: Vec<SessionId>,
}

/// Where a chunk that does not exist yet goes. Ignored if the index has a chunk by now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    pub index: u32,
    pub members: Vec<Member>,
}

/// What a record answers. The views in it have no leases: the server puts them in, as they are not part of the state.
/// Kept for retries, so versioned like records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Done,
    /// [`Body::OpenSession`].
    Session(SessionId),
    Created(Created),
    /// MakeNode, Link and Restore.
    Linked(Linked),
    Unlinked(Unlinked),
    Renamed(Renamed),
    /// SetAttr, SetXattr and RemoveXattr.
    View(InodeView),
    Truncated(Truncated),
    Committed(Committed),
    Layouts(Vec<Layout>),
    Token(u64),
    Batched(Batched),
}

/// A reply or a fault; both are functions of the state and the record.
pub type Answer = Result<Reply, Fault>;

/// Why bytes are not a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("the record is empty")]
    Empty,
    #[error("the record has version {0}, this master knows {RECORD_VERSION}: a newer master wrote it")]
    Version(u8),
    #[error("the record does not decode: {0}")]
    Undecodable(postcard::Error),
    #[error("{0} bytes follow the record")]
    Trailing(usize),
    #[error("the record does not encode: {0}")]
    Unencodable(postcard::Error),
}

impl Record {
    /// A decision of the master itself.
    pub fn own(time: Timestamp, body: Body) -> Self {
        Self { time, origin: Origin::MASTER, body }
    }

    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        postcard::to_extend(self, vec![RECORD_VERSION]).map_err(RecordError::Unencodable)
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (version, rest) = bytes.split_first().ok_or(RecordError::Empty)?;
        if *version != RECORD_VERSION {
            return Err(RecordError::Version(*version));
        }
        let (record, rest) = postcard::take_from_bytes(rest).map_err(RecordError::Undecodable)?;
        if !rest.is_empty() {
            return Err(RecordError::Trailing(rest.len()));
        }
        Ok(record)
    }

    /// False: the answer may leave once the record was written, before it is on stable storage.
    /// Losing such a record with the machine's power breaks no promise: fsync makes sure of it first.
    pub fn needs_sync(&self) -> bool {
        match &self.body {
            Body::Mutation(Mutation::Commit(commit)) => commit.sync,
            // The slaves drop bytes on the strength of the answer.
            Body::Mutation(Mutation::Truncate(_)) => true,
            // Only the mount that asked sees them before they are: see `docs/adr/0005-early-answers.md`.
            Body::Mutation(_) => false,
            Body::ChunksClosed { .. } | Body::OrphansClosed { .. } | Body::ChunksStable { .. } => false,
            Body::Accessed { .. } => false,
            _ => true,
        }
    }
}
