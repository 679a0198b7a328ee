use super::*;
use crate::core::standstill::Watch;
use crate::core::state::values::Intent;
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
        slowest_sync_ms: vec![],
        scrub: vec![ScrubState { disk: DiskId(disk), pass: 1, percent: 50, bad_leaves: 0 }],
    }
}

fn nodes() -> Nodes {
    let (suspect_after, dead_after) = (Duration::from_secs(3), Duration::from_secs(10));
    Nodes::new(Settings { suspect_after, dead_after, replicas: 2 })
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
    assert_eq!(nodes.heartbeat(s(1), A, &pulse(1, DiskHealth::Healthy)).unwrap_err().code, Code::NotReady);
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
fn what_only_a_dead_node_has_is_given_up_until_it_is_heard() {
    let mut nodes = nodes();
    nodes.register(s(0), A, &announce(&[1])).unwrap();
    assert!(!nodes.give_up_as_lost(s(1), A) && !nodes.is_lost(A), "it lives");
    assert!(nodes.give_up_as_lost(s(20), A) && nodes.is_lost(A));
    nodes.take_back(A);
    assert!(!nodes.is_lost(A));
    assert!(nodes.give_up_as_lost(s(20), A));
    nodes.heartbeat(s(21), A, &pulse(1, DiskHealth::Healthy)).unwrap();
    assert!(!nodes.is_lost(A), "it was only silent");
    assert!(nodes.give_up_as_lost(s(40), A));
    nodes.register(s(41), A, &announce(&[1])).unwrap();
    assert!(!nodes.is_lost(A));
}

#[test]
fn who_has_registered_is_waited_for_until_it_has_told_what_it_has() {
    let mut nodes = nodes();
    nodes.register(s(0), A, &announce(&[1])).unwrap();
    nodes.register(s(0), B, &announce(&[2])).unwrap();
    nodes.inventoried(A);
    assert!(!nodes.all_told(s(1)));
    nodes.disconnected(B);
    assert!(!nodes.all_told(s(1)), "it comes again");
    nodes.register(s(2), B, &announce(&[2])).unwrap();
    assert!(!nodes.all_told(s(3)));
    nodes.heartbeat(s(19), A, &pulse(1, DiskHealth::Healthy)).unwrap();
    assert!(!nodes.all_told(s(20)), "also when it is dead");
    nodes.intents.set(B, Intent { purpose: Purpose::Decommission, disks: vec![] });
    assert!(nodes.all_told(s(20)), "unless it is given up");
    nodes.intents.set(B, Intent::default());
    nodes.register(s(3_600), B, &announce(&[2])).unwrap();
    nodes.heartbeat(s(3_600), A, &pulse(1, DiskHealth::Healthy)).unwrap();
    assert_eq!(
        [nodes.all_told(s(3_600)), nodes.all_told(s(3_601))],
        [false, true],
        "for an hour, also where it comes again and again"
    );
    nodes.register(s(3_602), B, &announce(&[2])).unwrap();
    assert!(!nodes.all_told(s(3_603)), "it may have come to stay");
    nodes.inventoried(B);
    nodes.register(s(20), B, &announce(&[2])).unwrap();
    assert!(!nodes.all_told(s(20)));
    nodes.inventoried(B);
    assert!(nodes.all_told(s(20)));
    nodes.disconnected(B);
    assert!(nodes.all_told(s(40)), "what it has is known");
}

#[test]
fn drained_disks_are_no_candidates_and_their_replicas_live() {
    let mut nodes = nodes();
    nodes.register(s(0), A, &announce(&[1, 2])).unwrap();
    nodes.register(s(0), B, &announce(&[3])).unwrap();
    let free = |nodes: &Nodes| -> Vec<DiskId> {
        nodes.candidates(s(1), &Reservations::default()).iter().map(|c| c.disk).collect()
    };
    nodes.intents.set(A, Intent { purpose: Purpose::Serve, disks: vec![DiskId(2)] });
    assert_eq!((free(&nodes), nodes.troubled_disks(A)), (vec![DiskId(1), DiskId(3)], vec![DiskId(2)]));
    nodes.intents.set(A, Intent { purpose: Purpose::Decommission, disks: vec![] });
    assert_eq!((free(&nodes), nodes.troubled_disks(A)), (vec![DiskId(3)], vec![DiskId(1), DiskId(2)]));
    assert_eq!(nodes.replica_health(s(1), A, DiskId(2)), Health::Alive);
    assert_eq!([nodes.is_given_up(s(1), A), nodes.is_given_up(s(10), A)], [false, true]);
    let replicas = BTreeMap::from([((A, DiskId(1)), 4), ((A, DiskId(9)), 2), ((B, DiskId(3)), 6)]);
    let status = nodes.status(s(1), &replicas);
    assert_eq!((status[0].intent.as_str(), status[0].replicas, status[0].to_move), ("decommissioning", 6, 6));
    assert_eq!((status[1].intent.as_str(), status[1].replicas, status[1].to_move), ("", 6, 0));
    nodes.forget(A);
    nodes.intents.set(A, Intent { purpose: Purpose::Retired, disks: vec![DiskId(1), DiskId(2)] });
    assert_eq!(nodes.register(s(2), A, &announce(&[7])).unwrap_err().code, Code::Forbidden);
    assert_eq!(nodes.register(s(2), B, &announce(&[3, 1])).unwrap_err().code, Code::Forbidden);
}

#[test]
fn after_a_restart_known_nodes_have_the_grace_of_silence() {
    let mut nodes = nodes();
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    nodes.recovered(s(100), Known { node: A, address, domain: String::new(), disks: vec![DiskId(1)] });
    assert_eq!(nodes.replica_health(s(109), A, DiskId(1)), Health::Awaited);
    // That it does not answer is no news.
    nodes.suspect(s(109), A);
    assert_eq!(nodes.replica_health(s(109), A, DiskId(1)), Health::Awaited);
    assert_eq!(nodes.replica_health(s(110), A, DiskId(1)), Health::Dead);
    // Once it has been here it has no more grace than others.
    nodes.recovered(s(100), Known { node: A, address, domain: String::new(), disks: vec![DiskId(1)] });
    nodes.register(s(101), A, &announce(&[1])).unwrap();
    assert_eq!(nodes.replica_health(s(101), A, DiskId(1)), Health::Alive);
    nodes.disconnected(A);
    assert_eq!(nodes.replica_health(s(102), A, DiskId(1)), Health::Suspect);
}

#[test]
fn what_others_do_not_reach_gets_nothing_new_for_a_minute_and_keeps_what_it_has() {
    let mut nodes = nodes();
    let free = |nodes: &Nodes, at| -> Vec<NodeId> {
        nodes.candidates(at, &Reservations::default()).iter().map(|candidate| candidate.node).collect()
    };
    nodes.register(s(0), A, &announce(&[1])).unwrap();
    nodes.register(s(0), B, &announce(&[2])).unwrap();
    assert_eq!(free(&nodes, s(1)), [A, B]);
    nodes.unreached(s(1), A);
    nodes.suspect(s(1), A);
    nodes.register(s(2), A, &announce(&[1])).unwrap();
    for at in [2, 9, 20, 40, 60, 61, 62] {
        for (node, disk) in [(A, 1), (B, 2)] {
            nodes.heartbeat(s(at), node, &pulse(disk, DiskHealth::Healthy)).unwrap();
        }
        let avoided = at < 61;
        assert_eq!(free(&nodes, s(at)), if avoided { vec![B] } else { vec![A, B] }, "{at} s");
        assert_eq!(nodes.replica_health(s(at), A, DiskId(1)) == Health::Alive, at > 2, "{at} s");
    }
}

#[test]
fn who_was_there_before_the_master_stood_still_is_awaited() {
    let mut nodes = nodes();
    let mut watch = Watch::default();
    let mut look = |nodes: &mut Nodes, at| {
        let standstill = watch.look(at);
        standstill.iter().for_each(|standstill| nodes.stood_still(standstill));
    };
    let other = NodeId(3);
    for (at, node, disk) in [(0, other, 3), (9, A, 1), (10, B, 2)] {
        nodes.register(s(at), node, &announce(&[disk])).unwrap();
    }
    (0..=10).for_each(|second| look(&mut nodes, s(second)));
    // Behind the last look.
    nodes.heartbeat(Instant(s(10).0 + 300_000_000), B, &pulse(2, DiskHealth::Healthy)).unwrap();
    // On waking it learns that all connections are gone.
    look(&mut nodes, s(70));
    [A, B].into_iter().for_each(|node| nodes.disconnected(node));
    let health = |nodes: &Nodes, at| [A, B, other].map(|node| nodes.health(s(at), node));
    assert_eq!(health(&nodes, 70), [Health::Awaited, Health::Awaited, Health::Dead]);
    nodes.register(s(71), A, &announce(&[1])).unwrap();
    assert_eq!(health(&nodes, 72), [Health::Alive, Health::Awaited, Health::Dead]);
    // A connection may have lasted: one heartbeat is enough.
    (71..=72).for_each(|second| look(&mut nodes, s(second)));
    look(&mut nodes, s(140));
    assert_eq!(health(&nodes, 140), [Health::Awaited, Health::Awaited, Health::Dead]);
    nodes.heartbeat(s(140), A, &pulse(1, DiskHealth::Healthy)).unwrap();
    assert_eq!(health(&nodes, 140), [Health::Alive, Health::Awaited, Health::Dead]);
    // B has been silent for a second of each standstill, for two between them, and for six since.
    (140..=146).for_each(|second| look(&mut nodes, s(second)));
    assert_eq!([health(&nodes, 145)[1], health(&nodes, 146)[1]], [Health::Awaited, Health::Dead]);
    // A short one is no reason to wait for anybody.
    nodes.heartbeat(s(146), A, &pulse(1, DiskHealth::Healthy)).unwrap();
    nodes.disconnected(A);
    look(&mut nodes, Instant(s(148).0 + 900_000_000));
    assert_eq!(nodes.health(s(149), A), Health::Suspect);
}

#[test]
fn nothing_new_goes_to_a_slow_disk_while_there_are_enough_others() {
    let mut nodes = nodes();
    for (node, disk) in [(A, 1), (B, 2), (NodeId(3), 3)] {
        nodes.register(s(0), node, &announce(&[disk])).unwrap();
    }
    let beat = |nodes: &mut Nodes, at, node, disk, slowest_ms| {
        let pulse = HeartbeatRequest {
            slowest_sync_ms: vec![(DiskId(disk), slowest_ms), (DiskId(99), 9_000)],
            ..pulse(disk, DiskHealth::Healthy)
        };
        nodes.heartbeat(at, node, &pulse).unwrap();
    };
    let candidates = |nodes: &Nodes, at| -> Vec<DiskId> {
        nodes.candidates(at, &Reservations::default()).iter().map(|candidate| candidate.disk).collect()
    };
    for second in 1..6 {
        beat(&mut nodes, s(second), A, 1, 2);
        beat(&mut nodes, s(second), B, 2, 900);
        beat(&mut nodes, s(second), NodeId(3), 3, 3);
    }
    assert_eq!(candidates(&nodes, s(5)), [DiskId(1), DiskId(3)]);
    let shown = nodes.status(s(5), &BTreeMap::new());
    assert_eq!(shown[1].disks[0].health, DiskHealth::Slow);
    assert_eq!(nodes.slow_disks(s(5)).len(), 1);
    // Rather slow than with too few replicas.
    nodes.disconnected(NodeId(3));
    assert_eq!(candidates(&nodes, s(5)), [DiskId(1), DiskId(2)]);
}
