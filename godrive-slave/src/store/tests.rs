//! The store against a plain model, with restarts, crashes, rot and full disks.

mod checks;
mod damage;
mod syncs;

use super::fsck;
use super::*;
use crate::core::delta;
use crate::core::leaves::LeafSum;
use crate::core::replica::Admission;
use godrive_disk::{Faults, SimulatedDisk};
use godrive_proto::data::{DeltaRequest, Extent, Fill, ReadRequest};
use godrive_proto::limits::{GROUP_LEAVES, LEAF_BYTES};
use godrive_proto::{OpId, SessionId, Version, sums};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::atomic::AtomicBool;

const CHUNK_BYTES: u32 = 1 << 20;
const LEAF: usize = LEAF_BYTES as usize;
const NOW: Timestamp = Timestamp(1_000);
const CLUSTER: ClusterId = ClusterId(5);
const NEW: NewDisk = NewDisk { id: DiskId(9), secret: Secret(0x71 << 64 | 0x72) };

fn options() -> Options {
    // Small segments and a small index, so that both are cycled through.
    Options { segment_bytes: 1 << 20, index_bytes: 40_000, reserve_bytes: Some(0), ..Options::new(CLUSTER) }
}

fn open(disk: &SimulatedDisk) -> DiskStore {
    DiskStore::open(Arc::new(disk.clone()), options(), NEW, NOW).unwrap()
}

/// A chunk as a plain array: `None` is a hole.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Model {
    version: u64,
    leaves: BTreeMap<u32, Arc<Vec<u8>>>,
}

impl Model {
    fn new() -> Self {
        Self { version: 0, leaves: BTreeMap::new() }
    }

    fn apply(&mut self, request: &DeltaRequest, payload: &[u8]) {
        let mut at = 0;
        for extent in &request.extents {
            for (leaf, start, end) in sums::pieces(extent.offset, extent.len) {
                let within = (extent.offset as usize + start) % LEAF;
                let within = within..within + end - start;
                match extent.fill {
                    Fill::Bytes => {
                        let bytes = self.leaves.entry(leaf).or_insert_with(|| Arc::new(vec![0; LEAF]));
                        Arc::make_mut(bytes)[within].copy_from_slice(&payload[at + start..at + end]);
                    }
                    Fill::Hole if within.len() == LEAF => drop(self.leaves.remove(&leaf)),
                    Fill::Hole => {
                        if let Some(bytes) = self.leaves.get_mut(&leaf) {
                            Arc::make_mut(bytes)[within].fill(0);
                        }
                    }
                }
            }
            if extent.fill == Fill::Bytes {
                at += extent.len as usize;
            }
        }
        self.version += 1;
    }

    fn contents(&self, chunk: ChunkId) -> Contents {
        let mut leaf_sums = vec![0; (CHUNK_BYTES / LEAF_BYTES) as usize];
        for (leaf, bytes) in &self.leaves {
            leaf_sums[*leaf as usize] = sums::piece(chunk, *leaf, bytes);
        }
        let groups: Vec<u64> = leaf_sums.chunks(GROUP_LEAVES as usize).map(sums::group).collect();
        Contents { version: Version(self.version), digest: sums::digest(chunk, &groups) }
    }
}

fn delta_of(chunk: u64, epoch: u64, base: u64, extents: Vec<Extent>, payload: &[u8]) -> DeltaRequest {
    let mut at = 0;
    let mut all = Vec::new();
    for extent in extents.iter().filter(|extent| extent.fill == Fill::Bytes) {
        for (leaf, start, end) in sums::pieces(extent.offset, extent.len) {
            all.push(sums::piece(ChunkId(chunk), leaf, &payload[at + start..at + end]));
        }
        at += extent.len as usize;
    }
    DeltaRequest {
        chunk: ChunkId(chunk),
        chunk_bytes: CHUNK_BYTES,
        disk: DiskId(9),
        epoch: Epoch(epoch),
        base: Version(base),
        op: OpId { session: SessionId(1), sequence: base + 1 },
        extents,
        sums: all,
        chain: Vec::new(),
        sync: false,
        mtime: NOW,
    }
}

fn random_delta(rng: &mut SmallRng, chunk: u64, base: u64) -> (DeltaRequest, Vec<u8>) {
    let mut extents = Vec::new();
    let mut at = rng.random_range(0..CHUNK_BYTES / 2);
    for _ in 0..rng.random_range(1..5) {
        let most = if rng.random_bool(0.3) { 40_000 } else { 3_000 };
        let len = rng.random_range(1..most);
        let fill = if rng.random_bool(0.75) { Fill::Bytes } else { Fill::Hole };
        if at + len > CHUNK_BYTES {
            break;
        }
        extents.push(Extent { offset: at, len, fill });
        at += len + rng.random_range(0..10_000);
    }
    let bytes =
        extents.iter().filter(|extent| extent.fill == Fill::Bytes).map(|extent| extent.len as usize).sum();
    let mut payload = vec![0; bytes];
    rng.fill(&mut payload[..]);
    (delta_of(chunk, 1, base, extents, &payload), payload)
}

