//! When a lease goes back although the kernel still drops the pages, no read(2) may find the old ones: a file of two pages.

use crate::cluster::eventually;
use crate::kernel::attr;
use fuser::{
    FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request,
};
use godrive_client::fs::{Invalidate, Invalidation};
use godrive_fuse::notify::Notifications;
use godrive_fuse::operations::{Operations, What};
use godrive_proto::Ino;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const TTL: Duration = Duration::from_secs(3600);
const PAGE: u64 = 4096;
const INO: Ino = Ino(2);

/// A file whose bytes are all its version. Its first page is read only when `first` says so.
#[derive(Clone)]
struct Versioned {
    version: Arc<AtomicU8>,
    first: Arc<AtomicBool>,
    asked_first: Arc<AtomicU32>,
    asked_attributes: Arc<AtomicU32>,
    runtime: tokio::runtime::Handle,
    notifications: Notifications,
}

impl Versioned {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let changed: SystemTime =
            UNIX_EPOCH + Duration::from_secs(u64::from(self.version.load(Ordering::SeqCst)));
        match ino == INodeNo::ROOT {
            true => attr(ino.0, FileType::Directory),
            false => FileAttr {
                size: 2 * PAGE,
                mtime: changed,
                ctime: changed,
                ..attr(ino.0, FileType::RegularFile)
            },
        }
    }
}

impl Filesystem for Versioned {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        config
            .add_capabilities(InitFlags::FUSE_AUTO_INVAL_DATA | InitFlags::FUSE_ASYNC_READ)
            .map_err(|_| std::io::ErrorKind::Unsupported.into())
    }

    fn lookup(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.entry(&TTL, &self.attr(INodeNo(INO.0)), Generation(0));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(1), FopenFlags::FOPEN_KEEP_CACHE);
    }

    /// As the mount answers: not while the kernel drops pages. A notification crosses the answer.
    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.asked_attributes.fetch_add(1, Ordering::SeqCst);
        let all = self.clone();
        self.runtime.spawn(async move {
            let forgetting = all.notifications.forgetting();
            let known = forgetting.settled(Ino(ino.0), || async { Ok::<_, ()>(all.attr(ino)) }).await;
            all.notifications.invalidate(vec![Invalidation::Attributes(Ino(ino.0))]).await;
            reply.attr(&TTL, &known.unwrap());
        });
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let all = self.clone();
        std::thread::spawn(move || {
            if offset == 0 {
                all.asked_first.fetch_add(1, Ordering::SeqCst);
                eventually("the first page may be read", || all.first.load(Ordering::SeqCst));
            }
            reply.data(&vec![all.version.load(Ordering::SeqCst); size as usize]);
        });
    }
}

fn second_page(file: &File) -> u8 {
    let mut byte = [0];
    file.read_exact_at(&mut byte, PAGE).unwrap();
    byte[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn no_read_finds_pages_that_the_kernel_is_about_to_drop() {
    let folder = tempfile::tempdir().unwrap();
    let operations = Arc::new(Operations::default());
    let notifications = Notifications::new(operations.clone());
    let versioned = Versioned {
        version: Arc::new(AtomicU8::new(1)),
        first: Arc::default(),
        asked_first: Arc::default(),
        asked_attributes: Arc::default(),
        runtime: tokio::runtime::Handle::current(),
        notifications: notifications.clone(),
    };
    let mut config = fuser::Config::default();
    config.mount_options = vec![MountOption::FSName("versioned".into())];
    let session = fuser::Session::new(versioned.clone(), folder.path(), &config).unwrap();
    let device = session.as_fd().try_clone_to_owned().unwrap();
    notifications.attach(session.notifier(), device, 0);
    let _session = session.spawn().unwrap();
    let file = Arc::new(File::open(folder.path().join("file")).unwrap());
    // No read-ahead: the pages are read one by one.
    // SAFETY: plain system call on an open descriptor.
    unsafe { libc::posix_fadvise(std::os::fd::AsRawFd::as_raw_fd(&*file), 0, 0, libc::POSIX_FADV_RANDOM) };
    assert_eq!(second_page(&file), 1);

    let reader = file.clone();
    let first_page = std::thread::spawn(move || reader.read_exact_at(&mut [0], 0).unwrap());
    eventually("the first page is asked for", || versioned.asked_first.load(Ordering::SeqCst) == 1);
    // The kernel has that page locked and waits for it before it drops the second one: the release goes ahead.
    let waiting = operations.begin(What::new("read", INO), 0);
    notifications.invalidate(vec![Invalidation::Pages(INO, 0..u64::MAX)]).await;
    assert!(!notifications.forgetting().is_over(INO));
    versioned.version.store(2, Ordering::SeqCst);

    let asked = versioned.asked_attributes.load(Ordering::SeqCst);
    let second = std::thread::spawn(move || second_page(&file));
    eventually("the read asks for the attributes", || {
        versioned.asked_attributes.load(Ordering::SeqCst) > asked
    });
    drop(waiting);
    versioned.first.store(true, Ordering::SeqCst);
    first_page.join().unwrap();
    assert_eq!(second.join().unwrap(), 2);
}
