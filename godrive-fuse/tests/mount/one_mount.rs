//! One mount: the file system calls that ordinary programs make.

use crate::cluster::{Cluster, eventually};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

/// Bytes that differ everywhere, so that a block in the wrong place is noticed.
fn pattern(bytes: usize, salt: u64) -> Vec<u8> {
    let mut state = salt | 1;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.extend((state >> 7).to_le_bytes());
    }
    out.truncate(bytes);
    out
}

#[test]
fn what_was_written_is_read_also_after_a_new_mount() {
    let cluster = Cluster::start(1);
    let root = cluster.mount(1);
    for (name, bytes) in [("empty", 0), ("byte", 1), ("page", 4096), ("odd", 70_001), ("chunks", 40 << 20)] {
        fs::write(root.join(name), pattern(bytes, bytes as u64)).unwrap();
    }
    let check = || {
        for (name, bytes) in
            [("empty", 0), ("byte", 1), ("page", 4096), ("odd", 70_001), ("chunks", 40 << 20)]
        {
            let read = fs::read(root.join(name)).unwrap();
            assert_eq!(read.len(), bytes, "{name}");
            assert!(read == pattern(bytes, bytes as u64), "{name} differs");
        }
    };
    check();
    cluster.remount(1);
    check();
}

#[test]
fn overwrites_appends_and_truncation() {
    let cluster = Cluster::start(1);
    let path = cluster.mount(1).join("file");
    let mut model = pattern(100_000, 3);
    fs::write(&path, &model).unwrap();

    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    for (offset, bytes) in [(0, 1), (4095, 2), (50_000, 10_000), (99_999, 1), (99_000, 5000)] {
        let piece = pattern(bytes, offset as u64);
        file.write_all_at(&piece, offset as u64).unwrap();
        model.resize(model.len().max(offset + bytes), 0);
        model[offset..offset + bytes].copy_from_slice(&piece);
    }
    assert!(fs::read(&path).unwrap() == model);

    let mut appended = OpenOptions::new().append(true).open(&path).unwrap();
    for line in 0..100 {
        let line = format!("line {line}\n");
        appended.write_all(line.as_bytes()).unwrap();
        model.extend(line.as_bytes());
    }
    assert!(fs::read(&path).unwrap() == model);

    for length in [70_001, 4096, 10, 200_000, 0] {
        file.set_len(length).unwrap();
        model.resize(length as usize, 0);
        assert_eq!(fs::metadata(&path).unwrap().len(), length);
        assert!(fs::read(&path).unwrap() == model, "after truncation to {length}");
    }
    fs::write(&path, b"short").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"short", "O_TRUNC");
}

/// Whatever else a file is opened for, but not while a program runs out of it: that one goes on.
#[test]
fn opening_truncates_and_leaves_what_is_executed_as_it_is() {
    let cluster = Cluster::start(1);
    let (file, program) = (cluster.mount(1).join("file"), cluster.mount(1).join("program"));
    let open = |path: &Path, access: i32| {
        let (reads, writes) = (access != libc::O_WRONLY, access != libc::O_RDONLY);
        OpenOptions::new().read(reads).write(writes).custom_flags(libc::O_TRUNC).open(path).map(drop)
    };
    let ways = [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR];
    for access in ways {
        fs::write(&file, b"something").unwrap();
        open(&file, access).unwrap();
        assert_eq!((fs::metadata(&file).unwrap().len(), fs::read(&file).unwrap()), (0, vec![]), "{access}");
    }
    fs::copy("/bin/sleep", &program).unwrap();
    for _ in 0..50 {
        let mut running = Command::new(&program).arg("60").spawn().unwrap();
        for access in ways {
            let error = open(&program, access).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ETXTBSY), "{access}: {error}");
        }
        assert!(running.try_wait().unwrap().is_none(), "it does not go on");
        running.kill().unwrap();
        running.wait().unwrap();
    }
    assert!(fs::read(&program).unwrap() == fs::read("/bin/sleep").unwrap());
}

