//! Byte-range locks: asked of the master, and known here for as long as they are held.
//!
//! What is known here is what the callers were told. Where the master may know it otherwise, because a request was not
//! answered or nobody waits for its answer any more, its owner is *in doubt*: the master is told what the owner has until it
//! answers, and requests for the same inode wait for that. What was begun is brought to its end in a task of its own, so
//! that no request of an owner is under way when the master is told of it. Waiting takes nothing, and may be given up.
//!
//! [`telling`] has what the master is told, and what is lost and inherited.
//!
//! Owners are told apart by the kernel: a process for fcntl, an open file for flock. A session that is lost takes its locks with
//! it: whoever has such a file open gets EIO until it closes it.

mod telling;

use super::inode::Inode;
use super::mutate::is_unknown;
use super::types::Handle;
use super::{Backend, Fs};
use crate::error::{FsError, Result};
use godrive_proto::lease::ByteRange;
use godrive_proto::limits::MAX_OWNER_LOCKS;
use godrive_proto::locks::*;
use godrive_proto::{Code, Fault, Ino};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, oneshot};

/// The longest that one request waits at the master; it is repeated for as long as the caller waits.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// Requests that wait at the master at one time; the others ask again every so often.
const MAX_WAITS: usize = 64;
const ASK_EVERY: Duration = Duration::from_millis(200);

pub(super) struct Locks {
    table: Mutex<Table>,
    /// An owner is in doubt, or is no longer, or a request of it is over.
    changed: Notify,
    waits: Semaphore,
}

#[derive(Default)]
struct Table {
    owners: BTreeMap<Key, Owner>,
    doubts: u64,
    /// How often everything was lost, and how often all was declared.
    losses: u64,
    declared: u64,
    /// A task tells the master.
    tells: bool,
}

type Key = (Ino, LockOwner);

#[derive(Clone, Default)]
struct Owner {
    locks: Vec<Lock>,
    version: u64,
    /// Requests under way.
    asking: u32,
    /// Handles that were closed meanwhile: what was locked through them is free.
    closed: BTreeSet<u64>,
    /// The number of the last reason for it to be in doubt.
    doubt: Option<u64>,
}

impl Default for Locks {
    fn default() -> Self {
        Self { table: Mutex::default(), changed: Notify::new(), waits: Semaphore::new(MAX_WAITS) }
    }
}

impl Table {
    fn owner(&mut self, key: Key) -> &mut Owner {
        self.owners.entry(key).or_default()
    }

    fn doubt(&mut self, key: Key) {
        self.doubts += 1;
        let doubt = Some(self.doubts);
        self.owner(key).doubt = doubt;
    }

    fn tidy(&mut self, key: Key) {
        let over = |owner: &Owner| owner.locks.is_empty() && owner.asking == 0 && owner.doubt.is_none();
        if self.owners.get(&key).is_some_and(over) {
            self.owners.remove(&key);
        }
    }

    fn of_inode(&self, ino: Ino) -> impl Iterator<Item = (&Key, &Owner)> {
        self.owners.range((ino, LockOwner(0))..=(ino, LockOwner(u64::MAX)))
    }

    fn has_locks(&self, ino: Ino) -> bool {
        self.of_inode(ino).any(|(_, owner)| !owner.locks.is_empty())
    }
}

/// A request of one owner under way. Dropped without an answer, its outcome is not known.
struct Asking<B: Backend> {
    fs: Arc<Fs<B>>,
    key: Key,
    losses: u64,
    answered: bool,
}

impl<B: Backend> Drop for Asking<B> {
    fn drop(&mut self) {
        let in_doubt = {
            let mut table = self.fs.locks.table.lock();
            if !self.answered {
                table.doubt(self.key);
            }
            let owner = table.owner(self.key);
            owner.asking -= 1;
            let in_doubt = owner.doubt.is_some();
            if owner.asking == 0 && !in_doubt {
                owner.closed.clear();
            }
            table.tidy(self.key);
            in_doubt
        };
        self.fs.locks.changed.notify_waiters();
        if in_doubt {
            self.fs.tell_locks();
        }
    }
}

