//! Telling the kernel to forget: what a recalled lease makes necessary.
//!
//! A notification may have to wait for a lock that the kernel holds for one of our own callers: the pages of a
//! READ or WRITE under way, the directory of a lookup or create under way. And that operation may in turn wait for
//! another mount, which waits for the very release that this notification belongs to. So no notification is waited
//! for without end: each runs in a thread of its own, and when an operation on the same inode is found waiting,
//! the release goes ahead while the thread completes later. What keeps that sound:
//!
//! - Of an inode the kernel drops the attributes first, which waits for nothing, and with AUTO_INVAL_DATA every
//!   read(2) then asks for them again, so that it meets the lease. It is answered when the pages are gone ([`Forgetting`]): the kernel
//!   ignores an answer that crosses a notification, and would go on with pages that are still there.
//! - Of a directory all names of the mount are expired at once by raising the connection's epoch, which takes no
//!   lock (Linux 6.16). Older kernels have no such call: there a name may be found stale until the operation that
//!   is under way in its directory was answered.
//!
//! Names are expired, not dropped: the next walk asks for each again and keeps it if it is the same, so that working
//! directories and the pages of unchanged files stay.

use crate::operations::Operations;
use bytes::Bytes;
use fuser::{INodeNo, Notifier};
use godrive_client::driver::BoxFuture;
use godrive_client::fs::{Invalidate, Invalidation};
use godrive_proto::Ino;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::io::{IoSlice, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How long a notification waits while an operation on its inode waits, before the release goes ahead without it.
/// The client leaves out pages that waiting operations have locked, so that those are rarely met.
const GRACE_PAGES: Duration = Duration::from_millis(250);
const GRACE_NAMES: Duration = Duration::from_millis(10);
/// The kernel needs the page for a moment.
const GRACE_LENGTH: Duration = Duration::from_millis(20);
/// And this long if none is waiting, for example while the kernel drops gigabytes of pages.
const PATIENCE: Duration = Duration::from_secs(4);
const GLANCE: Duration = Duration::from_millis(2);
/// Expiring more names than this one by one costs more than expiring all at once.
const MANY_NAMES: usize = 8192;

/// Notifications about pages that one call has under way at a time.
const MAX_UNDER_WAY: usize = 64;

/// The kernel's interface from this version on can expire all names at once.
const MINOR_WITH_EPOCHS: u32 = 44;

pub const NOTIFY_INVAL_INODE: i32 = 2;
const NOTIFY_INVAL_ENTRY: i32 = 3;
pub const NOTIFY_INC_EPOCH: i32 = 8;
const EXPIRE_ONLY: u32 = 1;

/// Everything that can be told to the kernel; clones share it. Made before the mount, because the client needs it first; until
/// [`Notifications::attach`] there is no kernel cache to invalidate.
#[derive(Clone)]
pub struct Notifications {
    kernel: Arc<OnceLock<Arc<Kernel>>>,
    /// The kernel has caches already, and is attached soon: what must be told waits for that.
    awaited: bool,
    attached: Arc<Notify>,
    operations: Arc<Operations>,
    forgetting: Arc<Forgetting>,
    workers: Workers,
    /// Releases that went ahead of their notification, for the log.
    overtaken: Arc<AtomicU64>,
}

struct Kernel {
    notifier: Notifier,
    device: File,
    epochs: bool,
}

impl Notifications {
    pub fn new(operations: Arc<Operations>) -> Self {
        Self::of(operations, false)
    }

    /// For a mount that the kernel has already.
    pub fn awaiting(operations: Arc<Operations>) -> Self {
        Self::of(operations, true)
    }

    fn of(operations: Arc<Operations>, awaited: bool) -> Self {
        Self {
            kernel: Arc::default(),
            awaited,
            attached: Arc::default(),
            operations,
            forgetting: Arc::default(),
            workers: Workers::default(),
            overtaken: Arc::default(),
        }
    }

    /// Whose pages the kernel still drops.
    pub fn forgetting(&self) -> Arc<Forgetting> {
        self.forgetting.clone()
    }

    /// The mount exists from now on. `device` is a duplicate of its /dev/fuse descriptor.
    pub fn attach(&self, notifier: Notifier, device: OwnedFd, minor: u32) {
        let epochs = minor >= MINOR_WITH_EPOCHS;
        if !epochs {
            tracing::info!(minor, "this kernel cannot expire all names at once (Linux 6.16 can)");
        }
        if self.kernel.set(Arc::new(Kernel { notifier, device: device.into(), epochs })).is_err() {
            tracing::error!("a second mount was attached to the same notifications; it is ignored");
        }
        self.attached.notify_waiters();
    }

    /// The kernel, once there is one; None: it has no caches of this mount.
    async fn kernel(&self) -> Option<Arc<Kernel>> {
        loop {
            let mut attached = std::pin::pin!(self.attached.notified());
            attached.as_mut().enable();
            if let Some(kernel) = self.kernel.get() {
                return Some(kernel.clone());
            }
            if !self.awaited {
                return None;
            }
            attached.await;
        }
    }

    /// Drops the attributes of an inode; of its pages those in the range (of a directory: its cached listing).
    async fn pages(&self, ino: Ino, range: Range<u64>, dropping: Dropping) {
        let Some(kernel) = self.kernel().await else { return };
        kernel.drop_attributes(ino);
        // A length of 0 means to the end.
        let (offset, len) = (signed(range.start), range.end.checked_sub(range.start).map_or(0, signed));
        let len = if len == i64::MAX { 0 } else { len };
        let told = self.tell(ino, GRACE_PAGES, move || {
            log(kernel.notifier.inval_inode(INodeNo(ino.0), offset, len), ino);
            drop(dropping);
        });
        if !told.await {
            self.overtake(ino, "pages");
        }
    }

    /// Drops the attributes and no pages, which waits for nothing.
    async fn attributes(&self, ino: Ino) {
        if let Some(kernel) = self.kernel().await {
            kernel.drop_attributes(ino);
        }
    }

    /// Expires names of a directory.
    async fn names(&self, parent: Ino, names: Vec<Vec<u8>>) {
        let Some(kernel) = self.kernel().await else { return };
        if kernel.epochs && (names.len() > MANY_NAMES || self.operations.waiting_on(parent).is_some()) {
            return log(kernel.expire_all(), parent);
        }
        let teller = kernel.clone();
        let told = self.tell(parent, GRACE_NAMES, move || {
            for name in &names {
                log(teller.expire(parent, name), parent);
            }
        });
        if told.await {
            return;
        }
        if kernel.epochs {
            log(kernel.expire_all(), parent);
        } else {
            self.overtake(parent, "names");
        }
    }

    /// Makes an inode reach as far as this byte.
    async fn last_byte(&self, ino: Ino, offset: u64, byte: Bytes) {
        let Some(kernel) = self.kernel().await else { return };
        let late = Arc::new(AtomicBool::new(false));
        let is_late = late.clone();
        let notification = move || {
            log(kernel.notifier.store(INodeNo(ino.0), offset, &byte), ino);
            if is_late.load(Ordering::SeqCst) {
                // By now it may be another byte's place.
                log(kernel.notifier.inval_inode(INodeNo(ino.0), signed(offset), 1), ino);
            }
        };
        if !self.tell(ino, GRACE_LENGTH, notification).await {
            late.store(true, Ordering::SeqCst);
            self.overtake(ino, "length");
        }
    }

    /// Runs a notification elsewhere and waits as long as that is safe. False: it is still under way.
    async fn tell(&self, ino: Ino, grace: Duration, notification: impl FnOnce() + Send + 'static) -> bool {
        let (done, mut told) = oneshot::channel();
        self.workers.run(Job { notification: Box::new(notification), done });
        let start = Instant::now();
        loop {
            if let Ok(ended) = tokio::time::timeout(GLANCE, &mut told).await {
                // An error is a panic in the notification, which ended it too.
                drop(ended);
                return true;
            }
            let blocked = self.operations.waiting_on(ino).is_some_and(|age| age > grace);
            if start.elapsed() > PATIENCE || (blocked && start.elapsed() > grace) {
                return false;
            }
        }
    }

    fn overtake(&self, ino: Ino, what: &'static str) {
        let total = self.overtaken.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::debug!(%ino, what, total, "a lease goes back while the kernel still drops its cache");
    }
}

/// All of it at once, for what blocks one must not hold back another.
impl Invalidate for Notifications {
    fn invalidate(&self, what: Vec<Invalidation>) -> BoxFuture<'static, ()> {
        let all = self.clone();
        let mut names: BTreeMap<Ino, Vec<Vec<u8>>> = BTreeMap::new();
        let (mut pages, mut attributes) = (Vec::new(), Vec::new());
        for one in what {
            match one {
                Invalidation::Attributes(ino) => attributes.push(ino),
                Invalidation::Pages(ino, range) => pages.push((ino, range, self.forgetting.begin(ino))),
                Invalidation::Entry(parent, name) => names.entry(parent).or_default().push(name),
            }
        }
        Box::pin(async move {
            for ino in attributes {
                all.attributes(ino).await;
            }
            let mut under_way = JoinSet::new();
            for (ino, range, dropping) in pages {
                // Each may take a thread.
                while under_way.len() >= MAX_UNDER_WAY {
                    under_way.join_next().await;
                }
                let all = all.clone();
                under_way.spawn(async move { all.pages(ino, range, dropping).await });
            }
            for (parent, names) in names {
                let all = all.clone();
                under_way.spawn(async move { all.names(parent, names).await });
            }
            under_way.join_all().await;
        })
    }

    fn is_forgetting(&self, ino: Ino) -> bool {
        !self.forgetting.is_over(ino)
    }

    fn reaches(&self, ino: Ino, offset: u64, last: Bytes) -> BoxFuture<'static, ()> {
        let all = self.clone();
        Box::pin(async move { all.last_byte(ino, offset, last).await })
    }
}

