//! The namespace: inodes, names and the operations on them. Requests go from clients to the master.
//!
//! Mutations carry a sequence in the frame; retried with the same sequence they are executed once and answered alike.
//! A reply leaves the master when the record is on stable storage, except where [`CommitRequest::sync`] is false.

use crate::data::{ChunkState, Layout};
use crate::lease::{Lease, Mode};
use crate::operation::operations;
use crate::time::Timestamp;
use crate::{Ino, limits};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A directory entry's name: any bytes but `/` and NUL, 1 to 255 of them, not `.` or `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Name(#[serde(with = "serde_bytes")] pub Vec<u8>);

/// Why bytes are not a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a name must not be empty, `.`, `..` or contain `/` or NUL")]
    Invalid,
    #[error("a name has at most {limit} bytes", limit = limits::MAX_NAME_BYTES)]
    TooLong,
}

impl Name {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, NameError> {
        let name = Self(bytes.into());
        name.check()?;
        Ok(name)
    }

    /// Decoded names are hostile until this passed; the master calls it on every request.
    pub fn check(&self) -> Result<(), NameError> {
        match self.0.as_slice() {
            b"" | b"." | b".." => Err(NameError::Invalid),
            long if long.len() > limits::MAX_NAME_BYTES => Err(NameError::TooLong),
            bytes if bytes.iter().any(|byte| matches!(byte, b'/' | 0)) => Err(NameError::Invalid),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// An inode as everyone sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    pub ino: Ino,
    pub kind: Kind,
    /// Permission, set-id and sticky bits (07777).
    pub mode: u16,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    /// Bytes; of a directory, the number of its entries; of a symlink, its target's length.
    pub size: u64,
    /// 512-byte blocks of the chunks as last committed.
    pub blocks: u64,
    pub chunk_bytes: u32,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub btime: Timestamp,
    /// The log index of the last change; of two views of an inode the one with the higher number is newer.
    pub change: u64,
    /// False: it has no xattrs, so that asking for one needs no message.
    pub xattrs: bool,
    /// The bytes behind `size` in the last chunk may not be zeros (a trim was not finished, or a writer died).
    /// Whoever extends the file first sends [`Truncate`] to its current size, does the trim and commits it.
    pub trim_pending: bool,
}

/// An inode with the lease that came with it. Without a lease the view may be used once, not cached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InodeView {
    pub attr: Attr,
    pub lease: Option<Lease>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookupRequest {
    pub parent: Ino,
    pub name: Name,
}

/// The entry is None where the name does not exist; with a lease on the parent that may be cached too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookedUp {
    pub parent: InodeView,
    pub entry: Option<InodeView>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadDirectoryRequest {
    pub directory: Ino,
    /// Entries after this position; 0 from the start. A position stays valid while entries come and go.
    pub after: u64,
    /// At most 2048.
    pub max_entries: u32,
    /// Also views of the entries' inodes (without waiting for recalls: those held elsewhere come without).
    pub views: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryEntry {
    pub position: u64,
    pub name: Name,
    pub ino: Ino,
    pub kind: Kind,
    pub view: Option<InodeView>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryPage {
    pub directory: InodeView,
    /// For `..`.
    pub parent: Ino,
    pub entries: Vec<DirectoryEntry>,
    pub end: bool,
}

/// The mode of something new: what its maker asked for, and the umask that takes bits from it unless the directory has a default
/// ACL, which then does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NewMode(u32);

impl NewMode {
    pub fn new(mode: u16, umask: u16) -> Self {
        Self(u32::from(mode & 0o7777) | u32::from(umask & 0o777) << 16)
    }

    /// Permission, set-id and sticky bits as asked for.
    pub fn mode(self) -> u16 {
        self.0 as u16 & 0o7777
    }

    /// The same under the umask.
    pub fn masked(self) -> u16 {
        self.mode() & !((self.0 >> 16) as u16 & 0o777)
    }
}

impl From<u16> for NewMode {
    /// Without a umask.
    fn from(mode: u16) -> Self {
        Self::new(mode, 0)
    }
}

/// Creates a regular file, or finds the existing one unless `exclusive`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateRequest {
    pub parent: Ino,
    pub name: Name,
    pub mode: NewMode,
    pub uid: u32,
    pub gid: u32,
    /// O_EXCL: an existing name is an error.
    pub exclusive: bool,
    /// Grant the exclusive lease and place the first chunk at once. Without it the reply carries a shared lease.
    pub for_writing: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    pub parent: InodeView,
    pub entry: InodeView,
    /// True if the name existed; then nothing changed and the lease is at most shared.
    pub existed: bool,
    /// Chunk 0, placed and opened, if it was asked for and there is room for it.
    pub layout: Option<Layout>,
}

/// What [`MakeNode`] makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewNode {
    Directory,
    Fifo,
    Socket,
    CharDevice(u32),
    BlockDevice(u32),
    /// An empty regular file without a lease (mknod).
    File,
    /// The target: 1 to 4095 bytes without NUL.
    Symlink(#[serde(with = "serde_bytes")] Vec<u8>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MakeNodeRequest {
    pub parent: Ino,
    pub name: Name,
    pub node: NewNode,
    pub mode: NewMode,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRequest {
    pub ino: Ino,
    pub parent: Ino,
    pub name: Name,
}

/// Parent and entry after a mutation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Linked {
    pub parent: InodeView,
    pub entry: InodeView,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnlinkRequest {
    pub parent: Ino,
    pub name: Name,
    /// rmdir instead of unlink.
    pub directory: bool,
}

/// Gives a name again to an inode in the trash (see [`crate::admin::TrashEntry`]). A directory comes back empty: what was in
/// it is in the trash, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreRequest {
    pub ino: Ino,
    pub parent: Ino,
    pub name: Name,
}

/// A removed name. An inode whose last name this was is kept as an orphan of this session, whether it is open or
/// not, until the session reports it in [`crate::lease::ReleaseRequest::closed_orphans`] (or ends).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unlinked {
    pub parent: InodeView,
    pub entry: InodeView,
}

/// A change that was made and answered under exclusive leases, as the master has to follow it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// The name led to `ino` and went at `at`, by the holder's estimate of the master's clock.
    Unlink { request: UnlinkRequest, ino: Ino, at: Timestamp },
}

/// Steps in the order in which they were made: all are executed, or none if one of them cannot be. Needs the exclusive
/// leases of all directories and inodes that they name, and waits for none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchRequest {
    /// 1 to [`limits::MAX_STEPS`].
    pub steps: Vec<Step>,
}

