//! Files of every size, from nothing to a tebibyte of holes.

use crate::cluster::Cluster;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

const CHUNK: u64 = 16 << 20;
const TIB: u64 = 1 << 40;
const GIB: u64 = 1 << 30;

fn bytes(len: u64) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

fn open(path: &Path) -> File {
    OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).unwrap()
}

fn seek(file: &File, from: u64, whence: i32) -> Option<u64> {
    // SAFETY: the descriptor is open.
    let found = unsafe { libc::lseek(file.as_raw_fd(), from as i64, whence) };
    u64::try_from(found).ok()
}

#[test]
fn nothing_a_chunk_and_a_byte_more() {
    let cluster = Cluster::start(2);
    for len in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK] {
        let name = format!("of-{len}");
        let (here, there) = (cluster.mount(1).join(&name), cluster.mount(2).join(&name));
        let all = bytes(len);
        fs::write(&here, &all).unwrap();
        assert_eq!(fs::metadata(&there).unwrap().len(), len);
        assert!(fs::read(&there).unwrap() == all, "{len} bytes");
        let file = open(&there);
        file.write_at(b"behind", len).unwrap();
        file.set_len(len.saturating_sub(1)).unwrap();
        file.set_len(len).unwrap();
        let mut expected = all;
        expected.last_mut().into_iter().for_each(|last| *last = 0);
        assert!(fs::read(&here).unwrap() == expected, "{len} bytes, the last one cut off and made anew");
    }
}

#[test]
fn a_tebibyte_of_holes() {
    let cluster = Cluster::start(2);
    let (here, there) = (cluster.mount(1).join("sparse"), cluster.mount(2).join("sparse"));
    let file = open(&here);
    file.set_len(TIB).unwrap();
    assert_eq!(fs::metadata(&here).unwrap().blocks(), 0);
    let places = [0, 100 * GIB - 3, TIB / 2 + 5, TIB - 4];
    for place in places {
        file.write_all_at(b"here", place).unwrap();
    }
    file.sync_all().unwrap();
    let seen = fs::metadata(&there).unwrap();
    assert_eq!(seen.len(), TIB);
    assert!((1..=8 * 8).contains(&seen.blocks()), "{} blocks", seen.blocks());
    let other = open(&there);
    let mut at = 0;
    for place in places {
        let data = seek(&other, at, libc::SEEK_DATA).unwrap();
        assert!(data <= place && place - data < CHUNK, "data at {data}, written was at {place}");
        at = seek(&other, place, libc::SEEK_HOLE).unwrap();
        let mut four = [0; 4];
        other.read_exact_at(&mut four, place).unwrap();
        assert_eq!(&four, b"here", "at {place}");
        other.read_exact_at(&mut four, (place + TIB / 4) % (TIB - 4)).unwrap();
        assert_eq!(four, [0; 4]);
    }
    assert_eq!((at, seek(&other, at, libc::SEEK_DATA)), (TIB, None));
    other.set_len(100 * GIB).unwrap();
    file.set_len(TIB).unwrap();
    let mut six = [1; 6];
    file.read_exact_at(&mut six, 100 * GIB - 3).unwrap();
    assert_eq!(&six, b"her\0\0\0", "what was cut off does not come back");
    assert_eq!(file.write_at(b"x", (1 << 62) + 1).unwrap_err().raw_os_error(), Some(libc::EFBIG));
    drop((file, other));
    fs::remove_file(&here).unwrap();
    assert!(!there.exists());
}
