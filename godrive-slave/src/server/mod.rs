//! The daemon: skeleton.
use crate::Config;
use godrive_disk::Disk;
use godrive_proto::net::Sockets;
use godrive_proto::net::identity::Identity;
use godrive_proto::time::Clock;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

/// Everything a slave needs from outside: the machine in production, the simulation in tests.
pub struct World {
    /// One per entry of `Config::disks`.
    pub disks: Vec<Arc<dyn Disk>>,
    pub sockets: Arc<dyn Sockets>,
    pub clock: Arc<dyn Clock>,
    pub seed: u64,
    pub identity: Identity,
    /// Seeds the transport's randomness; only the simulation sets it.
    pub transport_seed: Option<[u8; 32]>,
}

/// A running slave.
pub struct Slave {}

impl Slave {
    pub async fn start(_config: Config, _world: World) -> anyhow::Result<Self> {
        anyhow::bail!("not yet")
    }
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([0, 0, 0, 0], 0))
    }
    pub async fn stop(self) -> anyhow::Result<()> {
        anyhow::bail!("not yet")
    }
}

/// Serves until `shutdown` resolves.
pub async fn run(config: Config, world: World, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let slave = Slave::start(config, world).await?;
    shutdown.await;
    slave.stop().await
}
