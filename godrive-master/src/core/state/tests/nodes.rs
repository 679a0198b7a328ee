//! Nodes that are drained and retired, in the log.

use super::*;
use crate::core::record::Purpose;
use crate::core::state::values::Intent;
use godrive_proto::{BootId, Epoch, ROOT};

fn register(bench: &mut Bench, node: u128) -> Answer {
    let (address, disks) = (member(node).address, vec![member(node).disk]);
    let body =
        Body::NodeRegistered { node: NodeId(node), address, domain: String::new(), disks, boot: BootId(1) };
    bench.own(body)
}

fn intend(bench: &mut Bench, node: u128, purpose: Purpose, disks: Vec<DiskId>) {
    bench.own(Body::NodeIntended { node: NodeId(node), purpose, disks }).unwrap();
}

fn code(answer: Answer) -> Code {
    answer.unwrap_err().code
}

#[test]
fn an_intent_replaces_the_last_one_and_none_is_kept_of_a_node_that_serves() {
    let mut bench = Bench::new();
    register(&mut bench, 4).unwrap();
    intend(&mut bench, 4, Purpose::Drain, vec![]);
    intend(&mut bench, 4, Purpose::Serve, vec![DiskId(104)]);
    let intent = Intent { purpose: Purpose::Serve, disks: vec![DiskId(104)] };
    assert_eq!(bench.state.intents().unwrap(), [(NodeId(4), intent)]);
    intend(&mut bench, 4, Purpose::Serve, vec![]);
    assert_eq!(bench.state.intents().unwrap(), []);
    bench.check();
}

#[test]
fn a_node_is_retired_only_when_it_has_nothing_and_does_not_come_back_by_itself() {
    let mut bench = Bench::new();
    for node in 1..=4 {
        register(&mut bench, node).unwrap();
    }
    let created = bench.create_for_writing(ROOT, "a");
    let layout = created.layout.unwrap();
    let node = layout.members[0].node;
    let retire = |bench: &mut Bench, node: NodeId| bench.own(Body::NodeRetired { node });
    assert_eq!(code(retire(&mut bench, node)), Code::Invalid, "nobody wanted it");
    intend(&mut bench, node.0, Purpose::Decommission, vec![]);
    assert_eq!(code(retire(&mut bench, node)), Code::Busy, "it has a replica");
    assert_eq!(code(retire(&mut bench, NodeId(99))), Code::NotFound);
    // Replicas of deleted chunks count until they are known to be gone.
    bench.remove(ROOT, "a", false).unwrap();
    let ino = created.entry.attr.ino;
    bench.own(Body::OrphansClosed { session: bench.session, inodes: vec![ino] }).unwrap();
    assert_eq!(code(retire(&mut bench, node)), Code::Busy, "it may have a deleted one");
    bench.own(Body::ChunksForgotten { chunks: vec![layout.chunk.id] }).unwrap();
    retire(&mut bench, node).unwrap();
    assert_eq!(bench.state.node(node).unwrap(), None);
    let retired = Intent { purpose: Purpose::Retired, disks: vec![member(node.0).disk] };
    assert_eq!(bench.state.intents().unwrap(), [(node, retired)]);
    assert_eq!(code(register(&mut bench, node.0)), Code::Forbidden);
    // Nor does it become a member by an epoch change that was under way.
    let chunk = bench.create_for_writing(ROOT, "b").layout.unwrap().chunk.id;
    bench.own(Body::EpochPending { chunk, epoch: Epoch(2) }).unwrap();
    let contents = bench.state.chunk(chunk).unwrap().unwrap().held;
    let members = vec![member(node.0), member(4)];
    let installed =
        Body::EpochInstalled { chunk, epoch: Epoch(2), members, contents, stable: true, used_bytes: 0 };
    assert_eq!(code(bench.own(installed)), Code::Invalid);
    assert_eq!(bench.state.chunk(chunk).unwrap().unwrap().epoch, Epoch(1));
    intend(&mut bench, node.0, Purpose::Serve, vec![]);
    register(&mut bench, node.0).unwrap();
    bench.check();
}