/// The inodes whose pages the kernel drops, from the moment at which that was asked for.
#[derive(Default)]
pub struct Forgetting {
    /// How many there are: most of the time none, and then no answer takes the lock.
    count: AtomicUsize,
    inodes: Mutex<BTreeMap<Ino, usize>>,
    ended: Notify,
}

impl Forgetting {
    fn begin(self: &Arc<Self>, ino: Ino) -> Dropping {
        self.count.fetch_add(1, Ordering::SeqCst);
        *self.inodes.lock().entry(ino).or_default() += 1;
        Dropping { forgetting: self.clone(), ino }
    }

    /// What `ask` says while no pages of the inode are being dropped: read(2) asks for attributes before it looks at pages.
    pub async fn settled<T, E, F: Future<Output = Result<T, E>>>(
        &self,
        ino: Ino,
        ask: impl Fn() -> F,
    ) -> Result<T, E> {
        loop {
            self.over(ino).await;
            // A recall waits for who holds the answer, so the wait is without it.
            let answer = ask().await?;
            if self.is_over(ino) {
                return Ok(answer);
            }
        }
    }

    /// The kernel has forgotten what it was told to.
    pub fn is_over(&self, ino: Ino) -> bool {
        self.count.load(Ordering::SeqCst) == 0 || !self.inodes.lock().contains_key(&ino)
    }

