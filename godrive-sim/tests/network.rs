//! The transport over the simulated network: it repeats under its seed, and notices a partition.

use bytes::Bytes;
use godrive_proto::data::{Applied, Sync, SyncRequest};
use godrive_proto::frame::{ReplyHeader, RequestHeader};
use godrive_proto::net::identity::{Authority, Identity};
use godrive_proto::net::simulated::SimulatedSockets;
use godrive_proto::net::{Connection, Endpoint, Expect, Options};
use godrive_proto::{ChunkId, ClusterId, Code, Epoch, NodeId, Role, Version};
use godrive_sim::clock::EPOCH_S;
use godrive_sim::crypto;
use godrive_sim::trace::{Digest, Trace};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const PORT: u16 = 7401;
static SYNC: SyncRequest =
    SyncRequest { chunk: ChunkId(1), epoch: Epoch(1), version: Version(1), chain: Vec::new() };

fn identity(role: Role) -> Identity {
    let authority = Authority::create_seeded(ClusterId(1), EPOCH_S, [1; 32]).unwrap();
    authority.issue_seeded(role, NodeId(role as u128), EPOCH_S, [role as u8; 32]).unwrap()
}

fn endpoint(trace: &Trace, role: Role, port: u16, seed: u64) -> Endpoint {
    let sockets = SimulatedSockets::watched(Arc::new(trace.clone()));
    let mut rng_seed = [role as u8; 32];
    rng_seed[..8].copy_from_slice(&seed.to_le_bytes());
    let options = Options { rng_seed: Some(rng_seed), ..Options::default() };
    Endpoint::new(&sockets, SocketAddr::from(([0, 0, 0, 0], port)), &identity(role), &options).unwrap()
}

async fn connect(endpoint: &Endpoint) -> Result<Connection, godrive_proto::Fault> {
    let address = SocketAddr::new(turmoil::lookup("slave"), PORT);
    endpoint.connect(address, Expect { role: Role::Slave, node: None }).await
}

async fn serve(endpoint: Endpoint) {
    while let Some(connection) = endpoint.accept().await {
        tokio::spawn(async move {
            while let Some(mut incoming) = connection.accept().await {
                tokio::spawn(async move {
                    let payload = incoming.payload.collect(4 << 20).await.unwrap();
                    let applied = Applied { contents: Default::default(), stable: true, used_bytes: 7 };
                    incoming.reply::<Sync>(ReplyHeader::default(), &applied, &payload).await
                });
            }
        });
    }
}

fn simulation(seed: u64, trace: &Trace) -> turmoil::Sim<'static> {
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(Duration::from_secs(120))
        .max_message_latency(Duration::from_millis(5))
        .udp_capacity(1 << 16)
        .build();
    let host = trace.clone();
    sim.host("slave", move || {
        let trace = host.clone();
        async move {
            serve(endpoint(&trace, Role::Slave, PORT, seed)).await;
            Ok(())
        }
    });
    sim
}

fn transfer(seed: u64) -> Digest {
    crypto::seed(seed);
    let trace = Trace::default();
    let mut sim = simulation(seed, &trace);
    let host = trace.clone();
    sim.client("client", async move {
        let endpoint = endpoint(&host, Role::Client, 0, seed);
        let connection = connect(&endpoint).await?;
        let payload = vec![Bytes::from(vec![7; 100_000]); 8];
        for _ in 0..10 {
            let wait = Duration::from_secs(20);
            let reply = connection.call::<Sync>(RequestHeader::default(), &SYNC, &payload, wait).await?;
            assert_eq!(reply.payload.concat().len(), 800_000);
        }
        endpoint.close().await;
        Ok(())
    });
    sim.run().unwrap();
    trace.digest()
}

#[test]
fn the_same_seed_gives_the_same_datagrams() {
    let first = transfer(1);
    assert!(first.bytes > 16_000_000, "{first:?}");
    assert_eq!(first, transfer(1));
    assert_ne!(first.hash, transfer(2).hash);
}

#[test]
fn a_partition_is_noticed_and_healed() {
    let trace = Trace::default();
    let mut sim = simulation(3, &trace);
    let host = trace.clone();
    sim.client("client", async move {
        let endpoint = endpoint(&host, Role::Client, 0, 3);
        let connection = connect(&endpoint).await?;
        turmoil::partition("client", "slave");
        let before = turmoil::elapsed();
        let fault = connection
            .call::<Sync>(RequestHeader::default(), &SYNC, &[], Duration::from_secs(20))
            .await
            .expect_err("nothing can arrive");
        let noticed = turmoil::elapsed() - before;
        assert_eq!(fault.code, Code::Unreachable);
        assert!(noticed > Duration::from_secs(4) && noticed < Duration::from_secs(7), "{noticed:?}");
        assert_eq!(connect(&endpoint).await.unwrap_err().code, Code::Unreachable);
        turmoil::repair("client", "slave");
        let again = connect(&endpoint).await?;
        again.call::<Sync>(RequestHeader::default(), &SYNC, &[], Duration::from_secs(20)).await?;
        Ok(())
    });
    sim.run().unwrap();
}
