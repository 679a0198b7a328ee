//! A slave's insides over several simulated disks, without connections.

use super::shared::Shared;
use super::*;
use crate::store::DiskStore;
use godrive_disk::SimulatedDisk;
use godrive_proto::data::{Contents, DeltaRequest, Extent, Fill};
use godrive_proto::limits::LEAF_BYTES;
use godrive_proto::net::identity::Authority;
use godrive_proto::net::machine::{MachineClock, MachineSockets};
use godrive_proto::time::Timestamp;
use godrive_proto::{ChunkId, ClusterId, DiskId, Epoch, NodeId, OpId, Role, SessionId, Version, sums};
use std::time::Duration;

const NOW_S: i64 = 1_795_000_000;

fn open(disks: &[SimulatedDisk]) -> Arc<Shared> {
    let authority = Authority::create(ClusterId(7), NOW_S).unwrap();
    let world = World {
        disks: disks.iter().map(|disk| Arc::new(disk.clone()) as Arc<dyn Disk>).collect(),
        sockets: Arc::new(MachineSockets),
        clock: Arc::new(MachineClock),
        seed: 3,
        identity: authority.issue(Role::Slave, NodeId(1), NOW_S).unwrap(),
        transport_seed: None,
    };
    let listen = "127.0.0.1:0".parse().unwrap();
    let endpoint = Endpoint::new(&*world.sockets, listen, &world.identity, &Transport::default()).unwrap();
    Shared::open(Config { reserve_bytes: Some(0), ..Config::default() }, &world, &endpoint).unwrap()
}

/// One leaf on top of `base`.
fn write(store: &DiskStore, chunk: u64, epoch: u64, base: u64) -> Contents {
    let payload = [7; LEAF_BYTES as usize];
    let request = DeltaRequest {
        chunk: ChunkId(chunk),
        chunk_bytes: 1 << 20,
        disk: DiskId(0),
        epoch: Epoch(epoch),
        base: Version(base),
        op: OpId { session: SessionId(1), sequence: base + 1 },
        extents: vec![Extent { offset: 0, len: LEAF_BYTES, fill: Fill::Bytes }],
        sums: vec![sums::piece(ChunkId(chunk), 0, &payload)],
        chain: Vec::new(),
        sync: false,
        mtime: Timestamp(1),
    };
    store.delta(&request, &payload).unwrap().contents
}

#[tokio::test(start_paused = true)]
async fn a_busy_disk_does_not_keep_another_from_its_syncs() {
    let shared = open(&[SimulatedDisk::new(1 << 30), SimulatedDisk::new(1 << 30)]);
    let quiet = shared.stores()[1].clone();
    let looking = tokio::spawn(background::look_after(shared.clone(), quiet.clone()));
    write(&quiet, 1, 1, 0);
    assert!(quiet.needs_sync());
    // As the other disk does when it comes due every second.
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        shared.checkpoint_due.notify_waiters();
    }
    assert!(!quiet.needs_sync(), "never synced");
    looking.abort();
}
