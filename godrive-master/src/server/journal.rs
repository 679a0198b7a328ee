//! The log as the server uses it: records are written at once, and made durable in groups.
//!
//! Whoever waits for durability while no sync runs leads the next: it takes what was written so far and syncs
//! it; all who came meanwhile form the group after that. So one request alone pays one sync and no hop to
//! another task, and many share one.

use super::shared::Shared;
use crate::core::record::Record;
use crate::log::{Log, LogError, Note, SyncPoint};
use godrive_proto::{Code, Fault, LogIndex, Term};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;

pub struct Journal {
    pub log: Log,
    term: Term,
}

impl Journal {
    pub fn new(log: Log, term: Term) -> Self {
        Self { log, term }
    }

    pub fn append(&mut self, record: &Record) -> Result<LogIndex, LogError> {
        self.log.append(self.term, std::slice::from_ref(record))
    }

    pub fn last(&self) -> LogIndex {
        self.log.last()
    }

    pub fn sync_point(&self) -> SyncPoint {
        self.log.sync_point()
    }

    pub fn note(&self) -> Note {
        self.log.note()
    }
}

pub struct Durability {
    durable: watch::Sender<LogIndex>,
    syncing: AtomicBool,
    failed: AtomicBool,
    /// The disk is simulated: a sync does not block.
    instant: bool,
}

impl Durability {
    pub fn new(durable: LogIndex, instant: bool) -> Self {
        Self {
            durable: watch::Sender::new(durable),
            syncing: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            instant,
        }
    }

    /// The last record known to be on stable storage.
    pub fn durable(&self) -> LogIndex {
        *self.durable.borrow()
    }

    /// Runs something that may block, without holding up other tasks.
    pub fn blocking<T>(&self, work: impl FnOnce() -> T) -> T {
        godrive_disk::blocking(self.instant, work)
    }
}

/// What was answered before it was on stable storage comes there within this and the time of one or two syncs.
const SOON: Duration = Duration::from_millis(50);

/// Syncs what nobody waits for.
pub async fn sync_soon(shared: Arc<Shared>) {
    loop {
        shared.sync_soon.notified().await;
        tokio::time::sleep(SOON).await;
        let last = shared.with(|hub, _| hub.journal.last());
        // A failure has been logged, and the hub refuses to serve.
        let _ = shared.durable(last).await;
    }
}

/// While records follow each other, the later ones tell that the earlier ones were synced: the end is noted when nothing has come for
/// this long, and without that after so many times as long.
const QUIET: Duration = Duration::from_millis(100);
const LONGEST: usize = 10;

/// Notes the end of the log beside it.
pub async fn note_the_end(shared: Arc<Shared>) {
    let mut durable = shared.durability.durable.subscribe();
    let mut noted = LogIndex(0);
    while let Ok(mut last) = durable.wait_for(|durable| *durable > noted).await.map(|last| *last) {
        for _ in 0..LONGEST {
            tokio::time::sleep(QUIET).await;
            let before = std::mem::replace(&mut last, shared.durability.durable());
            if before == last {
                break;
            }
        }
        let note = shared.with(|hub, _| hub.journal.note());
        noted = match shared.durability.blocking(|| note.run()) {
            Ok(noted) => noted,
            Err(error) => {
                // The log itself is whole. With the next record it is tried again.
                tracing::warn!("how far the log is on stable storage cannot be noted: {error}");
                last
            }
        };
    }
}

impl Shared {
    /// Returns when the record at `index` is on stable storage.
    pub async fn durable(self: &Arc<Self>, index: LogIndex) -> Result<(), Fault> {
        let durability = &self.durability;
        if durability.durable() >= index {
            return Ok(());
        }
        let mut changes = durability.durable.subscribe();
        loop {
            if *changes.borrow_and_update() >= index {
                return Ok(());
            }
            if durability.failed.load(Ordering::SeqCst) {
                let detail = "the master's log could not be synced; whether this was executed is unknown";
                return Err(Fault::new(Code::Disk, detail));
            }
            if durability.syncing.swap(true, Ordering::SeqCst) {
                // The leader clears the flag before it announces, so no announcement is missed here.
                if changes.changed().await.is_err() {
                    return Err(Fault::new(Code::Internal, "the log is closed"));
                }
                continue;
            }
            let point = self.with(|hub, _| hub.journal.sync_point());
            let result = durability.blocking(|| point.run());
            if let Err(error) = &result {
                durability.failed.store(true, Ordering::SeqCst);
                self.with(|hub, _| hub.refuse(format!("its log cannot be synced: {error}")));
            }
            durability.syncing.store(false, Ordering::SeqCst);
            durability.durable.send_modify(|durable| {
                if let Ok(last) = result {
                    *durable = last.max(*durable);
                }
            });
        }
    }
}
