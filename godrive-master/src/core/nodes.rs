//! The slaves as the master sees them: who they are, when they were last heard, what their disks can take.
//!
//! A node is *alive*, *suspect* (its connection is lost, heartbeats are missing, or it did not answer a seal: no
//! new replicas go there) or *dead* (silent for long: its replicas are repaired elsewhere). After a restart of
//! the master the nodes known from the log begin as suspect, as if last heard at the start.
//!
//! A disk id has one bearer. A second one is refused while the first is not dead, because two nodes that
//! serve the same disk's chunks are a copied directory or a copied key.

use super::placement::{Candidate, Reservations};
use godrive_proto::cluster::{DiskHealth, DiskState, HeartbeatRequest, NodeStatus, RegisterRequest};
use godrive_proto::time::Instant;
use godrive_proto::{BootId, Code, DiskId, Fault, NodeId};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub suspect_after: Duration,
    pub dead_after: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    Alive,
    Suspect,
    Dead,
}

impl Health {
    pub fn word(self) -> &'static str {
        match self {
            Self::Alive => "alive",
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
    /// Its inventory of this connection is complete.
    pub inventoried: bool,
    /// Did not answer a command; forgiven after a while of heartbeats.
    suspected: Option<Instant>,
    pub errors: u64,
    pub bad_leaves: u64,
    pub scrubbed_leaves: u64,
}

#[derive(Debug)]
pub struct Nodes {
    settings: Settings,
    nodes: BTreeMap<NodeId, Node>,
    bearers: BTreeMap<DiskId, NodeId>,
}

/// What the log knows of a node.
#[derive(Clone, Debug)]
pub struct Known {
    pub node: NodeId,
    pub address: SocketAddr,
    pub domain: String,
    pub disks: Vec<DiskId>,
}

impl Nodes {
    pub fn new(settings: Settings) -> Self {
        Self { settings, nodes: BTreeMap::new(), bearers: BTreeMap::new() }
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
            inventoried: false,
            suspected: None,
            errors: 0,
            bad_leaves: 0,
            scrubbed_leaves: 0,
        };
        self.nodes.insert(known.node, node);
    }

    /// A slave announces itself on a new connection. Refused if a disk of it has another living bearer.
    pub fn register(&mut self, now: Instant, id: NodeId, request: &RegisterRequest) -> Result<(), Fault> {
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
            inventoried: false,
            suspected: before.and_then(|node| node.suspected),
            errors: before.map_or(0, |node| node.errors),
            bad_leaves: 0,
            scrubbed_leaves: 0,
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
        Ok(())
    }

