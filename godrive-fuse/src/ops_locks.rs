//! Byte-range locks. fuser does not say whether a lock is one of fcntl or of flock, so that both are of one kind, as on
//! NFS: an flock is a lock on all bytes, of the open file instead of the process.
//!
//! Whoever waits for a lock can be interrupted by a signal: fuser does not pass the kernel's word on, so the thread's
//! pending signals are looked at while it waits.

use crate::answer::refuse_with;
use crate::convert;
use crate::filesystem::Mount;
use crate::operations::What;
use fuser::{Errno, FileHandle, INodeNo, LockOwner as Owner, ReplyEmpty, ReplyLock, Request};
use godrive_client::FsError;
use godrive_proto::lease::ByteRange;
use godrive_proto::locks::{InTheWay, LOCKS_END, Lock, LockKind, LockOwner};
use std::time::Duration;

/// How often a waiting thread's signals are looked at.
const LOOK_FOR_SIGNALS_EVERY: Duration = Duration::from_millis(100);

/// A lock as the kernel describes it: both ends are inside, the last byte of all is 2^63 - 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub fh: FileHandle,
    pub owner: Owner,
    pub start: u64,
    pub end: u64,
    pub kind: i32,
    pub pid: u32,
}

impl Asked {
    fn range(&self) -> Option<ByteRange> {
        let range = ByteRange { start: self.start, end: self.end.checked_add(1)? };
        (range.start < range.end && range.end <= LOCKS_END).then_some(range)
    }

    /// None: it is an unlock.
    fn lock(&self, range: ByteRange) -> Option<Lock> {
        let kind = match self.kind {
            libc::F_RDLCK => LockKind::Read,
            libc::F_WRLCK => LockKind::Write,
            _ => return None,
        };
        Some(Lock { kind, range, pid: self.pid, handle: self.fh.0 })
    }
}

impl Mount {
    pub(crate) fn op_setlk(&self, req: &Request, ino: INodeNo, asked: Asked, waits: bool, reply: ReplyEmpty) {
        let (fs, owner, handle) = (self.fs.clone(), LockOwner(asked.owner.0), self.handle(ino, asked.fh));
        let Some(range) = asked.range() else { return reply.error(Errno::EINVAL) };
        let what = What::new(if waits { "setlkw" } else { "setlk" }, convert::ino(ino));
        let Some(lock) = asked.lock(range) else {
            let work = async move { fs.unlock(what.ino, owner, range).await };
            return self.answers.spawn(what, reply, work, |reply, ()| reply.ok());
        };
        let work = async move { fs.set_lock(handle, owner, lock, waits).await };
        if !waits {
            return self.answers.spawn(what, reply, work, |reply, ()| reply.ok());
        }
        // It may wait for as long as it likes, so it is no operation that somebody has to be told of.
        let signalled = has_signal(req.pid());
        self.answers.wait(reply, async move {
            let outcome = tokio::select! {
                biased;
                outcome = work => outcome,
                () = signalled => Err(FsError::bare(libc::EINTR)),
            };
            move |reply: ReplyEmpty| match outcome {
                Ok(()) => reply.ok(),
                Err(error) => refuse_with(what, reply, &error),
            }
        });
    }

    pub(crate) fn op_getlk(&self, ino: INodeNo, asked: Asked, reply: ReplyLock) {
        let (fs, owner, handle) = (self.fs.clone(), LockOwner(asked.owner.0), self.handle(ino, asked.fh));
        let lock = asked.range().and_then(|range| asked.lock(range));
        let Some(lock) = lock else { return reply.error(Errno::EINVAL) };
        let what = What::new("getlk", convert::ino(ino));
        let work = async move { fs.test_lock(handle, owner, lock).await };
        self.answers.spawn(what, reply, work, move |reply, found| match found {
            None => reply.locked(asked.start, asked.end, libc::F_UNLCK, 0),
            Some(InTheWay { lock, own }) => {
                let kind = if lock.kind == LockKind::Read { libc::F_RDLCK } else { libc::F_WRLCK };
                // The number of a process of another machine means nothing here.
                let pid = if own { lock.pid } else { 0 };
                reply.locked(lock.range.start, lock.range.end - 1, kind, pid);
            }
        });
    }
}

