//! Sessions, renewals, retries, recalls, resumes.

use crate::fakes::Cluster;
use crate::{config, driver, driver_with, eventually};
use godrive_client::driver::Driver;
use godrive_proto::lease::{Acquire, AcquireRequest, Mode, RecallRequest};
use godrive_proto::meta::{Barrier, StatFs};
use godrive_proto::time::Timestamp;
use godrive_proto::{Code, Fault, Ino, LeaseId, LogIndex, SessionId};
use std::time::Duration;
use tokio::time::Instant;

async fn mutate(driver: &Driver) -> Result<(), Fault> {
    driver.mutate::<Barrier>(&()).await
}

#[tokio::test]
async fn renewals_keep_the_lease_and_stopping_closes_the_session() {
    let cluster = Cluster::start(0);
    let (driver, _) = driver(&cluster).await;
    assert_eq!(driver.session(), SessionId(1));
    assert_eq!(driver.parameters().replicas, 3);
    eventually("renewals outlast the lease time", || cluster.state.lock().renewals > 20).await;
    assert!(driver.lease_remaining().is_some_and(|left| left <= Duration::from_millis(600)));
    let wall = driver.wall();
    assert!(wall >= Timestamp(4_000_000_000) && wall <= Timestamp(7_000_000_000), "{wall:?}");
    driver.stop().await;
    assert_eq!(cluster.state.lock().closed, 1);
    assert_eq!(driver.lease_remaining(), None);
    assert_eq!(driver.query::<StatFs>(&()).await.unwrap_err().code, Code::Unreachable);
}

#[tokio::test]
async fn a_mutation_whose_answers_are_lost_is_executed_once() {
    let cluster = Cluster::start(0);
    let (driver, _) = driver(&cluster).await;
    mutate(&driver).await.expect("the first");
    cluster.state.lock().lose_master_answers = 3;
    mutate(&driver).await.expect("an answer in the end");
    assert_eq!(cluster.state.lock().executed.len(), 2);
    assert_eq!(cluster.state.lock().lose_master_answers, 0);
    assert!(driver.counts().retries >= 3);
    mutate(&driver).await.expect("the third");
    let state = cluster.state.lock();
    assert_eq!(state.executed.len(), 3);
    assert_eq!(state.answered_below, 3, "the first two need not be kept");
    assert_eq!(driver.session(), SessionId(1), "a lost connection is not a lost session");
}

#[tokio::test]
async fn a_master_that_is_not_ready_is_asked_again_and_a_refusal_is_not() {
    let cluster = Cluster::start(0);
    let (driver, _) = driver(&cluster).await;
    let faults = [Code::Exists, Code::NotReady, Code::Unavailable, Code::NotReady];
    cluster.state.lock().master_faults = faults.map(Fault::from).to_vec();
    assert_eq!(driver.query::<StatFs>(&()).await.unwrap_err().code, Code::Exists);
    assert!(cluster.state.lock().master_faults.is_empty());
    // Unavailable is an answer that the master keeps: asking again takes a new sequence.
    cluster.state.lock().master_faults = vec![Code::Unavailable.into()];
    mutate(&driver).await.expect("an answer");
    let state = cluster.state.lock();
    assert_eq!(state.executed.iter().map(|(_, sequence)| *sequence).collect::<Vec<_>>(), [2]);
}

#[tokio::test]
async fn without_a_master_requests_fail_at_the_deadline_and_the_lease_lapses() {
    let cluster = Cluster::start(0);
    let mut config = config(&cluster);
    config.deadline = Duration::from_millis(1500);
    let (driver, _) = driver_with(&cluster, config).await;
    cluster.kill_master().await;
    let begun = Instant::now();
    let fault = driver.query::<StatFs>(&()).await.unwrap_err();
    assert_eq!(fault.code, Code::Unreachable);
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(1000) && took < Duration::from_millis(3000), "{took:?}");
    assert_eq!(driver.lease_remaining(), None);
}

#[tokio::test]
async fn a_master_that_answers_no_renewal_is_left_and_found_again() {
    let cluster = Cluster::start(0);
    let (driver, _) = driver(&cluster).await;
    cluster.state.lock().deaf_to_renewals = true;
    eventually("the lease lapses", || driver.lease_remaining().is_none()).await;
    cluster.state.lock().deaf_to_renewals = false;
    driver.query::<StatFs>(&()).await.expect("an answer");
    assert!(driver.lease_remaining().is_some());
    assert_eq!(driver.session(), SessionId(1));
}

