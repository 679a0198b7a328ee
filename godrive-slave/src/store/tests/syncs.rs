//! What happens around the syncs of a disk: a disk that asks the test before each of them, and what that shows.

use super::*;
use crate::core::record::BLOCK;
use godrive_disk::{DiskFile, Space};
use std::sync::mpsc;

type Ask = Box<dyn Fn(&str) -> io::Result<()> + Send + Sync>;

/// Before each sync of a file, and each punch, the test is asked whether it fails.
#[derive(Clone)]
struct AskingDisk {
    disk: SimulatedDisk,
    asks: Asks,
    instant: bool,
}

#[derive(Clone, Default)]
struct Asks {
    sync: Arc<Mutex<Option<Arc<Ask>>>>,
    punch: Arc<Mutex<Option<Arc<Ask>>>>,
}

struct AskingFile {
    file: Arc<dyn DiskFile>,
    path: String,
    asks: Asks,
}

impl AskingFile {
    fn ask(&self, ask: &Mutex<Option<Arc<Ask>>>) -> io::Result<()> {
        let ask = ask.lock().clone();
        ask.map_or(Ok(()), |ask| ask(&self.path))
    }
}

impl AskingDisk {
    fn new() -> Self {
        Self { disk: SimulatedDisk::new(1 << 30), asks: Asks::default(), instant: true }
    }

    fn before_syncs(&self, ask: impl Fn(&str) -> io::Result<()> + Send + Sync + 'static) {
        *self.asks.sync.lock() = Some(Arc::new(Box::new(ask)));
    }

    fn before_punches(&self, ask: impl Fn(&str) -> io::Result<()> + Send + Sync + 'static) {
        *self.asks.punch.lock() = Some(Arc::new(Box::new(ask)));
    }

    fn open_store(&self) -> Arc<DiskStore> {
        Arc::new(DiskStore::open(Arc::new(self.clone()), options(), NEW, NOW).unwrap())
    }
}

impl Disk for AskingDisk {
    fn open(&self, path: &str, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.disk.open(path, create)?;
        Ok(Arc::new(AskingFile { file, path: path.to_owned(), asks: self.asks.clone() }))
    }
    fn exists(&self, path: &str) -> io::Result<bool> {
        self.disk.exists(path)
    }
    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        self.disk.list(directory)
    }
    fn create_directory(&self, path: &str) -> io::Result<()> {
        self.disk.create_directory(path)
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn sync_directory(&self, directory: &str) -> io::Result<()> {
        self.disk.sync_directory(directory)
    }
    fn space(&self) -> io::Result<Space> {
        self.disk.space()
    }
    fn is_instant(&self) -> bool {
        self.instant
    }
}

impl DiskFile for AskingFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buf, offset)
    }
    fn write_at(&self, pieces: &[&[u8]], offset: u64) -> io::Result<()> {
        self.file.write_at(pieces, offset)
    }
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.allocate(offset, len)
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.ask(&self.asks.punch)?;
        self.file.punch(offset, len)
    }
    fn start_writeback(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.start_writeback(offset, len)
    }
    fn sync(&self) -> io::Result<()> {
        self.ask(&self.asks.sync)?;
        self.file.sync()
    }
    fn drop_cache(&self) -> io::Result<()> {
        self.ask(&self.asks.sync)?;
        self.file.drop_cache()
    }
}

/// Fills the rest of the log's last segment with a chunk that is deleted afterwards.
pub(super) fn fill_a_segment(store: &DiskStore, chunk: u64) -> Result<(), Fault> {
    let first = store.log.end().0.segment;
    let payload = vec![3; 8 * LEAF];
    let extent = Extent { offset: 0, len: payload.len() as u32, fill: Fill::Bytes };
    let mut base = 0;
    while store.log.end().0.segment == first {
        apply(store, &delta_of(chunk, 1, base, vec![extent], &payload), &payload)?;
        base += 1;
    }
    store.delete(&[(ChunkId(chunk), Epoch(1))], NOW)
}

