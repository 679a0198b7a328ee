//! A small log in which each byte is damaged in turn, and which is cut off at each length.
//!
//! Of the last record, that no later one knows to be on stable storage, damage and a write that a crash interrupted look
//! alike: the log opens without it. Who saw its index says so then, and the master serves nothing (`tests/namespace.rs`).

use super::*;

const LAST: u64 = 9;
const SEGMENT: u64 = 500;

/// The files of a log of several segments, in which each record was on stable storage before the next was written.
fn files() -> Vec<(String, Vec<u8>)> {
    let disk = disk();
    let mut log = open_small(&disk, SEGMENT).unwrap();
    for number in 1..=LAST {
        append(&mut log, number..=number);
        log.sync_point().run().unwrap();
    }
    drop(log);
    let names = disk.list("log").unwrap();
    assert!(names.len() > 1, "{names:?}");
    let read = |name: &String| {
        let first = segment::parse_name(name).unwrap();
        (path(first.0), contents(&disk, first.0))
    };
    names.iter().map(read).collect()
}

fn disk_with(files: &[(String, Vec<u8>)]) -> Arc<SimulatedDisk> {
    let disk = disk();
    disk.create_directory("log").unwrap();
    for (path, bytes) in files {
        disk.open(path, true).unwrap().write_at(&[bytes], 0).unwrap();
    }
    disk
}

/// Where the last record begins, in the last file.
fn begin_of_last(files: &[(String, Vec<u8>)]) -> usize {
    let log = open_small(&disk_with(files), SEGMENT).unwrap();
    let body = record(LAST).encode().unwrap().len();
    log.segments.last().unwrap().end as usize - format::record_bytes(body)
}

/// Opens a damaged log. None: it is refused and says what to do.
fn last_of(files: &[(String, Vec<u8>)], context: &str) -> Option<u64> {
    let disk = disk_with(files);
    match open_small(&disk, SEGMENT) {
        Ok(log) => {
            let last = log.last().0;
            assert_eq!(numbers(&log, 1), (1..=last).collect::<Vec<_>>(), "{context}");
            Some(last)
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("backup") || text.contains("this master"), "{context}: {text}");
            None
        }
    }
}

#[test]
fn each_byte_of_a_log() {
    let files = files();
    let begin = begin_of_last(&files);
    let (mut refused, mut shorter) = (0, 0);
    for file in 0..files.len() {
        for at in 0..files[file].1.len() {
            let mut damaged = files.clone();
            damaged[file].1[at] ^= 1 << (at % 8);
            let context = format!("byte {at} of {}", files[file].0);
            match last_of(&damaged, &context) {
                None => refused += 1,
                Some(LAST) => {}
                Some(last) => {
                    let of_last = file + 1 == files.len() && at >= begin;
                    assert!(of_last && last == LAST - 1, "{context}: the log ends at {last}");
                    shorter += 1;
                }
            }
        }
    }
    assert!(refused > 500 && shorter >= 40, "{refused} refused, {shorter} without the last record");
}

#[test]
fn each_length_of_a_log() {
    let files = files();
    let mut shorter = 0;
    for file in 0..files.len() {
        for length in 0..files[file].1.len() {
            let mut cut = files.clone();
            cut[file].1.truncate(length);
            let context = format!("{} cut to {length} bytes", files[file].0);
            let last = last_of(&cut, &context);
            if file + 1 < files.len() {
                assert!(last.is_none_or(|last| last == LAST), "{context}: the log ends at {last:?}");
            } else {
                shorter += u32::from(last.is_some_and(|last| last < LAST));
            }
        }
    }
    assert!(shorter > 40, "{shorter}");
}