#[tokio::test]
async fn a_recall_is_served_while_a_request_waits_for_it() {
    let cluster = Cluster::start(0);
    let (driver, calls) = driver(&cluster).await;
    let recall = RecallRequest { ino: Ino(4), id: LeaseId(40), may_keep: Some(Mode::Shared) };
    cluster.state.lock().recall_first = Some(recall);
    let request = AcquireRequest { inodes: vec![Ino(4)], mode: Mode::Shared, layout: None };
    driver.query::<Acquire>(&request).await.expect("granted after the recall");
    assert_eq!(*calls.recalls.lock(), [recall]);
    let released = cluster.state.lock().released.clone();
    assert_eq!(released.len(), 1);
    assert_eq!((released[0].ino, released[0].id, released[0].open), (Ino(4), LeaseId(40), true));
}

#[tokio::test]
async fn a_restarted_master_is_told_of_the_leases_before_anything_else() {
    let cluster = Cluster::start(0);
    let (driver, calls) = driver(&cluster).await;
    cluster.state.lock().lost_by_resume = vec![Ino(5)];
    cluster.state.lock().last_record = Some(LogIndex(70));
    cluster.restart_master().await;
    // The fake master asserts that nothing comes before the resume.
    driver.query::<StatFs>(&()).await.expect("an answer of the new term");
    mutate(&driver).await.expect("an answer of the new term");
    assert_eq!(*calls.resumes.lock(), 1);
    assert_eq!(*calls.ends.lock(), [LogIndex(70)]);
    assert_eq!(*calls.lost_leases.lock(), [Ino(5)]);
    assert_eq!(*calls.sessions_lost.lock(), 0);
    assert_eq!(driver.session(), SessionId(1));
    let state = cluster.state.lock();
    assert_eq!(state.resumes.len(), 1);
    assert!(state.resumes[0].last);
    assert_eq!(state.resumes[0].exclusive, [(Ino(5), LeaseId(50))]);
    assert_eq!(state.resumes[0].open, [Ino(5), Ino(6)]);
}

#[tokio::test]
async fn a_lost_session_is_followed_by_a_new_one() {
    let cluster = Cluster::start(0);
    let (driver, calls) = driver(&cluster).await;
    cluster.state.lock().sessions.clear();
    driver.query::<StatFs>(&()).await.expect("a query is asked again in the new session");
    assert_eq!(driver.session(), SessionId(2));
    assert_eq!(*calls.sessions_lost.lock(), 1);
    assert!(driver.lease_remaining().is_some());
    // A mutation is not: whether an earlier try of it was executed could not be told.
    cluster.state.lock().sessions.clear();
    let mut lost = 0;
    while mutate(&driver).await.is_err_and(|fault| fault.code == Code::SessionLost) {
        lost += 1;
    }
    assert!(lost <= 1, "{lost}");
    assert_eq!(cluster.state.lock().executed.len(), 1);
    assert_eq!(driver.session(), SessionId(3));
    eventually("the file system was told", || *calls.sessions_lost.lock() == 2).await;
}

#[tokio::test]
async fn a_hundred_mutations_at_once_are_each_executed_once() {
    let cluster = Cluster::start(0);
    let (driver, _) = driver(&cluster).await;
    cluster.state.lock().lose_master_answers = 5;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let driver = driver.clone();
        tasks.spawn(async move { mutate(&driver).await });
    }
    while let Some(outcome) = tasks.join_next().await {
        outcome.expect("no panic").expect("an answer");
    }
    assert_eq!(cluster.state.lock().executed.len(), 100);
    mutate(&driver).await.expect("one more");
    assert_eq!(cluster.state.lock().answered_below, 101);
}

#[tokio::test]
async fn where_the_end_of_the_log_is_not_known_only_what_was_known_to_be_durable_is_kept() {
    let cluster = Cluster::start(0);
    let (driver, calls) = driver(&cluster).await;
    cluster.restart_master().await;
    mutate(&driver).await.expect("an answer of the new term");
    cluster.restart_master().await;
    mutate(&driver).await.expect("an answer of the new term");
    // Every answer of the fake master names its first record.
    assert_eq!(*calls.ends.lock(), [LogIndex(1), LogIndex(1)]);
}
