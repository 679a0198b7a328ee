//! A small store in which each byte is damaged in turn, and each length is cut off. It opens with what was stable, or is
//! refused with what to do; what it then serves is right.
//!
//! Of a record that no later one knows to be stable, damage and a write that a crash interrupted look alike: the store opens
//! without it. The master remembers what was stable and elects nothing older.

use super::super::overlay::Overlay;
use super::*;
use crate::core::leaves::Location;
use crate::core::record::{Kind, Record, Stamp};
use godrive_disk::Disk;

/// A disk, and what its chunks are.
struct Small {
    disk: SimulatedDisk,
    rows: BTreeMap<u64, Row>,
    models: BTreeMap<u64, Model>,
}

/// Two chunks and a seal of a third, in an index; then a change and a new chunk, in the log. Everything is stable.
fn small() -> Small {
    let disk = SimulatedDisk::new(1 << 30);
    let store = open(&disk);
    let mut models: BTreeMap<u64, Model> = BTreeMap::new();
    let mut write = |chunk: u64| {
        let model = models.entry(chunk).or_insert_with(Model::new);
        let (request, payload) = one_leaf(chunk, model.version, 10 * chunk as u8 + model.version as u8);
        apply(&store, &request, &payload).unwrap();
        store.log.sync_now().unwrap();
        model.apply(&request, &payload);
    };
    write(1);
    write(2);
    let sealed = store.seal(ChunkId(3), Epoch(4), NOW).unwrap_err();
    assert_eq!(sealed.code, Code::NoChunk);
    store.log.sync_now().unwrap();
    store.checkpoint(NOW).unwrap();
    write(1);
    write(4);
    let rows = [1, 2, 4].map(|chunk| (chunk, store.row(ChunkId(chunk)).unwrap().unwrap())).into();
    drop(store);
    disk.kill();
    Small { disk, rows, models }
}

impl Small {
    /// None: it is refused, and says what to do.
    fn open(&self, context: &str) -> Option<DiskStore> {
        let overlay = Arc::new(Overlay::new(Arc::new(self.disk.clone())));
        match DiskStore::open(overlay, options(), NEW, NOW) {
            Ok(store) => Some(store),
            Err(error) => {
                assert!(error.to_string().contains("Empty the directory"), "{context}: {error}");
                None
            }
        }
    }

    /// What it serves is what was written. Without the last record chunk 4 may be missing.
    fn check(&self, store: &DiskStore, last_may_be_missing: bool, context: &str) -> Result<(), String> {
        for (chunk, expected) in &self.rows {
            let row = match store.row(ChunkId(*chunk)) {
                Ok(Some(row)) => row,
                Ok(None) if *chunk == 4 && last_may_be_missing => continue,
                // An index that does not decode takes the disk out of service: others have what it had.
                Err(fault) if fault.code == Code::Disk => return Ok(()),
                other => return Err(format!("{context}: chunk {chunk}: {other:?}")),
            };
            if row != *expected {
                return Err(format!("{context}: chunk {chunk} is {row:?}, not {expected:?}"));
            }
            let (version, model) = (row.version, &self.models[chunk]);
            let request =
                ReadRequest { chunk: ChunkId(*chunk), epoch: Epoch(1), version, first_leaf: 0, leaves: 1 };
            match store.read(&request) {
                Ok((_, payload)) if payload.concat() == **model.leaves[&0] => {}
                Err(fault) if matches!(fault.code, Code::Corrupt | Code::Disk) => {}
                other => return Err(format!("{context}: chunk {chunk} reads {other:?}")),
            }
        }
        match store.floor(ChunkId(3)) {
            Ok(Epoch(4)) => Ok(()),
            Err(fault) if fault.code == Code::Disk => Ok(()),
            other => Err(format!("{context}: the seal of chunk 3: {other:?}")),
        }
    }

    fn bytes(&self, path: &str) -> Vec<u8> {
        let file = self.disk.open(path, false).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_at(&mut bytes, 0).unwrap();
        bytes
    }
}

/// The last record: its header, and the leaf behind it.
fn last_record(store: &DiskStore) -> std::ops::Range<u64> {
    let Location { block, .. } =
        store.find(Key::live(ChunkId(4))).unwrap().unwrap().read().leaves.leaf(0).unwrap().1;
    (u64::from(block) - 1) * LEAF as u64..(u64::from(block) + 1) * LEAF as u64
}