    async fn over(&self, ino: Ino) {
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            ended.as_mut().enable();
            if self.is_over(ino) {
                return;
            }
            ended.await;
        }
    }
}

struct Dropping {
    forgetting: Arc<Forgetting>,
    ino: Ino,
}

impl Drop for Dropping {
    fn drop(&mut self) {
        let mut inodes = self.forgetting.inodes.lock();
        self.forgetting.count.fetch_sub(1, Ordering::SeqCst);
        if let Some(count) = inodes.get_mut(&self.ino) {
            *count -= 1;
            if *count == 0 {
                inodes.remove(&self.ino);
                self.forgetting.ended.notify_waiters();
            }
        }
    }
}

impl Kernel {
    /// Drops no pages, so that it waits for nothing.
    fn drop_attributes(&self, ino: Ino) {
        log(self.notifier.inval_inode(INodeNo(ino.0), -1, 0), ino);
    }

    /// Lets the next walk over this name ask again.
    fn expire(&self, parent: Ino, name: &[u8]) -> io::Result<()> {
        let mut body = Vec::with_capacity(17 + name.len());
        body.extend(parent.0.to_ne_bytes());
        body.extend(u32::try_from(name.len()).map_err(io::Error::other)?.to_ne_bytes());
        body.extend(EXPIRE_ONLY.to_ne_bytes());
        body.extend(name);
        body.push(0);
        self.send(NOTIFY_INVAL_ENTRY, &body)
    }

    /// Lets every walk over every name of this mount ask again.
    fn expire_all(&self) -> io::Result<()> {
        self.send(NOTIFY_INC_EPOCH, &[])
    }

    /// One message in the kernel's format: length, code, the id 0 of a notification, body.
    fn send(&self, code: i32, body: &[u8]) -> io::Result<()> {
        let header = header(code, body.len())?;
        // The kernel takes a message whole or not at all.
        (&self.device).write_vectored(&[IoSlice::new(&header), IoSlice::new(body)]).map(|_| ())
    }
}

/// A notification's header.
pub fn header(code: i32, body_bytes: usize) -> io::Result<[u8; 16]> {
    let length = u32::try_from(16 + body_bytes).map_err(io::Error::other)?;
    let mut header = [0; 16];
    header[..4].copy_from_slice(&length.to_ne_bytes());
    header[4..8].copy_from_slice(&code.to_ne_bytes());
    Ok(header)
}

/// The kernel's offsets are signed.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// ENOENT says that the kernel has nothing to forget, ENOTCONN and ENODEV that the mount is gone.
fn log(result: io::Result<()>, ino: Ino) {
    match result.as_ref().map_err(io::Error::raw_os_error) {
        Ok(()) | Err(Some(libc::ENOENT | libc::ENOTCONN | libc::ENODEV | libc::ENOTDIR)) => {}
        Err(_) => {
            tracing::warn!(%ino, ?result, "the kernel refused a notification; its cache ends with its time to live")
        }
    }
}

