//! What slaves answer to deltas and syncs is looked at: it decides what an `fsync` says.

use crate::data::{CHUNK, delta, written};
use crate::fakes::Cluster;
use crate::patient;
use godrive_proto::data::{Applied, Contents};
use godrive_proto::lease::Problem;
use godrive_proto::{Code, Digest, NodeId, Version};

fn only_held(applied: Applied) -> Applied {
    Applied { stable: false, ..applied }
}

fn another_version(applied: Applied) -> Applied {
    let contents = Contents { version: Version(applied.contents.version.0 + 4), ..applied.contents };
    Applied { contents, ..applied }
}

fn another_digest(applied: Applied) -> Applied {
    Applied { contents: Contents { digest: Digest(5), ..applied.contents }, ..applied }
}

#[tokio::test]
async fn a_delta_of_an_fsync_that_is_only_held_is_followed_by_a_sync() {
    let cluster = Cluster::start(3);
    let driver = patient(&cluster).await;
    let (mut layout, _) = written(&cluster, &driver).await;
    let before = driver.counts();
    cluster.state.lock().slave_answers.insert(NodeId(1), vec![only_held]);
    let applied = driver.write(&mut layout, delta(0, b"fsync", true)).await.expect("a delta");
    assert!(applied.stable && layout.stable == layout.held);
    assert_eq!(layout.held.version, Version(2), "applied once");
    assert_eq!(driver.counts().since(&before).slave_requests, 2);
    assert!(cluster.state.lock().reports.is_empty());
}

#[tokio::test]
async fn a_sync_that_was_answered_with_something_else_is_asked_again_after_an_election() {
    for lie in [only_held, another_version, another_digest] {
        let cluster = Cluster::start(3);
        let driver = patient(&cluster).await;
        let (mut layout, _) = written(&cluster, &driver).await;
        let held = layout.held;
        cluster.state.lock().slave_answers.insert(NodeId(1), vec![lie]);
        let applied = driver.sync(&mut layout).await.expect("a sync");
        assert_eq!((applied.contents, applied.stable, layout.held), (held, true, held));
        assert_eq!(cluster.state.lock().reports, [Problem::Diverged]);
    }
}

#[tokio::test]
async fn a_delta_that_was_answered_with_another_version_is_settled_by_an_election() {
    let cluster = Cluster::start(3);
    let driver = patient(&cluster).await;
    let (mut layout, _) = written(&cluster, &driver).await;
    cluster.state.lock().slave_answers.insert(NodeId(1), vec![another_version]);
    driver.write(&mut layout, delta(0, b"right", false)).await.expect("a delta");
    let state = cluster.state.lock();
    assert_eq!(state.reports, [Problem::Diverged]);
    assert_eq!(layout.held, state.replicas.all[&(NodeId(1), CHUNK)].contents(CHUNK));
}

/// The first member has applied it when the second one finds it damaged: the same again, and it is no other delta.
#[tokio::test]
async fn a_delta_that_is_sent_again_is_the_same_operation() {
    let cluster = Cluster::start(3);
    let driver = patient(&cluster).await;
    let (mut layout, _) = written(&cluster, &driver).await;
    let second = layout.members[1].node;
    let before = cluster.state.lock().replicas.applications;
    cluster.state.lock().replicas.garbled.insert(second);
    driver.write(&mut layout, delta(0, b"again", false)).await.expect("a delta");
    let state = cluster.state.lock();
    assert_eq!((state.reports.as_slice(), state.replicas.applications - before), (&[][..], 3));
    assert_eq!(layout.held.version, Version(2));
}

#[tokio::test]
async fn an_fsync_says_that_acknowledged_data_is_gone() {
    let cluster = Cluster::start(3);
    let driver = patient(&cluster).await;
    let (mut layout, _) = written(&cluster, &driver).await;
    driver.write(&mut layout, delta(0, b"lost", false)).await.expect("a delta");
    cluster.state.lock().replicas.all.values_mut().for_each(|replica| replica.version = Version(1));
    let fault = driver.sync(&mut layout).await.unwrap_err();
    assert!(fault.code == Code::WrongVersion && fault.detail.contains("lost"), "{fault}");
}
