mod damage;

use super::*;
use crate::core::record::Body;
use godrive_disk::{Faults, SimulatedDisk};
use godrive_proto::time::Timestamp;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const CLUSTER: ClusterId = ClusterId(0xc1);
const TERM: Term = Term(2);

fn record(number: u64) -> Record {
    let label = "x".repeat(number as usize * 7 % 50);
    Record::own(
        Timestamp(number as i64),
        Body::OpenSession { client: godrive_proto::NodeId(number.into()), label },
    )
}

fn disk() -> Arc<SimulatedDisk> {
    Arc::new(SimulatedDisk::new(1 << 30))
}

fn open_small(disk: &Arc<SimulatedDisk>, segment_bytes: u64) -> Result<Log, LogError> {
    Log::open(disk.clone(), "log", CLUSTER, LogOptions { segment_bytes })
}

fn open(disk: &Arc<SimulatedDisk>) -> Result<Log, LogError> {
    open_small(disk, 1 << 20)
}

fn append(log: &mut Log, numbers: std::ops::RangeInclusive<u64>) {
    let records: Vec<Record> = numbers.clone().map(record).collect();
    assert_eq!(log.append(TERM, &records).unwrap().0, *numbers.end());
}

fn numbers(log: &Log, from: u64) -> Vec<u64> {
    let entries: Vec<Entry> = log.entries(LogIndex(from)).map(|entry| entry.unwrap()).collect();
    for entry in &entries {
        assert_eq!((&entry.record, entry.term), (&record(entry.index.0), TERM));
    }
    entries.iter().map(|entry| entry.index.0).collect()
}

fn path(first: u64) -> String {
    format!("log/{first:020}.log")
}

