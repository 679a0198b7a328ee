//! What replicas say and what copies come out as is looked at: each check that `scripts/mutations` takes away and that
//! nothing else here would miss.

use super::*;

/// Three members, of which the last one lags behind by a delta.
async fn with_a_laggard(cluster: &Cluster, client: &Client) -> (Vec<Slave>, Layout, NodeId) {
    let slaves = slaves(cluster, 3).await;
    let (_, layout) = written(client, &slaves, "f").await;
    let laggard = layout.members[2].node;
    for member in &layout.members[..2] {
        by_node(&slaves, member.node).hold(&layout, contents(2, 0xb), false);
    }
    (slaves, layout, laggard)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_laggard_that_copied_something_else_leaves() {
    let cluster = Cluster::start(quick(3)).await;
    let client = cluster.client("a").await;
    let (slaves, layout, laggard) = with_a_laggard(&cluster, &client).await;
    *by_node(&slaves, laggard).store.copies.lock().unwrap() = Some(contents(2, 0xc));
    let now = report(&client, &layout, Problem::Diverged).await.unwrap();
    assert_eq!(now.held, contents(2, 0xb));
    assert!(!members(&now).contains(&laggard), "{now:?}");
    let log = by_node(&slaves, laggard).store.log.lock().unwrap().clone();
    assert!(!log.iter().any(|entry| entry.starts_with("install")), "{log:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_diverged_is_kept_aside_and_what_only_lags_is_not() {
    let cluster = Cluster::start(quick(3)).await;
    let client = cluster.client("a").await;
    let (slaves, layout, other) = with_a_laggard(&cluster, &client).await;
    let copied = || {
        let log = by_node(&slaves, other).store.log.lock().unwrap();
        log.iter().rfind(|entry| entry.starts_with("copy")).cloned().unwrap()
    };
    let now = report(&client, &layout, Problem::Diverged).await.unwrap();
    assert_eq!((members(&now), now.held), (members(&layout), contents(2, 0xb)));
    assert!(!copied().ends_with("aside"), "{}", copied());
    by_node(&slaves, other).hold(&now, contents(2, 0xc), false);
    let now = report(&client, &now, Problem::Diverged).await.unwrap();
    assert_eq!((members(&now), now.held), (members(&layout), contents(2, 0xb)));
    assert!(copied().ends_with("aside"), "{}", copied());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_that_copied_something_else_does_not_join() {
    let cluster = Cluster::start(quick(2)).await;
    let mut slaves = slaves(&cluster, 2).await;
    let client = cluster.client("a").await;
    let (_, layout) = written(&client, &slaves, "f").await;
    // With one member left of two, an epoch needs somebody else.
    let joiner = Slave::start(&cluster).await;
    *joiner.store.copies.lock().unwrap() = Some(contents(1, 0xc));
    slaves[1].kill().await;
    let failed = Problem::Failed(slaves[1].node);
    let fault = report(&client, &layout, failed).await.unwrap_err();
    assert!(fault.code == Code::Unavailable && fault.detail.contains("start the missing slaves"), "{fault}");
    let log = joiner.store.log.lock().unwrap().clone();
    assert!(!log.iter().any(|entry| entry.starts_with("install")), "{log:?}");
    *joiner.store.copies.lock().unwrap() = None;
    let now = report(&client, &layout, failed).await.unwrap();
    assert!(members(&now).contains(&joiner.node), "{now:?}");
}

/// It missed the message of its installation, and then lost its last version with its power.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_of_an_older_epoch_and_other_contents_is_levelled() {
    let cluster = Cluster::start(quick(2)).await;
    let mut slaves = slaves(&cluster, 2).await;
    let client = cluster.client("a").await;
    let (ino, layout) = written(&client, &slaves, "f").await;
    let now = report(&client, &layout, Problem::Diverged).await.unwrap();
    assert_eq!((now.epoch, members(&now)), (Epoch(2), members(&layout)));
    commit(&client, ino, &now, contents(1, 0xa), Mode::Shared).await.unwrap();
    slaves[0].kill().await;
    slaves[0].hold(&layout, contents(0, 0), true);
    slaves[0].connect(&cluster).await.unwrap();
    eventually("it has what was held", async || {
        let replica = slaves[0].has(layout.chunk.id)?;
        (replica.contents == now.held && replica.epoch > now.epoch).then_some(())
    })
    .await;
}
