//! The daemon is killed, and nobody who uses the mount sees more of it than a pause.

use crate::cluster::{Cluster, eventually};
use nix::sys::signal::Signal;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

fn kill(pid: i32) {
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// Kills the daemon of the first mount, and waits until another one serves it.
pub fn kill_daemon(cluster: &Cluster) {
    let daemon = cluster.daemon(1);
    kill(daemon);
    eventually("another daemon serves", || cluster.daemon(1) != daemon);
    fs::metadata(cluster.mount(1)).unwrap();
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn open_files_and_names_outlive_the_daemon() {
    let cluster = Cluster::start(2);
    let (here, there) = (cluster.mount(1), cluster.mount(2));
    let bytes = pattern(1, 3_000_000);
    fs::write(here.join("read"), &bytes).unwrap();
    fs::write(here.join("gone"), b"without a name").unwrap();
    fs::create_dir(here.join("folder")).unwrap();
    let mut reads = File::open(here.join("read")).unwrap();
    let unlinked = File::open(here.join("gone")).unwrap();
    fs::remove_file(here.join("gone")).unwrap();
    let mut synced = OpenOptions::new().create(true).append(true).open(here.join("synced")).unwrap();
    synced.write_all(b"before\n").unwrap();
    synced.sync_all().unwrap();
    let mut lost = File::create(here.join("lost")).unwrap();
    lost.write_all(b"never sent").unwrap();
    let mut first = vec![0; 1_000_000];
    reads.read_exact(&mut first).unwrap();
    let inside = File::open(here.join("folder")).unwrap();

    kill_daemon(&cluster);

    let mut rest = Vec::new();
    reads.read_to_end(&mut rest).unwrap();
    assert!(first == bytes[..1_000_000] && rest == bytes[1_000_000..], "the file reads otherwise");
    let mut text = String::new();
    (&unlinked).read_to_string(&mut text).unwrap();
    assert_eq!(text, "without a name");
    synced.write_all(b"after\n").unwrap();
    synced.sync_all().unwrap();
    assert_eq!(fs::read_to_string(there.join("synced")).unwrap(), "before\nafter\n");
    let refused = lost.write_all(b"more").and_then(|()| lost.sync_all());
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EIO), "bytes were lost: that must be said");
    drop(lost);
    fs::write(here.join("lost"), b"again").unwrap();
    assert_eq!(fs::read(there.join("lost")).unwrap(), b"again");
    inside.sync_all().unwrap();
    fs::write(here.join("folder/new"), b"new").unwrap();
    assert_eq!(fs::read(there.join("folder/new")).unwrap(), b"new");
    fs::rename(there.join("folder/new"), there.join("folder/old")).unwrap();
    assert!(!here.join("folder/new").exists());
    // What the other mount changes is seen, though the kernel's caches are older than the daemon.
    fs::write(there.join("read"), b"short").unwrap();
    assert_eq!(fs::read(here.join("read")).unwrap(), b"short");
    drop((unlinked, reads, synced, inside));
    cluster.godrive(&["umount", here.to_str().unwrap()]);
}

/// What programs do while daemons are killed.
struct Traffic {
    stop: AtomicBool,
    operations: AtomicU64,
    refused: AtomicU64,
}

impl Traffic {
    fn goes_on(&self) -> bool {
        self.operations.fetch_add(1, Ordering::Relaxed);
        !self.stop.load(Ordering::Relaxed)
    }

