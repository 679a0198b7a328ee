//! Joining, administration, and who may ask what.

mod common;

use common::slave::Slave;
use common::{Cluster, quick};
use godrive_proto::admin::*;
use godrive_proto::cluster::Register;
use godrive_proto::net::machine;
use godrive_proto::net::token::{JoinToken, join};
use godrive_proto::*;

async fn token(cluster: &Cluster, role: Role, uses: u32) -> String {
    let request = MakeTokenRequest { role, valid_for_s: 60, uses };
    cluster.admin().await.call::<MakeToken>(&request).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_admits_as_many_as_it_says_in_its_role() {
    let mut cluster = Cluster::start(quick(1)).await;
    let text = token(&cluster, Role::Slave, 2).await;
    let parsed: JoinToken = text.parse().unwrap();
    assert_eq!(parsed.master, cluster.address);
    // The wrong role and the wrong secret cost no use.
    assert_eq!(join(&machine::sockets(), &parsed, Role::Admin).await.unwrap_err().code, Code::Forbidden);
    let guessed = JoinToken { secret: [0; 16], ..parsed.clone() };
    assert_eq!(join(&machine::sockets(), &guessed, Role::Slave).await.unwrap_err().code, Code::Forbidden);
    let first = join(&machine::sockets(), &parsed, Role::Slave).await.unwrap();
    assert_eq!((first.role, first.cluster), (Role::Slave, cluster.id));
    // Uses are counted in the log.
    cluster.restart().await;
    let second = join(&machine::sockets(), &parsed, Role::Slave).await.unwrap();
    assert_ne!(first.node, second.node);
    let fault = join(&machine::sockets(), &parsed, Role::Slave).await.unwrap_err();
    assert!(fault.code == Code::Forbidden && fault.detail.contains("make a new one"), "{fault}");
    // What it got is good for connecting.
    let (_endpoint, connection) = cluster.connect(&first).await;
    connection.call::<Ping>(Default::default(), &(), &[], common::DEADLINE).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn impossible_tokens_are_refused() {
    let cluster = Cluster::start(quick(1)).await;
    let admin = cluster.admin().await;
    for (role, valid_for_s, uses) in [
        (Role::Master, 60, 1),
        (Role::Joiner, 60, 1),
        (Role::Slave, 0, 1),
        (Role::Slave, 60, 0),
        (Role::Slave, u32::MAX, 1),
    ] {
        let request = MakeTokenRequest { role, valid_for_s, uses };
        assert_eq!(admin.call::<MakeToken>(&request).await.unwrap_err().code, Code::Invalid, "{request:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_bearer_of_a_disk_and_a_foreign_slave_are_refused() {
    let cluster = Cluster::start(quick(1)).await;
    let one = Slave::start(&cluster).await;
    let identity = cluster.issue(Role::Slave);
    let (_endpoint, connection) = cluster.connect(&identity).await;
    let announce = one.announcement(&cluster);
    let call = async |request| {
        connection.call::<Register>(Default::default(), &request, &[], common::DEADLINE).await
    };
    let fault = call(announce.clone()).await.err().unwrap();
    assert!(fault.code == Code::Busy && fault.detail.contains("copied"), "{fault}");
    let foreign = cluster::RegisterRequest { cluster: ClusterId(1), ..announce };
    let fault = call(foreign).await.err().unwrap();
    assert!(fault.code == Code::Forbidden && fault.detail.contains("own master"), "{fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_what_is() {
    let cluster = Cluster::start(quick(3)).await;
    let mut slaves = [Slave::start(&cluster).await, Slave::start(&cluster).await];
    let mut client = cluster.client("host:/mnt").await;
    client.stop_renewing();
    client.create("f").await.unwrap();
    client
        .call::<lease::Renew>(&lease::RenewRequest { errors_after_close: 3, dirty_bytes: 77 })
        .await
        .unwrap();
    let status = cluster.status().await;
    assert_eq!((status.cluster, status.term, status.inodes), (cluster.id, Term(1), 2));
    assert!(status.index > LogIndex(4));
    let session = &status.sessions[0];
    assert_eq!(
        (session.label.as_str(), session.dirty_bytes, session.errors_after_close),
        ("host:/mnt", 77, 3)
    );
    assert_eq!((session.shared_leases, session.exclusive_leases), (1, 1));
    assert_eq!((status.chunks.total, status.chunks.under_replicated, status.repair_queued), (1, 1, 1));
    assert!(status.nodes.iter().all(|node| node.state == "alive" && node.replicas == 1));
    let warning = |status: &Status, text: &str| status.warnings.iter().any(|warning| warning.contains(text));
    assert!(
        warning(&status, "fewer replicas") && warning(&status, "3 errors after close"),
        "{:?}",
        status.warnings
    );
    slaves[0].kill().await;
    let status = common::eventually("the dead slave is shown", async || {
        let status = cluster.status().await;
        status.nodes.iter().any(|node| node.state == "dead").then_some(status)
    })
    .await;
    assert_eq!((status.chunks.unavailable, status.chunks.under_replicated), (1, 0));
    assert!(warning(&status, "new data cannot be written"), "{:?}", status.warnings);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_configuration_of_an_old_cluster_is_warned_of() {
    let mut cluster = Cluster::start(quick(1)).await;
    cluster.config.replicas = 3;
    cluster.restart().await;
    let status = cluster.status().await;
    assert_eq!(status.parameters.replicas, 1);
    assert!(
        status.warnings.iter().any(|warning| warning.contains("replicas is 1 since")),
        "{:?}",
        status.warnings
    );
    assert_eq!(status.term, Term(2));
}
