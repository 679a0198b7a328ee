//! What this kernel does with our notifications: a file system of one directory that counts what it is asked.

use crate::cluster::eventually;
use fuser::{
    Errno, FileAttr, FileType, Filesystem, Generation, INodeNo, InitFlags, KernelConfig, MountOption,
    ReplyAttr, ReplyEntry, Request,
};
use godrive_client::fs::{Invalidate, Invalidation};
use godrive_fuse::notify::Notifications;
use godrive_fuse::operations::{Operations, What};
use godrive_proto::Ino;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant, UNIX_EPOCH};

const TTL: Duration = Duration::from_secs(3600);

#[derive(Clone)]
struct Counting {
    lookups: Arc<AtomicU32>,
    attributes: Arc<AtomicU32>,
    minor: Arc<AtomicU32>,
    /// A lookup of `slow` is answered when this is told.
    slow: Arc<Mutex<mpsc::Receiver<()>>>,
    asked_slow: Arc<AtomicU32>,
}

pub fn attr(ino: u64, kind: FileType) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: 0o755,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Counting {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        self.minor.store(config.kernel_abi().1, Ordering::SeqCst);
        // As the real mount does; without it the kernel allows one lookup per directory at a time.
        config
            .add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS)
            .map_err(|_| std::io::ErrorKind::Unsupported.into())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "slow" {
            let slow = self.slow.clone();
            self.asked_slow.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || {
                let _ = slow.lock().unwrap().recv();
                reply.error(Errno::ENOENT);
            });
        } else {
            self.lookups.fetch_add(1, Ordering::SeqCst);
            reply.entry(&TTL, &attr(2, FileType::RegularFile), Generation(0));
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<fuser::FileHandle>, reply: ReplyAttr) {
        self.attributes.fetch_add(1, Ordering::SeqCst);
        let kind = if ino == INodeNo::ROOT { FileType::Directory } else { FileType::RegularFile };
        reply.attr(&TTL, &attr(ino.0, kind));
    }
}

/// Dropped in this order, so that a failed test leaves no caller waiting in the kernel.
struct Mounted {
    release_slow: mpsc::Sender<()>,
    _session: fuser::BackgroundSession,
    counting: Counting,
    operations: Arc<Operations>,
    notifications: Notifications,
    folder: tempfile::TempDir,
}

fn mount() -> Mounted {
    let folder = tempfile::tempdir().unwrap();
    let (release_slow, slow) = mpsc::channel();
    let counting = Counting {
        lookups: Arc::default(),
        attributes: Arc::default(),
        minor: Arc::default(),
        slow: Arc::new(Mutex::new(slow)),
        asked_slow: Arc::default(),
    };
    let mut config = fuser::Config::default();
    config.mount_options = vec![MountOption::FSName("counting".into())];
    let session = fuser::Session::new(counting.clone(), folder.path(), &config).unwrap();
    let operations = Arc::new(Operations::default());
    let notifications = Notifications::new(operations.clone());
    let device = session.as_fd().try_clone_to_owned().unwrap();
    notifications.attach(session.notifier(), device, counting.minor.load(Ordering::SeqCst));
    let session = session.spawn().unwrap();
    Mounted { counting, operations, notifications, folder, release_slow, _session: session }
}

/// How many lookups one more stat needs.
fn lookups(mounted: &Mounted) -> u32 {
    let before = mounted.counting.lookups.load(Ordering::SeqCst);
    fs::metadata(mounted.folder.path().join("file")).unwrap();
    mounted.counting.lookups.load(Ordering::SeqCst) - before
}

fn expire(path: &str) -> Vec<Invalidation> {
    vec![Invalidation::Entry(Ino(1), path.into())]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_name_is_asked_for_again_and_others_are_not() {
    let mounted = mount();
    assert_eq!(lookups(&mounted), 1);
    assert_eq!(lookups(&mounted), 0, "cached for an hour");
    mounted.notifications.invalidate(expire("other")).await;
    assert_eq!(lookups(&mounted), 0);
    mounted.notifications.invalidate(expire("file")).await;
    assert_eq!(lookups(&mounted), 1);
    assert_eq!(lookups(&mounted), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_are_asked_for_again() {
    let mounted = mount();
    lookups(&mounted);
    let before = mounted.counting.attributes.load(Ordering::SeqCst);
    for what in [Invalidation::Attributes(Ino(2)), Invalidation::Pages(Ino(2), 0..u64::MAX)] {
        mounted.notifications.invalidate(vec![what]).await;
        assert_eq!(lookups(&mounted), 0);
    }
    assert_eq!(mounted.counting.attributes.load(Ordering::SeqCst) - before, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_expire_while_a_lookup_in_their_directory_waits() {
    let mounted = mount();
    assert_eq!(lookups(&mounted), 1);
    let path = mounted.folder.path().join("slow");
    let waiting = std::thread::spawn(move || Path::exists(&path));
    eventually("the slow lookup arrives", || mounted.counting.asked_slow.load(Ordering::SeqCst) == 1);
    // The operation is on the list: nothing is waited for, and the name is asked for again at once.
    let guard = mounted.operations.begin(What::new("lookup", Ino(1)), 0);
    let start = Instant::now();
    mounted.notifications.invalidate(expire("file")).await;
    assert!(start.elapsed() < Duration::from_millis(100), "took {:?}", start.elapsed());
    if mounted.counting.minor.load(Ordering::SeqCst) >= 44 {
        assert_eq!(lookups(&mounted), 1);
        assert_eq!(lookups(&mounted), 0);
    }
    drop(guard);

    // It comes to the list only while the kernel already makes the notification wait: the release goes ahead then.
    let operations = mounted.operations.clone();
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(5));
        let guard = operations.begin(What::new("lookup", Ino(1)), 0);
        std::thread::sleep(Duration::from_secs(1));
        drop(guard);
    });
    let start = Instant::now();
    mounted.notifications.invalidate(expire("file")).await;
    assert!(start.elapsed() < Duration::from_millis(500), "took {:?}", start.elapsed());
    late.join().unwrap();
    mounted.release_slow.send(()).unwrap();
    assert!(!waiting.join().unwrap());
}
