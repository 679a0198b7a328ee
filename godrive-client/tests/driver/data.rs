//! Writes, syncs and reads, with members that fail.

use crate::fakes::Cluster;
use crate::replicas::CHUNK_BYTES;
use crate::{config, driver, driver_with, eventually, patient};
use bytes::Bytes;
use godrive_client::driver::{Delta, Driver, Run};
use godrive_proto::data::{Extent, Fill, Layout};
use godrive_proto::lease::Problem;
use godrive_proto::limits::LEAF_BYTES;
use godrive_proto::time::Timestamp;
use godrive_proto::{ChunkId, Code, Epoch, Fault, NodeId, Version, sums};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;
use tokio::time::Instant;

pub const CHUNK: ChunkId = ChunkId(11);

pub fn delta(offset: u32, bytes: &[u8], sync: bool) -> Delta {
    let len = bytes.len() as u32;
    let sums = sums::pieces(offset, len).map(|(leaf, from, to)| sums::piece(CHUNK, leaf, &bytes[from..to]));
    Delta {
        extents: vec![Extent { offset, len, fill: Fill::Bytes }],
        sums: sums.collect(),
        payload: bytes.chunks(3000).map(Bytes::copy_from_slice).collect(),
        mtime: Timestamp(1),
        sync,
    }
}

fn punch(offset: u32, len: u32) -> Delta {
    let extents = vec![Extent { offset, len, fill: Fill::Hole }];
    Delta { extents, sums: vec![], payload: vec![], mtime: Timestamp(1), sync: false }
}

fn flat(runs: &[Run]) -> Vec<u8> {
    let zeros = |run: &Run| Bytes::from(vec![0; (run.leaves * LEAF_BYTES) as usize]);
    runs.iter().flat_map(|run| run.bytes.clone().unwrap_or_else(|| zeros(run))).collect()
}

async fn read_all(driver: &Driver, layout: &mut Layout) -> Result<Vec<u8>, Fault> {
    let leaves = driver.read(layout, 0, sums::leaves_in(CHUNK_BYTES)).await?;
    Ok(flat(&leaves))
}

/// A cluster of three whose chunk holds `written` at offset 5000.
pub async fn written(cluster: &Cluster, driver: &Driver) -> (Layout, Vec<u8>) {
    let mut layout = cluster.place(CHUNK.0);
    let bytes: Vec<u8> = (0..20_000u32).map(|n| (n % 251) as u8 + 1).collect();
    driver.write(&mut layout, delta(5000, &bytes, false)).await.expect("the first delta");
    cluster.state.lock().layouts.get_mut(&CHUNK).expect("placed").held = layout.held;
    (layout, bytes)
}

#[tokio::test]
async fn what_was_written_is_read_back_with_its_holes() {
    let cluster = Cluster::start(3);
    let (driver, _) = driver(&cluster).await;
    let mut empty = cluster.place(CHUNK.0);
    assert_eq!(
        driver.read(&mut empty, 0, 256).await.expect("holes"),
        vec![Run { first: 0, leaves: 256, bytes: None }]
    );
    assert_eq!(driver.counts().slave_requests, 0, "a chunk that was never written needs no message");
    let (mut layout, bytes) = written(&cluster, &driver).await;
    assert_eq!(layout.held.version, Version(1));
    let applied = driver.write(&mut layout, delta(6000, &[9; 10], false)).await.expect("a partial overwrite");
    assert_eq!((applied.contents, applied.stable), (layout.held, false));
    driver.write(&mut layout, punch(8192, 8192)).await.expect("a punched hole");
    let mut expected = vec![0; CHUNK_BYTES as usize];
    expected[5000..25_000].copy_from_slice(&bytes);
    expected[6000..6010].fill(9);
    expected[8192..16_384].fill(0);
    assert!(read_all(&driver, &mut layout).await.expect("read") == expected);
    let runs = driver.read(&mut layout, 1, 3).await.expect("a range");
    let shape: Vec<_> = runs.iter().map(|run| (run.first, run.leaves, run.bytes.is_some())).collect();
    assert_eq!(shape, [(1, 1, true), (2, 2, false)]);
    let applied = driver.sync(&mut layout).await.expect("a sync");
    assert!(applied.stable && layout.stable == layout.held);
    assert!(cluster.state.lock().replicas.all.values().all(|replica| replica.stable));
    assert_eq!(driver.read(&mut layout, 250, 7).await.unwrap_err().code, Code::Malformed);
    assert!(cluster.state.lock().reports.is_empty());
}

