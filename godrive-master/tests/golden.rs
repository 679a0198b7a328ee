//! The bytes of records, stored values and log segments, per version. Data on people's disks has them: a change here
//! is a new version with a migration, never an edit of the file.
//!
//! A failure prints what was found; a new line belongs into the file once its version is released.

use godrive_disk::{Disk, SimulatedDisk};
use godrive_master::core::record::{Body, Mutation, Origin, Placed, Purpose, Record, Reply, Taken};
use godrive_master::core::state::values::*;
use godrive_master::log::{Log, LogOptions};
use godrive_proto::data::{ChunkState, Contents, LayoutTag, Member};
use godrive_proto::lease::{ClusterParameters, Mode};
use godrive_proto::meta::*;
use godrive_proto::time::Timestamp;
use godrive_proto::*;
use std::fmt::Write;
use std::sync::Arc;

fn name(text: &str) -> Name {
    Name(text.into())
}

fn member() -> Member {
    Member { node: NodeId(0x11), disk: DiskId(0x22), address: ([10, 1, 2, 3], 7000).into() }
}

fn contents() -> Contents {
    Contents { version: Version(3), digest: Digest(0xd1) }
}

fn cluster() -> (ClusterId, ClusterParameters) {
    (ClusterId(0xc1), ClusterParameters { chunk_bytes: 1 << 24, replicas: 3, min_replicas: 2 })
}

fn mutations() -> Vec<(&'static str, Mutation)> {
    let (parent, mode, uid, gid) = (Ino(1), NewMode::from(0o644), 1000, 100);
    let (exclusive, for_writing, directory) = (true, true, false);
    let create = CreateRequest { parent, name: name("a"), mode, uid, gid, exclusive, for_writing };
    let node = |node| MakeNodeRequest { parent, name: name("n"), node, mode, uid, gid };
    let unlink = UnlinkRequest { parent, name: name("a"), directory };
    let (new_parent, new_name) = (Ino(2), name("b"));
    let rename = RenameRequest { parent, name: name("a"), new_parent, new_name, mode: RenameMode::Exchange };
    let changes = AttrChanges {
        mode: Some(0o600),
        uid: Some(1),
        gid: None,
        atime: Some(SetTime::Now),
        mtime: Some(SetTime::At(Timestamp(-2))),
        ctime: Some(Timestamp(9)),
    };
    let state = ChunkState {
        index: 1,
        chunk: ChunkId(5),
        epoch: Epoch(2),
        held: contents(),
        stable: true,
        used_bytes: 4096,
    };
    let (ino, size) = (Ino(7), Some(99));
    let commit = CommitRequest {
        ino,
        size,
        changes,
        chunks: vec![state],
        trimmed: true,
        sync: true,
        keeps: Mode::Shared,
    };
    let xattr =
        SetXattrRequest { ino, name: b"user.a".to_vec(), value: b"v".to_vec(), mode: SetXattrMode::Create };
    let elsewhere = vec![SessionId(4)];
    let gone = UnlinkRequest { parent, name: name("g"), directory: true };
    let step = Step::Unlink { request: gone, ino, at: Timestamp(300) };
    let taken = Taken { step, open_elsewhere: elsewhere.clone() };
    vec![
        ("Create", Mutation::Create { request: create, members: vec![member()] }),
        ("MakeNode directory", Mutation::MakeNode(node(NewNode::Directory))),
        ("MakeNode device", Mutation::MakeNode(node(NewNode::BlockDevice(5)))),
        ("MakeNode symlink", Mutation::MakeNode(node(NewNode::Symlink(b"t".to_vec())))),
        ("Link", Mutation::Link(LinkRequest { ino, parent, name: name("l") })),
        ("Unlink", Mutation::Unlink { request: unlink, open_elsewhere: elsewhere.clone() }),
        ("Rename", Mutation::Rename { request: rename, open_elsewhere: elsewhere }),
        ("SetAttr", Mutation::SetAttr(SetAttrRequest { ino, changes })),
        ("Truncate", Mutation::Truncate(TruncateRequest { ino, size: 3, kill_privileges: true })),
        ("Commit", Mutation::Commit(commit)),
        ("SetXattr", Mutation::SetXattr(xattr)),
        ("RemoveXattr", Mutation::RemoveXattr(RemoveXattrRequest { ino, name: b"user.a".to_vec() })),
        ("Batch", Mutation::Batch(vec![taken])),
        ("Restore", Mutation::Restore(RestoreRequest { ino, parent, name: name("r") })),
    ]
}

