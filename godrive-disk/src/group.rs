//! Group commit: many callers wait for "everything written before my call is on stable storage", one of them
//! (the first) runs the sync for all. Callers that arrive while a sync runs wait for the next one, because the
//! running one may have begun before their write.
//!
//! After an error nobody can know what reached the disk: the kernel marks the pages clean and a second fsync
//! would answer Ok for data that is lost. So the first error is final: every waiter and every later caller gets it.

use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A sync that takes less is run in place: to hand the runtime's other tasks to another thread and to wake this one's
/// waiters from there takes about as long. The last sync foretells the next.
const QUICK: Duration = Duration::from_micros(500);

/// Why a sync did not happen, now or ever again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a sync failed, so nothing on this file counts as stable any more: {0}")]
pub struct SyncFailed(pub Arc<str>);

impl From<SyncFailed> for io::Error {
    fn from(failed: SyncFailed) -> Self {
        io::Error::other(failed)
    }
}

pub struct GroupSync {
    sync: Box<dyn Fn() -> io::Result<()> + Send + Sync>,
    instant: bool,
    /// See [`crate::Disk::sync_takes`].
    takes: Box<dyn Fn() -> Duration + Send + Sync>,
    state: Mutex<State>,
    finished: Notify,
}

#[derive(Default)]
struct State {
    started: u64,
    finished: u64,
    running: bool,
    quick: bool,
    /// When the running one began, and how long the slowest took since that was asked.
    began: Option<Instant>,
    slowest: Duration,
    failed: Option<SyncFailed>,
}

impl GroupSync {
    /// `sync` makes stable whatever was written before it began. `instant` is [`crate::Disk::is_instant`].
    pub fn new(sync: impl Fn() -> io::Result<()> + Send + Sync + 'static, instant: bool) -> Self {
        let takes = Box::new(|| Duration::ZERO);
        Self { sync: Box::new(sync), instant, takes, state: Mutex::default(), finished: Notify::new() }
    }

    /// As slow as [`crate::Disk::sync_takes`] says.
    pub fn taking(self, takes: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self { takes: Box::new(takes), ..self }
    }

    /// Group commit of one file.
    pub fn over(file: Arc<dyn crate::DiskFile>, instant: bool) -> Self {
        Self::new(move || file.sync(), instant)
    }

    /// Returns when everything written before this call is stable.
    pub async fn sync(&self) -> Result<(), SyncFailed> {
        let mut wanted = None;
        loop {
            let waiting = {
                let mut state = self.state.lock();
                if let Some(failed) = &state.failed {
                    return Err(failed.clone());
                }
                let wanted = *wanted.get_or_insert(state.started + 1);
                if state.finished >= wanted {
                    return Ok(());
                }
                if state.running {
                    Some(self.finished.notified())
                } else {
                    state.running = true;
                    None
                }
            };
            match waiting {
                Some(waiting) => waiting.await,
                None => self.lead().await,
            }
        }
    }

    /// The same for callers that are not async and may block; never joins others' syncs.
    pub fn sync_now(&self) -> Result<(), SyncFailed> {
        if let Some(failed) = &self.state.lock().failed {
            return Err(failed.clone());
        }
        (self.sync)().map_err(|error| self.fail(&error))
    }

    /// How long the slowest sync took since the last time that this was called, one that still runs as far as it has come.
    pub fn take_slowest(&self) -> Duration {
        let mut state = self.state.lock();
        let running = state.began.map_or(Duration::ZERO, |began| began.elapsed());
        std::mem::take(&mut state.slowest).max(running)
    }

    pub fn failure(&self) -> Option<SyncFailed> {
        self.state.lock().failed.clone()
    }

    /// A caller that is cancelled gives the lead back.
    async fn lead(&self) {
        struct GiveBack<'a>(&'a GroupSync);
        impl Drop for GiveBack<'_> {
            fn drop(&mut self) {
                let mut state = self.0.state.lock();
                state.running = false;
                let took = state.began.take().map_or(Duration::ZERO, |began| began.elapsed());
                state.slowest = state.slowest.max(took);
                drop(state);
                self.0.finished.notify_waiters();
            }
        }
        let _give_back = GiveBack(self);
        let in_place = self.instant || self.state.lock().quick;
        if in_place && !self.instant {
            // Those that are about to write join this sync: nobody comes while it runs.
            tokio::task::yield_now().await;
        }
        {
            let mut state = self.state.lock();
            state.started += 1;
            state.began = Some(Instant::now());
        }
        let takes = (self.takes)();
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        let begun = Instant::now();
        match blocking(in_place, || (self.sync)()) {
            Ok(()) => {
                let mut state = self.state.lock();
                state.quick = begun.elapsed() < QUICK;
                state.finished = state.started;
            }
            Err(error) => {
                self.fail(&error);
            }
        }
    }

    fn fail(&self, error: &io::Error) -> SyncFailed {
        let mut state = self.state.lock();
        state.failed.get_or_insert_with(|| SyncFailed(error.to_string().into())).clone()
    }
}

