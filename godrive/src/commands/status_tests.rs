use super::*;
use godrive_proto::admin::{ChunkHealth, SessionStatus, TrashStatus};
use godrive_proto::cluster::{DiskPlaces, DiskState, ScrubState};
use godrive_proto::lease::ClusterParameters;
use godrive_proto::time::Timestamp;
use godrive_proto::{ClusterId, DiskId, LogIndex, NodeId, SessionId, Term};

pub fn status() -> Status {
    let disk = |number: u128| DiskState {
        disk: DiskId((0xd15c_0000 + number) << 96),
        total_bytes: 2 << 40,
        free_bytes: 1 << 40,
        chunks: 123_456,
        health: DiskHealth::Healthy,
    };
    let node = |number: u128| NodeStatus {
        node: NodeId(number << 96),
        address: "192.168.100.200:25000".parse().unwrap(),
        domain: String::new(),
        state: if number == 3 { "suspect" } else { "alive" }.into(),
        last_heard_ms: 5,
        disks: vec![disk(number)],
        replicas: 1_234_567,
        errors: 12,
        bad_leaves: 1,
        scrubbed_leaves: 1000,
        intent: if number == 2 { "decommissioning" } else { "" }.into(),
        to_move: if number == 2 { 1_234_567 } else { 0 },
        places: vec![DiskPlaces { disk: disk(number).disk, replicas: 1_234_567, draining: number == 2 }],
        scrub: vec![ScrubState { disk: disk(number).disk, pass: 12, percent: 100, bad_leaves: 123 }],
    };
    let movement = Movement { queued: 1, active: 1, done: 5, bytes: 300 << 20, bytes_per_s: 12 << 20 };
    let session = SessionStatus {
        session: SessionId(77),
        label: "a-host-with-a-long-name.example.com:/home/somebody/with/a/long/path".into(),
        last_renewed_ms: 3,
        shared_leases: 100_000,
        exclusive_leases: 12,
        dirty_bytes: 1023 << 20,
        errors_after_close: 2,
    };
    Status {
        cluster: ClusterId(0xabc),
        term: Term(3),
        index: LogIndex(99),
        parameters: ClusterParameters { chunk_bytes: 1 << 24, replicas: 3, min_replicas: 2 },
        nodes: vec![node(1), node(2), node(3)],
        sessions: vec![session],
        chunks: ChunkHealth { total: 10, healthy: 8, under_replicated: 2, unavailable: 0, quarantined: 0 },
        inodes: 20,
        orphans: 1,
        repair_queued: 1,
        repair_active: 1,
        repaired: 5,
        reclaim_queued: 0,
        warnings: vec!["a disk is nearly full".into(), "word ".repeat(40)],
        trash: TrashStatus { keep_s: 86_400, entries: 1_000_000, bytes: 5 << 40, oldest: Some(Timestamp(0)) },
        repair: movement,
        drain: Movement { queued: 1_234_567, ..movement },
        rebalance: Movement::default(),
        retired: vec![NodeId(9 << 96)],
    }
}

fn locals() -> Vec<Local> {
    let name = NodeName::parse("slave-2").unwrap();
    vec![Local { name, pid: Some(4711), mount: None, id: Some(NodeId(2 << 96).to_string()) }]
}

#[test]
fn people_read_it_in_80_columns() {
    let text = human(&status(), &locals());
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
    }
    assert!(text.starts_with("cluster 00000000000000000000000000000abc: repairing\n"), "{text}");
    assert!(text.contains("slave-2") && text.contains("00000001"), "{text}");
    assert!(text.contains("warning: a disk is nearly full"), "{text}");
    for line in [
        "repair    1 queued, 1 active, 5 done (300.0 MiB, 12.0 MiB/s)\n",
        "drain     1234567 queued, 1 active, 5 done",
        "leaving   slave-2: decommissioning, 1234567 replicas to move\n",
        "retired   00000009\n",
        "d15c0002  slave-2   draining",
        "pass 12, 100 %",
    ] {
        assert!(text.contains(line), "{line} is missing from\n{text}");
    }
}

#[test]
fn missing_slaves_are_said_first() {
    let mut status = status();
    status.chunks.under_replicated = 0;
    assert!(human(&status, &[]).lines().next().unwrap().ends_with("a slave is missing"));
    status.nodes.truncate(1);
    assert!(human(&status, &[]).lines().next().unwrap().ends_with("TOO FEW SLAVES"));
}

#[test]
fn data_that_is_not_available_is_said_first() {
    let mut status = status();
    status.chunks.quarantined = 1;
    assert!(human(&status, &[]).lines().next().unwrap().ends_with("DATA NOT AVAILABLE"));
}

#[test]
fn programs_find_the_masters_fields_at_the_top() {
    let value = document(&status(), &locals());
    assert_eq!(value["chunks"]["under_replicated"], 2);
    assert_eq!(value["repair_queued"], 1);
    assert_eq!(value["repaired"], 5);
    assert_eq!(value["capacity"]["total_bytes"], 6_u64 << 40);
    assert_eq!(value["leases"]["exclusive"], 12);
    assert_eq!(value["nodes"][1]["name"], "slave-2");
    assert_eq!(value["nodes"][0]["disks"][0]["health"], "healthy");
    assert_eq!(value["nodes"][1]["intent"], "decommissioning");
    assert_eq!(value["nodes"][1]["to_move"], 1_234_567);
    let disk = &value["nodes"][1]["disks"][0];
    assert_eq!((&disk["draining"], &disk["scrub"]["percent"]), (&true.into(), &100.into()));
    assert_eq!(value["drain"]["bytes_per_s"], 12 << 20);
    assert_eq!(value["retired"][0], NodeId(9 << 96).to_string());
    assert_eq!(value["local"][0]["pid"], 4711);
    assert_eq!(value["cluster"], "00000000000000000000000000000abc");
}
