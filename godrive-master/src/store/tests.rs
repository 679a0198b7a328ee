mod damage;

use super::*;
use crate::core::kv::MemoryKv;
use crate::core::record::{Body, Mutation, Origin, Record, Reply};
use crate::core::state::State;
use crate::log::{Log, LogError, LogOptions, MAY_BEGIN};
use godrive_disk::{Disk, SimulatedDisk};
use godrive_proto::data::Member;
use godrive_proto::lease::ClusterParameters;
use godrive_proto::meta::{CreateRequest, Name, NewMode, UnlinkRequest};
use godrive_proto::time::Timestamp;
use godrive_proto::{ClusterId, DiskId, LogIndex, NodeId, ROOT, SessionId, Term};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const CLUSTER: ClusterId = ClusterId(5);

fn small() -> StoreOptions {
    StoreOptions { clean_bytes: 2000, page_bytes: 1 << 20 }
}

fn memory() -> Store {
    Store::open(redb::backends::InMemoryBackend::new(), small()).unwrap()
}

fn dump(kv: &dyn Kv) -> MemoryKv {
    let mut all = MemoryKv::default();
    kv.scan(&[0], &[255], &mut |key, value| {
        all.map.insert(key.to_vec(), value.clone());
        true
    })
    .unwrap();
    all
}