#[test]
fn names_move_and_vanish() {
    let cluster = Cluster::start(1);
    let root = cluster.mount(1);
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    fs::write(root.join("a/b/c/file"), b"one").unwrap();
    fs::write(root.join("old"), b"two").unwrap();
    fs::rename(root.join("a/b/c/file"), root.join("old")).unwrap();
    assert_eq!(fs::read(root.join("old")).unwrap(), b"one");
    assert_eq!(fs::metadata(root.join("a/b/c/file")).unwrap_err().kind(), ErrorKind::NotFound);

    fs::rename(root.join("a/b"), root.join("moved")).unwrap();
    assert!(root.join("moved/c").is_dir());
    assert_eq!(fs::remove_dir(root.join("moved")).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
    assert_eq!(
        fs::rename(root.join("moved"), root.join("moved/c/inside")).unwrap_err().raw_os_error(),
        Some(libc::EINVAL)
    );
    fs::remove_dir_all(root.join("moved")).unwrap();
    assert_eq!(fs::create_dir(root.join("a")).unwrap_err().kind(), ErrorKind::AlreadyExists);
    let long = "x".repeat(255);
    fs::write(root.join(&long), b"").unwrap();
    assert_eq!(
        fs::write(root.join(format!("{long}x")), b"").unwrap_err().raw_os_error(),
        Some(libc::ENAMETOOLONG)
    );
}

#[test]
fn an_unlinked_file_lives_until_its_last_handle() {
    let cluster = Cluster::start(1);
    let path = cluster.mount(1).join("file");
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all(b"before").unwrap();
    fs::remove_file(&path).unwrap();
    file.write_all(b" and after").unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.sync_all().unwrap();
    let mut read = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut read).unwrap();
    assert_eq!(read, "before and after");
    fs::write(&path, b"another").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"another");
    file.seek(SeekFrom::Start(0)).unwrap();
    read.clear();
    file.read_to_string(&mut read).unwrap();
    assert_eq!(read, "before and after", "two inodes, two contents");
}

#[test]
fn links_and_symbolic_links() {
    let cluster = Cluster::start(1);
    let root = cluster.mount(1);
    fs::write(root.join("file"), b"text").unwrap();
    fs::hard_link(root.join("file"), root.join("second")).unwrap();
    assert_eq!(fs::metadata(root.join("file")).unwrap().nlink(), 2);
    fs::remove_file(root.join("file")).unwrap();
    assert_eq!(fs::read(root.join("second")).unwrap(), b"text");
    assert_eq!(fs::metadata(root.join("second")).unwrap().nlink(), 1);

    symlink("second", root.join("pointer")).unwrap();
    assert_eq!(fs::read_link(root.join("pointer")).unwrap().to_str(), Some("second"));
    assert_eq!(fs::read(root.join("pointer")).unwrap(), b"text");
    symlink("nowhere", root.join("dangling")).unwrap();
    assert_eq!(fs::read(root.join("dangling")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn attributes() {
    let cluster = Cluster::start(1);
    let path = cluster.mount(1).join("file");
    fs::write(&path, b"text").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4751)).unwrap();
    std::os::unix::fs::chown(&path, Some(1234), Some(5678)).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (1234, 5678));
    assert_eq!(meta.mode() & 0o7777, 0o751, "a change of owner clears set-uid");
    let times = fs::FileTimes::new()
        .set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_nanos(1_234_567_890_123_456_789));
    File::options().write(true).open(&path).unwrap().set_times(times).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_234_567_890, 123_456_789));
    cluster.remount(1);
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec(), meta.uid()), (1_234_567_890, 123_456_789, 1234));
}