struct Job {
    notification: Box<dyn FnOnce() + Send>,
    done: oneshot::Sender<()>,
}

/// Threads that may get stuck in the kernel. One that is stuck is simply not idle; another is started.
#[derive(Clone, Default)]
struct Workers {
    idle: Arc<Mutex<Vec<mpsc::Sender<Job>>>>,
}

impl Workers {
    fn run(&self, mut job: Job) {
        loop {
            let Some(worker) = self.idle.lock().pop() else { break };
            match worker.send(job) {
                Ok(()) => return,
                Err(mpsc::SendError(returned)) => job = returned,
            }
        }
        let (worker, jobs) = mpsc::channel::<Job>();
        let idle = self.idle.clone();
        #[expect(clippy::disallowed_methods, reason = "notifications block in the kernel")]
        std::thread::spawn(move || {
            let mut next = Ok(job);
            while let Ok(job) = next {
                (job.notification)();
                idle.lock().push(worker.clone());
                // Nobody listens any more if the release went ahead.
                let _ = job.done.send(());
                next = jobs.recv();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::What;

    #[test]
    fn a_message_has_the_kernels_format() {
        assert_eq!(header(NOTIFY_INC_EPOCH, 0).unwrap(), [16, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(signed(u64::MAX), i64::MAX);
    }

    #[tokio::test]
    async fn an_idle_thread_is_used_again_and_a_stuck_one_is_not_waited_for() {
        let notifications = Notifications::new(Arc::default());
        let (entered, started) = mpsc::channel();
        for _ in 0..10 {
            let entered = entered.clone();
            assert!(
                notifications
                    .tell(Ino(1), GRACE_NAMES, move || entered.send(std::thread::current().id()).unwrap())
                    .await
            );
        }
        let mut threads: Vec<_> = started.try_iter().collect();
        assert_eq!(threads.len(), 10);
        threads.dedup();
        assert_eq!(threads.len(), 1, "the thread was idle each time");

        let (release, stuck) = mpsc::channel::<()>();
        let guard = notifications.operations.begin(What::new("write", Ino(2)), 0);
        let blocked = notifications.tell(Ino(2), GRACE_NAMES, move || assert!(stuck.recv().is_err()));
        assert!(!blocked.await, "the release goes ahead");
        drop(guard);
        assert!(notifications.tell(Ino(3), GRACE_NAMES, || {}).await, "another thread answers meanwhile");
        drop(release);
    }

    #[tokio::test]
    async fn without_a_mount_there_is_nothing_to_tell() {
        let notifications = Notifications::new(Arc::default());
        let all = vec![
            Invalidation::Attributes(Ino(1)),
            Invalidation::Pages(Ino(1), 0..u64::MAX),
            Invalidation::Entry(Ino(1), b"a".to_vec()),
        ];
        notifications.invalidate(all).await;
        assert!(notifications.forgetting().is_over(Ino(1)));
    }

    #[tokio::test]
    async fn it_is_over_when_the_last_notification_of_an_inode_has_ended() {
        let forgetting = Arc::new(Forgetting::default());
        let (first, second, other) =
            (forgetting.begin(Ino(1)), forgetting.begin(Ino(1)), forgetting.begin(Ino(2)));
        let waiting = tokio::spawn({
            let forgetting = forgetting.clone();
            async move { forgetting.settled(Ino(1), || async { Ok::<_, ()>(7) }).await }
        });
        drop(first);
        tokio::task::yield_now().await;
        assert!(!forgetting.is_over(Ino(1)) && !waiting.is_finished());
        drop(second);
        assert_eq!(waiting.await.unwrap(), Ok(7));
        assert!(forgetting.is_over(Ino(1)) && !forgetting.is_over(Ino(2)));
        drop(other);
        assert!(forgetting.is_over(Ino(2)));

        // One that begins while the answer is sought is waited for too.
        let (asked, began) = (std::cell::Cell::new(0), std::cell::RefCell::new(None));
        let answer = forgetting.settled(Ino(3), || {
            asked.set(asked.get() + 1);
            if asked.get() == 1 {
                *began.borrow_mut() = Some(forgetting.begin(Ino(3)));
            }
            std::future::ready(Ok::<_, ()>(asked.get()))
        });
        let end = async {
            while began.borrow().is_none() {
                tokio::task::yield_now().await;
            }
            drop(began.take());
        };
        assert_eq!(tokio::join!(answer, end).0, Ok(2));
    }
}