/// Runs a blocking disk call: on a multi-thread runtime so that other tasks go on meanwhile, else (instant disks,
/// single-threaded runtimes, no runtime) in place.
pub fn blocking<T>(instant: bool, call: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    let threads = !instant
        && Handle::try_current().is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
    if threads { tokio::task::block_in_place(call) } else { call() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;

    #[tokio::test(start_paused = true)]
    async fn the_slowest_sync_is_told_once_and_one_that_runs_as_far_as_it_is() {
        let takes = Arc::new(AtomicU64::new(30));
        let ms = takes.clone();
        let group =
            GroupSync::new(|| Ok(()), true).taking(move || Duration::from_millis(ms.load(Ordering::Relaxed)));
        let group = Arc::new(group);
        assert_eq!(group.take_slowest(), Duration::ZERO);
        group.sync().await.unwrap();
        takes.store(5, Ordering::Relaxed);
        group.sync().await.unwrap();
        assert_eq!(group.take_slowest(), Duration::from_millis(30));
        assert_eq!(group.take_slowest(), Duration::ZERO);
        takes.store(10_000, Ordering::Relaxed);
        let hangs = tokio::spawn({
            let group = group.clone();
            async move { group.sync().await }
        });
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert_eq!(group.take_slowest(), Duration::from_millis(700));
        hangs.await.unwrap().unwrap();
        assert_eq!(group.take_slowest(), Duration::from_secs(10));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn waiters_share_syncs_and_see_their_writes() {
        let written = Arc::new(AtomicU64::new(0));
        let synced = Arc::new(AtomicU64::new(0));
        let syncs = Arc::new(AtomicU64::new(0));
        let group = {
            let (written, synced, syncs) = (written.clone(), synced.clone(), syncs.clone());
            Arc::new(GroupSync::new(
                move || {
                    let seen = written.load(Ordering::SeqCst);
                    std::thread::yield_now();
                    synced.fetch_max(seen, Ordering::SeqCst);
                    syncs.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                },
                false,
            ))
        };
        let tasks: Vec<_> = (0..64)
            .map(|_| {
                let (group, written, synced) = (group.clone(), written.clone(), synced.clone());
                tokio::spawn(async move {
                    for _ in 0..50 {
                        let mine = written.fetch_add(1, Ordering::SeqCst) + 1;
                        group.sync().await.unwrap();
                        assert!(synced.load(Ordering::SeqCst) >= mine);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert!(syncs.load(Ordering::SeqCst) <= 64 * 50);
    }

    /// Two callers that arrive during a sync are served by one more sync, not two.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn callers_during_a_sync_share_the_next() {
        let (go, gate) = mpsc::channel::<()>();
        let (began, begins) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let syncs = Arc::new(AtomicU64::new(0));
        let counted = syncs.clone();
        let group = Arc::new(GroupSync::new(
            move || {
                counted.fetch_add(1, Ordering::SeqCst);
                began.send(()).unwrap();
                gate.lock().recv().unwrap();
                Ok(())
            },
            false,
        ));
        let leader = group.clone();
        let first = tokio::spawn(async move { leader.sync().await });
        tokio::task::block_in_place(|| begins.recv()).unwrap();
        let mut second = std::pin::pin!(group.sync());
        let mut third = std::pin::pin!(group.sync());
        std::future::poll_fn(|context| {
            assert!(second.as_mut().poll(context).is_pending());
            assert!(third.as_mut().poll(context).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        go.send(()).unwrap();
        go.send(()).unwrap();
        first.await.unwrap().unwrap();
        second.await.unwrap();
        third.await.unwrap();
        assert_eq!(syncs.load(Ordering::SeqCst), 2);
    }

    /// A quick disk is synced in place, and those whose turn it is to write anyway are let in first.
    #[tokio::test]
    async fn writers_join_a_sync_that_runs_in_place() {
        let syncs = Arc::new(AtomicU64::new(0));
        let counted = syncs.clone();
        let sync = move || {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        let group = Arc::new(GroupSync::new(sync, false));
        // The machine may be slow for once.
        while !group.state.lock().quick {
            group.sync().await.unwrap();
        }
        let before = syncs.load(Ordering::SeqCst);
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let group = group.clone();
            tasks.spawn(async move { group.sync().await });
        }
        while let Some(synced) = tasks.join_next().await {
            synced.unwrap().unwrap();
        }
        assert_eq!(syncs.load(Ordering::SeqCst) - before, 1);
    }

    #[tokio::test]
    async fn the_first_error_is_final() {
        let calls = Arc::new(AtomicU64::new(0));
        let counted = calls.clone();
        let group = GroupSync::new(
            move || match counted.fetch_add(1, Ordering::SeqCst) {
                0 => Err(io::Error::other("the disk is gone")),
                _ => Ok(()),
            },
            true,
        );
        let failed = group.sync().await.unwrap_err();
        assert!(failed.to_string().contains("the disk is gone"));
        assert_eq!(group.sync().await.unwrap_err(), failed);
        assert_eq!(group.sync_now().unwrap_err(), failed);
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }
}
