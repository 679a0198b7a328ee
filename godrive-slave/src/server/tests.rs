//! A slave's insides over several simulated disks, without connections.

use super::copy::Copying;
use super::shared::Shared;
use super::*;
use crate::core::leaves::LeafSum;
use crate::core::replica::Key;
use crate::store::{Adoption, DiskStore};
use godrive_disk::{Faults, SimulatedDisk};
use godrive_proto::cluster::{CopyRequest, DeleteRequest, InstallRequest, SealRequest};
use godrive_proto::data::{Contents, DeltaRequest, Extent, Fill, Member};
use godrive_proto::frame::RequestHeader;
use godrive_proto::limits::LEAF_BYTES;
use godrive_proto::net::identity::Authority;
use godrive_proto::net::machine::{MachineClock, MachineSockets};
use godrive_proto::time::{Instant, Timestamp};
use godrive_proto::{ChunkId, ClusterId, Code, DiskId, Epoch, NodeId, OpId, Role, SessionId, Version, sums};
use parking_lot::Mutex;
use std::time::Duration;

const NOW_S: i64 = 1_795_000_000;
const DAY_NS: u64 = 24 * 3600 * 1_000_000_000;

/// Clocks that are set by hand.
struct Hand(Mutex<(Instant, Timestamp)>);

impl Hand {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new((Instant(0), Timestamp(NOW_S * 1_000_000_000)))))
    }

    /// Time passes.
    fn pass(&self, days: u64) {
        self.0.lock().0.0 += days * DAY_NS;
        self.set_forward(days);
    }

    fn set_forward(&self, days: u64) {
        self.0.lock().1.0 += (days * DAY_NS) as i64;
    }
}

impl Clock for Hand {
    fn now(&self) -> Instant {
        self.0.lock().0
    }
    fn wall(&self) -> Timestamp {
        self.0.lock().1
    }
}

fn open(disks: &[SimulatedDisk]) -> Arc<Shared> {
    open_with(disks, Arc::new(MachineClock))
}

fn open_with(disks: &[SimulatedDisk], clock: Arc<dyn Clock>) -> Arc<Shared> {
    let authority = Authority::create(ClusterId(7), NOW_S).unwrap();
    let world = World {
        disks: disks.iter().map(|disk| Arc::new(disk.clone()) as Arc<dyn Disk>).collect(),
        sockets: Arc::new(MachineSockets),
        clock,
        seed: 3,
        identity: authority.issue(Role::Slave, NodeId(1), NOW_S).unwrap(),
        transport_seed: None,
    };
    let listen = "127.0.0.1:0".parse().unwrap();
    let endpoint = Endpoint::new(&world.sockets, listen, &world.identity, &Transport::default()).unwrap();
    Shared::open(Config { reserve_bytes: Some(0), ..Config::default() }, &world, &endpoint).unwrap()
}

const LEAF: [u8; LEAF_BYTES as usize] = [7; LEAF_BYTES as usize];

/// One leaf on top of `base`.
fn delta(chunk: u64, epoch: u64, base: u64) -> DeltaRequest {
    DeltaRequest {
        chunk: ChunkId(chunk),
        chunk_bytes: 1 << 20,
        disk: DiskId(0),
        epoch: Epoch(epoch),
        base: Version(base),
        op: OpId { session: SessionId(1), sequence: base + 1 },
        extents: vec![Extent { offset: 0, len: LEAF_BYTES, fill: Fill::Bytes }],
        sums: vec![sums::piece(ChunkId(chunk), 0, &LEAF)],
        chain: Vec::new(),
        sync: false,
        mtime: Timestamp(1),
    }
}

fn write(store: &DiskStore, chunk: u64, epoch: u64, base: u64) -> Contents {
    store.delta(&delta(chunk, epoch, base), &LEAF).unwrap().contents
}