fn apply(store: &DiskStore, request: &DeltaRequest, payload: &[u8]) -> Result<Done, Fault> {
    delta::check(request, payload.len())?;
    delta::verify(request, payload)?;
    store.delta(request, payload)
}

/// Reads everything of a chunk and compares it, proof and all.
fn compare(store: &DiskStore, chunk: u64, model: &Model, context: &str) {
    let id = ChunkId(chunk);
    let request = ReadRequest {
        chunk: id,
        epoch: Epoch(1),
        version: Version(model.version),
        first_leaf: 0,
        leaves: 256,
    };
    let (proof, payload) = store.read(&request).unwrap_or_else(|fault| panic!("{context}: {fault}"));
    assert_eq!(sums::digest(id, &proof.groups), model.contents(id).digest, "{context}: digest");
    let mut bytes = payload.concat();
    for (leaf, sum) in proof.leaves.iter().enumerate() {
        let expected = model.leaves.get(&(leaf as u32));
        assert_eq!(*sum != 0, expected.is_some(), "{context}: leaf {leaf} is a hole");
        if let Some(expected) = expected {
            let rest = bytes.split_off(LEAF);
            assert!(bytes == **expected, "{context}: leaf {leaf} differs");
            bytes = rest;
        }
    }
    assert!(bytes.is_empty());
}

#[test]
fn random_deltas_match_the_model_across_restarts() {
    for seed in 0..6 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let disk = SimulatedDisk::new(1 << 30);
        let mut store = open(&disk);
        let mut models: BTreeMap<u64, Model> = BTreeMap::new();
        for step in 0..150 {
            let context = format!("seed {seed} step {step}");
            let chunk = rng.random_range(1..8);
            match rng.random_range(0..20) {
                0 => {
                    drop(store);
                    disk.kill();
                    store = open(&disk);
                }
                1 => store.checkpoint(NOW).unwrap(),
                2 => {
                    // The id is not used again, as in life; the model begins a new one.
                    if models.remove(&chunk).is_some() {
                        store.delete(&[(ChunkId(chunk), Epoch(1))], NOW).unwrap();
                        assert_eq!(store.row(ChunkId(chunk)).unwrap(), None, "{context}");
                        let (request, payload) = random_delta(&mut rng, chunk, 0);
                        assert_eq!(
                            apply(&store, &request, &payload).unwrap_err().code,
                            Code::WrongEpoch,
                            "{context}"
                        );
                    }
                }
                _ => {
                    if store.floor(ChunkId(chunk)).unwrap() > Epoch(0) {
                        continue;
                    }
                    let model = models.entry(chunk).or_insert_with(Model::new);
                    let (request, payload) = random_delta(&mut rng, chunk, model.version);
                    let done = apply(&store, &request, &payload).unwrap();
                    model.apply(&request, &payload);
                    assert_eq!(done.contents, model.contents(ChunkId(chunk)), "{context}");
                    assert_eq!(done.used_bytes as usize, model.leaves.len() * LEAF, "{context}");
                    // The same again is answered alike and changes nothing.
                    assert_eq!(apply(&store, &request, &payload).unwrap(), done, "{context}");
                }
            }
            if rng.random_bool(0.2) {
                models.iter().for_each(|(chunk, model)| compare(&store, *chunk, model, &context));
            }
        }
        let listed: Vec<u64> = store.page(None, 1000).unwrap().iter().map(|(key, _)| key.chunk.0).collect();
        assert_eq!(listed, models.keys().copied().collect::<Vec<_>>(), "seed {seed}");
        drop(store);
        disk.kill();
        let report = fsck::check(Arc::new(disk.clone()), options(), NOW).unwrap();
        assert_eq!(report.bad, [], "seed {seed}");
        assert_eq!(report.leaves as usize, models.values().map(|model| model.leaves.len()).sum::<usize>());
    }
}

