//! Mutations that the master executed, and whose reply was lost: what this mount shows then is what the master has.

use crate::cluster::{Client, Cluster};
use crate::leases::Need;
use godrive_client::driver::{Config as DriverConfig, Copy, Delta, Run, Upcalls};
use godrive_client::fs::config::Config;
use godrive_client::fs::{Backend, Caller, Found, Fs, Handle, SetAttr};
use godrive_proto::data::{Applied, Layout};
use godrive_proto::lease::{Acquire, ClusterParameters, Release, Releases};
use godrive_proto::meta::{Batch, CommitRequest, NewNode, RenameMode, SetXattrMode, Truncate};
use godrive_proto::time::Timestamp;
use godrive_proto::{Code, Epoch, Fault, Ino, Operation, ROOT};
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// What the network, the master and the slaves do to this mount.
#[derive(Default)]
struct Trouble {
    /// The next mutation is executed and not answered.
    lose: AtomicBool,
    /// The next mutation does not reach the master.
    lose_before: AtomicBool,
    /// Batches, reports of what is closed, and answers to truncations are on their way for a while.
    slow: AtomicBool,
    /// Truncations are refused.
    refuse: AtomicBool,
    /// Whoever asks for a lease waits for ever, as behind a recall that waits for the one who asks.
    no_leases: AtomicBool,
    /// Leases are given on names only.
    stale: AtomicBool,
    /// The session was not renewed in time.
    lapsed: AtomicBool,
    /// The slaves have lost with their power what was held and not stable.
    power_lost: AtomicBool,
    /// The chunks' epoch; commits that name another are refused.
    epoch: AtomicU64,
}

struct Lossy {
    client: Client,
    trouble: Arc<Trouble>,
}

fn is(flag: &AtomicBool) -> bool {
    flag.load(Ordering::SeqCst)
}

fn set(flag: &AtomicBool) {
    flag.store(true, Ordering::SeqCst);
}

