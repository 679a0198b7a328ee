//! SKELETON: signatures fixed, bodies to come.
use crate::Config;
use godrive_disk::Disk;
use godrive_proto::net::Sockets;
use godrive_proto::net::identity::{Authority, Identity};
use godrive_proto::time::Clock;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

/// Everything a master needs from outside: the machine in production, the simulation in tests.
pub struct World {
    /// The state directory (`Config::directory`).
    pub disk: Arc<dyn Disk>,
    pub sockets: Arc<dyn Sockets>,
    pub clock: Arc<dyn Clock>,
    pub seed: u64,
    pub identity: Identity,
    /// Signs certificates for joiners; only the first master has it.
    pub authority: Option<Arc<Authority>>,
    /// Seeds the transport's randomness; only the simulation sets it.
    pub transport_seed: Option<[u8; 32]>,
}

/// A running master.
pub struct Master {}

impl Master {
    /// Recovers the state, binds and begins to serve.
    pub async fn start(_config: Config, _world: World) -> anyhow::Result<Self> {
        anyhow::bail!("not yet")
    }
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([0, 0, 0, 0], 0))
    }
    /// Checkpoints and closes all connections.
    pub async fn stop(self) -> anyhow::Result<()> {
        anyhow::bail!("not yet")
    }
}

/// Serves until `shutdown` resolves.
pub async fn run(config: Config, world: World, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let master = Master::start(config, world).await?;
    shutdown.await;
    master.stop().await
}
