//! What a local disk refuses, a mount refuses in the same words: each call is made on both, and comes to the same errno and leaves the
//! same files.

use crate::cluster::Cluster;
use std::ffi::CString;
use std::fs;
use std::io::Error;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// What a call came to.
type Outcome = Result<i64, i32>;
type Call = (&'static str, fn(&Path) -> Outcome);

fn c(path: impl AsRef<Path>) -> CString {
    CString::new(path.as_ref().as_os_str().as_bytes()).unwrap()
}

fn outcome(returned: i64) -> Outcome {
    if returned < 0 { Err(Error::last_os_error().raw_os_error().unwrap()) } else { Ok(returned) }
}

/// Makes a system call of integers and pointers.
macro_rules! call {
    ($name:ident($($argument:expr),*)) => {{
        // SAFETY: the descriptors and strings live until the call has returned, and buffers are as long as is said.
        outcome(i64::from(unsafe { libc::$name($($argument),*) }))
    }};
}

/// Opens, does something with the descriptor, and closes it.
fn with(path: impl AsRef<Path>, flags: i32, then: impl FnOnce(i32) -> Outcome) -> Outcome {
    let path = c(path);
    let fd = call!(open(path.as_ptr(), flags, 0o644))? as i32;
    let done = then(fd);
    call!(close(fd)).unwrap();
    done
}

fn opens(path: impl AsRef<Path>, flags: i32) -> Outcome {
    with(path, flags, |_| Ok(0))
}

fn pwrite(fd: i32, bytes: &[u8], at: i64) -> Outcome {
    // SAFETY: the buffer is as long as is said.
    outcome(unsafe { libc::pwrite(fd, bytes.as_ptr().cast(), bytes.len(), at) } as i64)
}

fn read(fd: i32) -> Outcome {
    let mut buffer = [0u8; 16];
    // SAFETY: the buffer is as long as is said.
    outcome(unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) } as i64)
}

fn set_xattr(path: &Path, name: &str, len: usize, flags: i32) -> Outcome {
    let (path, name, value) = (c(path), CString::new(name).unwrap(), vec![b'x'; len]);
    call!(lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags))
}

fn get_xattr(path: &Path, name: &str, len: usize) -> Outcome {
    let (path, name, mut value) = (c(path), CString::new(name).unwrap(), vec![0u8; len]);
    // SAFETY: the buffer is as long as is said.
    outcome(unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) }
        as i64)
}

fn list_xattrs(path: &Path, len: usize) -> Outcome {
    let (path, mut list) = (c(path), vec![0u8; len]);
    // SAFETY: the buffer is as long as is said.
    outcome(unsafe { libc::llistxattr(path.as_ptr(), list.as_mut_ptr().cast(), list.len()) } as i64)
}

fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>, flags: u32) -> Outcome {
    let (from, to) = (c(from), c(to));
    call!(renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags))
}

fn link(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Outcome {
    let (from, to) = (c(from), c(to));
    call!(link(from.as_ptr(), to.as_ptr()))
}

fn symlink(target: &[u8], path: impl AsRef<Path>) -> Outcome {
    let (target, path) = (CString::new(target).unwrap(), c(path));
    call!(symlink(target.as_ptr(), path.as_ptr()))
}

fn mkdir(path: impl AsRef<Path>) -> Outcome {
    let path = c(path);
    call!(mkdir(path.as_ptr(), 0o755))
}

fn rmdir(path: impl AsRef<Path>) -> Outcome {
    let path = c(path);
    call!(rmdir(path.as_ptr()))
}

fn unlink(path: impl AsRef<Path>) -> Outcome {
    let path = c(path);
    call!(unlink(path.as_ptr()))
}

fn truncate(path: impl AsRef<Path>, len: i64) -> Outcome {
    let path = c(path);
    call!(truncate(path.as_ptr(), len))
}

fn fcntl_lock(fd: i32, kind: i32, start: i64, len: i64) -> Outcome {
    // SAFETY: all zeros is a lock description.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    (lock.l_type, lock.l_start, lock.l_len) = (kind as libc::c_short, start, len);
    call!(fcntl(fd, libc::F_SETLK, &lock))
}

fn copy(from: i32, to: i32, mut offsets: (i64, i64), len: usize) -> Outcome {
    // SAFETY: both offsets live until the call has returned.
    outcome(unsafe { libc::copy_file_range(from, &mut offsets.0, to, &mut offsets.1, len, 0) } as i64)
}

fn map_shared(fd: i32) -> Outcome {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping, which is not touched.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_SHARED, fd, 0) };
    if at == libc::MAP_FAILED {
        return outcome(-1);
    }
    call!(munmap(at, 4096))
}

