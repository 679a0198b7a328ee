//! What a slave answers is as stable as it says, and what others tell it is looked at: each check that `scripts/mutations`
//! takes away and that nothing else here would miss.

use super::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::{mpsc, oneshot};

fn chunk_delta(chunk: u64, epoch: u64, base: u64, payload: &[u8]) -> DeltaRequest {
    let sums = sums::pieces(0, payload.len() as u32)
        .map(|(leaf, start, end)| sums::piece(ChunkId(chunk), leaf, &payload[start..end]));
    DeltaRequest { chunk: ChunkId(chunk), sums: sums.collect(), ..delta(epoch, base, 0, payload) }
}

/// Of a chunk in which only the first leaf is not a hole.
fn digest_of(chunk: u64, leaf: &[u8]) -> Digest {
    let sums = [sums::piece(ChunkId(chunk), 0, leaf)];
    let mut groups = vec![sums::HOLE; sums::groups_in(CHUNK_BYTES) as usize];
    groups[0] = sums::group(&[&sums[..], &[sums::HOLE; 63]].concat());
    sums::digest(ChunkId(chunk), &groups)
}

fn leaf_sums(chunk: u64, leaf: &[u8]) -> Vec<u64> {
    let mut all = vec![sums::HOLE; sums::leaves_in(CHUNK_BYTES) as usize];
    all[0] = sums::piece(ChunkId(chunk), 0, leaf);
    all
}

impl Cluster {
    async fn lose_power(&mut self, at: usize, seed: u64) {
        drop(self.slaves[at].take());
        self.disks[at].crash(&mut SmallRng::seed_from_u64(seed));
        self.start_slave(at).await;
    }

    async fn read_chunk(&self, at: usize, chunk: u64, epoch: u64, version: u64) -> Result<(), Fault> {
        let (chunk, epoch, version) = (ChunkId(chunk), Epoch(epoch), Version(version));
        let request = ReadRequest { chunk, epoch, version, first_leaf: 0, leaves: 1 };
        let slave = self.to(at).await;
        slave.call::<Read>(RequestHeader::default(), &request, &[], DEADLINE).await.map(drop)
    }

    fn install(&self, chunk: u64, epoch: u64, contents: Contents) -> InstallRequest {
        let disk = self.members[0].disk;
        InstallRequest {
            chunk: ChunkId(chunk),
            chunk_bytes: CHUNK_BYTES,
            disk,
            epoch: Epoch(epoch),
            contents,
        }
    }

    /// A member, or the source of a copy, that a test plays.
    fn played(&self, node: u128) -> (Member, Endpoint) {
        let endpoint = endpoint(&self.authority.issue(Role::Slave, NodeId(node), NOW_S).unwrap());
        (Member { node: NodeId(node), disk: DiskId(node), address: endpoint.local_address() }, endpoint)
    }
}

/// A successor that takes what comes and waits, to be told what it answers.
fn successor(endpoint: Endpoint) -> mpsc::UnboundedReceiver<oneshot::Sender<Applied>> {
    let (asked, asks) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(connection) = endpoint.accept().await {
            while let Some(mut incoming) = connection.accept().await {
                incoming.payload.collect(1 << 20).await.unwrap();
                let (tell, told) = oneshot::channel();
                asked.send(tell).unwrap();
                let applied = told.await.unwrap();
                let header = ReplyHeader::default();
                match incoming.header.code {
                    Delta::CODE => incoming.reply::<Delta>(header, &applied, &[]).await.unwrap(),
                    Sync::CODE => incoming.reply::<Sync>(header, &applied, &[]).await.unwrap(),
                    code => panic!("unexpected {code:#06x}"),
                }
            }
        }
    });
    asks
}