/// The last leaf of a segment is overwritten while a checkpoint that refers to it is committed; then the power fails.
#[test]
fn a_checkpoint_keeps_the_segments_that_it_refers_to() {
    let mut lost = 0;
    for seed in 0..20 {
        let disk = AskingDisk::new();
        let store = disk.open_store();
        let (request, old) = one_leaf(1, 0, 7);
        apply(&store, &request, &old).unwrap();
        fill_a_segment(&store, 2).unwrap();
        store.checkpoint(NOW).unwrap();
        let (other, payload) = one_leaf(3, 0, 1);
        apply(&store, &other, &payload).unwrap();
        let (overwriting, done) = (Arc::downgrade(&store), AtomicBool::new(false));
        disk.before_syncs(move |path| {
            if path == table::FILE && !done.swap(true, Ordering::Relaxed) {
                let (request, payload) = one_leaf(1, 1, 8);
                apply(&overwriting.upgrade().unwrap(), &request, &payload).unwrap();
            }
            Ok(())
        });
        store.checkpoint(NOW).unwrap();
        assert_eq!(store.row(ChunkId(1)).unwrap().unwrap().version, Version(2));
        drop(store);
        disk.disk.crash(&mut SmallRng::seed_from_u64(seed));
        let store = open(&disk.disk);
        let version = store.row(ChunkId(1)).unwrap().unwrap().version;
        lost += u32::from(version == Version(1));
        let read = ReadRequest { chunk: ChunkId(1), epoch: Epoch(1), version, first_leaf: 0, leaves: 1 };
        let (_, payload) = store.read(&read).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        assert_eq!(payload.concat(), vec![if version == Version(1) { 7 } else { 8 }; LEAF], "seed {seed}");
        // What the checkpoint had to keep is given back by a later one.
        let (request, payload) = one_leaf(1, version.0, 9);
        apply(&store, &request, &payload).unwrap();
        store.checkpoint(NOW).unwrap();
        assert!(!disk.disk.exists(&log::path(1)).unwrap(), "seed {seed}");
    }
    assert!(lost > 0, "the crashes never lost the overwriting");
}

/// The sync that ends a segment fails for want of space, once; the system then calls the next one a success.
#[test]
fn a_failed_sync_is_final_also_between_two_segments() {
    let disk = AskingDisk::new();
    let store = disk.open_store();
    let (first, failed) = (log::path(store.log.end().0.segment), AtomicBool::new(false));
    disk.before_syncs(move |path| match path == first && !failed.swap(true, Ordering::Relaxed) {
        true => Err(io::ErrorKind::StorageFull.into()),
        false => Ok(()),
    });
    let payload = vec![3; 8 * LEAF];
    let extent = Extent { offset: 0, len: payload.len() as u32, fill: Fill::Bytes };
    let write = |base| apply(&store, &delta_of(1, 1, base, vec![extent], &payload), &payload);
    let refused = (0..).find_map(|base| write(base).err()).unwrap();
    assert_eq!(refused.code, Code::Disk, "{refused}");
    assert_eq!(store.state().health, DiskHealth::Failed);
    // Nor does the log itself go on for somebody who was already past the check of the disk.
    let before = store.log.synced();
    assert!(store.log.sync_now().is_err());
    assert_eq!(store.log.synced(), before);
}