fn contents(disk: &SimulatedDisk, first: u64) -> Vec<u8> {
    let file = disk.open(&path(first), false).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

#[test]
fn what_was_appended_is_read_again() {
    let disk = disk();
    let mut log = open(&disk).unwrap();
    assert_eq!((log.first().0, log.last().0), (1, 0));
    append(&mut log, 1..=3);
    append(&mut log, 4..=9);
    assert_eq!(log.synced().0, 0);
    assert_eq!(log.sync_point().run().unwrap().0, 9);
    assert_eq!(log.synced().0, 9);
    assert_eq!(numbers(&log, 1), (1..=9).collect::<Vec<_>>());
    assert_eq!(numbers(&log, 7), [7, 8, 9]);
    drop(log);
    let mut log = open(&disk).unwrap();
    append(&mut log, 10..=11);
    assert_eq!(numbers(&log, 10), [10, 11]);
}

#[test]
fn segments_follow_each_other_and_are_cut_as_a_whole() {
    let disk = disk();
    let mut log = open_small(&disk, 300).unwrap();
    for number in 1..=40 {
        append(&mut log, number..=number);
    }
    let names = disk.list("log").unwrap();
    assert!(names.len() > 5, "{names:?}");
    assert_eq!(numbers(&log, 1).len(), 40);
    let second = segment::parse_name(&names[1]).unwrap();
    log.cut_below(LogIndex(second.0 - 1)).run().unwrap();
    assert_eq!(log.first().0, 1);
    log.cut_below(LogIndex(20)).run().unwrap();
    assert!((2..=20).contains(&log.first().0));
    log.cut_below(LogIndex(1000)).run().unwrap();
    assert_eq!(disk.list("log").unwrap().len(), 1, "the last stays");
    let first = log.first().0;
    drop(log);
    let log = open_small(&disk, 300).unwrap();
    assert_eq!(numbers(&log, 1), (first..=40).collect::<Vec<_>>());
}

#[test]
fn wherever_a_write_was_torn_the_whole_records_before_remain() {
    let origin = disk();
    let mut log = open(&origin).unwrap();
    append(&mut log, 1..=6);
    let bytes = contents(&origin, 1);
    for length in 0..log.segments[0].end as usize {
        let disk = disk();
        disk.create_directory("log").unwrap();
        disk.open(&path(1), true).unwrap().write_at(&[&bytes[..length]], 0).unwrap();
        let mut log = open(&disk).unwrap();
        let last = log.last().0;
        assert!(last < 6, "cut at {length}");
        assert_eq!(numbers(&log, 1), (1..=last).collect::<Vec<_>>());
        append(&mut log, last + 1..=last + 2);
        drop(log);
        assert_eq!(open(&disk).unwrap().last().0, last + 2, "cut at {length}");
    }
}

/// The sync of a record must not change the file: most of them fall into zeros that were written before.
#[test]
fn records_fall_into_zeros_that_no_restart_takes_for_a_torn_write() {
    let disk = disk();
    let mut log = open_small(&disk, 300 << 10).unwrap();
    append(&mut log, 1..=1);
    let length = contents(&disk, 1).len();
    assert_eq!(length as u64, log.segments[0].end + (256 << 10));
    append(&mut log, 2..=9);
    assert_eq!(contents(&disk, 1).len(), length);
    let end = log.segments[0].end as usize;
    drop(log);
    assert!(contents(&disk, 1)[end..].iter().all(|byte| *byte == 0));
    let mut log = open_small(&disk, 300 << 10).unwrap();
    assert_eq!(contents(&disk, 1).len(), end, "cut, as whatever lies behind the records");
    append(&mut log, 10..=10);
    let mut last = 10;
    while log.segments.len() == 1 {
        assert!(contents(&disk, 1).len() <= 300 << 10 || log.segments[0].zeros_end == log.segments[0].end);
        last += 1;
        append(&mut log, last..=last);
    }
    assert_eq!(
        contents(&disk, 1).len() as u64,
        log.segments[0].end,
        "a segment that is full ends with its records"
    );
    assert_eq!(numbers(&log, 1), (1..=last).collect::<Vec<_>>());
}

#[test]
fn damage_before_records_that_knew_better_is_refused_with_what_to_do() {
    let disk = disk();
    let mut log = open(&disk).unwrap();
    append(&mut log, 1..=5);
    let second = log.segments[0].end;
    append(&mut log, 6..=7);
    log.sync_point().run().unwrap();
    append(&mut log, 8..=8);
    drop(log);
    assert!(disk.flip(&path(1), second + 41));
    let error = open(&disk).err().unwrap();
    assert!(
        matches!(&error, LogError::Damaged { index, witness, at, .. }
        if (index.0, witness.0, *at) == (6, 8, second)),
        "{error}"
    );
    assert!(error.to_string().contains("truncate the file"));
    assert_eq!(disk.list("log").unwrap().len(), 1, "nothing was touched");
    assert!(disk.flip(&path(1), second + 41));
    assert_eq!(open(&disk).unwrap().last().0, 8);
}

/// A record that is whole and at the wrong place, as an old block is that a disk has put there.
#[test]
fn a_record_counts_only_at_its_place() {
    for misplaced in [1, 3] {
        let disk = disk();
        let mut log = open(&disk).unwrap();
        append(&mut log, 1..=1);
        let end = log.segments[0].end;
        drop(log);
        let mut bytes = Vec::new();
        let header = RecordHeader { index: LogIndex(misplaced), term: TERM, synced: LogIndex(0) };
        write_record(&mut bytes, CLUSTER, header, &record(misplaced).encode().unwrap());
        disk.open(&path(1), false).unwrap().write_at(&[&bytes], end).unwrap();
        let log = open(&disk).unwrap();
        assert_eq!((log.last().0, numbers(&log, 1)), (1, vec![1]), "record {misplaced} in place of 2");
    }
}

#[test]
fn damage_in_what_was_never_synced_is_a_torn_tail() {
    let disk = disk();
    let mut log = open(&disk).unwrap();
    append(&mut log, 1..=2);
    log.sync_point().run().unwrap();
    let unsynced = log.segments[0].end;
    append(&mut log, 3..=6);
    drop(log);
    assert!(disk.flip(&path(1), unsynced + 1));
    let log = open(&disk).unwrap();
    assert_eq!(log.last().0, 2);
    assert_eq!(contents(&disk, 1).len() as u64, unsynced);
}

#[test]
fn a_damaged_middle_segment_or_a_missing_one_is_refused() {
    let disk = disk();
    let mut log = open_small(&disk, 300).unwrap();
    for number in 1..=20 {
        append(&mut log, number..=number);
    }
    let second = log.segments[1].first.0;
    drop(log);
    assert!(disk.flip(&path(second), 72 + 50));
    assert!(matches!(open(&disk), Err(LogError::Damaged { index, .. }) if index.0 == second));
    assert!(disk.flip(&path(second), 72 + 50));
    assert!(disk.flip(&path(second), 20));
    assert!(matches!(open(&disk), Err(LogError::Header { .. })));
    disk.remove(&path(second)).unwrap();
    assert!(matches!(open(&disk), Err(LogError::Missing { expected, .. }) if expected.0 == second));
}

#[test]
fn a_log_of_another_cluster_or_a_later_format_is_refused() {
    let disk = disk();
    let mut log = open(&disk).unwrap();
    append(&mut log, 1..=1);
    drop(log);
    let other = Log::open(disk.clone(), "log", ClusterId(9), LogOptions::default());
    assert!(matches!(other, Err(LogError::Cluster { found: CLUSTER, .. })));
    let mut bytes = segment_header(CLUSTER, LogIndex(1));
    bytes[8] = 2;
    let sum = xxhash_rust::xxh3::xxh3_64_with_seed(&bytes[..64], CLUSTER.0 as u64);
    bytes[64..].copy_from_slice(&sum.to_le_bytes());
    disk.open(&path(1), false).unwrap().write_at(&[&bytes], 0).unwrap();
    assert!(matches!(open(&disk), Err(LogError::Version { version: 2, .. })));
}

/// The system then calls the next sync a success, and what was not written is still to be read, until the power fails.
#[test]
fn a_restart_after_a_failed_sync_has_what_the_disk_has() {
    let disk = disk();
    let mut log = open(&disk).unwrap();
    append(&mut log, 1..=2);
    log.sync_point().run().unwrap();
    append(&mut log, 3..=4);
    disk.set_faults(Faults { syncs: true, ..Faults::default() });
    log.sync_point().run().unwrap_err();
    disk.set_faults(Faults::default());
    drop(log);
    disk.kill();
    let mut log = open(&disk).unwrap();
    assert_eq!(numbers(&log, 1), [1, 2]);
    append(&mut log, 3..=3);
    log.sync_point().run().unwrap();
    drop(log);
    disk.crash(&mut SmallRng::seed_from_u64(1));
    assert_eq!(numbers(&open(&disk).unwrap(), 1), [1, 2, 3]);
}

#[test]
fn after_a_failed_sync_nothing_is_accepted() {
    let disk = disk();
    let mut log = open(&disk).unwrap();
    append(&mut log, 1..=1);
    disk.set_faults(Faults { syncs: true, ..Faults::default() });
    let point = log.sync_point();
    assert!(matches!(point.run(), Err(LogError::Io { .. })));
    disk.set_faults(Faults::default());
    assert!(matches!(point.run(), Err(LogError::Failed)));
    assert!(matches!(log.append(TERM, &[record(2)]), Err(LogError::Failed)));
    assert_eq!(log.synced().0, 0);
}

#[test]
fn a_full_disk_refuses_and_recovers() {
    let disk = disk();
    let mut log = open(&disk).unwrap();
    append(&mut log, 1..=1);
    disk.set_capacity(4096);
    let big = Record::own(
        Timestamp(0),
        Body::OpenSession { client: godrive_proto::NodeId(0), label: "x".repeat(400_000) },
    );
    assert!(log.append(TERM, &[big]).is_err_and(|error| error.is_full_disk()) && !log.has_failed());
    disk.set_capacity(1 << 30);
    append(&mut log, 2..=3);
    drop(log);
    assert_eq!(numbers(&open(&disk).unwrap(), 1), [1, 2, 3]);
}

/// Its maker was killed between syncing the segment and syncing its name.
#[test]
fn records_in_a_segment_whose_name_was_not_durable_survive() {
    let made = disk();
    let mut log = open(&made).unwrap();
    append(&mut log, 1..=1);
    log.sync_point().run().unwrap();
    let segment = contents(&made, 1);
    for seed in 0..20 {
        let disk = disk();
        disk.create_directory("log").unwrap();
        disk.sync_directory("").unwrap();
        let file = disk.open(&path(1), true).unwrap();
        file.write_at(&[&segment], 0).unwrap();
        file.sync().unwrap();
        let mut log = open(&disk).unwrap();
        append(&mut log, 2..=3);
        log.sync_point().run().unwrap();
        drop(log);
        disk.crash(&mut SmallRng::seed_from_u64(seed));
        assert_eq!(numbers(&open(&disk).unwrap(), 1), [1, 2, 3], "seed {seed}");
    }
}

/// Crashes at random points of appending, syncing, rolling and cutting: what was synced is there, what is there
/// is what was appended, and the log goes on.
#[test]
fn synced_records_survive_every_crash() {
    let (mut torn, mut lost) = (0, 0);
    for seed in 0..400 {
        println!("seed {seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let disk = disk();
        let (mut synced, mut cut) = (0, 1);
        for _ in 0..6 {
            let mut log = open_small(&disk, 600).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            let last = log.last().0;
            assert!(last >= synced, "seed {seed}: {last} < {synced}");
            synced = last;
            assert!(log.first().0 <= cut, "seed {seed}");
            let from = log.first().0;
            assert_eq!(numbers(&log, 1), (from..=last).collect::<Vec<_>>(), "seed {seed}");
            disk.stop_after(rng.random_range(1..40));
            while synced < last + 60 {
                let records: Vec<Record> =
                    (0..rng.random_range(1..6)).map(|more| record(log.last().0 + 1 + more)).collect();
                if log.append(TERM, &records).is_err() {
                    break;
                }
                synced = synced.max(log.synced().0);
                if rng.random_bool(0.5) {
                    match log.sync_point().run() {
                        Ok(index) => synced = index.0,
                        Err(_) => break,
                    }
                }
                if synced > 0 && rng.random_bool(0.2) {
                    cut = cut.max(rng.random_range(1..=synced));
                    let _crashed = log.cut_below(LogIndex(cut)).run();
                }
            }
            lost += u64::from(log.last().0 > log.synced().0);
            let before = log.last().0;
            drop(log);
            match rng.random_bool(0.7) {
                true => disk.crash(&mut rng),
                false => disk.kill(),
            }
            torn += u64::from(before > synced);
        }
    }
    assert!(torn > 100 && lost > 100, "the test crashed too gently: {torn} {lost}");
}
