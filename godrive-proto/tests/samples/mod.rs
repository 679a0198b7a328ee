//! One representative request and reply of every operation, with every field set to something of its own.

use godrive_proto::admin::*;
use godrive_proto::cluster::*;
use godrive_proto::data::*;
use godrive_proto::frame::{self, Class, ReplyHeader, RequestHeader};
use godrive_proto::lease::*;
use godrive_proto::locks::*;
use godrive_proto::meta::*;
use godrive_proto::time::Timestamp;
use godrive_proto::{
    BootId, ChunkId, ClusterId, Code, Digest, DiskId, Epoch, Fault, Ino, LeaseId, LogIndex, NodeId, OpId,
    Operation, Role, SessionId, Term, Version,
};

#[derive(Clone)]
#[allow(dead_code)] // Each test that includes this module reads what it needs.
pub struct Sample {
    pub code: u16,
    pub name: &'static str,
    /// Whole frames: length, header, body.
    pub request: Vec<u8>,
    pub reply: Vec<u8>,
}

pub fn all() -> Vec<Sample> {
    let mut samples = [meta(), lease(), locks(), data(), cluster(), admin()].concat();
    samples.push(refused());
    samples
}

fn sample<O: Operation>(request: O::Request, reply: O::Reply) -> Vec<Sample> {
    let request_header = RequestHeader {
        code: O::CODE,
        feature_level: 1,
        request: 2,
        session: SessionId(3),
        sequence: 4,
        answered_below: 5,
        term: Term(6),
        seen: LogIndex(7),
        deadline_ms: 8000,
        class: Class::Repair,
        grant: vec![9],
        payload_bytes: 10,
    };
    let reply_header = ReplyHeader { fault: None, term: Term(11), index: LogIndex(12), payload_bytes: 13 };
    let request = round_trip(&request_header, request);
    let reply = round_trip(&reply_header, reply);
    vec![Sample { code: O::CODE, name: O::NAME, request, reply }]
}

/// Encodes, and checks that decoding gives the same back.
fn round_trip<H, B>(header: &H, body: B) -> Vec<u8>
where
    H: serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug,
    B: serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let bytes = frame::encode(header, &body).unwrap();
    let (decoded_header, rest) = frame::decode_header::<H>(&bytes[4..]).unwrap();
    let decoded = frame::decode_body::<B>(rest).unwrap();
    assert_eq!(format!("{decoded_header:?}{decoded:?}"), format!("{header:?}{body:?}"));
    bytes
}

/// A refusal has no body; shown with `Ping`.
fn refused() -> Sample {
    let fault = Fault::at(Code::MemberFailed, NodeId(1), "slave 1 is gone");
    let header = ReplyHeader { fault: Some(fault), term: Term(1), index: LogIndex(2), payload_bytes: 0 };
    let request = sample::<Ping>((), ()).remove(0).request;
    Sample { code: Ping::CODE, name: "Ping(refused)", request, reply: round_trip(&header, ()) }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn view(ino: u64) -> InodeView {
    let attr = Attr {
        ino: Ino(ino),
        kind: Kind::File,
        mode: 0o4755,
        nlink: 2,
        uid: 1000,
        gid: 1001,
        rdev: 3,
        size: 1 << 40,
        blocks: 99,
        chunk_bytes: 16 << 20,
        atime: Timestamp(-1),
        mtime: Timestamp(2),
        ctime: Timestamp(3),
        btime: Timestamp(4),
        change: 5,
        xattrs: true,
        trim_pending: true,
    };
    let lease = Lease { ino: Ino(ino), id: LeaseId(6), mode: Mode::Exclusive, range: ByteRange::WHOLE };
    InodeView { attr, lease: Some(lease) }
}

fn contents(version: u64) -> Contents {
    Contents { version: Version(version), digest: Digest(0x0123_4567_89ab_cdef) }
}

fn member(number: u16) -> Member {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], number));
    Member { node: NodeId(number.into()), disk: DiskId(u128::from(number) + 1), address }
}

fn layout() -> Layout {
    Layout {
        index: 7,
        chunk: ChunkRef { id: ChunkId(8), layout: LayoutTag::Replicated, chunk_bytes: 1 << 20, birth: 9 },
        epoch: Epoch(10),
        members: vec![member(1), member(2)],
        held: contents(11),
        stable: contents(12),
    }
}

