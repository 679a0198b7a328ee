//! The steps of a script and the system calls that they are.

use super::process::Side;
use crate::locks::describe;
use proptest::prelude::*;
use std::ffi::{CStr, CString};
use std::io::Error;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// What a call came to: an errno, or what is told of the result.
pub type Outcome = Result<String, i32>;

pub const SLOTS: usize = 4;
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const MAX_OFFSET: i64 = 300_000;

/// A name in the script's folder, or in a folder that may be there under one of the names.
#[derive(Clone, Copy, Debug)]
pub struct At(Option<usize>, usize);

#[derive(Clone, Debug)]
pub enum Step {
    Open {
        at: At,
        flags: i32,
        mode: u32,
        slot: usize,
    },
    Close {
        slot: usize,
    },
    Read {
        slot: usize,
        offset: i64,
        len: usize,
    },
    Write {
        slot: usize,
        offset: i64,
        len: usize,
        byte: u8,
    },
    /// At the descriptor's position, or the end for those that append.
    WriteOn {
        slot: usize,
        len: usize,
        byte: u8,
    },
    Seek {
        slot: usize,
        offset: i64,
        whence: i32,
    },
    Truncate {
        at: At,
        len: i64,
    },
    TruncateOpen {
        slot: usize,
        len: i64,
    },
    Allocate {
        slot: usize,
        mode: i32,
        offset: i64,
        len: i64,
    },
    Copy {
        from: (usize, i64),
        to: (usize, i64),
        len: usize,
    },
    Send {
        from: (usize, i64),
        to: usize,
        len: usize,
    },
    MapWrite {
        slot: usize,
        offset: i64,
        len: usize,
        byte: u8,
    },
    MapRead {
        slot: usize,
        offset: i64,
        len: usize,
    },
    Sync {
        slot: usize,
        data: bool,
    },
    Lock {
        slot: usize,
        kind: i32,
        open: bool,
        offset: i64,
        len: i64,
    },
    WhoLocks {
        slot: usize,
        kind: i32,
        offset: i64,
        len: i64,
    },
    Flock {
        slot: usize,
        operation: i32,
    },
    StatOpen {
        slot: usize,
    },
    Stat {
        at: At,
    },
    Access {
        at: At,
        mode: i32,
    },
    List {
        folder: Option<usize>,
    },
    Mkdir {
        at: At,
        mode: u32,
    },
    Rmdir {
        at: At,
    },
    Unlink {
        at: At,
    },
    Rename {
        from: At,
        to: At,
        flags: u32,
    },
    Link {
        from: At,
        to: At,
    },
    Symlink {
        target: usize,
        at: At,
    },
    Readlink {
        at: At,
    },
    Mkfifo {
        at: At,
        mode: u32,
    },
    Chmod {
        at: At,
        mode: u32,
    },
    Chown {
        at: At,
        owner: u32,
        group: u32,
    },
    Times {
        at: At,
        atime: i64,
        mtime: i64,
    },
    SetXattr {
        at: At,
        name: usize,
        len: usize,
        flags: i32,
    },
    GetXattr {
        at: At,
        name: usize,
    },
    RemoveXattr {
        at: At,
        name: usize,
    },
    ListXattrs {
        at: At,
    },
    Umask {
        mask: u32,
    },
}

const XATTRS: [&CStr; 3] = [c"user.one", c"user.two", c"trusted.three"];

