//! The program itself, on a real directory.

#![allow(clippy::disallowed_methods, reason = "the test looks at real files")]

use godrive_disk::RealDisk;
use godrive_proto::data::{DeltaRequest, Extent, Fill, Read, ReadRequest};
use godrive_proto::frame::RequestHeader;
use godrive_proto::net::identity::Authority;
use godrive_proto::net::{Endpoint, Expect, Options as Transport, machine};
use godrive_proto::time::Timestamp;
use godrive_proto::{ChunkId, ClusterId, DiskId, Epoch, NodeId, OpId, Role, SessionId, Version, sums};
use godrive_slave::store::{DiskStore, NewDisk, Options, Secret};
use std::io::{BufRead, BufReader, Lines};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

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

/// A slave that was started; killed when the test ends.
struct Running {
    child: Child,
    errors: Lines<BufReader<ChildStderr>>,
}

impl Running {
    fn start(config: &Path) -> Self {
        let program = Command::new(env!("CARGO_BIN_EXE_godrive-slave"))
            .args(["--config", config.to_str().unwrap()])
            .stderr(Stdio::piped())
            .spawn();
        let mut child = program.unwrap();
        let errors = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, errors }
    }

    /// Its next line that has this text.
    fn says(&mut self, text: &str) -> String {
        let mut before = Vec::new();
        for line in self.errors.by_ref() {
            let line = line.unwrap();
            if line.contains(text) {
                return line;
            }
            before.push(line);
        }
        panic!("never said `{text}`: {before:#?}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_cannot_be_opened_leaves_the_others_in_service() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("disk-1"));
    write(&store, 1, 0, b"small");
    let state = store.seal(ChunkId(1), Epoch(2), NOW).unwrap();
    store.install(ChunkId(1), 1 << 20, Epoch(2), state.contents(), NOW).unwrap();
    store.checkpoint(NOW).unwrap();
    drop(store);
    let authority = Authority::create(ClusterId(7), 1_795_000_000).unwrap();
    let identity = authority.issue(Role::Slave, NodeId(1), 1_795_000_000).unwrap();
    std::fs::write(folder.path().join("identity.pem"), identity.to_pem()).unwrap();
    std::fs::write(folder.path().join("file"), "no directory").unwrap();
    std::fs::create_dir(folder.path().join("disk-3")).unwrap();
    let _locked = RealDisk::open(folder.path().join("disk-3")).unwrap();
    let config = folder.path().join("config.toml");
    let configure = |disks: &str| {
        let text = format!("listen = \"127.0.0.1:0\"\nmaster = \"127.0.0.1:1\"\ndisks = [{disks}]\n");
        std::fs::write(&config, text).unwrap();
        config.clone()
    };
    let mut slave = Running::start(&configure("\"disk-1\", \"file/disk-2\", \"disk-3\""));
    for name in ["disk-2", "disk-3"] {
        assert!(slave.says("the disk cannot be used").contains(name));
    }
    let line = slave.says("listening on");
    let address = line.split("address=").nth(1).unwrap().split(' ').next().unwrap();
    let client = authority.issue(Role::Client, NodeId(500), 1_795_000_000).unwrap();
    let local = "127.0.0.1:0".parse().unwrap();
    let client = Endpoint::new(&machine::sockets(), local, &client, &Transport::default()).unwrap();
    let expect = Expect { role: Role::Slave, node: Some(NodeId(1)) };
    let connection = client.connect(address.parse().unwrap(), expect).await.unwrap();
    let request =
        ReadRequest { chunk: ChunkId(1), epoch: Epoch(2), version: Version(1), first_leaf: 0, leaves: 1 };
    let header = RequestHeader::default();
    let reply = connection.call::<Read>(header, &request, &[], Duration::from_secs(20)).await.unwrap();
    assert!(reply.payload.concat().starts_with(b"small"));
    drop(slave);

    let config = configure("\"file/disk-2\", \"disk-3\"");
    let output = run(&["--config", config.to_str().unwrap()]);
    let said = text(&output);
    assert!(!output.status.success() && said.contains("no disk can be used"), "{said}");
    assert!(said.contains("file/disk-2") && said.contains("disk-3 is in use by another process"), "{said}");
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