#[tokio::test]
async fn a_synced_overwrite_of_4_kib_costs_little_more_than_4_kib_and_no_message_to_the_master() {
    let cluster = Cluster::start(3);
    let (driver, _) = driver(&cluster).await;
    let (mut layout, _) = written(&cluster, &driver).await;
    let before = driver.counts();
    let applied = driver.write(&mut layout, delta(8192, &[7; 4096], true)).await.expect("a delta");
    assert!(applied.stable);
    let spent = driver.counts().since(&before);
    assert_eq!((spent.slave_requests, spent.payload_bytes_sent), (1, 4096));
    // Renewals go on beside it.
    assert!(spent.wire_bytes() < 4096 + 512 + 100 * spent.master_requests, "{spent:?}");
}

#[tokio::test]
async fn a_delta_whose_answer_is_lost_is_applied_once() {
    let cluster = Cluster::start(3);
    let driver = patient(&cluster).await;
    let (mut layout, _) = written(&cluster, &driver).await;
    cluster.state.lock().lose_slave_answers.insert(NodeId(1), 1);
    driver.write(&mut layout, delta(0, b"once", false)).await.expect("a delta");
    assert_eq!(layout.held.version, Version(2));
    assert_eq!(cluster.state.lock().replicas.applications, 6);
    assert_eq!(&read_all(&driver, &mut layout).await.expect("read")[..4], b"once");
    assert_eq!(layout.epoch, Epoch(1));
}

#[tokio::test]
async fn members_that_do_not_reach_each_other_pass_a_delta_on_through_others() {
    let cluster = Cluster::start(3);
    let driver = patient(&cluster).await;
    let (mut layout, _) = written(&cluster, &driver).await;
    let [b, c] = [NodeId(2), NodeId(3)];
    cluster.state.lock().replicas.cut.insert((b, c));
    for _ in 0..3 {
        driver.write(&mut layout, delta(0, b"around", false)).await.expect("a delta");
    }
    assert_eq!((layout.epoch, layout.members.len()), (Epoch(2), 3));
    assert_eq!(cluster.state.lock().reports, [Problem::Failed(c)], "it is noticed once");
}

/// It is the one that accuses the others.
#[tokio::test]
async fn a_member_that_reaches_no_other_is_found_out() {
    let cluster = Cluster::start(3);
    let driver = patient(&cluster).await;
    let (mut layout, _) = written(&cluster, &driver).await;
    let [a, b, c] = [NodeId(1), NodeId(2), NodeId(3)];
    cluster.state.lock().replicas.cut = BTreeSet::from([(a, b), (a, c)]);
    let write = async {
        driver.write(&mut layout, delta(0, b"alone", false)).await.expect("a delta");
    };
    let watch = async {
        eventually("it is reported again and again", || {
            let reports = cluster.state.lock().reports.clone();
            reports.iter().filter(|problem| **problem == Problem::Failed(a)).count() >= 2
        })
        .await;
        cluster.kill_slave(0).await;
    };
    tokio::join!(write, watch);
    assert_eq!(layout.members.iter().map(|member| member.node).collect::<Vec<_>>(), [b, c]);
    cluster.state.lock().replicas.cut.clear();
}

