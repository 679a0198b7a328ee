//! The daemon: serves clients, other slaves and the master's commands, and looks after the disks.
//!
//! ```text
//! connection -> requests -> delta | reading | commands | copy -> store
//!                              |                         |
//!                           peers (the next in the chain, the source of a copy)
//! master: register, inventory, heartbeats; its commands come back on the same connection -> requests
//! background: sync, checkpoint and expiry per disk; scrub per disk
//! ```

mod background;
mod commands;
mod copy;
mod delta;
mod master;
mod peers;
mod range;
mod reading;
mod requests;
mod scrub;
mod shared;
#[cfg(test)]
mod tests;

use crate::Config;
use anyhow::Context;
use godrive_disk::Disk;
use godrive_proto::net::identity::Identity;
use godrive_proto::net::{Endpoint, Options as Transport, Sockets};
use godrive_proto::time::Clock;
use shared::Shared;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use tokio::task::JoinSet;

/// Everything a slave needs from outside: the machine in production, the simulation in tests.
pub struct World {
    /// One per entry of `Config::disks`.
    pub disks: Vec<Arc<dyn Disk>>,
    pub sockets: Arc<dyn Sockets>,
    pub clock: Arc<dyn Clock>,
    pub seed: u64,
    pub identity: Identity,
    /// Seeds the transport's randomness and the disks' secrets; only the simulation sets it.
    pub transport_seed: Option<[u8; 32]>,
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A running slave. Dropped, it stops at once, as a crash would.
pub struct Slave {
    shared: Arc<Shared>,
    endpoint: Endpoint,
    tasks: JoinSet<()>,
}

impl Slave {
    /// Recovers the disks, binds and begins to serve; does not wait for the master.
    ///
    /// Boxed, so that the server is compiled here once and not again in every program that starts one.
    pub fn start(config: Config, world: World) -> BoxFuture<anyhow::Result<Self>> {
        Box::pin(Self::begin(config, world))
    }

    async fn begin(config: Config, world: World) -> anyhow::Result<Self> {
        let options = Transport { rng_seed: world.transport_seed, accept_joiners: false };
        let endpoint = Endpoint::new(&world.sockets, config.listen, &world.identity, &options)
            .with_context(|| format!("cannot listen on {}", config.listen))?;
        let shared = Shared::open(config, &world, &endpoint)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(requests::accept(shared.clone(), endpoint.clone()));
        tasks.spawn(master::keep_connected(shared.clone(), endpoint.clone()));
        for store in shared.stores() {
            tasks.spawn(background::look_after(shared.clone(), store.clone()));
            tasks.spawn(scrub::run(shared.clone(), store.clone()));
        }
        tracing::info!(address = %endpoint.local_address(), node = %world.identity.node, "listening on");
        Ok(Self { shared, endpoint, tasks })
    }

    pub fn address(&self) -> SocketAddr {
        self.endpoint.local_address()
    }

    /// Closes all connections, then makes everything durable.
    pub fn stop(self) -> BoxFuture<anyhow::Result<()>> {
        Box::pin(self.end())
    }

    async fn end(mut self) -> anyhow::Result<()> {
        self.tasks.shutdown().await;
        self.endpoint.close().await;
        let mut failed = Vec::new();
        for store in self.shared.stores().iter().filter(|store| store.failure().is_none()) {
            let now = self.shared.clock.wall();
            if let Err(fault) = godrive_disk::blocking(store.is_instant(), || store.checkpoint(now)) {
                failed.push(fault.to_string());
            }
            if let Err(fault) = store.sync().await {
                failed.push(fault.to_string());
            }
        }
        anyhow::ensure!(failed.is_empty(), "not everything could be made durable: {}", failed.join("; "));
        Ok(())
    }
}

/// Serves until `shutdown` resolves.
pub async fn run(config: Config, world: World, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let slave = Slave::start(config, world).await?;
    shutdown.await;
    slave.stop().await
}
