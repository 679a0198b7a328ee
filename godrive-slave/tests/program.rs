//! The program itself, on a real directory.

#![allow(clippy::disallowed_methods, reason = "the test looks at real files")]

use godrive_disk::RealDisk;
use godrive_proto::data::{DeltaRequest, Extent, Fill};
use godrive_proto::net::identity::Authority;
use godrive_proto::time::Timestamp;
use godrive_proto::{ChunkId, ClusterId, DiskId, Epoch, NodeId, OpId, Role, SessionId, Version, sums};
use godrive_slave::store::{DiskStore, NewDisk, Options, Secret};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

const NOW: Timestamp = Timestamp(1);

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_godrive-slave")).args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn options() -> Options {
    Options { reserve_bytes: Some(0), ..Options::new(ClusterId(7)) }
}

fn open(path: &Path) -> DiskStore {
    DiskStore::open(
        Arc::new(RealDisk::open(path).unwrap()),
        options(),
        NewDisk { id: DiskId(3), secret: Secret(4) },
        NOW,
    )
    .unwrap()
}

fn write(store: &DiskStore, chunk: u64, base: u64, bytes: &[u8]) {
    let pieces = sums::pieces(0, bytes.len() as u32);
    let request = DeltaRequest {
        chunk: ChunkId(chunk),
        chunk_bytes: 1 << 20,
        disk: DiskId(3),
        epoch: Epoch(1),
        base: Version(base),
        op: OpId { session: SessionId(1), sequence: base + 1 },
        extents: vec![Extent { offset: 0, len: bytes.len() as u32, fill: Fill::Bytes }],
        sums: pieces
            .map(|(leaf, start, end)| sums::piece(ChunkId(chunk), leaf, &bytes[start..end]))
            .collect(),
        chain: Vec::new(),
        sync: false,
        mtime: NOW,
    };
    store.delta(&request, bytes).unwrap();
}

#[test]
fn the_offline_check_finds_a_flipped_byte_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk-1");
    let store = open(&disk);
    for base in 0..3 {
        write(&store, 1, base, &vec![base as u8 + 1; 300_000]);
        write(&store, 2, base, b"small");
    }
    store.checkpoint(NOW).unwrap();
    write(&store, 2, 3, b"behind the checkpoint");
    drop(store);
    let identity = Authority::create(ClusterId(7), 1_795_000_000).unwrap();
    let identity = identity.issue(Role::Slave, NodeId(1), 1_795_000_000).unwrap().to_pem();
    std::fs::write(folder.path().join("identity.pem"), identity).unwrap();
    let config = folder.path().join("config.toml");
    std::fs::write(&config, "").unwrap();
    let config = config.to_str().unwrap();

    let output = run(&["fsck", "--config", config]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(
        text(&output).contains("2 replicas (0 kept aside, 0 unfinished copies), 75 leaves verified, 0 bad"),
        "{}",
        text(&output)
    );

    // The leaves of the last big delta, found by their bytes.
    let mut segments: Vec<_> =
        std::fs::read_dir(disk.join("segments")).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.sort();
    let segment = segments.first().unwrap();
    let bytes = std::fs::read(segment).unwrap();
    let at = bytes.iter().rposition(|byte| *byte == 3).unwrap() - 5000;
    let file = std::fs::OpenOptions::new().write(true).open(segment).unwrap();
    file.write_all_at(&[0x77], at as u64).unwrap();
    let before = std::fs::read(disk.join("index.redb")).unwrap();
    let output = run(&["fsck", "--config", config]);
    assert!(!output.status.success());
    assert!(
        text(&output).contains("75 leaves verified, 1 bad") && text(&output).contains("chunk 1: leaf 72"),
        "{}",
        text(&output)
    );
    assert!(before == std::fs::read(disk.join("index.redb")).unwrap());
    assert_eq!(std::fs::read_dir(disk.join("segments")).unwrap().count(), segments.len());
}

#[test]
fn space_of_superseded_leaves_goes_back_to_the_file_system() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for base in 0..20 {
        write(&store, 1, base, &vec![base as u8; 1 << 20]);
    }
    store.checkpoint(NOW).unwrap();
    let segments = std::fs::read_dir(folder.path().join("segments")).unwrap();
    let used: u64 = segments.map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512).sum();
    assert!(used <= (1 << 20) + (256 << 10), "{used} bytes for 1 MiB");
}

#[test]
fn mistakes_on_the_command_line_say_what_to_do() {
    let output = run(&["--print-config"]);
    assert!(output.status.success());
    assert!(text(&output).contains("scrub_bytes_per_s"));
    let output = run(&[]);
    assert!(!output.status.success() && text(&output).contains("--help shows examples"), "{}", text(&output));
    let output = run(&["--config", "/nonexistent/slave.toml"]);
    assert!(
        text(&output).contains("/nonexistent/slave.toml") && text(&output).contains("--print-config"),
        "{}",
        text(&output)
    );
    let output = run(&["--join", "nonsense", "--dir", "/nonexistent"]);
    assert!(!output.status.success() && text(&output).contains("token"), "{}", text(&output));
}

#[test]
fn only_its_owner_reads_the_secret_of_a_disk() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()));
    let file = folder.path().join("disk.toml");
    assert!(std::fs::read_to_string(&file).unwrap().contains("secret"));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o077, 0);
}
