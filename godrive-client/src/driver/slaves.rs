//! Connections to the slaves: one per node, made when first needed, made anew when it has ended.

use super::health::{Health, Wait};
use super::latency::Size;
use super::master::Master;
use super::routes::Routes;
use super::stats::Stats;
use bytes::Bytes;
use godrive_proto::data::{CopyRange, Layout, Member};
use godrive_proto::net::{Connection, Expect, Message, Reply};
use godrive_proto::time::Instant;
use godrive_proto::{Code, Fault, NodeId, Operation, Role, lease};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::timeout;

/// Slaves of one answer that are connected to before they are needed.
const MAX_MEETINGS: usize = 8;

pub struct Slaves {
    master: Arc<Master>,
    health: Mutex<Health>,
    /// Locked after `health`.
    routes: Mutex<Routes>,
    heard: Mutex<Instant>,
    slots: Mutex<BTreeMap<NodeId, Arc<Slot>>>,
    last_stamp: AtomicU64,
}

#[derive(Default)]
struct Slot {
    current: Mutex<Option<Cached>>,
    /// Held while connecting, so that many requests make one connection; the last attempt that failed.
    connecting: tokio::sync::Mutex<Option<Failed>>,
}

struct Failed {
    address: SocketAddr,
    began: Instant,
    fault: Fault,
}

#[derive(Clone)]
struct Cached {
    address: SocketAddr,
    /// Tells connections to one node apart.
    stamp: u64,
    connection: Connection,
}

impl Slaves {
    pub fn new(master: Arc<Master>) -> Self {
        let health = Mutex::new(Health::new(master.config.timeouts.hedge.clone()));
        Self {
            master,
            health,
            routes: Mutex::default(),
            heard: Mutex::default(),
            slots: Mutex::default(),
            last_stamp: AtomicU64::new(0),
        }
    }

    /// Connects to the members of chunks in the background, those of the first chunks first. A failure tells the next
    /// request, as that member was looked for.
    pub fn meet(self: &Arc<Self>, layouts: &[Layout]) {
        let members = layouts.iter().flat_map(|layout| &layout.members);
        self.meet_all(members.map(|member| (member.node, member.address)));
    }

    fn meet_all(self: &Arc<Self>, all: impl Iterator<Item = (NodeId, SocketAddr)>) {
        let mut met: Vec<NodeId> = Vec::new();
        for (node, address) in all {
            if met.len() == MAX_MEETINGS {
                break;
            }
            if met.contains(&node) {
                continue;
            }
            met.push(node);
            let known = self.slots.lock().contains_key(&node);
            if !known {
                let slaves = self.clone();
                tokio::spawn(async move { drop(slaves.connection(node, address).await) });
            }
        }
    }

    /// Connects to some of those that the master knows, so that a mount's first read does not wait for handshakes.
    pub async fn meet_first(self: Arc<Self>) {
        match self.master.query::<lease::Slaves>(&(), self.master.patience()).await {
            Ok(slaves) => self.meet_all(slaves.iter().map(|slave| (slave.node, slave.address))),
            Err(fault) => tracing::debug!(%fault, "no slaves are connected to ahead"),
        }
    }

    /// One request to one member. A connection that turns out to have ended before is made anew once.
    pub async fn call<O: Operation>(
        self: &Arc<Self>,
        member: &Member,
        request: &O::Request,
        payload: &[Bytes],
        deadline: Duration,
    ) -> Result<Reply<O::Reply>, Fault> {
        let message = Message::new::<O>(request)?;
        // Who asks for a copy must know how often it was asked for.
        let again = O::CODE != CopyRange::CODE;
        self.exchange(member, &message, payload, deadline, again).await?.decode::<O>()
    }

    async fn exchange(
        self: &Arc<Self>,
        member: &Member,
        message: &Message,
        payload: &[Bytes],
        deadline: Duration,
        again: bool,
    ) -> Result<Reply<Bytes>, Fault> {
        let _busy = Busy::new(self, member.node);
        let mut retried = false;
        loop {
            let (Cached { connection, stamp, .. }, cached) =
                self.connection(member.node, member.address).await?;
            let header = self.master.header(&self.master.session(), 0);
            Stats::add(&self.master.stats.slave_requests, 1);
            self.master.stats.sent(&header, message, payload.iter().map(Bytes::len).sum());
            match connection.exchange(header, message, payload, deadline).await {
                Ok(reply) => {
                    self.master.stats.received(&reply);
                    self.health.lock().succeeded(member.node);
                    self.has_answered();
                    return Ok(reply);
                }
                Err(fault) if matches!(fault.code, Code::Unreachable | Code::Timeout) => {
                    self.forget(member.node, stamp);
                    if fault.code == Code::Unreachable
                        && cached
                        && again
                        && !retried
                        && connection.is_closed()
                    {
                        retried = true;
                        continue;
                    }
                    self.failed(member.node);
                    return Err(at(member, fault));
                }
                Err(fault) => {
                    self.has_answered();
                    return Err(fault);
                }
            }
        }
    }

    /// When any slave answered last, be it a fault.
    pub fn heard(&self) -> Instant {
        *self.heard.lock()
    }

    fn has_answered(&self) {
        *self.heard.lock() = self.master.timing.now();
    }

    pub fn failed(&self, node: NodeId) {
        self.health.lock().failed(node, self.master.timing.now());
    }

