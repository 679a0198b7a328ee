//! A small log in which each byte is damaged in turn, and which is cut off at each length.
//!
//! Of the last record damage and a write that a crash interrupted look alike, until its end is noted: the log opens without it.
//! Who saw its index says so then, and the master serves nothing (`tests/namespace.rs`).

use super::*;
use godrive_disk::read_small;

const LAST: u64 = 9;
const SEGMENT: u64 = 500;

/// The segments of a log, in which each record was on stable storage before the next was written.
fn files() -> Vec<(String, Vec<u8>)> {
    written(false).0
}

/// The same with a note of its end behind them.
fn noted_files() -> Vec<(String, Vec<u8>)> {
    let (mut files, disk) = written(true);
    let path = "log/synced".to_owned();
    let bytes = read_small(&*disk, &path, 1 << 20).unwrap();
    files.push((path, bytes));
    files
}

fn written(noted: bool) -> (Vec<(String, Vec<u8>)>, Arc<SimulatedDisk>) {
    let disk = disk();
    let mut log = open_small(&disk, SEGMENT).unwrap();
    for number in 1..=LAST {
        append(&mut log, number..=number);
        log.sync_point().run().unwrap();
        if noted {
            assert_eq!(log.note().run().unwrap().0, number);
        }
    }
    drop(log);
    let names = disk.list("log").unwrap();
    let segments: Vec<_> = names.iter().filter_map(|name| segment::parse_name(name)).collect();
    assert!(segments.len() > 1, "{names:?}");
    (segments.iter().map(|first| (path(first.0), contents(&disk, first.0))).collect(), disk)
}

fn disk_with(files: &[(String, Vec<u8>)]) -> Arc<SimulatedDisk> {
    let disk = disk();
    disk.create_directory("log").unwrap();
    for (path, bytes) in files {
        disk.open(path, true).unwrap().write_at(&[bytes], 0).unwrap();
    }
    disk
}

/// Where the records end, in the last segment.
fn end_of_last(files: &[(String, Vec<u8>)]) -> usize {
    open_small(&disk_with(files), SEGMENT).unwrap().segments.last().unwrap().end as usize
}

fn begin_of_last(files: &[(String, Vec<u8>)]) -> usize {
    end_of_last(files) - format::record_bytes(record(LAST).encode().unwrap().len())
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

/// The note stands: nothing synced is missing from what opens, whatever is damaged, also in the note itself.
fn whole_or_refused(files: &[(String, Vec<u8>)], context: &str) -> bool {
    let last = last_of(files, context);
    assert!(last.is_none_or(|last| last == LAST), "{context}: the log ends at {last:?}");
    last.is_none()
}

#[test]
fn each_byte_of_a_log_whose_end_is_noted() {
    let files = noted_files();
    let mut refused = vec![0; files.len()];
    for file in 0..files.len() {
        for at in 0..files[file].1.len() {
            let mut damaged = files.clone();
            damaged[file].1[at] ^= 1 << (at % 8);
            let context = format!("byte {at} of {}", files[file].0);
            refused[file] += u32::from(whole_or_refused(&damaged, &context));
        }
    }
    assert_eq!(refused.pop(), Some(0), "a damaged note refuses nothing");
    assert!(refused.iter().all(|refused| *refused > 50), "{refused:?}");
}

#[test]
fn each_length_of_a_log_whose_end_is_noted_and_each_file_missing() {
    let files = noted_files();
    let (note, last) = (files.len() - 1, files.len() - 2);
    let end = end_of_last(&files);
    for file in 0..files.len() {
        for length in (0..files[file].1.len()).step_by(if file == note { 16 } else { 1 }) {
            let mut cut = files.clone();
            cut[file].1.truncate(length);
            let context = format!("{} cut to {length} bytes", files[file].0);
            // Behind the last record are zeros.
            let nothing_lost = file == note || (file == last && length >= end);
            assert_ne!(whole_or_refused(&cut, &context), nothing_lost, "{context}");
        }
        let mut missing = files.clone();
        missing.remove(file);
        // A log may begin with any segment: whether that follows the state's last record is seen where that is opened.
        if file > 0 {
            let context = format!("without {}", files[file].0);
            assert_ne!(whole_or_refused(&missing, &context), file == note, "{context}");
        }
    }
}

#[test]
fn a_log_that_ends_before_its_note_is_left_as_it_is_and_goes_on_without_the_note() {
    let mut files = noted_files();
    let last = files.len() - 2;
    let (begin, length) = (begin_of_last(&files), files[last].1.len());
    files[last].1[begin] ^= 1;
    let disk = disk_with(&files);
    let error = open_small(&disk, SEGMENT).err().unwrap();
    assert!(matches!(error, LogError::Short { last: LogIndex(8), noted: LogIndex(LAST), .. }), "{error}");
    assert!(error.to_string().contains("remove the file `synced`"), "{error}");
    assert_eq!(read_small(&*disk, &files[last].0, 1 << 20).unwrap().len(), length, "nothing was touched");
    disk.remove("log/synced").unwrap();
    let mut log = open_small(&disk, SEGMENT).unwrap();
    assert_eq!(log.last().0, LAST - 1);
    append(&mut log, LAST..=LAST);
    log.sync_point().run().unwrap();
    log.note().run().unwrap();
    drop(log);
    assert_eq!(open_small(&disk, SEGMENT).unwrap().last().0, LAST);
}