    pub fn inventoried(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.inventoried = true;
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

    /// An unknown node is dead.
    pub fn health(&self, now: Instant, id: NodeId) -> Health {
        let Some(node) = self.nodes.get(&id) else { return Health::Dead };
        let silent = now.since(node.heard);
        if silent >= self.settings.dead_after {
            Health::Dead
        } else if !node.connected || node.suspected.is_some() || silent >= self.settings.suspect_after {
            Health::Suspect
        } else {
            Health::Alive
        }
    }

    /// The health of one replica's place: a failed disk is as good as a dead node.
    pub fn replica_health(&self, now: Instant, id: NodeId, disk: DiskId) -> Health {
        let failed = self.disk(id, disk).is_none_or(|state| state.health == DiskHealth::Failed);
        if failed { Health::Dead } else { self.health(now, id) }
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

    /// Disks on which replicas can be put now.
    pub fn candidates(&self, now: Instant, reserved: &Reservations) -> Vec<Candidate> {
        let alive = self.nodes.iter().filter(|(id, _)| self.health(now, **id) == Health::Alive);
        let disks = alive.flat_map(|(id, node)| node.disks.iter().map(move |state| (*id, node, state)));
        disks
            .filter(|(_, _, state)| state.health != DiskHealth::Failed)
            .map(|(id, node, state)| Candidate {
                node: id,
                disk: state.disk,
                domain: node.domain.clone(),
                total_bytes: state.total_bytes,
                // A full disk stays in the list with no room, so that a full cluster is told from one with too few nodes.
                free_bytes: match state.health {
                    DiskHealth::Healthy => state.free_bytes.saturating_sub(reserved.on(state.disk)),
                    DiskHealth::Full | DiskHealth::Failed => 0,
                },
            })
            .collect()
    }

    pub fn status(&self, now: Instant, replicas: impl Fn(NodeId) -> u64) -> Vec<NodeStatus> {
        let show = |(id, node): (&NodeId, &Node)| NodeStatus {
            node: *id,
            address: node.address,
            domain: node.domain.clone(),
            state: self.health(now, *id).word().into(),
            last_heard_ms: u64::try_from(now.since(node.heard).as_millis()).unwrap_or(u64::MAX),
            disks: node.disks.clone(),
            replicas: replicas(*id),
            errors: node.errors,
            bad_leaves: node.bad_leaves,
            scrubbed_leaves: node.scrubbed_leaves,
        };
        self.nodes.iter().map(show).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use godrive_proto::ClusterId;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    fn s(seconds: u64) -> Instant {
        Instant(seconds * 1_000_000_000)
    }

    fn state(disk: u128, health: DiskHealth) -> DiskState {
        DiskState { disk: DiskId(disk), total_bytes: 100, free_bytes: 50, chunks: 0, health }
    }

    fn announce(disks: &[u128]) -> RegisterRequest {
        RegisterRequest {
            cluster: ClusterId(1),
            boot: BootId(7),
            address: SocketAddr::from(([127, 0, 0, 1], 1)),
            domain: String::new(),
            disks: disks.iter().map(|disk| state(*disk, DiskHealth::Healthy)).collect(),
        }
    }

    fn pulse(disk: u128, health: DiskHealth) -> HeartbeatRequest {
        HeartbeatRequest {
            disks: vec![state(disk, health)],
            scrubbed_leaves: 0,
            bad_leaves: 0,
            errors: 0,
            stable: vec![],
        }
    }

    fn nodes() -> Nodes {
        Nodes::new(Settings { suspect_after: Duration::from_secs(3), dead_after: Duration::from_secs(10) })
    }

    #[test]
    fn silence_makes_suspect_then_dead() {
        let mut nodes = nodes();
        nodes.register(s(0), A, &announce(&[1])).unwrap();
        assert_eq!(nodes.health(s(2), A), Health::Alive);
        assert_eq!(nodes.health(s(3), A), Health::Suspect);
        assert_eq!(nodes.health(s(10), A), Health::Dead);
        nodes.heartbeat(s(11), A, &pulse(1, DiskHealth::Healthy)).unwrap();
        assert_eq!(nodes.health(s(11), A), Health::Alive);
        assert_eq!(nodes.health(s(11), B), Health::Dead);
    }

    #[test]
    fn a_lost_connection_or_an_unanswered_command_makes_suspect_at_once() {
        let mut nodes = nodes();
        nodes.register(s(0), A, &announce(&[1])).unwrap();
        nodes.disconnected(A);
        assert_eq!(nodes.health(s(0), A), Health::Suspect);
        assert_eq!(
            nodes.heartbeat(s(1), A, &pulse(1, DiskHealth::Healthy)).unwrap_err().code,
            Code::NotReady
        );
        nodes.register(s(1), A, &announce(&[1])).unwrap();
        assert_eq!(nodes.health(s(1), A), Health::Alive);
        nodes.suspect(s(1), A);
        nodes.heartbeat(s(2), A, &pulse(1, DiskHealth::Healthy)).unwrap();
        assert_eq!(nodes.health(s(2), A), Health::Suspect);
        nodes.heartbeat(s(5), A, &pulse(1, DiskHealth::Healthy)).unwrap();
        assert_eq!(nodes.health(s(5), A), Health::Alive);
    }

    #[test]
    fn a_disk_has_one_bearer_until_the_bearer_is_dead() {
        let mut nodes = nodes();
        nodes.register(s(0), A, &announce(&[1])).unwrap();
        assert_eq!(nodes.register(s(1), B, &announce(&[1])).unwrap_err().code, Code::Busy);
        assert!(nodes.register(s(1), B, &announce(&[2, 2])).is_err());
        nodes.register(s(20), B, &announce(&[1])).unwrap();
        assert!(nodes.register(s(21), A, &announce(&[1])).is_err());
        // It was a copy and is taken away.
        nodes.register(s(22), B, &announce(&[2])).unwrap();
        nodes.register(s(23), A, &announce(&[1])).unwrap();
    }

    #[test]
    fn full_disks_have_no_room_and_failed_ones_are_no_candidates() {
        let mut nodes = nodes();
        nodes.register(s(0), A, &announce(&[1])).unwrap();
        nodes.register(s(0), B, &announce(&[2])).unwrap();
        let mut reserved = Reservations::default();
        reserved.reserve(godrive_proto::ChunkId(1), 20, vec![DiskId(1)]);
        let free = |nodes: &Nodes, at| -> Vec<(DiskId, u64)> {
            nodes.candidates(at, &reserved).iter().map(|c| (c.disk, c.free_bytes)).collect()
        };
        assert_eq!(free(&nodes, s(1)), [(DiskId(1), 30), (DiskId(2), 50)]);
        nodes.heartbeat(s(2), A, &pulse(1, DiskHealth::Full)).unwrap();
        assert_eq!(free(&nodes, s(2)), [(DiskId(1), 0), (DiskId(2), 50)]);
        nodes.heartbeat(s(4), A, &pulse(1, DiskHealth::Failed)).unwrap();
        assert_eq!(nodes.replica_health(s(4), A, DiskId(1)), Health::Dead);
        assert_eq!(free(&nodes, s(4)), []);
    }

    #[test]
    fn after_a_restart_known_nodes_have_the_grace_of_silence() {
        let mut nodes = nodes();
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        nodes.recovered(s(100), Known { node: A, address, domain: String::new(), disks: vec![DiskId(1)] });
        assert_eq!(nodes.replica_health(s(101), A, DiskId(1)), Health::Suspect);
        assert_eq!(nodes.replica_health(s(110), A, DiskId(1)), Health::Dead);
    }
}
