//! The transport over the simulated network: it repeats under its seed, and notices a partition.

use bytes::Bytes;
use godrive_proto::data::{Applied, Sync, SyncRequest};
use godrive_proto::frame::{ReplyHeader, RequestHeader};
use godrive_proto::net::identity::{Authority, Identity};
use godrive_proto::net::simulated::{SimulatedNetwork, SimulatedSockets};
use godrive_proto::net::{Connection, Endpoint, Expect, Options, Sockets};
use godrive_proto::{ChunkId, ClusterId, Code, Epoch, NodeId, Role, Version};
use godrive_sim::clock::EPOCH_S;
use godrive_sim::crypto;
use godrive_sim::trace::{Digest, Trace};
use std::net::{IpAddr, SocketAddr};
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
    endpoint_on(SimulatedSockets::watched(Arc::new(trace.clone())), role, port, seed)
}

fn endpoint_on(sockets: SimulatedSockets, role: Role, port: u16, seed: u64) -> Endpoint {
    let sockets: Arc<dyn Sockets> = Arc::new(sockets);
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
                    let payload = incoming.payload.collect(4 << 20).await?;
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

const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1));
const AWAY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1));

/// A transfer has `begun` so long ago when the client has no network for `gap`, and another address afterwards. Says how long it
/// took from then on, and whether the connection lived on.
fn transfer_over_a_move(begun: Duration, gap: Duration, to: IpAddr, seed: u64) -> (Duration, bool) {
    let trace = Trace::default();
    let mut sim = simulation(seed, &trace);
    let host = trace.clone();
    let told = Arc::new(std::sync::Mutex::new(None));
    let tell = told.clone();
    sim.client("client", async move {
        let network = SimulatedNetwork::new(HOME);
        let sockets = SimulatedSockets::watched(Arc::new(host)).on(network.clone());
        let endpoint = endpoint_on(sockets, Role::Client, 0, seed);
        let connection = connect(&endpoint).await?;
        let payload = vec![Bytes::from(vec![7; 100_000]); 38];
        let wait = Duration::from_secs(20);
        connection.call::<Sync>(RequestHeader::default(), &SYNC, &payload, wait).await?;
        let under_way = connection.clone();
        let call = tokio::spawn(async move {
            under_way.call::<Sync>(RequestHeader::default(), &SYNC, &payload, wait).await
        });
        tokio::time::sleep(begun).await;
        assert!(!call.is_finished(), "the transfer is under way");
        turmoil::partition("client", "slave");
        network.set(None);
        tokio::time::sleep(gap).await;
        turmoil::repair("client", "slave");
        network.set(Some(to));
        let back = turmoil::elapsed();
        let lived = match call.await? {
            Ok(reply) => reply.payload.concat().len() == 3_800_000,
            Err(fault) => {
                assert_eq!(fault.code, Code::Unreachable);
                connect(&endpoint).await?;
                false
            }
        };
        *tell.lock().unwrap() = Some((turmoil::elapsed() - back, lived));
        // What was short enough is over before anybody has looked.
        let mut moves = endpoint.moves();
        tokio::time::timeout(Duration::from_secs(1), moves.wait_for(|moves| *moves >= 1)).await??;
        Ok(())
    });
    sim.run().unwrap();
    told.lock().unwrap().expect("the client has told")
}

fn goes_on(begun: Duration, within: Duration) {
    for (gap_ms, to) in [(0, AWAY), (600, AWAY), (2000, AWAY), (2000, HOME), (4000, AWAY)] {
        for seed in 0..3 {
            let (took, lived) = transfer_over_a_move(begun, Duration::from_millis(gap_ms), to, seed);
            let case = format!("{gap_ms} ms without a network, then {to}, seed {seed}");
            assert!(lived && took < within, "{took:?}, the connection lived on: {lived}; {case}");
        }
    }
}

/// The client's window is full of what is lost, and its loss probes are far apart.
#[test]
fn an_upload_goes_on_at_once_after_a_change_of_address() {
    goes_on(Duration::from_millis(4), Duration::from_millis(300));
}

/// Here it is the server that has to send again.
#[test]
fn a_download_goes_on_after_a_change_of_address() {
    goes_on(Duration::from_millis(25), Duration::from_millis(1500));
}

#[test]
fn a_connection_that_ended_meanwhile_is_made_anew_at_once() {
    let (took, lived) = transfer_over_a_move(Duration::from_millis(4), Duration::from_secs(8), AWAY, 1);
    assert!(!lived && took < Duration::from_millis(500), "{took:?}");
}

#[test]
fn waits_and_attempts_begin_anew_when_there_is_a_network_again() {
    let trace = Trace::default();
    let mut sim = simulation(4, &trace);
    let host = trace.clone();
    sim.client("client", async move {
        let network = SimulatedNetwork::new(HOME);
        let sockets = SimulatedSockets::watched(Arc::new(host)).on(network.clone());
        let endpoint = endpoint_on(sockets, Role::Client, 0, 4);
        turmoil::partition("client", "slave");
        network.set(None);
        let (attempt, pause) = (endpoint.clone(), endpoint.clone());
        let attempt = tokio::spawn(async move { connect(&attempt).await });
        let pause = tokio::spawn(async move { pause.pause(Duration::from_secs(60)).await });
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(!attempt.is_finished() && !pause.is_finished());
        turmoil::repair("client", "slave");
        network.set(Some(AWAY));
        let back = turmoil::elapsed();
        attempt.await??;
        pause.await?;
        let took = turmoil::elapsed() - back;
        assert!(took < Duration::from_millis(500), "{took:?}");
        Ok(())
    });
    sim.run().unwrap();
}
