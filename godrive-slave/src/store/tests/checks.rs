//! Versions, epochs and digests that the store compares, one by one.

use super::*;
use godrive_proto::data::FetchRequest;

#[test]
fn what_has_moved_on_is_not_read_under_its_old_version_or_epoch() {
    let disk = SimulatedDisk::new(1 << 30);
    let store = open(&disk);
    for base in 0..2 {
        let (request, payload) = one_leaf(1, base, base as u8);
        apply(&store, &request, &payload).unwrap();
    }
    let read = |epoch, version| {
        let (chunk, epoch, version) = (ChunkId(1), Epoch(epoch), Version(version));
        let request = ReadRequest { chunk, epoch, version, first_leaf: 0, leaves: 1 };
        store.read(&request).map(drop).map_err(|fault| fault.code)
    };
    let fetch = |version| {
        let request = FetchRequest { chunk: ChunkId(1), version: Version(version), leaves: vec![0] };
        store.fetch(&request).map(drop).map_err(|fault| fault.code)
    };
    assert_eq!((read(1, 2), fetch(2)), (Ok(()), Ok(())));
    for version in [1, 3] {
        assert_eq!(read(1, version), Err(Code::WrongVersion));
        assert_eq!(fetch(version), Err(Code::WrongVersion), "the source of a copy");
    }
    for epoch in [0, 2] {
        assert_eq!(read(epoch, 2), Err(Code::WrongEpoch));
    }
    store.seal(ChunkId(1), Epoch(2), NOW).unwrap();
    assert_eq!(read(1, 2), Err(Code::WrongEpoch));
}

#[test]
fn a_copy_of_an_epoch_that_is_over_changes_nothing() {
    let disk = SimulatedDisk::new(1 << 30);
    let store = open(&disk);
    let (request, payload) = one_leaf(1, 0, 7);
    let before = apply(&store, &request, &payload).unwrap();
    let position = store.seal(ChunkId(1), Epoch(5), NOW).unwrap().position;
    let late = |epoch| Adoption { epoch: Epoch(epoch), ..adoption(1, 4, 8, position) };
    assert_eq!(store.adopt(&late(4)).unwrap_err().code, Code::WrongEpoch);
    assert_eq!(store.row(ChunkId(1)).unwrap().unwrap().contents(), before.contents);
    store.adopt(&late(5)).unwrap();
}

#[test]
fn what_is_not_here_is_installed_only_empty() {
    let disk = SimulatedDisk::new(1 << 30);
    let store = open(&disk);
    let contents = Contents { version: Version(3), digest: Default::default() };
    let installed = store.install(ChunkId(1), CHUNK_BYTES, Epoch(2), contents, NOW);
    assert_eq!(installed.unwrap_err().code, Code::NoChunk);
    assert_eq!(store.row(ChunkId(1)).unwrap(), None);
}

/// Wherever the higher one is: in the index, in the checkpoint that fails, or only in the log.
#[test]
fn a_bar_is_never_lowered() {
    let disk = SimulatedDisk::new(1 << 30);
    let mut store = open(&disk);
    let delete = |store: &DiskStore, epoch| store.delete(&[(ChunkId(1), Epoch(epoch))], NOW).unwrap();
    let floor = |store: &DiskStore| store.floor(ChunkId(1)).unwrap();
    delete(&store, 8);
    store.checkpoint(NOW).unwrap();
    delete(&store, 4);
    assert_eq!(floor(&store), Epoch(9));
    store.checkpoint(NOW).unwrap();
    assert_eq!(floor(&store), Epoch(9));
    delete(&store, 10);
    disk.set_capacity(0);
    assert_eq!(store.checkpoint(NOW).unwrap_err().code, Code::NoSpace);
    disk.set_capacity(1 << 30);
    delete(&store, 6);
    for _ in 0..3 {
        assert_eq!(floor(&store), Epoch(11));
        drop(store);
        disk.kill();
        store = open(&disk);
    }
    store.checkpoint(NOW).unwrap();
    assert_eq!(floor(&store), Epoch(11));
}

