//! FUSE's types and GoDrive's, in both directions. Nothing here decides anything.

use fuser::{FileAttr, FileType, INodeNo, OpenAccMode, OpenFlags, RenameFlags, TimeOrNow};
use godrive_proto::Ino;
use godrive_proto::meta::{Attr, Kind, Name, NameError, NewNode, RenameMode, SetTime, SetXattrMode};
use godrive_proto::time::Timestamp;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What programs should read and write at a time; also the largest request of the kernel.
pub const BLOCK_BYTES: u32 = 1 << 20;

pub fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: kind(attr.kind),
        perm: attr.mode & 0o7777,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: if attr.kind == Kind::File { BLOCK_BYTES } else { 4096 },
        flags: 0,
    }
}

/// Attributes of which the kernel takes only number and kind.
pub fn blank(ino: u64, kind: Kind) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: self::kind(kind),
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

pub fn kind(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
    }
}

pub fn system_time(time: Timestamp) -> SystemTime {
    let distance = Duration::from_nanos(time.0.unsigned_abs());
    if time.0 >= 0 { UNIX_EPOCH + distance } else { UNIX_EPOCH - distance }
}

/// A time that the kernel gave. Before 1970 fuser subtracts the nanoseconds instead of adding them; that is undone here.
pub fn timestamp(time: SystemTime) -> Timestamp {
    let nanos = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i128::try_from(after.as_nanos()).unwrap_or(i128::MAX),
        Err(before) => {
            let before = before.duration();
            i128::from(before.subsec_nanos()) - i128::from(before.as_secs()) * 1_000_000_000
        }
    };
    Timestamp(i64::try_from(nanos).unwrap_or(if nanos > 0 { i64::MAX } else { i64::MIN }))
}

pub fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp(time)),
        TimeOrNow::Now => SetTime::Now,
    }
}

/// The errno of a name that cannot exist.
pub fn name(name: &OsStr) -> Result<Name, i32> {
    Name::new(name.as_bytes()).map_err(|error| match error {
        NameError::TooLong => libc::ENAMETOOLONG,
        NameError::Invalid => libc::EINVAL,
    })
}

/// Permission, set-id and sticky bits.
pub fn permissions(mode: u32) -> u16 {
    // The mask leaves 12 bits.
    (mode & 0o7777) as u16
}

/// What mknod asks for, from the type bits of its mode.
pub fn new_node(mode: u32, rdev: u32) -> Result<NewNode, i32> {
    match mode & libc::S_IFMT {
        libc::S_IFREG | 0 => Ok(NewNode::File),
        libc::S_IFIFO => Ok(NewNode::Fifo),
        libc::S_IFSOCK => Ok(NewNode::Socket),
        libc::S_IFCHR => Ok(NewNode::CharDevice(rdev)),
        libc::S_IFBLK => Ok(NewNode::BlockDevice(rdev)),
        _ => Err(libc::EINVAL),
    }
}

pub fn rename_mode(flags: RenameFlags) -> Result<RenameMode, i32> {
    match flags {
        flags if flags.is_empty() => Ok(RenameMode::Replace),
        RenameFlags::RENAME_NOREPLACE => Ok(RenameMode::NoReplace),
        RenameFlags::RENAME_EXCHANGE => Ok(RenameMode::Exchange),
        _ => Err(libc::EINVAL),
    }
}

pub fn set_xattr_mode(flags: i32) -> Result<SetXattrMode, i32> {
    match flags {
        0 => Ok(SetXattrMode::Set),
        libc::XATTR_CREATE => Ok(SetXattrMode::Create),
        libc::XATTR_REPLACE => Ok(SetXattrMode::Replace),
        _ => Err(libc::EINVAL),
    }
}

pub fn writes(flags: OpenFlags) -> bool {
    flags.acc_mode() != OpenAccMode::O_RDONLY
}

pub fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_refused_with_the_right_errno() {
        assert_eq!(name(OsStr::new(&"x".repeat(256))), Err(libc::ENAMETOOLONG));
        assert_eq!(name(OsStr::new("..")), Err(libc::EINVAL));
        assert_eq!(name(OsStr::from_bytes(b"caf\xe9")), Ok(Name(b"caf\xe9".to_vec())));
    }

    #[test]
    fn half_a_second_before_1970_survives_fusers_arithmetic() {
        // The kernel says seconds -1, nanoseconds 500_000_000; fuser subtracts both.
        let given = UNIX_EPOCH - Duration::new(1, 500_000_000);
        assert_eq!(timestamp(given), Timestamp(-500_000_000));
        assert_eq!(timestamp(UNIX_EPOCH - Duration::new(3, 0)), Timestamp(-3_000_000_000));
    }

    #[test]
    fn far_times_saturate() {
        assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(1 << 40)), Timestamp(i64::MAX));
        assert_eq!(timestamp(UNIX_EPOCH - Duration::from_secs(1 << 40)), Timestamp(i64::MIN));
    }

    #[test]
    fn kinds_of_nodes() {
        assert_eq!(new_node(libc::S_IFIFO | 0o644, 0), Ok(NewNode::Fifo));
        assert_eq!(new_node(libc::S_IFBLK, 0x801), Ok(NewNode::BlockDevice(0x801)));
        assert_eq!(new_node(libc::S_IFDIR, 0), Err(libc::EINVAL));
        assert_eq!(new_node(0o600, 0), Ok(NewNode::File));
    }

    #[test]
    fn combined_rename_flags_are_refused() {
        assert_eq!(rename_mode(RenameFlags::empty()), Ok(RenameMode::Replace));
        assert_eq!(rename_mode(RenameFlags::RENAME_EXCHANGE), Ok(RenameMode::Exchange));
        assert_eq!(
            rename_mode(RenameFlags::RENAME_EXCHANGE | RenameFlags::RENAME_NOREPLACE),
            Err(libc::EINVAL)
        );
        assert_eq!(rename_mode(RenameFlags::RENAME_WHITEOUT), Err(libc::EINVAL));
    }

    proptest! {
        #[test]
        fn times_since_1970_go_and_come_back(nanos in 0..i64::MAX) {
            prop_assert_eq!(timestamp(system_time(Timestamp(nanos))), Timestamp(nanos));
        }

        #[test]
        fn permissions_keep_their_twelve_bits(mode: u32) {
            prop_assert_eq!(u32::from(permissions(mode)), mode & 0o7777);
        }
    }
}