pub fn step() -> impl Strategy<Value = Step> {
    let at = || {
        (proptest::option::weighted(0.3, 0..NAMES.len()), 0..NAMES.len())
            .prop_map(|(folder, name)| At(folder, name))
    };
    let slot = || 0..SLOTS;
    let offset = || prop_oneof![3 => Just(0i64), 3 => 0..10_000i64, 2 => 0..MAX_OFFSET, 1 => (0..70i64).prop_map(|page| page * 4096)];
    let len = || prop_oneof![4 => 1..5000usize, 1 => Just(4096usize), 1 => 1..200_000usize];
    let mode = || {
        prop_oneof![
            Just(0o644u32),
            Just(0o600),
            Just(0o666),
            Just(0o755),
            Just(0o777),
            Just(0o1777),
            Just(0o4755),
            Just(0o2775),
            Just(0),
            0..0o10000u32
        ]
    };
    let open = prop_oneof![
        4 => Just(libc::O_RDWR | libc::O_CREAT), 1 => Just(libc::O_RDONLY), 1 => Just(libc::O_WRONLY),
        1 => Just(libc::O_RDWR), 1 => Just(libc::O_RDWR | libc::O_CREAT | libc::O_EXCL),
        2 => Just(libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC), 1 => Just(libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND),
        1 => Just(libc::O_RDWR | libc::O_APPEND), 1 => Just(libc::O_RDONLY | libc::O_DIRECTORY),
        1 => Just(libc::O_RDONLY | libc::O_NOFOLLOW), 1 => Just(libc::O_RDWR | libc::O_SYNC), 1 => Just(libc::O_RDONLY | libc::O_TRUNC),
    ];
    let allocate = prop_oneof![
        Just(0),
        Just(libc::FALLOC_FL_KEEP_SIZE),
        Just(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE),
    ];
    let kind = || prop_oneof![Just(libc::F_RDLCK), Just(libc::F_WRLCK), Just(libc::F_UNLCK)];
    let range = || (prop_oneof![Just(0i64), 0..100i64], prop_oneof![Just(0i64), 1..50i64]);
    let files = prop_oneof![
        8 => (at(), open, mode(), slot()).prop_map(|(at, flags, mode, slot)| Step::Open { at, flags, mode, slot }),
        3 => slot().prop_map(|slot| Step::Close { slot }),
        8 => (slot(), offset(), len()).prop_map(|(slot, offset, len)| Step::Read { slot, offset, len }),
        8 => (slot(), offset(), len(), 1..=255u8).prop_map(|(slot, offset, len, byte)| Step::Write { slot, offset, len, byte }),
        4 => (slot(), len(), 1..=255u8).prop_map(|(slot, len, byte)| Step::WriteOn { slot, len, byte }),
        1 => (slot(), offset(), prop_oneof![Just(libc::SEEK_SET), Just(libc::SEEK_CUR), Just(libc::SEEK_END)])
            .prop_map(|(slot, offset, whence)| Step::Seek { slot, offset, whence }),
        2 => (at(), offset()).prop_map(|(at, len)| Step::Truncate { at, len }),
        2 => (slot(), offset()).prop_map(|(slot, len)| Step::TruncateOpen { slot, len }),
        3 => (slot(), allocate, offset(), len()).prop_map(|(slot, mode, offset, len)| Step::Allocate { slot, mode, offset, len: len as i64 }),
        3 => ((slot(), offset()), (slot(), offset()), len()).prop_map(|(from, to, len)| Step::Copy { from, to, len }),
        1 => ((slot(), offset()), slot(), len()).prop_map(|(from, to, len)| Step::Send { from, to, len }),
        3 => (slot(), offset(), 1..9000usize, 1..=255u8).prop_map(|(slot, offset, len, byte)| Step::MapWrite { slot, offset, len, byte }),
        3 => (slot(), offset(), 1..9000usize).prop_map(|(slot, offset, len)| Step::MapRead { slot, offset, len }),
        1 => (slot(), any::<bool>()).prop_map(|(slot, data)| Step::Sync { slot, data }),
        3 => (slot(), kind(), any::<bool>(), range()).prop_map(|(slot, kind, open, (offset, len))| Step::Lock { slot, kind, open, offset, len }),
        1 => (slot(), kind(), range()).prop_map(|(slot, kind, (offset, len))| Step::WhoLocks { slot, kind, offset, len }),
        1 => (slot(), prop_oneof![Just(libc::LOCK_SH), Just(libc::LOCK_EX), Just(libc::LOCK_UN)])
            .prop_map(|(slot, operation)| Step::Flock { slot, operation }),
        2 => slot().prop_map(|slot| Step::StatOpen { slot }),
    ];
    let names = prop_oneof![
        4 => at().prop_map(|at| Step::Stat { at }),
        1 => (at(), 0..8i32).prop_map(|(at, mode)| Step::Access { at, mode }),
        2 => proptest::option::of(0..NAMES.len()).prop_map(|folder| Step::List { folder }),
        3 => (at(), mode()).prop_map(|(at, mode)| Step::Mkdir { at, mode }),
        2 => at().prop_map(|at| Step::Rmdir { at }),
        4 => at().prop_map(|at| Step::Unlink { at }),
        5 => (at(), at(), prop_oneof![3 => Just(0), 1 => Just(libc::RENAME_NOREPLACE), 1 => Just(libc::RENAME_EXCHANGE)])
            .prop_map(|(from, to, flags)| Step::Rename { from, to, flags }),
        3 => (at(), at()).prop_map(|(from, to)| Step::Link { from, to }),
        2 => (0..NAMES.len(), at()).prop_map(|(target, at)| Step::Symlink { target, at }),
        1 => at().prop_map(|at| Step::Readlink { at }),
        1 => (at(), mode()).prop_map(|(at, mode)| Step::Mkfifo { at, mode }),
        2 => (at(), mode()).prop_map(|(at, mode)| Step::Chmod { at, mode }),
        2 => (at(), prop_oneof![Just(0u32), Just(65_534), Just(u32::MAX)], prop_oneof![Just(0u32), Just(65_534), Just(u32::MAX)])
            .prop_map(|(at, owner, group)| Step::Chown { at, owner, group }),
        2 => (at(), 0..1_000_000_000_000_000i64, 0..1_000_000_000_000_000i64)
            .prop_map(|(at, atime, mtime)| Step::Times { at, atime, mtime }),
        3 => (at(), 0..XATTRS.len(), 0..300usize, prop_oneof![3 => Just(0), 1 => Just(libc::XATTR_CREATE), 1 => Just(libc::XATTR_REPLACE)])
            .prop_map(|(at, name, len, flags)| Step::SetXattr { at, name, len, flags }),
        2 => (at(), 0..XATTRS.len()).prop_map(|(at, name)| Step::GetXattr { at, name }),
        1 => (at(), 0..XATTRS.len()).prop_map(|(at, name)| Step::RemoveXattr { at, name }),
        1 => at().prop_map(|at| Step::ListXattrs { at }),
        1 => prop_oneof![Just(0u32), Just(0o022), Just(0o077)].prop_map(|mask| Step::Umask { mask }),
    ];
    prop_oneof![3 => files, 2 => names]
}