/// Changes of many chunks, deletions, reads and checkpoints at one time; afterwards nothing is missing.
#[test]
fn threads_do_not_disturb_each_other() {
    let disk = SimulatedDisk::new(1 << 30);
    let store = open(&disk);
    let done = AtomicBool::new(false);
    let models: Vec<Model> = std::thread::scope(|scope| {
        let workers: Vec<_> = (1..5u64)
            .map(|chunk| {
                let store = &store;
                scope.spawn(move || {
                    let mut rng = SmallRng::seed_from_u64(chunk);
                    let mut model = Model::new();
                    for round in 0..80 {
                        let (request, payload) = random_delta(&mut rng, chunk, model.version);
                        apply(store, &request, &payload).unwrap();
                        model.apply(&request, &payload);
                        compare(store, chunk, &model, &format!("chunk {chunk} round {round}"));
                        let doomed = 1000 * chunk + round;
                        let (request, payload) = one_leaf(doomed, 0, 1);
                        apply(store, &request, &payload).unwrap();
                        // Overlapping lists, in different orders.
                        let all = [doomed, 500, 600 + round, 700].map(|chunk| (ChunkId(chunk), Epoch(1)));
                        store.delete(&all, NOW).unwrap();
                        assert_eq!(store.row(ChunkId(doomed)).unwrap(), None);
                    }
                    model
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                store.checkpoint(NOW).unwrap();
                store.page(None, 3).unwrap();
                rt().block_on(store.sync()).unwrap();
            }
        });
        let models = workers.into_iter().map(|worker| worker.join()).collect::<Result<Vec<_>, _>>();
        done.store(true, Ordering::Relaxed);
        models.unwrap()
    });
    drop(store);
    disk.kill();
    let store = open(&disk);
    assert_eq!(store.page(None, 100).unwrap().len(), 4);
    (1..5).zip(&models).for_each(|(chunk, model)| compare(&store, chunk, model, "after the restart"));
}

/// Everything superseded is given back: the disk holds little more than what is live.
#[test]
fn space_is_given_back() {
    let disk = SimulatedDisk::new(1 << 30);
    let store = open(&disk);
    let payload = vec![1; 256 * 1024];
    let extent = Extent { offset: 0, len: payload.len() as u32, fill: Fill::Bytes };
    for base in 0..40 {
        apply(&store, &delta_of(1, 1, base, vec![extent], &payload), &payload).unwrap();
    }
    store.checkpoint(NOW).unwrap();
    let used = |disk: &SimulatedDisk| {
        let index = disk.open(table::FILE, false).unwrap().len().unwrap();
        ((1 << 30) - disk.space().unwrap().free_bytes).saturating_sub(index)
    };
    assert!(used(&disk) <= 256 * 1024 + 64 * 1024, "{} bytes used for 262144", used(&disk));
    assert!(disk.list(log::DIRECTORY).unwrap().len() <= 2, "{:?}", disk.list(log::DIRECTORY));
    store.delete(&[(ChunkId(1), Epoch(9))], NOW).unwrap();
    store.checkpoint(NOW).unwrap();
    assert!(used(&disk) <= 64 * 1024, "{} bytes used for nothing", used(&disk));
}

fn rt() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

/// Crashes at random points. After each: everything that was synced is there, and every chunk is at some version
/// that was applied, never between two.
#[test]
fn crashes_lose_nothing_that_was_synced() {
    let mut lost = 0;
    for seed in 0..40 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let disk = SimulatedDisk::new(1 << 30);
        // Per chunk: every state that was applied, and the index of the last one known to be stable.
        let mut states: BTreeMap<u64, (Vec<Model>, usize)> = BTreeMap::new();
        drop(open(&disk));
        for round in 0..4 {
            let context = format!("seed {seed} round {round}");
            disk.stop_after(rng.random_range(1..200));
            let store = DiskStore::open(Arc::new(disk.clone()), options(), NEW, NOW);
            if let Ok(store) = &store {
                for _ in 0..60 {
                    let chunk = rng.random_range(1..5);
                    let (applied, _) = states.entry(chunk).or_insert_with(|| (vec![Model::new()], 0));
                    let model = applied.last().unwrap();
                    let (request, payload) = random_delta(&mut rng, chunk, model.version);
                    let result = apply(store, &request, &payload);
                    // Also what failed may be there after the crash.
                    let mut next = model.clone();
                    next.apply(&request, &payload);
                    applied.push(next);
                    if result.is_err() {
                        break;
                    }
                    if rng.random_bool(0.3) {
                        let synced = rt().block_on(store.sync()).is_ok();
                        if synced {
                            states.values_mut().for_each(|(applied, stable)| *stable = applied.len() - 1);
                        }
                    }
                    if rng.random_bool(0.1) && store.checkpoint(NOW).is_ok() {
                        states.values_mut().for_each(|(applied, stable)| *stable = applied.len() - 1);
                    }
                }
            }
            drop(store);
            match rng.random_bool(0.8) {
                true => disk.crash(&mut rng),
                false => disk.kill(),
            }
            let store = DiskStore::open(Arc::new(disk.clone()), options(), NEW, NOW)
                .unwrap_or_else(|error| panic!("{context}: {error}"));
            for (chunk, (applied, stable)) in &mut states {
                let row = store.row(ChunkId(*chunk)).unwrap();
                let version = row.map_or(0, |row| row.version.0);
                let at = applied.iter().position(|model| model.version == version).unwrap();
                assert!(at >= *stable, "{context}: chunk {chunk} is at {at}, but {stable} was stable");
                lost += applied.len() - 1 - at;
                applied.truncate(at + 1);
                *stable = at;
                if version > 0 {
                    assert_eq!(row.unwrap().contents(), applied[at].contents(ChunkId(*chunk)), "{context}");
                    compare(&store, *chunk, &applied[at], &context);
                }
            }
            drop(store);
            disk.kill();
        }
        assert_eq!(fsck::check(Arc::new(disk.clone()), options(), NOW).unwrap().bad, [], "seed {seed}");
    }
    assert!(lost > 20, "the crashes never lost anything unsynced, so they prove little: {lost}");
}

