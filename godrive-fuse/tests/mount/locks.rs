//! Byte-range locks and flock, between processes and between mounts.

use crate::cluster::{Cluster, eventually};
use std::fs::{self, File, OpenOptions};
use std::io::Error;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Shared with threads as it is: to close a copy of the descriptor would give up the process's locks.
fn open(path: &Path) -> Arc<File> {
    Arc::new(OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).unwrap())
}

pub fn describe(kind: i32, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

fn fcntl(file: &File, command: i32, kind: i32, start: i64, len: i64) -> Result<libc::flock, i32> {
    let mut lock = describe(kind, start, len);
    // SAFETY: the descriptor is open and the kernel fills in a lock of ours.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, &mut lock) } {
        0 => Ok(lock),
        _ => Err(Error::last_os_error().raw_os_error().unwrap()),
    }
}

fn lock(file: &File, kind: i32, start: i64, len: i64) -> Result<(), i32> {
    fcntl(file, libc::F_SETLK, kind, start, len).map(drop)
}

fn lock_waiting(file: &File, kind: i32, start: i64, len: i64) -> Result<(), i32> {
    fcntl(file, libc::F_SETLKW, kind, start, len).map(drop)
}

fn flock(file: &File, operation: i32) -> Result<(), i32> {
    // SAFETY: the descriptor is open.
    match unsafe { libc::flock(file.as_raw_fd(), operation) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error().raw_os_error().unwrap()),
    }
}

/// Takes a lock in a thread of its own; what it came to.
fn take_in_a_thread(file: &Arc<File>, kind: i32, start: i64, len: i64) -> Receiver<Result<(), i32>> {
    let (tell, told) = channel();
    let file = file.clone();
    std::thread::spawn(move || tell.send(lock_waiting(&file, kind, start, len)));
    told
}

fn waits(told: &Receiver<Result<(), i32>>) -> bool {
    told.recv_timeout(Duration::from_millis(300)).is_err()
}

fn outcome(told: &Receiver<Result<(), i32>>) -> Result<(), i32> {
    told.recv_timeout(Duration::from_secs(30)).expect("the lock was taken or refused")
}

