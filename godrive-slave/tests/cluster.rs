//! Slaves over real QUIC on loopback, with a hand-written client and master.

#[path = "cluster/guards.rs"]
mod guards;

use bytes::Bytes;
use godrive_disk::{Disk, SimulatedDisk};
use godrive_proto::cluster::*;
use godrive_proto::data::*;
use godrive_proto::frame::{Class, ReplyHeader, RequestHeader};
use godrive_proto::lease::{Problem, Report, ReportRequest};
use godrive_proto::limits::LEAF_BYTES;
use godrive_proto::net::identity::{Authority, Identity};
use godrive_proto::net::machine::{self, MachineClock, MachineSockets};
use godrive_proto::net::{Connection, Endpoint, Expect, Options};
use godrive_proto::proof::{self, Wanted};
use godrive_proto::time::Timestamp;
use godrive_proto::{
    ChunkId, ClusterId, Code, Digest, DiskId, Epoch, Fault, NodeId, OpId, Operation, Role, SessionId, Term,
    Version, sums,
};
use godrive_slave::{Config, Slave, World};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const CHUNK_BYTES: u32 = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(10);
const NOW_S: i64 = 1_795_000_000;
const LEAF: usize = LEAF_BYTES as usize;

struct Cluster {
    authority: Authority,
    client: Endpoint,
    master: FakeMaster,
    slaves: Vec<Option<Slave>>,
    disks: Vec<SimulatedDisk>,
    members: Vec<Member>,
    scrub_bytes_per_s: u64,
}

/// A master that registers slaves, keeps what they say, and can send commands.
struct FakeMaster {
    endpoint: Endpoint,
    heard: Arc<Mutex<Heard>>,
}

#[derive(Default)]
struct Heard {
    registered: Vec<(RegisterRequest, Connection)>,
    inventory: Vec<ReplicaState>,
    inventories: usize,
    heartbeats: Vec<HeartbeatRequest>,
    reports: Vec<ReportRequest>,
    /// Registrations are refused, and counted.
    away: bool,
    refused: usize,
}

fn local() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn endpoint(identity: &Identity) -> Endpoint {
    Endpoint::new(&machine::sockets(), local(), identity, &Options::default()).unwrap()
}

impl FakeMaster {
    fn start(identity: &Identity) -> Self {
        let endpoint = endpoint(identity);
        let heard = Arc::new(Mutex::new(Heard::default()));
        let (accepting, all) = (endpoint.clone(), heard.clone());
        tokio::spawn(async move {
            while let Some(connection) = accepting.accept().await {
                tokio::spawn(Self::serve(connection, all.clone()));
            }
        });
        Self { endpoint, heard }
    }

    async fn serve(connection: Connection, heard: Arc<Mutex<Heard>>) {
        while let Some(incoming) = connection.accept().await {
            let header = ReplyHeader { term: Term(1), ..ReplyHeader::default() };
            match incoming.header.code {
                Register::CODE if heard.lock().away => {
                    heard.lock().refused += 1;
                    incoming.fail(header, Code::NotReady.into()).await.unwrap();
                }
                Register::CODE => {
                    let request = incoming.decode::<Register>().unwrap();
                    heard.lock().registered.push((request, connection.clone()));
                    let reply = Registered { heartbeat_every_ms: 20 };
                    incoming.reply::<Register>(header, &reply, &[]).await.unwrap();
                }
                Inventory::CODE => {
                    let page = incoming.decode::<Inventory>().unwrap();
                    {
                        let mut heard = heard.lock();
                        heard.inventory.extend(page.replicas);
                        heard.inventories += usize::from(page.last);
                    }
                    incoming.reply::<Inventory>(header, &(), &[]).await.unwrap();
                }
                Heartbeat::CODE => {
                    heard.lock().heartbeats.push(incoming.decode::<Heartbeat>().unwrap());
                    incoming.reply::<Heartbeat>(header, &(), &[]).await.unwrap();
                }
                Report::CODE => {
                    heard.lock().reports.push(incoming.decode::<Report>().unwrap());
                    incoming.fail(header, Code::Unavailable.into()).await.unwrap();
                }
                code => panic!("unexpected {code:#06x}"),
            }
        }
    }