fn long(bytes: usize) -> String {
    "n".repeat(bytes)
}

const RW: i32 = libc::O_RDWR;
const RO: i32 = libc::O_RDONLY;
const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE;

/// Each in a folder with: `file` (10 bytes), `other`, `full/inside`, `empty/`, `link` to file, `dangling`, `loop`, `fifo`.
const CALLS: &[Call] = &[
    // Names and paths.
    ("open an empty path", |_| opens("", RO)),
    ("open what is missing", |at| opens(at.join("missing"), RO)),
    ("create a name of 255 bytes", |at| opens(at.join(long(255)), RW | libc::O_CREAT)),
    ("create a name of 256 bytes", |at| opens(at.join(long(256)), RW | libc::O_CREAT)),
    ("create a name that is not UTF-8", |at| {
        opens(at.join(std::ffi::OsStr::from_bytes(b"\xff\xfe\x01")), RW | libc::O_CREAT)
    }),
    ("a path that is too long", |at| opens(at.join(vec!["empty/.."; 600].join("/")), RO)),
    ("a file as a folder", |at| opens(at.join("file/below"), RO)),
    ("a loop", |at| opens(at.join("loop"), RO)),
    ("create through a dangling link", |at| opens(at.join("dangling"), RW | libc::O_CREAT)),
    ("create exclusively where a dangling link is", |at| {
        opens(at.join("dangling"), RW | libc::O_CREAT | libc::O_EXCL)
    }),
    ("create exclusively what exists", |at| opens(at.join("file"), RW | libc::O_CREAT | libc::O_EXCL)),
    ("open a link without following it", |at| opens(at.join("link"), RO | libc::O_NOFOLLOW)),
    ("open a file as a folder", |at| opens(at.join("file"), RO | libc::O_DIRECTORY)),
    ("open a folder for writing", |at| opens(at.join("empty"), RW)),
    ("create where a folder is", |at| opens(at.join("empty"), RW | libc::O_CREAT)),
    ("create a folder by open", |at| opens(at.join("new"), RO | libc::O_CREAT | libc::O_DIRECTORY)),
    ("create in a removed folder", |at| {
        with(at.join("empty"), RO, |fd| {
            rmdir(at.join("empty"))?;
            call!(openat(fd, c"new".as_ptr(), RW | libc::O_CREAT, 0o644))
        })
    }),
    ("mkdir what exists", |at| mkdir(at.join("file"))),
    ("mkdir .", |at| mkdir(at.join("."))),
    ("mkdir below what is missing", |at| mkdir(at.join("missing/new"))),
    ("rmdir of a full folder", |at| rmdir(at.join("full"))),
    ("rmdir .", |at| rmdir(at.join("empty/."))),
    ("rmdir ..", |at| rmdir(at.join("empty/.."))),
    ("rmdir of a file", |at| rmdir(at.join("file"))),
    ("unlink of a folder", |at| unlink(at.join("empty"))),
    ("unlink of a folder through a slash", |at| unlink(at.join("file/"))),
    ("mknod of no kind", |at| {
        let path = c(at.join("new"));
        call!(mknod(path.as_ptr(), libc::S_IFMT | 0o644, 0))
    }),
    ("mkfifo what exists", |at| {
        let path = c(at.join("file"));
        call!(mkfifo(path.as_ptr(), 0o644))
    }),
    // Renames and links.
    ("rename what is missing", |at| rename(at.join("missing"), at.join("new"), 0)),
    ("rename a folder into itself", |at| rename(at.join("full"), at.join("full/new"), 0)),
    ("rename a folder over its parent", |at| rename(at.join("full/inside"), at.join("full"), 0)),
    ("rename a file over a folder", |at| rename(at.join("file"), at.join("empty"), 0)),
    ("rename a folder over a file", |at| rename(at.join("empty"), at.join("file"), 0)),
    ("rename a folder over a full one", |at| rename(at.join("empty"), at.join("full"), 0)),
    ("rename a folder over an empty one", |at| rename(at.join("full"), at.join("empty"), 0)),
    ("rename to the same", |at| rename(at.join("file"), at.join("file"), 0)),
    ("rename over another name of the same file", |at| {
        link(at.join("file"), at.join("second"))?;
        rename(at.join("file"), at.join("second"), 0)
    }),
    ("rename .", |at| rename(at.join("empty/."), at.join("new"), 0)),
    ("rename without replacing", |at| rename(at.join("file"), at.join("other"), libc::RENAME_NOREPLACE)),
    ("exchange with what is missing", |at| {
        rename(at.join("file"), at.join("missing"), libc::RENAME_EXCHANGE)
    }),
    ("exchange a file with a folder", |at| rename(at.join("file"), at.join("full"), libc::RENAME_EXCHANGE)),
    ("exchange a folder with one inside", |at| {
        mkdir(at.join("full/deep"))?;
        rename(at.join("full"), at.join("full/deep"), libc::RENAME_EXCHANGE)
    }),
    ("exchange without replacing", |at| {
        rename(at.join("file"), at.join("other"), libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE)
    }),
    ("rename with flags that do not exist", |at| rename(at.join("file"), at.join("new"), 1 << 20)),
    ("rename to a name of 256 bytes", |at| rename(at.join("file"), at.join(long(256)), 0)),
    ("link of a folder", |at| link(at.join("empty"), at.join("new"))),
    ("link over what exists", |at| link(at.join("file"), at.join("other"))),
    ("link of what is missing", |at| link(at.join("missing"), at.join("new"))),
    ("link of a dangling link", |at| link(at.join("dangling"), at.join("new"))),
    ("symlink to nothing", |at| symlink(b"", at.join("new"))),
    ("symlink of 4095 bytes", |at| symlink(&[b'x'; 4095], at.join("new"))),
    ("symlink of 4096 bytes", |at| symlink(&[b'x'; 4096], at.join("new"))),
    ("symlink over what exists", |at| symlink(b"x", at.join("file"))),
    ("readlink of a file", |at| {
        let (path, mut buffer) = (c(at.join("file")), [0i8; 8]);
        // SAFETY: the buffer is as long as is said.
        outcome(unsafe { libc::readlink(path.as_ptr(), buffer.as_mut_ptr().cast(), 8) } as i64)
    }),
    // Reading and writing.
    ("read a folder", |at| with(at.join("empty"), RO, read)),
    ("read what is open for writing", |at| with(at.join("file"), libc::O_WRONLY, read)),
    ("write what is open for reading", |at| with(at.join("file"), RO, |fd| pwrite(fd, b"x", 0))),
    ("write before the start", |at| with(at.join("file"), RW, |fd| pwrite(fd, b"x", -1))),
    ("write at the very end", |at| with(at.join("file"), RW, |fd| pwrite(fd, b"xx", i64::MAX - 1))),
    ("write nothing", |at| with(at.join("file"), RW, |fd| pwrite(fd, b"", 1 << 40))),
    ("seek before the start", |at| {
        with(at.join("file"), RO, |fd| outcome(unsafe { libc::lseek(fd, -1, libc::SEEK_SET) }))
    }),
    ("seek data behind the end", |at| {
        with(at.join("file"), RO, |fd| outcome(unsafe { libc::lseek(fd, 10, libc::SEEK_DATA) }))
    }),
    ("seek a hole behind the end", |at| {
        with(at.join("file"), RO, |fd| outcome(unsafe { libc::lseek(fd, 11, libc::SEEK_HOLE) }))
    }),
    ("seek a hole", |at| {
        with(at.join("file"), RO, |fd| outcome(unsafe { libc::lseek(fd, 3, libc::SEEK_HOLE) }))
    }),
    ("seek nowhere", |at| with(at.join("file"), RO, |fd| outcome(unsafe { libc::lseek(fd, 0, 99) }))),
    ("truncate to less than nothing", |at| truncate(at.join("file"), -1)),
    ("truncate to the greatest number", |at| truncate(at.join("file"), i64::MAX)),
    ("truncate of a folder", |at| truncate(at.join("empty"), 0)),
    ("truncate of what is missing", |at| truncate(at.join("missing"), 0)),
    ("truncate of what is open for reading", |at| with(at.join("file"), RO, |fd| call!(ftruncate(fd, 0)))),
    ("truncate of a fifo", |at| truncate(at.join("fifo"), 0)),
    ("open and truncate", |at| opens(at.join("file"), RW | libc::O_TRUNC)),
    ("fsync of a folder", |at| with(at.join("empty"), RO, |fd| call!(fsync(fd)))),
    ("fallocate of nothing", |at| with(at.join("file"), RW, |fd| call!(fallocate(fd, 0, 0, 0)))),
    ("fallocate before the start", |at| with(at.join("file"), RW, |fd| call!(fallocate(fd, 0, -1, 5)))),
    ("fallocate of less than nothing", |at| with(at.join("file"), RW, |fd| call!(fallocate(fd, 0, 5, -1)))),
    ("fallocate behind the greatest number", |at| {
        with(at.join("file"), RW, |fd| call!(fallocate(fd, 0, i64::MAX - 5, 5)))
    }),
    ("fallocate over the greatest number", |at| {
        with(at.join("file"), RW, |fd| call!(fallocate(fd, 0, i64::MAX - 5, 50)))
    }),
    ("fallocate behind the end", |at| with(at.join("file"), RW, |fd| call!(fallocate(fd, 0, 5, 100)))),
    ("fallocate behind the end, keeping the size", |at| {
        with(at.join("file"), RW, |fd| call!(fallocate(fd, KEEP, 5, 100)))
    }),
    ("punch a hole", |at| with(at.join("file"), RW, |fd| call!(fallocate(fd, PUNCH | KEEP, 2, 5)))),
    ("punch a hole, not keeping the size", |at| {
        with(at.join("file"), RW, |fd| call!(fallocate(fd, PUNCH, 2, 5)))
    }),
    ("zero a range behind the end", |at| {
        with(at.join("file"), RW, |fd| call!(fallocate(fd, libc::FALLOC_FL_ZERO_RANGE, 5, 100)))
    }),
    ("fallocate with flags that do not exist", |at| {
        with(at.join("file"), RW, |fd| call!(fallocate(fd, 1 << 20, 0, 5)))
    }),
    ("fallocate of what is open for reading", |at| {
        with(at.join("file"), RO, |fd| call!(fallocate(fd, 0, 0, 50)))
    }),
    ("fallocate of a fifo", |at| with(at.join("fifo"), RW, |fd| call!(fallocate(fd, 0, 0, 50)))),
    ("fallocate of a folder", |at| with(at.join("empty"), RO, |fd| call!(fallocate(fd, 0, 0, 50)))),
    ("copy over itself", |at| with(at.join("file"), RW, |fd| copy(fd, fd, (0, 2), 5))),
    ("copy within a file", |at| with(at.join("file"), RW, |fd| copy(fd, fd, (0, 20), 5))),
    ("copy from behind the end", |at| {
        with(at.join("file"), RO, |from| with(at.join("other"), RW, |to| copy(from, to, (10, 0), 5)))
    }),
    ("copy to what appends", |at| {
        with(at.join("file"), RO, |from| {
            with(at.join("other"), RW | libc::O_APPEND, |to| copy(from, to, (0, 0), 5))
        })
    }),
    ("copy to what is open for reading", |at| {
        with(at.join("file"), RO, |from| with(at.join("other"), RO, |to| copy(from, to, (0, 0), 5)))
    }),
    ("copy from a folder", |at| {
        with(at.join("empty"), RO, |from| with(at.join("other"), RW, |to| copy(from, to, (0, 0), 5)))
    }),
    ("map for writing what is open for reading", |at| with(at.join("file"), RO, map_shared)),
    ("map for writing", |at| with(at.join("file"), RW, map_shared)),
    // Attributes.
    ("chmod of what is missing", |at| {
        let path = c(at.join("missing"));
        call!(chmod(path.as_ptr(), 0o600))
    }),
    ("chmod through a dangling link", |at| {
        let path = c(at.join("dangling"));
        call!(chmod(path.as_ptr(), 0o600))
    }),
    ("chmod of all bits", |at| {
        let path = c(at.join("file"));
        call!(chmod(path.as_ptr(), 0o7777))
    }),
    ("chown takes set-id", |at| {
        let path = c(at.join("file"));
        call!(chmod(path.as_ptr(), 0o6755))?;
        call!(chown(path.as_ptr(), 5, 6))
    }),
    ("times with too many nanoseconds", |at| {
        let (path, time) = (c(at.join("file")), libc::timespec { tv_sec: 1, tv_nsec: 1_000_000_000 });
        call!(utimensat(libc::AT_FDCWD, path.as_ptr(), [time, time].as_ptr(), 0))
    }),
    ("set an xattr", |at| set_xattr(&at.join("file"), "user.colour", 5, 0)),
    ("an xattr with a name of 255 bytes", |at| {
        set_xattr(&at.join("file"), &format!("user.{}", long(250)), 5, 0)
    }),
    ("an xattr with a name of 256 bytes", |at| {
        set_xattr(&at.join("file"), &format!("user.{}", long(251)), 5, 0)
    }),
    ("an xattr of no name space", |at| set_xattr(&at.join("file"), "nonsense.x", 5, 0)),
    ("an xattr without a name", |at| set_xattr(&at.join("file"), "", 5, 0)),
    ("an xattr with half a name", |at| set_xattr(&at.join("file"), "user.", 5, 0)),
    ("an xattr of 65537 bytes", |at| set_xattr(&at.join("file"), "user.big", 65_537, 0)),
    ("an xattr of nothing", |at| set_xattr(&at.join("file"), "user.empty", 0, 0)),
    ("create an xattr that exists", |at| {
        set_xattr(&at.join("file"), "user.a", 5, libc::XATTR_CREATE)?;
        set_xattr(&at.join("file"), "user.a", 5, libc::XATTR_CREATE)
    }),
    ("replace an xattr that is missing", |at| set_xattr(&at.join("file"), "user.a", 5, libc::XATTR_REPLACE)),
    ("set an xattr with flags that do not exist", |at| set_xattr(&at.join("file"), "user.a", 5, 8)),
    ("a user's xattr of a link", |at| set_xattr(&at.join("link"), "user.a", 5, 0)),
    ("a trusted xattr of a link", |at| set_xattr(&at.join("link"), "trusted.a", 5, 0)),
    ("a user's xattr of a fifo", |at| set_xattr(&at.join("fifo"), "user.a", 5, 0)),
    ("a user's xattr of a folder", |at| set_xattr(&at.join("empty"), "user.a", 5, 0)),
    ("get an xattr that is missing", |at| get_xattr(&at.join("file"), "user.a", 5)),
    ("get an xattr into too little", |at| {
        set_xattr(&at.join("file"), "user.a", 5, 0)?;
        get_xattr(&at.join("file"), "user.a", 4)
    }),
    ("ask how long an xattr is", |at| {
        set_xattr(&at.join("file"), "user.a", 5, 0)?;
        get_xattr(&at.join("file"), "user.a", 0)
    }),
    ("get an ACL that is not there", |at| get_xattr(&at.join("file"), "system.posix_acl_access", 100)),
    ("list xattrs into too little", |at| {
        set_xattr(&at.join("file"), "user.a", 5, 0)?;
        list_xattrs(&at.join("file"), 3)
    }),
    ("list xattrs", |at| {
        set_xattr(&at.join("file"), "user.a", 5, 0)?;
        set_xattr(&at.join("file"), "trusted.b", 5, 0)?;
        list_xattrs(&at.join("file"), 100)
    }),
    ("remove an xattr that is missing", |at| {
        let (path, name) = (c(at.join("file")), c"user.a");
        call!(removexattr(path.as_ptr(), name.as_ptr()))
    }),
    ("remove an ACL that is not there", |at| {
        let (path, name) = (c(at.join("file")), c"system.posix_acl_access");
        call!(removexattr(path.as_ptr(), name.as_ptr()))
    }),
    // Locks.
    ("lock for writing what is open for reading", |at| {
        with(at.join("file"), RO, |fd| fcntl_lock(fd, libc::F_WRLCK, 0, 0))
    }),
    ("lock for reading what is open for writing", |at| {
        with(at.join("file"), libc::O_WRONLY, |fd| fcntl_lock(fd, libc::F_RDLCK, 0, 0))
    }),
    ("lock before the start", |at| with(at.join("file"), RW, |fd| fcntl_lock(fd, libc::F_WRLCK, -5, 2))),
    ("lock backwards", |at| with(at.join("file"), RW, |fd| fcntl_lock(fd, libc::F_WRLCK, 5, -2))),
    ("lock backwards over the start", |at| {
        with(at.join("file"), RW, |fd| fcntl_lock(fd, libc::F_WRLCK, 5, -6))
    }),
    ("lock over the greatest number", |at| {
        with(at.join("file"), RW, |fd| fcntl_lock(fd, libc::F_WRLCK, i64::MAX, 2))
    }),
    ("lock of no kind", |at| with(at.join("file"), RW, |fd| fcntl_lock(fd, 77, 0, 1))),
    ("unlock what is not locked", |at| with(at.join("file"), RW, |fd| fcntl_lock(fd, libc::F_UNLCK, 0, 1))),
    ("flock of no kind", |at| with(at.join("file"), RW, |fd| call!(flock(fd, 77)))),
    ("flock of what is open for reading", |at| {
        with(at.join("file"), RO, |fd| call!(flock(fd, libc::LOCK_EX)))
    }),
    ("flock of a folder", |at| with(at.join("empty"), RO, |fd| call!(flock(fd, libc::LOCK_EX)))),
];

