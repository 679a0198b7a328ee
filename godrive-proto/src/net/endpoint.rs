//! SKELETON: signatures fixed, bodies to come.
use super::connection::Connection;
use super::identity::Identity;
use crate::{Fault, NodeId, Role};
use std::net::SocketAddr;
use std::sync::Arc;

/// Where UDP sockets come from: the machine, or the simulated network.
pub trait Sockets: Send + Sync + 'static {
    /// Binds and returns quinn's abstract socket.
    fn bind(&self, address: SocketAddr) -> std::io::Result<Arc<dyn quinn::AsyncUdpSocket>>;
}

/// How an endpoint behaves.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Seeds quinn's randomness; only the simulation sets it.
    pub rng_seed: Option<[u8; 32]>,
    /// Accept peers without a certificate as [`Role::Joiner`] (masters only).
    pub accept_joiners: bool,
}

/// Whom a connection must lead to.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    pub role: Role,
    /// None: any of that role in the own cluster.
    pub node: Option<NodeId>,
}

/// One UDP socket that connects and accepts. Clones share it.
#[derive(Clone)]
pub struct Endpoint {}

impl Endpoint {
    pub fn new(_sockets: &dyn Sockets, _bind: SocketAddr, _identity: &Identity, _options: &Options) -> Result<Self, Fault> {
        todo!()
    }
    pub fn local_address(&self) -> SocketAddr {
        todo!()
    }
    /// Connects and verifies cluster, role and id of the peer.
    pub async fn connect(&self, _address: SocketAddr, _expect: Expect) -> Result<Connection, Fault> {
        todo!()
    }
    /// The next authenticated peer; None after [`Self::close`]. Failed handshakes are logged with their reason and skipped.
    pub async fn accept(&self) -> Option<Connection> {
        todo!()
    }
    /// Closes every connection with a reason and waits until the peers were told (bounded).
    pub async fn close(&self) {
        todo!()
    }
}
