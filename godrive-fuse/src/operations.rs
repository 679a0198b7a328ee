//! The operations under way: who waits, on which inode, since when.
//!
//! Two readers of this list. The watchdog names every operation that is older than the mount's deadline, because
//! the kernel shows a stuck caller only as a process in D state. And a notification to the kernel asks whether an
//! operation on its inode is waiting, because then the kernel holds a lock that the notification needs.

use godrive_proto::Ino;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The operations that went to the network; those answered from caches are never listed.
#[derive(Default)]
pub struct Operations {
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    next: u64,
    list: BTreeMap<u64, Waiting>,
}

struct Waiting {
    what: What,
    /// The thread that asked; 0: none, or one of another container.
    pid: u32,
    killed: Arc<Notify>,
    since: Instant,
    /// How often the watchdog named it.
    reports: u32,
}

/// An operation and the inodes it may hold kernel locks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct What {
    pub name: &'static str,
    pub ino: Ino,
    /// The second directory of a rename, the directory of a link, the target of a copy.
    pub other: Option<Ino>,
    locks: bool,
}

impl What {
    pub fn new(name: &'static str, ino: Ino) -> Self {
        Self { name, ino, other: None, locks: true }
    }

    /// One for which the kernel holds none of the locks that a notification needs.
    pub fn without_locks(name: &'static str, ino: Ino) -> Self {
        Self { locks: false, ..Self::new(name, ino) }
    }

    pub fn and(self, other: Ino) -> Self {
        Self { other: Some(other), ..self }
    }

    fn touches(&self, ino: Ino) -> bool {
        self.locks && (self.ino == ino || self.other == Some(ino))
    }
}

/// An operation that the watchdog found too old.
#[derive(Debug, PartialEq, Eq)]
pub struct Overdue {
    pub what: What,
    pub age: Duration,
}

impl Operations {
    /// Lists an operation until the guard is dropped.
    pub fn begin(self: &Arc<Self>, what: What, pid: u32) -> Guard {
        let killed = Arc::new(Notify::new());
        let mut running = self.running.lock();
        running.next += 1;
        let key = running.next;
        let waiting = Waiting { what, pid, killed: killed.clone(), since: Instant::now(), reports: 0 };
        running.list.insert(key, waiting);
        Guard { operations: self.clone(), key, what, killed }
    }

    /// Tells the operations older than `age` whose caller was killed. Once the kernel has handed a request to us, a
    /// killed caller cannot end before it is answered.
    fn tell_killed(&self, age: Duration, was_killed: impl Fn(u32) -> bool) {
        let running = self.running.lock();
        let old = running.list.values().take_while(|waiting| waiting.since.elapsed() >= age);
        old.filter(|waiting| waiting.pid != 0 && was_killed(waiting.pid))
            .for_each(|waiting| waiting.killed.notify_one());
    }

    /// How long the oldest operation on this inode has been waiting.
    pub fn waiting_on(&self, ino: Ino) -> Option<Duration> {
        let running = self.running.lock();
        running.list.values().find(|waiting| waiting.what.touches(ino)).map(|waiting| waiting.since.elapsed())
    }

    /// Operations older than the limit: each is named once per limit.
    pub fn overdue(&self, limit: Duration) -> Vec<Overdue> {
        let mut running = self.running.lock();
        let mut found = Vec::new();
        for waiting in running.list.values_mut() {
            let age = waiting.since.elapsed();
            if age < limit {
                // Ascending keys are ascending times.
                break;
            }
            if age >= limit.saturating_mul(waiting.reports + 1) {
                waiting.reports += 1;
                found.push(Overdue { what: waiting.what, age });
            }
        }
        found
    }

    pub fn count(&self) -> usize {
        self.running.lock().list.len()
    }
}

/// Takes the operation off the list. Dropped by a panic, it says which operation panicked; the reply that is dropped
/// with it answers EIO.
pub struct Guard {
    operations: Arc<Operations>,
    key: u64,
    what: What,
    killed: Arc<Notify>,
}