impl<B: Backend> Asking<B> {
    /// Takes in what the master says that the owner has. False: all was lost meanwhile, this too, but the session that was asked
    /// last may have granted it.
    fn granted(&mut self, locked: Locked) -> bool {
        let mut table = self.fs.locks.table.lock();
        if table.losses != self.losses {
            return false;
        }
        self.answered = true;
        let owner = table.owner(self.key);
        if locked.version > owner.version {
            (owner.version, owner.locks) = (locked.version, locked.locks);
            let all = owner.locks.len();
            owner.locks.retain(|lock| !owner.closed.contains(&lock.handle));
            // The master knows locks of files that were closed.
            self.answered = owner.locks.len() == all;
        }
        drop(table);
        self.fs.note_locks(&self.fs.table.get(self.key.0));
        true
    }

    /// A refusal says that nothing was done.
    fn refused(&mut self, fault: &Fault) {
        self.answered = !is_unknown(fault);
    }
}

impl<B: Backend> Fs<B> {
    /// Takes a lock, over what the owner has on its range. EAGAIN: another owner has it, and the caller does not wait.
    /// EDEADLK: its holder waits for the caller. Dropping the future gives up.
    pub async fn set_lock(
        self: &Arc<Self>,
        handle: Handle,
        owner: LockOwner,
        lock: Lock,
        waits: bool,
    ) -> Result<()> {
        let inode = self.sound(handle)?.inode.clone();
        let request = LockRequest { ino: inode.ino, owner, lock };
        loop {
            let (reply, taken) = oneshot::channel();
            self.runtime.spawn(self.clone().take_lock(inode.clone(), handle, request, reply));
            let ended = |_| FsError::new(libc::EIO, "taking a lock broke off");
            if taken.await.map_err(ended)?? {
                return Ok(());
            }
            if !waits {
                return Err(FsError::bare(libc::EAGAIN));
            }
            match self.locks.waits.try_acquire() {
                Ok(_place) => {
                    let wait_ms = self.longest_wait().as_millis() as u32;
                    self.backend.query::<AwaitLock>(&AwaitRequest { request, wait_ms }).await?;
                }
                Err(_) => tokio::time::sleep(ASK_EVERY).await,
            }
            self.sound(handle)?;
        }
    }

    /// One attempt. Where nobody waits for it any more, the owner keeps what it had.
    async fn take_lock(
        self: Arc<Self>,
        inode: Arc<Inode>,
        handle: Handle,
        request: LockRequest,
        reply: oneshot::Sender<Result<bool>>,
    ) {
        let taken = self.try_lock(&inode, handle, &request, &reply).await;
        if let Err(Ok(true)) = reply.send(taken) {
            // The last moment: the caller has been interrupted, and takes the lock for not taken.
            self.unlock(request.ino, request.owner, request.lock.range).await.unwrap_or_else(|error| {
                tracing::warn!(ino = %request.ino, %error, "a lock that nobody waited for any more is held");
            });
        }
    }

    async fn try_lock(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        handle: Handle,
        request: &LockRequest,
        reply: &oneshot::Sender<Result<bool>>,
    ) -> Result<bool> {
        loop {
            let mut asking = self.ask_as((request.ino, request.owner)).await?;
            match self.backend.query::<SetLock>(request).await {
                Ok(Some(_)) if reply.is_closed() => return Ok(false),
                Ok(Some(locked)) => {
                    if !asking.granted(locked) {
                        continue;
                    }
                    drop(asking);
                    if let Err(error) = self.sound(handle) {
                        self.unlock_handle(inode, handle, false);
                        return Err(error);
                    }
                    return Ok(true);
                }
                Ok(None) => {
                    asking.answered = true;
                    return Ok(false);
                }
                Err(fault) => {
                    asking.refused(&fault);
                    return Err(fault.into());
                }
            }
        }
    }