/// FNV-1a: differs where contents do.
pub fn sum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

fn outcome(returned: i64) -> Result<i64, i32> {
    if returned < 0 { Err(Error::last_os_error().raw_os_error().unwrap()) } else { Ok(returned) }
}

/// A system call of integers and pointers that stay valid during it.
macro_rules! sys {
    ($name:ident($($argument:expr),*)) => {{
        // SAFETY: strings and buffers live until the call has returned, and are as long as is said.
        outcome(unsafe { libc::$name($($argument),*) } as i64)
    }};
}

impl Side {
    fn path(&self, At(folder, name): At) -> CString {
        let mut path: PathBuf = self.root.clone();
        path.extend(folder.map(|folder| NAMES[folder]));
        path.push(NAMES[name]);
        CString::new(path.as_os_str().as_bytes()).unwrap()
    }

    fn file(&self, slot: usize) -> Result<i32, i32> {
        self.files[slot].ok_or(libc::EBADF)
    }
}

const CWD: i32 = libc::AT_FDCWD;

pub fn call(side: &mut Side, step: &Step) -> Outcome {
    match *step {
        Step::Open { at, flags, mode, slot } => {
            let path = side.path(at);
            if let Some(before) = side.files[slot].take() {
                sys!(close(before))?;
            }
            let mut stat = zeroed_stat();
            if sys!(stat(path.as_ptr(), &mut stat)).is_ok() && stat.st_mode & libc::S_IFMT == libc::S_IFIFO {
                return Ok("a fifo connects the programs of one machine".into());
            }
            let fd = sys!(open(path.as_ptr(), flags | libc::O_CLOEXEC, mode))?;
            side.files[slot] = Some(fd as i32);
            Ok("open".into())
        }
        Step::Close { slot } => {
            let fd = side.files[slot].take().ok_or(libc::EBADF)?;
            told(sys!(close(fd)))
        }
        Step::Read { slot, offset, len } => {
            let mut buffer = vec![0u8; len];
            let fd = side.file(slot)?;
            let read = sys!(pread(fd, buffer.as_mut_ptr().cast(), len, offset)).map(|read| read as usize)?;
            Ok(format!("{read} bytes, {:x}", sum(&buffer[..read])))
        }
        Step::Write { slot, offset, len, byte } => {
            let (fd, buffer) = (side.file(slot)?, vec![byte; len]);
            told(sys!(pwrite(fd, buffer.as_ptr().cast(), len, offset)))
        }
        Step::WriteOn { slot, len, byte } => {
            let (fd, buffer) = (side.file(slot)?, vec![byte; len]);
            told(sys!(write(fd, buffer.as_ptr().cast(), len)))?;
            told(sys!(lseek(fd, 0, libc::SEEK_CUR)))
        }
        Step::Seek { slot, offset, whence } => {
            let fd = side.file(slot)?;
            if is_folder(fd)? {
                return Ok("a folder's positions are its own".into());
            }
            // Kept within bounds: positions add up.
            if sys!(lseek(fd, 0, libc::SEEK_CUR)).is_ok_and(|at| at > 4 * MAX_OFFSET) {
                return told(sys!(lseek(fd, 0, libc::SEEK_SET)));
            }
            told(sys!(lseek(fd, offset, whence)))
        }
        Step::Truncate { at, len } => {
            let path = side.path(at);
            told(sys!(truncate(path.as_ptr(), len)))
        }
        Step::TruncateOpen { slot, len } => {
            let fd = side.file(slot)?;
            told(sys!(ftruncate(fd, len)))
        }
        Step::Allocate { slot, mode, offset, len } => {
            let fd = side.file(slot)?;
            told(sys!(fallocate(fd, mode, offset, len)))
        }
        Step::Copy { from, to, len } => {
            let (source, target) = (side.file(from.0)?, side.file(to.0)?);
            let mut offsets = (from.1, to.1);
            // SAFETY: both offsets live until the call has returned.
            told(outcome(unsafe {
                libc::copy_file_range(source, &mut offsets.0, target, &mut offsets.1, len, 0)
            } as i64))
        }
        Step::Send { from, to, len } => {
            let (source, target) = (side.file(from.0)?, side.file(to)?);
            let mut offset = from.1;
            // SAFETY: the offset lives until the call has returned.
            told(outcome(unsafe { libc::sendfile(target, source, &mut offset, len) } as i64))
        }
        Step::MapWrite { slot, offset, len, byte } => mapped(side.file(slot)?, offset, len, Some(byte)),
        Step::MapRead { slot, offset, len } => mapped(side.file(slot)?, offset, len, None),
        Step::Sync { slot, data } => {
            let fd = side.file(slot)?;
            told(if data { sys!(fdatasync(fd)) } else { sys!(fsync(fd)) })
        }
        Step::Lock { slot, kind, open, offset, len } => {
            let lock = describe(kind, offset, len);
            let command = if open { libc::F_OFD_SETLK } else { libc::F_SETLK };
            let fd = side.file(slot)?;
            told(sys!(fcntl(fd, command, &lock)))
        }
        Step::WhoLocks { slot, kind, offset, len } => {
            let mut lock = describe(kind, offset, len);
            let fd = side.file(slot)?;
            sys!(fcntl(fd, libc::F_GETLK, &mut lock))?;
            Ok(if lock.l_type == libc::F_UNLCK as libc::c_short { "nobody" } else { "somebody" }.into())
        }
        Step::Flock { slot, operation } => {
            let fd = side.file(slot)?;
            told(sys!(flock(fd, operation | libc::LOCK_NB)))
        }
        Step::StatOpen { slot } => {
            let fd = side.file(slot)?;
            let mut stat = zeroed_stat();
            sys!(fstat(fd, &mut stat))?;
            Ok(of_stat(&stat))
        }
        Step::Stat { at } => {
            let (path, mut stat) = (side.path(at), zeroed_stat());
            sys!(lstat(path.as_ptr(), &mut stat))?;
            Ok(of_stat(&stat))
        }
        Step::Access { at, mode } => {
            let path = side.path(at);
            told(sys!(faccessat(CWD, path.as_ptr(), mode, libc::AT_EACCESS)))
        }
        Step::List { folder } => {
            let mut path = side.root.clone();
            path.extend(folder.map(|folder| NAMES[folder]));
            let listed = std::fs::read_dir(path).map_err(|error| error.raw_os_error().unwrap())?;
            let mut names = Vec::new();
            for entry in listed {
                let entry = entry.map_err(|error| error.raw_os_error().unwrap())?;
                let kind = entry.file_type().map_err(|error| error.raw_os_error().unwrap())?;
                names.push(format!("{} {kind:?}", entry.file_name().display()));
            }
            names.sort();
            Ok(names.join(", "))
        }
        Step::Mkdir { at, mode } => {
            let path = side.path(at);
            told(sys!(mkdir(path.as_ptr(), mode & 0o1777)))
        }
        Step::Rmdir { at } => {
            let path = side.path(at);
            told(sys!(rmdir(path.as_ptr())))
        }
        Step::Unlink { at } => {
            let path = side.path(at);
            told(sys!(unlink(path.as_ptr())))
        }
        Step::Rename { from, to, flags } => {
            let (from, to) = (side.path(from), side.path(to));
            told(sys!(renameat2(CWD, from.as_ptr(), CWD, to.as_ptr(), flags)))
        }
        Step::Link { from, to } => {
            let (from, to) = (side.path(from), side.path(to));
            told(sys!(link(from.as_ptr(), to.as_ptr())))
        }
        Step::Symlink { target, at } => {
            let (target, path) = (CString::new(NAMES[target]).unwrap(), side.path(at));
            told(sys!(symlink(target.as_ptr(), path.as_ptr())))
        }
        Step::Readlink { at } => {
            let (path, mut buffer) = (side.path(at), [0u8; 64]);
            let len = sys!(readlink(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()))?;
            Ok(String::from_utf8_lossy(&buffer[..len as usize]).into_owned())
        }
        Step::Mkfifo { at, mode } => {
            let path = side.path(at);
            told(sys!(mkfifo(path.as_ptr(), mode & 0o777)))
        }
        Step::Chmod { at, mode } => {
            let path = side.path(at);
            told(sys!(chmod(path.as_ptr(), mode)))
        }
        Step::Chown { at, owner, group } => {
            let path = side.path(at);
            told(sys!(lchown(path.as_ptr(), owner, group)))
        }
        Step::Times { at, atime, mtime } => {
            let path = side.path(at);
            let time = |ns: i64| libc::timespec { tv_sec: ns / 1_000_000_000, tv_nsec: ns % 1_000_000_000 };
            let times = [time(atime), time(mtime)];
            told(sys!(utimensat(CWD, path.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW)))
        }
        Step::SetXattr { at, name, len, flags } => {
            let (path, value) = (side.path(at), vec![len as u8; len]);
            told(sys!(lsetxattr(path.as_ptr(), XATTRS[name].as_ptr(), value.as_ptr().cast(), len, flags)))
        }
        Step::GetXattr { at, name } => {
            let (path, mut value) = (side.path(at), vec![0u8; 400]);
            let len = sys!(lgetxattr(
                path.as_ptr(),
                XATTRS[name].as_ptr(),
                value.as_mut_ptr().cast(),
                value.len()
            ))?;
            Ok(format!("{len} bytes, {:x}", sum(&value[..len as usize])))
        }
        Step::RemoveXattr { at, name } => {
            let path = side.path(at);
            told(sys!(lremovexattr(path.as_ptr(), XATTRS[name].as_ptr())))
        }
        Step::ListXattrs { at } => {
            let (path, mut list) = (side.path(at), vec![0u8; 400]);
            let len = sys!(llistxattr(path.as_ptr(), list.as_mut_ptr().cast(), list.len()))? as usize;
            let mut names: Vec<_> = list[..len]
                .split(|byte| *byte == 0)
                .map(|name| String::from_utf8_lossy(name).into_owned())
                .collect();
            names.sort();
            Ok(names.join(" "))
        }
        Step::Umask { mask } => {
            // SAFETY: sets this thread's umask, for both sides alike.
            unsafe { libc::umask(mask) };
            Ok("set".into())
        }
    }
}