impl Guard {
    /// Ends when the caller was killed and waits for nothing but the answer.
    pub async fn caller_killed(&self) {
        self.killed.notified().await;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.operations.running.lock().list.remove(&self.key);
        if std::thread::panicking() {
            tracing::error!(operation = self.what.name, ino = %self.what.ino, "the operation panicked and answers EIO");
        }
    }
}

/// An operation whose caller was killed goes on for so long before the caller is let go.
const PATIENCE_WITH_THE_DEAD: Duration = Duration::from_secs(1);

/// Whether SIGKILL waits for this thread.
fn has_been_killed(pid: u32) -> bool {
    #[expect(clippy::disallowed_methods, reason = "the kernel's account of a process")]
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    pending_kill(&status)
}

fn pending_kill(status: &str) -> bool {
    const KILL: u64 = 1 << (libc::SIGKILL - 1);
    let pending = status.lines().filter_map(|line| {
        line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:")).map(str::trim)
    });
    pending.filter_map(|mask| u64::from_str_radix(mask, 16).ok()).any(|mask| mask & KILL != 0)
}

/// Logs overdue operations and lets killed callers go, for ever.
pub async fn watch(operations: Arc<Operations>, limit: Duration) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        operations.tell_killed(PATIENCE_WITH_THE_DEAD, has_been_killed);
        for Overdue { what, age } in operations.overdue(limit) {
            tracing::warn!(
                operation = what.name, ino = %what.ino, age_s = age.as_secs(), under_way = operations.count(),
                "an operation is older than the mount's deadline; `godrive status` shows which nodes are missing"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_names_an_old_operation_once_per_limit() {
        let operations = Arc::new(Operations::default());
        let limit = Duration::from_secs(30);
        let old = operations.begin(What::new("write", Ino(7)), 0);
        tokio::time::advance(Duration::from_secs(20)).await;
        let young = operations.begin(What::new("lookup", Ino(1)), 0);
        assert_eq!(operations.overdue(limit), []);
        tokio::time::advance(Duration::from_secs(11)).await;
        let found = operations.overdue(limit);
        assert_eq!(found, [Overdue { what: What::new("write", Ino(7)), age: Duration::from_secs(31) }]);
        assert_eq!(operations.overdue(limit), [], "named once");
        drop(old);
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(operations.overdue(limit).len(), 1, "the other one is old by now");
        drop(young);
        assert_eq!(operations.count(), 0);
    }

    #[test]
    fn a_pending_kill_is_seen() {
        assert!(pending_kill("Name:\tcp\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n"));
        assert!(pending_kill("SigPnd:\t0000000000000000\nShdPnd:\t0000000000000103\n"));
        assert!(!pending_kill("SigPnd:\t0000000000004200\nShdPnd:\t0000000000000002\n"));
        assert!(!pending_kill(""), "gone, or not ours to see");
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_operation_learns_that_its_caller_was_killed() {
        let operations = Arc::new(Operations::default());
        let old = operations.begin(What::new("write", Ino(7)), 5);
        let other = operations.begin(What::new("write", Ino(7)), 6);
        operations.tell_killed(Duration::from_secs(1), |pid| pid == 5);
        tokio::time::advance(Duration::from_secs(1)).await;
        let told = |guard: &Guard| futures_ready(guard.caller_killed());
        assert!(!told(&old), "it is not old yet");
        operations.tell_killed(Duration::from_secs(1), |pid| pid == 5);
        assert!(told(&old) && !told(&other));
    }

    fn futures_ready(future: impl Future<Output = ()>) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        std::pin::pin!(future).poll(&mut context).is_ready()
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_is_found_by_either_inode() {
        let operations = Arc::new(Operations::default());
        let guard = operations.begin(What::new("rename", Ino(1)).and(Ino(2)), 0);
        tokio::time::advance(Duration::from_millis(5)).await;
        assert_eq!(operations.waiting_on(Ino(2)), Some(Duration::from_millis(5)));
        assert_eq!(operations.waiting_on(Ino(3)), None);
        drop(guard);
        assert_eq!(operations.waiting_on(Ino(1)), None);
        let _guard = operations.begin(What::without_locks("getattr", Ino(1)), 0);
        assert_eq!(operations.waiting_on(Ino(1)), None);
    }
}
