//! Requests and replies over loopback.

mod support;

use bytes::Bytes;
use godrive_proto::admin::Ping;
use godrive_proto::cluster::{Delete, DeleteRequest};
use godrive_proto::data::{Fetch, FetchRequest, GetSums, Read, ReadRequest, SumsRequest, Sync, SyncRequest};
use godrive_proto::frame::{ReplyHeader, RequestHeader};
use godrive_proto::limits::{MAX_BODY_BYTES, MAX_PAYLOAD_BYTES};
use godrive_proto::net::machine;
use godrive_proto::net::{Connection, Incoming};
use godrive_proto::{ChunkId, Code, Epoch, Fault, Role, Version};
use std::time::Duration;
use support::{SHORT, pair};

const READ: ReadRequest =
    ReadRequest { chunk: ChunkId(1), epoch: Epoch(1), version: Version(1), first_leaf: 0, leaves: 4 };

static SYNC: SyncRequest =
    SyncRequest { chunk: ChunkId(1), epoch: Epoch(1), version: Version(1), chain: Vec::new() };

fn applied() -> godrive_proto::data::Applied {
    godrive_proto::data::Applied { contents: Default::default(), stable: true, used_bytes: 7 }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

/// Answers requests with `Sync`'s reply, returning the payload that came.
async fn echo(connection: Connection) {
    while let Some(mut incoming) = connection.accept().await {
        tokio::spawn(async move {
            assert_eq!(incoming.decode::<Sync>().unwrap(), SYNC.clone());
            let payload = incoming.payload.collect(MAX_PAYLOAD_BYTES).await.unwrap();
            incoming.reply::<Sync>(ReplyHeader::default(), &applied(), &payload).await.unwrap();
        });
    }
}

#[tokio::test]
async fn a_request_and_its_reply_carry_payload_both_ways() {
    let pair = pair().await;
    tokio::spawn(echo(pair.slave.clone()));
    for len in [0, 1, 4096, 5 << 20] {
        let sent = pattern(len);
        let pieces: Vec<Bytes> = sent.chunks(100_000).map(Bytes::copy_from_slice).collect();
        let header = RequestHeader { sequence: 5, ..RequestHeader::default() };
        let reply = pair.client.call::<Sync>(header, &SYNC, &pieces, SHORT).await.unwrap();
        assert_eq!(reply.body, applied());
        assert_eq!(reply.payload.concat(), sent);
    }
}

#[tokio::test]
async fn requests_travel_in_both_directions_of_a_connection() {
    let pair = pair().await;
    let client = pair.client.clone();
    tokio::spawn(async move {
        let incoming = client.accept().await.unwrap();
        incoming.decode::<Ping>().unwrap();
        incoming.reply::<Ping>(ReplyHeader::default(), &(), &[]).await.unwrap();
    });
    pair.slave.call::<Ping>(RequestHeader::default(), &(), &[], SHORT).await.unwrap();
}

#[tokio::test]
async fn many_requests_run_at_a_time() {
    let pair = pair().await;
    tokio::spawn(echo(pair.slave.clone()));
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..500usize {
        let client = pair.client.clone();
        calls.spawn(async move {
            let payload = [Bytes::from(pattern(number * 10))];
            let reply = client.call::<Sync>(RequestHeader::default(), &SYNC, &payload, SHORT).await.unwrap();
            assert_eq!(reply.payload.concat(), payload[0]);
        });
    }
    assert_eq!(calls.join_all().await.len(), 500);
}

#[tokio::test]
async fn a_started_request_is_read_while_it_is_sent() {
    let pair = pair().await;
    let mut call = pair.client.start::<Sync>(RequestHeader::default(), &SYNC, 300_000, SHORT).await.unwrap();
    let mut incoming = pair.slave.accept().await.unwrap();
    let mut sent = 0;
    for _ in 0..3 {
        call.send(Bytes::from(vec![1; 100_000])).await.unwrap();
        sent += 100_000;
        while incoming.payload.remaining() > 300_000 - sent {
            assert!(incoming.payload.next().await.unwrap().is_some());
        }
    }
    let (answer, reply) = tokio::join!(
        async {
            assert_eq!(incoming.payload.next().await.unwrap(), None);
            incoming.reply::<Sync>(ReplyHeader::default(), &applied(), &[]).await
        },
        call.finish()
    );
    answer.unwrap();
    assert_eq!(reply.unwrap().body, applied());
}

#[tokio::test]
async fn an_early_refusal_reaches_the_sender_of_a_long_payload() {
    let pair = pair().await;
    let slave = pair.slave.clone();
    tokio::spawn(async move {
        let incoming = slave.accept().await.unwrap();
        incoming.fail(ReplyHeader::default(), Fault::new(Code::WrongEpoch, "sealed")).await
    });
    // More than the windows let through, so that only the refusal can end the call.
    let payload = vec![Bytes::from(vec![0; 1 << 20]); 40];
    let fault = pair.client.call::<Sync>(RequestHeader::default(), &SYNC, &payload, SHORT).await.unwrap_err();
    assert_eq!((fault.code, fault.detail.as_str()), (Code::WrongEpoch, "sealed"));
}

#[tokio::test]
async fn an_early_refusal_reaches_the_sender_of_pieces() {
    let pair = pair().await;
    let mut call = pair.client.start::<Sync>(RequestHeader::default(), &SYNC, 40 << 20, SHORT).await.unwrap();
    let incoming = pair.slave.accept().await.unwrap();
    incoming.fail(ReplyHeader::default(), Fault::bare(Code::NoChunk)).await.unwrap();
    for _ in 0..40 {
        call.send(Bytes::from(vec![0; 1 << 20])).await.unwrap();
    }
    assert_eq!(call.finish().await.unwrap_err().code, Code::NoChunk);
}

#[tokio::test]
async fn a_role_that_may_not_ask_is_refused() {
    let pair = pair().await;
    let slave = pair.slave.clone();
    tokio::spawn(async move {
        while let Some(incoming) = slave.accept().await {
            // Clients may read; sums are for slaves, deletions for masters.
            let fault = match incoming.header.code {
                0x0302 => incoming.decode::<Read>().map(drop).err(),
                0x0310 => incoming.decode::<GetSums>().map(drop).err(),
                _ => incoming.decode::<Delete>().map(drop).err(),
            };
            let fault = fault.unwrap_or(Fault::bare(Code::Exists));
            incoming.fail(ReplyHeader::default(), fault).await.unwrap();
        }
    });
    let header = RequestHeader::default;
    let allowed = pair.client.call::<Read>(header(), &READ, &[], SHORT).await.unwrap_err();
    assert_eq!(allowed.code, Code::Exists);
    let sums = pair
        .client
        .call::<GetSums>(header(), &SumsRequest { chunk: ChunkId(1) }, &[], SHORT)
        .await
        .unwrap_err();
    assert_eq!(sums.code, Code::Forbidden);
    assert!(sums.detail.contains("client") && sums.detail.contains("GetSums"), "{sums}");
    let delete = DeleteRequest { chunks: vec![(ChunkId(1), Epoch(1))] };
    assert_eq!(
        pair.client.call::<Delete>(header(), &delete, &[], SHORT).await.unwrap_err().code,
        Code::Forbidden
    );
}

#[tokio::test]
async fn a_call_ends_at_its_deadline() {
    let pair = pair().await;
    let deadline = Duration::from_millis(100);
    let call = pair.client.call::<Sync>(RequestHeader::default(), &SYNC, &[], deadline);
    let (fault, incoming) = tokio::join!(call, pair.slave.accept());
    assert_eq!(fault.unwrap_err().code, Code::Timeout);
    let incoming = incoming.unwrap();
    assert_eq!(incoming.header.deadline_ms, 100);
    let gone = incoming.reply::<Sync>(ReplyHeader::default(), &applied(), &[]).await;
    // The cancelled stream may or may not be known here already; neither hangs nor panics.
    assert!(gone.is_ok() || gone.unwrap_err().code == Code::Unreachable);
}

#[tokio::test]
async fn a_payload_that_stalls_ends_at_the_deadline() {
    let pair = pair().await;
    let deadline = Duration::from_millis(200);
    let mut call = pair.client.start::<Sync>(RequestHeader::default(), &SYNC, 1000, deadline).await.unwrap();
    call.send(Bytes::from(vec![1; 10])).await.unwrap();
    let mut incoming = pair.slave.accept().await.unwrap();
    assert_eq!(incoming.payload.next().await.unwrap().unwrap().len(), 10);
    assert_eq!(incoming.payload.next().await.unwrap_err().code, Code::Timeout);
}

#[tokio::test]
async fn a_dropped_call_is_cancelled_not_cut_short() {
    let pair = pair().await;
    let mut call = pair.client.start::<Sync>(RequestHeader::default(), &SYNC, 1000, SHORT).await.unwrap();
    call.send(Bytes::from(vec![1; 10])).await.unwrap();
    let mut incoming = pair.slave.accept().await.unwrap();
    drop(call);
    let fault = loop {
        match incoming.payload.next().await {
            Ok(piece) => assert!(piece.is_some(), "a torn payload passed as whole"),
            Err(fault) => break fault,
        }
    };
    assert_eq!(fault.code, Code::Unreachable);
    assert!(!pair.slave.is_closed());
}

#[tokio::test]
async fn a_request_dropped_by_its_handler_is_answered() {
    let pair = pair().await;
    let call = pair.client.call::<Sync>(RequestHeader::default(), &SYNC, &[], SHORT);
    let (fault, ()) = tokio::join!(call, async { drop::<Incoming>(pair.slave.accept().await.unwrap()) });
    assert_eq!(fault.unwrap_err().code, Code::Internal);
}

#[tokio::test]
async fn an_oversized_request_is_refused_by_the_sender() {
    let pair = pair().await;
    let request =
        FetchRequest { chunk: ChunkId(1), version: Version(1), leaves: vec![u32::MAX; MAX_BODY_BYTES / 4] };
    let fault = pair.client.call::<Fetch>(RequestHeader::default(), &request, &[], SHORT).await.unwrap_err();
    assert_eq!(fault.code, Code::Malformed);
    let payload = vec![Bytes::from(vec![0; 1 << 20]); 65];
    let fault = pair.client.call::<Sync>(RequestHeader::default(), &SYNC, &payload, SHORT).await.unwrap_err();
    assert_eq!(fault.code, Code::Malformed);
    assert!(!pair.client.is_closed());
}

#[tokio::test]
async fn more_payload_than_a_handler_takes_is_refused_before_it_is_read() {
    let pair = pair().await;
    let slave = pair.slave.clone();
    tokio::spawn(async move {
        let mut incoming = slave.accept().await.unwrap();
        let fault = incoming.payload.collect(1000).await.unwrap_err();
        incoming.fail(ReplyHeader::default(), fault).await
    });
    let payload = [Bytes::from(vec![0; 1001])];
    let fault = pair.client.call::<Sync>(RequestHeader::default(), &SYNC, &payload, SHORT).await.unwrap_err();
    assert_eq!(fault.code, Code::Malformed);
}

#[tokio::test]
async fn the_end_of_a_connection_is_noticed_by_both() {
    let pair = pair().await;
    let call = pair.client.call::<Sync>(RequestHeader::default(), &SYNC, &[], SHORT);
    let (fault, ()) = tokio::join!(call, async {
        let _incoming = pair.slave.accept().await.unwrap();
        pair.slave.close("going home");
    });
    let fault = fault.unwrap_err();
    assert_eq!(fault.code, Code::Unreachable);
    assert!(fault.detail.contains("going home"), "{fault}");
    assert!(pair.client.is_closed());
    assert!(pair.client.closed().await.contains("going home"));
    assert!(pair.client.accept().await.is_none() && pair.slave.accept().await.is_none());
    let [server, _] = &pair.endpoints;
    server.close().await;
    assert!(server.accept().await.is_none());
}

#[tokio::test]
async fn a_restarted_node_is_noticed_before_the_idle_timeout() {
    let authority = support::authority(1);
    let slave = support::identity(&authority, Role::Slave, 2);
    let caller = support::endpoint(&support::identity(&authority, Role::Client, 3));
    // It dies without a word: its runtime is gone before anything is sent.
    let dying = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (tell, told) = tokio::sync::oneshot::channel();
    let first = slave.clone();
    dying.spawn(async move {
        let endpoint = support::endpoint(&first);
        tell.send(endpoint.local_address()).unwrap();
        let _connection = endpoint.accept().await;
        std::future::pending::<()>().await
    });
    let address = told.await.unwrap();
    let connection = caller.connect(address, support::any(Role::Slave)).await.unwrap();
    dying.shutdown_background();
    let second = loop {
        let options = godrive_proto::net::Options::default();
        match godrive_proto::net::Endpoint::new(&machine::sockets(), address, &slave, &options) {
            Ok(endpoint) => break endpoint,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let reason = tokio::time::timeout(Duration::from_secs(3), connection.closed()).await;
    assert!(reason.expect("nobody noticed").contains("reset"));
    let again = caller.connect(address, support::any(Role::Slave));
    assert!(tokio::join!(again, second.accept()).0.is_ok());
}

/// One endpoint may hear another out of order and late; what matters here is that bulk transfer is cheap.
#[tokio::test(flavor = "multi_thread")]
async fn loopback_reaches_jumbo_datagrams() {
    let pair = pair().await;
    tokio::spawn(echo(pair.slave.clone()));
    let payload = vec![Bytes::from(vec![7; 1 << 20]); 4];
    for _ in 0..200 {
        pair.client.call::<Sync>(RequestHeader::default(), &SYNC, &payload, SHORT).await.unwrap();
        if pair.client.mtu() > 60_000 && pair.slave.mtu() > 60_000 {
            return;
        }
    }
    panic!("the MTU stayed at {} and {}", pair.client.mtu(), pair.slave.mtu());
}