    /// Takes away what the owner has on the range. It is free here at once; the master is told until it has answered. ENOLCK: what
    /// would be left is too many pieces.
    pub async fn unlock(self: &Arc<Self>, ino: Ino, owner: LockOwner, range: ByteRange) -> Result<()> {
        if !self.has_locks(ino, owner) {
            return Ok(());
        }
        let (fs, request) = (self.clone(), UnlockRequest { ino, owner, range });
        let task = self.runtime.spawn(async move { fs.give_back_lock(request).await });
        task.await.unwrap_or_else(|_| Err(FsError::new(libc::EIO, "giving a lock back broke off")))
    }

    async fn give_back_lock(self: Arc<Self>, request: UnlockRequest) -> Result<()> {
        let UnlockRequest { ino, owner, range } = request;
        let asked = match self.ask_as((ino, owner)).await {
            Ok(mut asking) => match self.backend.query::<Unlock>(&request).await {
                Ok(locked) => {
                    asking.granted(locked);
                    return Ok(());
                }
                Err(fault) if fault.code == Code::NoLocks => {
                    asking.refused(&fault);
                    return Err(fault.into());
                }
                Err(fault) => FsError::from(fault),
            },
            Err(error) => error,
        };
        tracing::warn!(%ino, error = %asked, "a lock could not be given back yet");
        {
            let mut table = self.locks.table.lock();
            let mut left = table.owner((ino, owner)).locks.clone();
            set_range(&mut left, range, None);
            if left.len() > MAX_OWNER_LOCKS {
                return Err(FsError::bare(libc::ENOLCK));
            }
            table.owner((ino, owner)).locks = left;
            table.doubt((ino, owner));
        }
        self.note_locks(&self.table.get(ino));
        self.tell_locks();
        Ok(())
    }

    /// A lock of another owner that is in the way of this one.
    pub async fn test_lock(
        self: &Arc<Self>,
        handle: Handle,
        owner: LockOwner,
        lock: Lock,
    ) -> Result<Option<InTheWay>> {
        let ino = self.sound(handle)?.inode.ino;
        let mut asking = self.ask_as((ino, owner)).await?;
        // It changes nothing.
        asking.answered = true;
        Ok(self.backend.query::<TestLock>(&LockRequest { ino, owner, lock }).await?)
    }

    /// Whether the owner may have locks on the inode.
    pub fn has_locks(&self, ino: Ino, owner: LockOwner) -> bool {
        self.locks.table.lock().owners.contains_key(&(ino, owner))
    }

    /// The handle is closed: what was locked through it is free, and with the last one all of it.
    pub(super) fn unlock_handle(self: &Arc<Self>, inode: &Arc<Inode>, handle: Handle, last: bool) {
        let mut freed = false;
        {
            let mut table = self.locks.table.lock();
            let keys: Vec<Key> = table.of_inode(inode.ino).map(|(key, _)| *key).collect();
            for key in keys {
                let owner = table.owner(key);
                let before = owner.locks.len();
                owner.locks.retain(|lock| !last && lock.handle != handle.0);
                let less = owner.locks.len() < before;
                if less || owner.asking > 0 {
                    owner.closed.insert(handle.0);
                }
                if less {
                    table.doubt(key);
                    freed = true;
                }
            }
        }
        if freed {
            self.note_locks(inode);
            self.tell_locks();
        }
    }

    fn longest_wait(&self) -> Duration {
        self.limits.deadline.map_or(LONGEST_WAIT, |deadline| LONGEST_WAIT.min(deadline / 2))
    }

    /// Begins a request, once nobody on the inode is in doubt.
    async fn ask_as(self: &Arc<Self>, key: Key) -> Result<Asking<B>> {
        let begun = async {
            loop {
                let changed = self.locks.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                {
                    let mut table = self.locks.table.lock();
                    if !table.of_inode(key.0).any(|(_, owner)| owner.doubt.is_some()) {
                        table.owner(key).asking += 1;
                        return Asking { fs: self.clone(), key, losses: table.losses, answered: false };
                    }
                }
                changed.await;
            }
        };
        self.within("telling the master which locks there are", begun).await
    }

    /// The next daemon must know that there are locks, before whoever asked for them does.
    fn note_locks(&self, inode: &Arc<Inode>) {
        self.change(inode, |state| state.locked = self.locks.table.lock().has_locks(inode.ino));
    }
}