/// A user's block says that it is a record of this place, and that all before it was stable; the power goes while the record before
/// it is written.
#[test]
fn a_block_that_looks_like_a_record_is_none() {
    for stamp in [Stamp::OLD, Stamp { format: 2, ..Stamp::OLD }, Stamp::new(Secret(0x72))] {
        a_forged_block_is_no_record(stamp);
    }
}

fn a_forged_block_is_no_record(stamp: Stamp) {
    let disk = SimulatedDisk::new(1 << 30);
    let store = open(&disk);
    let (request, payload) = one_leaf(1, 0, 7);
    apply(&store, &request, &payload).unwrap();
    let torn = store.log.end().0;
    let (request, payload) = one_leaf(1, 1, 8);
    apply(&store, &request, &payload).unwrap();
    let Location { segment, block } = store.log.end().0;
    let replica = store.find(Key::live(ChunkId(1))).unwrap().unwrap();
    let forged = Record {
        sequence: 1 << 40,
        synced: 1 << 40,
        segment,
        block: block + 1,
        ..store.record(Kind::Seal, &replica.read())
    };
    let payload = forged.encode(stamp);
    assert!(Record::decode(&payload, segment, block + 1, stamp).is_ok());
    let extent = Extent { offset: 0, len: LEAF_BYTES, fill: Fill::Bytes };
    apply(&store, &delta_of(1, 1, 2, vec![extent], &payload), &payload).unwrap();
    assert_eq!(disk.block((&log::path(segment), u64::from(block) + 1)).unwrap(), payload);
    drop((store, replica));
    disk.kill();
    assert!(disk.flip(&log::path(segment), u64::from(torn.block) * LEAF as u64 + 50));
    let opened = DiskStore::open(Arc::new(disk), options(), NEW, NOW);
    let store = opened.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(store.row(ChunkId(1)).unwrap().unwrap().version, Version(1));
}

/// The disk as a program that knew only format 1 would have written it.
fn made_by_an_old_program(disk: &SimulatedDisk) {
    for name in disk.list(log::DIRECTORY).unwrap() {
        let (path, segment) = (format!("{}/{name}", log::DIRECTORY), log::number(&name).unwrap());
        let header = disk.block((&path, 0)).unwrap();
        let stamp = Stamp::new(NEW.secret);
        let first = log::check_segment_header(&header, stamp, NEW.id, segment).unwrap();
        disk.set_block((&path, 0), &log::segment_header(Stamp::OLD, NEW.id, segment, first));
        let blocks = disk.open(&path, false).unwrap().len().unwrap() / LEAF as u64;
        for block in 1..blocks {
            let Some(bytes) = disk.block((&path, block)) else { continue };
            if let Ok(record) = Record::decode(&bytes, segment, block as u32, stamp) {
                disk.set_block((&path, block), &record.encode(Stamp::OLD));
            }
        }
    }
    let text = format!("format = 1\ndisk = \"{}\"\ncluster = \"{CLUSTER}\"\n", NEW.id);
    godrive_disk::write_small(disk, "disk.toml", text.as_bytes()).unwrap();
}

#[test]
fn a_disk_of_format_1_goes_on_in_format_2_wherever_that_is_cut_off() {
    for (changes, killed) in (0..).flat_map(|changes| [(changes, false), (changes, true)]) {
        let small = small();
        made_by_an_old_program(&small.disk);
        let report = fsck::check(Arc::new(small.disk.clone()), options(), NOW).unwrap();
        assert_eq!((report.replicas, report.bad), (3, vec![]));
        let context = format!("cut off after {changes} changes");
        small.disk.stop_after(changes);
        let opened = DiskStore::open(Arc::new(small.disk.clone()), options(), NEW, NOW);
        let done = opened.is_ok_and(|store| store.checkpoint(NOW).is_ok() && store.log.sync_now().is_ok());
        // Another secret would be made now, if this disk had none.
        let next = NewDisk { secret: Secret(5), ..NEW };
        let open = || DiskStore::open(Arc::new(small.disk.clone()), options(), next, NOW);
        if killed {
            small.disk.kill();
            drop(open().unwrap_or_else(|error| panic!("{context}, killed: {error}")));
        }
        small.disk.crash(&mut SmallRng::seed_from_u64(changes));
        let store = open().unwrap_or_else(|error| panic!("{context}: {error}"));
        small.check(&store, false, &context).unwrap();
        let (request, payload) = one_leaf(7, 0, 70);
        apply(&store, &request, &payload).unwrap();
        store.log.sync_now().unwrap();
        drop(store);
        small.disk.crash(&mut SmallRng::seed_from_u64(changes));
        let store = open().unwrap_or_else(|error| panic!("{context}: {error}"));
        assert!(store.row(ChunkId(7)).unwrap().is_some(), "{context}");
        small.check(&store, false, &context).unwrap();
        let text = String::from_utf8(small.bytes("disk.toml")).unwrap();
        assert!(text.starts_with("format = 2\n"), "{text}");
        if done && killed {
            break;
        }
    }
}

