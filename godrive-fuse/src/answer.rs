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
    ReplyLock,
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
    pub fn inline(
        &self,
        name: &'static str,
        request: &fuser::Request,
        ino: fuser::INodeNo,
        work: impl FnOnce(),
    ) {
        let asked = Asked { pid: request.pid(), again: request.unique().0 & RESENT != 0 };
        if asked.is_in_doubt(name) {
            tracing::warn!(
                operation = name,
                ino = ino.0,
                "asked of a daemon that was killed; answered with EIO"
            );
            // The reply is dropped with it, which answers EIO.
            return drop(work);
        }
        Asked::now(asked);
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
        self.spawn_or_undo(what, reply, work, answer, drop);
    }

    /// The same; `undo` takes what nobody waits for any more.
    pub fn spawn_or_undo<R: Refuse, T: Send + 'static>(
        &self,
        what: What,
        reply: R,
        work: impl Future<Output = Result<T, FsError>> + Send + 'static,
        answer: impl FnOnce(R, T) + Send + 'static,
        undo: impl FnOnce(T) + Send + 'static,
    ) {
        if self.stopping() {
            return reply.refuse(Errno::ENOTCONN);
        }
        let asked = Asked::by_this_reader();
        let guard = self.operations.begin(what, asked.pid);
        self.runtime.spawn(async move {
            let mut work = std::pin::pin!(work);
            tokio::select! {
                biased;
                result = &mut work => finish(what, reply, result, answer),
                () = guard.caller_killed() => {
                    reply.refuse(Errno::EINTR);
                    // What was begun is brought to its end: others may rely on it.
                    if let Ok(made) = work.await {
                        undo(made);
                    }
                }
            }
        });
    }

    /// Something that may take as long as the caller likes: it is not listed among the operations that somebody waits for.
    pub fn wait<R: Refuse, A: FnOnce(R) + Send>(
        &self,
        reply: R,
        work: impl Future<Output = A> + Send + 'static,
    ) {
        if self.stopping() {
            return reply.refuse(Errno::ENOTCONN);
        }
        self.runtime.spawn(async move { work.await(reply) });
    }

    /// Runs a synchronous call that may spawn tasks of its own.
    pub fn enter<T>(&self, call: impl FnOnce() -> T) -> T {
        let _inside = self.runtime.enter();
        call()
    }

    /// Whether the request of this reader was asked of a daemon that is dead.
    pub fn is_asked_again(&self) -> bool {
        Asked::by_this_reader().again
    }

    pub fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}

/// The bit of a request's number that says that the kernel sends it again, because the daemon that had read it was killed.
const RESENT: u64 = 1 << 63;

/// Who asks, and whether a daemon that is dead was asked before.
#[derive(Clone, Copy, Default)]
struct Asked {
    pid: u32,
    again: bool,
}

thread_local! {
    /// The request that this reader works on.
    static ASKED: std::cell::Cell<Asked> = std::cell::Cell::default();
}

impl Asked {
    fn now(asked: Self) {
        ASKED.set(asked);
    }

    fn by_this_reader() -> Self {
        ASKED.get()
    }

    /// A change of names that was asked of a daemon which is dead may have been made by it, and another mount may have gone
    /// on from there: its outcome is unknown, and it must not be made twice.
    fn is_in_doubt(self, operation: &str) -> bool {
        const MADE_ONCE: [&str; 10] = [
            "mknod",
            "mkdir",
            "symlink",
            "link",
            "create",
            "unlink",
            "rmdir",
            "rename",
            "setxattr",
            "removexattr",
        ];
        self.again && MADE_ONCE.contains(&operation)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_of_names_that_were_asked_before_are_in_doubt() {
        let in_doubt = |again, name| Asked { pid: 1, again }.is_in_doubt(name);
        assert!(in_doubt(true, "mkdir") && in_doubt(true, "rename") && in_doubt(true, "unlink"));
        assert!(!in_doubt(false, "mkdir") && !in_doubt(true, "lookup") && !in_doubt(true, "write"));
    }
}