/// A process that takes the whole file with flock(1) and says so by making another.
fn flock_process(path: &Path, taken: &Path) -> Child {
    // One process from the first to the last: nothing else inherits the descriptor for long.
    Command::new("flock")
        .arg("--no-fork")
        .arg(path)
        .args(["sh", "-c", &format!("touch {} && exec sleep 60", taken.display())])
        .spawn()
        .unwrap()
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn two_mounts_exclude_each_other() {
    let cluster = Cluster::start(2);
    let (here, there) = (open(&cluster.mount(1).join("file")), open(&cluster.mount(2).join("file")));
    assert_eq!(lock(&here, libc::F_WRLCK, 0, 10), Ok(()));
    assert_eq!(lock(&there, libc::F_WRLCK, 5, 10), Err(libc::EAGAIN));
    assert_eq!(lock(&there, libc::F_RDLCK, 9, 1), Err(libc::EAGAIN));
    assert_eq!(lock(&there, libc::F_RDLCK, 10, 0), Ok(()), "to the end of the file, wherever that will be");
    assert_eq!(lock(&here, libc::F_RDLCK, 1 << 40, 5), Ok(()), "readers share");
    let found = fcntl(&there, libc::F_GETLK, libc::F_RDLCK, 0, 100).unwrap();
    assert_eq!((i32::from(found.l_type), found.l_start, found.l_len), (libc::F_WRLCK, 0, 10));
    assert_eq!(found.l_pid, 0, "a process of another mount has no number here");
    let found = fcntl(&there, libc::F_GETLK, libc::F_WRLCK, 10, 100).unwrap();
    assert_eq!(i32::from(found.l_type), libc::F_UNLCK);
    assert_eq!(lock(&here, libc::F_UNLCK, 2, 3), Ok(()));
    assert_eq!(lock(&there, libc::F_WRLCK, 2, 3), Ok(()));
    assert_eq!(lock(&there, libc::F_WRLCK, 2, 4), Err(libc::EAGAIN));
    drop(File::open(cluster.mount(1).join("file")).unwrap());
    assert_eq!(
        lock(&there, libc::F_WRLCK, 0, 10),
        Ok(()),
        "a process that closes a file gives up its locks on it"
    );
    drop(there);
    assert_eq!(lock(&here, libc::F_WRLCK, 0, 0), Ok(()));
    assert_eq!(fcntl(&here, libc::F_SETLK, libc::F_WRLCK, -1, 1), Err(libc::EINVAL));
}

#[test]
fn a_waiter_is_woken_wherever_it_is() {
    let cluster = Cluster::start(2);
    let (here, there) = (open(&cluster.mount(1).join("file")), open(&cluster.mount(2).join("file")));
    assert_eq!(lock(&here, libc::F_WRLCK, 0, 0), Ok(()));
    let told = take_in_a_thread(&there, libc::F_RDLCK, 7, 1);
    assert!(waits(&told));
    assert_eq!(lock(&here, libc::F_UNLCK, 0, 7), Ok(()));
    assert!(waits(&told), "what was freed is not what it waits for");
    assert_eq!(lock(&here, libc::F_RDLCK, 7, 0), Ok(()));
    assert_eq!(outcome(&told), Ok(()), "a weaker lock lets it in");
    // Two who wait for each other would wait for ever.
    assert_eq!(lock(&there, libc::F_WRLCK, 0, 1), Ok(()));
    let told = take_in_a_thread(&here, libc::F_WRLCK, 0, 1);
    assert!(waits(&told));
    assert_eq!(lock_waiting(&there, libc::F_WRLCK, 7, 1), Err(libc::EDEADLK));
    drop(there);
    assert_eq!(outcome(&told), Ok(()));
}

#[test]
fn flock_is_of_the_open_file() {
    let cluster = Cluster::start(2);
    let path = cluster.mount(1).join("file");
    let (one, two, there) = (open(&path), open(&path), open(&cluster.mount(2).join("file")));
    assert_eq!(flock(&one, libc::LOCK_EX | libc::LOCK_NB), Ok(()));
    assert_eq!(flock(&two, libc::LOCK_SH | libc::LOCK_NB), Err(libc::EAGAIN));
    assert_eq!(flock(&there, libc::LOCK_SH | libc::LOCK_NB), Err(libc::EAGAIN));
    let copy = one.try_clone().unwrap();
    drop(one);
    assert_eq!(flock(&there, libc::LOCK_SH | libc::LOCK_NB), Err(libc::EAGAIN), "a copy has it still");
    assert_eq!(flock(&copy, libc::LOCK_SH | libc::LOCK_NB), Ok(()));
    assert_eq!(flock(&there, libc::LOCK_SH | libc::LOCK_NB), Ok(()));
    assert_eq!(flock(&two, libc::LOCK_EX | libc::LOCK_NB), Err(libc::EAGAIN));
    // Nobody waits for the end of a close: on another mount it is free a moment later, on the same one the next finds it free at once.
    drop(there);
    eventually("it is free there", || flock(&copy, libc::LOCK_EX | libc::LOCK_NB) == Ok(()));
    drop(copy);
    assert_eq!(flock(&two, libc::LOCK_EX | libc::LOCK_NB), Ok(()));
    for _ in 0..50 {
        let again = open(&path);
        drop(two.try_clone().unwrap());
        assert_eq!(flock(&again, libc::LOCK_EX | libc::LOCK_NB), Err(libc::EAGAIN));
    }
    drop(two);
    for _ in 0..50 {
        let again = open(&path);
        assert_eq!(flock(&again, libc::LOCK_EX | libc::LOCK_NB), Ok(()));
    }
}

#[test]
fn locks_of_open_file_descriptions_and_of_readers_end_with_the_file() {
    let cluster = Cluster::start(2);
    let path = cluster.mount(1).join("file");
    let (one, there) = (open(&path), open(&cluster.mount(2).join("file")));
    assert_eq!(fcntl(&one, libc::F_OFD_SETLK, libc::F_WRLCK, 0, 5).map(drop), Ok(()));
    drop(open(&path));
    assert_eq!(lock(&there, libc::F_WRLCK, 0, 1), Err(libc::EAGAIN), "that was another open file");
    drop(one);
    eventually("it is free", || lock(&there, libc::F_WRLCK, 0, 1) == Ok(()));
    drop(there);
    let there = open(&cluster.mount(2).join("file"));
    let reader = File::open(&path).unwrap();
    assert_eq!(lock(&reader, libc::F_RDLCK, 0, 5), Ok(()));
    assert_eq!(lock(&there, libc::F_WRLCK, 0, 1), Err(libc::EAGAIN));
    drop(reader);
    eventually("it is free", || lock(&there, libc::F_WRLCK, 0, 1) == Ok(()));
}

#[test]
fn locks_outlive_the_daemon_and_the_master() {
    let cluster = Cluster::start(2);
    let (here, there) = (open(&cluster.mount(1).join("file")), open(&cluster.mount(2).join("file")));
    assert_eq!(lock(&here, libc::F_WRLCK, 3, 5), Ok(()));
    let told = take_in_a_thread(&there, libc::F_WRLCK, 0, 0);
    assert!(waits(&told));
    crate::survival::kill_daemon(&cluster);
    assert_eq!(lock(&there, libc::F_RDLCK, 3, 1), Err(libc::EAGAIN));
    assert!(waits(&told));
    cluster.kill_nodes();
    cluster.start_nodes();
    assert_eq!(lock(&there, libc::F_RDLCK, 7, 1), Err(libc::EAGAIN));
    assert!(waits(&told));
    assert_eq!(fs::write(cluster.mount(1).join("file"), b"x").map_err(|error| error.raw_os_error()), Ok(()));
    assert_eq!(outcome(&told), Ok(()), "that write closed a descriptor of the process");
    assert_eq!(lock(&here, libc::F_RDLCK, 0, 1), Err(libc::EAGAIN));
}

#[test]
fn locks_of_a_dead_mount_are_free_after_its_lease() {
    let cluster = Cluster::start(2);
    let (here, there) = (open(&cluster.mount(1).join("file")), open(&cluster.mount(2).join("file")));
    assert_eq!(lock(&here, libc::F_WRLCK, 0, 0), Ok(()));
    cluster.kill_mount(1);
    assert_eq!(lock(&there, libc::F_WRLCK, 0, 0), Err(libc::EAGAIN), "its lease still runs");
    let begun = Instant::now();
    assert_eq!(outcome(&take_in_a_thread(&there, libc::F_WRLCK, 0, 0)), Ok(()));
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
}

#[test]
fn a_frozen_mount_loses_its_locks_and_is_told() {
    let cluster = Cluster::start(2);
    let (here, there) = (open(&cluster.mount(1).join("file")), open(&cluster.mount(2).join("file")));
    here.write_at(b"x", 0).and_then(|_| here.sync_all()).unwrap();
    assert_eq!(lock(&here, libc::F_WRLCK, 0, 0), Ok(()));
    let daemon = nix::unistd::Pid::from_raw(cluster.daemon(1));
    nix::sys::signal::kill(daemon, nix::sys::signal::Signal::SIGSTOP).unwrap();
    assert_eq!(outcome(&take_in_a_thread(&there, libc::F_WRLCK, 0, 0)), Ok(()));
    nix::sys::signal::kill(daemon, nix::sys::signal::Signal::SIGCONT).unwrap();
    eventually("its program is told", || {
        here.read_at(&mut [0], 0).is_err_and(|error| error.raw_os_error() == Some(libc::EIO))
    });
    assert_eq!(lock(&here, libc::F_RDLCK, 0, 1), Err(libc::EIO));
    drop(here);
    let again = open(&cluster.mount(1).join("file"));
    assert_eq!(lock(&again, libc::F_RDLCK, 0, 1), Err(libc::EAGAIN), "opened anew it works");
}

#[test]
fn who_waits_can_be_interrupted_and_leaves_nothing_behind() {
    let cluster = Cluster::start(2);
    let path = cluster.mount(1).join("file");
    let there = open(&cluster.mount(2).join("file"));
    let taken = cluster.mount(1).join("taken");
    assert_eq!(flock(&there, libc::LOCK_EX), Ok(()));
    let mut waiting = flock_process(&path, &taken);
    let in_kernel = || {
        let wait = fs::read_to_string(format!("/proc/{}/wchan", waiting.id())).unwrap_or_default();
        wait.contains("request_wait") || wait.contains("fuse")
    };
    eventually("it waits", in_kernel);
    let begun = Instant::now();
    let pid = nix::unistd::Pid::from_raw(waiting.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = waiting.wait().unwrap();
    assert!(!status.success() && begun.elapsed() < Duration::from_secs(2), "{status} {:?}", begun.elapsed());
    assert_eq!(flock(&there, libc::LOCK_UN), Ok(()));
    assert!(!taken.exists());
    // Nobody has it now.
    assert_eq!(flock(&there, libc::LOCK_EX | libc::LOCK_NB), Ok(()));
    assert_eq!(flock(&there, libc::LOCK_UN), Ok(()));
    let holder = flock_process(&path, &taken);
    eventually("the next one takes it", || taken.exists());
    assert_eq!(flock(&there, libc::LOCK_SH | libc::LOCK_NB), Err(libc::EAGAIN));
    end(holder);
    eventually("a killed process gives it up", || flock(&there, libc::LOCK_EX | libc::LOCK_NB) == Ok(()));
}
