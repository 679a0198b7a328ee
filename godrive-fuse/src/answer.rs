//! How an operation is answered: at once by the reader's thread if the caches can, else by a task.
//!
//! A reader that waited for the network would hold up every other caller, so anything that may wait is spawned. A hop
//! to a task costs more than most answers, so what the caches know is answered in place. A panic in either ends only
//! its operation: the reply that is dropped with it answers EIO.

use crate::operations::{Operations, What};
use fuser::Errno;
use godrive_client::FsError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What all of fuser's replies have in common.
pub trait Refuse: Send + 'static {
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ident),+) => {
        $(impl Refuse for fuser::$reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        })+
    };
}

refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);

/// Runs operations. Clones share everything.
#[derive(Clone)]
pub struct Answers {
    runtime: tokio::runtime::Handle,
    operations: Arc<Operations>,
    stopping: Arc<AtomicBool>,
}

impl Answers {
    pub fn new(
        runtime: tokio::runtime::Handle,
        operations: Arc<Operations>,
        stopping: Arc<AtomicBool>,
    ) -> Self {
        Self { runtime, operations, stopping }
    }

    /// The reader's part of an operation.
    pub fn inline(&self, name: &'static str, ino: fuser::INodeNo, work: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            tracing::error!(operation = name, ino = ino.0, "the operation panicked and answers EIO");
        }
    }

    /// The rest of it, in a task. After the mount began to stop nothing new starts: it could not be flushed any more.
    pub fn spawn<R: Refuse, T: Send + 'static>(
        &self,
        what: What,
        reply: R,
        work: impl Future<Output = Result<T, FsError>> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) {
        if self.stopping() {
            return reply.refuse(Errno::ENOTCONN);
        }
        let guard = self.operations.begin(what);
        self.runtime.spawn(async move {
            let _guard = guard;
            finish(what, reply, work.await, answer);
        });
    }

    /// Runs a synchronous call that may spawn tasks of its own.
    pub fn enter<T>(&self, call: impl FnOnce() -> T) -> T {
        let _inside = self.runtime.enter();
        call()
    }

    pub fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}

/// Answers with a result, or refuses with its errno.
pub fn finish<R: Refuse, T>(what: What, reply: R, result: Result<T, FsError>, answer: impl FnOnce(R, T)) {
    match result {
        Ok(value) => answer(reply, value),
        Err(error) => refuse_with(what, reply, &error),
    }
}

/// What a program sees only as EIO, a person finds in the log.
pub fn refuse_with(what: What, reply: impl Refuse, FsError { errno, context }: &FsError) {
    if *errno == libc::EIO {
        tracing::warn!(operation = what.name, ino = %what.ino, context, "answered with EIO");
    } else {
        tracing::trace!(operation = what.name, ino = %what.ino, errno, context);
    }
    reply.refuse(Errno::from_i32(*errno));
}