/// Ends when the thread has a signal that it would act upon.
async fn has_signal(thread: u32) {
    loop {
        tokio::time::sleep(LOOK_FOR_SIGNALS_EVERY).await;
        #[expect(clippy::disallowed_methods, reason = "the kernel's account of a process")]
        let status =
            |thread: &str| std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
        let own = status(&thread.to_string());
        let leader = own.lines().find_map(|line| line.strip_prefix("Tgid:")).map(|pid| status(pid.trim()));
        if interrupts(&own, &leader.unwrap_or_default()) {
            return;
        }
    }
}

/// A signal is pending that is neither blocked nor ignored. One for the whole process is for its first thread, the leader,
/// unless that blocks it.
fn interrupts(own: &str, leader: &str) -> bool {
    const fn bit(signal: i32) -> u64 {
        1 << (signal - 1)
    }
    const IGNORED_BY_DEFAULT: u64 =
        bit(libc::SIGCHLD) | bit(libc::SIGURG) | bit(libc::SIGWINCH) | bit(libc::SIGCONT);
    let field = |status: &str, name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
    };
    let mask = |status: &str, name: &str| u64::from_str_radix(&field(status, name), 16).unwrap_or(0);
    let leads = field(own, "Pid:") == field(own, "Tgid:");
    let for_us = if leads { u64::MAX } else { mask(leader, "SigBlk:") };
    let pending = mask(own, "SigPnd:") | (mask(own, "ShdPnd:") & for_us);
    let caught = mask(own, "SigCgt:");
    pending & !mask(own, "SigBlk:") & !mask(own, "SigIgn:") & !(IGNORED_BY_DEFAULT & !caught) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pending: u64, shared: u64, blocked: u64, ignored: u64, caught: u64) -> String {
        format!(
            "Name:\tflock\nTgid:\t5\nPid:\t5\nSigPnd:\t{pending:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\n\
             SigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n"
        )
    }

    #[test]
    fn a_signal_interrupts_unless_it_is_blocked_or_ignored() {
        let alarm = 1 << (libc::SIGALRM - 1);
        let child = 1 << (libc::SIGCHLD - 1);
        let interrupts_leader = |status: &str| interrupts(status, status);
        assert!(interrupts_leader(&status(alarm, 0, 0, 0, alarm)));
        assert!(interrupts_leader(&status(0, alarm, 0, 0, 0)), "the default is to end the process");
        assert!(!interrupts_leader(&status(0, alarm, alarm, 0, alarm)));
        assert!(!interrupts_leader(&status(0, alarm, 0, alarm, 0)));
        assert!(!interrupts_leader(&status(0, child, 0, 0, 0)));
        assert!(interrupts_leader(&status(0, child, 0, 0, child)));
        assert!(!interrupts_leader(&status(0, 0, 0, 0, alarm)));
        assert!(!interrupts_leader(""), "gone, or not ours to see");
        let thread = |pending, shared| status(pending, shared, 0, 0, alarm).replace("Pid:\t5", "Pid:\t6");
        assert!(!interrupts(&thread(0, alarm), &status(0, alarm, 0, 0, alarm)), "the leader takes it");
        assert!(interrupts(&thread(0, alarm), &status(0, alarm, alarm, 0, alarm)), "the leader blocks it");
        assert!(interrupts(&thread(alarm, 0), &status(0, 0, 0, 0, alarm)));
    }

    fn asked(start: u64, end: u64, kind: i32) -> Asked {
        Asked { fh: FileHandle(4), owner: Owner(2), start, end, kind, pid: 3 }
    }

    #[test]
    fn ranges_of_the_kernel_have_their_end_inside() {
        let all = asked(0, i64::MAX as u64, libc::F_WRLCK).range().unwrap();
        assert_eq!(all, ByteRange { start: 0, end: LOCKS_END });
        assert_eq!(asked(5, 5, libc::F_RDLCK).range().unwrap(), ByteRange { start: 5, end: 6 });
        assert_eq!(asked(5, 4, libc::F_RDLCK).range(), None);
        assert_eq!(asked(0, u64::MAX, libc::F_RDLCK).range(), None);
        assert_eq!(asked(0, 1, libc::F_UNLCK).lock(all), None);
        let lock = asked(0, 1, libc::F_RDLCK).lock(all).unwrap();
        assert_eq!((lock.kind, lock.pid, lock.handle), (LockKind::Read, 3, 4));
    }
}
