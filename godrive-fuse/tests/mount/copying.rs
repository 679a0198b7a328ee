//! copy_file_range: the bytes go from slave to slave, not through the mount.

use crate::cluster::Cluster;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

const MIB: usize = 1 << 20;

fn bytes(len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn copy(from: &File, from_at: i64, to: &File, to_at: i64, len: usize) -> usize {
    let (mut offsets, mut done) = ((from_at, to_at), 0);
    while done < len {
        // SAFETY: both offsets live until the call has returned.
        let copied = unsafe {
            libc::copy_file_range(
                from.as_raw_fd(),
                &mut offsets.0,
                to.as_raw_fd(),
                &mut offsets.1,
                len - done,
                0,
            )
        };
        match copied {
            0 => break,
            copied if copied > 0 => done += copied as usize,
            _ => panic!("{}", std::io::Error::last_os_error()),
        }
    }
    done
}

#[test]
fn a_copy_does_not_pass_the_mount() {
    let cluster = Cluster::start(2);
    let (here, there) = (cluster.mount(1), cluster.mount(2));
    let content = bytes(40 * MIB + 777);
    fs::write(there.join("source"), &content).unwrap();
    let carried = || cluster.account(1, ["payload_bytes_sent", "payload_bytes_received"]).iter().sum::<u64>();
    let before = carried();
    // As cp does it, and with offsets that fit no leaf.
    let copied = Command::new("cp").arg(here.join("source")).arg(here.join("copy")).status().unwrap();
    assert!(copied.success());
    let source = File::open(here.join("source")).unwrap();
    let odd = File::create(here.join("odd")).unwrap();
    assert_eq!(copy(&source, 12_345, &odd, 99, 30 * MIB), 30 * MIB);
    odd.sync_all().unwrap();
    let carried = carried() - before;
    assert!(carried < 2 * MIB as u64, "{carried} bytes through the mount for 70 MiB");
    // Both mounts see the same, this one past its own caches too.
    for mount in [there, here] {
        assert!(fs::read(mount.join("copy")).unwrap() == content);
        let odd = fs::read(mount.join("odd")).unwrap();
        assert!(odd[..99].iter().all(|byte| *byte == 0) && odd[99..] == content[12_345..12_345 + 30 * MIB]);
    }
}

#[test]
fn holes_stay_holes_and_what_is_not_written_yet_is_copied() {
    let cluster = Cluster::start(1);
    let path = cluster.mount(1);
    let source = File::options().read(true).write(true).create_new(true).open(path.join("source")).unwrap();
    let content = bytes(MIB);
    source.write_all_at(&content, 100 << 30).unwrap();
    source.write_all_at(&content, 5 << 30).unwrap();
    source.set_len(200 << 30).unwrap();
    let target = File::create(path.join("target")).unwrap();
    assert_eq!(copy(&source, 0, &target, 0, 200 << 30), 200 << 30);
    let reader = File::open(path.join("target")).unwrap();
    let meta = reader.metadata().unwrap();
    assert_eq!(meta.len(), 200 << 30);
    target.sync_all().unwrap();
    let blocks = fs::metadata(path.join("target")).unwrap().blocks();
    assert!(blocks * 512 < 8 * MIB as u64, "{blocks} blocks");
    let mut piece = vec![1; MIB];
    for (at, expected) in
        [(0, vec![0; MIB]), (5 << 30, content.clone()), (6 << 30, vec![0; MIB]), (100 << 30, content)]
    {
        reader.read_exact_at(&mut piece, at).unwrap();
        assert!(piece == expected, "at {at}");
    }
    // Within one file, within one chunk.
    let file = File::options().read(true).write(true).open(path.join("target")).unwrap();
    assert_eq!(copy(&file, 5 << 30, &file, (5 << 30) + 2 * MIB as i64, MIB), MIB);
    file.read_exact_at(&mut piece, (5 << 30) + 2 * MIB as u64).unwrap();
    assert!(piece == bytes(MIB));
}

#[test]
fn a_copy_goes_on_while_slaves_fail() {
    let cluster = Cluster::start(1);
    let path = cluster.mount(1);
    let content = bytes(64 * MIB);
    fs::write(path.join("source"), &content).unwrap();
    let source = File::open(path.join("source")).unwrap();
    source.sync_all().unwrap();
    let target = File::options().read(true).write(true).create_new(true).open(path.join("target")).unwrap();
    std::thread::scope(|scope| {
        let mut killing = None;
        for piece in 0..64 {
            match piece {
                8 => killing = Some(scope.spawn(|| cluster.kill_node("slave-2"))),
                // The rest certainly meets it.
                40 => killing.take().unwrap().join().unwrap(),
                _ => {}
            }
            assert_eq!(copy(&source, (piece * MIB) as i64, &target, (piece * MIB) as i64, MIB), MIB);
        }
    });
    target.sync_all().unwrap();
    assert!(fs::read(path.join("target")).unwrap() == content);
}