fn changes() -> AttrChanges {
    AttrChanges {
        mode: Some(0o644),
        uid: Some(1),
        gid: None,
        atime: Some(SetTime::Now),
        mtime: Some(SetTime::At(Timestamp(5))),
        ctime: Some(Timestamp(6)),
    }
}

fn meta() -> Vec<Sample> {
    let (parent, entry) = (view(1), view(2));
    let new_node = MakeNodeRequest {
        parent: Ino(1),
        name: name("node"),
        node: NewNode::Symlink(b"target".to_vec()),
        mode: 0o777.into(),
        uid: 1,
        gid: 2,
    };
    let chunk = ChunkState {
        index: 1,
        chunk: ChunkId(2),
        epoch: Epoch(3),
        held: contents(4),
        stable: true,
        used_bytes: 4096,
    };
    let commit = CommitRequest {
        ino: Ino(2),
        size: Some(77),
        changes: changes(),
        chunks: vec![chunk],
        trimmed: true,
        sync: true,
        keeps: Mode::Shared,
    };
    let listed = DirectoryEntry {
        position: 3,
        name: name("entry"),
        ino: Ino(2),
        kind: Kind::Directory,
        view: Some(view(2)),
    };
    let create = CreateRequest {
        parent: Ino(1),
        name: name("created"),
        mode: 0o600.into(),
        uid: 1,
        gid: 2,
        exclusive: true,
        for_writing: true,
    };
    let step = Step::Unlink {
        request: UnlinkRequest { parent: Ino(1), name: name("gone"), directory: true },
        ino: Ino(2),
        at: Timestamp(300),
    };
    let rename = RenameRequest {
        parent: Ino(1),
        name: name("old"),
        new_parent: Ino(2),
        new_name: name("new"),
        mode: RenameMode::Exchange,
    };
    [
        sample::<Lookup>(
            LookupRequest { parent: Ino(1), name: name("looked up") },
            LookedUp { parent: parent.clone(), entry: Some(entry.clone()) },
        ),
        sample::<ReadDirectory>(
            ReadDirectoryRequest { directory: Ino(1), after: 2, max_entries: 3, views: true },
            DirectoryPage { directory: parent.clone(), parent: Ino(1), entries: vec![listed], end: true },
        ),
        sample::<ReadSymlink>(Ino(3), Target { view: entry.clone(), target: b"target".to_vec() }),
        sample::<ReadXattrs>(
            Ino(3),
            Xattrs { view: entry.clone(), all: vec![(b"user.a".to_vec(), b"value".to_vec())] },
        ),
        sample::<StatFs>((), FsStat { total_bytes: 1, free_bytes: 2, inodes: 3 }),
        sample::<GetAttr>(Ino(300), view(1)),
        sample::<Create>(
            create,
            Created { parent: parent.clone(), entry: entry.clone(), existed: true, layout: Some(layout()) },
        ),
        sample::<Restore>(
            RestoreRequest { ino: Ino(7), parent: Ino(1), name: Name(b"back".to_vec()) },
            Linked { parent: parent.clone(), entry: entry.clone() },
        ),
        sample::<MakeNode>(new_node, Linked { parent: parent.clone(), entry: entry.clone() }),
        sample::<Link>(
            LinkRequest { ino: Ino(2), parent: Ino(1), name: name("link") },
            Linked { parent: parent.clone(), entry: entry.clone() },
        ),
        sample::<Unlink>(
            UnlinkRequest { parent: Ino(1), name: name("gone"), directory: true },
            Unlinked { parent: parent.clone(), entry: entry.clone() },
        ),
        sample::<Rename>(
            rename,
            Renamed { parent, new_parent: view(4), entry: entry.clone(), other: Some(view(5)) },
        ),
        sample::<SetAttr>(SetAttrRequest { ino: Ino(2), changes: changes() }, entry.clone()),
        sample::<Truncate>(
            TruncateRequest { ino: Ino(2), size: 1234, kill_privileges: true },
            Truncated { view: entry.clone(), trim: Some(layout()) },
        ),
        sample::<Commit>(commit, Committed { view: entry.clone() }),
        sample::<SetXattr>(
            SetXattrRequest {
                ino: Ino(2),
                name: b"user.a".to_vec(),
                value: b"v".to_vec(),
                mode: SetXattrMode::Replace,
            },
            entry.clone(),
        ),
        sample::<RemoveXattr>(RemoveXattrRequest { ino: Ino(2), name: b"user.a".to_vec() }, entry),
        sample::<Accessed>(vec![(Ino(1), Timestamp(2))], ()),
        sample::<Barrier>((), ()),
        sample::<Batch>(BatchRequest { steps: vec![step] }, Batched { views: vec![view(1), view(2)] }),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn locks() -> Vec<Sample> {
    let range = ByteRange { start: 3, end: LOCKS_END };
    let lock = Lock { kind: LockKind::Write, range, pid: 5, handle: 6 };
    let request = LockRequest { ino: Ino(1), owner: LockOwner(2), lock };
    let owned = OwnerLocks { ino: Ino(1), owner: LockOwner(2), locks: vec![lock] };
    [
        sample::<SetLock>(request, Some(Locked { version: 8, locks: vec![lock] })),
        sample::<Unlock>(
            UnlockRequest { ino: Ino(1), owner: LockOwner(2), range },
            Locked { version: 9, locks: Vec::new() },
        ),
        sample::<TestLock>(request, Some(InTheWay { lock, own: true })),
        sample::<DeclareLocks>(vec![owned.clone()], vec![(Ino(1), LockOwner(2))]),
        sample::<AwaitLock>(AwaitRequest { request, wait_ms: 7 }, ()),
        sample::<OwnLocks>(Some((Ino(1), LockOwner(2))), vec![owned]),
    ]
    .concat()
}

fn lease() -> Vec<Sample> {
    let opened = OpenedSession {
        session: SessionId(1),
        timing: LeaseTiming::default(),
        parameters: ClusterParameters { chunk_bytes: 1 << 24, replicas: 3, min_replicas: 2 },
        now: Timestamp(4),
    };
    let release = Release { ino: Ino(1), id: LeaseId(2), keeps: Some(Mode::Shared), open: true };
    let report = ReportRequest {
        chunk: ChunkId(1),
        epoch: Epoch(2),
        problem: Problem::Corrupt(NodeId(3)),
        detail: "leaf 4".into(),
    };
    let range = LayoutRange { first: 1, count: 2 };
    [
        sample::<OpenSession>(OpenSessionRequest { label: "host:/mnt".into() }, opened),
        sample::<Renew>(
            RenewRequest { errors_after_close: 1, dirty_bytes: 2 },
            Renewed { now: Timestamp(1), must_resume: true, errors_pending: 2 },
        ),
        sample::<Resume>(
            ResumeRequest { exclusive: vec![(Ino(1), LeaseId(2))], open: vec![Ino(3)], last: true },
            Resumed { lost: vec![Ino(4)] },
        ),
        sample::<CloseSession>((), ()),
        sample::<GiveUp>(
            Ino(300),
            Some(Lease { ino: Ino(300), id: LeaseId(2), mode: Mode::Shared, range: ByteRange::WHOLE }),
        ),
        sample::<Ended>(Term(3), Some(LogIndex(300))),
        sample::<Slaves>(
            (),
            vec![Slave { node: NodeId(3), address: std::net::SocketAddr::from(([127, 0, 0, 1], 7401)) }],
        ),
        sample::<TakeOver>(
            TakeOverRequest { from: 300 },
            TakenOver {
                timing: LeaseTiming::default(),
                parameters: ClusterParameters { chunk_bytes: 1 << 24, replicas: 3, min_replicas: 2 },
                now: Timestamp(1),
                orphans: vec![Ino(9)],
            },
        ),
        sample::<Acquire>(
            AcquireRequest { inodes: vec![Ino(1)], mode: Mode::Exclusive, layout: Some(range) },
            Acquired { views: vec![view(1)], layout: vec![layout()] },
        ),
        sample::<GetLayout>(LayoutRequest { ino: Ino(1), range }, vec![layout()]),
        sample::<OpenChunks>(OpenChunksRequest { ino: Ino(1), indexes: vec![2, 300] }, vec![layout()]),
        sample::<Releases>(ReleaseRequest { leases: vec![release], closed_orphans: vec![Ino(9)] }, ()),
        sample::<Report>(report, layout()),
        sample::<GetLayouts>(
            LayoutsRequest { inodes: vec![Ino(1), Ino(300)], range },
            vec![(Ino(1), vec![layout()]), (Ino(300), vec![])],
        ),
        sample::<Own>(
            OwnRequest { directory: Ino(1), also: vec![Ino(2), Ino(300)] },
            Owned { directory: view(1), also: vec![view(2)] },
        ),
        sample::<Recall>(
            RecallRequest { ino: Ino(1), id: LeaseId(2), may_keep: Some(Mode::Shared) },
            release,
        ),
        sample::<Ask>(Ino(300), Some(view(1).attr)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn data() -> Vec<Sample> {
    let delta = DeltaRequest {
        chunk: ChunkId(1),
        chunk_bytes: 1 << 20,
        disk: DiskId(9),
        epoch: Epoch(2),
        base: Version(3),
        op: OpId { session: SessionId(4), sequence: 5 },
        extents: vec![
            Extent { offset: 0, len: 6, fill: Fill::Bytes },
            Extent { offset: 8192, len: 4096, fill: Fill::Hole },
        ],
        sums: vec![u64::MAX],
        chain: vec![member(2)],
        sync: true,
        mtime: Timestamp(7),
    };
    let applied = Applied { contents: contents(4), stable: true, used_bytes: 8 };
    [
        sample::<Delta>(delta.clone(), applied),
        sample::<Sync>(
            SyncRequest { chunk: ChunkId(1), epoch: Epoch(2), version: Version(3), chain: vec![member(3)] },
            applied,
        ),
        sample::<Read>(
            ReadRequest { chunk: ChunkId(1), epoch: Epoch(2), version: Version(3), first_leaf: 4, leaves: 5 },
            Proof { groups: vec![0, 1], leaves: vec![u64::MAX, 0] },
        ),
        sample::<CopyRange>(
            CopyRangeRequest {
                delta,
                source: Source {
                    chunk: ChunkId(5),
                    chunk_bytes: 2 << 20,
                    epoch: Epoch(1),
                    contents: contents(6),
                    members: vec![member(1)],
                    offset: 12,
                },
            },
            applied,
        ),
        sample::<GetSums>(
            SumsRequest { chunk: ChunkId(1) },
            Sums { chunk_bytes: 1 << 20, epoch: Epoch(2), contents: contents(3), leaves: vec![4, 0] },
        ),
        sample::<Fetch>(
            FetchRequest { chunk: ChunkId(1), version: Version(2), leaves: vec![3, 4] },
            vec![5, 0],
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn disk() -> DiskState {
    DiskState { disk: DiskId(1), total_bytes: 2, free_bytes: 3, chunks: 4, health: DiskHealth::Full }
}

fn scrub() -> ScrubState {
    ScrubState { disk: DiskId(1), pass: 2, percent: 3, bad_leaves: 4 }
}

fn replica() -> ReplicaState {
    ReplicaState {
        chunk: ChunkId(1),
        disk: DiskId(2),
        epoch: Epoch(3),
        sealed: Epoch(4),
        contents: contents(5),
        stable: true,
        boot: BootId(6),
        last_op: OpId { session: SessionId(7), sequence: 8 },
        used_bytes: 9,
    }
}

fn cluster() -> Vec<Sample> {
    let register = RegisterRequest {
        cluster: ClusterId(1),
        boot: BootId(2),
        address: "[2001:db8::1]:7001".parse().unwrap(),
        domain: "rack1/host7".into(),
        disks: vec![disk()],
    };
    let heartbeat = HeartbeatRequest {
        slowest_sync_ms: vec![(DiskId(1), 700)],
        disks: vec![disk()],
        scrubbed_leaves: 1,
        bad_leaves: 2,
        errors: 3,
        stable: vec![(ChunkId(4), Epoch(5), contents(6))],
        scrub: vec![scrub()],
    };
    let install = InstallRequest {
        chunk: ChunkId(1),
        chunk_bytes: 1 << 20,
        disk: DiskId(2),
        epoch: Epoch(3),
        contents: contents(4),
    };
    let copy = CopyRequest {
        chunk: ChunkId(1),
        chunk_bytes: 1 << 20,
        disk: DiskId(2),
        source: member(3),
        expect: Some(contents(4)),
        epoch: Epoch(5),
        keep_aside: true,
        into_reserve: false,
    };
    [
        sample::<Register>(register, Registered { heartbeat_every_ms: 1000 }),
        sample::<Inventory>(InventoryPage { replicas: vec![replica()], last: true }, ()),
        sample::<Heartbeat>(heartbeat, ()),
        sample::<Seal>(SealRequest { chunk: ChunkId(1), epoch: Epoch(2) }, replica()),
        sample::<Install>(install, ()),
        sample::<Copy>(copy, contents(6)),
        sample::<Delete>(DeleteRequest { chunks: vec![(ChunkId(1), Epoch(2))] }, ()),
        sample::<Quarantine>(QuarantineRequest { chunks: vec![ChunkId(1)] }, ()),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn admin() -> Vec<Sample> {
    let node = NodeStatus {
        node: NodeId(1),
        address: "127.0.0.1:7001".parse().unwrap(),
        domain: "rack1".into(),
        state: "alive".into(),
        last_heard_ms: 2,
        disks: vec![disk()],
        replicas: 3,
        errors: 4,
        bad_leaves: 5,
        scrubbed_leaves: 6,
        intent: "draining".into(),
        to_move: 7,
        places: vec![DiskPlaces { disk: DiskId(8), replicas: 9, draining: true }],
        scrub: vec![scrub()],
    };
    let movement = Movement { queued: 1, active: 2, done: 3, bytes: 4, bytes_per_s: 5 };
    let session = SessionStatus {
        session: SessionId(1),
        label: "host:/mnt".into(),
        last_renewed_ms: 2,
        shared_leases: 3,
        exclusive_leases: 4,
        dirty_bytes: 5,
        errors_after_close: 6,
    };
    let status = Status {
        cluster: ClusterId(1),
        term: Term(2),
        index: LogIndex(3),
        parameters: ClusterParameters { chunk_bytes: 1 << 24, replicas: 3, min_replicas: 2 },
        nodes: vec![node],
        sessions: vec![session],
        chunks: ChunkHealth { total: 1, healthy: 2, under_replicated: 3, unavailable: 4, quarantined: 5 },
        inodes: 6,
        orphans: 7,
        repair_queued: 8,
        repair_active: 9,
        repaired: 10,
        reclaim_queued: 11,
        warnings: vec!["a sentence".into()],
        trash: TrashStatus { keep_s: 86_400, entries: 3, bytes: 4096, oldest: Some(Timestamp(5)) },
        repair: movement,
        drain: Movement { queued: 6, ..movement },
        rebalance: Movement { queued: 7, ..movement },
        retired: vec![NodeId(8)],
    };
    let intend = IntendRequest { node: NodeId(1), disk: Some(DiskId(2)), intention: Intention::Recommission };
    let intended = Intended { notes: vec!["a note".into()] };
    let trashed = TrashEntry {
        ino: Ino(6),
        kind: Kind::File,
        mode: 0o644,
        uid: 1,
        gid: 2,
        size: 3,
        removed: Timestamp(5),
        parent: Ino(1),
        name: Name(b"a".to_vec()),
        path: Some(b"a".to_vec()),
    };
    let damaged = DamagedChunk {
        chunk: ChunkId(301),
        damage: Damage::Rotten,
        ino: Ino(5),
        index: 2,
        chunk_bytes: 4096,
        members: vec![NodeId(1), NodeId(2)],
        trashed: true,
        path: Some(b"d/a".to_vec()),
    };
    let join = JoinRequest {
        token_id: 1,
        secret: vec![2; 16],
        role: Role::Slave,
        certificate_request: vec![0x30, 0],
    };
    let joined =
        Joined { cluster: ClusterId(1), node: NodeId(2), certificate: vec![0x30, 3], ca: vec![0x30, 4] };
    [
        sample::<ListTrash>(
            ListTrashRequest { after: Some((Timestamp(5), Ino(6))), limit: 7 },
            TrashPage { entries: vec![trashed], end: true },
        ),
        sample::<EmptyTrash>(vec![Ino(1), Ino(2)], 2),
        sample::<ListDamaged>(
            ListDamagedRequest { after: ChunkId(300), limit: 7 },
            DamagedPage { chunks: vec![damaged], next: Some(ChunkId(301)) },
        ),
        sample::<Join>(join, joined),
        sample::<MakeToken>(
            MakeTokenRequest { role: Role::Client, valid_for_s: 3600, uses: 2 },
            "gd1.AAAA".into(),
        ),
        sample::<GetStatus>((), status),
        sample::<Ping>((), ()),
        sample::<Intend>(intend, intended),
    ]
    .into_iter()
    .flatten()
    .collect()
}