#[tokio::test(start_paused = true)]
async fn a_busy_disk_does_not_keep_another_from_its_syncs() {
    let shared = open(&[SimulatedDisk::new(1 << 30), SimulatedDisk::new(1 << 30)]);
    let quiet = shared.stores()[1].clone();
    let looking = tokio::spawn(background::look_after(shared.clone(), quiet.clone()));
    write(&quiet, 1, 1, 0);
    assert!(quiet.needs_sync());
    // As the other disk does when it comes due every second. The checkpoint after four seconds would sync, too.
    for _ in 0..3 {
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
    for base in 0..3 {
        write(a, 1, 1, base);
    }
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

/// What a copy left that ended before its source held still.
fn leave_partial(store: &DiskStore, chunk: u64, at: Timestamp) {
    let adoption = Adoption {
        chunk: ChunkId(chunk),
        chunk_bytes: 1 << 20,
        version: Version(0),
        partial: true,
        keep_aside: false,
        into_reserve: false,
        based_on: store.row(ChunkId(chunk)).unwrap().map_or(0, |row| row.position),
        leaves: vec![LeafSum { leaf: 0, sum: sums::piece(ChunkId(chunk), 0, &LEAF) }],
        data: vec![LEAF.to_vec().into()],
        digest: Default::default(),
        epoch: Epoch(9),
        now: at,
    };
    store.adopt(&adoption).unwrap();
}

#[tokio::test]
async fn a_copy_that_ends_after_the_deletion_of_its_chunk_leaves_nothing() {
    let shared = open(&[SimulatedDisk::new(1 << 30), SimulatedDisk::new(1 << 30)]);
    let store = &shared.stores()[1];
    let delete = async |epoch| {
        let request = DeleteRequest { chunks: vec![(ChunkId(1), Epoch(epoch))] };
        commands::delete(&shared, request).await.unwrap();
    };
    let copying = Copying::begin(&shared, ChunkId(1)).unwrap();
    // The replica of an earlier epoch goes; the copy is for a later one.
    delete(8).await;
    leave_partial(store, 1, Timestamp(5));
    copying.settle(store, Epoch(9)).unwrap();
    assert!(store.row(ChunkId(1)).unwrap().is_some());
    delete(9).await;
    leave_partial(store, 1, Timestamp(5));
    assert_eq!(copying.settle(store, Epoch(9)).unwrap_err().code, Code::NoChunk);
    assert_eq!(store.row(ChunkId(1)).unwrap(), None);
    drop(copying);
    // A later copy, for a surplus replica's node becomes a member again.
    let copying = Copying::begin(&shared, ChunkId(1)).unwrap();
    copying.check_registration().unwrap();
    leave_partial(store, 1, Timestamp(5));
    copying.settle(store, Epoch(9)).unwrap();
    assert!(store.row(ChunkId(1)).unwrap().is_some());
    // The next inventory would be without it.
    shared.registrations.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(copying.check_registration().unwrap_err().code, Code::NotReady);
}

#[tokio::test]
async fn a_partial_copy_is_removed_a_week_after_the_last_that_was_done_for_it() {
    let (disk, clock) = (SimulatedDisk::new(1 << 30), Hand::new());
    let shared = open_with(std::slice::from_ref(&disk), clock.clone());
    let store = &shared.stores()[0];
    write(store, 1, 1, 0);
    for chunk in 2..6 {
        leave_partial(store, chunk, clock.wall());
    }
    // A member that a copy was to bring level; sealed, and the seal is of long ago too.
    write(store, 6, 3, 0);
    store.seal(ChunkId(6), Epoch(5), clock.wall()).unwrap();
    leave_partial(store, 6, clock.wall());
    background::expire(&shared, store).unwrap();
    clock.pass(6);
    // Gone on with: by a copy that left something, by a seal, by one that is under way.
    leave_partial(store, 2, clock.wall());
    store.seal(ChunkId(3), Epoch(2), clock.wall()).unwrap();
    let under_way = Copying::begin(&shared, ChunkId(4)).unwrap();
    let chunks = |store: &DiskStore| -> Vec<u64> {
        store.page(None, 100).unwrap().iter().map(|(key, _)| key.chunk.0).collect()
    };
    background::expire(&shared, store).unwrap();
    assert_eq!(chunks(store), [1, 2, 3, 4, 5, 6]);
    clock.pass(1);
    background::expire(&shared, store).unwrap();
    assert_eq!(chunks(store), [1, 2, 3, 4]);
    assert_eq!(store.verify(Key::live(ChunkId(4)), 0, 1).unwrap().unwrap().read, 1, "the base of a copy");
    drop(under_way);
    background::expire(&shared, store).unwrap();
    assert_eq!(chunks(store), [1, 2, 3]);
    let late = store.delta(&delta(6, 4, 0), &LEAF).unwrap_err();
    assert_eq!(late.code, Code::WrongEpoch, "the seal outlives its replica");
    // The removals are in the log. The week begins again.
    drop(shared);
    disk.kill();
    let shared = open_with(std::slice::from_ref(&disk), clock.clone());
    let store = &shared.stores()[0];
    for left in [vec![1, 2, 3], vec![1]] {
        background::expire(&shared, store).unwrap();
        assert_eq!(chunks(store), left);
        clock.pass(7);
    }
    write(store, 6, 5, 0);
}

#[tokio::test]
async fn a_clock_that_is_set_forward_removes_nothing_and_lifts_no_bar() {
    let (disk, clock) = (SimulatedDisk::new(1 << 30), Hand::new());
    let shared = open_with(std::slice::from_ref(&disk), clock.clone());
    let store = &shared.stores()[0];
    write(store, 1, 1, 0);
    store.delete(&[(ChunkId(1), Epoch(1))], clock.wall()).unwrap();
    write(store, 2, 1, 0);
    let row = store.row(ChunkId(2)).unwrap().unwrap();
    store.quarantine(ChunkId(2), &row, "a test", clock.wall()).unwrap();
    leave_partial(store, 3, clock.wall());
    let is_here = |store: &DiskStore| {
        // There is something for a checkpoint.
        leave_partial(store, 4, clock.wall());
        background::expire(&shared, store).unwrap();
        store.checkpoint(clock.wall()).unwrap();
        let kept: Vec<u64> = store.page(None, 9).unwrap().iter().map(|(key, _)| key.chunk.0).collect();
        (kept, store.floor(ChunkId(1)).unwrap())
    };
    assert_eq!(is_here(store), (vec![3, 4, 2], Epoch(2)));
    clock.set_forward(8);
    assert_eq!(is_here(store), (vec![3, 4, 2], Epoch(2)));
    clock.pass(1);
    assert_eq!(is_here(store), (vec![3, 4, 2], Epoch(2)), "of the mark itself");
    clock.pass(1);
    assert_eq!(is_here(store), (vec![3, 4, 2], Epoch(0)));
    clock.pass(5);
    assert_eq!(is_here(store), (vec![4], Epoch(0)));
}

/// A late first delta may name another disk than the one that would be looked at first.
#[tokio::test]
async fn what_is_sealed_or_deleted_before_it_is_made_is_so_on_every_disk() {
    let shared = open(&[SimulatedDisk::new(1 << 30), SimulatedDisk::new(1 << 30)]);
    let seal = SealRequest { chunk: ChunkId(1), epoch: Epoch(2) };
    assert_eq!(commands::seal(&shared, seal).await.unwrap_err().code, Code::NoChunk);
    commands::delete(&shared, DeleteRequest { chunks: vec![(ChunkId(2), Epoch(1))] }).await.unwrap();
    for store in shared.stores() {
        for chunk in [1, 2] {
            let late = store.delta(&delta(chunk, 1, 0), &LEAF).unwrap_err();
            assert_eq!(late.code, Code::WrongEpoch, "chunk {chunk} on disk {}", store.id());
            assert!(!store.needs_sync(), "a loss of power would forget it");
        }
        write(store, 1, 2, 0);
    }
}

/// The record then says where it is: what another disk has is not what was meant, though it may look like it.
#[tokio::test]
async fn an_installation_and_a_copy_meet_the_disk_that_they_name_or_none() {
    let disks = [SimulatedDisk::new(1 << 30), SimulatedDisk::new(1 << 30)];
    let shared = open(&disks);
    let [a, b] = shared.stores() else { panic!("two disks") };
    let contents = write(a, 1, 1, 0);
    let install =
        |disk| InstallRequest { chunk: ChunkId(1), chunk_bytes: 1 << 20, disk, epoch: Epoch(2), contents };
    let refused = commands::install(&shared, install(b.id())).await.unwrap_err();
    assert_eq!(refused.code, Code::NoChunk);
    disks[1].set_faults(Faults { writes: true, syncs: true, reads: true });
    b.delta(&delta(9, 1, 0), &LEAF).unwrap_err();
    assert_eq!(commands::install(&shared, install(b.id())).await.unwrap_err().code, Code::Disk);
    assert_eq!(a.row(ChunkId(1)).unwrap().unwrap().epoch, Epoch(1));
    commands::install(&shared, install(a.id())).await.unwrap();
    let copy = CopyRequest {
        chunk: ChunkId(1),
        chunk_bytes: 1 << 20,
        disk: b.id(),
        source: Member { node: NodeId(9), disk: DiskId(9), address: "127.0.0.1:1".parse().unwrap() },
        expect: None,
        epoch: Epoch(2),
        keep_aside: false,
        into_reserve: false,
    };
    assert_eq!(copy::copy(&shared, copy, RequestHeader::default()).await.unwrap_err().code, Code::Disk);
}

/// What a copy left, whole, that has not become a member yet.
fn leave_copy(store: &DiskStore, chunk: u64, contents: Contents, epoch: u64) {
    let adoption = Adoption {
        chunk: ChunkId(chunk),
        chunk_bytes: 1 << 20,
        version: contents.version,
        partial: false,
        keep_aside: false,
        into_reserve: false,
        based_on: 0,
        leaves: vec![LeafSum { leaf: 0, sum: sums::piece(ChunkId(chunk), 0, &LEAF) }],
        data: vec![LEAF.to_vec().into()],
        digest: contents.digest,
        epoch: Epoch(epoch),
        now: Timestamp(1),
    };
    store.adopt(&adoption).unwrap();
}

/// A replica was to move to another disk, and the installation of it there comes when its epoch is over.
#[tokio::test]
async fn a_seal_is_one_on_every_disk_that_has_the_chunk() {
    let shared = open(&[SimulatedDisk::new(1 << 30), SimulatedDisk::new(1 << 30)]);
    let [a, b] = shared.stores() else { panic!("two disks") };
    let contents = write(a, 1, 1, 0);
    let seal = async |epoch| {
        commands::seal(&shared, SealRequest { chunk: ChunkId(1), epoch: Epoch(epoch) }).await.unwrap()
    };
    seal(2).await;
    leave_copy(b, 1, contents, 2);
    let sealed = seal(3).await;
    assert_eq!((sealed.disk, sealed.epoch, sealed.sealed), (a.id(), Epoch(1), Epoch(3)));
    assert!(!a.needs_sync() && !b.needs_sync(), "a loss of power would forget it");
    let install = |disk, epoch| InstallRequest {
        chunk: ChunkId(1),
        chunk_bytes: 1 << 20,
        disk,
        epoch: Epoch(epoch),
        contents,
    };
    let late = commands::install(&shared, install(b.id(), 2)).await.unwrap_err();
    assert_eq!(late.code, Code::WrongEpoch);
    assert_eq!(a.row(ChunkId(1)).unwrap().unwrap().sealed, Epoch(3));
    // That of the next epoch moves it.
    commands::install(&shared, install(b.id(), 3)).await.unwrap();
    assert_eq!(a.row(ChunkId(1)).unwrap(), None);
    assert_eq!(b.row(ChunkId(1)).unwrap().unwrap().epoch, Epoch(3));
}

/// The replica that was found to be the older one becomes the member before it is put aside.
#[tokio::test]
async fn what_has_changed_since_it_was_looked_at_is_not_put_aside() {
    let shared = open(&[SimulatedDisk::new(1 << 30), SimulatedDisk::new(1 << 30)]);
    let [a, b] = shared.stores() else { panic!("two disks") };
    let contents = write(a, 1, 1, 0);
    leave_copy(b, 1, contents, 2);
    let seen = b.row(ChunkId(1)).unwrap().unwrap();
    let install =
        InstallRequest { chunk: ChunkId(1), chunk_bytes: 1 << 20, disk: b.id(), epoch: Epoch(2), contents };
    commands::install(&shared, install).await.unwrap();
    b.quarantine(ChunkId(1), &seen, "a test", Timestamp(1)).unwrap();
    let row = b.row(ChunkId(1)).unwrap().unwrap();
    assert_eq!(row.epoch, Epoch(2));
    b.quarantine(ChunkId(1), &row, "a test", Timestamp(1)).unwrap();
    assert_eq!(b.row(ChunkId(1)).unwrap(), None);
}

/// The others stay in service: reads, writes, commands and what is told to the master.
#[tokio::test]
async fn one_failed_disk_of_several_leaves_the_others_in_service() {
    use godrive_proto::cluster::{DiskHealth, QuarantineRequest};
    let disks = [SimulatedDisk::new(1 << 30), SimulatedDisk::new(1 << 30)];
    let shared = open(&disks);
    let [bad, good] = shared.stores() else { panic!("two disks") };
    write(bad, 1, 1, 0);
    let contents = write(good, 2, 1, 0);
    write(good, 3, 1, 0);
    disks[0].set_faults(Faults { writes: true, syncs: true, reads: true });
    assert_eq!(bad.delta(&delta(1, 1, 1), &LEAF).unwrap_err().code, Code::Disk);
    let health: Vec<_> = shared.disk_states().iter().map(|state| (state.disk, state.health)).collect();
    assert_eq!(health, [(bad.id(), DiskHealth::Failed), (good.id(), DiskHealth::Healthy)]);
    // What was on the failed disk is not there, and not taken for a chunk that never was.
    assert!(shared.find(ChunkId(1)).unwrap().is_none());
    assert_eq!(shared.with_chunk(ChunkId(1)).err().unwrap().code, Code::Disk);
    assert_eq!(shared.place(bad.id()).err().unwrap().code, Code::Disk);
    let mut listings: Vec<_> = shared.usable().map(master::Listing::new).collect();
    let listed: Vec<_> =
        master::next_page(&shared, &mut listings).unwrap().iter().map(|replica| replica.chunk.0).collect();
    assert_eq!(listed, [2, 3]);
    // What is on the other one goes on.
    assert_eq!(shared.with_chunk(ChunkId(2)).unwrap().id(), good.id());
    let sealed = commands::seal(&shared, SealRequest { chunk: ChunkId(2), epoch: Epoch(2) }).await.unwrap();
    assert_eq!((sealed.disk, sealed.contents), (good.id(), contents));
    let fault =
        commands::seal(&shared, SealRequest { chunk: ChunkId(1), epoch: Epoch(2) }).await.unwrap_err();
    assert_eq!(fault.code, Code::Disk, "nobody can say that it is not here");
    let install = InstallRequest {
        chunk: ChunkId(2),
        chunk_bytes: 1 << 20,
        disk: good.id(),
        epoch: Epoch(2),
        contents,
    };
    commands::install(&shared, install).await.unwrap();
    let next = good.delta(&delta(2, 2, 1), &LEAF).unwrap();
    assert_eq!(next.contents.version, Version(2));
    // The lost replica is made anew on the disk that is left.
    assert_eq!(shared.find_or_place(ChunkId(1), good.id()).unwrap().id(), good.id());
    commands::delete(&shared, DeleteRequest { chunks: vec![(ChunkId(1), Epoch(2)), (ChunkId(3), Epoch(2))] })
        .await
        .unwrap();
    assert!(shared.find(ChunkId(3)).unwrap().is_none());
    commands::quarantine(&shared, QuarantineRequest { chunks: vec![ChunkId(2)] }).await.unwrap();
    assert!(shared.find(ChunkId(2)).unwrap().is_none());
    let kept =
        |store: &DiskStore| store.page(None, 9).unwrap().iter().filter(|(key, _)| key.aside != 0).count();
    assert_eq!(kept(good), 1, "kept aside, not deleted");
}
