//! A whole cluster in one process: a master, slaves and clients as turmoil hosts, each with a clock that is a little
//! off, simulated disks that outlive their hosts, and a schedule of what happens to them.

use crate::clock::{EPOCH_S, SimulatedClock};
use crate::crypto;
use crate::damage::{Damaged, Undamaged};
use crate::events::Event;
use crate::histories::Checked;
use crate::lying::LyingDisk;
use crate::operator;
use crate::oracle::Tally;
use crate::shared::{Kind, Shared};
use crate::sharing::{self, Sharing};
use crate::trace::{Digest, Trace};
use crate::weather::Network;
use crate::workload::{Worker, Workload};
use godrive_client::{Client, Fs};
use godrive_disk::{Disk, SimulatedDisk};
use godrive_proto::net::identity::{Authority, Identity};
use godrive_proto::net::simulated::SimulatedSockets;
use godrive_proto::net::{Endpoint, Options, Sockets};
use godrive_proto::{ChunkId, ClusterId, NodeId, Role};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::pending;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;
use turmoil::Sim;

const MASTER_PORT: u16 = 7400;
const SLAVE_PORT: u16 = 7401;
pub(crate) const DISK_BYTES: u64 = 1 << 30;
pub(crate) const MASTERS: Bay = (Node::Master, 0);

/// A host of the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Node {
    Master,
    Slave(u16),
    Client(u16),
    Operator,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Master => f.write_str("master"),
            Self::Slave(number) => write!(f, "slave-{number}"),
            Self::Client(number) => write!(f, "client-{number}"),
            Self::Operator => f.write_str("operator"),
        }
    }
}

/// The number by which the cluster knows it: the same in every run.
pub(crate) fn node_id(node: Node) -> NodeId {
    NodeId(match node {
        Node::Master => 1,
        Node::Slave(number) => 100 + u128::from(number),
        Node::Client(number) => 200 + u128::from(number),
        Node::Operator => 2,
    })
}

/// A disk of a node, by its number there: those of slaves with several are not alike.
pub(crate) type Bay = (Node, u8);

/// A run to be made.
#[derive(Clone, Debug)]
pub struct Plan {
    pub slaves: u16,
    /// Of each slave.
    pub disks: u8,
    pub replicas: u8,
    pub workload: Workload,
    /// What the clients do instead of the stamped blocks, if anything: histories are kept and checked.
    pub sharing: Option<Sharing>,
    /// Somebody looks after the cluster, see [`crate::operator`].
    pub operator: bool,
    /// The slaves' disks sync nothing: a run that must fail.
    pub lying_disks: bool,
    /// In the order of their times.
    pub schedule: Vec<(Duration, Event)>,
    /// Each client must have at least so many operations acknowledged in each of these spans.
    pub progress: Vec<Progress>,
    pub windows: Vec<Window>,
    /// So many operations of all clients must be acknowledged, or the run has shown nothing.
    pub at_least: usize,
}

