//! What one process of a script has: open files, on the mount and in memory, a umask, locks of its own, an identity.
//!
//! It is a thread that has left what a process's threads share: its descriptors and with them its byte-range locks, its umask, and,
//! as the kernel sees it, its user.

use super::calls::{Outcome, Step, call};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// An ordinary user and its group.
const NOBODY: u32 = 65_534;

/// One of the two sides on which everything is done.
pub struct Side {
    pub root: PathBuf,
    /// Descriptors by slot.
    pub files: Vec<Option<i32>>,
}

pub struct Process {
    steps: Option<Sender<Step>>,
    outcomes: Receiver<[Outcome; 2]>,
    thread: Option<JoinHandle<()>>,
}

impl Process {
    pub fn start(mount: PathBuf, memory: PathBuf, ordinary: bool) -> Self {
        let (steps, to_do) = channel::<Step>();
        let (done, outcomes) = channel();
        let thread = std::thread::spawn(move || {
            leave(ordinary);
            let mut sides = [mount, memory].map(|root| Side { root, files: vec![None; super::calls::SLOTS] });
            for step in to_do {
                let both = sides.each_mut().map(|side| call(side, &step));
                if done.send(both).is_err() {
                    break;
                }
            }
            for fd in sides.iter().flat_map(|side| side.files.iter().flatten()) {
                // SAFETY: the thread's own table has it open.
                unsafe { libc::close(*fd) };
            }
        });
        Self { steps: Some(steps), outcomes, thread: Some(thread) }
    }

    /// What the step came to on the mount and in memory.
    pub fn call(&self, step: &Step) -> [Outcome; 2] {
        self.steps.as_ref().expect("it has not ended").send(step.clone()).expect("its thread runs");
        self.outcomes.recv().expect("its thread answers")
    }

    /// Closes everything.
    pub fn end(&mut self) {
        drop(self.steps.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("its thread ended well");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.steps.take());
    }
}

fn leave(ordinary: bool) {
    // SAFETY: this thread only; nothing else uses descriptors that it has opened.
    let left = unsafe { libc::unshare(libc::CLONE_FILES | libc::CLONE_FS) };
    assert_eq!(left, 0, "unshare: {}", std::io::Error::last_os_error());
    // SAFETY: sets this thread's umask.
    unsafe { libc::umask(0o022) };
    if ordinary {
        // libc's functions would change all threads.
        // SAFETY: system calls with integers.
        let changed = unsafe {
            [
                libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()),
                libc::syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY),
                libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY),
            ]
        };
        assert_eq!(changed, [0; 3], "{}", std::io::Error::last_os_error());
    }
}
