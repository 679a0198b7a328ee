//! A master's insides on a disk of which a loss of power leaves only what was synced.

use super::checkpoint;
use super::start::{Master, World, may_begin};
use crate::config::Config;
use crate::core::record::Body;
use crate::store::{RecoveryOptions, recover};
use godrive_disk::{Disk, SimulatedDisk};
use godrive_proto::net::identity::Authority;
use godrive_proto::net::machine::{MachineClock, MachineSockets};
use godrive_proto::{ClusterId, NodeId, Role};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::sync::Arc;

const NOW_S: i64 = 1_795_000_000;

/// A record that nobody asked to sync is in the state when that is checkpointed: the log has it, too.
#[tokio::test]
async fn a_checkpoint_is_never_ahead_of_the_log() {
    let cluster = ClusterId(7);
    let authority = Authority::create(cluster, NOW_S).unwrap();
    for seed in 0..10 {
        let disk = SimulatedDisk::new(1 << 30);
        may_begin(&disk).unwrap();
        let world = World {
            disk: Arc::new(disk.clone()),
            sockets: Arc::new(MachineSockets),
            clock: Arc::new(MachineClock),
            seed,
            identity: authority.issue(Role::Master, NodeId(1), NOW_S).unwrap(),
            authority: None,
            transport_seed: None,
        };
        let config = Config { listen: ([127, 0, 0, 1], 0).into(), ..Config::default() };
        let master = Master::start(config, world).await.unwrap();
        let body = Body::OpenSession { client: NodeId(2), label: String::new() };
        let (_, index) = master.shared.with(|hub, _| hub.decide(body)).unwrap();
        checkpoint::once(&master.shared).await.unwrap();
        disk.crash(&mut SmallRng::seed_from_u64(seed));
        let disk: Arc<dyn Disk> = Arc::new(disk);
        let recovered = recover(&disk, cluster, RecoveryOptions::default());
        let recovered = recovered.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(recovered.state.applied(), index, "seed {seed}");
    }
}
