//! Mutations that the master executed, and whose reply was lost: what this mount shows then is what the master has.

use crate::cluster::{Client, Cluster};
use godrive_client::driver::{Config as DriverConfig, Copy, Delta, Run};
use godrive_client::fs::config::Config;
use godrive_client::fs::{Backend, Caller, Found, Fs, Handle, SetAttr};
use godrive_proto::data::{Applied, Layout};
use godrive_proto::lease::ClusterParameters;
use godrive_proto::meta::{Batch, NewNode, RenameMode, SetXattrMode};
use godrive_proto::time::Timestamp;
use godrive_proto::{Code, Fault, Ino, Operation, ROOT};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

struct Lossy {
    client: Client,
    /// The next mutation is executed and not answered.
    lose: Arc<AtomicBool>,
    /// Batches are on their way for a while.
    slow: Arc<AtomicBool>,
}

impl Backend for Lossy {
    async fn query<O: Operation>(&self, request: &O::Request) -> Result<O::Reply, Fault> {
        self.client.query::<O>(request).await
    }

    async fn mutate<O: Operation>(&self, request: &O::Request) -> Result<O::Reply, Fault> {
        if O::CODE == Batch::CODE && self.slow.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let reply = self.client.mutate::<O>(request).await;
        if self.lose.swap(false, Ordering::SeqCst) {
            reply.expect("it is executed");
            return Err(Fault::new(Code::Timeout, "the reply was lost"));
        }
        reply
    }

    fn parameters(&self) -> ClusterParameters {
        self.client.parameters()
    }

    fn lease_remaining(&self) -> Option<Duration> {
        self.client.lease_remaining()
    }

    fn wall(&self) -> Timestamp {
        self.client.wall()
    }

    async fn write(&self, layout: &mut Layout, delta: Delta) -> Result<Applied, Fault> {
        self.client.write(layout, delta).await
    }

    async fn copy(&self, layout: &mut Layout, copy: Copy) -> Result<Applied, Fault> {
        self.client.copy(layout, copy).await
    }

    async fn settle(&self, layout: &mut Layout) -> Result<(), Fault> {
        self.client.settle(layout).await
    }

    async fn sync(&self, layout: &mut Layout) -> Result<Applied, Fault> {
        self.client.sync(layout).await
    }

    async fn read(&self, layout: &mut Layout, first_leaf: u32, leaves: u32) -> Result<Vec<Run>, Fault> {
        self.client.read(layout, first_leaf, leaves).await
    }

    fn meet(&self, layouts: &[Layout]) {
        self.client.meet(layouts);
    }

    async fn stop(&self) {
        self.client.stop().await;
    }
}

struct Mount {
    cluster: Arc<Cluster>,
    fs: Arc<Fs<Lossy>>,
    lose: Arc<AtomicBool>,
    slow: Arc<AtomicBool>,
}

impl Mount {
    fn new() -> Self {
        let (cluster, lose) = (Cluster::new(1), Arc::new(AtomicBool::new(false)));
        let client = Client { cluster: cluster.clone(), id: 1 };
        let driver = DriverConfig::new("127.0.0.1:1".parse().unwrap(), "model");
        let config = Config { removals_in_a_row: 0, ..Config::new(driver) };
        let slow = Arc::new(AtomicBool::new(false));
        let lossy = Lossy { client, lose: lose.clone(), slow: slow.clone() };
        Self { cluster, fs: Fs::over(Arc::new(lossy), config), lose, slow }
    }

    /// A file that is open for reading, and clean.
    async fn file(&self, name: &[u8]) -> (Ino, Handle) {
        let caller = Caller { uid: 0, gid: 0, umask: 0 };
        let created = self.fs.create(ROOT, name, 0o644, libc::O_RDONLY, caller).await.unwrap();
        (created.entry.attr.ino, created.opened.handle)
    }

    async fn unanswered<T>(&self, operation: impl Future<Output = godrive_client::error::Result<T>>) {
        self.lose.store(true, Ordering::SeqCst);
        let errno = operation.await.map(drop).unwrap_err().errno;
        assert_eq!((errno, self.lose.load(Ordering::SeqCst)), (libc::EIO, false));
    }

    async fn links(&self, ino: Ino) -> u32 {
        self.fs.getattr(ino).await.unwrap().attr.nlink
    }

    /// The last name of an open file is gone: the master keeps it until it is closed here.
    async fn ends_with(&self, ino: Ino, handle: Handle) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(self.links(ino).await, 0);
        self.fs.release(handle);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!self.cluster.world.lock().master.nodes.contains_key(&ino), "nobody has it open");
    }
}

