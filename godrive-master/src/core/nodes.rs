//! The slaves as the master sees them: who they are, when they were last heard, what their disks can take.
//!
//! A node is *alive*, *suspect* (its connection is lost, heartbeats are missing, or it did not answer a seal: no
//! new replicas go there) or *dead* (silent for long: its replicas are repaired elsewhere). After a restart of
//! the master the nodes known from the log are *awaited*, as if last heard at the start: nobody has seen them fail, so
//! until they would be dead their replicas count as being there. So they are when the master itself stood still.
//!
//! A disk id has one bearer. A second one is refused while the first is not dead, because two nodes that
//! serve the same disk's chunks are a copied directory or a copied key.

use super::intents::Intents;
use super::placement::{Candidate, Reservations};
use super::record::Purpose;
use super::slowness::Slowness;
use super::standstill::Standstill;
use godrive_proto::cluster::{
    DiskHealth, DiskPlaces, DiskState, HeartbeatRequest, NodeStatus, RegisterRequest, ScrubState,
};
use godrive_proto::time::Instant;
use godrive_proto::{BootId, Code, DiskId, Fault, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub suspect_after: Duration,
    pub dead_after: Duration,
    /// Of each chunk: slow disks are used where there are fewer other nodes.
    pub replicas: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    Alive,
    Awaited,
    Suspect,
    Dead,
}

impl Health {
    pub fn word(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Awaited => "awaited",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Node {
    pub address: SocketAddr,
    pub domain: String,
    pub boot: BootId,
    pub disks: Vec<DiskState>,
    pub heard: Instant,
    pub connected: bool,
    /// Known from the log, and not registered since this master began; or there when it stood still, and not heard since.
    awaited: bool,
    /// Its inventory of this connection is complete.
    pub inventoried: bool,
    /// Since then it has registered, perhaps again and again, and not told what it has: what was known of it is forgotten.
    telling: Option<Instant>,
    /// It was dead when people let it go, and has not been heard since: what only it has is lost.
    lost: bool,
    /// Did not answer a command; forgiven after a while of heartbeats.
    suspected: Option<Instant>,
    /// Until then nothing new goes there.
    avoided: Option<Instant>,
    pub errors: u64,
    pub bad_leaves: u64,
    pub scrubbed_leaves: u64,
    pub scrub: Vec<ScrubState>,
}

#[derive(Debug)]
pub struct Nodes {
    settings: Settings,
    pub intents: Intents,
    nodes: BTreeMap<NodeId, Node>,
    bearers: BTreeMap<DiskId, NodeId>,
    slowness: Slowness,
}

/// What the log knows of a node.
#[derive(Clone, Debug)]
pub struct Known {
    pub node: NodeId,
    pub address: SocketAddr,
    pub domain: String,
    pub disks: Vec<DiskId>,
}

pub struct SlowDisk {
    pub node: NodeId,
    pub disk: DiskId,
    /// How long its syncs take and those of the others.
    pub times_ms: Option<(u32, u32)>,
}

/// A node that comes again and again without telling what it has is not waited for any longer, until it comes once more.
fn is_too_long(now: Instant, since: Instant) -> bool {
    const LONGEST: Duration = Duration::from_secs(3600);
    now.since(since) > LONGEST
}

impl Nodes {
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            intents: Intents::default(),
            nodes: BTreeMap::new(),
            bearers: BTreeMap::new(),
            slowness: Slowness::default(),
        }
    }

    /// Who was there before is awaited as after a restart.
    pub fn stood_still(&mut self, standstill: &Standstill) {
        let patience = self.settings.suspect_after;
        for node in self.nodes.values_mut() {
            let counted = standstill.counted(node.heard);
            let was_there = standstill.found_silent_for_less_than(patience, node.heard);
            node.awaited |= counted > node.heard && was_there && standstill.lasted() >= patience;
            node.heard = counted;
            node.telling = node.telling.map(|since| standstill.counted(since));
        }
    }