/// The process dies, and the power goes while the next one opens the disk: what that had found in the page cache was not yet stable.
#[test]
fn an_open_that_is_cut_off_builds_on_nothing_that_may_be_lost() {
    for changes in 1..40 {
        let mut rng = SmallRng::seed_from_u64(changes);
        let disk = SimulatedDisk::new(1 << 30);
        let store = open(&disk);
        for base in 0..6 {
            let (request, payload) = one_leaf(1, base, base as u8 + 1);
            apply(&store, &request, &payload).unwrap();
            if base == 2 {
                rt().block_on(store.sync()).unwrap();
            }
        }
        drop(store);
        disk.kill();
        disk.stop_after(changes);
        drop(DiskStore::open(Arc::new(disk.clone()), options(), NEW, NOW));
        disk.crash(&mut rng);
        let store = DiskStore::open(Arc::new(disk.clone()), options(), NEW, NOW)
            .unwrap_or_else(|error| panic!("cut off after {changes} changes: {error}"));
        assert!(store.row(ChunkId(1)).unwrap().unwrap().version >= Version(3), "{changes} changes");
    }
}

fn one_leaf(chunk: u64, base: u64, byte: u8) -> (DeltaRequest, Vec<u8>) {
    let payload = vec![byte; LEAF];
    (
        delta_of(chunk, 1, base, vec![Extent { offset: 0, len: LEAF_BYTES, fill: Fill::Bytes }], &payload),
        payload,
    )
}

/// Where the first data leaf of the first record of a fresh store lies.
const FIRST_LEAF: u64 = 2 * LEAF as u64;

fn first_segment(disk: &SimulatedDisk) -> String {
    format!("{}/{}", log::DIRECTORY, disk.list(log::DIRECTORY).unwrap()[0])
}

#[test]
fn a_torn_tail_is_cut_and_damage_of_stable_records_is_refused() {
    // Three unsynced records, the last one damaged: it never was.
    let disk = SimulatedDisk::new(1 << 30);
    let store = open(&disk);
    for base in 0..3 {
        let (request, payload) = one_leaf(1, base, base as u8 + 1);
        apply(&store, &request, &payload).unwrap();
    }
    drop(store);
    disk.kill();
    let copy = first_segment(&disk);
    assert!(disk.flip(&copy, 5 * LEAF as u64 + 100), "the third record's header");
    let store = open(&disk);
    assert_eq!(store.row(ChunkId(1)).unwrap().unwrap().version, Version(2));

    // A record that a later one knows to be stable is damaged: the disk is refused.
    let disk = SimulatedDisk::new(1 << 30);
    let store = open(&disk);
    for base in 0..3 {
        let (request, payload) = one_leaf(1, base, base as u8 + 1);
        apply(&store, &request, &payload).unwrap();
        rt().block_on(store.sync()).unwrap();
    }
    drop(store);
    disk.kill();
    assert!(disk.flip(&first_segment(&disk), 3 * LEAF as u64 + 50), "the second record's header");
    let error = DiskStore::open(Arc::new(disk), options(), NEW, NOW).err().unwrap().to_string();
    assert!(error.contains("stable storage is damaged"), "{error}");
}

#[test]
fn rot_is_found_by_reads_deltas_the_scrub_and_the_offline_check() {
    let disk = SimulatedDisk::new(1 << 30);
    let store = open(&disk);
    let (request, payload) = one_leaf(1, 0, 7);
    apply(&store, &request, &payload).unwrap();
    store.checkpoint(NOW).unwrap();
    assert!(disk.flip(&first_segment(&disk), FIRST_LEAF + 17));
    let read =
        ReadRequest { chunk: ChunkId(1), epoch: Epoch(1), version: Version(1), first_leaf: 0, leaves: 1 };
    assert_eq!(store.read(&read).unwrap_err().code, Code::Corrupt);
    let partial = delta_of(1, 1, 1, vec![Extent { offset: 5, len: 1, fill: Fill::Bytes }], &[1]);
    assert_eq!(apply(&store, &partial, &[1]).unwrap_err().code, Code::Corrupt);
    assert_eq!(store.verify(Key::live(ChunkId(1)), 0, 64).unwrap().unwrap().bad, [0]);
    assert_eq!(store.bad_leaves(), 3);
    assert_eq!(store.good_leaf(ChunkId(1), 0, request.sums[0]).unwrap(), None);
    drop(store);
    disk.kill();
    let before = disk.counters();
    let report = fsck::check(Arc::new(disk.clone()), options(), NOW).unwrap();
    assert_eq!(report.bad, [(Key::live(ChunkId(1)), 0)]);
    assert_eq!(
        (disk.counters().writes, disk.counters().syncs),
        (before.writes, before.syncs),
        "fsck never writes"
    );
    // A delta that replaces the leaf wholly heals it.
    let store = open(&disk);
    let (request, payload) = one_leaf(1, 1, 8);
    apply(&store, &request, &payload).unwrap();
    assert_eq!(store.verify(Key::live(ChunkId(1)), 0, 64).unwrap().unwrap().bad, []);
}

