//! What slaves tell the master: who they are, what they have, that they live.

use super::hub::{Hub, Link};
use super::inventory;
use super::requests::Context;
use super::shared::Shared;
use crate::core::nodes::Health;
use crate::core::record::Body;
use crate::core::repair::{Unneeded, Worklist};
use crate::core::state::values::Node;
use godrive_proto::cluster::*;
use godrive_proto::data::{Contents, Member};
use godrive_proto::time::Instant;
use godrive_proto::{ChunkId, Code, DiskId, Epoch, Fault, LogIndex, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const MAX_DISKS: usize = 256;
const MAX_DOMAIN_BYTES: usize = 255;
/// Stable reports that wait for the other members.
const MAX_STABLE: usize = 100_000;
/// A member that is reported again within this, after it was spared, is out of the reach of those that need it.
const SPARED_FOR: Duration = Duration::from_secs(30);
const MAX_SPARED: usize = 10_000;

/// What is known of slaves beside [`crate::core::nodes::Nodes`]; all of it comes again with their inventories.
#[derive(Default)]
pub struct Slaves {
    pub links: BTreeMap<NodeId, Link>,
    /// Something may have to be repaired or reclaimed.
    pub reclaim: bool,
    /// How far each inventory has come, and the chunks that existed when it began.
    pub inventories: BTreeMap<NodeId, Inventory>,
    /// Replicas that are not of their chunk's current epoch, and their epochs.
    pub leftovers: BTreeMap<ChunkId, BTreeMap<(NodeId, DiskId), Epoch>>,
    /// Members that do not have their replica.
    pub lost: BTreeMap<ChunkId, BTreeSet<NodeId>>,
    /// Members that were reported as corrupt and when, until they leave the epoch or their slave comes again.
    pub corrupt: BTreeMap<ChunkId, BTreeMap<NodeId, Instant>>,
    /// Deleted chunks of which nobody who is connected has anything left, as far as noticed: no room comes of them now.
    pub stuck: BTreeSet<ChunkId>,
    /// Chunks with something to repair, as far as noticed.
    pub endangered: Worklist,
    /// Members that stayed in an epoch although they were reported as failed, and when.
    pub spared: BTreeMap<(ChunkId, NodeId), Instant>,
    stable: BTreeMap<ChunkId, Stable>,
}

#[derive(Clone, Copy)]
pub struct Inventory {
    pub link: u64,
    /// The last chunk that was reported.
    pub after: ChunkId,
    /// Chunks made later cannot be missing from it.
    pub newest: ChunkId,
}

/// Who has which contents on stable storage.
struct Stable {
    epoch: Epoch,
    contents: Contents,
    nodes: BTreeSet<NodeId>,
}

pub async fn register(context: &Context, request: RegisterRequest) -> Result<Registered, Fault> {
    if request.disks.len() > MAX_DISKS || request.domain.len() > MAX_DOMAIN_BYTES {
        let detail = format!("a slave has at most {MAX_DISKS} disks and {MAX_DOMAIN_BYTES} bytes of domain");
        return Err(Fault::new(Code::Malformed, detail));
    }
    if request.cluster != context.shared.cluster {
        let detail = format!(
            "the slave's disks belong to cluster {}, this master serves {}: give it empty directories or connect it \
             to its own master",
            request.cluster, context.shared.cluster
        );
        return Err(Fault::new(Code::Forbidden, detail));
    }
    let node = context.peer.node;
    let step = |hub: &mut Hub, now: Instant| {
        hub.nodes.register(now, node, &request)?;
        let disks: Vec<DiskId> = request.disks.iter().map(|state| state.disk).collect();
        let (address, domain, boot) = (request.address, request.domain.clone(), request.boot);
        let mut durable = LogIndex(0);
        let unchanged = |logged: Node| {
            (logged.address, &logged.domain, &logged.disks, logged.boot) == (address, &domain, &disks, boot)
        };
        if !hub.state.node(node)?.is_some_and(unchanged) {
            let (answer, index) = hub.decide(Body::NodeRegistered { node, address, domain, disks, boot })?;
            answer?;
            durable = index;
        }
        let link = Link { number: context.link.number, connection: context.link.connection.clone() };
        let newest = hub.state.newest_chunk();
        hub.slaves.links.insert(node, link);
        let inventory = Inventory { link: context.link.number, after: ChunkId(0), newest };
        hub.slaves.inventories.insert(node, inventory);
        hub.slaves.forget(node);
        hub.slaves.stuck.clear();
        hub.slaves.reclaim = true;
        hub.try_unfinished_soon(now);
        Ok((Registered { heartbeat_every_ms: hub.config.nodes.heartbeat_every_ms }, durable))
    };
    let registered = context.step(step).await?;
    tracing::info!(%node, address = %request.address, domain = request.domain, disks = request.disks.len(),
        "slave registered");
    Ok(registered)
}

/// The connection under this number ended.
pub fn disconnected(shared: &Arc<Shared>, node: NodeId, number: u64) {
    shared.with(|hub, _| {
        if hub.slaves.links.get(&node).is_some_and(|link| link.number == number) {
            tracing::warn!(%node, "the slave's connection is lost");
            hub.slaves.links.remove(&node);
            hub.slaves.inventories.remove(&node);
            hub.nodes.disconnected(node);
            hub.slaves.reclaim = true;
        }
    });
}

pub async fn heartbeat(context: &Context, request: HeartbeatRequest) -> Result<(), Fault> {
    let node = context.peer.node;
    let step = |hub: &mut Hub, now: Instant| {
        let current = hub.slaves.links.get(&node).is_some_and(|link| link.number == context.link.number);
        if !current {
            return Err(Fault::new(Code::NotReady, "this connection is not registered: register first"));
        }
        hub.nodes.heartbeat(now, node, &request)?;
        for (chunk, epoch, contents) in &request.stable {
            hub.slaves.became_stable(node, *chunk, *epoch, *contents);
        }
        log_stable(hub, &request.stable)?;
        Ok((unknown(hub, &request.stable)?, LogIndex(0)))
    };
    let unknown = context.step(step).await?;
    if !unknown.is_empty() {
        let (shared, link) = (context.shared.clone(), context.link.clone());
        tokio::spawn(async move { inventory::quarantine(&shared, node, &link, unknown).await });
    }
    Ok(())
}

/// Those of which there is no record: a loss of the master's power has undone it, and a writer that did not know of that yet
/// made them after their slave's inventory.
fn unknown(hub: &Hub, reported: &[(ChunkId, Epoch, Contents)]) -> Result<Vec<ChunkId>, Fault> {
    let mut unknown = Vec::new();
    for (chunk, _, _) in reported {
        if hub.state.chunk(*chunk)?.is_none() && hub.state.deleted_chunk(*chunk)?.is_none() {
            unknown.push(*chunk);
        }
    }
    Ok(unknown)
}

/// Logs those of the reported chunks that all members now have on stable storage.
fn log_stable(hub: &mut Hub, reported: &[(ChunkId, Epoch, Contents)]) -> Result<(), Fault> {
    let (mut chunks, mut over) = (Vec::new(), Vec::new());
    for (chunk, _, _) in reported {
        let Some(report) = hub.slaves.stable.get(chunk) else { continue };
        let Some(known) = hub.state.chunk(*chunk)? else {
            over.push(*chunk);
            continue;
        };
        if report.epoch < known.epoch || report.contents.version <= known.stable.version {
            over.push(*chunk);
        } else if known.members.iter().all(|member| report.nodes.contains(&member.node)) {
            chunks.push((*chunk, report.epoch, report.contents));
            over.push(*chunk);
        }
    }
    if !chunks.is_empty() {
        match hub.decide(Body::ChunksStable { chunks }) {
            Ok((answer, _)) => answer.map(drop)?,
            // The pulse goes on; what is stable stays held a little longer, until its next version.
            Err(fault) if fault.code == Code::NoSpace => tracing::debug!("not logged as stable: {fault}"),
            Err(fault) => return Err(fault),
        }
    }
    for chunk in over {
        hub.slaves.stable.remove(&chunk);
    }
    Ok(())
}

impl Slaves {
    /// What is known of a node's replicas is outdated.
    pub fn forget(&mut self, node: NodeId) {
        self.leftovers.retain(|_, places| {
            places.retain(|(holder, _), _| *holder != node);
            !places.is_empty()
        });
        self.lost.retain(|_, nodes| {
            nodes.remove(&node);
            !nodes.is_empty()
        });
        self.corrupt.retain(|_, nodes| {
            nodes.remove(&node);
            !nodes.is_empty()
        });
    }

    fn became_stable(&mut self, node: NodeId, chunk: ChunkId, epoch: Epoch, contents: Contents) {
        if self.stable.len() >= MAX_STABLE && !self.stable.contains_key(&chunk) {
            // The oldest chunk is the likeliest to be gone; at worst it stays held a little longer.
            self.stable.pop_first();
        }
        let fresh = || Stable { epoch, contents, nodes: BTreeSet::new() };
        let report = self.stable.entry(chunk).or_insert_with(fresh);
        let newer = (epoch, contents.version) > (report.epoch, report.contents.version);
        if newer {
            *report = fresh();
        }
        if report.epoch == epoch && report.contents == contents {
            report.nodes.insert(node);
        }
    }

    /// Those who left an epoch have a replica that nobody needs, unless they join again.
    pub fn members_changed(&mut self, chunk: ChunkId, before: &[Member], after: &[Member], epoch: Epoch) {
        let places = self.leftovers.entry(chunk).or_default();
        for member in before {
            places.insert((member.node, member.disk), Epoch(epoch.0 - 1));
        }
        // A slave that moves a replica between its disks removes the old one itself.
        places.retain(|(node, _), _| after.iter().all(|member| member.node != *node));
        if places.is_empty() {
            self.leftovers.remove(&chunk);
        }
        if let Some(lost) = self.lost.get_mut(&chunk) {
            for member in after {
                lost.remove(&member.node);
            }
        }
        if let Some(corrupt) = self.corrupt.get_mut(&chunk) {
            let is_in = |members: &[Member], node| members.iter().any(|member| member.node == node);
            corrupt.retain(|node, _| is_in(before, *node) && is_in(after, *node));
            if corrupt.is_empty() {
                self.corrupt.remove(&chunk);
            }
        }
        self.endangered.put(chunk, Worklist::UNKNOWN);
        self.reclaim = true;
    }

    pub fn reported_corrupt(&mut self, now: Instant, chunk: ChunkId, node: NodeId) {
        self.corrupt.entry(chunk).or_default().insert(node, now);
    }

    /// A replica was copied there that is of no epoch: the next repair joins it, or it is removed as not needed.
    pub fn copied(&mut self, chunk: ChunkId, to: Member) {
        self.leftovers.entry(chunk).or_default().entry((to.node, to.disk)).or_insert(Epoch(0));
        self.endangered.put(chunk, Worklist::UNKNOWN);
        self.reclaim = true;
    }

    /// It answered the master, so it stayed.
    pub fn spare(&mut self, now: Instant, chunk: ChunkId, node: NodeId) {
        if self.spared.len() >= MAX_SPARED {
            self.spared.retain(|_, since| now.since(*since) < SPARED_FOR);
        }
        if self.spared.len() < MAX_SPARED {
            self.spared.insert((chunk, node), now);
        }
    }

    pub fn was_spared(&self, now: Instant, chunk: ChunkId, node: NodeId) -> bool {
        self.spared.get(&(chunk, node)).is_some_and(|since| now.since(*since) < SPARED_FOR)
    }

    /// What was copied to it verifies.
    pub fn mended(&mut self, chunk: ChunkId, node: NodeId) {
        if let Some(corrupt) = self.corrupt.get_mut(&chunk) {
            corrupt.remove(&node);
            if corrupt.is_empty() {
                self.corrupt.remove(&chunk);
            }
        }
    }

    pub fn is_lost(&self, chunk: ChunkId, node: NodeId) -> bool {
        self.lost.get(&chunk).is_some_and(|nodes| nodes.contains(&node))
    }

    /// Replicas of a chunk that were confirmed as removed.
    pub fn removed(&mut self, unneeded: Unneeded) {
        if let Some(places) = self.leftovers.get_mut(&unneeded.chunk) {
            places.retain(|(node, _), epoch| *node != unneeded.node || *epoch > unneeded.epoch);
            if places.is_empty() {
                self.leftovers.remove(&unneeded.chunk);
            }
        }
    }
}

/// The health of each member, for planning and for people.
pub fn member_health(hub: &Hub, now: Instant, chunk: ChunkId, member: &Member) -> Health {
    if hub.slaves.is_lost(chunk, member.node) {
        return Health::Dead;
    }
    hub.nodes.replica_health(now, member.node, member.disk)
}
