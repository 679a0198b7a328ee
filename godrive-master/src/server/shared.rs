//! What all tasks of the daemon share: the hub behind its lock, and what begins when the lock is given back.

use super::hub::{Command, Hub};
use super::journal::Durability;
use godrive_proto::net::identity::Authority;
use godrive_proto::time::{Clock, Instant};
use godrive_proto::{ClusterId, Term};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;

/// What all tasks of the daemon share.
pub struct Shared {
    hub: Mutex<Hub>,
    pub durability: Durability,
    pub clock: Arc<dyn Clock>,
    pub term: Term,
    pub cluster: ClusterId,
    pub authority: Option<Arc<Authority>>,
    /// Where this master listens.
    pub address: SocketAddr,
    pub links: AtomicU64,
    /// Seeds what must not be guessed: token secrets, node ids.
    pub random: Mutex<rand::rngs::StdRng>,
    /// The lease table has something to do earlier than the ticker thinks.
    tick_sooner: Notify,
    next_tick: AtomicU64,
    /// There is something to repair or to reclaim.
    pub repair: Notify,
    /// Something was answered before it was on stable storage.
    pub sync_soon: Notify,
}

impl Shared {
    pub fn new(
        hub: Hub,
        durability: Durability,
        authority: Option<Arc<Authority>>,
        seed: u64,
        address: SocketAddr,
    ) -> Arc<Self> {
        use rand::SeedableRng;
        Arc::new(Self {
            durability,
            clock: hub.clock.clone(),
            term: hub.term,
            cluster: hub.cluster,
            authority,
            address,
            links: AtomicU64::new(0),
            random: Mutex::new(rand::rngs::StdRng::seed_from_u64(seed)),
            tick_sooner: Notify::new(),
            next_tick: AtomicU64::new(u64::MAX),
            repair: Notify::new(),
            sync_soon: Notify::new(),
            hub: Mutex::new(hub),
        })
    }

    /// Runs one step under the lock, then starts what follows from it.
    pub fn with<T>(self: &Arc<Self>, step: impl FnOnce(&mut Hub, Instant) -> T) -> T {
        let (result, outbox, next_tick, repair) = {
            let mut hub = self.hub.lock();
            // Under the lock, so that steps come in the order of their times.
            let now = self.clock.now();
            hub.look(now);
            let result = step(&mut hub, now);
            hub.settle(now);
            let repair = std::mem::take(&mut hub.slaves.reclaim);
            (result, std::mem::take(&mut hub.outbox), hub.leases.next_tick(), repair)
        };
        if repair {
            self.repair.notify_one();
        }
        for command in outbox {
            self.start(command);
        }
        if let Some(at) = next_tick
            && at.0 < self.next_tick.load(Ordering::Relaxed)
        {
            self.tick_sooner.notify_one();
        }
        result
    }

    fn start(self: &Arc<Self>, command: Command) {
        let shared = self.clone();
        match command {
            Command::Recall(session, request) => {
                tokio::spawn(async move { super::sessions::recall(&shared, session, request).await });
            }
            Command::Settle(chunk) => {
                tokio::spawn(async move {
                    if let Err(fault) =
                        super::epoch::change(&shared, chunk, super::epoch::Cause::Unsettled).await
                    {
                        tracing::warn!(%chunk, "its epoch change is not finished: {fault}; it is tried again");
                    }
                });
            }
        }
    }

    /// Runs the lease table's clock.
    pub async fn tick(self: Arc<Self>) {
        loop {
            let wait = self.with(|hub, now| {
                let longest = now.after(LONGEST_TICK);
                let next = hub.leases.next_tick().map_or(longest, |at| at.min(longest));
                self.next_tick.store(next.0, Ordering::Relaxed);
                next.since(now)
            });
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.tick_sooner.notified() => {}
            }
        }
    }
}

const LONGEST_TICK: std::time::Duration = std::time::Duration::from_millis(500);