/// Every inode that the steps changed, once, after all of them. As after [`Unlink`], one without a name is an orphan of
/// the session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batched {
    pub views: Vec<InodeView>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenameMode {
    #[default]
    Replace,
    NoReplace,
    Exchange,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenameRequest {
    pub parent: Ino,
    pub name: Name,
    pub new_parent: Ino,
    pub new_name: Name,
    pub mode: RenameMode,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renamed {
    pub parent: InodeView,
    pub new_parent: InodeView,
    /// The inode that moved to the new name.
    pub entry: InodeView,
    /// The inode that was replaced (an orphan of this session if its nlink is 0) or exchanged.
    pub other: Option<InodeView>,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetTime {
    Now,
    At(Timestamp),
}

/// Attribute changes; None leaves as it is. Size is not here: see [`Truncate`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttrChanges {
    pub mode: Option<u16>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    /// Only in a [`Commit`]: the holder of an exclusive lease owns it.
    pub ctime: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAttrRequest {
    pub ino: Ino,
    pub changes: AttrChanges,
}

/// Sets a file's length. Needs the exclusive lease, with everything dirty flushed before. Chunks wholly behind the
/// new end are dropped; the trim of the chunk that holds the new end is pending until a [`Commit`] with `trimmed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TruncateRequest {
    pub ino: Ino,
    pub size: u64,
    /// Also clear the set-id bits, as the kernel asks.
    pub kill_privileges: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Truncated {
    pub view: InodeView,
    /// The chunk to trim from `size` to its end, opened for this session; None if nothing is to be trimmed.
    pub trim: Option<Layout>,
}

/// Tells the master what the replicas already hold: metadata changes only after successful replication.
/// Needs the exclusive lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitRequest {
    pub ino: Ino,
    /// The new length, if it changed. Truncation goes through [`Truncate`]; this never shortens.
    pub size: Option<u64>,
    pub changes: AttrChanges,
    /// Chunks as the replicas hold them now.
    pub chunks: Vec<ChunkState>,
    /// The pending trim was done.
    pub trimmed: bool,
    /// Answer only when the record is on stable storage (fsync); otherwise when kill -9 cannot undo it (close).
    pub sync: bool,
    /// The writer is done: the lease becomes shared and the chunks are no longer open.
    pub keeps: Mode,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    pub view: InodeView,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetXattrMode {
    Set,
    Create,
    Replace,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetXattrRequest {
    pub ino: Ino,
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
    pub mode: SetXattrMode,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveXattrRequest {
    pub ino: Ino,
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
}

/// All xattrs of an inode: (name, value).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xattrs {
    pub view: InodeView,
    pub all: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A symlink's target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub view: InodeView,
    #[serde(with = "serde_bytes")]
    pub target: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsStat {
    /// Raw bytes of all usable disks divided by the number of replicas.
    pub total_bytes: u64,
    pub free_bytes: u64,
    pub inodes: u64,
}

operations! {
    0x0200 Lookup(LookupRequest) -> LookedUp [Client];
    0x0201 ReadDirectory(ReadDirectoryRequest) -> DirectoryPage [Client];
    0x0202 ReadSymlink(Ino) -> Target [Client];
    0x0203 ReadXattrs(Ino) -> Xattrs [Client];
    0x0204 StatFs(()) -> FsStat [Client];
    /// With a shared lease where it can be had. Where another mount owns the file, that is asked for the attributes, and the
    /// view has no lease: looking at a file must not make its writer flush.
    0x0205 GetAttr(Ino) -> InodeView [Client];
    0x0210 Create(CreateRequest) -> Created [Client];
    0x0211 MakeNode(MakeNodeRequest) -> Linked [Client];
    0x0212 Link(LinkRequest) -> Linked [Client];
    0x0213 Unlink(UnlinkRequest) -> Unlinked [Client];
    0x0214 Rename(RenameRequest) -> Renamed [Client];
    0x0215 SetAttr(SetAttrRequest) -> InodeView [Client];
    0x0216 Truncate(TruncateRequest) -> Truncated [Client];
    0x0217 Commit(CommitRequest) -> Committed [Client];
    0x0218 SetXattr(SetXattrRequest) -> InodeView [Client];
    0x0219 RemoveXattr(RemoveXattrRequest) -> InodeView [Client];
    /// Everything of this session that was answered is on stable storage when this returns (fsync of a directory).
    0x021a Barrier(()) -> () [Client];
    0x021b Batch(BatchRequest) -> Batched [Client];
    /// When these inodes were read last, at most [`limits::MAX_ACCESSES`]. Needs no lease and takes none back; a time that is not behind
    /// the inode's last change says nothing.
    0x021c Accessed(Vec<(Ino, Timestamp)>) -> () [Client];
    0x021d Restore(RestoreRequest) -> Linked [Client];
}