/// Whatever is dirty, being flushed, cached or in redb: reads and scans see what a map would.
#[test]
fn a_store_is_a_map() {
    for seed in 0..15 {
        println!("seed {seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let (mut store, mut map) = (memory(), MemoryKv::default());
        let mut checkpoint: Option<Box<dyn Checkpoint>> = None;
        for _ in 0..600 {
            let key = || vec![1 + rng.random_range(0..3u8), rng.random_range(0..12u8)];
            let keys: Vec<Vec<u8>> = std::iter::repeat_with(key).take(8).collect();
            match rng.random_range(0..10) {
                0 => checkpoint = store.begin_checkpoint().or(checkpoint),
                1 => {
                    if let Some(checkpoint) = checkpoint.take() {
                        checkpoint.run().unwrap();
                        store.end_checkpoint().unwrap();
                    }
                }
                2..=5 => {
                    let mut batch = Batch::new();
                    for key in keys {
                        let value = vec![rng.random::<u8>(); rng.random_range(0..60)];
                        batch.insert(key, rng.random_bool(0.6).then(|| value.into()));
                    }
                    store.write(batch.clone()).unwrap();
                    map.write(batch).unwrap();
                }
                6..=8 => {
                    for key in keys {
                        assert_eq!(store.read(&key).unwrap(), map.read(&key).unwrap());
                    }
                }
                _ => {
                    let (from, to, limit) = (&keys[0], &keys[1], rng.random_range(1..9));
                    let few = |kv: &dyn Kv| {
                        let mut found = Vec::new();
                        kv.scan(from, to, &mut |key, value| {
                            found.push((key.to_vec(), value.clone()));
                            found.len() < limit
                        })
                        .unwrap();
                        found
                    };
                    assert_eq!(few(&store), few(&map));
                }
            }
            assert!(store.clean.lock().bytes() <= small().clean_bytes);
        }
        assert_eq!(dump(&store), map);
    }
}

#[test]
fn a_checkpoint_empties_what_is_dirty_once() {
    let mut store = memory();
    assert!(store.begin_checkpoint().is_none());
    store.write(Batch::from([(vec![1], Some(Bytes::from_static(b"x")))])).unwrap();
    assert!(store.dirty_bytes() > 0);
    let checkpoint = store.begin_checkpoint().unwrap();
    assert_eq!(store.dirty_bytes(), 0);
    store.write(Batch::from([(vec![2], Some(Bytes::from_static(b"y")))])).unwrap();
    assert!(store.begin_checkpoint().is_none(), "one at a time");
    checkpoint.run().unwrap();
    store.end_checkpoint().unwrap();
    assert!(store.begin_checkpoint().is_some());
}

fn options() -> RecoveryOptions {
    RecoveryOptions { store: small(), log: LogOptions { segment_bytes: 2000 }, dirty_bytes: 3000 }
}

fn reopen(disk: &Arc<SimulatedDisk>) -> Result<Recovered, RecoveryError> {
    let disk: Arc<dyn Disk> = disk.clone();
    recover(&disk, CLUSTER, options())
}

fn bootstrap() -> [Record; 2] {
    let parameters = ClusterParameters { chunk_bytes: 1 << 20, replicas: 3, min_replicas: 2 };
    let first = Body::Bootstrap { cluster: CLUSTER, parameters, feature_level: 1 };
    let session = Body::OpenSession { client: NodeId(1), label: String::new() };
    [Record::own(Timestamp(1), first), Record::own(Timestamp(2), session)]
}

/// The `number`th record of a session that creates and removes files.
fn work(number: u64) -> Record {
    let origin = Origin { session: SessionId(1), sequence: number, answered_below: number.saturating_sub(3) };
    let name = |number: u64| Name(format!("f{number}").into_bytes());
    let member =
        |node: u128| Member { node: NodeId(node), disk: DiskId(node), address: ([1, 2, 3, 4], 5).into() };
    let body = match number % 3 {
        0 => {
            let request = UnlinkRequest { parent: ROOT, name: name(number - 1), directory: false };
            Mutation::Unlink { request, open_elsewhere: Vec::new() }
        }
        _ => {
            let (mode, uid, gid, exclusive, for_writing) = (NewMode::from(0o644), 0, 0, true, true);
            let name = name(number);
            let request = CreateRequest { parent: ROOT, name, mode, uid, gid, exclusive, for_writing };
            Mutation::Create { request, members: vec![member(1), member(2)] }
        }
    };
    Record { time: Timestamp(number as i64 * 10), origin, body: Body::Mutation(body) }
}

/// All records of the tests' one history.
fn history(count: u64) -> Vec<Record> {
    bootstrap().into_iter().chain((1..count).map(work)).collect()
}

/// What the state must be after so many of them.
fn expected(history: &[Record]) -> Vec<MemoryKv> {
    let kv = crate::core::state::tests::SharedKv::default();
    let mut state = State::open(Box::new(kv.clone())).unwrap();
    let mut all = vec![MemoryKv::default()];
    for record in history {
        let outcome = state.apply(state.applied().next(), record).unwrap();
        assert!(outcome.answer.is_ok(), "{outcome:?}");
        all.push(kv.0.lock().clone());
    }
    all
}

fn drive(log: &mut Log, state: &mut State, record: &Record) -> Option<Reply> {
    let index = log.append(Term(1), std::slice::from_ref(record)).ok()?;
    state.apply(index, record).unwrap().answer.ok()
}

/// Crashes of every kind at random points of a master's work. What was synced is there, the state is exactly that of
/// as many records as the log has, never half of one, and the master goes on from there.
#[test]
fn recovery_gives_the_state_of_a_prefix_that_has_all_that_was_synced() {
    let history = history(90);
    let expected = expected(&history);
    let (mut replays, mut checkpoints) = (0, 0);
    for seed in 0..20 {
        println!("seed {seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let disk = Arc::new(SimulatedDisk::new(1 << 30));
        let mut synced = 0;
        loop {
            let recovered = match reopen(&disk) {
                Ok(recovered) => recovered,
                Err(error) => panic!("seed {seed}: {error}"),
            };
            let Recovered { mut state, mut log, replayed } = recovered;
            replays += u64::from(replayed > 0);
            let applied = state.applied().0;
            assert!(applied >= synced, "seed {seed}: {applied} < {synced}");
            assert_eq!(log.last().0, applied);
            assert!(dump_state(&state) == expected[applied as usize], "seed {seed} at {applied}");
            synced = applied;
            if applied as usize == history.len() {
                break;
            }
            disk.stop_after(rng.random_range(5..120));
            for record in &history[applied as usize..] {
                if drive(&mut log, &mut state, record).is_none() {
                    break;
                }
                if rng.random_bool(0.4) {
                    let Ok(index) = log.sync_point().run() else { break };
                    synced = index.0;
                }
                if rng.random_bool(0.1) {
                    // A checkpoint never runs ahead of the log.
                    let Ok(index) = log.sync_point().run() else { break };
                    synced = index.0;
                    let Some(checkpoint) = state.begin_checkpoint() else { continue };
                    if checkpoint.run().is_err() {
                        break;
                    }
                    checkpoints += 1;
                    state.end_checkpoint().unwrap();
                    if log.cut_below(checkpoint.index).run().is_err() {
                        break;
                    }
                }
            }
            drop((state, log));
            match rng.random_bool(0.7) {
                true => disk.crash(&mut rng),
                false => disk.kill(),
            }
        }
    }
    assert!(replays > 20 && checkpoints > 20, "{replays} {checkpoints}");
}

fn dump_state(state: &State) -> MemoryKv {
    dump(state.kv())
}

#[test]
fn a_log_that_lost_what_the_state_knows_is_refused() {
    let disk = Arc::new(SimulatedDisk::new(1 << 30));
    let Recovered { mut state, mut log, .. } = reopen(&disk).unwrap();
    for record in &history(30) {
        drive(&mut log, &mut state, record).unwrap();
    }
    log.sync_point().run().unwrap();
    checkpoint(&mut state).unwrap();
    let applied = state.applied();
    drop((state, log));
    let names = disk.list("log").unwrap();
    assert!(names.len() > 1, "{names:?}");
    let path = |name: &String| format!("log/{name}");
    disk.remove(&path(names.last().unwrap())).unwrap();
    let is_log = |(path, _): &(String, u64)| path.starts_with("log/");
    let left = |disk: &SimulatedDisk| disk.files().into_iter().filter(is_log).collect::<Vec<_>>();
    let before = left(&disk);
    let error = reopen(&disk).err().unwrap();
    assert!(matches!(error, RecoveryError::Log(LogError::BelowState { .. })), "{error}");
    assert_eq!(left(&disk), before, "nothing is cut off");
    // As the message says: the state has everything up to its last record.
    for name in disk.list("log").unwrap() {
        disk.remove(&path(&name)).unwrap();
    }
    let error = reopen(&disk).err().unwrap();
    assert!(matches!(error, RecoveryError::Log(LogError::BelowState { last: LogIndex(0), .. })), "{error}");
    disk.open(MAY_BEGIN, true).unwrap();
    let Recovered { mut state, mut log, replayed } = reopen(&disk).unwrap();
    assert_eq!((state.applied(), log.last(), replayed), (applied, applied, 0));
    for record in &history(40)[applied.0 as usize..] {
        drive(&mut log, &mut state, record).unwrap();
    }
    log.sync_point().run().unwrap();
    let last = state.applied();
    drop((state, log));
    disk.remove(MAY_BEGIN).unwrap();
    let Recovered { state, log, replayed } = reopen(&disk).unwrap();
    assert_eq!((state.applied(), log.last(), replayed), (last, last, last.0 - applied.0));
    let other: Arc<dyn Disk> = disk.clone();
    assert!(matches!(recover(&other, ClusterId(9), options()), Err(RecoveryError::Cluster { .. })));
}

#[test]
fn a_state_older_than_the_log_is_refused() {
    let disk = Arc::new(SimulatedDisk::new(1 << 30));
    let Recovered { mut state, mut log, .. } = reopen(&disk).unwrap();
    for record in &history(30) {
        drive(&mut log, &mut state, record).unwrap();
    }
    log.sync_point().run().unwrap();
    checkpoint(&mut state).unwrap();
    log.cut_below(state.applied()).run().unwrap();
    drop((state, log));
    disk.remove("state.redb").unwrap();
    let error = reopen(&disk).err().unwrap();
    assert!(matches!(error, RecoveryError::Gap { .. }), "{error}");
}

/// Not a test of speed: prints what a create costs. Run with --run-ignored only and --no-capture.
#[test]
#[ignore = "prints a measurement"]
fn cost_of_a_create() {
    let disk = Arc::new(SimulatedDisk::new(8 << 30));
    let real: Arc<dyn Disk> = disk;
    let Recovered { mut state, mut log, .. } = recover(&real, CLUSTER, RecoveryOptions::default()).unwrap();
    for record in &bootstrap() {
        drive(&mut log, &mut state, record).unwrap();
    }
    #[allow(clippy::disallowed_methods)]
    let start = std::time::Instant::now();
    let count: u64 = std::env::var("COUNT").map_or(60_000, |count| count.parse().unwrap());
    for number in 1..count {
        let record = work(number);
        let Body::Mutation(mutation) = &record.body else { unreachable!() };
        state.check(SessionId(1), record.time, mutation).unwrap();
        drive(&mut log, &mut state, &record).unwrap();
    }
    let applied = start.elapsed();
    let dirty = state.dirty_bytes();
    checkpoint(&mut state).unwrap();
    println!(
        "{:.1} us per operation, {} dirty bytes each, checkpoint {:.1} us each",
        applied.as_secs_f64() * 1e6 / count as f64,
        dirty as u64 / count,
        (start.elapsed() - applied).as_secs_f64() * 1e6 / count as f64,
    );
}

/// A bit that flips anywhere in the file is found when it is opened, or changes nothing.
#[test]
fn rot_is_found_at_the_opening() {
    let disk = SimulatedDisk::new(1 << 30);
    let open = |disk: &SimulatedDisk| {
        Store::open(godrive_disk::FileBackend::new(disk.open("state.redb", true).unwrap()), small())
    };
    let mut store = open(&disk).unwrap();
    for round in 0..3u8 {
        let pair = |at: u16| ([round, (at >> 8) as u8, at as u8].to_vec(), Some(vec![at as u8; 40].into()));
        store.write((0..1500).map(pair).collect()).unwrap();
        store.begin_checkpoint().unwrap().run().unwrap();
        store.end_checkpoint().unwrap();
    }
    let whole = dump(&store);
    assert_eq!(whole.map.len(), 4500);
    drop(store);
    let (mut refused, mut rng) = (0, SmallRng::seed_from_u64(1));
    let (path, len) = disk.files().pop().unwrap();
    for seed in 0..150 {
        println!("seed {seed}");
        let rotten = disk.copy();
        rotten.flip(&path, rng.random_range(0..len));
        match open(&rotten) {
            Ok(store) => assert_eq!(dump(&store), whole),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 20, "only {refused} of 150 flips were found");
}