#[test]
fn what_was_seen_of_the_master_outlives_a_restart() {
    let disk = SimulatedDisk::new(1 << 30);
    let store = open(&disk);
    store.remember(Term(7), LogIndex(900));
    store.remember(Term(6), LogIndex(800));
    store.checkpoint(NOW).unwrap();
    drop(store);
    disk.crash(&mut SmallRng::seed_from_u64(1));
    assert_eq!(open(&disk).remembered(), (Term(7), LogIndex(900)));
}

/// A copy of index.redb is put back that belongs to another disk's log.
#[test]
fn an_index_that_is_not_of_this_log_is_refused() {
    let written = |byte| {
        let disk = SimulatedDisk::new(1 << 30);
        let store = open(&disk);
        let (request, payload) = one_leaf(1, 0, byte);
        apply(&store, &request, &payload).unwrap();
        store.checkpoint(NOW).unwrap();
        (disk, store)
    };
    let ((own, store), (other, _)) = (written(7), written(8));
    let second = delta_of(1, 1, 1, vec![Extent { offset: 8192, len: 1, fill: Fill::Bytes }], &[1]);
    apply(&store, &second, &[1]).unwrap();
    store.log.sync_now().unwrap();
    drop(store);
    own.kill();
    other.kill();
    let theirs = other.open(table::FILE, false).unwrap();
    let mut bytes = vec![0; theirs.len().unwrap() as usize];
    theirs.read_at(&mut bytes, 0).unwrap();
    let file = own.open(table::FILE, false).unwrap();
    file.set_len(0).unwrap();
    file.write_at(&[&bytes], 0).unwrap();
    let error = DiskStore::open(Arc::new(own), options(), NEW, NOW).err().unwrap().to_string();
    assert!(error.contains("do not belong together"), "{error}");
}

