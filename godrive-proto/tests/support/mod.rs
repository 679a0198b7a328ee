//! A cluster's authority and endpoints on loopback.
#![allow(dead_code)]

use godrive_proto::net::identity::{Authority, Identity};
use godrive_proto::net::machine;
use godrive_proto::net::{Connection, Endpoint, Expect, Options};
use godrive_proto::{ClusterId, NodeId, Role};
use std::time::{Duration, SystemTime};

pub const SHORT: Duration = Duration::from_secs(10);

#[allow(clippy::disallowed_methods)] // Certificates are checked against the machine's own clock.
pub fn now_s() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64
}

pub fn authority(cluster: u128) -> Authority {
    Authority::create(ClusterId(cluster), now_s()).unwrap()
}

pub fn identity(authority: &Authority, role: Role, node: u128) -> Identity {
    authority.issue(role, NodeId(node), now_s()).unwrap()
}

pub fn endpoint(identity: &Identity) -> Endpoint {
    endpoint_with(identity, &Options::default())
}

pub fn endpoint_with(identity: &Identity, options: &Options) -> Endpoint {
    Endpoint::new(&machine::sockets(), "127.0.0.1:0".parse().unwrap(), identity, options).unwrap()
}

pub fn any(role: Role) -> Expect {
    Expect { role, node: None }
}

/// A connection of a client to a slave, as both see it. The endpoints must be kept.
pub struct Pair {
    pub client: Connection,
    pub slave: Connection,
    pub endpoints: [Endpoint; 2],
}

pub async fn pair() -> Pair {
    let authority = authority(1);
    let server = endpoint(&identity(&authority, Role::Slave, 2));
    let caller = endpoint(&identity(&authority, Role::Client, 3));
    let connecting = caller.connect(server.local_address(), any(Role::Slave));
    let (client, slave) = tokio::join!(connecting, server.accept());
    Pair { client: client.unwrap(), slave: slave.unwrap(), endpoints: [server, caller] }
}
