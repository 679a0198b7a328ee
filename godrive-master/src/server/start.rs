//! From an empty or a used directory to a serving master, and to a clean end.

use super::hub::{Hub, Parts};
use super::journal::{Durability, Journal};
use super::room::{self, Room};
use super::shared::Shared;
use super::{checkpoint, epoch, repair, requests, sessions, trash};
use crate::config::{Config, Selector};
use crate::core::leases::{self, Leases};
use crate::core::nodes::{self, Known, Nodes};
use crate::core::placement::{CapacityWeighted, NodeSelector, RoundRobin};
use crate::core::record::{Body, Record};
use crate::core::state::State;
use crate::log::{Log, MAY_BEGIN};
use crate::store::{RecoveryOptions, recover};
use anyhow::Context as _;
use godrive_disk::{Disk, write_small};
use godrive_proto::lease::ClusterParameters;
use godrive_proto::net::identity::{Authority, Identity};
use godrive_proto::net::{Endpoint, Options, Sockets};
use godrive_proto::time::Clock;
use godrive_proto::{Role, version};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

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

/// Lets a new cluster begin in an empty state directory.
pub fn may_begin(disk: &dyn Disk) -> std::io::Result<()> {
    write_small(
        disk,
        MAY_BEGIN,
        b"A new cluster may begin in this directory. Its master removes this file when it does.\n",
    )
}

/// More ids than are given out between two syncs of the log.
const IDS_SKIPPED: u64 = 1 << 20;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A running master.
pub struct Master {
    pub(super) shared: Arc<Shared>,
    endpoint: Endpoint,
    tasks: Vec<JoinHandle<()>>,
}

impl Master {
    /// Recovers the state, binds and begins to serve.
    ///
    /// Boxed, so that the server is compiled here once and not again in every program that starts one.
    pub fn start(config: Config, world: World) -> BoxFuture<anyhow::Result<Self>> {
        Box::pin(Self::begin(config, world))
    }

    async fn begin(config: Config, world: World) -> anyhow::Result<Self> {
        config.check().map_err(|(field, detail)| anyhow::anyhow!("{field}: {detail}"))?;
        let cluster = world.identity.cluster;
        anyhow::ensure!(
            world.identity.role == Role::Master,
            "the identity is a {}'s, not a master's",
            world.identity.role
        );
        if let Some(authority) = &world.authority {
            anyhow::ensure!(
                authority.cluster() == cluster,
                "authority and identity are of different clusters"
            );
        }
        let room = Room::open(world.disk.clone()).context("the state directory")?;
        let recovered =
            recover(&room.disk(), cluster, RecoveryOptions::default()).context("the state directory")?;
        let (mut state, mut log) = (recovered.state, recovered.log);
        let began_at = log.last();
        let term = state.term().next();
        tracing::info!(%cluster, %term, records = %began_at, replayed = recovered.replayed, "state recovered");
        if state.cluster().is_none() {
            anyhow::ensure!(
                world.disk.exists(MAY_BEGIN).context("the state directory")?,
                "{}: there is nothing of cluster {cluster} here, though this master's certificate is of it. Put back the \
                 directory from a backup. If this cluster has never begun, make an empty file `{MAY_BEGIN}` there",
                config.directory.display()
            );
            let parameters = ClusterParameters {
                chunk_bytes: config.chunk_bytes,
                replicas: config.replicas,
                min_replicas: config.min_replicas(),
            };
            let body = Body::Bootstrap { cluster, parameters, feature_level: version::FEATURE_LEVEL };
            log_own(&mut state, &mut log, term, &*world.clock, body)?;
            tracing::info!(%cluster, ?parameters, "a new cluster begins");
        }
        log_own(&mut state, &mut log, term, &*world.clock, Body::TermStarted { term })?;
        if term.0 > 1 {
            log_own(&mut state, &mut log, term, &*world.clock, Body::IdsSkipped { count: IDS_SKIPPED })?;
        }
        let (trash, kept) = (state.trash()?, &config.trash);
        if (trash.keep_s, trash.min_age_s) != (kept.keep_s, kept.min_age_s) {
            let body = Body::TrashKept { keep_s: kept.keep_s, min_age_s: kept.min_age_s };
            log_own(&mut state, &mut log, term, &*world.clock, body)?;
        }
        log.sync_point().run().context("the log")?;
        has_begun(&*world.disk).context("the state directory")?;
        let durability = Durability::new(log.last(), world.disk.is_instant());
        let hub = assemble(&config, &world, state, Journal::new(log, term), term, began_at)?;
        let options = Options { rng_seed: world.transport_seed, accept_joiners: true };
        let endpoint = Endpoint::new(&world.sockets, config.listen, &world.identity, &options)
            .with_context(|| format!("listen = {}", config.listen))?;
        let shared = Shared::new(hub, durability, world.authority, world.seed, endpoint.local_address());
        let tasks = vec![
            tokio::spawn(shared.clone().tick()),
            tokio::spawn(sessions::forget_silent(shared.clone())),
            tokio::spawn(epoch::retry_unfinished(shared.clone())),
            tokio::spawn(super::journal::sync_soon(shared.clone())),
            tokio::spawn(super::journal::note_the_end(shared.clone())),
            tokio::spawn(repair::run(shared.clone())),
            tokio::spawn(checkpoint::run(shared.clone())),
            tokio::spawn(room::watch(shared.clone(), room)),
            tokio::spawn(trash::run(shared.clone())),
            tokio::spawn(accept(shared.clone(), endpoint.clone())),
        ];
        tracing::info!(address = %endpoint.local_address(), "listening on {}", endpoint.local_address());
        Ok(Self { shared, endpoint, tasks })
    }