#[tokio::test]
async fn a_mount_that_reaches_no_slave_accuses_none() {
    let cluster = Cluster::start(2);
    let (driver, _) = driver(&cluster).await;
    let (mut layout, _) = written(&cluster, &driver).await;
    // Their answers come from nowhere, as far as the mount can see.
    cluster.state.lock().slave_faults =
        [NodeId(1), NodeId(2)].map(|node| (node, vec![Code::Unreachable.into(); 1000])).into();
    let fault = driver.write(&mut layout, delta(0, b"cut off", false)).await.unwrap_err();
    assert_eq!(fault.code, Code::Unreachable);
    let reports = cluster.state.lock().reports.clone();
    let accusations: Vec<_> = reports.iter().filter(|problem| **problem != Problem::StaleLayout).collect();
    assert_eq!(accusations, [&Problem::Failed(NodeId(1))], "of {}", reports.len());
}

#[tokio::test]
async fn a_dead_member_is_left_out_by_the_master_and_the_delta_sent_again() {
    for dead in [0, 1, 2] {
        let cluster = Cluster::start(3);
        let mut config = config(&cluster);
        config.deadline = Duration::from_secs(60);
        config.timeouts.delta = Duration::from_secs(20);
        // To the dead one no connection comes about.
        config.timeouts.connect = Duration::from_secs(2);
        let (driver, _) = driver_with(&cluster, config).await;
        let (mut layout, _) = written(&cluster, &driver).await;
        cluster.kill_slave(dead).await;
        driver.write(&mut layout, delta(0, b"still", true)).await.expect("a delta");
        // Members before the dead one may have applied it already; then it is applied on top of that.
        assert_eq!(layout.epoch, Epoch(2));
        assert!(matches!(layout.held.version, Version(2 | 3)), "{:?}", layout.held);
        assert_eq!(layout.members.len(), 2);
        assert_eq!(cluster.state.lock().reports, [Problem::Failed(NodeId(dead as u128 + 1))]);
        assert_eq!(&read_all(&driver, &mut layout).await.expect("read")[..5], b"still");
    }
}

#[tokio::test]
async fn a_delta_whose_answers_were_lost_is_applied_on_top_of_what_the_election_kept() {
    let cluster = Cluster::start(3);
    let (driver, _) = driver(&cluster).await;
    let (mut layout, _) = written(&cluster, &driver).await;
    let before = cluster.state.lock().deltas;
    // Applied everywhere; then the answer and the first member are gone.
    cluster.state.lock().lose_slave_answers.insert(NodeId(1), u32::MAX);
    let applied = driver.write(&mut layout, delta(0, b"known", false)).await.expect("a delta");
    assert_eq!((layout.epoch, layout.held.version), (Epoch(2), Version(3)));
    assert_eq!(applied.contents, layout.held);
    assert!(applied.used_bytes > 0);
    let state = cluster.state.lock();
    assert_eq!(state.deltas - before, 3, "one retry on a new connection, one after the election");
}

#[tokio::test]
async fn the_delta_of_an_older_writer_is_not_taken_for_ones_own() {
    let cluster = Cluster::start(2);
    let (old, _) = driver(&cluster).await;
    let (mut layout, _) = written(&cluster, &old).await;
    let mut stale = layout.clone();
    // Landed at the replicas, but the master was never told of it.
    old.write(&mut layout, delta(0, b"theirs", true)).await.expect("a delta");
    let (new, _) = driver(&cluster).await;
    new.write(&mut stale, delta(0, b"ours!!", true)).await.expect("a delta");
    assert_eq!(stale.held.version, Version(3));
    assert_eq!(&read_all(&new, &mut stale).await.expect("read")[..6], b"ours!!");
}