#[test]
fn a_full_disk_refuses_data_and_leaves_nothing_behind() {
    let disk = SimulatedDisk::new(1 << 30);
    let store = open(&disk);
    let (request, payload) = one_leaf(1, 0, 7);
    apply(&store, &request, &payload).unwrap();
    store.checkpoint(NOW).unwrap();
    // Over the zeros that the sync had written ahead.
    let long = vec![3; 70 * LEAF];
    let extent = Extent { offset: 0, len: long.len() as u32, fill: Fill::Bytes };
    apply(&store, &delta_of(3, 1, 0, vec![extent], &long), &long).unwrap();
    // Room for the headers but not for the data.
    let free = store.disk.space().unwrap().free_bytes;
    disk.set_capacity((1 << 30) - free + 5 * LEAF as u64);
    let big = vec![3; 10 * LEAF];
    let extent = Extent { offset: 0, len: big.len() as u32, fill: Fill::Bytes };
    let refused = apply(&store, &delta_of(1, 1, 1, vec![extent], &big), &big).unwrap_err();
    assert_eq!(refused.code, Code::NoSpace);
    let refused = apply(&store, &delta_of(2, 1, 0, vec![extent], &big), &big).unwrap_err();
    assert_eq!(refused.code, Code::NoSpace);
    assert_eq!(store.row(ChunkId(2)).unwrap(), None, "nothing was made");
    assert_eq!(store.state().health, DiskHealth::Full);
    let read =
        ReadRequest { chunk: ChunkId(1), epoch: Epoch(1), version: Version(1), first_leaf: 0, leaves: 1 };
    assert_eq!(store.read(&read).unwrap().1.concat(), payload, "reads go on");
    // Not even a header fits: the write itself fails.
    disk.set_capacity(0);
    assert_eq!(store.seal(ChunkId(1), Epoch(2), NOW).unwrap_err().code, Code::NoSpace);
    assert_eq!(store.row(ChunkId(1)).unwrap().unwrap().sealed, Epoch(0));
    disk.set_capacity(1 << 30);
    assert_eq!(store.state().health, DiskHealth::Healthy, "nothing new may come before it says so");
    let done = store.seal(ChunkId(1), Epoch(2), NOW).unwrap();
    assert_eq!(done.sealed, Epoch(2));
    store.delete(&[(ChunkId(1), Epoch(2))], NOW).unwrap();
    apply(&store, &delta_of(2, 1, 0, vec![extent], &big), &big).unwrap();
    assert_eq!(store.state().health, DiskHealth::Healthy);
    drop(store);
    disk.kill();
    let store = open(&disk);
    assert_eq!(store.row(ChunkId(2)).unwrap().unwrap().version, Version(1));
}

/// Others have filled the file system to its last block: seals, deletions, checkpoints and a start live on the ballast.
#[test]
fn what_the_cluster_needs_goes_on_when_others_have_taken_all_room() {
    let disk = SimulatedDisk::new(1 << 30);
    let options = Options { reserve_bytes: Some(8 << 20), ..options() };
    let open = || DiskStore::open(Arc::new(disk.clone()), options, NEW, NOW).unwrap();
    let store = open();
    store.refill_reserve();
    let bytes = vec![3; 10 * LEAF];
    let extent = Extent { offset: 0, len: bytes.len() as u32, fill: Fill::Bytes };
    for chunk in 1..=50 {
        apply(&store, &delta_of(chunk, 1, 0, vec![extent], &bytes), &bytes).unwrap();
    }
    store.checkpoint(NOW).unwrap();
    disk.set_capacity((1 << 30) - disk.space().unwrap().free_bytes);
    assert_eq!(store.state().health, DiskHealth::Full);
    let refused = apply(&store, &delta_of(1, 1, 1, vec![extent], &bytes), &bytes).unwrap_err();
    assert_eq!(refused.code, Code::NoSpace);
    // Nor does a copy that may take of the reserve take what is kept for records without data.
    let copy = Adoption { into_reserve: true, ..adoption(99, 1, 7, 0) };
    assert_eq!(store.adopt(&copy).unwrap_err().code, Code::NoSpace);
    assert!(!store.disk.is_cut());
    let mut epoch = 1;
    for _round in 0..20 {
        epoch += 1;
        for chunk in 1..=50 {
            let contents = store.seal(ChunkId(chunk), Epoch(epoch), NOW).unwrap().contents();
            store.install(ChunkId(chunk), CHUNK_BYTES, Epoch(epoch), contents, NOW).unwrap();
        }
        store.checkpoint(NOW).unwrap();
    }
    drop(store);
    disk.kill();
    let store = open();
    assert_eq!(store.row(ChunkId(50)).unwrap().unwrap().epoch, Epoch(epoch));
    let all: Vec<_> = (1..=50).map(|chunk| (ChunkId(chunk), Epoch(epoch))).collect();
    store.delete(&all, NOW).unwrap();
    store.checkpoint(NOW).unwrap();
    assert!(disk.space().unwrap().free_bytes > 0, "what was deleted is given back");
    disk.set_capacity(1 << 30);
    store.refill_reserve();
    assert!(!store.disk.is_cut());
    assert_eq!(store.state().health, DiskHealth::Healthy);
}

