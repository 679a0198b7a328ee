//! What the operations take and give.

use crate::driver::BoxFuture;
use bytes::Bytes;
use godrive_proto::Ino;
use godrive_proto::meta::{Attr, Kind, SetTime};
use std::ops::{Deref, Range};
use std::time::Duration;

pub use super::passes::Pass;

/// An open file or directory; what FUSE calls `fh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u64);

/// Who asks: the owner of what is created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    /// The permissions that it takes from what it makes, unless the directory has a default ACL.
    pub umask: u16,
}

/// An answer, with the pass under which it was made. Keep it until the kernel has been answered: a recall waits for
/// it, so that the kernel's caches are invalidated after they were filled, not before.
#[derive(Debug)]
pub struct Served<T> {
    pub value: T,
    pub pass: Pass,
}

impl<T> Deref for Served<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// Attributes, and how long they may be cached (zero: not at all).
#[derive(Clone, Debug)]
pub struct AttrReply {
    pub attr: Attr,
    pub ttl: Duration,
}

/// A name's inode. The name's own time to live depends on the directory's lease, the attributes' on the inode's.
#[derive(Clone, Debug)]
pub struct Entry {
    pub attr: Attr,
    pub attr_ttl: Duration,
    pub entry_ttl: Duration,
}

#[derive(Clone, Debug)]
pub enum Found {
    Entry(Entry),
    /// There is no such name, and for this long there will be none (zero: that may not be cached; answer ENOENT).
    Missing(Duration),
}

#[derive(Clone, Copy, Debug)]
pub struct Opened {
    pub handle: Handle,
    /// The kernel's pages of this inode are still good (FOPEN_KEEP_CACHE).
    pub keep_cache: bool,
    /// A flush at close can be skipped (FOPEN_NOFLUSH): nothing can be written through this handle.
    pub no_flush: bool,
}

#[derive(Clone, Debug)]
pub struct Created {
    pub entry: Entry,
    pub opened: Opened,
}

/// What became of a file that was to be made.
pub enum Made {
    New(Served<Created>),
    There(Served<Entry>),
}

#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Where the next `readdir` goes on after this entry.
    pub offset: u64,
    pub name: Vec<u8>,
    pub ino: Ino,
    pub kind: Kind,
    /// For readdirplus, where the inode could be seen without waiting; never for `.` and `..`.
    pub entry: Option<Entry>,
}

/// What `setattr` changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    pub mode: Option<u16>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    /// With a new size: also clear the set-id bits.
    pub kill_privileges: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    Data,
    Hole,
}

/// The bytes of a read, in order.
pub type Pieces = Vec<Bytes>;

/// Something the kernel must forget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invalidation {
    Attributes(Ino),
    /// Cached pages (of a directory: its cached listing) and the attributes.
    Pages(Ino, Range<u64>),
    /// A name in a directory, existing or not.
    Entry(Ino, Vec<u8>),
}

/// The kernel's caches, as a mount reaches them. An `Entry` may block until the kernel's operations in that
/// directory were answered, `Pages` until reads and writes of those pages were; so neither may be called from a
/// thread that answers operations, and a blocked `Entry` must not hold back a `Pages`.
pub trait Invalidate: Send + Sync + 'static {
    /// Ends when the kernel has forgotten all of it, or goes on by itself.
    fn invalidate(&self, what: Vec<Invalidation>) -> BoxFuture<'static, ()>;
    /// The kernel still has pages of the inode that it was told to forget. With attributes that it may keep it would go on with them.
    fn is_forgetting(&self, _ino: Ino) -> bool {
        false
    }
    /// The file has this last byte. The kernel drops attributes that cross an invalidation of their inode, and would go on with
    /// a length that is too short; it keeps bytes.
    fn reaches(&self, _ino: Ino, _offset: u64, _last: Bytes) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

/// What could not be made durable before the end, one sentence per file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unflushed(pub Vec<(Ino, String)>);