#[tokio::test]
async fn an_old_layout_is_replaced() {
    let cluster = Cluster::start(3);
    let (driver, _) = driver(&cluster).await;
    let (mut layout, _) = written(&cluster, &driver).await;
    let raise = |to: u64| {
        let mut state = cluster.state.lock();
        state.layouts.get_mut(&CHUNK).expect("placed").epoch = Epoch(to);
        state.replicas.all.values_mut().for_each(|replica| replica.epoch = Epoch(to));
    };
    raise(4);
    driver.write(&mut layout, delta(0, b"a", false)).await.expect("a delta");
    assert_eq!(layout.epoch, Epoch(4));
    cluster.state.lock().layouts.get_mut(&CHUNK).expect("placed").held = layout.held;
    raise(5);
    assert_eq!(read_all(&driver, &mut layout).await.expect("read")[0], b'a');
    assert_eq!(layout.epoch, Epoch(5));
    assert!(cluster.state.lock().reports.iter().all(|problem| *problem == Problem::StaleLayout));
}

#[tokio::test]
async fn a_full_disk_is_said_at_once_and_the_chunk_settled_before_the_next_delta() {
    let cluster = Cluster::start(3);
    let (driver, _) = driver(&cluster).await;
    let (mut layout, _) = written(&cluster, &driver).await;
    cluster.state.lock().slave_faults.insert(NodeId(1), vec![Code::NoSpace.into()]);
    let fault = driver.write(&mut layout, delta(0, b"full", false)).await.unwrap_err();
    assert_eq!(fault.code, Code::NoSpace);
    assert!(cluster.state.lock().reports.is_empty());
    driver.write(&mut layout, delta(0, b"room", false)).await.expect("a delta");
    assert_eq!(cluster.state.lock().reports, [Problem::Diverged]);
    assert_eq!((layout.epoch, layout.held.version), (Epoch(2), Version(2)));
    assert_eq!(&read_all(&driver, &mut layout).await.expect("read")[..4], b"room");
}

#[tokio::test]
async fn a_delta_does_not_go_on_in_a_later_session() {
    let cluster = Cluster::start(3);
    let driver = patient(&cluster).await;
    let (mut layout, _) = written(&cluster, &driver).await;
    cluster.state.lock().slave_faults.insert(NodeId(1), vec![Code::NoSpace.into()]);
    driver.write(&mut layout, delta(0, b"full", false)).await.expect_err("no space");
    let before = cluster.state.lock().deltas;
    // The lease goes with the session, so the chunk may be somebody else's by the time it is settled.
    cluster.state.lock().sessions.clear();
    let fault = driver.write(&mut layout, delta(0, b"late", false)).await.unwrap_err();
    assert_eq!(fault.code, Code::SessionLost);
    assert_eq!(cluster.state.lock().deltas, before);
}

#[tokio::test]
async fn damage_on_the_way_is_sent_again_and_damage_that_stays_is_reported() {
    let cluster = Cluster::start(3);
    let (driver, _) = driver(&cluster).await;
    let (mut layout, _) = written(&cluster, &driver).await;
    cluster.state.lock().slave_faults.insert(NodeId(1), vec![Code::Corrupt.into(); 2]);
    driver.write(&mut layout, delta(0, b"a", false)).await.expect("a delta");
    assert!(cluster.state.lock().reports.is_empty());
    cluster
        .state
        .lock()
        .slave_faults
        .insert(NodeId(1), vec![Fault::at(Code::Corrupt, NodeId(2), "old leaf"); 3]);
    driver.write(&mut layout, delta(0, b"b", false)).await.expect("a delta");
    assert_eq!(cluster.state.lock().reports, [Problem::Corrupt(NodeId(2))]);
}

#[tokio::test]
async fn acknowledged_data_that_is_gone_is_never_passed_over() {
    let cluster = Cluster::start(3);
    let (driver, _) = driver(&cluster).await;
    let (mut layout, _) = written(&cluster, &driver).await;
    driver.write(&mut layout, delta(0, b"lost", false)).await.expect("a delta");
    {
        let mut state = cluster.state.lock();
        state.replicas.all.values_mut().for_each(|replica| replica.version = Version(1));
    }
    let fault = driver.write(&mut layout, delta(0, b"next", false)).await.unwrap_err();
    assert_eq!(fault.code, Code::WrongVersion);
    assert!(fault.detail.contains("lost"), "{fault}");
}

