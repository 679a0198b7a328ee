//! The driver over real QUIC on loopback against a fake master and fake slaves that lose answers, lie, are late and die.

mod answers;
mod data;
mod fakes;
mod replicas;
mod sessions;

use fakes::Cluster;
use godrive_client::driver::{BoxFuture, Config, Declared, Driver, Upcalls, World};
use godrive_proto::lease::{RecallRequest, Release, RenewRequest};
use godrive_proto::locks::LockOwner;
use godrive_proto::net::machine::{MachineClock, MachineSockets};
use godrive_proto::{Ino, LeaseId, LogIndex};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// What the driver asked of the file system.
#[derive(Default)]
pub struct Calls {
    pub recalls: Mutex<Vec<RecallRequest>>,
    pub ends: Mutex<Vec<LogIndex>>,
    pub resumes: Mutex<u32>,
    pub lost_leases: Mutex<Vec<Ino>>,
    pub sessions_lost: Mutex<u32>,
}

impl Upcalls for Calls {
    fn attributes(&self, _: Ino) -> Option<godrive_proto::meta::Attr> {
        None
    }

    fn recall(self: Arc<Self>, recall: RecallRequest) -> BoxFuture<'static, Release> {
        Box::pin(async move {
            self.recalls.lock().push(recall);
            Release { ino: recall.ino, id: recall.id, keeps: None, open: true }
        })
    }

    fn log_ended(self: Arc<Self>, last: LogIndex) -> BoxFuture<'static, ()> {
        self.ends.lock().push(last);
        Box::pin(async {})
    }

    fn resume(self: Arc<Self>) -> BoxFuture<'static, Declared> {
        *self.resumes.lock() += 1;
        let locks = Vec::new();
        Box::pin(async {
            Declared { exclusive: vec![(Ino(5), LeaseId(50))], open: vec![Ino(5), Ino(6)], locks }
        })
    }

    fn lost_locks(self: Arc<Self>, owners: Vec<(Ino, LockOwner)>) -> BoxFuture<'static, ()> {
        panic!("{owners:?} are not of this test");
    }

    fn lost_leases(self: Arc<Self>, inodes: Vec<Ino>) -> BoxFuture<'static, ()> {
        self.lost_leases.lock().extend(inodes);
        Box::pin(async {})
    }

    fn session_lost(self: Arc<Self>) -> BoxFuture<'static, ()> {
        *self.sessions_lost.lock() += 1;
        Box::pin(async {})
    }

    fn accesses(&self) -> Vec<(Ino, godrive_proto::time::Timestamp)> {
        Vec::new()
    }

    fn accesses_not_told(&self, times: Vec<(Ino, godrive_proto::time::Timestamp)>) {
        panic!("{times:?} are not of this test");
    }

    fn renewal(&self) -> RenewRequest {
        RenewRequest::default()
    }
}

pub fn config(cluster: &Cluster) -> Config {
    let mut config = Config::new(cluster.master_address, "test");
    config.deadline = Duration::from_secs(5);
    config.timeouts.connect = Duration::from_millis(400);
    config.timeouts.renewal = Duration::from_millis(400);
    config.timeouts.delta = Duration::from_secs(1);
    config.timeouts.hedge = Duration::from_secs(1)..=Duration::from_secs(1);
    config
}

pub async fn driver_with(cluster: &Cluster, config: Config) -> (Arc<Driver>, Arc<Calls>) {
    let world = World {
        sockets: Arc::new(MachineSockets),
        clock: Arc::new(MachineClock),
        identity: cluster.client_identity(),
        seed: 1,
    };
    let driver = Driver::start(config, world).await.expect("a session");
    let calls = Arc::new(Calls::default());
    driver.serve(calls.clone());
    (driver, calls)
}

pub async fn driver(cluster: &Cluster) -> (Arc<Driver>, Arc<Calls>) {
    driver_with(cluster, config(cluster)).await
}

/// For tests in which no member fails: however busy the machine is, none seems to.
pub async fn patient(cluster: &Cluster) -> Arc<Driver> {
    let mut config = config(cluster);
    config.deadline = Duration::from_secs(60);
    config.timeouts.connect = Duration::from_secs(20);
    config.timeouts.delta = Duration::from_secs(20);
    config.timeouts.hedge = Duration::from_secs(20)..=Duration::from_secs(20);
    driver_with(cluster, config).await.0
}

/// Waits for a condition, and fails if it does not come true.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let looking = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(10), looking).await.is_err() {
        panic!("did not happen within 10 s: {what}");
    }
}