/// Where it is to be otherwise: see docs/SEMANTICS.md.
const OTHERWISE: &[&str] = &[];

fn prepare(at: &Path) {
    fs::create_dir(at).unwrap();
    fs::write(at.join("file"), b"0123456789").unwrap();
    fs::write(at.join("other"), b"other").unwrap();
    fs::create_dir(at.join("full")).unwrap();
    fs::write(at.join("full/inside"), b"").unwrap();
    fs::create_dir(at.join("empty")).unwrap();
    symlink(b"file", at.join("link")).unwrap();
    symlink(b"nowhere", at.join("dangling")).unwrap();
    symlink(b"loop", at.join("loop")).unwrap();
    let fifo = c(at.join("fifo"));
    call!(mkfifo(fifo.as_ptr(), 0o644)).unwrap();
}

/// Every name below with its kind, mode, owners, links, and a file's bytes.
fn tree(at: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut entries: Vec<_> = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = path.file_name().unwrap();
        let kind = meta.file_type();
        let what = match () {
            () if kind.is_dir() => "folder".into(),
            () if kind.is_symlink() => format!("to {:?}", fs::read_link(&path).unwrap()),
            () if kind.is_fifo() => "fifo".into(),
            () => format!("{:?}", fs::read(&path).unwrap()),
        };
        let (mode, uid, gid, links) = (meta.mode(), meta.uid(), meta.gid(), meta.nlink());
        found.push(format!("{name:?} {mode:o} {uid} {gid} {links} {what}"));
        if kind.is_dir() {
            found.extend(tree(&path).into_iter().map(|line| format!("  {line}")));
        }
    }
    found
}

#[test]
fn a_mount_refuses_what_a_local_disk_refuses() {
    let cluster = Cluster::start(1);
    // Not /tmp, which is a file system in memory in many places.
    let local = tempfile::Builder::new().prefix("godrive-refusals-").tempdir_in("/var/tmp").unwrap();
    let mut different = Vec::new();
    for (number, (what, call)) in CALLS.iter().enumerate() {
        let [here, there] = [cluster.mount(1), local.path()].map(|root| {
            let at = root.join(number.to_string());
            prepare(&at);
            let came_to = call(&at);
            (came_to, tree(&at))
        });
        if here != there && !OTHERWISE.contains(what) {
            let changed = here.1.iter().filter(|line| !there.1.contains(line));
            different.push(format!(
                "{what}: {:?}, on the local disk {:?}; {:?}",
                here.0,
                there.0,
                changed.collect::<Vec<_>>()
            ));
        }
    }
    assert!(different.is_empty(), "{} of {} differ:\n{}", different.len(), CALLS.len(), different.join("\n"));
}