/// Also where the election comes before the delta, of which nobody can tell any more what it goes onto once it has landed.
#[tokio::test]
async fn no_delta_lands_on_less_than_was_acknowledged() {
    for other in [false, true] {
        let cluster = Cluster::start(3);
        let (driver, _) = driver(&cluster).await;
        let (mut layout, _) = written(&cluster, &driver).await;
        driver.write(&mut layout, delta(0, b"lost", false)).await.expect("a delta");
        cluster.state.lock().slave_faults.insert(NodeId(1), vec![Code::NoSpace.into()]);
        driver.write(&mut layout, delta(0, b"full", false)).await.expect_err("no space");
        {
            let mut state = cluster.state.lock();
            state.restarted = true;
            for replica in state.replicas.all.values_mut() {
                match other {
                    true => drop(replica.leaves.insert(0, vec![9; 4096])),
                    false => replica.version = Version(1),
                }
            }
        }
        let before = cluster.state.lock().deltas;
        let fault = driver.write(&mut layout, delta(0, b"next", false)).await.unwrap_err();
        assert_eq!((fault.code, cluster.state.lock().deltas), (Code::WrongVersion, before));
        driver.write(&mut layout, delta(0, b"next", false)).await.expect("it is told once");
    }
}

#[tokio::test]
async fn a_lying_member_is_found_out_and_reported_while_the_read_succeeds() {
    let cluster = Cluster::start(3);
    let mut config = config(&cluster);
    config.deadline = Duration::from_millis(1500);
    let (driver, _) = driver_with(&cluster, config).await;
    let (mut layout, bytes) = written(&cluster, &driver).await;
    cluster.state.lock().liars = [NodeId(1), NodeId(2)].into();
    for _ in 0..6 {
        let mut layout = layout.clone();
        let leaves = driver.read(&mut layout, 1, 6).await;
        assert_eq!(flat(&leaves.expect("the honest one answers"))[904..904 + 20_000], bytes);
    }
    eventually("the report", || !cluster.state.lock().reports.is_empty()).await;
    let reports = cluster.state.lock().reports.clone();
    assert!(reports.iter().all(|problem| matches!(problem, Problem::Corrupt(NodeId(1 | 2)))), "{reports:?}");
    // All of them lie: nothing is better than something wrong.
    cluster.state.lock().liars.insert(NodeId(3));
    let fault = driver.read(&mut layout, 1, 6).await.unwrap_err();
    assert!(matches!(fault.code, Code::Corrupt | Code::Unavailable), "{fault}");
}

#[tokio::test]
async fn a_late_member_is_overtaken_by_the_next() {
    let cluster = Cluster::start(3);
    let mut config = config(&cluster);
    config.timeouts.hedge = Duration::from_millis(200)..=Duration::from_millis(200);
    config.timeouts.delta = Duration::from_secs(20);
    config.deadline = Duration::from_secs(30);
    let (driver, _) = driver_with(&cluster, config).await;
    let (mut layout, _) = written(&cluster, &driver).await;
    {
        let mut state = cluster.state.lock();
        state.slow_reads.insert(NodeId(1), Duration::from_secs(25));
        state.slow_reads.insert(NodeId(2), Duration::from_secs(25));
    }
    let begun = Instant::now();
    for _ in 0..12 {
        driver.read(&mut layout, 1, 2).await.expect("the quick one answers");
    }
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let state = cluster.state.lock();
    assert_eq!(state.reads.get(&NodeId(3)), Some(&12));
    // On a busy machine the quick one may seem late now and then.
    let wasted = state.reads.values().sum::<u64>() - 12;
    assert!(wasted <= 8, "late members are not asked again at once: {:?}", state.reads);
    assert!(driver.counts().hedges >= 1 || wasted == 0);
}