    /// EIO is an answer: what was not sent is lost, and what was asked twice may have happened. Nothing else is.
    fn only_eio<T>(&self, what: &str, result: std::io::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO), "{what}: {error}");
                self.refused.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }

    fn reader(&self, path: &Path, bytes: &[u8]) {
        let mut file = File::open(path).unwrap();
        let mut buffer = vec![0; 100_000];
        let mut at = 0;
        while self.goes_on() {
            at = (at + 77_777) % (bytes.len() as u64 - 100_000);
            file.seek(SeekFrom::Start(at)).unwrap();
            file.read_exact(&mut buffer).unwrap();
            assert!(buffer == bytes[at as usize..][..100_000], "wrong bytes at {at}");
        }
    }

    /// Each record is synced before the next is begun: none of them may be lost.
    fn writer(&self, path: &Path) {
        let mut synced = 0;
        while self.goes_on() {
            let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
            let Some(file) = self.only_eio("open", file) else { continue };
            while self.goes_on() {
                let record = [(synced as u8).wrapping_add(1); 500];
                let written = file.write_all_at(&record, synced * 500).and_then(|()| file.sync_data());
                if self.only_eio("write", written).is_none() {
                    break;
                }
                synced += 1;
                let mut last = [0; 500];
                if self.only_eio("read", file.read_exact_at(&mut last, (synced - 1) * 500)).is_none() {
                    break;
                }
                assert!(last == record, "record {synced} is not what was synced");
            }
        }
        let bytes = fs::read(path).unwrap();
        assert!(
            bytes.len() as u64 >= synced * 500,
            "{synced} records were synced, {} bytes are left",
            bytes.len()
        );
        for (index, record) in bytes.chunks(500).take(synced as usize).enumerate() {
            assert!(record.iter().all(|byte| *byte == (index as u8).wrapping_add(1)), "record {index}");
        }
    }

    fn namer(&self, folder: &Path) {
        fs::create_dir(folder).unwrap();
        let mut number = 0;
        while self.goes_on() {
            number += 1;
            let (name, other) = (folder.join(format!("a{number}")), folder.join(format!("b{number}")));
            let made = File::create_new(&name).and_then(|mut file| file.write_all(b"x"));
            if self.only_eio("create", made).is_none() {
                continue;
            }
            if self.only_eio("rename", fs::rename(&name, &other)).is_some() {
                let found = self.only_eio("stat", fs::metadata(&other));
                assert!(found.is_none_or(|meta| meta.is_file()));
                self.only_eio("remove", fs::remove_file(&other));
            }
        }
    }
}

#[test]
fn twenty_kills_under_traffic() {
    const KILLS: usize = 20;
    let cluster = Cluster::start(1);
    let here = cluster.mount(1).to_owned();
    let bytes = pattern(2, 8_000_000);
    fs::write(here.join("read"), &bytes).unwrap();
    let traffic = std::sync::Arc::new(Traffic {
        stop: AtomicBool::new(false),
        operations: AtomicU64::new(0),
        refused: AtomicU64::new(0),
    });
    let (one, two, three) = (traffic.clone(), traffic.clone(), traffic.clone());
    let (read, written, folder) = (here.join("read"), here.join("written"), here.join("folder"));
    let threads: Vec<JoinHandle<()>> = vec![
        std::thread::spawn(move || one.reader(&read, &bytes)),
        std::thread::spawn(move || two.writer(&written)),
        std::thread::spawn(move || three.namer(&folder)),
    ];
    let mut longest = Duration::ZERO;
    for _ in 0..KILLS {
        let before = traffic.operations.load(Ordering::Relaxed);
        eventually("traffic", || traffic.operations.load(Ordering::Relaxed) > before + 200);
        let start = Instant::now();
        kill_daemon(&cluster);
        longest = longest.max(start.elapsed());
        assert!(threads.iter().all(|thread| !thread.is_finished()), "a program has failed");
    }
    traffic.stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().unwrap();
    }
    let (operations, refused) =
        (traffic.operations.load(Ordering::Relaxed), traffic.refused.load(Ordering::Relaxed));
    println!("{KILLS} kills, {operations} operations, {refused} of them EIO, longest pause {longest:?}");
}

/// The master stands still until this is dropped.
struct Standstill<'a>(&'a Cluster);

impl<'a> Standstill<'a> {
    fn begin(cluster: &'a Cluster) -> Self {
        cluster.signal_node(Signal::SIGSTOP, "master-1");
        Self(cluster)
    }
}

impl Drop for Standstill<'_> {
    fn drop(&mut self) {
        self.0.signal_node(Signal::SIGCONT, "master-1");
    }
}

type Change = fn(&File, &File) -> nix::Result<()>;

