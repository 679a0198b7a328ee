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
    pub fn inline(
        &self,
        name: &'static str,
        request: &fuser::Request,
        ino: fuser::INodeNo,
        work: impl FnOnce(),
    ) {
        Asked::now(Asked { pid: request.pid(), again: request.unique().0 & RESENT != 0 });
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
        let asked = Asked::by_this_reader();
        let guard = self.operations.begin(what, asked.pid);
        self.runtime.spawn(async move {
            let mut work = std::pin::pin!(work);
            tokio::select! {
                biased;
                result = &mut work => finish_for(asked, what, reply, result, answer),
                () = guard.caller_killed() => {
                    reply.refuse(Errno::EINTR);
                    // What was begun is brought to its end: others may rely on it.
                    let _ = work.await;
                }
            }
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

    /// Where a change of names is refused because it seems to have been made already, the dead daemon may have made it:
    /// its outcome is unknown.
    fn judge(self, what: What, error: FsError) -> FsError {
        let made = match what.name {
            "mknod" | "mkdir" | "symlink" | "link" | "create" | "setxattr" => error.errno == libc::EEXIST,
            "unlink" | "rmdir" | "rename" => matches!(error.errno, libc::ENOENT | libc::EEXIST),
            "removexattr" => error.errno == libc::ENODATA,
            _ => false,
        };
        if !self.again || !made {
            return error;
        }
        let why = format!("asked again after the daemon was killed, and refused with errno {}", error.errno);
        FsError::new(libc::EIO, format!("{why}: whether it was made then is not known"))
    }
}

/// Answers with a result, or refuses with its errno. Called by the reader that has got the request.
pub fn finish<R: Refuse, T>(what: What, reply: R, result: Result<T, FsError>, answer: impl FnOnce(R, T)) {
    finish_for(Asked::by_this_reader(), what, reply, result, answer);
}

fn finish_for<R: Refuse, T>(
    asked: Asked,
    what: What,
    reply: R,
    result: Result<T, FsError>,
    answer: impl FnOnce(R, T),
) {
    match result {
        Ok(value) => answer(reply, value),
        Err(error) => refuse_with(what, reply, &asked.judge(what, error)),
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
    use godrive_proto::Ino;

    #[test]
    fn only_what_may_have_been_made_before_is_in_doubt() {
        let errno = |again, name, errno| {
            Asked { pid: 1, again }.judge(What::new(name, Ino(1)), FsError::bare(errno)).errno
        };
        assert_eq!(errno(true, "mkdir", libc::EEXIST), libc::EIO);
        assert_eq!(errno(false, "mkdir", libc::EEXIST), libc::EEXIST);
        assert_eq!(errno(true, "mkdir", libc::ENOENT), libc::ENOENT, "the directory above is missing");
        assert_eq!(errno(true, "rename", libc::ENOENT), libc::EIO);
        assert_eq!(errno(true, "lookup", libc::ENOENT), libc::ENOENT);
    }
}