impl Backend for Lossy {
    async fn query<O: Operation>(&self, request: &O::Request) -> Result<O::Reply, Fault> {
        if O::CODE == Acquire::CODE && is(&self.trouble.stale) {
            return Err(Code::Stale.into());
        }
        if O::CODE == Acquire::CODE && is(&self.trouble.no_leases) {
            std::future::pending::<()>().await;
        }
        if O::CODE == Releases::CODE && is(&self.trouble.slow) {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        self.client.query::<O>(request).await
    }

    async fn mutate<O: Operation>(&self, request: &O::Request) -> Result<O::Reply, Fault> {
        if O::CODE == Batch::CODE && is(&self.trouble.slow) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        if self.trouble.lose_before.swap(false, Ordering::SeqCst) {
            return Err(Fault::new(Code::Unreachable, "it was lost on its way"));
        }
        let epoch = Epoch(self.trouble.epoch.load(Ordering::SeqCst));
        if let Some(commit) = (request as &dyn Any).downcast_ref::<CommitRequest>()
            && epoch > Epoch(0)
            && commit.chunks.iter().any(|chunk| chunk.epoch != epoch)
        {
            return Err(Code::WrongEpoch.into());
        }
        if O::CODE == Truncate::CODE && is(&self.trouble.refuse) {
            return Err(Code::Quarantined.into());
        }
        let reply = self.client.mutate::<O>(request).await;
        if O::CODE == Truncate::CODE && is(&self.trouble.slow) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        if self.trouble.lose.swap(false, Ordering::SeqCst) {
            reply.expect("it is executed");
            return Err(Fault::new(Code::Timeout, "the reply was lost"));
        }
        reply
    }

    async fn admitted(&self) -> Result<(), Fault> {
        while is(&self.trouble.lapsed) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    fn parameters(&self) -> ClusterParameters {
        self.client.parameters()
    }

    fn lease_remaining(&self) -> Option<Duration> {
        if is(&self.trouble.lapsed) { None } else { self.client.lease_remaining() }
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

    async fn sync(&self, layout: &mut Layout) -> Result<Applied, Fault> {
        if is(&self.trouble.power_lost) && layout.held != layout.stable {
            // An election after a restart of all members.
            (layout.epoch, layout.held) = (Epoch(1 << 32), layout.stable);
            return Err(Fault::new(Code::WrongVersion, "a member came back with less"));
        }
        layout.epoch = layout.epoch.max(Epoch(self.trouble.epoch.load(Ordering::SeqCst)));
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
    trouble: Arc<Trouble>,
}

impl Mount {
    fn new() -> Self {
        let (cluster, trouble) = (Cluster::new(1), Arc::<Trouble>::default());
        let client = Client { cluster: cluster.clone(), id: 1 };
        let driver = DriverConfig::new("127.0.0.1:1".parse().unwrap(), "model");
        let config = Config { removals_in_a_row: 0, ..Config::new(driver) };
        let lossy = Lossy { client, trouble: trouble.clone() };
        Self { cluster, fs: Fs::over(Arc::new(lossy), config), trouble }
    }

    /// A file that is open for reading, and clean.
    async fn file(&self, name: &[u8]) -> (Ino, Handle) {
        let caller = Caller { uid: 0, gid: 0, umask: 0 };
        let created = self.fs.create(ROOT, name, 0o644, libc::O_RDONLY, caller).await.unwrap();
        (created.entry.attr.ino, created.opened.handle)
    }

    async fn unanswered<T>(&self, operation: impl Future<Output = godrive_client::error::Result<T>>) {
        set(&self.trouble.lose);
        let errno = operation.await.map(drop).unwrap_err().errno;
        assert_eq!((errno, is(&self.trouble.lose)), (libc::EIO, false));
    }

    /// A file that was just written, and what it holds.
    async fn dirty_file(&self) -> (Ino, Handle, [u8; 10]) {
        let caller = Caller { uid: 0, gid: 0, umask: 0 };
        let created = self.fs.create(ROOT, b"file", 0o644, libc::O_RDWR, caller).await.unwrap();
        let handle = created.value.opened.handle;
        let contents = [7; 10];
        self.fs.write(handle, 0, contents.to_vec().into(), false).await.map(drop).unwrap();
        (created.value.entry.attr.ino, handle, contents)
    }

    /// Another mount wants it alone.
    async fn recalled(&self, ino: Ino) -> Release {
        let now = self.cluster.now();
        let recalls = self.cluster.world.lock().leases.conflicts(2, &[(ino, Need::Alone)], now);
        let [(1, recall)] = recalls[..] else { panic!("one lease is in the way: {recalls:?}") };
        let released = self.fs.clone().recall(recall);
        tokio::time::timeout(Duration::from_secs(10), released).await.expect("a recall is answered")
    }

    /// A file whose close has given the lease back, as far as the master is concerned.
    async fn file_closed_unanswered() -> (Self, Ino, Handle) {
        let mount = Self::new();
        mount.cluster.world.lock().commits_again = true;
        let (ino, handle, _) = mount.dirty_file().await;
        mount.unanswered(mount.fs.flush(handle)).await;
        (mount, ino, handle)
    }

    /// The same, and the master hears that it is open.
    async fn recalled_while_open(&self, ino: Ino) {
        let release = self.recalled(ino).await;
        assert!(release.open);
        let world = &mut *self.cluster.world.lock();
        world.leases.released(1, release.id, release.keeps, ino);
        world.master.open_elsewhere(ino, 1);
    }

    fn no_violations(&self) {
        assert_eq!(self.cluster.world.lock().violations, Vec::<String>::new());
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
    set(&mount.trouble.lose);
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
    set(&mount.trouble.lose);
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
    set(&mount.trouble.slow);
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

/// Whoever asked for the lease first would wait for the recall.
#[tokio::test(start_paused = true)]
async fn a_close_and_then_a_recall() {
    for executed in [true, false] {
        let mount = Mount::new();
        mount.cluster.world.lock().commits_again = true;
        let (ino, handle, contents) = mount.dirty_file().await;
        set(if executed { &mount.trouble.lose } else { &mount.trouble.lose_before });
        assert_eq!(mount.fs.flush(handle).await.unwrap_err().errno, libc::EIO);
        set(&mount.trouble.no_leases);
        assert_eq!(mount.recalled(ino).await.keeps, None);
        assert_eq!(mount.cluster.world.lock().master.nodes[&ino].attr.size, 10);
        mount.fs.flush(handle).await.expect("nothing was lost");
        mount.trouble.no_leases.store(false, Ordering::SeqCst);
        assert_eq!(mount.fs.read(handle, 0, 100).await.unwrap().concat(), contents);
        mount.no_violations();
    }
}

/// The master has closed its chunks.
#[tokio::test(start_paused = true)]
async fn a_close_and_then_another_write() {
    let (mount, _, handle) = Mount::file_closed_unanswered().await;
    mount.fs.write(handle, 5, vec![8; 10].into(), false).await.map(drop).unwrap();
    mount.fs.fsync(handle, false).await.unwrap();
    assert_eq!(mount.fs.read(handle, 0, 100).await.unwrap().concat(), [[7; 5], [8; 5], [8; 5]].concat());
    mount.no_violations();
}

#[tokio::test(start_paused = true)]
async fn a_close_and_then_a_truncation_while_the_lease_is_recalled() {
    let (mount, ino, _) = Mount::file_closed_unanswered().await;
    set(&mount.trouble.no_leases);
    let shorter = SetAttr { size: Some(5), ..SetAttr::default() };
    let fs = mount.fs.clone();
    let truncation = tokio::spawn(async move { fs.setattr(ino, None, shorter).await.map(drop) });
    tokio::time::sleep(Duration::from_millis(50)).await;
    mount.recalled(ino).await;
    assert!(!truncation.is_finished(), "it waits for the lease");
    truncation.abort();
    mount.no_violations();
}

/// It is not asked for again: that could mean to wait for its recall.
#[tokio::test(start_paused = true)]
async fn a_lease_that_covers_again_when_the_session_is_renewed() {
    let mount = Mount::new();
    let (ino, handle, _) = mount.dirty_file().await;
    set(&mount.trouble.lapsed);
    set(&mount.trouble.no_leases);
    let fs = mount.fs.clone();
    let fsync = tokio::spawn(async move { fs.fsync(handle, false).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!fsync.is_finished());
    mount.trouble.lapsed.store(false, Ordering::SeqCst);
    mount.recalled(ino).await;
    fsync.await.unwrap().expect("nothing was lost");
    mount.no_violations();
}

#[tokio::test(start_paused = true)]
async fn a_close_that_did_not_arrive_and_then_another_epoch() {
    let mount = Mount::new();
    let (ino, handle, contents) = mount.dirty_file().await;
    set(&mount.trouble.lose_before);
    assert_eq!(mount.fs.flush(handle).await.unwrap_err().errno, libc::EIO);
    mount.trouble.epoch.store(5, Ordering::SeqCst);
    mount.fs.flush(handle).await.unwrap();
    assert_eq!(mount.fs.read(handle, 0, 100).await.unwrap().concat(), contents);
    assert_eq!(mount.cluster.world.lock().master.nodes[&ino].attr.size, 10);
    mount.no_violations();
}

#[tokio::test(start_paused = true)]
async fn a_loss_of_power_is_told_once() {
    let mount = Mount::new();
    let caller = Caller { uid: 0, gid: 0, umask: 0 };
    let (_, handle, _) = mount.dirty_file().await;
    mount.fs.flush(handle).await.unwrap();
    mount.fs.make(ROOT, b"taken", NewNode::File, 0o644, caller).await.map(drop).unwrap();
    set(&mount.trouble.power_lost);
    // And to nobody else than who has it open.
    let renamed = mount.fs.rename(ROOT, b"file", ROOT, b"taken", RenameMode::Replace).await;
    assert_eq!(renamed.unwrap_err().errno, libc::EIO);
    assert_eq!(mount.fs.fsync(handle, false).await.unwrap_err().errno, libc::EIO);
    mount.fs.fsync(handle, false).await.expect("it is told once");
}

/// One without a name is lent to nobody who comes later.
#[tokio::test(start_paused = true)]
async fn what_is_open_without_a_lease_can_be_looked_at() {
    let mount = Mount::new();
    let (ino, handle, _) = mount.dirty_file().await;
    mount.fs.fsync(handle, false).await.unwrap();
    mount.recalled(ino).await;
    set(&mount.trouble.stale);
    assert_eq!(mount.fs.getattr(ino).await.unwrap().attr.size, 10);
}

/// Other answers tell of the new length before that of the truncation is here, and raise the lease's id.
#[tokio::test(start_paused = true)]
async fn a_truncation_whose_answer_is_late() {
    let mount = Mount::new();
    let (ino, handle, _) = mount.dirty_file().await;
    mount.fs.fsync(handle, false).await.unwrap();
    mount.recalled(ROOT).await;
    set(&mount.trouble.slow);
    let length = |size| SetAttr { size: Some(size), ..SetAttr::default() };
    let fs = mount.fs.clone();
    let truncation = tokio::spawn(async move { fs.setattr(ino, None, length(0)).await.map(drop) });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let found = mount.fs.lookup(ROOT, b"file").await.unwrap().value;
    assert!(matches!(found, Found::Entry(entry) if entry.attr.size == 0), "the master has cut it");
    assert!(!truncation.is_finished());
    truncation.await.unwrap().unwrap();
    mount.fs.setattr(ino, None, length(10)).await.map(drop).unwrap();
    assert_eq!(mount.fs.read(handle, 0, 100).await.unwrap().concat(), [0; 10]);
    mount.fs.write(handle, 0, vec![8; 5].into(), false).await.map(drop).unwrap();
    mount.fs.fsync(handle, false).await.unwrap();
    mount.no_violations();
}

#[tokio::test(start_paused = true)]
async fn a_truncation_that_is_refused_drops_nothing() {
    for size in [0, 5] {
        let mount = Mount::new();
        let (ino, handle, contents) = mount.dirty_file().await;
        set(&mount.trouble.refuse);
        let shorter = SetAttr { size: Some(size), ..SetAttr::default() };
        assert!(mount.fs.setattr(ino, None, shorter).await.is_err());
        assert_eq!(mount.fs.read(handle, 0, 100).await.unwrap().concat(), contents);
        mount.fs.fsync(handle, false).await.unwrap();
        assert_eq!(mount.cluster.world.lock().master.nodes[&ino].attr.size, 10);
        mount.no_violations();
    }
}

/// That it is closed arrives late, when it is open again: the master would let it go with its last name.
#[tokio::test(start_paused = true)]
async fn a_file_that_is_opened_again_while_the_master_is_told_that_it_is_closed() {
    let mount = Mount::new();
    let (ino, handle) = mount.file(b"file").await;
    mount.recalled_while_open(ino).await;
    mount.fs.getattr(ino).await.map(drop).unwrap();
    set(&mount.trouble.slow);
    mount.fs.release(handle);
    tokio::time::sleep(Duration::from_millis(500)).await;
    mount.fs.open(ino, libc::O_RDONLY).await.map(drop).unwrap();
    mount.recalled_while_open(ino).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(mount.cluster.world.lock().master.is_open_at(ino, 1));
    mount.no_violations();
}

#[tokio::test(start_paused = true)]
async fn the_master_knows_what_was_given_up_before_the_lease_is_asked_for_again() {
    let mount = Mount::new();
    let (ino, _, _) = mount.dirty_file().await;
    let empty = SetAttr { size: Some(0), ..SetAttr::default() };
    mount.unanswered(mount.fs.setattr(ino, None, empty)).await;
    assert_eq!(mount.cluster.world.lock().given_up, 0);
    // The master takes this mount for the owner.
    mount.fs.lookup(ROOT, b"file").await.map(drop).unwrap();
    mount.fs.open(ino, libc::O_RDWR).await.map(drop).unwrap();
    assert_eq!(mount.cluster.world.lock().given_up, 1);
    mount.no_violations();
}