/// Of what was written to a new segment and never synced, any pages may be left: its header is.
#[test]
fn a_new_segment_opens_whatever_is_left_of_its_first_records() {
    for seed in 0..80 {
        let disk = SimulatedDisk::new(1 << 30);
        let mut rng = SmallRng::seed_from_u64(seed);
        let store = open(&disk);
        for base in 0..3 {
            let (request, payload) = one_leaf(1, base, base as u8);
            apply(&store, &request, &payload).unwrap();
        }
        drop(store);
        disk.crash(&mut rng);
        let opened = DiskStore::open(Arc::new(disk), options(), NEW, NOW);
        opened.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

/// The next segment has its header, which was made when all before it was stable, and not yet a record that says so.
#[test]
fn a_damaged_end_of_a_segment_is_refused_where_the_next_one_is_empty() {
    let disk = SimulatedDisk::new(1 << 30);
    let store = open(&disk);
    let first = store.log.end().0.segment;
    let mut base = 0;
    while store.log.end().0.segment == first {
        let (request, payload) = one_leaf(1, base, base as u8);
        apply(&store, &request, &payload).unwrap();
        base += 1;
    }
    drop(store);
    disk.kill();
    let [path, next] = [first, first + 1].map(log::path);
    disk.open(&next, false).unwrap().set_len(LEAF as u64).unwrap();
    let last_record = disk.open(&path, false).unwrap().len().unwrap() - 2 * LEAF as u64;
    assert!(disk.flip(&path, last_record + 50));
    let error = DiskStore::open(Arc::new(disk.clone()), options(), NEW, NOW).err().unwrap().to_string();
    assert!(error.contains("begins with record"), "{error}");
    disk.kill();
    assert!(disk.flip(&path, last_record + 50));
    assert_eq!(open(&disk).row(ChunkId(1)).unwrap().unwrap().version, Version(base - 1));
}

/// The same, but only of what it wrote: the record is whole, and the next header shows that it was stable.
#[test]
fn a_damaged_leaf_at_the_end_of_a_segment_costs_no_more_than_its_chunk() {
    let disk = SimulatedDisk::new(1 << 30);
    let store = open(&disk);
    let first = store.log.end().0.segment;
    let (request, payload) = one_leaf(2, 0, 7);
    apply(&store, &request, &payload).unwrap();
    let mut base = 0;
    while store.log.end().0.segment == first {
        let (request, payload) = one_leaf(1, base, base as u8);
        apply(&store, &request, &payload).unwrap();
        base += 1;
    }
    drop(store);
    disk.kill();
    let [path, next] = [first, first + 1].map(log::path);
    disk.open(&next, false).unwrap().set_len(LEAF as u64).unwrap();
    let last_leaf = disk.open(&path, false).unwrap().len().unwrap() - LEAF as u64;
    assert!(disk.flip(&path, last_leaf + 50));
    let opened = DiskStore::open(Arc::new(disk.clone()), options(), NEW, NOW);
    let store = opened.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(store.row(ChunkId(1)).unwrap().unwrap().version, Version(base - 1));
    let read = |chunk, version| {
        let (chunk, epoch, version) = (ChunkId(chunk), Epoch(1), Version(version));
        let request = ReadRequest { chunk, epoch, version, first_leaf: 0, leaves: 1 };
        store.read(&request).map(drop).map_err(|fault| fault.code)
    };
    assert_eq!((read(1, base - 1), read(2, 1)), (Err(Code::Corrupt), Ok(())));
}

/// Somebody has removed it. What it held is missing, not the disk.
#[test]
fn a_missing_segment_costs_no_more_than_it_held() {
    let disk = SimulatedDisk::new(1 << 30);
    let store = open(&disk);
    for chunk in 1..4 {
        let (request, payload) = one_leaf(chunk, 0, chunk as u8);
        apply(&store, &request, &payload).unwrap();
    }
    syncs::fill_a_segment(&store, 9).unwrap();
    store.checkpoint(NOW).unwrap();
    drop(store);
    disk.kill();
    disk.remove(&first_segment(&disk)).unwrap();
    let store = open(&disk);
    let (request, payload) = one_leaf(1, 1, 10);
    apply(&store, &request, &payload).unwrap();
    store.checkpoint(NOW).unwrap();
    assert_eq!(store.failure(), None);
    drop(store);
    disk.kill();
    let report = fsck::check(Arc::new(disk.clone()), options(), NOW).unwrap();
    let lost = [2, 3].map(|chunk| (Key::live(ChunkId(chunk)), 0));
    assert_eq!((report.replicas, report.bad), (3, lost.to_vec()));
    let store = open(&disk);
    let read = |chunk, version| {
        let (chunk, epoch, version) = (ChunkId(chunk), Epoch(1), Version(version));
        let request = ReadRequest { chunk, epoch, version, first_leaf: 0, leaves: 1 };
        store.read(&request).map(drop).map_err(|fault| fault.code)
    };
    assert_eq!((read(1, 2), read(2, 1)), (Ok(()), Err(Code::Corrupt)));
    // What is left of it in the index goes like what is there.
    store.delete(&[(ChunkId(2), Epoch(1)), (ChunkId(3), Epoch(1))], NOW).unwrap();
    store.checkpoint(NOW).unwrap();
    assert_eq!(store.failure(), None);
}

/// Its pages are as they were written; what was written was wrong.
#[test]
fn a_leaf_map_that_does_not_match_its_digest_is_not_served() {
    let disk = SimulatedDisk::new(1 << 30);
    let store = open(&disk);
    let (request, payload) = one_leaf(1, 0, 7);
    apply(&store, &request, &payload).unwrap();
    store.checkpoint(NOW).unwrap();
    drop(store);
    disk.kill();
    let table = table::Table::open(&disk, false).unwrap();
    let checkpoint = table.checkpoint().unwrap().unwrap();
    let groups = vec![(Key::live(ChunkId(1)), 0, None)];
    table.commit(&table::Changes { groups, checkpoint, ..table::Changes::default() }).unwrap();
    drop(table);
    disk.kill();
    let store = open(&disk);
    let request =
        ReadRequest { chunk: ChunkId(1), epoch: Epoch(1), version: Version(1), first_leaf: 0, leaves: 1 };
    let fault = store.read(&request).unwrap_err();
    assert!(fault.detail.contains("does not match its digest"), "{fault}");
}