/// The replay begins behind it, and does without: what rots there costs nobody a replica.
#[test]
fn a_damaged_header_of_the_segment_that_the_replay_begins_in_is_no_loss() {
    for old in [false, true] {
        let small = small();
        if old {
            made_by_an_old_program(&small.disk);
        }
        let names = small.disk.list(log::DIRECTORY).unwrap();
        assert!(small.disk.flip(&format!("{}/{}", log::DIRECTORY, names.last().unwrap()), 20));
        let store = small.open("a damaged header").expect("it opens");
        small.check(&store, false, "a damaged header").unwrap();
    }
}

/// As when disk.toml comes from another copy of the disk.
#[test]
fn a_log_with_another_secret_is_refused() {
    let small = small();
    let text = String::from_utf8(small.bytes("disk.toml")).unwrap();
    let text = text.replace("secret = \"0", "secret = \"1");
    godrive_disk::write_small(&small.disk, "disk.toml", text.as_bytes()).unwrap();
    assert!(small.open("another secret").is_none());
}

#[test]
fn each_byte_of_a_segment() {
    let small = small();
    let names = small.disk.list(log::DIRECTORY).unwrap();
    let path = format!("{}/{}", log::DIRECTORY, names.last().unwrap());
    let bytes = small.bytes(&path);
    let whole = small.open("undamaged").unwrap();
    small.check(&whole, false, "undamaged").unwrap();
    let last = last_record(&whole);
    drop(whole);
    let (mut refused, mut shorter) = (0, 0);
    // All that the recovery reads of headers; of leaves, zeros and what a checkpoint covers some are enough.
    let is_header = |at: usize| at < 48 || (at % LEAF < 184 && at as u64 >= last.start - 2 * LEAF as u64);
    for at in (0..bytes.len()).filter(|at| is_header(*at) || at % 509 == 0) {
        let context = format!("byte {at} of {path}");
        assert!(small.disk.flip(&path, at as u64));
        match small.open(&context) {
            Some(store) => {
                let of_last = last.contains(&(at as u64));
                small.check(&store, of_last, &context).unwrap();
                shorter += u32::from(of_last && store.row(ChunkId(4)).unwrap().is_none());
            }
            None => refused += 1,
        }
        assert!(small.disk.flip(&path, at as u64));
    }
    assert!(refused > 100 && shorter > 100, "{refused} refused, {shorter} without the last record");
    for length in (0..bytes.len()).filter(|length| length % LEAF < 2 || length % 1021 == 0) {
        let context = format!("{path} cut to {length} bytes");
        let file = small.disk.open(&path, false).unwrap();
        file.set_len(length as u64).unwrap();
        if let Some(store) = small.open(&context) {
            if length as u64 >= last.end {
                small.check(&store, false, &context).unwrap();
            }
            // Whatever is left is a state that was.
            for (chunk, row) in store.page(None, 10).unwrap() {
                assert!(row.version <= small.rows[&chunk.chunk.0].version, "{context}");
            }
        }
        file.set_len(0).unwrap();
        file.write_at(&[&bytes], 0).unwrap();
    }
}

#[test]
fn each_byte_of_the_index() {
    let small = small();
    let bytes = small.bytes(table::FILE);
    let mut wrong = Vec::new();
    let mut refused = 0;
    for (at, _) in bytes.iter().enumerate().filter(|(at, byte)| **byte != 0 || at % 1021 == 0) {
        let context = format!("byte {at} of the index");
        assert!(small.disk.flip(table::FILE, at as u64));
        match small.open(&context) {
            Some(store) => wrong.extend(small.check(&store, false, &context).err()),
            None => refused += 1,
        }
        assert!(small.disk.flip(table::FILE, at as u64));
    }
    assert!(refused > 0);
    assert!(wrong.is_empty(), "{} of {}, {refused} refused: {wrong:#?}", wrong.len(), bytes.len());
}