#[test]
fn after_a_restart_a_replica_takes_no_delta_before_an_election() {
    let disk = SimulatedDisk::new(1 << 30);
    let store = open(&disk);
    let bytes = vec![3; LEAF];
    let extent = Extent { offset: 0, len: bytes.len() as u32, fill: Fill::Bytes };
    let delta = |epoch, base| delta_of(1, epoch, base, vec![extent], &bytes);
    let first = delta(1, 0);
    let done = apply(&store, &first, &bytes).unwrap();
    assert_eq!(store.admit(&delta(1, 1)).unwrap(), Admission::Apply);
    drop(store);
    disk.kill();
    let store = open(&disk);
    assert_eq!(store.admit(&first).unwrap(), Admission::Already);
    assert_eq!(store.admit(&delta(1, 1)).unwrap_err().code, Code::WrongVersion);
    store.seal(ChunkId(1), Epoch(2), NOW).unwrap();
    store.install(ChunkId(1), CHUNK_BYTES, Epoch(2), done.contents, NOW).unwrap();
    assert_eq!(store.admit(&delta(2, 1)).unwrap(), Admission::Apply);
    assert_eq!(
        store.admit(&delta_of(2, 1, 0, vec![extent], &bytes)).unwrap(),
        Admission::Apply,
        "a new chunk"
    );
}

#[test]
fn a_checkpoint_without_room_is_made_later() {
    let disk = SimulatedDisk::new(1 << 30);
    let store = open(&disk);
    let mut rng = SmallRng::seed_from_u64(3);
    let mut models: BTreeMap<u64, Model> = BTreeMap::new();
    let mut refused = 0;
    for round in 0..30 {
        for chunk in 1..20 {
            let model = models.entry(chunk).or_insert_with(Model::new);
            let (request, payload) = random_delta(&mut rng, chunk, model.version);
            apply(&store, &request, &payload).unwrap();
            model.apply(&request, &payload);
        }
        disk.set_capacity(0);
        if let Err(fault) = store.checkpoint(NOW) {
            assert_eq!(fault.code, Code::NoSpace, "round {round}");
            refused += 1;
        }
        models
            .iter()
            .for_each(|(chunk, model)| compare(&store, *chunk, model, &format!("full, round {round}")));
        disk.set_capacity(1 << 30);
        if round % 3 == 0 {
            store.checkpoint(NOW).unwrap();
        }
    }
    assert!(refused > 0, "the disk was never too full for a checkpoint");
    drop(store);
    disk.kill();
    let store = open(&disk);
    models.iter().for_each(|(chunk, model)| compare(&store, *chunk, model, "after the restart"));
}

/// The room ends at each block in turn that a checkpoint writes. Meanwhile the index is read, and not anew from its beginning.
#[test]
fn a_checkpoint_that_finds_no_room_disturbs_nobody() {
    let disk = SimulatedDisk::new(1 << 30);
    let store = open(&disk);
    let fill = |store: &DiskStore, chunks: std::ops::Range<u64>, base| {
        for chunk in chunks {
            let (request, payload) = one_leaf(chunk, base, base as u8 + 1);
            apply(store, &request, &payload).unwrap();
        }
    };
    fill(&store, 1..1000, 0);
    store.checkpoint(NOW).unwrap();
    let done = AtomicBool::new(false);
    let whole = disk.open(table::FILE, false).unwrap().len().unwrap() / LEAF as u64;
    let refused = std::thread::scope(|scope| {
        let mut refused = 0;
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        for chunk in (1..1000).step_by(7) {
                            assert!(store.row(ChunkId(chunk)).unwrap().is_some());
                        }
                        assert_eq!(store.page(None, 100).unwrap().len(), 100);
                        store.floor(ChunkId(5000)).unwrap();
                    }
                })
            })
            .collect();
        for room in 0..120 {
            fill(&store, 2000 + 100 * room..2100 + 100 * room, 0);
            disk.set_capacity((1 << 30) - disk.space().unwrap().free_bytes + room % 12 * LEAF as u64);
            if let Err(fault) = store.checkpoint(NOW) {
                assert_eq!(fault.code, Code::NoSpace, "room {room}: {fault}");
                refused += 1;
            }
            disk.set_capacity(1 << 30);
        }
        done.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        refused
    });
    assert!(refused > 20, "{refused}");
    assert_eq!(store.state().health, DiskHealth::Healthy);
    fill(&store, 1..2, 1);
    // The index has free pages of its own, by how the readers met the commits: more is written than they take.
    let added = (1..100)
        .find(|more| {
            let from = 20_000 + 1_000 * more;
            fill(&store, from..from + 1_000, 0);
            disk.set_capacity(0);
            let outcome = store.checkpoint(NOW);
            disk.set_capacity(1 << 30);
            outcome.is_err_and(|fault| fault.code == Code::NoSpace)
        })
        .unwrap();
    disk.set_capacity(0);
    let before = disk.counters().reads;
    assert!(store.row(ChunkId(999)).unwrap().is_some());
    let reads = disk.counters().reads - before;
    assert!(reads < whole / 2, "{reads} reads of an index of at least {whole} pages");
    disk.set_capacity(1 << 30);
    store.checkpoint(NOW).unwrap();
    drop(store);
    disk.kill();
    let store = open(&disk);
    assert_eq!(store.row(ChunkId(1)).unwrap().unwrap().version, Version(2));
    assert_eq!(store.replicas(), 999 + 12_000 + 1_000 * added);
}