#[tokio::test(start_paused = true)]
async fn attributes() {
    let mount = Mount::new();
    let (ino, _) = mount.file(b"file").await;
    let mode = |mode| SetAttr { mode: Some(mode), ..SetAttr::default() };
    assert_eq!(mount.fs.getattr(ino).await.unwrap().attr.mode, 0o644);
    mount.unanswered(mount.fs.setattr(ino, None, mode(0o600))).await;
    assert_eq!(mount.fs.getattr(ino).await.unwrap().attr.mode, 0o600);
    assert!(mount.fs.getxattr(ino, b"user.a").await.is_err());
    mount.unanswered(mount.fs.setxattr(ino, b"user.a", b"1", SetXattrMode::Set)).await;
    assert_eq!(&mount.fs.getxattr(ino, b"user.a").await.unwrap()[..], b"1");
    mount.unanswered(mount.fs.removexattr(ino, b"user.a")).await;
    assert_eq!(mount.fs.getxattr(ino, b"user.a").await.unwrap_err().errno, libc::ENODATA);
}

#[tokio::test(start_paused = true)]
async fn extended_attributes_of_a_file_that_is_dirty() {
    let mount = Mount::new();
    let caller = Caller { uid: 0, gid: 0, umask: 0 };
    let created = mount.fs.create(ROOT, b"file", 0o644, libc::O_RDWR, caller).await.unwrap();
    let (ino, handle) = (created.entry.attr.ino, created.opened.handle);
    mount.fs.write(handle, 0, vec![1; 10].into(), false).await.unwrap();
    mount.unanswered(mount.fs.setxattr(ino, b"user.a", b"1", SetXattrMode::Set)).await;
    assert_eq!(&mount.fs.getxattr(ino, b"user.a").await.unwrap()[..], b"1");
    assert_eq!(mount.fs.read(handle, 0, 100).await.unwrap().concat(), [1; 10], "nothing is lost");
}

#[tokio::test(start_paused = true)]
async fn names() {
    let mount = Mount::new();
    let (ino, handle) = mount.file(b"a").await;
    mount.unanswered(mount.fs.link(ino, ROOT, b"b")).await;
    assert_eq!(mount.links(ino).await, 2);
    for name in [b"a", b"b"] {
        assert!(matches!(mount.fs.lookup(ROOT, name).await.unwrap().value, Found::Entry(_)));
        mount.unanswered(mount.fs.unlink(ROOT, name)).await;
    }
    mount.ends_with(ino, handle).await;
}

#[tokio::test(start_paused = true)]
async fn a_name_that_another_took() {
    let mount = Mount::new();
    let (ino, handle) = mount.file(b"target").await;
    let (moved, closed) = mount.file(b"source").await;
    mount.fs.release(closed);
    mount.unanswered(mount.fs.rename(ROOT, b"source", ROOT, b"target", RenameMode::Replace)).await;
    let found = mount.fs.lookup(ROOT, b"target").await.unwrap().value;
    assert!(matches!(found, Found::Entry(entry) if entry.attr.ino == moved));
    mount.ends_with(ino, handle).await;
    assert_eq!(mount.links(moved).await, 1);
}

/// Files whose names this mount may remove ahead of the master.
async fn owned_files(mount: &Mount, count: u8) -> Handle {
    let caller = Caller { uid: 0, gid: 0, umask: 0 };
    for number in 0..count {
        mount.fs.make(ROOT, &[b'a' + number], NewNode::File, 0o644, caller).await.unwrap();
    }
    mount.fs.make(ROOT, b"first", NewNode::File, 0o644, caller).await.unwrap();
    mount.fs.unlink(ROOT, b"first").await.unwrap();
    let handle = mount.fs.opendir(ROOT).unwrap().handle;
    mount.fs.fsyncdir(handle).await.unwrap();
    handle
}

async fn names_left(mount: &Mount, count: u8) -> Vec<u8> {
    let mut left = Vec::new();
    for name in b'a'..b'a' + count {
        if matches!(mount.fs.lookup(ROOT, &[name]).await.unwrap().value, Found::Entry(_)) {
            left.push(name);
        }
    }
    left
}

#[tokio::test(start_paused = true)]
async fn removals_ahead_of_the_master() {
    let mount = Mount::new();
    let handle = owned_files(&mount, 6).await;
    mount.lose.store(true, Ordering::SeqCst);
    for name in [b"a", b"b"] {
        assert!(mount.fs.try_unlink(ROOT, name).unwrap().is_ok());
    }
    // The master has followed them, and nobody here knows: the directory is read anew.
    assert_eq!(mount.fs.fsyncdir(handle).await.unwrap_err().errno, libc::EIO);
    assert_eq!(mount.fs.stats().errors_after_close, 1);
    assert_eq!(names_left(&mount, 6).await, b"cdef");
    mount.fs.fsyncdir(handle).await.expect("it is told once");
    mount.fs.unlink(ROOT, b"c").await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let inodes = mount.cluster.world.lock().master.nodes.len();
    assert_eq!(inodes, 4, "the root and three files; what was removed was let go");
    assert_eq!(mount.cluster.world.lock().violations, Vec::<String>::new());
    mount.fs.releasedir(handle);
}