fn bodies() -> Vec<(&'static str, Body)> {
    let (id, parameters) = cluster();
    let (chunk, epoch, session, ino, node) = (ChunkId(5), Epoch(2), SessionId(4), Ino(7), NodeId(0x11));
    let placed = vec![Placed { index: 1, members: vec![member()] }];
    let (members, contents) = (vec![member()], contents());
    let installed = Body::EpochInstalled { chunk, epoch, members, contents, stable: true, used_bytes: 4096 };
    let address = member().address;
    let (domain, disks, boot) = ("r1".into(), vec![DiskId(0x22)], BootId(0xb0));
    let registered = Body::NodeRegistered { node, address, domain, disks, boot };
    vec![
        ("Bootstrap", Body::Bootstrap { cluster: id, parameters, feature_level: 1 }),
        ("TermStarted", Body::TermStarted { term: Term(2) }),
        ("OpenSession", Body::OpenSession { client: node, label: "h:/m".into() }),
        ("CloseSession", Body::CloseSession),
        ("SessionRevoked", Body::SessionRevoked { session }),
        ("OpenChunks", Body::OpenChunks { ino, indexes: vec![0, 1], placed }),
        ("ChunksClosed", Body::ChunksClosed { session, ino }),
        ("OrphanKept", Body::OrphanKept { ino, sessions: vec![session] }),
        ("OrphansClosed", Body::OrphansClosed { session, inodes: vec![ino] }),
        ("EpochPending", Body::EpochPending { chunk, epoch }),
        ("EpochInstalled", installed),
        ("ChunksStable", Body::ChunksStable { chunks: vec![(chunk, epoch, contents)] }),
        ("ChunkQuarantined", Body::ChunkQuarantined { chunk }),
        ("ChunksForgotten", Body::ChunksForgotten { chunks: vec![chunk] }),
        ("NodeRegistered", registered),
        (
            "TokenMade",
            Body::TokenMade { role: Role::Slave, secret_hash: [9; 32], expires: Timestamp(8), uses: 2 },
        ),
        ("TokenUsed", Body::TokenUsed { token: 1, node }),
        ("IdsSkipped", Body::IdsSkipped { count: 1 << 20 }),
        ("SessionTakenOver", Body::SessionTakenOver { session, from: 300 }),
        ("TrashKept", Body::TrashKept { keep_s: 86_400, min_age_s: 10 }),
        ("TrashDropped", Body::TrashDropped { inodes: vec![ino] }),
        (
            "NodeIntended",
            Body::NodeIntended { node, purpose: Purpose::Decommission, disks: vec![DiskId(0x22)] },
        ),
        ("NodeRetired", Body::NodeRetired { node }),
        ("ChunksGivenUp", Body::ChunksGivenUp { session, ino }),
    ]
}