#[test]
fn extended_attributes() {
    let cluster = Cluster::start(1);
    let path = cluster.mount(1).join("file");
    fs::write(&path, b"text").unwrap();
    let c = |text: &str| std::ffi::CString::new(text).unwrap();
    let file = c(path.to_str().unwrap());
    let set = |name: &str, value: &[u8], flags| {
        // SAFETY: the strings end with NUL and the value has the length given.
        let result = unsafe {
            libc::setxattr(file.as_ptr(), c(name).as_ptr(), value.as_ptr().cast(), value.len(), flags)
        };
        if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().raw_os_error().unwrap()) }
    };
    let value = |name: &str| {
        let mut value = vec![0_u8; 70_000];
        // SAFETY: the buffer has the length given.
        let length = unsafe {
            libc::getxattr(file.as_ptr(), c(name).as_ptr(), value.as_mut_ptr().cast(), value.len())
        };
        let length =
            usize::try_from(length).map_err(|_| std::io::Error::last_os_error().raw_os_error().unwrap())?;
        value.truncate(length);
        Ok::<_, i32>(value)
    };
    assert_eq!(value("user.none"), Err(libc::ENODATA));
    set("user.first", b"1", 0).unwrap();
    set("user.large", &pattern(60_000, 1), libc::XATTR_CREATE).unwrap();
    assert_eq!(set("user.first", b"2", libc::XATTR_CREATE), Err(libc::EEXIST));
    assert_eq!(set("user.other", b"2", libc::XATTR_REPLACE), Err(libc::ENODATA));
    assert_eq!(value("user.first"), Ok(b"1".to_vec()));
    assert!(value("user.large") == Ok(pattern(60_000, 1)));
    let mut list = vec![0_u8; 4096];
    // SAFETY: the buffer has the length given.
    let length = unsafe { libc::listxattr(file.as_ptr(), list.as_mut_ptr().cast(), list.len()) };
    list.truncate(usize::try_from(length).unwrap());
    let names: BTreeSet<&[u8]> = list.split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    assert_eq!(names, BTreeSet::from([&b"user.first"[..], b"user.large"]));
    // SAFETY: both strings end with NUL.
    assert_eq!(unsafe { libc::removexattr(file.as_ptr(), c("user.first").as_ptr()) }, 0);
    assert_eq!(value("user.first"), Err(libc::ENODATA));
}

#[test]
fn a_directory_of_two_thousand_entries_is_listed_once_each_while_it_changes() {
    let cluster = Cluster::start(1);
    let folder = cluster.mount(1).join("many");
    fs::create_dir(&folder).unwrap();
    for number in 0..2000 {
        File::create(folder.join(format!("entry-{number:04}"))).unwrap();
    }
    let listed: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(listed.len(), 2000);
    assert_eq!(listed.iter().collect::<BTreeSet<_>>().len(), 2000);

    // Entries that exist during the whole listing appear exactly once.
    let mut seen = Vec::new();
    for (index, entry) in fs::read_dir(&folder).unwrap().enumerate() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if index % 10 == 0 {
            File::create(folder.join(format!("new-{index}"))).unwrap();
            fs::remove_file(folder.join(&name)).unwrap();
        }
        seen.push(name);
    }
    let old: Vec<_> = seen.iter().filter(|name| name.starts_with("entry-")).collect();
    assert_eq!(old.len(), 2000);
    assert_eq!(old.iter().collect::<BTreeSet<_>>().len(), 2000);
    assert_eq!(fs::metadata(&folder).unwrap().size() as usize, fs::read_dir(&folder).unwrap().count());
}