/// The dead daemon may have made it, and others may have gone on from there.
#[test]
fn a_change_that_was_under_way_is_not_made_again() {
    const LEN: usize = 100_000;
    let changes: [(&str, &str, i32, Change); 7] = [
        ("truncate", "setattr", 0, |file, _| nix::unistd::ftruncate(file, 5)),
        ("chmod", "setattr", 0, |file, _| nix::sys::stat::fchmod(file, nix::sys::stat::Mode::S_IRUSR)),
        ("chown", "setattr", 0, |file, _| nix::unistd::fchown(file, Some(7.into()), None)),
        ("allocate", "fallocate", 0, |file, _| {
            let punch = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE
                | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
            nix::fcntl::fallocate(file, punch, 0, 50_000)
        }),
        ("append", "write", libc::O_APPEND, |file, _| nix::unistd::write(file, b"more").map(drop)),
        ("sync", "write", libc::O_SYNC, |file, _| nix::sys::uio::pwrite(file, b"more", 0).map(drop)),
        ("copy", "copy_file_range", 0, |file, source| {
            let (source, target) = (source.as_raw_fd(), file.as_raw_fd());
            // SAFETY: both offsets live until the call has returned.
            let copied = unsafe { libc::copy_file_range(source, &mut 0, target, &mut 10, 10_000, 0) };
            nix::errno::Errno::result(copied).map(drop)
        }),
    ];
    let cluster = Cluster::start(2);
    // So that what is under way waits, and is named in the log.
    cluster.configure(1, "hard = true\ndeadline_s = 1");
    let (here, there) = (cluster.mount(1), cluster.mount(2));
    let bytes = pattern(3, LEN);
    let source = {
        fs::write(here.join("source"), pattern(4, LEN)).unwrap();
        File::open(here.join("source")).unwrap()
    };
    let opened: Vec<File> = changes
        .iter()
        .map(|(name, _, flags, _)| {
            fs::write(there.join(name), &bytes).unwrap();
            OpenOptions::new().read(true).write(true).custom_flags(*flags).open(here.join(name)).unwrap()
        })
        .collect();
    // A copy is named by its source.
    let named = |(name, file)| if name == "copy" { &source } else { file };
    let files = changes.iter().map(|(name, ..)| *name).zip(&opened).map(named);
    let inodes: Vec<u64> = files.map(|file| file.metadata().unwrap().ino()).collect();
    // From now on this mount shares them with the other one, and knows all that the kernel asks before a change: only the change itself
    // is to wait for the master.
    for ((name, ..), file) in changes.iter().zip(&opened) {
        let owner = OpenOptions::new().write(true).open(there.join(name)).unwrap();
        owner.write_all_at(&bytes, 0).unwrap();
        owner.sync_all().unwrap();
        file.read_exact_at(&mut [0; 10], 0).unwrap();
        // SAFETY: the name is a string, and nothing is asked to be copied.
        let size = unsafe {
            libc::fgetxattr(file.as_raw_fd(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0)
        };
        assert_eq!(nix::errno::Errno::result(size), Err(nix::errno::Errno::ENODATA));
    }
    let log = cluster.log(1);
    // Soon, so that the leases which they need still last.
    let begin = Barrier::new(changes.len() + 1);
    std::thread::scope(|scope| {
        let under_way: Vec<_> = changes
            .iter()
            .zip(&opened)
            .map(|((name, _, _, change), file)| {
                let change = || {
                    begin.wait();
                    change(file, &source)
                };
                (*name, scope.spawn(change))
            })
            .collect();
        let standstill = Standstill::begin(&cluster);
        begin.wait();
        eventually("all of them are with the daemon", || {
            let log = fs::read_to_string(&log).unwrap();
            changes.iter().zip(&inodes).all(|((_, operation, ..), ino)| {
                let is_it = |line: &str| {
                    line.contains(&format!("operation=\"{operation}\" ino={ino} "))
                        && line.contains("older than")
                };
                log.lines().any(is_it)
            })
        });
        kill(cluster.daemon(1));
        drop(standstill);
        for (name, change) in under_way {
            assert_eq!(change.join().unwrap(), Err(nix::errno::Errno::EIO), "{name}");
        }
    });
    // Whether the dead daemon has made it cannot be told, but it is the same for all.
    for ((name, ..), file) in changes.iter().zip(&opened) {
        let (seen, kept) = (file.metadata().unwrap(), fs::metadata(there.join(name)).unwrap());
        assert_eq!((seen.len(), seen.mode(), seen.uid()), (kept.len(), kept.mode(), kept.uid()), "{name}");
        assert!(fs::read(here.join(name)).unwrap() == fs::read(there.join(name)).unwrap(), "{name}");
    }
}

#[test]
fn a_killed_keeper_is_replaced() {
    let cluster = Cluster::start(1);
    let file = cluster.mount(1).join("file");
    fs::write(&file, b"kept").unwrap();
    let open = File::open(&file).unwrap();
    let keeper = cluster.keeper(1);
    kill(keeper);
    eventually("another keeper", || cluster.keepers(1).iter().any(|pid| *pid != keeper));
    kill_daemon(&cluster);
    let mut text = String::new();
    (&open).read_to_string(&mut text).unwrap();
    assert_eq!(text, "kept");
}
