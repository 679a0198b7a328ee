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
}

impl What {
    pub fn new(name: &'static str, ino: Ino) -> Self {
        Self { name, ino, other: None }
    }

    pub fn and(self, other: Ino) -> Self {
        Self { other: Some(other), ..self }
    }

    fn touches(&self, ino: Ino) -> bool {
        self.ino == ino || self.other == Some(ino)
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
    pub fn begin(self: &Arc<Self>, what: What) -> Guard {
        let mut running = self.running.lock();
        running.next += 1;
        let key = running.next;
        running.list.insert(key, Waiting { what, since: Instant::now(), reports: 0 });
        Guard { operations: self.clone(), key, what }
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
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.operations.running.lock().list.remove(&self.key);
        if std::thread::panicking() {
            tracing::error!(operation = self.what.name, ino = %self.what.ino, "the operation panicked and answers EIO");
        }
    }
}

/// Logs overdue operations, for ever.
pub async fn watch(operations: Arc<Operations>, limit: Duration) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
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
        let old = operations.begin(What::new("write", Ino(7)));
        tokio::time::advance(Duration::from_secs(20)).await;
        let young = operations.begin(What::new("lookup", Ino(1)));
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

    #[tokio::test(start_paused = true)]
    async fn waiting_is_found_by_either_inode() {
        let operations = Arc::new(Operations::default());
        let guard = operations.begin(What::new("rename", Ino(1)).and(Ino(2)));
        tokio::time::advance(Duration::from_millis(5)).await;
        assert_eq!(operations.waiting_on(Ino(2)), Some(Duration::from_millis(5)));
        assert_eq!(operations.waiting_on(Ino(3)), None);
        drop(guard);
        assert_eq!(operations.waiting_on(Ino(1)), None);
    }
}