#[test]
fn mapped_files() {
    let cluster = Cluster::start(1);
    let path = cluster.mount(1).join("mapped");
    let bytes = 3 << 20;
    fs::write(&path, pattern(bytes, 5)).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    // SAFETY: a mapping of a file that nobody shortens, unmapped below with the same length.
    let mapping = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    assert_ne!(mapping, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    // SAFETY: the mapping has this length and no other reference.
    let memory = unsafe { std::slice::from_raw_parts_mut(mapping.cast::<u8>(), bytes) };
    assert!(memory == pattern(bytes, 5));
    memory[1_000_000..1_000_005].copy_from_slice(b"hello");
    // SAFETY: address and length of the mapping.
    assert_eq!(unsafe { libc::msync(mapping, bytes, libc::MS_SYNC) }, 0);
    let mut read = [0; 5];
    File::open(&path).unwrap().read_exact_at(&mut read, 1_000_000).unwrap();
    assert_eq!(&read, b"hello");
    memory[0] = b'!';
    // SAFETY: as above; the slice is not used any more.
    assert_eq!(unsafe { libc::munmap(mapping, bytes) }, 0);
    drop(file);
    cluster.remount(1);
    let mut model = pattern(bytes, 5);
    model[1_000_000..1_000_005].copy_from_slice(b"hello");
    model[0] = b'!';
    assert!(fs::read(&path).unwrap() == model);
}

/// A mapped page is written back to where it was read from, whatever the descriptor does with `write`.
#[test]
fn mapped_through_a_descriptor_that_appends() {
    let cluster = Cluster::start(1);
    let path = cluster.mount(1).join("mapped");
    let mut model = pattern(10_000, 7);
    fs::write(&path, &model).unwrap();
    let mut file = OpenOptions::new().read(true).append(true).open(&path).unwrap();
    let bytes = model.len();
    // SAFETY: a mapping of a file that nobody shortens, unmapped below with the same length.
    let mapping = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    assert_ne!(mapping, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    // SAFETY: the mapping has this length and no other reference.
    let memory = unsafe { std::slice::from_raw_parts_mut(mapping.cast::<u8>(), bytes) };
    memory[5000..5005].copy_from_slice(b"hello");
    model[5000..5005].copy_from_slice(b"hello");
    // SAFETY: address and length of the mapping.
    assert_eq!(unsafe { libc::msync(mapping, bytes, libc::MS_SYNC) }, 0);
    assert_eq!(fs::metadata(&path).unwrap().len(), bytes as u64);
    assert!(fs::read(&path).unwrap() == model);
    file.write_all(b"the end").unwrap();
    model.extend(b"the end");
    memory[0] = b'!';
    model[0] = b'!';
    // SAFETY: as above; the slice is not used any more.
    assert_eq!(unsafe { libc::munmap(mapping, bytes) }, 0);
    drop(file);
    cluster.remount(1);
    assert!(fs::read(&path).unwrap() == model);
}

#[test]
fn sparse_files_and_direct_io() {
    let cluster = Cluster::start(1);
    let path = cluster.mount(1).join("sparse");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all_at(b"start", 0).unwrap();
    file.write_all_at(b"end", 100 << 20).unwrap();
    file.sync_all().unwrap();
    let meta = file.metadata().unwrap();
    assert_eq!(meta.len(), (100 << 20) + 3);
    eventually("the blocks are counted", || file.metadata().unwrap().blocks() < 1000);
    let mut middle = vec![1; 1 << 20];
    file.read_exact_at(&mut middle, 50 << 20).unwrap();
    assert!(middle.iter().all(|byte| *byte == 0));
    // SAFETY: lseek touches no memory.
    let data = unsafe { libc::lseek(file.as_raw_fd(), 40 << 20, libc::SEEK_DATA) };
    assert!(data > 40 << 20 && data <= 100 << 20, "SEEK_DATA says {data}");
    // SAFETY: as above.
    let hole = unsafe { libc::lseek(file.as_raw_fd(), 0, libc::SEEK_HOLE) };
    assert!(hole > 0 && hole <= 50 << 20, "SEEK_HOLE says {hole}");
    // SAFETY: fallocate touches no memory.
    let punched = unsafe {
        libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 0, 4096)
    };
    assert_eq!(punched, 0, "{}", std::io::Error::last_os_error());
    let mut start = [1; 5];
    file.read_exact_at(&mut start, 0).unwrap();
    assert_eq!(start, [0; 5]);

    let direct = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    let aligned = std::alloc::Layout::from_size_align(8192, 4096).unwrap();
    // SAFETY: allocated with this layout, freed below, initialised by alloc_zeroed.
    let buffer = unsafe { std::slice::from_raw_parts_mut(std::alloc::alloc_zeroed(aligned), 8192) };
    buffer.fill(b'd');
    direct.write_all_at(buffer, 8192).unwrap();
    // SAFETY: the same pointer and layout.
    unsafe { std::alloc::dealloc(buffer.as_mut_ptr(), aligned) };
    let mut read = [0; 8192];
    file.read_exact_at(&mut read, 8192).unwrap();
    assert_eq!(read, [b'd'; 8192]);
}

#[test]
fn a_mount_whose_processes_were_all_killed_is_replaced_at_the_next_mount() {
    let cluster = Cluster::start(1);
    let path = cluster.mount(1).join("file");
    fs::write(&path, b"kept").unwrap();
    cluster.kill_mount(1);
    eventually("the dead mount answers ENOTCONN", || {
        fs::metadata(&path).is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN))
    });
    cluster.godrive(&[
        "mount",
        "--dir",
        cluster.mount(1).parent().unwrap().join("cluster").to_str().unwrap(),
        cluster.mount(1).to_str().unwrap(),
    ]);
    assert_eq!(fs::read(&path).unwrap(), b"kept", "closed data survives the death of the writer");
}