    /// The latest connection of a slave.
    fn link(&self, address: SocketAddr) -> Connection {
        let heard = self.heard.lock();
        let mut found = heard.registered.iter().rev().filter(|(request, _)| request.address == address);
        found.next().expect("registered").1.clone()
    }

    async fn command<O: Operation>(
        &self,
        to: SocketAddr,
        term: u64,
        request: &O::Request,
    ) -> Result<O::Reply, Fault> {
        let header = RequestHeader { term: Term(term), class: Class::Repair, ..RequestHeader::default() };
        self.link(to).call::<O>(header, request, &[], DEADLINE).await.map(|reply| reply.body)
    }
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

impl Cluster {
    async fn start(count: usize) -> Self {
        let authority = Authority::create(ClusterId(7), NOW_S).unwrap();
        let client = endpoint(&authority.issue(Role::Client, NodeId(500), NOW_S).unwrap());
        let master = FakeMaster::start(&authority.issue(Role::Master, NodeId(100), NOW_S).unwrap());
        let disks = (0..count).map(|_| SimulatedDisk::new(1 << 30)).collect();
        let (slaves, members) = (Vec::new(), Vec::new());
        let mut cluster =
            Self { authority, client, master, slaves, disks, members, scrub_bytes_per_s: 1 << 30 };
        for at in 0..count {
            cluster.slaves.push(None);
            cluster.start_slave(at).await;
        }
        cluster
    }

    async fn start_slave(&mut self, at: usize) {
        let node = NodeId(1 + at as u128);
        let config = Config {
            listen: local(),
            master: self.master.endpoint.local_address(),
            reserve_bytes: Some(0),
            scrub_bytes_per_s: self.scrub_bytes_per_s,
            ..Config::default()
        };
        let world = World {
            disks: vec![Arc::new(self.disks[at].clone())],
            sockets: Arc::new(MachineSockets),
            clock: Arc::new(MachineClock),
            seed: 10 + at as u64,
            identity: self.authority.issue(Role::Slave, node, NOW_S).unwrap(),
            transport_seed: None,
        };
        let before = self.master.heard.lock().inventories;
        let slave = Slave::start(config, world).await.unwrap();
        let address = slave.address();
        self.slaves[at] = Some(slave);
        until("the slave registers and lists its replicas", || self.master.heard.lock().inventories > before)
            .await;
        let disk = {
            let heard = self.master.heard.lock();
            let of = heard.registered.iter().rev().find(|(request, _)| request.address == address).unwrap();
            of.0.disks[0].disk
        };
        let member = Member { node, disk, address };
        match self.members.get_mut(at) {
            Some(known) => *known = member,
            None => self.members.push(member),
        }
    }

    async fn to(&self, at: usize) -> Connection {
        let member = self.members[at];
        let expect = Expect { role: Role::Slave, node: Some(member.node) };
        self.client.connect(member.address, expect).await.unwrap()
    }

    async fn delta(&self, chain: &[usize], delta: &DeltaRequest, payload: &[u8]) -> Result<Applied, Fault> {
        let first = self.members[chain[0]];
        let rest = chain[1..].iter().map(|at| self.members[*at]).collect();
        let request = DeltaRequest { disk: first.disk, chain: rest, ..delta.clone() };
        let payload = [Bytes::copy_from_slice(payload)];
        let call = self
            .to(chain[0])
            .await
            .call::<Delta>(RequestHeader::default(), &request, &payload, DEADLINE)
            .await;
        call.map(|reply| reply.body)
    }