    /// A read was answered by one member first; of others no answer is waited for any longer, and some were asked before it.
    pub fn answered(&self, first: Wait, others: impl Iterator<Item = (Wait, bool)>) {
        let now = self.master.timing.now();
        let mut health = self.health.lock();
        health.read(first);
        others.for_each(|(other, overtaken)| health.unanswered(other, overtaken, now));
    }

    /// How long a read waits before it asks `next` as well.
    pub fn hedge(&self, next: &Member, size: Size) -> Duration {
        self.health.lock().hedge(next.node, size, self.master.timing.now())
    }

    pub fn hedged(&self) {
        self.health.lock().hedged();
        Stats::add(&self.master.stats.hedges, 1);
    }

    /// `members` in the order in which a read asks them.
    pub fn order(&self, members: &[Member], spread: u64) -> Vec<Member> {
        let order =
            self.health.lock().order(members.iter().map(|m| m.node), spread, self.master.timing.now());
        order.into_iter().map(|at| members[at]).collect()
    }

    /// `members` in the order in which a delta travels.
    pub fn chain(&self, members: &[Member]) -> Vec<Member> {
        let now = self.master.timing.now();
        let nodes: Vec<NodeId> = members.iter().map(|member| member.node).collect();
        let (health, routes) = (self.health.lock(), self.routes.lock());
        let order = routes.order(&nodes, |node| health.is_unreachable(node, now), now);
        order.into_iter().map(|at| members[at]).collect()
    }

    /// All members have answered a delta that travelled along this route.
    pub fn passed(&self, route: &[NodeId]) {
        self.routes.lock().passed(route);
    }

    /// A delta that travelled along this route got no answer from `node`. Who is to be reported; None: the mount itself is cut off.
    pub fn broke(&self, route: &[NodeId], node: NodeId) -> Option<NodeId> {
        let now = self.master.timing.now();
        let (mut health, mut routes) = (self.health.lock(), self.routes.lock());
        match route.iter().position(|member| *member == node) {
            Some(at @ 1..) => routes.broke(route[at - 1], node, now),
            _ => health.failed(node, now),
        }
        routes.blame(route, |node| health.is_unreachable(node, now), node, now)
    }

    /// An open connection, and whether it was there already.
    async fn connection(
        self: &Arc<Self>,
        node: NodeId,
        address: SocketAddr,
    ) -> Result<(Cached, bool), Fault> {
        let slot = self.slots.lock().entry(node).or_default().clone();
        if let Some(cached) = slot.open(address) {
            return Ok((cached, true));
        }
        // It goes on if who asked waits no longer: the next one wants it, or is to know that it failed.
        let (slaves, asked) = (self.clone(), self.master.timing.now());
        let connecting = tokio::spawn(async move { slaves.connect(&slot, node, address, asked).await });
        connecting.await.map_err(|error| Fault::at(Code::Unreachable, node, error.to_string()))?
    }

    async fn connect(
        &self,
        slot: &Slot,
        node: NodeId,
        address: SocketAddr,
        asked: Instant,
    ) -> Result<(Cached, bool), Fault> {
        let mut single_flight = slot.connecting.lock().await;
        if let Some(cached) = slot.open(address) {
            return Ok((cached, true));
        }
        // An attempt that began since says how this one would end; many may have waited for it.
        if let Some(failed) =
            single_flight.as_ref().filter(|failed| failed.address == address && failed.began >= asked)
        {
            return Err(failed.fault.clone());
        }
        let began = self.master.timing.now();
        let expect = Expect { role: Role::Slave, node: Some(node) };
        let connect = self.master.endpoint.connect(address, expect);
        let outcome = match timeout(self.master.config.timeouts.connect, connect).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Fault::bare(Code::Unreachable)),
        };
        match outcome {
            Ok(connection) => {
                let stamp = self.last_stamp.fetch_add(1, Ordering::Relaxed) + 1;
                let cached = Cached { address, stamp, connection };
                *slot.current.lock() = Some(cached.clone());
                Ok((cached, false))
            }
            Err(fault) => {
                self.failed(node);
                let detail = format!("cannot connect to slave {node} at {address}: {}", fault.detail);
                let fault = Fault::at(Code::Unreachable, node, detail);
                *single_flight = Some(Failed { address, began, fault: fault.clone() });
                Err(fault)
            }
        }
    }

    /// The next request makes a new connection; requests under way on this one may still end well.
    fn forget(&self, node: NodeId, stamp: u64) {
        let slot = self.slots.lock().get(&node).cloned();
        if let Some(slot) = slot {
            let mut current = slot.current.lock();
            if current.as_ref().is_some_and(|cached| cached.stamp == stamp) {
                *current = None;
            }
        }
    }
}

impl Slot {
    fn open(&self, address: SocketAddr) -> Option<Cached> {
        let current = self.current.lock();
        current.as_ref().filter(|cached| cached.address == address && !cached.connection.is_closed()).cloned()
    }
}

/// Names the member in a fault of the connection to it.
fn at(member: &Member, fault: Fault) -> Fault {
    let detail = format!("slave {} at {}: {}", member.node, member.address, fault.detail);
    Fault::at(fault.code, fault.node.unwrap_or(member.node), detail)
}

/// Counts a request as outstanding until it is dropped.
struct Busy<'a> {
    slaves: &'a Slaves,
    node: NodeId,
}

impl<'a> Busy<'a> {
    fn new(slaves: &'a Slaves, node: NodeId) -> Self {
        slaves.health.lock().begun(node);
        Self { slaves, node }
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.slaves.health.lock().ended(self.node);
    }
}