    /// A node from the log, at a restart.
    pub fn recovered(&mut self, now: Instant, known: Known) {
        for disk in &known.disks {
            self.bearers.insert(*disk, known.node);
        }
        let disks = known.disks.iter().map(|disk| DiskState {
            disk: *disk,
            total_bytes: 0,
            free_bytes: 0,
            chunks: 0,
            health: DiskHealth::Full,
        });
        let node = Node {
            address: known.address,
            domain: known.domain,
            boot: BootId(0),
            disks: disks.collect(),
            heard: now,
            connected: false,
            awaited: true,
            inventoried: false,
            telling: None,
            lost: false,
            suspected: None,
            avoided: None,
            errors: 0,
            bad_leaves: 0,
            scrubbed_leaves: 0,
            scrub: Vec::new(),
        };
        self.nodes.insert(known.node, node);
    }

    /// A slave announces itself on a new connection. Refused if a disk of it has another living bearer.
    pub fn register(&mut self, now: Instant, id: NodeId, request: &RegisterRequest) -> Result<(), Fault> {
        self.intents.admit(id, request.disks.iter().map(|state| state.disk))?;
        for state in &request.disks {
            let disk = state.disk;
            let other = self.bearers.get(&disk).filter(|bearer| **bearer != id);
            if let Some(bearer) = other
                && self.health(now, *bearer) != Health::Dead
            {
                let detail = format!(
                    "disk {disk} is already served by node {bearer}: was its directory copied? Use an empty \
                     directory, or stop the other node first"
                );
                return Err(Fault::at(Code::Busy, *bearer, detail));
            }
        }
        let twice = request
            .disks
            .iter()
            .enumerate()
            .find(|(at, state)| request.disks[..*at].iter().any(|other| other.disk == state.disk));
        if let Some((_, state)) = twice {
            return Err(Fault::new(Code::Malformed, format!("disk {} is announced twice", state.disk)));
        }
        // Disks that it had before may go to another node.
        self.bearers.retain(|_, bearer| *bearer != id);
        for state in &request.disks {
            self.bearers.insert(state.disk, id);
        }
        let before = self.nodes.get(&id);
        let node = Node {
            address: request.address,
            domain: request.domain.clone(),
            boot: request.boot,
            disks: request.disks.clone(),
            heard: now,
            connected: true,
            awaited: false,
            inventoried: false,
            telling: before
                .and_then(|node| node.telling)
                .filter(|since| !is_too_long(now, *since))
                .or(Some(now)),
            lost: false,
            suspected: before.and_then(|node| node.suspected),
            avoided: before.and_then(|node| node.avoided),
            errors: before.map_or(0, |node| node.errors),
            bad_leaves: 0,
            scrubbed_leaves: 0,
            scrub: Vec::new(),
        };
        self.nodes.insert(id, node);
        Ok(())
    }