/// A segment ends, and its sync takes its time; then a checkpoint gathers what has changed. Whoever waits for one of them is
/// in no other task's way.
#[test]
fn who_waits_for_the_log_lets_other_tasks_go_on() {
    let disk = AskingDisk { instant: false, ..AskingDisk::new() };
    let store = disk.open_store();
    let (first, blocks) = (store.log.end().0.segment, (options().segment_bytes / BLOCK as u64) as u32);
    for base in (0..).take_while(|_| store.log.end().0.block + 2 <= blocks) {
        let (request, payload) = one_leaf(1, base, 7);
        apply(&store, &request, &payload).unwrap();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let ((syncing, begun), (go_on, held)) = (mpsc::channel(), mpsc::channel::<()>());
    let (path, held) = (log::path(first), Mutex::new(held));
    disk.before_syncs(move |at| {
        if at == path {
            let _ = syncing.send(());
            let _ = held.lock().recv();
        }
        Ok(())
    });
    let write = |chunk| {
        let store = store.clone();
        runtime.spawn(async move {
            let (request, payload) = one_leaf(chunk, 0, 7);
            apply(&store, &request, &payload).map(drop)
        })
    };
    let limit = Duration::from_secs(20);
    let another = || {
        let (told, heard) = mpsc::channel();
        runtime.spawn(async move { told.send(()) });
        heard.recv_timeout(limit)
    };
    let rotating = write(2);
    begun.recv_timeout(limit).expect("the segment is synced");
    another().expect("beside the one that syncs");
    let waiting = write(3);
    another().expect("beside one that waits for it");
    drop(go_on);
    for done in [rotating, waiting] {
        runtime.block_on(done).unwrap().unwrap();
    }
    assert_eq!(store.log.end().0.segment, first + 1);
    let gathering = store.gate.write();
    let waiting = write(4);
    another().expect("beside one that waits for a checkpoint");
    drop(gathering);
    runtime.block_on(waiting).unwrap().unwrap();
}

/// Each sync in turn fails, once; the system then calls the next one a success. The slave is started again without its machine,
/// and later the power goes.
#[test]
fn a_restart_after_a_failed_sync_takes_nothing_for_stable_that_the_disk_does_not_have() {
    let mut missed = 0;
    for failing in 0.. {
        let disk = AskingDisk::new();
        let store = disk.open_store();
        let (syncs, faulty) = (Arc::new(AtomicU64::new(0)), disk.disk.clone());
        let counted = syncs.clone();
        disk.before_syncs(move |_| {
            let syncs = counted.fetch_add(1, Ordering::Relaxed) == failing;
            faulty.set_faults(Faults { syncs, ..Faults::default() });
            Ok(())
        });
        let life = || -> Result<(), Fault> {
            for base in 0..3 {
                for chunk in 1..4 {
                    let (request, payload) = one_leaf(chunk, base, (10 * chunk + base) as u8);
                    apply(&store, &request, &payload)?;
                }
                rt().block_on(store.sync())?;
                if base == 1 {
                    store.checkpoint(NOW)?;
                }
            }
            fill_a_segment(&store, 9)?;
            let (request, payload) = one_leaf(4, 0, 40);
            apply(&store, &request, &payload)?;
            store.checkpoint(NOW)
        };
        let failed = life().is_err();
        assert_eq!(failed, failing < syncs.load(Ordering::Relaxed), "sync {failing}");
        drop(store);
        disk.disk.set_faults(Faults::default());
        disk.disk.kill();

        let context = format!("sync {failing} failed");
        let store = open(&disk.disk);
        let (request, payload) = one_leaf(5, 0, 50);
        apply(&store, &request, &payload).unwrap();
        rt().block_on(store.sync()).unwrap();
        let rows = store.page(None, 10).unwrap();
        missed += u64::from(
            rows.iter().filter(|(key, _)| key.chunk.0 < 4).any(|(_, row)| row.version < Version(3)),
        );
        store.checkpoint(NOW).unwrap();
        drop(store);
        disk.disk.crash(&mut SmallRng::seed_from_u64(failing));

        let opened = DiskStore::open(Arc::new(disk.disk.clone()), options(), NEW, NOW);
        let store = opened.unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_eq!(store.page(None, 10).unwrap(), rows, "{context}");
        for (key, _) in &rows {
            assert_eq!(store.verify(*key, 0, 64).unwrap().unwrap().bad, [], "{context}");
        }
        if !failed {
            break;
        }
    }
    assert!(missed > 2, "what was written after the last sync was never missing");
}

/// A hole in the middle of an extent takes a block of the file system's own, which a full disk may not have.
#[test]
fn what_could_not_be_punched_for_want_of_room_is_punched_later() {
    let disk = AskingDisk::new();
    let store = disk.open_store();
    let full = Arc::new(AtomicBool::new(true));
    let refused = full.clone();
    disk.before_punches(move |_| match refused.load(Ordering::Relaxed) {
        true => Err(io::ErrorKind::StorageFull.into()),
        false => Ok(()),
    });
    let segments = || {
        let files = disk.disk.files();
        files.iter().filter(|(path, _)| path.starts_with(log::DIRECTORY)).count()
    };
    let payload = vec![3; 100 * LEAF];
    let extent = Extent { offset: 0, len: payload.len() as u32, fill: Fill::Bytes };
    for base in 0..8 {
        apply(&store, &delta_of(1, 1, base, vec![extent], &payload), &payload).unwrap();
    }
    let before = segments();
    store.checkpoint(NOW).unwrap();
    assert!(segments() < before, "segments without leaves go all the same");
    let free = || disk.disk.space().unwrap().free_bytes;
    let stuck = free();
    store.checkpoint(NOW).unwrap();
    full.store(false, Ordering::Relaxed);
    store.checkpoint(NOW).unwrap();
    // The index may have grown by some pages.
    assert!(free() >= stuck + 90 * LEAF as u64, "{} of {} bytes", free() - stuck, payload.len());
    let settled = (free(), disk.disk.counters().syncs);
    store.checkpoint(NOW).unwrap();
    assert_eq!((free(), disk.disk.counters().syncs), settled, "nothing is left to do");
    assert_eq!(store.state().health, DiskHealth::Healthy);
}

/// A sync that says that the disk is full has lost what it was to write, as any other that fails.
#[test]
fn a_sync_of_the_index_that_finds_no_room_is_final() {
    let disk = AskingDisk::new();
    let store = disk.open_store();
    let (request, payload) = one_leaf(1, 0, 7);
    apply(&store, &request, &payload).unwrap();
    disk.before_syncs(|path| match path == table::FILE {
        true => Err(io::ErrorKind::StorageFull.into()),
        false => Ok(()),
    });
    assert_eq!(store.checkpoint(NOW).unwrap_err().code, Code::Disk);
    assert_eq!(store.state().health, DiskHealth::Failed);
}

fn length(disk: &SimulatedDisk, segment: u32) -> u32 {
    (disk.open(&log::path(segment), false).unwrap().len().unwrap() / BLOCK as u64) as u32
}

/// The sync of a small record must not change the file: most of them fall into zeros that an earlier one wrote.
#[test]
fn small_syncs_fall_into_zeros_and_long_records_do_without() {
    let disk = SimulatedDisk::new(1 << 30);
    let store = open(&disk);
    let segment = store.log.end().0.segment;
    let small = |base: u64| {
        let (request, payload) = one_leaf(1, base, base as u8);
        apply(&store, &request, &payload).unwrap();
        store.log.sync_now().unwrap();
        length(&disk, segment) - store.log.end().0.block
    };
    let ahead: Vec<u32> = (0..60).map(small).collect();
    assert_eq!(ahead[..5], [0, 0, 0, 64, 62], "after four in a row");
    assert_eq!(ahead.iter().filter(|ahead| **ahead == 64).count(), 2, "once for thirty-two: {ahead:?}");

    let payload = vec![3; 100 * LEAF];
    let extent = Extent { offset: 0, len: payload.len() as u32, fill: Fill::Bytes };
    apply(&store, &delta_of(2, 1, 0, vec![extent], &payload), &payload).unwrap();
    store.log.sync_now().unwrap();
    assert_eq!(length(&disk, segment), store.log.end().0.block, "nothing is written ahead of a stream");

    let ahead: Vec<u32> = (60..64).map(small).collect();
    let end = store.log.end().0.block;
    assert_eq!(ahead, [0, 0, 0, 256.min(end + 64) - end]);
    fill_a_segment(&store, 3).unwrap();
    assert!((end..=256).contains(&length(&disk, segment)));
    assert_eq!(length(&disk, store.log.end().0.segment), store.log.end().0.block, "a new one has none");
}

/// The log ends in zeros, or in a record that was written over them and not synced.
#[test]
fn after_a_power_loss_the_zeros_are_not_taken_for_records() {
    for seed in 0..60 {
        let disk = SimulatedDisk::new(1 << 30);
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut stable: BTreeMap<u64, u64> = BTreeMap::new();
        for life in 1..5 {
            let store = open(&disk);
            for (chunk, version) in &stable {
                let row = store.row(ChunkId(*chunk)).unwrap();
                let found = row.map_or(0, |row| row.version.0);
                assert!(found >= *version, "seed {seed}, chunk {chunk}: {found} of {version}");
            }
            for base in 0..rng.random_range(1..90) {
                let (request, payload) = one_leaf(life, base, base as u8);
                apply(&store, &request, &payload).unwrap();
                if rng.random_bool(0.8) {
                    store.log.sync_now().unwrap();
                    stable.insert(life, base + 1);
                }
            }
            drop(store);
            disk.crash(&mut rng);
        }
        open(&disk);
    }
}