/// Each command, answered, and then the power fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_command_answered_survives_a_loss_of_power() {
    let mut cluster = Cluster::start(2).await;
    for round in 0..6u64 {
        let context = format!("round {round}");
        let first = 10 * round + 1;
        let [nothing, sealed, empty, deleted, unknown, copied] = [0, 1, 2, 3, 4, 5].map(|at| first + at);
        let leaf = [round as u8 + 1; LEAF];
        let write = |chunk| DeltaRequest { sync: true, ..chunk_delta(chunk, 1, 0, &leaf) };
        for chunk in [sealed, deleted, unknown] {
            cluster.delta(&[0], &write(chunk), &leaf).await.unwrap();
        }
        let written = cluster.delta(&[1], &write(copied), &leaf).await.unwrap();

        // A seal where there is nothing: no late delta makes the chunk.
        let seal = |chunk| SealRequest { chunk: ChunkId(chunk), epoch: Epoch(2) };
        let to = |cluster: &Cluster| cluster.members[0].address;
        let answer = cluster.master.command::<Seal>(to(&cluster), 1, &seal(nothing)).await;
        assert_eq!(code(answer), Code::NoChunk, "{context}");
        cluster.lose_power(0, round).await;
        let late = cluster.delta(&[0], &write(nothing), &leaf).await;
        assert_eq!(code(late), Code::WrongEpoch, "{context}: the seal of nothing");

        cluster.master.command::<Seal>(to(&cluster), 1, &seal(sealed)).await.unwrap();
        cluster.lose_power(0, round).await;
        let late = cluster.delta(&[0], &chunk_delta(sealed, 1, 1, &leaf), &leaf).await;
        assert_eq!(code(late), Code::WrongEpoch, "{context}: the seal");

        let none = Contents { version: Version(0), digest: sums::empty_digest(ChunkId(empty), CHUNK_BYTES) };
        let install = cluster.install(empty, 2, none);
        cluster.master.command::<Install>(to(&cluster), 1, &install).await.unwrap();
        cluster.lose_power(0, round).await;
        cluster
            .read_chunk(0, empty, 2, 0)
            .await
            .unwrap_or_else(|fault| panic!("{context}: installed, {fault}"));

        let delete = DeleteRequest { chunks: vec![(ChunkId(deleted), Epoch(1))] };
        cluster.master.command::<Delete>(to(&cluster), 1, &delete).await.unwrap();
        cluster.lose_power(0, round).await;
        assert_eq!(code(cluster.read_chunk(0, deleted, 1, 1).await), Code::NoChunk, "{context}: deleted");

        let quarantine = QuarantineRequest { chunks: vec![ChunkId(unknown)] };
        cluster.master.command::<Quarantine>(to(&cluster), 1, &quarantine).await.unwrap();
        cluster.lose_power(0, round).await;
        assert_eq!(code(cluster.read_chunk(0, unknown, 1, 1).await), Code::NoChunk, "{context}: quarantined");

        let copy = CopyRequest {
            chunk: ChunkId(copied),
            chunk_bytes: CHUNK_BYTES,
            disk: cluster.members[0].disk,
            source: cluster.members[1],
            expect: Some(written.contents),
            epoch: Epoch(2),
            keep_aside: false,
            into_reserve: false,
        };
        cluster.master.command::<Copy>(to(&cluster), 1, &copy).await.unwrap();
        cluster.lose_power(0, round).await;
        let install = cluster.install(copied, 2, written.contents);
        let installed = cluster.master.command::<Install>(to(&cluster), 1, &install).await;
        installed.unwrap_or_else(|fault| panic!("{context}: copied, {fault}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_chunk_that_the_master_does_not_know_is_kept() {
    let mut cluster = Cluster::start(1).await;
    let leaf = [7; LEAF];
    cluster.delta(&[0], &delta(1, 0, 0, &leaf), &leaf).await.unwrap();
    let address = cluster.members[0].address;
    let quarantine = QuarantineRequest { chunks: vec![ChunkId(1)] };
    cluster.master.command::<Quarantine>(address, 1, &quarantine).await.unwrap();
    assert_eq!(code(cluster.read_chunk(0, 1, 1, 1).await), Code::NoChunk);
    cluster.slaves[0].take().unwrap().stop().await.unwrap();
    cluster.disks[0].kill();
    let disk = Arc::new(cluster.disks[0].clone());
    let options = godrive_slave::store::Options::new(ClusterId(7));
    let report = godrive_slave::store::fsck::check(disk, options, Timestamp(NOW_S)).unwrap();
    assert_eq!((report.asides, report.leaves), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn members_with_other_contents_of_one_version_are_found_out() {
    let cluster = Cluster::start(2).await;
    let contents = async |at: usize, byte: u8| {
        let leaf = [byte; LEAF];
        cluster.delta(&[at], &delta(1, 0, 0, &leaf), &leaf).await.unwrap().contents
    };
    let (own, theirs) = (contents(0, 1).await, contents(1, 2).await);
    assert!(own.version == theirs.version && own.digest != theirs.digest);
    let sync = SyncRequest {
        chunk: ChunkId(1),
        epoch: Epoch(1),
        version: Version(1),
        chain: vec![cluster.members[1]],
    };
    let ask = async |sync: &SyncRequest| {
        let slave = cluster.to(0).await;
        slave.call::<Sync>(RequestHeader::default(), sync, &[], DEADLINE).await.map(|reply| reply.body)
    };
    let fault = ask(&sync).await.unwrap_err();
    assert_eq!((fault.code, fault.node), (Code::WrongVersion, Some(cluster.members[1].node)));
    let alone = SyncRequest { chain: Vec::new(), version: Version(9), ..sync };
    assert_eq!(code(ask(&alone).await), Code::WrongVersion, "a version that is not here");
    let fault = cluster.delta(&[0, 1], &delta(1, 1, 8192, b"on top"), b"on top").await.unwrap_err();
    assert_eq!((fault.code, fault.node), (Code::WrongVersion, Some(cluster.members[1].node)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_fsync_without_data_makes_stable_what_all_members_have() {
    let cluster = Cluster::start(2).await;
    let leaf = [1; LEAF];
    let applied = cluster.delta(&[0, 1], &delta(1, 0, 0, &leaf), &leaf).await.unwrap();
    assert!(!applied.stable);
    let chain = vec![cluster.members[1]];
    let sync = SyncRequest { chunk: ChunkId(1), epoch: Epoch(1), version: Version(1), chain };
    let slave = cluster.to(0).await;
    let synced = slave.call::<Sync>(RequestHeader::default(), &sync, &[], DEADLINE).await.unwrap().body;
    assert_eq!((synced.contents, synced.stable), (applied.contents, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_successor_answers_counts() {
    let cluster = Cluster::start(1).await;
    let (member, endpoint) = cluster.played(50);
    let mut asks = successor(endpoint);
    let slave = cluster.to(0).await;
    let leaf = [9; LEAF];
    let right = Contents { version: Version(1), digest: digest_of(1, &leaf) };
    let applied = |contents, stable| Applied { contents, stable, used_bytes: LEAF_BYTES };
    let request = DeltaRequest {
        disk: cluster.members[0].disk,
        chain: vec![member],
        sync: true,
        ..delta(1, 0, 0, &leaf)
    };
    let payload = [Bytes::copy_from_slice(&leaf)];
    let mut send = async |answer: Applied, meanwhile: Option<SealRequest>| {
        let call = slave.call::<Delta>(RequestHeader::default(), &request, &payload, DEADLINE);
        let play = async {
            let tell = asks.recv().await.unwrap();
            if let Some(seal) = meanwhile {
                cluster.master.command::<Seal>(cluster.members[0].address, 1, &seal).await.unwrap();
            }
            tell.send(answer).unwrap();
        };
        tokio::join!(call, play).0.map(|reply| reply.body)
    };
    // It is not stable before it is so everywhere.
    let answered = send(applied(right, false), None).await.unwrap();
    assert_eq!((answered.contents, answered.stable), (right, false));
    assert!(send(applied(right, true), None).await.unwrap().stable);
    let other = Contents { digest: Digest(5), ..right };
    assert_eq!(code(send(applied(other, true), None).await), Code::WrongVersion, "another digest");
    let other = Contents { version: Version(2), ..right };
    assert_eq!(code(send(applied(other, true), None).await), Code::WrongVersion, "another version");
    // A seal that was answered before: who is elected may not have it.
    let seal = SealRequest { chunk: ChunkId(1), epoch: Epoch(2) };
    assert_eq!(code(send(applied(right, true), Some(seal)).await), Code::WrongEpoch, "sealed meanwhile");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_source_that_lies_is_found_out() {
    let cluster = Cluster::start(1).await;
    let leaf = [3; LEAF];
    let contents = Contents { version: Version(4), digest: digest_of(1, &leaf) };
    for (node, sums_of, bytes, what) in [
        (60, leaf, [4; LEAF], "bytes that do not match their sums"),
        (61, [4; LEAF], [4; LEAF], "sums that do not match their digest"),
        (62, leaf, leaf, ""),
    ] {
        let (source, endpoint) = cluster.played(node);
        tokio::spawn(async move {
            while let Some(connection) = endpoint.accept().await {
                while let Some(incoming) = connection.accept().await {
                    let header = ReplyHeader::default();
                    let leaves = leaf_sums(1, &sums_of);
                    match incoming.header.code {
                        GetSums::CODE => {
                            let sums = Sums { chunk_bytes: CHUNK_BYTES, epoch: Epoch(1), contents, leaves };
                            incoming.reply::<GetSums>(header, &sums, &[]).await.unwrap();
                        }
                        Fetch::CODE => {
                            let sums = vec![leaves[0]];
                            let payload = [Bytes::copy_from_slice(&bytes)];
                            incoming.reply::<Fetch>(header, &sums, &payload).await.unwrap();
                        }
                        code => panic!("unexpected {code:#06x}"),
                    }
                }
            }
        });
        let copy = CopyRequest {
            chunk: ChunkId(1),
            chunk_bytes: CHUNK_BYTES,
            disk: cluster.members[0].disk,
            source,
            expect: Some(contents),
            epoch: Epoch(2),
            keep_aside: false,
            into_reserve: false,
        };
        let copied = cluster.master.command::<Copy>(cluster.members[0].address, 1, &copy).await;
        match what {
            "" => assert_eq!(copied.unwrap(), contents),
            what => assert_eq!(code(copied), Code::Corrupt, "{what}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_scrub_reports_what_it_finds() {
    let mut cluster = Cluster::start(1).await;
    let whole = vec![7; CHUNK_BYTES as usize];
    cluster.delta(&[0], &delta(1, 0, 0, &whole), &whole).await.unwrap();
    let path = format!("segments/{}", cluster.disks[0].list("segments").unwrap().last().unwrap());
    // With a checkpoint: the recovery does not read the leaf.
    cluster.slaves[0].take().unwrap().stop().await.unwrap();
    cluster.disks[0].kill();
    // The last leaf, to which the first pass comes when the slave has found its master.
    assert!(cluster.disks[0].flip(&path, 257 * LEAF as u64 + 5));
    cluster.scrub_bytes_per_s = 1 << 20;
    cluster.start_slave(0).await;
    let reported = |report: &ReportRequest| {
        report.chunk == ChunkId(1) && report.problem == Problem::Corrupt(cluster.members[0].node)
    };
    until("the scrub reports it", || cluster.master.heard.lock().reports.iter().any(reported)).await;
}

/// No scrub comes to it before the test is over: it found nothing to read when the slave was new, and pauses.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_found_bad_while_the_master_is_away_is_reported_when_it_is_back() {
    let cluster = Cluster::start(1).await;
    let leaf = [7; LEAF];
    cluster.delta(&[0], &delta(1, 0, 0, &leaf), &leaf).await.unwrap();
    let path = format!("segments/{}", cluster.disks[0].list("segments").unwrap().last().unwrap());
    assert!(cluster.disks[0].flip(&path, 2 * LEAF as u64 + 5), "the first record's leaf");
    cluster.master.heard.lock().away = true;
    cluster.master.link(cluster.members[0].address).close("away");
    until("the slave is refused", || cluster.master.heard.lock().refused > 0).await;
    assert_eq!(code(cluster.read(0, 1, 1, 0, 1).await), Code::Corrupt);
    assert_eq!(cluster.master.heard.lock().reports, []);
    cluster.master.heard.lock().away = false;
    let reported = || cluster.master.heard.lock().reports.iter().any(|report| report.chunk == ChunkId(1));
    until("it is reported", reported).await;
}