impl Plan {
    /// Four slaves, three replicas, nothing goes wrong.
    pub fn new(workload: Workload) -> Self {
        Self {
            slaves: 4,
            disks: 1,
            replicas: 3,
            workload,
            sharing: None,
            operator: false,
            lying_disks: false,
            schedule: Vec::new(),
            progress: Vec::new(),
            windows: Vec::new(),
            at_least: 200,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub client: u16,
    pub from: Duration,
    pub to: Duration,
    pub operations: usize,
}

/// How many operations of these kinds a client ends in the span, of those that it has begun at some moment or later.
#[derive(Clone, Debug)]
pub struct Window {
    pub client: u16,
    pub kinds: &'static [Kind],
    pub begun: Duration,
    pub from: Duration,
    pub to: Duration,
    pub operations: RangeInclusive<usize>,
}

/// What came out of a run.
#[derive(Debug)]
pub struct Outcome {
    pub trace: Digest,
    pub tally: Tally,
    /// Of the histories.
    pub checked: Checked,
    pub acknowledged: usize,
    pub virtual_time: Duration,
    pub errors: BTreeMap<String, u64>,
    /// What went wrong, by its kind, and how often.
    pub faults: BTreeMap<&'static str, u64>,
    /// The end was looked at and was as it should be.
    pub audited: bool,
    /// Empty if the contract was kept.
    pub failures: Vec<String>,
}

impl Outcome {
    /// Of a run that failed, for people.
    pub fn report(&self, scenario: &str, seed: u64) -> Option<String> {
        (!self.failures.is_empty()).then(|| {
            format!(
                "{}\n{:#?}\nagain: cargo run --release -p godrive-sim -- --scenario {scenario} --seed {seed} --log info",
                self.failures.join("\n"),
                self.errors
            )
        })
    }
}

pub(crate) struct Parts {
    pub plan: Plan,
    pub trace: Trace,
    pub network: Network,
    pub shared: Shared,
    authority: Arc<Authority>,
    pub cluster: ClusterId,
    pub disks: BTreeMap<Bay, SimulatedDisk>,
    pub clocks: BTreeMap<Node, Arc<SimulatedClock>>,
    pub dice: SmallRng,
    pub faults: BTreeMap<&'static str, u64>,
    /// Nodes that may find their disks damaged and not start.
    pub may_refuse: BTreeSet<Node>,
    pub remembered: BTreeMap<Bay, SimulatedDisk>,
    pub damaged: Vec<Damaged>,
    pub undamaged: Option<Undamaged>,
    pub noted_members: BTreeMap<ChunkId, BTreeSet<NodeId>>,
    /// A slave's disk was damaged since the cluster was seen whole.
    pub wounded: bool,
    /// When the last event was.
    pub disturbed_at: Duration,
    pub audited: bool,
}

/// Runs the plan under the seed.
pub fn run(plan: &Plan, seed: u64) -> Outcome {
    crypto::seed(seed);
    let mut dice = SmallRng::seed_from_u64(seed);
    // The seed reaches the CA too; a seeded authority cannot fail but by a defect of ours.
    let cluster = ClusterId(u128::from(seed) + 1);
    let authority = Authority::create_seeded(cluster, EPOCH_S, [7; 32]);
    let authority = Arc::new(authority.unwrap_or_else(|fault| panic!("no authority: {fault}")));
    let of_slaves =
        (1..=plan.slaves).flat_map(|slave| (0..plan.disks).map(move |at| (Node::Slave(slave), at)));
    let disks: BTreeMap<Bay, _> =
        of_slaves.chain([MASTERS]).map(|bay| (bay, SimulatedDisk::new(DISK_BYTES))).collect();
    godrive_master::may_begin(&disks[&MASTERS]).unwrap_or_else(|error| panic!("a new disk: {error}"));
    let mut sim = turmoil::Builder::new()
        .rng_seed(dice.random())
        .simulation_duration(Duration::from_secs(3600))
        .min_message_latency(Duration::from_micros(100))
        .max_message_latency(Duration::from_millis(2))
        .udp_capacity(1 << 16)
        .build();
    let trace = Trace::default();
    let mut parts = Parts {
        plan: plan.clone(),
        network: Network::new(trace.clone(), dice.random()),
        trace,
        shared: Shared::default(),
        authority,
        cluster,
        disks,
        clocks: BTreeMap::new(),
        dice,
        faults: BTreeMap::new(),
        may_refuse: BTreeSet::new(),
        remembered: BTreeMap::new(),
        damaged: Vec::new(),
        undamaged: None,
        noted_members: BTreeMap::new(),
        wounded: false,
        disturbed_at: Duration::ZERO,
        audited: false,
    };
    parts.add_master(&mut sim);
    (1..=plan.slaves).for_each(|number| parts.add_slave(&mut sim, number));
    (0..plan.workload.clients).for_each(|number| parts.add_client(&mut sim, number));
    if plan.operator {
        parts.add_operator(&mut sim);
    }
    let ended = parts.drive(&mut sim).and_then(|()| parts.look_at_the_end(&mut sim));
    parts.outcome(&sim, ended)
}

impl Parts {
    pub fn nodes(&self) -> Vec<Node> {
        let slaves = (1..=self.plan.slaves).map(Node::Slave);
        let clients = (0..self.plan.workload.clients).map(Node::Client);
        let operator = self.plan.operator.then_some(Node::Operator);
        [Node::Master].into_iter().chain(slaves).chain(clients).chain(operator).collect()
    }

    pub fn bays(&self, node: Node) -> Vec<Bay> {
        self.disks.range((node, 0)..=(node, u8::MAX)).map(|(bay, _)| *bay).collect()
    }

    pub fn disks_of(&self, node: Node) -> impl Iterator<Item = &SimulatedDisk> {
        self.disks.range((node, 0)..=(node, u8::MAX)).map(|(_, disk)| disk)
    }

    /// One of a node's disks, as chance has it.
    pub fn some_bay(&mut self, node: Node) -> Option<Bay> {
        match self.bays(node)[..] {
            [] => None,
            [only] => Some(only),
            ref several => Some(several[self.dice.random_range(0..several.len())]),
        }
    }

    fn identity(&self, node: Node) -> Identity {
        let role = match node {
            Node::Master => Role::Master,
            Node::Slave(_) => Role::Slave,
            Node::Client(_) => Role::Client,
            Node::Operator => Role::Admin,
        };
        let mut key = [9; 32];
        key[..16].copy_from_slice(&node_id(node).0.to_le_bytes());
        let identity = self.authority.issue_seeded(role, node_id(node), EPOCH_S, key);
        identity.unwrap_or_else(|fault| panic!("no identity: {fault}"))
    }

    fn sockets(&self) -> Arc<SimulatedSockets> {
        Arc::new(SimulatedSockets::watched(Arc::new(self.network.clone())))
    }

    /// Up to half a per cent fast or slow: two clocks stay within the one per cent that leases allow for.
    fn clock(&mut self, node: Node) -> Arc<SimulatedClock> {
        let drift_ppm = self.dice.random_range(-5_000..=5_000);
        let wall_offset_ns = self.dice.random_range(-2_000_000_000..=2_000_000_000);
        let clock = Arc::new(SimulatedClock::new(drift_ppm, wall_offset_ns));
        self.clocks.insert(node, clock.clone());
        clock
    }

    fn add_master(&mut self, sim: &mut Sim<'_>) {
        let (identity, sockets, clock) =
            (self.identity(Node::Master), self.sockets(), self.clock(Node::Master));
        let (disk, authority) = (self.disks[&MASTERS].clone(), self.authority.clone());
        let config = godrive_master::Config {
            listen: any(MASTER_PORT),
            chunk_bytes: godrive_proto::limits::MIN_CHUNK_BYTES,
            replicas: self.plan.replicas,
            // Short, so that what is removed goes through it and out again.
            trash: godrive_master::config::Trash { keep_s: 8, min_age_s: 0, max_entries: 1_000 },
            ..godrive_master::Config::default()
        };
        let mut seeds = SmallRng::seed_from_u64(self.dice.random());
        let shared = self.shared.clone();
        let starts = move || {
            let seed = seeds.random();
            let world = godrive_master::World {
                disk: Arc::new(disk.clone()),
                sockets: sockets.clone(),
                clock: clock.clone(),
                seed,
                identity: identity.clone(),
                authority: Some(authority.clone()),
                transport_seed: Some(transport_seed(seed)),
            };
            let (run, shared) = (godrive_master::run(config.clone(), world, pending()), shared.clone());
            async move { ended(run.await, Node::Master, &shared).await }
        };
        sim.host(Node::Master.to_string(), counted(starts));
    }

    fn add_slave(&mut self, sim: &mut Sim<'_>, number: u16) {
        let node = Node::Slave(number);
        let (identity, sockets, clock) = (self.identity(node), self.sockets(), self.clock(node));
        let (own_disks, lying) = (self.disks_of(node).cloned().collect::<Vec<_>>(), self.plan.lying_disks);
        let own = sim.lookup(node.to_string());
        let shared = self.shared.clone();
        let config = godrive_slave::Config {
            listen: any(SLAVE_PORT),
            advertise: Some(SocketAddr::new(own, SLAVE_PORT)),
            master: SocketAddr::new(sim.lookup("master"), MASTER_PORT),
            domain: format!("rack-{number}"),
            ..godrive_slave::Config::default()
        };
        let mut seeds = SmallRng::seed_from_u64(self.dice.random());
        let starts = move || {
            let given = |disk: &SimulatedDisk| -> Arc<dyn Disk> {
                if lying { Arc::new(LyingDisk(disk.clone())) } else { Arc::new(disk.clone()) }
            };
            let disks: Vec<Arc<dyn Disk>> = own_disks.iter().map(given).collect();
            let seed = seeds.random();
            let world = godrive_slave::World {
                disks,
                sockets: sockets.clone(),
                clock: clock.clone(),
                seed,
                identity: identity.clone(),
                transport_seed: Some(transport_seed(seed)),
            };
            let (run, shared) = (godrive_slave::run(config.clone(), world, pending()), shared.clone());
            async move { ended(run.await, node, &shared).await }
        };
        sim.host(node.to_string(), counted(starts));
    }

    fn add_client(&mut self, sim: &mut Sim<'_>, number: u16) {
        let (load, sharing) = (self.plan.workload, self.plan.sharing);
        let removals = sharing.map_or(0, |sharing| sharing.removals_in_a_row);
        self.add_mount(sim, number, removals, move |fs, shared, seed| async move {
            match sharing {
                None => Worker::new(number, fs, shared, load, seed).run().await,
                Some(sharing) => sharing::Client { id: number, fs, shared, load, sharing }.run(seed).await,
            }
        });
    }

    fn add_operator(&mut self, sim: &mut Sim<'_>) {
        let (identity, sockets) = (self.identity(Node::Operator), self.sockets());
        let master = SocketAddr::new(sim.lookup("master"), MASTER_PORT);
        let (seed, shared) = (self.dice.random(), self.shared.clone());
        sim.host(Node::Operator.to_string(), move || {
            let (identity, sockets, shared) = (identity.clone(), sockets.clone(), shared.clone());
            async move {
                let options = Options { rng_seed: Some(transport_seed(seed)), ..Options::default() };
                let sockets: Arc<dyn Sockets> = sockets;
                let endpoint = Endpoint::new(&sockets, any(0), &identity, &options)?;
                operator::work(endpoint, master, shared).await;
                Ok(())
            }
        });
    }

    /// A client, and what is done there.
    pub fn add_mount<F>(
        &mut self,
        sim: &mut Sim<'_>,
        number: u16,
        removals_in_a_row: u32,
        works: impl Fn(Arc<Fs>, Shared, u64) -> F + Clone + 'static,
    ) where
        F: Future<Output = ()> + 'static,
    {
        let node = Node::Client(number);
        let (identity, sockets, clock) = (self.identity(node), self.sockets(), self.clock(node));
        let shared = self.shared.clone();
        let mut driver = godrive_client::driver::Config::new(
            SocketAddr::new(sim.lookup("master"), MASTER_PORT),
            node.to_string(),
        );
        // Where nothing can be read for good, waiting for it tells nothing.
        driver.deadline = Duration::from_secs(if self.plan.workload.may_be_unreadable { 1 } else { 15 });
        let mut config = godrive_client::Config::new(driver);
        config.removals_in_a_row = removals_in_a_row;
        let mut seeds = SmallRng::seed_from_u64(self.dice.random());
        let starts = move || {
            let world = godrive_client::World {
                sockets: sockets.clone(),
                clock: clock.clone(),
                identity: identity.clone(),
                seed: seeds.random(),
            };
            let (config, shared, seed, works) =
                (config.clone(), shared.clone(), seeds.random(), works.clone());
            async move {
                let fs = mount(number, config, world, &shared).await;
                works(fs, shared, seed).await;
                pending().await
            }
        };
        sim.host(node.to_string(), counted(starts));
    }
}

/// A daemon that ends says why, and is not started again by itself.
async fn ended(result: anyhow::Result<()>, node: Node, shared: &Shared) -> turmoil::Result {
    let why = result.err().map_or("it stopped".to_owned(), |error| format!("{error:#}"));
    tracing::warn!(%node, why, "does not start");
    shared.with(|notes| notes.refused.insert(node, why));
    pending().await
}

async fn mount(
    number: u16,
    config: godrive_client::Config,
    world: godrive_client::World,
    shared: &Shared,
) -> Arc<godrive_client::Fs> {
    loop {
        shared.doing(number, "mount");
        match Client::start(config.clone(), world.clone()).await {
            Ok(fs) => return fs,
            Err(fault) => {
                shared.error("mount", &fault);
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::from([0, 0, 0, 0]), port)
}

fn transport_seed(seed: u64) -> [u8; 32] {
    SmallRng::seed_from_u64(seed ^ 0x5eed).random()
}

/// turmoil starts hosts through `Fn`; each start draws new seeds, in order.
fn counted<F>(start: impl FnMut() -> F) -> impl Fn() -> F {
    let start = std::cell::RefCell::new(start);
    move || (start.borrow_mut())()
}
