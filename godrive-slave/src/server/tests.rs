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

/// A disk was out of service while its chunks were made anew on another one, and is back.
#[tokio::test]
async fn of_two_replicas_the_newer_one_counts_and_the_other_is_put_aside() {
    let shared = open(&[SimulatedDisk::new(1 << 30), SimulatedDisk::new(1 << 30)]);
    let [a, b] = shared.stores() else { panic!("two disks") };
    (0..3).for_each(|base| drop(write(a, 1, 1, base)));
    let newer_epoch = write(b, 1, 2, 0);
    write(b, 2, 1, 0);
    write(a, 2, 1, 0);
    let newer_version = write(a, 2, 1, 1);
    write(a, 3, 1, 0);
    let found = |chunk| shared.find(ChunkId(chunk)).unwrap().map(|(store, row)| (store.id(), row.contents()));
    for round in 0..2 {
        assert_eq!(found(1), Some((b.id(), newer_epoch)), "round {round}");
        assert_eq!(found(2), Some((a.id(), newer_version)), "round {round}");
        let mut listings: Vec<_> = shared.usable().map(master::Listing::new).collect();
        let page = master::next_page(&shared, &mut listings).unwrap();
        let listed: Vec<_> = page.iter().map(|replica| (replica.chunk.0, replica.disk)).collect();
        assert_eq!(listed, [(1, b.id()), (2, a.id()), (3, a.id())], "round {round}");
        assert_eq!(a.row(ChunkId(1)).unwrap(), None, "round {round}");
        assert_eq!(b.row(ChunkId(2)).unwrap(), None, "round {round}");
        let asides = |store: &DiskStore| {
            store.page(None, 100).unwrap().iter().filter(|(key, _)| key.aside != 0).count()
        };
        assert_eq!((asides(a), asides(b)), (1, 1), "round {round}");
    }
}