    /// The pulse. A node that did not register on this connection is told to.
    pub fn heartbeat(&mut self, now: Instant, id: NodeId, pulse: &HeartbeatRequest) -> Result<(), Fault> {
        let patience = self.settings.suspect_after;
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.connected) else {
            return Err(Fault::new(Code::NotReady, "this master does not know you yet: register first"));
        };
        node.heard = now;
        (node.awaited, node.lost) = (false, false);
        if node.suspected.is_some_and(|since| now.since(since) > patience) {
            node.suspected = None;
        }
        // Only what was registered: a disk cannot appear by heartbeat.
        for state in &mut node.disks {
            if let Some(newer) = pulse.disks.iter().find(|newer| newer.disk == state.disk) {
                *state = *newer;
            }
        }
        (node.errors, node.bad_leaves, node.scrubbed_leaves) =
            (pulse.errors, pulse.bad_leaves, pulse.scrubbed_leaves);
        for (disk, slowest_ms) in &pulse.slowest_sync_ms {
            if node.has(*disk) {
                self.slowness.report(now, *disk, *slowest_ms);
            }
        }
        node.scrub = pulse.scrub.iter().filter(|scrub| node.has(scrub.disk)).copied().collect();
        Ok(())
    }

    /// It was decommissioned and holds nothing any more.
    pub fn forget(&mut self, id: NodeId) {
        self.nodes.remove(&id);
        self.bearers.retain(|_, bearer| *bearer != id);
    }

    /// It is decommissioned and silent, or has no disk any more: what it may still have is not waited for.
    pub fn is_given_up(&self, now: Instant, id: NodeId) -> bool {
        let is_gone = self.health(now, id) == Health::Dead || self.has_no_disk_in_service(id);
        self.intents.purpose(id) == Purpose::Decommission && is_gone
    }

    /// People let it go. False: it is not dead, and may have what nobody else has.
    pub fn give_up_as_lost(&mut self, now: Instant, id: NodeId) -> bool {
        let is_dead = self.health(now, id) == Health::Dead;
        if let Some(node) = self.nodes.get_mut(&id) {
            node.lost = is_dead;
        }
        is_dead
    }

    pub fn take_back(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.lost = false;
        }
    }

    /// Its answer is not waited for where the others have less than was acknowledged.
    pub fn is_lost(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.lost)
    }

    /// Everybody who has come and may have something unknown has told what it has, or is not waited for (any longer). Who was dead
    /// when this master began, and has not come since, is not waited for either.
    pub fn all_told(&self, now: Instant) -> bool {
        self.nodes.iter().all(|(id, node)| {
            let is_over = node.telling.is_none_or(|since| is_too_long(now, since));
            match self.health(now, *id) {
                Health::Awaited => false,
                Health::Dead => is_over || self.is_given_up(now, *id),
                Health::Alive | Health::Suspect => is_over,
            }
        })
    }

    pub fn inventoried(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            (node.inventoried, node.telling) = (true, None);
        }
    }

    pub fn disconnected(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.connected = false;
        }
    }

    /// It failed to do what it was asked.
    pub fn suspect(&mut self, now: Instant, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.suspected = Some(now);
        }
    }

    /// Others do not reach it, though the master does: for a while it is not used for anything new. What it has counts as before.
    pub fn unreached(&mut self, now: Instant, id: NodeId) {
        const AVOIDED_FOR: Duration = Duration::from_secs(60);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.avoided = Some(now.after(AVOIDED_FOR));
        }
    }

    /// An unknown node is dead.
    pub fn health(&self, now: Instant, id: NodeId) -> Health {
        let Some(node) = self.nodes.get(&id) else { return Health::Dead };
        let silent = now.since(node.heard);
        if silent >= self.settings.dead_after {
            Health::Dead
        } else if node.awaited {
            Health::Awaited
        } else if !node.connected || node.suspected.is_some() || silent >= self.settings.suspect_after {
            Health::Suspect
        } else {
            Health::Alive
        }
    }

    /// The health of one replica's place: a failed disk is as good as a dead node.
    pub fn replica_health(&self, now: Instant, id: NodeId, disk: DiskId) -> Health {
        if self.is_in_service(id, disk) { self.health(now, id) } else { Health::Dead }
    }

    /// The node has this disk, and has not said that it failed.
    pub fn is_in_service(&self, id: NodeId, disk: DiskId) -> bool {
        self.disk(id, disk).is_some_and(|state| state.health != DiskHealth::Failed)
    }

    /// The node has this disk, and has said that it failed.
    pub fn has_failed(&self, id: NodeId, disk: DiskId) -> bool {
        self.disk(id, disk).is_some_and(|state| state.health == DiskHealth::Failed)
    }

    /// What it has it cannot say, nor delete, until it is restarted.
    pub fn has_no_disk_in_service(&self, id: NodeId) -> bool {
        self.nodes
            .get(&id)
            .is_some_and(|node| node.disks.iter().all(|state| state.health == DiskHealth::Failed))
    }

    fn disk(&self, id: NodeId, disk: DiskId) -> Option<&DiskState> {
        self.nodes.get(&id)?.disks.iter().find(|state| state.disk == disk)
    }

    pub fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().map(|(id, node)| (*id, node))
    }

    /// What replicas are to leave or have left: disks that failed, and those that are drained.
    pub fn troubled_disks(&self, id: NodeId) -> Vec<DiskId> {
        let disks = self.nodes.get(&id).into_iter().flat_map(|node| &node.disks);
        let troubled = disks
            .filter(|state| state.health == DiskHealth::Failed || self.intents.is_draining(id, state.disk));
        troubled.map(|state| state.disk).collect()
    }

    /// Slow disks in service.
    pub fn slow_disks(&self, now: Instant) -> Vec<SlowDisk> {
        let disks =
            self.nodes.iter().flat_map(|(id, node)| node.disks.iter().map(move |state| (*id, state.disk)));
        let slow = disks.filter(|(_, disk)| self.slowness.is_slow(now, *disk));
        slow.map(|(node, disk)| SlowDisk { node, disk, times_ms: self.slowness.times_ms(now, disk) })
            .collect()
    }

    /// Disks on which replicas can be put now: not on slow ones, unless too few nodes have others.
    pub fn candidates(&self, now: Instant, reserved: &Reservations) -> Vec<Candidate> {
        let all = self.usable(now, reserved);
        let quick = |candidate: &&Candidate| !self.slowness.is_slow(now, candidate.disk);
        let nodes: BTreeSet<NodeId> = all.iter().filter(quick).map(|candidate| candidate.node).collect();
        if nodes.len() < self.settings.replicas {
            return all;
        }
        all.iter().filter(quick).cloned().collect()
    }

    fn usable(&self, now: Instant, reserved: &Reservations) -> Vec<Candidate> {
        let alive = self.nodes.iter().filter(|(id, node)| {
            self.health(now, **id) == Health::Alive && node.avoided.is_none_or(|until| now >= until)
        });
        let disks = alive.flat_map(|(id, node)| node.disks.iter().map(move |state| (*id, node, state)));
        disks
            .filter(|(id, _, state)| {
                state.health != DiskHealth::Failed && !self.intents.is_draining(*id, state.disk)
            })
            .map(|(id, node, state)| Candidate {
                node: id,
                disk: state.disk,
                domain: node.domain.clone(),
                total_bytes: state.total_bytes,
                // A full disk stays in the list with no room, so that a full cluster is told from one with too few nodes.
                free_bytes: match state.health {
                    DiskHealth::Healthy => state.free_bytes.saturating_sub(reserved.on(state.disk)),
                    DiskHealth::Full | DiskHealth::Failed | DiskHealth::Slow => 0,
                },
            })
            .collect()
    }

    /// `replicas` are on each disk, also on disks that are not there any more.
    pub fn status(&self, now: Instant, replicas: &BTreeMap<(NodeId, DiskId), u64>) -> Vec<NodeStatus> {
        self.nodes.iter().map(|(id, node)| self.show(now, *id, node, replicas)).collect()
    }

    fn shown(&self, now: Instant, state: &DiskState) -> DiskState {
        let slow = state.health == DiskHealth::Healthy && self.slowness.is_slow(now, state.disk);
        DiskState { health: if slow { DiskHealth::Slow } else { state.health }, ..*state }
    }

    fn show(
        &self,
        now: Instant,
        id: NodeId,
        node: &Node,
        replicas: &BTreeMap<(NodeId, DiskId), u64>,
    ) -> NodeStatus {
        let mut places: BTreeMap<DiskId, u64> = node.disks.iter().map(|state| (state.disk, 0)).collect();
        let here = replicas.range((id, DiskId(0))..=(id, DiskId(u128::MAX)));
        places.extend(here.map(|((_, disk), count)| (*disk, *count)));
        let place = |(disk, replicas)| {
            let draining = self.intents.is_draining(id, disk);
            DiskPlaces { disk, replicas, draining }
        };
        let places: Vec<DiskPlaces> = places.into_iter().map(place).collect();
        let intent = match self.intents.purpose(id) {
            Purpose::Decommission => "decommissioning",
            Purpose::Drain => "draining",
            Purpose::Serve | Purpose::Retired => "",
        };
        NodeStatus {
            node: id,
            address: node.address,
            domain: node.domain.clone(),
            state: self.health(now, id).word().into(),
            last_heard_ms: u64::try_from(now.since(node.heard).as_millis()).unwrap_or(u64::MAX),
            disks: node.disks.iter().map(|state| self.shown(now, state)).collect(),
            replicas: places.iter().map(|place| place.replicas).sum(),
            errors: node.errors,
            bad_leaves: node.bad_leaves,
            scrubbed_leaves: node.scrubbed_leaves,
            intent: intent.into(),
            to_move: places.iter().filter(|place| place.draining).map(|place| place.replicas).sum(),
            places,
            scrub: node.scrub.clone(),
        }
    }
}

impl Node {
    fn has(&self, disk: DiskId) -> bool {
        self.disks.iter().any(|state| state.disk == disk)
    }
}

#[cfg(test)]
#[path = "nodes_tests.rs"]
mod tests;