fn told(returned: Result<i64, i32>) -> Outcome {
    returned.map(|number| number.to_string())
}

fn zeroed_stat() -> libc::stat {
    // SAFETY: all zeros is a stat.
    unsafe { std::mem::zeroed() }
}

fn is_folder(fd: i32) -> Result<bool, i32> {
    let mut stat = zeroed_stat();
    sys!(fstat(fd, &mut stat))?;
    Ok(stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// Times that a script has set are small; others are those of the clock.
fn of_stat(stat: &libc::stat) -> String {
    let size = if stat.st_mode & libc::S_IFMT == libc::S_IFDIR { 0 } else { stat.st_size };
    let mtime = if stat.st_mtime < 1_000_000_000 {
        format!("{}.{:09}", stat.st_mtime, stat.st_mtime_nsec)
    } else {
        "now".into()
    };
    format!(
        "{:o} {}:{} {} links, {size} bytes, changed {mtime}",
        stat.st_mode, stat.st_uid, stat.st_gid, stat.st_nlink
    )
}

/// Reads or writes through a shared mapping, as far as the file's pages go.
fn mapped(fd: i32, offset: i64, len: usize, byte: Option<u8>) -> Outcome {
    let mut stat = zeroed_stat();
    sys!(fstat(fd, &mut stat))?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Ok("no file".into());
    }
    let start = offset / 4096 * 4096;
    // Beyond the file's end there is nothing to touch.
    let end = (start + len as i64).min(stat.st_size);
    if end <= start {
        return Ok("behind the end".into());
    }
    let bytes = (end - start) as usize;
    let protection = if byte.is_some() { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
    // SAFETY: a new mapping of a file that nobody makes shorter meanwhile: steps are made one at a time.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, fd, start) };
    if at == libc::MAP_FAILED {
        return Err(Error::last_os_error().raw_os_error().unwrap());
    }
    let what = match byte {
        Some(byte) => {
            // SAFETY: the mapping is that long and its pages lie within the file.
            unsafe { at.cast::<u8>().write_bytes(byte, bytes) };
            sys!(msync(at, bytes, libc::MS_SYNC))?;
            format!("{bytes} written")
        }
        // SAFETY: as above.
        None => {
            format!("{bytes} bytes, {:x}", sum(unsafe { std::slice::from_raw_parts(at.cast::<u8>(), bytes) }))
        }
    };
    sys!(munmap(at, bytes))?;
    Ok(what)
}