fn values() -> Vec<(&'static str, bytes::Bytes)> {
    let (id, parameters) = cluster();
    let (ino, kind, time) = (Ino(7), Kind::File, Timestamp(-3));
    let counts =
        Counts { inodes: 1, orphans: 2, chunks: 3, quarantined: 4, deleted: 5, sessions: 6, used_bytes: 7 };
    let meta = Meta {
        applied: LogIndex(1),
        time,
        term: Term(2),
        cluster: Some(Cluster { id, parameters, feature_level: 1 }),
        last_ino: Ino(3),
        last_chunk: ChunkId(4),
        last_session: SessionId(5),
        last_token: 6,
        counts,
    };
    let inode = Inode {
        kind,
        mode: 0o644,
        nlink: 1,
        uid: 2,
        gid: 3,
        rdev: 4,
        size: 5,
        used_bytes: 6,
        chunk_bytes: 7,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        change: 8,
        birth: 9,
        parent: Ino(10),
        subtree: 11,
        next_position: 12,
        xattrs: 13,
        xattr_bytes: 14,
        xattr_list_bytes: 15,
        trim_pending: true,
    };
    let chunk = Chunk {
        ino,
        index: 1,
        references: 1,
        chunk_bytes: 1 << 24,
        layout: LayoutTag::Replicated,
        birth: 2,
        epoch: Epoch(3),
        pending: Some(Epoch(4)),
        members: vec![member()],
        held: contents(),
        held_at: LogIndex(10),
        stable: contents(),
        open_by: Some(SessionId(5)),
        unsettled: true,
        used_bytes: 6,
        quarantined: true,
    };
    let slot = Slot { chunk: chunk.reference(ChunkId(9)) };
    let session = Session { client: NodeId(1), label: "h".into(), opened: time, kept_from: 2, highest: 3 };
    let node = Node {
        address: member().address,
        domain: "r".into(),
        disks: vec![DiskId(0x22)],
        boot: BootId(0xb0),
        booted_at: LogIndex(4),
    };
    let token = Token { role: Role::Client, secret_hash: [1; 32], expires: time, uses_left: 2 };
    let intent = Intent { purpose: Purpose::Retired, disks: vec![DiskId(0x22)] };
    let deleted = Deleted { epoch: Epoch(1), members: vec![member()], time };
    let batched = Batched { views: vec![inode.view(ino)] };
    let answers: [Result<Reply, Fault>; 3] = [
        Ok(Reply::View(inode.view(ino))),
        Err(Fault::new(Code::NotEmpty, "it is not")),
        Ok(Reply::Batched(batched)),
    ];
    vec![
        ("Meta", meta.encode().unwrap()),
        ("Inode", inode.encode().unwrap()),
        ("Dentry", Dentry { ino, kind, position: 3 }.encode().unwrap()),
        ("Entry", Entry { name: name("e"), ino, kind }.encode().unwrap()),
        ("Trash", Trash { keep_s: 86_400, min_age_s: 10, entries: 3, bytes: 4096 }.encode().unwrap()),
        (
            "Trashed",
            Trashed { removed: time, parent: Ino(1), name: name("t"), bytes: 4096 }.encode().unwrap(),
        ),
        ("Slot", slot.encode().unwrap()),
        ("Chunk", chunk.encode().unwrap()),
        ("Deleted", deleted.encode().unwrap()),
        ("Session", session.encode().unwrap()),
        ("Node", node.encode().unwrap()),
        ("Token", token.encode().unwrap()),
        ("Intent", intent.encode().unwrap()),
        ("Answer", answers[0].encode().unwrap()),
        ("Answer fault", answers[1].encode().unwrap()),
        ("Answer batched", answers[2].encode().unwrap()),
    ]
}

fn segment_and_note() -> (Vec<u8>, Vec<u8>) {
    let disk = Arc::new(SimulatedDisk::new(1 << 20));
    let mut log = Log::open(disk.clone(), "log", cluster().0, LogOptions::default()).unwrap();
    log.append(Term(2), &[Record::own(Timestamp(1), Body::CloseSession)]).unwrap();
    log.sync_point().run().unwrap();
    log.append(Term(2), &[Record::own(Timestamp(1), Body::TermStarted { term: Term(3) })]).unwrap();
    log.note().run().unwrap();
    drop(log);
    // Takes away the zeros that were written ahead.
    Log::open(disk.clone(), "log", cluster().0, LogOptions::default()).unwrap();
    let file = disk.open("log/00000000000000000001.log", false).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    let mut note = vec![0; 48];
    disk.open("log/synced", false).unwrap().read_at(&mut note, 0).unwrap();
    (bytes, note)
}

#[test]
fn bytes_on_disk_do_not_change() {
    let mut found = String::new();
    let mut line = |kind: &str, what: &str, bytes: &[u8]| {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(found, "{kind} {what}: {hex}").unwrap();
    };
    let origin = Origin { session: SessionId(4), sequence: 300, answered_below: 299 };
    let mutations = mutations().into_iter().map(|(what, mutation)| (what, Body::Mutation(mutation)));
    for (what, body) in bodies().into_iter().chain(mutations) {
        let record = Record { time: Timestamp(1_000), origin, body };
        let bytes = record.encode().unwrap();
        assert_eq!(Record::decode(&bytes).unwrap(), record);
        line("record", what, &bytes);
    }
    for (what, bytes) in values() {
        line("value", what, &bytes);
    }
    let (segment, note) = segment_and_note();
    line("log", "segment", &segment);
    line("log", "note", &note);
    let golden = include_str!("golden/version-1.txt");
    assert!(found == golden, "the bytes changed; found:\n{found}");
}
