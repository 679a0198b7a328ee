//! What waits for the log to be on stable storage, and what does not (docs/adr/0005-early-answers.md).
#![allow(clippy::unwrap_used)]

mod common;

use common::{Cluster, create, name, quick};
use godrive_proto::frame::RequestHeader;
use godrive_proto::meta::{Barrier, Create, Lookup, LookupRequest};
use godrive_proto::{Code, Operation, ROOT};

/// An answer that must wait for the log does not come within this time.
const A_WHILE_MS: u32 = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_change_is_answered_at_once_and_shown_to_others_when_it_is_durable() {
    let cluster = Cluster::start(quick(1)).await;
    let (one, two) = (cluster.client("one").await, cluster.client("two").await);
    // What came before is durable.
    one.call::<Barrier>(&()).await.unwrap();
    cluster.gate.set_closed(true);
    let header = RequestHeader { sequence: 1, ..one.header() };
    let created = one.call_with::<Create>(header.clone(), &create("f")).await.unwrap().body;
    let lookup = LookupRequest { parent: ROOT, name: name("f") };
    // Its own session sees it, too.
    let own = one.call::<Lookup>(&lookup).await.unwrap();
    assert_eq!(own.entry.unwrap().attr.ino, created.entry.attr.ino);
    // What another session asks for waits; so does an fsync, and so does the same request asked again.
    let shortly = |header: RequestHeader| RequestHeader { deadline_ms: A_WHILE_MS, ..header };
    let seen = two.call_with::<Lookup>(shortly(two.header()), &lookup).await;
    assert_eq!(seen.err().map(|fault| fault.code), Some(Code::Timeout), "{}", Lookup::NAME);
    let synced = one.call_with::<Barrier>(shortly(one.header()), &()).await;
    assert_eq!(synced.err().map(|fault| fault.code), Some(Code::Timeout), "{}", Barrier::NAME);
    let again = one.call_with::<Create>(shortly(header.clone()), &create("f")).await;
    assert_eq!(again.err().map(|fault| fault.code), Some(Code::Timeout), "repeated {}", Create::NAME);
    cluster.gate.set_closed(false);
    let seen = two.call::<Lookup>(&lookup).await.unwrap().entry.unwrap();
    assert_eq!(seen.attr.ino, created.entry.attr.ino);
    one.call::<Barrier>(&()).await.unwrap();
    let again = one.call_with::<Create>(header, &create("f")).await.unwrap().body;
    assert_eq!(again.entry.attr.ino, created.entry.attr.ino);
}
