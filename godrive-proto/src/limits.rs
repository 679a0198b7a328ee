//! Bounds that every decoder and every peer enforces.

/// A frame's serialised part. Lists that may grow longer are paged.
pub const MAX_BODY_BYTES: usize = 1 << 20;
/// The payload of one request or reply: the largest chunk. Handlers may accept less.
pub const MAX_PAYLOAD_BYTES: usize = MAX_CHUNK_BYTES as usize;
/// The payload of one delta, so that a chain holds little in flight.
pub const MAX_DELTA_BYTES: usize = 4 << 20;
/// Extents in one delta.
pub const MAX_DELTA_EXTENTS: usize = 4096;
/// The payload of one `Read` or `Fetch`.
pub const MAX_READ_BYTES: usize = 4 << 20;

/// One checksum leaf.
pub const LEAF_BYTES: u32 = 4096;
/// Leaves in one group of the checksum tree.
pub const GROUP_LEAVES: u32 = 64;

pub const MIN_CHUNK_BYTES: u32 = 1 << 20;
pub const DEFAULT_CHUNK_BYTES: u32 = 16 << 20;
pub const MAX_CHUNK_BYTES: u32 = 64 << 20;

pub const MAX_NAME_BYTES: usize = 255;
pub const MAX_SYMLINK_BYTES: usize = 4095;
pub const MAX_XATTR_NAME_BYTES: usize = 255;
pub const MAX_XATTR_VALUE_BYTES: usize = 64 << 10;
/// All names of one inode's xattrs as `listxattr` returns them.
pub const MAX_XATTR_LIST_BYTES: usize = 64 << 10;
/// Hard links to one file (ext4 allows 65,000).
pub const MAX_LINKS: u32 = 65_000;
/// A file's greatest length: 2^63 - 1 less one chunk, so that offsets never overflow.
pub const MAX_FILE_BYTES: u64 = (1 << 62) - 1;

/// Members of one chunk's epoch.
pub const MAX_MEMBERS: usize = 16;
/// Slaves in one answer to [`crate::lease::Slaves`].
pub const MAX_SLAVES_TOLD: usize = 64;
/// Inodes in one answer to [`crate::lease::TakeOver`].
pub const MAX_ORPHANS_TOLD: usize = 16_384;
/// Byte-range locks of one owner on one inode, and of one session in all.
pub const MAX_OWNER_LOCKS: usize = 1024;
pub const MAX_SESSION_LOCKS: usize = 65_536;
/// Requests of one session that wait for a lock at the master.
pub const MAX_LOCK_WAITS: usize = 256;
/// Locks in one answer to [`crate::locks::OwnLocks`], and in one [`crate::locks::DeclareLocks`]: a page has room for one
/// owner's, and for as many again.
pub const MAX_LOCKS_TOLD: usize = 4096;
/// Entries in one [`crate::admin::TrashPage`], and in one [`crate::admin::EmptyTrash`].
pub const MAX_TRASH_PAGE: usize = 1024;
/// Entries in one [`crate::admin::DamagedPage`].
pub const MAX_DAMAGED_PAGE: usize = 256;
/// Steps in one [`crate::meta::BatchRequest`].
pub const MAX_STEPS: usize = 256;
/// Inodes in one [`crate::meta::Accessed`].
pub const MAX_ACCESSES: usize = 256;
/// Mutations a session may have unanswered at one time; their results are kept for retries.
pub const MAX_OUTSTANDING: u64 = 1024;