/// That this cannot happen does not mean that it never does.
#[tokio::test(start_paused = true)]
async fn a_removal_that_the_master_refuses_and_those_behind_it() {
    let mount = Mount::new();
    let handle = owned_files(&mount, 6).await;
    mount.cluster.world.lock().master.forget_name(ROOT, b"c");
    for name in [b"a", b"b", b"c", b"d"] {
        assert!(mount.fs.try_unlink(ROOT, name).unwrap().is_ok());
    }
    assert_eq!(mount.fs.fsyncdir(handle).await.unwrap_err().errno, libc::EIO);
    assert_eq!(names_left(&mount, 6).await, b"def", "those before it are gone, those behind it are not");
    mount.fs.unlink(ROOT, b"d").await.unwrap();
    mount.fs.fsyncdir(handle).await.unwrap();
    assert_eq!(names_left(&mount, 6).await, b"ef");
    assert_eq!(mount.cluster.world.lock().violations.len(), 2, "the batch, and the step alone");
    mount.fs.releasedir(handle);
}

/// Where a removal is lost, so is what would have come behind it: it does not happen, and says so.
#[tokio::test(start_paused = true)]
async fn a_change_behind_a_lost_removal() {
    let mount = Mount::new();
    let caller = Caller { uid: 0, gid: 0, umask: 0 };
    let (_, handle) = mount.file(b"file").await;
    mount.fs.release(handle);
    let made = mount.fs.make(ROOT, b"other", NewNode::File, 0o644, caller).await.unwrap();
    mount.fs.unlink(ROOT, b"file").await.unwrap();
    let root = mount.fs.opendir(ROOT).unwrap().handle;
    mount.fs.fsyncdir(root).await.unwrap();
    mount.lose.store(true, Ordering::SeqCst);
    assert!(mount.fs.try_unlink(ROOT, b"other").is_some());
    drop(made);
    let behind = mount.fs.make(ROOT, b"behind", NewNode::Directory, 0o755, caller).await;
    assert_eq!(behind.map(drop).unwrap_err().errno, libc::EIO);
    assert!(matches!(mount.fs.lookup(ROOT, b"behind").await.unwrap().value, Found::Missing(_)));
    assert_eq!(mount.fs.fsyncdir(root).await.unwrap_err().errno, libc::EIO);
    mount.fs.make(ROOT, b"behind", NewNode::Directory, 0o755, caller).await.map(drop).unwrap();
    mount.fs.fsyncdir(root).await.unwrap();
}

/// A file that lost a name here is written and closed through another: the close must not give the lease away that the
/// removal needs.
#[tokio::test(start_paused = true)]
async fn a_close_behind_the_removal_of_another_name() {
    let mount = Mount::new();
    let caller = Caller { uid: 0, gid: 0, umask: 0 };
    let linked = mount.fs.make(ROOT, b"one", NewNode::File, 0o644, caller).await.unwrap().attr.ino;
    mount.fs.link(linked, ROOT, b"two").await.map(drop).unwrap();
    mount.fs.make(ROOT, b"first", NewNode::File, 0o644, caller).await.map(drop).unwrap();
    mount.fs.unlink(ROOT, b"first").await.unwrap();
    let root = mount.fs.opendir(ROOT).unwrap().handle;
    mount.fs.fsyncdir(root).await.unwrap();
    mount.slow.store(true, Ordering::SeqCst);
    assert!(mount.fs.try_unlink(ROOT, b"one").is_some());
    let handle = mount.fs.open(linked, libc::O_WRONLY).await.unwrap().value.handle;
    mount.fs.write(handle, 0, vec![7; 100].into(), false).await.unwrap();
    mount.fs.flush(handle).await.unwrap();
    mount.fs.release(handle);
    assert!(mount.cluster.world.lock().master.nodes[&ROOT].entries.len() == 2, "it is not followed yet");
    mount.fs.fsyncdir(root).await.unwrap();
    assert_eq!(mount.cluster.world.lock().master.nodes[&ROOT].entries.len(), 1);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(mount.links(linked).await, 1);
    assert_eq!(mount.cluster.world.lock().violations, Vec::<String>::new());
}