/// The log has what the index lacks: a start goes without a checkpoint where there is no room for one.
#[test]
fn a_start_without_room_for_a_checkpoint_serves() {
    let disk = SimulatedDisk::new(1 << 30);
    let store = open(&disk);
    for chunk in 1..200 {
        let (request, payload) = one_leaf(chunk, 0, 1);
        apply(&store, &request, &payload).unwrap();
    }
    drop(store);
    disk.kill();
    // For the header of the next segment.
    disk.set_capacity((1 << 30) - disk.space().unwrap().free_bytes + LEAF as u64);
    let store = open(&disk);
    assert_eq!(store.row(ChunkId(199)).unwrap().unwrap().version, Version(1));
    assert_eq!(store.checkpoint(NOW).unwrap_err().code, Code::NoSpace);
    drop(store);
    disk.kill();
    disk.set_capacity(1 << 30);
    let store = open(&disk);
    assert_eq!(store.replicas(), 199);
    store.checkpoint(NOW).unwrap();
}

#[test]
fn an_error_takes_the_disk_out_of_service() {
    for faults in [Faults { writes: true, ..Faults::default() }, Faults { syncs: true, ..Faults::default() }]
    {
        let disk = SimulatedDisk::new(1 << 30);
        let store = open(&disk);
        let (request, payload) = one_leaf(1, 0, 7);
        apply(&store, &request, &payload).unwrap();
        disk.set_faults(faults);
        let (request, payload) = one_leaf(1, 1, 8);
        let failed = apply(&store, &request, &payload).and_then(|_| rt().block_on(store.sync()));
        assert_eq!(failed.unwrap_err().code, Code::Disk);
        disk.set_faults(Faults::default());
        assert_eq!(rt().block_on(store.sync()).unwrap_err().code, Code::Disk, "never made good");
        assert_eq!(apply(&store, &request, &payload).unwrap_err().code, Code::Disk);
        assert_eq!(store.state().health, DiskHealth::Failed);
    }
}

#[test]
fn an_error_of_a_read_does_so_too() {
    let disk = SimulatedDisk::new(1 << 30);
    let store = open(&disk);
    let (request, payload) = one_leaf(1, 0, 7);
    apply(&store, &request, &payload).unwrap();
    let read =
        ReadRequest { chunk: ChunkId(1), epoch: Epoch(1), version: Version(1), first_leaf: 0, leaves: 1 };
    store.read(&read).unwrap();
    disk.set_faults(Faults { reads: true, ..Faults::default() });
    assert_eq!(store.read(&read).unwrap_err().code, Code::Disk);
    disk.set_faults(Faults::default());
    assert_eq!(store.read(&read).unwrap_err().code, Code::Disk);
    assert_eq!(store.state().health, DiskHealth::Failed);
}

#[test]
fn seals_installs_and_deletions_survive() {
    let disk = SimulatedDisk::new(1 << 30);
    let store = open(&disk);
    let (request, payload) = one_leaf(1, 0, 7);
    let contents = apply(&store, &request, &payload).unwrap().contents;
    assert_eq!(store.seal(ChunkId(1), Epoch(3), NOW).unwrap().sealed, Epoch(3));
    assert_eq!(store.seal(ChunkId(2), Epoch(3), NOW).unwrap_err().code, Code::NoChunk);
    rt().block_on(store.sync()).unwrap();
    drop(store);
    disk.crash(&mut SmallRng::seed_from_u64(1));
    let store = open(&disk);
    let (next, payload) = one_leaf(1, 1, 8);
    assert_eq!(apply(&store, &next, &payload).unwrap_err().code, Code::WrongEpoch);
    let (late, late_payload) = one_leaf(2, 0, 8);
    assert_eq!(
        apply(&store, &late, &late_payload).unwrap_err().code,
        Code::WrongEpoch,
        "sealed before it was made"
    );
    let install = |epoch, contents| store.install(ChunkId(1), CHUNK_BYTES, Epoch(epoch), contents, NOW);
    assert_eq!(install(2, contents).unwrap_err().code, Code::WrongEpoch);
    install(3, contents).unwrap();
    apply(&store, &DeltaRequest { epoch: Epoch(3), ..next }, &payload).unwrap();
    let empty = Contents { version: Version(0), digest: sums::empty_digest(ChunkId(2), CHUNK_BYTES) };
    store.install(ChunkId(2), CHUNK_BYTES, Epoch(3), empty, NOW).unwrap();
    // A deletion of an older epoch does not touch it.
    store.delete(&[(ChunkId(1), Epoch(2)), (ChunkId(2), Epoch(3))], NOW).unwrap();
    assert_eq!(store.row(ChunkId(1)).unwrap().unwrap().epoch, Epoch(3));
    assert_eq!(store.row(ChunkId(2)).unwrap(), None);
    assert_eq!(store.page(None, 10).unwrap().len(), 1);
}