#[tokio::test]
async fn reads_go_on_when_members_die_and_fail_at_the_deadline_without_any() {
    let cluster = Cluster::start(3);
    let mut config = config(&cluster);
    config.deadline = Duration::from_millis(2500);
    let (driver, _) = driver_with(&cluster, config).await;
    let (mut layout, bytes) = written(&cluster, &driver).await;
    cluster.kill_slave(0).await;
    cluster.kill_slave(1).await;
    let leaves = driver.read(&mut layout, 1, 6).await.expect("one is left");
    assert_eq!(flat(&leaves)[904..904 + 20_000], bytes);
    cluster.kill_slave(2).await;
    let begun = Instant::now();
    let fault = driver.read(&mut layout, 1, 6).await.unwrap_err();
    assert!(matches!(fault.code, Code::Unavailable | Code::Unreachable), "{fault}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

/// Chunks with the same content as the one that was written.
fn more_chunks(cluster: &Cluster, ids: Range<u64>) -> Vec<Layout> {
    let original = cluster.state.lock().replicas.all[&(NodeId(1), CHUNK)].clone();
    let layout = |id| {
        let mut layout = cluster.place(id);
        for slave in &cluster.slaves {
            cluster.state.lock().replicas.all.insert((slave.member.node, ChunkId(id)), original.clone());
        }
        layout.held = original.contents(ChunkId(id));
        layout
    };
    ids.map(layout).collect()
}

#[tokio::test]
async fn a_member_much_slower_than_the_others_is_soon_asked_last() {
    let cluster = Cluster::start(3);
    let mut config = config(&cluster);
    config.timeouts.hedge = Duration::from_millis(30)..=Duration::from_secs(20);
    config.timeouts.delta = Duration::from_secs(20);
    config.deadline = Duration::from_secs(30);
    let (driver, _) = driver_with(&cluster, config).await;
    written(&cluster, &driver).await;
    let mut layouts = more_chunks(&cluster, 100..160);
    for layout in &mut layouts[..20] {
        driver.read(layout, 1, 2).await.expect("read");
    }
    {
        let mut state = cluster.state.lock();
        assert_eq!(state.reads.len(), 3, "all are known: {:?}", state.reads);
        state.reads.clear();
        state.slow_reads.insert(NodeId(1), Duration::from_secs(5));
    }
    for layout in &mut layouts {
        driver.read(layout, 1, 2).await.expect("a quick one answers");
    }
    let asked = cluster.state.lock().reads.get(&NodeId(1)).copied().unwrap_or(0);
    assert!(driver.counts().hedges >= 1 && asked <= 10, "of 60 reads, {asked} asked the slow one");
}

#[tokio::test]
async fn different_chunks_are_read_from_different_members() {
    let cluster = Cluster::start(3);
    let driver = patient(&cluster).await;
    let (layout, _) = written(&cluster, &driver).await;
    for _ in 0..8 {
        driver.read(&mut layout.clone(), 1, 2).await.expect("read");
    }
    assert_eq!(cluster.state.lock().reads.len(), 1, "one chunk stays with one member");
    for mut layout in more_chunks(&cluster, 100..130) {
        driver.read(&mut layout, 1, 2).await.expect("read");
    }
    let reads = cluster.state.lock().reads.clone();
    assert!(reads.len() == 3 && reads.values().all(|count| *count >= 4), "{reads:?}");
}

/// Random deltas under random faults against a plain array of bytes.
#[tokio::test]
async fn random_deltas_under_random_faults_match_a_model() {
    for seed in 1..=3u64 {
        println!("seed {seed}");
        let mut dice = SmallRng::seed_from_u64(seed);
        let cluster = Cluster::start(4);
        let (driver, _) = driver(&cluster).await;
        let mut layout = cluster.place(CHUNK.0);
        let mut model = vec![0u8; CHUNK_BYTES as usize];
        let mut alive = 4;
        for step in 0..60 {
            match dice.random_range(0..12) {
                0 => drop(cluster.state.lock().lose_slave_answers.insert(layout.members[0].node, 1)),
                1 => {
                    let codes = [Code::Corrupt, Code::WrongVersion, Code::Unavailable, Code::Disk];
                    let fault = codes[dice.random_range(0..codes.len())].into();
                    cluster.state.lock().slave_faults.insert(layout.members[0].node, vec![fault]);
                }
                2 if alive > 2 && dice.random_bool(0.3) => {
                    let node = layout.members[dice.random_range(0..layout.members.len())].node;
                    cluster.kill_slave(node.0 as usize - 1).await;
                    alive -= 1;
                }
                _ => {}
            }
            let offset = dice.random_range(0..CHUNK_BYTES - 1);
            let len = dice.random_range(1..=(CHUNK_BYTES - offset).min(50_000));
            let range = offset as usize..(offset + len) as usize;
            let delta = if dice.random_bool(0.2) {
                model[range].fill(0);
                punch(offset, len)
            } else {
                dice.fill(&mut model[range.clone()]);
                delta(offset, &model[range], dice.random_bool(0.3))
            };
            let sync = delta.sync;
            let before = layout.held.version;
            let applied = driver.write(&mut layout, delta).await;
            let applied = applied.unwrap_or_else(|fault| panic!("seed {seed}, step {step}: {fault}"));
            assert!(applied.stable || !sync);
            assert!(layout.held.version > before, "seed {seed}, step {step}: {:?}", layout.held);
            if step % 10 == 9 {
                let read = read_all(&driver, &mut layout).await.expect("read");
                assert!(read == model, "seed {seed}, step {step}");
            }
        }
    }
}

#[tokio::test]
async fn chunks_that_wait_for_an_election_keep_no_others_from_theirs() {
    const STUCK: u32 = 40;
    let cluster = Cluster::start(1);
    let driver = patient(&cluster).await;
    let (mut layout, _) = written(&cluster, &driver).await;
    cluster.state.lock().slave_faults.insert(NodeId(1), vec![Code::WrongEpoch.into(); STUCK as usize]);
    let stuck: Vec<_> = (0..STUCK)
        .map(|n| {
            let mut layout = cluster.place(1000 + u64::from(n));
            cluster.state.lock().unelected.insert(layout.chunk.id);
            let driver = driver.clone();
            tokio::spawn(async move { driver.write(&mut layout, punch(0, 4096)).await })
        })
        .collect();
    eventually("all of them wait", || cluster.state.lock().waiting == STUCK).await;
    driver.write(&mut layout, delta(0, b"a", true)).await.expect("a delta");
    stuck.iter().for_each(|write| write.abort());
}

#[tokio::test]
async fn a_delta_that_was_given_up_before_it_was_sent_needs_no_election() {
    const FLIGHTS: u32 = 32;
    let cluster = Cluster::start(1);
    let driver = patient(&cluster).await;
    let (mut layout, _) = written(&cluster, &driver).await;
    let stuck: Vec<_> = (0..FLIGHTS)
        .map(|n| {
            let mut layout = cluster.place(1000 + u64::from(n));
            cluster.state.lock().deaf.insert(layout.chunk.id);
            let driver = driver.clone();
            tokio::spawn(async move { driver.write(&mut layout, punch(0, 4096)).await })
        })
        .collect();
    eventually("all of them are on their way", || cluster.state.lock().unanswered == FLIGHTS).await;
    let queued = driver.write(&mut layout, delta(0, b"queued", false));
    tokio::time::timeout(Duration::from_millis(100), queued).await.expect_err("it waits");
    stuck.iter().for_each(|write| write.abort());
    driver.write(&mut layout, delta(0, b"sent", false)).await.expect("a delta");
    assert_eq!((cluster.state.lock().reports.len(), layout.epoch), (0, Epoch(1)));
}