    pub fn address(&self) -> SocketAddr {
        self.endpoint.local_address()
    }

    /// Closes all connections and writes a checkpoint, so that the next start is quick.
    pub fn stop(self) -> BoxFuture<anyhow::Result<()>> {
        Box::pin(self.end())
    }

    async fn end(self) -> anyhow::Result<()> {
        self.endpoint.close().await;
        for task in &self.tasks {
            task.abort();
        }
        for task in self.tasks {
            // An aborted task ends with an error that says so.
            let _ = task.await;
        }
        self.shared.with(|hub, _| hub.unlink_all());
        checkpoint::once(&self.shared).await.context("the last checkpoint")?;
        tracing::info!("stopped");
        Ok(())
    }
}

/// Serves until `shutdown` resolves.
pub async fn run(config: Config, world: World, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let master = Master::start(config, world).await?;
    shutdown.await;
    master.stop().await
}

async fn accept(shared: Arc<Shared>, endpoint: Endpoint) {
    let mut connections = tokio::task::JoinSet::new();
    while let Some(connection) = endpoint.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(requests::serve(shared.clone(), connection));
    }
}

fn has_begun(disk: &dyn Disk) -> std::io::Result<()> {
    if disk.exists(MAY_BEGIN)? {
        disk.remove(MAY_BEGIN)?;
        disk.sync_directory("")?;
    }
    Ok(())
}

fn log_own(
    state: &mut State,
    log: &mut Log,
    term: godrive_proto::Term,
    clock: &dyn Clock,
    body: Body,
) -> anyhow::Result<()> {
    let record = Record::own(clock.wall(), body);
    let index = log.append(term, std::slice::from_ref(&record))?;
    state.apply(index, &record)?.answer?;
    Ok(())
}

fn assemble(
    config: &Config,
    world: &World,
    state: State,
    journal: Journal,
    term: godrive_proto::Term,
    began_at: godrive_proto::LogIndex,
) -> anyhow::Result<Hub> {
    let now = world.clock.now();
    let ms = |value: u32| Duration::from_millis(value.into());
    let mut leases = Leases::new(
        term,
        leases::Settings {
            revoked_after: ms(config.leases.revoked_after_ms),
            held_at_least: ms(config.leases.held_at_least_ms),
            recall_again_after: Duration::from_millis(100),
        },
    );
    let settings = nodes::Settings {
        suspect_after: ms(config.nodes.suspect_after_ms),
        dead_after: ms(config.nodes.dead_after_ms),
        replicas: state.cluster().map_or(0, |cluster| cluster.parameters.replicas.into()),
    };
    let mut nodes = Nodes::new(settings);
    for (node, known) in state.nodes()? {
        let known = Known { node, address: known.address, domain: known.domain, disks: known.disks };
        nodes.recovered(now, known);
    }
    for (node, intent) in state.intents()? {
        nodes.intents.set(node, intent);
    }
    let sessions = state.sessions()?;
    for (session, _) in &sessions {
        leases.recovering(now, *session);
    }
    let selector: Box<dyn NodeSelector> = match config.selector {
        Selector::RoundRobin => Box::new(RoundRobin::default()),
        Selector::Capacity => Box::new(CapacityWeighted::default()),
    };
    let unsettled = state.unsettled()?;
    let cluster = world.identity.cluster;
    let clock = world.clock.clone();
    let config = config.clone();
    let mut hub =
        Hub::new(Parts { config, cluster, term, began_at, state, journal, leases, nodes, selector, clock });
    hub.owners = sessions.into_iter().map(|(session, known)| (session, known.client)).collect();
    for chunk in unsettled {
        if let Some(known) = hub.state.chunk(chunk)? {
            hub.leases.fence(known.ino);
        }
        hub.unfinished.insert(chunk, now);
    }
    hub.config_warnings = differing(&hub)?;
    for warning in &hub.config_warnings {
        tracing::warn!("{warning}");
    }
    Ok(hub)
}

/// The log rules over what the configuration says of an existing cluster.
fn differing(hub: &Hub) -> anyhow::Result<Vec<String>> {
    let (rules, config) = (hub.parameters()?, &hub.config);
    let pairs = [
        ("chunk_bytes", u64::from(rules.chunk_bytes), u64::from(config.chunk_bytes)),
        ("replicas", rules.replicas.into(), config.replicas.into()),
        ("min_replicas", rules.min_replicas.into(), config.min_replicas().into()),
    ];
    let differ = pairs.into_iter().filter(|(_, rule, wish)| rule != wish);
    let say = |(field, rule, wish)| {
        format!("{field} is {rule} since the cluster was created; the configuration's {wish} has no effect")
    };
    Ok(differ.map(say).collect())
}