    async fn read(
        &self,
        at: usize,
        epoch: u64,
        version: u64,
        first_leaf: u32,
        leaves: u32,
    ) -> Result<Vec<u8>, Fault> {
        let request = ReadRequest {
            chunk: ChunkId(1),
            epoch: Epoch(epoch),
            version: Version(version),
            first_leaf,
            leaves,
        };
        let reply = self.to(at).await.call::<Read>(RequestHeader::default(), &request, &[], DEADLINE).await?;
        Ok(reply.payload.concat())
    }
}

fn delta(epoch: u64, base: u64, offset: u32, payload: &[u8]) -> DeltaRequest {
    let pieces = sums::pieces(offset, payload.len() as u32);
    DeltaRequest {
        chunk: ChunkId(1),
        chunk_bytes: CHUNK_BYTES,
        disk: DiskId(0),
        epoch: Epoch(epoch),
        base: Version(base),
        op: OpId { session: SessionId(3), sequence: base + 1 },
        extents: vec![Extent { offset, len: payload.len() as u32, fill: Fill::Bytes }],
        sums: pieces.map(|(leaf, start, end)| sums::piece(ChunkId(1), leaf, &payload[start..end])).collect(),
        chain: Vec::new(),
        sync: false,
        mtime: Timestamp(1),
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, Fault>) -> Code {
    result.unwrap_err().code
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_write_goes_down_the_chain_and_small_changes_stay_small() {
    let cluster = Cluster::start(3).await;
    let chain = [0, 1, 2];
    let big: Vec<u8> = (0..200_000u32).map(|at| (at / 7) as u8).collect();
    let applied = cluster.delta(&chain, &delta(1, 0, 5, &big), &big).await.unwrap();
    assert_eq!(applied.contents.version, Version(1));
    assert_eq!(applied.used_bytes as usize, 49 * LEAF);
    assert!(!applied.stable);
    let before: Vec<_> = cluster.disks.iter().map(|disk| disk.counters()).collect();
    let small = DeltaRequest { sync: true, ..delta(1, 1, 10_000, b"hello") };
    let applied = cluster.delta(&chain, &small, b"hello").await.unwrap();
    assert!(applied.stable);
    for (disk, before) in cluster.disks.iter().zip(before) {
        let now = disk.counters();
        assert!(now.written_bytes - before.written_bytes <= 3 * LEAF as u64, "{before:?} {now:?}");
    }
    for at in chain {
        let bytes = cluster.read(at, 1, 2, 0, 49).await.unwrap();
        assert_eq!(&bytes[10_000..10_005], b"hello");
        assert_eq!(bytes[5..10_000], big[..9_995]);
        assert_eq!(bytes[10_005..200_005], big[10_000..]);
    }
    // The same operation again is answered alike, another on the old base is refused.
    assert_eq!(cluster.delta(&chain, &small, b"hello").await.unwrap(), applied);
    let other = DeltaRequest { op: OpId { session: SessionId(4), sequence: 2 }, ..small.clone() };
    assert_eq!(code(cluster.delta(&chain, &other, b"hello").await), Code::WrongVersion);
    // Bytes that do not match their sums are refused and applied nowhere.
    assert_eq!(code(cluster.delta(&chain, &delta(1, 2, 0, b"right"), b"wrong").await), Code::Corrupt);
    for at in chain {
        cluster.read(at, 1, 2, 0, 1).await.unwrap();
    }
    // What became stable is reported.
    let is_told = || {
        let heard = cluster.master.heard.lock();
        let told = heard.heartbeats.iter().flat_map(|beat| &beat.stable);
        told.filter(|(chunk, _, contents)| *chunk == ChunkId(1) && *contents == applied.contents).count() >= 3
    };
    until("all three tell the master", is_told).await;
}

/// Chunk 1 lies on slaves 0 and 1; chunk 2 is written on a chain that begins with one of them, and on one that does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_range_is_copied_between_slaves() {
    let mut cluster = Cluster::start(4).await;
    let bytes: Vec<u8> = (0..300_000u32).map(|at| (at / 5) as u8 | 1).collect();
    let written = cluster.delta(&[0, 1], &delta(1, 0, 8192, &bytes), &bytes).await.unwrap();
    let copy = |chain: [usize; 2], base: u64, from: u32, to: u32, len: u32| {
        let target = delta(1, base, to, &[]);
        CopyRangeRequest {
            delta: DeltaRequest {
                chunk: ChunkId(2),
                disk: cluster.members[chain[0]].disk,
                extents: vec![Extent { offset: to, len, fill: Fill::Bytes }],
                sums: Vec::new(),
                chain: vec![cluster.members[chain[1]]],
                ..target
            },
            source: Source {
                chunk: ChunkId(1),
                chunk_bytes: CHUNK_BYTES,
                epoch: Epoch(1),
                contents: written.contents,
                members: vec![cluster.members[0], cluster.members[1]],
                offset: from,
            },
        }
    };
    let ask = async |cluster: &Cluster, at: usize, request: &CopyRangeRequest| {
        let slave = cluster.to(at).await;
        let reply = slave.call::<CopyRange>(RequestHeader::default(), request, &[], DEADLINE).await;
        reply.map(|reply| reply.body)
    };
    let expected: Vec<u8> = [vec![0; 8192], bytes.clone()].concat();
    for (chain, base, from, to, len) in
        [([1, 2], 0, 0, 0, 120_000), ([2, 1], 1, 100_000, 5, 150_001), ([2, 1], 2, 8192, 500_000, 300_000)]
    {
        let request = copy(chain, base, from, to, len);
        let applied = ask(&cluster, chain[0], &request).await.unwrap();
        assert_eq!(applied.contents.version, Version(base + 1));
        // The same again is answered alike.
        assert_eq!(ask(&cluster, chain[0], &request).await.unwrap(), applied);
        for at in chain {
            let (first, last) = (to / LEAF_BYTES, (to + len).div_ceil(LEAF_BYTES));
            let request = ReadRequest {
                chunk: ChunkId(2),
                epoch: Epoch(1),
                version: Version(base + 1),
                first_leaf: first,
                leaves: last - first,
            };
            let slave = cluster.to(at).await;
            let read = slave.call::<Read>(RequestHeader::default(), &request, &[], DEADLINE);
            let wanted = Wanted {
                chunk: ChunkId(2),
                chunk_bytes: CHUNK_BYTES,
                digest: applied.contents.digest,
                first_leaf: first,
                leaves: last - first,
            };
            let reply = read.await.unwrap();
            let runs = proof::verify(&wanted, &reply.body, &reply.payload).unwrap();
            let holes = runs.iter().filter(|run| run.bytes.is_none()).map(|run| run.leaves).sum::<u32>();
            assert_eq!(holes, if base == 0 { 2 } else { 0 }, "what was a hole is one");
            let all: Vec<u8> = runs
                .iter()
                .flat_map(|run| match &run.bytes {
                    Some(bytes) => bytes.to_vec(),
                    None => vec![0; run.leaves as usize * LEAF],
                })
                .collect();
            let start = (to - first * LEAF_BYTES) as usize;
            assert!(
                all[start..start + len as usize] == expected[from as usize..(from + len) as usize],
                "copy {base} at {at}"
            );
        }
    }
    // Another version than the source has, an epoch that is over, and a source that is gone: nothing is applied.
    let mut old = copy([2, 1], 3, 0, 0, 100);
    old.source.contents.version = Version(9);
    assert_eq!(code(ask(&cluster, 2, &old).await), Code::NoSource);
    let mut wrong = copy([2, 1], 3, 0, 0, 100_000);
    wrong.source.contents.digest = Digest(5);
    assert_eq!(code(ask(&cluster, 2, &wrong).await), Code::NoSource, "no digest, no bytes");
    let mut sealed = copy([2, 1], 3, 0, 0, 100);
    sealed.delta.epoch = Epoch(0);
    assert_ne!(code(ask(&cluster, 2, &sealed).await), Code::NoSource, "refused before anything is fetched");
    let gone = copy([2, 3], 3, 0, 0, 100);
    for at in [0, 1] {
        cluster.slaves[at].take().unwrap().stop().await.unwrap();
    }
    let fault = ask(&cluster, 2, &gone).await.unwrap_err();
    assert_eq!(fault.code, Code::NoSource, "{fault}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn members_that_miss_something_are_found_and_a_retry_completes_the_chain() {
    let mut cluster = Cluster::start(2).await;
    cluster.delta(&[0, 1], &delta(1, 0, 0, &[1; 5000]), &[1; 5000]).await.unwrap();
    // Only the first has applied it, as if the second had failed: the retry brings it there.
    let next = delta(1, 1, 100, b"abc");
    cluster.delta(&[0], &next, b"abc").await.unwrap();
    assert_eq!(cluster.delta(&[0, 1], &next, b"abc").await.unwrap().contents.version, Version(2));
    assert_eq!(&cluster.read(1, 1, 2, 0, 1).await.unwrap()[100..103], b"abc");
    // The second is ahead of what the first is asked to apply.
    let third = delta(1, 2, 0, b"x");
    cluster.delta(&[1], &third, b"x").await.unwrap();
    let other = DeltaRequest { op: OpId { session: SessionId(9), sequence: 9 }, ..third.clone() };
    let fault = cluster.delta(&[0, 1], &other, b"x").await.unwrap_err();
    assert_eq!((fault.code, fault.node), (Code::WrongVersion, Some(cluster.members[1].node)));
    // A member that is gone is named.
    cluster.slaves[1].take().unwrap().stop().await.unwrap();
    let fault = cluster.delta(&[0, 1], &delta(1, 3, 0, b"y"), b"y").await.unwrap_err();
    assert_eq!((fault.code, fault.node), (Code::MemberFailed, Some(cluster.members[1].node)));
    // It comes back with what it had.
    cluster.disks[1].kill();
    cluster.start_slave(1).await;
    assert_eq!(&cluster.read(1, 1, 3, 0, 1).await.unwrap()[100..103], b"abc");
    let sync = SyncRequest { chunk: ChunkId(1), epoch: Epoch(1), version: Version(3), chain: Vec::new() };
    let synced =
        cluster.to(1).await.call::<Sync>(RequestHeader::default(), &sync, &[], DEADLINE).await.unwrap();
    assert!(synced.body.stable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_sealed_epoch_is_over_and_a_joiner_gets_what_differs() {
    let cluster = Cluster::start(2).await;
    let master = &cluster.master;
    let (a, b) = (cluster.members[0].address, cluster.members[1].address);
    let whole = vec![5; 400_000];
    let applied = cluster.delta(&[0], &delta(1, 0, 0, &whole), &whole).await.unwrap();
    let copy = |expect, epoch| CopyRequest {
        chunk: ChunkId(1),
        chunk_bytes: CHUNK_BYTES,
        disk: cluster.members[1].disk,
        source: cluster.members[0],
        expect,
        epoch: Epoch(epoch),
        keep_aside: false,
        into_reserve: false,
    };
    // Ahead of the seal, then the difference.
    let ahead = master.command::<Copy>(b, 1, &copy(None, 1)).await.unwrap();
    assert_eq!(ahead, applied.contents);
    let applied = cluster.delta(&[0], &delta(1, 1, 8192, b"newer"), b"newer").await.unwrap();
    let sealed =
        master.command::<Seal>(a, 1, &SealRequest { chunk: ChunkId(1), epoch: Epoch(2) }).await.unwrap();
    assert_eq!((sealed.epoch, sealed.sealed, sealed.contents), (Epoch(1), Epoch(2), applied.contents));
    assert!(sealed.stable);
    assert_eq!(code(cluster.delta(&[0], &delta(1, 2, 0, b"late"), b"late").await), Code::WrongEpoch);
    assert_eq!(code(cluster.read(0, 1, 2, 0, 1).await), Code::WrongEpoch);
    assert_eq!(code(master.command::<Copy>(b, 1, &copy(Some(ahead), 2)).await), Code::WrongVersion);
    let before = cluster.disks[1].counters().written_bytes;
    let copied = master.command::<Copy>(b, 1, &copy(Some(applied.contents), 2)).await.unwrap();
    assert_eq!(copied, applied.contents);
    assert!(cluster.disks[1].counters().written_bytes - before < 64 * 1024, "only what differs");
    let install = InstallRequest {
        chunk: ChunkId(1),
        chunk_bytes: CHUNK_BYTES,
        disk: cluster.members[1].disk,
        epoch: Epoch(2),
        contents: applied.contents,
    };
    let wrong = InstallRequest { contents: ahead, ..install.clone() };
    assert_eq!(code(master.command::<Install>(b, 1, &wrong).await), Code::WrongVersion);
    let at_a = InstallRequest { disk: cluster.members[0].disk, ..install.clone() };
    master.command::<Install>(a, 1, &at_a).await.unwrap();
    master.command::<Install>(b, 1, &install).await.unwrap();
    let after = cluster.delta(&[0, 1], &delta(2, 2, 0, b"both"), b"both").await.unwrap();
    assert_eq!(after.contents.version, Version(3));
    cluster.delta(&[0], &delta(2, 3, 0, b"ahead"), b"ahead").await.unwrap();
    // A member is not copied over, a lower term commands nothing, an unknown chunk is sealed too.
    assert_eq!(code(master.command::<Copy>(b, 1, &copy(None, 2)).await), Code::WrongEpoch);
    let unknown = SealRequest { chunk: ChunkId(9), epoch: Epoch(2) };
    assert_eq!(code(master.command::<Seal>(a, 5, &unknown).await), Code::NoChunk);
    assert_eq!(code(master.command::<Seal>(a, 4, &unknown).await), Code::WrongTerm);
    let late = DeltaRequest { chunk: ChunkId(9), extents: vec![], sums: vec![], ..delta(1, 0, 0, b"x") };
    assert_eq!(code(cluster.delta(&[0], &late, &[]).await), Code::WrongEpoch);
    master.command::<Delete>(b, 1, &DeleteRequest { chunks: vec![(ChunkId(1), Epoch(2))] }).await.unwrap();
    assert_eq!(code(cluster.read(1, 2, 3, 0, 1).await), Code::NoChunk);
}

/// Those before it in the chain have done nothing wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rot_below_a_delta_is_reported_by_who_has_it() {
    let cluster = Cluster::start(2).await;
    let (chain, whole) = ([0, 1], vec![5; 20 * LEAF]);
    let mut version =
        cluster.delta(&chain, &delta(1, 0, 0, &whole), &whole).await.unwrap().contents.version.0;
    // Nobody's disk is bad where the bytes are not those of the sums.
    assert_eq!(code(cluster.delta(&chain, &delta(1, version, 0, b"right"), b"wrong").await), Code::Corrupt);
    let path = format!("segments/{}", cluster.disks[1].list("segments").unwrap().last().unwrap());
    assert!(cluster.disks[1].flip(&path, 10 * LEAF as u64 + 7));
    let mut refused = 0;
    for leaf in 0..20 {
        let part = delta(1, version, leaf * LEAF as u32 + 100, b"part");
        match cluster.delta(&chain, &part, b"part").await {
            Ok(applied) => version = applied.contents.version.0,
            Err(fault) => {
                assert_eq!((fault.code, fault.node), (Code::Corrupt, Some(cluster.members[1].node)));
                refused += 1;
                break;
            }
        }
    }
    assert_eq!(refused, 1);
    let corrupt = |at: usize| {
        let reports = cluster.master.heard.lock();
        reports.reports.iter().any(|report| report.problem == Problem::Corrupt(cluster.members[at].node))
    };
    until("the slave reports itself", || corrupt(1)).await;
    assert!(!corrupt(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rot_is_reported_refused_and_repaired_by_a_copy() {
    let cluster = Cluster::start(2).await;
    let whole = vec![5; 100 * LEAF];
    let applied = cluster.delta(&[0, 1], &delta(1, 0, 0, &whole), &whole).await.unwrap();
    let path = format!("segments/{}", cluster.disks[1].list("segments").unwrap().last().unwrap());
    // One leaf in the middle of the data.
    assert!(cluster.disks[1].flip(&path, 50 * LEAF as u64 + 7));
    let fault = cluster.read(1, 1, 1, 0, 100).await.unwrap_err();
    assert_eq!(fault.code, Code::Corrupt);
    let reported = |report: &ReportRequest| report.problem == Problem::Corrupt(cluster.members[1].node);
    until("the slave reports itself", || cluster.master.heard.lock().reports.iter().any(reported)).await;
    until("the heartbeat counts it", || {
        cluster.master.heard.lock().heartbeats.iter().any(|beat| beat.bad_leaves > 0)
    })
    .await;
    assert_eq!(cluster.read(0, 1, 1, 0, 100).await.unwrap(), whole);
    // The copy finds the bad leaf although its sum is right, and writes only that.
    let (master, b) = (&cluster.master, cluster.members[1].address);
    for member in &cluster.members {
        let seal = SealRequest { chunk: ChunkId(1), epoch: Epoch(2) };
        master.command::<Seal>(member.address, 1, &seal).await.unwrap();
    }
    let before = cluster.disks[1].counters().written_bytes;
    let copy = CopyRequest {
        chunk: ChunkId(1),
        chunk_bytes: CHUNK_BYTES,
        disk: cluster.members[1].disk,
        source: cluster.members[0],
        expect: Some(applied.contents),
        epoch: Epoch(2),
        keep_aside: false,
        into_reserve: false,
    };
    assert_eq!(master.command::<Copy>(b, 1, &copy).await.unwrap(), applied.contents);
    assert!(cluster.disks[1].counters().written_bytes - before < 64 * 1024);
    let install = InstallRequest {
        chunk: ChunkId(1),
        chunk_bytes: CHUNK_BYTES,
        disk: cluster.members[1].disk,
        epoch: Epoch(2),
        contents: applied.contents,
    };
    master.command::<Install>(b, 1, &install).await.unwrap();
    assert_eq!(cluster.read(1, 2, 1, 0, 100).await.unwrap(), whole);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn roles_are_enforced_and_the_master_is_found_again() {
    let mut cluster = Cluster::start(1).await;
    let slave = cluster.to(0).await;
    let header = RequestHeader::default;
    let seal = SealRequest { chunk: ChunkId(1), epoch: Epoch(2) };
    assert_eq!(code(slave.call::<Seal>(header(), &seal, &[], DEADLINE).await.map(|_| ())), Code::Forbidden);
    let sums = SumsRequest { chunk: ChunkId(1) };
    assert_eq!(
        code(slave.call::<GetSums>(header(), &sums, &[], DEADLINE).await.map(|_| ())),
        Code::Forbidden
    );
    let stranger = Authority::create(ClusterId(8), NOW_S).unwrap();
    let stranger = endpoint(&stranger.issue(Role::Client, NodeId(1), NOW_S).unwrap());
    let expect = Expect { role: Role::Slave, node: None };
    assert!(stranger.connect(cluster.members[0].address, expect).await.is_err(), "another cluster");
    cluster.delta(&[0], &delta(1, 0, 0, b"kept"), b"kept").await.unwrap();
    // The connection breaks: the slave registers again and lists what it has.
    let before = cluster.master.heard.lock().inventories;
    cluster.master.link(cluster.members[0].address).close("test");
    until("it registers again", || cluster.master.heard.lock().inventories > before).await;
    assert!(cluster.master.heard.lock().inventory.iter().any(|replica| replica.chunk == ChunkId(1)));
    // A clean stop and a start keep everything.
    cluster.slaves[0].take().unwrap().stop().await.unwrap();
    cluster.disks[0].kill();
    cluster.start_slave(0).await;
    assert_eq!(&cluster.read(0, 1, 1, 0, 1).await.unwrap()[..4], b"kept");
}