#[test]
fn ending_the_daemon_flushes() {
    let cluster = Cluster::start(1);
    let path = cluster.mount(1).join("file");
    let mut file = File::create(&path).unwrap();
    file.write_all(&pattern(5 << 20, 9)).unwrap();
    let pid = nix::unistd::Pid::from_raw(cluster.daemon(1));
    // The file is still open and unflushed: the mount is detached and flushed.
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    eventually("the daemon ends", || nix::sys::signal::kill(pid, None).is_err());
    drop(file);
    cluster.godrive(&[
        "mount",
        "--dir",
        cluster.mount(1).parent().unwrap().join("cluster").to_str().unwrap(),
        cluster.mount(1).to_str().unwrap(),
    ]);
    assert!(fs::read(&path).unwrap() == pattern(5 << 20, 9));
}

#[test]
fn removals_before_an_fsync_survive_the_death_of_the_daemon() {
    let cluster = Cluster::start(1);
    let folder = cluster.mount(1).join("folder");
    fs::create_dir(&folder).unwrap();
    for number in 0..300 {
        fs::write(folder.join(format!("{number:03}")), b"x").unwrap();
    }
    for number in 0..200 {
        fs::remove_file(folder.join(format!("{number:03}"))).unwrap();
    }
    File::open(&folder).unwrap().sync_all().unwrap();
    for number in 200..260 {
        fs::remove_file(folder.join(format!("{number:03}"))).unwrap();
    }
    cluster.kill_mount(1);
    eventually("the daemon is gone", || fs::metadata(&folder).is_err());
    cluster.godrive(&[
        "mount",
        "--dir",
        cluster.mount(1).parent().unwrap().join("cluster").to_str().unwrap(),
        cluster.mount(1).to_str().unwrap(),
    ]);
    let mut left: Vec<u32> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    left.sort();
    let first = *left.first().expect("forty were never removed");
    assert!((200..=260).contains(&first), "{first}");
    assert_eq!(left, (first..300).collect::<Vec<_>>(), "what was lost is the end of the row");
}

#[test]
fn what_was_unmounted_can_be_mounted_at_once() {
    let cluster = Cluster::start(1);
    let file = cluster.mount(1).join("file");
    fs::write(&file, b"there").unwrap();
    for _ in 0..10 {
        cluster.remount(1);
        assert_eq!(fs::read(&file).unwrap(), b"there", "it is mounted again");
    }
}