fn adoption(chunk: u64, version: u64, bytes: u8, based_on: u64) -> Adoption {
    let data = vec![bytes; LEAF];
    let leaves = vec![LeafSum { leaf: 0, sum: sums::piece(ChunkId(chunk), 0, &data) }];
    let digest = crate::core::leaves::LeafMap::new(ChunkId(chunk), CHUNK_BYTES).digest_after(&leaves);
    Adoption {
        chunk: ChunkId(chunk),
        chunk_bytes: CHUNK_BYTES,
        version: Version(version),
        partial: false,
        keep_aside: false,
        into_reserve: false,
        based_on,
        leaves,
        data: vec![data.into()],
        digest,
        epoch: Epoch(2),
        now: NOW,
    }
}

#[test]
fn copies_are_adopted_wholly_and_the_old_contents_kept_aside() {
    let disk = SimulatedDisk::new(1 << 30);
    let store = open(&disk);
    let wrong = Adoption { digest: Default::default(), ..adoption(1, 4, 7, 0) };
    assert_eq!(store.adopt(&wrong).unwrap_err().code, Code::Corrupt);
    assert_eq!(store.row(ChunkId(1)).unwrap(), None);
    let done = store.adopt(&adoption(1, 4, 7, 0)).unwrap();
    assert_eq!(done.contents.version, Version(4));
    let row = store.row(ChunkId(1)).unwrap().unwrap();
    assert_eq!(row.epoch, Epoch(0), "a copy is no member until it is installed");
    store.install(ChunkId(1), CHUNK_BYTES, Epoch(2), done.contents, NOW).unwrap();
    let position = store.row(ChunkId(1)).unwrap().unwrap().position;
    assert_eq!(
        store.adopt(&adoption(1, 5, 8, position)).unwrap_err().code,
        Code::WrongEpoch,
        "it is a member"
    );
    let position = store.seal(ChunkId(1), Epoch(3), NOW).unwrap().position;
    let next = |position| Adoption { epoch: Epoch(3), keep_aside: true, ..adoption(1, 5, 8, position) };
    assert_eq!(store.adopt(&next(position + 1)).unwrap_err().code, Code::Busy);
    store.adopt(&next(position)).unwrap();
    for round in 0..2 {
        let page = store.page(None, 10).unwrap();
        assert_eq!(page.len(), 2, "round {round}");
        assert_eq!(page[0].0, Key::live(ChunkId(1)));
        assert_eq!((page[0].1.version, page[1].1.version), (Version(5), Version(4)));
        assert_eq!(store.verify(page[1].0, 0, 64).unwrap().unwrap().read, 1);
        if round == 0 {
            store.checkpoint(NOW).unwrap();
        }
    }
    drop(store);
    disk.kill();
    let store = open(&disk);
    assert_eq!(store.page(None, 10).unwrap().len(), 2);
    let aside = store.page(None, 10).unwrap()[1].0;
    store.delete_asides(&[aside]).unwrap();
    assert_eq!(store.page(None, 10).unwrap().len(), 1);
    let row = store.row(ChunkId(1)).unwrap().unwrap();
    store.quarantine(ChunkId(1), &row, "a test", NOW).unwrap();
    assert_eq!(store.row(ChunkId(1)).unwrap(), None);
    drop(store);
    disk.kill();
    let store = open(&disk);
    assert_eq!(store.row(ChunkId(1)).unwrap(), None);
    let page = store.page(None, 10).unwrap();
    assert_eq!(page.len(), 1);
    assert_ne!(page[0].0.aside, 0);
    assert_eq!(fsck::check(Arc::new(disk), options(), NOW).unwrap().asides, 1);
}

#[test]
fn what_became_stable_is_reported_once() {
    let disk = SimulatedDisk::new(1 << 30);
    let store = open(&disk);
    let (request, payload) = one_leaf(1, 0, 7);
    let done = apply(&store, &request, &payload).unwrap();
    assert!(!store.is_stable(done.position) && store.needs_sync());
    assert_eq!(store.take_stable(10), []);
    rt().block_on(store.sync()).unwrap();
    assert!(store.is_stable(done.position) && !store.needs_sync());
    assert_eq!(store.take_stable(10), [(ChunkId(1), Epoch(1), done.contents)]);
    assert_eq!(store.take_stable(10), []);
    store.untake_stable([ChunkId(1)].into_iter());
    assert_eq!(store.take_stable(10).len(), 1);
}

#[test]
fn a_directory_that_is_not_ours_is_refused() {
    let disk = SimulatedDisk::new(1 << 30);
    disk.open("holiday.jpg", true).unwrap();
    let error = |disk: &SimulatedDisk, cluster| {
        let options = Options { cluster, ..options() };
        DiskStore::open(Arc::new(disk.clone()), options, NEW, NOW).err().unwrap().to_string()
    };
    assert!(error(&disk, CLUSTER).contains("holiday.jpg"));
    let disk = SimulatedDisk::new(1 << 30);
    drop(open(&disk));
    disk.kill();
    assert!(error(&disk, ClusterId(6)).contains("belongs to cluster"));
    disk.remove(table::FILE).unwrap();
    assert!(error(&disk, CLUSTER).contains("index.redb is missing"));
}
